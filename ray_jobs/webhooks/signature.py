"""Signatures of MLflow's webhooks: who sent a delivery, and when.

Source: MLflow documentation, "Webhooks", "Security": X-MLflow-Signature is `v1,` and the base64 of
HMAC-SHA256(secret, "<delivery id>.<timestamp>.<body>").
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass

from ray_jobs.errors import SpecError

SECRET_VARIABLE = "EMBERLINE_WEBHOOK_SECRET"  # noqa: S105 - its name
SIGNATURE = "x-mlflow-signature"
TIMESTAMP = "x-mlflow-timestamp"
DELIVERY_ID = "x-mlflow-delivery-id"
WINDOW_S = 300  # that a timestamp may differ from our clock, either way
_MIN_SECRET_BYTES = 16
_MAX_ID_LENGTH = 200


class Unsigned(Exception):
    """A delivery that is not from who knows the secret, or not from now."""


@dataclass(frozen=True)
class Delivery:
    """A delivery whose signature is sound."""

    id: str
    timestamp: int  # seconds since 1970


def read_secret() -> bytes:
    """The secret of EMBERLINE_WEBHOOK_SECRET.

    Raises:
        SpecError: there is none, or it can be guessed.
    """
    secret = os.environ.get(SECRET_VARIABLE, "").encode()
    if len(secret) < _MIN_SECRET_BYTES:
        raise SpecError(
            f"{SECRET_VARIABLE} is {'too short' if secret else 'not set'}; set it to at least "
            f"{_MIN_SECRET_BYTES} random characters, as `openssl rand -hex 32` makes them"
        )
    return secret


def sign(secret: bytes, delivery_id: str, timestamp: str, body: bytes) -> str:
    """The signature of a delivery."""
    content = f"{delivery_id}.{timestamp}.".encode() + body
    digest = hmac.new(secret, content, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def verify(secret: bytes, headers: Mapping[str, str], body: bytes, now: float) -> Delivery:
    """Check a delivery.

    Args:
        headers: by names in lower case.
        now: seconds since 1970.

    Raises:
        Unsigned: a header is missing, the timestamp is too old or in the future, or the signature
            is another's.
    """
    try:
        signature, timestamp, delivery_id = (
            headers[name] for name in (SIGNATURE, TIMESTAMP, DELIVERY_ID)
        )
    except KeyError as error:
        raise Unsigned(f"the header {error.args[0]} is missing") from None
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 12):
        raise Unsigned(f"the header {TIMESTAMP} is not in seconds since 1970")
    if not 0 < len(delivery_id) <= _MAX_ID_LENGTH:
        raise Unsigned(f"the header {DELIVERY_ID} is empty or too long")
    if abs(now - int(timestamp)) > WINDOW_S:
        raise Unsigned(f"the timestamp is more than {WINDOW_S} s from this machine's clock")
    expected = sign(secret, delivery_id, timestamp, body)
    if not hmac.compare_digest(expected.encode(), signature.encode()):
        raise Unsigned("the signature is not of this delivery and this secret")
    return Delivery(delivery_id, int(timestamp))
