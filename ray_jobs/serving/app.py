"""The ASGI app: /ping, /invocations, /metrics, /version, /openapi.json.

Source: Amazon SageMaker AI Developer Guide, "Use Your Own Inference Code with Hosting Services"
(/ping answers 200 and /invocations is posted to, both on port 8080).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ray_jobs.serving.errors import RequestError
from ray_jobs.serving.media_types import choose_answer_type, parse_media_type
from ray_jobs.serving.metrics import CONTENT_TYPE
from ray_jobs.serving.openapi import describe
from ray_jobs.serving.routing import REQUEST_ID, VARIANT, request_id_of
from ray_jobs.serving.service import Exchange, Service
from ray_jobs.versions import versions


def create_app(service: Service) -> Starlette:
    """The app of a service, which it starts and closes."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.start()
        yield
        service.close()

    async def ping(_: Request) -> Response:
        state = service.state
        return JSONResponse({"status": state}, status_code=200 if state == "ready" else 503)

    async def version(_: Request) -> Response:
        model = service.model
        about = {
            "name": model.name,
            "version": model.version,
            "workload": model.workload,
            "digest": model.digest,
            "variants": _variants(service),
            "versions": await asyncio.to_thread(_versions),
        }
        return JSONResponse(about)

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    async def openapi(_: Request) -> Response:
        return JSONResponse(describe(service.model, [*service.variants]))

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return JSONResponse(_error(str(error)), error.status)

    async def http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse(_error(error.detail), error.status_code, error.headers)

    async def failed(_: Request, error: Exception) -> Response:
        return JSONResponse(_error("the model failed; the server's log says how"), 500)

    return Starlette(
        routes=[
            Route("/ping", ping),
            Route("/invocations", _Invocations(service), methods=["POST"]),
            Route("/metrics", metrics),
            Route("/version", version),
            Route("/openapi.json", openapi),
        ],
        exception_handlers={
            RequestError: refused,
            HTTPException: http_error,
            Exception: failed,
        },
        lifespan=lifespan,
    )


_versions = cache(versions)  # git is asked


def _variants(service: Service) -> list[dict[str, Any]]:
    """Each model, and its share of the answers; the champion first."""
    settings = service.challenger
    is_shadow = settings is not None and settings.mode == "shadow"
    split = 0.0 if settings is None or is_shadow else settings.weight
    return [
        {
            "variant": role,
            "version": variant.model.version,
            "digest": variant.model.digest,
            "weight": split if role == "challenger" else 1 - split,
            "is_shadow": is_shadow and role == "challenger",
        }
        for role, variant in service.variants.items()
    ]


def _error(message: str) -> dict[str, str]:
    return {"error": message}


class _Disconnected(Exception):
    """There is nobody left to answer."""


class _Invocations:
    """POST /invocations, as bare ASGI: it is asked thousands of times a second."""

    def __init__(self, service: Service):
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        is_probe = service.private_port is not None and scope["server"][1] == service.private_port
        exchange = Exchange(time.perf_counter(), is_probe)
        headers = {}
        try:
            body, media_type = await self._answer(exchange, dict(scope["headers"]), receive)
            status = 200
        except RequestError as error:
            status, media_type = error.status, "application/json"
            body = json.dumps(_error(str(error))).encode()
            if status in (429, 503):
                headers["retry-after"] = "1"
        except _Disconnected:
            return
        except Exception:  # answered by `failed`
            service.finish(exchange, 500, time.perf_counter() - exchange.start)
            raise
        seconds = time.perf_counter() - exchange.start
        headers |= {"content-type": media_type, "content-length": str(len(body))}
        if exchange.request_id is not None:
            headers[REQUEST_ID] = exchange.request_id
        if exchange.variant is not None:
            headers[VARIANT] = exchange.variant.role
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})
        service.finish(exchange, status, seconds)

    async def _answer(
        self, exchange: Exchange, headers: Mapping[bytes, bytes], receive: Receive
    ) -> tuple[bytes, str]:
        service = self._service
        exchange.request_id = request_id_of(headers)
        exchange.variant = variant = service.route(exchange.request_id)
        scorer = variant.model.scorer
        with service.admit():
            try:
                async with asyncio.timeout(service.limits.timeout_s):
                    exchange.media_type = parse_media_type(headers, scorer.media_types)
                    answer_type = choose_answer_type(headers, scorer.answer_types)
                    exchange.body = await _read(receive, service.limits.max_body_bytes)
                    exchange.scored = await variant.score(exchange.body, exchange.media_type)
                    return await variant.render(exchange.scored, answer_type), answer_type
            except TimeoutError:
                seconds = f"{service.limits.timeout_s:g} s"
                if exchange.body is None:
                    raise RequestError(408, f"the body did not come within {seconds}") from None
                raise RequestError(504, f"no answer within {seconds}") from None


async def _read(receive: Receive, max_bytes: int) -> bytes:
    """The body of a request.

    Raises:
        RequestError: it is too large.
        _Disconnected: its sender has gone.
    """
    chunks, size = [], 0
    has_more = True
    while has_more:
        message: Any = await receive()
        if message["type"] == "http.disconnect":
            raise _Disconnected
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > max_bytes:  # the server reads the rest, so that its sender gets the answer
            raise RequestError(413, f"the body is larger than {max_bytes} bytes; send less at once")
        has_more = message.get("more_body", False)
    return b"".join(chunks)
