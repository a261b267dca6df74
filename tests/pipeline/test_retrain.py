"""Retraining: on old and new data, through the gate, once for the same data."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.gate import gate
from pipelines import retraining
from ray_jobs.data.features import FEATURES
from ray_jobs.data.simulator import generate_shards
from ray_jobs.deploy import connect, undeploy
from ray_jobs.errors import GateRefused, SpecError
from ray_jobs.lifecycle import failure_of
from ray_jobs.promote import promote
from ray_jobs.retrain import attempt, describe, find_judged, run_id_of
from ray_jobs.run import Run
from ray_jobs.spec import load_spec
from ray_jobs.storage import Storage
from ray_jobs.tracking.registry import Registry
from ray_jobs.tracking.succession import Succession

WAIT_S = 240  # on a busy machine
PIPELINE = """
import os, sys, tempfile
from ray_jobs import ray_runtime
from ray_jobs.sections import ResourceSpec

storage, *data = sys.argv[1:]
with ray_runtime.session(ResourceSpec()):
    import ray
    from kfp import local
    from pipelines.retrain import pipeline

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    with tempfile.TemporaryDirectory() as root:
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=root)
        for _ in range(2):
            pipeline()(data=data, storage=storage)
"""


def rows(path: Path, *, seed: int, num_rows: int = 600, inverted: bool = False) -> str:
    """Simulated readings as a CSV; the labels of `inverted` ones are the wrong ones."""
    storage = Storage(path.with_suffix(".shards"))
    shards = generate_shards(storage, "", generator="independent", num_samples=num_rows, seed=seed)
    table = pd.concat([pd.read_parquet(storage.local(shard)) for shard in shards])
    table = table[[*FEATURES, "fire"]].assign(fire=lambda t: t["fire"] ^ int(inverted))
    table.to_csv(path, index=False)
    return str(path)


# Without training


def test_new_data_go_behind_those_before_and_stay_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    spec = describe("fire", ["new.csv", "s3://bucket/more"], say=told.append)
    assert spec.data.added == [str(tmp_path / "new.csv"), "s3://bucket/more"]
    assert told == ["'fire' has no champion: the shipped description is taken"]
    Path("spec.yaml").write_text(spec.to_yaml())
    again = describe("fire", ["newer.csv", "new.csv"], config=Path("spec.yaml"))
    assert again.data.added == [*spec.data.added, str(tmp_path / "newer.csv")]
    assert not Path("runs").exists()
    pictures = describe("waste", ["new"])
    assert [source.path for source in pictures.data.added] == [str(tmp_path / "new")]
    with pytest.raises(SpecError, match=r"set tracking.enabled=true, or train with emberline run"):
        describe("fire", ["new.csv"], overrides=["tracking.enabled=false"])


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Storage(tmp_path / "runs")


def test_the_first_to_claim_data_says_how_it_is_trained(storage: Storage, tmp_path: Path) -> None:
    new = rows(tmp_path / "new.csv", seed=1, num_rows=100)
    overrides = ["data.samples=500", "data.generator=independent"]
    spec = describe("fire", [new], overrides=overrides, storage=storage.uri)
    other = spec.replaced({"ensemble.strategy": "equal"})
    planned = attempt(spec, dry_run=True)
    assert not storage.exists("retraining")
    first = attempt(spec)
    assert first == planned
    assert first.run_id == run_id_of(spec, first.data.digest) != run_id_of(other, first.data.digest)
    assert attempt(spec) == attempt(other) == first
    run = Run.create(spec, first.run_id)
    assert attempt(other).run_id == first.run_id
    run.write_result(failed(run))
    taken = attempt(other)
    assert (taken.spec, taken.run_id) == (other, run_id_of(other, first.data.digest))
    rows(tmp_path / "new.csv", seed=2, num_rows=100)
    assert attempt(spec).run_id != first.run_id  # under the same name there are other rows now


def failed(run: Run) -> Any:
    from ray_jobs.lifecycle import _unfinished

    return _unfinished(run, "FAILED", "out of memory")


def test_without_drift_there_is_nothing_to_do(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray_jobs.drift

    reports, asked = iter(["none", "unknown"]), []

    class Report:
        reason = "as before"

        def __init__(self) -> None:
            self.status = next(reports)

    def measure(*_: Any, since: datetime | None, **__: Any) -> Report:
        asked.append(since)
        return Report()

    monkeypatch.setattr(ray_jobs.drift, "measure", measure)
    for status in ("none", "unknown"):
        outcome = retraining.retrain(
            "fire", ["gone.csv"], storage=storage.uri, on="drift", since="2026-05-06"
        )
        assert (outcome.outcome, outcome.exit_code) == ("nothing_to_do", 0)
        assert [(step.name, step.outcome) for step in outcome.steps] == [("drift", status)]
    assert asked == [datetime(2026, 5, 6, tzinfo=UTC)] * 2


def test_a_refusal_ends_a_step_with_the_gates_exit_code(storage: Storage, tmp_path: Path) -> None:
    """And the local runner reads it from the log."""
    run = Run.create(load_spec("fire", storage=storage.uri), "one")
    refused = as_a_step(run, "refused", "version 2 of fire is refused. better: no", tmp_path)
    assert refused.returncode == 6
    assert as_a_step(run, "promoted", "", tmp_path).returncode == 0
    written = json.loads((tmp_path / "executor_output.json").read_text())
    assert written["parameterValues"] == {"Output": "promoted"}
    storage.write_text(run.path("log"), refused.stdout)
    error = failure_of(run, "log")
    assert isinstance(error, GateRefused)
    assert str(error) == "version 2 of fire is refused. better: no"


def as_a_step(
    run: Run, outcome: str, reasons: str, scratch: Path
) -> subprocess.CompletedProcess[str]:
    """The gate, as KFP calls it in its container."""
    container = gate.component_spec.implementation.container
    values = {"run": run.uri, "outcome": outcome, "reasons": reasons}
    outputs = {
        "parameters": {"Output": {"outputFile": str(scratch / "Output")}},
        "outputFile": str(scratch / "executor_output.json"),
    }
    given = json.dumps({"inputs": {"parameterValues": values}, "outputs": outputs})
    arguments = [given if part == "{{$}}" else part for part in container.args]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [*container.command, *arguments],
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


# Whole retrainings


@pytest.fixture(scope="module")
def root(lenient: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A storage root with a champion."""
    root = str(shutil.copytree(lenient, tmp_path_factory.mktemp("retrain") / "runs"))
    assert promote(root, "fire", 1).outcome == "promoted"
    return root


