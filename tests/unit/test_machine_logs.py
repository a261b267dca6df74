from __future__ import annotations

import csv
import gzip
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_jobs.data.dataset import SPLITS
from ray_jobs.data.machine_logs.gcode import PARAMETERS
from ray_jobs.data.machine_logs.motion import ACCELERATION, follow
from ray_jobs.data.machine_logs.prepare import prepare_machine_logs
from ray_jobs.data.machine_logs.runs import Run, operation_of, read_runs
from ray_jobs.data.machine_logs.simulator import simulate_run, simulate_runs
from ray_jobs.data.machine_logs.spec import MachineLogsSpec, MachineSplit
from ray_jobs.data.machine_logs.splits import assign_splits
from ray_jobs.data.machine_logs.targets import (
    RowTargets,
    apply_modal_code,
    find_modal_code,
    row_targets,
)
from ray_jobs.data.machine_logs.toolpaths import KINDS, program
from ray_jobs.data.machine_logs.windows import UNSEEN, Windows, cut_windows, load_windows
from ray_jobs.data.table import find_files
from ray_jobs.errors import DataError
from ray_jobs.result import DataSummary
from ray_jobs.storage import Storage

REAL = Path(__file__).parents[3] / "shared/data/gcode_cnc_bantam/runs"


def quiet(kind: str, **fields: object) -> None: ...


def write_run(folder: Path, run: Run, columns: list[str] | None = None) -> None:
    """A log as CSV.gz, with the columns asked for in that order."""
    text = io.StringIO()
    names = columns or list(run.columns)
    writer = csv.writer(text)
    writer.writerow([*names, "gcode_string"])
    for row, line in enumerate(run.gcode):
        writer.writerow([run.columns[name][row] for name in names] + [line])
    (folder / f"{run.name}.csv.gz").write_bytes(gzip.compress(text.getvalue().encode()))


def log(folder: Path, name: str, lines: list[str], **columns: list[Any]) -> Path:
    path = folder / name
    columns.setdefault("a", list(range(len(lines))))
    rows = zip(*columns.values(), [f'"{line}"' for line in lines], strict=True)
    text = ",".join([*columns, "gcode_string"]) + "\n"
    path.write_text(text + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


def prepare(storage: Storage, seed: int = 0, **data: Any) -> DataSummary:
    spec = MachineLogsSpec(**{"runs": 12} | data if "path" not in data else data)
    return prepare_machine_logs(spec, workload="gcode", seed=seed, storage=storage, emit=quiet)


def load_all(storage: Storage, summary: DataSummary) -> dict[str, Windows]:
    return {name: load_windows(storage, summary, name) for name in SPLITS}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="module")
def summary(storage: Storage) -> DataSummary:
    return prepare(storage)


@pytest.fixture(scope="module")
def loaded(storage: Storage, summary: DataSummary) -> dict[str, Windows]:
    return load_all(storage, summary)


# the spec


def test_defaults_follow_the_source_and_the_protocol() -> None:
    spec = MachineLogsSpec()
    assert (spec.source, spec.runs, spec.protocol) == ("simulator", 24, "by_run")
    assert (spec.window, spec.stride, spec.target) == (64, 4, "last_row")
    published = MachineLogsSpec.model_validate({"path": "logs", "split": "published"})
    assert (published.source, published.runs) == ("machine-logs", None)
    assert (published.window, published.stride) == (64, 16)
    assert published.target == "most_frequent_line"
    assert published.kept_leaks == ("mpox", "mpoy", "mpoz")
    assert MachineLogsSpec.model_validate(published.model_dump()) == published


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": "machine-logs"}, "data.source=machine-logs needs data.path: a file, folder,"),
        ({"source": "simulator", "path": "x"}, "path belongs to data.source=machine-logs, but"),
        ({"path": "x", "runs": 9}, "runs belongs to data.source=simulator, but data.path is set"),
        ({"path": "x", "resample_s": 1}, "resample_s needs data.time_column: the column with"),
        (
            {"split": "published", "window": 16},
            "data.split=published is a protocol with window=64, not 16; leave window out, or take "
            "data.split=by_run",
        ),
        ({"operation_pattern": "("}, "not a regular expression: missing )"),
        ({"operation_pattern": ".*"}, "the pattern needs a group (?P<operation>...)"),
        ({"split": "by_rows"}, "Input should be 'by_run', 'by_operation' or 'published'"),
    ],
)
def test_what_does_not_fit_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        MachineLogsSpec.model_validate(data)
    assert message in str(raised.value)


