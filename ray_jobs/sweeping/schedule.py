"""The order in which a sweep's results count: a virtual clock, so that promotions do not hang on
which worker was faster.

ASHA promotes on what has arrived so far, and with several workers the order of arrival is chance.
Here every epoch takes one tick of a virtual clock, on as many virtual slots as the sweep started
with. A result counts when the clock reaches it (ties: the lower trial first), however early it came
in, and the clock waits for one that is late. The promotions are thus a function of the trials'
values alone, and a sweep that was killed rebuilds its state from the values it has kept.

The price is waiting: a slot may stand idle while the clock waits for a slow trial. To pay less of
it, slots run ahead with trials not yet started: each must come to the first rung in any case, so
the work is never wasted.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ray_jobs.sweeping.rungs import Rungs


@dataclass(frozen=True)
class Promotion:
    """A trial that went on: from one rung to the next."""

    trial: int
    from_epoch: int
    to_epoch: int
    value: float


class Schedule:
    """ASHA's get_job (Li et al. 2018, algorithm 2) on virtual slots.

    Args:
        rungs: empty ones.
        num_trials: that are started in all, numbered from 0.
        num_slots: virtual workers; with the values, they decide the promotions.
        on_start: called with a trial's number when the clock reaches its start.
    """

    def __init__(
        self,
        rungs: Rungs,
        *,
        num_trials: int,
        num_slots: int,
        on_start: Callable[[int], None] = lambda trial: None,
    ):
        self.rungs = rungs
        self._epochs = [rung.epochs for rung in rungs.rungs]
        self.promotions: list[Promotion] = []
        self._num_trials = num_trials
        self._num_slots = num_slots
        self._on_start = on_start
        self._num_started = 0
        self._now = 0
        self._due: list[tuple[int, int, int]] = []  # heap of (time, trial, level) under way
        self._jobs: dict[int, int] = {}  # trial -> level, in the order of their start
        self._arrived: dict[tuple[int, int], float | None] = {}
        self._ended_at: dict[int, int] = {}  # trial -> the level it ended on the way to
        self._fill()

    @property
    def is_over(self) -> bool:
        return not self._due

    def finish(self, trial: int, level: int, value: float | None) -> None:
        """A trial has been trained to a rung. Said again, it changes nothing."""
        self._arrived.setdefault((trial, level), value)
        self._advance()

    def end(self, trial: int, value: float | None) -> None:
        """A trial has ended before its next rung: its value stands for all later ones, or it failed
        (None)."""
        for level in range(len(self._epochs)):
            if (trial, level) not in self._arrived:
                self._arrived[trial, level] = value
                self._ended_at.setdefault(trial, level)
        self._advance()

    def wanted(self) -> Iterator[int]:
        """Trials that the clock waits for, the one started first first."""
        for trial, level in self._jobs.items():
            if (trial, level) not in self._arrived:
                yield trial

    def ahead(self) -> Iterator[int]:
        """Trials whose start the clock has not reached, and which have not been run ahead."""
        for trial in range(self._num_started, self._num_trials):
            if (trial, 0) not in self._arrived:
                yield trial

    def may_go_on(self, trial: int) -> bool:
        """Whether the trial is promoted, or on its way to a rung."""
        return trial in self._jobs and (trial, self._jobs[trial]) not in self._arrived

    def _advance(self) -> None:
        while self._due and self._due[0][1:] in self._arrived:
            self._now, trial, level = heapq.heappop(self._due)
            del self._jobs[trial]
            self.rungs.record(trial, level, self._arrived[trial, level])
            self._fill()

    def _fill(self) -> None:
        """Give the free virtual slots work: promotions before new trials."""
        while len(self._due) < self._num_slots:
            promotable = self.rungs.promotable()
            if promotable is not None:
                trial, level = promotable
                self._promote(trial, level)
                self._start(trial, level + 1)
            elif self._num_started < self._num_trials:
                self._on_start(self._num_started)
                self._num_started += 1
                self._start(self._num_started - 1, 0)
            else:
                return

    def _promote(self, trial: int, level: int) -> None:
        value = self.rungs.rungs[level].values[trial]
        assert value is not None
        self.rungs.promote(trial, level)
        self.promotions.append(
            Promotion(trial, self._epochs[level], self._epochs[level + 1], value)
        )

    def _start(self, trial: int, level: int) -> None:
        self._jobs[trial] = level
        heapq.heappush(self._due, (self._now + self._ticks(trial, level), trial, level))

    def _ticks(self, trial: int, level: int) -> int:
        """Epochs from the rung below; none are left of a trial that ended on its way there."""
        if level > self._ended_at.get(trial, self.rungs.top):
            return 0
        return self._epochs[level] - (self._epochs[level - 1] if level else 0)
