from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from ray_jobs.data.machine_logs.windows import load_windows
from ray_jobs.errors import PreflightError, Stopped
from ray_jobs.gcode_metrics import HEAD_METRICS, gcode_metrics
from ray_jobs.models.base import FitContext
from ray_jobs.models.gcode_bundle import load_gcode_bundle
from ray_jobs.models.gcode_network import Heads
from ray_jobs.result import DataSummary, JobResult, MemberResult
from ray_jobs.run import Run
from ray_jobs.spec import CONFIGS
from ray_jobs.storage import Storage
from ray_jobs.training import loop
from ray_jobs.training.checkpoints import CheckpointStore
from ray_jobs.training.gcode_batches import WindowBatches, make_batch
from ray_jobs.training.gcode_decoding import GcodeDecoding
from ray_jobs.training.preflight import check_finite
from ray_jobs.workloads.gcode import WORKLOAD, GcodeSpec
from ray_jobs.workloads.network import TEST, VAL
from tests.conftest import assert_names_keys

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "workload": "gcode",
    "objective": {"metric": "composite_acc", "mode": "max"},
    "data": {"runs": 6, "window": 16, "stride": 2},
    "model": {"hidden_dim": 16, "num_heads": 2, "num_layers": 1, "dropout": 0.1},
    "train": {"epochs": 2, "batch_size": 32, "learning_rate": 3e-3, "patience": 15},
}


def quiet(kind: str, **fields: object) -> None: ...


def spec(**sections: Any) -> GcodeSpec:
    raw = json.loads(json.dumps(SMALL))
    for name, section in sections.items():
        raw[name] = raw.get(name, {}) | section if isinstance(section, dict) else section
    return GcodeSpec.model_validate(raw)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="module")
def data(storage: Storage) -> DataSummary:
    return WORKLOAD.prepare(spec(), storage=storage, num_workers=1, emit=quiet)


def task_of(storage: Storage, data: DataSummary, **sections: Any) -> GcodeDecoding:
    return WORKLOAD.task(spec(**sections), data, storage=storage, device=CPU, num_cpus=1)


def train(
    storage: Storage, data: DataSummary, store: CheckpointStore | None = None, **sections: Any
) -> tuple[GcodeDecoding, Any, Any]:
    torch.manual_seed(0)
    task = task_of(storage, data, **sections)
    network = task.build(weights=True)
    batches, learning = task.prepare(network)
    context = FitContext(0, spec(**sections).objective, checkpoints=store)
    return task, network, loop.fit(network, batches, learning, task.validate, context)


@pytest.fixture(scope="module")
def trained(storage: Storage, data: DataSummary) -> tuple[GcodeDecoding, Any, Any]:
    return train(storage, data)


# Training


def test_two_epochs_through_the_loop(trained: tuple[GcodeDecoding, Any, Any]) -> None:
    task, network, report = trained
    for entry in report.history:
        for name in HEAD_METRICS:
            assert 0 <= entry[name] <= 1
        product = np.prod([entry[name] for name in HEAD_METRICS[1:]])
        assert entry["composite_acc"] == pytest.approx(product)
        for name in HEAD_METRICS[1:]:
            assert 0 <= entry[f"train_{name}"] <= 1.01
        assert np.isfinite([entry["train_loss"], entry["val_loss"]]).all()
    assert report.history[1]["train_loss"] < report.history[0]["train_loss"]
    best = max(entry["composite_acc"] for entry in report.history)
    assert task.validate(network)["composite_acc"] == pytest.approx(best)


def test_predictions_score_what_validation_said(trained: tuple[GcodeDecoding, Any, Any]) -> None:
    task, network, _ = trained
    predictions = task.predict(network, "val")
    tolerance = spec().value_tolerance.parsed()
    metrics = gcode_metrics(predictions.true, predictions.predicted, tolerance)
    said = task.validate(network)
    for name in HEAD_METRICS:
        assert metrics[name] == pytest.approx(said[name])
    assert {name.rstrip("0123456789") for name in predictions.operation} <= {
        "face", "pocket", "contour", "adaptive",
    }  # fmt: skip


