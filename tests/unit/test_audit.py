"""Who moves a champion, and what is written down of it: races, and movers cut off at every step."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.errors import DataError, PreflightError, RetryableError
from ray_jobs.storage import Storage
from ray_jobs.tracking.audit import AuditLog, Entry
from ray_jobs.tracking.exclusive import create
from ray_jobs.tracking.lease import hold
from ray_jobs.tracking.registry import (
    RUN_ID_TAG,
    TEST_DIGEST_TAG,
    WORKLOAD_TAG,
    Registry,
)
from ray_jobs.tracking.succession import Succession, line_of, unsettled

NUM_RACERS = 50
TAGS = {RUN_ID_TAG: "a", WORKLOAD_TAG: "fire", TEST_DIGEST_TAG: "d"}


class Killed(BaseException):
    """As if the process had ended here."""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """MLflow on sqlite, where tests register models with three versions or more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Registry(Storage(tmp_path_factory.mktemp("registry")))


@pytest.fixture
def succession(storage: Storage, registry: Registry, request: pytest.FixtureRequest) -> Succession:
    """The champions of a model of the test's own, none yet."""
    register(registry, request.node.name, 3)
    return Succession(storage, registry, request.node.name)


def register(registry: Registry, model: str, num_versions: int) -> None:
    client = registry._client
    client.create_registered_model(model)
    run = client.create_run("0")
    for _ in range(num_versions):
        client.create_model_version(model, "file:///nowhere", run.info.run_id, tags=TAGS)


def events(succession: Succession) -> list[tuple[str, int]]:
    return [(entry.event, entry.version) for entry in succession.log.read()]


# The chain


def test_entries_follow_from_each_other(storage: Storage) -> None:
    log = AuditLog(storage, "fire")
    assert log.read() == []
    log.append("refused", 1, None, detail={"why": "NaN"})
    log.append("refused", 2, None)
    first, second = log.read()
    assert (first.number, second.number) == (1, 2)
    assert first.previous == "0" * 64 != second.previous
    assert first.detail == {"why": "NaN"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "entry 2 of the audit log of 'fire': it is missing"),
        (lambda path: path.write_text("{}"), "entry 2 .*: it is not an entry"),
        (
            lambda path: path.write_text(path.read_text().replace('"version": 2', '"version": 9')),
            r"entry 3 .*: it does not follow from the one before \(sha256\). Restore the folder",
        ),
    ],
)
def test_damage_to_the_chain_is_found(
    storage: Storage, damage: Callable[[Path], object], message: str
) -> None:
    log = AuditLog(storage, "fire")
    for version in (1, 2, 3):
        log.append("refused", version, None)
    damage(storage.local("audit/fire/00000002.json"))
    with pytest.raises(DataError, match=message):
        log.read()
    with pytest.raises(DataError, match=message):
        log.append("refused", 4, None)


def test_writers_at_once_leave_no_gap(storage: Storage) -> None:
    log = AuditLog(storage, "fire")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda version: log.append("refused", version, None), range(1, 25)))
    entries = log.read()
    assert [entry.number for entry in entries] == list(range(1, 25))
    assert {entry.version for entry in entries} == set(range(1, 25))


def test_processes_at_once_leave_no_gap(storage: Storage) -> None:
    code = (
        "import sys; from ray_jobs.storage import Storage; "
        "from ray_jobs.tracking.audit import AuditLog; log = AuditLog(Storage(sys.argv[1]), 'm'); "
        "[log.append('refused', int(sys.argv[2]), None) for _ in range(10)]"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, storage.uri, str(i)]) for i in range(3)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    entries = AuditLog(storage, "m").read()
    assert Counter(entry.version for entry in entries) == {0: 10, 1: 10, 2: 10}


# The lease


def test_one_holds_at_a_time(storage: Storage) -> None:
    holders, most = [], []
    lock = threading.Lock()

    def work(_: int) -> None:
        with hold(storage, "fire", wait_s=200):
            with lock:
                holders.append(1)
                most.append(len(holders))
            time.sleep(0.001)
            with lock:
                holders.pop()

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(24)))
    assert max(most) == 1
    assert len(most) == 24


def test_a_lease_that_nobody_gave_back_expires(storage: Storage) -> None:
    held = hold(storage, "fire", duration_s=1.0)
    lost = held.__enter__()  # and the process ends
    with pytest.raises(RetryableError, match="others have been moving the aliases of 'fire' for 0"):
        hold(storage, "fire", wait_s=0).__enter__()
    with hold(storage, "fire") as second:
        assert second.number == lost.number + 1
        with pytest.raises(RetryableError, match="its lease on 'fire' has expired; give the same"):
            lost.check()
        held.__exit__(None, None, None)  # late, it takes nothing from the one who holds it now
        second.check()
        with pytest.raises(RetryableError, match="others have been"):
            hold(storage, "fire", wait_s=0).__enter__()


# The champion


