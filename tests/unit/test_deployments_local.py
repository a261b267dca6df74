"""Local deployments: one version takes the place of another, or is refused."""

from __future__ import annotations

import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from ray_jobs.deployments.base import Deployment, Release
from ray_jobs.deployments.documents import State, Wanted
from ray_jobs.deployments.local import LocalDeployer
from ray_jobs.deployments.process import LogPart, Process, rotate
from ray_jobs.deployments.supervisor import Supervisor
from ray_jobs.errors import JobFailed, PreflightError, SpecError
from ray_jobs.monitoring.records import read_records
from ray_jobs.storage import Storage
from ray_jobs.tracking.signing import index_digest
from tests.local_deployments import (
    Clients,
    answering,
    deploy,
    deployments,
    put_example,
    release,
    spec,
    state,
)
from tests.unit.serving_models import CSV, PUBLISHED, wait_for


@pytest.fixture
def deployer(tmp_path: Path) -> Iterator[LocalDeployer]:
    with deployments(tmp_path) as deployer:
        yield deployer


def versions(deployment: Deployment | None) -> list[str]:
    assert deployment is not None
    return [variant.version for variant in deployment.variants]


# With real processes


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_one_version_takes_the_place_of_another(deployer: LocalDeployer, tmp_path: Path) -> None:
    said: list[str] = []
    records = {"record": {"share": 1}}
    first = deployer.deploy(release(1), spec(**records), say=said.append)
    assert (first.status, first.reason, versions(first)) == ("RUNNING", None, ["1"])
    assert answering(first) == "1"
    assert deployer.deploy(release(1), spec(**records), say=said.append) == first
    assert said == [
        "fire: version 1 of fire is started and asked its example",
        "fire: version 1 is deployed already",
    ]

    clients = Clients(first)
    wait_for(lambda: clients.last == "1")
    worker = state(deployer).worker
    second = deployer.deploy(release(2), spec(**records), say=said.append)
    assert (second.url, versions(second)) == (first.url, ["2"])
    assert worker is not None
    wait_for(lambda: not worker.is_alive)  # it has answered its last
    # One that does not answer as recorded; the one before never stops to answer.
    with pytest.raises(JobFailed) as refused:
        deployer.deploy(release(3, lies=True), spec(**records), say=said.append)
    answered = clients.stop()  # without an error
    assert set(answered) == {"1", "2"}
    assert "1" not in answered[answered.index("2") + 100 :]
    assert str(refused.value).startswith(
        "version 3 of 'fire' is not deployed: it does not answer its own example as recorded: "
        "prediction 1: probability: it is "
    )
    assert str(refused.value).endswith("; version 2 stays")
    found = deployer.find("fire")
    assert found is not None
    assert (found.status, versions(found)) == ("RUNNING", ["2"])
    assert found.reason is not None
    assert found.reason.startswith("the last change was taken back: it does not answer")
    assert b"predictions" in deployer.invoke("fire", PUBLISHED.encode(), CSV)
    with pytest.raises(JobFailed, match="answers 422: row 1"):
        deployer.invoke("fire", b"1,2", CSV)

    pids = [state(deployer).supervisor, state(deployer).worker]
    removed = deployer.delete("fire", said.append)
    assert not any(process and process.is_alive for process in pids)
    assert removed[0] == f"the server at {first.url}"
    assert deployer.list() == []
    recorded = Counter(record.version for record in read_records(Storage(tmp_path), "fire"))
    assert recorded.keys() == {"1", "2"}
    # Before the clients one, after them two; that each was asked its example is not recorded.
    assert recorded <= Counter({"1": 1, "2": 2}) + Counter(answered)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_challenger_beside_it(deployer: LocalDeployer) -> None:
    split = {"challenger": {"version": "2", "mode": "split", "weight": 0.5}}
    deployment = deployer.deploy(release(1), spec(**split), challenger=release(2), say=print)
    assert [(one.version, one.weight) for one in deployment.variants] == [("1", 0.5), ("2", 0.5)]
    assert {answering(deployment) for _ in range(50)} == {"1", "2"}
    with pytest.raises(JobFailed, match="version 1 and 3 of 'fire' is not deployed: it does not"):
        deployer.deploy(release(1), spec(**split), challenger=release(3, lies=True), say=print)
    assert {answering(deployment) for _ in range(50)} == {"1", "2"}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_first_that_is_refused_leaves_nothing_at_work(deployer: LocalDeployer) -> None:
    hurried = spec(local={"port": 0, "start_timeout_s": 0.01})
    with pytest.raises(JobFailed) as refused:
        deployer.deploy(release(1), hurried, say=print)
    assert str(refused.value) == (
        "version 1 of 'fire' is not deployed: it was not ready within 0.01 s; set "
        "deployment.local.start_timeout_s; nothing is deployed"
    )
    wait_for(lambda: not state(deployer).supervisor.is_alive)
    found = deployer.find("fire")
    assert found is not None
    assert (found.status, found.variants, found.url) == ("FAILED", (), None)
    with pytest.raises(PreflightError, match="'fire' does not answer: it was not ready"):
        deployer.invoke("fire", b"", CSV)
    # A port that is taken.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(JobFailed, match=f"cannot listen on 127.0.0.1:{port}: Address already"):
            deploy(deployer, 1, local={"port": port})


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_at_once_are_deployed_one_after_the_other(deployer: LocalDeployer) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(deploy, deployer, version) for version in (1, 2)]
        done = [deployment.result() for deployment in both]
    assert sorted(map(versions, done)) == [["1"], ["2"]]
    found = deployer.find("fire")
    assert found is not None
    assert [answering(found)] == versions(found)
    assert len({one.details["supervisor"] for one in done}) == 1


