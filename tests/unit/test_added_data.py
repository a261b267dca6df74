"""data.added: further rows, pictures and logs for train; val and test stay as they are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_jobs.data.dataset import Rows
from ray_jobs.data.duplicates import repeats_of
from ray_jobs.data.images.manifest import load_manifest
from ray_jobs.data.images.prepare import prepare_images
from ray_jobs.data.images.procedural import draw_picture
from ray_jobs.data.images.spec import ImageDataSpec
from ray_jobs.data.machine_logs.prepare import prepare_machine_logs
from ray_jobs.data.machine_logs.runs import Run
from ray_jobs.data.machine_logs.simulator import simulate_runs
from ray_jobs.data.machine_logs.spec import MachineLogsSpec
from ray_jobs.data.prepare import load_splits, prepare
from ray_jobs.data.spec import DataSpec
from ray_jobs.errors import DataError
from ray_jobs.result import DataSummary
from ray_jobs.spec import load_spec
from ray_jobs.storage import Storage
from ray_jobs.tracking.contents import content_digest, content_keys, num_common

SPLITS = ("train", "val", "test")


def silent(event: str, **fields: object) -> None: ...


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "runs")


def check_same_tests(
    workload: str, storage: Storage, before: DataSummary, after: DataSummary
) -> None:
    """The gate may compare a model of `after` with one of `before`."""
    for split in ("val", "test"):
        assert after.splits[split] == before.splits[split]
        keys = [content_keys(workload, storage, data, split) for data in (before, after)]
        if after.features == before.features:
            assert content_digest(keys[0]) == content_digest(keys[1])
        else:  # more data may show that a column gives a target away
            assert set(after.features) < set(before.features)
    test = content_keys(workload, storage, after, "test")
    assert num_common(test, content_keys(workload, storage, after, "train")) == 0
    assert after.digest != before.digest
    added = after.splits["train"].num_rows - before.splits["train"].num_rows
    assert added == after.num_added > 0


# fire


def rooms(num_rooms: int = 30, num_rows: int = 20, seed: int = 0) -> pd.DataFrame:
    """Rooms whose label depends on `heat`, and on noise."""
    rng = np.random.default_rng(seed)
    n = num_rooms * num_rows
    x = rng.normal(20, 5, (n, 6)).round(3)
    table = pd.DataFrame(x, columns=["heat", "co2", "co", "dust", "light", "sound"])
    table["fire"] = (x[:, 0] + rng.normal(size=n) > 20).astype(int)
    table["room"] = np.repeat([f"room {seed}-{i}" for i in range(num_rooms)], num_rows)
    return table


def fire(storage: Storage, *, seed: int = 0, **data: Any) -> DataSummary:
    spec = DataSpec.model_validate(data)
    return prepare(spec, workload="fire", seed=seed, storage=storage, emit=silent)


def save(table: pd.DataFrame, path: Path) -> str:
    table.to_csv(path, index=False)
    return str(path)


@pytest.fixture
def base(tmp_path: Path) -> dict[str, Any]:
    path = save(rooms(), tmp_path / "base.csv")
    return {"path": path, "label_column": "fire", "group_column": "room"}


def test_rows_go_to_train_and_the_test_rows_stay(
    storage: Storage, tmp_path: Path, base: dict[str, Any]
) -> None:
    before = fire(storage, **base)
    new, newer = (save(rooms(5, seed=seed), tmp_path / f"{seed}.csv") for seed in (1, 2))
    one = fire(storage, **base, added=[new])
    check_same_tests("fire", storage, before, one)
    two = fire(storage, **base, added=[new, newer])
    check_same_tests("fire", storage, before, two)
    assert (one.num_added, two.num_added, two.num_withheld) == (100, 200, 0)
    assert two.splits["train"].num_groups == before.splits["train"].num_groups + 10
    assert "100 rows of" in two.leakage.notes[-1]
    assert not [warning for warning in two.warnings if "make the splits" in warning]
    train = load_splits(storage, two)["train"]
    assert len(np.unique(train.row_id)) == len(train) == two.splits["train"].num_rows
    expected = rooms(5, seed=2)["heat"].to_numpy(np.float32)
    np.testing.assert_array_equal(np.sort(train.x[-100:, 0]), np.sort(expected))


def test_another_content_of_the_same_file_is_another_dataset(
    storage: Storage, tmp_path: Path, base: dict[str, Any]
) -> None:
    new = save(rooms(5, seed=1), tmp_path / "new.csv")
    first = fire(storage, **base, added=[new])
    save(rooms(5, seed=2), tmp_path / "new.csv")
    assert fire(storage, **base, added=[new]).digest != first.digest


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    num_rooms=st.integers(8, 20),
    grouped=st.booleans(),
    nonfinite=st.sampled_from(["refuse", "drop", "impute"]),
)
def test_whatever_is_added_the_splits_hold(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    num_rooms: int,
    grouped: bool,
    nonfinite: str,
) -> None:
    home = tmp_path_factory.mktemp("added")
    old, new = rooms(num_rooms, seed=0), rooms(3, seed=1)
    if nonfinite != "refuse":
        rng = np.random.default_rng(seed)
        for table in (old, new):
            table.loc[rng.integers(0, len(table), 15), "co2"] = np.nan
    # What is added holds the old rows, too, as an export of everything so far does.
    whole = pd.concat([old.sample(frac=1, random_state=seed), new])
    data = {"path": save(old, home / "old.csv"), "label_column": "fire", "nonfinite": nonfinite}
    if grouped:
        data["group_column"] = "room"
    else:
        data["feature_columns"] = ["heat", "co2", "co", "dust", "light", "sound"]
    storage = Storage(home / "runs")
    before = fire(storage, seed=seed, **data)
    after = fire(storage, seed=seed, **data, added=[save(whole, home / "new.csv")])
    check_same_tests("fire", storage, before, after)
    held = before.splits["val"].num_rows + before.splits["test"].num_rows
    assert after.num_withheld >= held
    assert after.leakage.duplicates.num_across_splits == 0


@pytest.mark.parametrize("change", ["none", "one column", "two columns", "rounded"])
def test_rows_that_val_or_test_has_are_left_out(
    storage: Storage, tmp_path: Path, base: dict[str, Any], change: str
) -> None:
    """Also if their rooms bear other names, or none."""
    copies = rooms()
    copies["room"] = "copy of " + copies["room"]
    rng = np.random.default_rng(1)
    if change == "rounded":
        copies[["heat", "co2"]] = copies[["heat", "co2"]].astype("float32") + 1e-4
    else:
        for name in {"one column": ["co2"], "two columns": ["co2", "dust"]}.get(change, []):
            copies[name] = rng.normal(20, 5, len(copies))
    fresh = rooms(5, seed=1)
    new = save(pd.concat([copies, fresh]), tmp_path / "new.csv")
    before = fire(storage, **base)
    after = fire(storage, **base, added=[new])
    check_same_tests("fire", storage, before, after)
    held = before.splits["val"].num_rows + before.splits["test"].num_rows
    assert (after.num_withheld, after.num_added) == (held, 700 - held)


def test_rows_of_a_room_of_test_are_left_out(
    storage: Storage, tmp_path: Path, base: dict[str, Any]
) -> None:
    """They are new, but of a recording that is to be unknown."""
    later = rooms(seed=1)
    later["room"] = rooms()["room"]
    before = fire(storage, **base)
    after = fire(storage, **base, added=[save(later, tmp_path / "later.csv")])
    held = before.splits["val"].num_rows + before.splits["test"].num_rows
    assert (after.num_withheld, after.num_added) == (held, 600 - held)


def test_a_corrected_row_of_test_is_known_by_its_id(storage: Storage, tmp_path: Path) -> None:
    old = rooms()
    old["number"] = np.arange(len(old)) + 1000
    corrected = rooms(seed=1)
    corrected["number"] = old["number"]
    corrected["room"] = "new " + corrected["room"]
    data = {
        "path": save(old, tmp_path / "old.csv"),
        "label_column": "fire",
        "group_column": "room",
        "id_column": "number",
    }
    before = fire(storage, **data)
    after = fire(storage, **data, added=[save(corrected, tmp_path / "new.csv")])
    held = before.splits["val"].num_rows + before.splits["test"].num_rows
    assert (after.num_withheld, after.num_added) == (held, 600 - held)


def test_chance_agreement_is_no_repeat() -> None:
    """Of coarse columns any two rows agree in most."""
    rng = np.random.default_rng(0)
    x, held, train = (rng.integers(0, 4, (2000, 6)).astype(np.float32) for _ in range(3))
    known = repeats_of(x, held, train)
    assert np.array_equal(known, [(row == held).all(axis=1).any() for row in x])


@pytest.mark.parametrize("generator", ["episodes", "independent"])
def test_a_table_is_added_to_simulated_rows(
    storage: Storage, tmp_path: Path, generator: str
) -> None:
    from ray_jobs.data.simulator import generate_shards

    generate_shards(Storage(tmp_path / "new"), "", generator="episodes", num_samples=400, seed=7)
    data = {"samples": 3000, "generator": generator}
    before = fire(storage, **data)
    after = fire(storage, **data, added=[str(tmp_path / "new")])
    check_same_tests("fire", storage, before, after)
    assert (after.num_added, after.ceiling) == (400, before.ceiling)
    splits = load_splits(storage, after, SPLITS)
    groups = [set(rows.group.tolist()) for rows in splits.values()]
    assert not groups[0] & (groups[1] | groups[2])


def test_one_class_alone_may_be_added(
    storage: Storage, tmp_path: Path, base: dict[str, Any]
) -> None:
    quiet = rooms(5, seed=1).assign(fire=0)
    after = fire(storage, **base, added=[save(quiet, tmp_path / "quiet.csv")])
    assert after.num_added == 100


FAULTS = {
    "without the label": (
        lambda table: table.drop(columns="fire"),
        "new.csv: no column 'fire', which the data that it is added to has; there is heat, co2",
    ),
    "without a feature": (
        lambda table: table.rename(columns={"co2": "co3"}),
        "new.csv: no column 'co2', which the data that it is added to has; there is heat, co3",
    ),
    "without the group": (
        lambda table: table.drop(columns="room"),
        "new.csv: no column 'room', which data.group_column names",
    ),
    "an empty label": (
        lambda table: table.assign(fire=[None, *table["fire"][1:]]),
        "new.csv, line 2: the label column 'fire' is empty there",
    ),
    "without rows": (
        lambda table: table[:0],
        "new.csv: a header and no rows. Give data.added a file with rows",
    ),
    "the test rows": (
        lambda table: rooms(),
        None,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_added(
    storage: Storage, tmp_path: Path, base: dict[str, Any], fault: str
) -> None:
    change, message = FAULTS[fault]
    new = save(change(rooms(5, seed=1)), tmp_path / "new.csv")
    if message is None:
        assert fire(storage, **base, added=[new]).num_withheld > 0
        return
    with pytest.raises(DataError) as error:
        fire(storage, **base, added=[new])
    assert message in str(error.value)


def test_nothing_but_test_rows(storage: Storage, tmp_path: Path, base: dict[str, Any]) -> None:
    before = fire(storage, **base)
    test = load_splits(storage, before, ("test",))["test"]
    table = pd.DataFrame(test.x, columns=list(test.features)).assign(fire=test.y, room="again")
    with pytest.raises(DataError, match=r"nothing of it can be trained on: of its .* rows each"):
        fire(storage, **base, added=[save(table, tmp_path / "new.csv")])
    with pytest.raises(DataError, match=r"missing.csv: no such file or folder. Set data.added to"):
        fire(storage, **base, added=[str(tmp_path / "missing.csv")])


# gcode


def write_log(folder: Path, run: Run) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({**run.columns, "gcode_string": run.gcode})
    table.to_csv(folder / f"{run.name}.csv", index=False)


def gcode(storage: Storage, *, seed: int = 0, **data: Any) -> DataSummary:
    spec = MachineLogsSpec.model_validate(data)
    return prepare_machine_logs(spec, workload="gcode", seed=seed, storage=storage, emit=silent)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("logs")
    for run in simulate_runs(9, seed=0):
        write_log(home / "old", run)
    for run in simulate_runs(3, seed=1):
        write_log(home / "new", run)
    return home


@pytest.mark.parametrize("protocol", ["by_run", "by_operation", "published"])
def test_runs_go_to_train_and_the_test_windows_stay(
    storage: Storage, logs: Path, tmp_path: Path, protocol: str
) -> None:
    """What is added holds the old runs, too, under other names and with other times."""
    both = tmp_path / "both"
    shutil.copytree(logs / "new", both)
    for path in (logs / "old").glob("*.csv"):
        table = pd.read_csv(path)
        first = table.columns[0]
        table.assign(**{first: table[first] + 1.0}).to_csv(both / f"again_{path.name}", index=False)
    data = {"path": str(logs / "old"), "split": protocol}
    before = gcode(storage, **data)
    after = gcode(storage, **data, added=[str(both)])
    check_same_tests("gcode", storage, before, after)
    assert after.num_withheld > 0
    splits = [[text for text in s.warnings if "make the splits" in text] for s in (before, after)]
    assert splits[0] == splits[1]


def test_a_part_of_a_run_of_test_is_left_out(storage: Storage, logs: Path, tmp_path: Path) -> None:
    """Behind rows of another run, and not cut where the windows of test begin."""
    data = {"path": str(logs / "old"), "stride": 16}
    before = gcode(storage, **data)
    new = pd.read_csv(next((logs / "new").glob("*.csv")))
    for path in (logs / "old").glob("*.csv"):
        part = pd.read_csv(path)[101 : 101 + 200]
        (tmp_path / "mixed").mkdir(exist_ok=True)
        pd.concat([new, part]).to_csv(tmp_path / "mixed" / path.name, index=False)
    after = gcode(storage, **data, added=[str(tmp_path / "mixed")])
    check_same_tests("gcode", storage, before, after)
    held = {index for name in ("val", "test") for index in range(before.splits[name].num_groups)}
    assert after.num_withheld >= 8 * len(held)


def test_a_log_is_added_to_simulated_runs(storage: Storage, logs: Path) -> None:
    before, after = gcode(storage, runs=9), gcode(storage, runs=9, added=[str(logs / "new")])
    check_same_tests("gcode", storage, before, after)
    with pytest.raises(DataError, match="nothing of it can be trained on"):
        gcode(storage, runs=9, split="by_operation", seed=0, added=[str(one_operation(logs))])


def one_operation(logs: Path) -> Path:
    """Logs of all operations of the old runs are held out by some seed; take those of its test."""
    folder = logs / "held"
    if not folder.exists():
        for run in simulate_runs(9, seed=3):
            write_log(folder.with_name("all"), run)
        spec = MachineLogsSpec.model_validate({"runs": 9, "split": "by_operation"})
        from ray_jobs.data.machine_logs.runs import Logs
        from ray_jobs.data.machine_logs.source import cut_and_split

        source = cut_and_split(Logs(simulate_runs(9, seed=0)), spec, 0)
        held = {source.runs[i].operation for i in source.windows.run[source.split == 2].tolist()}
        for run in simulate_runs(9, seed=3):
            if run.operation in held:
                write_log(folder, run)
    return folder


def test_a_log_without_gcode_cannot_be_added(storage: Storage, logs: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"bad.csv: no column 'gcode_string' with the G-code"):
        gcode(storage, path=str(logs / "old"), added=[str(tmp_path / "bad.csv")])


# waste


def waste(storage: Storage, *, seed: int = 0, **data: Any) -> DataSummary:
    return prepare_images(
        ImageDataSpec.model_validate(data),
        workload="waste",
        seed=seed,
        storage=storage,
        num_workers=1,
        emit=silent,
    )


def write_pictures(root: Path, num_pictures: int, seed: int) -> Path:
    for label, name in enumerate(("a", "b")):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(num_pictures):
            draw_picture(seed, label, i, 32).save(root / name / f"{i:03d}.png")
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("pictures")
    write_pictures(home / "old", 20, seed=1)
    write_pictures(home / "new", 8, seed=2)
    return home


@pytest.mark.parametrize("seed", [0, 1])
def test_pictures_go_to_train_and_the_test_pictures_stay(
    storage: Storage, pictures: Path, tmp_path: Path, seed: int
) -> None:
    """What is added holds the old ones, too: as they are, smaller, and under the other class."""
    data = {"sources": [{"path": str(pictures / "old")}], "classes": ["a", "b"]}
    both = shutil.copytree(pictures / "new", tmp_path / "both")
    for path in (pictures / "old").rglob("*.png"):
        folder = both / path.parent.name
        shutil.copy(path, folder / f"copy-{path.name}")
        Image.open(path).resize((48, 48)).save(folder / f"larger-{path.stem}.jpg")
    wrong = next((pictures / "old" / "a").glob("*.png"))
    shutil.copy(wrong, both / "b" / "wrong.png")
    before = waste(storage, seed=seed, **data)
    after = waste(storage, seed=seed, **data, added=[{"path": str(both)}])
    check_same_tests("waste", storage, before, after)
    held = before.splits["val"].num_rows + before.splits["test"].num_rows
    assert after.num_withheld >= 2 * held  # each as it is, and larger
    old, new = (load_manifest(storage, summary) for summary in (before, after))
    assert new.status[: len(old)].tolist() == old.status.tolist()
    assert new.split[: len(old)].tolist() == old.split.tolist()
    assert set(new.split[len(old) :]) == {"", "train"}


def test_pictures_are_added_to_drawn_ones_and_mapped(storage: Storage, pictures: Path) -> None:
    data = {"samples": 60, "picture_size": 32, "classes": ["x", "y"]}
    added = [{"path": str(pictures / "new"), "map": {"a": "x", "b": "y"}}]
    before, after = waste(storage, **data), waste(storage, **data, added=added)
    check_same_tests("waste", storage, before, after)
    assert waste(storage, **data, added=added) == after
    with pytest.raises(DataError, match=r"no class in data.classes for .* in data.added.0.map"):
        waste(storage, **data, added=[{"path": str(pictures / "new"), "map": {"a": "x"}}])
    with pytest.raises(DataError, match=r"no such folder. Set data.added.0.path to"):
        waste(storage, **data, added=[{"path": str(pictures / "none")}])


def test_nothing_but_pictures_of_test(storage: Storage, pictures: Path, tmp_path: Path) -> None:
    data = {"sources": [{"path": str(pictures / "old")}], "classes": ["a", "b"]}
    manifest = load_manifest(storage, waste(storage, **data))
    for i in np.flatnonzero(manifest.split == "test").tolist():
        folder = tmp_path / "again" / manifest.source_class[i]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(manifest.path[i], folder)
    with pytest.raises(DataError, match="nothing of it can be trained on"):
        waste(storage, **data, added=[{"path": str(tmp_path / "again")}])


# The section of every workload


@pytest.mark.parametrize(
    ("workload", "value"),
    [("fire", "[new.csv]"), ("gcode", "[new/]"), ("waste", "[{path: new, map: {a: shoes}}]")],
)
def test_it_is_a_key_of_every_workload_and_changes_the_digest(workload: str, value: str) -> None:
    spec = load_spec(workload, overrides=[f"data.added={value}"])
    assert spec.digest() != load_spec(workload).digest()


def test_rows_keep_their_type(storage: Storage, tmp_path: Path, base: dict[str, Any]) -> None:
    after = fire(storage, **base, added=[save(rooms(5, seed=1), tmp_path / "new.csv")])
    train = load_splits(storage, after)["train"]
    assert isinstance(train, Rows)
    assert (train.x.dtype, train.y.dtype) == (np.float32, np.int8)
    assert replace(train).digest() == after.splits["train"].digest
