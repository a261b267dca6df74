"""The report of a classifier of many classes and the files beside it: what they say, and that they
stand alone."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_run import floats_in
from test_report import Page

from ray_jobs.class_predictions import ClassPredictions
from ray_jobs.multiclass import (
    bootstrap_intervals,
    class_scores,
    confusion_matrix,
    multiclass_metrics,
)
from ray_jobs.reporting.class_figures import confusion_png
from ray_jobs.reporting.class_report import render_class_report, write_class_artifacts
from ray_jobs.reporting.class_tables import LeftOut
from ray_jobs.reporting.mistakes import NUM_SHOWN, render_mistakes
from ray_jobs.reporting.scores import no_skill
from ray_jobs.result import (
    ClassScores,
    DataSummary,
    DuplicateReport,
    JobResult,
    LeakageReport,
    MemberResult,
    MetricValue,
    Objective,
    ScanSummary,
    SplitSummary,
)
from ray_jobs.storage import Storage

EVIL = "</style><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"
STARTED = datetime(2025, 3, 4, 9, 12, 3, tzinfo=UTC)
THIRTY = (
    "aerosol_cans",
    "aluminum_food_cans",
    "aluminum_soda_cans",
    "cardboard_boxes",
    "cardboard_packaging",
    "clothing",
    "coffee_grounds",
    "disposable_plastic_cutlery",
    "eggshells",
    "food_waste",
    "glass_beverage_bottles",
    "glass_cosmetic_containers",
    "glass_food_jars",
    "magazines",
    "newspaper",
    "office_paper",
    "paper_cups",
    "plastic_cup_lids",
    "plastic_detergent_bottles",
    "plastic_food_containers",
    "plastic_shopping_bags",
    "plastic_soda_bottles",
    "plastic_straws",
    "plastic_trash_bags",
    "plastic_water_bottles",
    "shoes",
    "steel_food_cans",
    "styrofoam_cups",
    "styrofoam_food_containers",
    "tea_bags",
)


def make_predictions(
    num_rows: int = 90, num_present: int = 6, classes: tuple[str, ...] = THIRTY, seed: int = 0
) -> ClassPredictions:
    """Rows of the first classes only, spread over the list; the model is right more often than
    not."""
    rng = np.random.default_rng(seed)
    present = np.linspace(0, len(classes) - 1, num_present).astype(int)
    y = present[np.arange(num_rows) % num_present]
    logits = rng.normal(size=(num_rows, len(classes))) - 3 * ~np.isin(
        np.arange(len(classes)), present
    )
    logits[np.arange(num_rows), y] += rng.choice([0.5, 2.0, 4.0], num_rows)
    p = np.exp(logits)
    return ClassPredictions(
        row_id=np.arange(num_rows) + 1000,
        y=y,
        group=np.arange(num_rows) // 2,
        p=p / p.sum(axis=1, keepdims=True),
        classes=classes,
    )


def make_result(predictions: dict[str, ClassPredictions]) -> JobResult:
    metrics = {
        split: bootstrap_intervals(part.y, part.p, groups=part.group, num_resamples=100)
        for split, part in predictions.items()
    }
    classes = predictions["test"].classes
    parts = {"train": predictions["val"], **predictions}
    return JobResult(
        run_id="20250304-091203-7c1e",
        workload="waste",
        status="SUCCEEDED",
        objective=Objective(metric="macro_f1", mode="max"),
        seed=0,
        metrics=metrics,
        classes={
            split: class_scores(part.y, part.p, part.classes) for split, part in predictions.items()
        },
        members=[
            MemberResult(
                name="model",
                family="timm",
                status="SUCCEEDED",
                metrics=metrics,
                best_epoch=9,
                num_epochs=12,
                num_skipped_batches=3,
                num_failed_samples=70,
                warnings=["the loss was not finite in 3 steps"],
            )
        ],
        data=DataSummary(
            source="image-folders:pictures",
            path="datasets/waste-1",
            digest="ab" * 32,
            label="class",
            classes=list(classes),
            scan=ScanSummary(
                manifest="datasets/waste-1/manifest.parquet",
                num_files=300,
                num_usable=276,
                left_out={"corrupt": 9, "truncated": 12, "duplicate": 3},
                converted={"cmyk": 4, "exif-rotated": 11},
            ),
            splits={
                split: SplitSummary(
                    num_rows=len(part),
                    num_groups=45,
                    class_counts={
                        name: num
                        for name, num in zip(
                            classes, np.bincount(part.y, minlength=len(classes)), strict=True
                        )
                        if num
                    },
                    digest=split * 20,
                )
                for split, part in parts.items()
            },
            grouped_by="near-duplicates",
            leakage=LeakageReport(duplicates=DuplicateReport(num_exact=3, num_near=7)),
            warnings=["7.0 % of the pictures cannot be used"],
        ),
        versions={"python": "3.11.9", "timm": "1.0.31"},
        seconds={"prepare": 19.2, "train": 71.5},
        num_skipped_batches=3,
        warnings=["7.0 % of the pictures cannot be used"],
        started_at=STARTED,
        ended_at=STARTED + timedelta(seconds=91),
    )


def make_histories() -> dict[str, list[dict]]:
    return {
        "model": [
            {
                "epoch": epoch,
                "train_loss": 3 / epoch**0.7,
                "val_loss": 3 / epoch**0.5 + 0.02 * epoch,
                "macro_f1": 0.7 - 0.6 / epoch - 0.002 * (epoch - 9) ** 2,
                "learning_rate": 1e-3 * np.cos(epoch / 13 * np.pi / 2).item(),
                "num_batches": 50,
            }
            for epoch in range(1, 13)
        ]
    }


@pytest.fixture(scope="module")
def predictions() -> dict[str, ClassPredictions]:
    return {"val": make_predictions(seed=1), "test": make_predictions(seed=2)}


@pytest.fixture(scope="module")
def result(predictions: dict[str, ClassPredictions]) -> JobResult:
    return make_result(predictions)


@pytest.fixture(scope="module")
def html(result: JobResult, predictions: Any) -> str:
    return render_class_report(
        result, predictions=predictions, histories=make_histories(), spec_yaml="workload: waste\n"
    )


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def words(page: Page) -> str:
    return " ".join(page.text.split())


def labels(page: Page) -> list[str]:
    return [str(attributes.get("aria-label")) for _, attributes in page.tags]


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
    assert len(ids) == len(set(ids))
    links = [
        str(attributes["href"]).removeprefix("#") for tag, attributes in page.tags if tag == "a"
    ]
    assert links == [id_ for id_ in ids if id_ != "verdict"]


def test_verdict_says_what_the_model_is_worth_and_lists_every_warning_once(
    page: Page, result: JobResult
) -> None:
    f1 = result.metrics["test"]["macro_f1"].value
    headline = f"The model names the class with macro F1 {f1:.3f} on 90 pictures it has never seen."
    assert headline in words(page)
    assert words(page).count("warning 7.0 % of the pictures cannot be used") == 1
    assert words(page).count("warning the loss was not finite in 3 steps") == 1


def test_scores_stand_beside_validation_and_what_the_commonest_class_would_score(
    page: Page, result: JobResult
) -> None:
    # test holds six classes of 15 rows: always naming one is right for 1/6; its F1 is 2/7, and
    # that of the five others 0
    no_skill = {
        "macro_f1": 2 / 7 / 6,
        "accuracy": 1 / 6,
        "balanced_accuracy": 1 / 6,
        "top3_accuracy": 1 / 2,
        "log_loss": np.log(6),
    }
    names = ("Macro F1", "Accuracy", "Balanced accuracy", "Top-3 accuracy", "Log-loss")
    for (metric, baseline), label in zip(no_skill.items(), names, strict=True):
        val, test = result.metrics["val"][metric], result.metrics["test"][metric]
        row = page.row(label)
        assert row[1].startswith(f"{test.value:.3f} {test.low:.3f}–")
        assert row[2].startswith(f"{val.value:.3f}")
        assert row[3] == f"{test.value - val.value:+.3f}".replace("-", "−")
        assert row[4] == f"{baseline:.3f}"


def test_model_no_better_than_the_commonest_class_is_called_so(result: JobResult) -> None:
    poor = {"macro_f1": MetricValue(value=0.05, low=0.02, high=0.08)}
    page = Page(
        render_class_report(
            result.model_copy(update={"metrics": {"test": poor}}), predictions={}, histories={}
        )
    )
    assert (
        "It is not shown to be better than no skill: Macro F1 0.050 on test, where an answer that "
        "never looks at the pictures scores 0.048."
    ) in words(page)


def test_classes_stand_worst_first_and_those_without_rows_in_one_line(
    page: Page, result: JobResult
) -> None:
    start = next(i for i, row in enumerate(page.rows) if row[:2] == ["Class", "F1"])
    shown = page.rows[start + 1 : start + 7]
    known = {entry.name: entry for entry in result.classes["test"]}
    entries = [known[row[0].split()[0]] for row in shown]
    assert [entry.f1 for entry in entries] == sorted(entry.f1 for entry in entries)
    assert ["worst" in row[0] for row in shown] == [True] * 3 + [False] * 3
    for row, entry in zip(shown, entries, strict=True):
        scores = [f"{value:.3f}" for value in (entry.f1, entry.precision, entry.recall)]
        assert [row[1], *row[3:6]] == [*scores, str(entry.support)]
    absent = [entry.name for entry in result.classes["test"] if entry.support == 0]
    assert f"Without a row in test (24): {', '.join(absent)}." in words(page)
    assert not [row for row in page.rows if row[0] == absent[0] and len(row) == 7]


def test_undefined_score_is_a_dash(result: JobResult) -> None:
    never_named = ClassScores(name="glass", support=3, recall=0.0, f1=0.0)
    partial = result.model_copy(update={"classes": {"test": [never_named]}})
    page = Page(render_class_report(partial, predictions={}, histories={}))
    assert page.row("glass") == ["glass", "0.000", "", "—", "0.000", "3", "—"]


def test_heat_map_counts_every_row_once(html: str, predictions: Any) -> None:
    test = predictions["test"]
    svg = re.search(r'<svg class="matrix".*?</svg>', html, re.S)[0]
    cells = re.findall(r"<title>(\S+) named (\S+): (\d+) \(([\d.]+) % of (\d+)\)</title>", svg)
    matrix = confusion_matrix(test.y, test.p)
    assert len(cells) == np.count_nonzero(matrix)
    for true, named, count, share, support in cells:
        i, j = THIRTY.index(true), THIRTY.index(named)
        assert (int(count), int(support)) == (matrix[i, j], matrix[i].sum())
        assert float(share) == pytest.approx(100 * matrix[i, j] / matrix[i].sum(), abs=0.05)
    assert re.findall(r'class="count"[^>]*>(\d+)<', svg) == [count for _, _, count, _, _ in cells]
    assert svg.count('class="diagonal"') == 6


def test_thirty_classes_have_no_counts_in_cells_and_fit_the_page() -> None:
    many = {"test": make_predictions(300, 30), "val": make_predictions(300, 30)}
    html = render_class_report(make_result(many), predictions=many, histories={})
    svg = re.search(r'<svg class="matrix" viewBox="0 0 (\d+) \d+".*?</svg>', html, re.S)
    assert int(svg[1]) <= 998  # the room that report.css leaves a table
    assert 'class="count"' not in svg[0]
    assert "Without a row" not in html
    assert len(html.encode()) < 200_000


def test_too_many_classes_to_draw_are_listed_by_their_commonest_confusions() -> None:
    classes = tuple(f"class {index}" for index in range(80))
    many = {"test": make_predictions(400, 80, classes), "val": make_predictions(400, 80, classes)}
    html = render_class_report(make_result(many), predictions=many, histories={})
    assert "More than 60 classes take part, too many to draw" in html
    assert 'class="matrix"' not in html
    matrix = confusion_matrix(many["test"].y, many["test"].p)
    np.fill_diagonal(matrix, 0)
    page = Page(html)
    start = next(i for i, row in enumerate(page.rows) if row[:2] == ["True class", "Named"])
    assert page.rows[start + 1][2] == str(matrix.max())
    assert len(page.rows[start + 1]) == len(page.rows[start + 10]) == 4


def test_learning_curves_mark_the_best_epoch(page: Page, html: str) -> None:
    for label in (
        "Loss of model by epoch",
        "Macro F1 of model on validation by epoch",
        "Learning rate (in 1e−4) of model by epoch",
    ):
        assert label in labels(page)
    best = make_histories()["model"][8]
    for value in (best["val_loss"], best["macro_f1"], best["learning_rate"] * 1e4):
        assert f"<title>Epoch 9, the best: {value:.3f}</title>" in html


def test_what_was_left_out_is_held_against_its_whole(page: Page) -> None:
    start = next(i for i, row in enumerate(page.rows) if row and row[0] == "Left out")
    assert page.rows[start + 1 : start + 4] == [
        ["Pictures that cannot be used", "21", "300", "7.0 %", "warning"],
        ["Batches skipped", "3", "600", "0.5 %", "healthy"],
        ["Samples left out of batches", "70", "1,080", "6.5 %", "warning"],
    ]


@pytest.mark.parametrize(
    ("count", "whole", "level"),
    [
        (4, 100, "healthy"),
        (5, 100, "warning"),
        (20, 100, "warning"),
        (21, 100, "bad"),
        (9, None, "—"),
    ],
)
def test_share_left_out_decides_how_good_that_is(count: int, whole: Any, level: str) -> None:
    assert LeftOut("x", count, whole).level == level


def test_data_section_tells_what_the_scan_found(page: Page) -> None:
    for fact in (
        "Manifest datasets/waste-1/manifest.parquet",
        "corrupt 9",
        "truncated 12",
        "exif-rotated 11",
        "Nearly repeat another 7",
        "Classes 30",
        "Grouped by near-duplicates",
    ):
        assert fact in words(page)
    assert page.row("test")[:4] == ["test", "90", "45", "6"]
    assert ["aerosol_cans", "15", "15", "15"] in page.rows
    assert ["eggshells", "0", "0", "0"] in page.rows


def test_no_number_is_invented(page: Page, result: JobResult, predictions: Any) -> None:
    known = floats_in(result.model_dump())
    val, test = result.metrics["val"], result.metrics["test"]
    known += [test[metric].value - val[metric].value for metric in val]
    known += [no_skill(metric, result) or 0.0 for metric in test]
    known.append(test["macro_f1"].high - test["macro_f1"].low)
    shown = set(re.findall(r"\d+\.\d{3}(?!\d)", page.text))
    assert len(shown) > 40
    assert shown <= {f"{abs(value):.3f}" for value in known}


def empty(status: Any, **fields: Any) -> JobResult:
    return JobResult(
        run_id="r",
        workload="waste",
        status=status,
        objective=Objective(metric="macro_f1", mode="max"),
        seed=0,
        started_at=STARTED,
        **fields,
    )


@pytest.mark.parametrize(
    ("run", "headline"),
    [
        (empty("FAILED", reason="no disk left"), "The run failed: no disk left"),
        (
            empty("STOPPED", members=[MemberResult(name="model", family="timm", status="STOPPED")]),
            "The run was stopped before it ended.",
        ),
        (empty("RUNNING"), "The run has not ended."),
        (empty("SUCCEEDED"), "The run ended, but it has no Macro F1 on test"),
    ],
)
def test_run_that_left_nothing_renders(run: JobResult, headline: str) -> None:
    page = Page(render_class_report(run, predictions={}, histories={"model": [{"epoch": "x"}]}))
    assert headline in page.text
    for dash in (
        "The run left no scores.",
        "The run left no scores of single classes.",
        "The run left no test predictions.",
        "No member trained by epochs.",
        "The run ended before its data were prepared.",
    ):
        assert f"— {dash}" in page.text
    assert not re.search(r"\d\.\d{3}", page.text)


def test_text_from_outside_stays_text(result: JobResult) -> None:
    classes = (EVIL, f"absent {EVIL}", *THIRTY[2:])
    parts = {"val": make_predictions(classes=classes), "test": make_predictions(classes=classes)}
    evil = make_result(parts)
    data = evil.data.model_copy(
        update={
            "source": EVIL,
            "warnings": [EVIL],
            "leakage": LeakageReport(notes=[EVIL]),
            "scan": ScanSummary(
                manifest=EVIL, num_files=3, num_usable=1, left_out={EVIL: 2}, converted={EVIL: 1}
            ),
        }
    )
    evil = evil.model_copy(update={"data": data, "warnings": [EVIL], "workload": EVIL})
    page = Page(render_class_report(evil, predictions=parts, histories={}, spec_yaml=EVIL))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert page.text.count(EVIL) > 8
    assert "<" not in page.style


def open_picture(row_id: int) -> Image.Image:
    if row_id % 2:
        raise OSError(f"cannot identify image file {EVIL!r}")
    return Image.new("CMYK", (400, 200 + row_id % 7), (0, 200, 200, row_id % 200))


def test_mistakes_come_most_confident_first_with_their_pictures() -> None:
    test = make_predictions(300, 30)
    html = render_mistakes(test, open_picture=open_picture)
    page = Page(html)
    named = test.p.argmax(axis=1)
    wrong = np.flatnonzero(named != test.y)
    order = wrong[np.argsort(-test.p.max(axis=1)[wrong], kind="stable")][:NUM_SHOWN]
    assert len(wrong) > NUM_SHOWN
    assert re.findall(r"<code>(\d+)</code>", html) == [str(test.row_id[index]) for index in order]
    first = order[0]
    second = int(np.argsort(test.p[first])[-2])
    assert (
        f"Named {THIRTY[named[first]]} {test.p[first].max():.3f} True {THIRTY[test.y[first]]} "
        f"Second {THIRTY[second]} {test.p[first, second]:.3f} Row {test.row_id[first]}"
    ) in words(page)
    sources = [str(a["src"]) for tag, a in page.tags if tag == "img"]
    assert len(sources) == sum(int(test.row_id[index]) % 2 == 0 for index in order)
    assert words(page).count("No picture: cannot identify image file") == 60 - len(sources)
    for source in sources:
        assert source.startswith("data:image/jpeg;base64,")
        picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert picture.width == 160
        assert picture.height in range(78, 84)
    assert "script" not in {tag for tag, _ in page.tags}
    policy = next(str(a["content"]) for _, a in page.tags if "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert "img-src data:;" in policy


def test_picture_that_breaks_while_it_is_decoded_leaves_the_reason() -> None:
    def truncated(row_id: int) -> Image.Image:
        stream = io.BytesIO()
        Image.effect_noise((200, 200), 50).save(stream, "JPEG")
        return Image.open(io.BytesIO(stream.getvalue()[:2000]))

    html = render_mistakes(make_predictions(), open_picture=truncated)
    assert "No picture: image file is truncated" in html


def test_no_mistakes_say_so() -> None:
    test = make_predictions(12)
    right = ClassPredictions(test.row_id, test.y, test.group, np.eye(30)[test.y], THIRTY)
    html = render_mistakes(right, open_picture=open_picture)
    assert "None: all 12 pictures of test were named rightly." in html


def test_artifacts_hold_the_same_numbers(tmp_path: Any, predictions: Any) -> None:
    write_class_artifacts(
        Storage(tmp_path), "run/artifacts", predictions, open_picture=open_picture
    )
    folder = tmp_path / "run/artifacts"
    test = predictions["test"]
    matrix = np.load(folder / "confusion_matrix.npy", allow_pickle=False)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, confusion_matrix(test.y, test.p))
    with Image.open(folder / "confusion_matrix.png") as picture:
        assert min(picture.size) > 1000
    assert (folder / "misclassified.html").stat().st_size > 10_000
    report = json.loads((folder / "classification_report.json").read_text())
    assert list(report) == ["val", "test"]
    metrics = multiclass_metrics(test.y, test.p)
    assert report["test"]["accuracy"] == metrics["accuracy"]
    assert report["test"]["macro_f1"] == metrics["macro_f1"]
    scores = report["test"]["classes"]
    assert list(scores) == list(THIRTY)
    assert scores["eggshells"] == {"support": 0, "precision": None, "recall": None, "f1": None}
    assert len(report["test"]["worst_classes"]) == 5
    f1 = [scores[name]["f1"] for name in report["test"]["worst_classes"]]
    assert f1 == sorted(f1)


def test_artifacts_of_a_run_without_test_are_those_of_validation(
    tmp_path: Any, predictions: Any
) -> None:
    only_val = {"val": predictions["val"]}
    write_class_artifacts(Storage(tmp_path), "a", only_val, open_picture=open_picture)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["classification_report.json"]


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("classes", [("a$b$", "x_1^2", "$"), ("<b>", "中", "$\\frac{$")])
def test_matrix_of_odd_names_is_drawn(classes: tuple[str, ...]) -> None:
    content = confusion_png(np.diag([3, 0, 2]), classes)
    assert Image.open(io.BytesIO(content)).size == (605, 605)
