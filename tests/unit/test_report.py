"""The report: what it says, that it says nothing else, and that it stands alone."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from report_run import STARTED, THRESHOLD, make_predictions, make_result

from ray_jobs.predictions import Predictions
from ray_jobs.reporting import curves
from ray_jobs.reporting.report import render_report
from ray_jobs.reporting.scores import duration, no_skill
from ray_jobs.result import ColumnLeak, JobResult, LeakageReport, MetricValue, Objective

EVIL = "</style><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"


@pytest.fixture(scope="module")
def predictions() -> dict[str, Predictions]:
    return {"val": make_predictions(seed=1), "test": make_predictions(seed=2)}


@pytest.fixture(scope="module")
def result(predictions: dict[str, Predictions]) -> JobResult:
    return make_result(predictions)


@pytest.fixture(scope="module")
def histories() -> dict[str, list[dict]]:
    epochs = [
        {"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 1.1 / epoch, "f1": 0.4}
        for epoch in range(1, 13)
    ]
    return {"transformer": epochs}


class Page(HTMLParser):
    """A page as a browser would take it: balanced tags, their attributes, the visible text."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.style = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], f"left open: {self._open}"

    def handle_starttag(self, tag: str, attributes: list) -> None:
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"an attribute twice in <{tag}>"
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            self.style += data
        elif "svg" not in self._open and "head" not in self._open:
            self.text += f" {data}"
            if "tr" in self._open and self.rows[-1]:
                self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())

    def row(self, name: str) -> list[str]:
        return next(row for row in self.rows if row and row[0].startswith(name))


