"""The SageMaker API of training jobs, whose jobs really run, and the controls that tests have;
`hosting` has that of endpoints.

AWS JSON 1.1. What botocore's model of the service does not allow is refused as the service refuses
it. Source: Amazon SageMaker AI API Reference.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from ray_jobs.targets.sagemaker.request import request_faults
from tests.sagemaker_emulator.host import LOG_GROUP
from tests.sagemaker_emulator.hosting import Hosting, ModelError, Refused
from tests.sagemaker_emulator.http_server import Handler, Server
from tests.sagemaker_emulator.listing import find, page, summaries
from tests.sagemaker_emulator.proxy import Call
from tests.sagemaker_emulator.training_job import Settings, TrainingJob

_JSON = "application/x-amz-json-1.1"
_SERVICE = "sagemaker.amazonaws.com"


class SageMaker(Server):
    """The service, and what a test does to it while it runs.

    Args:
        settings: how jobs are treated.
        clients: of moto, for `s3`, `logs` and `iam`.
    """

    def __init__(self, settings: Settings, clients: dict[str, Any], *, region: str, account: str):
        super().__init__(_Endpoint)
        self.settings = settings
        self.calls: list[Call] = []  # all that reached it, answered or not
        self.jobs: dict[str, TrainingJob] = {}
        self._all_jobs: list[TrainingJob] = []  # the deleted ones too
        self._clients = clients
        arn = f"arn:aws:sagemaker:{region}:{account}:"
        self.hosting = Hosting(settings.root, settings.environment, clients["s3"], arn)
        self._arn = f"{arn}training-job/"
        self._lock = threading.RLock()
        self._throttled: Counter[str | None] = Counter()
        self._num_faults, self._fault = 0, 503
        self._refusals: dict[str, Refused] = {}
        self._mutate: Callable[[dict[str, Any]], object] | None = None
        clients["logs"].create_log_group(logGroupName=LOG_GROUP)

    def close(self) -> None:
        """End every container."""
        for job in self._all_jobs:
            job.ask("vanish")
        for job in self._all_jobs:
            job.join()
        self.hosting.close()

    # Controls

    def throttle(self, num: int, operation: str | None = None) -> None:
        """Answer the next `num` requests, of one operation or of all, with ThrottlingException."""
        with self._lock:
            self._throttled[operation] = num

    def fail(self, num: int, status: int = 503) -> None:
        """Answer the next `num` requests with an error of the service's own."""
        with self._lock:
            self._num_faults, self._fault = num, status

    def refuse(
        self, operation: str, code: str = "AccessDeniedException", message: str | None = None
    ) -> None:
        """Refuse every request of an operation, until `allow`."""
        message = message or f"User is not authorized to perform: sagemaker:{operation}"
        with self._lock:
            self._refusals[operation] = Refused(code, message)

    def allow(self, operation: str) -> None:
        """Take back `refuse`."""
        with self._lock:
            self._refusals.pop(operation, None)

    def malform(self, mutate: Callable[[dict[str, Any]], object] | None) -> None:
        """Have DescribeTrainingJob answer with what `mutate` makes of each answer, bytes as they
        are; None: with the answer itself again."""
        with self._lock:
            self._mutate = mutate

    def interrupt(self, name: str) -> None:
        """Take a job's spot capacity back; the job then begins anew from its checkpoints on S3."""
        self.jobs[name].ask("interrupt")

    def kill(self, name: str) -> None:
        """A host of the job dies: everything on it ends at once, and the job fails."""
        self.jobs[name].ask("kill")

    def delete(self, name: str) -> None:
        """The job is gone, and the service does not know it."""
        with self._lock:
            job = self.jobs.pop(name)
        job.ask("vanish")

    def hang(self, name: str) -> None:
        """The job's description stays as it is, and a stop does nothing."""
        self.jobs[name].freeze()

    def log(self, name: str) -> str:
        """What a job's containers have printed so far."""
        return self.jobs[name].log()

    def wait_for_log(self, name: str, text: str, *, timeout_s: float = 200) -> TrainingJob:
        """Return when a job has printed `text`."""
        return self._wait(name, lambda job: text in job.log(), f"{text!r} in the log", timeout_s)

    def wait_for_status(self, name: str, secondary: str, *, timeout_s: float = 200) -> TrainingJob:
        """Return when a job has had a secondary status."""

        def was(job: TrainingJob) -> bool:
            return any(step["Status"] == secondary for step in list(job.timeline.transitions))

        return self._wait(name, was, secondary, timeout_s)

    def wait_for_end(self, name: str, *, timeout_s: float = 200) -> dict[str, Any]:
        """The description of a job when it has ended, with times in seconds since 1970."""
        job = self._wait(name, lambda job: job.has_ended, "an end", timeout_s)
        return job.describe()

    def _wait(
        self, name: str, is_so: Callable[[TrainingJob], bool], what: str, timeout_s: float
    ) -> TrainingJob:
        job = self.jobs[name]
        deadline = time.monotonic() + timeout_s
        while not is_so(job):
            is_over = job.has_ended and not is_so(job)
            if is_over or time.monotonic() > deadline:
                raise AssertionError(f"{name}: no {what}: {job.describe()}\n{job.log()}")
            time.sleep(0.05)
        return job

    # Requests

    def handle(self, operation: str, body: bytes) -> tuple[int, bytes]:
        """Status and content of an answer."""
        with self._lock:
            try:
                found = self._answer(operation, body)
            except Refused as error:
                content = {"__type": error.code, "message": str(error)}
                return error.status, json.dumps(content).encode()
        return 200, found if isinstance(found, bytes) else json.dumps(found).encode()

    def _answer(self, operation: str, body: bytes) -> object:
        request = json.loads(body or b"{}")
        self.calls.append(Call("sagemaker", operation, request=request))
        self._trouble(operation)
        act = self.hosting.operations.get(operation) or _OPERATIONS.get(operation)
        if act is None:
            raise Refused("UnknownOperationException", f"the emulator has no {operation}")
        if faults := _faults(operation, body):
            num = len(faults)
            error = "error" if num == 1 else "errors"
            raise Refused(
                "ValidationException",
                f"{num} validation {error} detected: {'; '.join(faults)}",
            )
        return act(request) if operation in self.hosting.operations else act(self, request)

    def invoke_endpoint(
        self, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, content and headers of an answer of the runtime."""
        try:
            with self._lock:
                self.calls.append(Call("sagemaker", "InvokeEndpoint", path))
                self._trouble("InvokeEndpoint")
            return self.hosting.invoke(path, headers, body)
        except Refused as error:
            details = error.details if isinstance(error, ModelError) else {}
            content = json.dumps({"Message": str(error), **details}).encode()
            return error.status, content, {"x_amzn_ErrorType": error.code}

    def _trouble(self, operation: str) -> None:
        for key in (None, operation):
            if self._throttled[key] > 0:
                self._throttled[key] -= 1
                raise Refused("ThrottlingException", "Rate exceeded")
        if self._num_faults > 0:
            self._num_faults -= 1
            code = "ServiceUnavailable" if self._fault == 503 else "InternalFailure"
            raise Refused(code, "The request has failed", self._fault)
        if operation in self._refusals:
            raise self._refusals[operation]

    def _create(self, request: dict[str, Any]) -> object:
        name = request["TrainingJobName"]
        if name in self.jobs:
            raise Refused(
                "ResourceInUse",
                "Training job names must be unique within an AWS account and region, and a "
                f"training job with this name already exists ({self._arn}{name})",
            )
        self._check_role(request["RoleArn"])
        self._check_quota(request["ResourceConfig"])
        job = TrainingJob(
            request, self._arn + name, self.settings, self._clients["s3"], self._clients["logs"]
        )
        self.jobs[name] = job
        self._all_jobs.append(job)
        job.start()
        return {"TrainingJobArn": job.arn}

    def _check_role(self, arn: str) -> None:
        iam = self._clients["iam"]
        try:
            role = iam.get_role(RoleName=arn.rpartition("/")[2])["Role"]
            trusted = role["Arn"] == arn and any(
                statement["Effect"] == "Allow" and _SERVICE in json.dumps(statement["Principal"])
                for statement in role["AssumeRolePolicyDocument"]["Statement"]
            )
        except iam.exceptions.NoSuchEntityException:
            trusted = False
        if not trusted:
            raise Refused(
                "ValidationException",
                f"Could not assume role {arn}. Please ensure that the role exists and allows "
                f"principal '{_SERVICE}' to assume the role.",
            )

    def _check_quota(self, config: dict[str, Any]) -> None:
        quota, count = len(self.settings.host_names), config["InstanceCount"]
        if count > quota:
            raise Refused(
                "ResourceLimitExceeded",
                f"The account-level service limit '{config['InstanceType']} for training job "
                f"usage' is {quota} Instances, with current utilization of 0 Instances and a "
                f"request delta of {count} Instances. Please use AWS Service Quotas to request "
                "an increase for this quota.",
            )

    def _job(self, request: dict[str, Any]) -> TrainingJob:
        job = self.jobs.get(request["TrainingJobName"])
        if job is None:
            raise Refused("ValidationException", "Requested resource not found.")
        return job

    def _describe(self, request: dict[str, Any]) -> object:
        answer = self._job(request).describe()
        return answer if self._mutate is None else self._mutate(answer)

    def _stop(self, request: dict[str, Any]) -> object:
        job = self._job(request)
        if job.has_ended:
            raise Refused(
                "ValidationException",
                f"The request was rejected because the training job is in status {job.status}.",
            )
        job.ask("stop")
        return {}

    def _delete(self, request: dict[str, Any]) -> object:
        job = self._job(request)
        if not job.has_ended:
            raise Refused("ResourceInUse", f"The training job is in status {job.status}.")
        del self.jobs[job.name]
        return {}

    def _list(self, request: dict[str, Any]) -> object:
        found, token = page(summaries(list(self.jobs.values()), request), request)
        return {"TrainingJobSummaries": found} | token

    def _search(self, request: dict[str, Any]) -> object:
        try:
            found, token = page(find(list(self.jobs.values()), request), request)
        except ValueError as error:
            raise Refused("ValidationException", str(error)) from None
        return {"Results": [{"TrainingJob": job} for job in found]} | token

    def _tags_of(self, arn: str) -> dict[str, str]:
        found = self.hosting.tags_of(arn)
        for job in self.jobs.values():
            if job.arn == arn:
                found = job.tags
        if found is None:
            raise Refused("ResourceNotFound", f"Resource {arn} does not exist")
        return found

    def _list_tags(self, request: dict[str, Any]) -> object:
        tags = self._tags_of(request["ResourceArn"])
        return {"Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}

    def _add_tags(self, request: dict[str, Any]) -> object:
        tags = self._tags_of(request["ResourceArn"])
        tags |= {tag["Key"]: tag["Value"] for tag in request["Tags"]}
        return {"Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}


_OPERATIONS: dict[str, Callable[[SageMaker, dict[str, Any]], object]] = {
    "AddTags": SageMaker._add_tags,
    "CreateTrainingJob": SageMaker._create,
    "DeleteTrainingJob": SageMaker._delete,
    "DescribeTrainingJob": SageMaker._describe,
    "ListTags": SageMaker._list_tags,
    "ListTrainingJobs": SageMaker._list,
    "Search": SageMaker._search,
    "StopTrainingJob": SageMaker._stop,
}


@lru_cache(maxsize=256)  # the model takes 0.1 s to read, and a poll asks the same again and again
def _faults(operation: str, body: bytes) -> tuple[str, ...]:
    return tuple(request_faults(json.loads(body or b"{}"), operation))


class _Endpoint(Handler):
    server: SageMaker

    def do_POST(self) -> None:
        body = b"".join(self.body())
        if self.path.startswith("/endpoints/"):
            status, content, headers = self.server.invoke_endpoint(self.path, self.headers, body)
            self.answer(status, content, **{"Content_Type": "application/json"} | headers)
            return
        target = re.fullmatch(r"SageMaker\.(\w+)", self.headers.get("X-Amz-Target", ""))
        status, content = self.server.handle(target[1] if target else "", body)
        self.answer(status, content, Content_Type=_JSON, x_amzn_RequestId="0")
