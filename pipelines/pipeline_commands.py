"""`emberline pipelines`: compile, submit, schedule and stop pipelines on Kubeflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.options import (
    Config,
    Detach,
    Json,
    Overrides,
    RunId,
    StopOnInterrupt,
    StorageUri,
    show,
)
from ray_jobs.errors import SpecError

if TYPE_CHECKING:
    from pipelines.compilation import Variant
    from ray_jobs.kubeflow_spec import KubeflowSpec
    from ray_jobs.sections import JobSpec

app = typer.Typer(
    name="pipelines",
    help="Compile pipelines for Kubeflow, run them there, and schedule them.",
    no_args_is_help=True,
)

Of = Annotated[str, typer.Argument(metavar="WORKLOAD", help="e.g. fire.", show_default=False)]
Sweep = Annotated[bool, typer.Option("--sweep", help="The pipeline that sweeps, then trains.")]
Retraining = Annotated[
    bool, typer.Option("--retraining", help="The one that retrains on old and new data.")
]
Promote = Annotated[bool, typer.Option("--promote", help="Ask the gate for what it registers.")]
DeployTo = Annotated[
    str | None,
    typer.Option("--deploy", metavar="TARGET", help="Deploy a new champion: local or sagemaker."),
]

Endpoint = Annotated[
    str | None,
    typer.Option(
        help="Of Kubeflow Pipelines, e.g. http://HOST:8888; default: kubeflow.endpoint, or "
        "KF_PIPELINES_ENDPOINT."
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="URI", help="With --retraining: new labelled data."),
]
On = Annotated[str, typer.Option(help="With --retraining: always, or only on drift.")]
Since = Annotated[str | None, typer.Option(help="With --on drift: of requests since, e.g. 7d.")]


def _variant(
    workload: str, sweep: bool, retraining: bool, promote: bool, deploy: str | None
) -> Variant:
    from pipelines.compilation import Variant
    from ray_jobs.deployments.places import TARGETS

    if deploy is not None and deploy not in TARGETS:
        raise SpecError(f"--deploy {deploy}: it is {' or '.join(TARGETS)}")
    return Variant(workload, sweep, retraining, promote, deploy)


@app.command("compile")
def compile_(
    workload: Annotated[
        str, typer.Argument(metavar="WORKLOAD|all", help="all: those that the project ships.")
    ],
    config: Config = None,
    overrides: Overrides = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder, or a file that ends in .yaml.")
    ] = Path("pipelines/compiled"),
    sweep: Sweep = False,
    retraining: Retraining = False,
    promote: Promote = False,
    deploy: DeployTo = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 7 if a file is not current.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compile a pipeline to the YAML that Kubeflow takes: the same job, the same text."""
    from pipelines import compilation

    if workload == compilation.ALL:
        if config or sweep or retraining or promote or deploy:
            raise SpecError(
                "--config, --sweep, --retraining, --promote and --deploy belong to one workload"
            )
        variants = list(compilation.VARIANTS)
    else:
        variants = [_variant(workload, sweep, retraining, promote, deploy)]
    found = [
        compilation.compiled(one, compilation.described(one, config, overrides or ()))
        for one in variants
    ]
    show((compilation.compare if check else compilation.write)(found, output), as_json)


@app.command()
def submit(
    workload: Of,
    config: Config = None,
    overrides: Overrides = None,
    storage: StorageUri = None,
    endpoint: Endpoint = None,
    run_id: RunId = None,
    sweep: Sweep = False,
    retraining: Retraining = False,
    data: Data = None,
    on: On = "always",
    since: Since = None,
    promote: Promote = False,
    deploy: DeployTo = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Carry out again the steps that failed.")
    ] = False,
    detach: Detach = False,
    stop_on_interrupt: StopOnInterrupt = False,
    interval: Annotated[
        float, typer.Option(help="Seconds between two looks.", min=0.1, max=3600)
    ] = 5,
    as_json: Json = False,
) -> None:
    """Run a pipeline on Kubeflow and follow it; a run id that is there is attached to."""
    from pipelines import submission

    variant = _variant(workload, sweep, retraining, promote, deploy)
    job = _job(variant, config, overrides, storage, endpoint)
    order = submission.order(variant, job, run_id, _retraining(retraining, data, on, since))
    done = submission.submit(
        order,
        resume=resume,
        detach=detach,
        stop_on_interrupt=stop_on_interrupt,
        interval_s=interval,
    )
    show(done, as_json)


