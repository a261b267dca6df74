from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_jobs.container import PART, RUN_ID, SPEC_PARTS, STORAGE
from ray_jobs.container_log import member_pattern, progress_line, score_line, score_pattern
from ray_jobs.errors import SpecError
from ray_jobs.sections import JobSpec
from ray_jobs.spec import load_spec, parse_spec
from ray_jobs.targets.names import sagemaker_name
from ray_jobs.targets.sagemaker.request import (
    RUN_ID_TAG,
    has_local_storage,
    metric_definitions,
    request_faults,
    storage_root,
    training_job_request,
)
from ray_jobs.targets.sagemaker.spec import SageMakerSpec

ROLE = "arn:aws:iam::123456789012:role/emberline"
IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/emberline:0.1.0"


def job(workload: str = "fire", **flags: str) -> JobSpec:
    return load_spec(workload, storage="s3://runs/team", **flags)


def on(**fields: Any) -> SageMakerSpec:
    return SageMakerSpec.model_validate({"role_arn": ROLE, "image_uri": IMAGE, **fields})


def request(
    spec: JobSpec | None = None, sagemaker: SageMakerSpec | None = None, **fields: Any
) -> dict[str, Any]:
    spec = spec or job()
    run_id = fields.pop("run_id", "20261121-120000-abcd")
    return training_job_request(
        spec,
        sagemaker or on(),
        run_id=run_id,
        name=sagemaker_name(spec.workload, run_id),
        owner=fields.pop("owner", "ada"),
        **fields,
    )


def joined(values: dict[str, str]) -> str:
    count = sum(name.startswith("emberline.spec.") for name in values)
    return "".join(values[SPEC_PARTS.format(number)] for number in range(count))


@pytest.mark.parametrize("workload", ["fire", "waste", "gcode"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"spot": True, "max_wait_s": 200_000},
        {"keep_alive_s": 600, "tags": {"team": "safety / R&D".replace("&", "+")}},
        {"instance_count": 2, "instance_type": "ml.g5.xlarge", "kms_key": "alias/emberline"},
        {"vpc": {"subnets": ["subnet-0a1b"], "security_group_ids": ["sg-0a1b"]}},
    ],
)
def test_the_service_takes_the_request(workload: str, fields: dict[str, Any]) -> None:
    made = request(
        job(workload),
        on(**fields),
        channels={"data": "s3://rows/fire/"},
        environment={"MLFLOW_TRACKING_URI": "https://mlflow.example"},
    )
    assert request_faults(made) == []


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=50)
@given(
    run_id=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True),
    owner=st.text(max_size=300),
    tags=st.dictionaries(
        st.from_regex(r"[a-zA-Zé0-9_.:/=+@ -]{1,128}", fullmatch=True).filter(
            lambda key: not key.lower().startswith(("aws:", "emberline:"))
        ),
        st.from_regex(r"[a-zA-Zé0-9_.:/=+@ -]{0,256}", fullmatch=True),
        max_size=46,
    ),
    volume_gb=st.integers(1, 16_384),
    max_run_s=st.integers(1, 28 * 86_400),
    spot=st.booleans(),
)
def test_the_service_takes_any_run_owner_and_tags(
    run_id: str, owner: str, tags: dict[str, str], volume_gb: int, max_run_s: int, spot: bool
) -> None:
    sagemaker = on(tags=tags, volume_gb=volume_gb, max_run_s=max_run_s, spot=spot)
    assert request_faults(request(FIRE, sagemaker, run_id=run_id, owner=owner)) == []


FIRE = job()


def test_the_description_comes_back_whole() -> None:
    spec = job("gcode")
    values = request(spec)["HyperParameters"]
    assert all(len(value) <= 2500 and "\n" not in value for value in values.values())
    assert parse_spec(json.loads(joined(values)), source="here") == spec
    assert values[RUN_ID] == "20261121-120000-abcd"


