"""The command of `emberline` that looks for drift."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import DEFAULT_STORAGE, DeployedOn, Json, Model, ModelVersion, Root, show

app = typer.Typer()


@app.command()
def drift(
    model: Model,
    version: ModelVersion = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The deployment; default: the model's name.")
    ] = None,
    target: DeployedOn = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--input", metavar="URI", help="Rows, pictures or logs instead of live records."
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Records since: 7d, 12h, or a time in ISO 8601.")
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="Rate of false alarms, of all windows without drift.")
    ] = 0.01,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the report: one HTML file.")
    ] = None,
    storage: Root = DEFAULT_STORAGE,
    as_json: Json = False,
) -> None:
    """Compare live requests with what a version was trained on; exit 7 if something has drifted."""
    from pipelines import drift as drifting

    outcome = drifting.drift(
        storage,
        model,
        version,
        name=name,
        since=since,
        input=source,
        alpha=alpha,
        output=output,
        target=target,
    )
    show(outcome, as_json)
