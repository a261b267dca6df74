"""Autoscaling of an endpoint's variants: between how many instances, and to which target.

Source: Amazon SageMaker AI Developer Guide, "Define a scaling policy"; Application Auto Scaling API
Reference, "RegisterScalableTarget" and "PutScalingPolicy".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ray_jobs.deployments.sagemaker_spec import EndpointSpec
from ray_jobs.targets.sagemaker.aws import Aws, answers

_SERVICE, _DIMENSION = "sagemaker", "sagemaker:variant:DesiredInstanceCount"
_METRIC = "SageMakerVariantInvocationsPerInstance"  # the mean of a minute
_POLICY = "emberline-invocations"


@dataclass(frozen=True)
class Scaling:
    """How many instances a variant may have, and what each shall answer."""

    min_instances: int
    max_instances: int
    invocations_per_minute: float


def scaling_of(settings: EndpointSpec) -> Scaling | None:
    """What a description asks for; None: no autoscaling."""
    target = settings.target_invocations_per_minute
    return None if target is None else Scaling(*settings.instances, target)


def read_scaling(aws: Aws, endpoint: str, variants: Collection[str]) -> dict[str, Scaling | None]:
    """The variants that are scaled; None: to another target than this project's.

    Raises:
        PreflightError, RetryableError: as `answers` says.
    """
    client = aws.client("application-autoscaling")
    names = {_resource(endpoint, variant): variant for variant in sorted(variants)}
    found: dict[str, Scaling | None] = {}
    if not names:
        return found
    with answers():
        targets = client.describe_scalable_targets(
            ServiceNamespace=_SERVICE, ResourceIds=list(names), ScalableDimension=_DIMENSION
        )["ScalableTargets"]
        for target in targets:
            variant = names[target["ResourceId"]]
            policies = client.describe_scaling_policies(**_place(endpoint, variant))
            found[variant] = next(
                (
                    Scaling(
                        target["MinCapacity"],
                        target["MaxCapacity"],
                        policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"],
                    )
                    for policy in policies["ScalingPolicies"]
                    if policy["PolicyName"] == _POLICY
                ),
                None,
            )
    return found


def set_scaling(
    aws: Aws, endpoint: str, variants: Collection[str], wanted: Mapping[str, Scaling]
) -> list[str]:
    """Have these variants scaled as wanted, and no others of the endpoint. What is so already is
    left alone. Returns the variants that are scaled no more; their policies go with them.

    Raises:
        PreflightError, RetryableError: as `answers` says.
    """
    client = aws.client("application-autoscaling")
    there = read_scaling(aws, endpoint, {*variants, *wanted})
    ended = sorted(there.keys() - wanted.keys())
    with answers():
        for variant in ended:
            client.deregister_scalable_target(**_place(endpoint, variant))
        for variant, scaling in wanted.items():
            if there.get(variant) == scaling:
                continue
            place = _place(endpoint, variant)
            client.register_scalable_target(
                **place, MinCapacity=scaling.min_instances, MaxCapacity=scaling.max_instances
            )
            client.put_scaling_policy(
                **place,
                PolicyName=_POLICY,
                PolicyType="TargetTrackingScaling",
                TargetTrackingScalingPolicyConfiguration={
                    "TargetValue": scaling.invocations_per_minute,
                    "PredefinedMetricSpecification": {"PredefinedMetricType": _METRIC},
                },
            )
    return ended


def _place(endpoint: str, variant: str) -> dict[str, str]:
    return {
        "ServiceNamespace": _SERVICE,
        "ResourceId": _resource(endpoint, variant),
        "ScalableDimension": _DIMENSION,
    }


def _resource(endpoint: str, variant: str) -> str:
    return f"endpoint/{endpoint}/variant/{variant}"