def test_a_long_description_goes_in_parts() -> None:
    names = [f"feature_of_a_long_name_{number}" for number in range(400)]
    spec = load_spec(
        "fire",
        storage="s3://runs",
        overrides=[
            f"data.feature_columns={json.dumps(names)}",
            "data.path=rows.csv",
            "data.label_column=fire",
        ],
    )
    values = request(spec)["HyperParameters"]
    assert len(values) > 4
    assert parse_spec(json.loads(joined(values)), source="here") == spec
    assert request_faults(request(spec)) == []


def test_a_description_that_is_too_long_is_refused() -> None:
    names = [f"feature_of_a_long_name_{number}" for number in range(10_000)]
    data = FIRE.data.model_copy(update={"feature_columns": names})
    with pytest.raises(SpecError, match=r"SageMaker takes 225,000\. Shorten its lists, such as"):
        request(FIRE.model_copy(update={"data": data}))


def test_one_instance_keeps_its_folder_in_step_with_s3() -> None:
    made = request()
    assert made["CheckpointConfig"] == {
        "S3Uri": "s3://runs/team/fire/20261121-120000-abcd",
        "LocalPath": "/opt/ml/checkpoints/fire/20261121-120000-abcd",
    }
    assert STORAGE not in made["HyperParameters"]


def test_several_instances_use_the_storage_itself() -> None:
    made = request(sagemaker=on(instance_count=2))
    assert "CheckpointConfig" not in made
    assert made["HyperParameters"][STORAGE] == "s3://runs/team"


def test_the_stopping_condition_is_the_tighter_one() -> None:
    condition = request(sagemaker=on(max_run_s=100), max_run_s=60)["StoppingCondition"]
    assert condition == {"MaxRuntimeInSeconds": 60}
    condition = request(sagemaker=on(max_run_s=100, spot=True), max_run_s=600)["StoppingCondition"]
    assert condition == {"MaxRuntimeInSeconds": 100, "MaxWaitTimeInSeconds": 200}


def test_the_run_is_found_by_its_tags() -> None:
    tags = {tag["Key"]: tag["Value"] for tag in request(run_id="a.b_c")["Tags"]}
    assert tags == {
        "emberline:project": "emberline",
        "emberline:workload": "fire",
        RUN_ID_TAG: "a.b_c",
        "emberline:storage": "s3://runs/team",
        "emberline:owner": "ada",
        "emberline:part": "all",
    }


def test_a_key_encrypts_what_can_be_encrypted() -> None:
    made = request(sagemaker=on(kms_key="alias/a"))
    assert made["OutputDataConfig"]["KmsKeyId"] == "alias/a"
    assert made["ResourceConfig"]["VolumeKmsKeyId"] == "alias/a"
    made = request(sagemaker=on(kms_key="alias/a", instance_type="ml.g5.xlarge"))
    assert "VolumeKmsKeyId" not in made["ResourceConfig"]


@pytest.mark.parametrize(
    ("instance_type", "expected"),
    [
        ("ml.m5.xlarge", False),
        ("ml.c5n.xlarge", False),
        ("ml.p3.2xlarge", False),
        ("ml.m5d.xlarge", True),
        ("ml.m6id.xlarge", True),
        ("ml.g4dn.xlarge", True),
        ("ml.g5.xlarge", True),
        ("ml.g6e.xlarge", True),
        ("ml.p3dn.24xlarge", True),
        ("ml.p4de.24xlarge", True),
        ("ml.p5.48xlarge", True),
        ("ml.trn1.2xlarge", True),
    ],
)
def test_instances_with_storage_of_their_own(instance_type: str, expected: bool) -> None:
    assert has_local_storage(instance_type) == expected


