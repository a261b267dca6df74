"""A real S3 server that is killed: once it is back, a run has lost nothing; if it stays away, the
run ends so that the same command goes on from there."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import ray_runtime
from ray_jobs.events import read_events
from ray_jobs.result import Metrics
from ray_jobs.run import Run
from ray_jobs.sections import ResourceSpec
from ray_jobs.storage import Storage, StorageUnavailable
from ray_jobs.tracking import exclusive
from tests.chaos.fire_job import (
    JOB,
    MEMBERS,
    UNTRACKED,
    assert_to_be_retried,
    assert_whole,
    num_started,
    result_of,
    run_here,
    upon,
)
from tests.s3_server import S3Server
from tests.sagemaker_emulator.proxy import Proxy

pytest_plugins = ["tests.s3_fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = "s3://runs/root"
# Requests in a run's four parts: its data, a network's checkpoints, its model, and what comes last.
DATA, STEPS, MODEL = r"/datasets/", r"/lstm_classifier/steps-", r"/mlartifacts/"
TRAINED = r"/lstm_classifier/val-predictions"  # its files, once its checkpoints are written
END = r"/calm/result\.json\?uploads"
DOWN_S = 1.0  # and as long as it takes to start


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Metrics]:
    """The metrics of a run on a local folder."""
    with ray_runtime.session(ResourceSpec(num_cpus=2)):
        return result_of(run_here(str(tmp_path_factory.mktemp("runs")), *UNTRACKED)).metrics


@pytest.fixture
def proxy(
    mortal_minio: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Proxy]:
    """What jobs take for the server: it passes on what comes, and breaks the connection where
    nobody listens. MLflow's registry is in `tmp_path`."""
    from mlflow.store.artifact.s3_artifact_repo import _cached_get_s3_client

    _cached_get_s3_client.cache_clear()  # it keeps the address of an earlier test's
    proxy = Proxy(mortal_minio.url)
    with proxy.serving():
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.chdir(tmp_path)
        yield proxy


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.fixture
def ray_here(proxy: Proxy) -> Iterator[None]:
    """A Ray whose workers use the server, as this process does now."""
    with ray_runtime.session(ResourceSpec(num_cpus=2)):
        yield


@pytest.fixture
def die(mortal_minio: S3Server) -> Iterator[Callable[[], None]]:
    """Kills the server, which is started again a while later."""
    restarts: list[threading.Thread] = []

    def restart() -> None:
        time.sleep(DOWN_S)
        mortal_minio.start()

    def kill() -> None:
        for earlier in restarts:
            earlier.join()
        mortal_minio.kill()
        restarts.append(threading.Thread(target=restart))
        restarts[-1].start()

    yield kill
    for thread in restarts:
        thread.join()


def assert_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was registered is all there."""
    import mlflow
    import pandas as pd

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path.cwd() / 'runs' / 'mlflow.db'}")
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    version = mlflow.MlflowClient().get_model_version_by_alias("fire", "challenger")
    assert version.version == 1
    model = mlflow.pyfunc.load_model("models:/fire@challenger")
    names = model.metadata.get_input_schema().input_names()
    assert len(model.predict(pd.DataFrame([dict.fromkeys(names, 20.0)] * 8))) == 8


@pytest.mark.usefixtures("ray_here")
def test_a_server_that_dies_four_times_costs_a_run_nothing(
    undisturbed: dict[str, Metrics],
    proxy: Proxy,
    die: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(1)
    moments = {DATA: rng.randint(1, 12), STEPS: rng.randint(1, 12), MODEL: 5, END: 1}
    left = upon(proxy, monkeypatch, moments, die)
    result = result_of(run_here(ROOT, *JOB))
    assert max(left.values()) <= 0, left
    run = Run.open(ROOT, "fire", "calm")
    assert_whole(run, result, undisturbed)
    assert [num_started(run, name) for name in MEMBERS] == [1, 1]
    assert_model_loads(monkeypatch)


@pytest.mark.usefixtures("impatient", "ray_here")
def test_a_server_that_stays_away_ends_a_run_and_the_same_command_goes_on(
    undisturbed: dict[str, Metrics],
    proxy: Proxy,
    mortal_minio: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for moment in ({TRAINED: 1}, {MODEL: 5}):
        with monkeypatch.context() as patch:
            left = upon(proxy, patch, moment, mortal_minio.kill)
            cut_off = run_here(ROOT, *JOB)
            assert max(left.values()) <= 0, (left, cut_off.stderr[-1500:])
        assert_to_be_retried(cut_off, "does not answer|could be written|did not take the run")
        mortal_minio.start()
    result = result_of(run_here(ROOT, *JOB))
    run = Run.open(ROOT, "fire", "calm")
    assert_whole(run, result, undisturbed)
    assert "resumed" in {event["event"] for event in read_events(run.storage, run.folder)}
    assert_model_loads(monkeypatch)


def test_what_is_created_once_is_so_through_a_servers_deaths(
    mortal_minio: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several writers go through the same names; at times the server dies when it has written, and
    before it has said so. Of each name exactly one writer is told that it created it."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "8")
    storage, lock, num_written = Storage(ROOT), threading.Lock(), [0]

    def die(response: Any, **_: Any) -> int | None:
        if response is None or response[0].status_code != 200:
            return None
        with lock:
            num_written[0] += 1
            if num_written[0] % 8:
                return None
            mortal_minio.kill()
            mortal_minio.start()
        return 0  # seconds until the request is sent again

    make = exclusive._client

    def client() -> Any:
        made = make()
        made.meta.events.register_first("needs-retry.s3.PutObject", die)
        return made

    def write(writer: int) -> list[bool]:
        return [
            exclusive.create(storage, f"once/{file:03d}", f"{writer}".encode())
            for file in range(30)
        ]

    monkeypatch.setattr(exclusive, "_client", client)
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(write, range(4)))
    assert num_written[0] >= 30
    for file in range(30):
        winners = [f"{writer}" for writer, answers in enumerate(told) if answers[file]]
        assert winners == [storage.read_text(f"once/{file:03d}")], file


def test_a_file_that_is_written_over_stays_whole_through_a_servers_deaths(
    mortal_minio: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write is one upload in two parts; what the server has confirmed it keeps."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    storage, size, rng = Storage(ROOT), 11 << 20, random.Random(6)
    storage.write_bytes("file", b"\0" * size)
    confirmed, num_cut_off, done = 0, 0, threading.Event()

    def die() -> None:
        while not done.wait(rng.uniform(0.02, 0.3)):
            mortal_minio.kill()
            mortal_minio.start()

    killer = threading.Thread(target=die)
    killer.start()
    try:
        for number in range(1, 40):
            try:
                storage.write_bytes("file", bytes([number]) * size)
                confirmed = number
            except StorageUnavailable:
                num_cut_off += 1
    finally:
        done.set()
        killer.join()
    content = storage.read_bytes("file")
    assert len(content) == size
    assert set(content) == {content[0]}
    assert content[0] >= confirmed
    assert num_cut_off >= 3
    assert confirmed > 0
