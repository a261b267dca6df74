"""Reading G-code: one line at a time, and modal commands over the lines of a program.

The grammar is that of RS274/NGC (Kramer, Proctor, Messina: The NIST RS274/NGC Interpreter, Version
3, NISTIR 6556, 2000, section 3), in any case and with or without spaces, with the comments of
later controllers (`;`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

PARAMETERS = ("F", "R", "X", "Y", "Z")  # what a line sets that a model is asked for

# Motion commands stay in force until another one comes (NISTIR 6556, table 4, group 1).
_MOTION = frozenset(
    ["G0", "G1", "G2", "G3", "G5", "G33", "G38.2", "G38.3", "G38.4", "G38.5", "G73", "G76"]
    + [f"G{number}" for number in range(80, 90)]
)
# These use a line's axis words themselves (group 0).
_ONCE = frozenset(["G4", "G10", "G28", "G30", "G92", "G92.1", "G92.2", "G92.3"])
_AXIS_WORDS = frozenset("XYZABCUVWIJKR")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)")
_COMMENT = re.compile(r"\([^()]*\)")
_CHECKSUM = re.compile(r"\*\d+$")


class MalformedGcode(ValueError):
    """A line that is no G-code. Names the word and what is wrong with it."""


@dataclass(frozen=True)
class Line:
    """The words of one line."""

    command: str | None = None  # what the line says to do: "G1", "M30", "T2"; None: nothing new
    values: Mapping[str, float] = field(default_factory=dict)  # of PARAMETERS, in machine units
    other: Mapping[str, float] = field(default_factory=dict)  # I J K P Q S T ...
    number: int | None = None  # the N word

    @property
    def is_empty(self) -> bool:
        """Whether the line asks for nothing: blank, a comment, a line number alone."""
        return self.command is None and not self.values and not self.other


@dataclass(frozen=True)
class Target:
    """What a line makes the machine do."""

    command: str | None  # modal commands resolved; None: an empty line, or none was in force
    values: Mapping[str, float]  # of PARAMETERS, those that the line sets
    is_stated: bool  # whether the line itself names the command


@functools.lru_cache(maxsize=1 << 16)
def parse_line(text: str) -> Line:
    """Parse one line.

    A motion word is the command whatever else the line says (`G53 G0 Z0` is a G0). A line with
    axis words and no motion word has none (`G90 X5`, `X5 M8`): the motion in force goes on.

    Raises:
        MalformedGcode: a word is not a letter and a number, or is there twice.
    """
    values: dict[str, float] = {}
    other: dict[str, float] = {}
    commands: list[str] = []
    number = None
    for word in _words(text):
        letter, value = word[0], _value(word)
        if letter in "GM":
            if value < 0:
                raise MalformedGcode(f"{word!r}: a {letter} word is not negative")
            commands.append(f"{letter}{value:g}")
        elif letter == "N":
            if value < 0 or value != int(value):
                raise MalformedGcode(f"{word!r}: a line number is a whole number")
            if number is not None:
                raise MalformedGcode(f"{word!r}: N is there twice")
            number = int(value)
        else:
            into = values if letter in PARAMETERS else other
            if letter in into:
                raise MalformedGcode(f"{word!r}: {letter} is there twice")
            into[letter] = value
    return Line(_command(commands, values, other), values, other, number)


def resolve_modal(lines: Iterable[str]) -> list[Target]:
    """What each line does: one without a command inherits the last motion command.

    Raises:
        MalformedGcode: as `parse_line`.
    """
    targets = []
    in_force: str | None = None
    for text in lines:
        line = parse_line(text)
        if line.command in _MOTION:
            in_force = line.command
        inherited = None if line.is_empty else in_force
        targets.append(Target(line.command or inherited, line.values, line.command is not None))
    return targets


def is_motion(command: str | None) -> bool:
    """Whether a command stays in force for the lines after it."""
    return command in _MOTION


def _words(text: str) -> list[str]:
    """A line cut before each letter, without comments, blanks, checksum and program marks."""
    code = _COMMENT.sub("", text.partition(";")[0])
    for sign, what in (("(", "is not closed"), (")", "was never opened")):
        if sign in code:
            raise MalformedGcode(f"{code[code.index(sign) :].strip()!r}: the comment {what}")
    code = "".join(code.upper().split()).strip("%").removeprefix("/")
    words = re.findall(r"[A-Z][^A-Z]*|^[^A-Z]+", _CHECKSUM.sub("", code))
    if words and not words[0][0].isalpha():
        raise MalformedGcode(f"{words[0]!r}: a word begins with a letter")
    return words


def _value(word: str) -> float:
    text = word[1:]
    if not text:
        raise MalformedGcode(f"{word!r}: no number follows the letter")
    if not _NUMBER.fullmatch(text):
        raise MalformedGcode(f"{word!r}: {text!r} is not a number")
    return float(text)


def _command(
    commands: list[str], values: Mapping[str, float], other: Mapping[str, float]
) -> str | None:
    motions = [command for command in commands if command in _MOTION]
    if len(motions) > 1:
        raise MalformedGcode(f"{motions[1]!r}: the line has another motion, {motions[0]!r}")
    once = [command for command in commands if command in _ONCE]
    for chosen in (motions, once):
        if chosen:
            return chosen[0]
    if _AXIS_WORDS & (values.keys() | other.keys()):
        return None
    if commands:
        return next((command for command in commands if command[0] == "M"), commands[0])
    return f"T{other['T']:g}" if "T" in other else None
