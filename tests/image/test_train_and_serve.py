"""SageMaker's two commands, in a container that may write to /opt/ml and /tmp alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ray_jobs.models.bundle_files import read_index, verify
from ray_jobs.result import JobResult
from ray_jobs.run import Run
from tests.conftest import SMALL_GCODE
from tests.image.engine import Image, open_to_all, until
from tests.unit.serving_models import PUBLISHED
from tests.unit.test_container import RUN, failure, start, write_tree

pytestmark = pytest.mark.timeout(600)

ML = "/opt/ml"
FIRE = (
    "data.samples=600",
    "members.transformer=null",
    "members.random_forest.num_trees=20",
    "members.lstm_classifier.epochs=2",
    "resources.num_cpus=1",
)


def fire_tree(base: Path, *overrides: str) -> Path:
    write_tree(base, "fire", *FIRE, *overrides)
    return open_to_all(base)


def result_of(base: Path) -> JobResult:
    result = Run.open(str(base / "checkpoints"), "fire", RUN).read_result()
    assert result is not None
    return result


@pytest.fixture(scope="module")
def trained(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = fire_tree(tmp_path_factory.mktemp("trained") / "ml")
    done = image.run("train", mounts={base: ML}, timeout_s=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return base


def test_the_same_model_as_here(trained: Path, tmp_path: Path) -> None:
    base = fire_tree(tmp_path / "ml")
    _, stderr = start(base).communicate(timeout=400)
    here, there = result_of(base), result_of(trained)
    assert (here.status, there.status) == ("SUCCEEDED", "SUCCEEDED"), stderr
    assert {one.name: one.status for one in there.members} == {
        one.name: one.status for one in here.members
    }
    for split, scores in here.metrics.items():
        for name, metric in scores.items():
            assert there.metrics[split][name].value == pytest.approx(metric.value, abs=1e-6), name
    assert not (trained / "output/failure").exists()
    verify(trained / "model", read_index(trained / "model")["files"])


def test_the_model_is_served_until_sigterm(image: Image, trained: Path) -> None:
    with image.started("serve", mounts={trained / "model": f"{ML}/model:ro"}) as container:
        until(lambda: container.ask("GET", "/ping")[0] == 200, container)
        status, answer = container.ask("POST", "/invocations", PUBLISHED)
        assert status == 200, answer
        (one,) = json.loads(answer)["predictions"]
        assert 0 <= one["probability"] <= 1
        assert container.terminate() == 0, container.log()


def test_sigterm_stops_training_at_a_checkpoint(image: Image, tmp_path: Path) -> None:
    base = tmp_path / "ml"
    write_tree(base, "gcode", *SMALL_GCODE, "train.epochs=400", "resources.num_cpus=1")
    with image.started("train", mounts={open_to_all(base): ML}) as container:
        until(lambda: "model epoch 1/400" in container.log(), container, timeout_s=240)
        assert container.terminate() == 130, container.log()
        assert "a checkpoint is written" in container.log()
    assert not (base / "output/failure").exists()
    assert any((base / "checkpoints/gcode" / RUN / "checkpoints").rglob("*"))


def test_sigterm_ends_a_job_that_has_no_checkpoint(image: Image, tmp_path: Path) -> None:
    base = fire_tree(tmp_path / "ml", "data.samples=60000", "members.lstm_classifier.epochs=200")
    with image.started("train", mounts={base: ML}) as container:
        until(lambda: container.log().count("[emberline] ") > 1, container)
        assert container.terminate() == 130, container.log()
    assert not any((base / "model").iterdir())


def test_why_it_failed_is_left_for_sagemaker(image: Image, tmp_path: Path) -> None:
    base = tmp_path / "ml"
    write_tree(base, "fire", "data.path=/opt/ml/none.csv", "data.label_column=fire")
    done = image.run("train", mounts={open_to_all(base): ML})
    assert done.returncode == 3, done.stdout + done.stderr
    assert "/opt/ml/none.csv" in failure(base)
    assert f"error: {failure(base)}" in done.stderr


def test_folders_of_another_user_are_told(image: Image, tmp_path: Path) -> None:
    base = fire_tree(tmp_path / "ml")
    (base / "model").mkdir()
    (base / "model").chmod(0o755)
    done = image.run("train", mounts={base: ML})
    assert done.returncode == 3, done.stdout + done.stderr
    assert failure(base) == (
        "/opt/ml/model: the user 65532 may not write there; give it that folder, or build the "
        "image with --build-arg UID=0, for SageMaker's folders are root's"
    )
