"""Champion and challenger on recorded requests: what is compared with what, and the verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_jobs.errors import DataError
from ray_jobs.models.gcode_spec import ValueTolerance
from ray_jobs.monitoring.comparison import LiveComparison, compare
from ray_jobs.monitoring.judging import Judge, judge_of
from ray_jobs.monitoring.outcomes import Outcomes, read_outcomes
from ray_jobs.monitoring.records import Record

START = datetime(2026, 5, 6, tzinfo=UTC)
FIRE = judge_of("fire", lambda record: 0.5)
WASTE = judge_of("waste", lambda record: 0.5)
GCODE = judge_of("gcode", lambda record: 0.5, ValueTolerance(F="5%", X=0.1).parsed())


def asked(
    number: int,
    role: Any = "champion",
    *,
    shadow: bool = False,
    status: int = 200,
    version: str | None = None,
    num_rows: int | None = None,
    **outputs: Sequence[Any],
) -> Record:
    version = version or ("1" if role == "champion" else "2")
    columns = list(outputs.values())
    rows = num_rows if num_rows is not None else (len(columns[0]) if columns else 0)
    time = START + timedelta(seconds=number)
    seconds = 0.010 if role == "champion" else 0.020
    return Record(
        time, f"r{number}", role, shadow, version, f"d{version}", status, seconds, rows,
        {} if outputs else None, outputs or None,
    )  # fmt: skip


def pair(number: int, first: float, second: float) -> list[Record]:
    """A request of fire, and its shadow."""
    return [
        asked(number, probability=[first]),
        asked(number, "challenger", shadow=True, probability=[second]),
    ]


def truth(labels: dict[str, str]) -> Outcomes:
    return Outcomes({request_id: {None: label} for request_id, label in labels.items()})


def simulated(mode: str, num: int, seed: int = 0) -> tuple[list[Record], Outcomes]:
    """Fires of which the champion sees 70 %, the challenger 95 %."""
    rng = np.random.default_rng(seed)
    records, labels = [], {}
    for number in range(num):
        is_fire = rng.random() < 0.5
        labels[f"r{number}"] = str(int(is_fire))
        sees = [rng.random() < share for share in (0.7, 0.95)]
        first, second = (0.9 if is_fire == seen else 0.1 for seen in sees)
        if mode == "shadow":
            records += pair(number, first, second)
        elif rng.random() < 0.5:
            records.append(asked(number, "challenger", probability=[second]))
        else:
            records.append(asked(number, probability=[first]))
    return records, truth(labels)


@pytest.mark.parametrize("mode", ["shadow", "split"])
def test_a_better_challenger_is_told_and_by_how_much(mode: str) -> None:
    records, outcomes = simulated(mode, 1500)
    found = compare(records, FIRE, outcomes=outcomes)
    assert (found.mode, found.verdict) == (mode, "challenger")
    accuracy, brier, errors, share = found.differences
    assert accuracy.measure == "accuracy"
    assert accuracy.estimate.low < 0.25 < accuracy.estimate.high
    assert brier.winner == "challenger"  # which is lower
    assert brier.estimate.high < 0
    assert errors.winner is None
    assert (share.measure, share.winner) == ("share of fire", None)
    assert found.champion.means["accuracy"].value == pytest.approx(0.7, abs=0.06)
    assert (found.champion.p50_s, found.challenger.p99_s) == (0.010, 0.020)
    num_alone = 1500 - found.num_judged  # before both answered
    assert found.num_unused == num_alone <= (0 if mode == "shadow" else 5)
    sides = [side.means["accuracy"].num for side in (found.champion, found.challenger)]
    to_each = f"requests, {sides[0]} to the champion and {sides[1]} to the challenger"
    kind = "pairs" if mode == "shadow" else to_each
    assert found.sentence.startswith("decided: the challenger (version 2) is better in accuracy by")
    assert found.sentence.endswith(f"after {found.num_judged:,} {kind}")
    assert json.loads(found.to_json())["verdict"] == "challenger"


def test_a_worse_one_is_told_too_and_few_decide_nothing() -> None:
    records, outcomes = simulated("shadow", 1500)
    swapped = [
        asked(int(r.request_id[1:]), "champion" if r.is_shadow else "challenger",
              shadow=not r.is_shadow, **r.outputs)
        for r in records if r.outputs
    ]  # fmt: skip
    found = compare(swapped, FIRE, outcomes=outcomes)
    assert found.verdict == "champion"
    low, high = found.deciding.estimate.low, found.deciding.estimate.high
    by = f"{-found.deciding.estimate.value:.4f} ({-high:.4f} to {-low:.4f})"
    assert f"the champion (version 1) is better in accuracy by {by} after" in found.sentence
    few = compare(records[:20], FIRE, outcomes=outcomes)
    assert few.verdict == "undecided"
    assert few.sentence.startswith(
        "not decided yet after 10 pairs: the challenger's accuracy less the champion's is between -"
    )
    assert few.num_unused == 1490


def test_without_outcomes_nobody_is_right() -> None:
    found = compare(simulated("shadow", 300)[0], FIRE)
    assert [each.measure for each in found.differences] == ["errors", "share of fire"]
    assert found.sentence.endswith("; which predictions are right is not known: give --outcomes")
    others = compare(simulated("shadow", 300)[0], FIRE, outcomes=truth({"other": "1"}))
    assert others.sentence.endswith(
        "; none of the outcomes is of a request that was recorded meanwhile"
    )


@pytest.mark.parametrize("mode", ["shadow", "split"])
def test_what_has_turned_round_is_not_decided(mode: str) -> None:
    """The intervals are of a mean that stays: no verdict against the very values on the table."""
    records, labels = simulated(mode, 600)
    more, _ = simulated(mode, 3000, seed=1)
    worse = [replace(r, outputs={"probability": [0.5]}) if r.variant == "challenger" else r
             for r in more]  # fmt: skip
    later = [
        replace(r, time=r.time + timedelta(days=1), request_id=f"later{r.request_id}")
        for r in worse
    ]
    truths = {f"later{r.request_id}": {None: "0"} for r in more}
    both = Outcomes({**labels.labels, **truths})
    assert compare(records, FIRE, outcomes=labels).verdict == "challenger"
    found = compare([*records, *later], FIRE, outcomes=both)
    assert found.deciding.estimate.value < 0
    assert found.verdict == "undecided"
    assert "the difference in accuracy has changed meanwhile" in found.sentence
    assert "with --since" in found.sentence


def test_errors_decide_too() -> None:
    records = []
    for number in range(400):
        records += [
            asked(number, probability=[0.1]),
            asked(number, "challenger", shadow=True, status=500 if number % 4 == 0 else 200,
                  **({} if number % 4 == 0 else {"probability": [0.1]})),
        ]  # fmt: skip
    found = compare(records, FIRE)
    assert found.verdict == "champion"
    assert (found.challenger.num_errors, found.challenger.num_requests) == (100, 400)
    assert found.agreement is not None
    assert (found.agreement.value, found.agreement.num) == (1.0, 300)  # of those it answered


def test_the_decision_is_of_each_models_own_threshold() -> None:
    judge = judge_of("fire", lambda record: 0.5 if record.version == "1" else 0.8)
    records = [record for number in range(50) for record in pair(number, 0.6, 0.6)]
    found = compare(records, judge)
    assert found.champion.shares == {"fire": 1.0}
    assert found.challenger.shares == {"no fire": 1.0}
    assert found.agreement is not None
    assert found.agreement.value == 0


# What is compared


def test_of_an_id_the_first_and_of_the_versions_the_last() -> None:
    old = [asked(number, version="0", probability=[0.9]) for number in range(5)]
    older = [asked(n, "challenger", version="1", shadow=True, probability=[0.9]) for n in range(5)]
    lonely = [asked(number, probability=[0.9]) for number in range(10, 20)]
    pairs = [record for number in range(30, 40) for record in pair(number, 0.1, 0.1)]
    again = pair(30, 0.9, 0.9)
    found = compare([*old, *older, *lonely, *pairs, *again], FIRE)
    assert (found.champion.version, found.challenger.version) == ("1", "2")
    assert (found.champion.num_requests, found.challenger.num_requests) == (10, 10)
    assert found.champion.shares == {"no fire": 1.0}


def test_a_split_begins_when_both_answer() -> None:
    alone = [asked(number, probability=[0.9]) for number in range(100)]
    both = [
        asked(number, "challenger" if number % 2 else "champion", probability=[0.1])
        for number in range(100, 140)
    ]
    found = compare([*alone, *both], FIRE)
    assert (found.champion.num_requests, found.challenger.num_requests) == (19, 20)
    assert found.start == START + timedelta(seconds=101)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no request to a champion is recorded; deploy with deployment.challenger"),
        ([asked(1, probability=[0.1])], "no request to a challenger is recorded"),
        (
            [asked(1, probability=[0.1]), asked(2, "challenger", shadow=True, probability=[0.1])],
            "no request was recorded while both versions answered; wait for more, or raise "
            "deployment.record.share",
        ),
    ],
)
def test_nothing_to_compare(records: list[Record], message: str) -> None:
    with pytest.raises(DataError, match=message):
        compare(records, FIRE)


def test_rows_of_a_request_count_as_one() -> None:
    records = [
        asked(0, probability=[0.9, 0.1, 0.1, 0.1]),
        asked(0, "challenger", shadow=True, probability=[0.1, 0.1, 0.1, 0.1]),
        *pair(1, 0.9, 0.9),
    ]
    rows = {0: "1", 1: "1", 2: "0", 9: "1"}  # of the last row nothing is known: there is none
    found = compare(records, FIRE, outcomes=Outcomes({"r0": rows, "r1": {0: "1"}}))
    assert found.champion.means["accuracy"].num == 2
    assert found.champion.means["accuracy"].value == pytest.approx((2 / 3 + 1) / 2)
    assert found.agreement is not None
    assert found.agreement.value == pytest.approx((0.75 + 1) / 2)
    # of several rows it must be said which is meant
    unknown = compare(records, FIRE, outcomes=truth({"r0": "1", "r1": "1"}))
    assert (unknown.num_judged, unknown.num_unused) == (1, 1)


def test_pictures() -> None:
    records = [
        record
        for number in range(30)
        for record in (
            asked(number, label=["glass"], confidence=[0.5]),
            asked(number, "challenger", shadow=True, label=["paper"], confidence=[0.5]),
        )
    ]
    found = compare(records, WASTE, outcomes=truth({f"r{n}": "paper" for n in range(30)}))
    assert found.verdict == "challenger"
    assert (found.champion.shares, found.challenger.shares) == ({"glass": 1.0}, {"paper": 1.0})


def test_lines_of_gcode_are_of_rows_that_end_a_window() -> None:
    said: dict[str, Sequence[Any]] = {
        "command": ["G1", "G2"],
        "parameters": ["FX", "none"],
        **{name: [None, None] for name in "RYZ"},
        "F": [205.0, None],
        "X": [9.95, None],
    }
    records = [
        asked(0, num_rows=7, **said),
        asked(0, "challenger", shadow=True, num_rows=7, **said),
    ]
    rows: dict[int | None, str] = {4: "G0", 5: "G1 X10 F200", 6: "g2 x1"}
    found = compare(records, GCODE, outcomes=Outcomes({"r0": rows}))
    assert found.champion.means["accuracy"].value == 0.5  # row 4 ends no window
    assert found.champion.shares == {"G1 FX": 0.5, "G2 none": 0.5}


def test_requests_that_were_not_timed_have_no_latency() -> None:
    timed = pair(0, 0.2, 0.3)
    captured = [replace(record, seconds=math.nan) for record in pair(1, 0.2, 0.3)]
    found = compare([*timed, *captured], FIRE)
    assert (found.champion.p50_s, found.challenger.p99_s) == (0.010, 0.020)
    found = compare(captured, FIRE)
    assert (found.champion.p50_s, found.challenger.p99_s) == (None, None)
    json.loads(found.to_json(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("line", "is_right"),
    [
        ("G1 X10 F200", True),
        ("G1 F195 X-10", False),
        ("G1 X10.2 F200", False),  # by more than 0.1
        ("G1 X10 F190", False),  # by more than 5 %
        ("G1 X10 F200 Z0", False),
        ("G2 X10 F200", False),
    ],
)
def test_a_line_is_right_within_the_models_tolerance(line: str, is_right: bool) -> None:
    said: dict[str, Sequence[Any]] = {"command": ["G1"], "parameters": ["FX"], "F": [205.0]}
    said |= {"X": [9.95], **{name: [None] for name in "RYZ"}}
    records = [asked(0, **said), asked(0, "challenger", shadow=True, **said)]
    found = compare(records, GCODE, outcomes=truth({"r0": line}))
    assert found.champion.means["accuracy"].value == float(is_right)


@pytest.mark.parametrize(
    ("judge", "label", "message"),
    [
        (FIRE, "maybe", "the outcome 'maybe' of request 'r0': it is none of 1 and 0"),
        (GCODE, "X10", "it names no command; give the one that was in force, as in G1 X10"),
        (GCODE, "G1 X", "the outcome 'G1 X' of request 'r0': "),
    ],
)
def test_a_label_that_is_none(judge: Judge, label: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        compare(pair(0, 0.1, 0.1), judge, outcomes=truth({"r0": label}))
    assert message in str(caught.value)


def test_outputs_of_another_kind_are_not_read() -> None:
    records = [*pair(0, 0.1, 0.1), asked(1, label=["x"]), *pair(2, 0.1, 0.9)[:1]]
    records += [asked(n, "challenger", shadow=True, probability=["x"]) for n in (1, 2)]
    found = compare(records, FIRE)
    assert found.champion.num_requests == 3
    assert found.agreement is not None
    assert found.agreement.num == 1


# Looking early


def test_in_the_order_of_the_outcomes_so_that_an_early_look_is_of_the_first() -> None:
    """A difference that was decided stays decided, whatever comes later."""
    records, outcomes = simulated("shadow", 400)
    late = {f"r{n}": "1" if (n % 2 == 0) else "0" for n in range(400, 420)}
    records += [r for n in range(400, 420) for r in pair(n, 0.9 if n % 2 == 0 else 0.1, 0.5)]
    looks = [
        compare(records, FIRE, outcomes=Outcomes(dict(labels)))
        for labels in (
            list(outcomes.labels.items()),
            [*outcomes.labels.items(), *truth(late).labels.items()],
        )
    ]
    lows = [look.deciding.estimate.low for look in looks]
    assert 0 < lows[0] <= lows[1]


# Outcomes


def written(folder: Path, ending: str, rows: list[dict[str, Any]]) -> str:
    path = folder / f"outcomes{ending}"
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines), encoding="utf-8-sig")
    return str(path)


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_tables_of_outcomes(tmp_path: Path, ending: str) -> None:
    rows = [
        {"request_id": "00123", "row": 1, "label": 1},
        {"request_id": "1e5", "row": 0, "label": 0},
        {"request_id": "00123", "row": 0, "label": 0},
        {"request_id": "1e5", "row": 0, "label": 0},  # said twice
    ]
    found = read_outcomes(written(tmp_path, ending, rows))
    assert found.labels == {"00123": {1: "1", 0: "0"}, "1e5": {0: "0"}}
    assert list(found.labels) == ["00123", "1e5"]
    alone = read_outcomes(written(tmp_path, ending, [{"request_id": "a", "label": "G1 X1"}]))
    assert alone.labels == {"a": {None: "G1 X1"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "there is no row; give request_id and label"),
        ("request_id,label\n", "there is no row"),
        ("id,label\na,1\n", "row 1 has no request_id; give request_id and label"),
        ("request_id,label\na,1\nb,\n", "row 2 has no label"),
        ("request_id,label,row\na,1,x\n", "row 1: row 'x' is no number from 0"),
        ("request_id,label,row\na,1,-1\n", "row '-1' is no number from 0"),
        (
            "request_id,label\na,1\na,0\n",
            "row 2 says '0' of request 'a', an earlier one '1'; leave one of them out",
        ),
    ],
)
def test_tables_that_are_none(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError) as caught:
        read_outcomes(str(tmp_path / "a.csv"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", b"", "outcomes must be one of .csv, .parquet, .jsonl"),
        ("absent.csv", None, "no such file"),
        ("a.parquet", b"no", "cannot be read: "),
        ("a.jsonl", b"[1]", "cannot be read: a line is no object"),
        ("a.csv", b"\xff\xfe", "cannot be read: "),
    ],
)
def test_files_that_are_none(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_outcomes(str(tmp_path / name))
    assert message in str(caught.value)


def test_it_stays_quick() -> None:
    """A day's worth of pairs, in one go."""
    found = compare(simulated("shadow", 20_000)[0], FIRE)
    assert isinstance(found, LiveComparison)
    assert found.champion.num_requests == 20_000
