"""The section `kubeflow`: what it takes, what each step gets, and what it says of a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs.errors import SpecError
from ray_jobs.kubeflow_spec import STEPS, KubeflowSpec, StepSpec, Toleration
from ray_jobs.spec import load_spec

COMPONENTS = Path(__file__).parents[2] / "components"


def test_the_steps_it_knows_are_the_components() -> None:
    files = {path.stem for path in COMPONENTS.glob("*.py")} - {"__init__", "step"}
    assert set(STEPS) == files


def test_a_step_has_what_the_default_has_and_its_own_over_it() -> None:
    gpu = Toleration(key="gpu", value="yes", effect="NoSchedule")
    spec = KubeflowSpec(
        steps={
            "default": StepSpec(
                cpu="1", memory="2Gi", node_selector={"pool": "cpu", "disk": "ssd"}
            ),
            "train": StepSpec(
                memory="16Gi", gpus=1, node_selector={"pool": "gpu"}, tolerations=[gpu]
            ),
        }
    )
    train = spec.step("train")
    assert (train.cpu, train.memory, train.gpus) == ("1", "16Gi", 1)
    assert train.node_selector == {"pool": "gpu", "disk": "ssd"}
    assert train.tolerations == [gpu]
    assert spec.step("evaluate") == spec.steps["default"]
    assert KubeflowSpec().step("train") == StepSpec()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("endpoint=kfp:8888", "'kfp:8888' is not an address; write it as http://HOST:8888"),
        ("endpoint=http://me:secret@kfp", "is not an address"),
        ("steps.trian.cpu=2", "'trian' is not a step; they are default, prepare, scan"),
        ("steps.train.cpu=two", "'two' is not a number of cores, such as 2, 0.5 or 500m"),
        ("steps.train.memory=4GB", "'4GB' is not an amount of memory, such as 512Mi or 4Gi"),
        ("steps.train.accelerator=gpu", "'gpu' is not a resource of a node, such as nvidia.com/"),
        ("steps.train.node_selector={a b: c}", "'a b' is not the name of a label"),
        ("labels={team: a b}", "team: 'a b' is not the value of a label: at most 63 letters"),
        (
            "env.DB_PASSWORD=x",
            "DB_PASSWORD sounds like a secret, and a pipeline's text is public in its cluster; "
            "name a Secret instead: kubeflow.secrets.DB_PASSWORD={secret: NAME, key: KEY}",
        ),
        ("env.1X=x", "'1X' is not the name of a variable"),
        ("secrets.TOKEN={secret: My_Secret, key: k}", "'My_Secret' is not the name of a Secret"),
        ("volumes.data=runs", "data: 'runs' is not a folder's full path, such as /data"),
        ("volumes.data=/", "data: '/' is not a folder's full path"),
        ("volumes={a: /data, b: /data}", "two claims are mounted at the same path"),
        ("namespace=Team", "'Team' is not the name of an object of Kubernetes"),
        ("steps.train.tolerations=[{value: x}]", "a toleration names the key of the taint"),
        (
            "steps.train.tolerations=[{key: a, operator: Exists, value: x}]",
            "with operator: Exists a toleration has no value",
        ),
        (
            "steps.train.tolerations=[{key: a, seconds: 3}]",
            "seconds go with effect: NoExecute",
        ),
        ("train_on=moon", "train_on"),
        ("retries.num=-1", "retries.num"),
        ("retry.num=1", "retry: unknown key"),
    ],
)
def test_a_mistake_is_named(override: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec("fire", overrides=[f"kubeflow.{override}"])
    assert message in str(caught.value)
    assert "kubeflow" in str(caught.value)


def test_a_variable_is_set_once() -> None:
    both = ["kubeflow.env.REGION=eu", "kubeflow.secrets.REGION={secret: s, key: k}"]
    with pytest.raises(SpecError, match="REGION is set by env and by secrets; keep one"):
        load_spec("fire", overrides=both)


def test_where_a_pipeline_runs_does_not_change_what_its_run_is() -> None:
    here = load_spec("fire")
    there = load_spec("fire", overrides=["kubeflow.steps.train_member.cpu=8", "kubeflow.image=x"])
    assert there.digest() == here.digest()
