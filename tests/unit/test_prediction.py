"""`emberline predict`: files in, a table out, by a registered model."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from pipelines.prediction import Predictions, predict
from ray_jobs.bundle import load_bundle
from ray_jobs.data.features import FEATURES
from ray_jobs.errors import DataError, SpecError
from ray_jobs.models.gcode_bundle import load_gcode_bundle
from ray_jobs.models.image_bundle import load_image_bundle
from ray_jobs.serving import rows
from tests.unit.serving_models import (
    FRAME,
    fire_folder,
    gcode_folder,
    picture,
    readings,
    to_csv,
    waste_folder,
)
from tests.unit.test_models_registry import own_signing_key, register

FOLDERS = {"fire": fire_folder, "waste": waste_folder, "gcode": gcode_folder}


@pytest.fixture(scope="module", autouse=True)
def own_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_signing_key(tmp_path_factory.mktemp("config")):
        yield


@pytest.fixture(scope="module")
def root(own_key: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage root with a model of each workload."""
    root = tmp_path_factory.mktemp("models")
    client = None
    for name, folder in FOLDERS.items():
        version = register(root, name, folder())
        client = client or mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
        client.set_registered_model_alias(name, "challenger", str(version))
    return root


Ask = Callable[..., Predictions]


@pytest.fixture
def ask(root: Path, tmp_path: Path) -> Ask:
    """Predict for a file in the test's folder."""

    def asked(name: str, given: str, output: str = "out.csv", **options: bool) -> Predictions:
        return predict(
            str(root), name, None, str(tmp_path / given), str(tmp_path / output), **options
        )

    return asked


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"model_version": str}, float_precision="round_trip")


def frame(num_rows: int, seed: int = 0) -> pd.DataFrame:
    """Readings among columns that the model does not take."""
    x = readings(num_rows, seed)
    order = np.random.default_rng(seed).permutation(18)
    shuffled = pd.DataFrame(x[:, order], columns=[FEATURES[number] for number in order])
    shuffled.insert(3, "note", 'said "hot",\nthen cold')
    return shuffled.assign(time=pd.Timestamp("2026-01-01"), fire=1)


def expected(num_rows: int, seed: int = 0) -> list[float]:
    return load_bundle(fire_folder()).score(readings(num_rows, seed)).tolist()


# fire


@pytest.mark.parametrize("given", ["in.csv", "in.csv.gz", "in.tsv", "in.parquet"])
@pytest.mark.parametrize("size", [3, 50])
def test_every_form_of_rows_in_batches(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, size: int
) -> None:
    monkeypatch.setattr(rows, "_BATCH_ROWS", size)
    if given == "in.parquet":
        frame(20).to_parquet(tmp_path / given)
    else:
        frame(20).to_csv(tmp_path / given, index=False, sep="\t" if "tsv" in given else ",")
    outcome = ask("fire", given)
    said = table(tmp_path / "out.csv")
    assert said.columns.tolist() == ["file", "row", "probability", "decision", "model_version"]
    assert said.probability.tolist() == pytest.approx(expected(20), abs=1e-6)
    assert said.decision.tolist() == [p >= 0.4 for p in said.probability]
    assert said.row.tolist() == [*range(1, 21)]
    assert set(said.file) == {given}
    assert set(said.model_version) == {"1"}
    assert (outcome.num_predictions, outcome.num_skipped, outcome.exit_code) == (20, 0, 0)


def test_the_forms_of_the_table_agree(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(to_csv(readings(7, 0)))  # no header
    for output in ("out.csv", "out.parquet", "out.jsonl"):
        ask("fire", "in.csv", output)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["probability"] for one in lines] == pytest.approx(expected(7), abs=1e-6)
    wanted = pd.DataFrame(lines)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out.parquet"), wanted)
    pd.testing.assert_frame_equal(table(tmp_path / "out.csv"), wanted)