# reading


def test_columns_are_matched_by_name(tmp_path: Path) -> None:
    log(tmp_path, "face_1.csv", ["G1 X1", "X2"], a=[1, 2], b=[5, 6])
    log(tmp_path, "face_2.csv", ["G1 X1", ""], c=["", ""], b=[7, 8], a=[3, "inf"])
    data = MachineLogsSpec(path=str(tmp_path))
    logs = read_runs(find_files(str(tmp_path)), data)
    first, second = logs.runs
    assert (first.name, first.operation, first.gcode) == ("face_1", "face", ["G1 X1", "X2"])
    np.testing.assert_array_equal(first.columns["b"], [5, 6])
    np.testing.assert_array_equal(second.columns["b"], [7, 8])
    np.testing.assert_array_equal(second.columns["a"], [3, np.nan])
    assert np.isnan(second.columns["c"]).all()
    assert logs.notes == ["face_2.csv, line 3: column 'a': 1 infinite cells are masked"]
    with pytest.raises(
        DataError, match=r"face_2.csv, line 3: column 'a' is inf. Mend the cell, or"
    ):
        read_runs(find_files(str(tmp_path)), data.model_copy(update={"nonfinite": "refuse"}))


def test_text_in_one_file_is_no_sensor_in_any(tmp_path: Path) -> None:
    log(tmp_path, "face_1.csv", ["G1 X1"], a=[1], t=["12:01:05.250"])
    log(tmp_path, "face_2.csv", ["G1 X1"], a=["off"], t=["12:01:06.250"])
    logs = read_runs(find_files(str(tmp_path)), MachineLogsSpec(path=str(tmp_path)))
    assert logs.not_numeric == {"a": "text", "t": "text"}
    assert not logs.runs[0].columns


def test_a_malformed_line_is_told_with_its_file_and_row(tmp_path: Path) -> None:
    path = log(tmp_path, "face_1.csv", ["G1 X1", "X2", "G1 X"])
    data = MachineLogsSpec(path=str(path))
    with pytest.raises(DataError) as raised:
        read_runs(find_files(str(path)), data)
    assert str(raised.value) == (
        "face_1.csv, line 4: malformed G-code 'G1 X': 'X': no number follows the letter. Mend the "
        "line, or set data.malformed=skip to leave such rows without a target"
    )
    logs = read_runs(find_files(str(path)), data.model_copy(update={"malformed": "skip"}))
    assert logs.runs[0].gcode == ["G1 X1", "X2", ""]
    assert logs.warnings[0].startswith("1 rows of face_1.csv have malformed G-code and no target; ")


def test_files_without_gcode_are_refused(tmp_path: Path) -> None:
    path = log(tmp_path, "face_1.csv", ["G1 X1"])
    with pytest.raises(DataError) as raised:
        read_runs(find_files(str(path)), MachineLogsSpec(path=str(path), gcode_column="gcode_str"))
    assert str(raised.value) == (
        "face_1.csv: no column 'gcode_str' with the G-code in force (did you mean "
        "'gcode_string'?). Set data.gcode_column; if the file is no log, name the logs alone, such "
        "as data.path='logs/run_*.csv'"
    )
    path = log(tmp_path, "face_2.csv", ["", "(none)"])
    with pytest.raises(DataError, match=r"face_2.csv: no row has G-code in column 'gcode_string'"):
        read_runs(find_files(str(path)), MachineLogsSpec(path=str(path)))


def test_a_run_of_mostly_empty_cells_is_left_out(tmp_path: Path) -> None:
    log(tmp_path, "face_1.csv", ["G1 X1"] * 4, b=[1, 2, 3, 4])
    log(tmp_path, "face_2.csv", ["G1 X1", "", "", ""], a=[1, "", "", ""], b=["", "", "", ""])
    logs = read_runs(find_files(str(tmp_path)), MachineLogsSpec(path=str(tmp_path)))
    assert [run.name for run in logs.runs] == ["face_1"]
    assert logs.num_dropped == 4
    assert logs.warnings == [
        "run 'face_2' is left out with its 4 rows: 83% of its cells are empty "
        "(data.max_empty_share=0.5)"
    ]


