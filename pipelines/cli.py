"""The `emberline` command line. Each command takes `--json` for machines and says its progress
on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_jobs.errors import EmberlineError

if TYPE_CHECKING:
    from ray_jobs.sections import JobSpec

app = typer.Typer(
    name="emberline",
    help="Train, sweep, ensemble and promote models: here, on a Ray cluster, or on SageMaker.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Workload = Annotated[str, typer.Argument(help="What to train, e.g. fire.", show_default=False)]
Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="Run ids.", show_default=False)]
Config = Annotated[
    Path | None, typer.Option("--config", help="Job description (YAML); default: the shipped one.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key, e.g. --set data.samples=5000."
    ),
]
StorageUri = Annotated[
    str | None, typer.Option("--storage", help="Root of all runs: a folder or s3:// URI.")
]
Target = Annotated[str | None, typer.Option(help="Where to run: local.")]
RunId = Annotated[
    str | None, typer.Option("--run-id", help="Name the run; an existing one is attached to.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Take up --run-id, or the newest unfinished run.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and print the plan; train nothing.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON, last on stdout.")]

DEFAULT_STORAGE = "./runs"


@app.command()
def run(
    workload: Workload,
    config: Config = None,
    overrides: Overrides = None,
    target: Target = None,
    storage: StorageUri = None,
    run_id: RunId = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a workload: prepare, fit, test, track, register."""
    from ray_jobs.spec import load_spec

    load = partial(load_spec, workload, config=config, target=target, storage=storage)
    _carry_out(load, overrides or [], run_id, resume, dry_run, as_json, chosen=bool(config))


@app.command()
def sweep(
    workload: Annotated[str, typer.Argument(help="What to sweep, e.g. gcode.", show_default=False)],
    config: Config = None,
    overrides: Overrides = None,
    target: Target = None,
    storage: StorageUri = None,
    run_id: RunId = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Try hyperparameters by ASHA on the objective, then train the winner and test it once."""
    from ray_jobs.spec import load_spec

    load = partial(load_spec, workload, config=config, sweeps=True, target=target, storage=storage)
    _carry_out(load, overrides or [], run_id, resume, dry_run, as_json, chosen=bool(config))


def _carry_out(
    load: Callable[..., JobSpec],
    overrides: list[str],
    run_id: str | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
    *,
    chosen: bool,
) -> None:
    from pipelines import plan, training

    spec = load(overrides=overrides)
    if dry_run:
        _show(plan.make(spec), as_json)
    elif resume:
        _show(training.resume(spec, run_id, chosen=chosen or bool(overrides)), as_json)
    else:
        _show(training.start(spec, run_id), as_json)


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

    _show(
        simulation.write(workload, output, samples=samples, generator=generator, seed=seed), as_json
    )


@app.command()
def report(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="A run id.")],
    storage: Annotated[str, typer.Option(help="Root of all runs.")] = DEFAULT_STORAGE,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Where the report of a run is; rendered anew from the run's files."""
    from pipelines import inspection

    _show(inspection.report(storage, run_id, open_it=open_it), as_json)


@app.command()
def compare(
    run_ids: Runs,
    storage: Annotated[str, typer.Option(help="Root of all runs.")] = DEFAULT_STORAGE,
    as_json: Json = False,
) -> None:
    """Runs side by side: validation and test, and what was set differently."""
    from pipelines import inspection

    _show(inspection.compare(storage, run_ids), as_json)


@app.command()
def doctor(
    workload: Annotated[
        str | None, typer.Argument(help="Check what this one needs, too.", show_default=False)
    ] = None,
    storage: Annotated[str, typer.Option(help="Root of all runs.")] = DEFAULT_STORAGE,
    as_json: Json = False,
) -> None:
    """Check packages, device, memory, disk, storage and tracking; exit 3 if a check fails."""
    from pipelines import doctor as checks

    _show(checks.examine(storage, workload), as_json)


def _show(outcome: Any, as_json: bool) -> None:
    """Print an outcome: every one has `to_json()`, `print(console)` and an `exit_code`."""
    if as_json:
        typer.echo(outcome.to_json())
    else:
        from rich.console import Console

        outcome.print(Console(highlight=False))
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def main() -> None:
    """The entry point: a user's error is one message on stderr and its own exit code."""
    try:
        app()
    except EmberlineError as error:
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        if "--json" in sys.argv:
            failure = {"status": "FAILED", "reason": str(error), "exit_code": error.exit_code}
            typer.echo(json.dumps(failure))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
