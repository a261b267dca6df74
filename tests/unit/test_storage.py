from __future__ import annotations

import errno
import os
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.errors import PreflightError
from ray_jobs.events import Journal, read_events
from ray_jobs.storage import Storage, StorageRefused, StorageUnavailable, brief_cause, outage


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    storage = Storage(tmp_path)

    def fail() -> None:
        with storage.open_output("a/b.txt") as stream:
            stream.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.rglob("*.txt*")) == []
    storage.write_text("a/b.txt", "one")
    with pytest.raises(RuntimeError):
        fail()
    assert storage.read_text("a/b.txt") == "one"
    assert storage.list("a") == ["a/b.txt"]


def test_folders_are_replaced_whole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "new").write_text("2")
    storage = Storage(tmp_path / "root")
    storage.write_text("model/old", "1")
    storage.publish_folder(source, "model")
    assert storage.list("model", recursive=True) == ["model/deep", "model/deep/new"]
    with storage.local_folder("model") as folder:
        assert (folder / "deep" / "new").read_text() == "2"


@given(content=st.binary(max_size=200))
def test_what_arrow_parses_is_read_into_its_own_memory(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    storage = Storage(tmp_path_factory.mktemp("root"))
    storage.write_bytes("a.gz", content)  # whatever its name, as it is
    assert storage.read_buffer("a.gz").to_pybytes() == content == storage.read_bytes("a.gz")


def test_a_folder_that_is_being_made_is_empty_or_there(tmp_path: Path) -> None:
    storage = Storage(tmp_path)

    def look(folder: str) -> None:
        for _ in range(200):
            assert storage.list(folder) == []

    with ThreadPoolExecutor(4) as pool:
        for number in range(100):
            looks = [pool.submit(look, str(number)) for _ in range(4)]
            time.sleep(0.001)  # till they look
            (tmp_path / str(number)).mkdir()
            for each in looks:
                each.result()


def test_a_root_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    storage = Storage(tmp_path / "file" / "below")
    with pytest.raises(
        PreflightError, match=r"cannot be written .* Set `storage` \(or --storage\)"
    ):
        storage.check_writable()


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(PreflightError, match="ftp://x/y: cannot be opened"):
        Storage("ftp://x/y")


def test_lines_of_many_writers_stay_whole(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.make_folder("run")
    journals = [Journal(storage, "run", f"step{number}") for number in range(4)]

    def write(journal: Journal) -> None:
        for number in range(200):
            journal("epoch", number=number, padding="x" * 500)

    threads = [threading.Thread(target=write, args=(journal,)) for journal in journals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = read_events(storage, "run")
    assert len(events) == 800
    for number in range(4):
        mine = [event["number"] for event in events if event["step"] == f"step{number}"]
        assert mine == list(range(200))


def test_an_unfinished_line_is_left_out(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.make_folder("run")
    Journal(storage, "run", "a")("progress", done=1)
    with open(tmp_path / "run" / "events.jsonl", "a") as file:
        file.write('{"time": "2026')
    assert [event["event"] for event in read_events(storage, "run")] == ["progress"]


@given(st.binary(max_size=4096))
def test_bytes_come_back(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    storage = Storage(tmp_path_factory.getbasetemp())
    storage.write_bytes("bytes", content)
    assert storage.read_bytes("bytes") == content
    assert not [name for name in os.listdir(storage.local()) if name.endswith(".tmp")]


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x"])
def test_no_path_leaves_the_root(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="is not a path below"):
        Storage(tmp_path).write_text(path, "")


@pytest.fixture
def dead_s3(monkeypatch: pytest.MonkeyPatch) -> Storage:
    for name, value in (
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("AWS_MAX_ATTEMPTS", "1"),
    ):
        monkeypatch.setenv(name, value)
    return Storage("s3://absent/root")


def read_in_parts(storage: Storage) -> None:
    with storage.open_input("a"):
        pass


def copy_here(storage: Storage) -> None:
    with storage.local_folder("a"):
        pass


@pytest.mark.parametrize(
    "act",
    [
        Storage.check_writable,
        lambda storage: storage.exists("a"),
        lambda storage: storage.read_text("a"),
        lambda storage: storage.write_text("a", "x"),
        lambda storage: storage.list("a"),
        lambda storage: storage.delete("a"),
        lambda storage: storage.delete_folder("a"),
        lambda storage: storage.make_folder("a"),
        lambda storage: storage.publish_folder(Path(__file__).parent, "a"),
        read_in_parts,
        copy_here,
    ],
)
def test_an_s3_that_does_not_answer_may_answer_a_retry(
    dead_s3: Storage, act: Callable[[Storage], object]
) -> None:
    with pytest.raises(StorageUnavailable) as caught:
        act(dead_s3)
    assert str(caught.value) == (
        "storage 's3://absent/root' does not answer (AWS Error NETWORK_CONNECTION). Look at the "
        "network and AWS_ENDPOINT_URL. What it holds "
        "is kept: once it answers, the same command with the same --run-id goes on from there"
    )
    assert caught.value.exit_code == 5
    assert brief_cause(caught.value) == "NETWORK_CONNECTION"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_s3_that_refuses_access_is_not_tried_again(bucket: str) -> None:
    with pytest.raises(StorageRefused) as caught:
        Storage("s3://absent/root").write_text("a", "x")
    assert str(caught.value) == (
        "storage 's3://absent/root' refuses access (AWS Error NO_SUCH_BUCKET). Check the bucket, "
        "your AWS credentials and AWS_ENDPOINT_URL; then give the same command again"
    )
    assert caught.value.exit_code == 3
    with pytest.raises(PreflightError, match=r"cannot be written \(NO_SUCH_BUCKET\)\. Set"):
        Storage("s3://absent/root").check_writable()


def test_a_missing_object_and_a_local_fault_stay_what_they_are(bucket: str) -> None:
    storage = Storage(f"s3://{bucket}/missing")
    assert not storage.exists("a")
    assert storage.list("a") == []
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("a")
    assert outage("here", OSError(errno.ENOSPC, "No space left on device")) is None


def test_an_object_that_is_not_whole_is_not_there(bucket: str) -> None:
    storage = Storage(f"s3://{bucket}/whole")

    def fail() -> None:
        with storage.open_output("a") as stream:
            stream.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not storage.exists("a")
    storage.write_text("a", "one")
    with pytest.raises(RuntimeError):
        fail()
    assert storage.read_text("a") == "one"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "Access Denied.",
            "storage 's3://b/r' refuses access (not deleted: Access Denied). Check the bucket, "
            "your AWS credentials and AWS_ENDPOINT_URL; then give the same command again",
        ),
        (
            "Please reduce your request rate.",
            "storage 's3://b/r' does not answer (not deleted: Please reduce your request rate). "
            "What it holds is kept: once it answers, the same command with the same --run-id goes "
            "on from there",
        ),
    ],
)
def test_objects_that_could_not_be_deleted_are_told_of(words: str, told: str) -> None:
    """Their request succeeds: Arrow raises an error of its own."""
    error = OSError(
        "Got the following 2 errors when deleting objects in S3 bucket 'b':\n"
        f"- key 'r/a': {words}\n- key 'r/b': {words}\n"
    )
    assert str(outage("s3://b/r", error)) == told


def test_a_folder_on_s3_is_replaced_once_the_new_one_is_there(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "new").write_text("2")
    storage = Storage(f"s3://{bucket}/published")

    def break_off(*_: object, **__: object) -> None:
        raise OSError("broken off")

    storage.make_folder("model/empty")
    old = ["model/deep/old", "model/old", "model/steps-1/a/b", "model/steps-1/c"]
    for path in old:
        storage.write_text(path, "1")
    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.fs.copy_files", break_off)
        with pytest.raises(OSError, match="broken off"):
            storage.publish_folder(tmp_path, "model")
    assert set(old) <= set(storage.list("model", recursive=True))
    storage.publish_folder(tmp_path, "model")
    assert storage.list("model", recursive=True) == ["model/deep", "model/deep/new"]
