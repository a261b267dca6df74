"""The report of a decoder of G-code: what it says beside its rivals, and that it stands alone."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from report_run import floats_in
from test_report import Page

from ray_jobs.gcode_metrics import (
    HEAD_METRICS,
    GcodeLines,
    bootstrap_intervals,
    bootstrap_margin,
    command_scores,
    constant_lines,
)
from ray_jobs.gcode_predictions import GcodePredictions
from ray_jobs.reporting.gcode_figures import MAX_POINTS, UNSEEN, command_matrix
from ray_jobs.reporting.gcode_report import render_gcode_report
from ray_jobs.reporting.gcode_tables import tolerance_text
from ray_jobs.reporting.scores import landmarks, no_skill, sign
from ray_jobs.reporting.verdict import Finding, assess
from ray_jobs.result import (
    ColumnLeak,
    DataSummary,
    JobResult,
    LeakageReport,
    MemberResult,
    MetricValue,
    Objective,
    SplitSummary,
    SweepSummary,
)
from ray_jobs.workloads.gcode import GcodeSpec

EVIL = "</style><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"
STARTED = datetime(2025, 3, 4, 9, 12, 3, tzinfo=UTC)
COMMANDS = ("G0", "G1", "G2", "M30")
OBJECTIVE = Objective(metric="composite_acc", mode="max")
BASE: dict[str, Any] = {
    "workload": "gcode",
    "objective": OBJECTIVE.model_dump(),
    "data": {"runs": 12},
    "train": {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3},
}
SPEC = GcodeSpec.model_validate(BASE)
PUBLISHED = GcodeSpec.model_validate({**BASE, "data": {"runs": 12, "split": "published"}})
TOLERANCE = SPEC.value_tolerance.parsed()


def true_lines(num_windows: int, rng: np.random.Generator) -> GcodeLines:
    """Lines that set F never, R seldom, and the others often; some commands train lacks."""
    is_set = rng.random((num_windows, 5)) < [0.0, 0.1, 0.6, 0.6, 0.3]
    values = rng.uniform(-2, 4, (num_windows, 5))
    command = rng.choice([-1, 0, 1, 2], num_windows, p=[0.05, 0.25, 0.4, 0.3])
    return GcodeLines(command, is_set, np.where(is_set, values, np.nan))


def said_of(true: GcodeLines, skill: float, rng: np.random.Generator) -> GcodeLines:
    """What a model says that is right with probability `skill`, in each head."""
    num, num_parameters = true.param_type.shape
    guess = rng.integers(0, len(COMMANDS), num)
    knows = (rng.random(num) < skill) & (true.command >= 0)
    flips = (rng.random((num, 1)) > skill) & (np.arange(num_parameters) == 4)
    error = np.where(rng.random(true.param_value.shape) < skill, 1e-4, 0.5)
    return GcodeLines(
        np.where(knows, true.command, guess),
        true.param_type ^ flips,
        np.nan_to_num(true.param_value) + error,
    )


def make_split(num_windows: int, num_runs: int, seed: int) -> tuple[GcodePredictions, GcodeLines]:
    """A model's predictions, and what the baseline says of the same windows."""
    rng = np.random.default_rng(seed)
    true = true_lines(num_windows, rng)
    group = np.sort(np.arange(num_windows) % num_runs)
    said, baseline = said_of(true, 0.9, rng), said_of(true, 0.6, rng)
    operation = np.full(num_windows, "face", object)
    return (
        GcodePredictions(np.arange(num_windows), group, operation, true, said, COMMANDS),
        baseline,
    )


