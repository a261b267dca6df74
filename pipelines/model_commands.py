"""The commands of `emberline` that act on registered models."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines.options import (
    DEFAULT_STORAGE,
    Config,
    Json,
    Model,
    ModelVersion,
    Overrides,
    Root,
    show,
)

app = typer.Typer()


@app.command()
def promote(
    model: Model,
    version: Annotated[
        int | None, typer.Option("--version", help="Its number; default: the challenger.", min=1)
    ] = None,
    config: Config = None,
    overrides: Overrides = None,
    storage: Root = DEFAULT_STORAGE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what the gate says; move no alias.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a version the champion, if the gate lets it; exit 6 if not."""
    from pipelines import promotion
    from ray_jobs.spec import load_spec
    from ray_jobs.storage import Storage

    where: Any = storage
    if config:
        where = load_spec(None, config=config, overrides=overrides or (), storage=storage)
    elif overrides:
        from ray_jobs.tracking.models import description_of, find_model
        from ray_jobs.tracking.registry import CHALLENGER

        root = Storage(storage)
        where = description_of(root, find_model(root, model, version or CHALLENGER), overrides)
    show(promotion.promote(where, model, version, dry_run=dry_run), as_json)


@app.command()
def rollback(model: Model, storage: Root = DEFAULT_STORAGE, as_json: Json = False) -> None:
    """Make the champion before this one the champion again."""
    from pipelines import promotion

    show(promotion.rollback(storage, model), as_json)


@app.command()
def serve(
    model: Model,
    version: ModelVersion = None,
    storage: Root = DEFAULT_STORAGE,
    host: Annotated[
        str, typer.Option(help="Where to listen; 0.0.0.0 for all interfaces.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535)] = 8080,
    challenger: Annotated[
        str | None, typer.Option(help="A second version, its number or alias, beside it.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="split: the challenger answers its share; shadow (default): it is asked."
        ),
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(help="The challenger's share of the requests; default: 0.1.", min=0, max=1),
    ] = None,
    record_share: Annotated[
        float, typer.Option(help="Of the requests, recorded below the storage.", min=0, max=1)
    ] = 0.0,
) -> None:
    """Answer requests with a registered model, until SIGTERM or Ctrl-C."""
    from pipelines import serving
    from ray_jobs.errors import SpecError

    if challenger is None and (mode or weight is not None):
        raise SpecError("--mode and --weight belong to --challenger: name a version with it")
    if mode not in (None, "split", "shadow"):
        raise SpecError(f"--mode {mode!r} is not one of split, shadow")
    code = serving.serve(
        storage,
        model,
        version,
        host,
        port,
        challenger=challenger,
        mode="split" if mode == "split" else "shadow",
        weight=0.1 if weight is None else weight,
        record_share=record_share,
    )
    if code:
        raise typer.Exit(code)


@app.command()
def predict(
    model: Model,
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="CSV or Parquet rows, pictures or logs: a file, folder or s3:// URI.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", help="Table to write: .csv, .parquet or .jsonl.")
    ],
    version: ModelVersion = None,
    storage: Root = DEFAULT_STORAGE,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out and count what the model cannot take.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Predict with a registered model for files of any size. Exit 3 at the first bad row."""
    from pipelines import prediction

    show(prediction.predict(storage, model, version, source, output, skip_bad=skip_bad), as_json)
