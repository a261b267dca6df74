"""How long simulated fire data takes to make, and how much memory.

    python tests/bench/fire_data.py [--samples 100000 1000000] [--workers N]

prints a table and writes it beside this file. Each size runs in a process of its own, so that the
peak memory is its."""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).with_suffix(".csv")
COLUMNS = (
    "samples",
    "seconds",
    "rows_per_s",
    "peak_rss_mib",
    "workers",
    "cores",
    "load",
    "command",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--samples", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument(
        "--alone", action="store_true", help=argparse.SUPPRESS
    )  # the process of one size
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(measure(arguments.samples[0], arguments.workers)))
        return
    rows = []
    for samples in arguments.samples:
        alone = [__file__, "--alone", f"--samples={samples}", f"--workers={arguments.workers}"]
        load = round(os.getloadavg()[0], 1)  # what else the cores were busy with
        done = subprocess.run([sys.executable, *alone], check=True, capture_output=True, text=True)
        command = shlex.join(["python", "tests/bench/fire_data.py", *sys.argv[1:]])
        rows.append(
            {**json.loads(done.stdout), "cores": os.cpu_count(), "load": load, "command": command}
        )
        print(*(f"{name} {rows[-1][name]}" for name in COLUMNS[:-1]), sep="  ", flush=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def measure(samples: int, workers: int) -> dict[str, float]:
    """Generate once into a temporary folder. Peak memory is that of the largest process."""
    from ray_jobs.data.simulator import generate_shards
    from ray_jobs.storage import Storage

    with tempfile.TemporaryDirectory(prefix="emberline-bench-") as folder:
        start = time.perf_counter()
        generate_shards(
            Storage(folder),
            "rows",
            generator="episodes",
            num_samples=samples,
            seed=0,
            num_workers=workers,
        )
        seconds = time.perf_counter() - start
    peak_kib = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {
        "samples": samples,
        "seconds": round(seconds, 1),
        "rows_per_s": round(samples / seconds),
        "peak_rss_mib": round(peak_kib / 1024),
        "workers": workers,
    }


if __name__ == "__main__":
    main()
