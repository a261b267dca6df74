"""Promotion: a version becomes the champion if the gate lets it; rollback; and a look at who was
made the champion by hand.

`python -m ray_jobs.promote MODEL [--version N] [--dry-run]`, or `--rollback`, or `--reconcile`,
prints the outcome as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from ray_jobs import logs
from ray_jobs.errors import EXIT_OK, EmberlineError, GateRefused
from ray_jobs.sections import JobSpec
from ray_jobs.spec import load_spec
from ray_jobs.storage import Storage
from ray_jobs.tracking import handmoves
from ray_jobs.tracking.evidence import open_run
from ray_jobs.tracking.gate import Verdict, refusals
from ray_jobs.tracking.handmoves import Reconciled, describe_move
from ray_jobs.tracking.judging import judge_version
from ray_jobs.tracking.registry import GATE_TAG, Registry, check_exists
from ray_jobs.tracking.succession import Succession

Outcome = Literal["promoted", "unchanged", "accepted", "refused", "rolled_back"]


@dataclass(frozen=True)
class Promotion:
    """What came of a promotion or a rollback."""

    model: str
    version: int  # that was judged, or gone back to
    champion: int | None  # that stood before
    outcome: Outcome
    verdicts: list[Verdict] = field(default_factory=list)
    dry_run: bool = False
    warnings: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return GateRefused.exit_code if self.outcome == "refused" else EXIT_OK

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


class Refused(GateRefused):
    """A refusal, with every rule's verdict."""

    def __init__(self, promotion: Promotion):
        self.promotion = promotion
        broken = "; ".join(f"{v.rule}: {v.why}" for v in refusals(promotion.verdicts))
        super().__init__(f"version {promotion.version} of {promotion.model!r} is refused. {broken}")


def promote(
    where: JobSpec | str, model: str, version: int | None = None, *, dry_run: bool = False
) -> Promotion:
    """Judge a version, by default the challenger, and make it the champion. Before that, a champion
    that was made by hand is settled, as `reconcile` does it.

    Args:
        where: the root of all runs; or a job description, whose `storage` is that root and whose
            `promotion` are the rules. Otherwise the rules are those of the candidate's own run.
        dry_run: judge only; nothing is written anywhere. It is `accepted` or `refused`.

    Raises:
        Refused: a rule is broken; no alias was moved.
        SpecError: there is no such model or version, or its run is not under this root.
        PreflightError: what the gate has to read is gone or damaged.
        RetryableError: the registry or the storage does not answer, or another version was made
            the champion meanwhile.
    """
    storage = _storage(where)
    check_exists(storage)
    registry = Registry(storage)
    candidate = registry.version(model, version)
    succession = Succession(storage, registry, model)
    if dry_run:
        standing = succession.glance()
        champion = standing.champion
        warning = describe_move(model, standing) if standing.is_moved_by_hand else None
    else:
        reconciled = _reconcile(storage, registry, model, where)
        champion, warning = reconciled.champion, reconciled.warning
    warnings = [] if warning is None else [warning]

    def outcome(name: Outcome, verdicts: Sequence[Verdict] = ()) -> Promotion:
        return Promotion(model, candidate.number, champion, name, list(verdicts), dry_run, warnings)

    if champion == candidate.number:
        return outcome("unchanged")
    spec = open_run(storage, candidate).spec if isinstance(where, str) else where
    verdicts = judge_version(storage, registry, candidate, champion, spec.promotion)
    broken = refusals(verdicts)
    if dry_run:
        return outcome("refused" if broken else "accepted", verdicts)
    registry.tag(candidate, {f"{GATE_TAG}.{v.rule}": _as_tag(v) for v in verdicts})
    detail = {"verdicts": [asdict(verdict) for verdict in verdicts]}
    if broken:
        succession.log.append("refused", candidate.number, champion, detail=detail)
        raise Refused(outcome("refused", verdicts))
    is_new = succession.advance(candidate.number, seen=champion, detail=detail)
    return outcome("promoted" if is_new else "unchanged", verdicts)


