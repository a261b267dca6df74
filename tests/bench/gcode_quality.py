"""Does the decoder of G-code say more than gradient boosting does, and reach the published figure?

    python -m tests.bench.gcode_quality [--logs FOLDER] [--tasks published by_run simulator]
                                        [--seeds 1] [--epochs N]

Three tasks, each with what it is trained by (TASKS):
- published: the real logs under `data.split=published`, at the earlier work's tolerance of 1.0 for
  every value. It leaks by design, and all three are given the machine positions alone, which are
  the leak. The figure to reach is a composite_acc of 0.9377 on validation.
- by_run: the same logs, whole runs apart, at the default tolerances and without the leaks.
- simulator: what `emberline run gcode` does with no data.

With several seeds, "all" pools what they say of their splits: a run that two seeds hold out stands
in it twice, and is one unit of the interval.

The network learns on train, the epoch is chosen on val, and test is read once. Beside it stand
gradient boosting and one constant answer on the same windows. An interval is the 95 % bootstrap
over whole runs; the margin is the network's composite_acc less the boosting's on the same
resamples. A seed decides splits, weights and order. Seconds are those of the epochs with their
validation, or of the boosting's fit; load is the machine's over the last minute when a seed ended.
Rows of tasks not asked for stay as they are in the table, each with the command that made it.

What came of it. published: the figure is reached on val with seed 0, the one tried; some ten
recipes were compared on that val, and test lies below the figure. simulator: the network is ahead,
but not by more than the interval. by_run: over four seeds the network is ahead of the boosting by
more than the interval on val, but NOT on test, where it is behind with seed 2.
Its recipe was chosen on val of seed 0 alone, where composite_acc was, step by step:
- boosting 0.08; nearest train window by ColorR 0.28, by all sensors 0.14, by motor currents 0.08;
- the network with learning rate 5e-4, 15 epochs 0.26; of color, vibration, proximity, temperature
  and motors alone 0.25; with the lines of all rows as targets (loss.rows=1), at 1e-3, 0.28;
- 30 % of the sensors dropped, window by window, 0.29; 40 %, dropout 0.2, averaged weights 0.33.
Not tried: windows of 128 rows, sensors centred run by run, choosing by val of several seeds.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ray_jobs.data.dataset import SPLITS
from ray_jobs.data.machine_logs.prepare import load_windows, prepare_machine_logs
from ray_jobs.data.machine_logs.windows import Windows
from ray_jobs.gcode_metrics import (
    HEAD_METRICS,
    GcodeLines,
    bootstrap_intervals,
    bootstrap_margin,
    constant_lines,
)
from ray_jobs.models.base import FitContext
from ray_jobs.models.gcode_baseline import GcodeBaseline
from ray_jobs.result import DataSummary, MetricValue
from ray_jobs.storage import Storage
from ray_jobs.training.gcode_batches import lines_of
from ray_jobs.training.gcode_decoding import GcodeDecoding
from ray_jobs.training.loop import fit
from ray_jobs.workloads.gcode import GcodeSpec

RESULTS = Path(__file__).with_suffix(".csv")
NAME, DATA = "tests.bench.gcode_quality", "gcode_cnc_bantam"
SHIPPED = Path(__file__).parents[2] / "ray_jobs" / "configs" / "gcode.yaml"
PUBLISHED_FIGURE = 0.9377  # composite_acc on validation
NUM_CPUS = len(os.sched_getaffinity(0))
CPU = torch.device("cpu")

SMALL = {"hidden_dim": 128, "num_layers": 2}  # of the shipped network, for two cores
TASKS: dict[str, dict[str, Any]] = {
    "published": {
        "data": {"split": "published", "feature_columns": ["mpo*"]},
        "model": SMALL | {"dropout": 0.1, "sensor_dropout": 0.0, "num_bins": 64},
        "value_tolerance": dict.fromkeys("XYZRF", 1.0),
        "train": {
            "epochs": 80, "patience": 80, "batch_size": 16, "learning_rate": 2e-3,
            "warmup_epochs": 3, "ema_decay": 0.99,
        },
    },
    "by_run": {
        "data": {"stride": 8},
        "model": SMALL,
        "train": {
            "epochs": 24, "patience": 24, "batch_size": 32, "learning_rate": 1e-3,
            "warmup_epochs": 1, "ema_decay": 0.99,
        },
    },
    "simulator": {},  # the shipped demo
}  # fmt: skip
COLUMNS = (
    "task", "seed", "who", "split", "windows", "runs", *HEAD_METRICS, "composite_acc interval",
    "margin", "margin interval", "best epoch", "epochs", "seconds", "load", "command",
)  # fmt: skip


@dataclass(frozen=True)
class Split:
    """The true lines of a split's windows, and their runs' names."""

    true: GcodeLines
    runs: NDArray[np.object_]


@dataclass(frozen=True)
class Said:
    """What one of the three says of val and test, and what it took."""

    who: str
    lines: Mapping[str, GcodeLines]
    seconds: float = 0.0
    best_epoch: int | None = None
    epochs: int | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logs", type=Path, default=None, help=f"folder of {DATA}")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, help="in place of each task's own")
    options = parser.parse_args()
    logs = options.logs or find_logs()
    command = describe(options)
    torch.set_num_threads(NUM_CPUS)
    table = read_table()
    with TemporaryDirectory(prefix="emberline-bench-") as folder:
        for task in options.tasks:
            if task != "simulator" and not logs.is_dir():
                print(f"{task} is skipped: there is no folder {logs}; name it with --logs")
                continue
            outcomes = [
                measure(make_spec(task, logs, seed, options.epochs), Storage(folder))
                for seed in range(options.seeds)
            ]
            table[task] = [[*row, command] for row in report(task, outcomes)]
            write_table(table)


def find_logs() -> Path:
    """The folder of real logs, where the tests look for it."""
    default = Path(__file__).parents[3] / "shared" / "data"
    return Path(os.environ.get("EMBERLINE_TEST_DATA", default)).resolve() / DATA


def describe(options: argparse.Namespace) -> str:
    """The command line that makes this table, without folders of this machine."""
    spin = os.environ.get("GOMP_SPINCOUNT")
    words = [f"GOMP_SPINCOUNT={spin}"] if spin else []
    words += [f"python -m {NAME} --seeds {options.seeds}"]
    if options.tasks != list(TASKS):
        words.append(f"--tasks {' '.join(options.tasks)}")
    if options.epochs:
        words.append(f"--epochs {options.epochs}")
    return " ".join(words)


def make_spec(task: str, logs: Path, seed: int, epochs: int | None) -> GcodeSpec:
    """The shipped description under the task's own sections."""
    sections = yaml.safe_load(SHIPPED.read_text())
    demo = sections.pop("demo")
    sections.pop("sweep")
    changes = demo if task == "simulator" else TASKS[task]
    for name, section in changes.items():
        if name in sections:
            sections[name] = sections[name] | section
    sections["seed"] = seed
    if task != "simulator":
        sections["data"]["path"] = str(logs / "runs")
    if epochs:
        sections["train"]["epochs"] = epochs
    return GcodeSpec.model_validate(sections)


