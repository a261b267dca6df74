"""The commands of `emberline` that keep what is deployed in step with the registry."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines.options import DEFAULT_STORAGE, Config, Json, Model, Overrides, Root, show

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

    show(promotion.reconcile(_where(model, config, overrides, storage), model), as_json)


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
    register: Annotated[
        bool, typer.Option("--register", help="Have MLflow's server send its events here.")
    ] = False,
    url: Annotated[
        str | None,
        typer.Option(help="Under which that server reaches this one; default: as it listens."),
    ] = None,
) -> None:
    """Deploy the champion whenever MLflow's server says that its alias was moved, until SIGTERM or
    Ctrl-C. EMBERLINE_WEBHOOK_SECRET is the secret that both know."""
    from pipelines import webhook as receiver

    where = _where(models[0], config, overrides, storage)
    code = receiver.receive(where, models, target, host, port, register=register, url=url)
    if code:
        raise typer.Exit(code)


def _where(model: str, config: Any, overrides: list[str] | None, storage: str) -> Any:
    """The storage root, or the job description that counts in place of those of the runs."""
    if not config and not overrides:
        return storage
    from ray_jobs.spec import load_spec

    workload = None if config else model
    return load_spec(workload, config=config, overrides=overrides or (), storage=storage)