@app.command()
def stop(
    workload: Of,
    run_id: Annotated[str, typer.Option("--run-id", help="Of the run.")],
    config: Config = None,
    overrides: Overrides = None,
    endpoint: Endpoint = None,
    sweep: Sweep = False,
    retraining: Retraining = False,
    promote: Promote = False,
    deploy: DeployTo = None,
    as_json: Json = False,
) -> None:
    """Stop a run on Kubeflow; returns when it has ended."""
    from pipelines import submission

    variant = _variant(workload, sweep, retraining, promote, deploy)
    job = _job(variant, config, overrides, None, endpoint)
    show(submission.stop(variant, job, run_id), as_json)


@app.command()
def schedule(
    workload: Of,
    cron: Annotated[
        str | None, typer.Option(help='Minute, hour, day, month, weekday: "0 3 * * *".')
    ] = None,
    every: Annotated[str | None, typer.Option(help="30m, 6h, 1d or 2w.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the schedule; default: the pipeline's.")
    ] = None,
    config: Config = None,
    overrides: Overrides = None,
    storage: StorageUri = None,
    endpoint: Endpoint = None,
    sweep: Sweep = False,
    retraining: Retraining = False,
    data: Data = None,
    on: On = "always",
    since: Since = None,
    promote: Promote = False,
    deploy: DeployTo = None,
    disable: Annotated[
        bool, typer.Option("--disable", help="It starts nothing, until asked for without this.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of another one of this name.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a pipeline on Kubeflow again and again, each time under a run id of its own."""
    from pipelines import schedules

    trigger = schedules.trigger_of(cron, every)
    variant = _variant(workload, sweep, retraining, promote, deploy)
    done = schedules.schedule(
        variant,
        _job(variant, config, overrides, storage, endpoint),
        trigger,
        name=name,
        retraining=_retraining(retraining, data, on, since),
        is_enabled=not disable,
        replace=replace,
    )
    show(done, as_json)


@app.command("schedules")
def schedules_(
    endpoint: Endpoint = None,
    config: Config = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """The schedules that this project has made on Kubeflow."""
    from pipelines import schedules

    show(schedules.listing(_kubeflow(config, overrides, endpoint)), as_json)


@app.command()
def unschedule(
    name: Annotated[str, typer.Argument(help="Of the schedule.", show_default=False)],
    endpoint: Endpoint = None,
    config: Config = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """End a schedule; a run that it has started goes on."""
    from pipelines import schedules

    show(schedules.unschedule(_kubeflow(config, overrides, endpoint), name), as_json)


def _job(
    variant: Variant,
    config: Path | None,
    overrides: list[str] | None,
    storage: str | None,
    endpoint: str | None,
) -> JobSpec:
    from pipelines.compilation import described

    return described(variant, config, [*(overrides or ()), *_at(endpoint)], storage)


def _kubeflow(
    config: Path | None, overrides: list[str] | None, endpoint: str | None
) -> KubeflowSpec:
    """The section of a description; which workload's does not matter."""
    from ray_jobs.spec import load_spec

    given = [*(overrides or ()), *_at(endpoint)]
    return load_spec(None if config else "fire", config=config, overrides=given).kubeflow


def _at(endpoint: str | None) -> list[str]:
    return [] if endpoint is None else [f"kubeflow.endpoint={endpoint}"]


def _retraining(
    is_meant: bool, data: list[str] | None, on: str, since: str | None
) -> dict[str, Any] | None:
    """The parameters of the retraining pipeline, beside the storage."""
    if not is_meant:
        if data or since or on != "always":
            raise SpecError("--data, --on and --since belong to --retraining")
        return None
    if on not in ("always", "drift"):
        raise SpecError(f"--on {on}: it is always or drift")
    if since and on != "drift":
        raise SpecError("--since belongs to --on drift: it says which requests are looked at")
    return {"data": data or [], "on": on, "since": since or ""}
