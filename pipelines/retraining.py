"""`emberline retrain`: train on old and new data, pass the gate, promote, deploy. What is done is
said step by step, in a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ray_jobs.errors import EXIT_OK, GateRefused, JobFailed
from ray_jobs.promote import Promotion
from ray_jobs.retrain import Attempt, Say, attempt, describe, model_of, pass_gate
from ray_jobs.sections import JobSpec
from ray_jobs.storage import Storage

if TYPE_CHECKING:
    from rich.console import Console

On = Literal["always", "drift"]
Outcome = Literal["promoted", "refused", "nothing_to_do", "planned"]


@dataclass(frozen=True)
class Step:
    """One step and what came of it."""

    name: Literal["drift", "data", "train", "gate", "deploy"]
    outcome: str
    detail: str


@dataclass(frozen=True)
class RetrainOutcome:
    """What came of a retraining."""

    model: str
    outcome: Outcome
    steps: list[Step]
    run_id: str | None = None
    version: int | None = None  # that was judged, now or earlier
    data_digest: str | None = None
    promotion: Promotion | None = field(default=None)

    @property
    def exit_code(self) -> int:
        return GateRefused.exit_code if self.outcome == "refused" else EXIT_OK

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def print(self, console: Console) -> None:
        from rich.table import Table
        from rich.text import Text

        from pipelines.promotion import PromotionOutcome

        if self.promotion is not None and self.promotion.verdicts:
            PromotionOutcome(self.promotion).print(console)
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for column in ("step", "outcome", ""):
            table.add_column(column)
        for step in self.steps:
            style = "red" if step.outcome == "refused" else ""
            table.add_row(step.name, Text(step.outcome, style), Text(step.detail))
        console.print(table)


def retrain(
    workload: str,
    new: Sequence[str],
    *,
    model: str | None = None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    storage: str | None = None,
    target: str | None = None,
    on: On = "always",
    since: str | None = None,
    deploy: bool | None = None,
    deploy_target: str | None = None,
    dry_run: bool = False,
    say: Say = lambda line: None,
) -> RetrainOutcome:
    """Train a workload's champion again, on its data and `new`; once for the same data.

    Args:
        new: paths or URIs of labelled data; they are kept behind the champion's `data.added`.
        model: its registered name; default: the workload's.
        config, overrides: a description in place of the champion's, and texts `a.b=value` over it.
        target: where to train; default: where the champion was.
        on: `drift`: only if the champion's live inputs or answers have drifted.
        since: of requests in which drift is looked for: a span such as 7d, or a time in ISO 8601.
        deploy: True: deploy the new champion; None: where the model is deployed already.
        deploy_target: where to, `local` by default; only with `deploy`.
        dry_run: prepare the data and say what would be done.

    Raises:
        SpecError, DataError, JobFailed, RetryableError: as the step says; the champion stays, and
            the same command goes on from there.
    """
    from pipelines.place import placed

    spec = placed(
        describe(
            workload,
            new,
            model=model,
            config=config,
            overrides=overrides,
            storage=storage,
            target=target,
            say=say,
        )
    )
    name, steps = model_of(spec), list[Step]()
    if on == "drift":
        steps.append(_look_for_drift(spec, since, deploy_target))
        if steps[-1].outcome != "drift":
            return RetrainOutcome(name, "nothing_to_do", steps)
    say("preparing old and new data")
    found = attempt(spec, dry_run=dry_run, emit=_warnings_to(say))
    steps.append(_data_step(found))
    if dry_run:
        return _planned(found, steps)
    if found.judged is None:
        result = _train(found)
        if result.model is None:
            raise JobFailed(f"run {found.run_id} registered no model; look at its report")
        version = result.model.version
        steps.append(Step("train", "done", f"run {found.run_id}, version {version} of {name}"))
        promotion = pass_gate(spec, found.data.digest, version)
    else:
        steps.append(Step("train", "skipped", str(found.judged)))
        promotion = pass_gate(spec, found.data.digest, found.judged.version)
    steps.append(_gate_step(promotion))
    if promotion.champion == promotion.version or promotion.outcome == "promoted":
        steps += _deploy(found, deploy, deploy_target, say)
    outcome: Outcome = "refused" if promotion.outcome == "refused" else "promoted"
    if outcome == "promoted" and found.judged is not None:
        outcome = "nothing_to_do"
    return RetrainOutcome(
        name, outcome, steps, found.run_id, promotion.version, found.data.digest, promotion
    )


def _look_for_drift(spec: JobSpec, since: str | None, target: str | None) -> Step:
    from ray_jobs.drift import measure, parse_since

    report = measure(
        Storage(spec.storage),
        model_of(spec),
        name=spec.deployment.name,
        since=parse_since(since) if since else None,
        target=target,
    )
    return Step("drift", report.status, report.reason)


def _warnings_to(say: Say) -> Any:
    def emit(event: str, **fields: Any) -> None:
        if event == "warning":
            say(f"warning: {fields['message']}")

    return emit


def _data_step(found: Attempt) -> Step:
    data = found.data
    counts = ", ".join(f"{split} {part.num_rows:,}" for split, part in data.splits.items())
    detail = (
        f"{counts} rows; {data.num_added:,} of train were added, {data.num_withheld:,} left out, "
        f"for val or test has them; digest {data.digest[:12]}"
    )
    return Step("data", "seen before" if found.judged else "new", detail)


def _planned(found: Attempt, steps: list[Step]) -> RetrainOutcome:
    if found.judged is None:
        steps.append(Step("train", "to do", f"run {found.run_id} on {found.spec.target}"))
        steps.append(Step("gate", "to do", f"against the champion of {found.model}"))
    else:
        steps.append(Step("train", "skipped", str(found.judged)))
    version = found.judged.version if found.judged else None
    return RetrainOutcome(found.model, "planned", steps, found.run_id, version, found.data.digest)


def _train(found: Attempt) -> Any:
    from pipelines import remote, training

    if found.spec.target == "local":
        return training.start(found.spec, found.run_id).result
    outcome = remote.start(found.spec, found.run_id)
    assert isinstance(outcome, training.Outcome), "only a detached run is not followed"
    return outcome.result


def _gate_step(promotion: Promotion) -> Step:
    before = "none" if promotion.champion is None else f"version {promotion.champion}"
    match promotion.outcome:
        case "promoted":
            detail = f"version {promotion.version} is the champion; before: {before}"
        case "unchanged":
            detail = f"version {promotion.version} was promoted before; the champion is {before}"
        case _:
            detail = (
                f"the champion is still {before}; to judge version {promotion.version} by other "
                f"rules: emberline promote {promotion.model} --version {promotion.version} --set "
                "promotion.KEY=VALUE"
            )
    return Step("gate", promotion.outcome, detail)


def _deploy(found: Attempt, wanted: bool | None, target: str | None, say: Say) -> Iterator[Step]:
    """Deploy the champion where that is asked for, or where the model is deployed already."""
    from ray_jobs.deploy import deploy, deployers

    storage, model = found.spec.storage, found.model
    name = found.spec.deployment.name or model
    if wanted is False:
        yield Step("deploy", "skipped", "as asked")
        return
    if wanted or target:
        targets = [target or "local"]
    else:
        targets = [place for place, there in deployers(Storage(storage)) if there == name]
    if not targets:
        yield Step("deploy", "skipped", f"{model} is deployed nowhere; deploy it with --deploy")
    for place in targets:
        done = deploy(storage, model, target=place, say=say)
        answers = f", {done.url}" if done.url else ""
        yield Step("deploy", "done", f"version {done.variants[0].version} on {place}{answers}")
