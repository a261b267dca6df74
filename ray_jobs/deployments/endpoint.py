"""What is asked of a scoring app over HTTP: /ping and /invocations."""

from __future__ import annotations

import http.client
import json

from ray_jobs.errors import JobFailed, RetryableError

_PING_S = 2.0
_BUSY = (429, 503)


def is_ready(port: int) -> bool:
    """Whether the app at a port of this machine has loaded its model."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PING_S)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):  # not yet, or not in time
        return False
    finally:
        connection.close()


def invoke(host: str, port: int, body: bytes, media_type: str, *, timeout_s: float) -> bytes:
    """The answer to one request.

    Raises:
        RetryableError: nobody answers, or not now.
        JobFailed: it is answered with an error.
    """
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("POST", "/invocations", body, {"content-type": media_type})
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        cause = str(error) or type(error).__name__
        raise RetryableError(f"http://{host}:{port} does not answer ({cause})") from None
    finally:
        connection.close()
    if response.status == 200:
        return content
    kind = RetryableError if response.status in _BUSY else JobFailed
    raise kind(f"http://{host}:{port} answers {response.status}: {_reason(content)}")


def _reason(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return content[:200].decode("utf-8", errors="replace")
