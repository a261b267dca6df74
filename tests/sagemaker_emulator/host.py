"""One host of a training job: its /opt/ml tree, and the process that stands for its container."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import psutil

from ray_jobs.container import ML_DIR

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
_MAX_EVENTS, _MAX_LINE = 1000, 200_000  # of one PutLogEvents, and of one event: CloudWatch's limits
_TREE = "EMBERLINE_ML_DIR"  # every process of a container has it, by which they are found


class NoData(Exception):
    """A channel's prefix holds no object."""


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URI."""
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")


class Host:
    """A container, from its tree to its end."""

    def __init__(self, base: Path, name: str, hosts: list[str], stream: str):
        self.base = base
        self.name, self.hosts, self.stream = name, hosts, stream
        self.lines: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        self._log: BinaryIO | None = None
        self._rest = b""
        self._told: list[dict[str, Any]] = []
        self._synced: dict[Path, tuple[int, int]] = {}

    # Before it starts

    def prepare(self, request: Mapping[str, Any], s3: Any) -> None:
        """Write input/config and download the channels and the checkpoints.

        Raises:
            NoData: a channel has no object.
            botocore.exceptions.ClientError: S3 refuses.
        """
        for name in ("input/config", "input/data", "model", "output/data", "home"):
            (self.base / name).mkdir(parents=True)
        channels = request.get("InputDataConfig", [])
        self._configure("hyperparameters", request.get("HyperParameters", {}))
        self._configure("resourceconfig", self._resources(request["ResourceConfig"]))
        if channels:
            self._configure("inputdataconfig", {c["ChannelName"]: _input(c) for c in channels})
        for channel in channels:
            self._download_channel(channel, s3)
        if checkpoints := request.get("CheckpointConfig"):
            folder = self.inside(checkpoints.get("LocalPath", f"{ML_DIR}/checkpoints"))
            folder.mkdir(parents=True)
            prefix = checkpoints["S3Uri"].rstrip("/") + "/"
            download(s3, prefix, split_uri(prefix)[1], folder)
            self._synced = {path: _stamp(path) for path in _files(folder)}

    def inside(self, path: str) -> Path:
        """Where a path of the container lies on this machine."""
        return self.base / Path(path).relative_to(ML_DIR)

    def _configure(self, name: str, content: Any) -> None:
        path = self.base / "input" / "config" / f"{name}.json"
        path.write_text(json.dumps(content), encoding="utf-8")

    def _resources(self, config: Mapping[str, Any]) -> dict[str, Any]:
        group = {
            "instance_group_name": "homogeneousCluster",
            "instance_type": config["InstanceType"],
            "hosts": self.hosts,
        }
        return {
            "current_host": self.name,
            "current_instance_type": config["InstanceType"],
            "current_group_name": "homogeneousCluster",
            "hosts": self.hosts,
            "instance_groups": [group],
            "network_interface_name": "lo",
        }

    def _download_channel(self, channel: Mapping[str, Any], s3: Any) -> None:
        source = channel["DataSource"]["S3DataSource"]
        assert source["S3DataType"] == "S3Prefix", "the emulator knows no manifests"
        uri = source["S3Uri"]
        folder = self.base / "input" / "data" / channel["ChannelName"]
        # Keys count from the last folder that the prefix names.
        if not download(s3, uri, split_uri(uri)[1].rpartition("/")[0] + "/", folder):
            raise NoData(
                f'Data download failed: No S3 objects found under S3 URL "{uri}" given in input '
                "data source. Please ensure that the bucket exists in the selected region, that "
                "objects exist under that S3 prefix, and that the role has s3:ListBucket "
                "permissions on the bucket."
            )

    # Its process

    def start(self, request: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        algorithm = request["AlgorithmSpecification"]
        command = [
            *algorithm.get("ContainerEntrypoint", ["python", "-m", "ray_jobs.container"]),
            *algorithm.get("ContainerArguments", ["train"]),
        ]
        if command[0] == "python":
            command[0] = sys.executable
        log_path = self.base.with_suffix(".log")
        with log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env={
                    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                    "HOME": str(self.base / "home"),
                    "PYTHONUNBUFFERED": "1",
                    **environment,
                    **request.get("Environment", {}),
                    _TREE: str(self.base),
                },
                cwd=self.base / "home",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._log = log_path.open("rb")

    @property
    def exit_code(self) -> int | None:
        """As docker tells it: 128 and the signal, if one ended it. None while it runs."""
        assert self.process is not None, "not started"
        code = self.process.poll()
        return 128 - code if code is not None and code < 0 else code

    def told_failure(self) -> str:
        """What the job has written to output/failure."""
        path = self.base / "output" / "failure"
        if not path.exists():
            return ""
        return path.read_text(encoding="utf-8", errors="replace").strip()

    def terminate(self) -> None:
        """Ask the container's first process to end, as `docker stop` does."""
        assert self.process is not None, "not started"
        self.process.terminate()

    def kill(self) -> None:
        """End the container: all of its processes, those that left its process group too."""
        while family := self._family():
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.send_signal(signal.SIGKILL)
            # Our own child's exit code is its Popen's to read.
            own = self.process.pid if self.process else None
            psutil.wait_procs([member for member in family if member.pid != own], timeout=1)
        if self.process is not None:
            self.process.wait(timeout=30)

    def close(self) -> None:
        self.kill()
        if self._log is not None:
            self._log.close()

    def _family(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get(_TREE) == str(self.base):
                    # Ray's workers write their titles over their environment.
                    found += [process, *process.children(recursive=True)]
        return found

    # While it runs

    def forward_log(self, logs: Any, *, is_last: bool = False) -> None:
        """Hand the lines that it has written since the last call on to CloudWatch."""
        assert self._log is not None, "not started"
        text = self._rest + self._log.read()
        *whole, self._rest = text.split(b"\n")
        if is_last and self._rest:
            whole.append(self._rest)
        lines = [line.decode("utf-8", "replace").rstrip("\r") for line in whole]
        self.lines += lines
        now = int(time.time() * 1000)
        # CloudWatch takes no empty message.
        self._told += [{"timestamp": now, "message": line[:_MAX_LINE] or " "} for line in lines]
        while self._told:
            part, self._told = self._told[:_MAX_EVENTS], self._told[_MAX_EVENTS:]
            logs.put_log_events(logGroupName=LOG_GROUP, logStreamName=self.stream, logEvents=part)

    def upload_checkpoints(self, config: Mapping[str, Any], s3: Any) -> None:
        """Copy to S3 what has changed. What the job deletes stays there, as with the service."""
        folder = self.inside(config.get("LocalPath", f"{ML_DIR}/checkpoints"))
        bucket, prefix = split_uri(config["S3Uri"])
        for path in _files(folder):
            with contextlib.suppress(FileNotFoundError):  # temporary files come and go
                stamp = _stamp(path)
                if self._synced.get(path) != stamp:
                    key = f"{prefix.rstrip('/')}/{path.relative_to(folder).as_posix()}"
                    s3.put_object(Bucket=bucket, Key=key.lstrip("/"), Body=path.read_bytes())
                    self._synced[path] = stamp


def _input(channel: Mapping[str, Any]) -> dict[str, str]:
    source = channel["DataSource"]["S3DataSource"]
    return {
        "TrainingInputMode": channel.get("InputMode", "File"),
        "S3DistributionType": source.get("S3DataDistributionType", "FullyReplicated"),
        "RecordWrapperType": channel.get("RecordWrapperType", "None"),
    }


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def download(s3: Any, uri: str, base: str, folder: Path) -> int:
    """Copy what begins with `uri` to `folder`, without the `base` of its keys. Returns how many."""
    bucket, prefix = split_uri(uri)
    base = base.lstrip("/")
    num_files = 0
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            if item["Key"].endswith("/"):  # what consoles put in place of an empty folder
                continue
            target = folder / item["Key"].removeprefix(base)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read())
            num_files += 1
    return num_files
