"""The commands of `emberline` that act on deployments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.options import DEFAULT_STORAGE, Config, Json, Model, Overrides, Root, show
from ray_jobs import logs
from ray_jobs.errors import EXIT_INTERRUPTED, SpecError

if TYPE_CHECKING:
    from pipelines.deploy import DeployOutcome
    from ray_jobs.sections import JobSpec

app = typer.Typer()


@app.command()
def deploy(
    model: Model,
    version: Annotated[
        str | None, typer.Option("--version", help="Its number or an alias; default: the champion.")
    ] = None,
    target: Annotated[
        str, typer.Option("--target", help="Where to deploy: local or sagemaker.")
    ] = "local",
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="Job description (YAML); default: that of the version's run."
        ),
    ] = None,
    overrides: Overrides = None,
    storage: Root = DEFAULT_STORAGE,
    instance_type: Annotated[
        str | None, typer.Option("--instance-type", help="Of SageMaker, e.g. ml.m5.large.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Until it answers, or in the background.")
    ] = True,
    test: Annotated[
        bool, typer.Option("--test", help="Only ask what is deployed for its recorded example.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; deploy nothing.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Deploy each champion to come, too, until Ctrl-C.")
    ] = False,
    interval: Annotated[
        float | None,
        typer.Option(help="With --follow: seconds between two looks; default: 10.", min=0.1),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put a version, by default the champion, to work; done when it has answered its own example.
    The one before answers until then, and stays if it does not (exit 4)."""
    from pipelines import deploy as deploying
    from ray_jobs.deployments.places import known_target

    keys = [*(overrides or ())]
    target = known_target(target)
    if instance_type is not None:
        if target != "sagemaker":
            raise SpecError("--instance-type is of --target sagemaker")
        keys.append(f"deployment.sagemaker.instance_type={instance_type}")
    modes = [
        name
        for name, is_given in {
            "--no-wait": not wait, "--test": test, "--dry-run": dry_run, "--follow": follow,
        }.items()
        if is_given
    ]  # fmt: skip
    if len(modes) > 1:
        raise SpecError(f"{' and '.join(modes)} do not go together; choose one")
    if interval is not None and not follow:
        raise SpecError("--interval belongs to --follow")
    if follow and version is not None:
        raise SpecError("--follow deploys the champion, whichever it is: leave --version out")
    if not wait:
        show(deploying.start(storage, model, version, target, config, keys), as_json)
        return
    where: JobSpec | str = storage
    if config is not None:
        where, keys = _described(config, keys, storage), []
    if test:
        show(deploying.ask(where, model, version, target, keys), as_json)
    elif dry_run:
        show(deploying.plan(where, model, version, target, keys), as_json)
    elif follow:
        code = _follow(where, model, target, keys, 10 if interval is None else interval, as_json)
        raise typer.Exit(code)
    else:
        try:
            outcome = deploying.deploy(where, model, version, target=target, overrides=keys)
        except KeyboardInterrupt:
            typer.echo(
                "interrupted; a change that had begun goes on: see emberline deployments, or give "
                "the same command again to wait for it",
                err=True,
            )
            raise typer.Exit(EXIT_INTERRUPTED) from None
        show(outcome, as_json)


def _follow(
    where: JobSpec | str, model: str, target: str, keys: list[str], interval_s: float, as_json: bool
) -> int:
    from pipelines import deploy as deploying
    from pipelines.follow import Follower, follow
    from ray_jobs.storage import Storage
    from ray_jobs.tracking.registry import Registry

    def show_one(outcome: DeployOutcome) -> None:
        if as_json:  # a line each
            typer.echo(json.dumps(json.loads(outcome.to_json())))
        else:
            show(outcome, as_json=False)

    registry = Registry(Storage(where if isinstance(where, str) else where.storage))
    follower = Follower(
        lambda: registry.champion(model),
        lambda: deploying.deploy(where, model, target=target, overrides=keys, say=logs.say),
        show=show_one,
        say=logs.say,
        interval_s=interval_s,
    )
    return follow(follower, logs.say)


@app.command()
def deployments(
    config: Config = None,
    overrides: Overrides = None,
    storage: Root = DEFAULT_STORAGE,
    as_json: Json = False,
) -> None:
    """What is deployed from a storage root, how it stands, and what costs money. With --config,
    also all of this project in that description's SageMaker account."""
    from pipelines import deployments as deployed

    show(deployed.deployments(storage, _account(config, overrides, storage)), as_json)


@app.command()
def undeploy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a deployment.")],
    target: Annotated[
        str | None, typer.Option("--target", help="Needed where both have one of that name.")
    ] = None,
    config: Config = None,
    overrides: Overrides = None,
    storage: Root = DEFAULT_STORAGE,
    as_json: Json = False,
) -> None:
    """Stop a deployment and remove all that was made for it. Returns when nothing of it costs
    money."""
    from pipelines import deployments as deployed

    spec = _account(config, overrides, storage)
    show(deployed.undeploy(storage, name, target, spec), as_json)


def _account(config: Path | None, overrides: list[str] | None, storage: str) -> JobSpec | None:
    if config is None:
        if overrides:
            raise SpecError("--set changes a job description; name it with --config")
        return None
    return _described(config, overrides or [], storage)


def _described(config: Path, overrides: list[str], storage: str) -> JobSpec:
    from ray_jobs.spec import load_spec

    return load_spec(None, config=config, overrides=overrides, storage=storage)