def test_resampling_holds_the_last_row(tmp_path: Path) -> None:
    lines = ["G0 X1", "G1 X2", "X3", "X4"]
    clock = ["23:59:59.0", "23:59:59.4", "0:00:00.1", "00:00:01.0"]
    path = log(tmp_path, "face_1.csv", lines, t=clock)
    data = MachineLogsSpec(path=str(path), time_column="t", resample_s=0.5)
    run = read_runs(find_files(str(path)), data).runs[0]
    np.testing.assert_array_equal(run.columns["a"], [0, 1, 1, 2, 3])
    assert run.gcode == ["G0 X1", "G1 X2", "G1 X2", "X3", "X4"]
    log(tmp_path, "face_1.csv", lines, t=[0, 1, 0.5, 2])
    with pytest.raises(DataError, match=r"face_1.csv, line 4: the time in column 't' goes back"):
        read_runs(find_files(str(path)), data)


def test_operations_come_from_the_names() -> None:
    pattern = MachineLogsSpec().operation_pattern
    assert operation_of("sub/adaptive150025_002_aligned", pattern) == "adaptive150025"
    assert operation_of("face_003", pattern) == "face"
    assert operation_of("calibration", pattern) == "calibration"


# targets


def run_of(gcode: list[str], **columns: list[float]) -> Run:
    return Run("r", "o", {k: np.array(v, float) for k, v in columns.items()}, gcode)


def test_row_targets_by_hand() -> None:
    targets = row_targets(run_of(["X1", "G1 X2 F7.3", "G1 X2 F7.3", "", "Z-1", "M30"]))
    assert targets.command == [None, "G1", "G1", None, "G1", "M30"]
    assert targets.line.tolist() == [0, 1, 1, -1, 2, 3]
    assert targets.is_last_of_line.tolist() == [True, False, True, True, True, True]
    assert targets.sets.tolist() == [
        [False, False, True, False, False],
        *[[True, False, True, False, False]] * 2,
        [False] * 5,
        [False, False, False, False, True],
        [False] * 5,
    ]
    np.testing.assert_array_equal(targets.values[1], [7.3, np.nan, 2.0, np.nan, np.nan])


def test_a_logged_modal_code_tells_what_lines_between_rows_set() -> None:
    stated = ["G0 X1", "G1 X2"] * 12
    run = run_of([*stated, "G0 Z1", "X3 Y1", ""], mode=[4.0, 9.0] * 12 + [4.0, 9.0, 9.0])
    targets = row_targets(run)
    assert targets.command[-2] == "G0", "the last one seen"
    code = find_modal_code([run], [targets])
    assert code is not None
    assert (code.column, dict(code.commands)) == ("mode", {4.0: "G0", 9.0: "G1"})
    logged, num_changed = apply_modal_code(run, targets, code)
    assert (logged.command[-2:], num_changed) == (["G1", None], 1)
    mixed = replace(run, columns={"mode": np.array([4.0, 9.0, 9.0] * 9)})
    assert find_modal_code([mixed], [targets]) is None


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real logs of gcode_cnc_bantam")
def test_the_logged_code_is_the_truth_where_the_last_command_seen_is_not() -> None:
    """An arc of these programs states its radius, and a straight line cannot."""
    files = find_files(str(REAL / "*_00[23]_aligned.csv.gz"))
    runs = read_runs(files, MachineLogsSpec(path=str(REAL))).runs
    targets = [row_targets(run) for run in runs]
    code = find_modal_code(runs, targets)
    assert code is not None
    assert code.column == "momo"
    num_wrong = {"inherit": 0, "logged": 0}
    for run, seen in zip(runs, targets, strict=True):
        logged, _ = apply_modal_code(run, seen, code)
        has_radius = seen.sets[:, PARAMETERS.index("R")]
        for name, of_run in (("inherit", seen), ("logged", logged)):
            is_arc = np.isin(np.array(of_run.command, object), ["G2", "G3"])
            num_wrong[name] += int(((is_arc != has_radius) & ~seen.is_stated).sum())
    assert num_wrong["logged"] == 0
    assert num_wrong["inherit"] > 1000


