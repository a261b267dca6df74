"""The fire pipeline as a user runs it: a real local KFP run, a private Ray, MLflow on sqlite."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ray_jobs.evaluate import evaluate
from ray_jobs.predictions import Predictions
from ray_jobs.result import parse_result
from ray_jobs.run import Run
from ray_jobs.storage import Storage
from tests.conftest import SMALL_JOB, arguments, emberline, start_emberline

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A storage root's parent with the finished run `base`, and what it printed."""
    home = tmp_path_factory.mktemp("fire")
    done = emberline("run", "fire", "--run-id", "base", *arguments(*SMALL_JOB), cwd=home)
    assert done.returncode == 0, done.stderr
    return home, done.stdout


def read(home: Path, run_id: str):
    path = home / "runs" / "fire" / run_id / "result.json"
    return parse_result(path.read_bytes(), where=str(path))


def test_it_prints_test_metrics_and_where_the_report_is(finished: tuple[Path, str]) -> None:
    home, stdout = finished
    result = read(home, "base")
    assert f"{result.metrics['test']['f1'].value:.4f}" in stdout
    report = home / "runs" / "fire" / "base" / "report.html"
    assert str(report) in stdout.replace("\n", "")
    assert report.stat().st_size > 10_000


def test_the_result_is_whole(finished: tuple[Path, str]) -> None:
    home, _ = finished
    result = read(home, "base")
    assert result.status == "SUCCEEDED"
    assert [member.status for member in result.members] == ["SUCCEEDED"] * 5
    names = {"accuracy", "f1", "precision", "recall", "auc", "log_loss", "ece"}
    for metrics in [result.metrics, *(member.metrics for member in result.members)]:
        assert metrics.keys() == {"val", "test"}
        assert metrics["test"].keys() == names
        auc = metrics["test"]["auc"]
        assert auc.low <= auc.value <= auc.high
    assert {"prepare", "train", "ensemble", "evaluate"} <= result.seconds.keys()
    splits = result.data.splits
    assert sum(part.num_rows for part in splits.values()) == 3000
    assert len({part.digest for part in splits.values()}) == 3
    assert result.versions["ray"]


def test_nothing_in_the_run_is_a_pickle_and_digests_hold(finished: tuple[Path, str]) -> None:
    import hashlib

    home, _ = finished
    folder = home / "runs" / "fire" / "base"
    for member in read(home, "base").members:
        assert member.digests
        for name, digest in member.digests.items():
            path = folder / member.path / name
            assert path.suffix in {".skops", ".safetensors", ".json"}
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest


