"""`emberline deploy`: what came of it, what it would do, and how a deployment answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.check_table import print_checks
from ray_jobs import deploy as deployment_job
from ray_jobs import logs
from ray_jobs.deployments.base import Costing, Deployment, Say
from ray_jobs.errors import EXIT_OK, JobFailed, PreflightError

if TYPE_CHECKING:
    from rich.console import Console

    from ray_jobs.sections import JobSpec


@dataclass(frozen=True)
class DeployOutcome:
    """A deployment that answers."""

    deployment: Deployment

    exit_code = EXIT_OK

    def to_json(self) -> str:
        return json.dumps(asdict(self.deployment), indent=2)

    def print(self, console: Console) -> None:
        one = self.deployment
        console.print(
            f"[bold]{one.name}[/] on {one.target}: {versions(one)} of {one.model} "
            f"{_answers(one)}, {price(one.costs)}",
            soft_wrap=True,
        )
        if one.reason:
            console.print(f"[yellow]{one.reason}[/]", soft_wrap=True)


@dataclass(frozen=True)
class PlanOutcome:
    """What a deployment would do."""

    plan: deployment_job.Plan

    @property
    def exit_code(self) -> int:
        return PreflightError.exit_code if self.plan.checklist.failed else EXIT_OK

    def to_json(self) -> str:
        plan = self.plan
        found: dict[str, Any] = {
            "target": plan.target,
            "name": plan.name,
            "model": plan.model.name,
            "version": plan.model.version,
            "challenger": plan.challenger.version if plan.challenger else None,
            "found": asdict(plan.found) if plan.found else None,
            "checks": [asdict(check) for check in plan.checklist.checks],
        }
        return json.dumps(found, indent=2)

    def print(self, console: Console) -> None:
        plan = self.plan
        print_checks(plan.checklist, console)
        beside = f", with {plan.challenger} beside it" if plan.challenger else ""
        before = versions(plan.found) if plan.found and plan.found.variants else "none"
        console.print(
            f"[bold]{plan.name}[/] on {plan.target}: {plan.model}{beside}; now: {before} (dry run)",
            soft_wrap=True,
        )


@dataclass(frozen=True)
class AnswerOutcome:
    """How a deployment has answered the example of its version."""

    answer: deployment_job.Answer

    @property
    def exit_code(self) -> int:
        return EXIT_OK if self.answer.fault is None else JobFailed.exit_code

    def to_json(self) -> str:
        return json.dumps(asdict(self.answer), indent=2)

    def print(self, console: Console) -> None:
        answer = self.answer
        print(answer.body, file=console.file)
        said = "as recorded" if answer.fault is None else f"[red]not as recorded[/]: {answer.fault}"
        one = answer.deployment
        console.print(
            f"[bold]{one.name}[/] on {one.target}: {versions(one)} answered its example in "
            f"{answer.latency_ms:.1f} ms, {said}",
            soft_wrap=True,
        )


@dataclass(frozen=True)
class Started:
    """A deployment that goes on in the background."""

    model: str
    target: str
    pid: int
    log: str

    exit_code = EXIT_OK

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def print(self, console: Console) -> None:
        console.print(
            f"[bold]{self.model}[/] is being deployed to {self.target} (process {self.pid}); look "
            f"with emberline deployments, or in {self.log}",
            soft_wrap=True,
        )


def deploy(
    where: JobSpec | str,
    model: str,
    version: int | str | None = None,
    *,
    target: str | None = None,
    overrides: Sequence[str] = (),
    say: Say = logs.say,
) -> DeployOutcome:
    """As `ray_jobs.deploy.deploy`."""
    return DeployOutcome(
        deployment_job.deploy(where, model, version, target=target, overrides=overrides, say=say)
    )


def plan(
    where: JobSpec | str,
    model: str,
    version: str | None,
    target: str,
    overrides: Sequence[str],
) -> PlanOutcome:
    """As `ray_jobs.deploy.plan`."""
    return PlanOutcome(
        deployment_job.plan(
            where,
            model,
            version,
            target=target,
            overrides=overrides,
            say=logs.say,
        )
    )


def ask(
    where: JobSpec | str,
    model: str,
    version: str | None,
    target: str,
    overrides: Sequence[str],
) -> AnswerOutcome:
    """As `ray_jobs.deploy.ask`."""
    return AnswerOutcome(
        deployment_job.ask(where, model, version, target=target, overrides=overrides)
    )


def start(
    storage: str,
    model: str,
    version: str | None,
    target: str,
    config: Path | None,
    overrides: Sequence[str],
) -> Started:
    """Deploy in a process of its own, and return at once."""
    from ray_jobs.deployments.local import home
    from ray_jobs.storage import Storage

    root = Storage(storage)
    log = home(root) / f".{model}.{target}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ray_jobs.deploy", model, "--target", target]
    command += ["--storage", root.uri, *(f"--set={override}" for override in overrides)]
    command += ["--version", version] if version else []
    command += ["--spec", str(config)] if config else []
    with log.open("ab") as file:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C here does not reach it
        )
    return Started(model, target, child.pid, str(log))


# Words


def versions(deployment: Deployment) -> str:
    """`version 3`, or `version 3 (90%) and 4 (10%)`."""
    champion, *others = deployment.variants
    if not others:
        return f"version {champion.version}"
    told = [
        f"{one.version} ({'shadow of ' if one.is_shadow else ''}{one.weight:.0%})"
        for one in deployment.variants
    ]
    return f"version {' and '.join(told)}"


def price(costs: Sequence[Costing]) -> str:
    """What resources cost an hour, all together."""
    if not costs:
        return "no cost"
    known = [cost.usd_per_hour for cost in costs if cost.usd_per_hour is not None]
    unknown = ", ".join(cost.resource for cost in costs if cost.usd_per_hour is None)
    total = f"${sum(known):.3f} an hour" if known else ""
    return " and ".join(filter(None, [total, unknown and f"no known price of {unknown}"]))


def _answers(deployment: Deployment) -> str:
    return f"answers at {deployment.url}/invocations" if deployment.url else "answers"