# windows


def targets_of(line: list[int], no_command: set[int] = frozenset()) -> RowTargets:  # type: ignore[assignment]
    n = len(line)
    command = [None if i in no_command or line[i] < 0 else "G1" for i in range(n)]
    return RowTargets(command, np.ones(n, bool), np.full((n, 5), np.nan), np.array(line))


def test_windows_by_hand() -> None:
    targets = [targets_of([0, 0, 0, 1, 1, 2, -1]), targets_of([0, 1]), targets_of([5] * 4, {3})]
    table = cut_windows(targets, ["a", "b", "c"], window=4, stride=1, most_frequent=False)
    assert table.run.tolist() == [0, 0, 0]
    assert table.start.tolist() == [0, 1, 2], "none ends at a row without a line"
    assert table.target_row.tolist() == [3, 4, 5]
    table = cut_windows(targets, ["a", "b", "c"], window=4, stride=1, most_frequent=True)
    # of 0001 line 0, of 0011 the later of the two, of 0112 line 1, of 112- line 1
    assert table.target_row[:4].tolist() == [2, 4, 4, 4]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    window=st.integers(2, 12),
    stride=st.integers(1, 9),
    most_frequent=st.booleans(),
    seed=st.integers(0, 99),
)
def test_windows_never_cross_a_run(
    lengths: list[int], window: int, stride: int, most_frequent: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    targets = [targets_of(rng.integers(-1, 4, n).tolist()) for n in lengths]
    names = [f"run {i}" for i in range(len(lengths))]
    table = cut_windows(targets, names, window=window, stride=stride, most_frequent=most_frequent)
    for run, start, row in zip(table.run, table.start, table.target_row, strict=True):
        assert start >= 0
        assert start + window <= lengths[run]
        assert start <= row < start + window
        assert start % stride == 0
        assert targets[run].command[row] is not None
    assert len(set(table.row_id.tolist())) == len(table)


# splits


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 7), min_size=3, max_size=6),
    protocol=st.sampled_from(["by_run", "by_operation"]),
    seed=st.integers(0, 99),
)
def test_splits_never_share_a_run(counts: list[int], protocol: Any, seed: int) -> None:
    counts[0] = max(counts[0], 3)
    operations = [f"op{i}" for i, count in enumerate(counts) for _ in range(count)]
    names = [f"{operation}_{i}" for i, operation in enumerate(operations)]
    run = np.repeat(np.arange(len(names)), 3)
    split = MachineSplit(protocol=protocol)
    assigned = assign_splits(run, names, operations, split, seed=seed)
    of_run = assigned.reshape(-1, 3)
    assert (of_run == of_run[:, :1]).all()
    assert set(assigned.tolist()) == {0, 1, 2}
    by_operation = {
        op: [int(s) for s, o in zip(of_run[:, 0], operations, strict=True) if o == op]
        for op in operations
    }
    if protocol == "by_operation":
        assert all(len(set(splits)) == 1 for splits in by_operation.values())
    else:
        spare = len(names) - len(by_operation)
        num_held = int((of_run[:, 0] > 0).sum())
        assert num_held == min(max(2, round(0.3 * len(names))), spare)
        assert abs(int((of_run[:, 0] == 1).sum()) - int((of_run[:, 0] == 2).sum())) <= 1
        for splits in by_operation.values():
            assert 0 in splits
            share = num_held * (len(splits) - 1) / spare
            assert abs(len(splits) - splits.count(0) - share) < 1, "a quota, up or down"
    # the order in which runs are listed does not matter
    order = np.random.default_rng(seed).permutation(len(names))
    shuffled = assign_splits(
        np.arange(len(names)),
        [names[i] for i in order],
        [operations[i] for i in order],
        split,
        seed=seed,
    )
    assert shuffled.tolist() == of_run[order, 0].tolist()