# Without


def test_a_log_is_begun_anew(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    rotate(log, 100)  # there is none yet
    with log.open("ab", buffering=0) as file:
        file.write(b"x" * 60)
        rotate(log, 100)
        part = LogPart.of(log)
        file.write(b"y" * 60)
        rotate(log, 100)
        assert (log.with_name("worker.log.1").read_text(), log.read_text()) == (
            "x" * 60 + "y" * 60,
            "",
        )
        file.write(b"error: of now")
    assert log.read_text() == part.read() == "error: of now"


def test_a_log_that_cannot_be_kept_is_begun_anew(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_bytes(b"x" * 200)
    log.with_name("worker.log.1").mkdir()
    with pytest.raises(IsADirectoryError):
        rotate(log, 100)
    assert log.read_bytes() == b""


def test_a_full_disk_does_not_end_a_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = False
    with (
        suppress(OSError),  # as of closing it
        Path("/dev/full").open("w", buffering=1) as full,
        monkeypatch.context() as patch,
    ):
        patch.setattr("sys.stderr", full)
        Supervisor(tmp_path)._say("nobody can write this")
        goes_on = True
    assert goes_on


def test_what_cannot_be_a_name(deployer: LocalDeployer) -> None:
    for name in ("../fire", "a b", ".fire", "x" * 64):
        with pytest.raises(SpecError, match="cannot be the name of a deployment"):
            deploy(deployer, 1, name=name)
        assert deployer.find(name) is None
    checklist = deployer.check("fire", spec(name="a/b"))
    assert [check.name for check in checklist.failed] == ["name"]


def test_a_model_without_an_example(deployer: LocalDeployer, tmp_path: Path) -> None:
    bundle = shutil.copytree(release(1).bundle, tmp_path / "bundle")
    put_example(bundle, None)
    bundle = bundle.rename(bundle.with_name(index_digest(bundle)))
    with pytest.raises(JobFailed, match=r"has no example\.json .* train it again"):
        deployer.deploy(Release(release(1).model, bundle), spec(), say=print)
    assert deployer.list() == []


def test_names_of_other_models_and_machines(deployer: LocalDeployer) -> None:
    folder = deployer._folder("fire")
    (folder / "models").mkdir(parents=True)
    wanted = Wanted(
        revision="1", model="waste", variants=(), host="127.0.0.1", port=0, start_timeout_s=1,
        record_uri="", record_share=0, record_max_mb=1,
    )  # fmt: skip
    wanted.write(folder / "wanted.json")
    with pytest.raises(SpecError, match="'fire' is a deployment of the model 'waste'; set deploy"):
        deploy(deployer, 1)
    wanted.model_copy(update={"model": "fire"}).write(folder / "wanted.json")
    elsewhere = Process.of().model_copy(update={"host": "elsewhere"})
    State(supervisor=elsewhere, revision="1", outcome="done", host="127.0.0.1", port=1).write(
        folder / "state.json"
    )
    with pytest.raises(
        PreflightError, match="is deployed on elsewhere: change it there, or remove"
    ):
        deploy(deployer, 1)
    assert deployer.delete("fire", print) == [f"{folder}, with 1 model and its logs"]


def test_what_is_not_there(deployer: LocalDeployer) -> None:
    for act in (
        lambda: deployer.delete("fire", print),
        lambda: deployer.invoke("fire", b"", CSV),
    ):
        with pytest.raises(SpecError, match="no deployment 'fire' on this machine; there is none"):
            act()


def test_a_taken_port_is_told_before(deployer: LocalDeployer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (failed,) = deployer.check("fire", spec(local={"port": port})).failed
        assert failed.found == (
            f"cannot listen on 127.0.0.1:{port}: Address already in use; set deployment.local.host "
            "or deployment.local.port"
        )
    assert not deployer.check("fire", spec(local={"port": port})).failed


def test_a_process_is_more_than_its_number() -> None:
    process = Process.of()
    assert process.is_alive
    assert process.pid == os.getpid()
    assert not process.model_copy(update={"created": process.created - 60}).is_alive
    assert not process.model_copy(update={"host": "elsewhere"}).is_alive


def test_a_release_is_called_by_its_digest() -> None:
    assert release(1).digest == index_digest(release(1).bundle)
    assert release(1).digest != release(2).digest
    assert replace(release(1), model=release(2).model).digest == release(1).digest