def test_the_first_of_50_wins_and_the_others_are_told(storage: Storage, registry: Registry) -> None:
    register(registry, "race", NUM_RACERS)
    succession = Succession(storage, registry, "race")
    told: list[str] = []

    def promote(version: int) -> bool:
        try:
            return succession.advance(version, seen=None)
        except RetryableError as error:
            told.append(str(error))
            return False

    with ThreadPoolExecutor(NUM_RACERS) as pool:
        won = list(pool.map(promote, range(1, NUM_RACERS + 1)))
    assert sum(won) == 1
    champion = won.index(True) + 1
    assert registry.champion("race") == champion
    assert len(told) == NUM_RACERS - 1
    pattern = f"version {champion} became the champion of 'race' while version"
    assert all(text.startswith(pattern) for text in told)
    entries = succession.log.read()  # which finds a gap
    counts = Counter(entry.event for entry in entries)
    assert counts == {"intent": 1, "promoted": 1, "outrun": NUM_RACERS - 1}


def test_of_two_who_promote_the_same_both_are_served(succession: Succession) -> None:
    assert succession.advance(1, seen=None)
    assert not succession.advance(1, seen=None)
    assert events(succession) == [("intent", 1), ("promoted", 1)]


@pytest.mark.parametrize(
    ("step", "champion", "settled"),
    [
        ("before the intent", 1, None),
        ("after the intent", 1, "abandoned"),
        ("after the move", 2, "promoted"),
        ("after the outcome", 2, None),
    ],
)
def test_a_mover_killed_at_any_step(
    succession: Succession, monkeypatch: pytest.MonkeyPatch, step: str, champion: int, settled: str
) -> None:
    succession.advance(1, seen=None)
    append, make_champion = AuditLog.append, Registry.make_champion

    def kill_at(moment: str) -> None:
        if moment == step:
            raise Killed

    def appending(log: AuditLog, event: str, *args, **kwargs):
        name = "intent" if event == "intent" else "outcome"
        kill_at(f"before the {name}")
        entry = append(log, event, *args, **kwargs)
        kill_at(f"after the {name}")
        return entry

    def moving(registry: Registry, *args) -> None:
        make_champion(registry, *args)
        kill_at("after the move")

    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "append", appending)
        patch.setattr(Registry, "make_champion", moving)
        with pytest.raises(Killed):
            succession.advance(2, seen=1)
    assert succession.registry.champion(succession.model) == champion
    # The next one finds out what became of it, and goes on.
    assert succession.advance(3, seen=champion)
    entries = succession.log.read()
    assert unsettled(entries) is None
    found = [entry.event for entry in entries if entry.detail.get("settled_by_the_next")]
    assert found == ([settled] if settled else [])
    assert line_of(entries) == ([1, 3] if champion == 1 else [1, 2, 3])


def test_a_move_is_not_made_under_a_lease_that_has_expired(
    succession: Succession, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = AuditLog.append

    def slow(log: AuditLog, *args, **kwargs):
        entry = append(log, *args, **kwargs)
        content = json.dumps({"expires_at": 0}).encode()
        assert create(log.storage, f"leases/{log.model}/00000002.json", content)
        return entry

    monkeypatch.setattr(AuditLog, "append", slow)
    with pytest.raises(RetryableError, match="expired"):
        succession.advance(1, seen=None)
    assert succession.registry.champion(succession.model) is None


def test_back_through_the_champions(succession: Succession) -> None:
    with pytest.raises(PreflightError, match="has had no champion before no champion, so there is"):
        succession.go_back()
    for version, seen in ((1, None), (2, 1), (3, 2)):
        succession.advance(version, seen=seen)
    assert succession.go_back() == (2, 3)
    assert succession.go_back() == (1, 2)
    assert succession.registry.champion(succession.model) == 1
    with pytest.raises(PreflightError, match="has had no champion before version 1, so there is"):
        succession.go_back()
    succession.advance(3, seen=1)
    assert succession.go_back() == (1, 3)  # not to what was undone before
    assert events(succession)[-2:] == [("intent", 1), ("rolled_back", 1)]


def test_back_from_a_champion_that_was_set_by_hand(succession: Succession) -> None:
    succession.advance(1, seen=None)
    succession.registry.make_champion(succession.model, 2)
    assert succession.go_back() == (1, 2)
    succession.registry.make_champion(succession.model, 2)
    succession.advance(3, seen=2)
    assert succession.go_back() == (2, 3)  # it stood before, however it came there


@given(st.lists(st.sampled_from(["promote", "go back"])))
def test_the_line_of_champions_is_a_stack(acts: list[str]) -> None:
    stack: list[int] = []
    entries: list[Entry] = []
    for number, act in enumerate(acts, start=1):
        before = stack[-1] if stack else None
        if act == "promote":
            stack.append(number)
        elif len(stack) > 1:
            stack.pop()
        else:
            continue
        event = "promoted" if act == "promote" else "rolled_back"
        entries.append(
            Entry(
                number=len(entries) + 1,
                previous="",
                time=datetime.now(UTC),
                by="me@here",
                model="fire",
                event=event,
                version=stack[-1],
                champion=before,
            )
        )
    assert line_of(entries) == stack


# On S3


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_same_on_s3(bucket: str, registry: Registry) -> None:
    storage = Storage(f"s3://{bucket}/audit-test")
    register(registry, "on-s3", 8)
    succession = Succession(storage, registry, "on-s3")

    def promote(version: int) -> bool:
        try:
            return succession.advance(version, seen=None)
        except RetryableError:
            return False

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(promote, range(1, 9)))
    assert sum(won) == 1
    assert registry.champion("on-s3") == won.index(True) + 1
    assert Counter(event for event, _ in events(succession)) == {
        "intent": 1,
        "promoted": 1,
        "outrun": 7,
    }
