"""A training job from Starting to its end: what SageMaker does with the hosts, in a thread.

Source: Amazon SageMaker AI API Reference, "CreateTrainingJob" and "DescribeTrainingJob"; Developer
Guide, "How Amazon SageMaker AI Processes Training Output" and "Managed Spot Training".
"""

from __future__ import annotations

import io
import math
import re
import tarfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from botocore.exceptions import ClientError

from tests.sagemaker_emulator.host import LOG_GROUP, Host, NoData, split_uri
from tests.sagemaker_emulator.timeline import Timeline

Ending = Literal["exited", "stop", "interrupt", "kill", "vanish", "max_runtime", "max_wait"]

_POLL_S = 0.1
_MAX_REASON = 1024
_INTERNAL_ERROR = "InternalServerError: We encountered an internal error. Please try again."
_ENDS = {"stop": "Stopped", "max_runtime": "MaxRuntimeExceeded", "max_wait": "MaxWaitTimeExceeded"}
_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_STOPPABLE = {"Starting", "Downloading", "Training", "Interrupted"}


@dataclass
class Settings:
    """How the service treats all of its jobs; may be changed while they run."""

    root: Path  # of the hosts' trees
    environment: dict[str, str]  # of every container: credentials and endpoints
    host_names: list[str] = field(default_factory=lambda: ["127.0.0.1", "127.0.0.2"])
    seconds_scale: float = 1.0  # seconds here for one of the service's, in limits and figures
    grace_s: float = 120.0  # from SIGTERM to SIGKILL, in seconds here
    sync_interval_s: float = 1.0  # of checkpoints, in seconds here


