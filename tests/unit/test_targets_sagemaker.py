"""The parts of the SageMaker target that need no training job."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.errors import DataError, PreflightError, RetryableError, SpecError
from ray_jobs.result import Status
from ray_jobs.run import Run
from ray_jobs.spec import load_spec
from ray_jobs.targets.sagemaker.aws import Aws, answers
from ray_jobs.targets.sagemaker.costs import costs, max_run_s_of_part, totals
from ray_jobs.targets.sagemaker.data import upload_channels
from ray_jobs.targets.sagemaker.description import TrainingJobState
from ray_jobs.targets.sagemaker.environment import job_environment
from ray_jobs.targets.sagemaker.logs import GROUP, JobLogs
from ray_jobs.targets.sagemaker.parts import PartJob, look_at_parts
from ray_jobs.targets.sagemaker.spec import SageMakerSpec
from ray_jobs.targets.sagemaker.submissions import (
    Submission,
    newest,
    read_submissions,
    write_submission,
)
from ray_jobs.targets.sagemaker.target import SageMakerTarget, connect
from ray_jobs.workloads.base import COMBINE
from tests.sagemaker_emulator.aws import start_moto

REGION = "eu-west-1"
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


# AWS's answers


class Service(ThreadingHTTPServer):
    """A service of AWS that answers what a test says."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.answers: list[tuple[int, Any]] = []  # the last one for ever
        self.num_requests = 0


