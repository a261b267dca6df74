"""Local deployments to test with: tiny versions of fire, and clients that ask all the while."""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from ray_jobs.deployments.base import Deployment, Release
from ray_jobs.deployments.documents import State
from ray_jobs.deployments.local import LocalDeployer
from ray_jobs.deployments.spec import DeploymentSpec
from ray_jobs.models.bundle_files import INDEX, write_index
from ray_jobs.serving.example import EXAMPLE, record_example
from ray_jobs.serving.model import load_model
from ray_jobs.storage import Storage
from ray_jobs.tracking.models import LocatedModel
from ray_jobs.tracking.signing import index_digest
from tests.unit.serving_models import (
    CSV,
    PUBLISHED,
    WAIT_S,
    fire_folder,
    new_folder,
    readings,
    to_csv,
)

_PAUSE_S = 0.005  # a client without one would leave a small machine no time for anything else


@cache
def release(version: int, *, lies: bool = False) -> Release:
    """A version of fire, with an example of its own."""
    folder = shutil.copytree(fire_folder(), new_folder() / "bundle")
    example = record_example(load_model(folder).scorer, CSV, to_csv(readings(1, version)).encode())
    if lies:
        example.answer[0]["probability"] = 1 - example.answer[0]["probability"]
    put_example(folder, example.to_json().encode())
    model = LocatedModel("fire", version, None, None, {}, "sqlite://")
    return Release(model, folder.rename(folder.with_name(index_digest(folder))))


def put_example(bundle: Path, example: bytes | None) -> None:
    """Put another example into a bundle and its index; None: none."""
    index = json.loads((bundle / INDEX).read_bytes())
    files = index.pop("files")
    if example is None:
        (bundle / EXAMPLE).unlink()
        del files[EXAMPLE]
    else:
        (bundle / EXAMPLE).write_bytes(example)
        files[EXAMPLE] = hashlib.sha256(example).hexdigest()
    write_index(bundle, index, files)


def spec(**keys: object) -> DeploymentSpec:
    return DeploymentSpec.model_validate({"local": {"port": 0}, "record": {"share": 0}, **keys})


@contextmanager
def deployments(root: Path) -> Iterator[LocalDeployer]:
    """Deployments of a storage root, which are removed afterwards."""
    deployer = LocalDeployer(Storage(root))
    try:
        yield deployer
    finally:
        for deployment in deployer.list():
            deployer.delete(deployment.name, print)


def deploy(deployer: LocalDeployer, version: int, **keys: object) -> Deployment:
    return deployer.deploy(release(version), spec(**keys), say=print)


def state(deployer: LocalDeployer, name: str = "fire") -> State:
    found = State.read(deployer._folder(name) / "state.json")
    assert found is not None
    return found


def connect(deployment: Deployment) -> http.client.HTTPConnection:
    assert deployment.url is not None
    return http.client.HTTPConnection(urlsplit(deployment.url).netloc, timeout=WAIT_S)


def ask(connection: http.client.HTTPConnection) -> str:
    """The version that answers."""
    connection.request("POST", "/invocations", PUBLISHED, {"content-type": CSV})
    response = connection.getresponse()
    content = response.read()
    assert response.status == 200, content
    return json.loads(content)["predictions"][0]["model_version"]


def answering(deployment: Deployment) -> str:
    """The version that answers a new client."""
    connection = connect(deployment)
    try:
        return ask(connection)
    finally:
        connection.close()


class Clients:
    """Two that ask all the while: one keeps its connection, the other makes a new one each time."""

    def __init__(self, deployment: Deployment):
        self._versions: list[str] = []
        self._deployment, self._is_over = deployment, False
        self._pool = ThreadPoolExecutor(2)
        self._loops = [self._pool.submit(self._keep), self._pool.submit(self._renew)]

    def _keep(self) -> None:
        connection = connect(self._deployment)
        while not self._is_over:
            self._versions.append(ask(connection))
            time.sleep(_PAUSE_S)
        connection.close()

    def _renew(self) -> None:
        while not self._is_over:
            self._versions.append(answering(self._deployment))
            time.sleep(_PAUSE_S)

    @property
    def last(self) -> str | None:
        return self._versions[-1] if self._versions else None

    def stop(self) -> list[str]:
        """The versions that answered, in order; raises what went wrong."""
        self._is_over = True
        for loop in self._loops:
            loop.result(WAIT_S)
        self._pool.shutdown()
        return self._versions
