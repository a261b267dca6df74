"""Targets of rows: the command in force, the parameters that the line sets, and their values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.machine_logs.gcode import PARAMETERS, is_motion, resolve_modal
from ray_jobs.data.machine_logs.runs import Run

MAX_CODES = 32  # a modal code has few values
MIN_CODE_ROWS = 10  # rows of a command that prove what its code is
MIN_AGREEMENT = 0.99


@dataclass(frozen=True)
class RowTargets:
    """What each row of a run is executing. Shapes: [N] rows; P parameters as in PARAMETERS."""

    command: list[str | None]  # None: no line, or none was in force
    is_stated: NDArray[np.bool_]  # [N] the line itself names the command
    values: NDArray[np.float64]  # [N, P] NaN: the line does not set it
    line: NDArray[np.int64]  # [N] equal codes: equal text; -1: no line

    @property
    def sets(self) -> NDArray[np.bool_]:
        """Which parameters each row's line sets. Shape [N, P]."""
        return ~np.isnan(self.values)

    @property
    def is_last_of_line(self) -> NDArray[np.bool_]:
        """Rows after which another line comes: the machine has all but arrived. Shape [N]."""
        return np.r_[self.line[1:] != self.line[:-1], True][: len(self.line)]


@dataclass(frozen=True)
class ModalCode:
    """A column in which the controller logs the command in force."""

    column: str
    commands: Mapping[float, str]  # its values -> motion commands
    agreement: float  # share of the rows that state a command
    num_rows: int


def row_targets(run: Run) -> RowTargets:
    """The targets of a run's rows; a line without a command inherits the last one seen."""
    targets = resolve_modal(run.gcode)
    values = np.full((len(run), len(PARAMETERS)), np.nan)
    for row, target in enumerate(targets):
        for j, name in enumerate(PARAMETERS):
            values[row, j] = target.values.get(name, np.nan)
    codes = {text: code for code, text in enumerate(dict.fromkeys(filter(None, run.gcode)))}
    return RowTargets(
        command=[target.command for target in targets],
        is_stated=np.array([target.is_stated for target in targets], bool),
        values=values,
        line=np.array([codes.get(text, -1) for text in run.gcode], np.int64),
    )


def find_modal_code(runs: Sequence[Run], targets: Sequence[RowTargets]) -> ModalCode | None:
    """The column whose values stand one to one for the commands that lines state, if there is one.

    A log has one row where a controller runs many short lines: the line that set the mode is often
    between two rows, and the last one seen is then not the one in force. Of the Bantam logs' lines
    without a command, all that the code calls arcs state a radius and no other does; by the last
    one seen, 2,900 lines without a radius would be arcs.
    """
    best = None
    for column in sorted(set().union(*(run.columns for run in runs))):
        counts: dict[float, Counter[str]] = {}
        for run, of_run in zip(runs, targets, strict=True):
            if column not in run.columns:
                continue
            stated = of_run.is_stated & ~np.isnan(run.columns[column])
            for row in np.flatnonzero(stated).tolist():
                command = of_run.command[row]
                assert command is not None
                counts.setdefault(run.columns[column][row], Counter())[command] += 1
            if len(counts) > MAX_CODES:
                break
        found = _code(column, counts)
        if found and (best is None or found.num_rows > best.num_rows):
            best = found
    return best


def _code(column: str, counts: Mapping[float, Counter[str]]) -> ModalCode | None:
    if not 2 <= len(counts) <= MAX_CODES:
        return None
    num_rows = sum(of_value.total() for of_value in counts.values())
    top = {value: of_value.most_common(1)[0] for value, of_value in counts.items()}
    agreement = sum(count for _, count in top.values()) / num_rows
    commands = {value: name for value, (name, _) in top.items() if is_motion(name)}
    totals = sum(counts.values(), Counter[str]())
    frequent = {c for c, count in totals.items() if is_motion(c) and count >= MIN_CODE_ROWS}
    one_to_one = len(set(commands.values())) == len(commands) and frequent <= {*commands.values()}
    if agreement < MIN_AGREEMENT or not one_to_one or len(frequent) < 2:
        return None
    return ModalCode(column, commands, agreement, num_rows)


def apply_modal_code(run: Run, targets: RowTargets, code: ModalCode) -> tuple[RowTargets, int]:
    """Take the logged command for lines that state none; also how many rows that changes."""
    if code.column not in run.columns:
        return targets, 0
    logged = [code.commands.get(value) for value in run.columns[code.column].tolist()]
    command = [
        seen if stated or line < 0 or now is None else now
        for seen, stated, line, now in zip(
            targets.command, targets.is_stated, targets.line, logged, strict=True
        )
    ]
    num_changed = sum(a != b for a, b in zip(command, targets.command, strict=True))
    return replace(targets, command=command), num_changed