def test_the_metrics_are_found_in_the_lines_that_the_container_prints() -> None:
    found = {metric["Name"]: metric["Regex"] for metric in metric_definitions(FIRE)}
    line = score_line("test", {"accuracy": 0.5, "f1": 0.8125, "log_loss": 1e-05})
    assert re.search(found["test:f1"], line)[1] == "0.8125"
    assert re.search(found["test:log_loss"], line)[1] == "1e-05"
    assert re.search(found["val:f1"], line) is None
    line = progress_line(
        {
            "event": "epoch",
            "member": "transformer",
            "epoch": 3,
            "num_epochs": 20,
            "metrics": {"val_f1": 0.1, "f1": 0.75, "auc": None},
        }
    )
    assert line == "[emberline] transformer epoch 3/20: val_f1=0.1 f1=0.75"
    assert re.search(found["transformer:f1"], line)[1] == "0.75"
    assert re.search(found["lstm_classifier:f1"], line) is None
    for pattern in (score_pattern("val", "f1"), member_pattern("a" * 40, "composite_acc")):
        assert len(pattern) <= 500


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_uri": None}, "build the Dockerfile, push it to ECR, and set sagemaker.image_uri"),
        ({"role_arn": None}, "needs a role that trusts sagemaker.amazonaws.com; set sagemaker."),
    ],
)
def test_what_is_missing_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        request(sagemaker=on(**fields))


def test_runs_are_kept_on_s3() -> None:
    here = load_spec("fire", storage="./runs")
    assert storage_root(here, on(bucket="my-runs")) == "s3://my-runs/emberline"
    assert storage_root(here, on(bucket="my-runs", prefix="")) == "s3://my-runs"
    with pytest.raises(SpecError) as raised:
        storage_root(here, on())
    assert str(raised.value) == (
        "target sagemaker cannot keep a run in storage './runs'; give --storage "
        "s3://<bucket>/<prefix>, or set sagemaker.bucket"
    )


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (("TrainingJobName",), "a_b", "TrainingJobName: 'a_b' does not match"),
        (("TrainingJobName",), "a" * 64, "TrainingJobName: 64 is not within 1 and 63"),
        (("RoleArn",), "admin-of-everything-there-is", "does not match arn:aws"),
        (("ResourceConfig", "InstanceType"), "ml.x9.large", "is not one that SageMaker knows"),
        (("StoppingCondition", "MaxRuntimeInSeconds"), 0, "value: 0, valid min value: 1"),
        (("RetryStrategy", "MaximumRetryAttempts"), 31, "31 is not within 1 and 30"),
        (("HyperParameters", "x"), "y" * 2501, "HyperParameters.x: 2501 is not within 0 and 2500"),
        (("HyperParameters", "x"), "a\nb", "HyperParameters.x: 'a\\nb' does not match .*"),
        (("HyperParameters", "x"), 5, "Invalid type for parameter HyperParameters.x"),
        (("Tags", 0, "Value"), "a&b", "Tags[0].Value: 'a&b' does not match"),
        (("Environment",), {"1A": "x"}, "Environment.1A (key): '1A' does not match"),
        (("Colour",), "red", 'Unknown parameter in input: "Colour"'),
    ],
)
def test_what_the_service_would_refuse(path: tuple[Any, ...], value: Any, fault: str) -> None:
    made: Any = request()
    holder = made
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    assert any(fault in line for line in request_faults(made)), request_faults(made)


def test_a_part_of_a_run_uses_the_storage_itself() -> None:
    made = request(part="lstm_classifier")
    assert "CheckpointConfig" not in made
    assert made["HyperParameters"][STORAGE] == "s3://runs/team"
    assert made["HyperParameters"][PART] == "lstm_classifier"
    assert {"Key": "emberline:part", "Value": "lstm_classifier"} in made["Tags"]
    assert request_faults(made) == []


@pytest.mark.parametrize("root", ["s3://runs/a'b", "s3://runs/" + "x" * 250])
def test_a_root_that_no_tag_can_hold_is_refused(root: str) -> None:
    with pytest.raises(SpecError, match="use at most 256 letters, digits, spaces and"):
        storage_root(load_spec("fire", storage=root), on())
