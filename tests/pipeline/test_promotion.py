"""Promotion of models that real runs registered: what passes the gate, and what it refuses."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipelines import promotion
from ray_jobs.errors import DataError, RetryableError, SpecError
from ray_jobs.promote import Refused, promote, rollback
from ray_jobs.sections import JobSpec
from ray_jobs.spec import load_spec
from ray_jobs.storage import Storage
from ray_jobs.tracking.audit import AuditLog
from ray_jobs.tracking.gate import refusals
from ray_jobs.tracking.registry import Registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

RULES = ("promotion.max_gap=1", "promotion.max_ece=1")


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Path:
    """A copy, of which only the models' files are still those of the original."""
    return shutil.copytree(trained, tmp_path / "runs")


def rules(root: Path, *overrides: str) -> JobSpec:
    return load_spec("fire", storage=str(root), overrides=[*RULES, *overrides])


def champion(root: Path) -> int | None:
    return Registry(Storage(root)).champion("fire")


def refusal(root: Path, version: int, where: JobSpec | str | None = None) -> dict[str, str]:
    """Rule -> why. No alias is moved."""
    before = champion(root)
    with pytest.raises(Refused) as refused:
        promote(where or str(root), "fire", version)
    assert refused.value.exit_code == 6
    assert champion(root) == before
    assert AuditLog(Storage(root), "fire").read()[-1].event == "refused"
    return {verdict.rule: verdict.why for verdict in refusals(refused.value.promotion.verdicts)}


def bundle(trained: Path, version: int) -> Path:
    """Where MLflow keeps a version's files."""
    registry = Registry(Storage(trained))
    source = registry._client.get_model_version_download_uri("fire", str(version))
    return Path(source.removeprefix("file://")) / "artifacts" / "bundle"


@pytest.fixture
def restored(trained: Path) -> Iterator[Path]:
    """The files of version 1, which are put back afterwards."""
    folder = bundle(trained, 1)
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept)
    yield folder
    shutil.rmtree(folder)
    kept.rename(folder)


# What passes


def test_promoted_compared_and_rolled_back(root: Path) -> None:
    first = promote(str(root), "fire", 1)
    assert (first.outcome, first.champion, champion(root)) == ("promoted", None, 1)
    again = promote(str(root), "fire", 1)
    assert (again.outcome, again.exit_code) == ("unchanged", 0)

    found = refusal(root, 2)
    assert found.keys() == {"better"}
    assert "against that of the champion, version 1: that is not > 0 at 95%" in found["better"]
    tags = Registry(Storage(root)).version("fire", 2).tags
    assert tags["emberline.gate.better"].startswith("refused: ")
    assert tags["emberline.gate.signature"] == "passed: sound (limit: by a trusted key)"

    lenient = rules(root, "promotion.must_be_better=false", "promotion.confidence=0.999")
    second = promote(lenient, "fire", 2)
    assert (second.outcome, second.champion, champion(root)) == ("promoted", 1, 2)
    back = rollback(str(root), "fire")
    assert (back.outcome, back.version, back.champion, champion(root)) == ("rolled_back", 1, 2, 1)
    events = [(entry.event, entry.version) for entry in AuditLog(Storage(root), "fire").read()]
    assert events == [
        ("intent", 1),
        ("promoted", 1),
        ("refused", 2),
        ("intent", 2),
        ("promoted", 2),
        ("intent", 1),
        ("rolled_back", 1),
    ]


def test_a_dry_run_writes_nothing(root: Path) -> None:
    before = sorted(path for path in root.rglob("*") if "mlflow.db" not in path.name)
    outcome = promotion.promote(str(root), "fire", 1, dry_run=True)
    assert (outcome.exit_code, outcome.promotion.outcome) == (0, "accepted")
    assert json.loads(outcome.to_json())["verdicts"][0]["rule"] == "artifact"
    console = Console(width=120, file=io.StringIO(), record=True)
    outcome.print(console)
    assert "version 1 of fire passes; the champion is still none (dry run)" in console.export_text()
    assert sorted(path for path in root.rglob("*") if "mlflow.db" not in path.name) == before
    tags = Registry(Storage(root)).version("fire", 1).tags
    assert not [name for name in tags if name.startswith("emberline.gate")]
    assert champion(root) is None


