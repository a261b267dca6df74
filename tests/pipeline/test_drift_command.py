"""`emberline drift` on a model that a real run registered: from files and from live records."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from pipelines.drift import drift
from ray_jobs.data.features import FEATURES
from ray_jobs.data.simulator import generate_shards
from ray_jobs.deployments.base import Release
from ray_jobs.deployments.release import fetch
from ray_jobs.drift import main as job
from ray_jobs.drift import measure, write_report
from ray_jobs.errors import SpecError
from ray_jobs.models.bundle_files import read_index
from ray_jobs.monitoring.records import Record
from ray_jobs.serving.example import read_example
from ray_jobs.serving.model import load_model
from ray_jobs.storage import Storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

NOW = datetime(2026, 5, 10, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def root(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage root with registered versions of `fire`, and 600 rows of the same kind."""
    home = tmp_path_factory.mktemp("drift")
    generate_shards(Storage(home), "rows", generator="independent", num_samples=600, seed=9)
    return shutil.copytree(trained, home / "runs")


@pytest.fixture(scope="module")
def release(root: Path) -> Release:
    return fetch(Storage(root), "fire")


@pytest.fixture(scope="module")
def rows(root: Path) -> np.ndarray:
    table = pq.read_table(root.parent / "rows")
    return np.column_stack([table[name].to_numpy() for name in FEATURES]).astype(float)


def shifted(rows: np.ndarray) -> np.ndarray:
    x = rows.copy()
    x[:, FEATURES.index("gas_val")] += 200
    return x


def to_file(x: np.ndarray, path: Path) -> str:
    pq.write_table(pa.table(dict(zip(FEATURES, x.T, strict=True))), path)
    return str(path)


def record(release: Release, x: np.ndarray, name: str, first: datetime) -> None:
    """A request a minute, as a server of this version records them."""
    scorer = load_model(release.bundle).scorer
    storage = Storage(release.bundle.parents[1])
    lines: dict[str, list[str]] = {}
    for number, row in enumerate(x):
        inputs = scorer.parse(",".join(map(repr, row.tolist())).encode(), "text/csv")
        observation = scorer.observe(inputs, scorer.score([inputs])[0])
        time = first + timedelta(minutes=number)
        about: dict[str, Any] = {
            "version": str(release.model.version), "digest": release.digest, "status": 200,
            "seconds": 0.01, "num_rows": 1, "variant": "champion", "is_shadow": False,
        }  # fmt: skip
        seen = {"features": observation.features, "outputs": observation.outputs}
        entry = Record(time=time, request_id=f"{number}", **about, **seen)
        # Two workers, each with files of its own.
        place = f".live/{name}/{time.date()}/{number % 2}.jsonl"
        lines.setdefault(place, []).append(entry.to_json())
    for place, entries in lines.items():
        storage.write_text(place, "\n".join(["not a record", *entries]) + "\n")


def test_every_registered_version_has_its_example_signed(release: Release) -> None:
    example = read_example(release.bundle)  # fetched and checked against its signature
    assert {"example.json", "reference.json"} <= read_index(release.bundle)["files"].keys()
    scorer = load_model(release.bundle).scorer
    (answer,) = scorer.score([scorer.parse(example.body, example.media_type)])
    assert example.media_type == "text/csv"
    assert example.fault(scorer.render(answer, "application/json", "1")) is None


def test_rows_of_a_file(root: Path, rows: np.ndarray, tmp_path: Path) -> None:
    same = measure(str(root), "fire", input=str(root.parent / "rows"))
    assert (same.status, same.num_rows, same.num_skipped) == ("none", 600, 0)
    assert {finding.role for finding in same.findings} == {"feature", "output"}

    page = tmp_path / "drift.html"
    found = drift(
        str(root), "fire", None,
        input=to_file(shifted(rows), tmp_path / "x.parquet"), alpha=0.01, output=page,
    )  # fmt: skip
    assert found.exit_code == 7
    assert "gas_val" in found.report.drifted()
    assert found.report.findings[0].name == "gas_val"
    assert json.loads(found.to_json())["status"] == "drift"
    assert "Live traffic is not what the model was trained on." in page.read_text()


def test_live_records(root: Path, release: Release, rows: np.ndarray) -> None:
    record(release, rows[:400], "fire", NOW)
    same = measure(str(root), "fire")
    assert (same.status, same.num_rows, same.num_requests) == ("none", 400, 400)
    assert same.num_skipped == 2  # lines that are no records
    assert (same.since, same.until) == (NOW, NOW + timedelta(minutes=399))

    later = NOW + timedelta(days=2)
    record(release, shifted(rows[:300]), "fire", later)
    assert measure(str(root), "fire", since=later).drifted() == ["gas_val"]
    few = measure(str(root), "fire", since=later + timedelta(minutes=280))
    assert (few.status, few.num_rows, few.exit_code) == ("unknown", 20, 0)
    assert "not enough (n < 30 independent values)" in few.reason
    none = measure(str(root), "fire", name="other")
    assert (none.status, none.num_rows, none.findings) == ("unknown", 0, ())
    assert none.reason.startswith("no requests to version 3 are recorded for deployment 'other'")


def test_another_versions_records_are_not_read(
    root: Path, release: Release, rows: np.ndarray
) -> None:
    other = Release(release.model, release.bundle.with_name("0" * 64))
    record(release, rows[:50], "elsewhere", NOW)
    for path in (root / ".live" / "elsewhere").rglob("*.jsonl"):
        path.write_text(path.read_text().replace(release.digest, other.digest))
    assert measure(str(root), "fire", name="elsewhere").num_rows == 0


def test_the_command_line(
    root: Path, rows: np.ndarray, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = to_file(shifted(rows), tmp_path / "x.parquet")
    words = ["drift", "fire", "--storage", str(root), "--input", file, "--json"]
    monkeypatch.setattr(sys, "argv", ["emberline", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 7
    assert json.loads(capsys.readouterr().out)["findings"][0]["name"] == "gas_val"
    assert job(words[1:-1]) == 7
    assert json.loads(capsys.readouterr().out)["status"] == "drift"


def test_what_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"alpha is 0, but a rate of false alarms is over 0"):
        measure(str(root), "fire", alpha=0)
    with pytest.raises(SpecError, match="an input file has neither a deployment nor a time"):
        measure(str(root), "fire", input="x.csv", name="fire")
    report = measure(str(root), "fire", name="other")
    with pytest.raises(SpecError, match=r"--output .*: cannot be written \(No such file"):
        write_report(report, tmp_path / "none" / "x.html")
