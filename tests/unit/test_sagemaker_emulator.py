"""The SageMaker that other tests lean on: what it does with a job, what it refuses, what tests do
to it."""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from ray_jobs.models.bundle_files import read_index, verify
from ray_jobs.result import parse_result
from ray_jobs.spec import load_spec
from ray_jobs.storage import Storage
from ray_jobs.targets.sagemaker.description import parse_description
from ray_jobs.targets.sagemaker.request import training_job_request
from ray_jobs.targets.sagemaker.spec import SageMakerSpec
from tests.conftest import SMALL_GCODE
from tests.sagemaker_emulator.aws import AWS, open_account

pytest_plugins = ["tests.sagemaker_emulator.fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SMALL_FIRE = (
    "data.samples=2000",
    "members=[logistic_regression]",
    "tracking.enabled=false",
    "resources.num_cpus=1",
)
RUN = "20261121-120000-abcd"
# A container that goes on until it is told to stop, and then ends at once.
PATIENT = "import time\nprint('at work')\ntime.sleep(600)\n"
DEAF = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{PATIENT}"
BASE = "import os, pathlib, sys\nbase = pathlib.Path(os.environ['EMBERLINE_ML_DIR'])\n"


def job_request(
    aws: AWS, *overrides: str, workload: str = "fire", name: str = "a", **fields: Any
) -> dict[str, Any]:
    spec = load_spec(workload, overrides=overrides, storage=f"s3://{aws.bucket}/team")
    channels = fields.pop("channels", None)
    environment = fields.pop("environment", None)
    sagemaker = {"role_arn": aws.role_arn, "image_uri": aws.image_uri, **fields}
    return training_job_request(
        spec,
        SageMakerSpec.model_validate(sagemaker),
        run_id=RUN,
        name=name,
        owner="ada",
        channels=channels,
        environment=environment,
    )


def scripted(aws: AWS, script: str, **fields: Any) -> dict[str, Any]:
    """A request whose container runs a few lines of Python."""
    request = job_request(aws, *SMALL_FIRE, **fields)
    path = aws.emulator.settings.root / f"{request['TrainingJobName']}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(script, encoding="utf-8")
    request["AlgorithmSpecification"]["ContainerEntrypoint"] = ["python", str(path)]
    return request


def client(service: str, attempts: int = 1) -> Any:
    """As the project's own code makes one: from the environment."""
    import boto3
    from botocore.config import Config

    retries = {"total_max_attempts": attempts, "mode": "standard"}
    return boto3.client(service, config=Config(retries=retries))


@pytest.fixture
def sagemaker(aws: AWS) -> Any:
    return client("sagemaker")


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    """Code and message of the error that a call ends with."""
    from botocore.exceptions import ClientError

    with pytest.raises(ClientError) as raised:
        call()
    error = raised.value.response["Error"]
    return error["Code"], error["Message"]


