"""The training job, whole: every step of the workload, from its data to its registered model.

`python -m ray_jobs.train --spec F` carries it out wherever it is started: by hand, by `ray job
submit`, in a container.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import Literal

from ray_jobs import logs
from ray_jobs.errors import EXIT_INTERRUPTED, EXIT_OK, EmberlineError
from ray_jobs.lifecycle import carry_out
from ray_jobs.observing import observed
from ray_jobs.ray_runtime import spin_briefly
from ray_jobs.result import JobResult
from ray_jobs.run import Run
from ray_jobs.spec import load_spec

DESCRIPTION = "Train, test and register what a job description says; prints the result as JSON."


def run_job(run: Run) -> JobResult:
    """Carry out a whole job in this process, its fits as Ray tasks."""

    return carry_out(run, lambda: run.workload.work(run))


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m ray_jobs.train`; the result is the last thing on stdout. Returns the exit code."""
    return main_of("train", DESCRIPTION, arguments)


def main_of(
    job: Literal["train", "sweep"], description: str, arguments: Sequence[str] | None
) -> int:
    """The command of a whole job, with or without a sweep before the training."""
    parser = argparse.ArgumentParser(prog=f"python -m ray_jobs.{job}", description=description)
    parser.add_argument("--spec", required=True, help="job description, YAML: a file or s3:// URI")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--storage", help="root URI of all runs; default: the spec's")
    parser.add_argument("--run-id", help="take up or repeat this run; default: a new one")
    options = parser.parse_args(arguments)
    spin_briefly()
    try:
        logs.setup()
        spec = load_spec(
            None,
            config=options.spec,
            overrides=options.overrides,
            sweeps=job == "sweep",
            storage=options.storage,
        )
        run = Run.create(spec, options.run_id)
        signal.signal(signal.SIGTERM, lambda *_: _stop(run))
        with observed(run):
            result = run_job(run)
    except EmberlineError as error:
        logs.say_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    logs.show(result.to_json())
    return EXIT_OK


def _stop(run: Run) -> None:
    """SIGTERM: a machine that is taken back gives notice. A second one ends the job at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if not run.workload.stops_when_asked:
        raise KeyboardInterrupt
    run.request_stop()


if __name__ == "__main__":
    sys.exit(main())
