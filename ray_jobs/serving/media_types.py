"""Which form a request's body has, and which its answer shall have.

Source: RFC 9110, section 8.3 (Content-Type), 8.4 (Content-Encoding) and 12.5.1 (Accept).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from ray_jobs.serving.errors import RequestError

_CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii")


def parse_media_type(headers: Mapping[bytes, bytes], taken: tuple[str, ...]) -> str:
    """The media type of a body, one of `taken`.

    Raises:
        RequestError: it is none of them, or is compressed, or not in UTF-8.
    """
    encoding = headers.get(b"content-encoding", b"identity")
    if encoding.strip().lower() != b"identity":
        raise RequestError(415, "content-encoding must be identity: send the body as it is")
    return _media_type(headers.get(b"content-type", b""), taken)


def choose_answer_type(headers: Mapping[bytes, bytes], offered: tuple[str, ...]) -> str:
    """The one of `offered` that Accept prefers; the first where it does not care.

    Raises:
        RequestError: it takes none of them.
    """
    accept = headers.get(b"accept")
    return _answer_type(accept, offered) if accept else offered[0]


@lru_cache(maxsize=64)  # clients send the same few
def _media_type(header: bytes, taken: tuple[str, ...]) -> str:
    media_type, parameters = _parsed(header)
    charset = parameters.get("charset", "utf-8")
    if media_type not in taken:
        raise RequestError(415, f"content-type must be one of {', '.join(taken)}")
    if charset not in _CHARSETS:
        raise RequestError(415, "the charset of content-type must be utf-8")
    return media_type


@lru_cache(maxsize=64)
def _answer_type(header: bytes, offered: tuple[str, ...]) -> str:
    ranges = sorted((_parsed(part) for part in header.split(b",")), key=_weight, reverse=True)
    for media_type, parameters in ranges:
        found = _first_match(media_type, offered)
        if found and _weight((media_type, parameters)) > 0:
            return found
    raise RequestError(406, f"accept must have one of {', '.join(offered)}")


def _first_match(media_range: str, offered: Sequence[str]) -> str | None:
    if media_range == "*/*":
        return offered[0]
    main, _, sub = media_range.partition("/")
    for media_type in offered:
        if media_type == media_range or (sub == "*" and media_type.startswith(f"{main}/")):
            return media_type
    return None


def _weight(parsed: tuple[str, Mapping[str, str]]) -> float:
    try:
        return float(parsed[1].get("q", "1"))
    except ValueError:
        return 0.0


def _parsed(header: bytes) -> tuple[str, dict[str, str]]:
    media_type, *rest = header.decode("latin-1").lower().split(";")
    parameters = (part.partition("=") for part in rest)
    return media_type.strip(), {
        name.strip(): value.strip().strip('"') for name, _, value in parameters
    }
