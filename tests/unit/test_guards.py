from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.errors import JobFailed
from ray_jobs.training.guards import (
    BufferGuard,
    MemoryGuard,
    NonFiniteGuard,
    OverfittingGuard,
    SampleGuard,
    check_outputs,
    is_out_of_memory,
)
from ray_jobs.training.spec import GuardSpec

# Steps that are not finite


def test_steps_in_a_row_that_are_not_finite_end_the_run() -> None:
    guard = NonFiniteGuard(GuardSpec(nonfinite_in_a_row=3))
    for is_finite in (False, False, True, False, False):
        guard.observe(is_finite=is_finite)
    assert (guard.num_skipped, guard.num_in_a_row) == (4, 2)
    with pytest.raises(JobFailed) as failed:
        guard.observe(is_finite=False)
    assert str(failed.value) == (
        "the loss or its gradient was not finite in 3 steps in a row; lower the learning_rate"
    )


def test_a_share_of_steps_is_judged_from_a_hundred_on() -> None:
    guard = NonFiniteGuard(GuardSpec())
    for step in range(99):
        guard.observe(is_finite=step % 4 != 0)
    with pytest.raises(JobFailed) as failed:
        guard.observe(is_finite=False)
    assert str(failed.value) == (
        "the loss or its gradient was not finite in 26 of 100 steps (26%, more than "
        "train.guards.nonfinite_share=0.05); lower the learning_rate"
    )


def test_a_share_of_steps_within_the_budget_is_no_failure() -> None:
    guard = NonFiniteGuard(GuardSpec())
    for step in range(1000):
        guard.observe(is_finite=step % 20 != 19)
    assert guard.num_skipped == 50


@given(st.lists(st.booleans(), max_size=60), st.integers(0, 60))
def test_a_restored_guard_judges_like_the_one_that_was_saved(steps: list[bool], cut: int) -> None:
    def verdict(cuts: bool) -> tuple[int, str | None]:
        guard = NonFiniteGuard(GuardSpec(nonfinite_in_a_row=4))
        for number, is_finite in enumerate(steps):
            if cuts and number == cut:
                state = guard.state()
                guard = NonFiniteGuard(guard.spec)
                guard.restore(state)
            try:
                guard.observe(is_finite=is_finite)
            except JobFailed as failed:
                return number, str(failed)
        return len(steps), None

    assert verdict(cuts=True) == verdict(cuts=False)


# Samples that cannot be used


@pytest.mark.parametrize(
    ("num_failed", "warning"),
    [
        (0, None),
        (49, None),
        (
            50,
            "50 of 1000 samples could not be used and were left out (5%); the journal "
            "(events.jsonl) lists their ids",
        ),
        (
            200,
            "200 of 1000 samples could not be used and were left out (20%); the journal "
            "(events.jsonl) lists their ids",
        ),
    ],
)
def test_a_warning_from_five_percent_of_samples_on(num_failed: int, warning: str | None) -> None:
    guard = SampleGuard(GuardSpec())
    guard.observe(num_used=1000 - num_failed, num_failed=num_failed)
    guard.check()
    assert guard.warning() == warning


def test_more_than_a_fifth_of_the_samples_ends_the_run() -> None:
    guard = SampleGuard(GuardSpec())
    guard.reasons.update({"truncated": 90, "not a picture": 100, "empty file": 10, "too large": 1})
    with pytest.raises(JobFailed) as failed:
        guard.observe(num_used=799, num_failed=201)
    assert str(failed.value) == (
        "201 of 1000 samples could not be used (20%, more than train.guards.bad_share_stop=0.2): "
        "not a picture (100); truncated (90); empty file (10); mend or remove them: the journal "
        "(events.jsonl) lists their ids"
    )


def test_few_samples_are_judged_at_the_end_of_the_epoch_alone() -> None:
    guard = SampleGuard(GuardSpec())
    guard.observe(num_used=100, num_failed=99)
    with pytest.raises(JobFailed) as failed:  # of another worker: no reason is known here
        guard.check()
    assert str(failed.value) == (
        "99 of 199 samples could not be used (50%, more than train.guards.bad_share_stop=0.2); "
        "mend or remove them: the journal (events.jsonl) lists their ids"
    )


