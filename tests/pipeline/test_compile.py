"""The pipeline compiles to IR that a cluster can run."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from kfp import compiler

from pipelines import gcode, waste
from pipelines.fire import pipeline
from ray_jobs.spec import load_spec


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


@pytest.mark.parametrize("sweeps", [False, True])
@pytest.mark.parametrize(
    ("module", "first", "evaluate"),
    [(waste, "scan", "evaluate-classes"), (gcode, "read-logs", "evaluate-gcode")],
)
def test_a_network_is_checked_before_it_trains_and_swept_if_its_description_says_so(
    tmp_path: Path, module: ModuleType, first: str, evaluate: str, sweeps: bool
) -> None:
    name = module.__name__.rpartition(".")[2]
    space = ["sweep.space={train.learning_rate: {low: 1.0e-4, high: 1.0e-3}}"]
    job = load_spec(name, overrides=space, sweeps=True) if sweeps else load_spec(name)
    path = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(module.pipeline(job), str(path))
    ir = yaml.safe_load(path.read_text())
    assert ir["pipelineInfo"]["name"] == (f"{name}-sweep" if sweeps else name)
    order = [first, "preflight", *(["sweep"] if sweeps else []), "train", evaluate, "register"]
    tasks = ir["root"]["dag"]["tasks"]
    assert set(tasks) == set(order)
    for before, after in pairwise(order):
        assert tasks[after]["dependentTasks"] == [before]
    assert "pip install" not in path.read_text()
