"""The journal of a run, and those who read it while it is written."""

from __future__ import annotations

import time
from pathlib import Path

from ray_jobs.events import FILE, Follower, Journal, read_events
from ray_jobs.storage import Storage


def test_each_event_is_read_once_and_a_line_only_when_it_is_whole(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.make_folder("fire/a")
    follower = Follower(storage, "fire/a")
    assert follower.read_new() == []
    journal = Journal(storage, "fire/a", "train")
    journal("one")
    journal("two")
    assert [event["event"] for event in follower.read_new()] == ["one", "two"]
    assert follower.read_new() == []
    path = tmp_path / "fire/a" / FILE
    with path.open("ab") as file:
        file.write(b'{"time": "2026-01-01", "step": "train", ')
        file.flush()
        assert follower.read_new() == []
        file.write(b'"event": "three"}\nnot JSON\n')
    journal("four")
    assert [event["event"] for event in follower.read_new()] == ["three", "four"]
    assert len(read_events(storage, "fire/a")) == 4


def test_several_writers_on_an_object_store(s3: dict[str, str], monkeypatch) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    storage = Storage("s3://runs/events-test")
    follower = Follower(storage, "fire/a")
    train, other = Journal(storage, "fire/a", "train"), Journal(storage, "fire/a", "train")
    train("one")
    time.sleep(0.002)  # times have milliseconds
    other("two")
    other.flush()
    assert [event["event"] for event in follower.read_new()] == ["two"]
    train.flush()  # written later, of an earlier time
    assert [event["event"] for event in follower.read_new()] == ["one"]
    assert [event["event"] for event in read_events(storage, "fire/a")] == ["one", "two"]