@dataclass(frozen=True)
class Outcome:
    """What one seed came to."""

    spec: GcodeSpec
    commands: tuple[str, ...]
    splits: Mapping[str, Split]
    said: list[Said]
    load: float  # of the machine, over the last minute


def measure(spec: GcodeSpec, storage: Storage) -> Outcome:
    data = prepare_machine_logs(
        spec.data, workload="gcode", seed=spec.seed, storage=storage, emit=ignore
    )
    windows = {name: load_windows(storage, data, name) for name in SPLITS}
    said = [train(spec, data, storage), boost(windows, spec.seed), answer(windows)]
    splits = {
        name: Split(lines_of(part), np.array(part.frame.runs, object)[part.run])
        for name, part in windows.items()
    }
    return Outcome(spec, windows["train"].commands, splits, said, os.getloadavg()[0])


def report(task: str, outcomes: list[Outcome]) -> list[list[Any]]:
    """Print, and give the rows of the table: each seed's, and those of all together."""
    rows = []
    named = [(str(outcome.spec.seed), outcome) for outcome in outcomes]
    if len(outcomes) > 1:
        named.append(("all", pooled(outcomes)))
    for seed, outcome in named:
        tolerance = outcome.spec.value_tolerance.parsed()
        for name in SPLITS[1:]:
            split = outcome.splits[name]
            num_runs = len(set(split.runs.tolist()))
            print(f"\n{task}, seed {seed}, {name}: {len(split.true)} windows of {num_runs} runs")
            boosting = outcome.said[1].lines[name]
            for said in outcome.said:
                lines = said.lines[name]
                metrics = bootstrap_intervals(split.true, lines, tolerance, groups=split.runs)
                margin = None
                if said.who == "network":
                    margin = bootstrap_margin(
                        split.true, lines, boosting, tolerance, groups=split.runs
                    )
                rows.append(
                    [
                        task, seed, said.who, name, len(split.true), num_runs,
                        *(round(metrics[head].value, 4) for head in HEAD_METRICS),
                        interval(metrics["composite_acc"]),
                        round(margin.value, 4) if margin else "", interval(margin),
                        said.best_epoch or "", said.epochs or "", round(said.seconds, 1),
                        round(outcome.load, 1),
                    ]
                )  # fmt: skip
                print(line(said, metrics, margin), flush=True)
    if task == "published":
        values = [row[6] for row in rows if row[2:4] == ["network", "val"] and row[1] != "all"]
        print(f"\ncomposite_acc on val, {PUBLISHED_FIGURE} to reach: {values}")
    return rows


