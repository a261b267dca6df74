from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_jobs.data.images.sources import Inventory, find_pictures
from ray_jobs.data.images.spec import ImageDataSpec, ImageSource
from ray_jobs.errors import DataError

CLASSES = ["jars", "shoes", "cans"]


def write(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def find(path: Path, *, unmapped: str = "refuse", **keys: Any) -> Inventory:
    source = ImageSource(path=str(path), **keys)
    data = ImageDataSpec.model_validate(
        {"sources": [source.model_dump()], "classes": CLASSES, "unmapped": unmapped}
    )
    return find_pictures(data, data.sources)


def refusal(path: Path, **keys: Any) -> str:
    with pytest.raises(DataError) as raised:
        find(path, **keys)
    return str(raised.value)


def test_pictures_and_their_classes(tmp_path: Path) -> None:
    write(tmp_path, "jars/default/b.jpg", "jars/real_world/a.PNG", "shoes/c.jpg", "old/d.jpg")
    write(tmp_path, "boots/e.jpg", "jars/.DS_Store", "list.csv", "stray.jpg", "shoes/._c.jpg")
    found = find(tmp_path, map={"boots": "shoes"}, ignore=["old"])
    assert [(file.name, file.source_class, file.label) for file in found.files] == [
        ("boots/e.jpg", "boots", 1),
        ("jars/default/b.jpg", "jars", 0),
        ("jars/real_world/a.PNG", "jars", 0),
        ("shoes/c.jpg", "shoes", 1),
    ]
    assert found.files[0].path == str(tmp_path / "boots/e.jpg")
    assert found.files[0].size == 1
    assert found.notes == [
        f"3 files in {tmp_path} are no pictures and were skipped",
        f"1 pictures lie in {tmp_path} itself, in no class folder: skipped",
    ]
    assert found.warnings == []


def test_a_path_without_class_folders(tmp_path: Path) -> None:
    ask = "Set data.sources.0.path to the folder whose subfolders are the classes"
    assert refusal(tmp_path / "nope") == f"{tmp_path}/nope: no such folder. {ask}"
    assert refusal(tmp_path) == f"{tmp_path}: the folder is empty. {ask}"
    (tmp_path / "jars").mkdir()
    assert refusal(tmp_path) == f"{tmp_path}: the folder is empty. {ask}"
    write(tmp_path, "a.txt", "jars/b.csv")
    assert refusal(tmp_path / "a.txt") == f"{tmp_path}/a.txt: a file, not a folder. {ask}"
    assert refusal(tmp_path) == (
        f"{tmp_path}: none of its 2 files is a picture by its ending (JPEG, PNG, WebP, GIF, BMP, "
        f"TIFF, AVIF, JPEG 2000 or PPM). {ask}"
    )
    write(tmp_path, "c.jpg")
    assert refusal(tmp_path) == f"{tmp_path}: 1 pictures and no class folder. {ask}"


def test_a_path_too_high(tmp_path: Path) -> None:
    write(tmp_path, "images/images/jars/default/a.jpg", "images/images/shoes/default/b.jpg")
    for path in (tmp_path, tmp_path / "images"):
        assert refusal(path) == (
            f"{path}: found 2 class folders in {tmp_path}/images/images; "
            "set data.sources.0.path to it"
        )


def test_a_path_too_low(tmp_path: Path) -> None:
    write(tmp_path, "images/jars/default/a.jpg", "images/shoes/default/b.jpg", "images/x/c.jpg")
    assert refusal(tmp_path / "images/jars") == (
        f"{tmp_path}/images/jars: this is a class folder; found 2 class folders in "
        f"{tmp_path}/images; set data.sources.0.path to it"
    )
    assert refusal(tmp_path / "images/jars/default") == (
        f"{tmp_path}/images/jars/default: this is inside a class folder; found 2 class folders in "
        f"{tmp_path}/images; set data.sources.0.path to it"
    )
    # by the names of the map, too
    assert "this is a class folder; found 3" in refusal(tmp_path / "images/x", map={"x": "cans"})


def test_a_folder_that_only_bears_the_name_of_a_class(tmp_path: Path) -> None:
    write(tmp_path, "shoes/boots/a.jpg", "shoes/sandals/b.jpg", "other/c.txt")
    found = find(tmp_path / "shoes", map={"boots": "shoes", "sandals": "cans"})
    assert [file.label for file in found.files] == [1, 2]


def test_folders_of_no_class(tmp_path: Path) -> None:
    write(tmp_path, "jars/a.jpg", "shoe/b.jpg", "shoe/c.jpg", "zebra/d.jpg")
    assert refusal(tmp_path) == (
        f"{tmp_path}: no class in data.classes for 'shoe' (2 pictures) (did you mean 'shoes'?), "
        "'zebra' (1 picture). Name the class of each in data.sources.0.map, list it in "
        "data.sources.0.ignore, or set data.unmapped=ignore"
    )
    found = find(tmp_path, unmapped="ignore")
    assert [file.source_class for file in found.files] == ["jars"]
    assert found.warnings == [
        f"{tmp_path}: left out, for there is no class in data.classes: 'shoe' (2 pictures) "
        "(did you mean 'shoes'?), 'zebra' (1 picture)"
    ]
    assert find(tmp_path, ignore=["shoe", "zebra"]).warnings == []
    assert refusal(tmp_path, ignore=["jars", "shoe", "zebra"]) == (
        f"{tmp_path}: all of its 3 class folders are ignored. Name their classes in "
        "data.sources.0.map, or delete the source"
    )


def test_a_name_that_is_no_folder_is_told(tmp_path: Path) -> None:
    write(tmp_path, "jars/a.jpg", "shoe/b.jpg")
    found = find(tmp_path, unmapped="ignore", map={"shoee": "shoes"}, ignore=["tins"])
    assert found.warnings[1:] == [
        f"data.sources.0.map names 'shoee', which is no class folder of {tmp_path} "
        "(did you mean 'shoe'?)",
        f"data.sources.0.ignore names 'tins', which is no class folder of {tmp_path}",
    ]
