"""The report: what it says, that it says nothing else, and that it stands alone."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn import metrics

from ray_jobs.errors import DataError
from ray_jobs.metrics import binary_metrics, bootstrap_intervals
from ray_jobs.predictions import Predictions
from ray_jobs.reporting import curves
from ray_jobs.reporting.charts import Axis
from ray_jobs.reporting.report import render_report
from ray_jobs.reporting.scores import duration, no_skill
from ray_jobs.reporting.verdict import Finding, assess
from ray_jobs.result import (
    Candidate,
    ColumnLeak,
    DataSummary,
    DuplicateReport,
    EnsembleResult,
    JobResult,
    LeakageReport,
    MemberResult,
    MetricValue,
    Objective,
    RegisteredModel,
    SplitSummary,
)
from ray_jobs.storage import Storage

STARTED = datetime(2025, 3, 4, 9, 12, 3, tzinfo=UTC)
MEMBERS = ("random_forest", "logistic_regression", "transformer")
THRESHOLD = 0.4
EVIL = "</style><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"


def make_predictions(num_rows: int = 600, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    y = (rng.random(num_rows) < 0.3).astype(np.int8)
    members = {
        name: 1 / (1 + np.exp(-(sharpness * (y - 0.6) + rng.normal(size=num_rows))))
        for name, sharpness in zip(MEMBERS, (2.5, 1.5, 0.1), strict=True)
    }
    ensemble = (2 * members["random_forest"] + members["logistic_regression"]) / 3
    ids = np.arange(num_rows)
    return Predictions(ids, y, np.sort(rng.integers(0, 40, num_rows)), ensemble, members)


def score(part: Predictions, p: np.ndarray) -> dict[str, MetricValue]:
    return bootstrap_intervals(part.y, p, THRESHOLD, groups=part.group, num_resamples=50)


@pytest.fixture(scope="module")
def predictions() -> dict[str, Predictions]:
    return {"val": make_predictions(seed=1), "test": make_predictions(seed=2)}


@pytest.fixture(scope="module")
def histories() -> dict[str, list[dict]]:
    epochs = [
        {"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 1.1 / epoch, "f1": 0.4}
        for epoch in range(1, 13)
    ]
    return {"transformer": epochs}


@pytest.fixture(scope="module")
def result(predictions: dict[str, Predictions]) -> JobResult:
    """A run of four members: one failed, one degenerate."""
    members = [
        MemberResult(
            name=name,
            family=name,
            status="SUCCEEDED",
            metrics={split: score(part, part.members[name]) for split, part in predictions.items()},
            seconds=12.3,
            degenerate=name == "transformer",
            best_epoch=4 if name == "transformer" else None,
            num_epochs=12 if name == "transformer" else None,
        )
        for name in MEMBERS
    ]
    members.append(
        MemberResult(name="lstm", family="lstm", status="FAILED", reason="the loss became NaN")
    )
    splits = {
        split: SplitSummary(
            num_rows=len(part), num_groups=40, num_positive=int(part.y.sum()), digest=split * 20
        )
        for split, part in predictions.items()
    }
    return JobResult(
        run_id="20250304-091203-7c1e",
        workload="fire",
        status="SUCCEEDED",
        objective=Objective(metric="f1", mode="max"),
        seed=0,
        metrics={split: score(part, part.ensemble) for split, part in predictions.items()},
        members=members,
        ensemble=EnsembleResult(
            strategy="greedy",
            weights={"random_forest": 0.667, "logistic_regression": 0.333},
            calibration="sigmoid",
            threshold=THRESHOLD,
            candidates=[
                Candidate(
                    strategy=strategy,
                    objective=0.7 + index / 100,
                    objective_stderr=0.015,
                    log_loss=0.4,
                    log_loss_stderr=0.01,
                    chosen=strategy == "greedy",
                )
                for index, strategy in enumerate(("single", "equal", "greedy"))
            ],
        ),
        data=DataSummary(
            source="simulator:episodes",
            path="datasets/fire-1",
            digest="ab" * 32,
            features=["t_mean", "gas_val"],
            label="fire",
            splits=splits,
            grouped_by="column 'episode'",
            num_dropped=12,
            leakage=LeakageReport(
                duplicates=DuplicateReport(merged_groups=[["session 2", "session 4"]]),
                columns=[ColumnLeak(column="co2", auc=0.912, refused=False, evidence="a tree")],
                excluded_columns={"utc": "runs with time"},
            ),
            warnings=["the rows are one recording"],
        ),
        model=RegisteredModel(name="fire", version=3, uri="models:/fire/3", mlflow_run_id="a"),
        versions={"python": "3.11.9", "code": "5f2c9ab"},
        seconds={"prepare": 19.2, "train": 71.5},
        num_skipped_batches=3,
        warnings=["the rows are one recording", "lstm failed: the loss became NaN", "disk is slow"],
        started_at=STARTED,
        ended_at=STARTED + timedelta(seconds=91),
    )


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


def with_test(result: JobResult, metric: str, value: float, low: float, high: float) -> JobResult:
    score = MetricValue(value=value, low=low, high=high)
    test = {**result.metrics["test"], metric: score}
    return result.model_copy(update={"metrics": {**result.metrics, "test": test}})


def findings_of(result: JobResult) -> list[Finding]:
    quiet = [m for m in result.members if m.status == "SUCCEEDED" and not m.degenerate]
    leakage = LeakageReport() if result.data is None else result.data.leakage
    if leakage.columns and leakage.columns[0].column == "co2":
        leakage = LeakageReport()
    data = result.data.model_copy(update={"leakage": leakage})
    return assess(result.model_copy(update={"members": quiet, "data": data})).findings


@pytest.fixture
def calm(result: JobResult) -> JobResult:
    """A run that nothing is to be said against: the same narrow scores on validation and test."""
    scores = {"f1": MetricValue(value=0.8, low=0.78, high=0.82)}
    scores["auc"] = MetricValue(value=0.9, low=0.88, high=0.92)
    return result.model_copy(update={"metrics": {"val": scores, "test": scores}})


def test_calm_run_has_nothing_said_against_it(calm: JobResult) -> None:
    assert findings_of(calm) == []


@pytest.mark.parametrize(
    ("metric", "value", "low", "high", "level", "text"),
    [
        ("f1", 0.7, 0.68, 0.72, "warning", "F1 is worse on test (0.700) than on validation (0.800) "
         "by more than chance explains: expect the test score."),
        ("f1", 0.9, 0.88, 0.92, "warning", "F1 is better on test (0.900) than on validation "
         "(0.800) by more than chance explains: the splits may differ in kind."),
        ("f1", 0.8, 0.7, 0.9, "warning", "The interval of F1 on test is 0.200 wide (0.700–0.900): "
         "more test rows, or groups of them, would say more."),
        ("auc", 0.51, 0.48, 0.54, "warning", "AUC on test, 0.510 (0.480–0.540), is not beyond what "
         "no skill scores: 0.500."),
    ],
)  # fmt: skip
def test_doubtful_score_is_doubted(
    calm: JobResult, metric: str, value: float, low: float, high: float, level: Any, text: str
) -> None:
    assert findings_of(with_test(calm, metric, value, low, high)) == [Finding(level, text)]


def test_gap_within_chance_is_no_warning(calm: JobResult) -> None:
    shifted = with_test(calm, "f1", 0.775, 0.755, 0.795)  # 0.025 < sqrt(0.02^2 + 0.02^2)
    assert findings_of(shifted) == []
    assert "Test is 0.025 below validation (0.800), which chance can explain." in " ".join(
        assess(shifted).details
    )


@pytest.mark.parametrize(
    ("ceiling", "level", "text"),
    [
        (0.91, "note", "Ceiling AUC 0.910; reached 0.900."),
        (0.885, "note", "Ceiling AUC 0.885; reached 0.900."),  # above, within the interval
        (0.87, "fault", "AUC 0.900 (0.880–0.920) is better than its ceiling 0.870, the score of "
         "the true probability: the evaluation is at fault."),
    ],
)  # fmt: skip
def test_known_ceiling(calm: JobResult, ceiling: float, level: Any, text: str) -> None:
    data = calm.data.model_copy(update={"ceiling": {"test": {"auc": ceiling}}})
    known = calm.model_copy(update={"data": data})
    assert findings_of(known) == [Finding(level, text)]
    page = Page(render_report(known, predictions=None, histories=None))
    assert page.row("AUC")[5] == f"{ceiling:.3f}"


def test_score_above_its_ceiling_without_an_interval_proves_nothing(calm: JobResult) -> None:
    data = calm.data.model_copy(update={"ceiling": {"test": {"auc": 0.87}}})
    scores = {**calm.metrics["test"], "auc": MetricValue(value=0.9)}
    known = calm.model_copy(update={"data": data, "metrics": {"test": scores}})
    assert findings_of(known) == [Finding("note", "Ceiling AUC 0.870; reached 0.900.")]


def test_no_skill_is_said_in_the_headline(calm: JobResult) -> None:
    baseline = no_skill("f1", calm)
    guess = with_test(calm, "f1", baseline + 0.01, baseline - 0.01, baseline + 0.03)
    verdict = assess(guess)
    assert verdict.level == "caution"
    assert verdict.headline == (
        f"It has learned nothing certain about fire: F1 {baseline + 0.01:.3f} on test, "
        f"where no skill scores {baseline:.3f}."
    )


def test_no_skill_scores_are_those_of_constant_answers(result: JobResult) -> None:
    y = np.repeat([0, 1], [700, 300])
    split = SplitSummary(num_rows=1000, num_groups=1, num_positive=300, digest="")
    data = result.data.model_copy(update={"splits": {"test": split}})
    known = result.model_copy(update={"data": data})
    always = binary_metrics(y, np.full(1000, 0.3), threshold=0.0)
    never = binary_metrics(y, np.full(1000, 0.3), threshold=1.0)
    assert no_skill("f1", known) == pytest.approx(always["f1"])
    assert no_skill("accuracy", known) == pytest.approx(never["accuracy"])
    assert no_skill("auc", known) == pytest.approx(always["auc"])
    assert no_skill("log_loss", known) == pytest.approx(always["log_loss"])
    assert no_skill("recall", known) is None


def test_kept_column_that_is_the_label_is_a_warning(calm: JobResult) -> None:
    leak = ColumnLeak(column="alarm", auc=0.998, refused=False, evidence="a tree")
    repeats = DuplicateReport(num_across_splits=7)
    leakage = LeakageReport(columns=[leak], duplicates=repeats)
    data = calm.data.model_copy(update={"leakage": leakage})
    assert findings_of(calm.model_copy(update={"data": data})) == [
        Finding(
            "warning",
            "Column alarm alone reaches AUC 0.998 and was kept: it may give the label away.",
        ),
        Finding("warning", "7 rows of validation or test stand in train as well."),
    ]


def test_run_under_way_with_a_score_gets_its_verdict(calm: JobResult) -> None:
    verdict = assess(calm.model_copy(update={"status": "RUNNING"}))
    assert verdict.headline.startswith("The ensemble predicts fire with F1 0.800")
    assert verdict.label.startswith("Running")
    assert verdict.details[-1] == "The run has not ended."


scored_rows = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])), min_size=2
).filter(lambda rows: len({label for label, _ in rows}) == 2)


@settings(deadline=None)
@given(scored_rows)
def test_curves_agree_with_scikit_learn(rows: list[tuple[int, float]]) -> None:
    y = np.array([label for label, _ in rows], dtype=np.int8)
    p = np.array([probability for _, probability in rows])
    ranking = curves.rank(y, p)
    fpr, tpr, thresholds = metrics.roc_curve(y, p, drop_intermediate=False)
    np.testing.assert_allclose(ranking.false_positive_rate, fpr[1:])
    np.testing.assert_allclose(ranking.recall, tpr[1:])
    np.testing.assert_allclose(ranking.thresholds, thresholds[1:])
    precision, _, _ = metrics.precision_recall_curve(y, p)
    np.testing.assert_allclose(ranking.precision, precision[-2::-1][: len(ranking.precision)])
    assert ranking.average_precision == pytest.approx(metrics.average_precision_score(y, p))
    for threshold in (0.1, 0.5, 0.6):
        called = (p >= threshold).astype(int)
        expected = metrics.confusion_matrix(y, called, labels=[0, 1]).tolist()
        assert curves.confusion(y, p, threshold) == expected
        index = ranking.last_above(threshold)
        if index is None:
            assert called.sum() == 0
        else:
            assert ranking.f1[index] == pytest.approx(metrics.f1_score(y, called))


def test_reliability_is_the_calibration_error_bin_by_bin() -> None:
    part = make_predictions()
    bins = curves.reliability(part.y, part.ensemble)
    filled = bins.num_rows > 0
    gaps = np.abs(bins.mean_probability - bins.frequency)[filled]
    ece = binary_metrics(part.y, part.ensemble, THRESHOLD)["ece"]
    assert np.average(gaps, weights=bins.num_rows[filled]) == pytest.approx(ece)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=60))
def test_thinned_line_stays_within_tolerance(points: list[tuple[float, float]]) -> None:
    line, tolerance = np.array(points), 0.1
    kept = curves.simplify(line, tolerance)
    assert kept[0] == 0
    assert kept[-1] == len(line) - 1
    for first, last in itertools.pairwise(kept):
        chord = line[last] - line[first]
        for point in line[first : last + 1]:
            share = np.clip((point - line[first]) @ chord / max(chord @ chord, 1e-12), 0, 1)
            assert np.hypot(*(point - line[first] - share * chord)) <= tolerance + 1e-9


def test_roc_points_are_few_finite_and_run_from_corner_to_corner() -> None:
    part = make_predictions(15_000)
    fpr, tpr, thresholds = curves.roc_points(part.y, part.ensemble)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert 20 < len(fpr) == len(tpr) == len(thresholds) < 400
    assert np.isfinite(thresholds).all()
    assert (np.diff(thresholds) < 0).all()
    area = binary_metrics(part.y, part.ensemble, THRESHOLD)["auc"]
    assert np.trapezoid(tpr, fpr) == pytest.approx(area, abs=0.001)
    assert curves.roc_points(np.ones(3, np.int8), np.full(3, 0.5)) == ([], [], [])


@settings(deadline=None)
@example([1e308, -1e308])
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=20))
def test_axis_holds_its_values_with_few_round_ticks(values: list[float]) -> None:
    for axis in (Axis.around("", values), Axis.whole("", values)):
        held = [value for value in values if abs(value) < 1e100]
        assert axis.low < axis.high
        assert len(axis.ticks) <= 9
        for value in held:
            assert -0.01 <= axis.place(value, 0, 100) <= 100.01


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "—"), (0.04, "0.0 s"), (9.96, "10 s"), (59.7, "1 min 00 s"), (3725, "1 h 02 min")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_predictions_come_back_as_written(tmp_path: Any) -> None:
    storage, written = Storage(tmp_path), make_predictions(50)
    written.write(storage, "artifacts/test.parquet")
    read = Predictions.read(storage, "artifacts/test.parquet")
    table = pq.read_table(tmp_path / "artifacts/test.parquet")
    names = ["row_id", "label", "group", "ensemble", *(f"member.{name}" for name in MEMBERS)]
    assert table.column_names == names
    for name in ("row_id", "y", "group", "ensemble"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert list(read.members) == list(MEMBERS)
    for name in MEMBERS:
        np.testing.assert_array_equal(read.members[name], written.members[name])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda t: t.drop_columns(["label"]), "column 'label' should be int8, but is missing"),
        (
            lambda t: t.set_column(3, "ensemble", pa.array(["x"] * len(t))),
            "column 'ensemble' should be double, but is string",
        ),
        (
            lambda t: t.set_column(4, "member.random_forest", pa.array([float("nan")] * len(t))),
            "the probabilities of 'random_forest' must be between 0 and 1",
        ),
        (
            lambda t: t.set_column(1, "label", pa.array([2] * len(t), pa.int8())),
            "column 'label' must hold 0 and 1 only",
        ),
    ],
)
def test_damaged_predictions_are_refused(tmp_path: Any, damage: Any, reason: str) -> None:
    storage, path = Storage(tmp_path), tmp_path / "p.parquet"
    make_predictions(50).write(storage, "p.parquet")
    pq.write_table(damage(pq.read_table(path)), path)
    with pytest.raises(DataError) as error:
        Predictions.read(storage, "p.parquet")
    assert str(error.value) == (
        f"{path}: these are not predictions ({reason}). Delete the file and evaluate the run again."
    )


def test_file_that_is_not_parquet_is_refused(tmp_path: Any) -> None:
    (tmp_path / "p.parquet").write_bytes(b"half a file")
    with pytest.raises(DataError, match="these are not predictions"):
        Predictions.read(Storage(tmp_path), "p.parquet")


def test_predictions_of_different_length_are_refused() -> None:
    part = make_predictions(50)
    with pytest.raises(ValueError, match="differ in length"):
        Predictions(part.row_id[:-1], part.y, part.group, part.ensemble, part.members)
