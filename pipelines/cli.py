"""The `emberline` command line. Each command takes `--json` for machines and says its progress
on stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines import (
    deployment_commands,
    drift_commands,
    model_commands,
    pipeline_commands,
    retrain_commands,
    webhook_commands,
)
from pipelines.options import (
    DEFAULT_STORAGE,
    Address,
    AnyRuns,
    Config,
    DeployedOn,
    Detach,
    DryRun,
    Json,
    Overrides,
    Resume,
    Root,
    RunId,
    StopOnInterrupt,
    StorageUri,
    Target,
    Workload,
    show,
)
from ray_jobs import logs as log_lines
from ray_jobs.errors import EmberlineError, SpecError

app = typer.Typer(
    name="emberline",
    help="Train, sweep, ensemble and promote models: here, on a Ray cluster, or on SageMaker.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(model_commands.app)
app.add_typer(retrain_commands.app)
app.add_typer(drift_commands.app)
app.add_typer(webhook_commands.app)
app.add_typer(deployment_commands.app)
app.add_typer(pipeline_commands.app)


@app.command()
def run(
    workload: Workload,
    config: Config = None,
    overrides: Overrides = None,
    target: Target = None,
    address: Address = None,
    storage: StorageUri = None,
    run_id: RunId = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    detach: Detach = False,
    stop_on_interrupt: StopOnInterrupt = False,
    as_json: Json = False,
) -> None:
    """Train a workload: prepare, fit, test, track, register."""
    job = _Job(workload, config, overrides, target, address, storage, sweeps=False)
    _carry_out(job, run_id, resume, dry_run, detach, stop_on_interrupt, as_json)


@app.command()
def sweep(
    workload: Annotated[str, typer.Argument(help="What to sweep, e.g. gcode.", show_default=False)],
    config: Config = None,
    overrides: Overrides = None,
    target: Target = None,
    address: Address = None,
    storage: StorageUri = None,
    run_id: RunId = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    detach: Detach = False,
    stop_on_interrupt: StopOnInterrupt = False,
    as_json: Json = False,
) -> None:
    """Try hyperparameters by ASHA on the objective, then train the winner and test it once."""
    job = _Job(workload, config, overrides, target, address, storage, sweeps=True)
    _carry_out(job, run_id, resume, dry_run, detach, stop_on_interrupt, as_json)


class _Job:
    """What the command line says of a job."""

    def __init__(
        self,
        workload: str,
        config: Path | None,
        overrides: list[str] | None,
        target: str | None,
        address: str | None,
        storage: str | None,
        *,
        sweeps: bool,
    ):
        from pipelines.place import placed
        from ray_jobs.spec import load_spec

        self.is_chosen = bool(config or overrides)
        if address is not None:
            target = target or "ray"
            overrides = [*(overrides or []), f"ray.address={address}"]
        self.is_placed = target is not None
        self.spec = placed(
            load_spec(
                workload,
                config=config,
                overrides=overrides or (),
                sweeps=sweeps,
                target=target,
                storage=storage,
            )
        )


def _carry_out(
    job: _Job,
    run_id: str | None,
    resume: bool,
    dry_run: bool,
    detach: bool,
    stop_on_interrupt: bool,
    as_json: bool,
) -> None:
    from contextlib import nullcontext

    from pipelines import plan, remote, target_plan, training
    from ray_jobs.owners import this_step
    from ray_jobs.stopping import first_signal_interrupts

    spec = job.spec
    if resume:
        spec, run_id = training.unfinished(spec, run_id, chosen=job.is_chosen, placed=job.is_placed)
    is_here = spec.target == "local"
    if is_here and stop_on_interrupt:
        raise SpecError(
            "--stop-on-interrupt is for --target ray, rayjob and sagemaker: a run on this machine "
            "ends with its command"
        )
    is_step = this_step() is not None
    if is_step and detach:
        raise SpecError(
            "--detach is not for a step of a pipeline: what a step starts belongs to its pod, and "
            "is stopped once that has ended; leave it out, and the step waits"
        )
    if dry_run:
        show(plan.make(spec) if is_here else target_plan.make(spec), as_json)
    elif is_here and not detach:
        show(training.start(spec, run_id), as_json)
    else:
        with first_signal_interrupts() if is_step else nullcontext():
            started = remote.start(
                spec, run_id, detach=detach, stop_on_interrupt=stop_on_interrupt or is_step
            )
        show(started, as_json)


@app.command()
def data(
    workload: Workload,
    output: Annotated[str, typer.Option("-o", "--output", help="Folder or s3:// URI to write to.")],
    samples: Annotated[
        int | None, typer.Option(help="Rows, pictures or runs to make.", min=1)
    ] = None,
    generator: Annotated[
        str | None, typer.Option(help="Of rows: episodes (default) or independent.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Write simulated data, as a later run takes it: rows as Parquet, pictures in folders, runs as
    CSV logs."""
    from pipelines import simulation

    show(
        simulation.write(workload, output, samples=samples, generator=generator, seed=seed), as_json
    )


