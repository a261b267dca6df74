from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.errors import PreflightError
from ray_jobs.events import Journal, read_events
from ray_jobs.storage import Storage


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


def test_an_s3_root_that_does_not_answer_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(PreflightError) as caught:
        Storage("s3://absent/root").check_writable()
    assert str(caught.value) == (
        "storage 's3://absent/root' cannot be written (NETWORK_CONNECTION). Set `storage` (or "
        "--storage) to a folder or s3:// URI that you may write to; for S3, check the bucket, your "
        "AWS credentials and AWS_ENDPOINT_URL"
    )