def test_nine_operations_of_three_runs() -> None:
    """70 / 15 / 15 of 27 runs is 19 / 4 / 4: eight operations give up one run, and one none."""
    operations = [f"op{i}" for i in range(9) for _ in range(3)]
    seen = set()
    for seed in range(20):
        assigned = assign_splits(
            np.arange(27), [str(i) for i in range(27)], operations, MachineSplit(), seed=seed
        )
        assert np.bincount(assigned).tolist() == [19, 4, 4]
        held = np.array(operations)[assigned > 0].tolist()
        assert len(set(held)) == 8
        seen.add(tuple(assigned))
    assert len(seen) == 20, "the seed draws the runs"


@pytest.mark.parametrize(
    ("counts", "shares", "of_splits"),
    [
        ([3], (0.7, 0.15, 0.15), [1, 1, 1]),
        ([2, 2], (0.7, 0.15, 0.15), [2, 1, 1]),
        ([3, 1, 1], (0.7, 0.15, 0.15), [3, 1, 1]),
        ([10, 10], (0.5, 0.4, 0.1), [10, 8, 2]),
        ([40], (0.8, 0.05, 0.15), [32, 2, 6]),
    ],
)
def test_shares_of_runs_by_hand(
    counts: list[int], shares: tuple[float, float, float], of_splits: list[int]
) -> None:
    operations = [f"op{i}" for i, count in enumerate(counts) for _ in range(count)]
    n = len(operations)
    split = MachineSplit(train=shares[0], val=shares[1], test=shares[2])
    assigned = assign_splits(np.arange(n), [str(i) for i in range(n)], operations, split, seed=0)
    assert np.bincount(assigned, minlength=3).tolist() == of_splits


@pytest.mark.parametrize(
    ("protocol", "operations", "message"),
    [
        (
            "by_run",
            ["a", "a", "b", "c"],
            "data.split=by_run needs runs to spare for val and test, as each operation keeps one "
            "in train, but there are 4 runs of 3 operations; three of one are the least, or two of "
            "two. Add runs, set data.operation_pattern",
        ),
        ("by_operation", ["a", "a", "b"], "data.split=by_operation needs three operations, but"),
    ],
)
def test_too_few_runs_are_refused(protocol: Any, operations: list[str], message: str) -> None:
    n = len(operations)
    with pytest.raises(DataError, match=message):
        assign_splits(
            np.arange(n), [str(i) for i in range(n)], operations, MachineSplit(protocol=protocol),
            seed=0,
        )  # fmt: skip


# preparing


def test_a_prepared_dataset(
    summary: DataSummary, loaded: dict[str, Windows], storage: Storage
) -> None:
    assert summary.source == "simulator:12 runs"
    assert summary.label == "command"
    targets = {
        "line": "line", "momo": "command", "feed": "F", "posx": "X", "posy": "Y", "posz": "Z",
        "mpox": "X", "mpoy": "Y", "mpoz": "Z",
    }  # fmt: skip
    assert {leak.column: leak.target for leak in summary.leakage.columns} == targets
    assert all(leak.refused and leak.evidence for leak in summary.leakage.columns)
    assert not summary.leakage.excluded_columns.keys() & targets.keys()
    assert {"x_motor", "table.Ax", "frame.RMS"} <= set(summary.features)
    groups = [set(windows.run.tolist()) for windows in loaded.values()]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    for name, windows in loaded.items():
        assert windows.features == tuple(summary.features)
        assert list(windows.commands) == summary.classes
        assert len(windows) == summary.splits[name].num_rows
        assert windows.digest() == summary.splits[name].digest
        counts = np.bincount(windows.command, minlength=len(windows.commands))
        assert {
            c: int(n) for c, n in zip(windows.commands, counts, strict=True) if n
        } == summary.splits[name].class_counts
        np.testing.assert_array_equal(windows.param_type, ~np.isnan(windows.param_value))
        x, mask = windows.batch(np.array([0, len(windows) - 1]))
        assert x.shape == mask.shape == (2, 64, len(summary.features))
        assert x.dtype == np.float32
        assert not x[~mask].any(), "what is not measured is 0, and masked"
    train = loaded["train"]
    for j in range(len(train.features)):
        known = train.values[train.measured[:, j], j]
        assert abs(known.mean()) < 0.1, "scaled on train"
        assert 0.8 < known.std() < 1.2


