"""What the image answers to the words after its name, and what is in it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from ray_jobs.versions import versions
from tests.image.engine import Image, open_to_all

HOME = "/home/emberline"
_PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("emberline", "--help"), "Usage: emberline"),
        (("python", "-m", "ray_jobs.train", "--help"), "python -m ray_jobs.train"),
        (("ray", "--version"), f"ray, version {versions()['ray']}"),
        (("mlflow", "--version"), f"mlflow, version {versions()['mlflow']}"),
    ],
)
def test_programs_are_run(image: Image, words: tuple[str, ...], answer: str) -> None:
    done = image.run(*words)
    assert (done.returncode, answer in done.stdout) == (0, True), done.stdout + done.stderr


def test_a_run_in_a_pod_of_the_chart(image: Image, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    done = image.run(
        "emberline", "run", "fire", "--json", "--set=data.samples=600",
        "--set=resources.num_cpus=1", "--set=members=[logistic_regression]",
        mounts={open_to_all(tmp_path / "home"): HOME}, environment={"HOME": HOME}, timeout_s=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "SUCCEEDED"
    assert result["model"]  # in a registry of its own


def test_another_word_is_refused(image: Image) -> None:
    done = image.run("tarin")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: 'tarin' is no command of this image; give it one of train, serve, emberline, ray, "
        "mlflow, python, python3, or another program by --entrypoint\n"
    )


def test_shells_of_kubernetes_find_the_programs(image: Image) -> None:
    for options in ("-c", "-lc"):  # KubeRay's, with and without ENABLE_LOGIN_SHELL
        done = image.run(
            options, "ulimit -n; ray --version && python3 -c 'import kfp.dsl'", entrypoint="bash"
        )
        assert done.returncode == 0, done.stderr


def test_packages_are_those_of_the_lock(image: Image) -> None:
    code = "import json; from ray_jobs.versions import versions; print(json.dumps(versions()))"
    found = json.loads(image.run("python", "-c", code).stdout)
    here = versions()
    assert found.pop("code")  # the commit that it was built from
    assert {**here, **found, "python": here["python"], "code": here["code"]} == here


def test_torch_works_without_a_gpu(image: Image) -> None:
    code = """
import torch, torchvision, timm
boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6]])
assert torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]
model = timm.create_model("resnet10t", num_classes=3)
model(torch.randn(2, 3, 64, 64)).sum().backward()
torch.linalg.svd(torch.randn(4, 4))
torch.nn.LSTM(3, 4)(torch.randn(5, 2, 3))
assert torch.distributed.is_gloo_available()
print("GPU" if torch.cuda.is_available() else "CPU")
"""
    done = image.run("python", "-c", code)
    assert done.stdout == "CPU\n", done.stderr


def test_nothing_that_only_builds_need(image: Image) -> None:
    done = image.run("-c", "command -v uv gcc cc make git hatchling pytest; true", entrypoint="sh")
    assert (done.returncode, done.stdout) == (0, "")
    done = image.run("-c", "touch /opt/emberline/x /usr/x /home/emberline/x", entrypoint="sh")
    assert done.stderr.count("Read-only file system") == 3


_ORPHAN = """
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        time.sleep(1)
    os._exit(0)
os.wait()
time.sleep(99)
"""


def test_the_process_that_is_first_reaps_and_passes_signals_on(image: Image) -> None:
    with image.started("python", "-c", _ORPHAN) as container:
        done = container.exec("sh", "-c", "sleep 2; cat /proc/1/comm; cat /proc/[0-9]*/stat")
        first, *processes = done.stdout.splitlines()
        assert (first, [one for one in processes if ") Z " in one]) == ("tini", [])
        assert container.terminate() == 128 + 15  # python has no handler of its own


def test_labels_and_user(image: Image) -> None:
    (found,) = json.loads(image.engine("image", "inspect", image.name).stdout)
    labels, user = found["Config"]["Labels"], found["Config"]["User"]
    assert labels["org.opencontainers.image.title"] == "Emberline"
    assert labels["org.opencontainers.image.version"] == _PROJECT["version"]
    assert labels["org.opencontainers.image.revision"]
    assert user == "10001:10001"