@pytest.fixture(scope="module")
def html(result: JobResult, predictions: Any, histories: Any) -> str:
    return render_report(
        result, predictions=predictions, histories=histories, spec_yaml="workload: fire\n"
    )


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_page_is_well_formed_and_its_links_lead_somewhere(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links
    assert {str(link).removeprefix("#") for link in links} <= set(ids)
    assert [tag for tag, _ in page.tags].count("h1") == 1
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"


def test_page_needs_nothing_beside_itself(page: Page, html: str) -> None:
    assert not {"script", "link", "img", "iframe", "image", "use"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not {"src", "srcset", "style", "xlink:href"} & attributes.keys(), tag
        assert not [name for name in attributes if name.startswith("on")], tag
        assert str(attributes.get("href", "#")).startswith("#")
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert not re.search(r"https?:", html)


def test_content_security_policy_allows_the_one_style_and_nothing_else(page: Page) -> None:
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def test_verdict_comes_first_and_can_be_acted_upon(page: Page, result: JobResult) -> None:
    f1 = result.metrics["test"]["f1"].value
    words = " ".join(page.text.split())
    headline = f"The ensemble predicts fire with F1 {f1:.3f} on 40 groups it has never seen."
    assert headline in words
    assert words.index(headline) < words.index("Test against validation")
    assert "Chosen on validation: greedy, 2 of 4 members." in words
    assert "Registered as fire version 3." in words


def test_scores_stand_beside_each_other_with_their_gap(page: Page, result: JobResult) -> None:
    for metric, label in (("f1", "F1 objective"), ("log_loss", "Log-loss"), ("auc", "AUC")):
        val, test = result.metrics["val"][metric], result.metrics["test"][metric]
        _, shown_test, shown_val, gap, baseline, _ = page.row(label)
        assert shown_test == f"{test.value:.3f} {test.low:.3f}–{test.high:.3f}"
        assert shown_val == f"{val.value:.3f} {val.low:.3f}–{val.high:.3f}"
        assert gap == f"{test.value - val.value:+.3f}".replace("-", "−")
        assert baseline == f"{no_skill(metric, result):.3f}"
    assert page.row("Recall")[4] == "—"


def test_leaderboard_ranks_by_validation_and_keeps_the_failed(page: Page) -> None:
    start = next(i for i, row in enumerate(page.rows) if row and row[0] == "Model")
    board = page.rows[start + 1 : start + 6]
    names = [row[0].split()[0] for row in board]
    assert names == ["Ensemble", "random_forest", "logistic_regression", "transformer", "lstm"]
    assert board[3][0] == "transformer degenerate"
    assert (
        "transformer is degenerate: its metrics stood still and it was stopped. It is left out."
        in (page.text)
    )
    assert board[4][:2] == ["lstm failed", "the loss became NaN"]
    assert board[1][-2:] == ["0.667", "12 s"]


def test_no_number_is_invented(page: Page, result: JobResult, predictions: Any) -> None:
    """Every number of three decimals in the text is in the result, or follows from it."""
    known: list[float] = []

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            for inner in value.values():
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)
        elif isinstance(value, float):
            known.append(value)

    collect(result.model_dump())
    known += [result.metrics["test"][m].value - v.value for m, v in result.metrics["val"].items()]
    known += [no_skill(metric, result) or 0.0 for metric in ("accuracy", "f1", "auc", "log_loss")]
    for candidate in result.ensemble.candidates:
        for value, error in (
            (candidate.objective, candidate.objective_stderr),
            (candidate.log_loss, candidate.log_loss_stderr),
        ):
            known += [value - error, value + error]
    test = predictions["test"]
    known.append(float(test.y.mean()))
    for p in (test.ensemble, *test.members.values()):
        known.append(curves.rank(test.y, p).average_precision)
    (_, false_alarms), _ = curves.confusion(test.y, test.ensemble, THRESHOLD)
    known.append(false_alarms / int((test.y == 0).sum()))
    interval = result.metrics["test"]["f1"]
    known.append(interval.high - interval.low)
    shown = set(re.findall(r"\d+\.\d{3}(?!\d)", page.text))
    assert len(shown) > 50
    assert shown <= {f"{abs(value):.3f}" for value in known}


def test_confusion_matrix_counts_rows_at_the_threshold(page: Page, predictions: Any) -> None:
    test = predictions["test"]
    called, fire = test.ensemble >= THRESHOLD, test.y == 1
    found, missed = int((called & fire).sum()), int((~called & fire).sum())
    share = 100 * found / (found + missed)
    row = page.row("actual fire")
    assert row[1] == f"{found} {share:.1f} %"
    assert row[2] == f"{missed} {100 - share:.1f} %"


def test_what_was_skipped_is_said_once(page: Page) -> None:
    start = next(i for i, row in enumerate(page.rows) if row == ["Where", "What"])
    assert page.rows[start + 1 : start + 6] == [
        ["lstm", "failed: the loss became NaN"],
        ["data", "12 rows dropped"],
        ["training", "3 batches skipped"],
        ["data", "the rows are one recording"],
        ["run", "disk is slow"],
    ]


def test_text_from_outside_stays_text(result: JobResult, predictions: Any, histories: Any) -> None:
    evil_member = result.members[-1].model_copy(update={"name": EVIL, "reason": EVIL})
    evil_data = result.data.model_copy(
        update={
            "label": EVIL,
            "grouped_by": EVIL,
            "features": [EVIL],
            "warnings": [EVIL],
            "leakage": LeakageReport(
                columns=[ColumnLeak(column=EVIL, auc=0.95, refused=False, evidence=EVIL)],
                excluded_columns={EVIL: EVIL},
                notes=[EVIL],
            ),
        }
    )
    evil = result.model_copy(
        update={
            "run_id": EVIL,
            "workload": EVIL,
            "members": [*result.members, evil_member],
            "data": evil_data,
            "seconds": {EVIL: 1.0},
            "versions": {EVIL: EVIL},
        }
    )
    test = predictions["test"]
    evil_test = Predictions(
        test.row_id, test.y, test.group, test.ensemble, {**test.members, EVIL: test.ensemble}
    )
    html = render_report(
        evil,
        predictions={"test": evil_test},
        histories={EVIL: histories["transformer"]},
        spec_yaml=EVIL,
    )
    page = Page(html)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert page.text.count(EVIL) > 15
    assert page.style.count("<") == 0


def empty(status: str, **fields: Any) -> JobResult:
    return JobResult(
        run_id="r",
        workload="fire",
        status=status,
        objective=Objective(metric="f1", mode="max"),
        seed=0,
        started_at=STARTED,
        **fields,
    )


@pytest.mark.parametrize(
    ("run", "level", "headline"),
    [
        (empty("FAILED", reason="no disk left"), "bad", "The run failed: no disk left"),
        (empty("FAILED"), "bad", "The run failed: it left no reason."),
        (empty("STOPPED"), "open", "The run was stopped before it ended."),
        (empty("RUNNING"), "open", "The run has not ended."),
        (
            empty("SUCCEEDED"),
            "caution",
            "The run ended, but it has no F1 on test: nothing here says how good it is.",
        ),
    ],
)
def test_run_that_left_nothing_renders(run: JobResult, level: str, headline: str) -> None:
    page = Page(render_report(run, predictions=None, histories=None))
    assert ("section", {"class": f"verdict {level}", "aria-labelledby": "verdict"}) in page.tags
    assert headline in page.text
    assert "There is no test score." in page.text
    assert "— The run left no scores." in page.text
    assert not re.search(r"\d\.\d{3}", page.text)


def test_missing_numbers_are_dashes(result: JobResult, predictions: Any) -> None:
    scores = {"val": result.metrics["val"], "test": {"auc": MetricValue(value=0.75)}}
    partial = result.model_copy(update={"metrics": scores})
    page = Page(render_report(partial, predictions=predictions, histories={}))
    assert page.row("F1 objective")[1] == "—"
    assert page.row("F1 objective")[3] == "—"
    assert page.row("AUC")[1] == "0.750 —"
    assert "it has no F1 on test" in page.text


def test_one_member_without_history_or_ensemble_record(result: JobResult, predictions: Any) -> None:
    single = result.model_copy(update={"members": result.members[:1], "ensemble": None})
    page = Page(render_report(single, predictions=predictions, histories=None))
    assert "— The run left no ensemble." in page.text
    assert "— No member trained by epochs." in page.text
    assert "Confusion matrix" not in page.text  # without a threshold there are no decisions
    assert "Calibration" in page.text


def test_test_split_of_one_class_has_no_curves(result: JobResult) -> None:
    part = make_predictions(50)
    ones = Predictions(part.row_id, np.ones_like(part.y), part.group, part.ensemble, part.members)
    page = Page(render_report(result, predictions={"test": ones}, histories={}))
    assert "no test predictions that curves can be drawn from" in page.text
    assert page.row("actual not fire")[1:] == ["0 —", "0 —"]


def test_broken_history_still_renders(result: JobResult) -> None:
    epochs = [{"epoch": 1, "val_loss": "x"}, {"val_loss": None}, {"epoch": 3, "f1": float("nan")}]
    page = Page(render_report(result, predictions=None, histories={"transformer": epochs}))
    assert "Loss of transformer by epoch" in [a.get("aria-label") for _, a in page.tags]


def test_report_of_many_rows_is_light(result: JobResult) -> None:
    large = {"test": make_predictions(15_000)}
    html = render_report(result, predictions=large, histories=None)
    assert len(html.encode()) < 300_000
    paths = [a["d"] for tag, a in Page(html).tags if tag == "path" and "d" in a]
    assert 50 < max(path.count("L") for path in paths) < 1000


def test_known_ceiling_has_a_column(result: JobResult) -> None:
    data = result.data.model_copy(update={"ceiling": {"test": {"auc": 0.91}}})
    known = result.model_copy(update={"data": data})
    page = Page(render_report(known, predictions=None, histories=None))
    assert page.row("AUC")[5] == "0.910"
    assert page.row("Accuracy")[5] == "—"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "—"), (0.04, "0.0 s"), (9.96, "10 s"), (59.7, "1 min 00 s"), (3725, "1 h 02 min")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
