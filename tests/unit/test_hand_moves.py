"""Champions that were made by hand: noticed, judged, then accepted or reverted; and the end of the
audit log, which cannot be cut off. MLflow on sqlite; what the gate says is given."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.promotion import ReconcileOutcome
from ray_jobs.errors import DataError, JobFailed, PreflightError, RetryableError, SpecError
from ray_jobs.storage import Storage
from ray_jobs.tracking import handmoves
from ray_jobs.tracking.audit import AuditLog
from ray_jobs.tracking.gate import Verdict
from ray_jobs.tracking.handmoves import Reconciled, reconcile
from ray_jobs.tracking.promotion_spec import PromotionSpec
from ray_jobs.tracking.registry import Registry, answering, masked
from ray_jobs.tracking.succession import Standing, Succession, line_of, unsettled
from tests.unit.test_audit import TAGS, Killed, events

REVERT, ACCEPT = PromotionSpec(), PromotionSpec(moved_by_hand="accept")
BAD = 3  # the version that the gate refuses


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Registry(Storage(tmp_path_factory.mktemp("registry")))


@pytest.fixture
def succession(tmp_path: Path, registry: Registry, request: pytest.FixtureRequest) -> Succession:
    """A model of the test's own, with four versions and no champion."""
    model = request.node.name.replace("[", "-").replace("]", "")
    client = registry._client
    client.create_registered_model(model)
    run = client.create_run("0")
    for _ in range(4):
        client.create_model_version(model, "file:///nowhere", run.info.run_id, tags=TAGS)
    return Succession(Storage(tmp_path), registry, model)


@pytest.fixture(autouse=True)
def judged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int | None]]:
    """What was judged: the version, and the champion that it was compared with."""
    asked: list[tuple[int, int | None]] = []

    def judge(storage, registry, version, champion, rules) -> list[Verdict]:
        asked.append((version.number, champion))
        is_good = version.number != BAD
        return [Verdict("better", "0.1", "> 0", is_good, "" if is_good else "that is not > 0")]

    monkeypatch.setattr(handmoves, "judge_version", judge)
    return asked


def settle(succession: Succession, rules: PromotionSpec = REVERT) -> Reconciled:
    """Reconciles; a second look finds nothing to do, and the champion is what was told."""
    found = reconcile(succession.storage, succession.registry, succession.model, rules)
    assert succession.registry.champion(succession.model) == found.champion
    again = reconcile(succession.storage, succession.registry, succession.model, rules)
    assert (again.outcome, again.champion, again.warning) == ("unchanged", found.champion, None)
    return found


def by_hand(succession: Succession, version: int | None) -> None:
    """As MLflow's UI does."""
    client = succession.registry._client
    if version is None:
        client.delete_registered_model_alias(succession.model, "champion")
    else:
        client.set_registered_model_alias(succession.model, "champion", str(version))


# What is done


def test_nothing_was_moved(succession: Succession, judged: list) -> None:
    assert settle(succession).champion is None
    succession.advance(1, seen=None)
    succession.advance(2, seen=1)
    succession.go_back()
    before = len(succession.log.read())
    found = settle(succession)
    assert (found.outcome, found.champion, found.exit_code) == ("unchanged", 1, 0)
    assert (len(succession.log.read()), judged) == (before, [])


@pytest.mark.parametrize("rules", [REVERT, ACCEPT])
def test_what_passes_stays(succession: Succession, judged: list, rules: PromotionSpec) -> None:
    succession.advance(1, seen=None)
    by_hand(succession, 2)
    found = settle(succession, rules)
    assert (found.outcome, found.champion, found.exit_code) == ("accepted", 2, 0)
    assert judged == [(2, 1)]
    assert found.warning == (
        f"version 2 was made the champion of '{succession.model}' by hand, not by emberline "
        "promote or rollback; before: version 1; the gate has no objection; it stays "
        "(promotion.moved_by_hand)"
    )
    last = succession.log.read()[-1]
    assert (last.event, last.version, last.champion) == ("moved_by_hand", 2, 1)
    assert last.detail["verdicts"][0]["rule"] == "better"
    assert succession.go_back() == (1, 2)


def test_what_the_gate_refuses_is_moved_back(succession: Succession) -> None:
    succession.advance(1, seen=None)
    by_hand(succession, BAD)
    found = settle(succession)
    assert (found.outcome, found.champion, found.exit_code) == ("reverted", 1, 6)
    assert found.warning is not None
    assert "the gate refuses that (better: that is not > 0); it was moved back" in found.warning
    assert events(succession)[-2:] == [("intent", 1), ("reverted", 1)]
    entry = succession.log.read()[-1]
    assert (entry.champion, unsettled(succession.log.read())) == (BAD, None)
    outcome = ReconcileOutcome(found)
    console = Console(width=200, file=io.StringIO(), record=True)
    outcome.print(console)
    said = console.export_text()
    assert f"the champion of {succession.model} is version 1" in said
    assert "warning: version 3 was made the champion" in said
    assert json.loads(outcome.to_json())["warning"] == found.warning
    with pytest.raises(PreflightError, match="has had no champion before version 1"):
        succession.go_back()


