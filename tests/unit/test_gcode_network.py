from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_jobs.data.machine_logs.gcode import PARAMETERS
from ray_jobs.data.machine_logs.windows import Frame, Windows
from ray_jobs.errors import JobFailed
from ray_jobs.models.gcode_baseline import GcodeBaseline, window_statistics
from ray_jobs.models.gcode_bundle import load_gcode_bundle, write_gcode_bundle
from ray_jobs.models.gcode_network import (
    GcodeNetwork,
    Heads,
    Pooling,
    RowEmbedding,
    ValueDigits,
    ValueRegression,
)
from ray_jobs.models.gcode_spec import GcodeLossSpec, GcodeModelSpec, HeadWeights
from ray_jobs.training.batch import Batch
from ray_jobs.training.gcode_loss import GcodeLoss

SMALL = {
    "hidden_dim": 16,
    "num_heads": 2,
    "num_layers": 1,
    "dropout": 0.0,
    "value_head": "regression",
}
P = len(PARAMETERS)
CPU = torch.device("cpu")


def network(seed: int = 0, *, learns_weights: bool = False, **model: object) -> GcodeNetwork:
    torch.manual_seed(seed)
    spec = GcodeModelSpec.model_validate(SMALL | model)
    made = GcodeNetwork(
        spec, num_features=3, num_commands=4, window=6, learns_weights=learns_weights
    )
    return made.eval()