def command(root: str, *arguments: str) -> list[str]:
    retrain = [sys.executable, "-m", "pipelines.cli", "retrain", "fire", "--storage", root]
    return [*retrain, *arguments, "--json"]


def retrained(root: str, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        command(root, *arguments), capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def here(root: str, *data: str, dry_run: bool = False) -> dict[str, Any]:
    """In this process, where nothing is to be trained."""
    outcome = retraining.retrain("fire", list(data), storage=root, dry_run=dry_run)
    assert outcome.exit_code == 0
    return json.loads(outcome.to_json())


def state(root: str) -> tuple[int, int | None, list[tuple[str, int | None]]]:
    """How many versions there are, the champion, and what the gate has said."""
    storage = Storage(root)
    registry = Registry(storage)
    log = Succession(storage, registry, "fire").log.read()
    events = [(e.event, e.version) for e in log if e.event in ("promoted", "refused")]
    versions = registry._client.search_model_versions("name = 'fire'")
    return len(versions), registry.champion("fire"), events


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_promoted_and_deployed_once_for_the_same_data(root: str, tmp_path: Path) -> None:
    num_versions, _, _ = state(root)
    new = rows(tmp_path / "new.csv", seed=1)
    storage = Storage(root)
    try:
        done = retrained(root, "--data", new, "--deploy")
        version = num_versions + 1
        assert (done["outcome"], done["version"]) == ("promoted", version)
        assert [(step["name"], step["outcome"]) for step in done["steps"]] == [
            ("data", "new"),
            ("train", "done"),
            ("gate", "promoted"),
            ("deploy", "done"),
        ]
        before = state(root)
        assert before[:2] == (version, version)
        run = Run.open(root, "fire", done["run_id"])
        data = run.read_result().data
        assert (data.num_added, data.digest) == (600, done["data_digest"])
        deployed = connect("local", storage).find("fire")
        assert [one.version for one in deployed.variants] == [str(version)]

        again = here(root, new)
        assert (again["outcome"], again["version"]) == ("nothing_to_do", version)
        assert [(step["name"], step["outcome"]) for step in again["steps"]] == [
            ("data", "seen before"),
            ("train", "skipped"),
            ("gate", "unchanged"),
            ("deploy", "done"),
        ]
        assert state(root) == before
        newer = rows(tmp_path / "newer.csv", seed=2)
        planned = here(root, newer, dry_run=True)
        assert planned["outcome"] == "planned"
        assert describe("fire", [newer], storage=root).data.added == [new, newer]
        assert state(root) == before
    finally:
        if connect("local", storage).find("fire") is not None:
            undeploy(storage, "fire")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_then_two_at_once_and_a_worse_one_is_refused(root: str, tmp_path: Path) -> None:
    num_versions, champion, events = state(root)
    wrong = rows(tmp_path / "wrong.csv", seed=3, num_rows=4000, inverted=True)
    arguments = command(root, "--data", wrong, "--set", "promotion.must_be_better=true")
    known = set(Storage(root).list("fire"))
    killed = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = wait_for_training(root, known)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait(WAIT_S) == -signal.SIGKILL
    assert not (journal.parent / "result.json").exists()

    both = [
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ends = [(one.communicate(timeout=WAIT_S), one.returncode) for one in both]
    assert [code for _, code in ends] == [6, 6], ends
    for (output, _), _ in ends:
        said = json.loads(output)
        assert (said["outcome"], said["version"]) == ("refused", num_versions + 1)
        assert said["run_id"] == journal.parent.name
    assert state(root) == (num_versions + 1, champion, [*events, ("refused", num_versions + 1)])


def wait_for_training(root: str, known: set[str]) -> Path:
    """The journal of the run that is new, once a member is being fitted."""
    deadline = time.monotonic() + WAIT_S
    while True:
        assert time.monotonic() < deadline, "no training within the time given"
        for folder in set(Storage(root).list("fire")) - known:
            journal = Path(root) / folder / "events.jsonl"
            if journal.exists() and '"member"' in journal.read_text():
                return journal
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_pipeline_of_kfp(root: str, tmp_path: Path) -> None:
    """Carried out twice: the second time ends after the data are looked at."""
    num_versions, _, events = state(root)
    new = rows(tmp_path / "kfp.csv", seed=4)
    done = subprocess.run(
        [sys.executable, "-c", PIPELINE, root, new],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    version = num_versions + 1
    assert state(root) == (version, version, [*events, ("promoted", version)])
    assert f"version {version} of this data was promoted" in done.stdout
    judged = find_judged(
        Storage(root),
        "fire",
        Registry(Storage(root)).version("fire", version).tags["emberline.data_digest"],
    )
    assert judged is not None
    assert judged.is_champion
    assert replace(judged, is_champion=False).outcome == "promoted"
    assert np.isfinite(judged.version)
