"""How a mill's axes move along a program: accelerations limited, corners slowed, arcs followed.

The planner is the usual one of hobby controllers (grbl, g2core): a junction speed by the angle
between two moves, a backward and a forward pass over the squares of the speeds, and a trapezoid of
speed within each move.

Shapes: M moves, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.machine_logs.toolpaths import Move

Floats = NDArray[np.float64]

ACCELERATION = 6.0  # in/s^2
MIN_DURATION_S = 1e-3
DWELL_S = 2.0  # at rest before the first move and after the last


@dataclass(frozen=True)
class Motion:
    """The axes at evenly spaced times."""

    time_s: Floats  # [S]
    move: NDArray[np.int64]  # [S] index of the move under way
    position: Floats  # [S, 3] in
    velocity: Floats  # [S, 3] in/s
    acceleration: Floats  # [S, 3] in/s^2


def follow(moves: Sequence[Move], step_s: float, speed_scale: float = 1.0) -> Motion:
    """Run a program.

    Args:
        moves: in order; the last one stands still.
        step_s: between samples.
        speed_scale: of all feeds, as a machine's override knob does.
    """
    paths = [_path(move) for move in moves]
    lengths = np.array([_length(path) for path in paths])
    nominal = np.array([move.feed / 60 * speed_scale for move in moves])
    entry = _entry_speeds(paths, lengths, nominal)
    exit_ = np.r_[entry[1:], 0.0]
    phases = [_trapezoid(*parts) for parts in zip(lengths, nominal, entry, exit_, strict=True)]
    durations = np.array([max(float(times[-1]), MIN_DURATION_S) for times, _ in phases])
    durations[-1] += DWELL_S
    ends = DWELL_S + np.cumsum(durations)
    time = np.arange(0.0, ends[-1], step_s)
    move = np.minimum(np.searchsorted(ends, time, side="right"), len(moves) - 1)
    position = np.empty((len(time), 3))
    for index in np.unique(move).tolist():
        at = move == index
        since = np.maximum(time[at] - (ends[index] - durations[index]), 0.0)
        position[at] = _points(paths[index], _distance(since, *phases[index]))
    velocity = np.asarray(np.gradient(position, step_s, axis=0))
    acceleration = np.asarray(np.gradient(velocity, step_s, axis=0))
    return Motion(time, move, position, velocity, acceleration)


def _path(move: Move) -> Floats:
    """Points along a move, shape [K, 3]; an arc in steps of a few degrees."""
    start, end = np.array(move.start), np.array(move.end)
    if not move.radius:
        return np.stack([start, end])
    chord = end[:2] - start[:2]
    half = float(np.linalg.norm(chord)) / 2
    radius = max(move.radius, half)  # rounding may leave the chord a hair longer than two radii
    sign = 1.0 if move.command == "G3" else -1.0  # G3: counterclockwise, its centre to the left
    normal = np.array([-chord[1], chord[0]]) / (2 * half)
    centre = start[:2] + chord / 2 + sign * np.sqrt(max(radius**2 - half**2, 0.0)) * normal
    first = np.arctan2(*(start[:2] - centre)[::-1])
    sweep = (np.arctan2(*(end[:2] - centre)[::-1]) - first) * sign % (2 * np.pi)
    angles = first + sign * np.linspace(0.0, sweep, max(2, int(np.degrees(sweep) / 5) + 1))
    heights = np.linspace(start[2], end[2], len(angles))
    return np.column_stack(
        [centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles), heights]
    )


def _length(path: Floats) -> float:
    return float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())


def _entry_speeds(paths: Sequence[Floats], lengths: Floats, nominal: Floats) -> Floats:
    """The speed at which each move begins, shape [M], in/s."""
    entry = np.zeros(len(paths))
    for i in range(1, len(paths)):
        before, after = paths[i - 1][-1] - paths[i - 1][-2], paths[i][1] - paths[i][0]
        norms = np.linalg.norm(before) * np.linalg.norm(after)
        cosine = float(before @ after / norms) if norms else 0.0
        entry[i] = min(nominal[i - 1], nominal[i]) * max(cosine, 0.0)
    for i in range(len(paths) - 1, 0, -1):
        after = entry[i + 1] if i + 1 < len(paths) else 0.0
        entry[i] = min(entry[i], np.sqrt(after**2 + 2 * ACCELERATION * lengths[i]))
    for i in range(1, len(paths)):
        entry[i] = min(entry[i], np.sqrt(entry[i - 1] ** 2 + 2 * ACCELERATION * lengths[i - 1]))
    return entry


def _trapezoid(length: float, nominal: float, entry: float, exit_: float) -> tuple[Floats, Floats]:
    """Times [4] at which speeding up, cruising and slowing down begin and end, and speeds [4]."""
    if length <= 0:
        return np.zeros(4), np.zeros(4)
    peak = min(nominal, float(np.sqrt(ACCELERATION * length + (entry**2 + exit_**2) / 2)))
    peak = max(peak, entry, exit_)
    up, down = (peak - entry) / ACCELERATION, (peak - exit_) / ACCELERATION
    ramps = (peak + entry) / 2 * up + (peak + exit_) / 2 * down
    cruise = max(length - ramps, 0.0) / peak
    return np.cumsum([0.0, up, cruise, down]), np.array([entry, peak, peak, exit_])


def _distance(since: Floats, times: Floats, speeds: Floats) -> Floats:
    """How far a move has come `since` its beginning, shape of `since`."""
    distance = np.zeros_like(since)
    for k in range(3):
        span = times[k + 1] - times[k]
        part = np.clip(since - times[k], 0.0, span)
        slope = (speeds[k + 1] - speeds[k]) / span if span else 0.0
        distance += speeds[k] * part + slope * part**2 / 2
    return distance


def _points(path: Floats, distance: Floats) -> Floats:
    upto = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))]
    return np.column_stack([np.interp(distance, upto, path[:, axis]) for axis in range(3)])