def test_the_validation_loss_leaves_out_commands_that_train_lacks(
    storage: Storage, data: DataSummary, trained: tuple[GcodeDecoding, Any, Any]
) -> None:
    task, network, _ = trained
    other = task_of(storage, data)
    val = other._split("val")
    before = task.validate(network)
    val.command[::3] = -1
    after = other.validate(network)
    assert np.isfinite(after["val_loss"])
    assert after["command_acc"] < before["command_acc"]
    val.command[:] = -1
    assert np.isnan(other.validate(network)["val_loss"])


@pytest.mark.parametrize(
    "sections",
    [
        {
            "model": {"encoder": "lstm", "value_head": "regression"},
            "loss": {"command": "focal", "class_weights": True},
        },
        {"loss": {"head_weights": "learned"}},
        {"train": {"micro_batch_size": 10, "ema_decay": 0.9}},
    ],
)
def test_every_choice_trains(
    storage: Storage, data: DataSummary, sections: dict[str, Any], tmp_path: Path
) -> None:
    one_epoch = sections | {"train": sections.get("train", {}) | {"epochs": 1}}
    task, network, report = train(storage, data, **one_epoch)
    assert report.num_epochs == 1
    task.write(network, tmp_path)
    bundle = load_gcode_bundle(tmp_path)
    for name, weight in network.state_dict().items():
        assert torch.equal(bundle.network.state_dict()[name], weight)
    if network.log_variance is not None:
        assert network.log_variance.abs().max() > 0


