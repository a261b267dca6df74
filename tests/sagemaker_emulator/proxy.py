"""A proxy before moto, which notes every call and can make S3 fail."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.sagemaker_emulator.http_server import Handler, Server

_SCOPE = re.compile(r"Credential=[^/]+/\d+/[^/]+/([^/]+)/aws4_request")
_READS = (
    "BatchCheck", "BatchGet", "Describe", "Filter", "Get", "Head", "Invoke", "List", "Search",
    "Simulate",
)  # fmt: skip
_HOP = {"connection", "keep-alive", "transfer-encoding", "server", "date"}
_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message><RequestId>0</RequestId></Error>"
)


@dataclass(frozen=True)
class Call:
    """A request that came in."""

    service: str  # as the signature names it
    action: str  # of S3, which has none: the method
    path: str = "/"
    request: dict[str, Any] = field(default_factory=dict)  # only what reaches the emulator

    @property
    def is_mutation(self) -> bool:
        return self.action not in ("GET", "HEAD") and not self.action.startswith(_READS)


class Proxy(Server):
    """Passes everything on to moto, as it comes."""

    def __init__(self, moto_url: str):
        super().__init__(_Forwarder)
        self.upstream = urlsplit(moto_url)
        self.calls: list[Call] = []
        self._lock = threading.Lock()
        self._num_faults, self._fault, self._is_down = 0, 503, False
        self._canned: dict[str, tuple[int, bytes]] = {}

    def recorded_mutations(self) -> list[Call]:
        """The calls, to whatever service, that change something."""
        return [call for call in list(self.calls) if call.is_mutation]

    def s3_fail(self, num: int, status: int = 503) -> None:
        """Answer the next `num` requests to S3 with an error."""
        with self._lock:
            self._num_faults, self._fault = num, status

    def s3_down(self, is_down: bool = True) -> None:
        """Refuse every request to S3, until told otherwise."""
        with self._lock:
            self._is_down = is_down

    def answer_with(self, action: str, content: object, status: int = 200) -> None:
        """Answer an action that moto lacks, or answers otherwise: bytes as they are, anything else
        as JSON. An error is a status and `{"__type": code, "message": text}`."""
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        with self._lock:
            self._canned[action] = (status, text)

    def interception(self, call: Call) -> tuple[int, bytes] | None:
        """Note a call. The status and content to answer with, if it is not to reach moto."""
        with self._lock:
            self.calls.append(call)
            if call.service != "s3":
                return self._canned.get(call.action)
            if self._num_faults:
                self._num_faults -= 1
                return self._fault, _SLOW_DOWN
            return (503, _SLOW_DOWN) if self._is_down else None


class _Forwarder(Handler):
    server: Proxy

    def _forward(self) -> None:
        body: Iterator[bytes] | list[bytes] = self.body()
        service = self._service()
        if service != "s3":  # small, and a form names its action in the body
            body = [b"".join(body)]
        found = self.server.interception(Call(service, self._action(service, body), self.path))
        if found is not None:
            for _ in body:  # else a client that still sends sees a broken pipe
                pass
            is_xml = found[1].startswith(b"<")
            kind = "application/xml" if is_xml else "application/x-amz-json-1.1"
            self.answer(*found, Content_Type=kind)
            return
        upstream = HTTPConnection(self.server.upstream.netloc, timeout=120)
        try:
            self._send(upstream, body)
            self._pass_back(upstream.getresponse())
        finally:
            upstream.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = do_OPTIONS = _forward

    def _service(self) -> str:
        signature = self.headers.get("Authorization", "")
        presigned = parse_qs(urlsplit(self.path).query).get("X-Amz-Credential", [""])[0]
        found = _SCOPE.search(signature) or _SCOPE.search(f"Credential={presigned}")
        return found[1] if found else "s3"  # the only one that takes unsigned requests

    def _action(self, service: str, body: Iterator[bytes] | list[bytes]) -> str:
        if target := self.headers.get("X-Amz-Target"):
            return target.rpartition(".")[2]
        if service != "s3" and self.command == "POST":
            return parse_qs(b"".join(body).decode("latin-1")).get("Action", ["POST"])[0]
        return self.command

    def _send(self, upstream: HTTPConnection, body: Iterator[bytes] | list[bytes]) -> None:
        is_chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                upstream.putheader(name, value)
        upstream.putheader("Connection", "close")
        upstream.endheaders(iter(body) if is_chunked else None, encode_chunked=is_chunked)
        if not is_chunked:
            for part in body:
                upstream.send(part)

    def _pass_back(self, response: HTTPResponse) -> None:
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        has_body = self.command != "HEAD" and response.status >= 200
        has_body = has_body and response.status not in (204, 304)
        is_chunked = has_body and response.getheader("Content-Length") is None
        if is_chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if not has_body:
            return
        while part := response.read(1 << 16):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if is_chunked else part)
        if is_chunked:
            self.wfile.write(b"0\r\n\r\n")
