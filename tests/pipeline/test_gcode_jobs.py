"""`emberline run gcode` and `emberline sweep gcode`, whole, on simulated logs and on real ones."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.spec import CONFIGS
from tests.conftest import SMALL_GCODE, SMALL_SWEEP, arguments, emberline, real_data

pytestmark = pytest.mark.slow
HEADS = {"composite_acc", "command_acc", "param_type_acc", "param_value_acc"}


def start(job: str, cwd: Path, *words: str) -> subprocess.Popen[str]:
    """`python -m ray_jobs.train` or `.sweep`, as a cluster starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", f"ray_jobs.{job}", "--spec", str(CONFIGS / "gcode.yaml"), *words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    stdout, stderr = process.communicate(timeout=280)
    assert process.returncode == 0, stderr
    return json.loads(stdout[stdout.index("{\n") :])


def test_a_run_is_tested_beside_its_rivals_and_repeats_itself(tmp_path: Path) -> None:
    words = ("run", "gcode", "--run-id", "one", "--json", *arguments(*SMALL_GCODE))
    done = emberline(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for said in ("epoch 3/3", "param_value", "best composite", "patience", "lr "):
        assert said in done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "SUCCEEDED"
    for split in ("val", "test"):
        assert result["metrics"][split].keys() >= HEADS
        assert set(result["rivals"]) == {"baseline", "constant"}
        for rival in result["rivals"].values():
            assert rival[split].keys() >= HEADS
    assert "sweep" not in result
    leaks = {leak["column"] for leak in result["data"]["leakage"]["columns"] if leak["refused"]}
    assert {"line", "momo", "feed", "posx", "mpox"} <= leaks

    folder = tmp_path / "runs" / "gcode" / "one"
    assert "composite" in (folder / "report.html").read_text()
    assert not (folder / "sweep.html").exists()
    assert not list(folder.rglob("*.pkl"))

    # The registered model, loaded as MLflow's users do, says what the network said.
    import mlflow

    from ray_jobs.data.machine_logs.windows import load_windows
    from ray_jobs.gcode_predictions import GcodePredictions
    from ray_jobs.prepare import read_data
    from ray_jobs.run import Run
    from ray_jobs.workloads.gcode import _example_rows

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model("models:/gcode@challenger")
    this = Run.open(str(tmp_path / "runs"), "gcode", "one")
    data = read_data(this)
    said = model.predict(_example_rows(this, data))
    val = GcodePredictions.read(this.storage, this.path("artifacts/predictions-val.parquet"))
    (place,) = (val.row_id == load_windows(this.storage, data, "val").row_id[0]).nonzero()[0]
    assert said["command"].iloc[-1] == val.commands[val.predicted.command[place]]

    # The same seed by the other door: identical on the CPU.
    again = finish(start("train", tmp_path, "--run-id", "two", *arguments(*SMALL_GCODE)))
    assert (again["metrics"], again["rivals"]) == (result["metrics"], result["rivals"])


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A sweep from the command line that nothing disturbed: its folder and its result."""
    cwd = tmp_path_factory.mktemp("swept")
    words = ("sweep", "gcode", "--run-id", "calm", "--json", *arguments(*SMALL_SWEEP))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        done = emberline(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd, json.loads(done.stdout)


def test_a_sweep_names_a_winner_and_tests_it_once(swept: tuple[Path, dict[str, Any]]) -> None:
    cwd, result = swept
    folder = cwd / "runs/gcode/calm"
    sweep = json.loads((folder / "artifacts/sweep.json").read_text())
    winner = next(trial for trial in sweep["trials"] if trial["id"] == sweep["winner"])
    values = [trial["best_value"] for trial in sweep["trials"]]
    assert winner["best_value"] == max(values)
    assert len(values) == 6
    assert sweep["num_epochs"] == sum(trial["epochs"] for trial in sweep["trials"]) < 24
    assert sweep["promotions"]
    assert result["sweep"]["config"] == winner["config"]
    assert result["metrics"]["test"].keys() >= HEADS

    # The winner went on from its checkpoint, as far as a trial may; the others' are gone.
    (member,) = result["members"]
    assert member["num_epochs"] == 4
    assert result["metrics"]["val"]["composite_acc"]["value"] >= winner["best_value"] - 1e-9
    kept = {path.parent.parent.name for path in folder.glob("checkpoints/trials/*/checkpoints/*")}
    assert kept == {sweep["winner"]}
    page = (folder / "sweep.html").read_text()
    for trial in sweep["trials"]:
        assert trial["id"] in page

    again = emberline(
        "sweep", "gcode", "--run-id", "calm", "--json", *arguments(*SMALL_SWEEP), cwd=cwd
    )
    assert json.loads(again.stdout) == result


def test_trials_are_children_in_mlflow(swept: tuple[Path, dict[str, Any]]) -> None:
    import mlflow

    cwd, result = swept
    client = mlflow.MlflowClient(f"sqlite:///{cwd / 'runs' / 'mlflow.db'}")
    parent = client.get_run(result["model"]["mlflow_run_id"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert len(children) == 6
    (won,) = (child for child in children if child.data.tags["emberline.winner"] == "true")
    config = result["sweep"]["config"]
    assert won.data.params == {key: str(value) for key, value in config.items()}
    assert parent.data.params.items() >= won.data.params.items()
    curve = client.get_metric_history(won.info.run_id, "val.composite_acc")
    assert max(point.value for point in curve) == pytest.approx(result["sweep"]["value"])
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"sweep.json", "sweep.html", "report.html"} <= names


def test_comparing_shows_the_winner_beside_a_run(swept: tuple[Path, dict[str, Any]]) -> None:
    cwd, result = swept
    train = ("--run-id", "plain", *arguments(*SMALL_GCODE, "tracking.enabled=false"))
    finish(start("train", cwd, *train))
    shown = json.loads(emberline("compare", "plain", "calm", "--json", cwd=cwd).stdout)
    config = result["sweep"]["config"]
    assert shown["differences"]["train.learning_rate"][1] == config["train.learning_rate"]
    assert shown["differences"]["train.epochs"] == [3, 4]


def test_a_sweep_that_is_killed_comes_to_the_same_winner(
    tmp_path: Path, swept: tuple[Path, dict[str, Any]]
) -> None:
    """Killed with all its processes while trials train, then asked to stop; the numbers are those
    of a sweep that was left alone, to the digit."""
    rng = random.Random(11)
    words = ("--run-id", "torn", *arguments(*SMALL_SWEEP, "tracking.enabled=false"))
    journal = tmp_path / "runs/gcode/torn/events.jsonl"

    def count_epochs() -> int:
        return journal.read_text().count('"trial_epoch"') if journal.exists() else 0

    for num_epochs, number in ((rng.randint(1, 3), signal.SIGKILL), (2, signal.SIGTERM)):
        before = count_epochs()
        process = start("sweep", tmp_path, *words)
        deadline = time.monotonic() + 120
        while count_epochs() < before + num_epochs:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "no trial reports"
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.3))
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
            process.communicate()
        else:
            process.send_signal(number)
            said = process.communicate(timeout=60)[1]
            assert "the sweep was asked to stop; the same command with the same --run-id" in said
            assert process.returncode == 130
        _wait_for_end_of_ray(tmp_path)
    result = finish(start("sweep", tmp_path, *words))
    cwd, calm = swept
    assert result["metrics"] == calm["metrics"]
    torn, undisturbed = (
        json.loads((folder / "artifacts/sweep.json").read_text())
        for folder in (tmp_path / "runs/gcode/torn", cwd / "runs/gcode/calm")
    )
    assert torn == undisturbed


def _wait_for_end_of_ray(cwd: Path) -> None:
    """Ray's processes end by themselves when their head is gone; the trials must not write on."""
    import psutil

    deadline = time.monotonic() + 60
    while any(_is_at_work_in(process, cwd) for process in psutil.process_iter()):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.2)


