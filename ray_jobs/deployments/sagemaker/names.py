"""Names of a deployment at SageMaker: valid there, readable, and distinct for distinct deployments.

The service compares names without regard to case, so all are in small letters.

Source: Amazon SageMaker AI API Reference, "CreateEndpoint", EndpointName.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

PREFIX = "emberline-"
_MAX = 63
_DIGEST_LENGTH = 10  # 40 bits
_DIGEST_END = re.compile(rf"-[0-9a-f]{{{_DIGEST_LENGTH}}}")
_MAX_VERSION = 12  # characters of it in a name


def endpoint_name(deployment: str) -> str:
    """`emberline-<deployment>` where that is valid, else what can be kept of it and a digest."""
    name = PREFIX + deployment
    end = name[-_DIGEST_LENGTH - 1 :]
    # Such an end could be that of another deployment, whose name was changed.
    if name == _plain(name) and len(name) <= _MAX and not _DIGEST_END.fullmatch(end):
        return name
    return _ended(_plain(name), _digest(deployment))


def resource_name(deployment: str, version: str, request: Mapping[str, Any]) -> str:
    """The name of a model or an endpoint configuration, which cannot be changed once they are made:
    it follows from all that is asked of them.

    Args:
        request: what they are made of, without the name.
    """
    digest = _digest([deployment, request])
    short = _plain(version)[:_MAX_VERSION].strip("-")
    end = "-".join(filter(None, (short, digest)))
    return _ended(_plain(PREFIX + deployment), end)


def resource_start(deployment: str) -> str:
    """How the names of all models and configurations of a deployment begin."""
    longest_end = _MAX_VERSION + _DIGEST_LENGTH + 2
    return _plain(PREFIX + deployment)[: _MAX - longest_end].rstrip("-")


def _plain(text: str) -> str:
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def _digest(identity: object) -> str:
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]


def _ended(name: str, end: str) -> str:
    return f"{name[: _MAX - len(end) - 1].rstrip('-')}-{end}"
