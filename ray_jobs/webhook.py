"""Receive MLflow's registry webhooks and deploy the champion when its alias is moved:
`python -m ray_jobs.webhook --model NAME`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ray_jobs import logs
from ray_jobs.errors import EmberlineError
from ray_jobs.sections import JobSpec
from ray_jobs.spec import load_spec
from ray_jobs.storage import Storage

if TYPE_CHECKING:
    from ray_jobs.webhooks.rollouts import Deployed

HOST, PORT = "127.0.0.1", 8090
INTERVAL_S = 60.0


def receive(
    where: JobSpec | str,
    models: Sequence[str],
    *,
    target: str | None = None,
    overrides: Sequence[str] = (),
    host: str = HOST,
    port: int = PORT,
    interval_s: float = INTERVAL_S,
    register: bool = False,
    url: str | None = None,
    deploy: Callable[[str], Deployed] | None = None,
    say: Callable[[str], None],
) -> int:
    """Receive webhooks until SIGTERM or SIGINT; a deployment that is under way is ended first.
    Returns the exit code.

    Args:
        where: the root of all runs, or a job description, of which `storage`, `promotion` and
            `deployment` count.
        models: the registered names whose champion is deployed.
        target: where to; None: this machine.
        overrides: `a.b=value` texts over the description of each champion's own run.
        port: 0 stands for any that is free.
        interval_s: between two looks at the registry, for moves of which no event came.
        register: have MLflow's server send its events.
        url: under which that server reaches this one; None: as it listens.
        deploy: what is done for a model; None: `deploy_champion`.

    Raises:
        SpecError: there is no secret, no such model, or MLflow refuses the webhook.
        PreflightError: the port cannot be had.
        RetryableError: the registry does not answer.
    """
    from ray_jobs.serving.server import listen
    from ray_jobs.tracking.registry import Registry, check_exists
    from ray_jobs.webhooks.app import PATH, create_app
    from ray_jobs.webhooks.deliveries import Deliveries
    from ray_jobs.webhooks.registration import register as register_webhook
    from ray_jobs.webhooks.rollouts import Rollouts
    from ray_jobs.webhooks.server import run
    from ray_jobs.webhooks.signature import read_secret

    secret = read_secret()
    storage = Storage(where if isinstance(where, str) else where.storage)
    check_exists(storage)
    registry = Registry(storage)
    for model in models:
        registry.champion(model)  # whether there is the model
    rollouts = Rollouts(
        deploy or (lambda model: deploy_champion(where, model, target, say, overrides)),
        registry.champion,
        say,
        interval_s=interval_s,
    )
    app = create_app(secret, frozenset(models), Deliveries(storage), rollouts)
    with listen(host, port) as listener:
        place = f"[{host}]" if ":" in host else host
        own = f"http://{place}:{listener.getsockname()[1]}{PATH}"
        if register:
            is_new = register_webhook(storage, f"emberline-{'-'.join(models)}", url or own, secret)
            say(f"webhook {'registered' if is_new else 'updated'}: {url or own}")
        say(f"receiving webhooks for {', '.join(models)} at {own}")
        return run(app, listener)


def deploy_champion(
    where: JobSpec | str,
    model: str,
    target: str | None,
    say: Callable[[str], None],
    overrides: Sequence[str] = (),
) -> Deployed:
    """Settle a champion that was made by hand, then deploy the one that stands.

    Raises:
        EmberlineError: as `ray_jobs.promote.reconcile` and `ray_jobs.deploy.deploy`.
    """
    from ray_jobs.deploy import deploy, settle
    from ray_jobs.webhooks.rollouts import Deployed

    found = settle(where, model, overrides)
    if found.champion is not None:
        deploy(where, model, found.champion, target=target, overrides=overrides, say=say)
    return Deployed(found.champion, found.warning)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m ray_jobs.webhook`. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ray_jobs.webhook",
        description="Deploy the champion whenever MLflow says that its alias was moved.",
    )
    add = parser.add_argument
    add("--model", action="append", required=True, dest="models", help="one or more, e.g. fire")
    add("--target", help="where to deploy; default: local")
    add("--host", default=HOST, help=f"default: {HOST}; 0.0.0.0 for all interfaces")
    add("--port", type=int, default=PORT, help=f"default: {PORT}; 0: any that is free")
    add("--storage", help="root of all runs; default: the spec's, or ./runs")
    add("--spec", help="job description of all; default: of each that of its champion's run")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    add("--interval", type=float, default=INTERVAL_S, help="seconds between looks at the registry")
    add("--register", action="store_true", help="have MLflow's server send its events here")
    add("--url", help="under which that server reaches this one; default: as it listens")
    options = parser.parse_args(arguments)
    if not options.interval > 0:
        parser.error("--interval has to be above 0")
    where: JobSpec | str = options.storage or "./runs"
    overrides = options.overrides
    try:
        logs.setup()
        if options.spec:
            where = load_spec(
                None, config=options.spec, overrides=overrides, storage=options.storage
            )
            overrides = []
        return receive(
            where,
            options.models,
            target=options.target,
            overrides=overrides,
            host=options.host,
            port=options.port,
            interval_s=options.interval,
            register=options.register,
            url=options.url,
            say=logs.say,
        )
    except EmberlineError as error:
        logs.say_error(error)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
