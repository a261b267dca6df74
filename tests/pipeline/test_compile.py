"""The pipeline compiles to IR that a cluster can run."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import yaml
from kfp import compiler

from pipelines import waste
from pipelines.fire import pipeline


def compiled(path: Path) -> str:
    compiler.Compiler().compile(pipeline(), str(path))
    return path.read_text()


def test_it_compiles_to_the_same_text_each_time(tmp_path: Path) -> None:
    assert compiled(tmp_path / "a.yaml") == compiled(tmp_path / "b.yaml")


def test_its_steps_install_nothing_and_depend_in_order(tmp_path: Path) -> None:
    text = compiled(tmp_path / "fire.yaml")
    assert "pip install" not in text
    ir = yaml.safe_load(text)
    tasks = ir["root"]["dag"]["tasks"]
    assert tasks["for-loop-1"]["dependentTasks"] == ["prepare"]
    assert set(tasks["ensemble"]["dependentTasks"]) == {"for-loop-1", "prepare"}
    assert tasks["evaluate"]["dependentTasks"] == ["ensemble"]
    assert tasks["register"]["dependentTasks"] == ["evaluate"]
    assert set(ir["root"]["inputDefinitions"]["parameters"]) == {"spec", "run_id"}


def test_the_ui_gets_metrics_curves_and_the_report(tmp_path: Path) -> None:
    components = yaml.safe_load(compiled(tmp_path / "fire.yaml"))["components"]
    kinds = {
        artifact["artifactType"]["schemaTitle"]
        for component in components.values()
        for artifact in component.get("outputDefinitions", {}).get("artifacts", {}).values()
    }
    assert kinds == {
        "system.Dataset",
        "system.Metrics",
        "system.ClassificationMetrics",
        "system.Model",
        "system.HTML",
    }


def test_the_picture_pipeline_checks_before_it_trains(tmp_path: Path) -> None:
    path = tmp_path / "waste.yaml"
    compiler.Compiler().compile(waste.pipeline(), str(path))
    ir = yaml.safe_load(path.read_text())
    order = ["scan", "preflight", "train", "evaluate-classes", "register"]
    tasks = ir["root"]["dag"]["tasks"]
    assert set(tasks) == set(order)
    for before, after in pairwise(order):
        assert tasks[after]["dependentTasks"] == [before]
    assert "pip install" not in path.read_text()
