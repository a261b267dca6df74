"""Deployment of registered models: `python -m ray_jobs.deploy MODEL [--version V] [--target T]`
prints what is deployed as JSON."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ray_jobs import logs
from ray_jobs.checks import Checklist
from ray_jobs.deployments.base import Deployment, Release, Say
from ray_jobs.deployments.history import Event, History, standing
from ray_jobs.deployments.places import TARGETS, connect, deployers, known_target
from ray_jobs.deployments.release import fetch, model_cache
from ray_jobs.errors import EXIT_OK, EmberlineError, JobFailed, RetryableError, SpecError
from ray_jobs.sections import JobSpec
from ray_jobs.serving.example import read_example
from ray_jobs.spec import load_spec
from ray_jobs.storage import Storage
from ray_jobs.tracking.models import LocatedModel, description_of, download, find_model
from ray_jobs.tracking.registry import CHAMPION, Registry

if TYPE_CHECKING:
    from ray_jobs.promote import Reconciled

DEPLOYED_TAG = "emberline.deployed"  # followed by a target
_DEPLOYED_BY = ("deployment", "sagemaker")  # sections
_NUM_ASKED = 50  # times, until the champion is the one of two versions that answers


@dataclass(frozen=True)
class Plan:
    """What a deployment would do."""

    target: str
    name: str
    model: LocatedModel
    challenger: LocatedModel | None
    checklist: Checklist
    found: Deployment | None  # that is there now


@dataclass(frozen=True)
class Answer:
    """How a deployment has answered its champion's example."""

    deployment: Deployment
    body: str
    latency_ms: float
    fault: str | None  # how it differs from what was recorded


def deploy(
    where: JobSpec | str,
    model: str,
    version: int | str | None = None,
    *,
    target: str | None = None,
    overrides: Sequence[str] = (),
    say: Say = lambda line: None,
) -> Deployment:
    """Deploy a version, by default the champion, and its challenger where the description names
    one. Done when both have answered their examples as recorded.

    Args:
        where: the root of all runs; or a job description, whose `storage` is that root. Otherwise
            the description is that of the version's own run, and its sections `deployment` and
            `sagemaker` those that the deployment was last changed with, if it is there.
        target: `local` (the default) or `sagemaker`.
        overrides: `a.b=value` texts over that description.

    Raises:
        SpecError: there is no such model, version or champion; the description is wrong.
        PreflightError: the target refuses, or lacks something.
        JobFailed: the model is refused, or did not answer as recorded; the one before stays.
        RetryableError: the registry, the storage or the target does not answer.
    """
    target = known_target(target)
    if version is None:
        warning = settle(where, model, overrides).warning
        if warning is not None:
            say(f"warning: {warning}")
    job = _job(where, model, version, target, overrides, say)
    deployer = connect(target, job.storage, job.spec)
    champion = _fetch(job.storage, job.model)
    challenger = _fetch(job.storage, job.challenger) if job.challenger else None
    name = job.spec.deployment.name_for(model)
    history = History(job.storage, target, name)
    versions = tuple(str(one.model.version) for one in (champion, challenger) if one)
    before = deployer.find(name)
    try:
        deployment = deployer.deploy(champion, job.spec.deployment, challenger=challenger, say=say)
    except JobFailed as error:
        history.append("refused", model, versions, str(error))
        raise
    except (KeyboardInterrupt, RetryableError):
        if not _is_last(history, "interrupted", versions):  # one for all attempts in a row
            history.append("interrupted", model, versions, spec=job.spec)
        raise
    tag = f"{DEPLOYED_TAG}.{target}"
    if before != deployment or _is_last(history, "interrupted", versions):
        history.append("deployed", model, versions, spec=job.spec)
    if before != deployment or tag not in champion.model.tags:
        registry = Registry(job.storage)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        for one in versions:
            registry.tag(registry.version(model, int(one)), {tag: now})
    return deployment


def plan(
    where: JobSpec | str,
    model: str,
    version: int | str | None = None,
    *,
    target: str | None = None,
    overrides: Sequence[str] = (),
    say: Say = lambda line: None,
) -> Plan:
    """What `deploy` would do. Nothing is created or changed, but that the model is fetched.

    Raises:
        SpecError, PreflightError, JobFailed, RetryableError: as `deploy`.
    """
    target = known_target(target)
    job = _job(where, model, version, target, overrides, say)
    deployer = connect(target, job.storage, job.spec)
    for one in (job.model, job.challenger):
        if one is not None:
            read_example(_fetch(job.storage, one).bundle)
    checklist = deployer.check(model, job.spec.deployment)
    name = job.spec.deployment.name_for(model)
    found = deployer.find(name)
    return Plan(target, name, job.model, job.challenger, checklist, found)


def ask(
    where: JobSpec | str,
    model: str,
    version: int | str | None = None,
    *,
    target: str | None = None,
    overrides: Sequence[str] = (),
) -> Answer:
    """Have a deployment answer the recorded example of the champion that it runs.

    Args:
        version: whose run's description says where it is deployed; default: the champion's.

    Raises:
        SpecError: there is no such deployment.
        PreflightError: it is not at work.
        JobFailed: it answers with an error.
        RetryableError: it does not answer now.
    """
    target = known_target(target)
    job = _job(where, model, version, target, overrides, lambda line: None)
    deployer = connect(target, job.storage, job.spec)
    name = job.spec.deployment.name_for(model)
    deployment = deployer.find(name)
    if deployment is None or not deployment.variants:
        raise SpecError(
            f"{model!r} is not deployed as {name!r} on {target}: emberline deploy {model} --target "
            f"{target}"
        )
    first = deployment.variants[0].version
    example = read_example(fetch(job.storage, deployment.model, first).bundle)
    for _ in range(_NUM_ASKED):
        start = time.perf_counter()
        body = deployer.invoke(name, example.body, example.media_type)
        latency_ms = 1000 * (time.perf_counter() - start)
        if _version_that_answered(body) in (first, None):
            return Answer(deployment, body.decode(), latency_ms, example.fault(body))
    raise JobFailed(f"{name!r} was asked {_NUM_ASKED} times, and version {first} never answered")


