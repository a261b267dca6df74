"""Compiled pipelines: the shipped ones are current, KFP takes them, and each step of one has what
the job description gives it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import components
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.compilation import SHIPPED, VARIANTS, Variant, compare, compiled, described, write
from ray_jobs.errors import SpecError
from ray_jobs.spec import CONFIGS

EVERYTHING = """
kubeflow:
  image: registry.example/emberline@sha256:00
  image_pull_secrets: [pull]
  env: {AWS_REGION: eu-west-1}
  secrets: {AWS_SECRET_ACCESS_KEY: {secret: s3, key: secret}}
  volumes: {runs: /runs}
  labels: {team: tools}
  caching: true
  retries: {num: 4, wait_s: 5, factor: 3, within_s: 7200}
  steps:
    default: {cpu: 500m, memory: 2Gi, timeout_s: 600, node_selector: {pool: cpu}}
    train:
      cpu: "4"
      memory: 16Gi
      shared_memory: 4Gi
      gpus: 2
      timeout_s: 86400
      node_selector: {pool: gpu}
      tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
"""


@pytest.fixture(scope="module")
def shipped() -> list[Any]:
    return [compiled(one, described(one, None, ())) for one in VARIANTS]


@pytest.fixture
def everything(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A pipeline with every setting: its IR, and what Kubernetes is told of each step."""
    config = tmp_path / "job.yaml"
    config.write_text((CONFIGS / "gcode.yaml").read_text() + EVERYTHING)
    variant = Variant("gcode", promote=True)
    pipeline, platforms = yaml.safe_load_all(compiled(variant, described(variant, config, ())).text)
    return pipeline, platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def test_the_shipped_ones_are_what_the_code_compiles_to(
    shipped: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not compare(shipped, SHIPPED).stale, "run: emberline pipelines compile all"


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_kfp_takes_the_shipped_ones(path: Path) -> None:
    loaded = components.load_component_from_file(str(path))
    assert "run_id" in loaded.component_spec.inputs or path.stem.endswith("-retraining")
    pipeline, platforms = yaml.safe_load_all(path.read_text())
    spec = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
    executors = json_format.MessageToDict(spec.deployment_spec)["executors"]
    told = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(told) == set(executors)
    for config in told.values():
        json_format.ParseDict(config, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
    for executor in executors.values():
        assert "python3 -m components.step kfp.dsl.executor_main" in str(executor["container"])
        assert "pip install" not in str(executor["container"])


def test_a_step_says_which_pipelines_run_it_is_of_and_is_retried(everything) -> None:
    pipeline, told = everything
    tasks = pipeline["root"]["dag"]["tasks"]
    expected = {
        "maxRetryCount": 4,
        "backoffDuration": "5s",
        "backoffFactor": 3.0,
        "backoffMaxDuration": "7200s",
    }
    for name, task in tasks.items():
        assert task.get("retryPolicy") == (None if name == "gate" else expected)
        (field,) = told[f"exec-{name}"]["fieldPathAsEnv"]
        assert field["name"] == "EMBERLINE_PIPELINE_RUN"
        assert field["fieldPath"] == "metadata.labels['pipeline/runid']"


def test_a_step_gets_its_resources_its_nodes_and_its_time(everything) -> None:
    pipeline, told = everything
    executors = pipeline["deploymentSpec"]["executors"]
    train = executors["exec-train"]["container"]["resources"]
    assert (train["resourceCpuLimit"], train["resourceCpuRequest"]) == ("4", "4")
    assert (train["resourceMemoryLimit"], train["resourceMemoryRequest"]) == ("16Gi", "16Gi")
    assert train["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert train["accelerator"]["resourceCount"] == "2"
    other = executors["exec-evaluate-gcode"]["container"]["resources"]
    assert "accelerator" not in other
    assert (other["resourceCpuLimit"], other["resourceMemoryLimit"]) == ("500m", "2Gi")
    assert told["exec-train"]["nodeSelector"] == {"labels": {"pool": "gpu"}}
    assert told["exec-train"]["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    assert told["exec-train"]["activeDeadlineSeconds"] == "86400"
    assert told["exec-register"]["nodeSelector"] == {"labels": {"pool": "cpu"}}
    assert told["exec-register"]["activeDeadlineSeconds"] == "600"
    assert "tolerations" not in told["exec-register"]
    (shared,) = told["exec-train"]["emptyDirMounts"]
    assert (shared["mountPath"], shared["medium"]) == ("/dev/shm", "Memory")
    assert shared["sizeLimit"] == "4Gi"
    assert "emptyDirMounts" not in told["exec-register"]


def test_every_step_gets_the_image_the_secrets_the_claims_and_the_labels(everything) -> None:
    pipeline, told = everything
    executors = pipeline["deploymentSpec"]["executors"]
    assert set(told) == set(executors)
    for name, executor in executors.items():
        container, config = executor["container"], told[name]
        assert container["image"] == "registry.example/emberline@sha256:00"
        assert {"name": "AWS_REGION", "value": "eu-west-1"} in container["env"]
        (secret,) = config["secretAsEnv"]
        assert secret["secretName"] == "s3"
        assert secret["keyToEnv"] == [{"secretKey": "secret", "envVar": "AWS_SECRET_ACCESS_KEY"}]
        assert config["pvcMount"][0]["constant"] == "runs"
        assert config["pvcMount"][0]["mountPath"] == "/runs"
        assert config["imagePullSecret"][0]["secretName"] == "pull"
        assert config["podMetadata"]["labels"] == {
            "app.kubernetes.io/part-of": "emberline",
            "emberline/step": name.removeprefix("exec-").replace("-", "_"),
            "emberline/workload": "gcode",
            "team": "tools",
        }


def test_only_steps_that_read_nothing_but_their_run_are_cached(everything) -> None:
    pipeline, _ = everything
    tasks = pipeline["root"]["dag"]["tasks"]
    cached = {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")}
    assert cached == {"train", "evaluate-gcode"}
    assert not any("cacheKey" in task["cachingOptions"] for task in tasks.values())


def test_nothing_is_cached_unless_the_description_says_so(shipped: list[Any]) -> None:
    for one in shipped:
        assert "enableCache: true" not in one.text


def test_steps_of_a_pipeline_within_another_have_the_settings_too(tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text((CONFIGS / "gcode.yaml").read_text() + EVERYTHING)
    variant = Variant("gcode", retrains=True, deploy="local")
    pipeline, platforms = yaml.safe_load_all(compiled(variant, described(variant, config, ())).text)
    told = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(told) == set(pipeline["deploymentSpec"]["executors"])
    assert told["exec-train"]["activeDeadlineSeconds"] == "86400"
    assert told["exec-drift"]["secretAsEnv"]
    inner = pipeline["components"]["comp-gcode"]["dag"]["tasks"]
    assert inner["train"]["retryPolicy"]["maxRetryCount"] == 4


def emberline(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "pipelines", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_file_that_has_drifted_is_named_with_what_differs(
    shipped: list[Any], tmp_path: Path
) -> None:
    shutil.copytree(SHIPPED, tmp_path / "compiled")
    path = tmp_path / "compiled" / "fire.yaml"
    path.write_text(path.read_text().replace("maxRetryCount: 2", "maxRetryCount: 9", 1))
    (tmp_path / "compiled" / "old.yaml").write_text("gone: true\n")
    (tmp_path / "compiled" / "waste.yaml").unlink()
    found = compare(shipped, tmp_path / "compiled")
    assert found.exit_code == 7
    stale = {file.name: said for file, said in found.stale.items()}
    assert set(stale) == {"fire.yaml", "old.yaml", "waste.yaml"}
    assert "maxRetryCount: 9\n+" in stale["fire.yaml"]
    assert stale["old.yaml"] == "no pipeline is compiled to it; delete it"
    assert stale["waste.yaml"] == "there is no such file"


def test_the_command_writes_a_file_and_compares_it(tmp_path: Path) -> None:
    words = ["compile", "gcode", "--promote", "--set", "kubeflow.image=mine:1", "-o", "x/g.yaml"]
    done = emberline(*words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (written,) = json.loads(done.stdout)
    text = (tmp_path / "x" / "g.yaml").read_text()
    assert written["path"] == "x/g.yaml"
    assert "image: mine:1" in text
    (tmp_path / "x" / "g.yaml").write_text(text.replace("mine:1", "mine:0"))
    stale = emberline(*words, "--check", cwd=tmp_path)
    assert stale.returncode == 7
    assert "x/g.yaml is not current:" in stale.stdout
    assert (tmp_path / "x" / "g.yaml").read_text() != text  # nothing is written


def test_several_pipelines_need_a_folder(shipped: list[Any], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="7 pipelines are compiled; name a folder"):
        write(shipped, tmp_path / "all.yaml")


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        (Variant("gcode", sweeps=True), "gcode-sweep"),
        (Variant("fire", promote=True), "fire-promote"),
        (Variant("fire", promote=True, deploy="local"), "fire-deploy-local"),
        (Variant("fire", retrains=True, deploy="sagemaker"), "fire-retraining-deploy-sagemaker"),
    ],
)
def test_a_file_is_named_after_what_its_pipeline_does(variant: Variant, name: str) -> None:
    assert variant.name == name


def test_options_that_make_no_pipeline_are_refused() -> None:
    with pytest.raises(SpecError, match="--sweep and --retraining are two pipelines"):
        Variant("gcode", sweeps=True, retrains=True)
    with pytest.raises(SpecError, match="the retraining pipeline asks the gate anyway"):
        Variant("gcode", retrains=True, promote=True)
