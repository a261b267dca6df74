"""The page of a sweep: its winner, what the trials came to, and what was stopped when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ray_jobs.reporting import charts
from ray_jobs.reporting.report import fill
from ray_jobs.reporting.scores import MISSING, metric_in_text, metric_label, number, percent, plural
from ray_jobs.reporting.sweep_figures import (
    WINNER,
    learning_curves,
    parallel_coordinates,
    shades,
)
from ray_jobs.reporting.sweep_timeline import find_turns, timeline
from ray_jobs.sweeping.importance import assess_importance
from ray_jobs.sweeping.labels import config_text, distribution_text, value_text
from ray_jobs.sweeping.records import TrialRecord
from ray_jobs.sweeping.result import SweepResult, TrialResult
from ray_jobs.sweeping.spec import Distribution

_SCHEDULERS = {
    "pausing_asha": "ASHA that pauses and promotes",
    "asha": "ASHA of Ray, which stops",
    "none": "none: every trial in full",
}
_STATUSES = {"SUCCEEDED": "ended", "STOPPED": "stopped", "FAILED": "failed"}


def render_sweep_report(
    sweep: SweepResult,
    *,
    workload: str,
    run_id: str,
    space: Mapping[str, Distribution],
    events: Sequence[dict] = (),
) -> str:
    """The report of a sweep as one HTML page that needs nothing beside itself.

    Args:
        space: of the spec, by dotted key.
        events: the run's journal, for the timeline.
    """
    importance = assess_importance(sweep, space)
    return fill(
        "sweep_report.html.j2",
        ["report.css", "sweep_report.css"],
        workload=workload,
        run_id=run_id,
        sweep=sweep,
        winner=sweep.trial(sweep.winner),
        metric=metric_label(sweep.objective.metric),
        metric_in_text=metric_in_text(sweep.objective.metric),
        scheduler=_SCHEDULERS[sweep.scheduler],
        summary=_summary(sweep),
        spent=_bar(sweep.num_epochs, sweep.num_full_epochs, WINNER, "of training all in full"),
        hyperparameters=_hyperparameters(sweep, space),
        rungs=_rungs(sweep),
        learning=learning_curves(sweep),
        parallel=parallel_coordinates(sweep, space),
        importance=importance,
        importance_rows=_importance_rows(importance.shares, importance.jointly),
        trials=_trial_rows(sweep),
        timeline=timeline(sweep, find_turns(events)),
    )


def _summary(sweep: SweepResult) -> list[str]:
    """What the headline leaves out, in sentences."""
    spent = percent(sweep.num_epochs, sweep.num_full_epochs)
    num_of = Counter(trial.status for trial in sweep.trials)
    in_full = sum(trial.epochs == sweep.rungs[-1] for trial in sweep.trials)
    parts = [f"{in_full} trained in full"] if in_full else []
    early = num_of["SUCCEEDED"] - sum(
        trial.status == "SUCCEEDED" and trial.epochs == sweep.rungs[-1] for trial in sweep.trials
    )
    parts += [f"{early} ended by early stopping"] if early else []
    word = "parked for good" if sweep.scheduler == "pausing_asha" else "stopped"
    parts += [f"{num_of['STOPPED']} {word}"] if num_of["STOPPED"] else []
    parts += [f"{num_of['FAILED']} failed"] if num_of["FAILED"] else []
    sentences = [
        f"{sweep.num_epochs:,} of {sweep.num_full_epochs:,} epochs were trained, {spent} of "
        "training every trial in full.",
        f"{plural(len(sweep.trials), 'trial')}: {', '.join(parts)}.",
    ]
    if sweep.scheduler == "pausing_asha":
        sentences.append(f"{plural(len(sweep.promotions), 'promotion')}.")
    return sentences


@dataclass(frozen=True)
class _Hyperparameter:
    key: str
    value: str
    space: str


def _hyperparameters(
    sweep: SweepResult, space: Mapping[str, Distribution]
) -> list[_Hyperparameter]:
    config = sweep.trial(sweep.winner).config
    return [
        _Hyperparameter(key, value_text(config[key]), distribution_text(space[key]))
        for key in sorted(space)
    ]


@dataclass(frozen=True)
class _Rung:
    epochs: int
    num_trials: int
    num_promoted: int | None  # None: on the last one, or under another scheduler
    best: float | None
    cut: float | None  # the worst value that was promoted


def _rungs(sweep: SweepResult) -> list[_Rung]:
    rows = []
    for level, epochs in enumerate(sweep.rungs):
        values = standings(sweep, level)
        promoted = [each.value for each in sweep.promotions if each.from_epoch == epochs]
        known = [value for value in values.values() if value is not None]
        worst, best = (min, max) if sweep.objective.mode == "max" else (max, min)
        is_last = epochs == sweep.rungs[-1] or sweep.scheduler != "pausing_asha"
        rows.append(
            _Rung(
                epochs,
                len(values),
                None if is_last else len(promoted),
                best(known, default=None),
                worst(promoted, default=None),
            )
        )
    return rows


def standings(sweep: SweepResult, level: int) -> dict[str, float | None]:
    """The trials that came to a rung, the best first, with what was compared there: their best
    value within its epochs, None of one that failed on the way.

    Where trials are promoted, one that ended by itself stands on the rungs that it would have been
    promoted to as well (see schedule.py).
    """
    epochs = sweep.rungs[level]
    values: dict[str, float | None] = {}
    for trial in sweep.trials:
        if sweep.scheduler == "pausing_asha":
            stands = level == 0 or any(
                each.trial == trial.id and each.to_epoch == epochs for each in sweep.promotions
            )
        else:
            stands = trial.epochs >= epochs
        if stands:
            record = TrialRecord(config=trial.config, values=trial.history)
            has_failed = trial.status == "FAILED" and trial.epochs < epochs
            values[trial.id] = (
                None if has_failed else record.best(sweep.objective.mode, within=epochs)
            )
    return dict(sorted(values.items(), key=lambda item: _rank(sweep, item[1])))


def _rank(sweep: SweepResult, value: float | None) -> tuple[bool, float]:
    """Sorts the best first, and what has no value last; equal values keep their order."""
    sign = -1 if sweep.objective.mode == "max" else 1
    return value is None, sign * (value or 0.0)


@dataclass(frozen=True)
class _ImportanceRow:
    name: str
    bar: Markup
    share: str


def _importance_rows(shares: Mapping[str, float], jointly: float) -> list[_ImportanceRow]:
    named = [*shares.items(), ("several together", jointly)] if shares else []
    return [
        _ImportanceRow(name, _bar(share, 1.0, "s-0", f"of {name}"), percent(share, 1.0))
        for name, share in named
    ]


@dataclass(frozen=True)
class _TrialRow:
    trial: TrialResult
    is_winner: bool
    status: str
    swatch: Markup
    bar: Markup
    promotions: str
    why: str
    config: str


def _trial_rows(sweep: SweepResult) -> list[_TrialRow]:
    """The winner first, then by how far they came, then by value."""
    css = shades(sweep)
    ranks = [list(standings(sweep, level)) for level in range(len(sweep.rungs))]
    rows = []
    for trial in sorted(
        sweep.trials,
        key=lambda t: (t.id != sweep.winner, -(t.rung or 0), _rank(sweep, t.best_value)),
    ):
        is_winner = trial.id == sweep.winner
        style = WINNER if is_winner else css[trial.rung]
        climbed = [each for each in sweep.promotions if each.trial == trial.id]
        steps = [*(each.from_epoch for each in climbed), *(each.to_epoch for each in climbed[-1:])]
        is_parked = trial.status == "STOPPED" and sweep.scheduler == "pausing_asha"
        rows.append(
            _TrialRow(
                trial,
                is_winner,
                status="parked" if is_parked else _STATUSES[trial.status],
                swatch=charts.swatch(style),
                bar=_bar(trial.epochs, sweep.rungs[-1], style, f"epochs of trial {trial.id}"),
                promotions=" → ".join(f"{epoch:,}" for epoch in steps) or MISSING,
                why=_why_ended(sweep, trial, ranks),
                config=config_text(trial.config),
            )
        )
    return rows


def _why_ended(sweep: SweepResult, trial: TrialResult, ranks: Sequence[Sequence[str]]) -> str:
    if trial.status == "FAILED":
        return trial.reason or "it left no reason"
    if trial.epochs == sweep.rungs[-1]:
        return "trained in full"
    if trial.status == "SUCCEEDED":
        return f"early stopping at epoch {trial.epochs:,}"
    if trial.rung is None or trial.epochs != trial.rung:
        return f"stopped at epoch {trial.epochs:,}"
    standing = ranks[sweep.rungs.index(trial.rung)]
    return f"rank {standing.index(trial.id) + 1:,} of {len(standing):,} at epoch {trial.rung:,}"


def _bar(value: float, whole: float, css: str, name: str) -> Markup:
    return charts.bar(
        value, low=0.0, high=whole, css=css, label=f"{number(100 * value / whole, 0)} % {name}"
    )
