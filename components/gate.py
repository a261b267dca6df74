"""Fail if the promotion gate has refused."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def gate(outcome: str, reasons: str) -> str:
    """End with exit code 6 and the reasons in the log, or return the outcome of `promote`. It is a
    step of its own, for KFP shows no table of a step that fails."""
    import sys
    import traceback

    from ray_jobs.errors import GateRefused

    try:
        if outcome == "refused":
            raise GateRefused(reasons)
    except GateRefused as error:
        traceback.print_exc()  # what started the pipeline finds it in the log
        sys.exit(error.exit_code)
    return outcome