def test_batches_of_which_nothing_is_left_are_counted_and_nothing_at_all_is_no_share() -> None:
    guard = SampleGuard(GuardSpec(bad_share_stop=0.99))
    guard.observe(num_used=0, num_failed=0)
    guard.check()
    assert (guard.share, guard.warning(), guard.num_empty_batches) == (0.0, None, 1)
    guard.observe(num_used=20, num_failed=10)
    guard.reasons["truncated"] += 10
    restored = SampleGuard(guard.spec)
    restored.restore(guard.state())
    assert restored == guard


# Memory


def test_memory_is_halved_down_to_one_sample_and_then_ends_the_run() -> None:
    guard = MemoryGuard(size=64, less_memory="set train.precision=bf16")
    assert guard.halve(tried=7) == (  # a batch smaller than the size allowed
        "memory ran out with 7 samples at once; from here on 3 at a time, their gradients added "
        "up: the batch stays the same"
    )
    guard.halve(tried=3)
    assert guard.size == 1
    with pytest.raises(JobFailed) as failed:
        guard.halve(tried=1)
    assert str(failed.value) == ("memory ran out with a single sample; set train.precision=bf16")


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_counts_as_memory_running_out(error: RuntimeError, is_memory: bool) -> None:
    assert is_out_of_memory(error) is is_memory


# Buffers


def test_buffers_are_put_back() -> None:
    module = torch.nn.BatchNorm1d(3)
    module(torch.ones(4, 3))
    guard = BufferGuard(module.buffers())
    guard.keep()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module(torch.full((4, 3), math.nan))
    assert module.running_mean.isnan().all()
    guard.restore()
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, before[name])
    assert module.num_batches_tracked == 1


# Overfitting


def note(*losses: tuple[float, float | None], restarts: bool = False) -> list[str | None]:
    guard, notes = OverfittingGuard(), []
    for epoch, (train_loss, val_loss) in enumerate(losses, start=1):
        notes.append(guard.observe(epoch, train_loss, val_loss))
        if restarts:
            state = guard.state()
            guard = OverfittingGuard()
            guard.restore(state)
    return notes


@pytest.mark.parametrize("restarts", [False, True])
def test_overfitting_is_said_once(restarts: bool) -> None:
    losses = [(1.0 - 0.1 * epoch, 0.5 + 0.1 * epoch) for epoch in range(8)]
    message = (
        "overfitting since epoch 2: the validation loss rises while the training loss falls; more "
        "data, augmentation or weight_decay would help"
    )
    assert note(*losses, restarts=restarts) == [*[None] * 4, message, *[None] * 3]


@pytest.mark.parametrize(
    "losses",
    [
        [(0.9, 0.5), (0.8, 0.6), (0.7, 0.7), (0.6, 0.8)],  # one epoch short
        [(0.9, 0.5), (0.8, 0.6), (0.7, 0.59), (0.6, 0.8), (0.5, 0.9)],  # val falls once
        [(0.9, 0.5), (0.8, 0.6), (0.7, 0.7), (0.75, 0.8), (0.5, 0.9)],  # train rises once
        [(0.9, None)] * 6,
        [(0.9, 0.5), (0.8, 0.6), (0.7, math.nan), (0.6, 0.8), (0.5, 0.9)],
    ],
)
def test_what_is_no_overfitting(losses: list[tuple[float, float | None]]) -> None:
    assert note(*losses) == [None] * len(losses)


def test_outputs_that_are_no_numbers_end_the_run_with_advice() -> None:
    check_outputs(torch.tensor([1e30, -3.0]))
    for bad in (torch.nan, torch.inf):
        with pytest.raises(JobFailed) as raised:
            check_outputs(torch.tensor([1.0, bad]))
        assert str(raised.value) == (
            "the network's outputs are no longer finite; lower the learning_rate"
        )