def batch(num: int = 8, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(num, 6, 3, generator=generator) > 0.2
    is_set = torch.rand(num, P, generator=generator) > 0.5
    tensors = {
        "x": torch.randn(num, 6, 3, generator=generator) * mask,
        "mask": mask,
        "command": torch.randint(4, (num,), generator=generator),
        "param_type": is_set,
        "param_value": torch.randn(num, P, generator=generator) * is_set,
    }
    rows_set = torch.rand(num, 6, P, generator=generator) > 0.5
    tensors |= {
        "row_command": torch.randint(-1, 4, (num, 6), generator=generator),
        "row_param_type": rows_set,
        "row_param_value": torch.randn(num, 6, P, generator=generator) * rows_set,
    }
    return Batch(tensors, list(range(num)))


def said(of: GcodeNetwork, batch: Batch) -> Heads:
    return of(batch.tensors["x"], batch.tensors["mask"])


@pytest.mark.parametrize("encoder", ["transformer", "lstm"])
@pytest.mark.parametrize("value_head", ["regression", "digits"])
def test_every_row_and_the_mask_have_a_say(encoder: str, value_head: str) -> None:
    of, given = network(encoder=encoder, value_head=value_head), batch()
    heads = said(of, given)
    assert [tuple(part.shape[:2]) for part in heads] == [(8, 4), (8, P), (8, P)]
    assert of.param_value.decode(heads.param_value).shape == (8, P)
    for row in range(6):
        other = batch()
        other.tensors["x"][:, row] += 1
        assert not torch.equal(said(of, other).command, heads.command), row
    masked = batch()
    masked.tensors["mask"] = ~masked.tensors["mask"]
    assert not torch.equal(said(of, masked).command, heads.command)


def test_order_of_rows_matters() -> None:
    """Positions, and the last row's query: rows shuffled before the last one say something else."""
    of, given = network(), batch()
    before = said(of, given).command
    order = [1, 0, 2, 4, 3, 5]
    given.tensors["x"], given.tensors["mask"] = (
        given.tensors[name][:, order] for name in ("x", "mask")
    )
    assert not torch.allclose(said(of, given).command, before, atol=1e-5)


def test_bins_fill_one_after_the_other_and_not_where_nothing_is_measured() -> None:
    embedding = RowEmbedding(1, 4, num_bins=8)
    seen: list[torch.Tensor] = []
    embedding.linear.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    x = torch.tensor([[-9.0], [-1.75], [0.25], [9.0], [0.0]])
    embedding(x, torch.tensor([[True]] * 4 + [[False]]))
    assert seen[0].tolist() == [
        [-9.0, 1.0] + [0.0] * 8,
        [-1.75, 1.0, 0.5] + [0.0] * 7,
        [0.25, 1.0, 1, 1, 1, 1, 0.5, 0, 0, 0],
        [9.0, 1.0] + [1.0] * 8,
        [0.0, 0.0] + [0.0] * 8,
    ]


def test_sensors_drop_out_whole_and_only_in_training() -> None:
    of, given = network(sensor_dropout=0.5), batch(64)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    of.embed.register_forward_pre_hook(lambda _module, args: seen.append(args))
    said(of, given)
    said(of.train(), given)
    (x, mask), (dropped_x, dropped_mask) = seen
    assert torch.equal(mask, given.tensors["mask"])
    kept = dropped_mask.any(dim=1)  # [B, F]
    assert torch.equal(dropped_mask, mask & kept[:, None])
    assert torch.equal(dropped_x, x * dropped_mask)
    assert 0.3 < kept.float().mean() < 0.7


def test_rows_that_are_all_the_same_have_a_gradient() -> None:
    rows = torch.ones(2, 6, 16, requires_grad=True)
    Pooling(16, 2, 0.0)(rows).sum().backward()
    assert rows.grad is not None
    assert torch.isfinite(rows.grad).all()


def test_heads_must_divide_the_hidden_dim() -> None:
    with pytest.raises(
        ValidationError,
        match=r"hidden_dim=250 cannot be shared by num_heads=8; set model.hidden_dim to a multiple "
        "of it, such as 248 or 256",
    ):
        GcodeModelSpec(hidden_dim=250)


def test_regression_in_standard_deviations() -> None:
    head = ValueRegression(4)
    nan = float("nan")
    values = torch.tensor([[1.0, nan, 5.0, 2.0, nan], [3.0, nan, 5.0, nan, nan]])
    head.fit(values)
    assert head.mean.tolist() == [2.0, 0.0, 5.0, 2.0, 0.0]
    assert head.std.tolist() == [1.0, 1.0, 1.0, 1.0, 1.0]
    head.fit(torch.tensor([[10.0] * P, [30.0] * P]))
    assert head.decode(torch.full((1, P), 1.5)).tolist() == [[35.0] * P]
    losses = head.losses(torch.zeros(1, P), torch.tensor([[20.0, 20.05, 20.1, 30.0, 40.0]]))
    # Smooth L1 with beta 0.01: d^2 / 0.02 below, d - 0.005 above.
    assert losses[0].tolist() == pytest.approx([0.0, 0.00125, 0.005, 0.995, 1.995], abs=1e-6)


@settings(max_examples=60)
@given(st.lists(st.integers(-999_999, 999_999), min_size=P, max_size=P))
def test_digits_say_every_value_of_their_range(units: list[int]) -> None:
    head = ValueDigits(4, 2, 4)
    values = torch.tensor([[unit / 1e4 for unit in units]], dtype=torch.float32)
    digits = head.digits(values)
    logits = torch.zeros(1, P, 2 + 60)
    logits[..., 0] = (values >= 0).float()
    logits[..., 1] = (values < 0).float()
    logits[..., 2:] = torch.nn.functional.one_hot(digits, 10).flatten(-2).float()
    assert head.decode(logits)[0].tolist() == pytest.approx(values[0].tolist(), abs=6e-5)
    certain = head.losses(50 * logits, values)
    assert certain.max() < 1e-6
    assert head.losses(50 * logits, values + 1.0).max() > 1


def test_digits_by_hand() -> None:
    head = ValueDigits(4, 2, 4)
    values = torch.tensor([[12.3456, -0.5, 99.99999, 120.0, 0.00004]])
    assert head.digits(values)[0].tolist() == [
        [1, 2, 3, 4, 5, 6], [0, 0, 5, 0, 0, 0], [9] * 6, [9] * 6, [0] * 6,
    ]  # fmt: skip
    assert head.largest == pytest.approx(99.9999)


# The loss


def loss_of(**spec: object) -> GcodeLoss:
    return GcodeLoss(
        GcodeLossSpec.model_validate(spec),
        command_counts=[6, 2, 0, 4],
        values_per_window=2.5,
        device=CPU,
    )


def test_values_count_only_where_they_are_set() -> None:
    of, given = network(), batch()
    before = loss_of().by_head(of, said(of, given), given)
    is_set = given.tensors["param_type"]
    given.tensors["param_value"] = torch.where(is_set, given.tensors["param_value"], 99.0)
    assert torch.equal(loss_of().by_head(of, said(of, given), given), before)
    given.tensors["param_value"] = torch.where(is_set, 99.0, given.tensors["param_value"])
    changed = loss_of().by_head(of, said(of, given), given)
    assert changed[2] > before[2]
    assert torch.equal(changed[:2], before[:2])


@pytest.mark.parametrize("command", ["cross_entropy", "focal"])
@pytest.mark.parametrize("value_head", ["regression", "digits"])
def test_parts_of_a_batch_add_up_to_the_whole(command: str, value_head: str) -> None:
    of, whole = network(value_head=value_head), batch(9)
    loss = loss_of(command=command, class_weights=True)
    parts = [(loss(of, said(of, part), part), len(part)) for part in whole.parts(4)]
    total = sum(value * num for value, num in parts) / 9
    assert total.item() == pytest.approx(loss(of, said(of, whole), whole).item(), rel=1e-5)


def test_by_hand() -> None:
    """Two windows, all logits 0: each head's loss is known."""
    of = network()
    heads = Heads(torch.zeros(2, 4), torch.zeros(2, P), torch.zeros(2, P))
    given = batch(2)
    given.tensors |= {
        "command": torch.tensor([0, 1]),
        "param_type": torch.tensor([[True] * P, [False] * P]),
        "param_value": torch.tensor([[1.005] * P, [0.0] * P]),
    }
    values = P * 1.0 / 2 / 2.5  # five errors of 1.005 - 0.005, over two windows
    assert loss_of().by_head(of, heads, given).tolist() == pytest.approx(
        [np.log(4), np.log(2), values]
    )
    weighted = loss_of(class_weights=True).by_head(of, heads, given)
    # Three classes are there: 12 windows / (3 x count).
    assert float(weighted[0]) == pytest.approx(np.log(4) * (12 / 18 + 12 / 6) / 2)
    focal = loss_of(command="focal", focal_gamma=2.0).by_head(of, heads, given)
    assert float(focal[0]) == pytest.approx(0.75**2 * np.log(4))
    fixed = loss_of(head_weights={"command": 2.0, "param_type": 0.0, "param_value": 0.5})
    assert float(fixed(of, heads, given)) == pytest.approx(2 * np.log(4) + 0.5 * values)


def test_learned_weights_balance_the_heads() -> None:
    of, given = network(learns_weights=True), batch()
    loss = loss_of(head_weights="learned")
    by_head = loss.by_head(of, said(of, given), given)
    assert float(loss(of, said(of, given), given)) == pytest.approx(float(by_head.sum()))
    with torch.no_grad():  # where the gradient is 0: exp(s) = 2 loss
        of.log_variance.copy_(torch.log(2 * by_head))
    loss(of, said(of, given), given).backward()
    assert of.log_variance.grad.abs().max() < 1e-5


@pytest.mark.parametrize("value_head", ["regression", "digits"])
def test_rows_are_supervised_as_windows_of_their_own(value_head: str) -> None:
    of, given = network(value_head=value_head), batch(9)
    heads, rows = of(given.tensors["x"], given.tensors["mask"], with_rows=True)
    assert torch.equal(heads.command, said(of, given).command)
    assert [tuple(part.shape[:3]) for part in rows] == [(9, 6, 4), (9, 6, P), (9, 6, P)]
    loss = loss_of(class_weights=True)
    by_row = 0.0
    for i in range(9):
        for t in range(6):
            row = {name: given.tensors[f"row_{name}"][i : i + 1, t] for name in Heads._fields}
            if row["command"] >= 0:
                one = Heads(*(part[i : i + 1, t] for part in rows))
                by_row += loss(of, one, Batch(row, [0])).item() / 54
    assert loss.of_rows(of, rows, given).item() == pytest.approx(by_row, rel=1e-5)


def test_parts_of_a_batch_add_up_to_its_rows() -> None:
    of, whole = network(), batch(9)

    def of_rows(part: Batch) -> float:
        _, rows = of(part.tensors["x"], part.tensors["mask"], with_rows=True)
        return loss_of().of_rows(of, rows, part).item()

    total = sum(of_rows(part) * len(part) for part in whole.parts(4)) / 9
    assert total == pytest.approx(of_rows(whole), rel=1e-5)


def test_something_must_count() -> None:
    with pytest.raises(ValidationError, match=r"all of loss.head_weights are 0"):
        HeadWeights(command=0, param_type=0, param_value=0)


# The bundle


FRAME = Frame(
    features=("a", "b", "c"),
    mean=(1.0, 2.0, 3.0),
    std=(1.0, 2.0, 0.5),
    commands=("G0", "G1", "G2", "G3"),
    window=6,
    runs=("face1_000",),
    operations=("face1",),
)


@pytest.mark.parametrize("learns_weights", [False, True])
def test_a_bundle_says_what_the_network_said(tmp_path: Path, learns_weights: bool) -> None:
    of = network(learns_weights=learns_weights)
    of.param_value.fit(torch.randn(20, P) * 3)
    write_gcode_bundle(tmp_path, of, GcodeModelSpec(**SMALL), FRAME)
    bundle = load_gcode_bundle(tmp_path)
    rows = np.random.default_rng(0).normal(2, 1, (10, 3))
    rows[3, 1] = np.nan
    lines = bundle.decode(rows)
    assert len(lines) == 5
    x, mask = FRAME.scaled(rows)
    with torch.inference_mode():
        heads = of(torch.from_numpy(x[None, 2:8]), torch.from_numpy(mask[None, 2:8]))
    assert lines.command[2] == int(heads.command.argmax())
    wanted = of.param_value.decode(heads.param_value)[0].tolist()
    assert lines.param_value[2].tolist() == pytest.approx(wanted, abs=1e-5)
    assert not list(tmp_path.glob("*.pkl"))
    with pytest.raises(ValueError, match="a window has 6 rows, but there are 5"):
        bundle.decode(rows[:5])


def test_an_altered_bundle_is_refused(tmp_path: Path) -> None:
    write_gcode_bundle(tmp_path, network(), GcodeModelSpec(**SMALL), FRAME)
    index = json.loads((tmp_path / "bundle.json").read_text())
    assert index["frame"]["features"] == ["a", "b", "c"]
    with (tmp_path / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(JobFailed, match=r"weights\.safetensors is not the one that was trained"):
        load_gcode_bundle(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(JobFailed, match=r"weights\.safetensors is missing"):
        load_gcode_bundle(tmp_path)


# The baseline


def windows(x: np.ndarray, command: np.ndarray, value: np.ndarray) -> Windows:
    """One window a target, side by side; NaN in x [N, T, F] is not measured."""
    num, length, num_features = x.shape
    rows = x.reshape(-1, num_features).astype(np.float32)
    frame = FRAME.model_copy(
        update={"window": length, "features": tuple(f"f{j}" for j in range(num_features))}
    )
    return Windows(
        values=np.nan_to_num(rows),
        measured=~np.isnan(rows),
        start=np.arange(num) * length,
        command=command,
        param_type=~np.isnan(value),
        param_value=value,
        run=np.zeros(num, np.int64),
        operation=np.zeros(num, np.int64),
        row_id=np.arange(num),
        row_command=np.repeat(command, length),
        row_value=np.repeat(value, length, axis=0),
        operations=("face1",),
        frame=frame,
    )


def test_window_statistics_by_hand() -> None:
    nan = np.nan
    x = np.array([[[1.0, nan, 4.0], [2.0, nan, nan], [6.0, nan, nan], [nan, nan, nan]]])
    got = window_statistics(windows(x, np.zeros(1, int), np.full((1, P), nan)))
    mean, std, low, high, last, slope, share = got.reshape(7, 3)
    assert mean == pytest.approx([3, nan, 4], nan_ok=True)
    assert std == pytest.approx([np.sqrt(14 / 3), nan, 0], nan_ok=True)
    assert low == pytest.approx([1, nan, 4], nan_ok=True)
    assert high == pytest.approx([6, nan, 4], nan_ok=True)
    assert last == pytest.approx([6, nan, 4], nan_ok=True)
    assert slope == pytest.approx([2.5, nan, nan], nan_ok=True)
    assert share == pytest.approx([0.75, 0, 0.25])


def test_the_baseline_learns_what_the_statistics_tell() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 4, 2)) + rng.normal(size=(400, 1, 2)) * 3
    level = x.mean(axis=1)
    value = np.full((400, P), np.nan)
    value[:, 2] = level[:, 1]
    value[level[:, 0] > 0, 3] = 5.0
    made = windows(x, (level[:, 0] > 0).astype(int), value)
    lines = GcodeBaseline(made, seed=0).decode(made)
    assert (lines.command == made.command).mean() > 0.98
    assert (lines.param_type == made.param_type).all(axis=1).mean() > 0.98
    assert np.abs(lines.param_value[:, 2] - level[:, 1]).mean() < 0.3
    assert (lines.param_value[:, 3] == 5.0).all()  # the one value that train has
    assert np.isfinite(lines.param_value).all()
