"""A change of an endpoint: made, seen through, and taken back if its versions do not answer as they
did when they were recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from ray_jobs.deployments.base import Say
from ray_jobs.deployments.sagemaker import endpoints
from ray_jobs.deployments.sagemaker.archive import upload_archive
from ray_jobs.deployments.sagemaker.calls import tag
from ray_jobs.deployments.sagemaker.endpoints import Endpoint
from ray_jobs.deployments.sagemaker.parts import Config, describe_config, make, remove_others
from ray_jobs.deployments.sagemaker.request import (
    ANSWERED_TAG,
    BEFORE_TAG,
    DEPLOYMENT_TAG,
    Plan,
    back_request,
    create_request,
    read_variants,
    update_request,
)
from ray_jobs.deployments.sagemaker.runtime import invoke
from ray_jobs.deployments.sagemaker.scaling import Scaling, read_scaling, scaling_of, set_scaling
from ray_jobs.errors import JobFailed, PreflightError
from ray_jobs.serving.example import read_example
from ray_jobs.targets.sagemaker.aws import Aws, answers
from ray_jobs.targets.sagemaker.spec import SageMakerSpec


class Change:
    """From what is there to a plan."""

    def __init__(self, aws: Aws, plan: Plan, sagemaker: SageMakerSpec, say: Say):
        self._aws, self._plan, self._sagemaker, self._say = aws, plan, sagemaker, say
        self._scaled: Mapping[str, Scaling | None] = {}  # before the change

    def carry_out(self) -> None:
        """Have the endpoint as planned, and its versions answer; or only begun, where it is not to
        be waited for.

        Raises:
            JobFailed: they do not answer as recorded; those before do, if there were any.
            RetryableError: it takes longer than it may; what was begun goes on.
            PreflightError: the endpoint is not this project's, or as `answers` says.
        """
        plan = self._plan
        for release in plan.releases.values():  # one without an example is refused first
            read_example(release.bundle)
        there = self._settled()
        if there is not None and there.config == plan.config_name:
            if there.tags.get(ANSWERED_TAG) == plan.config_name:
                self._say(f"{plan.endpoint} answers with these versions already")
                self._scale()
                return
            # Made by a command that was cut off, or that did not wait.
            before = describe_config(self._aws, there.tags.get(ANSWERED_TAG))
        else:
            before = self._answering(there)
            self._make()
            self._begin(there)
        if not plan.settings.max_wait_s:
            self._say(f"{plan.endpoint} is not waited for")
            return
        fault = self._fault()
        if fault is not None:
            self._take_back(before, fault)
        self._finish(before)

    # Before

    def _settled(self) -> Endpoint | None:
        """The endpoint, once no other change goes on; None: there is none that can be changed."""
        plan = self._plan
        endpoint = endpoints.describe(self._aws, plan.endpoint)
        if endpoint is None:
            return None
        if not endpoint.is_ours or endpoint.tags[DEPLOYMENT_TAG] != plan.deployment:
            raise others(endpoint.name)
        is_this_one = endpoint.config == plan.config_name and endpoint.status != "STOPPED"
        if endpoint.is_changing and not is_this_one:
            found = self._wait()
            if found is None:
                return None
            endpoint = found
        if endpoint.status == "FAILED":  # the service changes none that failed
            self._say(f"{endpoint.name} has failed ({endpoint.reason}): it is made anew")
            self._delete()
            return None
        return endpoint

    def _answering(self, there: Endpoint | None) -> Config | None:
        """What to go back to."""
        if there is None:
            return None
        answered = describe_config(self._aws, there.tags.get(ANSWERED_TAG))
        return answered or describe_config(self._aws, there.config)

    # The change

    def _make(self) -> None:
        plan = self._plan
        for variant, model in plan.models.items():
            release, uri = plan.releases[variant], model["PrimaryContainer"]["ModelDataUrl"]
            if upload_archive(self._aws, release.bundle, uri, self._sagemaker.kms_key):
                self._say(f"{release.model} is at {uri}")
            make(self._aws, "model", model)
        make(self._aws, "endpoint_config", plan.config)

    def _begin(self, there: Endpoint | None) -> None:
        plan, client = self._plan, self._aws.client("sagemaker")
        if there is None:
            with answers():
                client.create_endpoint(**create_request(plan))
            self._say(f"{plan.endpoint} is being made")
            return
        now = describe_config(self._aws, there.config)
        variants = now.names if now is not None else set()
        has_same_variants = variants == plan.variants
        if not has_same_variants and plan.settings.rollout != "all_at_once":
            self._say(f"no {plan.settings.rollout} rollout: the variants are not those before")
        self._scaled = read_scaling(self._aws, plan.endpoint, variants)
        kept = {v: scaling for v, scaling in self._scaled.items() if v in plan.answering}
        # The service removes no variant that is still scaled.
        self._set_scaling(kept)
        is_scaled = bool(kept) and scaling_of(plan.settings) is not None
        request = update_request(plan, has_same_variants=has_same_variants, is_scaled=is_scaled)
        with answers():
            client.update_endpoint(**request)
        self._say(f"{plan.endpoint} goes over to {plan.config_name}")

    def _fault(self) -> str | None:
        """Why the versions are not at work as recorded; None: they are."""
        plan = self._plan
        endpoint = self._wait()
        if endpoint is None:
            return "the endpoint was deleted while it was being made"
        if endpoint.config != plan.config_name or endpoint.service_status != "InService":
            return endpoint.reason or f"the endpoint is {endpoint.service_status}"
        for variant in plan.answering:
            release = plan.releases[variant]
            example = read_example(release.bundle)
            target = variant if len(plan.answering) > 1 else None
            try:
                answer = invoke(
                    self._aws, plan.endpoint, example.body, example.media_type, variant=target
                )
            except JobFailed as error:
                return f"{release.model} does not answer its example: {error}"
            fault = example.fault(answer)
            if fault is not None:
                return f"{release.model} does not answer its example as recorded: {fault}"
            self._say(f"{release.model} answers its example as recorded ({variant})")
        return None

    # After

    def _finish(self, before: Config | None) -> None:
        plan = self._plan
        self._scale()
        endpoint = endpoints.describe(self._aws, plan.endpoint)
        if endpoint is None:
            raise JobFailed(f"the endpoint {plan.endpoint} was deleted meanwhile")
        previous = before.name if before is not None else ""
        tags = {ANSWERED_TAG: plan.config_name, BEFORE_TAG: previous}
        tag(self._aws, endpoint.arn, tags)
        remove_others(self._aws, plan.deployment, [plan.config_name, previous], self._say)

    def _take_back(self, before: Config | None, fault: str) -> NoReturn:
        """Have the versions before at work again, and remove what was made.

        Raises:
            JobFailed: always, for the change has failed.
        """
        plan = self._plan
        if before is None:
            self._delete()
            remove_others(self._aws, plan.deployment, [], self._say)
            raise JobFailed(f"{plan.deployment} is not deployed: {fault}")
        endpoint = endpoints.describe(self._aws, plan.endpoint)
        if endpoint is not None and endpoint.config != before.name:
            self._say(f"{plan.endpoint} goes back to {before.name}")
            with answers():
                self._aws.client("sagemaker").update_endpoint(
                    **back_request(plan.endpoint, before.name)
                )
            endpoint = self._wait()
        if endpoint is None or endpoint.config != before.name:
            why = f" ({endpoint.reason})" if endpoint is not None else ""
            raise JobFailed(
                f"{plan.deployment}: {fault}; and it did not go back to {before.name}{why}: look "
                f"at {plan.endpoint} in the console of SageMaker"
            )
        self._set_scaling(self._scaled)
        kept = [before.name, endpoint.tags.get(BEFORE_TAG, "")]
        remove_others(self._aws, plan.deployment, kept, self._say)
        champion = read_variants(before.content, before.tags)[0]
        raise JobFailed(f"{plan.deployment}: {fault}; version {champion.version} answers as before")

    def _scale(self) -> None:
        scaling = scaling_of(self._plan.settings)
        self._set_scaling({} if scaling is None else dict.fromkeys(self._plan.answering, scaling))

    def _set_scaling(self, wanted: Mapping[str, Scaling | None]) -> None:
        known = {variant: scaling for variant, scaling in wanted.items() if scaling is not None}
        variants = {*self._plan.variants, *self._scaled}
        set_scaling(self._aws, self._plan.endpoint, variants, known)

    def _wait(self) -> Endpoint | None:
        return endpoints.wait(
            self._aws,
            self._plan.endpoint,
            max_wait_s=self._plan.settings.max_wait_s,
            poll_interval_s=self._sagemaker.poll_interval_s,
            say=self._say,
        )

    def _delete(self) -> None:
        endpoints.delete(
            self._aws,
            self._plan.endpoint,
            poll_interval_s=self._sagemaker.poll_interval_s,
            say=self._say,
        )


def others(endpoint: str) -> PreflightError:
    """An endpoint is not this project's."""
    return PreflightError(
        f"the account has an endpoint {endpoint!r} that this project did not make; set "
        "deployment.name to another"
    )