def make_result(splits: dict[str, tuple[GcodePredictions, GcodeLines]]) -> JobResult:
    metrics: dict[str, Any] = {}
    rivals: dict[str, Any] = {"baseline": {}, "constant": {}}
    for split, (part, baseline) in splits.items():
        fixed: dict[str, Any] = {"groups": part.group, "num_resamples": 60}
        constant = constant_lines(
            GcodeLines(abs(part.true.command), part.true.param_type, part.true.param_value),
            len(part),
        )
        for owner, lines in (
            (metrics, part.predicted),
            (rivals["baseline"], baseline),
            (rivals["constant"], constant),
        ):
            owner[split] = bootstrap_intervals(part.true, lines, TOLERANCE, **fixed)
        margin = bootstrap_margin(part.true, part.predicted, baseline, TOLERANCE, **fixed)
        assert margin is not None
        metrics[split]["composite_acc_margin"] = margin
    return JobResult(
        run_id="20250304-091203-7c1e",
        workload="gcode",
        status="SUCCEEDED",
        objective=OBJECTIVE,
        seed=0,
        metrics=metrics,
        rivals=rivals,
        classes={
            split: command_scores(part.true, part.predicted, COMMANDS)
            for split, (part, _) in splits.items()
        },
        members=[
            MemberResult(
                name="model",
                family="gcode",
                status="SUCCEEDED",
                metrics=metrics,
                best_epoch=2,
                num_epochs=3,
            )
        ],
        data=DataSummary(
            source="simulator:12 runs",
            path="datasets/gcode-1",
            digest="ab" * 32,
            features=["x_motor", "spindle"],
            label="command",
            classes=list(COMMANDS),
            splits={
                split: SplitSummary(
                    num_rows=len(part),
                    num_groups=len(set(part.group.tolist())),
                    class_counts={"G0": 3, "G1": len(part) - 3},
                    digest=split * 20,
                )
                for split, (part, _) in splits.items()
            },
            grouped_by="run",
            leakage=LeakageReport(
                columns=[
                    ColumnLeak(column="feed", target="F", refused=True, evidence="is 25.4 x F"),
                    ColumnLeak(column="mpox", target="X", refused=False, evidence="is X plus 2"),
                ],
                excluded_columns={"utc": "a clock"},
            ),
            warnings=["1 columns give a target away and are left out: 'feed'"],
        ),
        seconds={"train": 20.0},
        warnings=["1 columns give a target away and are left out: 'feed'"],
        started_at=STARTED,
    )


HISTORY: list[dict[str, Any]] = [
    {
        "epoch": epoch,
        "train_loss": 3 / epoch,
        "val_loss": 3.2 / epoch,
        "composite_acc": 0.1 * epoch,
        "learning_rate": 1e-3 / epoch,
        **dict.fromkeys(HEAD_METRICS[1:], 0.2 * epoch),
        **{f"train_{name}": 0.3 * epoch for name in HEAD_METRICS[1:]},
    }
    for epoch in (1, 2, 3)
]


@pytest.fixture(scope="module")
def splits() -> dict[str, tuple[GcodePredictions, GcodeLines]]:
    return {"val": make_split(200, 8, seed=1), "test": make_split(1200, 10, seed=2)}


@pytest.fixture(scope="module")
def test(splits: Any) -> GcodePredictions:
    return splits["test"][0]


@pytest.fixture(scope="module")
def result(splits: Any) -> JobResult:
    return make_result(splits)


@pytest.fixture(scope="module")
def html(result: JobResult, test: GcodePredictions) -> str:
    return render_gcode_report(result, SPEC, test=test, history=HISTORY)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def words(page: Page) -> str:
    return " ".join(page.text.split())


def bare(result: JobResult, spec: GcodeSpec = SPEC) -> Page:
    return Page(render_gcode_report(result, spec, test=None, history=[]))


def shown(value: MetricValue | None) -> str:
    if value is None:
        return "—"
    known = value.low is not None
    interval = f"{value.low:.3f}–{value.high:.3f}".replace("-", "−") if known else "—"
    return f"{value.value:.3f} {interval}"


# The page


