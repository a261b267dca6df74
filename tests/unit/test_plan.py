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
from ray_jobs.preflight import estimate_sweep
from ray_jobs.spec import load_spec
from ray_jobs.sweeping.spec import SweepSpec
from tests.conftest import SMALL_WASTE

SPACE = {"train.learning_rate": {"low": 1e-4, "high": 1e-3, "log": True}}
SWEEP = {"num_trials": 9, "grace_epochs": 2, "max_epochs": 18, "space": SPACE}
SMALL_GCODE = (
    "data={runs: 6, window: 16, stride: 4}",
    "model={hidden_dim: 16, num_heads: 2, num_layers: 1}",
    "train.epochs=2",
    "train.warmup_epochs=0",
    "model.value_head=digits",
    "loss.head_weights={command: 1.0, param_type: 1.0, param_value: 1.0}",
    "train.learning_rate=1.0e-3",
)


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
        "data       procedural (160): 112 train, 24 val, 24 test pictures; 4 classes",
        "left out   nothing",
        "model      test_resnet, from scratch, 32 px",
        "loss       cross_entropy",
        "recipe     adamw with learning_rate 0.002, cosine, batches of 16, at most 3 epochs",
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
    few = data.model_copy(update={"classes": [*data.classes, "batteries"]})
    assert network_plan.describe(load_spec("waste"), few).endswith("pictures; 4 of 5 classes")


def make_gcode(storage: Path, *overrides: str, sweeps: bool = True) -> NetworkPlan:
    swept = [f"sweep={json.dumps(SWEEP)}"] if sweeps else []
    words = (*SMALL_GCODE, *swept, "resources.num_cpus=2", *overrides)
    made = plan.make(load_spec("gcode", overrides=words, sweeps=sweeps, storage=str(storage)))
    assert isinstance(made, NetworkPlan)
    return made


def test_a_plan_of_a_network_on_windows(root: Path) -> None:
    made = make_gcode(root, sweeps=False)
    assert made.exit_code == 0
    fields = json.loads(made.to_json())
    num = fields["num_rows"]
    text = text_of(made)
    for line in (
        "gcode: everything checked, nothing trained",
        f"data       simulator (6 runs): {num['train']:,} train, {num['val']} val, {num['test']} "
        "test windows; 5 commands",
        "model      transformer, 1 layer of 16, 2 heads of attention, values by digits",
        "loss       cross_entropy; weights of command : param_type : param_value 1 : 1 : 1",
        "tolerance  F 5%, R 5%, X 0.1, Y 0.1, Z 0.01",
    ):
        assert line in text.splitlines()
    assert len(fields["left_out_columns"]) >= 9
    assert {"mpox", "mpoy", "mpoz"} <= set(fields["left_out_columns"])
    assert f"left out   {len(fields['left_out_columns'])} columns (" in text
    assert "of training for 2 epochs of" in text
    assert "trial" not in text
    assert fields["sweep"] is None


def test_a_plan_of_a_sweep(root: Path) -> None:
    made = make_gcode(root)
    assert made.exit_code == 0
    fields = json.loads(made.to_json())
    sweep = fields["sweep"]
    # 9 to epoch 2; 3 to 7 of them to 6, 1 to 5 of those to 18
    assert sweep["num_epochs"] == [42, 106]
    assert sweep["num_full_epochs"] == 162
    assert sweep["num_side_by_side"] == 2
    epoch_s = fields["estimate"]["epoch_s"]
    assert sweep["seconds"] == pytest.approx([21 * epoch_s, 53 * epoch_s])
    assert fields["estimate"]["total_s"] == pytest.approx(18 * epoch_s)  # of one trial in full
    assert fields["seconds"] == sweep["seconds"][0]

    text = text_of(made)
    for line in (
        "recipe     adamw with learning_rate 0.001, cosine, batches of 32, at most 18 epochs",
        "sweep      9 trials by random search over train.learning_rate",
        "rungs      pausing_asha: all to epoch 2, the best of each 3 on to 6 and 18",
        "winner     trained to epoch 18, then tested once",
    ):
        assert line in text.splitlines()
    assert "2 of 9 side by side, 1 CPU each" in text
    assert "of training for all trials, 2 side by side, or up to" in text
    assert ": 42 to 106 epochs of" in text
    assert "where each trial in full would take 162;" in text


def test_a_sweep_for_which_there_is_no_room(root: Path) -> None:
    made = make_gcode(root, "sweep.cpus_per_trial=64")
    assert made.exit_code == 3
    assert [check.name for check in made.checklist.failed] == ["trials"]
    fields = json.loads(made.to_json())
    assert fields["sweep"] is None
    text = text_of(made)
    assert "a trial asks for 64 CPU and Ray has 2; lower sweep.cpus_per_trial" in text
    assert "not checked: it needs trials" in text
    assert "of a trial;" in text


def test_one_trial_alone_takes_as_long_as_its_epochs() -> None:
    one = SweepSpec.model_validate(
        {"num_trials": 1, "max_epochs": 9, "grace_epochs": 3, "space": SPACE}
    )
    assert estimate_sweep(one, 2.0, 1).seconds == (18.0, 18.0)
    many = one.model_copy(update={"num_trials": 3, "reduction_factor": 3})
    assert estimate_sweep(many, 2.0, 3).seconds == (18.0, 18.0)  # of one that climbs


def test_a_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PreflightError, match="cannot be written"):
        make(tmp_path / "file")
