"""Two workers that train one model: real processes, which exchange over loopback."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ray_jobs.errors import JobFailed, Stopped
from ray_jobs.training import loop, replicas
from ray_jobs.training.batch import Batch
from ray_jobs.training.replicas import Replicas
from ray_jobs.training.spec import CheckpointSpec, GuardSpec
from tests import toy_training as toy

EVEN: frozenset[int] = frozenset()
UNEVEN = frozenset(range(0, toy.NUM_SAMPLES, 3))  # left out, some here and some there


# Gradients


class RecordingSGD(torch.optim.SGD):
    """Keeps the gradients of every step."""

    def __init__(self, parameters: Any, **options: Any):
        super().__init__(parameters, **options)
        self.gradients: list[dict[str, Any]] = []

    def step(self, closure: Any = None) -> None:
        (group,) = self.param_groups
        step = {str(number): p.grad.numpy().copy() for number, p in enumerate(group["params"])}
        self.gradients.append(step)
        super().step(closure)


def gradients(left_out: frozenset[int], micro_batch_size: int | None) -> list[toy.Arrays]:
    replicas._BUCKET_BYTES = 256  # several exchanges a step
    model = toy.network(dropout=0, seed=5 + Replicas().rank)  # the first one's weights count
    optimizer = RecordingSGD(model.parameters(), lr=1e-3)
    toy.train(
        model=model, optimizer=optimizer, epochs=2, clip_grad_norm=None,
        micro_batch_size=micro_batch_size, guards=GuardSpec(bad_share_stop=0.9),
        change=lambda epoch, number, batch: toy.without(batch, left_out),
    )  # fmt: skip
    return optimizer.gradients


@pytest.mark.parametrize("micro_batch_size", [None, 2])
@pytest.mark.parametrize("left_out", [EVEN, UNEVEN])
def test_two_workers_come_to_the_gradients_of_one_with_the_whole_batch(
    tmp_path: Path, left_out: frozenset[int], micro_batch_size: int | None
) -> None:
    alone = gradients(left_out, None)
    first, second = toy.on_workers(gradients, tmp_path, left_out, micro_batch_size)
    assert len(alone) == len(first) == 2 * toy.NUM_BATCHES
    for one, mine, yours in zip(alone, first, second, strict=True):
        toy.assert_same(mine, yours)
        for name in one:  # of the order of 10
            np.testing.assert_allclose(mine[name], one[name], rtol=1e-6, atol=1e-5)


# Faults on one of two


def train(
    folder: Path | None, faults: dict[str, Any], *, batch_norm: bool = True, **changes: Any
) -> toy.Trained:
    """A fit of a network with dropout and BatchNorm; `faults` are of the second worker alone."""
    rank = Replicas().rank
    model = toy.network(batch_norm=batch_norm, seed=5 + rank)
    if rank == 1:
        changes |= faults
    return toy.train(folder, model=model, **changes)


def on_both(folder: Path, faults: dict[str, Any], **changes: Any) -> list[toy.Trained]:
    outcomes = toy.on_workers(train, folder, None, faults, **changes)
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)], outcomes
    first, second = outcomes
    toy.assert_same(first.weights, second.weights)
    assert first.history == second.history
    return [first, second]


def poison(epoch: int, number: int, batch: Batch) -> Batch:
    return toy.poisoned(batch) if (epoch, number) in {(1, 2), (2, 0)} else batch


def leave_all_out(epoch: int, number: int, batch: Batch) -> Batch:
    return toy.without(batch, batch.ids) if (epoch, number) in {(1, 2), (2, 0)} else batch


def nan_gradient(model: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    mean, metrics = toy.mean_squared_error(model, batch)
    return mean + (0 * model[0].weight.sum()).sqrt(), metrics


def infinite_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    mean, metrics = toy.mean_squared_error(model, batch)
    return mean + math.inf, metrics  # with a finite gradient


def out_of_memory(model: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    if len(batch) > 3:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return toy.mean_squared_error(model, batch)


def test_a_nan_on_one_worker_skips_the_step_on_both(tmp_path: Path) -> None:
    first, second = on_both(tmp_path, {"change": poison})
    assert first.told("skipped") == []
    assert [
        (event["epoch"], event["batch"], event["rank"]) for event in second.told("skipped")
    ] == [
        (1, 2, 1),
        (2, 0, 1),
    ]
    for event in second.told("skipped"):
        order = torch.randperm(
            toy.NUM_SAMPLES, generator=torch.Generator().manual_seed(event["epoch"])
        )
        start = event["batch"] * toy.BATCH_SIZE
        assert event["ids"] == order[start + 5 : start + 10].tolist()
    assert [epoch["num_skipped_batches"] for epoch in first.history] == [1, 1, 0, 0]
    assert first.report.num_skipped_batches == second.report.num_skipped_batches == 2
    assert all(map(math.isfinite, (epoch["train_loss"] for epoch in first.history)))


@pytest.mark.parametrize("loss", [nan_gradient, infinite_loss])
def test_a_fault_on_one_worker_moves_no_weight_on_either(
    tmp_path: Path, loss: Callable[..., Any]
) -> None:
    guards = GuardSpec(nonfinite_in_a_row=100)
    first, second = on_both(tmp_path, {"loss": loss}, epochs=1, guards=guards)
    toy.assert_same(first.weights, toy.arrays(toy.network(batch_norm=True)))
    assert (len(first.told("skipped")), len(second.told("skipped"))) == (0, toy.NUM_BATCHES)


def test_nan_gradients_that_do_not_end_stop_both(tmp_path: Path) -> None:
    failures = toy.on_workers(train, tmp_path, None, {"loss": nan_gradient})
    words = "the loss or its gradient was not finite in 10 steps in a row; lower the learning_rate"
    assert [(type(failure), str(failure)) for failure in failures] == [(JobFailed, words)] * 2


def test_a_worker_without_a_usable_sample_takes_part(tmp_path: Path) -> None:
    first, second = on_both(tmp_path, {"change": leave_all_out})
    assert first.report.num_skipped_batches == 0  # the other's samples were learnt from
    assert first.report.num_failed_samples == second.report.num_failed_samples == 10
    assert first.told("left_out") == []
    assert [len(event["ids"]) for event in second.told("left_out")] == [5, 5]


def test_a_batch_without_a_usable_sample_on_either_is_skipped(tmp_path: Path) -> None:
    first, _ = on_both(tmp_path, {}, change=leave_all_out)
    assert first.report.num_skipped_batches == 2
    assert first.report.num_failed_samples == 20


def test_a_worker_that_runs_out_of_memory_halves_its_own_micro_batch(tmp_path: Path) -> None:
    first, second = on_both(tmp_path, {"loss": out_of_memory}, batch_norm=False)
    assert first.told("warning") == []
    assert [event["message"] for event in second.told("warning")] == [
        "memory ran out with 5 samples at once; from here on 2 at a time, their gradients added "
        "up: the batch stays the same"
    ]
    assert first.report.num_skipped_batches == 0


# Stopping and going on


def stopped_on_the_first(folder: Path) -> Any:
    loop.STOP_POLL_INTERVAL_S = 0.0
    polls = iter([False] * 8 + [True])
    is_first = Replicas().rank == 0
    return train(
        folder, {}, checkpoint=CheckpointSpec(every_steps=None),
        context_changes={"stop_requested": lambda: is_first and next(polls)},
    )  # fmt: skip


def with_recipe(folder: Path | None, killed_at: Sequence[tuple[int, int]]) -> toy.Trained:
    def kill(epoch: int, number: int, batch: Batch) -> Batch:
        if (epoch, number) in killed_at:
            raise toy.Killed
        return batch

    model = toy.network(batch_norm=True, seed=5 + Replicas().rank)
    return toy.train(folder, model=model, change=kill, **toy.full_recipe(model))


def test_a_request_seen_by_the_first_worker_stops_both(tmp_path: Path) -> None:
    undisturbed, _ = toy.on_workers(train, tmp_path, None, {})
    stopped = toy.on_workers(stopped_on_the_first, tmp_path, tmp_path)
    words = (
        "stopped in epoch 2 after batch 3; a checkpoint is written, and the same command with the "
        "same --run-id goes on from it"
    )
    assert [(type(outcome), str(outcome)) for outcome in stopped] == [(Stopped, words)] * 2
    first, second = toy.on_workers(train, tmp_path, tmp_path, {})
    for resumed in (first, second):
        toy.assert_same(resumed.weights, undisturbed.weights)
        assert resumed.history == undisturbed.history
    assert (len(first.told("resumed")), len(second.told("resumed"))) == (1, 0)


@pytest.mark.parametrize("killed_at", [(1, 3), (2, 0), (3, 5)])
def test_a_killed_run_of_two_ends_as_if_it_had_not_been(
    tmp_path: Path, killed_at: tuple[int, int]
) -> None:
    undisturbed, _ = toy.on_workers(with_recipe, tmp_path, None, [])
    killed = toy.on_workers(with_recipe, tmp_path, tmp_path, [killed_at])
    assert [type(outcome) for outcome in killed] == [toy.Killed] * 2
    for resumed in toy.on_workers(with_recipe, tmp_path, tmp_path, []):
        toy.assert_same(resumed.weights, undisturbed.weights)
        assert resumed.history == undisturbed.history


def test_damaged_checkpoints_are_passed_over_by_both(tmp_path: Path) -> None:
    undisturbed, _ = toy.on_workers(with_recipe, tmp_path, None, [])
    toy.on_workers(with_recipe, tmp_path, tmp_path, [(3, 4)])
    newest = max((tmp_path / "checkpoints").glob("epoch-*/weights.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-8])
    first, second = toy.on_workers(with_recipe, tmp_path, tmp_path, [])
    for resumed in (first, second):
        toy.assert_same(resumed.weights, undisturbed.weights)
    assert first.told("resumed")[0]["batch"] == 3


# Rows


def gathered(num_total: int, shape: Sequence[int]) -> list[Any]:
    process = Replicas()
    rows = torch.arange(num_total * math.prod(shape), dtype=torch.float32)
    rows = rows.view(num_total, *shape)
    return process.gather_rows(rows[process.rank :: process.world_size], num_total).tolist()


@pytest.mark.parametrize(("num_total", "shape"), [(7, ()), (8, (3,)), (1, (2,))])
def test_rows_are_gathered_in_their_first_order(
    tmp_path: Path, num_total: int, shape: Sequence[int]
) -> None:
    expected = gathered(num_total, shape)  # alone
    assert toy.on_workers(gathered, tmp_path, num_total, shape) == [expected, expected]


def summed() -> list[float]:
    process = Replicas()
    return process.sum_numbers([1.5, float(process.rank)], torch.device("cpu"))


def test_numbers_are_summed(tmp_path: Path) -> None:
    assert summed() == [1.5, 0.0]
    assert toy.on_workers(summed, tmp_path) == [[3.0, 1.0]] * 2


def waiting() -> None:
    if Replicas().rank == 1:
        time.sleep(60)


def test_a_worker_that_waits_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="worker 1 waits"):
        toy.on_workers(waiting, tmp_path, timeout_s=1)
