"""The job of one part of a run: `python -m ray_jobs.part --run URI --part train`.

A pipeline's step has it carried out on a Ray cluster or in a RayJob and waits for its outcome; see
`ray_jobs.steps`.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from pydantic import BaseModel

from ray_jobs import logs
from ray_jobs.container_log import told
from ray_jobs.errors import EXIT_INTERRUPTED, EXIT_OK, EmberlineError, Stopped
from ray_jobs.observing import observed
from ray_jobs.parts import SWEEP, TRAIN, begin_part, end_part, fail_part, member_of
from ray_jobs.ray_runtime import spin_briefly
from ray_jobs.run import Run


def work(run: Run, part: str) -> BaseModel:
    """Carry a part out in this process, its fits as Ray tasks; returns what it came to.

    Raises:
        SpecError: there is no such part.
        As `fit`, `sweep` and `train_members`.
    """
    if part == TRAIN:
        from ray_jobs.fit import fit

        return fit(run)
    if part == SWEEP:
        from ray_jobs.sweep import sweep

        return sweep(run)
    from ray_jobs.members import train_members

    name = member_of(run, part)
    assert name is not None, part
    (result,) = train_members(run, [name])
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m ray_jobs.part`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.part", description=__doc__)
    parser.add_argument("--run", required=True, help="URI of the run's folder")
    parser.add_argument("--part", required=True, help="train, sweep, or member-NAME")
    parser.add_argument("--num-cpus", type=int, help="that it may use; default: the run's own")
    options = parser.parse_args(arguments)
    spin_briefly()
    try:
        logs.setup()
        run: Run = Run.at(options.run)
        if options.num_cpus is not None:
            run = Run(run.spec.replaced({"resources.num_cpus": options.num_cpus}), run.run_id)
        member = member_of(run, options.part)
    except EmberlineError as error:
        logs.say_error(error)
        return error.exit_code
    started = begin_part(run, options.part)
    signal.signal(signal.SIGTERM, lambda *_: _stop(run))
    try:
        step = [member or options.part]  # as its journal calls it
        progress = nullcontext() if logs.is_json() else told(run, step)
        with progress, observed(run, step):
            result = work(run, options.part)
    except EmberlineError as error:
        logs.say_error(error)
        fail_part(run, options.part, started, error)
        return error.exit_code
    except KeyboardInterrupt:
        fail_part(run, options.part, started, Stopped("interrupted"))
        return EXIT_INTERRUPTED
    end_part(run, options.part, started, result)
    return EXIT_OK


def _stop(run: Run) -> None:
    """SIGTERM; a second one ends the job at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if not run.workload.stops_when_asked:
        raise KeyboardInterrupt
    run.request_stop()


if __name__ == "__main__":
    sys.exit(main())
