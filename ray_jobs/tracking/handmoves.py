"""Champions that were made by hand, past the gate: noticed, judged by it, then accepted or
reverted."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

from ray_jobs.errors import (
    EXIT_OK,
    DataError,
    GateRefused,
    JobFailed,
    PreflightError,
    RetryableError,
    SpecError,
)
from ray_jobs.storage import Storage
from ray_jobs.tracking.evidence import open_run
from ray_jobs.tracking.gate import Verdict, refusals
from ray_jobs.tracking.judging import judge_version
from ray_jobs.tracking.promotion_spec import PromotionSpec
from ray_jobs.tracking.registry import Registry
from ray_jobs.tracking.succession import Standing, Succession

_NUM_LOOKS = 5  # at an alias that is moved again while it is judged


@dataclass(frozen=True)
class Reconciled:
    """What came of a look at the champion."""

    model: str
    champion: int | None  # that stands now
    outcome: Literal["unchanged", "accepted", "reverted"]
    audited: int | None  # that the audit log had
    found: int | None  # that the registry had; None: the alias had been deleted
    verdicts: list[Verdict] = field(default_factory=list)  # on the one that was found

    @property
    def exit_code(self) -> int:
        """6 if the gate's refusal was carried out."""
        is_refused = self.outcome == "reverted" and bool(refusals(self.verdicts))
        return GateRefused.exit_code if is_refused else EXIT_OK

    @property
    def warning(self) -> str | None:
        """What people should know, in one line; None: nothing happened."""
        if self.outcome == "unchanged":
            return None
        move = describe_move(self.model, Standing(self.found, self.audited))
        broken = "; ".join(f"{v.rule}: {v.why}" for v in refusals(self.verdicts))
        said = f"the gate refuses that ({broken})" if broken else "the gate has no objection"
        if self.found is None:
            said = "there is nothing to judge"
        done = {
            "accepted": "it stays",
            "reverted": "it was moved back" if self.champion is not None else "it was taken away",
        }[self.outcome]
        return f"{move}; {said}; {done} (promotion.moved_by_hand)"

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "warning": self.warning}, indent=2)


def describe_move(model: str, standing: Standing) -> str:
    """What was done by hand, in one line."""
    before = "none" if standing.audited is None else f"version {standing.audited}"
    if standing.champion is None:
        return f"the alias champion of {model!r}, {before}, was deleted by hand"
    return (
        f"version {standing.champion} was made the champion of {model!r} by hand, not by "
        f"emberline promote or rollback; before: {before}"
    )


def reconcile(
    storage: Storage, registry: Registry, model: str, rules: PromotionSpec | None = None
) -> Reconciled:
    """Compare the champion with the audit log. One that was made by hand is judged by the gate
    against the last that was audited, and stays if it passes; else `moved_by_hand` says what is
    done. Whatever is done is audited.

    Args:
        rules: None: those of the run of the version that is judged; what to do, of the audited one.

    Raises:
        SpecError: there is no such model, or no run of this model under this storage root.
        PreflightError: what the gate has to read is gone or damaged.
        RetryableError: the registry or the storage does not answer, or the alias does not rest.
    """
    succession = Succession(storage, registry, model)
    for _ in range(_NUM_LOOKS):
        standing = succession.look()
        if not standing.is_moved_by_hand:
            return Reconciled(
                model, standing.champion, "unchanged", standing.audited, standing.champion
            )
        reconciled = _settle(succession, standing, rules)
        if reconciled is not None:
            return reconciled
    raise RetryableError(
        f"the champion of {model!r} was moved by hand again and again while it was judged; give "
        "the same command again once it rests"
    )


def _settle(
    succession: Succession, seen: Standing, rules: PromotionSpec | None
) -> Reconciled | None:
    """None: it was moved meanwhile."""
    registry, model = succession.registry, succession.model
    audited = seen.audited if registry.has(model, seen.audited) else None
    verdicts: list[Verdict] = []
    if seen.champion is not None:
        verdicts = _judge(succession, seen.champion, audited, rules)
    detail = {"verdicts": [asdict(verdict) for verdict in verdicts]}
    policy = rules or _rules_of(succession, audited) or _rules_of(succession, seen.champion)
    has_passed = seen.champion is not None and not refusals(verdicts)
    is_accepted = (
        has_passed
        or (policy is not None and policy.moved_by_hand == "accept")
        or (seen.champion is None and audited is None)  # deleted, version and all: none to restore
    )
    if is_accepted:
        is_done = succession.accept(seen, detail)
        champion = seen.champion
    else:
        is_done = succession.revert(seen, audited, detail)
        champion = audited
    outcome: Literal["accepted", "reverted"] = "accepted" if is_accepted else "reverted"
    if not is_done:
        return None
    return Reconciled(model, champion, outcome, seen.audited, seen.champion, verdicts)


def _judge(
    succession: Succession, number: int, audited: int | None, rules: PromotionSpec | None
) -> list[Verdict]:
    """The gate's verdicts; that there is nothing to judge by is a refusal."""
    storage, registry = succession.storage, succession.registry
    try:
        version = registry.version(succession.model, number)
    except PreflightError as error:  # it was registered by other means
        return [_refused(error)]
    try:
        own = rules or open_run(storage, version).spec.promotion
        return judge_version(storage, registry, version, audited, own)
    except (DataError, JobFailed) as error:
        return [_refused(error)]
    except SpecError as error:
        if audited is None:  # it may be the wrong root: there is nothing that tells
            raise
        return [_refused(error)]


def _refused(error: Exception) -> Verdict:
    return Verdict("evidence", "none", "a run and its files", passed=False, why=str(error))


def _rules_of(succession: Succession, number: int | None) -> PromotionSpec | None:
    """Of the run that a version comes from, if it is there."""
    if number is None:
        return None
    try:
        version = succession.registry.version(succession.model, number)
        return open_run(succession.storage, version).spec.promotion
    except (SpecError, PreflightError):
        return None
