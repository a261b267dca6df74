"""A real node in place of the fake ones: `make node-test` runs these tests, as root, in a network
namespace of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.cluster.api import Api
from tests.cluster.control_plane import ControlPlane
from tests.cluster.node.images import Image
from tests.cluster.node.machine import Machine, lay_bridge, machine, missing
from tests.go_tools import TOOLS, module_folder, tool_or_skip


@pytest.fixture(scope="session", autouse=True)
def _possible() -> None:
    if reason := missing():
        pytest.skip(reason)
    lay_bridge()


@pytest.fixture(scope="session")
def pause(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What holds a pod's namespaces: Kubernetes' own program."""
    source = TOOLS["kubelet"]
    folder = module_folder(source.module, source.version) / "build" / "pause" / "linux"
    program = tmp_path_factory.mktemp("pause") / "pause"
    words = ["cc", "-Os", "-static", "-DVERSION=1", "-o", str(program), str(folder / "pause.c")]
    subprocess.run(words, check=True, timeout=60)
    return Image({"pause": program.read_bytes()}, ("/pause",))


@pytest.fixture(scope="session")
def nodes(_possible: None, plane: ControlPlane, api: Api, pause: Image) -> Iterator[Machine]:
    """The one node, on which pods really run."""
    with machine(tool_or_skip("kubelet"), pause, plane, api) as running:
        yield running