def pooled(outcomes: list[Outcome]) -> Outcome:
    """The windows of all seeds side by side; commands are told by name, as seeds number them."""
    commands = tuple(sorted({name for outcome in outcomes for name in outcome.commands}))

    def join(parts: list[GcodeLines]) -> GcodeLines:
        renumbered = []
        for outcome, lines in zip(outcomes, parts, strict=True):
            number = np.array([*(commands.index(name) for name in outcome.commands), -1])
            renumbered.append(number[lines.command])  # -1, a command that train lacks, stays -1
        return GcodeLines(
            np.concatenate(renumbered),
            np.concatenate([lines.param_type for lines in parts]),
            np.concatenate([lines.param_value for lines in parts]),
        )

    splits = {
        name: Split(
            join([outcome.splits[name].true for outcome in outcomes]),
            np.concatenate([outcome.splits[name].runs for outcome in outcomes]),
        )
        for name in SPLITS[1:]
    }
    said = [
        Said(
            each[0].who,
            {name: join([one.lines[name] for one in each]) for name in SPLITS[1:]},
            sum(one.seconds for one in each),
        )
        for each in zip(*(outcome.said for outcome in outcomes), strict=True)
    ]
    return Outcome(outcomes[0].spec, commands, splits, said, outcomes[-1].load)


def train(spec: GcodeSpec, data: DataSummary, storage: Storage) -> Said:
    torch.manual_seed(spec.seed)
    task = GcodeDecoding(spec, data, storage, CPU)
    network = task.build(weights=True)
    batches, learning = task.prepare(network)
    context = FitContext(seed=spec.seed, objective=spec.objective, num_threads=NUM_CPUS)
    started = time.perf_counter()
    report = fit(network, batches, learning, task.validate, context)
    seconds = time.perf_counter() - started
    lines = {name: task.predict(network, name).predicted for name in SPLITS[1:]}
    return Said("network", lines, seconds, report.best_epoch, report.num_epochs)


def boost(windows: Mapping[str, Windows], seed: int) -> Said:
    started = time.perf_counter()
    with threadpool_limits(NUM_CPUS):
        baseline = GcodeBaseline(windows["train"], seed=seed)
        seconds = time.perf_counter() - started
        return Said(
            "boosting", {name: baseline.decode(windows[name]) for name in SPLITS[1:]}, seconds
        )


def answer(windows: Mapping[str, Windows]) -> Said:
    train_lines = lines_of(windows["train"])
    lines = {name: constant_lines(train_lines, len(windows[name])) for name in SPLITS[1:]}
    return Said("constant", lines)


def read_table() -> dict[str, list[list[Any]]]:
    """The rows that are there, by task."""
    table: dict[str, list[list[Any]]] = {}
    if RESULTS.exists():
        with RESULTS.open(newline="") as file:
            header, *rows = csv.reader(file)
        if header == list(COLUMNS):
            for row in rows:
                table.setdefault(row[0], []).append(row)
    return table


def write_table(table: Mapping[str, list[list[Any]]]) -> None:
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for task in TASKS:
            writer.writerows(table.get(task, []))


def ignore(event: str, **fields: Any) -> None:
    """The journal of a preparation that nobody watches."""


def interval(metric: MetricValue | None) -> str:
    if metric is None or metric.low is None:
        return ""
    return f"{metric.low:.4f} to {metric.high:.4f}"


def line(said: Said, metrics: Mapping[str, MetricValue], margin: MetricValue | None) -> str:
    heads = "  ".join(f"{name} {metrics[name].value:.3f}" for name in HEAD_METRICS)
    text = f"{said.who:9} {heads}  ({interval(metrics['composite_acc'])})"
    if margin is not None:
        text += f"  margin {margin.value:+.3f} ({interval(margin)})"
    return text + (f"  {said.seconds:.0f} s" if said.seconds else "")


if __name__ == "__main__":
    main()