def test_what_the_gate_refuses_stays_by_the_spec(succession: Succession) -> None:
    succession.advance(1, seen=None)
    by_hand(succession, BAD)
    found = settle(succession, ACCEPT)
    assert (found.outcome, found.champion, found.exit_code) == ("accepted", BAD, 0)
    assert found.warning is not None
    assert "the gate refuses that (better: that is not > 0); it stays" in found.warning
    entry = succession.log.read()[-1]
    assert (entry.event, entry.detail["verdicts"][0]["passed"]) == ("moved_by_hand", False)
    assert succession.go_back() == (1, BAD)


@pytest.mark.parametrize(
    ("rules", "outcome", "champion"), [(REVERT, "reverted", 1), (ACCEPT, "accepted", None)]
)
def test_an_alias_that_was_deleted(
    succession: Succession,
    judged: list,
    rules: PromotionSpec,
    outcome: str,
    champion: int | None,
) -> None:
    succession.advance(1, seen=None)
    by_hand(succession, None)
    found = settle(succession, rules)
    assert (found.outcome, found.champion, found.exit_code) == (outcome, champion, 0)
    assert found.warning is not None
    assert "the alias champion of" in found.warning
    assert "was deleted by hand" in found.warning
    assert judged == []
    if champion is None:
        assert succession.go_back() == (1, None)


def test_an_alias_that_went_with_its_version(succession: Succession, judged: list) -> None:
    """There is nothing to restore, and the next promotion is not stopped by that."""
    succession.advance(1, seen=None)
    succession.registry._client.delete_model_version(succession.model, "1")
    found = settle(succession)
    assert (found.outcome, found.champion) == ("accepted", None)
    by_hand(succession, 2)
    assert settle(succession).champion == 2
    assert judged == [(2, None)]


@pytest.mark.parametrize(("version", "champion"), [(2, 2), (BAD, None)])
def test_the_first_champion_passes_the_gate_too(
    succession: Succession, version: int, champion: int | None
) -> None:
    by_hand(succession, version)
    assert settle(succession).champion == champion
    assert line_of(succession.log.read()) == ([] if champion is None else [champion])


