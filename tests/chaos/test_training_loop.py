"""Training that is killed, poisoned, torn or out of room ends with the numbers of a run that was
not, or says why it cannot."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests import toy_training as toy
from tests.chaos import toy_job

pytestmark = pytest.mark.slow

NUM_KILLS = 5
TIMEOUT_S = 60


def start(folder: Path, **options: Any) -> BaseProcess:
    folder.mkdir(exist_ok=True)
    process = toy.forking().Process(target=toy_job.start, args=(folder,), kwargs=options)
    process.start()
    return process


def finish(process: BaseProcess) -> int | None:
    process.join(TIMEOUT_S)
    assert process.exitcode is not None, "the job hangs"
    return process.exitcode


def kill_when(process: BaseProcess, is_time: Callable[[], bool], delay_s: float) -> bool:
    """SIGKILL the process `delay_s` after it is time; False if it ended before."""
    deadline = time.monotonic() + TIMEOUT_S
    while not is_time():
        assert time.monotonic() < deadline, "it is never time"
        if not process.is_alive():
            return False
        time.sleep(0.001)
    time.sleep(delay_s)
    process.kill()
    return finish(process) == -signal.SIGKILL


def told(folder: Path, event: str) -> list[dict[str, Any]]:
    return [each for each in toy_job.read_events(folder) if each["event"] == event]


def outcome(folder: Path) -> tuple[toy.Arrays, dict[str, Any]]:
    return load_file(folder / toy_job.WEIGHTS), json.loads((folder / toy_job.REPORT).read_text())


def assert_same_outcome(first: Path, second: Path) -> None:
    (weights, report), (other_weights, other_report) = outcome(first), outcome(second)
    toy.assert_same(weights, other_weights)
    assert report == other_report


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert finish(start(folder)) == 0
    assert not told(folder, "resumed")
    return folder


def has_new_checkpoint(folder: Path) -> Callable[[], bool]:
    num_before = len(told(folder, "checkpoint"))
    return lambda: len(told(folder, "checkpoint")) > num_before


@pytest.mark.parametrize("seed", range(20))
def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(
    seed: int, tmp_path: Path, undisturbed: Path
) -> None:
    rng = random.Random(seed)
    num_kills = 0
    for _ in range(NUM_KILLS):
        process = start(tmp_path, every_steps=rng.choice((1, 2)))
        num_kills += kill_when(process, has_new_checkpoint(tmp_path), rng.uniform(0, 0.05))
    assert num_kills > 0
    assert finish(start(tmp_path)) == 0
    assert told(tmp_path, "resumed")
    assert not told(tmp_path, "warning")
    assert_same_outcome(tmp_path, undisturbed)


def has_half_a_file(folder: Path) -> bool:
    return any((folder / toy_job.CHECKPOINTS).glob("*/*.tmp"))


def has_half_a_checkpoint(folder: Path) -> bool:
    epochs = (folder / toy_job.CHECKPOINTS).glob("epoch-*")
    return any(
        (epoch / "weights.safetensors").exists() and not (epoch / "manifest.json").exists()
        for epoch in epochs
    )


def has_half_the_best_weights(folder: Path) -> bool:
    return any((folder / toy_job.CHECKPOINTS).glob("best-*/weights.safetensors.*.tmp"))


@pytest.mark.parametrize(
    "is_half_written", [has_half_a_file, has_half_a_checkpoint, has_half_the_best_weights]
)
@pytest.mark.parametrize("seed", range(3))
def test_killed_while_it_writes_a_checkpoint_it_goes_on_from_the_one_before(
    seed: int, is_half_written: Callable[[Path], bool], tmp_path: Path, undisturbed: Path
) -> None:
    rng = random.Random(seed)
    num_torn = 0
    for _ in range(2):
        has_new = has_new_checkpoint(tmp_path)
        is_best = is_half_written is has_half_the_best_weights
        process = start(tmp_path, pause_s=0.01)
        killed = kill_when(
            process,
            lambda has_new=has_new: has_new() and is_half_written(tmp_path),
            0 if is_best else rng.uniform(0, 0.01),
        )
        num_torn += killed and is_half_written(tmp_path)
    assert num_torn > 0
    assert finish(start(tmp_path)) == 0
    assert told(tmp_path, "resumed")
    assert not told(tmp_path, "warning")  # what was never whole is no damage
    assert_same_outcome(tmp_path, undisturbed)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("num_bytes", [0, 100, -1])
def test_a_torn_checkpoint_is_told_of_and_the_one_before_used(
    num_bytes: int, tmp_path: Path, undisturbed: Path
) -> None:
    process = start(tmp_path)
    assert kill_when(process, lambda: len(told(tmp_path, "checkpoint")) >= 8, 0)
    whole = sorted((tmp_path / toy_job.CHECKPOINTS).glob("epoch-*/manifest.json"))
    weights = whole[-1].with_name("weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:num_bytes])
    assert finish(start(tmp_path)) == 0
    name, before = whole[-1].parent.name, whole[-2].parent.name
    assert [event["message"] for event in told(tmp_path, "warning")] == [
        f"checkpoint {name} is damaged ({name}/weights.safetensors: its sha256 is another); the "
        "one before it is used"
    ]
    assert [event["name"] for event in told(tmp_path, "resumed")] == [before]
    assert_same_outcome(tmp_path, undisturbed)


def test_with_every_checkpoint_torn_it_begins_anew(tmp_path: Path, undisturbed: Path) -> None:
    process = start(tmp_path)
    assert kill_when(process, lambda: len(told(tmp_path, "checkpoint")) >= 12, 0)
    for path in (tmp_path / toy_job.CHECKPOINTS).rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    process = start(tmp_path)
    assert kill_when(process, has_new_checkpoint(tmp_path), 0.02)
    assert not told(tmp_path, "resumed")
    assert finish(start(tmp_path)) == 0
    assert told(tmp_path, "resumed")  # its own new checkpoints outlived the damaged ones
    assert_same_outcome(tmp_path, undisturbed)


NUM_SAMPLES = 300


@pytest.mark.parametrize("share", [0.01, 0.10])
def test_unreadable_samples_are_left_out_counted_and_said_across_a_kill(
    share: float, tmp_path: Path
) -> None:
    unreadable = random.Random(7).sample(range(NUM_SAMPLES), round(share * NUM_SAMPLES))
    options = {"num_samples": NUM_SAMPLES, "unreadable": unreadable, "every_steps": 2}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert finish(start(whole, **options)) == 0
    process = start(cut, **options)
    assert kill_when(process, lambda: len(told(cut, "checkpoint")) >= 20, 0.01)
    assert finish(start(cut, **options)) == 0
    assert_same_outcome(cut, whole)
    _, report = outcome(cut)
    num_epochs = report["num_epochs"]
    assert report["num_failed_samples"] == num_epochs * len(unreadable)
    assert {row for event in told(cut, "left_out") for row in event["ids"]} == set(unreadable)
    warning = (
        f"{num_epochs * len(unreadable)} of {num_epochs * NUM_SAMPLES} samples could not be used "
        f"and were left out ({share:.0%}); the journal (events.jsonl) lists their ids"
    )
    assert report["warnings"] == ([warning] if share >= 0.05 else [])


def test_too_many_unreadable_samples_end_the_run(tmp_path: Path) -> None:
    unreadable = list(range(90))
    assert finish(start(tmp_path, num_samples=NUM_SAMPLES, unreadable=unreadable)) == 4
    message = (tmp_path / "error.txt").read_text()
    assert "more than train.guards.bad_share_stop=0.2): unreadable (" in message
    assert message.endswith("mend or remove them: the journal (events.jsonl) lists their ids")


def test_a_sample_that_is_not_a_number_costs_its_step_across_a_kill(tmp_path: Path) -> None:
    options = {"num_samples": NUM_SAMPLES, "not_a_number": [17]}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert finish(start(whole, **options)) == 0
    process = start(cut, **options)
    assert kill_when(process, lambda: len(told(cut, "skipped")) == 2, 0.01)
    assert finish(start(cut, **options)) == 0
    assert_same_outcome(cut, whole)
    _, report = outcome(cut)
    assert report["num_skipped_batches"] == report["num_epochs"] == 4
    assert all(17 in event["ids"] for event in told(cut, "skipped"))


NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def may_mount(folder: Path) -> bool:
    mount = [*NAMESPACE, "mount", "-t", "tmpfs", "none", str(folder)]
    return (
        shutil.which("unshare") is not None and subprocess.run(mount, check=False).returncode == 0
    )


def test_on_a_full_disk_it_says_so_and_goes_on_once_there_is_room(
    tmp_path: Path, undisturbed: Path
) -> None:
    if not may_mount(tmp_path):
        pytest.skip("no user namespaces here, so no small disk to fill")
    job = subprocess.run(
        [*NAMESPACE, sys.executable, "-m", "tests.chaos.toy_job", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    found = json.loads(job.stdout)
    assert found["exit_code"] == 5
    assert found["message"] == (
        f"no checkpoint could be written to {tmp_path}/{toy_job.CHECKPOINTS} ([Errno 28] No space "
        "left on device). Make room or mend the storage; the same command with the same --run-id "
        "goes on from the checkpoint before"
    )
    assert {"epoch-0002-batch-000002", "epoch-0002-batch-000003"} <= set(found["kept"])
    assert found["resumed"] == "epoch-0002-batch-000003"
    assert found["weights"] == (undisturbed / toy_job.WEIGHTS).read_bytes().hex()
