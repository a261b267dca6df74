from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from ray_jobs.targets.sagemaker.spec import SageMakerSpec

IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/emberline:0.1.0"


def test_the_defaults_are_one_small_instance_on_demand() -> None:
    spec = SageMakerSpec()
    assert (spec.instance_type, spec.instance_count, spec.spot) == ("ml.m5.xlarge", 1, False)
    assert spec.wait_s is None


def test_spot_waits_as_long_again_as_it_trains() -> None:
    assert SageMakerSpec(spot=True, max_run_s=100).wait_s == 200
    assert SageMakerSpec(spot=True, max_run_s=100, max_wait_s=100).wait_s == 100


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_wait_s": 90_000}, "max_wait_s belongs to spot: true; leave it out"),
        (
            {"spot": True, "max_run_s": 100, "max_wait_s": 99},
            "max_wait_s (99) counts waiting and training, so it cannot be less than "
            "max_run_s (100)",
        ),
        (
            {"spot": True, "keep_alive_s": 60},
            "a warm pool (keep_alive_s) keeps no spot instances; set keep_alive_s: 0 or "
            "spot: false",
        ),
        (
            {"image_uri": IMAGE, "region": "us-east-1"},
            "image_uri is in eu-west-1, but region is us-east-1; SageMaker pulls from the region "
            "it trains in",
        ),
        (
            {"instance_type": "m5.xlarge"},
            "'m5.xlarge' is not an instance type of SageMaker, such as ml.m5.xlarge",
        ),
        ({"role_arn": "admin"}, "'admin' is not a role; give its ARN, arn:aws:iam::<account>:"),
        ({"image_uri": "emberline:latest"}, "'emberline:latest' is not an image in ECR; give "),
        ({"region": "Ireland"}, "'Ireland' is not a region, such as eu-west-1"),
        ({"bucket": "s3://runs/a"}, "'s3://runs/a' is not the name of a bucket; leave s3://"),
        ({"prefix": "/runs"}, "'/runs' is not a prefix; write it as folder/folder"),
        ({"tags": {"aws:x": "y"}}, "tag 'aws:x': aws: and emberline: are not yours to set"),
        ({"tags": {"a": "b\n"}}, "tag 'a': use letters, digits, spaces and _.:/=+-@"),
        ({"env": ["A=b"]}, "'A=b' is not the name of a variable"),
        (
            {"env": ["WANDB_API_KEY"]},
            "'WANDB_API_KEY' looks like a secret, and everyone who may describe the job would "
            "read it; keep it in AWS Secrets Manager and let role_arn read it",
        ),
        ({"env": ["AWS_SECRET_ACCESS_KEY"]}, "looks like a secret"),
        ({"env": ["hf_token"]}, "looks like a secret"),
        ({"env": ["DB_PASSWORD"]}, "looks like a secret"),
        ({"tags": {"a" * 129: "b"}}, "a key has 1 to 128 characters, a value at most 256"),
        (
            {"tags": {str(n): "" for n in range(45)}},
            "45 tags; SageMaker takes 50, and 11 are Emberline's",
        ),
        (
            {"vpc": {"subnets": ["vpc-1"], "security_group_ids": ["sg-1"]}},
            "'vpc-1' does not name a subnet, such as subnet-0abc",
        ),
        (
            {"vpc": {"subnets": ["subnet-1"], "security_group_ids": ["x"]}},
            "'x' does not name a security group, such as sg-0abc",
        ),
        ({"keep_alive_s": 21_601}, "less than or equal to 21600"),
        ({"max_cost_usd": 0}, "greater than 0"),
        ({"instance_count": 0}, "greater than or equal to 1"),
        ({"spots": True}, "Extra inputs are not permitted"),
    ],
)
def test_what_sagemaker_would_refuse_is_refused_here(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        SageMakerSpec.model_validate(given)
    assert message in str(raised.value)


def test_reading_the_section_imports_nothing_heavy() -> None:
    code = (
        "import sys, ray_jobs.targets.sagemaker.spec, ray_jobs.targets.sagemaker.description, "
        "ray_jobs.targets.sagemaker.pricing, ray_jobs.targets.sagemaker.request; "
        "print(sorted({'boto3', 'botocore', 'sagemaker', 'torch', 'ray', 'mlflow', 'pandas', "
        "'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
