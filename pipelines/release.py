"""The last steps of a pipeline: promote -> gate (-> deploy)."""

from typing import Any

from components.deploy import deploy
from components.gate import gate
from components.promote import promote


def release(run: Any, *, after: Any, target: str | None, once_for_data: bool = False) -> None:
    """Have the gate judge the version that a run registered; fail if it refuses, else deploy.

    Args:
        run: the run's URI.
        after: the task that registers it.
        target: where to deploy; None: nowhere.
        once_for_data: ask the gate once for the same data.
    """
    judged = promote(run=run, once_for_data=once_for_data).after(after)
    passed = gate(run=run, outcome=judged.outputs["Output"], reasons=judged.outputs["reasons"])
    if target is not None:
        deploy(run=run, target=target).after(passed)
