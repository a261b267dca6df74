"""An account on loopback, with what a training job needs in it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.sagemaker_emulator.proxy import Call, Proxy
from tests.sagemaker_emulator.sagemaker import SageMaker
from tests.sagemaker_emulator.training_job import Settings

REGION, ACCOUNT = "eu-west-1", "123456789012"
BUCKET, ROLE, REPOSITORY, TAG = "emberline-runs", "emberline-training", "emberline", "0.1.0"
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_VARIABLES = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "NO_PROXY": "127.0.0.1,localhost",
}
UNSET = (  # what would lead past it
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL_S3",
    "MLFLOW_TRACKING_URI",
)


@dataclass(frozen=True)
class AWS:
    """An account: one bucket, one role that SageMaker may take on, one image."""

    bucket: str
    role_arn: str
    image_uri: str
    emulator: SageMaker
    proxy: Proxy  # before moto, which answers for all other services
    environment: dict[str, str]  # for processes other than this one
    moto_url: str  # past the proxy: neither noted nor disturbed

    def recorded_mutations(self) -> list[Call]:
        """The calls that change something, to whatever service, jobs' own calls among them."""
        made = [call for call in list(self.emulator.calls) if call.is_mutation]
        return self.proxy.recorded_mutations() + made

    def client(self, service: str) -> Any:
        """A boto3 client of moto that is neither noted nor disturbed."""
        return _client(self.moto_url, service)

    def logged(self, job: str) -> list[str]:
        """A job's lines in CloudWatch Logs, stream by stream."""
        logs = self.client("logs")
        group = "/aws/sagemaker/TrainingJobs"
        streams = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f"{job}/")
        return [
            event["message"]
            for stream in streams["logStreams"]
            for event in logs.get_log_events(
                logGroupName=group, logStreamName=stream["logStreamName"], startFromHead=True
            )["events"]
        ]

    def read(self, uri: str) -> bytes:
        """An object's content."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return self.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()


@contextmanager
def start_moto(folder: Path) -> Iterator[str]:
    """moto's server in a process of its own. Yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log_path = folder / "moto.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, log_path.read_text()
            assert time.monotonic() < deadline, log_path.read_text()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=20)


@contextmanager
def open_account(
    folder: Path, moto_url: str, *, container_environment: Mapping[str, str] | None = None
) -> Iterator[AWS]:
    """An empty account but for what `AWS` names. The jobs' trees lie under `folder`.

    Args:
        container_environment: further variables of every container, as an image sets them.
    """
    reset = urllib.request.Request(f"{moto_url}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset, timeout=20).close()
    role_arn = _furnish(moto_url)
    clients = {service: _client(moto_url, service) for service in ("s3", "logs", "iam")}
    with ExitStack() as stack:
        proxy = Proxy(moto_url)
        stack.enter_context(proxy.serving())
        environment = {**_VARIABLES, "AWS_ENDPOINT_URL": proxy.url}
        settings = Settings(folder, {**environment, **(container_environment or {})})
        emulator = SageMaker(settings, clients, region=REGION, account=ACCOUNT)
        stack.enter_context(emulator.serving())
        stack.enter_context(closing(emulator))
        yield AWS(
            bucket=BUCKET,
            role_arn=role_arn,
            image_uri=f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/{REPOSITORY}:{TAG}",
            emulator=emulator,
            proxy=proxy,
            environment={
                **environment,
                "AWS_ENDPOINT_URL_SAGEMAKER": emulator.url,
                "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": emulator.url,
            },
            moto_url=moto_url,
        )


@cache  # each takes a quarter of a second to make
def _client(moto_url: str, service: str) -> Any:
    import boto3

    return boto3.session.Session(
        aws_access_key_id="test", aws_secret_access_key="test", region_name=REGION
    ).client(service, endpoint_url=moto_url)


def _furnish(moto_url: str) -> str:
    """Make the bucket, the role and the image. Returns the role's ARN."""
    _client(moto_url, "s3").create_bucket(
        Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    ecr = _client(moto_url, "ecr")
    ecr.create_repository(repositoryName=REPOSITORY)
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST}
    ecr.put_image(repositoryName=REPOSITORY, imageManifest=json.dumps(manifest), imageTag=TAG)
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "sagemaker.amazonaws.com"},
                "Action": "sts:AssumeRole",
            }
        ],
    }
    role = _client(moto_url, "iam").create_role(
        RoleName=ROLE, AssumeRolePolicyDocument=json.dumps(trust)
    )
    return role["Role"]["Arn"]