@pytest.mark.parametrize(
    "fault", [SpecError("no run"), DataError("its data is gone"), JobFailed("no result")]
)
def test_what_cannot_be_judged_is_refused(
    succession: Succession, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def judge(*_) -> list[Verdict]:
        raise fault

    succession.advance(1, seen=None)
    by_hand(succession, 2)
    monkeypatch.setattr(handmoves, "judge_version", judge)
    found = settle(succession)
    assert (found.outcome, found.champion, found.verdicts[0].why) == ("reverted", 1, str(fault))


def test_a_version_of_other_means_is_refused(succession: Succession) -> None:
    client = succession.registry._client
    other = client.create_model_version(succession.model, "file:///nowhere", tags={})
    succession.advance(1, seen=None)
    by_hand(succession, int(other.version))
    found = settle(succession)
    assert (found.outcome, found.champion) == ("reverted", 1)
    assert "it was not registered by a run of this version" in found.verdicts[0].why


@pytest.mark.parametrize("fault", [PreflightError("no key to trust"), RetryableError("busy")])
def test_where_the_fault_is_ours_nothing_is_moved(
    succession: Succession, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def judge(*_) -> list[Verdict]:
        raise fault

    succession.advance(1, seen=None)
    by_hand(succession, 2)
    monkeypatch.setattr(handmoves, "judge_version", judge)
    with pytest.raises(type(fault)):
        settle(succession)
    assert succession.registry.champion(succession.model) == 2


def test_another_storage_root_takes_no_champion_away(
    succession: Succession, tmp_path: Path
) -> None:
    """Of one registry: the runs are not there, nor is the log."""
    succession.advance(1, seen=None)
    wrong = Storage(tmp_path / "wrong")
    with pytest.raises(DataError, match=r"entry 2 .* it is missing, though the registry knows of"):
        reconcile(wrong, succession.registry, succession.model)
    succession.registry._client.delete_registered_model_tag(
        succession.model, "emberline.audit_head"
    )
    with pytest.raises(SpecError, match="no run 'a' of 'fire' under"):
        reconcile(wrong, succession.registry, succession.model)
    assert succession.registry.champion(succession.model) == 1


# Races


def test_moved_again_while_it_is_judged(
    succession: Succession, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = handmoves.judge_version

    def slow(storage, registry, version, *others) -> list[Verdict]:
        if version.number == BAD:
            by_hand(succession, 2)
        return judge(storage, registry, version, *others)

    succession.advance(1, seen=None)
    by_hand(succession, BAD)
    monkeypatch.setattr(handmoves, "judge_version", slow)
    found = settle(succession)
    assert (found.outcome, found.champion, found.found) == ("accepted", 2, 2)
    assert ("reverted", 1) not in events(succession)


def test_an_alias_that_does_not_rest(
    succession: Succession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restless(storage, registry, version, *_) -> list[Verdict]:
        by_hand(succession, 5 - version.number)
        return []

    by_hand(succession, 2)
    monkeypatch.setattr(handmoves, "judge_version", restless)
    with pytest.raises(RetryableError, match="was moved by hand again and again while it was"):
        reconcile(succession.storage, succession.registry, succession.model, REVERT)


def test_many_who_look_at_once(succession: Succession) -> None:
    succession.advance(1, seen=None)
    by_hand(succession, BAD)

    def look(_: int) -> int | None:
        return reconcile(succession.storage, succession.registry, succession.model, REVERT).champion

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(look, range(6))) == [1] * 6
    assert events(succession)[2:] == [("intent", 1), ("reverted", 1)]


def test_a_promotion_under_way_is_no_move_by_hand(
    succession: Succession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks between the move and its entry waits for that."""
    make_champion = Registry.make_champion
    with ThreadPoolExecutor(1) as pool:
        looks = []

        def moving(registry: Registry, *args) -> None:
            make_champion(registry, *args)
            assert succession.glance() == Standing(2, 2)
            looks.append(pool.submit(succession.look))
            assert not wait(looks, timeout=0.5).done  # for the lease

        succession.advance(1, seen=None)
        monkeypatch.setattr(Registry, "make_champion", moving)
        succession.advance(2, seen=1)
        assert looks[0].result(120) == Standing(2, 2)
    assert events(succession)[2:] == [("intent", 2), ("promoted", 2)]


@pytest.mark.parametrize("step", ["intent", "move"])
@pytest.mark.parametrize("version", [BAD, None])
def test_a_revert_that_was_cut_off(
    succession: Succession, monkeypatch: pytest.MonkeyPatch, step: str, version: int | None
) -> None:
    succession.advance(1, seen=None)
    by_hand(succession, version)
    make_champion = Registry.make_champion

    def cut_off(registry: Registry, *args) -> None:
        if step == "move":
            make_champion(registry, *args)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "make_champion", cut_off)
        with pytest.raises(Killed):
            settle(succession)
    assert settle(succession).champion == 1
    assert unsettled(succession.log.read()) is None
    assert line_of(succession.log.read()) == [1]


def test_a_promotion_finds_that_it_was_done_by_hand(succession: Succession) -> None:
    """While it was judged, somebody else moved the alias to the same version."""
    succession.advance(1, seen=None)
    by_hand(succession, 2)
    assert not succession.advance(2, seen=1)
    assert events(succession)[-1] == ("moved_by_hand", 2)
    assert settle(succession).outcome == "unchanged"


# The end of the log


def test_the_end_of_the_log_cannot_be_cut(succession: Succession) -> None:
    succession.advance(1, seen=None)
    succession.advance(2, seen=1)
    storage, model = succession.storage, succession.model
    last = storage.local(f"audit/{model}/00000004.json")
    content = last.read_bytes()
    last.unlink()
    with pytest.raises(DataError, match=r"entry 4 .*: it is missing, though the registry knows of"):
        succession.log.read()
    with pytest.raises(DataError, match="entry 4 "):
        succession.log.append("refused", 3, 2)
    AuditLog(storage, model).append("promoted", 4, 1)  # another one in its place
    with pytest.raises(DataError, match=r"entry 4 .*: it is not the one that the registry knows"):
        succession.log.read()
    last.write_bytes(content)
    assert len(succession.log.read()) == 4


def test_a_head_that_lags_behind_is_no_damage(
    succession: Succession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer was cut off before it could tell the registry."""

    def cut_off(*_) -> None:
        raise Killed

    succession.log.append("refused", 1, None)
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "set_audit_head", cut_off)
        with pytest.raises(Killed):
            succession.log.append("refused", 2, None)
    assert len(succession.log.read()) == 2
    succession.log.append("refused", 3, None)
    head = succession.registry.audit_head(succession.model)
    assert head is not None
    assert head.startswith("3:")


# What is told


def test_no_message_holds_the_credentials_of_a_database() -> None:
    uri = "postgresql+psycopg2://mlflow:p@ss:w0rd@127.0.0.1:5432/mlflow"
    assert masked(f"MLflow at {uri} did not") == (
        "MLflow at postgresql+psycopg2://***@127.0.0.1:5432/mlflow did not"
    )
    assert masked("sqlite:////home/me@here/mlflow.db") == "sqlite:////home/me@here/mlflow.db"
    from mlflow.exceptions import MlflowException

    with pytest.raises(RetryableError) as failed, answering(uri, "did not answer", "Wait."):
        raise MlflowException(f"cannot connect to {uri}")
    assert "w0rd" not in str(failed.value)
