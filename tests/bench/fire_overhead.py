"""What the platform costs: the same fits in a plain script and through the whole pipeline.

    python tests/bench/fire_overhead.py [--samples 100000] [--repeats 1]

All read the same prepared rows. "plain" is one process that fits the five members in turn, each on
all cores, averages them and scores test: what one would write by hand. "plain, 2 processes" fits
two at a time, and is about the least time these fits can take here. "pipeline" is `emberline run`,
from the command to its exit: KFP steps, Ray, ensemble selection, intervals, report, MLflow.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

RESULTS = Path(__file__).with_suffix(".csv")
COLUMNS = ("way", "samples", "cpus", "seconds", "ratio to plain", "test f1", "command")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--plain", type=int, help=argparse.SUPPRESS)  # child: processes at once
    parser.add_argument("--storage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        print(plain(options.storage, options.samples, options.plain))
        return
    command = f"python tests/bench/fire_overhead.py --samples {options.samples}"
    with TemporaryDirectory(prefix="emberline-bench-") as storage:
        prepare(storage, options.samples)
        times: dict[str, list[float]] = {}
        scores: dict[str, str] = {}
        for _ in range(options.repeats):
            for way, arguments in ways(storage, options.samples).items():
                started = time.monotonic()
                done = subprocess.run(
                    [sys.executable, *arguments],
                    check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                )  # fmt: skip
                times.setdefault(way, []).append(time.monotonic() - started)
                scores[way] = score(done.stdout)
                print(f"{way}: {times[way][-1]:.1f} s", file=sys.stderr)
    seconds = {way: statistics.median(values) for way, values in times.items()}
    rows = [
        (way, options.samples, len(os.sched_getaffinity(0)), round(value, 1),
         round(value / seconds["plain"], 2), scores[way], command)
        for way, value in seconds.items()
    ]  # fmt: skip
    for row in rows:
        print(f"{row[0]:22} {row[3]:8.1f} s   ratio {row[4]:.2f}   test f1 {row[5]}")
    with RESULTS.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def ways(storage: str, samples: int) -> dict[str, list[str]]:
    own = [__file__, "--storage", storage, "--samples", str(samples), "--plain"]
    pipeline = ["-m", "pipelines.cli", "run", "fire", "--json", "--storage", storage]
    return {
        "plain": [*own, "1"],
        "plain, 2 processes": [*own, "2"],
        "pipeline": [*pipeline, "--set", f"data.samples={samples}"],
    }


def score(stdout: str) -> str:
    import json

    text = stdout.strip()
    if not text.startswith("{"):
        return f"{float(text):.4f}"
    return f"{json.loads(text)['metrics']['test']['f1']['value']:.4f}"


def spec_and_rows(storage: str, samples: int):
    from ray_jobs.data.prepare import prepare
    from ray_jobs.spec import load_spec
    from ray_jobs.storage import Storage

    spec = load_spec("fire", overrides=[f"data.samples={samples}"], storage=storage)
    root = Storage(storage)
    summary = prepare(
        spec.data, workload="fire", seed=spec.seed, storage=root, emit=lambda *_, **__: None
    )
    return spec, root, summary


def prepare(storage: str, samples: int) -> None:
    """Simulate and split the rows, for all ways alike."""
    spec_and_rows(storage, samples)


def fit(job: tuple[str, int, str, int]):
    """Fit one member; returns its probabilities on validation and test."""
    from ray_jobs.data.prepare import load_rows
    from ray_jobs.models.base import FitContext

    storage, samples, name, num_threads = job
    spec, root, summary = spec_and_rows(storage, samples)
    member = spec.members[name].build()
    train, val, test = (load_rows(root, summary, split) for split in ("train", "val", "test"))
    member.fit(train, val, FitContext(spec.seed, spec.objective, num_threads))
    return member.predict_proba(val), member.predict_proba(test)


def plain(storage: str, samples: int, num_processes: int) -> float:
    """Fit the members, average their probabilities, score test; returns F1."""
    from ray_jobs.data.prepare import load_rows
    from ray_jobs.members import longest_first
    from ray_jobs.metrics import best_threshold, binary_metrics

    spec, root, summary = spec_and_rows(storage, samples)
    num_threads = len(os.sched_getaffinity(0)) // num_processes
    jobs = [(storage, samples, name, num_threads) for name in longest_first(spec, summary)]
    if num_processes == 1:
        fitted = [fit(job) for job in jobs]
    else:
        with ProcessPoolExecutor(num_processes, get_context("spawn")) as pool:
            fitted = list(pool.map(fit, jobs))
    val, test = (load_rows(root, summary, split) for split in ("val", "test"))
    p_val, p_test = (sum(parts) / len(parts) for parts in zip(*fitted, strict=True))
    threshold = best_threshold(val.y, p_val, spec.objective.metric)
    return binary_metrics(test.y, p_test, threshold)["f1"]


if __name__ == "__main__":
    main()