def test_page_needs_nothing_beside_itself_and_its_links_lead_somewhere(
    page: Page, html: str
) -> None:
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not {"src", "srcset", "style"} & attributes.keys(), tag
    assert not re.search(r"https?:|url\(|@import", html)
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert next(a["content"] for _, a in page.tags if "http-equiv" in a) == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    links = [
        str(attributes["href"]).removeprefix("#") for tag, attributes in page.tags if tag == "a"
    ]
    assert links == [id_ for id_ in ids if id_ != "verdict"]


def test_no_number_is_invented(page: Page, result: JobResult) -> None:
    known = floats_in(result.model_dump())
    val, test = result.metrics["val"], result.metrics["test"]
    known += [test[metric].value - val[metric].value for metric in val]
    known.append(test["composite_acc"].high - test["composite_acc"].low)
    numbers = set(re.findall(r"\d+\.\d{3}(?!\d)", page.text))
    assert len(numbers) > 60
    assert numbers <= {f"{abs(value):.3f}" for value in known}


def test_text_from_outside_stays_text(result: JobResult, test: GcodePredictions) -> None:
    leakage = LeakageReport(
        columns=[ColumnLeak(column=EVIL, target=EVIL, refused=False, evidence=EVIL)], notes=[EVIL]
    )
    data = result.data.model_copy(update={"source": EVIL, "leakage": leakage, "warnings": [EVIL]})
    sweep = SWEEP.model_copy(update={"winner": EVIL, "config": {EVIL: EVIL}})
    evil = result.model_copy(update={"data": data, "sweep": sweep, "run_id": EVIL})
    named = GcodePredictions(
        test.row_id, test.group, test.operation, test.true, test.predicted, (EVIL, *COMMANDS[1:])
    )
    page = Page(render_gcode_report(evil, SPEC, test=named, history=HISTORY))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert page.text.count(EVIL) > 10
    assert "<" not in page.style


# The verdict


def test_verdict_tells_of_runs_never_seen(page: Page, result: JobResult) -> None:
    score = result.metrics["test"]["composite_acc"].value
    assert (
        f"The model reads G-code with composite accuracy {score:.3f} on 10 runs it has never seen."
    ) in words(page)
    assert "baseline:" not in words(page)
    data = result.data.model_copy(update={"grouped_by": "operation"})
    assert "on 10 runs of operations it has never seen." in words(
        bare(result.model_copy(update={"data": data}))
    )


def empty(status: Any, **fields: Any) -> JobResult:
    return JobResult(
        run_id="r", workload="gcode", status=status, objective=OBJECTIVE, seed=0,
        started_at=STARTED, **fields,
    )  # fmt: skip


@pytest.mark.parametrize("scored", [True, False])
def test_a_published_split_is_said_to_leak_before_all_else(
    result: JobResult, test: GcodePredictions, scored: bool
) -> None:
    run = result if scored else empty("FAILED", reason="no disk left")
    page = Page(render_gcode_report(run, PUBLISHED, test=test if scored else None, history=HISTORY))
    text = words(page)
    headline = "The split leaks, by design. "
    headline += "The model reads G-code with" if scored else "The run failed: no disk left"
    assert headline in text
    assert "never seen" not in text
    first = text[text.index("warning ") :]
    assert first.startswith("warning data.split=published leaks, by design: overlapping windows")
    assert text.count("warning data.split=published leaks") == 1


