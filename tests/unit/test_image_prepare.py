from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ray_jobs.data.images import scan
from ray_jobs.data.images.doubts import DRAWN
from ray_jobs.data.images.manifest import Manifest, read_bytes, row_id
from ray_jobs.data.images.prepare import load_manifest, prepare_images
from ray_jobs.data.images.procedural import draw_picture
from ray_jobs.data.images.spec import ImageDataSpec
from ray_jobs.errors import DataError, RetryableError
from ray_jobs.result import DataSummary
from ray_jobs.storage import Storage
from tests.conftest import real_data
from tests.unit.faulty_pictures import CLASSES, EXPECTED, MAX_PIXELS, encode, write_faulty_set


@dataclass
class Journal:
    progress: list[tuple[int, int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def emit(self, event: str, **keys: Any) -> None:
        if event == "warning":
            self.warnings.append(keys["message"])
        else:
            assert (event, keys["unit"]) == ("progress", "pictures")
            self.progress.append((keys["done"], keys["total"]))


def prepare(
    storage: Path | str, journal: Journal | None = None, *, seed: int = 0, **data: Any
) -> DataSummary:
    return prepare_images(
        ImageDataSpec.model_validate(data),
        workload="waste",
        seed=seed,
        storage=Storage(storage),
        num_workers=1,
        emit=(journal or Journal()).emit,
    )


def write_pictures(root: Path, num_pictures: int, classes: tuple[str, ...] = ("a", "b")) -> Path:
    """Sound pictures, no two alike, as PNG."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(num_pictures):
            draw_picture(1, label, i, 32).save(root / name / f"{i:03d}.png")
    return root


def folders(root: Path, **source: Any) -> dict[str, Any]:
    return {"sources": [{"path": str(root), **source}], "classes": ["a", "b"]}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The content of each picture that is decoded."""
    contents: list[bytes] = []

    def counted(content: bytes, *, max_pixels: int) -> Any:
        contents.append(content)
        return decode(content, max_pixels=max_pixels)

    decode = scan.decode
    monkeypatch.setattr(scan, "decode", counted)
    return contents


def test_every_fault_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, store = tmp_path / "in", tmp_path / "out"
    write_faulty_set(root)

    def read(path: str) -> bytes:
        if path.endswith("denied.jpg"):  # root may read everything
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(scan, "read_bytes", read)
    keys = {
        "sources": [{"path": str(root)}],
        "classes": CLASSES,
        "max_pixels": MAX_PIXELS,
        "bad_share_stop": 0.5,
    }
    journal = Journal()
    summary = prepare(store, journal, **keys)
    manifest = load_manifest(Storage(store), summary)
    names = [path.removeprefix(f"{root}/") for path in manifest.path]
    found = dict(zip(names, zip(manifest.status, manifest.converted, strict=True), strict=True))
    assert found == EXPECTED
    assert names == sorted(names)

    at = {name: i for i, name in enumerate(names)}
    assert manifest.detail[at["shoes/copy.jpg"]] == f"the same bytes as {root}/shoes/cmyk.jpg"
    assert manifest.detail[at["shoes/denied.jpg"]] == "[Errno 13] Permission denied"
    assert (manifest.width[at["shoes/rotated.jpg"]], manifest.height[at["shoes/rotated.jpg"]]) == (
        24,
        40,
    )
    assert manifest.width[at["shoes/bomb.png"]] == 60_000
    good = at["shoes/good-3.jpg"]
    content = (root / "shoes/good-3.jpg").read_bytes()
    assert manifest.sha256[good] == hashlib.sha256(content).hexdigest()
    assert manifest.row_id[good] == row_id(0, "shoes/good-3.jpg") > 0
    assert (manifest.label[good], manifest.source[good]) == (1, 0)
    is_out = ~manifest.is_usable
    assert set(manifest.split[is_out]) == {""}
    assert set(manifest.group[is_out]) == {-1}
    assert set(manifest.split[~is_out]) == {"train", "val", "test"}

    assert summary.scan is not None
    num_ok = sum(status == "ok" for status, _ in EXPECTED.values())
    assert (summary.scan.num_files, summary.scan.num_usable) == (len(EXPECTED), num_ok)
    assert summary.scan.left_out == {
        "animated": 3,
        "conflicting-label": 2,
        "corrupt": 2,
        "duplicate": 2,
        "empty": 1,
        "not-a-picture": 2,
        "too-large": 2,
        "truncated": 3,
        "unreadable": 1,
    }
    assert summary.scan.converted == {
        "16-bit": 2,
        "alpha": 2,
        "cmyk": 1,
        "exif-rotated": 2,
        "grayscale": 2,
        "palette": 2,
    }
    assert summary.leakage.duplicates.num_exact == 3
    assert summary.leakage.notes == [f"4 files in {root} are no pictures and were skipped"]
    assert journal.warnings == summary.warnings
    assert summary.warnings[0] == (
        "14 of 32 pictures (43.8%) cannot be used: 3 animated, 3 truncated, 2 too-large, "
        f"2 corrupt, 2 not-a-picture, 1 unreadable, 1 empty. Each is listed in "
        f"{store}/{summary.scan.manifest}"
    )


@pytest.mark.parametrize(("num_bad", "outcome"), [(1, "well"), (2, "warned"), (9, "refused")])
def test_the_share_of_unusable_pictures(tmp_path: Path, num_bad: int, outcome: str) -> None:
    root = write_pictures(tmp_path / "in", 15)
    for i in range(num_bad):
        (root / "a" / f"bad-{i}.jpg").write_bytes(b"")
    journal = Journal()
    if outcome == "refused":
        with pytest.raises(DataError) as raised:
            prepare(tmp_path / "out", **folders(root))
        (manifest,) = (tmp_path / "out/datasets").glob("waste-*/manifest.parquet")
        examples = ", ".join(f"{root}/a/bad-{i}.jpg (0 bytes)" for i in range(3))
        assert str(raised.value) == (
            f"9 of 39 pictures (23.1%) cannot be used: 9 empty; such as {examples}. Each is listed "
            f"in {manifest}. Mend or delete them, or raise data.bad_share_stop (now 0.2)"
        )
        assert not list(manifest.parent.glob("dataset.json"))
        return
    prepare(tmp_path / "out", journal, **folders(root))
    told = [warning for warning in journal.warnings if "cannot be used" in warning]
    assert len(told) == (outcome == "warned")


def test_only_what_changed_is_decoded_again(tmp_path: Path, decoded: list[bytes]) -> None:
    root = write_pictures(tmp_path / "in", 10)
    (root / "a" / "text.jpg").write_bytes(b"text")
    first = prepare(tmp_path / "out", **folders(root))
    assert len(decoded) == 21
    decoded.clear()
    journal = Journal()
    assert prepare(tmp_path / "out", journal, **folders(root)) == first
    assert (decoded, journal.progress) == ([], [(21, 21)])
    assert journal.warnings == first.warnings

    os.utime(root / "a" / "003.png", (1, 1))
    assert prepare(tmp_path / "out", **folders(root)) == first
    assert decoded == [(root / "a" / "003.png").read_bytes()]
    decoded.clear()
    draw_picture(9, 0, 0, 32).save(root / "a" / "003.png")
    (root / "b" / "009.png").unlink()
    changed = prepare(tmp_path / "out", **folders(root))
    assert decoded == [(root / "a" / "003.png").read_bytes()]
    assert changed.digest != first.digest
    assert changed.path != first.path
    decoded.clear()
    prepare(tmp_path / "out", max_pixels=10**6, **folders(root))
    assert len(decoded) == 20


def test_a_scan_broken_off_is_taken_up_and_looks_like_none(
    tmp_path: Path, decoded: list[bytes]
) -> None:
    root = write_pictures(tmp_path / "in", 10)

    class Stopped(Exception):
        pass

    def emit(event: str, **keys: Any) -> None:
        if keys["done"] >= 12:
            raise Stopped

    with pytest.raises(Stopped):
        prepare_images(
            ImageDataSpec.model_validate(folders(root)),
            workload="waste",
            seed=0,
            storage=Storage(tmp_path / "out"),
            num_workers=1,
            emit=emit,
        )
    assert len(decoded) == 12
    assert not list((tmp_path / "out").rglob("dataset.json"))
    prepare(tmp_path / "out", **folders(root))
    assert len(decoded) == 20


def test_a_dataset_without_its_summary_is_made_anew(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "in", 5)
    first = prepare(tmp_path / "out", **folders(root))
    folder = tmp_path / "out" / first.path
    (folder / "dataset.json").unlink()
    (folder / "manifest.parquet").write_bytes(b"half")
    assert prepare(tmp_path / "out", **folders(root)) == first
    load_manifest(Storage(tmp_path / "out"), first)


def test_near_duplicates_stay_together(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "in", 12)
    for i in range(6):
        picture = draw_picture(1, 0, i, 32)
        picture.resize((48, 48)).save(root / "a" / f"copy-{i}.jpg", quality=95)
    draw_picture(1, 1, 0, 32).resize((64, 64)).save(root / "a" / "stray.png")
    store = tmp_path / "out"
    summary = prepare(store, near_duplicate_bits=6, **folders(root))
    manifest = load_manifest(Storage(store), summary)
    where = {Path(path).relative_to(root): i for i, path in enumerate(manifest.path)}
    for i in range(6):
        one, other = where[Path(f"a/{i:03d}.png")], where[Path(f"a/copy-{i}.jpg")]
        ids = manifest.row_id[[one, other]]
        assert manifest.group[one] == manifest.group[other] == ids.min()
        assert manifest.split[one] == manifest.split[other]
    assert summary.leakage.duplicates.num_near == 7
    assert summary.grouped_by == "near-duplicates"
    assert [warning for warning in summary.warnings if "look alike" in warning] == [
        "2 pictures look alike, but are of different classes (1 near-duplicate clusters), such as "
        + " and ".join(
            sorted(
                (f"{root}/a/stray.png", f"{root}/b/000.png"),
                key=lambda path: row_id(0, path.removeprefix(f"{root}/")),
            )
        )
        + ": check their folders"
    ]


def test_one_class_is_no_task(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "in", 4, ("a",))
    with pytest.raises(DataError, match=r"^pictures of 1 class \('a'\) are no task: at least two"):
        prepare(tmp_path / "out", **folders(root))


def test_a_failing_network_says_nothing_of_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> bytes:
        raise OSError("When reading: AWS Error NETWORK_CONNECTION during GetObject operation: x")

    monkeypatch.setattr(scan, "read_bytes", fail)
    with pytest.raises(RetryableError, match=r"^s3://b/a.jpg: cannot be read \(NETWORK_CONNEC"):
        scan.examine("s3://b/a.jpg", max_pixels=1)


def test_a_missing_file_is_unreadable(tmp_path: Path) -> None:
    assert scan.examine(str(tmp_path / "a.jpg"), max_pixels=1).status == "unreadable"


def test_drawn_pictures(tmp_path: Path) -> None:
    keys = {"classes": ["a", "b", "c"], "samples": 61, "picture_size": 24}
    journal = Journal()
    summary = prepare(tmp_path / "one", journal, **keys)
    assert summary.source == "procedural:61"
    assert journal.warnings == [DRAWN]
    assert journal.progress[-1] == (61, 61)
    counts = Counter[str]()
    for split in summary.splits.values():
        counts.update(split.class_counts)
    assert counts == {"a": 21, "b": 20, "c": 20}
    again = Journal()
    assert prepare(tmp_path / "one", again, **keys) == summary
    assert (again.progress, again.warnings) == ([(61, 61)], [DRAWN])
    assert prepare(tmp_path / "two", **keys).digest == summary.digest
    assert prepare(tmp_path / "two", seed=1, **keys).digest != summary.digest
    manifest = load_manifest(Storage(tmp_path / "one"), summary)
    assert manifest.width.tolist() == [24] * 61
    train = manifest.rows("train")
    assert train.digest() == summary.splits["train"].digest
    assert len(train) == len(train.path) == summary.splits["train"].num_rows
    assert Path(train.path[0]).is_file()


def test_a_drawn_picture_is_its_seed_class_and_number() -> None:
    one = np.asarray(draw_picture(0, 1, 2, 32))
    assert np.array_equal(one, np.asarray(draw_picture(0, 1, 2, 32)))
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        corner = np.asarray(draw_picture(*other, 32))[:4, :4]  # not of the object alone
        assert not np.array_equal(one[:4, :4], corner)


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    summary = prepare(tmp_path, classes=["a", "b"], samples=20, picture_size=16)
    assert summary.scan is not None
    storage = Storage(tmp_path)
    manifest = load_manifest(storage, summary)
    manifest.write(storage, "copy.parquet")
    copy = Manifest.read(storage, "copy.parquet")
    for column in fields(Manifest):
        one, other = getattr(manifest, column.name), getattr(copy, column.name)
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    replace(manifest, label=manifest.label + 1).write(storage, summary.scan.manifest)
    with pytest.raises(DataError, match="these are not the pictures that were split"):
        load_manifest(storage, summary)
    storage.write_bytes(summary.scan.manifest, b"nothing")
    with pytest.raises(DataError, match="this is no manifest of pictures"):
        load_manifest(storage, summary)


def test_pictures_on_s3(
    tmp_path: Path, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    for label, name in enumerate(("a", "b")):
        for i in range(4):
            body = encode(draw_picture(1, label, i, 32), "PNG")
            client.put_object(Bucket="rows", Key=f"waste/{name}/default/{i}.png", Body=body)
    client.put_object(Bucket="rows", Key="waste/a/bad.jpg", Body=b"")
    keys = {"classes": ["a", "b"], "sources": [{"path": "s3://rows/waste"}]}
    summary = prepare("s3://runs/store", **keys)
    manifest = load_manifest(Storage("s3://runs/store"), summary)
    assert manifest.path[0] == "s3://rows/waste/a/bad.jpg"
    assert manifest.status.tolist() == ["empty"] + ["ok"] * 8
    assert read_bytes(manifest.path[1]) == encode(draw_picture(1, 0, 0, 32), "PNG")
    assert prepare("s3://runs/store", **keys) == summary
    assert prepare(tmp_path, **keys).digest == summary.digest
    with pytest.raises(DataError, match=r"found 2 class folders in s3://rows/waste; set data\.s"):
        prepare(tmp_path, **{**keys, "sources": [{"path": "s3://rows/waste/a/default"}]})
    drawn = {"classes": ["a", "b"], "samples": 20, "picture_size": 16}
    on_s3, here = prepare("s3://runs/store", **drawn), prepare(tmp_path, **drawn)
    assert on_s3.digest == here.digest


def test_real_photographs_and_worker_processes(tmp_path: Path) -> None:
    root = real_data("trashnet_subset")
    classes = {
        "cardboard": "cardboard_boxes",
        "glass": "glass_beverage_bottles",
        "metal": "aluminum_food_cans",
        "paper": "office_paper",
        "plastic": "plastic_water_bottles",
        "trash": "food_waste",
    }
    data = ImageDataSpec.model_validate({"sources": [{"path": str(root), "map": classes}]})
    journal = Journal()
    for num_workers, store in ((2, tmp_path / "two"), (1, tmp_path / "one")):
        summary = prepare_images(
            data,
            workload="waste",
            seed=0,
            storage=Storage(store),
            num_workers=num_workers,
            emit=journal.emit,
        )
    assert summary.scan is not None
    assert (summary.scan.num_files, summary.scan.num_usable) == (600, 600)
    assert {name: split.num_rows for name, split in summary.splits.items()} == {
        "train": 420,
        "val": 90,
        "test": 90,
    }
    assert summary.splits["test"].class_counts == dict.fromkeys(sorted(classes.values()), 15)
    assert len(journal.warnings) == 2  # one a run
    assert journal.warnings[0].startswith("24 of 30 classes have no usable picture and cannot be")
    one, two = (load_manifest(Storage(tmp_path / name), summary) for name in ("one", "two"))
    assert np.array_equal(one.phash, two.phash)
    assert np.array_equal(one.split, two.split)
    with Image.open(one.path[0]) as picture:
        assert (one.width[0], one.height[0]) == picture.size
