"""The logs of training jobs, read from CloudWatch as they grow.

Source: Amazon SageMaker AI Developer Guide, "Log Groups and Streams": a stream a host, and another
one after each interruption, `<job>/algo-1-<seconds>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from ray_jobs.targets.sagemaker.aws import Aws, answers, is_missing

GROUP = "/aws/sagemaker/TrainingJobs"
_HOST = re.compile(r"[^/]+/(?P<host>.+?)(-\d+)?$")


class JobLogs:
    """Reads the streams of jobs, each line once."""

    def __init__(self, aws: Aws, *, tells_hosts: bool = False):
        """
        Args:
            tells_hosts: a line begins with its host: `algo-1| `.
        """
        self._logs = aws.client("logs")
        self._tells_hosts = tells_hosts
        self._tokens: dict[str, str] = {}  # stream -> where its next line will be

    def read_new(self, jobs: Iterable[tuple[str, str | None]]) -> Iterator[str]:
        """The lines that were not read before, in time order.

        Args:
            jobs: the names of training jobs, and what their lines begin with, if anything.

        Raises:
            PreflightError, RetryableError: as `answers` says.
        """
        lines: list[tuple[int, str]] = []
        for job, label in jobs:
            for stream in self._streams(job):
                host = _HOST.match(stream)
                labels = [label, host["host"] if self._tells_hosts and host else None]
                head = "".join(f"{text}| " for text in labels if text)
                lines += [(time, f"{head}{line}") for time, line in self._new(stream)]
        lines.sort(key=lambda line: line[0])
        for _, text in lines:
            yield text

    def _streams(self, job: str) -> list[str]:
        """The streams of a job; none before its container has written."""
        from botocore.exceptions import ClientError

        with answers():
            pages = self._logs.get_paginator("describe_log_streams").paginate(
                logGroupName=GROUP, logStreamNamePrefix=f"{job}/"
            )
            try:
                found = [stream for page in pages for stream in page["logStreams"]]
            except ClientError as error:
                if is_missing(error):
                    return []
                raise
        found.sort(key=lambda stream: (stream.get("creationTime", 0), stream["logStreamName"]))
        return [stream["logStreamName"] for stream in found]

    def _new(self, stream: str) -> Iterator[tuple[int, str]]:
        """Times, in ms, and lines."""
        while True:
            token = self._tokens.get(stream)
            place: dict[str, Any] = {"nextToken": token} if token else {"startFromHead": True}
            with answers():
                page = self._logs.get_log_events(logGroupName=GROUP, logStreamName=stream, **place)
            for event in page["events"]:
                for line in event["message"].splitlines() or [""]:
                    yield event["timestamp"], line
            following = page["nextForwardToken"]
            self._tokens[stream] = following
            if following == token:  # at its end, the service gives the same token again
                return
