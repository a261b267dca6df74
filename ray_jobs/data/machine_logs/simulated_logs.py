"""Simulated runs as a user's own would lie: a folder of CSV logs, one run a file."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from ray_jobs.data.machine_logs.runs import Run
from ray_jobs.data.machine_logs.simulator import STEP_S, STEPS_PER_ROW, simulate_run
from ray_jobs.data.machine_logs.spec import MachineLogsSpec
from ray_jobs.storage import Storage

TIME_COLUMN = "time"
GCODE_COLUMN: str = MachineLogsSpec.model_fields["gcode_column"].default


def write_logs(
    storage: Storage, num_runs: int, *, seed: int, progress: Callable[[int, int], None]
) -> list[str]:
    """Write the runs that `simulate_runs` makes; returns the names of their files."""
    names = []
    for index in range(num_runs):
        run = simulate_run(seed, index)
        names.append(f"{run.name}.csv")
        with storage.open_output(names[-1]) as stream:
            pa_csv.write_csv(_table(run, np.random.default_rng([seed, 2, index])), stream)
        progress(index + 1, num_runs)
    return names


def _table(run: Run, rng: np.random.Generator) -> pa.Table:
    """A run as its machine logs it: by the clock of the day, the instruments in any order."""
    started = datetime.min + timedelta(hours=rng.uniform(8, 17))
    times = [started + timedelta(seconds=row * STEP_S * STEPS_PER_ROW) for row in range(len(run))]
    clock = [time.time().isoformat("milliseconds") for time in times]
    instruments = sorted({name.partition(".")[0] for name in run.columns})
    order = [instruments[i] for i in rng.permutation(len(instruments))]
    names = sorted(run.columns, key=lambda name: order.index(name.partition(".")[0]))
    return pa.table(
        {TIME_COLUMN: clock, **{name: run.columns[name] for name in names}, GCODE_COLUMN: run.gcode}
    )