def test_a_folder_of_files_and_the_output_among_them(ask: Ask, tmp_path: Path) -> None:
    folder = tmp_path / "day"
    (folder / "b").mkdir(parents=True)
    for name, num_rows, seed in (("a.csv", 2, 1), ("b/c.csv", 3, 2)):
        (folder / name).write_text(to_csv(readings(num_rows, seed), FEATURES))
    (folder / "notes.md").touch()
    for _ in range(2):
        outcome = ask("fire", "day", "day/out.csv")
        said = table(folder / "out.csv")
        assert said.file.tolist() == ["a.csv"] * 2 + ["b/c.csv"] * 3
        assert said.row.tolist() == [1, 2, 1, 2, 3]
        assert said.probability.tolist() == pytest.approx(expected(2, 1) + expected(3, 2), abs=1e-6)
        assert outcome.num_files == 2


def faulty(path: Path, faults: dict[int, dict[str, object]], num_rows: int = 12) -> None:
    """Readings with other cells in rows counted from 1."""
    cells = [list(map(repr, row)) for row in readings(num_rows, 0).tolist()]
    for number, changed in faults.items():
        for name, cell in changed.items():
            cells[number - 1][FEATURES.index(name)] = str(cell)
    with path.open("w", newline="") as file:
        file.write("\n")
        csv.writer(file).writerows([FEATURES, *cells])


