"""A training job of a fraction of a second, for tests that kill it.

    python -m tests.chaos.toy_job FOLDER    on a disk that fills up: needs a mount namespace

The first run fills the disk in the middle of an epoch and fails; there is room again for the second
one. What both came to is printed as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save_file

from ray_jobs.errors import EmberlineError
from ray_jobs.models.base import FitContext
from ray_jobs.storage import Storage
from ray_jobs.training import loop
from ray_jobs.training.batch import Batch
from ray_jobs.training.checkpoints import CheckpointStore
from ray_jobs.training.spec import CheckpointSpec
from tests import toy_training as toy

EVENTS, WEIGHTS, REPORT, CHECKPOINTS = "events.jsonl", "weights.safetensors", "report.json", "kept"


class SlowStorage(Storage):
    """Pauses in the middle of every file, so that a kill finds it half written."""

    pause_s: float = 0

    def write_bytes(self, path: str, content: bytes) -> None:
        with self.open_output(path) as stream:
            stream.write(content[: len(content) // 2])
            stream.flush()
            time.sleep(self.pause_s)
            stream.write(content[len(content) // 2 :])


def run(
    folder: Path,
    *,
    every_steps: int = 1,
    pause_s: float = 0,
    num_samples: int = toy.NUM_SAMPLES,
    unreadable: Iterable[int] = (),
    not_a_number: Iterable[int] = (),
    fills_disk: bool = False,
) -> None:
    """Train, or go on, in `folder`: events, checkpoints, and at the end weights and report.

    Args:
        pause_s: within every file of a checkpoint.
        unreadable, not_a_number: ids of samples that are spoilt in this way.
        fills_disk: leaves no room from the fourth batch of the second epoch on.
    """
    torch.set_num_threads(1)
    storage = SlowStorage(folder)
    storage.pause_s = pause_s

    def emit(event: str, **fields: Any) -> None:
        storage.append_line(EVENTS, json.dumps({"event": event, **fields}))

    def change(epoch: int, number: int, batch: Batch) -> Batch:
        if fills_disk and (epoch, number) == (2, 3):
            fill(folder / "filler")
        batch = toy.without(batch, unreadable)
        is_nan = torch.tensor([row in set(not_a_number) for row in batch.ids], dtype=torch.bool)
        x = batch.tensors["x"].masked_fill(is_nan[:, None], torch.nan)
        return Batch({**batch.tensors, "x": x}, batch.ids, batch.failed)

    model = toy.network(batch_norm=True)
    report = loop.fit(
        model,
        toy.ToyBatches(change, num_samples),
        toy.learning(
            model, checkpoint=CheckpointSpec(every_steps=every_steps), **toy.full_recipe(model)
        ),
        toy.validate,
        FitContext(
            3, toy.OBJECTIVE, emit=emit, checkpoints=CheckpointStore(storage, CHECKPOINTS, emit)
        ),
    )
    save_file(toy.arrays(model), folder / WEIGHTS)
    clocks = ("seconds", "samples_per_second")
    for epoch in report.history:
        for key in clocks:
            del epoch[key]
    storage.write_text(REPORT, json.dumps(vars(report)))


def start(folder: Path, **options: Any) -> None:
    """`run` in a process of its own, with the exit code of the command line."""
    try:
        run(folder, **options)
    except EmberlineError as error:
        (folder / "error.txt").write_text(str(error))
        sys.exit(error.exit_code)


def fill(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(descriptor, bytes(1024))
    except OSError:
        os.close(descriptor)


def read_events(folder: Path) -> list[dict[str, Any]]:
    path = folder / EVENTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main(folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(folder)], check=True)
    try:
        run(folder, fills_disk=True)
    except EmberlineError as error:
        failure = {"message": str(error), "exit_code": error.exit_code}
    kept = sorted(path.name for path in (folder / CHECKPOINTS).iterdir())
    (folder / "filler").unlink()
    run(folder)
    (resumed,) = (event for event in read_events(folder) if event["event"] == "resumed")
    weights = (folder / WEIGHTS).read_bytes().hex()
    print(json.dumps({**failure, "kept": kept, "resumed": resumed["name"], "weights": weights}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
