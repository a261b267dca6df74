"""`emberline … --target sagemaker`, as a user types it."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest

from tests.contract.shell import Shell, settings
from tests.sagemaker_emulator.aws import AWS

pytest_plugins = ["tests.sagemaker_emulator.fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

QUICK = ("data.samples=2000", "members=[logistic_regression]")
LONG = ("data.samples=2000", "members={lstm_classifier: {epochs: 20000, patience: 20000}}")


class AccountShell(Shell):
    def __init__(self, aws: AWS, folder: Path):
        super().__init__(folder)
        self._aws = aws
        self.storage = f"s3://{aws.bucket}/runs"

    def job(self, *overrides: str) -> list[str]:
        keys = (
            "tracking.enabled=false",
            "resources.num_cpus=1",
            f"sagemaker.role_arn={self._aws.role_arn}",
            f"sagemaker.image_uri={self._aws.image_uri}",
            "sagemaker.poll_interval_s=0.3",
            *overrides,
        )
        return ["fire", "--target", "sagemaker", "--storage", self.storage, *settings(*keys)]


@pytest.fixture
def shell(aws: AWS, tmp_path: Path) -> AccountShell:
    folder = tmp_path / "here"
    folder.mkdir()
    return AccountShell(aws, folder)


def test_a_dry_run_and_the_doctor_change_nothing(aws: AWS, shell: AccountShell) -> None:
    table = shell.folder / "rows.csv"
    table.write_text("a,b,fire\n" + "".join(f"{n},{n % 7},{n % 3 == 0:d}\n" for n in range(400)))
    out, _ = shell.call("run", *shell.job(*QUICK), "--dry-run", "--json")
    plan = json.loads(out)
    assert plan["seconds"] > 0
    rows = {check["name"]: check for check in plan["target"]["checks"]}
    assert {"credentials", "bucket", "role", "role's trust", "image", "quota", "request"} <= set(
        rows
    )
    assert [name for name, row in rows.items() if row["passed"] is False] == []
    cost = rows["cost"]["found"]
    assert re.search(r"\d+\.\d\d USD \(0\.257 USD/hour on 2023-12-31\)", cost), cost
    data = (f"data.path={table}", "data.label_column=fire", "members=[logistic_regression]")
    shell.call("run", *shell.job(*data), "--dry-run")
    shell.call("doctor", *shell.job(*QUICK))
    out, _ = shell.call("doctor", *shell.job(*QUICK, "sagemaker.max_cost_usd=0.001"), code=3)
    assert "failed   cost" in out
    assert aws.recorded_mutations() == []
    assert aws.emulator.calls or aws.proxy.calls
    assert [path.name for path in shell.folder.iterdir()] == ["rows.csv"]


def test_a_run_is_followed_to_its_result_and_its_bill(aws: AWS, shell: AccountShell) -> None:
    words = ["run", *shell.job(*QUICK, "sagemaker.max_cost_usd=5"), "--run-id", "first"]
    out, err = shell.call(*words)
    assert "submitted to sagemaker, as fire-first" in err
    assert "logistic_regression: succeeded" in err
    assert re.search(r"^cost +\d+\.\d\d USD", out, re.MULTILINE), out
    assert "1 x ml.m5.xlarge" in out
    result = json.loads(shell.call(*words, "--json")[0])  # again: nothing is trained
    assert result["status"] == "SUCCEEDED"
    assert [call.action for call in aws.emulator.calls].count("CreateTrainingJob") == 1
    out, _ = shell.call("status", "first", "--metrics", "--storage", shell.storage)
    for part in ("succeeded", "1 x ml.m5.xlarge", "billable", f"{value(result):.4f}"):
        assert part in out, (part, out)
    out, _ = shell.call("logs", "first", "--storage", shell.storage)
    assert "[emberline] test scores:" in out
    (request,) = [c.request for c in aws.emulator.calls if c.action == "CreateTrainingJob"]
    assert request["StoppingCondition"]["MaxRuntimeInSeconds"] < 86_400  # the budget's end


def value(result: dict[str, object]) -> float:
    return result["metrics"]["test"]["f1"]["value"]  # type: ignore[index]


def test_what_cannot_be_paid_or_is_not_known_is_not_submitted(
    aws: AWS, shell: AccountShell
) -> None:
    _, err = shell.call("run", *shell.job(*QUICK, "sagemaker.max_cost_usd=0.001"), code=3)
    assert "sagemaker.max_cost_usd=0.001 pays for" in err
    priceless = ("sagemaker.instance_type=ml.m5.24xlarge", "sagemaker.max_cost_usd=5")
    _, err = shell.call("run", *shell.job(*QUICK, *priceless), code=3)
    assert "prices.csv has no price of ml.m5.24xlarge in eu-west-1" in err
    _, err = shell.call("run", "fire", "--target", "sagemaker", code=2)
    assert "give --storage s3://<bucket>/<prefix>, or set sagemaker.bucket" in err
    assert aws.recorded_mutations() == []


def test_an_interrupt_leaves_the_run_at_work_and_stop_ends_only_what_is_ours(
    aws: AWS, shell: AccountShell
) -> None:
    theirs = request_of_others(aws)
    aws.emulator.settings.grace_s = 60
    command = shell.start("run", *shell.job(*LONG), "--run-id", "away")
    shell.wait_for("away", "RUNNING", "--storage", shell.storage)
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=60)
    assert command.returncode == 130
    assert err.splitlines()[-5:] == [
        "interrupted: the run goes on at sagemaker, as fire-away",
        f"look     emberline status away --storage {shell.storage}",
        f"follow   emberline logs away --storage {shell.storage} -f",
        f"stop     emberline stop away --storage {shell.storage}",
        f"attach   emberline run fire --resume --run-id away --storage {shell.storage}",
    ]
    assert shell.state("away", "--storage", shell.storage)["status"] == "RUNNING"
    out, _ = shell.call("stop", "--all", "--json")  # from another storage root: found by its tags
    assert [one["name"] for one in json.loads(out)["stopped"]] == ["fire-away"]
    shell.call("status", "away", "--storage", shell.storage, code=130)
    assert "Stop" not in aws.emulator.jobs[theirs].describe()["TrainingJobStatus"]
    words = ["run", "fire", "--resume", "--run-id", "away", "--storage", shell.storage]
    command = shell.start(*words, "--stop-on-interrupt")
    while len(aws.emulator.jobs) < 3:  # theirs, the first attempt and this one
        assert command.poll() is None, command.communicate()
        time.sleep(0.1)
    shell.wait_for("away", "RUNNING", "--storage", shell.storage)
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=100)
    assert command.returncode == 130
    assert "stopped: nothing of it is left running" in err
    shell.call("status", "away", "--storage", shell.storage, code=130)


def request_of_others(aws: AWS) -> str:
    """A training job in the same account that this project has not started."""
    import boto3

    name = "theirs"
    boto3.client("sagemaker").create_training_job(
        TrainingJobName=name,
        RoleArn=aws.role_arn,
        AlgorithmSpecification={
            "TrainingImage": aws.image_uri,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python", "-c", "import time; time.sleep(600)"],
        },
        OutputDataConfig={"S3OutputPath": f"s3://{aws.bucket}/theirs"},
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        StoppingCondition={"MaxRuntimeInSeconds": 3600},
    )
    return name