FIRST, LAST = FEATURES[0], FEATURES[-1]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("hot", "'hot' is not a number"),
        ("", "'' is not a number"),
        ("1_000", "'1_000' is not a number"),
        ("nan", "nan is not a finite number"),
        ("-inf", "-inf is not a finite number"),
        ("1e300", "1e+300 is out of range"),
        ('a "b",\nc', "is not a number"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: str, reason: str
) -> None:
    monkeypatch.setattr(rows, "_BATCH_ROWS", 4)
    faulty(tmp_path / "in.csv", {7: {LAST: cell}})
    with pytest.raises(DataError) as refused:
        ask("fire", "in.csv")
    line = 9 + cell.count("\n")  # after a blank line and the header
    said = str(refused.value)
    assert said.startswith(f"in.csv, row 7 (line {line}), column {LAST!r}: ")
    assert said.endswith(f"{reason}. Mend it, or leave such out with --skip-bad")
    assert refused.value.exit_code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_bad_rows_are_skipped_and_counted(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_BATCH_ROWS", 4)
    faulty(tmp_path / "in.csv", {number: {FIRST: "x"} for number in (1, 5, 6, 7, 8, 12)})
    with (tmp_path / "in.csv").open("a") as file:
        file.write("1,2,3\n")
    outcome = ask("fire", "in.csv", skip_bad=True)
    said, kept = table(tmp_path / "out.csv"), [2, 3, 4, 9, 10, 11]
    assert said.row.tolist() == kept
    p = expected(12)
    assert said.probability.tolist() == pytest.approx([p[n - 1] for n in kept], abs=1e-6)
    assert (outcome.num_skipped, len(outcome.skipped)) == (7, 5)
    assert outcome.skipped[0] == f"in.csv, row 1 (line 3), column {FIRST!r}: 'x' is not a number"
    console = Console(width=200)
    with console.capture() as captured:
        outcome.print(console)
    assert "6 predictions by fire version 1 (challenger) in " in captured.get()
    assert "warning: 7 skipped:" in captured.get()
    assert json.loads(outcome.to_json())["num_skipped"] == 7


def test_a_line_of_another_width(ask: Ask, tmp_path: Path) -> None:
    text = to_csv(readings(2, 0), FEATURES)
    (tmp_path / "in.csv").write_text(f"{text}\n\n1,2\n")
    with pytest.raises(
        DataError, match=r"^in.csv, row 3 \(line 5\) has 2 values where there are 18"
    ):
        ask("fire", "in.csv")


def test_bad_cells_of_parquet(ask: Ask, tmp_path: Path) -> None:
    given = frame(5)
    given[FIRST] = given[FIRST].astype(float).where(given.index != 2)
    given.to_parquet(tmp_path / "in.parquet")
    with pytest.raises(DataError, match=f"^in.parquet, row 3, column {FIRST!r}: "):
        ask("fire", "in.parquet")
    given[FIRST] = True
    given.to_parquet(tmp_path / "in.parquet")
    with pytest.raises(DataError, match=f"row 1, column {FIRST!r}: True is not a number"):
        ask("fire", "in.parquet")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "in.csv: the file is empty"),
        (",".join(FEATURES), "in.csv: no rows"),
        ("1,2\n3,4", "in.csv: no header, and 2 values in its first line where the model takes 18"),
        ("a,b\n1,2", f"in.csv: no column {FIRST!r}; the model takes {FIRST}, "),
        (",".join((*FEATURES, LAST)), f"in.csv: the column {LAST!r} is there twice"),
        (b"\xff\xfe\n", "in.csv: not UTF-8"),
    ],
)
def test_a_file_that_the_model_does_not_take(
    ask: Ask, tmp_path: Path, content: str | bytes, message: str
) -> None:
    (tmp_path / "in.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as refused:
        ask("fire", "in.csv")
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("absent.csv", "absent.csv: no such file or folder; give one that holds .csv, .tsv"),
        ("notes.md", "notes.md: not known by its ending; the model takes .csv, .tsv"),
        ("bad.parquet", "bad.parquet: cannot be read, damaged or not what its ending says: "),
        ("bad.csv.gz", "bad.csv.gz: cannot be read, damaged or not what its ending says: "),
        ("empty", "empty: none of its 0 files is one of .csv, .tsv"),
    ],
)
def test_what_is_no_table(ask: Ask, tmp_path: Path, given: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("notes.md", "bad.parquet", "bad.csv.gz"):
        (tmp_path / name).write_bytes(b"hello")
    with pytest.raises(DataError) as refused:
        ask("fire", given)
    assert message in str(refused.value)


def test_nothing_but_bad_rows(ask: Ask, tmp_path: Path) -> None:
    faulty(tmp_path / "in.csv", {1: {FIRST: "x"}}, num_rows=1)
    with pytest.raises(DataError, match=r"in.csv: nothing that the model takes: in.csv, row 1 "):
        ask("fire", "in.csv", skip_bad=True)
    assert not (tmp_path / "out.csv").exists()


def test_an_output_of_no_known_kind(ask: Ask) -> None:
    with pytest.raises(SpecError, match=r"must end in one of .csv, .parquet, .jsonl"):
        ask("fire", "in.csv", "out.xlsx")


@pytest.mark.slow
def test_files_on_s3(root: Path, bucket: str) -> None:
    import boto3

    client = boto3.client("s3")
    for name in ("a", "b"):
        body = to_csv(readings(3, 0), FEATURES).encode()
        client.put_object(Bucket=bucket, Key=f"asked/{name}.csv", Body=body)
    output = f"s3://{bucket}/said/out.csv"
    outcome = predict(str(root), "fire", "1", f"s3://{bucket}/asked", output)
    said = client.get_object(Bucket=bucket, Key="said/out.csv")["Body"].read().decode()
    assert [line.split(",")[:2] for line in said.splitlines()[1:]] == [
        [f"{name}.csv", str(number)] for name in "ab" for number in (1, 2, 3)
    ]
    assert (outcome.output, outcome.num_predictions) == (output, 6)
    with pytest.raises(DataError, match=rf"s3://{bucket}/none: no such file or folder"):
        predict(str(root), "fire", "1", f"s3://{bucket}/none", output)


# waste


def pictures(folder: Path, contents: Sequence[bytes]) -> None:
    folder.mkdir()
    for number, content in enumerate(contents):
        (folder / f"{number:02}.png").write_bytes(content)


def test_pictures_of_a_folder(ask: Ask, tmp_path: Path) -> None:
    contents = [picture(number) for number in range(18)]
    pictures(tmp_path / "day", contents)
    (tmp_path / "day" / "._00.png").write_bytes(b"a Mac's own")
    ask("waste", "day")
    said = table(tmp_path / "out.csv")
    bundle = load_image_bundle(waste_folder())
    p = bundle.predict_proba(contents)
    assert said.columns.tolist() == ["file", "class", "probability", "model_version"]
    assert said.file.tolist() == [f"{number:02}.png" for number in range(18)]
    assert said["class"].tolist() == [bundle.classes[number] for number in p.argmax(axis=1)]
    assert said.probability.tolist() == pytest.approx(p.max(axis=1), abs=1e-5)
    ask("waste", "day/03.png", "one.parquet")
    assert pd.read_parquet(tmp_path / "one.parquet").file.tolist() == ["03.png"]


def test_a_picture_that_is_none(ask: Ask, tmp_path: Path) -> None:
    pictures(tmp_path / "day", [picture(0), b"hello", picture(2)])
    with pytest.raises(DataError, match=r"^01.png: not-a-picture: none of JPEG"):
        ask("waste", "day")
    outcome = ask("waste", "day", skip_bad=True)
    assert table(tmp_path / "out.csv").file.tolist() == ["00.png", "02.png"]
    assert outcome.num_skipped == 1


# gcode


def log(num_rows: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(2, 1, (num_rows, 3))
    x[::4, 1] = np.nan
    return x


def as_text(x: np.ndarray) -> str:
    return to_csv(x, FRAME.features).replace("nan", "")


@pytest.mark.parametrize("size", [2, 7, 100])
def test_each_log_is_a_run_however_it_is_cut(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(rows, "_BATCH_ROWS", size)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.csv").write_text(as_text(log(25, 1)))
    pd.DataFrame(log(9, 2), columns=FRAME.features).assign(line="G1 X2").to_parquet(
        tmp_path / "logs" / "b.parquet"
    )
    ask("gcode", "logs")
    said = table(tmp_path / "out.csv")
    bundle = load_gcode_bundle(gcode_folder())
    for name, x in (("a.csv", log(25, 1)), ("b.parquet", log(9, 2))):
        part, lines = said[said.file == name], bundle.decode(x)
        assert part.row.tolist() == [*range(6, len(x) + 1)]
        assert part.command.tolist() == [FRAME.commands[number] for number in lines.command]
        values = part[list("FRXYZ")].to_numpy()
        assert np.array_equal(~np.isnan(values), lines.param_type)
        wanted = lines.param_value[lines.param_type]
        assert values[lines.param_type] == pytest.approx(wanted, abs=1e-5)


def test_bad_rows_of_a_log(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_BATCH_ROWS", 4)
    lines = as_text(log(15, 1)).splitlines()
    lines[9] = "1,inf,2"
    (tmp_path / "a.csv").write_text("\n".join(lines))
    with pytest.raises(
        DataError, match=r"^a.csv, row 9 \(line 10\), column 'x_load': inf is not a finite number"
    ):
        ask("gcode", "a.csv")
    ask("gcode", "a.csv", skip_bad=True)
    lines = load_gcode_bundle(gcode_folder()).decode(np.delete(log(15, 1), 8, axis=0))
    said = table(tmp_path / "out.csv")
    assert said.row.tolist() == [6, 7, 8, 10, 11, 12, 13, 14, 15]
    assert said.command.tolist() == [FRAME.commands[number] for number in lines.command]


def test_a_log_that_is_too_short(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for name, num_rows in (("a", 5), ("b", 6)):
        (tmp_path / "logs" / f"{name}.csv").write_text(as_text(log(num_rows, 1)))
    with pytest.raises(DataError, match=r"^a.csv: a window has 6 rows, but there are 5\. Mend"):
        ask("gcode", "logs")
    assert ask("gcode", "logs", skip_bad=True).num_predictions == 1