@pytest.mark.parametrize(
    ("margin", "text"),
    [
        (
            MetricValue(value=0.02, low=-0.01, high=0.05),
            "The model is not shown to beat the baseline: composite accuracy 0.520 on test "
            "against 0.500, a margin of +0.020 (95 % interval −0.010–0.050).",
        ),
        (
            MetricValue(value=-0.08, low=-0.12, high=-0.04),
            "The model is behind the baseline: composite accuracy 0.520 on test against 0.500, a "
            "margin of −0.080 (95 % interval −0.120–−0.040).",
        ),
        (
            MetricValue(value=0.02),
            "The model is not shown to beat the baseline: composite accuracy 0.520 on test "
            "against 0.500, a margin of +0.020 (there is no interval).",
        ),
        (MetricValue(value=0.02, low=0.01, high=0.03), None),
    ],
)
def test_a_margin_that_may_be_none_is_a_warning(
    result: JobResult, margin: MetricValue, text: str | None
) -> None:
    own = {"composite_acc": MetricValue(value=0.52), "composite_acc_margin": margin}
    run = result.model_copy(
        update={
            "metrics": {"test": own},
            "rivals": {"baseline": {"test": {"composite_acc": MetricValue(value=0.5)}}},
        }
    )
    page = words(bare(run))
    assert f"warning {text}" in page if text else "the baseline: composite" not in page


def test_columns_that_give_targets_away_are_one_sentence_and_named_once(result: JobResult) -> None:
    def leaks(result: JobResult, *warnings: str) -> list[Finding]:
        found = assess(result, warnings).findings
        return [finding for finding in found if "give a target away" in finding.text]

    refused = ColumnLeak(column="posx", target="X", refused=True, evidence="")
    leakage = LeakageReport(columns=[*result.data.leakage.columns, refused])
    run = result.model_copy(update={"data": result.data.model_copy(update={"leakage": leakage})})
    kept = Finding(
        "warning",
        "1 column was found to give a target away (mpox: X) and kept: no score is free of that.",
    )
    assert leaks(run) == [
        kept,
        Finding(
            "note", "2 columns were found to give a target away (feed: F; posx: X) and refused."
        ),
    ]
    told = "2 columns give a target away and are left out: 'feed', 'posx'"
    assert leaks(run, told) == [kept, Finding("warning", told)]


def test_a_model_no_better_than_the_constant_is_called_so(result: JobResult) -> None:
    rivals = {"constant": {"test": {"composite_acc": MetricValue(value=0.9)}}}
    run = result.model_copy(update={"rivals": rivals})
    assert no_skill("composite_acc", run) == 0.9
    assert landmarks("composite_acc", run) == {"No skill": 0.9}
    assert no_skill("command_acc", run) is None
    assert "It is not shown to be better than no skill: Composite accuracy" in words(bare(run))


# The tables


def test_heads_stand_beside_validation_and_their_rivals(page: Page, result: JobResult) -> None:
    names = ("Composite accuracy", "Command accuracy", "Parameter-set accuracy", "Value accuracy")
    for metric, label in zip(HEAD_METRICS, names, strict=True):
        test, val = result.metrics["test"][metric], result.metrics["val"][metric]
        row = page.row(label)
        assert row[1:3] == [shown(test), shown(val)]
        assert row[3] == f"{test.value - val.value:+.3f}".replace("-", "−")
        rivals = [result.rivals[name]["test"][metric] for name in ("baseline", "constant")]
        assert row[4:6] == [shown(value) for value in rivals]
    margin = page.row("Margin over the baseline")
    assert margin[1] == shown(result.metrics["test"]["composite_acc_margin"])


def test_heads_are_drawn_with_their_intervals(html: str, result: JobResult) -> None:
    for owner, metrics in (
        ("on test", result.metrics["test"]),
        (", baseline", result.rivals["baseline"]["test"]),
        (", constant", result.rivals["constant"]["test"]),
    ):
        value = metrics["composite_acc"]
        sep = "" if owner.startswith(",") else " "
        title = f"Composite accuracy{sep}{owner}: {value.value:.3f} ({shown(value).split()[1]})"
        assert f"<title>{title}</title>" in html


