"""`emberline run waste`, whole, on drawn pictures and on real ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import run

import numpy as np
import pytest
import yaml

from tests.conftest import SMALL_WASTE, arguments, emberline, real_data

TRASHNET = ("cardboard", "glass", "metal", "paper", "plastic", "trash")


def train(cwd: Path, *words: str, **environment: str) -> dict:
    """`python -m ray_jobs.train`, as a cluster starts it; the result that it prints."""
    import os

    import ray_jobs.spec

    config = ray_jobs.spec.CONFIGS / "waste.yaml"
    done = run(
        [sys.executable, "-m", "ray_jobs.train", "--spec", str(config), *words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def values(result: dict) -> dict[str, float]:
    return {
        f"{split}.{name}": metric["value"]
        for split, metrics in result["metrics"].items()
        for name, metric in metrics.items()
    }


@pytest.mark.slow
def test_a_run_leaves_what_people_look_at_and_repeats_itself(tmp_path: Path) -> None:
    done = emberline(
        "run", "waste", "--run-id", "one", "--json", *arguments(*SMALL_WASTE), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for said in ("epoch 3/3", "train loss", "val loss", "best macro_f1", "patience", "lr ", "/s"):
        assert said in done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "SUCCEEDED"
    assert {"macro_f1", "accuracy", "log_loss"} <= result["metrics"]["test"].keys()
    assert [scores["name"] for scores in result["classes"]["test"]] == [
        "shoes", "eggshells", "magazines", "clothing",
    ]  # fmt: skip
    assert any("drawn pictures, no photographs" in warning for warning in result["warnings"])
    assert {"prepare", "preflight", "train", "evaluate"} <= result["seconds"].keys()

    folder = tmp_path / "runs" / "waste" / "one"
    artifacts = folder / "artifacts"
    history = json.loads((artifacts / "metrics_history.json").read_text())
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3]
    matrix = np.load(artifacts / "confusion_matrix.npy", allow_pickle=False)
    assert matrix.sum() == result["data"]["splits"]["test"]["num_rows"]
    assert (artifacts / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((artifacts / "classification_report.json").read_text())
    assert report["test"]["macro_f1"] == pytest.approx(
        result["metrics"]["test"]["macro_f1"]["value"]
    )
    assert "<html" in (artifacts / "misclassified.html").read_text()
    assert "macro F1" in (folder / "report.html").read_text()
    assert not list(folder.rglob("*.pkl"))
    kept = list((folder / "checkpoints/model").glob("steps-*/epoch-*/manifest.json"))
    assert 1 <= len(kept) <= 2

    # The registered model, loaded as MLflow's users do, says what the run said.
    import mlflow
    import pandas as pd

    from ray_jobs.class_predictions import ClassPredictions
    from ray_jobs.data.images.manifest import load_manifest, read_bytes
    from ray_jobs.prepare import read_data
    from ray_jobs.run import Run

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model("models:/waste@challenger")
    this = Run.open(str(tmp_path / "runs"), "waste", "one")
    rows = load_manifest(this.storage, read_data(this)).rows("test")
    said = model.predict(pd.DataFrame({"image": [read_bytes(path) for path in rows.path[:5]]}))
    stored = ClassPredictions.read(this.storage, this.path("artifacts/predictions-test.parquet"))
    assert said["class"].tolist() == [stored.classes[i] for i in stored.p[:5].argmax(axis=1)]
    assert said["probability"].to_numpy() == pytest.approx(stored.p[:5].max(axis=1), abs=1e-5)

    # The same seed by the other door: identical on the CPU. A finished run is not trained again.
    again = train(tmp_path, "--run-id", "two", *arguments(*SMALL_WASTE))
    assert values(again) == values(result)
    attached = emberline(
        "run", "waste", "--run-id", "one", "--json", *arguments(*SMALL_WASTE), cwd=tmp_path
    )
    assert json.loads(attached.stdout) == result
    assert "is done" in attached.stderr


@pytest.mark.slow
def test_two_workers_train_on_an_object_store(tmp_path: Path, s3: dict[str, str]) -> None:
    words = ("--run-id", "two-workers", "--storage", "s3://runs/waste-test")
    overrides = (*SMALL_WASTE, "resources.num_workers=2", "tracking.enabled=false")
    result = train(tmp_path, *words, *arguments(*overrides), **s3)
    assert result["status"] == "SUCCEEDED"
    assert result["members"][0]["num_epochs"] == 3


@pytest.mark.slow
def test_real_photographs_with_their_own_class_names(tmp_path: Path) -> None:
    folder = real_data("trashnet_subset")
    mapping = dict(
        zip(
            TRASHNET,
            ("cardboard_boxes", "glass_food_jars", "steel_food_cans", "office_paper",
             "plastic_food_containers", "food_waste"),
            strict=True,
        )
    )  # fmt: skip
    source = yaml.safe_dump([{"path": str(folder), "map": mapping}], default_flow_style=True)
    overrides = (
        f"data.sources={source}",
        "model.name=test_resnet",
        "model.pretrained=false",
        "model.image_size=64",
        "train.epochs=2",
        "train.batch_size=32",
        "train.layer_decay=null",
        "train.warmup_epochs=0",
        "tracking.enabled=false",
    )
    result = train(tmp_path, *arguments(*overrides))
    present = [scores for scores in result["classes"]["test"] if scores["support"]]
    assert {scores["name"] for scores in present} == set(mapping.values())
    assert result["data"]["scan"]["num_usable"] == 600
    assert any("24 of 30 classes have no usable picture" in text for text in result["warnings"])
