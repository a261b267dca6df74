"""The receiver's ASGI app: POST /webhook, GET /ping, GET /status."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ray_jobs.errors import EmberlineError
from ray_jobs.tracking.registry import CHAMPION
from ray_jobs.webhooks.deliveries import Deliveries
from ray_jobs.webhooks.rollouts import Rollouts
from ray_jobs.webhooks.signature import Unsigned, verify

if TYPE_CHECKING:
    from mlflow.entities.webhook import WebhookEventStr

EVENTS: tuple[WebhookEventStr, ...] = (
    "model_version_alias.created",  # or moved
    "model_version_alias.deleted",
)
PATH = "/webhook"
_MAX_BODY_BYTES = 65536  # such an event has some 200
_TIMEOUT_S = 10.0  # for a body to come


class _Alias(BaseModel):
    name: str
    alias: str


class _Event(BaseModel):
    """What is read of an event; mlflow/webhooks/types.py has all of it."""

    entity: str
    action: str
    data: _Alias


class _Refused(Exception):
    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def create_app(
    secret: bytes,
    models: Collection[str],
    deliveries: Deliveries,
    rollouts: Rollouts,
    *,
    clock: Callable[[], float] = time.time,
) -> Starlette:
    """The app, which runs the rollouts and first asks for one of each model: the alias may have
    been moved while no receiver was there.

    Args:
        models: the registered names whose champion is deployed.
        clock: seconds since 1970.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.rollouts = asyncio.create_task(rollouts.run())
        for model in models:
            rollouts.ask(model)
        yield
        app.state.rollouts.cancel()
        with suppress(asyncio.CancelledError):
            await app.state.rollouts

    async def ping(request: Request) -> Response:
        has_failed = request.app.state.rollouts.done()
        return JSONResponse(
            {"status": "failed" if has_failed else "ready"}, 503 * has_failed or 200
        )

    async def status(_: Request) -> Response:
        return JSONResponse(rollouts.status())

    async def receive(request: Request) -> Response:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                body = await _read(request)
            delivery = verify(secret, request.headers, body, clock())
            event = _parse(body)
            if event.data.name not in models:
                raise _Refused(400, f"model {event.data.name[:100]!r} is not deployed from here")
            if event.data.alias != CHAMPION:
                return JSONResponse({"status": "ignored"})
            if not await asyncio.to_thread(deliveries.take, delivery, clock()):
                raise _Refused(400, "it was delivered before")
        except Unsigned as error:
            return _error(401, str(error))
        except _Refused as error:
            return _error(error.status, str(error))
        except TimeoutError:
            return _error(408, f"the body did not come within {_TIMEOUT_S:g} s")
        except EmberlineError as error:  # of the storage: MLflow sends it again
            return _error(503, str(error))
        rollouts.ask(event.data.name)
        return JSONResponse({"status": "accepted", "model": event.data.name}, 202)

    return Starlette(
        routes=[
            Route("/ping", ping),
            Route("/status", status),
            Route(PATH, receive, methods=["POST"]),
        ],
        lifespan=lifespan,
    )


async def _read(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise _Refused(413, f"the body is larger than {_MAX_BODY_BYTES} bytes")
    return body


def _parse(body: bytes) -> _Event:
    try:
        event = _Event.model_validate_json(body)
    except ValidationError:
        raise _Refused(400, f"the body is no event of {' or '.join(EVENTS)}") from None
    if f"{event.entity}.{event.action}" not in EVENTS:
        raise _Refused(400, f"only {' and '.join(EVENTS)} are taken")
    return event


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)