def test_a_run_that_was_cut_off_ends_with_the_same_weights(
    storage: Storage, data: DataSummary, trained: tuple[GcodeDecoding, Any, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    store = CheckpointStore(Storage(tmp_path), "steps", quiet)
    task = task_of(storage, data)
    network = task.build(weights=True)
    batches, learning = task.prepare(network)
    asked = iter([False] * batches.num_batches + [True])  # in the second epoch
    context = FitContext(
        0, spec().objective, checkpoints=store, stop_requested=lambda: next(asked, True)
    )
    loop_interval, loop.STOP_POLL_INTERVAL_S = loop.STOP_POLL_INTERVAL_S, 0.0
    try:
        with pytest.raises(Stopped):
            loop.fit(network, batches, learning, task.validate, context)
    finally:
        loop.STOP_POLL_INTERVAL_S = loop_interval
    _, resumed, report = train(storage, data, store)
    _, whole, whole_report = trained
    keep = {"epoch", "composite_acc", "val_loss", "train_loss", "train_param_value_acc"}
    for one, other in zip(report.history, whole_report.history, strict=True):
        assert {key: one[key] for key in keep} == {key: other[key] for key in keep}
    for name, weight in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight)


def test_batches_come_from_seed_and_epoch_alone(storage: Storage, data: DataSummary) -> None:
    windows = load_windows(storage, data, "train")
    batches = WindowBatches(windows, 10, seed=3)
    epochs = [[batch.ids for batch in batches.epoch(number, 0)] for number in (1, 2)]
    assert epochs[0] != epochs[1]
    assert len(epochs[0]) == batches.num_batches == len(windows) // 10
    assert len({row for ids in epochs[0] for row in ids}) == 10 * batches.num_batches
    assert [batch.ids for batch in batches.epoch(2, 3)] == epochs[1][3:]
    parts = [
        [batch.ids for batch in WindowBatches(windows, 10, 3, rank, 3).epoch(1, 0)]
        for rank in range(3)
    ]
    for whole, *shares in zip(epochs[0], *parts, strict=True):
        assert sorted(whole) == sorted(row for share in shares for row in share)
    assert [len(share[0]) for share in parts] == [4, 3, 3]


# Preflight


def test_preflight_of_a_sound_task(storage: Storage, data: DataSummary) -> None:
    task = task_of(storage, data)
    assert task.check_labels().startswith(f"{len(data.classes)} commands: {data.classes[0]}")
    network = task.build(weights=True)
    assert (
        task.check_transforms()
        == f"{len(data.features)} features scaled by train, 16 rows a window"
    )
    batches, learning = task.prepare(network)
    batch = next(batches.epoch(1, 0))
    assert task.check_batch(batch).startswith(f"[32, 16, {len(data.features)}] float32, ")
    heads = network(batch.tensors["x"], batch.tensors["mask"])
    task.check_output(heads, batch)
    loss, metrics = learning.loss(network, batch)
    assert len(metrics) == len(learning.metrics)
    loss.backward()
    check_finite(loss.detach(), network)
    with pytest.raises(PreflightError, match="not command, param_type and param_value"):
        task.check_output(heads.command, batch)
    with pytest.raises(PreflightError, match="not command, param_type and param_value"):
        task.check_output(Heads(heads.command, heads.param_type, heads.param_type[:, :2]), batch)


def test_the_advice_where_memory_does_not_hold_one_window(
    storage: Storage, data: DataSummary
) -> None:
    task = task_of(storage, data)
    _, learning = task.prepare(task.build(weights=False))
    assert learning.less_memory == (
        "set train.precision=bf16, or take a smaller model.hidden_dim, model.num_layers or "
        "data.window"
    )
    assert_names_keys(learning.less_memory, spec())


def test_preflight_refuses(storage: Storage, data: DataSummary) -> None:
    task = task_of(storage, data, model={"value_head": "digits"})
    train_windows = task._split("train")
    feed = train_windows.param_value[:, 0]
    feed[train_windows.param_type[:, 0]] = 250.0
    with pytest.raises(
        PreflightError,
        match=r"F reaches 250 in train, but model\.integer_digits=2 ends at 99\.9999; set "
        r"model\.integer_digits=3, or model\.value_head=regression",
    ):
        task.check_transforms()
    other = GcodeDecoding(spec(data={"window": 32}), data, storage, CPU)
    with pytest.raises(PreflightError, match=r"data\.window is 32, but the dataset has .* of 16"):
        other.check_transforms()
    batch = make_batch(train_windows, np.arange(3))
    batch.tensors["x"][1, 2, 0] = float("inf")
    with pytest.raises(PreflightError, match=r"not finite; set data\.nonfinite=mask"):
        task.check_batch(batch)
    batch.tensors["x"] = batch.tensors["x"][:, :8]
    with pytest.raises(PreflightError, match=r"x of the first batch is torch.float32 of shape"):
        task.check_batch(batch)
    train_windows.command[4] = 99
    with pytest.raises(PreflightError, match=r"1 of \d+ windows of train have a command"):
        task.check_labels()
    task._split("val").param_type[:] = False
    with pytest.raises(PreflightError, match="no line of val sets one of F R X Y Z"):
        task.check_labels()


def test_a_tolerance_that_a_constant_passes_is_noted(storage: Storage, data: DataSummary) -> None:
    wide = task_of(storage, data, value_tolerance={"X": 100.0})
    wide.prepare(wide.build(weights=True))
    assert [note[:34] for note in wide.notes if ".X" in note] == [
        "value_tolerance.X is so wide that "
    ]
    usual = task_of(storage, data)
    usual.prepare(usual.build(weights=True))
    assert not [note for note in usual.notes if ".X" in note]


# The workload


def test_a_run_is_scored_beside_its_rivals_and_reported(
    storage: Storage, data: DataSummary, trained: tuple[GcodeDecoding, Any, Any]
) -> None:
    task, network, _ = trained
    run = Run(spec(storage=str(storage.uri)), "one")
    storage.write_text(run.path("artifacts/data.json"), data.model_dump_json())
    for split, path in (("val", VAL), ("test", TEST)):
        task.predict(network, split).write(storage, run.path(path))
    member = MemberResult(name="model", family="gcode", status="SUCCEEDED")
    fields = WORKLOAD.score(run, [member])
    for split in ("val", "test"):
        metrics, rivals = fields["metrics"][split], fields["rivals"]
        of_each = {*HEAD_METRICS, "param_value_acc_X", "param_value_mae_X"}
        for rival in ("baseline", "constant"):
            assert (
                of_each <= rivals[rival][split].keys() == metrics.keys() - {"composite_acc_margin"}
            )
        baseline = rivals["baseline"][split]
        margin = metrics["composite_acc"].value - baseline["composite_acc"].value
        assert metrics["composite_acc_margin"].value == pytest.approx(margin)
        assert baseline["command_acc"].value > rivals["constant"][split]["command_acc"].value
    assert fields["members"][0].metrics == fields["metrics"]
    result = JobResult(
        run_id="one", workload="gcode", status="SUCCEEDED", objective=run.spec.objective, seed=0,
        data=data, started_at="2026-01-01T00:00:00Z", **fields,
    )  # fmt: skip
    page = WORKLOAD.render(run, result)
    assert "Heads, beside a baseline and a constant" in page
    assert 'aria-label="Predicted by true X on the test split' in page
    unfinished = result.model_copy(update={"metrics": {}, "members": [], "status": "STOPPED"})
    assert "<html" in WORKLOAD.render(run, unfinished)


# The job description


def test_the_shipped_description() -> None:
    raw = yaml.safe_load((CONFIGS / "gcode.yaml").read_text())
    demo = raw.pop("demo")
    whole = GcodeSpec.model_validate(raw)
    assert (whole.model.hidden_dim, whole.model.num_heads, whole.train.patience) == (256, 8, 15)
    assert whole.families() == {"model": "gcode"}
    hyperparameters = whole.hyperparameters("model")
    assert hyperparameters["value_tolerance.Z"] == 0.01
    assert hyperparameters["train.learning_rate"] == 6e-5
    assert "train.mixup" not in hyperparameters
    for name, section in demo.items():
        raw[name] = raw[name] | section
    assert GcodeSpec.model_validate(raw).model.hidden_dim == 64


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"objective": {"metric": "accuracy"}}, "metric 'accuracy' is not one of composite_acc, "),
        ({"train": {"mixup": 0.2}}, "train.mixup says nothing to the network of workload gcode"),
        ({"train": {"loss": "focal"}}, "workload gcode; set loss.command"),
        ({"sweep": {"metric": "command_acc", "space": {"model.dropout": {"values": [0.1]}}}},
         "sweep.metric is command_acc, but objective.metric is composite_acc"),
        ({"sweep": {"space": {"model.hiden_dim": {"values": [64]}}}},
         "model.hiden_dim, which is no key of the job description (near it: model.hidden_dim)"),
        ({"sweep": {"space": {"data.window": {"values": [64]}}}},
         "data.window, but trials differ in model, loss, train alone"),
        ({"sweep": {"space": {"model.hidden_dim": {"values": [64, 66]},
                              "model.num_heads": {"values": [4, 8]}}}},
         "sweep.space allows model.hidden_dim=66 with model.num_heads=4: hidden_dim=66 cannot be"),
        ({"sweep": {"space": {"train.learning_rate": {"values": [1e-3, "fast"]}}}},
         "sweep.space allows train.learning_rate=fast"),
        ({"sweep": {"grace_epochs": 300, "space": {"model.dropout": {"values": [0.1]}}}},
         "grace_epochs (300) exceeds max_epochs (200)"),
    ],
)  # fmt: skip
def test_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as error:
        spec(**sections)
    assert words in str(error.value)


def test_values_that_only_fit_together_are_accepted() -> None:
    """hidden_dim=9 does not go with the spec's own num_heads=2, but with those of the space."""
    space = {"model.hidden_dim": {"values": [9, 12]}, "model.num_heads": {"values": [1, 3]}}
    assert spec(sweep={"space": space}).sweep is not None
