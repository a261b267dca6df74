from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ray_jobs.data.machine_logs.leaks import Leak, LeakRows, find_leaks
from ray_jobs.data.machine_logs.prepare import prepare_machine_logs
from ray_jobs.data.machine_logs.spec import MachineLogsSpec
from ray_jobs.errors import DataError
from ray_jobs.storage import Storage

REAL = Path(__file__).parents[3] / "shared/data/gcode_cnc_bantam/runs"
NAMED = {
    "line", "gcode_line", "posx", "posy", "posz", "mpox", "mpoy", "mpoz", "momo", "feed"
}  # fmt: skip


def made_rows(
    seed: int = 0, num_runs: int = 3, lines: int = 60, rows_per_line: int = 4
) -> LeakRows:
    """Lines that set X to a drawn value, at which the axis arrives at their last row."""
    rng = np.random.default_rng(seed)
    n = num_runs * lines * rows_per_line
    run = np.repeat(np.arange(num_runs), lines * rows_per_line)
    line = np.arange(n) // rows_per_line
    goal = rng.uniform(-2, 2, num_runs * lines)[line]
    before = np.r_[np.zeros(rows_per_line), goal[:-rows_per_line]]
    share = np.tile(np.arange(1, rows_per_line + 1) / rows_per_line, num_runs * lines)
    position = before + (goal - before) * share
    command = rng.choice(["G0", "G1", "G2"], num_runs * lines)[line]
    drift = rng.normal(0, 50, n)
    columns = {
        "honest": position + rng.normal(0, 1.0, n),
        "position": position,
        "machine": 25.4 * position + np.array([30.0, 55.0, 41.0])[run],
        "drifting": position + drift,
        "drift": drift,
        "code": np.select([command == "G0", command == "G1"], [7.0, 3.0], 5.0),
        "counter": line * 10.0 % 97,
        "noise": rng.normal(0, 1, n),
        "steps": rng.integers(0, 3, n).astype(float),
    }
    values = np.full((n, 5), np.nan)
    values[:, 2] = goal
    return LeakRows(
        x=np.column_stack(list(columns.values())),
        columns=tuple(columns),
        run=run,
        follows=np.r_[False, run[1:] == run[:-1]],
        line=line,
        is_last_of_line=share == 1,
        command=command.astype(object),
        values=values,
    )


@pytest.fixture(scope="module")
def leaks() -> dict[str, Leak]:
    return {leak.column: leak for leak in find_leaks(made_rows(), seed=0)}


@pytest.mark.parametrize(
    ("column", "target", "evidence"),
    [
        ("position", "X", "is the value of X, 1 x 'position' plus a constant: R2 1.0000"),
        ("machine", "X", "is the value of X, 0.0393701 x 'machine' plus a constant: R2 1.0000"),
        ("drifting", "X", "is, together with 'drift', the value of X, 1 x 'drifting' + -1 x"),
        ("drift", "X", "is, together with 'drifting', the value of X, 1 x 'drifting' + -1 x"),
        ("code", "command", "tells the command: a tree on it alone has a balanced accuracy of 1."),
        ("counter", "line", "numbers the lines: it changes exactly where the G-code line does"),
    ],
)
def test_each_kind_of_leak_is_found(
    leaks: dict[str, Leak], column: str, target: str, evidence: str
) -> None:
    assert leaks[column].target == target
    assert leaks[column].evidence.startswith(evidence)


def test_honest_columns_are_not(leaks: dict[str, Leak]) -> None:
    assert not {"honest", "noise", "steps"} & leaks.keys()


def test_names_do_not_matter(leaks: dict[str, Leak]) -> None:
    rows = made_rows()
    renamed = replace(rows, columns=tuple(f"c{j}" for j in range(len(rows.columns))))
    found = {rows.columns[int(leak.column[1:])] for leak in find_leaks(renamed, seed=0)}
    assert found == leaks.keys()


def test_a_feed_in_another_unit_is_found_on_a_dozen_rows() -> None:
    rows = made_rows()
    rng = np.random.default_rng(1)
    is_set = np.arange(len(rows.run)) % 60 == 0
    rows.values[is_set, 0] = rng.choice([7.3, 13.3], is_set.sum())
    feed = 25.4 * rows.values[is_set, 0].repeat(60)  # in force until the next
    rows.x[:, rows.columns.index("noise")] = feed
    found = {leak.column: leak for leak in find_leaks(rows, seed=0)}
    assert found["noise"].evidence == "is 25.4 x F on 100% of the 12 rows whose lines set F"
    rows.x[:, rows.columns.index("noise")] = feed + 0.5  # no unit of F is
    assert "noise" not in {leak.column for leak in find_leaks(rows, seed=0)}


def test_the_copy_of_a_leak_is_told_by_the_leak() -> None:
    rows = made_rows()
    late = rows.x[:, rows.columns.index("counter")]
    copy = 2.0 * late + 5.0 * rows.run
    copy[::25] = 0.0  # damaged cells, so that it does not number the lines itself
    rows.x[:, rows.columns.index("noise")] = copy
    found = {leak.column: leak for leak in find_leaks(rows, seed=0)}
    assert found["noise"].evidence.startswith(
        "is 2 x 'counter' plus a constant, for 96% of 720 rows, and 'counter' numbers the lines"
    )


def test_a_value_that_hardly_ever_changes_is_told_by_nothing() -> None:
    rows = made_rows()
    rng = np.random.default_rng(2)
    height = np.where(rng.random(len(rows.run)) < 0.8, 0.1, rng.uniform(-1, 1, len(rows.run)))
    rows.values[:, 4] = height
    found = {leak.column: leak.target for leak in find_leaks(rows, seed=0)}
    assert "Z" not in found.values()
    assert "noise" not in found


needs_logs = pytest.mark.skipif(not REAL.is_dir(), reason="the real logs are not here")


def quiet(kind: str, **fields: object) -> None: ...


@needs_logs
def test_the_six_leaks_of_the_real_logs_are_refused_and_no_sensor(tmp_path: Path) -> None:
    data = MachineLogsSpec(path=str(REAL), leaks="refuse")
    with pytest.raises(DataError) as raised:
        prepare_machine_logs(data, workload="gcode", seed=0, storage=Storage(tmp_path), emit=quiet)
    listed, _, rest = str(raised.value).partition(": ")
    names = listed.removeprefix("targets are given away by ")
    assert {name.strip("'") for name in names.split(", ")} == NAMED
    for name in NAMED:
        assert f"{name!r} " in rest, "each with its evidence"
    assert "'momo' tells the command" in rest
    assert "'feed' is 25.4 x F" in rest
    assert "'line' numbers the lines" in rest
    assert rest.endswith(
        "Leave them out with data.leaks=exclude, or keep them on purpose with data.allow_leaks="
        f"{sorted(NAMED)}"
    )
