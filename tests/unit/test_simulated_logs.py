"""Logs that `emberline data gcode` writes are read as the runs that they were written from."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from pipelines import simulation
from ray_jobs.data.machine_logs.prepare import prepare_machine_logs
from ray_jobs.data.machine_logs.runs import read_runs
from ray_jobs.data.machine_logs.spec import MachineLogsSpec
from ray_jobs.data.table import find_files
from ray_jobs.errors import SpecError
from ray_jobs.result import DataSummary
from ray_jobs.spec import load_spec
from ray_jobs.storage import Storage
from ray_jobs.workloads.gcode import GcodeSpec


def quiet(kind: str, **fields: object) -> None: ...


def prepare(storage: Path, data: MachineLogsSpec) -> DataSummary:
    return prepare_machine_logs(
        data, workload="gcode", seed=3, storage=Storage(storage), emit=quiet
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> simulation.Written:
    folder = tmp_path_factory.mktemp("logs of runs") / "new"
    return simulation.write("gcode", str(folder), samples=9, generator=None, seed=3)


def test_a_run_takes_them_to_the_same_rows_and_targets(
    written: simulation.Written, tmp_path: Path
) -> None:
    assert (written.num_samples, written.num_files) == (9, 9)
    command, workload, *overrides = shlex.split(written.usage.removeprefix("emberline "))
    assert (command, overrides.pop(0)) == ("run", "--set")
    spec = load_spec(workload, overrides=overrides)
    assert isinstance(spec, GcodeSpec)
    assert spec.data.source == "machine-logs"
    theirs = prepare(tmp_path, spec.data)
    own = prepare(tmp_path, MachineLogsSpec(runs=9))
    assert theirs.digest == own.digest  # of every row, target, window and split
    assert theirs.splits == own.splits
    assert theirs.leakage.columns == own.leakage.columns
    assert theirs.leakage.excluded_columns == {
        **own.leakage.excluded_columns,
        "time": "text",
    }


def test_layouts_differ_and_the_clock_is_read(written: simulation.Written) -> None:
    logs = sorted(Path(written.path).glob("*.csv"))
    assert logs[0].name == "contour1_006.csv"
    headers = [log.read_text().partition("\n")[0] for log in logs]
    assert len({frozenset(header.split(",")) for header in headers}) > 1  # some lack a node
    assert len(set(headers)) == len(headers)
    data = MachineLogsSpec(path=written.path, time_column="time", resample_s=0.24)
    held = read_runs(find_files(written.path), data).runs
    plain = read_runs(find_files(written.path), MachineLogsSpec(path=written.path)).runs
    for one, other in zip(held, plain, strict=True):
        assert abs(len(one) - len(other)) <= 1


@pytest.mark.parametrize(
    ("samples", "generator", "message"),
    [
        (5, None, "--samples 5: at least 6 runs are needed"),
        (None, "episodes", "--generator belongs to fire: runs are simulated in one way"),
    ],
)
def test_refused(tmp_path: Path, samples: int | None, generator: str | None, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        simulation.write("gcode", str(tmp_path), samples=samples, generator=generator, seed=0)
    assert str(refused.value) == message
