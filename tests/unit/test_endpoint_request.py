"""A deployment as requests that SageMaker's own model takes, under names that follow from it."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.deployments.base import Release, Variant
from ray_jobs.deployments.sagemaker.archive import write_archive
from ray_jobs.deployments.sagemaker.names import endpoint_name, resource_name, resource_start
from ray_jobs.deployments.sagemaker.request import (
    Plan,
    make_plan,
    read_variants,
    update_request,
)
from ray_jobs.deployments.sagemaker.runtime import invoke
from ray_jobs.deployments.spec import DeploymentSpec
from ray_jobs.errors import EmberlineError, JobFailed, RetryableError, SpecError
from ray_jobs.targets.sagemaker.archive import unpack
from ray_jobs.targets.sagemaker.pricing import hosting_price, prices
from ray_jobs.targets.sagemaker.request import request_faults
from ray_jobs.targets.sagemaker.spec import SageMakerSpec
from ray_jobs.tracking.models import LocatedModel

ROLE = "arn:aws:iam::123456789012:role/emberline"
IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/emberline:0.1.0"


def release(version: int = 1, digest: str = "ab" * 32, name: str = "fire") -> Release:
    return Release(LocatedModel(name, version, None, None, {}, ""), Path(digest))


def plan(
    deployment: dict[str, Any] | None = None,
    *,
    champion: Release | None = None,
    challenger: Release | None = None,
    **sagemaker: Any,
) -> Plan:
    keys = {"role_arn": ROLE, "image_uri": IMAGE, **sagemaker}
    return make_plan(
        champion or release(),
        DeploymentSpec.model_validate(deployment or {}),
        SageMakerSpec.model_validate(keys),
        challenger=challenger,
        root="s3://runs/team",
        owner="ada",
    )


names = st.text(min_size=1, max_size=90)


@given(names, names)
def test_names_are_valid_and_distinct(one: str, other: str) -> None:
    for deployment in (one, other):
        name = endpoint_name(deployment)
        request = {"EndpointName": name, "EndpointConfigName": name}
        assert request_faults(request, "CreateEndpoint") == []
        model = resource_name(deployment, "12", {"image": IMAGE})
        assert request_faults({"ModelName": model}, "CreateModel") == []
        assert model.startswith(resource_start(deployment))
        assert name == name.lower()  # the service tells them apart without regard to case
    assert (endpoint_name(one) == endpoint_name(other)) == (one == other)
    assert (resource_name(one, "1", {}) == resource_name(other, "1", {})) == (one == other)


def test_names_that_need_no_change_are_readable() -> None:
    assert endpoint_name("fire") == "emberline-fire"
    assert endpoint_name("Fire").startswith("emberline-fire-")
    assert plan().config_name.startswith("emberline-fire-1-")


def test_a_name_follows_from_all_that_is_asked() -> None:
    first = plan()
    assert plan(tags={"team": "a"}).config_name == first.config_name  # tags can be changed
    different = [
        plan({"sagemaker": {"instance_count": 2}}),
        plan({"record": {"share": 0.5}}),
        plan(champion=release(2)),
        plan(champion=release(1, "cd" * 32)),
        plan(challenger=release(2)),
        plan(image_uri=IMAGE + "1"),
    ]
    assert len({one.config_name for one in (first, *different)}) == 7


def test_a_champion_alone() -> None:
    made = plan({"sagemaker": {"instance_type": "ml.m5.xlarge", "instance_count": 2}})
    (variant,) = made.config["ProductionVariants"]
    assert variant["VariantName"] == "champion"
    assert (variant["InstanceType"], variant["InitialInstanceCount"]) == ("ml.m5.xlarge", 2)
    model = made.models["champion"]
    assert variant["ModelName"] == model["ModelName"]
    assert model["EnableNetworkIsolation"] is True
    container = model["PrimaryContainer"]
    assert container["ModelDataUrl"] == f"s3://runs/team/models/{'ab' * 32}/model.tar.gz"
    assert container["Environment"] == {
        "EMBERLINE_MODEL_NAME": "fire",
        "EMBERLINE_MODEL_VERSION": "1",
        "EMBERLINE_MODEL_DIGEST": "ab" * 32,
    }
    capture = made.config["DataCaptureConfig"]
    assert capture["InitialSamplingPercentage"] == 10
    assert capture["DestinationS3Uri"] == "s3://runs/team/capture"
    assert "DataCaptureConfig" not in plan({"record": {"share": 0}}).config
    assert plan({"record": {"share": 0.001}}).config["DataCaptureConfig"][
        "InitialSamplingPercentage"
    ] == 1  # fmt: skip


@pytest.mark.parametrize("mode", ["split", "shadow"])
def test_a_challenger(mode: str) -> None:
    made = plan(
        {"challenger": {"version": "2", "mode": mode, "weight": 0.3}}, challenger=release(2)
    )
    tags = {tag["Key"]: tag["Value"] for tag in made.config["Tags"]}
    is_shadow = mode == "shadow"
    assert made.answering == (["champion"] if is_shadow else ["champion", "challenger"])
    assert read_variants(made.config, tags) == (
        Variant("1", "ab" * 32, 1.0 if is_shadow else 0.7),
        Variant("2", "ab" * 32, 0.3, is_shadow),
    )
    if is_shadow:
        (shadow,) = made.config["ShadowProductionVariants"]
        assert shadow["InitialVariantWeight"] == 0.3
        assert made.config["ProductionVariants"][0]["InitialVariantWeight"] == 1.0


def test_how_a_new_version_takes_over() -> None:
    canary = plan(
        {"sagemaker": {"rollout": "canary", "canary_share": 0.2, "bake_s": 300, "alarms": ["5xx"]}}
    )
    request = update_request(canary, has_same_variants=True, is_scaled=True)
    assert request_faults(request, "UpdateEndpoint") == []
    policy = request["DeploymentConfig"]["BlueGreenUpdatePolicy"]
    assert policy["TrafficRoutingConfiguration"] == {
        "Type": "CANARY",
        "WaitIntervalInSeconds": 300,
        "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 20},
    }
    alarms = request["DeploymentConfig"]["AutoRollbackConfiguration"]["Alarms"]
    assert alarms == [{"AlarmName": "5xx"}]
    assert request["RetainAllVariantProperties"] is True
    # the service takes no rollout between other variants
    other = update_request(canary, has_same_variants=False, is_scaled=False)
    assert other.keys() == {"EndpointName", "EndpointConfigName"}
    linear = plan({"sagemaker": {"rollout": "linear", "canary_share": 0.25, "bake_s": 60}})
    request = update_request(linear, has_same_variants=True, is_scaled=False)
    assert request_faults(request, "UpdateEndpoint") == []
    assert "LinearStepSize" in str(request)


def test_the_key_encrypts_what_it_can() -> None:
    key = "arn:aws:kms:eu-west-1:123456789012:key/ab"
    made = plan(kms_key=key)
    assert (made.config["KmsKeyId"], made.config["DataCaptureConfig"]["KmsKeyId"]) == (key, key)
    # volumes of its own cannot be encrypted with a key of the user's
    own = plan({"sagemaker": {"instance_type": "ml.g5.xlarge"}}, kms_key=key)
    assert "KmsKeyId" not in own.config


def test_what_the_service_would_refuse_is_refused_before() -> None:
    with pytest.raises(SpecError, match="needs an image: build the Dockerfile, push it to ECR"):
        plan(image_uri=None)
    with pytest.raises(SpecError, match=r"needs a role that trusts sagemaker\.amazonaws\.com; set"):
        plan(role_arn=None)
    with pytest.raises(
        SpecError, match=r"SageMaker takes no such deployment: .*'ml\.x9\.large' is"
    ):
        plan({"sagemaker": {"instance_type": "ml.x9.large"}})
    with pytest.raises(SpecError, match="cannot be the name of a deployment"):
        plan({"name": "fire*"})


def test_an_archive_of_the_same_files_has_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / name
        (folder / "members").mkdir(parents=True)
        for file in ("members/weights", "bundle.json")[:: 1 if name == "a" else -1]:
            (folder / file).write_text(file * 1000)
        write_archive(folder, tmp_path / f"{name}.tar.gz")
    (tmp_path / "b" / "bundle.json").chmod(0o600)
    first = (tmp_path / "a.tar.gz").read_bytes()
    assert first == (tmp_path / "b.tar.gz").read_bytes()
    unpack(tmp_path / "a.tar.gz", tmp_path / "back")
    assert (tmp_path / "back" / "members" / "weights").read_text() == "members/weights" * 1000
    with gzip.open(tmp_path / "a.tar.gz") as stream, tarfile.open(fileobj=stream) as archive:
        assert {(one.uid, one.mtime, one.mode) for one in archive} == {(0, 0, 0o644)}


def test_prices_for_hosting_have_a_source_of_their_own() -> None:
    table = prices("hosting")
    assert len(table) >= 10
    for price in table.values():
        assert "hosting" in price.source.lower()
        assert price.read_on is not None
    price = hosting_price("ml.m5.xlarge", "eu-west-1", None)
    assert price is not None
    assert price.note == "0.257 USD/hour on 2023-12-31"
    assert hosting_price("ml.m5.large", "eu-west-1", None) is None
    own = hosting_price("ml.m5.large", "eu-west-1", 0.1)
    assert own is not None
    assert own.note == "0.1 USD/hour (deployment.sagemaker.usd_per_hour)"


# Requests to an endpoint


@pytest.mark.parametrize(
    ("status", "kind"), [(429, RetryableError), (503, RetryableError), (422, JobFailed)]
)
def test_an_endpoint_that_answers_with_an_error(status: int, kind: type[EmberlineError]) -> None:
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
    client = boto3.session.Session(**keys).client("sagemaker-runtime", "eu-west-1")
    aws: Any = SimpleNamespace(client=lambda _: client)
    said = {"OriginalStatusCode": status, "OriginalMessage": "too much"}
    with Stubber(client) as stub:
        stub.add_client_error("invoke_endpoint", "ModelError", modeled_fields=said)
        with pytest.raises(kind, match=f"emberline-fire answers {status}: too much"):
            invoke(aws, "emberline-fire", b"1", "text/csv")
