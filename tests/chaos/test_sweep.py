"""A sweep killed at random points promotes the same trials as one that was not, and names the same
winner.

    python -m tests.chaos.test_sweep FOLDER    one process of the sweep, in FOLDER
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import ray_runtime
from ray_jobs.result import Objective
from ray_jobs.sections import ResourceSpec
from ray_jobs.storage import Storage
from ray_jobs.sweeping.result import SweepResult
from ray_jobs.sweeping.spec import SweepSpec
from ray_jobs.sweeping.sweep import run_sweep
from ray_jobs.sweeping.trial import TrialContext

pytestmark = pytest.mark.slow

NUM_KILLS = 5  # of each of two sweeps
TIMEOUT_S = 120
RESULT, EPOCHS = "toy/run/artifacts/sweep.json", "epochs.txt"
SPEC = SweepSpec.model_validate(
    {
        "num_trials": 18,
        "max_epochs": 12,
        "grace_epochs": 2,
        "space": {"train.x": {"low": 0.0, "high": 1.0}, "train.speed": {"low": 0.2, "high": 3.0}},
        "cpus_per_trial": 0.5,
    }
)


def run(folder: Path) -> None:
    """Run the sweep, or go on with it: curves that cross, and epochs of random length."""

    def train(config: dict[str, Any], context: TrialContext) -> None:  # pickled with all it needs
        path = f"{context.folder}/values.json"
        exists = context.storage.exists(path)
        values = json.loads(context.storage.read_text(path)) if exists else []
        for epoch, value in enumerate(values, start=1):
            context.report(epoch, value)
        for epoch in range(len(values) + 1, context.max_epochs + 1):
            time.sleep(random.SystemRandom().uniform(0, 0.03))
            values.append(config["train.x"] * (1 - 2 ** (-epoch / config["train.speed"])))
            context.storage.write_text(path, json.dumps(values))
            context.storage.append_line("epochs.txt", f"{context.trial_id} {epoch}")
            context.report(epoch, values[-1])

    storage = Storage(folder)
    storage.make_folder("")
    run_sweep(
        spec=SPEC,
        objective=Objective(metric="accuracy", mode="max"),
        seed=5,
        storage=storage,
        folder="toy/run",
        train_trial=train,
        resources=ResourceSpec(num_cpus=2),
        emit=lambda event, **fields: storage.append_line("events.txt", event),
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray that outlives the sweeps, as on a cluster: its address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_runtime.session(ResourceSpec(num_cpus=2)):
            import ray

            yield ray.get_runtime_context().gcs_address


@pytest.fixture(scope="module")
def undisturbed(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder)
    result = read_result(folder)
    assert result.num_slots == 4
    assert len(result.promotions) > 6
    assert {trial.rung for trial in result.trials} == {2, 6, 12}
    return result


def read_result(folder: Path) -> SweepResult:
    return SweepResult.model_validate_json((folder / RESULT).read_bytes())


def num_lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def start(folder: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> subprocess.Popen[bytes]:
    monkeypatch.setenv("RAY_ADDRESS", address)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.test_sweep", str(folder)], cwd=Path(__file__).parents[2]
    )


def kill_after(process: subprocess.Popen[bytes], path: Path, num_epochs: int) -> bool:
    """SIGKILL the process once so many more epochs were trained; False if it ended before."""
    until = num_lines(path) + num_epochs
    deadline = time.monotonic() + TIMEOUT_S
    while num_lines(path) < until:
        assert time.monotonic() < deadline, "the sweep hangs"
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    process.kill()
    return process.wait(TIMEOUT_S) == -signal.SIGKILL


@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_sweep_makes_the_same_promotions(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cluster: str,
    undisturbed: SweepResult,
    seed: int,
) -> None:
    points = random.Random(seed)
    for _ in range(NUM_KILLS):
        process = start(tmp_path, monkeypatch, cluster)
        most = undisturbed.num_epochs // (NUM_KILLS + 1)
        assert kill_after(process, tmp_path / EPOCHS, points.randint(1, most))
        assert not (tmp_path / RESULT).exists()
    process = start(tmp_path, monkeypatch, cluster)
    assert process.wait(TIMEOUT_S) == 0
    result = read_result(tmp_path)
    assert result.promotions == undisturbed.promotions
    assert result.winner == undisturbed.winner
    assert result == undisturbed
    assert "trial_resumed" in (tmp_path / "events.txt").read_text()


if __name__ == "__main__":
    run(Path(sys.argv[1]))
