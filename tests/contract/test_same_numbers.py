"""The same job description gives the same numbers wherever it is carried out."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs.result import JobResult
from ray_jobs.run import Run, flatten
from ray_jobs.spec import load_spec
from ray_jobs.targets.base import Target, wait
from ray_jobs.targets.local import LocalTarget
from ray_jobs.targets.sagemaker.spec import SageMakerSpec
from ray_jobs.targets.sagemaker.target import SageMakerTarget
from tests.contract.conftest import Cluster
from tests.sagemaker_emulator.aws import AWS

pytest_plugins = ["tests.sagemaker_emulator.fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

JOB = (
    "data.samples=2000",
    "seed=7",
    "members={logistic_regression: {}, gradient_boosting: {num_rounds: 20}, "
    "lstm_classifier: {epochs: 2}}",
    "resources.num_cpus=2",
    "resources.cpus_per_member=1",
    "tracking.enabled=false",
)


def carry_out(target: Target, storage: str, *overrides: str) -> JobResult:
    run = Run.create(load_spec("fire", overrides=[*JOB, *overrides], storage=storage), "same")
    handle = target.submit(run)
    state = wait(target, handle, interval_s=0.3)
    assert state.status == "SUCCEEDED", (state, list(target.logs(handle)))
    return target.result(handle)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> JobResult:
    storage = str(tmp_path_factory.mktemp("here"))
    return carry_out(LocalTarget(storage), storage)


def assert_same(result: JobResult, expected: JobResult) -> None:
    """The same metrics with the same intervals, members and weights, and the same fields."""
    found, wanted = (
        flatten(
            {
                **r.model_dump(mode="json", include={"metrics", "ensemble"}, exclude_none=True),
                "members": {
                    m.name: m.model_dump(mode="json", include={"status", "metrics", "threshold"})
                    for m in r.members
                },
            }
        )
        for r in (result, expected)
    )
    numbers = {key: value for key, value in wanted.items() if isinstance(value, float)}
    assert len(numbers) > 50
    assert {key: found[key] for key in numbers} == pytest.approx(numbers, rel=0, abs=1e-6)
    assert found.keys() == wanted.keys()
    assert result.model_fields_set == expected.model_fields_set
    fields = [[member.model_fields_set for member in r.members] for r in (result, expected)]
    assert fields[0] == fields[1]


def test_on_a_ray_cluster(here: JobResult, cluster: Cluster, tmp_path: Path) -> None:
    assert_same(carry_out(cluster.target(), str(tmp_path)), here)


@pytest.mark.parametrize("max_parallel_jobs", [None, 2])
def test_on_sagemaker(here: JobResult, aws: AWS, max_parallel_jobs: int | None) -> None:
    result = carry_out(
        SageMakerTarget(SageMakerSpec(poll_interval_s=0.3)),
        f"s3://{aws.bucket}/same",
        f"sagemaker.role_arn={aws.role_arn}",
        f"sagemaker.image_uri={aws.image_uri}",
        f"sagemaker.max_parallel_jobs={'' if max_parallel_jobs is None else max_parallel_jobs}",
    )
    assert_same(result, here)
    assert len(aws.emulator.jobs) == (1 if max_parallel_jobs is None else 4)
