"""Which variant a request goes to: by a hash of its id, so that the same id meets the same one."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping
from typing import Literal

from ray_jobs.serving.errors import RequestError

Mode = Literal["split", "shadow"]
Role = Literal["champion", "challenger"]

REQUEST_ID, VARIANT = "x-request-id", "x-emberline-variant"  # headers of an answer
# Those of a request, the first that is there. Amazon SageMaker API Reference, "InvokeEndpoint"
# (InferenceId, which the container is given).
_ID_HEADERS = (REQUEST_ID.encode(), b"x-amzn-sagemaker-inference-id")
_VALID_ID = re.compile(rb"[\x21-\x7e]{1,128}")


def request_id_of(headers: Mapping[bytes, bytes]) -> str:
    """The id that a request bears, or else a new one.

    Raises:
        RequestError: it is too long, or holds what cannot be told in a header.
    """
    for name in _ID_HEADERS:
        if name in headers:
            if not _VALID_ID.fullmatch(headers[name]):
                raise RequestError(
                    400,
                    f"{name.decode()} must be 1 to 128 visible characters of ASCII, without "
                    "blanks; leave it out to be given one",
                )
            return headers[name].decode("ascii")
    return uuid.uuid4().hex


def is_chosen(request_id: str, share: float, purpose: str) -> bool:
    """Whether an id is among a share of all ids. What is chosen for one purpose says nothing of
    what is for another.

    Args:
        share: 0 to 1.
    """
    if share in (0.0, 1.0):
        return share == 1.0
    digest = hashlib.sha256(f"{purpose}:{request_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
