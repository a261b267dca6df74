"""A command in a step of a pipeline that has submitted to SageMaker: its training job ends with
it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.step_process import reap, wait_until
from tests.conftest import arguments, start_emberline
from tests.kubernetes_emulator import NAMESPACE, Cluster, cluster
from tests.sagemaker_emulator.aws import AWS

pytest_plugins = ["tests.sagemaker_emulator.fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

LONG = (
    "data.samples=2000", "members={lstm_classifier: {epochs: 20000, patience: 20000}}",
    "tracking.enabled=false", "resources.num_cpus=1", "sagemaker.poll_interval_s=0.3",
)  # fmt: skip


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with cluster(tmp_path / "kubernetes") as started:
        monkeypatch.setenv("KUBECONFIG", str(started.kubeconfig()))
        yield started


def start(
    aws: AWS, kubernetes: Cluster, folder: Path, pod_name: str = "step-1"
) -> subprocess.Popen[str]:
    pod = kubernetes.put_pod(pod_name)["metadata"]
    account = (f"sagemaker.role_arn={aws.role_arn}", f"sagemaker.image_uri={aws.image_uri}")
    return start_emberline(
        "run", "fire", "--target", "sagemaker", "--storage", f"s3://{aws.bucket}/runs",
        "--run-id", "night", *arguments(*LONG, *account), cwd=folder,
        KFP_POD_NAME=pod["name"], KFP_POD_UID=pod["uid"], NAMESPACE=NAMESPACE,
        EMBERLINE_PIPELINE_RUN="pipeline-run-1",
    )  # fmt: skip


def wait_for_job(aws: AWS, process: subprocess.Popen[str]) -> None:
    def trains() -> bool:
        job = aws.emulator.jobs.get("fire-night")
        return job is not None and "epoch" in job.log()

    wait_until(trains, lambda: str(aws.emulator.calls), process)


def test_a_cancelled_one_stops_it(aws: AWS, kubernetes: Cluster, tmp_path: Path) -> None:
    process = start(aws, kubernetes, tmp_path)
    wait_for_job(aws, process)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=90)
    assert process.returncode == 130, told
    assert "stopped: nothing of it is left running" in told
    assert aws.emulator.jobs["fire-night"].status == "Stopped"


def test_what_a_killed_one_leaves_is_reaped_unless_another_attaches(
    aws: AWS, kubernetes: Cluster, tmp_path: Path
) -> None:
    first = start(aws, kubernetes, tmp_path)
    wait_for_job(aws, first)
    job = aws.emulator.jobs["fire-night"]
    assert job.tags["emberline:owner-pod"] == "step-1"
    first.kill()
    first.communicate()
    second = start(aws, kubernetes, tmp_path, "step-2")
    wait_until(lambda: job.tags["emberline:owner-pod"] == "step-2", lambda: str(job.tags), second)
    kubernetes.delete_pod("step-1")
    code, told = reap("--grace=0", "--sagemaker")
    assert (code, told["stopped"]) == (0, [])
    assert [(each["name"], each["reason"]) for each in told["left"]] == [
        ("fire-night", "its pod is there")
    ]

    second.kill()
    second.communicate()
    kubernetes.delete_pod("step-2")
    code, told = reap("--grace=0", "--sagemaker")
    assert code == 0, told
    assert [(each["name"], each["owner"], each["reason"]) for each in told["stopped"]] == [
        ("fire-night", f"{NAMESPACE}/step-2", "its pod is gone")
    ]
    wait_until(lambda: job.has_ended, job.log)
    assert job.status == "Stopped"