def test_parameters_stand_with_their_tolerance_and_errors(
    page: Page, result: JobResult, test: GcodePredictions
) -> None:
    owners = [result.metrics["test"], *(result.rivals[r]["test"] for r in ("baseline", "constant"))]
    for p, (name, tolerance) in enumerate(
        {"F": "5 %", "R": "5 %", "X": "0.1 in", "Y": "0.1 in", "Z": "0.01 in"}.items()
    ):
        row = next(row for row in page.rows if row[:2] == [_with_unit(name), tolerance])
        assert row[2] == f"{test.true.param_type[:, p].sum():,}"
        near = [shown(metrics.get(f"param_value_acc_{name}")) for metrics in owners]
        error = [shown(metrics.get(f"param_value_mae_{name}")) for metrics in owners]
        assert [*row[3:6], *row[7:]] == [*near, *error]
    assert page.row("F in/min")[3] == "—"  # no line sets it


def _with_unit(name: str) -> str:
    return f"{name} in/min" if name == "F" else f"{name} in"


@pytest.mark.parametrize(
    ("value", "text"), [("5%", "5 %"), ("2.5 %", "2.5 %"), (0.1, "0.1 in"), (1.0, "1 in")]
)
def test_tolerances_are_read_out(value: float | str, text: str) -> None:
    assert tolerance_text(value, "in") == text


def test_commands_that_train_lacks_have_a_row_of_their_own(
    html: str, test: GcodePredictions
) -> None:
    matrix, names = command_matrix(test)
    assert names == [*COMMANDS, UNSEEN]
    assert matrix.sum() == len(test)
    assert matrix[:, -1].sum() == 0
    assert matrix[-1].sum() == (test.true.command < 0).sum() > 0
    right = (test.true.command == test.predicted.command).sum()
    assert np.trace(matrix) == right
    for i, j in zip(*np.nonzero(matrix), strict=True):
        assert f"<title>{names[i]} named {names[j]}: {matrix[i, j]} (" in html


def test_commands_stand_by_their_f1(page: Page, result: JobResult) -> None:
    known = {entry.name: entry for entry in result.classes["test"]}
    for name in ("G0", "G1", "G2"):
        row = next(row for row in page.rows if row[0].split()[:1] == [name] and len(row) == 7)
        entry = known[name]
        assert row[1] == f"{entry.f1:.3f}"
        assert row[3:6] == [f"{entry.precision:.3f}", f"{entry.recall:.3f}", f"{entry.support:,}"]
    assert "Without a window in test (1): M30." in words(page)


def test_leaks_are_listed_with_what_they_give_away(page: Page) -> None:
    start = page.rows.index(["Column", "Gives away", "What was done", "Evidence"])
    assert page.rows[start + 1 : start + 3] == [
        ["feed", "F", "refused", "is 25.4 x F"],
        ["mpox", "X", "kept", "is X plus 2"],
    ]
    assert ["utc", "a clock"] in page.rows
    assert "Rows that repeat another" not in page.text  # nobody looked for them


def test_splits_are_told_by_runs_and_commands(page: Page) -> None:
    assert page.row("test")[:4] == ["test", "1,200", "10", "2"]
    assert "Each run stands in one split alone." in words(page)
    assert ["G0", "3", "3"] in page.rows


SWEEP = SweepSummary(
    scheduler="asha",
    num_trials=24,
    num_failed=1,
    num_stopped=18,
    num_epochs=1900,
    num_full_epochs=4800,
    winner="t07",
    config={"model.hidden_dim": 256, "train.learning_rate": 5.2e-05},
    value=0.31,
)


def test_a_sweep_is_told_in_short(result: JobResult) -> None:
    page = bare(result.model_copy(update={"sweep": SWEEP}))
    assert (
        "24 trials under asha, of which 18 were parked or stopped before their last epoch and 1 "
        "failed. Trial t07 won with composite accuracy 0.310 on validation. All trials together "
        "took 1,900 epochs; training each in full would have taken 4,800 (39.6 %)."
    ) in words(page)
    assert "model.hidden_dim 256 train.learning_rate 5.2e-05" in words(page)
    assert ("a", {"href": "sweep.html"}) in page.tags