def rollback(where: JobSpec | str, model: str) -> Promotion:
    """Make the champion before this one the champion again, as the audit log has it. It passed the
    gate in its time and is not judged again.

    Raises:
        SpecError: there is no such model, or that version of it is gone.
        PreflightError: there was no champion before; the audit log is damaged.
        RetryableError: the registry or the storage does not answer.
    """
    storage = _storage(where)
    check_exists(storage)
    registry = Registry(storage)
    registry.champion(model)  # whether there is the model
    succession = Succession(storage, registry, model)
    standing = succession.look()
    warnings = [describe_move(model, standing)] if standing.is_moved_by_hand else []
    version, champion = succession.go_back()
    return Promotion(model, version, champion, "rolled_back", warnings=warnings)


def reconcile(where: JobSpec | str, model: str) -> Reconciled:
    """Look whether the champion was made by hand, in MLflow's UI or API. The gate judges it against
    the last that was audited: it stays if it passes, else `promotion.moved_by_hand` decides. To be
    called before a champion is deployed.

    Args:
        where: as of `promote`; without a job description, the rules are those of the runs that the
            two versions come from.

    Raises:
        As `promote`, but for `Refused`.
    """
    storage = _storage(where)
    check_exists(storage)
    return _reconcile(storage, Registry(storage), model, where)


def _reconcile(
    storage: Storage, registry: Registry, model: str, where: JobSpec | str
) -> Reconciled:
    rules = None if isinstance(where, str) else where.promotion
    return handmoves.reconcile(storage, registry, model, rules)


def _storage(where: JobSpec | str) -> Storage:
    return Storage(where if isinstance(where, str) else where.storage)


def _as_tag(verdict: Verdict) -> str:
    said = "passed" if verdict.passed else "refused"
    why = f"; {verdict.why}" if verdict.why else ""
    return f"{said}: {verdict.value} (limit: {verdict.limit}){why}"


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m ray_jobs.promote`; the outcome is the last thing on stdout. Returns the exit code:
    6 if the gate refuses."""
    parser = argparse.ArgumentParser(
        prog="python -m ray_jobs.promote",
        description="Make a version of a model the champion, if the promotion gate lets it.",
    )
    add = parser.add_argument
    add("model", help="the registered name, e.g. fire")
    add("--version", type=int, help="default: the challenger")
    add("--storage", help="root of all runs; default: the spec's, or ./runs")
    add("--spec", help="job description whose rules count; default: that of the candidate's run")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    add("--dry-run", action="store_true", help="judge only; write nothing")
    add("--rollback", action="store_true", help="go back to the champion before this one")
    add("--reconcile", action="store_true", help="settle a champion that was made by hand")
    options = parser.parse_args(arguments)
    acts = [f"--{name}" for name in ("rollback", "reconcile") if getattr(options, name)]
    if acts and (len(acts) > 1 or options.dry_run or options.version is not None):
        parser.error(f"{acts[0]} takes neither --version nor --dry-run, nor any other act")
    if options.overrides and not options.spec:
        parser.error("--set changes a job description; name it with --spec")
    where: JobSpec | str = options.storage or "./runs"
    try:
        logs.setup()
        if options.spec:
            where = load_spec(
                None, config=options.spec, overrides=options.overrides, storage=options.storage
            )
        promotion: Promotion | Reconciled
        if options.reconcile:
            promotion = reconcile(where, options.model)
        elif options.rollback:
            promotion = rollback(where, options.model)
        else:
            promotion = promote(where, options.model, options.version, dry_run=options.dry_run)
    except Refused as error:
        logs.say_error(error)
        promotion = error.promotion
    except EmberlineError as error:
        logs.say_error(error)
        return error.exit_code
    logs.show(promotion.to_json())
    return promotion.exit_code


if __name__ == "__main__":
    sys.exit(main())
