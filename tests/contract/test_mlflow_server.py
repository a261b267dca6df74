"""The gate, the audit log, downloads, moves by hand and webhooks against MLflow's own server with
PostgreSQL behind it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx2
import pytest
from mlflow import MlflowClient

from pipelines import prediction
from ray_jobs.deployments.local import LocalDeployer
from ray_jobs.deployments.release import fetch
from ray_jobs.errors import RetryableError, SpecError
from ray_jobs.promote import Refused, promote, reconcile, rollback
from ray_jobs.serving.model import load_model
from ray_jobs.spec import load_spec
from ray_jobs.storage import Storage
from ray_jobs.tracking.audit import AuditLog
from ray_jobs.tracking.registry import (
    AUDIT_HEAD_TAG,
    RUN_ID_TAG,
    TEST_DIGEST_TAG,
    WORKLOAD_TAG,
    Registry,
    masked,
)
from ray_jobs.tracking.succession import Succession
from ray_jobs.webhooks.app import PATH
from ray_jobs.webhooks.registration import register
from ray_jobs.webhooks.signature import SECRET_VARIABLE
from tests.conftest import start_emberline, train
from tests.contract.mlflow_server import PASSWORD, mlflow_server, postgresql
from tests.local_deployments import answering, deployments
from tests.unit.serving_models import PUBLISHED, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SECRET = "a secret that both of them know"
RUNS = {
    "good": ("members=[random_forest]", "members.random_forest.num_trees=20"),
    "worse": ("members=[logistic_regression]",),
}
LENIENT = ("promotion.max_gap=1", "promotion.max_ece=1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a user whose MLFLOW_TRACKING_URI names a server."""
    home = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch, postgresql() as backend:
        patch.setenv("XDG_CONFIG_HOME", str(home / "config"))
        for name in ("EMBERLINE_SIGNING_KEY", "EMBERLINE_TRUSTED_KEYS", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        with mlflow_server(backend, home) as url:
            (home / "url").write_text(url)
            (home / "backend").write_text(backend)
            yield home


@pytest.fixture(autouse=True)
def url(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = (home / "url").read_text()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    return url


@pytest.fixture(scope="module")
def trained(home: Path) -> Path:
    """Two runs, each a version of `fire`."""
    runs = [
        (run_id, load_spec("fire", overrides=["data.samples=1500", *LENIENT, *overrides]))
        for run_id, overrides in RUNS.items()
    ]
    train(home, runs, MLFLOW_TRACKING_URI=(home / "url").read_text())
    return home / "runs"


@pytest.fixture
def client(url: str) -> MlflowClient:
    return MlflowClient(url)


@pytest.fixture
def root(trained: Path, tmp_path: Path, client: MlflowClient) -> str:
    """A copy of the runs, as if none had ever been promoted."""
    client.delete_registered_model_alias("fire", "champion")
    if AUDIT_HEAD_TAG in client.get_registered_model("fire").tags:
        client.delete_registered_model_tag("fire", AUDIT_HEAD_TAG)
    return str(shutil.copytree(trained, tmp_path / "runs"))


def champion(root: str) -> int | None:
    return Registry(Storage(root)).champion("fire")


def test_promoted_refused_and_rolled_back(root: str) -> None:
    assert not (Path(root) / "mlflow.db").exists()
    assert promote(root, "fire", 1).outcome == "promoted"
    with pytest.raises(Refused, match="better: "):
        promote(root, "fire", 2)
    assert champion(root) == 1
    easy = load_spec(
        "fire",
        storage=root,
        overrides=[*LENIENT, "promotion.must_be_better=false", "promotion.confidence=0.999"],
    )
    assert promote(easy, "fire", 2).outcome == "promoted"
    assert (rollback(root, "fire").version, champion(root)) == (1, 1)
    log = AuditLog(Storage(root), "fire", Registry(Storage(root)))
    assert [entry.event for entry in log.read()] == [
        "intent", "promoted", "refused", "intent", "promoted", "intent", "rolled_back",
    ]  # fmt: skip


def test_ten_promoters_at_once(client: MlflowClient, tmp_path: Path) -> None:
    client.create_registered_model("race")
    run = client.create_run("0")
    tags = {RUN_ID_TAG: "a", WORKLOAD_TAG: "fire", TEST_DIGEST_TAG: "d"}
    for _ in range(10):
        client.create_model_version("race", run.info.artifact_uri, run.info.run_id, tags=tags)
    succession = Succession(Storage(tmp_path), Registry(Storage(tmp_path)), "race")

    def attempt(version: int) -> bool:
        try:
            return succession.advance(version, seen=None)
        except RetryableError:  # as it is told: see the audit log
            return False

    with ThreadPoolExecutor(10) as pool:
        won = list(pool.map(attempt, range(1, 11)))
    assert sum(won) == 1
    assert succession.registry.champion("race") == won.index(True) + 1
    assert Counter(entry.event for entry in succession.log.read()) == {
        "intent": 1, "promoted": 1, "outrun": 9,
    }  # fmt: skip


def test_files_come_through_the_server(root: str, tmp_path: Path) -> None:
    release = fetch(Storage(root), "fire", "1")
    loaded = load_model(release.bundle, digest=release.digest)
    assert (release.model.version, loaded.workload) == (1, "fire")
    (tmp_path / "rows.csv").write_text(f"{PUBLISHED}\n{PUBLISHED}\n")
    found = prediction.predict(
        root, "fire", "1", str(tmp_path / "rows.csv"), str(tmp_path / "out.csv")
    )
    assert found.num_predictions == 2
    assert (tmp_path / "out.csv").read_text().startswith("file,row,probability,decision,model_ver")


def test_a_champion_that_was_made_by_hand(root: str, client: MlflowClient) -> None:
    promote(root, "fire", 1)
    client.set_registered_model_alias("fire", "champion", "2")
    found = reconcile(root, "fire")
    assert (found.outcome, champion(root), found.exit_code) == ("reverted", 1, 6)
    assert found.warning is not None
    assert "the gate refuses that (better: " in found.warning
    client.delete_registered_model_alias("fire", "champion")
    again = promote(root, "fire", 1)
    assert (again.outcome, champion(root)) == ("unchanged", 1)
    assert "was deleted by hand; there is nothing to judge; it was moved back" in again.warnings[0]
    easy = load_spec("fire", storage=root, overrides=[*LENIENT, "promotion.moved_by_hand=accept"])
    client.set_registered_model_alias("fire", "champion", "2")
    assert (reconcile(easy, "fire").outcome, champion(root)) == ("accepted", 2)
    assert (rollback(root, "fire").version, champion(root)) == (1, 1)


def test_a_moved_alias_is_deployed_by_a_webhook(
    root: str, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From `emberline promote`, or a hand in the registry, to an answer over HTTP."""
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    receiver = start_emberline(
        "webhook", "--model", "fire", "--target", "local", "--register", "--storage", root,
        "--port", "0", "--interval", "600", "--set", "deployment.local.port=0", cwd=Path(root),
    )  # fmt: skip
    try:
        assert receiver.stderr is not None
        said = receiver.stderr.readline()
        assert said.startswith("webhook registered: http://127.0.0.1:"), receiver.stderr.read()
        (webhook,) = client.list_webhooks()
        rollouts = partial(_rollouts, webhook.url)
        wait_for(lambda: rollouts() == [("SUCCEEDED", None)])
        promote(root, "fire", 1)
        wait_for(lambda: len(rollouts()) == 2)
        assert rollouts()[0] == ("SUCCEEDED", 1)
        deployment = LocalDeployer(Storage(root)).find("fire")
        assert deployment is not None
        assert answering(deployment) == "1"
        # By hand, to a version that the gate refuses: it is moved back, which is an event, too.
        client.set_registered_model_alias("fire", "champion", "2")
        wait_for(lambda: rollouts()[:2] == 2 * [("SUCCEEDED", 1)] and len(rollouts()) == 4)
        assert (champion(root), answering(deployment)) == (1, "1")
        easy = [*LENIENT, "promotion.must_be_better=false", "promotion.confidence=0.999"]
        promote(load_spec("fire", storage=root, overrides=easy), "fire", 2)
        wait_for(lambda: len(rollouts()) == 5)
        assert rollouts()[0] == ("SUCCEEDED", 2)
        assert answering(deployment) == "2"  # at the same port
        # The server's own test names a model that is not deployed from here.
        tried = client.test_webhook(webhook.webhook_id)
        assert (tried.success, tried.response_status) == (False, 400)
        assert "model 'example_model' is not deployed from here" in tried.response_body
        # Nor is anything deployed for who does not know the secret.
        assert not register(Storage(root), "emberline-fire", webhook.url, b"x" * 20)
        assert len(client.list_webhooks()) == 1
        tried = client.test_webhook(webhook.webhook_id)
        assert (tried.success, tried.response_status) == (False, 401)
        assert len(rollouts()) == 5
    finally:
        receiver.terminate()
        said += receiver.communicate(timeout=120)[1]
        for webhook in client.list_webhooks():
            client.delete_webhook(webhook.webhook_id)
        with deployments(Path(root)):
            pass  # it removes them
    assert receiver.returncode == 0, said
    assert SECRET not in said


def _rollouts(url: str) -> list[tuple[str, int | None]]:
    """Status and version of those that have ended, the newest first."""
    found = httpx2.get(url.removesuffix(PATH) + "/status").json()["deployments"]
    return [(one["status"], one["version"]) for one in found]


def test_what_the_server_refuses_is_told(root: str) -> None:
    with pytest.raises(SpecError, match=r"refuses the webhook ftp://.*MLFLOW_WEBHOOK_ALLOWED_SCH"):
        register(Storage(root), "emberline-fire", "ftp://127.0.0.1/webhook", SECRET.encode())


def test_a_database_without_a_server(
    home: Path, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promotion works on it, webhooks do not; its password is in no message."""
    backend = (home / "backend").read_text()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", backend)
    assert Registry(Storage(root)).champion("fire") is None
    with pytest.raises(SpecError) as refused:
        register(Storage(root), "emberline-fire", "http://127.0.0.1:1/webhook", SECRET.encode())
    said = [str(refused.value)]
    with pytest.raises(SpecError) as refused:
        Registry(Storage(root)).version("fier")
    said.append(str(refused.value))
    assert all(masked(backend) in text and PASSWORD not in text for text in said)
