"""Simulated runs of a small mill, in the form in which logs are read.

A program's axes move under acceleration limits; motors draw what friction, acceleration and the cut
ask of them; accelerometers feel motion, spindle and cut; a magnetometer on the table sees the
motors pass. Each run has its own wear, blunt tool, noise and offsets, so that a program is told by
its shape and not by its numbers. Like a real controller it also logs positions, feed, modal code
and line number, which give the answer away: what looks for leaks has something to find.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.machine_logs.motion import Motion, follow
from ray_jobs.data.machine_logs.runs import Run
from ray_jobs.data.machine_logs.toolpaths import KINDS, Move, program

Floats = NDArray[np.float64]

RUNS_PER_OPERATION = 3
STEP_S = 0.02
STEPS_PER_ROW = 12  # rows 0.24 s apart
MODAL_CODES = {"G0": 0, "G1": 1, "G2": 2, "G3": 3, "M30": 4}
MM_PER_INCH = 25.4
_LACKING_SHARE = 0.15  # of runs, in which a node was not mounted


def simulate_runs(
    num_runs: int, *, seed: int, progress: Callable[[int, int], None] | None = None
) -> list[Run]:
    """Runs by name, at some 15 ms each; the same seed gives the same."""
    runs = []
    for index in range(num_runs):
        runs.append(simulate_run(seed, index))
        if progress:
            progress(index + 1, num_runs)
    return sorted(runs, key=lambda run: run.name)


def simulate_run(seed: int, index: int) -> Run:
    """One run. Three in a row repeat one operation's program; the kinds take turns."""
    operation = index // RUNS_PER_OPERATION
    kind = KINDS[operation % len(KINDS)]
    moves = program(kind, np.random.default_rng([seed, 0, operation]))
    rng = np.random.default_rng([seed, 1, index])
    motion = follow(moves, STEP_S, speed_scale=rng.uniform(0.97, 1.03))
    sensors = _sensors(moves, motion, rng)
    if rng.random() < _LACKING_SHARE:
        sensors = {name: x for name, x in sensors.items() if not name.startswith("frame.")}
    offset = rng.uniform(30, 60, 3)
    row = np.arange(STEPS_PER_ROW - 1, len(motion.time_s), STEPS_PER_ROW)
    return Run(
        name=f"{kind}{operation // len(KINDS) + 1}_{index:03d}",
        operation=f"{kind}{operation // len(KINDS) + 1}",
        columns={**_controller(moves, motion, row, offset), **sensors},
        gcode=[moves[i].text for i in motion.move[row]],
    )


def _controller(
    moves: list[Move], motion: Motion, row: NDArray[np.int64], offset: Floats
) -> dict[str, Floats]:
    """What the controller knows, at each row."""
    move = motion.move[row]
    feed = np.array([0.0 if m.command in ("G0", "M30") else m.feed for m in moves])
    code = np.array([float(MODAL_CODES[m.command]) for m in moves])
    columns = {"line": move + 1.0, "momo": code[move], "feed": feed[move] * MM_PER_INCH}
    for axis, name in enumerate("xyz"):
        position = motion.position[row, axis]
        columns[f"pos{name}"] = position.round(5)
        columns[f"mpo{name}"] = (MM_PER_INCH * position + offset[axis]).round(5)
    return columns


def _sensors(moves: list[Move], motion: Motion, rng: np.random.Generator) -> dict[str, Floats]:
    """What instruments measure, as the mean (and spread) over each row's time."""
    num_steps = len(motion.time_s)
    velocity, acceleration = motion.velocity, motion.acceleration
    speed = np.linalg.norm(velocity, axis=1)
    cuts = np.array([move.cuts for move in moves])[motion.move]
    is_over = np.array([move.command == "M30" for move in moves])[motion.move]
    load = rng.uniform(0.8, 1.3) * cuts * (0.3 + speed) * _rough(num_steps, 0.15, rng)
    spindle = np.where(is_over, 0.0, 1.0)
    direction = velocity / np.maximum(speed, 1e-6)[:, None]
    friction, inertia = rng.uniform(0.9, 1.1, 3) * 0.06, rng.uniform(0.9, 1.1, 3) * 0.02
    motors = (
        0.2
        + friction * np.tanh(velocity / 0.02)
        + 0.08 * velocity
        + inertia * acceleration
        + 0.12 * load[:, None] * direction
    )
    motors[:, 2] += 0.05  # the head's weight
    columns = {"spindle": _rows(5.0 * spindle + 1.5 * load, 0.1, rng)}
    for axis, name in enumerate("xyz"):
        columns[f"{name}_motor"] = _rows(motors[:, axis], 0.01, rng)
    noise = 0.02 + 0.3 * load + 0.05 * spindle
    shaken = acceleration[:, :2] / 386.0  # in g
    for node, share in (("table", (0.0, 1.0)), ("head", (1.0, 0.0)), ("frame", (0.3, 0.3))):
        for axis, name in enumerate("xy"):
            signal = share[axis] * shaken[:, axis] + noise * rng.normal(0.0, 0.02, num_steps)
            columns[f"{node}.A{name}"] = _rows(signal + rng.normal(0, 0.01), 0.002, rng)
        vibration = noise * np.abs(rng.normal(1.0, 0.2, num_steps))
        columns[f"{node}.RMS"] = _rows(100 * vibration, 1.0, rng)
    x, y, z = motion.position.T
    for name, near in (("Mx", x - 1.8), ("My", y - 1.2), ("Mz", z)):
        field = rng.normal(0, 2) + 80 * np.tanh(near / 2)
        columns[f"table.{name}"] = _rows(field, 8.0, rng)
    warming = 28 + rng.normal(0, 1) + 0.01 * motion.time_s
    columns["frame.Temperature"] = _rows(warming, 0.05, rng)
    return columns


def _rough(num_steps: int, spread: float, rng: np.random.Generator) -> Floats:
    """A slowly varying factor around 1: the material is not even."""
    knots = np.arange(0, num_steps + 25, 25)
    return np.interp(np.arange(num_steps), knots, 1 + rng.normal(0, spread, len(knots)))


def _rows(signal: Floats, noise: float, rng: np.random.Generator) -> Floats:
    """The mean over the steps of each row, and the instrument's noise."""
    num_rows = len(signal) // STEPS_PER_ROW
    mean = signal[: num_rows * STEPS_PER_ROW].reshape(num_rows, STEPS_PER_ROW).mean(axis=1)
    return mean + rng.normal(0.0, noise, num_rows)
