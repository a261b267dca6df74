"""The guarded loop on one worker; `test_replicas` has two, `chaos/test_training_loop` kills it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ray_jobs.errors import JobFailed, Stopped
from ray_jobs.result import Objective
from ray_jobs.storage import Storage
from ray_jobs.training import loop
from ray_jobs.training.batch import Batch
from ray_jobs.training.checkpoints import CheckpointStore
from ray_jobs.training.spec import CheckpointSpec, GuardSpec
from tests import toy_training as toy


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices this small are slower on two, and slower still beside other tests."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def bare_loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int, clip_grad_norm: float
) -> tuple[toy.Arrays, list[tuple[float, float]]]:
    """What everyone writes first: weights of the best epoch, and (train, val) loss of each."""
    losses, best = [], (math.inf, toy.arrays(model))
    for epoch in range(1, epochs + 1):
        model.train()
        total = 0.0
        for batch in toy.ToyBatches().epoch(epoch, 0):
            optimizer.zero_grad()
            loss, _ = toy.mean_squared_error(model, batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)
            optimizer.step()
            total += loss.item() * len(batch)
        model.eval()
        with torch.no_grad():
            val_loss = toy.validate(model)["val_loss"]
        losses.append((total / toy.NUM_SAMPLES, val_loss))
        best = min(best, (val_loss, toy.arrays(model)), key=lambda pair: pair[0])
    return best[1], losses


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_it_learns_bit_for_bit_what_a_bare_loop_does(
    kind: Callable[..., torch.optim.Optimizer], batch_norm: bool
) -> None:
    model = toy.network(dropout=0, batch_norm=batch_norm)
    optimizer = kind(model.parameters(), lr=1e-2)
    weights, losses = bare_loop(model, optimizer, epochs=4, clip_grad_norm=1.0)
    model = toy.network(dropout=0, batch_norm=batch_norm)
    trained = toy.train(model=model, optimizer=kind(model.parameters(), lr=1e-2))
    toy.assert_same(trained.weights, weights)
    assert [(epoch["train_loss"], epoch["val_loss"]) for epoch in trained.history] == losses
    assert trained.report.num_skipped_batches == 0
    assert trained.report.warnings == []
    assert not model.training


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    first, same = toy.train(), toy.train()
    other = toy.train(context_changes={"seed": 4})  # dropout draws from it
    toy.assert_same(first.weights, same.weights)
    assert first.history == same.history
    assert first.history != other.history


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_killed_at_any_batch_of_an_epoch_ends_as_if_it_had_not_been(
    tmp_path: Path, optimizer: str, ema: bool
) -> None:
    def run(folder: Path | None, killed_at: int | None = None) -> toy.Trained:
        def kill(epoch: int, number: int, batch: Batch) -> Batch:
            if (epoch, number) == (2, killed_at):
                raise toy.Killed
            return batch

        model = toy.network(batch_norm=True)
        recipe = toy.full_recipe(model, optimizer, ema=ema)
        return toy.train(folder, model=model, change=kill, epochs=3, **recipe)

    undisturbed = run(None)
    for number in range(toy.NUM_BATCHES):
        folder = tmp_path / str(number)
        with pytest.raises(toy.Killed):
            run(folder, killed_at=number)
        resumed = run(folder)
        (event,) = resumed.told("resumed")
        # Before the first batch of an epoch: after the last one of the epoch before it.
        where = (2, number) if number else (1, toy.NUM_BATCHES)
        assert (event["epoch"], event["batch"]) == where
        toy.assert_same(resumed.weights, undisturbed.weights)
        assert resumed.history == undisturbed.history


def test_a_run_killed_in_its_validation_validates_anew(tmp_path: Path) -> None:
    def dying(model: nn.Module) -> dict[str, float]:
        raise toy.Killed

    with pytest.raises(toy.Killed):
        toy.train(tmp_path, validate=dying)
    resumed, undisturbed = toy.train(tmp_path), toy.train()
    toy.assert_same(resumed.weights, undisturbed.weights)
    assert resumed.history == undisturbed.history


def test_a_finished_run_has_nothing_left_to_learn(tmp_path: Path) -> None:
    def unexpected(epoch: int, number: int, batch: Batch) -> Batch:
        raise AssertionError("learns again")

    finished = toy.train(tmp_path)
    again = toy.train(tmp_path, change=unexpected)
    toy.assert_same(again.weights, finished.weights)
    assert again.report == finished.report


def test_a_request_to_stop_leaves_a_checkpoint_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "STOP_POLL_INTERVAL_S", 0.0)
    polls = iter([False] * 8 + [True])
    rarely = CheckpointSpec(every_steps=None)
    with pytest.raises(Stopped) as stopped:
        toy.train(
            tmp_path, checkpoint=rarely, context_changes={"stop_requested": lambda: next(polls)}
        )
    assert str(stopped.value) == (
        "stopped in epoch 2 after batch 3; a checkpoint is written, and the same command with the "
        "same --run-id goes on from it"
    )
    assert stopped.value.exit_code == 130
    resumed, undisturbed = toy.train(tmp_path, checkpoint=rarely), toy.train()
    assert resumed.told("resumed") == [
        {"event": "resumed", "epoch": 2, "batch": 3, "name": "epoch-0002-batch-000003"}
    ]
    toy.assert_same(resumed.weights, undisturbed.weights)
    assert resumed.history == undisturbed.history


def test_checkpoints_are_written_every_so_many_steps_and_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def saved(folder: str, **policy: Any) -> list[str]:
        trained = toy.train(tmp_path / folder, epochs=2, checkpoint=CheckpointSpec(**policy))
        return [f"{event['epoch']}/{event['batch']}" for event in trained.told("checkpoint")]

    assert saved("a", every_steps=4) == ["1/4", "2/4", "3/0"]
    assert saved("b", every_steps=None, every_minutes=None) == ["3/0"]
    assert saved("c", every_steps=None, every_minutes=1e-9)[:3] == ["1/1", "1/2", "1/3"]
    monkeypatch.setattr(loop, "MIN_CHECKPOINT_INTERVAL_S", 0.0)
    assert saved("d", every_steps=None, every_minutes=None) == ["2/0", "3/0"]


# Micro-batches


class RecordingSGD(torch.optim.SGD):
    """Keeps the gradients it was given."""

    def step(self, closure: Any = None) -> None:
        (group,) = self.param_groups
        self.gradients = [parameter.grad.clone() for parameter in group["params"]]
        super().step(closure)


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_micro_batches_give_the_gradient_of_the_whole_batch(size: int) -> None:
    def gradients(micro_batch_size: int | None) -> list[Tensor]:
        model = toy.network(dropout=0)
        optimizer = RecordingSGD(model.parameters(), lr=1e-2)
        toy.train(
            model=model, optimizer=optimizer, epochs=1, clip_grad_norm=None,
            micro_batch_size=micro_batch_size,
        )  # fmt: skip
        return optimizer.gradients

    for part, whole in zip(gradients(size), gradients(None), strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-5)


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def more_than_there_is() -> None:
    torch.empty(2**58)


@pytest.mark.parametrize("exhaust", [out_of_memory, more_than_there_is])
def test_memory_that_runs_out_halves_the_micro_batch_and_keeps_the_batch(
    exhaust: Callable[[], None],
) -> None:
    def train(most: int) -> toy.Trained:
        def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
            means = toy.mean_squared_error(model, batch)
            if len(batch) > most:  # after the forward pass, as in a backward pass that is too large
                exhaust()
            return means

        model = toy.network(dropout=0)
        return toy.train(model=model, loss=loss)

    constrained, free = train(most=4), train(most=10)
    messages = [
        f"memory ran out with {tried} samples at once; from here on {size} at a time, their "
        "gradients added up: the batch stays the same"
        for tried, size in ((10, 5), (5, 2))
    ]
    assert constrained.report.warnings == messages
    assert constrained.told("warning") == [
        {"event": "warning", "epoch": 1, "batch": 0, "rank": 0, "message": message}
        for message in messages
    ]
    assert constrained.report.num_skipped_batches == 0
    assert free.report.warnings == []
    toy.assert_close(constrained.weights, free.weights, 1e-4)


def test_statistics_of_an_attempt_that_ran_out_of_memory_are_not_kept() -> None:
    def train(first_size: int) -> toy.Trained:
        model = toy.network(dropout=0, batch_norm=True)

        def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
            means = toy.mean_squared_error(model, batch)
            if len(batch) > 5:
                out_of_memory()
            return means

        return toy.train(model=model, loss=loss, micro_batch_size=first_size)

    toy.assert_same(train(first_size=10).weights, train(first_size=5).weights)


def test_memory_that_does_not_hold_one_sample_ends_the_run_with_advice() -> None:
    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        out_of_memory()
        return toy.mean_squared_error(model, batch)

    with pytest.raises(JobFailed) as failed:
        toy.train(loss=loss, less_memory="take a smaller data.window")
    assert str(failed.value) == ("memory ran out with a single sample; take a smaller data.window")


def test_another_error_of_the_network_is_not_taken_for_memory() -> None:
    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        toy.train(loss=loss)


def test_the_smaller_micro_batch_outlives_a_restart(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        if len(batch) > 5:
            out_of_memory()
        return toy.mean_squared_error(model, batch)

    def kill(epoch: int, number: int, batch: Batch) -> Batch:
        if number == 3:
            raise toy.Killed
        return batch

    with pytest.raises(toy.Killed):
        toy.train(tmp_path, loss=loss, change=kill)
    resumed = toy.train(tmp_path, loss=loss)
    assert len(resumed.report.warnings) == 1  # of before the restart
    assert resumed.told("warning") == []


# Steps that are not finite


def empty(batch: Batch) -> Batch:
    return Batch({name: part[:0] for name, part in batch.tensors.items()}, [])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_as_if_it_had_not_been(value: float) -> None:
    ids: list[int] = []

    def spoil(epoch: int, number: int, batch: Batch) -> Batch:
        if (epoch, number) != (2, 3):
            return batch
        ids.extend(batch.ids)
        return toy.poisoned(batch, value)

    def skip(epoch: int, number: int, batch: Batch) -> Batch:
        return empty(batch) if (epoch, number) == (2, 3) else batch

    def train(change: toy.Change) -> toy.Trained:
        model = toy.network(batch_norm=True)
        return toy.train(model=model, change=change, **toy.full_recipe(model))

    spoilt, skipped = train(spoil), train(skip)
    toy.assert_same(spoilt.weights, skipped.weights)
    assert spoilt.history == skipped.history
    assert [epoch["num_skipped_batches"] for epoch in spoilt.history] == [0, 1, 0, 0]
    assert spoilt.report.num_skipped_batches == 1
    assert spoilt.told("skipped") == [
        {
            "event": "skipped",
            "epoch": 2,
            "batch": 3,
            "rank": 0,
            "reason": "the loss or its gradient is not finite",
            "ids": ids,
        }
    ]
    assert skipped.told("skipped") == []
    assert skipped.report.num_skipped_batches == 1


def test_a_gradient_that_is_not_finite_is_skipped_too() -> None:
    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        mean, metrics = toy.mean_squared_error(model, batch)
        return mean + (0 * model[0].weight.sum()).sqrt(), metrics  # 0, but its slope is 0 * inf

    model = toy.network()
    before = toy.arrays(model)
    guards = GuardSpec(nonfinite_in_a_row=100)
    trained = toy.train(model=model, loss=loss, epochs=1, guards=guards)
    toy.assert_same(trained.weights, before)
    assert len(trained.told("skipped")) == toy.NUM_BATCHES
    assert "train_loss" not in trained.history[0]  # nothing was learnt: no number is made up


@pytest.mark.parametrize("clip_grad_norm", [None, 1.0])
def test_ten_steps_in_a_row_that_are_not_finite_end_the_run(clip_grad_norm: float | None) -> None:
    def spoil(epoch: int, number: int, batch: Batch) -> Batch:
        return toy.poisoned(batch) if epoch > 1 else batch

    with pytest.raises(JobFailed) as failed:
        toy.train(change=spoil, clip_grad_norm=clip_grad_norm)
    assert str(failed.value) == (
        "the loss or its gradient was not finite in 10 steps in a row; lower the learning_rate"
    )


def test_too_large_a_share_of_steps_that_are_not_finite_ends_the_run() -> None:
    def spoil(epoch: int, number: int, batch: Batch) -> Batch:
        return toy.poisoned(batch) if number == 0 else batch

    with pytest.raises(JobFailed) as failed:
        toy.train(change=spoil, epochs=20, patience=20)
    assert str(failed.value) == (
        "the loss or its gradient was not finite in 18 of 103 steps (17%, more than "
        "train.guards.nonfinite_share=0.05); lower the learning_rate"
    )


def test_a_validation_that_is_never_finite_ends_the_run() -> None:
    with pytest.raises(JobFailed) as failed:
        toy.train(validate=lambda model: {"val_loss": math.nan}, epochs=3)
    assert str(failed.value) == "val_loss was never finite; lower the learning_rate"


# A loss scale, which fp16 needs


def test_a_loss_scale_changes_nothing_and_one_too_high_is_lowered_without_blame() -> None:
    def train(**changes: Any) -> toy.Trained:
        return toy.train(model=toy.network(dropout=0), **changes)

    scaled = train(scaler=torch.amp.GradScaler("cpu", init_scale=2.0**8))
    toy.assert_close(scaled.weights, train().weights, 1e-6)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    guards = GuardSpec(nonfinite_in_a_row=1)
    too_high = train(scaler=scaler, guards=guards)
    assert 1 < scaler.get_scale() < 2.0**127
    assert too_high.history[0]["num_skipped_batches"] > 0
    assert too_high.report.num_skipped_batches == 0


def test_a_loss_that_is_not_finite_moves_no_weight_under_a_loss_scale_either() -> None:
    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        mean, metrics = toy.mean_squared_error(model, batch)
        return mean + math.inf, metrics  # its gradient is finite

    model = toy.network()
    before = toy.arrays(model)
    scaler = torch.amp.GradScaler("cpu")
    trained = toy.train(model=model, loss=loss, epochs=1, scaler=scaler)
    toy.assert_same(trained.weights, before)


# Samples that cannot be used


def leave_out(rows: range) -> toy.Change:
    return lambda epoch, number, batch: toy.without(batch, rows)


def test_a_few_samples_left_out_are_counted_and_journalled_without_a_warning() -> None:
    trained = toy.train(change=leave_out(range(2)), epochs=2)
    assert trained.report.num_failed_samples == 2 * 2
    assert trained.report.warnings == []
    left_out = trained.told("left_out")
    assert sorted(row for event in left_out for row in event["ids"]) == [0, 0, 1, 1]
    assert all(event["reasons"] == ["unreadable"] for event in left_out)
    assert {"event", "epoch", "batch", "rank", "reasons", "ids"} == set(left_out[0])


def test_many_samples_left_out_are_a_warning() -> None:
    trained = toy.train(change=leave_out(range(6)), epochs=2)
    assert trained.report.warnings == [
        "12 of 120 samples could not be used and were left out (10%); the journal (events.jsonl) "
        "lists their ids"
    ]


def test_too_many_samples_left_out_end_the_run() -> None:
    with pytest.raises(JobFailed) as failed:
        toy.train(change=leave_out(range(15)))
    assert str(failed.value) == (
        "15 of 60 samples could not be used (25%, more than train.guards.bad_share_stop=0.2): "
        "unreadable (15); mend or remove them: the journal (events.jsonl) lists their ids"
    )


def test_a_batch_of_which_nothing_is_left_is_skipped() -> None:
    def change(epoch: int, number: int, batch: Batch) -> Batch:
        return toy.without(batch, batch.ids) if (epoch, number) == (1, 0) else batch

    trained = toy.train(change=change)
    assert trained.report.num_skipped_batches == 1
    assert trained.report.num_failed_samples == toy.BATCH_SIZE
    assert [epoch["num_skipped_batches"] for epoch in trained.history] == [1, 0, 0, 0]


# Epochs


def test_metrics_that_stand_still_for_eight_epochs_end_the_run_as_degenerate() -> None:
    trained = toy.train(validate=lambda model: {"val_loss": 0.7}, epochs=20, patience=20)
    assert trained.report.degenerate
    assert trained.report.num_epochs == 8
    assert trained.report.best_epoch == 1


def scripted(*losses: float) -> Callable[[nn.Module], dict[str, float]]:
    remaining = iter(losses)
    return lambda model: {"val_loss": next(remaining)}


def test_patience_ends_the_run_and_the_best_epoch_is_kept() -> None:
    weights = []

    def validate(model: nn.Module) -> dict[str, float]:
        assert not model.training
        weights.append(toy.arrays(model))
        return {"val_loss": [0.5, 0.4, 0.6, 0.41, 0.45, 0.1][len(weights) - 1]}

    trained = toy.train(validate=validate, epochs=6, patience=3)
    assert trained.report.best_epoch == 2
    assert trained.report.num_epochs == 5
    assert not trained.report.degenerate
    toy.assert_same(trained.weights, weights[1])


def test_overfitting_is_noted_once() -> None:
    losses = [0.5 + 0.1 * epoch for epoch in range(8)]
    trained = toy.train(validate=scripted(*losses), epochs=8)
    message = (
        "overfitting since epoch 2: the validation loss rises while the training loss falls; more "
        "data, augmentation or weight_decay would help"
    )
    assert trained.report.warnings == [message]
    assert trained.told("warning") == [{"event": "warning", "message": message}]


def test_an_epoch_tells_of_itself() -> None:
    objective = Objective(metric="val_score", mode="max")
    scores = iter([0.5, 0.8, 0.6])

    def validate(model: nn.Module) -> dict[str, float]:
        return {"val_loss": 1.0, "val_score": next(scores)}

    def skip(epoch: int, number: int, batch: Batch) -> Batch:
        return toy.poisoned(batch) if (epoch, number) == (3, 0) else batch

    model = toy.network()
    rates: list[int] = []
    trained = toy.train(
        model=model, validate=validate, change=skip, epochs=3, patience=7,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.125),
        set_learning_rate=rates.append,
        context_changes={"objective": objective},
    )  # fmt: skip
    events = trained.told("epoch")
    train = [event.pop("train") for event in events]
    speeds = [event.pop("samples_per_second") for event in events]
    assert events == [
        {
            "event": "epoch",
            "epoch": epoch,
            "num_epochs": 3,
            "metrics": {"val_loss": 1.0, "val_score": score},
            "best": best,
            "patience": patience,
            "learning_rate": 0.125,
            "num_skipped_batches": num_skipped,
        }
        for epoch, score, best, patience, num_skipped in [
            (1, 0.5, 0.5, "0/7", 0),
            (2, 0.8, 0.8, "0/7", 0),
            (3, 0.6, 0.8, "1/7", 1),
        ]
    ]
    for told, entry in zip(train, trained.history, strict=True):
        assert told == {"loss": entry["train_loss"], "mae": entry["train_mae"]}
        assert all(map(math.isfinite, told.values()))
    assert all(speed > 0 for speed in speeds)
    # By updates done, so that a skipped step does not move the schedule.
    assert rates == [*range(12), 12, *range(12, 17)]
    assert trained.report.num_parameters == sum(p.numel() for p in model.parameters())


def test_the_averaged_weights_are_validated_and_kept() -> None:
    model = toy.network(dropout=0)
    recipe = toy.full_recipe(model)
    seen: list[nn.Module] = []

    def validate(evaluated: nn.Module) -> dict[str, float]:
        seen.append(evaluated)
        return toy.validate(evaluated)

    trained = toy.train(model=model, validate=validate, **recipe)
    assert all(each is recipe["ema"].module for each in seen)
    assert trained.report.best_epoch == 4
    toy.assert_same(trained.weights, toy.arrays(recipe["ema"].module))


def test_frozen_weights_stay_as_they_are() -> None:
    model = toy.network()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    before = toy.arrays(model)
    trained = toy.train(model=model)
    assert np.array_equal(trained.weights["0.weight"], before["0.weight"])
    assert not np.array_equal(trained.weights["4.weight"], before["4.weight"])


def test_an_epoch_is_told_after_its_checkpoint_and_again_when_a_fit_goes_on(tmp_path: Path) -> None:
    """As a trial of a sweep needs it: parked within the call, it is taken up after that epoch."""
    store = CheckpointStore(Storage(tmp_path), "checkpoints", lambda event, **fields: None)
    told: list[tuple[int, int]] = []

    def on_epoch(entry: dict[str, Any]) -> None:
        checkpoint = store.load()
        told.append((entry["epoch"], checkpoint.state["epoch"] - 1 if checkpoint else 0))
        if len(told) == 2:
            raise toy.Killed

    hooks = {"checkpoints": store, "kept_epochs": frozenset({2}), "on_epoch": on_epoch}
    changes: dict[str, Any] = {"checkpoint": CheckpointSpec(every_minutes=None)}
    with pytest.raises(toy.Killed):
        toy.train(context_changes=hooks, **changes)
    assert told == [(1, 0), (2, 2)]  # nothing is written of an epoch that is not asked for
    went_on = toy.train(context_changes=hooks, **changes)
    assert [epoch for epoch, _ in told[2:]] == [1, 2, 3, 4]
    toy.assert_same(went_on.weights, toy.train(**changes).weights)
