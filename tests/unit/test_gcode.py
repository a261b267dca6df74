from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.data.machine_logs.gcode import (
    PARAMETERS,
    Line,
    MalformedGcode,
    parse_line,
    resolve_modal,
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("G1 X1.5 Y-2", Line("G1", {"X": 1.5, "Y": -2.0})),
        ("G1X1.5Y-2", Line("G1", {"X": 1.5, "Y": -2.0})),
        ("g01 x 1.5 y-2.", Line("G1", {"X": 1.5, "Y": -2.0})),
        ("G00Z.6", Line("G0", {"Z": 0.6})),
        ("N120 G2 X1 Y2 R0.083", Line("G2", {"X": 1.0, "Y": 2.0, "R": 0.083}, number=120)),
        ("G3 X1 I0.5 J-.25", Line("G3", {"X": 1.0}, {"I": 0.5, "J": -0.25})),
        ("X-0.1254", Line(None, {"X": -0.1254})),
        ("F22.", Line(None, {"F": 22.0})),
        ("G1 Z0.025 F7.3 (plunge) ; slowly", Line("G1", {"Z": 0.025, "F": 7.3})),
        ("(a comment) G1 (another) X+1", Line("G1", {"X": 1.0})),
        ("G53 G0 Z0.", Line("G0", {"Z": 0.0})),
        ("G90 G54 G1 X1", Line("G1", {"X": 1.0})),
        ("G90 X5", Line(None, {"X": 5.0})),
        ("X5 M8", Line(None, {"X": 5.0})),
        ("G28 X0", Line("G28", {"X": 0.0})),
        ("G38.2 Z-1 F3", Line("G38.2", {"Z": -1.0, "F": 3.0})),
        ("M30", Line("M30")),
        ("M03 S12000", Line("M3", {}, {"S": 12000.0})),
        ("T2", Line("T2", {}, {"T": 2.0})),
        ("T2 M6", Line("M6", {}, {"T": 2.0})),
        ("G20", Line("G20")),
        ("G4 P0.5", Line("G4", {}, {"P": 0.5})),
        ("/G1 X1", Line("G1", {"X": 1.0})),
        ("G1 X1*71", Line("G1", {"X": 1.0})),
        ("%", Line()),
        ("", Line()),
        ("  (only a comment)", Line()),
        ("N7", Line(number=7)),
    ],
)
def test_lines_are_parsed(text: str, line: Line) -> None:
    assert parse_line(text) == line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("G1 X", "'X': no number follows the letter"),
        ("G1 X1.2.3", "'X1.2.3': '1.2.3' is not a number"),
        ("G1 X1-2", "'X1-2': '1-2' is not a number"),
        ("G1 X#3", "'X#3': '#3' is not a number"),
        ("G1 X1 X2", "'X2': X is there twice"),
        ("N1 N2 G1", "'N2': N is there twice"),
        ("N1.5 G1", "'N1.5': a line number is a whole number"),
        ("G-1", "'G-1': a G word is not negative"),
        ("G0 G1 X1", "'G1': the line has another motion, 'G0'"),
        ("12 G1", "'12': a word begins with a letter"),
        ("G1 (open X1", "'(open X1': the comment is not closed"),
        ("G1 X1) Y2", "') Y2': the comment was never opened"),
        ("G1 Xé", "'XÉ': 'É' is not a number"),
    ],
)
def test_malformed_words_are_named(text: str, message: str) -> None:
    with pytest.raises(MalformedGcode) as raised:
        parse_line(text)
    assert str(raised.value) == message


def test_modal_commands_by_hand() -> None:
    lines = [
        "X1",  # nothing is in force yet
        "G0 Z0.6",
        "X1 Y2",
        "G1 Z0.02 F7.3",
        "X3",
        "M8",  # no motion: it does not stay in force
        "Y4",
        "(comment)",
        "G2 X1 Y1 R0.5",
        "X2 Y2 R0.5",
        "M30",
        "",
    ]
    commands = [target.command for target in resolve_modal(lines)]
    assert commands == [
        None, "G0", "G0", "G1", "G1", "M8", "G1", None, "G2", "G2", "M30", None
    ]  # fmt: skip
    targets = resolve_modal(lines)
    assert dict(targets[9].values) == {"X": 2.0, "Y": 2.0, "R": 0.5}, "what the line sets, no more"
    assert [target.is_stated for target in targets[:4]] == [False, True, False, True]


numbers = st.decimals(min_value=-99, max_value=99, places=4).map(float)


@given(
    command=st.sampled_from(["G0", "G1", "G2", "G3", "G01", "g1", None]),
    values=st.dictionaries(st.sampled_from(PARAMETERS), numbers, min_size=1),
    number=st.none() | st.integers(0, 99999),
    space=st.sampled_from(["", " ", "\t"]),
    comment=st.sampled_from(["", "(a G1 X9)", "; G0 Y9"]),
    lower=st.booleans(),
)
def test_written_lines_are_read_back(
    command: str | None,
    values: dict[str, float],
    number: int | None,
    space: str,
    comment: str,
    lower: bool,
) -> None:
    words = [f"N{number}"] if number is not None else []
    words += [command] if command else []
    words += [f"{name}{value:.4f}" for name, value in values.items()]
    text = space.join(words) + comment
    line = parse_line(text.lower() if lower else text)
    expected = command.upper().replace("G01", "G1") if command else None
    assert line == Line(expected, values, {}, number)


@given(st.text(alphabet="GXYZMNTF0123456789.-+ ();%/*", max_size=30))
def test_any_text_is_a_line_or_malformed(text: str) -> None:
    try:
        line = parse_line(text)
    except MalformedGcode as error:
        assert str(error).count("\n") == 0  # noqa: PT017
    else:
        assert set(line.values) <= set(PARAMETERS)
        assert not set(line.other) & {*PARAMETERS, "G", "M", "N"}
