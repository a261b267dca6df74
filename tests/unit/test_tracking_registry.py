"""What promotion asks of MLflow's registry, on sqlite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs.errors import JobFailed, PreflightError, RetryableError, SpecError
from ray_jobs.storage import Storage
from ray_jobs.tracking.registry import (
    RUN_ID_TAG,
    TEST_DIGEST_TAG,
    WORKLOAD_TAG,
    Registry,
    tracking_uri,
)

TAGS = {RUN_ID_TAG: "a", WORKLOAD_TAG: "fire", TEST_DIGEST_TAG: "d"}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Versions 1 and 2 of `fire`, the second without tags; no alias; `empty` has no version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        home = tmp_path_factory.mktemp("registry")
        made = Registry(Storage(home))
        for name in ("fire", "empty"):
            made._client.create_registered_model(name)
        run = made._client.create_run("0")
        (home / "model").mkdir()
        for tags in (TAGS, {}):
            source = (home / "model").as_uri()
            made._client.create_model_version("fire", source, run.info.run_id, tags=tags)
        yield made


def test_a_version_and_its_tags(registry: Registry) -> None:
    version = registry.version("fire", 1)
    assert (version.number, version.workload, version.run_id) == (1, "fire", "a")
    registry.tag(version, {"emberline.gate.better": "x" * 6000})
    assert len(registry.version("fire", 1).tags["emberline.gate.better"]) == 5000


@pytest.mark.parametrize(
    ("model", "version", "message"),
    [
        ("fier", 1, r"no model 'fier' is registered at sqlite:.*; train it first, and look at"),
        ("fire", 3, "model 'fire' has no version 3; there is 2, 1; name one with --version"),
        ("fire", None, "model 'fire' has no challenger; there is 2, 1; name one with --version"),
        ("empty", None, "model 'empty' has no challenger; there is none; name one with --version"),
    ],
)
def test_what_is_not_there(
    registry: Registry, model: str, version: int | None, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        registry.version(model, version)


def test_what_was_registered_by_other_means(registry: Registry) -> None:
    with pytest.raises(PreflightError, match=r"version 2 of .fire. lacks emberline\.run_id, "):
        registry.version("fire", 2)


def test_files_that_are_gone(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(
        JobFailed, match=r"fire version 1 has no bundle at .*: it was deleted, or reg"
    ):
        registry.download(registry.version("fire", 1), tmp_path)


def test_one_champion_at_a_time(registry: Registry) -> None:
    assert registry.champion("fire") is None
    for number in (1, 2):
        registry.make_champion("fire", number)
        assert registry.champion("fire") == number


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert tracking_uri(Storage(tmp_path)) == "http://127.0.0.1:9"
    with pytest.raises(RetryableError, match=r"MLflow at http://127.0.0.1:9 did not answer: "):
        Registry(Storage(tmp_path)).champion("fire")
