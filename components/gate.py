"""Fail if the promotion gate has refused."""

from components.step import step


@step
def gate(run: str, outcome: str, reasons: str) -> str:
    """End with exit code 6 and the reasons in the log, or return the outcome of `promote` for the
    run. It is a step of its own, for KFP shows no table of a step that fails."""
    from ray_jobs.errors import GateRefused

    if outcome == "refused":
        raise GateRefused(reasons)
    return outcome
