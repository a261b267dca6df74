"""`emberline deploy` of models that real runs registered: from nothing to an answer over HTTP."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from ray_jobs.deploy import deploy, undeploy
from ray_jobs.deployments.history import History, standing
from ray_jobs.deployments.local import LocalDeployer
from ray_jobs.errors import JobFailed, SpecError
from ray_jobs.promote import promote
from ray_jobs.spec import load_spec
from ray_jobs.storage import Storage
from ray_jobs.tracking.registry import Registry
from ray_jobs.tracking.signing import DIGEST_TAG, SIGNATURE_TAG, Statement, index_digest, sign
from tests.conftest import start_emberline
from tests.local_deployments import Clients, put_example
from tests.unit.serving_models import PUBLISHED, WAIT_S, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

LOCAL = ("--set", "deployment.local.port=0", "--set", "deployment.record.share=0")
RULES = ("promotion.max_gap=1", "promotion.max_ece=1", "promotion.must_be_better=false")


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy, of which only the models' files are still those of the original."""
    yield shutil.copytree(trained, tmp_path / "runs")
    deployer = LocalDeployer(Storage(tmp_path / "runs"))
    for deployment in deployer.list():
        deployer.delete(deployment.name, print)


def run(root: Path, *words: str) -> Any:
    """What a command prints as JSON."""
    done = CliRunner().invoke(app, [*words, "--storage", str(root), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def lenient(root: Path) -> Any:
    return load_spec("fire", storage=str(root), overrides=[*RULES, "promotion.confidence=0.999"])


def answer(url: str) -> dict[str, Any]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=WAIT_S)
    try:
        connection.request("POST", "/invocations", PUBLISHED, {"content-type": "text/csv"})
        response = connection.getresponse()
        content = json.loads(response.read())
        assert response.status == 200, content
        return content["predictions"][0]
    finally:
        connection.close()


def has_ended(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_from_nothing_to_an_answer_and_the_end(root: Path) -> None:
    with pytest.raises(SpecError) as refused:
        deploy(str(root), "fire")
    assert str(refused.value) == (
        "model 'fire' has no champion: make one with emberline promote fire, or name a version "
        "with --version"
    )
    promote(str(root), "fire", 1)
    plan = run(root, "deploy", "fire", *LOCAL, "--dry-run")
    assert (plan["version"], plan["found"]) == (1, None)
    assert {check["name"]: check["passed"] for check in plan["checks"]}["port"] is True
    assert not (root / ".deployments").exists()

    interrupted = start_emberline("deploy", "fire", *LOCAL, "--storage", str(root), cwd=root.parent)
    assert interrupted.stderr is not None
    assert interrupted.stderr.readline().endswith("is started and asked its example\n")
    interrupted.send_signal(signal.SIGINT)
    _, said = interrupted.communicate(timeout=WAIT_S)
    assert said.startswith("interrupted; a change that had begun goes on: see emberline deploymen")
    assert interrupted.returncode == 130
    (unwatched,) = run(root, "deployments")
    assert unwatched["status"] in ("PENDING", "RUNNING")

    started = run(root, "deploy", "fire", *LOCAL, "--no-wait")
    wait_for(lambda: not psutil.pid_exists(started["pid"]) or has_ended(started["pid"]))
    (deployment,) = run(root, "deployments")
    assert run(root, "deploy", "fire", *LOCAL) == deployment  # already
    assert (deployment["status"], deployment["variants"][0]["version"]) == ("RUNNING", "1")
    said = answer(deployment["url"])
    assert 0 <= said["probability"] <= 1
    assert said["model_version"] == "1"
    asked = run(root, "deploy", "fire", *LOCAL, "--test")
    assert asked["fault"] is None
    assert asked["latency_ms"] > 0

    # Another version, whose own run knows nothing of this port, goes where the clients are.
    plan = run(root, "deploy", "fire", "--version", "2", "--dry-run")
    (port,) = (check for check in plan["checks"] if check["name"] == "port")
    assert port["found"].endswith(", where it listens already")

    storage = Storage(root)
    tags = Registry(storage).version("fire", 1).tags
    assert tags["emberline.deployed.local"].startswith("20")
    listed = run(root, "deployments")
    assert [(one["name"], one["status"], one["url"]) for one in listed] == [
        ("fire", "RUNNING", deployment["url"])
    ]
    removed = run(root, "undeploy", "fire")["removed"]
    assert removed[0] == f"the server at {deployment['url']}"
    assert run(root, "deployments") == []
    history = [(one.event, one.versions) for one in History(storage, "local", "fire").read()]
    assert history == [("interrupted", ("1",)), ("deployed", ("1",)), ("removed", ("1",))]
    assert standing(storage, "local") == {}


def test_a_follower_deploys_what_is_promoted(root: Path) -> None:
    promote(str(root), "fire", 1)
    follower = start_emberline(
        "deploy", "fire", *LOCAL, "--follow", "--interval", "0.5", "--storage", str(root), "--json",
        cwd=root.parent,
    )  # fmt: skip
    try:
        assert follower.stdout is not None
        first = json.loads(follower.stdout.readline())
        assert first["variants"][0]["version"] == "1"
        found = LocalDeployer(Storage(root)).find("fire")
        assert found is not None
        clients = Clients(found)
        promote(lenient(root), "fire", 2)
        second = json.loads(follower.stdout.readline())
        assert (second["url"], second["variants"][0]["version"]) == (first["url"], "2")
        wait_for(lambda: clients.last == "2")
        assert set(clients.stop()) == {"1", "2"}
        follower.send_signal(signal.SIGINT)
        _, stderr = follower.communicate(timeout=WAIT_S)
        assert follower.returncode == 130
        assert stderr.endswith("nothing is followed any more; what is deployed goes on\n")
        assert answer(first["url"])["model_version"] == "2"
    finally:
        follower.kill()
        follower.communicate()


def artifacts(root: Path, version: int) -> Path:
    """Where MLflow keeps a version's files."""
    registry = Registry(Storage(root))
    source = registry._client.get_model_version_download_uri("fire", str(version))
    return Path(source.removeprefix("file://")) / "artifacts" / "bundle"


def test_a_signed_model_that_answers_otherwise_is_refused(root: Path) -> None:
    """The one before still answers; and what was altered and not signed is not even started."""
    storage = Storage(root)
    where = load_spec("fire", storage=str(root), overrides=LOCAL[1::2])
    first = deploy(where, "fire", 1)
    bundle = artifacts(root, 2)
    kept = shutil.copytree(bundle, root / "kept")
    try:
        example = json.loads((bundle / "example.json").read_bytes())
        example["answer"][0]["probability"] = 1 - example["answer"][0]["probability"]
        put_example(bundle, json.dumps(example).encode())
        with pytest.raises(JobFailed, match="it was altered since"):
            deploy(where, "fire", 2)
        registry = Registry(storage)
        version = registry.version("fire", 2)
        digest = index_digest(bundle)
        signature = sign(Statement("fire", version.run_id, digest))
        registry.tag(version, {DIGEST_TAG: digest, SIGNATURE_TAG: signature})
        with pytest.raises(JobFailed, match="it does not answer its own example as recorded: pred"):
            deploy(where, "fire", 2)
    finally:
        shutil.rmtree(bundle)
        kept.rename(bundle)
    assert first.url is not None
    assert answer(first.url)["model_version"] == "1"
    history = History(storage, "local", "fire").read()
    assert [(one.event, one.versions) for one in history] == [
        ("deployed", ("1",)),
        ("refused", ("2",)),
    ]
    assert "emberline.deployed.local" not in Registry(storage).version("fire", 2).tags
    with pytest.raises(SpecError, match=r"no deployment 'other' was .* there is fire"):
        undeploy(storage, "other")


def test_options_that_do_not_go_together() -> None:
    for words, said in (
        (("--test", "--dry-run"), "--test and --dry-run do not go together; choose one"),
        (("--interval", "3"), "--interval belongs to --follow"),
        (("--follow", "--version", "3"), "--follow deploys the champion, whichever it is"),
        (("--instance-type", "ml.m5.large"), "--instance-type is of --target sagemaker"),
        (("--target", "mars"), "no target 'mars' of deployments; there is local, sagemaker"),
    ):
        done = CliRunner().invoke(app, ["deploy", "fire", *words])
        assert isinstance(done.exception, SpecError)
        assert said in str(done.exception)