class TrainingJob:
    """One job. Its thread carries it out; requests come from others."""

    def __init__(self, request: dict[str, Any], arn: str, settings: Settings, s3: Any, logs: Any):
        self.name: str = request["TrainingJobName"]
        self.request, self.arn, self.settings = request, arn, settings
        self.tags: dict[str, str] = {tag["Key"]: tag["Value"] for tag in request.get("Tags", [])}
        self.timeline = Timeline()
        self.failure_reason: str | None = None
        self.hosts: list[Host] = []  # of the present attempt
        self.num_attempts = 0
        self._s3, self._logs = s3, logs
        self._lines: list[str] = []  # of attempts before the present one
        self._asked: Ending | None = None
        self._wake = threading.Event()
        self._lock = threading.RLock()
        self._frozen: dict[str, Any] | None = None
        self._failed: Host | None = None  # the first host to end badly
        self._thread = threading.Thread(target=self._run, name=self.name)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float | None = None) -> None:
        self._thread.join(timeout_s)

    @property
    def status(self) -> str:
        return self.timeline.status

    @property
    def has_ended(self) -> bool:
        return self.timeline.has_ended

    def ask(self, ending: Ending) -> None:
        """Have the present attempt ended; the first to ask is heard, but for `vanish`."""
        with self._lock:
            if self._frozen is not None and ending == "stop":
                return
            if ending == "stop" and self.timeline.secondary in _STOPPABLE:
                self._enter("Stopping", "Stopping")
            if self._asked is None or ending == "vanish":
                self._asked = ending
        self._wake.set()

    def freeze(self) -> None:
        """Give the description of now for ever, and hear no stop."""
        with self._lock:
            assert not self.has_ended, f"{self.name} has ended: it cannot hang"
            self._frozen = self._description()

    def log(self) -> str:
        """What its containers have printed, all attempts and hosts together."""
        with self._lock:
            return "\n".join(self._all_lines())

    def tag_list(self) -> list[dict[str, str]]:
        return [{"Key": key, "Value": value} for key, value in self.tags.items()]

    def describe(self) -> dict[str, Any]:
        """What DescribeTrainingJob answers, with times in seconds since 1970."""
        with self._lock:
            return self._frozen or self._description()

    def _description(self) -> dict[str, Any]:
        is_spot = self.request.get("EnableManagedSpotTraining", False)
        found: dict[str, Any] = {
            **{key: value for key, value in self.request.items() if key != "Tags"},
            **self.timeline.describe(seconds_scale=self.settings.seconds_scale, is_spot=is_spot),
            "TrainingJobArn": self.arn,
            "ModelArtifacts": {"S3ModelArtifacts": self._output_uri("model.tar.gz")},
        }
        if metrics := self._metrics():
            found["FinalMetricDataList"] = metrics
        if self.failure_reason is not None:
            found["FailureReason"] = self.failure_reason[:_MAX_REASON]
        return found

    def _metrics(self) -> list[dict[str, Any]]:
        """The last value of each definition in the log."""
        definitions = self.request["AlgorithmSpecification"].get("MetricDefinitions", [])
        lines = self._all_lines()
        found = []
        for definition in definitions:
            pattern = re.compile(definition["Regex"])
            matches = (pattern.search(line) for line in reversed(lines))
            value = next((float(m[1]) for m in matches if m and _FLOAT.fullmatch(m[1])), None)
            if value is not None:
                time_s = round(self.timeline.transitions[-1]["StartTime"])
                name = definition["Name"]
                found.append({"MetricName": name, "Value": value, "Timestamp": time_s})
        return found

    def _all_lines(self) -> list[str]:
        return self._lines + [line for host in self.hosts for line in host.lines]

    # Its thread

    def _run(self) -> None:
        try:
            while not self._attempt():
                pass
        except NoData as error:
            self._fail(f"ClientError: {error}")
        except ClientError as error:  # S3 refused the role: a bucket that is not there
            self._fail(f"ClientError: {error}")
        finally:
            if not self.has_ended and self._asked != "vanish":
                self._fail(_INTERNAL_ERROR)  # a fault of the emulator: its traceback is printed
            for host in self.hosts:
                host.close()

    def _attempt(self) -> bool:
        """Carry the job out once. False: it is to be carried out anew."""
        if self.num_attempts and self.status != "Stopping":
            self._enter("Starting")
        self.num_attempts += 1
        self._make_hosts()
        self._go_on("Downloading")
        for host in self.hosts:
            host.prepare(self.request, self._s3)
        self._go_on("Training")
        ending = self._train()
        if ending == "vanish":
            return True
        if ending == "interrupt":
            self._go_on("Interrupted")
            return False
        if ending == "kill":
            self._fail(_INTERNAL_ERROR)
            return True
        self._end(ending)
        return True

    def _make_hosts(self) -> None:
        config = self.request["ResourceConfig"]
        names = self.settings.host_names[: config["InstanceCount"]]
        epoch = int(self.timeline.created_at) + self.num_attempts - 1
        folder = self.settings.root / self.name / f"attempt-{self.num_attempts}"
        hosts = [
            Host(folder / f"algo-{number}", name, names, f"{self.name}/algo-{number}-{epoch}")
            for number, name in enumerate(names, 1)
        ]
        for host in self.hosts:
            host.close()
        with self._lock:
            self._lines, self.hosts = self._all_lines(), hosts

    def _train(self) -> Ending:
        ending: Ending | None = self._asked
        if ending is not None:  # before there was a container
            return self._heard(ending)
        for host in self.hosts:
            self._logs.create_log_stream(logGroupName=LOG_GROUP, logStreamName=host.stream)
            host.start(self.request, self._environment())
        killed_at, synced_at = math.inf, time.monotonic()
        while any(host.exit_code is None for host in self.hosts):
            self._wake.wait(_POLL_S)
            self._wake.clear()
            self._forward_logs()
            if time.monotonic() - synced_at >= self.settings.sync_interval_s:
                self._sync()
                synced_at = time.monotonic()
            found = self._asked or self._limit()
            if found is not None and found != ending and (ending is None or found == "vanish"):
                ending = self._heard(found)
                if ending in ("kill", "vanish"):
                    killed_at = 0.0
                else:
                    for host in self.hosts:
                        host.terminate()
                    killed_at = time.monotonic() + self.settings.grace_s
            if ending is None and self._find_failed():
                killed_at = 0.0  # one host that fails ends the others
            if time.monotonic() >= killed_at:
                for host in self.hosts:
                    host.kill()
        for host in self.hosts:
            host.kill()  # what the first process left behind goes with its container
        self._forward_logs(is_last=True)
        if ending is None:
            self._find_failed()
            ending = "stop" if self._asked == "stop" else None
        if ending not in ("kill", "vanish"):
            self._sync()
        return ending or "exited"

    def _find_failed(self) -> bool:
        if self._failed is None:
            self._failed = next((host for host in self.hosts if host.exit_code), None)
        return self._failed is not None

    def _heard(self, ending: Ending) -> Ending:
        with self._lock:
            if ending in ("interrupt", "kill"):
                self._asked = None
            if ending in _ENDS and self.status != "Stopping":
                self._enter("Stopping", "Stopping")
        return ending

    def _limit(self) -> Ending | None:
        condition = self.request["StoppingCondition"]
        if self.timeline.on_instances_s() / self.settings.seconds_scale >= condition.get(
            "MaxRuntimeInSeconds", math.inf
        ):
            return "max_runtime"
        waited = (time.time() - self.timeline.created_at) / self.settings.seconds_scale
        if waited >= condition.get("MaxWaitTimeInSeconds", math.inf):
            return "max_wait"
        return None

    def _environment(self) -> dict[str, str]:
        return {
            **self.settings.environment,
            "TRAINING_JOB_NAME": self.name,
            "TRAINING_JOB_ARN": self.arn,
        }

    def _forward_logs(self, *, is_last: bool = False) -> None:
        with self._lock:
            for host in self.hosts:
                host.forward_log(self._logs, is_last=is_last)

    def _sync(self) -> None:
        if config := self.request.get("CheckpointConfig"):
            for host in self.hosts:
                host.upload_checkpoints(config, self._s3)

    # Its end

    def _end(self, ending: Ending) -> None:
        failed = self._failed if ending == "exited" else None
        self._enter("Uploading")
        if failed is None:
            self._upload("model")
        self._upload("output")
        if failed is not None:
            self._fail(f"AlgorithmError: {failed.told_failure()}, exit code: {failed.exit_code}")
        elif ending == "exited":
            self._enter("Completed", "Completed")
        else:
            self._enter(_ENDS[ending], "Stopped")

    def _upload(self, folder: str) -> None:
        """Put what all hosts have in a folder on S3, in one archive; nothing, if they have none."""
        content = io.BytesIO()
        num_files = 0
        with tarfile.open(fileobj=content, mode="w:gz") as archive:
            for host in self.hosts:
                for path in sorted((host.base / folder).rglob("*")):
                    name = path.relative_to(host.base / folder).as_posix()
                    archive.add(path, arcname=name, recursive=False)
                    num_files += not path.is_dir()
        if num_files:
            bucket, key = split_uri(self._output_uri(f"{folder}.tar.gz"))
            self._s3.put_object(Bucket=bucket, Key=key, Body=content.getvalue())

    def _output_uri(self, name: str) -> str:
        root = self.request["OutputDataConfig"]["S3OutputPath"].rstrip("/")
        return f"{root}/{self.name}/output/{name}"

    def _fail(self, reason: str) -> None:
        with self._lock:
            self.failure_reason = reason
            self._enter("Failed", "Failed")

    def _go_on(self, secondary: str) -> None:
        """The next secondary status, unless a stop has been asked for."""
        with self._lock:
            if self.status != "Stopping":
                self._enter(secondary)

    def _enter(self, secondary: str, status: str | None = None) -> None:
        with self._lock:
            self.timeline.enter(secondary, status)
