"""What a terminal, and a log, show of a run: of a sweep its trials, of a training its epochs."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.progress import Progress, epoch_line
from pipelines.sweep_progress import SweepProgress
from ray_jobs.run import Run
from ray_jobs.spec import load_spec

CONFIG = {"model.hidden_dim": 256, "model.num_heads": 8, "train.learning_rate": 5.2345e-05}
EPOCH: dict[str, Any] = {
    "member": "model",
    "epoch": 12,
    "num_epochs": 200,
    "train": {"loss": 0.41, "command_acc": 0.912, "param_type_acc": 0.884, "param_value_acc": 0.7},
    "metrics": {
        "val_loss": 0.455,
        "composite_acc": 0.49,
        "command_acc": 0.88,
        "param_type_acc": 0.851,
        "param_value_acc": 0.655,
    },
    "best": 0.512,
    "patience": "3/15",
    "learning_rate": 6e-5,
    "samples_per_second": 1234.4,
    "num_skipped_batches": 0,
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    spec = load_spec(
        "gcode",
        overrides=[
            "data.path=logs",
            "sweep.space={model.hidden_dim: {values: [192, 256]}, model.num_heads: {values: "
            "[4, 8]}, train.learning_rate: {low: 4.0e-5, high: 8.0e-5, log: true}}",
        ],
        sweeps=True,
        storage=str(tmp_path),
    )
    return Run.create(spec, "a-run")


class Screen:
    """A console as wide and high as a terminal, and what was written to it."""

    def __init__(self, *, is_terminal: bool, width: int = 120, height: int = 30):
        self._stream = io.StringIO()
        self.console = Console(
            file=self._stream,
            force_terminal=is_terminal,
            color_system=None,
            width=width,
            height=height,
            highlight=False,
        )

    @property
    def lines(self) -> list[str]:
        """Without a terminal's codes and the seconds at the beginning."""
        return [
            re.sub(r"^(\x1b\[[?\w]*)* *[\d.]+ s  ", "", line)
            for line in self._stream.getvalue().splitlines()
        ]

    def show(self, progress: Progress | SweepProgress) -> str:
        """What stands on the screen now."""
        progress.poll(force=True)
        with self.console.capture() as capture:
            self.console.print(progress._screen())
        return capture.get()


@pytest.fixture
def log(run: Run) -> Iterator[tuple[Screen, Told]]:
    screen = Screen(is_terminal=False, width=80)
    with SweepProgress(run, screen.console) as progress:
        yield screen, Told(run, progress)


class Told:
    """The journal of the sweep; whoever follows the run looks after each event."""

    def __init__(self, run: Run, progress: Progress | SweepProgress, step: str = "sweep"):
        self._journal, self._progress = run.journal(step), progress

    def __call__(self, event: str, **fields: Any) -> None:
        self._journal(event, **fields)
        self._progress.poll(force=True)


def start(journal: Any, trial: int, epoch: int = 0, **changes: Any) -> None:
    kind = "trial_resumed" if epoch else "trial_started"
    journal(kind, trial=f"{trial:04d}", epoch=epoch, config={**CONFIG, **changes})


def advance(journal: Any, trial: int, epoch: int, value: float | None) -> None:
    journal("trial_epoch", trial=f"{trial:04d}", epoch=epoch, value=value, best=value, metrics={})


def end(
    journal: Any, trial: int, status: str, epoch: int, value: float | None, **more: Any
) -> None:
    fields = {"reason": None, "config": CONFIG, **more}
    journal("trial_ended", trial=f"{trial:04d}", status=status, epoch=epoch, value=value, **fields)


def test_a_log_has_a_line_an_event_and_none_an_epoch(log: tuple[Screen, Told]) -> None:
    screen, journal = log
    journal("step_started")
    start(journal, 3)
    advance(journal, 3, 50, 0.5)
    journal("trial_paused", trial="0003", epoch=50, value=0.5)
    journal("trial_promoted", trial="0003", epoch=50, to_epoch=150, value=0.5)
    start(journal, 3, 50)
    end(journal, 3, "SUCCEEDED", 200, 0.75)
    start(journal, 4)
    end(journal, 4, "FAILED", 0, None, reason="[loss] is not finite")
    journal("warning", trial="0004", message="lower [train.learning_rate]")
    journal("sweep_ended", winner="0003", num_epochs=200)
    assert screen.lines == [
        "sweeping",
        "trial 0003 started: hidden_dim 256, num_heads 8, learning_rate 5.23e-05",
        "trial 0003 parked at epoch 50: composite_acc 0.5000",
        "trial 0003 promoted from epoch 50 to 150: composite_acc 0.5000",
        "trial 0003 goes on from epoch 50: hidden_dim 256, num_heads 8, learning_rate 5.23e-05",
        "trial 0003 done at epoch 200: composite_acc 0.7500",
        "trial 0004 started: hidden_dim 256, num_heads 8, learning_rate 5.23e-05",
        "trial 0004 failed at epoch 0: composite_acc —; [loss] is not finite",
        "warning: trial 0004: lower [train.learning_rate]",
        "the winner is trial 0003",
    ]


