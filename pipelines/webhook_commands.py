"""The commands of `emberline` that keep what is deployed in step with the registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.options import DEFAULT_STORAGE, Config, Json, Model, Overrides, Root, show

if TYPE_CHECKING:
    from ray_jobs.sections import JobSpec

app = typer.Typer()


@app.command()
def reconcile(
    model: Model,
    config: Config = None,
    overrides: Overrides = None,
    storage: Root = DEFAULT_STORAGE,
    as_json: Json = False,
) -> None:
    """Have the gate judge a champion that was made by hand, in MLflow's UI or API; by the spec's
    promotion.moved_by_hand it stays or is moved back (exit 6)."""
    from pipelines import promotion

    where, keys = _described(config, overrides, storage)
    show(promotion.reconcile(where, model, keys), as_json)


@app.command()
def webhook(
    models: Annotated[
        list[str], typer.Option("--model", help="Whose champion is deployed; may be repeated.")
    ],
    config: Config = None,
    overrides: Overrides = None,
    target: Annotated[
        str, typer.Option("--target", help="Where to deploy: local or sagemaker.")
    ] = "local",
    storage: Root = DEFAULT_STORAGE,
    host: Annotated[
        str, typer.Option(help="Where to listen; 0.0.0.0 for all interfaces.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535)] = 8090,
    interval: Annotated[
        float,
        typer.Option(
            help="Seconds between two looks at the registry, for moves of which no event came.",
            min=0.1,
        ),
    ] = 60,
    register: Annotated[
        bool, typer.Option("--register", help="Have MLflow's server send its events here.")
    ] = False,
    url: Annotated[
        str | None,
        typer.Option(help="Under which that server reaches this one; default: as it listens."),
    ] = None,
) -> None:
    """Deploy the champion whenever MLflow's server says that its alias was moved, until SIGTERM or
    Ctrl-C. EMBERLINE_WEBHOOK_SECRET is the secret that both know. --set changes the description of
    each champion's own run, or the one of --config."""
    from pipelines import webhook as receiver

    where, keys = _described(config, overrides, storage)
    code = receiver.receive(
        where,
        models,
        target,
        host,
        port,
        overrides=keys,
        interval_s=interval,
        register=register,
        url=url,
    )
    if code:
        raise typer.Exit(code)


def _described(
    config: Path | None, overrides: list[str] | None, storage: str
) -> tuple[JobSpec | str, list[str]]:
    """The job description, or the storage root and what is to differ from those of the runs."""
    if config is None:
        return storage, overrides or []
    from ray_jobs.spec import load_spec

    return load_spec(None, config=config, overrides=overrides or (), storage=storage), []
