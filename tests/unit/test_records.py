"""Live records: what is written of requests, what is dropped, and how it is read."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from ray_jobs.errors import SpecError
from ray_jobs.monitoring.observation import Observation
from ray_jobs.monitoring.recorder import Recorder
from ray_jobs.monitoring.records import Record, read_records
from ray_jobs.serving.app import create_app
from ray_jobs.serving.model import load_model
from ray_jobs.serving.service import Service
from ray_jobs.serving.variants import Challenger
from ray_jobs.storage import Storage
from tests.unit.serving_models import PUBLISHED, WAIT_S, fire_folder, post, wait_for

NOW = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)


def record(number: int = 0, *, time: datetime = NOW, num_rows: int = 1) -> Record:
    return Record(time, f"r{number}", "champion", False, "3", "d1", 200, 0.012, num_rows)


def recorder(root: Path, *, share: float = 1.0, max_mb: float = 1.0) -> tuple[Recorder, Counter]:
    """One that runs, and what it has counted."""
    counted: Counter[str] = Counter()
    made = Recorder(Storage(root), "fire", share=share, max_mb_per_day=max_mb)
    made.start(max_waiting_rows=50, count=lambda outcome: counted.update([outcome]))
    return made, counted


def files(root: Path) -> list[Path]:
    return sorted((root / ".live").rglob("*.jsonl"))


# A record


TEXTS = st.text(max_size=20)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.builds(
        Record,
        time=st.datetimes(timezones=st.just(UTC)),
        request_id=TEXTS,
        variant=st.sampled_from(["champion", "challenger"]),
        is_shadow=st.booleans(),
        version=TEXTS,
        digest=TEXTS,
        status=st.integers(100, 599),
        seconds=st.floats(0, 100),
        num_rows=st.integers(0, 100),
        features=st.none() | st.dictionaries(TEXTS, st.lists(NUMBERS | st.none(), max_size=3)),
        outputs=st.none() | st.dictionaries(TEXTS, st.lists(NUMBERS | TEXTS, max_size=3)),
    )
)
def test_a_record_is_one_line_and_comes_back(one: Record) -> None:
    line = one.to_json()
    assert len(line.encode().splitlines()) == 1
    assert Record.from_json(line) == one


def test_what_is_no_number_is_missing() -> None:
    seen = Record(NOW, "a", "champion", False, "1", "d", 200, 0.1, 1, {"x": [math.nan, 1.0]}, {})
    assert Record.from_json(seen.to_json()).features == {"x": [None, 1.0]}


LINE = json.loads(record().to_json())


@pytest.mark.parametrize(
    "line",
    [
        "", "{", "[]", "null", "1", "[" * 100_000, '{"time": "now"}', record().to_json()[:-9],
        json.dumps({**LINE, "more": 1}),
        json.dumps({**LINE, "time": "2026-05-06T07:08:09"}),  # of which zone?
        json.dumps({**LINE, "variant": "other"}),
        json.dumps({**LINE, "status": "200"}),
        json.dumps({**LINE, "status": True}),
        json.dumps({**LINE, "features": [1]}),
        json.dumps({**LINE, "outputs": {"p": 0.5}}),
        json.dumps({name: value for name, value in LINE.items() if name != "digest"}),
        "\udcff",
    ],
)  # fmt: skip
def test_a_malformed_line_is_counted_and_skipped(tmp_path: Path, line: str) -> None:
    folder = tmp_path / ".live" / "fire" / "2026-05-06"
    folder.mkdir(parents=True)
    good = record().to_json().encode()
    content = b"\n".join([good, line.encode(errors="surrogateescape"), good]) + b"\n"
    (folder / "a.jsonl").write_bytes(content)
    read = read_records(Storage(tmp_path), "fire")
    assert list(read) == [record(), record()]
    assert read.num_malformed == 1


# Writing and reading


def test_what_was_offered_is_read(tmp_path: Path) -> None:
    made, counted = recorder(tmp_path)
    seen = Observation({"x": [1.5, None]}, {"probability": [0.25, 0.5]})
    made.offer(record(1), lambda: seen)
    made.offer(record(2))
    made.close()
    first, second = read_records(Storage(tmp_path), "fire")
    assert (first.request_id, first.features, first.outputs) == ("r1", seen.features, seen.outputs)
    assert second == record(2)
    assert counted == {"written": 2}
    assert [path.parent.name for path in files(tmp_path)] == ["2026-05-06"]
    assert list(read_records(Storage(tmp_path), "other")) == []


def test_a_line_is_there_within_seconds_and_a_day_has_files_of_its_own(tmp_path: Path) -> None:
    made, _ = recorder(tmp_path)
    made.offer(record(1))
    wait_for(lambda: bool(files(tmp_path)))
    made.offer(record(2, time=NOW + timedelta(days=1)))
    made.offer(record(3, time=NOW + timedelta(days=1)))
    made.close()
    assert [path.parent.name for path in files(tmp_path)] == ["2026-05-06", "2026-05-07"]
    storage = Storage(tmp_path)
    next_day = NOW.replace(hour=0) + timedelta(days=1)
    assert [r.request_id for r in read_records(storage, "fire", next_day)] == ["r2", "r3"]
    assert [r.request_id for r in read_records(storage, "fire", None, next_day)] == ["r1"]
    assert list(read_records(storage, "fire", NOW + timedelta(days=1, seconds=1))) == []


def test_a_day_has_so_many_bytes_and_a_second_worker_counts_them(tmp_path: Path) -> None:
    size = len(record().to_json()) + 1
    for num_written in (3, 0):
        made, counted = recorder(tmp_path, max_mb=(3.5 * size) / 1e6)
        for number in range(5):
            made.offer(record(number))
        made.close()
        assert counted == Counter(written=num_written, daily_limit=5 - num_written)
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 3.5 * size
    made, counted = recorder(tmp_path, max_mb=(3.5 * size) / 1e6)
    made.offer(record(9, time=NOW + timedelta(days=1)))
    made.close()
    assert counted == {"written": 1}


def test_who_offers_never_waits_and_what_is_too_much_is_dropped(tmp_path: Path) -> None:
    made, counted = recorder(tmp_path)
    busy, free = threading.Event(), threading.Event()

    def observe() -> Observation:
        busy.set()
        assert free.wait(WAIT_S)
        return Observation({}, {})

    made.offer(record(0), observe)
    assert busy.wait(WAIT_S)
    for number in range(1, 10):
        made.offer(record(number, num_rows=10))  # of 50 rows there is room for 4 more of these
    made.offer(record(10, num_rows=0))
    assert counted == {"queue_full": 5}
    for _ in range(2000):
        made.offer(record(11, num_rows=0))
    assert counted["queue_full"] == 5 + 2000 - (1000 - 5)
    free.set()
    made.close()
    assert counted["written"] == 1 + 4 + 1 + 995
    assert len(list(read_records(Storage(tmp_path), "fire"))) == counted["written"]


def test_a_storage_that_fails_costs_records_and_is_told_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".live").write_text("no folder")
    made, counted = recorder(tmp_path)
    made.offer(record(1))
    wait_for(lambda: counted["storage"] == 1)
    made.offer(record(2))
    wait_for(lambda: counted["storage"] == 2)
    (tmp_path / ".live").unlink()
    made.offer(record(3))
    made.close()
    assert counted == Counter(storage=2, written=1)
    assert capfd.readouterr().err.count("live records are lost:") == 1


def test_one_that_cannot_be_observed_is_not_the_last(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made, counted = recorder(tmp_path)
    made.offer(record(1), lambda: Observation({}, {"p": [1 / 0]}))
    made.offer(record(2))
    made.close()
    assert counted == Counter(failed=1, written=1)
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "a\\b", "x" * 129])
def test_a_name_that_is_no_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match=r"cannot name a folder.*\(set deployment.name\)"):
        Recorder(Storage(tmp_path), name, share=1, max_mb_per_day=1)
    with pytest.raises(SpecError, match="cannot name a folder"):
        read_records(Storage(tmp_path), name)


@pytest.mark.slow
def test_on_s3_each_part_is_whole(bucket: str) -> None:
    storage = Storage(f"s3://{bucket}/live-records")
    for number in range(2):
        counted: Counter[str] = Counter()
        made = Recorder(storage, "fire", share=1, max_mb_per_day=1)
        made.start(max_waiting_rows=9, count=lambda outcome, all_=counted: all_.update([outcome]))
        made.offer(record(number))
        made.close()
        assert counted == {"written": 1}
    assert len(storage.list(".live/fire/2026-05-06")) == 2
    assert {r.request_id for r in read_records(storage, "fire")} == {"r0", "r1"}


# Of a service


def test_both_of_a_pair_are_recorded_or_neither(tmp_path: Path) -> None:
    load = lambda: load_model(fire_folder(), version="7")  # noqa: E731
    kept = Recorder(Storage(tmp_path), "fire", share=0.5, max_mb_per_day=1)
    service = Service(load, challenger=Challenger(load, "shadow", 1.0), recorder=kept)
    with TestClient(create_app(service)) as client:
        wait_for(lambda: client.get("/ping").status_code == 200)
        for number in range(40):
            post(client, PUBLISHED, **{"x-request-id": f"r{number}"})
        for number in range(40, 60):
            assert post(client, "a,b", **{"x-request-id": f"r{number}"}).status_code == 422
        shadows = 'emberline_shadow_requests_total{outcome="200"} 40.0'
        wait_for(lambda: shadows in client.get("/metrics").text)
    records = list(read_records(Storage(tmp_path), "fire"))
    champion = {r.request_id: r for r in records if not r.is_shadow}
    shadow = {r.request_id: r for r in records if r.is_shadow}
    answered = {i for i, r in champion.items() if r.status == 200}
    assert shadow.keys() == answered
    assert answered == {f"r{n}" for n in range(40) if kept.wants(f"r{n}")}
    assert 5 < len(answered) < 35
    assert {r.variant for r in shadow.values()} == {"challenger"}
    for i in answered:
        assert champion[i].features == shadow[i].features
        assert champion[i].features is not None
        values = [column for (column,) in champion[i].features.values()]
        assert values == [float(text) for text in PUBLISHED.split(",")]
        assert champion[i].outputs == shadow[i].outputs
        assert (champion[i].version, champion[i].num_rows) == ("7", 1)
    refused = [r for r in champion.values() if r.status == 422]
    assert len(refused) == sum(kept.wants(f"r{n}") for n in range(40, 60)) > 0
    assert all(r.outputs is None and r.num_rows == 0 for r in refused)
