"""Does a loss at every reading of a window cost accuracy against one window a row?

    python tests/bench/fire_batching.py [--samples 20000] [--seeds 2]

"published" is one window for each row, the loss at its last reading, in batches of the published
size (32 for the LSTM, 16 for the transformer). "ours" cuts the same histories into windows that
touch but do not overlap, as many to a batch, with the loss at each reading: the same rows, a
sixteenth of the steps. Where rows stand alone ("independent"), sixteen times the windows make a
batch, at four times the learning rate. Both stop early on the same objective and keep their best
epoch.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ray_jobs.data import windows
from ray_jobs.data.dataset import Rows
from ray_jobs.data.prepare import load_rows, prepare
from ray_jobs.models.base import FitContext, validation_metrics
from ray_jobs.models.sequence_member import SequenceMember
from ray_jobs.spec import load_spec
from ray_jobs.storage import Storage

RESULTS = Path(__file__).with_suffix(".csv")
COLUMNS = (
    "generator", "member", "batches", "samples", "seeds",
    "val log-loss", "spread", "val f1", "seconds",
)  # fmt: skip
LINE = "{:12} {:16} {:10} {:7} {} seeds  log-loss {} (spread {})  f1 {}  {} s"


class OneWindowARow(SequenceMember):
    """The published batches."""

    def _learning_rate(self, train: Rows) -> float:
        return self._config.learning_rate

    def _num_batches(self, num_rows: int) -> int:
        return math.ceil(num_rows / self._config.batch_size)

    def _batches(self, train: Rows, rng: np.random.Generator) -> Iterator[tuple]:
        scored = windows.ending_at_each_row(train, self._config.window)
        order = rng.permutation(len(train))
        for start in range(0, len(order), self._config.batch_size):
            batch = scored.take(order[start : start + self._config.batch_size])
            index, real = batch.gather()
            yield index, real & (np.arange(index.shape[1]) == batch.length[:, None] - 1)


def compare(generator: str, num_samples: int, num_seeds: int) -> Iterator[tuple]:
    """A row of the table for each member and way of batching."""
    overrides = [f"data.samples={num_samples}", f"data.generator={generator}"]
    spec = load_spec("fire", overrides=overrides)
    with TemporaryDirectory(prefix="emberline-bench-") as folder:
        storage = Storage(folder)
        data = prepare(
            spec.data, workload="fire", seed=0, storage=storage, emit=lambda *_, **__: None
        )
        train, val = (load_rows(storage, data, split) for split in ("train", "val"))
    for name in ("lstm_classifier", "transformer"):
        config = spec.members[name]
        for way, kind in (("published", OneWindowARow), ("ours", SequenceMember)):
            losses, scores, seconds = [], [], []
            for seed in range(num_seeds):
                member = kind(config, config._network)
                started = time.monotonic()
                member.fit(train, val, FitContext(seed, spec.objective))
                seconds.append(time.monotonic() - started)
                metrics = validation_metrics(val, member.predict_proba(val), spec.objective)
                losses.append(metrics["val_loss"])
                scores.append(metrics["f1"])
            row = (
                generator, name, way, num_samples, num_seeds,
                round(statistics.mean(losses), 4), round(max(losses) - min(losses), 4),
                round(statistics.mean(scores), 4), round(statistics.mean(seconds), 1),
            )  # fmt: skip
            print(LINE.format(*row), flush=True)
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    command = f"{Path(__file__).name} --samples {options.samples} --seeds {options.seeds}"
    rows = [
        row
        for generator in ("episodes", "independent")
        for row in compare(generator, options.samples, options.seeds)
    ]
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((*COLUMNS, "command"))
        writer.writerows((*row, f"python tests/bench/{command}") for row in rows)


if __name__ == "__main__":
    main()
