"""`emberline retrain`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.options import Config, DryRun, Json, Overrides, StorageUri, Target, Workload, show
from ray_jobs import logs
from ray_jobs.errors import SpecError

app = typer.Typer()


@app.command()
def retrain(
    workload: Workload,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="PATH", help="New labelled data: a file, folder or s3:// URI."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Its registered name; default: the workload's.")
    ] = None,
    config: Config = None,
    overrides: Overrides = None,
    on: Annotated[str, typer.Option(help="always, or only on drift.")] = "always",
    since: Annotated[
        str | None,
        typer.Option(help="With --on drift: of requests since: 7d, 12h, or a time in ISO 8601."),
    ] = None,
    deploy: Annotated[
        bool | None,
        typer.Option("--deploy/--no-deploy", help="Default: where the model is deployed already."),
    ] = None,
    deploy_target: Annotated[
        str | None, typer.Option(help="Where to deploy: local (default) or sagemaker.")
    ] = None,
    target: Target = None,
    storage: StorageUri = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train the champion again on its data and new ones; promote it if the gate lets it, and deploy
    it. Once for the same data; exit 6 if the gate refuses, or has refused, its model."""
    from pipelines import retraining

    if on not in ("always", "drift"):
        raise SpecError(f"--on {on}: it is always or drift")
    if since and on != "drift":
        raise SpecError("--since belongs to --on drift: it says which requests are looked at")
    if deploy is False and deploy_target:
        raise SpecError("--deploy-target belongs to --deploy; leave one of the two out")
    outcome = retraining.retrain(
        workload,
        data or [],
        model=model,
        config=config,
        overrides=overrides or (),
        storage=storage,
        target=target,
        on=on,  # type: ignore[arg-type]
        since=since,
        deploy=deploy,
        deploy_target=deploy_target,
        dry_run=dry_run,
        say=logs.say,
    )
    show(outcome, as_json)