def undeploy(
    storage: Storage,
    name: str,
    *,
    target: str | None = None,
    spec: JobSpec | None = None,
    say: Say = lambda line: None,
) -> Sequence[str]:
    """Remove a deployment: what was removed.

    Args:
        target: needed only where there is one of that name on both.
        spec: whose account of SageMaker is looked at, too.

    Raises:
        SpecError: there is none such, or more than one.
        RetryableError: its place does not answer now.
    """
    there = deployers(storage, spec)
    found = [key for key in there if key[1] == name and target in (None, key[0])]
    if not found:
        names = ", ".join(f"{one} ({where})" for where, one in there)
        raise SpecError(
            f"no deployment {name!r} was made from {storage.uri!r}; there is {names or 'none'}"
        )
    if len(found) > 1:
        raise SpecError(
            f"{name!r} is deployed on {' and '.join(where for where, _ in found)}: "
            "name one with --target"
        )
    deployer = there[found[0]]
    deployment = deployer.find(name)
    removed = deployer.delete(name, say) if deployment else ["nothing: it was gone already"]
    model = deployment.model if deployment else name
    versions = tuple(one.version for one in deployment.variants) if deployment else ()
    History(storage, found[0][0], name).append("removed", model, versions)
    return removed


@dataclass(frozen=True)
class _Job:
    storage: Storage
    spec: JobSpec
    model: LocatedModel
    challenger: LocatedModel | None


def _job(
    where: JobSpec | str,
    name: str,
    version: int | str | None,
    target: str,
    overrides: Sequence[str],
    say: Say,
) -> _Job:
    storage = Storage(where if isinstance(where, str) else where.storage)
    model = find_model(storage, name, version)
    if version is None and model.alias != CHAMPION:
        raise SpecError(
            f"model {name!r} has no champion: make one with emberline promote {name}, or name a "
            "version with --version"
        )
    spec = _described(storage, model, target, overrides) if isinstance(where, str) else where
    asked = spec.deployment.challenger
    challenger = find_model(storage, name, asked.version) if asked else None
    if challenger is not None and challenger.version == model.version:
        say(f"version {model.version} is its own challenger: it is deployed alone")
        challenger = None
    return _Job(storage, spec, model, challenger)


def settle(where: JobSpec | str, model: str, overrides: Sequence[str] = ()) -> Reconciled:
    """As `ray_jobs.promote.reconcile`, by the rules of the champion's own run where there is no job
    description.

    Args:
        overrides: `a.b=value` texts over that run's description.
    """
    from ray_jobs.promote import reconcile

    if overrides and isinstance(where, str):
        storage = Storage(where)
        champion = Registry(storage).champion(model)
        if champion is not None:
            where = description_of(storage, find_model(storage, model, champion), overrides)
    return reconcile(where, model)


def _described(
    storage: Storage, model: LocatedModel, target: str, overrides: Sequence[str]
) -> JobSpec:
    """The description of the version's own run; where the model is deployed already, its port, its
    recording, its challenger and the like survive the change of version."""
    spec = description_of(storage, model, overrides)
    change = standing(storage, target).get(spec.deployment.name_for(model.name))
    if change is None or change.spec is None:
        return spec
    kept = [f"{key}={json.dumps(change.spec[key])}" for key in _DEPLOYED_BY if key in change.spec]
    return description_of(storage, model, [*kept, *overrides])


def _fetch(storage: Storage, model: LocatedModel) -> Release:
    return Release(model, download(model, model_cache(storage)))


def _is_last(history: History, event: Event, versions: tuple[str, ...]) -> bool:
    last = history.last()
    return last is not None and (last.event, last.versions) == (event, versions)


def _version_that_answered(body: bytes) -> str | None:
    """None: the answer does not say."""
    try:
        return str(json.loads(body)["predictions"][0]["model_version"])
    except (ValueError, LookupError, TypeError):
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m ray_jobs.deploy`; the deployment is the last thing on stdout. Returns the exit
    code."""
    parser = argparse.ArgumentParser(
        prog="python -m ray_jobs.deploy",
        description="Deploy a version of a model; done when it has answered its own example.",
    )
    add = parser.add_argument
    add("model", help="the registered name, e.g. fire")
    add("--version", help="its number or an alias; default: the champion")
    add("--target", choices=TARGETS, default="local")
    add("--storage", help="root of all runs; default: the spec's, or ./runs")
    add("--spec", help="job description; default: that of the version's run")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    options = parser.parse_args(arguments)
    where: JobSpec | str = options.storage or "./runs"
    overrides = options.overrides
    try:
        logs.setup()
        if options.spec:
            where = load_spec(
                None, config=options.spec, overrides=overrides, storage=options.storage
            )
            overrides = []
        deployment = deploy(
            where,
            options.model,
            options.version,
            target=options.target,
            overrides=overrides,
            say=logs.say,
        )
    except EmberlineError as error:
        logs.say_error(error)
        return error.exit_code
    logs.show(json.dumps(asdict(deployment), indent=2))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