def test_a_trial_parked_for_good_is_told_once(log: tuple[Screen, Told]) -> None:
    screen, journal = log
    start(journal, 0)
    journal("trial_paused", trial="0000", epoch=50, value=0.5)
    end(journal, 0, "STOPPED", 50, 0.5)
    start(journal, 1)
    end(journal, 1, "STOPPED", 50, 0.4)  # by Ray's ASHA, which does not park
    assert [line for line in screen.lines if "started" not in line] == [
        "trial 0000 parked at epoch 50: composite_acc 0.5000",
        "trial 0001 stopped at epoch 50: composite_acc 0.4000",
    ]


def test_a_log_follows_the_winners_training(run: Run, log: tuple[Screen, Told]) -> None:
    screen, journal = log
    start(journal, 7)
    end(journal, 7, "SUCCEEDED", 200, 0.75)
    journal("sweep_ended", winner="0007", num_epochs=200)
    for event, fields in (
        ("member_started", {}),
        ("epoch", {k: v for k, v in EPOCH.items() if k != "member"}),
        (
            "member_ended",
            {"status": "SUCCEEDED", "seconds": 2.5, "metrics": {"composite_acc": 0.512}},
        ),
    ):
        run.journal("train")(event, member="model", **fields)
        journal("progress", done=1, total=2, unit="trials")
    started, epoch, ended = screen.lines[-3:]
    assert started == "winner, trial 0007: training"
    assert epoch == (
        "winner, trial 0007: epoch 12/200  train loss 0.410 command 0.912 param_type 0.884 "
        "param_value 0.700  val loss 0.455 composite 0.490 command 0.880 param_type 0.851 "
        "param_value 0.655  best composite_acc 0.512  patience 3/15  lr 6.00e-05  1,234/s"
    )
    assert ended == "winner, trial 0007: succeeded in 2.5 s, composite_acc 0.5120"


def row(screen: str, trial: str) -> list[str]:
    return next(line.split() for line in screen.splitlines() if line.startswith(trial))


def test_the_table_counts_trials_and_epochs(run: Run) -> None:
    screen, journal = Screen(is_terminal=True), run.journal("sweep")
    with SweepProgress(run, screen.console) as progress:
        start(journal, 0)
        advance(journal, 0, 40, 0.25)
        start(journal, 1, **{"model.hidden_dim": 192})
        journal("trial_paused", trial="0001", epoch=50, value=0.5)
        start(journal, 2)
        journal("trial_paused", trial="0002", epoch=50, value=0.625)
        journal("trial_promoted", trial="0002", epoch=50, to_epoch=150, value=0.625)
        start(journal, 3)
        end(journal, 3, "FAILED", 10, None, reason="no memory left")
        shown = screen.show(progress)
    assert (
        "running 1 · waiting 1 · parked 1 · failed 1 · not started 36   epochs 150 of at most "
        in shown
    )
    assert row(shown, "0000")[:-2] == [
        "0000", "running", "40/200", "0.2500", "0.2500", "256", "8", "5.23e-05",
    ]  # fmt: skip
    assert row(shown, "0001")[:5] == ["0001", "parked", "50/200", "50", "0.5000"]
    assert row(shown, "0001")[5] == "192"
    assert row(shown, "0002")[1] == "waiting"
    assert "0003" not in [line[:4] for line in shown.splitlines()]
    assert "and 1 more: 1 failed" in shown
    assert "trial 0003 failed at epoch 10: composite_acc —; no memory left" in screen.lines


def test_the_best_come_after_the_running_and_the_rest_is_counted(run: Run) -> None:
    screen, journal = Screen(is_terminal=True), run.journal("sweep")
    with SweepProgress(run, screen.console) as progress:
        for trial in range(20):
            start(journal, trial)
            journal("trial_paused", trial=f"{trial:04d}", epoch=50, value=trial / 100)
        for trial in (20, 21):
            start(journal, trial)
        shown = screen.show(progress)
    names = [line[:4] for line in shown.splitlines() if re.match(r"\d{4} ", line)]
    assert names == ["0020", "0021", *(f"{trial:04d}" for trial in range(19, 9, -1))]
    assert "and 10 more: 10 parked" in shown


def test_many_running_trials_leave_room_for_the_best(run: Run) -> None:
    screen, journal = Screen(is_terminal=True, height=15), run.journal("sweep")
    with SweepProgress(run, screen.console) as progress:
        for trial in range(9):
            start(journal, trial)
            advance(journal, trial, 10, trial / 100)
        for trial in range(9, 12):
            start(journal, trial)
            journal("trial_paused", trial=f"{trial:04d}", epoch=50, value=trial / 100)
        shown = screen.show(progress)
    names = [line[:4] for line in shown.splitlines() if re.match(r"\d{4} ", line)]
    assert names == ["0005", "0006", "0007", "0008", "0011", "0010"]
    assert "and 6 more: 5 running, 1 parked" in shown