def _is_at_work_in(process: Any, cwd: Path) -> bool:
    import psutil

    try:
        return process.cwd() == str(cwd)
    except psutil.Error:
        return False


def test_real_logs(tmp_path: Path) -> None:
    """Whole, by its two commands: a run by the published protocol, which leaks and says so, and a
    sweep by run."""
    path = f"data.path={real_data('gcode_cnc_bantam')}/runs"
    small = (
        "model.hidden_dim=32", "model.num_heads=4", "model.num_layers=1", "train.epochs=2",
        "train.learning_rate=1.0e-3", "train.warmup_epochs=0", "tracking.enabled=false",
    )  # fmt: skip
    published = (path, *small, "data.split=published")
    done = emberline(
        "run", "gcode", "--run-id", "p", "--json", *arguments(*published), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["metrics"]["test"].keys() >= HEADS
    assert any("leaks, by design" in warning for warning in result["warnings"])
    assert "leaks, by design" in (tmp_path / "runs/gcode/p/report.html").read_text()

    by_run = (
        path, *small, "data.stride=16", "sweep.num_trials=3", "sweep.max_epochs=2",
        "sweep.grace_epochs=1", "sweep.space={train.learning_rate: {values: [0.001, 0.002]}}",
    )  # fmt: skip
    done = emberline("sweep", "gcode", "--run-id", "s", "--json", *arguments(*by_run), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["metrics"]["test"].keys() >= HEADS
    assert result["sweep"]["num_trials"] == 3
    refused = {leak["column"] for leak in result["data"]["leakage"]["columns"] if leak["refused"]}
    assert {"line", "gcode_line", "posx", "mpox", "momo", "feed"} <= refused
