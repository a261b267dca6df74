"""Files that are created once, on S3: a put of which no answer comes is sent again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse

from ray_jobs.storage import Storage, StorageRefused, StorageUnavailable
from ray_jobs.tracking import exclusive
from ray_jobs.tracking.audit import AuditLog
from ray_jobs.tracking.lease import hold
from ray_jobs.webhooks.deliveries import Deliveries
from ray_jobs.webhooks.signature import Delivery


@pytest.fixture
def there(bucket: str, request: pytest.FixtureRequest) -> Storage:
    """A root of the test's own."""
    return Storage(f"s3://{bucket}/{request.node.name}")


def test_of_many_writers_one_creates(there: Storage) -> None:
    num_writers, num_files = 8, 12

    def write(number: int) -> list[bool]:
        return [
            exclusive.create(there, f"once/{file}", f"{number}".encode())
            for file in range(num_files)
        ]

    with ThreadPoolExecutor(num_writers) as pool:
        won = list(pool.map(write, range(num_writers)))
    for file in range(num_files):
        winners = [number for number in range(num_writers) if won[number][file]]
        assert [there.read_text(f"once/{file}")] == [str(number) for number in winners]
    there.delete("once/0")
    assert exclusive.create(there, "once/0", b"again")
    assert not exclusive.create(there, "once/0", b"again")


@pytest.fixture
def deaf(there: Storage, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The answer to the first put of every object is lost, so it is sent again. Their names."""
    seen: list[str] = []

    def lose(response: Any, request_dict: dict[str, Any], **_: Any) -> int | None:
        key = request_dict["url_path"]
        if response is None or response[0].status_code != 200 or key in seen:
            return None
        seen.append(key)
        return 0  # seconds until it is sent again

    make = exclusive._client

    def client() -> Any:
        made = make()
        made.meta.events.register_first("needs-retry.s3.PutObject", lose)
        return made

    monkeypatch.setattr(exclusive, "_client", client)
    yield seen
    assert seen


def test_who_created_a_file_learns_it_though_the_answer_was_lost(
    there: Storage, deaf: list[str]
) -> None:
    assert exclusive.create(there, "ours", b"x")
    assert not exclusive.create(there, "ours", b"x")
    there.write_text("theirs", "x")
    assert not exclusive.create(there, "theirs", b"x")
    assert len(deaf) == 1


def test_an_entry_whose_answer_was_lost_is_not_written_twice(
    there: Storage, deaf: list[str]
) -> None:
    log = AuditLog(there, "fire")
    for version in (1, 2):
        log.append("refused", version, None)
    assert [(entry.number, entry.version) for entry in log.read()] == [(1, 1), (2, 2)]
    assert len(deaf) == 2


def test_a_lease_whose_answer_was_lost_is_held(there: Storage, deaf: list[str]) -> None:
    with hold(there, "fire", wait_s=0) as lease:
        lease.check()
        assert lease.number == 1


def test_a_delivery_whose_answer_was_lost_is_taken(there: Storage, deaf: list[str]) -> None:
    deliveries, delivery = Deliveries(there), Delivery("id", 1000)
    assert deliveries.take(delivery, now=1000)
    assert not deliveries.take(delivery, now=1000)


@pytest.fixture
def conflicts(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[float]]:
    """Have the next puts answered with 409; the pauses that are made."""
    left, pauses = [0], list[float]()

    def refuse(**_: Any) -> AWSResponse | None:
        if not left[0]:
            return None
        left[0] -= 1
        answer = AWSResponse("", 409, {}, None)
        answer._content = b"<Error><Code>ConditionalRequestConflict</Code></Error>"
        return answer

    make = exclusive._client

    def client() -> Any:
        made = make()
        made.meta.events.register("before-send.s3.PutObject", refuse)
        return made

    def answer_with(num: int) -> list[float]:
        left[0] = num
        return pauses

    monkeypatch.setattr(exclusive, "_client", client)
    monkeypatch.setattr(exclusive.time, "sleep", pauses.append)
    return answer_with


def test_a_put_that_conflicts_with_another_is_sent_again(
    there: Storage, conflicts: Callable[[int], list[float]]
) -> None:
    """The other may have come to nothing, and then nobody would have created the file."""
    pauses = conflicts(3)
    assert exclusive.create(there, "a", b"ours")
    assert there.read_text("a") == "ours"
    assert len(pauses) == 3
    conflicts(1)
    assert not exclusive.create(there, "a", b"ours")


def test_a_storage_with_conflicts_without_end_is_not_available_now(
    there: Storage, conflicts: Callable[[int], list[float]]
) -> None:
    conflicts(100)
    with pytest.raises(StorageUnavailable) as caught:
        exclusive.create(there, "a", b"ours")
    assert str(caught.value) == (
        f"storage {there.uri!r} did not take a (ConditionalRequestConflict); give the same command "
        "again"
    )


def test_a_storage_that_refuses_is_not_asked_again(there: Storage) -> None:
    with pytest.raises(StorageRefused) as caught:
        exclusive.create(Storage("s3://no-such-bucket/root"), "a", b"ours")
    assert str(caught.value) == (
        "storage 's3://no-such-bucket/root' did not take a (NoSuchBucket). Check the bucket, your "
        "AWS credentials and AWS_ENDPOINT_URL; then give the same command again"
    )


class _Taking(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_storage_that_is_away_for_a_second_is_waited_for(
    there: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HTTPServer(("127.0.0.1", 0), _Taking, bind_and_activate=False) as server:
        server.server_bind()  # and does not listen yet
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        start = threading.Timer(1, lambda: (server.server_activate(), server.handle_request()))
        start.start()
        assert exclusive.create(there, "a", b"ours")
        start.join()