def test_as_a_process(root: Path) -> None:
    """The challenger, by default, is the newest version; the rules are those of its run."""
    command = [sys.executable, "-m", "ray_jobs.promote", "fire", "--storage", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] == champion(root) == 3
    refused = subprocess.run(
        [*command, "--version", "1"], capture_output=True, text=True, timeout=200, check=False
    )
    assert refused.returncode == 6
    assert "error: version 1 of 'fire' is refused. same_test: it was tested on other" in (
        refused.stderr
    )
    assert json.loads(refused.stdout)["outcome"] == "refused"


def test_promoters_at_once(root: Path) -> None:
    def attempt(version: int) -> str:
        try:
            return promote(str(root), "fire", version).outcome
        except RetryableError:
            return "outrun"
        except Refused:
            return "refused"

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(attempt, (1, 2)))
    assert outcomes.count("promoted") == 1, outcomes
    assert champion(root) == outcomes.index("promoted") + 1
    assert AuditLog(Storage(root), "fire").read()


# What is refused


def test_another_test_set(root: Path) -> None:
    promote(str(root), "fire", 1)
    found = refusal(root, 3)
    assert found.keys() == {"same_test", "better"}
    assert "it was tested on other rows than the champion, version 1" in found["same_test"]
    assert "the two models were not tested on the same rows" in found["better"]


