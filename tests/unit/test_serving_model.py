"""The model that is served: what is loaded, what is refused before, and its trees made flat."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

from ray_jobs.bundle import load_bundle
from ray_jobs.data.dataset import Rows
from ray_jobs.data.features import FEATURES
from ray_jobs.errors import JobFailed
from ray_jobs.serving import trees
from ray_jobs.serving.model import load_model
from ray_jobs.serving.trees import FlatBoosting, FlatForest
from tests.unit.serving_models import fire_folder, gcode_folder, readings, waste_folder

# Trees

FLAT = {"random_forest": FlatForest, "gradient_boosting": FlatBoosting}


def stand_alone(x: np.ndarray) -> Rows:
    number = np.arange(len(x))
    return Rows(x, np.zeros(len(x), np.int8), number, number, FEATURES)


@pytest.mark.parametrize("family", FLAT)
@pytest.mark.parametrize("num_rows", [1, 7, 300])
def test_flat_trees_say_the_same_bit_for_bit(
    family: str, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "_AT_ONCE", 200)  # 300 rows go scikit-learn's own way
    member = load_bundle(fire_folder()).members[family]
    rows = stand_alone(readings(num_rows, 3))
    flat = FLAT[family](member._classifier)
    assert np.array_equal(flat.predict_proba(rows), member.predict_proba(rows))


@pytest.mark.parametrize("family", FLAT)
def test_a_row_on_a_threshold_goes_left(family: str) -> None:
    member = load_bundle(fire_folder()).members[family]
    flat = FLAT[family](member._classifier)
    x = readings(200, 3)
    thresholds = flat._trees._threshold.astype(np.float32)
    x[:, :2] = np.random.default_rng(0).choice(thresholds, (200, 2))
    rows = stand_alone(x)
    assert np.array_equal(flat.predict_proba(rows), member.predict_proba(rows))


def test_trees_without_a_split_are_walked_too() -> None:
    x, y = np.zeros((40, 18), np.float32), np.arange(40) % 2
    rows = stand_alone(x[:3])
    for classifier, flat in (
        (RandomForestClassifier(5, random_state=0), FlatForest),
        (HistGradientBoostingClassifier(max_iter=5), FlatBoosting),
    ):
        wanted = classifier.fit(x, y).predict_proba(rows.x)[:, 1]
        assert np.array_equal(flat(classifier).predict_proba(rows), wanted)


def test_a_member_without_weight_is_not_asked() -> None:
    bundle = load_bundle(fire_folder())
    whole = bundle.score(readings(5, 1))
    bundle.members["logistic_regression"]._classifier = None
    assert np.array_equal(bundle.score(readings(5, 1)), whole)


def test_the_order_of_an_array_in_memory_changes_nothing() -> None:
    index = {"weights": {"logistic_regression": 1.0}}
    bundle = load_bundle(fire_folder())
    blend = bundle.ensemble.blend.model_copy(update=index)
    bundle.ensemble = bundle.ensemble.model_copy(update={"blend": blend})
    x = readings(50, 1)
    assert np.array_equal(bundle.score(np.asfortranarray(x)), bundle.score(x))


# Loading


@pytest.mark.parametrize("folder", [fire_folder, waste_folder, gcode_folder])
def test_the_index_tells_the_workload_and_its_digest_the_model(
    folder: Callable[[], Path],
) -> None:
    model = load_model(folder())
    digest = hashlib.sha256((folder() / "bundle.json").read_bytes()).hexdigest()
    assert folder.__name__ == f"{model.workload}_folder"
    assert (model.name, model.version, model.digest) == (model.workload, digest[:12], digest)
    (answer,) = model.scorer.score([model.scorer.example()])
    said = json.loads(model.scorer.render(answer, "application/json", "7"))
    assert [one["model_version"] for one in said["predictions"]] == ["7"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(fire_folder(), tmp_path / "model")


def change_index(folder: Path, change: Callable[[dict], object]) -> None:
    index = json.loads((folder / "bundle.json").read_text())
    change(index)
    (folder / "bundle.json").write_text(json.dumps(index))


def refusal(folder: Path, **asked: str) -> str:
    with pytest.raises(JobFailed) as refused:
        load_model(folder, **asked)
    return str(refused.value)


FOREST = "members/random_forest/model.skops"


def test_an_altered_file_is_refused_by_name(copy: Path) -> None:
    with (copy / FOREST).open("ab") as file:
        file.write(b"x")
    assert refusal(copy) == (f"the model's file {FOREST} is not the one that was trained (sha256)")
    (copy / FOREST).unlink()
    assert refusal(copy) == f"the model's file {FOREST} is missing"


def test_a_file_that_nobody_vouches_for_is_refused(copy: Path) -> None:
    (copy / "members" / "model.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert (
        refusal(copy) == "the model's file members/model.pkl is not in its bundle.json; remove it"
    )
    (copy / "members" / "model.pkl").unlink()
    change_index(copy, lambda index: index["files"].pop(FOREST))  # so that it is not compared
    assert refusal(copy) == f"the model's file {FOREST} is not in its bundle.json; remove it"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "members/../../secret", "a//b"])
def test_a_file_outside_the_folder_is_refused(copy: Path, name: str) -> None:
    (copy.parent / "secret").write_bytes(b"")
    digest = hashlib.sha256(b"").hexdigest()
    change_index(copy, lambda index: index["files"].update({name: digest}))
    assert refusal(copy) == f"the model's file {name} is not within its folder"


def test_a_member_that_lies_elsewhere_is_refused(copy: Path) -> None:
    shutil.copytree(copy / "members", copy.parent / "elsewhere")

    def move(index: dict) -> None:
        members = index["members"]
        members["../../elsewhere/random_forest"] = members.pop("random_forest")

    change_index(copy, move)
    assert refusal(copy) == (
        "bundle.json: member '../../elsewhere/random_forest' has no files, so nothing says what "
        "it was"
    )


def test_a_link_is_refused(copy: Path) -> None:
    (copy / FOREST).rename(copy.parent / "model.skops")
    (copy / FOREST).symlink_to(copy.parent / "model.skops")
    assert refusal(copy) == f"the model's file {FOREST} is a link; put the file itself there"


def test_a_pickle_in_the_place_of_a_member_is_not_run(copy: Path) -> None:
    (copy / FOREST).write_bytes(b"cos\nsystem\n(S'touch poisoned'\ntR.")
    digest = hashlib.sha256((copy / FOREST).read_bytes()).hexdigest()
    change_index(copy, lambda index: index["files"].update({FOREST: digest}))
    assert "the model cannot be loaded by this version: BadZipFile" in refusal(copy)
    assert not Path("poisoned").exists()


def test_another_model_than_the_one_asked_for_is_refused(copy: Path) -> None:
    found = load_model(copy).digest
    assert load_model(copy, digest=found, version="3").version == "3"
    assert refusal(copy, digest="0" * 64) == (
        f"the model's bundle.json has sha256 {found}, but {'0' * 64} was asked for"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the model's file bundle.json is missing; give the folder that holds it"),
        ("{", "the model's file bundle.json is not JSON: Expecting"),
        ("[" * 100_000, "the model's file bundle.json is not JSON: "),
        ("[]", "the model's file bundle.json is not an index of files"),
        ("{}", "names no workload that there is (fire, waste, gcode); train it with this version"),
        ('{"workload": "../os"}', "names no workload that there is"),
        ('{"workload": "fire"}', "bundle.json has no sha256 of each file"),
        ('{"workload": "fire", "files": {"a": 1}}', "bundle.json has no sha256 of each file"),
        ('{"workload": "fire", "files": {}}', "cannot be loaded by this version: KeyError"),
    ],
)
def test_an_index_that_is_none(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "bundle.json").write_text(content)
    assert message in refusal(tmp_path)
