"""A deployment as the requests that make it: the inputs of CreateModel, CreateEndpointConfig,
CreateEndpoint and UpdateEndpoint.

The image is this project's own and is started by `serve`. Its container reaches no network: what
is recorded of the traffic is recorded by the service (DataCaptureConfig).

Source: Amazon SageMaker AI API Reference, "CreateEndpointConfig" and "UpdateEndpoint".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ray_jobs.deployments.base import Release, Variant
from ray_jobs.deployments.sagemaker.archive import archive_uri
from ray_jobs.deployments.sagemaker.names import endpoint_name, resource_name
from ray_jobs.deployments.sagemaker_spec import EndpointSpec
from ray_jobs.deployments.spec import ChallengerSpec, DeploymentSpec
from ray_jobs.errors import SpecError
from ray_jobs.targets.sagemaker.request import (
    OWNER_TAG,
    PROJECT,
    PROJECT_TAG,
    has_local_storage,
    request_faults,
)
from ray_jobs.targets.sagemaker.spec import SageMakerSpec

DEPLOYMENT_TAG, MODEL_TAG = "emberline:deployment", "emberline:model"
# Of an endpoint: the configuration whose versions have answered, and the one before it.
ANSWERED_TAG, BEFORE_TAG = "emberline:answered", "emberline:before"
# Names of variants.
CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
_VARIANT_TAG = "emberline:{}"  # of a configuration: version/digest
_ROUTING = {"all_at_once": "ALL_AT_ONCE", "canary": "CANARY", "linear": "LINEAR"}


@dataclass(frozen=True)
class Plan:
    """All that a deployment asks of the service, with names that follow from it."""

    deployment: str
    model: str
    endpoint: str
    config: dict[str, Any]  # input of CreateEndpointConfig
    models: dict[str, dict[str, Any]]  # variant -> input of CreateModel
    releases: dict[str, Release]  # variant -> what it answers with
    settings: EndpointSpec

    @property
    def config_name(self) -> str:
        return self.config["EndpointConfigName"]

    @property
    def answering(self) -> list[str]:
        """The variants whose answers are given, the champion first."""
        return [variant["VariantName"] for variant in self.config["ProductionVariants"]]

    @property
    def variants(self) -> set[str]:
        return set(self.models)


def make_plan(
    champion: Release,
    spec: DeploymentSpec,
    sagemaker: SageMakerSpec,
    *,
    challenger: Release | None,
    root: str,
    owner: str,
) -> Plan:
    """What is asked for a champion, with or without a challenger beside it.

    Args:
        root: of the storage, on S3.
        owner: who deploys; a tag.

    Raises:
        SpecError: the description lacks what SageMaker needs, or the service's own model refuses
            it.
    """
    name = spec.name_for(champion.model.name)
    tags = _tags(sagemaker, name, champion.model.name, owner)
    releases = {CHAMPION: champion} | ({CHALLENGER: challenger} if challenger else {})
    models = {
        variant: _model(release, sagemaker, tags, name, archive_uri(root, release.digest))
        for variant, release in releases.items()
    }
    config = _config(spec, sagemaker, tags, name, models, releases, root)
    plan = Plan(
        name, champion.model.name, endpoint_name(name), config, models, releases, spec.sagemaker
    )
    for operation, request in (
        *(("CreateModel", model) for model in models.values()),
        ("CreateEndpointConfig", config),
        ("CreateEndpoint", create_request(plan, tags)),
    ):
        faults = request_faults(request, operation)
        if faults:
            raise SpecError(f"SageMaker takes no such deployment: {'; '.join(faults)}")
    return plan


def create_request(plan: Plan, tags: list[dict[str, str]] | None = None) -> dict[str, Any]:
    """The input of CreateEndpoint."""
    return {
        "EndpointName": plan.endpoint,
        "EndpointConfigName": plan.config_name,
        "Tags": plan.config["Tags"] if tags is None else tags,
    }


def update_request(plan: Plan, *, has_same_variants: bool, is_scaled: bool) -> dict[str, Any]:
    """The input of UpdateEndpoint.

    Args:
        has_same_variants: as the configuration before; the service shifts traffic step by step
            between variants of the same names alone (Developer Guide, "Deployment guardrails",
            "Exclusions").
        is_scaled: the number of instances is autoscaling's, and stays as it is.
    """
    request: dict[str, Any] = {
        "EndpointName": plan.endpoint,
        "EndpointConfigName": plan.config_name,
    }
    if has_same_variants:
        request["DeploymentConfig"] = _rollout(plan.settings)
    if is_scaled:
        request["RetainAllVariantProperties"] = True
        request["ExcludeRetainedVariantProperties"] = [
            {"VariantPropertyType": "DesiredWeight"},
            {"VariantPropertyType": "DataCaptureConfig"},
        ]
    return request


def back_request(endpoint: str, config: str) -> dict[str, Any]:
    """The input of the UpdateEndpoint that takes a change back, at once."""
    return {"EndpointName": endpoint, "EndpointConfigName": config}


def capture_root(root: str) -> str:
    """Where requests and answers are recorded; the service adds the endpoint and the variant."""
    return f"{root}/capture"


def read_variants(config: Mapping[str, Any], tags: Mapping[str, str]) -> tuple[Variant, ...]:
    """The versions that a configuration names, the champion first."""
    shadows = config.get("ShadowProductionVariants") or []
    answering = config["ProductionVariants"]
    total = sum(variant["InitialVariantWeight"] for variant in answering)
    found = []
    for variant in (*answering, *shadows):
        version, _, digest = tags.get(_VARIANT_TAG.format(variant["VariantName"]), "").rpartition(
            "/"
        )
        weight = variant["InitialVariantWeight"] / total
        found.append(Variant(version, digest, round(weight, 6), variant in shadows))
    return tuple(found)


# Parts


def _model(
    release: Release,
    sagemaker: SageMakerSpec,
    tags: list[dict[str, str]],
    deployment: str,
    archive: str,
) -> dict[str, Any]:
    image, role = _needed(sagemaker)
    version = str(release.model.version)
    request: dict[str, Any] = {
        "PrimaryContainer": {
            "Image": image,
            "ModelDataUrl": archive,
            "Environment": {
                "EMBERLINE_MODEL_NAME": release.model.name,
                "EMBERLINE_MODEL_VERSION": version,
                "EMBERLINE_MODEL_DIGEST": release.digest,
            },
        },
        "ExecutionRoleArn": role,
        "EnableNetworkIsolation": True,
    }
    if sagemaker.vpc is not None:
        request["VpcConfig"] = {
            "Subnets": sagemaker.vpc.subnets,
            "SecurityGroupIds": sagemaker.vpc.security_group_ids,
        }
    return {"ModelName": resource_name(deployment, version, request), **request, "Tags": tags}


def _config(
    spec: DeploymentSpec,
    sagemaker: SageMakerSpec,
    tags: list[dict[str, str]],
    deployment: str,
    models: Mapping[str, Mapping[str, Any]],
    releases: Mapping[str, Release],
    root: str,
) -> dict[str, Any]:
    settings = spec.sagemaker
    beside = spec.challenger or ChallengerSpec(version=CHALLENGER)
    is_split = CHALLENGER in models and beside.mode == "split"
    share = beside.weight if is_split else 0.0
    request: dict[str, Any] = {
        "ProductionVariants": [
            _variant(CHAMPION, models[CHAMPION], 1 - share, settings),
            *([_variant(CHALLENGER, models[CHALLENGER], share, settings)] if is_split else []),
        ]
    }
    if CHALLENGER in models and not is_split:
        # A shadow is asked a share of what the champion is asked: its weight over the champion's.
        shadow = _variant(CHALLENGER, models[CHALLENGER], beside.weight, settings)
        request["ShadowProductionVariants"] = [shadow]
    if spec.record.share > 0:
        request["DataCaptureConfig"] = _capture(spec.record.share, root, sagemaker.kms_key)
    if sagemaker.kms_key is not None and not has_local_storage(settings.instance_type):
        request["KmsKeyId"] = sagemaker.kms_key
    versions = [
        {"Key": _VARIANT_TAG.format(variant), "Value": f"{release.model.version}/{release.digest}"}
        for variant, release in releases.items()
    ]
    version = str(releases[CHAMPION].model.version)
    name = resource_name(deployment, version, request)
    return {"EndpointConfigName": name, **request, "Tags": [*tags, *versions]}


def _variant(
    name: str, model: Mapping[str, Any], weight: float, settings: EndpointSpec
) -> dict[str, Any]:
    return {
        "VariantName": name,
        "ModelName": model["ModelName"],
        "InitialInstanceCount": settings.instance_count,
        "InstanceType": settings.instance_type,
        "InitialVariantWeight": round(weight, 6),
        "ModelDataDownloadTimeoutInSeconds": settings.startup_timeout_s,
        "ContainerStartupHealthCheckTimeoutInSeconds": settings.startup_timeout_s,
    }


def _capture(share: float, root: str, kms_key: str | None) -> dict[str, Any]:
    config: dict[str, Any] = {
        "EnableCapture": True,
        "InitialSamplingPercentage": max(1, round(100 * share)),  # the service knows whole ones
        "DestinationS3Uri": capture_root(root),
        "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
        "CaptureContentTypeHeader": {
            "CsvContentTypes": ["text/csv"],
            "JsonContentTypes": ["application/json"],
        },
    }
    if kms_key is not None:
        config["KmsKeyId"] = kms_key
    return config


def _rollout(settings: EndpointSpec) -> dict[str, Any]:
    routing: dict[str, Any] = {
        "Type": _ROUTING[settings.rollout],
        "WaitIntervalInSeconds": settings.bake_s,
    }
    step = {"Type": "CAPACITY_PERCENT", "Value": max(1, round(100 * settings.canary_share))}
    if settings.rollout == "canary":
        routing["CanarySize"] = step
    elif settings.rollout == "linear":
        routing["LinearStepSize"] = step
    config: dict[str, Any] = {
        "BlueGreenUpdatePolicy": {
            "TrafficRoutingConfiguration": routing,
            "TerminationWaitInSeconds": settings.bake_s,
        }
    }
    if settings.alarms:
        config["AutoRollbackConfiguration"] = {
            "Alarms": [{"AlarmName": alarm} for alarm in settings.alarms]
        }
    return config


def _needed(sagemaker: SageMakerSpec) -> tuple[str, str]:
    if sagemaker.image_uri is None:
        raise SpecError(
            "a deployment to SageMaker needs an image: build the Dockerfile, push it to ECR, and "
            "set sagemaker.image_uri"
        )
    if sagemaker.role_arn is None:
        raise SpecError(
            "a deployment to SageMaker needs a role that trusts sagemaker.amazonaws.com; set "
            "sagemaker.role_arn"
        )
    return sagemaker.image_uri, sagemaker.role_arn


def _tags(
    sagemaker: SageMakerSpec, deployment: str, model: str, owner: str
) -> list[dict[str, str]]:
    own = {
        PROJECT_TAG: PROJECT,
        DEPLOYMENT_TAG: deployment,
        MODEL_TAG: model,
        OWNER_TAG: re.sub(r"[^\w .:/=+\-@]", "_", owner)[:256],
    }
    return [{"Key": key, "Value": value} for key, value in (own | sagemaker.tags).items()]