def edit_rows(root: Path, edit: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """Change the features of the dataset of version 1. `edit` takes them, [N, F], and each row's
    split, [N]."""
    result = json.loads((root / "fire/base/result.json").read_text())
    folder = root / result["data"]["path"]
    splits = pq.read_table(folder / "splits.parquet")["split"].to_numpy()
    shards = sorted(path for path in folder.glob("*.parquet") if path.name != "splits.parquet")
    tables = [pq.read_table(path) for path in shards]
    table = pa.concat_tables(tables)
    features = result["data"]["features"]
    x = edit(np.column_stack([table[name].to_numpy() for name in features]), splits)
    for name, column in zip(features, x.T, strict=True):
        place = table.schema.get_field_index(name)
        field = table.schema.field(name)
        table = table.set_column(place, field, pa.array(column).cast(field.type))
    for path, part in zip(shards, tables, strict=True):
        pq.write_table(table.slice(0, len(part)), path)
        table = table.slice(len(part))


def test_trained_on_rows_of_test(root: Path) -> None:
    def leak(x: np.ndarray, split: np.ndarray) -> np.ndarray:
        train, test = np.flatnonzero(split == 0), np.flatnonzero(split == 2)
        x[train[: len(test)]] = x[test]
        return x

    edit_rows(root, leak)
    found = refusal(root, 1)
    assert found.keys() == {"unseen_test"}
    assert (
        "test rows stand in train, too, feature by feature with their label"
        in (found["unseen_test"])
    )


def test_other_rows_under_the_same_ids(root: Path) -> None:
    promote(str(root), "fire", 1)
    result = json.loads((root / "fire/worse/result.json").read_text())
    own = result["data"]["path"] + "-own"
    shutil.copytree(root / result["data"]["path"], root / own)
    result["data"]["path"] = own
    (root / "fire/worse/result.json").write_text(json.dumps(result))
    edit_rows(root, lambda x, split: np.where((split == 2)[:, None], x + 1, x))
    found = refusal(root, 2)
    assert found.keys() == {"same_test", "better"}
    assert "bear the ids of those of the champion, version 1, but other" in found["same_test"]


@pytest.mark.parametrize("name", ["test.f1", "val.ece"])
def test_a_metric_that_is_not_finite(root: Path, name: str) -> None:
    registry = Registry(Storage(root))
    mlflow_run = registry.version("fire", 1).mlflow_run_id
    registry._client.log_metric(mlflow_run, name, float("nan"))
    found = refusal(root, 1)
    assert found["metrics"] == f"{name} is nan; train and evaluate it again"


def test_a_result_that_is_not_finite(root: Path) -> None:
    path = root / "fire/base/result.json"
    result = json.loads(path.read_text())
    result["metrics"]["test"]["f1"]["value"] = float("nan")
    path.write_text(json.dumps(result))
    found = refusal(root, 1)
    assert found.keys() == {"result"}
    assert "metrics.test.f1.value: Input should be a finite number" in found["result"]


def test_a_metric_that_was_made_up(root: Path) -> None:
    registry = Registry(Storage(root))
    mlflow_run = registry.version("fire", 1).mlflow_run_id
    registry._client.log_metric(mlflow_run, "test.f1", 0.99)
    found = refusal(root, 1)
    assert found.keys() == {"record"}
    assert "test.f1 is 0.99 in MLflow, " in found["record"]


def test_a_file_that_was_altered(root: Path, restored: Path) -> None:
    (path,) = restored.rglob("*.skops")
    path.write_bytes(path.read_bytes() + b" ")
    found = refusal(root, 1)
    assert found.keys() == {"artifact", "max_latency_ms"}  # it was not loaded
    assert found["artifact"] == (
        f"the model's file {path.relative_to(restored)} is not the one that was trained (sha256)"
    )


def test_a_file_that_was_altered_with_its_index(root: Path, restored: Path) -> None:
    (path,) = restored.rglob("*.skops")
    path.write_bytes(path.read_bytes() + b" ")
    index = json.loads((restored / "bundle.json").read_text())
    name = path.relative_to(restored).as_posix()
    index["files"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (restored / "bundle.json").write_text(json.dumps(index))
    found = refusal(root, 1)
    assert found.keys() == {"signature", "max_latency_ms"}
    assert "it was altered since; train and register it again" in found["signature"]
    # Nor does it help to register that index.
    registry = Registry(Storage(root))
    digest = hashlib.sha256((restored / "bundle.json").read_bytes()).hexdigest()
    registry.tag(registry.version("fire", 1), {"emberline.index_digest": digest})
    assert "its signature is not of these files" in refusal(root, 1)["signature"]


def test_signatures_that_are_not_trusted(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = Ed25519PrivateKey.generate().public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "release.pub").write_bytes(pem)
    monkeypatch.setenv("EMBERLINE_TRUSTED_KEYS", str(tmp_path))
    assert "which is not trusted" in refusal(root, 1)["signature"]
    registry = Registry(Storage(root))
    registry._client.delete_model_version_tag("fire", "1", "emberline.signature")
    assert "it is not signed: it lacks the tag" in refusal(root, 1)["signature"]


def test_rules_of_the_spec(root: Path) -> None:
    strict = rules(
        root,
        "promotion.min_metrics.accuracy=1.01",
        "promotion.max_latency_ms=0.000001",
        "promotion.max_size_mb=0.000001",
    )
    assert refusal(root, 1, strict).keys() == {"min_accuracy", "max_latency_ms", "max_size_mb"}


# What cannot be judged


def test_what_is_not_there_is_named(root: Path) -> None:
    with pytest.raises(SpecError, match=r"no model 'fier' is registered at .*; train it first"):
        promote(str(root), "fier")
    with pytest.raises(SpecError, match="'fire' has no version 9; there is 3, 2, 1; name one with"):
        promote(str(root), "fire", 9)
    shutil.rmtree(root / json.loads((root / "fire/base/result.json").read_text())["data"]["path"])
    with pytest.raises(DataError, match="version 1 of 'fire' was tested on files that are gone"):
        promote(str(root), "fire", 1)
    shutil.rmtree(root / "fire/base")
    with pytest.raises(SpecError, match="no run 'base' of 'fire' under"):
        promote(str(root), "fire", 1)


def test_a_model_whose_files_are_gone(root: Path, restored: Path) -> None:
    shutil.rmtree(restored)
    try:
        assert "fire version 1 has no bundle at " in refusal(root, 1)["artifact"]
    finally:
        restored.mkdir()