def names(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return archive.getnames()


def steps(description: dict[str, Any]) -> list[str]:
    return [step["Status"] for step in description["SecondaryStatusTransitions"]]


def running_in(folder: Path) -> list[psutil.Process]:
    """Processes of containers whose trees lie below a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("EMBERLINE_ML_DIR", "").startswith(str(folder)):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


# Jobs of this project


def test_a_job_runs_to_its_end(aws: AWS, sagemaker: Any, tmp_path: Path) -> None:
    request = job_request(aws, *SMALL_FIRE, name="fire-1")
    created = sagemaker.create_training_job(**request)
    aws.emulator.wait_for_end("fire-1")
    answer = sagemaker.describe_training_job(TrainingJobName="fire-1")
    assert answer["TrainingJobArn"] == created["TrainingJobArn"]
    assert steps(answer) == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert answer["TrainingTimeInSeconds"] == answer["BillableTimeInSeconds"] > 0

    state = parse_description(answer, name="fire-1")
    assert (state.status, state.instance_count) == ("SUCCEEDED", 1)
    folder = f"s3://{aws.bucket}/team/fire/{RUN}"
    result = parse_result(aws.read(f"{folder}/result.json"), where=folder)
    expected = {
        f"{split}:{name}": metric.value
        for split, metrics in result.metrics.items()
        for name, metric in metrics.items()
        if f"{split}:{name}" in state.metrics
    }
    assert len(expected) == 8
    assert state.metrics == expected | {
        "logistic_regression:f1": result.members[0].metrics["val"]["f1"].value
    }

    assert state.model_uri == f"{folder}/sagemaker/fire-1/output/model.tar.gz"
    with tarfile.open(fileobj=io.BytesIO(aws.read(state.model_uri))) as archive:
        archive.extractall(tmp_path / "model", filter="data")
    verify(tmp_path / "model", read_index(tmp_path / "model")["files"])
    logged = aws.logged("fire-1")
    assert "[emberline] step evaluate" in logged
    assert "\n".join(logged) == aws.emulator.log("fire-1")
    assert aws.recorded_mutations()[0].action == "CreateTrainingJob"
    assert running_in(tmp_path) == []


def test_a_job_whose_spot_instance_is_taken_goes_on_from_its_checkpoints(
    aws: AWS, sagemaker: Any
) -> None:
    request = job_request(
        aws,
        *SMALL_GCODE,
        "train.epochs=40",
        "tracking.enabled=false",
        "resources.num_cpus=1",
        workload="gcode",
        spot=True,
    )
    sagemaker.create_training_job(**request)
    aws.emulator.wait_for_log("a", " epoch 2")
    aws.emulator.interrupt("a")
    aws.emulator.wait_for_log("a", "[emberline] model goes on from epoch")
    sagemaker.stop_training_job(TrainingJobName="a")
    aws.emulator.wait_for_end("a")
    answer = sagemaker.describe_training_job(TrainingJobName="a")
    assert steps(answer) == [
        "Starting", "Downloading", "Training", "Interrupted",
        "Starting", "Downloading", "Training", "Stopping", "Uploading", "Stopped",
    ]  # fmt: skip
    epochs = [int(number) for number in re.findall(r"model epoch (\d+)", aws.emulator.log("a"))]
    assert epochs.count(1) == epochs.count(2) == 1
    state = parse_description(answer, name="a")
    assert (state.status, state.num_interruptions) == ("STOPPED", 1)
    assert state.spot_savings is not None
    assert 0.6 < state.spot_savings < 0.75


# What becomes of a container


def test_a_container_finds_what_sagemaker_gives_it(
    aws: AWS, sagemaker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THIS_PROCESS", "1")
    s3 = aws.client("s3")
    for key in ("rows/a.csv", "rows/more/b.csv", "rows/", "other/c.csv"):
        s3.put_object(Bucket=aws.bucket, Key=key, Body=key.encode())
    s3.put_object(Bucket=aws.bucket, Key=f"team/fire/{RUN}/spec.yaml", Body=b"kept")
    script = (
        f"{BASE}import json\n"
        "files = {str(p.relative_to(base)): p.read_text()\n"
        "         for f in ('input', 'checkpoints') for p in (base / f).rglob('*')"
        " if p.is_file()}\n"
        "print(json.dumps([files, dict(os.environ)]))\n"
    )
    channels = {"data": f"s3://{aws.bucket}/rows/", "one": f"s3://{aws.bucket}/other/c.csv"}
    request = scripted(aws, script, channels=channels, environment={"COLOUR": "red"})
    sagemaker.create_training_job(**request)
    assert aws.emulator.wait_for_end("a")["TrainingJobStatus"] == "Completed"
    files, environment = json.loads(aws.logged("a")[0])
    configs = {
        Path(path).stem: json.loads(files.pop(path))
        for path in sorted(files)
        if path.startswith("input/config/")
    }
    assert files == {
        "input/data/data/a.csv": "rows/a.csv",
        "input/data/data/more/b.csv": "rows/more/b.csv",
        "input/data/one/c.csv": "other/c.csv",
        f"checkpoints/fire/{RUN}/spec.yaml": "kept",
    }
    assert configs["hyperparameters"] == request["HyperParameters"]
    assert configs["resourceconfig"]["hosts"] == ["127.0.0.1"]
    assert configs["resourceconfig"]["current_host"] == "127.0.0.1"
    assert configs["inputdataconfig"]["data"]["TrainingInputMode"] == "File"
    assert environment["TRAINING_JOB_NAME"] == "a"
    assert environment["TRAINING_JOB_ARN"] == aws.emulator.jobs["a"].arn
    assert environment["COLOUR"] == "red"
    assert environment["AWS_ENDPOINT_URL"] == aws.proxy.url
    assert "OF_THIS_PROCESS" not in environment


def test_a_channel_without_objects_fails_the_job(aws: AWS, sagemaker: Any) -> None:
    request = scripted(aws, PATIENT, channels={"data": f"s3://{aws.bucket}/nothing/"})
    sagemaker.create_training_job(**request)
    answer = aws.emulator.wait_for_end("a")
    assert answer["FailureReason"].startswith(
        "ClientError: Data download failed: No S3 objects found under S3 URL "
        f'"s3://{aws.bucket}/nothing/"'
    )
    assert steps(answer) == ["Starting", "Downloading", "Failed"]


def test_a_bucket_that_is_not_there_fails_the_job(aws: AWS, sagemaker: Any) -> None:
    request = scripted(aws, "")
    request["CheckpointConfig"]["S3Uri"] = "s3://nobodys-bucket/a"
    sagemaker.create_training_job(**request)
    reason = aws.emulator.wait_for_end("a")["FailureReason"]
    assert reason.startswith("ClientError: An error occurred (NoSuchBucket)")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            f"{BASE}(base / 'output/failure').write_text('no rows\\n')\nsys.exit(3)\n",
            "AlgorithmError: no rows, exit code: 3",
        ),
        ("import sys\nsys.exit(4)\n", "AlgorithmError: , exit code: 4"),
        ("import os\nos.kill(os.getpid(), 9)\n", "AlgorithmError: , exit code: 137"),
    ],
    ids=["told", "silent", "killed"],
)
def test_a_failure_is_told_with_its_exit_code(
    aws: AWS, sagemaker: Any, script: str, reason: str
) -> None:
    sagemaker.create_training_job(**scripted(aws, script))
    answer = aws.emulator.wait_for_end("a")
    assert (answer["TrainingJobStatus"], answer["SecondaryStatus"]) == ("Failed", "Failed")
    assert answer["FailureReason"] == reason


def test_a_stop_lets_the_container_end_and_keeps_what_it_leaves(aws: AWS, sagemaker: Any) -> None:
    script = (
        f"{BASE}import signal\n"
        "def stop(*_):\n"
        "    (base / 'model/half').write_text('x')\n"
        f"    (base / 'checkpoints/fire/{RUN}/last').write_text('y')\n"
        "    sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"{PATIENT}"
    )
    sagemaker.create_training_job(**scripted(aws, script))
    aws.emulator.wait_for_log("a", "at work")
    sagemaker.stop_training_job(TrainingJobName="a")
    assert sagemaker.describe_training_job(TrainingJobName="a")["TrainingJobStatus"] in (
        "Stopping",
        "Stopped",
    )
    answer = aws.emulator.wait_for_end("a")
    assert (answer["TrainingJobStatus"], answer["SecondaryStatus"]) == ("Stopped", "Stopped")
    assert steps(answer)[2:] == ["Training", "Stopping", "Uploading", "Stopped"]
    assert "FailureReason" not in answer
    assert names(aws.read(answer["ModelArtifacts"]["S3ModelArtifacts"])) == ["half"]
    assert aws.read(f"s3://{aws.bucket}/team/fire/{RUN}/last") == b"y"
    assert refusal(lambda: sagemaker.stop_training_job(TrainingJobName="a")) == (
        "ValidationException",
        "The request was rejected because the training job is in status Stopped.",
    )


def test_what_does_not_hear_a_stop_is_killed_after_the_grace(aws: AWS, sagemaker: Any) -> None:
    aws.emulator.settings.grace_s = 0.5
    sagemaker.create_training_job(**scripted(aws, DEAF))
    aws.emulator.wait_for_log("a", "at work")
    sagemaker.stop_training_job(TrainingJobName="a")
    assert aws.emulator.wait_for_end("a")["TrainingJobStatus"] == "Stopped"
    assert aws.emulator.jobs["a"].hosts[0].exit_code == 137


def test_checkpoints_go_to_s3_while_the_job_runs(aws: AWS, sagemaker: Any) -> None:
    aws.emulator.settings.sync_interval_s = 0.1
    folder = f"base / 'checkpoints/fire/{RUN}'"
    script = (
        f"{BASE}folder = {folder} / 'step'\nfolder.mkdir()\n"
        f"(folder / '1').write_text('one')\n{DEAF}"
    )
    sagemaker.create_training_job(**scripted(aws, script))
    deadline = time.monotonic() + 60
    s3, key = aws.client("s3"), f"team/fire/{RUN}/step/1"
    while not s3.list_objects_v2(Bucket=aws.bucket, Prefix=key)["KeyCount"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not aws.emulator.jobs["a"].has_ended


def test_an_interrupted_job_begins_in_a_new_tree_with_its_checkpoints_only(
    aws: AWS, sagemaker: Any
) -> None:
    aws.emulator.settings.grace_s = 0.5
    aws.emulator.settings.seconds_scale = 0.01
    script = (
        f"{BASE}folder = base / 'checkpoints/fire/{RUN}'\n"
        "found = sorted(p.name for p in folder.iterdir())\n"
        "print('found', found, sorted(p.name for p in (base / 'model').iterdir()))\n"
        "if found: sys.exit(0)\n"
        "(folder / 'step').write_text('1')\n"
        f"(base / 'model/half').write_text('x')\n{DEAF}"
    )
    sagemaker.create_training_job(**scripted(aws, script, spot=True))
    aws.emulator.wait_for_log("a", "at work")
    aws.emulator.interrupt("a")
    answer = aws.emulator.wait_for_end("a")
    assert answer["TrainingJobStatus"] == "Completed"
    assert steps(answer).count("Interrupted") == 1
    assert aws.logged("a") == ["found [] []", "at work", "found ['step'] []"]
    assert answer["TrainingTimeInSeconds"] > 50  # half a second, a hundredfold
    billed = math.ceil(0.3 * answer["TrainingTimeInSeconds"])
    assert answer["BillableTimeInSeconds"] == billed


def test_the_time_limit_ends_a_job(aws: AWS, sagemaker: Any) -> None:
    aws.emulator.settings.seconds_scale = 0.001
    sagemaker.create_training_job(**scripted(aws, PATIENT, max_run_s=1000))
    answer = aws.emulator.wait_for_end("a")
    assert answer["TrainingJobStatus"] == "Stopped"
    assert steps(answer)[-3:] == ["Stopping", "Uploading", "MaxRuntimeExceeded"]
    assert answer["TrainingTimeInSeconds"] >= 1000
    described = sagemaker.describe_training_job(TrainingJobName="a")
    assert parse_description(described, name="a").reason == (
        "it trained for as long as it may; raise sagemaker.max_run_s, or max_cost_usd if that is "
        "set"
    )


def test_a_host_that_dies_takes_all_of_its_processes_along(
    aws: AWS, sagemaker: Any, tmp_path: Path
) -> None:
    script = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        f" start_new_session=True)\n{DEAF}"
    )
    sagemaker.create_training_job(**scripted(aws, script))
    aws.emulator.wait_for_log("a", "at work")
    assert len(running_in(tmp_path)) == 2
    aws.emulator.kill("a")
    answer = aws.emulator.wait_for_end("a")
    assert answer["FailureReason"].startswith("InternalServerError: ")
    described = sagemaker.describe_training_job(TrainingJobName="a")
    assert parse_description(described, name="a").may_be_retried
    assert running_in(tmp_path) == []


def test_two_hosts_have_a_tree_and_a_log_each_and_fail_together(
    aws: AWS, sagemaker: Any, tmp_path: Path
) -> None:
    aws.emulator.settings.host_names = ["localhost", "127.0.0.2"]
    script = (
        f"{BASE}import json, time\n"
        "config = json.loads((base / 'input/config/resourceconfig.json').read_text())\n"
        "print(config['current_host'], config['hosts'])\n"
        "(base / 'output/data' / config['current_host']).write_text('x')\n"
        "if config['current_host'] == '127.0.0.2':\n"
        "    first = base.parent / 'algo-1/output/data/localhost'\n"
        "    while not first.exists(): time.sleep(0.05)\n"
        "    (base / 'output/failure').write_text('second')\n"
        "    sys.exit(5)\n"
        f"{DEAF}"
    )
    sagemaker.create_training_job(**scripted(aws, script, instance_count=2))
    answer = aws.emulator.wait_for_end("a")
    assert answer["FailureReason"] == "AlgorithmError: second, exit code: 5"
    hosts = ["localhost", "127.0.0.2"]
    assert {f"{name} {hosts}" for name in hosts} <= set(aws.logged("a"))
    streams = aws.client("logs").describe_log_streams(
        logGroupName="/aws/sagemaker/TrainingJobs", logStreamNamePrefix="a/"
    )["logStreams"]
    assert [s["logStreamName"].rpartition("-")[0] for s in streams] == ["a/algo-1", "a/algo-2"]
    output = answer["ModelArtifacts"]["S3ModelArtifacts"].replace("model.tar", "output.tar")
    assert {"data/localhost", "data/127.0.0.2", "failure"} <= set(names(aws.read(output)))
    assert running_in(tmp_path) == []


def test_nothing_is_left_when_the_account_closes(
    moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_account(tmp_path, moto) as aws:
        for name, value in aws.environment.items():
            monkeypatch.setenv(name, value)
        client("sagemaker").create_training_job(**scripted(aws, DEAF))
        aws.emulator.wait_for_log("a", "at work")
        assert len(running_in(tmp_path)) == 1
    assert running_in(tmp_path) == []


# What the service refuses


def test_a_name_is_used_once(aws: AWS, sagemaker: Any) -> None:
    request = scripted(aws, "")
    sagemaker.create_training_job(**request)
    code, message = refusal(lambda: sagemaker.create_training_job(**request))
    assert code == "ResourceInUse"
    assert "a training job with this name already exists" in message
    assert len(aws.emulator.jobs) == 1


def test_a_job_that_is_not_there(aws: AWS, sagemaker: Any) -> None:
    expected = ("ValidationException", "Requested resource not found.")
    assert refusal(lambda: sagemaker.describe_training_job(TrainingJobName="b")) == expected
    assert refusal(lambda: sagemaker.stop_training_job(TrainingJobName="b")) == expected


def test_a_role_must_exist_and_trust_sagemaker(aws: AWS, sagemaker: Any) -> None:
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "ec2.amazonaws.com"},
                "Action": "sts:AssumeRole",
            }
        ],
    }
    aws.client("iam").create_role(RoleName="ec2", AssumeRolePolicyDocument=json.dumps(trust))
    for name in ("ec2", "nobody"):
        arn = f"arn:aws:iam::123456789012:role/{name}"
        request = scripted(aws, "") | {"RoleArn": arn}
        assert refusal(lambda request=request: sagemaker.create_training_job(**request)) == (
            "ValidationException",
            f"Could not assume role {arn}. Please ensure that the role exists and allows principal "
            "'sagemaker.amazonaws.com' to assume the role.",
        )
    assert aws.emulator.jobs == {}


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (("TrainingJobName",), "a_b", "TrainingJobName: 'a_b' does not match"),
        (("ResourceConfig", "InstanceType"), "ml.x9.large", "not one that SageMaker knows"),
        (("HyperParameters", "x"), "y" * 2501, "2501 is not within 0 and 2500"),
    ],
)
def test_what_the_model_does_not_allow_is_refused(
    aws: AWS, sagemaker: Any, path: tuple[str, ...], value: str, fault: str
) -> None:
    request = scripted(aws, "")
    holder: Any = request
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    code, message = refusal(lambda: sagemaker.create_training_job(**request))
    assert code == "ValidationException"
    assert fault in message
    assert aws.emulator.jobs == {}


def test_more_instances_than_the_quota(aws: AWS, sagemaker: Any) -> None:
    request = scripted(aws, "", instance_count=3)
    code, message = refusal(lambda: sagemaker.create_training_job(**request))
    assert code == "ResourceLimitExceeded"
    assert "'ml.m5.xlarge for training job usage' is 2 Instances" in message


# Many jobs


def test_jobs_are_listed_and_found_a_page_at_a_time(aws: AWS, sagemaker: Any) -> None:
    for number in range(5):
        name = f"{'even' if number % 2 == 0 else 'odd'}-{number}"
        request = scripted(aws, "" if number else "import sys; sys.exit(1)", name=name)
        request["Tags"].append({"Key": "number", "Value": str(number)})
        sagemaker.create_training_job(**request)
    for name in aws.emulator.jobs:
        aws.emulator.wait_for_end(name)

    def listed(**asked: Any) -> list[str]:
        pages = sagemaker.get_paginator("list_training_jobs").paginate(**asked)
        return [job["TrainingJobName"] for page in pages for job in page["TrainingJobSummaries"]]

    paged = {"PaginationConfig": {"PageSize": 2}}
    assert listed(**paged) == ["even-0", "odd-1", "even-2", "odd-3", "even-4"]
    assert listed(SortBy="Name", SortOrder="Descending", NameContains="odd") == ["odd-3", "odd-1"]
    assert listed(StatusEquals="Failed") == ["even-0"]

    def found(*filters: tuple[str, str, str]) -> list[str]:
        asked = [{"Name": n, "Operator": o, "Value": v} for n, o, v in filters]
        pages = sagemaker.get_paginator("search").paginate(
            Resource="TrainingJob",
            SearchExpression={"Filters": asked},
            SortBy="CreationTime",
            SortOrder="Ascending",
            **paged,
        )
        jobs = [result["TrainingJob"] for page in pages for result in page["Results"]]
        assert all({"Key": "emberline:owner", "Value": "ada"} in job["Tags"] for job in jobs)
        return [job["TrainingJobName"] for job in jobs]

    ours = ("Tags.emberline:project", "Equals", "emberline")
    assert found(ours) == ["even-0", "odd-1", "even-2", "odd-3", "even-4"]
    assert found(ours, ("TrainingJobName", "Contains", "odd")) == ["odd-1", "odd-3"]
    assert found(("TrainingJobStatus", "Equals", "Failed")) == ["even-0"]
    assert found(("Tags.number", "In", "1,2")) == ["odd-1", "even-2"]
    assert refusal(lambda: found(("Colour", "Equals", "red"))) == (
        "ValidationException",
        "Unknown property name: Colour",
    )

    arn = aws.emulator.jobs["odd-1"].arn
    sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "number", "Value": "7"}])
    tags = {tag["Key"]: tag["Value"] for tag in sagemaker.list_tags(ResourceArn=arn)["Tags"]}
    assert (tags["number"], tags["emberline:workload"]) == ("7", "fire")
    sagemaker.delete_training_job(TrainingJobName="odd-1")
    assert listed(NameContains="odd") == ["odd-3"]


# What a test does to it


def test_throttling_faults_and_refusals(aws: AWS, sagemaker: Any) -> None:
    def listing() -> object:
        return sagemaker.list_training_jobs()

    aws.emulator.throttle(1)
    assert refusal(listing) == ("ThrottlingException", "Rate exceeded")
    listing()
    aws.emulator.throttle(2, "DescribeTrainingJob")
    listing()
    for _ in range(2):
        code, _ = refusal(lambda: sagemaker.describe_training_job(TrainingJobName="a"))
        assert code == "ThrottlingException"
    aws.emulator.fail(1, 500)
    assert refusal(listing)[0] == "InternalFailure"
    aws.emulator.fail(3)
    assert refusal(listing)[0] == "ServiceUnavailable"
    assert client("sagemaker", attempts=4).list_training_jobs()["TrainingJobSummaries"] == []

    aws.emulator.refuse("StopTrainingJob", message="not you")
    stopping = refusal(lambda: sagemaker.stop_training_job(TrainingJobName="a"))
    assert stopping == ("AccessDeniedException", "not you")
    aws.emulator.allow("StopTrainingJob")
    assert refusal(lambda: sagemaker.stop_training_job(TrainingJobName="a"))[0] == (
        "ValidationException"
    )
    assert [call.action for call in aws.emulator.calls[-2:]] == ["StopTrainingJob"] * 2
    assert aws.emulator.calls[-1].request == {"TrainingJobName": "a"}


def test_malformed_descriptions(aws: AWS, sagemaker: Any) -> None:
    sagemaker.create_training_job(**scripted(aws, ""))
    aws.emulator.wait_for_end("a")

    def described() -> Any:
        return sagemaker.describe_training_job(TrainingJobName="a")

    aws.emulator.malform(lambda answer: {**answer, "TrainingJobStatus": "Melted"})
    assert parse_description(described(), name="a").is_malformed
    aws.emulator.malform(lambda answer: b"<html>")
    assert parse_description(described(), name="a").is_malformed
    aws.emulator.malform(None)
    assert described()["TrainingJobStatus"] == "Completed"


def test_a_job_that_hangs_and_one_that_is_deleted(aws: AWS, sagemaker: Any, tmp_path: Path) -> None:
    sagemaker.create_training_job(**scripted(aws, PATIENT))
    aws.emulator.wait_for_log("a", "at work")
    aws.emulator.hang("a")
    sagemaker.stop_training_job(TrainingJobName="a")
    answer = sagemaker.describe_training_job(TrainingJobName="a")
    assert (answer["TrainingJobStatus"], answer["SecondaryStatus"]) == ("InProgress", "Training")
    assert len(running_in(tmp_path)) == 1
    job = aws.emulator.jobs["a"]
    aws.emulator.delete("a")
    job.join(60)
    assert running_in(tmp_path) == []
    code, message = refusal(lambda: sagemaker.describe_training_job(TrainingJobName="a"))
    assert (code, message) == ("ValidationException", "Requested resource not found.")


# The proxy before moto


def test_calls_that_change_something_are_noted_and_others_are_not(aws: AWS, sagemaker: Any) -> None:
    s3, iam = client("s3"), client("iam")
    client("sts").get_caller_identity()
    iam.get_role(RoleName=aws.role_arn.rpartition("/")[2])
    s3.list_objects_v2(Bucket=aws.bucket)
    s3.head_bucket(Bucket=aws.bucket)
    image = {"imageTag": "0.1.0"}
    client("ecr").describe_images(repositoryName="emberline", imageIds=[image])
    client("ecr").batch_get_image(repositoryName="emberline", imageIds=[image])
    client("ec2").describe_subnets()
    client("logs").describe_log_groups()
    quota = {"Quota": {"QuotaName": "ml.m5.xlarge for training job usage", "Value": 2.0}}
    aws.proxy.answer_with("GetServiceQuota", quota)
    asked = client("service-quotas").get_service_quota(ServiceCode="sagemaker", QuotaCode="L-1")
    assert asked["Quota"]["Value"] == 2.0
    sagemaker.list_training_jobs()
    assert aws.recorded_mutations() == []
    noted = {(call.service, call.action) for call in aws.proxy.calls}
    assert {("iam", "GetRole"), ("ec2", "DescribeSubnets"), ("s3", "HEAD")} <= noted

    s3.put_object(Bucket=aws.bucket, Key="a", Body=b"1")
    s3.delete_objects(Bucket=aws.bucket, Delete={"Objects": [{"Key": "a"}]})
    s3.delete_object(Bucket=aws.bucket, Key="a")
    iam.delete_role(RoleName=aws.role_arn.rpartition("/")[2])
    client("logs").create_log_group(logGroupName="b")
    refusal(lambda: sagemaker.stop_training_job(TrainingJobName="a"))
    assert [(call.service, call.action) for call in aws.recorded_mutations()] == [
        ("s3", "PUT"), ("s3", "POST"), ("s3", "DELETE"), ("iam", "DeleteRole"),
        ("logs", "CreateLogGroup"), ("sagemaker", "StopTrainingJob"),
    ]  # fmt: skip


@pytest.fixture
def content() -> bytes:
    return bytes(range(256)) * 45_000  # 11 MiB: more than one part


def test_boto3_reads_what_it_writes_through_the_proxy(aws: AWS, content: bytes) -> None:
    s3 = client("s3")
    s3.put_object(Bucket=aws.bucket, Key="whole", Body=content)
    s3.upload_fileobj(io.BytesIO(content), aws.bucket, "parts")
    s3.put_object(Bucket=aws.bucket, Key="empty", Body=b"")
    for key, expected in (("whole", content), ("parts", content), ("empty", b"")):
        assert s3.get_object(Bucket=aws.bucket, Key=key)["Body"].read() == expected
        assert aws.read(f"s3://{aws.bucket}/{key}") == expected
    assert any("uploadId" in call.path for call in aws.proxy.calls)


def test_arrow_reads_what_it_writes_through_the_proxy(aws: AWS, content: bytes) -> None:
    storage = Storage(f"s3://{aws.bucket}/arrow")
    storage.check_writable()
    storage.write_bytes("deep/a", content)
    storage.write_bytes("deep/b", b"")
    assert storage.read_bytes("deep/a") == content
    assert storage.list("deep") == ["deep/a", "deep/b"]
    assert aws.read(f"s3://{aws.bucket}/arrow/deep/a") == content
    storage.delete_folder("deep")
    assert not storage.exists("deep/a")


def test_s3_fails_as_often_as_it_is_told_to(aws: AWS) -> None:
    aws.proxy.s3_fail(1)
    once = client("s3")
    code, _ = refusal(lambda: once.put_object(Bucket=aws.bucket, Key="a", Body=b"1" * 300_000))
    assert code == "SlowDown"
    once.put_object(Bucket=aws.bucket, Key="a", Body=b"2")
    aws.proxy.s3_fail(3)
    patient = client("s3", attempts=4)
    assert patient.get_object(Bucket=aws.bucket, Key="a")["Body"].read() == b"2"
    storage = Storage(f"s3://{aws.bucket}")
    aws.proxy.s3_fail(3)
    assert storage.read_bytes("a") == b"2"

    aws.proxy.s3_down()
    for _ in range(5):
        assert refusal(lambda: once.get_object(Bucket=aws.bucket, Key="a"))[0] == "SlowDown"
    client("sts").get_caller_identity()
    aws.proxy.s3_down(False)
    assert storage.read_bytes("a") == b"2"
