"""The pipeline compiles to IR that a cluster can run."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from kfp import compiler

from pipelines import gcode, retrain, waste
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


@pytest.mark.parametrize("name", ["fire", "waste", "gcode"])
@pytest.mark.parametrize("target", [None, "local"])
def test_what_is_registered_may_be_promoted_and_deployed(
    tmp_path: Path, name: str, target: str | None
) -> None:
    path = tmp_path / "pipeline.yaml"
    made = import_module(f"pipelines.{name}").pipeline(promote=True, deploy=target)
    compiler.Compiler().compile(made, str(path))
    ir = yaml.safe_load(path.read_text())
    tasks = ir["root"]["dag"]["tasks"]
    assert "register" in tasks["promote"]["dependentTasks"]
    assert "promote" in tasks["gate"]["dependentTasks"]
    assert ("deploy" in tasks) == (target is not None)
    if target:
        assert "gate" in tasks["deploy"]["dependentTasks"]
        given = tasks["deploy"]["inputs"]["parameters"]["target"]
        assert given["runtimeValue"]["constant"] == target
    outputs = ir["components"]["comp-promote"]["outputDefinitions"]["artifacts"]
    assert outputs["rules"]["artifactType"]["schemaTitle"] == "system.Markdown"
    assert "pip install" not in path.read_text()


@pytest.mark.parametrize("name", ["fire", "waste", "gcode"])
def test_retraining_compiles_around_the_pipeline_of_each_workload(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "pipeline.yaml"
    job = load_spec(name, overrides=["tracking.model_name=mine"])
    compiler.Compiler().compile(retrain.pipeline(job, deploy="local"), str(path))
    ir = yaml.safe_load(path.read_text())
    assert ir["pipelineInfo"]["name"] == f"{name}-retraining"
    tasks = ir["root"]["dag"]["tasks"]
    assert tasks["retrain"]["dependentTasks"] == ["drift"]
    condition = tasks["condition-1"]["triggerPolicy"]["condition"]
    assert condition == "inputs.parameter_values['pipelinechannel--retrain-Output'] == 'yes'"
    inner = ir["components"]["comp-condition-1"]["dag"]["tasks"]
    assert set(inner) == {name, "promote", "gate", "deploy"}
    assert name in inner["promote"]["dependentTasks"]
    model = tasks["drift"]["inputs"]["parameters"]["model"]["runtimeValue"]["constant"]
    assert model == "mine"
    assert inner["promote"]["inputs"]["parameters"]["once_for_data"]["runtimeValue"]["constant"]
