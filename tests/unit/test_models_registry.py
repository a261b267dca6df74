"""Models of MLflow's registry on sqlite: which version is meant, and its files on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import mlflow
import pytest

import ray_jobs
from ray_jobs.deployments.release import fetch
from ray_jobs.errors import JobFailed, RetryableError, SpecError
from ray_jobs.serving.model import load_model
from ray_jobs.storage import Storage
from ray_jobs.tracking.models import download, find_model
from ray_jobs.tracking.registry import RUN_ID_TAG
from ray_jobs.tracking.signing import (
    DIGEST_TAG,
    KEY_VARIABLE,
    SIGNATURE_TAG,
    TRUST_VARIABLE,
    Statement,
    index_digest,
    sign,
)
from tests.unit.serving_models import PUBLISHED, WAIT_S, fire_folder, readings, wait_for

CODE = Path(ray_jobs.__file__).parent / "tracking" / "model_code.py"
FOREST = "members/random_forest/model.skops"


@pytest.fixture(scope="module", autouse=True)
def own_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The key that signs, made for these tests, and the one that is trusted."""
    with own_signing_key(tmp_path_factory.mktemp("config")):
        yield


@contextmanager
def own_signing_key(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder))
        for name in (KEY_VARIABLE, TRUST_VARIABLE):
            patch.delenv(name, raising=False)
        yield


def register(
    root: Path, name: str, bundle: Path, *, artifacts: str = "", server: str = "", **tags: str
) -> int:
    """As a run does. Leaves MLflow's setting for the process as it was.

    Args:
        server: that has the registry; by default it is in `root`.
    """
    digest = index_digest(bundle)
    signature = sign(Statement(name, "base", digest))
    tags = {RUN_ID_TAG: "base", DIGEST_TAG: digest, SIGNATURE_TAG: signature} | tags
    mlflow.set_tracking_uri(server or f"sqlite:///{root / 'mlflow.db'}")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = artifacts or (root / "mlartifacts").as_uri()
        experiment_id = client.create_experiment(
            name, artifact_location=None if server else f"{location}/{name}"
        )
    else:
        experiment_id = experiment.experiment_id
    with TemporaryDirectory() as scratch, mlflow.start_run(experiment_id=experiment_id):
        folder = shutil.copytree(bundle, Path(scratch) / "bundle")  # its name is kept
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(CODE),
            artifacts={"bundle": str(folder)},
            pip_requirements=["numpy"],
            registered_model_name=name,
            tags=tags,
        )
    mlflow.set_tracking_uri(None)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return int(info.registered_model_version)


