"""Check everything once before the first epoch."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def preflight(run: str) -> str:
    """Run every check; returns the run's URI. A failed check fails the step with its fix."""
    from ray_jobs.preflight import preflight
    from ray_jobs.run import Run

    preflight(Run.at(run))
    return run
