"""Learning curves of real trainings on the G-code simulator, for tests.bench.asha_efficiency.

    python -m tests.bench.asha_curves [--trials 60] [--epochs 18] [--runs 12]

Each trial is a small decoder of G-code with random hyperparameters, trained in full by the guarded
loop on the same simulated runs: the composite accuracy on validation after each epoch goes to
asha_curves.csv. Trials that stand in the file already are not trained again.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ray_jobs.models.base import FitContext
from ray_jobs.spec import load_spec
from ray_jobs.storage import Storage
from ray_jobs.sweeping.search import propose
from ray_jobs.sweeping.spec import Distribution
from ray_jobs.training import loop
from ray_jobs.workloads.gcode import WORKLOAD

RESULTS = Path(__file__).with_suffix(".csv")
SEED = 7
SPACE = {
    "model.hidden_dim": Distribution(values=[16, 32, 48, 64]),
    "model.num_layers": Distribution(values=[1, 2]),
    "model.dropout": Distribution(low=0.0, high=0.3),
    "train.batch_size": Distribution(values=[16, 32, 64]),
    "train.learning_rate": Distribution(low=1e-4, high=1e-2, log=True),
    "train.weight_decay": Distribution(low=0.01, high=0.1, log=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--runs", type=int, default=12)
    options = parser.parse_args()
    command = "python -m tests.bench.asha_curves " + " ".join(
        f"--{name} {getattr(options, name)}" for name in ("trials", "epochs", "runs")
    )
    known = read_rows() if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder)
        base = load_spec(
            "gcode",
            overrides=[
                f"data.runs={options.runs}",
                "data.stride=8",
                f"train.epochs={options.epochs}",
                f"train.patience={options.epochs}",
                "model.num_heads=4",
                f"seed={SEED}",
            ],
        )
        data = WORKLOAD.prepare(base, storage=storage, num_workers=1, emit=lambda *_, **__: None)
        for trial in range(options.trials):
            if known.get(trial, {}).get("command") == command:
                continue
            config = propose(SPACE, seed=SEED, trial=trial)
            started = time.monotonic()
            spec = base.replaced(config)
            device = torch.device("cpu")
            torch.manual_seed(SEED)
            task = WORKLOAD.task(spec, data, storage=storage, device=device, num_cpus=1)
            network = task.build(weights=True)
            batches, learning = task.prepare(network)
            context = FitContext(SEED, spec.objective)
            report = loop.fit(network, batches, learning, task.validate, context)
            values = [round(entry["composite_acc"], 5) for entry in report.history]
            seconds = (time.monotonic() - started) / options.epochs
            known[trial] = {
                "trial": trial,
                **{key: f"{value:.6g}" if isinstance(value, float) else value
                   for key, value in config.items()},
                "seconds of an epoch": round(seconds, 3),
                "values": " ".join(map(str, values)),
                "command": command,
            }  # fmt: skip
            print(trial, known[trial]["seconds of an epoch"], max(values), flush=True)
            write_rows(known)


@cache
def read_rows() -> dict[int, dict[str, Any]]:
    """What stands in the file, by trial."""
    with RESULTS.open(newline="") as file:
        return {int(row["trial"]): dict(row) for row in csv.DictReader(file)}


def write_rows(rows: dict[int, dict[str, Any]]) -> None:
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(next(iter(rows.values()))))
        writer.writeheader()
        writer.writerows(rows[trial] for trial in sorted(rows))


if __name__ == "__main__":
    main()
