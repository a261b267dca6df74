"""A run of `--target rayjob` from end to end: KubeRay's operator, a kubelet, and the image of this
project as an unprivileged user with a read-only root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import kuberay
from tests.cluster.api import Api, Object
from tests.cluster.control_plane import ControlPlane
from tests.cluster.node.machine import Machine
from tests.conftest import arguments, emberline
from tests.go_tools import TOOLS, module_folder, tool_or_skip

_SMALL = ("data.samples=500", "members=[logistic_regression]")
_PODS = ("rayjob.head.num_cpus=1", "rayjob.head.memory_gb=3", "rayjob.image_pull_policy=Never")


@pytest.fixture(scope="session")
def image(nodes: Machine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image that `make image` has built, on the node."""
    name = os.environ.get("EMBERLINE_IMAGE", "localhost/emberline:test")
    if shutil.which("buildah") is None:
        pytest.skip("no buildah to take the image from")
    known = subprocess.run(["buildah", "inspect", name], capture_output=True, check=False)
    if known.returncode:
        pytest.skip(f"there is no image {name}: make image-test, or set EMBERLINE_IMAGE")
    archive = tmp_path_factory.mktemp("image") / "image.tar"
    words = ["buildah", "push", "--quiet", name, f"docker-archive:{archive}:{name}"]
    subprocess.run(words, check=True, timeout=600)
    nodes.load(archive)
    archive.unlink()
    return name


@pytest.fixture(scope="module")
def operator(cluster: ControlPlane, api: Api) -> Iterator[None]:
    source = TOOLS["ray-operator"]
    sources = module_folder(source.module, source.version)
    with kuberay.operator(tool_or_skip("ray-operator"), sources, cluster, api):
        yield


@pytest.fixture
def storage(api: Api, namespace: str, tmp_path: Path) -> Iterator[Path]:
    """A folder of this machine that the claim `runs` has as its volume, open to all users."""
    before = os.umask(0)  # the pods' user is another than the one that begins the run
    folder = tmp_path / "runs"
    folder.mkdir()
    volume: Object = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"runs-{namespace}"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "claimRef": {"namespace": namespace, "name": "runs"},
            "hostPath": {"path": str(folder)},
        },
    }
    claim: Object = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "runs"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "volumeName": f"runs-{namespace}",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    api.create(volume)
    api.create(claim, namespace)
    yield folder
    os.umask(before)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("operator")
def test_a_run_trains_in_pods_of_the_image(
    image: str, cluster: ControlPlane, api: Api, namespace: str, storage: Path
) -> None:
    where = (
        f"rayjob.namespace={namespace}", f"rayjob.image={image}",
        f"rayjob.volumes.runs={storage}", "rayjob.keep_s=0",
    )  # fmt: skip
    done = emberline(
        "run", "fire", "--target", "rayjob", "--storage", str(storage), "--run-id", "in-pods",
        *arguments(*_SMALL, *_PODS, *where), "--json",
        cwd=storage.parent, KUBECONFIG=str(cluster.kubeconfig),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "SUCCEEDED"
    assert (storage / "fire" / "in-pods" / "result.json").stat().st_uid == 65532
