"""A run whose members are training jobs of their own: so many at once, then one that combines
them.

Nothing here asks AWS: it is given what each job's description says, and says what is due.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ray_jobs.targets.sagemaker.description import TrainingJobState
from ray_jobs.targets.sagemaker.submissions import Submission
from ray_jobs.workloads.base import COMBINE


@dataclass(frozen=True)
class PartJob:
    """The newest training job of a part of the run."""

    made: Submission
    state: TrainingJobState
    num_tries: int = 1  # training jobs of this part in its round


@dataclass(frozen=True)
class Parts:
    """How far each part of a run is."""

    due: list[str] = field(default_factory=list)  # to be started now
    live: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)  # members; those that are due among them
    stopped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # members -> why there is no fit
    done: list[str] = field(default_factory=list)  # members that were fitted
    unreadable: str | None = None  # why a description tells nothing
    combining: PartJob | None = None

    def summary(self, members: Collection[str]) -> dict[str, str]:
        """As the details of a state tell it."""
        texts = {
            "members": f"{len(self.done)} of {len(members)} fitted",
            "at work": ", ".join(self.live),
            "failed": ", ".join(f"{name} ({why})" for name, why in self.failed.items()),
        }
        return {name: text for name, text in texts.items() if text}


def look_at_parts(
    members: Sequence[str],
    jobs: Mapping[str, PartJob],
    *,
    round_: int,
    max_parallel: int,
    max_attempts: int,
    is_stopping: bool = False,
) -> Parts:
    """What is done and what is due in a round.

    Args:
        members: in the order in which they start.
        jobs: the newest of each part that has one.
        round_: an earlier round's members that failed are waiting again in this one.
        max_parallel: live jobs at once.
        max_attempts: jobs for a member in a round, where it fails for a reason that may pass.
        is_stopping: nothing is due any more.
    """
    found = Parts(
        unreadable=next((job.state.reason for job in jobs.values() if job.state.is_malformed), None)
    )
    for member in members:
        job = jobs.get(member)
        if job is None:
            found.waiting.append(member)
        elif not job.state.has_ended:
            found.live.append(member)
        elif job.state.status == "SUCCEEDED":
            found.done.append(member)
        elif job.made.round < round_ or (job.state.may_be_retried and job.num_tries < max_attempts):
            found.waiting.append(member)
        elif job.state.status == "STOPPED":
            found.stopped.append(member)
        else:
            found.failed[member] = job.state.reason or "its training job failed"
    combining = jobs.get(COMBINE)
    if combining is not None and (combining.made.round == round_ or not combining.state.has_ended):
        return replace(found, combining=combining)
    if not (is_stopping or found.stopped or found.unreadable):
        found.due.extend(found.waiting[: max(0, max_parallel - len(found.live))])
        if not (found.waiting or found.live):
            found.due.append(COMBINE)
    return found