# The figures


def test_at_most_five_hundred_values_of_a_parameter_are_drawn(
    html: str, test: GcodePredictions
) -> None:
    figures = re.findall(r'aria-label="Predicted by true (\w) on the test split', html)
    assert figures == ["R", "X", "Y", "Z"]
    for p, name in ((1, "R"), (2, "X")):
        num = int(test.true.param_type[:, p].sum())
        start = html.index(f"Predicted by true {name} on")
        figure = html[start : html.index("</figure>", start)]
        assert figure.count('<circle class="value') == min(num, MAX_POINTS)
        assert ("500 of" in figure) == (num > MAX_POINTS)


def test_points_within_tolerance_are_the_share_of_the_table(
    html: str, result: JobResult, test: GcodePredictions
) -> None:
    start = html.index("Predicted by true R on")
    figure = html[start : html.index("</figure>", start)]
    share = figure.count('class="value near"') / test.true.param_type[:, 1].sum()
    assert share == pytest.approx(result.metrics["test"]["param_value_acc_R"].value)


def test_heads_have_learning_curves_of_train_and_validation(page: Page, html: str) -> None:
    labels = [attributes.get("aria-label") for _, attributes in page.tags]
    for label in (
        "Loss of model by epoch",
        "Composite accuracy by epoch",
        "Command accuracy by epoch",
        "Parameter-set accuracy by epoch",
        "Value accuracy by epoch",
        "Learning rate (in 1e−3) of model by epoch",
    ):
        assert labels.count(label) == 1
    chart = html[html.index('aria-label="Command accuracy by epoch"') :].partition("</svg>")[0]
    assert chart.count('class="line s-0 dotted"') == chart.count('class="line s-0"') == 1
    assert "<title>Epoch 2, the best: 0.400</title>" in chart


# However little there is


@pytest.mark.parametrize(
    ("run", "headline"),
    [
        (empty("FAILED", reason="no disk left"), "The run failed: no disk left"),
        (empty("STOPPED", members=[MemberResult(name="model", family="gcode", status="STOPPED")]),
         "The run was stopped before it ended."),
        (empty("RUNNING"), "The run has not ended."),
        (empty("SUCCEEDED"), "The run ended, but it has no Composite accuracy on test"),
    ],
)  # fmt: skip
def test_run_that_left_nothing_renders(run: JobResult, headline: str) -> None:
    page = Page(render_gcode_report(run, SPEC, test=None, history=[{"epoch": "x"}]))
    assert headline in page.text
    for dash in (
        "The run left no scores.",
        "The run left no scores of single parameters.",
        "The run left no test predictions of values.",
        "The run left no scores of single commands.",
        "The run left no test predictions.",
        "No member trained by epochs.",
        "The run ended before its data were prepared.",
    ):
        assert f"— {dash}" in page.text
    assert not re.search(r"\d\.\d{3}", page.text.partition("workload: gcode")[0])


def test_one_run_in_test_has_no_intervals(splits: Any) -> None:
    one = make_split(60, 1, seed=3)
    result = make_result({**splits, "test": one})
    page = Page(render_gcode_report(result, SPEC, test=one[0], history=HISTORY))
    assert "No interval is known." in words(page)
    assert "on 1 run it has never seen." in words(page)
    assert page.row("Composite accuracy")[1].endswith(" —")
    assert "(there is no interval)" in words(page)


def test_a_run_without_rivals_still_renders(result: JobResult) -> None:
    page = bare(result.model_copy(update={"rivals": {}}))
    assert page.row("Command accuracy")[4:6] == ["—", "—"]
    assert page.row("X in")[4:6] == ["—", "—"]


def test_less_error_is_better(result: JobResult) -> None:
    assert sign("param_value_mae_X", result) == -1
    assert sign("param_value_acc_X", result) == sign("composite_acc", result) == 1