def test_windows_hold_the_rows_and_the_target_of_their_run(loaded: dict[str, Windows]) -> None:
    val = loaded["val"]
    for i in (0, len(val) // 2, len(val) - 1):
        run = simulate_run(0, int(val.frame.runs[val.run[i]].rpartition("_")[2]))
        start = int(val.row_id[i] & 0xFFFFFFFF)
        x, _ = val.batch(np.array([i]))
        j = val.features.index("x_motor")
        rows = run.columns["x_motor"][start : start + 64]
        expected = (rows - val.frame.mean[j]) / val.frame.std[j]
        np.testing.assert_allclose(x[0, :, j], expected, atol=1e-4)
        targets = row_targets(run)
        assert val.commands[val.command[i]] == targets.command[start + 63]
        np.testing.assert_array_equal(val.param_value[i], targets.values[start + 63])
        (command,), (value,) = val.row_targets(np.array([i]))
        seen = [val.commands[c] if c != UNSEEN else None for c in command]
        wanted = targets.command[start : start + 64]
        assert seen == [c if c in val.commands else None for c in wanted]
        np.testing.assert_array_equal(value, targets.values[start : start + 64])


def test_the_same_again_is_found_and_another_seed_is_another(
    storage: Storage, summary: DataSummary, tmp_path: Path
) -> None:
    events: list[dict[str, Any]] = []
    again = prepare_machine_logs(
        MachineLogsSpec(runs=12),
        workload="gcode",
        seed=0,
        storage=storage,
        emit=lambda kind, **fields: events.append({"kind": kind, **fields}),
    )
    assert again == summary
    assert events[0]["cached"]
    assert [e["message"] for e in events if e["kind"] == "warning"] == summary.warnings
    elsewhere = Storage(tmp_path)
    assert prepare(elsewhere).digest == summary.digest
    assert prepare(elsewhere, seed=1).digest != summary.digest


def test_a_sensor_that_a_run_lacks_is_masked(tmp_path: Path) -> None:
    for run in simulate_runs(6, seed=0):
        names = [name for name in run.columns if name != "spindle" or not run.name.endswith("4")]
        names = [name for name in names if not name.startswith("frame.")]
        write_run(tmp_path, run, names[::-1] if run.name.endswith("1") else names)
    storage = Storage(tmp_path / "runs")
    summary = prepare(storage, path=str(tmp_path / "*.gz"))
    assert "spindle" in summary.features
    for name in SPLITS:
        windows = load_windows(storage, summary, name)
        j = windows.features.index("spindle")
        lacks = np.array([windows.frame.runs[r].endswith("4") for r in windows.run])
        x, mask = windows.batch(np.arange(len(windows)))
        assert (mask[..., j] == ~lacks[:, None]).all()
        assert not x[lacks][..., j].any()
        assert x[~lacks][..., j].all()


def test_columns_can_be_chosen_by_name_or_pattern(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    summary = prepare(storage, feature_columns=["*_motor", "table.Ax", "posx"])
    assert summary.features == ["table.Ax", "x_motor", "y_motor", "z_motor"], "a leak stays out"
    assert summary.leakage.excluded_columns["spindle"] == "not among data.feature_columns"
    with pytest.raises(DataError) as raised:
        prepare(storage, feature_columns=["x_moter"])
    assert str(raised.value) == (
        "data.feature_columns names 'x_moter', which is no column of the logs (did you mean "
        "'x_motor'?)"
    )


def test_published_says_that_it_leaks(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    summary = prepare(storage, split="published")
    assert {"mpox", "mpoy", "mpoz"} <= set(summary.features)
    assert not {"posx", "line", "momo", "feed"} & set(summary.features)
    assert any(
        warning.startswith("data.split=published leaks, by design: overlapping windows of one run")
        for warning in summary.warnings
    )
    mpox = next(leak for leak in summary.leakage.columns if leak.column == "mpox")
    assert (mpox.target, mpox.refused) == ("X", False)
    assert mpox.evidence.startswith("is the value of X")
    train, val = (load_windows(storage, summary, name) for name in ("train", "val"))
    assert set(train.run.tolist()) & set(val.run.tolist()), "as in the earlier work"
    shares = [split.num_rows for split in summary.splits.values()]
    assert shares[0] / sum(shares) == pytest.approx(0.7, abs=0.01)


def test_leaks_are_refused_or_allowed_by_name(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with pytest.raises(DataError) as raised:
        prepare(storage, leaks="refuse", allow_leaks=["feed"])
    assert "'feed'" not in str(raised.value).partition(": ")[0]
    assert "'momo' tells the command: a tree on it alone has a balanced" in str(raised.value)
    kept = prepare(storage, allow_leaks=["momo"])
    assert "momo" in kept.features
    assert any(w.startswith("data.allow_leaks keeps 'momo', which give") for w in kept.warnings)
    with pytest.raises(DataError) as raised:
        prepare(storage, allow_leaks=["momos"])
    assert str(raised.value) == (
        "data.allow_leaks names 'momos', which no run has (did you mean 'momo'?)"
    )


def test_a_command_that_train_lacks_is_counted(tmp_path: Path) -> None:
    runs = simulate_runs(9, seed=0)
    held_out = [run for run in runs if run.operation == "contour1"]
    for run in runs:
        gcode = [text.replace("M30", "M2") if run in held_out else text for text in run.gcode]
        write_run(tmp_path, replace(run, gcode=gcode))
    storage = Storage(tmp_path / "runs")
    seed = 0
    while True:  # until that operation is test's
        summary = prepare(storage, seed=seed, path=str(tmp_path / "*.gz"), split="by_operation")
        if "M2" in summary.splits["test"].class_counts:
            break
        seed += 1
    windows = load_windows(storage, summary, "test")
    num_unseen = int((windows.command == UNSEEN).sum())
    assert num_unseen == summary.splits["test"].class_counts["M2"]
    assert (
        f"test has commands that train has not, which no model can name: M2 ({num_unseen} windows)"
        in summary.warnings
    )


@pytest.mark.parametrize("name", ["windows.parquet", "frame.json", "run-00000.parquet"])
def test_a_damaged_dataset_is_told(tmp_path: Path, name: str) -> None:
    storage = Storage(tmp_path)
    summary = prepare(storage, runs=6)
    storage.write_bytes(f"{summary.path}/{name}", b"not it")
    with pytest.raises(DataError, match=rf"{name}: damaged, or not what was prepared. Delete its"):
        load_all(storage, summary)


def test_too_long_windows_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no window has a target: the longest run has .* Lower"):
        prepare(Storage(tmp_path), window=4000)


# the simulator


def test_the_simulator_is_deterministic() -> None:
    one, again, other = simulate_run(3, 4), simulate_run(3, 4), simulate_run(4, 4)
    assert one.gcode == again.gcode
    for name, values in one.columns.items():
        np.testing.assert_array_equal(values, again.columns[name])
    assert one.gcode != other.gcode
    repeat = simulate_run(3, 5)  # the same program, another run of it
    assert len(set(repeat.gcode) & set(one.gcode)) > 0.8 * len(set(one.gcode))
    assert repeat.operation == one.operation


@pytest.mark.parametrize("kind", KINDS)
def test_axes_go_where_the_program_says(kind: str) -> None:
    moves = program(kind, np.random.default_rng(5))
    motion = follow(moves, 0.01)
    for index in range(len(moves) - 1):
        at = np.flatnonzero(motion.move == index)
        if len(at):
            gap = np.linalg.norm(motion.position[at[-1]] - np.array(moves[index].end))
            assert gap <= moves[index].feed / 60 * 0.011, moves[index]
    np.testing.assert_allclose(motion.position[-1], moves[-1].end, atol=1e-9)
    straight = np.array([moves[i].radius == 0 for i in motion.move])
    inner = straight & (np.roll(motion.move, 2) == np.roll(motion.move, -2))
    size = np.linalg.norm(motion.acceleration, axis=1)
    assert size[inner].max() <= ACCELERATION * 1.05


def test_arcs_bulge_to_their_side() -> None:
    moves = program("face", np.random.default_rng(0))
    motion = follow(moves, 0.01)
    arcs = [i for i, move in enumerate(moves) if move.radius]
    for i in arcs[:4]:
        x = motion.position[motion.move == i, 0]
        edge = moves[i].start[0]
        outwards = x.max() - edge if moves[i].command == "G3" else edge - x.min()
        assert outwards == pytest.approx(moves[i].radius, rel=0.05)
