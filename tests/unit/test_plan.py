"""`emberline run --dry-run` of a workload with a network: everything checked, nothing left behind
but the dataset."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pipelines import network_plan, plan
from pipelines.network_plan import NetworkPlan
from ray_jobs.errors import PreflightError
from ray_jobs.spec import load_spec
from tests.conftest import SMALL_WASTE


def make(storage: Path, *overrides: str) -> NetworkPlan:
    words = (*SMALL_WASTE, "resources.num_cpus=1", *overrides)
    made = plan.make(load_spec("waste", overrides=words, storage=str(storage)))
    assert isinstance(made, NetworkPlan)
    return made


def text_of(made: NetworkPlan) -> str:
    stream = io.StringIO()
    made.print(Console(file=stream, width=200, highlight=False))
    return stream.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plan")


def test_a_plan_of_a_network(root: Path) -> None:
    made = make(root)
    assert made.exit_code == 0
    assert {path.name for path in root.iterdir()} == {"datasets"}

    fields = json.loads(made.to_json())
    assert fields["num_rows"] == {"train": 112, "val": 24, "test": 24}
    assert fields["classes"]["present"] == ["shoes", "eggshells", "magazines", "clothing"]
    assert fields["left_out"] == {}
    assert fields["spec"]["model"]["name"] == "test_resnet"
    assert {check["passed"] for check in fields["checks"]} == {True}
    assert fields["seconds"] == fields["estimate"]["total_s"] > 0

    text = text_of(made)
    for line in (
        "waste: everything checked, nothing trained",
        "data       procedural (160): 112 train, 24 val, 24 test; 4 of 4 classes",
        "left out   nothing",
        "model      test_resnet, from scratch, 32 px",
        "recipe     adamw with learning_rate 0.002, cosine, batches of 16, cross_entropy, at most "
        "3 epochs",
        "objective  macro_f1 (max), seed 0",
        f"storage    {root}",
    ):
        assert line in text.splitlines()
    assert "of training for 3 epochs of" in text
    assert "of memory a worker" in text
    assert "failed" not in text
    assert "warning: these are drawn pictures" in text


def test_a_plan_whose_checks_fail(root: Path) -> None:
    made = make(root, "resources.num_workers=2", "train.optimizer=adamwx")
    assert made.exit_code == 3
    text = text_of(made)
    assert text.startswith("waste: 2 checks failed, nothing trained\n")
    assert "set resources.num_workers=1 or less" in text
    assert "not checked: it needs recipe" in text
    assert "of memory a worker" not in text
    fields = json.loads(made.to_json())
    assert fields["estimate"] is None
    assert fields["seconds"] is None


def test_what_was_left_out_is_said(root: Path) -> None:
    data = make(root).data
    assert data.scan is not None
    scan = data.scan.model_copy(update={"left_out": {"truncated": 3, "copy": 2}, "num_files": 165})
    changed = data.model_copy(update={"scan": scan})
    assert network_plan._left_out(changed) == "5 of 165 files: 3 truncated, 2 copy"


def test_a_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PreflightError, match="cannot be written"):
        make(tmp_path / "file")