def test_where_lower_is_better_the_lowest_is_the_best(run: Run) -> None:
    objective = run.spec.objective.model_copy(update={"mode": "min"})
    lower = Run(run.spec.model_copy(update={"objective": objective}), run.run_id)
    screen, journal = Screen(is_terminal=True), run.journal("sweep")
    with SweepProgress(lower, screen.console) as progress:
        for trial, value in enumerate((0.5, 0.25, 0.75)):
            start(journal, trial)
            journal("trial_paused", trial=f"{trial:04d}", epoch=50, value=value)
        shown = screen.show(progress)
    names = [line[:4] for line in shown.splitlines() if re.match(r"\d{4} ", line)]
    assert names == ["0001", "0000", "0002"]


def test_a_narrow_terminal_names_the_hyperparameters_it_leaves_out(run: Run) -> None:
    screen, journal = Screen(is_terminal=True, width=80), run.journal("sweep")
    with SweepProgress(run, screen.console) as progress:
        start(journal, 0)
        shown = screen.show(progress)
    assert "hidden_dim  num_heads  time" in shown
    assert "no room for learning_rate" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_sweep_that_was_killed_begins_with_what_its_trials_had(run: Run) -> None:
    journal = run.journal("sweep")
    journal("step_started")
    start(journal, 0)
    advance(journal, 0, 40, 0.25)
    screen = Screen(is_terminal=True)
    with SweepProgress(run, screen.console) as progress:
        assert row(screen.show(progress), "0000")[1] == "running"
        journal("step_started")
        assert "waiting 1" in screen.show(progress)
        start(journal, 0, 40)
        shown = screen.show(progress)
    assert row(shown, "0000")[1:3] == ["running", "40/200"]
    assert not [line for line in screen.lines if line.startswith("trial 0000 started")]


def test_the_winners_epoch_is_one_line_below_the_table(run: Run) -> None:
    screen, journal = Screen(is_terminal=True, width=240), run.journal("sweep")
    with SweepProgress(run, screen.console) as progress:
        start(journal, 7)
        end(journal, 7, "SUCCEEDED", 200, 0.75)
        journal("sweep_ended", winner="0007", num_epochs=200)
        for epoch in (11, 12):
            run.journal("train")("epoch", **{**EPOCH, "epoch": epoch})
        shown = screen.show(progress)
    assert "training the winner" in shown
    assert [line[:33] for line in shown.splitlines() if "winner, " in line] == [
        "winner, trial 0007: epoch 12/200 "
    ]


def test_an_epoch_of_boosting_has_neither_loss_nor_learning_rate() -> None:
    event = {"member": "boosting", "epoch": 3, "num_epochs": 9, "metrics": {"f1": 0.5}}
    plain = re.sub(r"\[/?[a-z]*\]", "", epoch_line(event, "f1"))
    assert plain == "epoch 3/9  val f1 0.500  best f1 —"


def test_a_run_of_one_network_prints_its_epochs_in_a_log(run: Run) -> None:
    screen = Screen(is_terminal=False, width=80)
    with Progress(run, screen.console) as progress:
        journal = Told(run, progress, "train")
        journal("step_started")
        journal("member_started", member="model")
        journal("epoch", **EPOCH)
        journal("epoch", **{**EPOCH, "epoch": 13, "num_skipped_batches": 2, "best": None})
        journal("member_ended", member="model", status="FAILED", seconds=1.5, reason="it [broke]")
    assert [line[:48] for line in screen.lines] == [
        "training",
        "model: training",
        "epoch 12/200  train loss 0.410 command 0.912 par",
        "epoch 13/200  train loss 0.410 command 0.912 par",
        "model: failed in 1.5 s, it [broke]",
    ]
    assert screen.lines[3].endswith(
        "best composite_acc —  patience 3/15  lr 6.00e-05  1,234/s  2 skipped"
    )


def test_a_run_of_members_shows_each_on_a_terminal(tmp_path: Path) -> None:
    run = Run.create(load_spec("fire", storage=str(tmp_path)), "a-run")
    first, *others = run.spec.families()
    screen, journal = Screen(is_terminal=True), run.journal("train")
    with Progress(run, screen.console) as progress:
        journal("member_started", member=first)
        journal("epoch", **{**EPOCH, "member": first, "metrics": {"f1": 0.5}, "best": 0.625})
        shown = screen.show(progress)
    assert row(shown, first)[:-2] == [first, "running", "12/200", "0.5000", "0.6250", "3/15"]
    assert row(shown, others[0])[:2] == [others[0], "pending"]
