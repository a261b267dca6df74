"""The options that several commands share, and how an outcome is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ray_jobs import logs

Workload = Annotated[str, typer.Argument(help="What to train, e.g. fire.", show_default=False)]
AnyRuns = Annotated[
    list[str] | None, typer.Argument(metavar="[RUN]...", help="Run ids.", show_default=False)
]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A registered model, e.g. fire.", show_default=False)
]
ModelVersion = Annotated[
    str | None,
    typer.Option(
        "--version", help="Its number or an alias; default: the champion, or else the challenger."
    ),
]
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
Root = Annotated[str, typer.Option("--storage", help="Root of all runs.")]
Target = Annotated[
    str | None, typer.Option("--target", help="Where to run: local, ray, rayjob or sagemaker.")
]
Address = Annotated[
    str | None,
    typer.Option(help="Of a Ray cluster's dashboard, e.g. http://HOST:8265; implies --target ray."),
]
RunId = Annotated[
    str | None, typer.Option("--run-id", help="Name the run; an existing one is attached to.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Take up --run-id, or the newest unfinished run.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and print the plan; train nothing.")
]
Detach = Annotated[bool, typer.Option("--detach", help="Return once the run is submitted.")]
StopOnInterrupt = Annotated[
    bool,
    typer.Option("--stop-on-interrupt", help="Ctrl-C stops the run at its target, too."),
]
DeployedOn = Annotated[
    str | None,
    typer.Option(
        "--target", help="Where it is deployed; needed only where local and sagemaker both have it."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON, last on stdout.")]

DEFAULT_STORAGE = "./runs"


def show(outcome: Any, as_json: bool) -> None:
    """Print an outcome: every one has `to_json()`, `print(console)` and an `exit_code`."""
    if as_json:
        logs.show(outcome.to_json())
    else:
        from rich.console import Console

        outcome.print(Console(highlight=False))
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)