def test_mlflow_holds_the_runs_the_curves_and_a_model_that_predicts(
    finished: tuple[Path, str],
) -> None:
    import mlflow
    import pandas as pd

    home, _ = finished
    result = read(home, "base")
    client = mlflow.MlflowClient(f"sqlite:///{home / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fire")
    runs = client.search_runs([experiment.experiment_id])
    parent = next(run for run in runs if run.info.run_name == "base")
    children = [
        run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    ]
    assert {run.info.run_name for run in children} == {member.name for member in result.members}
    assert parent.data.metrics["test.f1"] == result.metrics["test"]["f1"].value
    lstm = next(run for run in children if run.info.run_name == "lstm_classifier")
    assert lstm.data.params["hidden_size"] == "64"
    assert len(client.get_metric_history(lstm.info.run_id, "epoch.val_loss")) == 2
    files = {file.path for file in client.list_artifacts(lstm.info.run_id, "checkpoint")}
    assert "checkpoint/weights.safetensors" in files

    version = client.get_model_version_by_alias("fire", "challenger")
    assert int(version.version) == result.model.version
    assert version.tags["emberline.test_digest"] == result.data.splits["test"].digest
    mlflow.set_tracking_uri(f"sqlite:///{home / 'runs' / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model("models:/fire@challenger")
    assert model.metadata.signature.inputs.input_names() == result.data.features
    example = model.input_example
    scored = model.predict(example)
    assert list(scored.columns) == ["probability", "decision"]
    assert scored.probability.between(0, 1).all()
    history = model.predict(example, params={"as_history": True})
    assert history.probability[0] == pytest.approx(scored.probability[0])
    assert isinstance(scored, pd.DataFrame)
    assert experiment.artifact_location == (home / "runs" / "mlartifacts" / "fire").as_uri()
    assert not (home / "mlruns").exists()
    stored = [path for path in (home / "runs" / "mlartifacts").rglob("*") if path.is_file()]
    assert any(path.name == "bundle.json" for path in stored)
    assert not [path for path in stored if path.suffix in {".pkl", ".pickle", ".joblib"}]


def test_the_same_run_id_trains_once(finished: tuple[Path, str]) -> None:
    home, _ = finished
    before = (home / "runs" / "fire" / "base" / "events.jsonl").read_bytes()
    words = ("run", "fire", "--run-id", "base", *arguments(*SMALL_JOB), "--json")
    again = emberline(*words, cwd=home)
    assert again.returncode == 0
    assert (
        json.loads(again.stdout)["metrics"]
        == json.loads(read(home, "base").model_dump_json(exclude_none=True))["metrics"]
    )
    assert (home / "runs" / "fire" / "base" / "events.jsonl").read_bytes() == before
    other = emberline(*words, "--set", "seed=1", cwd=home)
    assert other.returncode == 2
    assert "run 'base' exists with another job description; it differs in seed." in other.stderr


def test_the_same_seed_gives_the_same_numbers_two_at_once_and_by_module(
    finished: tuple[Path, str],
) -> None:
    """Two processes with one new run id: one trains, the other waits and tells the same. That run,
    started as `python -m ray_jobs.train`, has the numbers of the pipeline's run."""
    import subprocess
    import sys

    home, _ = finished
    spec = home / "runs" / "fire" / "base" / "spec.yaml"
    command = [sys.executable, "-m", "ray_jobs.train", "--spec", str(spec), "--run-id", "twin"]
    pair = [
        subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=280)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert outputs[0] == outputs[1]
    twin, base = read(home, "twin"), read(home, "base")
    assert twin.metrics == base.metrics
    assert twin.ensemble == base.ensemble
    assert [m.metrics for m in twin.members] == [m.metrics for m in base.members]
    events = (home / "runs" / "fire" / "twin" / "events.jsonl").read_text().splitlines()
    assert sum('"member_started"' in event for event in events) == 5


def test_a_member_that_fails_is_left_out_with_its_reason(finished: tuple[Path, str]) -> None:
    home, _ = finished
    words = arguments(*SMALL_JOB, "members.transformer.learning_rate=1.0e+38")
    done = emberline("run", "fire", "--run-id", "bad", *words, "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    result = read(home, "bad")
    failed = next(member for member in result.members if member.name == "transformer")
    assert failed.status == "FAILED"
    assert "lower the learning_rate" in failed.reason
    assert "transformer" not in result.ensemble.weights
    assert any("transformer" in warning for warning in result.warnings)
    assert failed.metrics == {}

    words = arguments(
        *SMALL_JOB, "members.transformer.learning_rate=1.0e+38", "ensemble.min_members=5"
    )
    done = emberline("run", "fire", "--run-id", "few", *words, "--json", cwd=home)
    assert done.returncode == 4
    assert "4 of 5 members were fitted, but ensemble.min_members is 5 (transformer: " in done.stderr
    assert read(home, "few").status == "FAILED"
    assert json.loads(done.stdout)["exit_code"] == 4


def test_report_and_compare_read_what_runs_left(finished: tuple[Path, str]) -> None:
    home, _ = finished
    report = emberline("report", "base", "--json", cwd=home)
    assert Path(json.loads(report.stdout)["report"]).exists()
    compared = emberline("compare", "base", "fire/base", cwd=home)
    assert compared.returncode == 0
    assert "test f1" in compared.stdout


def test_bad_data_ends_the_run_with_exit_3_and_no_success(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,fire\n" + "1,2,0\n" * 40)
    words = arguments("data.path=t.csv", "data.label_column=fire")
    done = emberline("run", "fire", "--run-id", "x", *words, cwd=tmp_path)
    assert done.returncode == 3
    assert "t.csv" in done.stderr
    assert "one class" in done.stderr
    assert "Traceback" not in done.stderr
    assert read(tmp_path, "x").status == "FAILED"
    assert not list((tmp_path / "runs").rglob("dataset.json"))


TWO = ("members=[logistic_regression, gradient_boosting]",)


def test_a_tracking_server_that_is_down_costs_no_training(tmp_path: Path) -> None:
    words = ("run", "fire", "--run-id", "kept", *arguments("data.samples=2000", *TWO))
    down = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    done = emberline(*words, cwd=tmp_path, **down)
    assert done.returncode == 5
    assert "MLflow at http://127.0.0.1:9 did not take the run" in done.stderr
    result = read(tmp_path, "kept")
    assert result.status == "FAILED"
    assert result.metrics["test"]["auc"]  # what is known is kept
    events = (tmp_path / "runs" / "fire" / "kept" / "events.jsonl").read_text()
    again = emberline(*words, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert read(tmp_path, "kept").metrics == result.metrics

    # A member that fails at first and is fitted by the second attempt is tested with the others.
    folder = tmp_path / "runs" / "fire" / "kept"
    (folder / "result.json").unlink()
    stored = Predictions.read(Storage(folder), "artifacts/predictions-test.parquet")
    one = {"gradient_boosting": stored.members["gradient_boosting"]}
    replace(stored, members=one).write(Storage(folder), "artifacts/predictions-test.parquet")
    assert evaluate(Run.at(str(folder))).metrics == result.metrics
    tested = Predictions.read(Storage(folder), "artifacts/predictions-test.parquet")
    assert tested.members.keys() == stored.members.keys()
    later = (tmp_path / "runs" / "fire" / "kept" / "events.jsonl").read_text()
    assert '"member_started"' not in later.removeprefix(events)


def test_no_score_beats_what_can_be_known(tmp_path: Path) -> None:
    """Rows whose true probability is known: the ensemble comes near its AUC, not above it."""
    words = arguments("data.generator=independent", "data.samples=20000", *TWO)
    done = emberline("run", "fire", "--run-id", "known", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = read(tmp_path, "known")
    auc, ceiling = result.metrics["test"]["auc"], result.data.ceiling["test"]["auc"]
    assert auc.low <= ceiling
    assert auc.value > ceiling - 0.02  # fewer rows teach less than the 100,000 of a real run
    words = arguments("data.shuffle_labels=true", "data.samples=20000", *TWO)
    done = emberline("run", "fire", "--run-id", "null", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    null = read(tmp_path, "null")
    for scores in (null.metrics, *(member.metrics for member in null.members)):
        auc = scores["test"]["auc"]
        # Calibration makes a model that knows nothing a constant, whose AUC is always one half.
        assert auc.value == 0.5 if auc.low is None else auc.low <= 0.5 <= auc.high


def test_storage_and_data_on_s3(tmp_path: Path, s3: dict[str, str]) -> None:
    """Rows written to S3, a run over S3 whose files all lie there."""
    done = emberline("data", "fire", "--samples", "2000", "-o", "s3://rows/a", cwd=tmp_path, **s3)
    assert done.returncode == 0, done.stderr
    words = arguments("data.path=s3://rows/a", "members=[logistic_regression, gradient_boosting]")
    words += ["--storage", "s3://runs/root", "--run-id", "far", "--json"]
    done = emberline("run", "fire", *words, cwd=tmp_path, **s3)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "SUCCEEDED"
    assert result["metrics"]["test"]["auc"]["value"] > 0.7
    os.environ.update(s3)
    run = Run.open("s3://runs/root", "fire", "far")
    assert run.read_result().model.version == 1
    assert run.storage.exists(run.path("report.html"))


def test_an_s3_that_does_not_answer_is_told_in_one_line(tmp_path: Path) -> None:
    environment = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }
    words = arguments("data.path=s3://rows/a", "data.label_column=fire")
    process = start_emberline("run", "fire", *words, "--dry-run", cwd=tmp_path, **environment)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 5
    assert "s3://rows/a" in stderr
    assert "AWS_ENDPOINT_URL" in stderr
    assert len(stderr) < 600