class Answers(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answers_ = self.server.answers
        status, content = answers_[min(self.server.num_requests, len(answers_) - 1)]
        self.server.num_requests += 1
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

    def log_message(self, format: str, *arguments: object) -> None:
        """Tests are quiet."""


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "hush",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def service(account: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    server = Service()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def fault(code: str, message: str = "no") -> dict[str, str]:
    return {"__type": code, "message": message}


def ask(service: Service) -> Any:
    with answers():
        return Aws(SageMakerSpec(region=REGION)).client("sagemaker").list_training_jobs()


@pytest.mark.parametrize(
    ("status", "content", "error", "words"),
    [
        (
            400,
            fault(
                "AccessDeniedException",
                "User: arn:aws:iam::1:user/a is not authorized to perform: "
                "sagemaker:ListTrainingJobs on resource: *",
            ),
            PreflightError,
            "AWS denies ListTrainingJobs: this user or role lacks the permission "
            "sagemaker:ListTrainingJobs; have it allowed in IAM",
        ),
        (
            400,
            fault("AccessDeniedException", "no"),
            PreflightError,
            "lacks what ListTrainingJobs needs",
        ),
        (
            403,
            fault("ExpiredTokenException", "token=hush"),
            PreflightError,
            "AWS refuses these credentials (ListTrainingJobs: ExpiredTokenException); sign in "
            "again (aws sso login, or aws configure), or set AWS_PROFILE",
        ),
        (
            400,
            fault("ResourceLimitExceeded", "The account-level service limit is 0 Instances."),
            PreflightError,
            "The account-level service limit is 0 Instances. Ask for more in Service Quotas",
        ),
        (
            400,
            fault("ValidationException", "Could not assume role x."),
            PreflightError,
            "AWS refuses ListTrainingJobs (ValidationException): Could not assume role x.",
        ),
    ],
)
def test_what_cannot_succeed_is_said_at_once(
    service: Service, status: int, content: Any, error: type[Exception], words: str
) -> None:
    service.answers = [(status, content)]
    with pytest.raises(error) as raised:
        ask(service)
    assert words in str(raised.value)
    assert "hush" not in str(raised.value)
    assert service.num_requests == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "ThrottlingException"), (503, "ServiceUnavailable"), (500, "Unheard-of")],
)
def test_what_may_pass_is_tried_again(
    service: Service, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    monkeypatch.setattr("botocore.retries.standard.RetryHandler.needs_retry", _hasty)
    refusal = (status, fault(code))
    service.answers = [refusal, refusal, refusal, (200, {"TrainingJobSummaries": []})]
    assert ask(service)["TrainingJobSummaries"] == []
    assert service.num_requests == 4
    service.answers = [refusal]
    message = f"AWS does not carry out ListTrainingJobs now ({code}), after several tries"
    with pytest.raises(RetryableError, match=re.escape(message)):
        ask(service)
    assert service.num_requests == 4 + 6


def _hasty(handler: Any, **fields: Any) -> float | None:
    """botocore's decision, without its pause."""
    delay = _needs_retry(handler, **fields)
    return None if delay is None else 0.0


from botocore.retries.standard import RetryHandler  # noqa: E402 - beside what it is needed for

_needs_retry = RetryHandler.needs_retry


def test_nobody_at_the_endpoint(account: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.retries.standard.RetryHandler.needs_retry", _hasty)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(RetryableError, match=r"does not answer \(EndpointConnectionError\); look"):
        SageMakerTarget(SageMakerSpec(region=REGION)).list()


def test_without_credentials(account: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(
        PreflightError, match=r"there are no usable AWS credentials .*aws sso login"
    ):
        SageMakerTarget(SageMakerSpec(region=REGION)).list()


def test_where_the_region_comes_from(
    account: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(
        SpecError, match=r"needs a region: set sagemaker\.region, such as --set sag"
    ):
        _ = Aws(SageMakerSpec()).region
    (tmp_path / "config").write_text("[profile mine]\nregion = eu-north-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert Aws(SageMakerSpec()).region == "eu-north-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-2")
    assert Aws(SageMakerSpec()).region == "eu-west-2"
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    assert Aws(SageMakerSpec()).region == "eu-west-3"
    assert Aws(SageMakerSpec(region=REGION)).region == REGION
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(PreflightError, match=r"other.*set AWS_PROFILE to one of ~/\.aws/config"):
        Aws(SageMakerSpec(region=REGION)).client("s3")


def test_one_client_for_all_threads(account: None) -> None:
    aws = Aws(SageMakerSpec(region=REGION))
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(aws.client("sagemaker"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({id(client) for client in found}) == 1


# The job's environment


def test_the_job_gets_what_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM", "safety")
    monkeypatch.delenv("NO_SUCH_NAME", raising=False)
    assert job_environment(SageMakerSpec(env=["TEAM"])) == {"TEAM": "safety"}
    with pytest.raises(
        PreflightError, match=r"sagemaker\.env names NO_SUCH_NAME, which is not set"
    ):
        job_environment(SageMakerSpec(env=["TEAM", "NO_SUCH_NAME"]))


@pytest.mark.parametrize(
    ("uri", "is_passed"),
    [
        ("https://mlflow.example/path", True),
        ("http://10.0.0.5:5000", True),
        ("http://127.0.0.1:5000", False),
        ("http://[::1]:5000", False),
        ("http://0.0.0.0:5000", False),
        ("http://localhost:5000", False),
        ("sqlite:///mlflow.db", False),
        ("", False),
    ],
)
def test_only_a_server_that_the_job_can_reach_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, uri: str, is_passed: bool
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    expected = {"MLFLOW_TRACKING_URI": uri} if is_passed else {}
    assert job_environment(SageMakerSpec()) == expected


def test_a_password_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ada:hush@mlflow.example")
    with pytest.raises(PreflightError, match="MLFLOW_TRACKING_URI holds a password") as raised:
        job_environment(SageMakerSpec())
    assert "hush" not in str(raised.value)


# Members in jobs of their own

MEMBERS = ("a", "b", "c")


def job(
    status: Status, *, part: str = "a", round_: int = 1, reason: str | None = None, **fields: Any
) -> PartJob:
    state = TrainingJobState(
        name=part, status=status, service_status="x", reason=reason or status.lower(), **fields
    )
    return PartJob(Submission(round_, 1, part), state)


def look(jobs: dict[str, PartJob], *, round_: int = 1, n: int = 2, **fields: Any) -> Any:
    return look_at_parts(MEMBERS, jobs, round_=round_, max_parallel=n, max_attempts=2, **fields)


DONE, LIVE, FAILED, STOPPED = job("SUCCEEDED"), job("RUNNING"), job("FAILED"), job("STOPPED")
PASSING = job("FAILED", reason="CapacityError: no capacity")


@pytest.mark.parametrize(
    ("jobs", "due"),
    [
        ({}, ["a", "b"]),
        ({"a": LIVE}, ["b"]),
        ({"a": LIVE, "b": job("PENDING")}, []),
        ({"a": LIVE, "b": FAILED}, ["c"]),
        ({"a": DONE, "b": FAILED, "c": LIVE}, []),
        ({"a": DONE, "b": FAILED, "c": DONE}, [COMBINE]),
        ({"a": FAILED, "b": FAILED, "c": FAILED}, [COMBINE]),  # which says why the run failed
        ({"a": DONE, "b": PASSING, "c": DONE}, ["b"]),
        ({"a": DONE, "b": STOPPED}, []),
        ({"a": LIVE, "b": STOPPED}, []),
        ({"a": DONE, "b": DONE, "c": DONE, COMBINE: LIVE}, []),
        ({"a": DONE, "b": DONE, "c": DONE, COMBINE: FAILED}, []),
        ({"a": DONE, "b": job("FAILED", is_malformed=True)}, []),
    ],
)
def test_what_is_due(jobs: dict[str, PartJob], due: list[str]) -> None:
    assert look(jobs).due == due
    assert look(jobs, is_stopping=True).due == []


def test_a_member_is_not_tried_for_ever() -> None:
    tried = PartJob(PASSING.made, PASSING.state, num_tries=2)
    found = look({"a": DONE, "b": tried, "c": DONE})
    assert found.due == [COMBINE]
    assert found.failed == {"b": "CapacityError: no capacity"}


def test_another_round_takes_up_what_the_last_left_unfinished() -> None:
    jobs = {"a": DONE, "b": FAILED, "c": STOPPED, COMBINE: FAILED}
    assert look(jobs).combining is FAILED
    found = look(jobs, round_=2, n=1)
    assert (found.due, found.combining) == (["b"], None)
    again = {**jobs, "b": job("SUCCEEDED", round_=2), "c": job("FAILED", round_=2)}
    assert look(again, round_=2).due == [COMBINE]
    assert look({**again, COMBINE: job("RUNNING", round_=2)}, round_=2).due == []


@given(
    st.dictionaries(
        st.sampled_from([*MEMBERS, COMBINE]),
        st.builds(
            job,
            st.sampled_from(["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"]),
            round_=st.integers(1, 2),
            reason=st.sampled_from(["no", "CapacityError: no"]),
        ),
    ),
    st.integers(1, 4),
    st.booleans(),
)
def test_never_too_many_at_once_and_none_twice(
    jobs: dict[str, PartJob], n: int, is_stopping: bool
) -> None:
    round_ = max((one.made.round for one in jobs.values()), default=1)
    found = look(jobs, round_=round_, n=n, is_stopping=is_stopping)
    live = [part for part, one in jobs.items() if not one.state.has_ended]
    assert not set(found.due) & set(live)
    assert max(Counter(found.due).values(), default=1) == 1
    if found.due:
        assert len([*found.live, *found.due]) <= max(n, len(found.live))
        assert COMBINE not in live
        fitted = [member for member in found.due if member in MEMBERS]
        assert not any(jobs[m].state.status == "SUCCEEDED" for m in fitted if m in jobs)
    if COMBINE in found.due:
        assert found.due == [COMBINE]
        assert not live


def test_submissions_are_read_back(tmp_path: Path) -> None:
    run = Run.create(load_spec("fire", storage=str(tmp_path)), "night")
    assert read_submissions(run) == []
    made = [
        Submission(1, 1, None),
        Submission(1, 1, "lstm_classifier"),
        Submission(1, 2, "lstm_classifier"),
        Submission(2, 10, "lstm_classifier"),
        Submission(2, 1, COMBINE),
    ]
    for one in made:
        write_submission(run, one)
    run.storage.write_text(run.path("submissions", "notes.txt"), "")
    assert set(read_submissions(run)) == set(made)
    assert newest(read_submissions(run)) == {
        None: made[0], "lstm_classifier": made[3], COMBINE: made[4],
    }  # fmt: skip


# Budgets

PRICED = SageMakerSpec(usd_per_hour=3.6, max_cost_usd=3.0)  # 0.001 USD a second


def ended(billable_s: int | None, **fields: Any) -> TrainingJobState:
    return TrainingJobState(
        name="a", status="FAILED", service_status="Failed", billable_s=billable_s, **fields
    )


def test_jobs_share_the_budget() -> None:
    def limit(num_jobs: int, *earlier: TrainingJobState) -> int:
        return max_run_s_of_part(PRICED, REGION, num_jobs, earlier)

    assert limit(1) == pytest.approx(3000 - 120, abs=1)
    assert limit(3) == pytest.approx(1000 - 120, abs=1)
    assert limit(3, ended(400), ended(100)) == pytest.approx(500 - 120, abs=1)
    assert max_run_s_of_part(SageMakerSpec(max_run_s=77), REGION, 3, [ended(400)]) == 77


@pytest.mark.parametrize(
    ("billed", "words"),
    [
        (1000, "of sagemaker.max_cost_usd=3 this job has 1.00 USD, and 1.00 are billed; raise it"),
        (
            900,
            "this job has 1.00 USD, and 0.90 are billed: sagemaker.max_cost_usd=0.1 pays for 100",
        ),
    ],
)
def test_a_budget_that_is_used_up_starts_nothing(billed: int, words: str) -> None:
    with pytest.raises(PreflightError, match=re.escape(words)):
        max_run_s_of_part(PRICED, REGION, 3, [ended(billed)])


def test_what_a_run_has_cost() -> None:
    def told(jobs: Sequence[TrainingJobState], *, has_ended: bool) -> dict[str, str]:
        return costs(jobs, PRICED, REGION, has_ended=has_ended)

    assert told([], has_ended=False) == told([ended(None)], has_ended=True) == {}
    price = "(3.6 USD/hour (sagemaker.usd_per_hour))"
    assert told([ended(500), ended(250)], has_ended=True) == {"cost": f"0.75 USD {price}"}
    live = TrainingJobState(
        name="b", status="RUNNING", service_status="InProgress", started_at=datetime.now(UTC)
    )
    found = told([ended(500), live], has_ended=False)
    assert found == {"cost so far": f"at most 0.50 USD {price}"}
    unbilled = ended(None, started_at=NOW, ended_at=NOW + timedelta(seconds=100))
    assert told([unbilled], has_ended=True) == {"cost so far": f"at most 0.10 USD {price}"}
    dear = SageMakerSpec(instance_type="ml.x99.large")
    assert costs([ended(5)], dear, REGION, has_ended=True)["cost"].startswith("unknown: prices.csv")


def test_the_times_of_several_jobs_are_added() -> None:
    jobs = [ended(30, training_s=100, is_spot=True), ended(60, training_s=100), ended(None)]
    assert totals(jobs) == {"trained": "200 s", "billable": "90 s", "spot savings": "55 %"}
    assert totals([ended(None), ended(None)]) == totals(jobs[:1]) == {}


# Local data, on a real S3 server


def upload(path: Path | str, bucket: str, seen: list[tuple[int, int]] | None = None) -> Any:
    spec = load_spec("fire", overrides=[f"data.path={path}"], storage=f"s3://{bucket}/team")
    told: list[tuple[int, int]] = [] if seen is None else seen
    return upload_channels(
        spec,
        f"s3://{bucket}/team",
        Aws(SageMakerSpec(region="us-east-1")),
        on_upload=lambda done, total: told.append((done, total)),
    )


def objects(bucket: str) -> dict[str, bytes]:
    import boto3

    client = boto3.client("s3")
    found = client.list_objects_v2(Bucket=bucket, Prefix="team/").get("Contents", [])
    keys = [item["Key"] for item in found]
    return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


@pytest.mark.slow
def test_local_data_are_uploaded_once(bucket: str, tmp_path: Path) -> None:
    import boto3

    (tmp_path / "rows" / "a").mkdir(parents=True)
    (tmp_path / "rows" / "a" / "one.csv").write_text("x,label\n1,0\n")
    (tmp_path / "rows" / "two.csv").write_text("x,label\n2,1\n")
    (tmp_path / "rows" / "notes.txt").write_text("not data")
    seen: list[tuple[int, int]] = []
    channels = upload(tmp_path / "rows", bucket, seen)
    (uri,) = channels.values()
    prefix = uri.removeprefix(f"s3://{bucket}/")
    assert list(channels) == ["data"]
    assert re.fullmatch(r"team/data/[0-9a-f]{32}/", prefix)
    assert objects(bucket) == {
        f"{prefix}a/one.csv": b"x,label\n1,0\n",
        f"{prefix}two.csv": b"x,label\n2,1\n",
        f"{prefix.rstrip('/')}.json": b'{"num_files": 2, "num_bytes": 24}',
    }
    assert seen[0] == (0, 24)
    assert seen[-1] == (24, 24)

    seen.clear()
    assert upload(tmp_path / "rows" / "**" / "*.csv", bucket, seen) == channels
    assert seen == []  # the same names and contents

    # An upload that was cut off goes on where it ended.
    client = boto3.client("s3")
    client.delete_object(Bucket=bucket, Key=f"{prefix.rstrip('/')}.json")
    client.delete_object(Bucket=bucket, Key=f"{prefix}two.csv")
    assert upload(tmp_path / "rows", bucket, seen) == channels
    assert seen == [(12, 24), (24, 24)]
    assert len(objects(bucket)) == 3

    (tmp_path / "rows" / "two.csv").write_text("x,label\n3,1\n")
    assert upload(tmp_path / "rows", bucket) != channels


@pytest.mark.slow
def test_a_channel_for_each_folder_of_pictures(bucket: str, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name / "shoes").mkdir(parents=True)
        (tmp_path / name / "shoes" / f"{name}.jpg").write_bytes(name.encode())
        (tmp_path / name / "shoes" / "._hidden.jpg").write_bytes(b"")
    sources = ", ".join(
        f"{{path: {path}}}" for path in (tmp_path / "first", "s3://rows/x", tmp_path / "second")
    )
    added = f"data.added=[s3://rows/y, {tmp_path / 'second'}]"
    overrides = [f"data.sources=[{sources}]", added]
    spec = load_spec("waste", overrides=overrides, storage="s3://rows/team")
    aws = Aws(SageMakerSpec(region="us-east-1"))
    channels = upload_channels(spec, "s3://rows/pictures", aws)
    assert list(channels) == ["data_0", "data_2", "added_1"]
    assert channels["added_1"] == channels["data_2"]
    assert channels["data_0"] != channels["data_2"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.path=missing.csv"], "missing.csv: no such file or folder. Set data.path to"),
        (["data.added=[missing.csv]"], "missing.csv: no such file or folder. Set data.added to"),
        (
            ["data.sources=[{path: missing}]"],
            "missing: cannot be listed",
        ),
    ],
)
def test_data_that_are_not_there(account: None, overrides: list[str], words: str) -> None:
    workload = "waste" if "sources" in overrides[0] else "fire"
    spec = load_spec(workload, overrides=overrides, storage="s3://rows/team")
    with pytest.raises(DataError, match=re.escape(words)):
        upload_channels(spec, "s3://rows/team", Aws(SageMakerSpec(region=REGION)))


def test_data_at_a_uri_are_no_channel(account: None) -> None:
    overrides = ["data.path=s3://rows/a", "data.added=[s3://rows/b]"]
    spec = load_spec("fire", overrides=overrides, storage="s3://rows/team")
    assert upload_channels(spec, "s3://rows/team", Aws(SageMakerSpec(region=REGION))) == {}


# Logs


@pytest.fixture
def cloudwatch(tmp_path: Path, account: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """moto's: no S3 server has it."""
    with start_moto(tmp_path) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        yield


@pytest.mark.slow
def test_a_log_is_read_as_it_grows(cloudwatch: None) -> None:
    aws = Aws(SageMakerSpec(region="us-east-1"))
    client = aws.client("logs")
    log = JobLogs(aws, tells_hosts=True)
    jobs = [("fire-night", None), ("fire-night-a", "a")]
    assert list(log.read_new(jobs)) == []  # no group yet
    client.create_log_group(logGroupName=GROUP)
    start = int(datetime.now(UTC).timestamp() * 1000)

    def put(stream: str, *messages: tuple[int, str]) -> None:
        if stream not in [s["logStreamName"] for s in _streams(client)]:
            client.create_log_stream(logGroupName=GROUP, logStreamName=stream)
        events = [{"timestamp": start + time, "message": text} for time, text in messages]
        client.put_log_events(logGroupName=GROUP, logStreamName=stream, logEvents=events)

    put("fire-night/algo-1-1700000000", (0, "one"), (2, "three"))
    put("fire-night/algo-2-1700000000", (1, "two"))
    put("fire-night-a/algo-1-1700000000", (3, "four\nfive"))
    put("fire-night-b/algo-1-1700000000", (4, "another job's"))
    assert list(log.read_new(jobs)) == [
        "algo-1| one", "algo-2| two", "algo-1| three", "a| algo-1| four", "a| algo-1| five",
    ]  # fmt: skip
    assert list(log.read_new(jobs)) == []
    put("fire-night/algo-1-1700000000", (5, "six"))
    put("fire-night/algo-1-1700009999", (6, "after an interruption"))
    assert list(log.read_new(jobs)) == ["algo-1| six", "algo-1| after an interruption"]
    assert next(JobLogs(aws).read_new([("fire-night", None)])) == "one"


def _streams(client: Any) -> list[dict[str, Any]]:
    return client.describe_log_streams(logGroupName=GROUP)["logStreams"]


# The target


def test_a_run_that_no_job_can_reach_is_refused(account: None, tmp_path: Path) -> None:
    spec = load_spec(
        "fire", overrides=["sagemaker.bucket=mine", "target=sagemaker"], storage=str(tmp_path)
    )
    there = connect(spec)
    assert there.storage(spec) == "s3://mine/emberline"
    message = f"is kept in {tmp_path}, which no training job reaches; give --storage s3://mine/emb"
    with pytest.raises(SpecError, match=re.escape(message)):
        there.submit(Run.create(spec, "night"))
    with pytest.raises(SpecError, match=r"cannot keep a run in storage .*set sagemaker\.bucket"):
        connect(load_spec("fire", storage=str(tmp_path))).submit(
            Run.create(load_spec("fire", storage=str(tmp_path)), "other")
        )
