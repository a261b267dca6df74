"""When each trial of a sweep was trained, from the run's journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from xml.etree.ElementTree import SubElement

from markupsafe import Markup

from ray_jobs.reporting.charts import Axis, add_text, new_svg, to_markup
from ray_jobs.reporting.scores import duration
from ray_jobs.reporting.sweep_figures import WIDTH, WINNER, describe, segment, shades
from ray_jobs.sweeping.result import SweepResult

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 8, 44  # margins around the bars
_PITCH = 15  # of the rows, in px

Turn = tuple[datetime, datetime]  # from a trial's start, or its going on, to its pause or end


def find_turns(events: Sequence[Mapping[str, Any]]) -> dict[str, list[Turn]]:
    """Trial -> its turns. One that a kill cut off lasts to the trial's last word."""
    turns: dict[str, list[Turn]] = {}
    is_open: dict[str, bool] = {}
    for event in events:
        kind = event["event"]
        if not kind.startswith("trial_") or kind == "trial_promoted":
            continue
        trial, at = event["trial"], datetime.fromisoformat(event["time"])
        if kind in ("trial_started", "trial_resumed"):
            turns.setdefault(trial, []).append((at, at))
            is_open[trial] = True
        elif is_open.get(trial):
            turns[trial][-1] = (turns[trial][-1][0], at)
            is_open[trial] = kind == "trial_epoch"
    return turns


def timeline(sweep: SweepResult, turns: Mapping[str, Sequence[Turn]]) -> Markup | None:
    """A row a trial, in the order of their starts; None without turns.

    Times at which no trial was trained, as between a kill and the resumption, are left out.
    """
    known = {trial.id for trial in sweep.trials}
    bars = _without_idle_times({trial: turns[trial] for trial in turns if trial in known})
    if not bars:
        return None
    unit, seconds = _unit(max(stop for of_one in bars.values() for _, stop in of_one))
    edges = [edge / seconds for of_one in bars.values() for bar in of_one for edge in bar]
    axis = Axis.around(f"{unit.capitalize()} of training", [0.0, *edges])
    bottom = _PITCH * len(bars) + _TOP
    svg = new_svg(WIDTH, bottom + _BOTTOM, "When each trial was trained", css="chart wide")
    for tick in axis.ticks:
        x = float(axis.place(tick, _LEFT, WIDTH - _RIGHT))
        segment(svg, "grid", x, _TOP, x, bottom)
        add_text(svg, x, bottom + 16, f"{tick:.4g}", anchor="middle")
    add_text(svg, WIDTH / 2, bottom + 38, axis.label, anchor="middle", css="axis-label")
    css = shades(sweep)
    for row, (name, of_one) in enumerate(bars.items()):
        trial, y = sweep.trial(name), _TOP + _PITCH * row
        style = WINNER if name == sweep.winner else css[trial.rung]
        add_text(svg, _LEFT - 8, y + 11, name, anchor="end")
        for start, stop in of_one:
            x1, x2 = (
                float(axis.place(at / seconds, _LEFT, WIDTH - _RIGHT)) for at in (start, stop)
            )
            shape = {"x": f"{x1:.1f}", "width": f"{max(x2 - x1, 1.5):.1f}"}
            place = {"y": f"{y + 2}", "height": f"{_PITCH - 4}", **shape}
            bar = SubElement(svg, "rect", {"class": f"turn {style}", **place})
            SubElement(
                bar, "title"
            ).text = (
                f"After {duration(start)}, for {duration(stop - start)}. {describe(sweep, trial)}"
            )
    return to_markup(svg)


def _without_idle_times(
    turns: Mapping[str, Sequence[Turn]],
) -> dict[str, list[tuple[float, float]]]:
    """The turns in seconds of training since the first began."""
    ordered = sorted((turn, trial) for trial, of_one in turns.items() for turn in of_one)
    bars: dict[str, list[tuple[float, float]]] = {}
    idle = busy_until = 0.0
    for (began, ended), trial in ordered:
        start, stop = ((at - ordered[0][0][0]).total_seconds() for at in (began, ended))
        idle += max(0.0, start - busy_until)
        busy_until = max(busy_until, stop)
        bars.setdefault(trial, []).append((start - idle, stop - idle))
    return bars


def _unit(seconds: float) -> tuple[str, float]:
    """The unit for a span of time, and its seconds."""
    if seconds < 180:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 3 * 3600 else ("hours", 3600.0)
