"""What `emberline doctor` says of a machine, and of what a workload needs of it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from pipelines import doctor
from pipelines.check_table import print_checks
from ray_jobs import checks
from ray_jobs.checks import Check, Checklist
from ray_jobs.spec import load_spec
from tests.conftest import SMALL_WASTE


def text_of(show: Callable[[Console], None]) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=200, highlight=False))
    return stream.getvalue()


def workload_checks(workload: str, *overrides: str, storage: Path) -> Checklist:
    checklist = Checklist()
    checklist.add(checks.check_torch())
    checklist.add(checks.check_storage(str(storage)))
    doctor.add_workload(checklist, load_spec(workload, overrides=overrides, storage=str(storage)))
    return checklist


def test_a_sound_machine(tmp_path: Path) -> None:
    examination = doctor.examine(str(tmp_path), load_spec("fire", storage=str(tmp_path)))
    assert examination.exit_code == 0
    made = json.loads(examination.to_json())
    assert [check["name"] for check in made] == [
        "python", "packages", "torch", "memory", "disk", "storage", "tracking", "data",
    ]  # fmt: skip
    assert {check["passed"] for check in made} == {True}
    assert made[-1]["found"] == "70,000 train, 15,000 val, 15,000 test rows"


def test_the_data_and_the_network_of_a_workload(tmp_path: Path) -> None:
    small = (*SMALL_WASTE, "resources.num_cpus=1")
    checklist = workload_checks("waste", *small, storage=tmp_path)
    made = {check.name: check for check in checklist.checks}
    assert checklist.failed == []
    assert made["data"].found == "procedural (160): 112 train, 24 val, 24 test pictures; 4 classes"
    assert {"device", "workers", "first step", "time"} <= made.keys()
    assert not (tmp_path / "waste").exists()


def test_data_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    sources = f"data.sources=[{{path: {tmp_path / 'photos'}}}]"
    checklist = workload_checks("waste", sources, storage=tmp_path)
    (failed,) = checklist.failed
    assert failed.name == "data"
    assert str(tmp_path / "photos") in failed.found
    assert checklist.checks[-1] is failed


def test_nothing_is_written_to_a_storage_that_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    examination = doctor.examine(
        str(tmp_path / "file"), load_spec("fire", storage=str(tmp_path / "file"))
    )
    assert examination.exit_code == 3
    storage, data = examination.checklist.checks[5], examination.checklist.checks[-1]
    assert f"storage '{tmp_path / 'file'}' cannot be written" in storage.found
    assert storage.fix == "name a folder or s3:// URI with --storage"
    assert data == Check("data", None, "not checked: it needs storage")


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    check = checks.check_tracking()
    assert not check.passed
    assert check.found.startswith("http://127.0.0.1:9: ")
    assert check.fix == "start the server, or unset MLFLOW_TRACKING_URI to use sqlite"


def test_a_row_for_each_check() -> None:
    made = [
        Check("disk", True, "3.0 GiB free at [x]"),
        Check("storage", False, "cannot be written", "name another"),
        Check("data", None, "not checked: it needs storage", "nothing to mend"),
    ]
    text = text_of(lambda console: print_checks(Checklist(made), console))
    assert [line.strip().split(maxsplit=2) for line in text.splitlines()] == [
        ["ok", "disk", "3.0 GiB free at [x]"],
        ["failed", "storage", "cannot be written"],
        ["→", "name", "another"],
        ["–", "data", "not checked: it needs storage"],
    ]
