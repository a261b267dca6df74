"""SageMaker as a place where models are deployed: an endpoint whose variants are the champion and,
where there is one, its challenger.

Models and configurations cannot be changed once they are made, so each change makes new ones, with
names that follow from what they are, and the endpoint goes over to them (blue/green). A tag of the
endpoint names the configuration whose versions have answered their own examples: what a change that
fails, or is cut off, goes back to.

Source: Amazon SageMaker AI API Reference, "CreateEndpoint" and "UpdateEndpoint".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ray_jobs.checks import Checklist
from ray_jobs.deployments.base import Deployer, Deployment, Release, Say
from ray_jobs.deployments.sagemaker import endpoints
from ray_jobs.deployments.sagemaker.change import Change, others
from ray_jobs.deployments.sagemaker.costs import endpoint_costs
from ray_jobs.deployments.sagemaker.endpoints import Endpoint
from ray_jobs.deployments.sagemaker.names import endpoint_name
from ray_jobs.deployments.sagemaker.parts import archive_of, describe_config, parts_of, remove
from ray_jobs.deployments.sagemaker.request import (
    ANSWERED_TAG,
    DEPLOYMENT_TAG,
    MODEL_TAG,
    make_plan,
    read_variants,
)
from ray_jobs.deployments.sagemaker.runtime import invoke, url_of
from ray_jobs.deployments.sagemaker.scaling import read_scaling, set_scaling
from ray_jobs.deployments.spec import DeploymentSpec
from ray_jobs.errors import JobFailed, SpecError
from ray_jobs.targets.sagemaker.aws import Aws
from ray_jobs.targets.sagemaker.request import storage_root
from ray_jobs.targets.sagemaker.target import owner

if TYPE_CHECKING:
    from ray_jobs.sections import JobSpec


class SageMakerDeployer(Deployer):
    """Endpoints of one account and region. Nothing is asked of AWS before the first method is
    called."""

    name = "sagemaker"

    def __init__(self, spec: JobSpec):
        self.aws = Aws(spec.sagemaker)
        self._spec = spec

    def check(self, model: str, spec: DeploymentSpec) -> Checklist:
        from ray_jobs.deployments.sagemaker.checks import examine_deployment

        return examine_deployment(self.aws, self._spec, model, spec)

    def deploy(
        self,
        champion: Release,
        spec: DeploymentSpec,
        *,
        challenger: Release | None = None,
        say: Say,
    ) -> Deployment:
        settings = self._spec.sagemaker
        plan = make_plan(
            champion,
            spec,
            settings,
            challenger=challenger,
            root=storage_root(self._spec, settings),
            owner=owner(),
        )
        Change(self.aws, plan, settings, say).carry_out()
        found = self.find(plan.deployment)
        if found is None:
            raise JobFailed(f"the endpoint {plan.endpoint} was deleted meanwhile")
        return found

    def find(self, name: str) -> Deployment | None:
        endpoint = endpoints.describe(self.aws, endpoint_name(name))
        if endpoint is None or not endpoint.is_ours:
            return None
        return self._as_deployment(endpoint)

    def list(self) -> Sequence[Deployment]:
        return [self._as_deployment(endpoint) for endpoint in endpoints.find_ours(self.aws)]

    def invoke(self, name: str, body: bytes, media_type: str) -> bytes:
        return invoke(self.aws, endpoint_name(name), body, media_type)

    def delete(self, name: str, say: Say) -> Sequence[str]:
        endpoint = endpoints.describe(self.aws, endpoint_name(name))
        if endpoint is not None and not endpoint.is_ours:
            raise others(endpoint.name)
        parts = parts_of(self.aws, name)
        if endpoint is None and not any(parts.values()):
            names = ", ".join(deployment.name for deployment in self.list()) or "none"
            raise SpecError(
                f"no deployment {name!r} is on SageMaker in {self.aws.region}; there is {names}"
            )
        removed = []
        if endpoint is not None:
            config = describe_config(self.aws, endpoint.config)
            variants = config.names if config is not None else set()
            for variant in set_scaling(self.aws, endpoint.name, variants, {}):
                removed.append(f"autoscaling of {endpoint.name}, {variant}")
            interval_s = self._spec.sagemaker.poll_interval_s
            endpoints.delete(self.aws, endpoint.name, poll_interval_s=interval_s, say=say)
            removed.append(f"endpoint {endpoint.name}")
        stay: set[str | None] = set()  # on S3, where others may need them
        for config_name in sorted(parts["endpoint_config"]):
            found = describe_config(self.aws, config_name)
            if found is not None and (capture := found.content.get("DataCaptureConfig")):
                stay.add(f"{capture['DestinationS3Uri']}/{endpoint_name(name)}/")
            if remove(self.aws, "endpoint_config", config_name):
                removed.append(f"endpoint configuration {config_name}")
        for model in sorted(parts["model"]):
            stay.add(archive_of(self.aws, model))
            if remove(self.aws, "model", model):
                removed.append(f"model {model}")
        for uri in sorted(filter(None, stay)):
            say(f"{uri} stays on S3: delete it there if nobody needs it")
        return removed

    def _as_deployment(self, endpoint: Endpoint) -> Deployment:
        config = describe_config(self.aws, endpoint.config)
        deployment = Deployment(
            target=self.name,
            name=endpoint.tags[DEPLOYMENT_TAG],
            model=endpoint.tags.get(MODEL_TAG, ""),
            status=endpoint.status,
            url=url_of(self.aws, endpoint.name),
            reason=endpoint.reason,
            details={"endpoint": endpoint.name, "service": endpoint.service_status},
        )
        if config is None:
            return deployment
        details = deployment.details | {"configuration": config.name}
        if endpoint.tags.get(ANSWERED_TAG) != config.name and endpoint.status == "RUNNING":
            details["answered"] = "not yet as recorded: give the command again to see it through"
        if capture := config.content.get("DataCaptureConfig"):
            details["capture"] = f"{capture['DestinationS3Uri']}/{endpoint.name}/"
        for variant, scaling in read_scaling(self.aws, endpoint.name, config.names).items():
            if scaling is not None:
                details[f"autoscaling of {variant}"] = (
                    f"{scaling.min_instances} to {scaling.max_instances} instances, "
                    f"{scaling.invocations_per_minute:g} requests a minute each"
                )
        usd_per_hour = self._spec.deployment.sagemaker.usd_per_hour
        return replace(
            deployment,
            variants=read_variants(config.content, config.tags),
            costs=endpoint_costs(endpoint, config, self.aws.region, usd_per_hour),
            details=details,
        )