@app.command()
def status(
    run_ids: AnyRuns = None,
    storage: Root = DEFAULT_STORAGE,
    wait: Annotated[bool, typer.Option("--wait", help="Until all have ended.")] = False,
    interval: Annotated[
        float, typer.Option(help="Seconds between two looks.", min=0.1, max=3600)
    ] = 10,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="Show the final scores on the objective.")
    ] = False,
    as_json: Json = False,
) -> None:
    """How far runs are, wherever they are carried out; exit 4 or 5 if one has failed."""
    from pipelines import status as statuses

    show(
        statuses.status(
            storage, run_ids or [], wait=wait, interval_s=interval, with_metrics=metrics
        ),
        as_json,
    )


@app.command()
def logs(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="A run id.")],
    storage: Root = DEFAULT_STORAGE,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Until the run has ended.")
    ] = False,
) -> None:
    """A run's log, from wherever it is carried out."""
    from pipelines import jobs

    for line in jobs.logs(storage, run_id, follow=follow):
        typer.echo(line)


@app.command()
def stop(
    run_ids: AnyRuns = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every run that this project has started.")
    ] = False,
    target: Annotated[str | None, typer.Option(help="With --all: only at this target.")] = None,
    address: Annotated[
        str | None, typer.Option(help="With --all: of a Ray cluster beside those of the runs.")
    ] = None,
    storage: Root = DEFAULT_STORAGE,
    as_json: Json = False,
) -> None:
    """Stop runs with a checkpoint, wherever they are carried out; returns when they have ended."""
    from pipelines import stop as stopping

    if every == bool(run_ids):
        raise SpecError("name the runs to stop, or all of them with --all")
    if not every and (target or address):
        raise SpecError("--target and --address belong to --all: a run's folder says where it is")
    if every:
        show(stopping.stop_all(storage, target, address), as_json)
    else:
        show(stopping.stop(storage, run_ids or []), as_json)


@app.command()
def report(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="A run id.")],
    storage: Root = DEFAULT_STORAGE,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Where the report of a run is; rendered anew from the run's files."""
    from pipelines import inspection

    show(inspection.report(storage, run_id, open_it=open_it), as_json)


@app.command()
def compare(
    run_ids: Annotated[
        list[str],
        typer.Argument(metavar="RUN...|MODEL", help="Run ids; with --live a registered model."),
    ],
    storage: Root = DEFAULT_STORAGE,
    live: Annotated[
        bool, typer.Option("--live", help="Champion and challenger, on recorded requests.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="With --live: the deployment; default: the model's name.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="With --live: 7d, 12h, or a time in ISO 8601.")
    ] = None,
    outcomes: Annotated[
        str | None,
        typer.Option(help="With --live: a table of request_id, label and maybe row."),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="With --live: of each interval; default: 0.95.")
    ] = None,
    target: DeployedOn = None,
    as_json: Json = False,
) -> None:
    """Runs side by side: validation and test, and what was set differently. With --live: the
    versions behind one endpoint, and whether their difference is decided."""
    if live:
        from pipelines import live as live_requests

        if len(run_ids) != 1:
            raise SpecError("--live compares the versions of one model: name it alone")
        compared = live_requests.compare(
            storage,
            run_ids[0],
            name=name,
            since=since,
            outcomes=outcomes,
            target=target,
            confidence=0.95 if confidence is None else confidence,
        )
        show(compared, as_json)
        return
    if name or since or outcomes or target or confidence is not None:
        raise SpecError("--name, --since, --outcomes, --target and --confidence belong to --live")
    from pipelines import inspection

    show(inspection.compare(storage, run_ids), as_json)


@app.command()
def doctor(
    workload: Annotated[
        str | None, typer.Argument(help="Check what this one needs, too.", show_default=False)
    ] = None,
    config: Config = None,
    overrides: Overrides = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Check this one: ray, rayjob or sagemaker.")
    ] = None,
    address: Address = None,
    storage: StorageUri = None,
    as_json: Json = False,
) -> None:
    """Check packages, device, memory, disk, storage and tracking, or with --target all that can be
    known of it before a job is submitted. Exit 3 if a check fails; nothing is created."""
    from pipelines import doctor as checks

    if target or address:
        job = _Job(workload or "fire", config, overrides, target, address, storage, sweeps=False)
        if job.spec.target != "local":
            show(checks.examine_target(job.spec), as_json)
            return
    spec = None
    if workload or config or overrides:
        spec = _Job(workload or "fire", config, overrides, None, None, storage, sweeps=False).spec
    show(checks.examine(storage or DEFAULT_STORAGE, spec), as_json)


def main() -> None:
    """The entry point: a user's error is one message on stderr and its own exit code."""
    try:
        log_lines.setup()
        app()
    except EmberlineError as error:
        if log_lines.is_json():
            log_lines.say_error(error)
        else:
            typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        if "--json" in sys.argv:
            failure = {"status": "FAILED", "reason": str(error), "exit_code": error.exit_code}
            log_lines.show(json.dumps(failure))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
