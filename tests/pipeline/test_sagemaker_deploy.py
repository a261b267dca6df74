"""`emberline deploy --target sagemaker`, from a registered version to what its traffic tells."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from tests.sagemaker_emulator.aws import AWS
from tests.unit.serving_models import PUBLISHED

pytest_plugins = ["tests.sagemaker_emulator.fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ENDPOINT = "emberline-fire"
Run = Callable[..., str]


@pytest.fixture
def run(aws: AWS, trained: Path, tmp_path: Path) -> Run:
    """Call a command on a copy of the storage root: what it prints."""
    root = shutil.copytree(trained, tmp_path / "runs")

    def call(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, [*words, "--storage", str(root)], env={"COLUMNS": "200"})
        found = getattr(done.exception, "exit_code", done.exit_code)  # the shell prints errors
        assert found == code, (words, done.output, done.exception)
        return f"{done.stdout}{done.exception}" if found in (2, 3) else done.stdout

    return call


def deploy(aws: AWS, version: int, *keys: str) -> list[str]:
    settings = (
        f"sagemaker.bucket={aws.bucket}",
        f"sagemaker.role_arn={aws.role_arn}",
        f"sagemaker.image_uri={aws.image_uri}",
        "sagemaker.poll_interval_s=0.1",
        "deployment.record.share=1",
        *keys,
    )
    given = [part for key in settings for part in ("--set", key)]
    return ["deploy", "fire", "--version", str(version), "--target", "sagemaker", *given]


def ask(body: str, **names: str) -> list[dict[str, Any]]:
    """The predictions for rows, asked as any client of the endpoint does."""
    import boto3

    answer = boto3.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=ENDPOINT, Body=body, ContentType="text/csv", **names
    )
    return json.loads(answer["Body"].read())["predictions"]


def test_a_shadow_is_compared_and_drift_is_found_in_what_sagemaker_captured(
    aws: AWS, run: Run
) -> None:
    shadow = ("deployment.challenger.version=2", "deployment.challenger.weight=1")
    run("deploy", "fire", "--version", "1", "--target", "sagemaker", "--dry-run", code=3)
    assert "(dry run)" in run(*deploy(aws, 1, *shadow), "--dry-run")
    assert aws.recorded_mutations() == []
    for command in (["drift", "fire"], ["compare", "fire", "--live"]):
        said = run(*command, "--target", "sagemaker", code=2)
        assert "no deployment 'fire' on SageMaker was made from" in said

    said = run(*deploy(aws, 1, *shadow))
    assert "version 1 (100%) and 2 (shadow of 100%) of fire answers at" in said
    assert said.count("/invocations") == 1
    said = run("deploy", "fire", "--version", "1", "--target", "sagemaker", "--test")
    assert "as recorded" in said
    assert "prices.csv has none for hosting in eu-west-1" in run("deployments")

    (prediction,) = ask(PUBLISHED)
    assert 0 <= prediction["probability"] <= 1
    said = run("compare", "fire", "--live", code=3)
    assert "send an InferenceId with each request to the endpoint" in said
    rows = [PUBLISHED.replace("450.0", str(450 + number)) for number in range(40)]
    for number in range(12):
        ask("\n".join(rows), InferenceId=f"request-{number}")
    live = json.loads(run("compare", "fire", "--live", "--json"))
    assert (live["mode"], live["num_malformed"]) == ("shadow", 0)
    for side, version in (("champion", "1"), ("challenger", "2")):
        assert (live[side]["version"], live[side]["num_requests"]) == (version, 12)
        assert live[side]["p99_s"] is None
    said = run("compare", "fire", "--live")
    assert "not captured" in said
    assert "nan" not in said.lower()

    # The next endpoint knows version 1 no more; what it answered is told by the registry's digest.
    said = run(*deploy(aws, 2))
    assert "fire on sagemaker: version 2 of fire answers" in said
    drifted = json.loads(run("drift", "fire", "--json", "--version", "1", code=7))
    assert drifted["source"] == "captured requests to fire"
    assert drifted["num_requests"] == 12 + 3  # with the examples of its deployment and its test
    assert "removed: endpoint emberline-fire" in run("undeploy", "fire")
    assert "nothing is deployed" in run("deployments")
