from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ray_jobs.deployments.sagemaker.scaling import Scaling, scaling_of
from ray_jobs.deployments.sagemaker_spec import EndpointSpec
from ray_jobs.errors import SpecError
from ray_jobs.spec import load_spec


def test_the_defaults_are_one_small_instance_that_does_not_scale() -> None:
    spec = EndpointSpec()
    assert (spec.instance_type, spec.instances, spec.rollout) == (
        "ml.m5.large", (1, 1), "all_at_once",
    )  # fmt: skip
    assert scaling_of(spec) is None


def test_autoscaling_begins_with_the_instances_that_there_are() -> None:
    keys = {"instance_count": 2, "max_instances": 4, "target_invocations_per_minute": 300}
    assert scaling_of(EndpointSpec(**keys)) == Scaling(2, 4, 300)
    assert scaling_of(EndpointSpec(**keys, min_instances=1)) == Scaling(1, 4, 300)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"instance_type": "m5.large"}, "'m5.large' is not an instance type of SageMaker, such as"),
        ({"max_instances": 3}, "autoscaling takes both max_instances and target_invocations_per_"),
        ({"target_invocations_per_minute": 3}, "set the other, or leave both out"),
        ({"min_instances": 1}, "min_instances belongs to autoscaling: set max_instances and"),
        (
            {"instance_count": 5, "max_instances": 3, "target_invocations_per_minute": 9},
            "instance_count (5) is how many it starts with: it must be within min_instances (5)",
        ),
        ({"rollout": "canary"}, "a canary rollout waits for bake_s seconds, which is 0; set it"),
        ({"alarms": ["errors"]}, "alarms are watched for bake_s seconds, which is 0; set it"),
        ({"alarms": [" "], "bake_s": 9}, "' ' is not the name of an alarm in CloudWatch"),
        (
            {"rollout": "linear", "canary_share": 0.05, "bake_s": 60},
            "a linear rollout takes steps of 0.1 to 0.5 of the capacity; raise canary_share",
        ),
        ({"canary_share": 0.6}, "less than or equal to 0.5"),
        ({"startup_timeout_s": 30}, "greater than or equal to 60"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        EndpointSpec.model_validate(given)
    assert message in str(refused.value)


def test_a_key_that_is_none_is_told_where_it_stands() -> None:
    with pytest.raises(SpecError, match=r"deployment\.sagemaker\.instance_typ"):
        load_spec("fire", overrides=["deployment.sagemaker.instance_typ=ml.m5.large"])
