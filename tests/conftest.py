"""Shared parts of the tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

from ray_jobs.sections import JobSpec, Section
from tests.go_tools import built
from tests.s3_server import s3_server
from tests.sagemaker_emulator.aws import start_moto

# As jobs do (ray_runtime.py): on a busy machine, threads that spin while they wait cost the most.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# A busy machine is no fault of the code. In CI the examples are the same each time, so that a
# commit is judged by what it changed; elsewhere they are new ones.
settings.register_profile("emberline", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("emberline")

_REPOSITORY = Path(__file__).parents[1]
_SURROUNDINGS = (
    "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "AWS_PROFILE", "EMBERLINE_SIGNING_KEY",
    "EMBERLINE_TRUSTED_KEYS",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those of a cluster with a token last: the token stays in the process, and a private Ray that
    is started after them would not take its own."""

    def is_last(item: pytest.Item) -> bool:
        in_contract = item.path.is_relative_to(_REPOSITORY / "tests" / "contract")
        return in_contract or "ray_cluster" in getattr(item, "fixturenames", ())

    items.sort(key=is_last)


def real_data(name: str) -> Path:
    """A folder of real data, or a skip that says where it is looked for."""
    root = Path(os.environ.get("EMBERLINE_TEST_DATA", _REPOSITORY.parent / "shared" / "data"))
    if not (root / name).is_dir():
        pytest.skip(f"no real data at {name} (EMBERLINE_TEST_DATA names the folder that holds it)")
    return root / name


@pytest.fixture(autouse=True, scope="session")
def _own_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The key that models are signed with is made anew, and not in the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(autouse=True)
def _quiet_surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test depends on, or changes, the user's MLflow, AWS account, Ray cluster or keys."""
    for name in _SURROUNDINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    yield
    for name in _SURROUNDINGS:  # MLflow sets its own, which the next module's fixtures would take
        os.environ.pop(name, None)


# A job that trains all five families in seconds.
SMALL_JOB = (
    "data.samples=3000",
    "members.random_forest.num_trees=20",
    "members.gradient_boosting.num_rounds=20",
    "members.lstm_classifier.epochs=2",
    "members.transformer.epochs=2",
)


# A job that trains a tiny network on drawn pictures in seconds.
SMALL_WASTE = (
    "data.classes=[shoes, eggshells, magazines, clothing]",
    "data.samples=160",
    "data.picture_size=32",
    "model.name=test_resnet",
    "model.image_size=32",
    "train.epochs=3",
    "train.batch_size=16",
)


# A tiny decoder of G-code, trained on simulated runs in seconds, and a sweep of six of them.
SMALL_GCODE = (
    "data.runs=12",
    "data.stride=8",
    "model.hidden_dim=32",
    "model.num_heads=4",
    "model.num_layers=1",
    "train.epochs=3",
)
SMALL_SWEEP = (
    *SMALL_GCODE,
    "sweep.num_trials=6",
    "sweep.max_epochs=4",
    "sweep.grace_epochs=1",
    "sweep.space.model.hidden_dim={values: [16, 32]}",
    "sweep.space.model.num_heads={values: [2, 4]}",
    "sweep.space.model.num_layers=null",
)


def assert_names_keys(advice: str, spec: Section) -> None:
    """What an advice names is there to be set."""
    named = re.findall(r"\b(?:data|model|train)\.\w+", advice)
    assert named
    for key in named:
        section, name = key.split(".")
        assert name in type(getattr(spec, section)).model_fields, key


def arguments(*overrides: str) -> list[str]:
    """`--set` for each override."""
    return [part for override in overrides for part in ("--set", override)]


def start_emberline(*words: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """The command line as its users start it: a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *words],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def emberline(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    process = start_emberline(*words, cwd=cwd, **environment)
    stdout, stderr = process.communicate(timeout=280)
    return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


# One interpreter and one Ray: a small run takes a second or two, to start these takes twenty.
_TRAIN = """
import os
import sys
from ray_jobs import ray_runtime
from ray_jobs.sections import ResourceSpec
from ray_jobs.train import main
server = os.environ.get("MLFLOW_TRACKING_URI")
with ray_runtime.session(ResourceSpec()):
    for number, run_id in enumerate(sys.argv[1:]):
        if server is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow keeps that of the run before
        assert main(["--spec", f"{number}.yaml", "--run-id", run_id]) == 0
"""


def train(home: Path, runs: Sequence[tuple[str, JobSpec]], **environment: str) -> None:
    """Carry runs out, one after the other, in the folder `home`: their ids and what they do."""
    for number, (_, spec) in enumerate(runs):
        (home / f"{number}.yaml").write_text(spec.to_yaml())
    kept = {name: value for name, value in os.environ.items() if name not in _SURROUNDINGS}
    done = subprocess.run(
        [sys.executable, "-c", _TRAIN, *(run_id for run_id, _ in runs)],
        cwd=home,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An S3 server on loopback, buckets `rows` and `runs`: the variables to reach it. MinIO where
    it has been built (`make minio`), else moto's."""
    import boto3

    folder, program = tmp_path_factory.mktemp("s3"), built("minio")
    with ExitStack() as stack:
        if program is not None:
            environment = stack.enter_context(s3_server(program, folder)).environment
        else:
            # A process of its own: moto keeps one account for all servers of a process.
            environment = {
                "AWS_ENDPOINT_URL": stack.enter_context(start_moto(folder)),
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        client = boto3.session.Session(
            environment["AWS_ACCESS_KEY_ID"],
            environment["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        ).client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"])
        for bucket in ("rows", "runs"):
            client.create_bucket(Bucket=bucket)
        yield environment


@pytest.fixture
def bucket(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket that this process reaches."""
    import boto3

    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # which keeps the credentials of before
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    return "rows"
