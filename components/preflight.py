"""Check everything once before the first epoch."""

from components.step import step


@step
def preflight(run: str) -> str:
    """Run every check; returns the run's URI. A failed check fails the step with its fix."""
    from ray_jobs.preflight import preflight
    from ray_jobs.run import Run

    preflight(Run.at(run))
    return run