@pytest.fixture(scope="module")
def registry(own_key: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage root with `fire`: versions 1 (champion), 2 (challenger) and 3; and `other`, which
    has no alias."""
    root = tmp_path_factory.mktemp("registry")
    for _ in range(3):
        register(root, "fire", fire_folder())
    register(root, "other", fire_folder())
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    client.set_registered_model_alias("fire", "champion", "1")
    client.set_registered_model_alias("fire", "challenger", "2")
    return root


@pytest.fixture
def storage(registry: Path) -> Storage:
    return Storage(registry)


# Which version


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (None, (1, "champion")),
        ("champion", (1, "champion")),
        ("challenger", (2, "challenger")),
        ("3", (3, None)),
        (3, (3, None)),
    ],
)
def test_by_number_or_alias_and_the_champion_by_default(
    storage: Storage, asked: int | str | None, found: tuple[int, str | None]
) -> None:
    model = find_model(storage, "fire", asked)
    assert (model.version, model.alias) == found
    assert (model.name, model.uri) == ("fire", f"models:/fire/{found[0]}")
    assert model.tags[DIGEST_TAG] == index_digest(fire_folder())
    assert model.run_id


def test_without_a_champion_the_challenger(storage: Storage) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{storage.local('mlflow.db')}")
    client.delete_registered_model_alias("fire", "champion")
    try:
        assert str(find_model(storage, "fire")) == "fire version 2 (challenger)"
    finally:
        client.set_registered_model_alias("fire", "champion", "1")
    assert str(find_model(storage, "fire")) == "fire version 1 (champion)"


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("fier", None, "no model 'fier' is registered at sqlite:///"),
        ("fier", None, "; there is fire, other"),
        ("../fire", None, "no model '../fire' is registered at "),
        (
            "fire",
            "4",
            "model 'fire' has no version '4'; there is 3, 2, 1, challenger (2), champion (1). "
            "Name one with --version",
        ),
        ("fire", "best", "model 'fire' has no version 'best'; there is 3, 2, 1, challenger (2)"),
        ("other", None, "model 'other' has neither a champion nor a challenger; there is 1. Name"),
    ],
)
def test_what_there_is_not(storage: Storage, name: str, version: str | None, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        find_model(storage, name, version)
    assert message in str(refused.value)


def test_a_look_where_nothing_is_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no model is registered under"):
        find_model(Storage(tmp_path / "runs"), "fire")
    assert not (tmp_path / "runs").exists()


def test_a_registry_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RetryableError) as failed:
        find_model(Storage(tmp_path), "fire")
    assert str(failed.value).startswith("MLflow at http://127.0.0.1:9 did not answer: ")


# Its files


def test_the_bundle_comes_whole_and_once(storage: Storage, tmp_path: Path) -> None:
    model = find_model(storage, "fire")
    folder = download(model, tmp_path)
    assert folder == tmp_path / index_digest(fire_folder())
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    x = readings(5, 1)
    want, got = (load_model(one).scorer._bundle.score(x) for one in (fire_folder(), folder))
    assert got.tolist() == want.tolist()
    (folder / "seen").touch()  # it is not fetched again
    assert (download(model, tmp_path) / "seen").exists()


@pytest.mark.parametrize("fault", ["altered", "missing", "index"])
def test_a_copy_that_was_spoiled_is_fetched_anew(
    storage: Storage, tmp_path: Path, fault: str
) -> None:
    model = find_model(storage, "fire")
    folder = download(model, tmp_path)
    if fault == "missing":
        (folder / FOREST).unlink()
    else:
        (folder / (FOREST if fault == "altered" else "bundle.json")).write_bytes(b"{}")
    folder = download(model, tmp_path)
    assert load_model(folder, digest=index_digest(fire_folder())).workload == "fire"


def test_models_lie_beside_the_runs(registry: Path) -> None:
    release = fetch(Storage(str(registry)), "fire", "3")
    assert (release.model.version, release.bundle.parent) == (3, registry / ".models")


def test_of_what_lies_there_the_newest_are_kept(storage: Storage, tmp_path: Path) -> None:
    """And what a process serves."""
    for number in range(12):
        old = tmp_path / f"{number:064x}"
        (old / "members").mkdir(parents=True)
        os.utime(old, (number, number))
    (tmp_path / "notes").mkdir()
    served = tmp_path / f"{0:064x}"
    yesterday = time.time() - 2 * 86400
    recent = tmp_path / f"{1:064x}"
    os.utime(recent)
    with subprocess.Popen([sys.executable, "-c", "input()", "--model", str(served)],
                          stdin=subprocess.PIPE) as server:  # fmt: skip
        try:
            folder = download(find_model(storage, "fire"), tmp_path)
        finally:
            server.kill()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {folder.name, "notes", *(f"{number:064x}" for number in (0, 1, *range(4, 12)))}
    os.utime(folder, (yesterday, yesterday))
    download(find_model(storage, "fire"), tmp_path)
    assert folder.stat().st_mtime > yesterday + 86400  # it counts from when it was asked for


# Poisoned models


@pytest.fixture
def poisoned(tmp_path: Path) -> Callable[..., tuple[Storage, Path]]:
    """Registers a bundle; returns the storage and where the registry keeps it."""

    def registered(bundle: Path | None = None, **tags: str) -> tuple[Storage, Path]:
        root = tmp_path / "runs"
        root.mkdir()
        register(root, "fire", bundle or fire_folder(), **tags)
        (index,) = root.rglob("bundle.json")
        return Storage(root), index.parent

    return registered


def refusal(storage: Storage, folder: Path) -> str:
    """Of the download, or of the load after it."""
    with pytest.raises(JobFailed) as refused:
        load_model(download(find_model(storage, "fire", 1), folder))
    assert not list(folder.glob("*.tmp"))  # nothing is left behind
    return str(refused.value)


@pytest.mark.parametrize("place", ["", "members", FOREST])
def test_a_link_is_refused(
    poisoned: Callable[..., tuple[Storage, Path]], tmp_path: Path, place: str
) -> None:
    storage, bundle = poisoned()
    linked = bundle / place
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    assert refusal(storage, tmp_path / "cache") == (
        f"fire version 1: {f'bundle/{place}'.rstrip('/')} is a link or no plain file; nothing of "
        "it is loaded"
    )
    assert not list((tmp_path / "cache").iterdir())


def test_swapped_weights_are_refused(
    poisoned: Callable[..., tuple[Storage, Path]], tmp_path: Path
) -> None:
    """With an index that vouches for them."""
    storage, bundle = poisoned()
    (bundle / FOREST).write_bytes(b"cos\nsystem\n(S'touch poisoned'\ntR.")
    index = json.loads((bundle / "bundle.json").read_text())
    index["files"][FOREST] = hashlib.sha256((bundle / FOREST).read_bytes()).hexdigest()
    (bundle / "bundle.json").write_text(json.dumps(index))
    said = refusal(storage, tmp_path / "cache")
    assert said.startswith("fire version 1: its bundle.json has sha256 ")
    assert f"but {index_digest(fire_folder())} was registered: it was altered since" in said
    assert not Path("poisoned").exists()


def test_a_file_that_nobody_vouches_for_is_refused(
    poisoned: Callable[..., tuple[Storage, Path]], tmp_path: Path
) -> None:
    storage, bundle = poisoned()
    (bundle / "model.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    said = "the model's file model.pkl is not in its bundle.json; remove it"
    assert refusal(storage, tmp_path / "cache") == said


def test_a_file_outside_the_folder_is_refused(
    poisoned: Callable[..., tuple[Storage, Path]], tmp_path: Path
) -> None:
    """Though it is signed."""
    copy = shutil.copytree(fire_folder(), tmp_path / "copy")
    index = json.loads((copy / "bundle.json").read_text())
    index["files"]["../secret"] = hashlib.sha256(b"").hexdigest()
    (copy / "bundle.json").write_text(json.dumps(index))
    storage, _ = poisoned(copy)
    said = "the model's file ../secret is not within its folder"
    assert [refusal(storage, tmp_path / "cache") for _ in range(2)] == [said, said]


@pytest.mark.parametrize("tag", [SIGNATURE_TAG, DIGEST_TAG, RUN_ID_TAG])
def test_what_is_not_signed_is_refused(
    poisoned: Callable[..., tuple[Storage, Path]], tmp_path: Path, tag: str
) -> None:
    storage, _ = poisoned()
    client = mlflow.MlflowClient(f"sqlite:///{storage.local('mlflow.db')}")
    client.delete_model_version_tag("fire", "1", tag)
    assert refusal(storage, tmp_path / "cache") == (
        f"fire version 1 is not signed: it lacks the tag {tag}; train and register it again, or "
        "name another with --version"
    )
    client.set_model_version_tag("fire", "1", tag, "0" * 64)
    assert refusal(storage, tmp_path / "cache").startswith("fire version 1: ")
    assert not (tmp_path / "cache").exists()


def test_a_version_without_a_bundle(
    poisoned: Callable[..., tuple[Storage, Path]], tmp_path: Path
) -> None:
    storage, bundle = poisoned()
    shutil.rmtree(bundle)
    assert "fire version 1 has no bundle at " in refusal(storage, tmp_path / "cache")


# An artifact store elsewhere


@pytest.mark.slow
def test_a_bundle_on_s3(bucket: str, tmp_path: Path) -> None:
    register(tmp_path, "fire", fire_folder(), artifacts=f"s3://{bucket}/mlartifacts")
    model = find_model(Storage(tmp_path), "fire", 1)
    folder = download(model, tmp_path / "cache")
    assert folder.name == index_digest(fire_folder())
    assert load_model(folder, digest=folder.name).workload == "fire"


# emberline serve


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_serve_says_which_model_it_is(registry: Path) -> None:
    code = (
        "import sys; from pipelines.serving import serve; "
        "sys.exit(serve(sys.argv[1], 'fire', None, '127.0.0.1', 0))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(registry)], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            assert process.stderr.readline() == "model fire version 1 (champion)\n"
            url = process.stderr.readline().split()[-1]
            wait_for(lambda: httpx2.get(f"{url}/ping").status_code == 200)
            about = httpx2.get(f"{url}/version").json()
            digest = index_digest(fire_folder())
            assert {key: about[key] for key in ("name", "version", "digest")} == {
                "name": "fire",
                "version": "1",
                "digest": digest,
            }
            headers = {"content-type": "text/csv"}
            answer = httpx2.post(f"{url}/invocations", content=PUBLISHED, headers=headers).json()
            (said,) = answer["predictions"]
            assert 0 <= said["probability"] <= 1
            process.terminate()
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()
