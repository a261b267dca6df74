from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from ray_jobs.data.images.spec import ImageDataSpec


def test_what_is_not_given() -> None:
    drawn = ImageDataSpec()
    assert (drawn.source, drawn.samples, drawn.picture_size) == ("procedural", 600, 64)
    assert len(drawn.classes) == 30
    assert drawn.classes == sorted(drawn.classes)
    folders = ImageDataSpec.model_validate({"sources": [{"path": "pictures"}]})
    assert (folders.source, folders.samples, folders.picture_size) == ("image-folders", None, None)
    assert ImageDataSpec(classes=[f"c{i}" for i in range(80)]).samples == 800
    assert ImageDataSpec.model_validate(drawn.model_dump()) == drawn


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"sources": [{"path": "p"}], "samples": 600},
            "samples belongs to data.source=procedural, but data.source is image-folders",
        ),
        (
            {"sources": [{"path": "p"}], "picture_size": 32},
            "picture_size belongs to data.source=procedural, but data.source is image-folders",
        ),
        (
            {"sources": [{"path": "p"}], "source": "procedural"},
            "sources belongs to data.source=image-folders, but data.source is procedural",
        ),
        (
            {"source": "image-folders"},
            "data.source=image-folders needs data.sources: folders or s3:// prefixes whose "
            "subfolders are classes",
        ),
        ({"samples": 299}, "samples must be at least 300, 10 for each of 30 classes, not 299"),
        ({"samples": 0}, "samples must be at least 300, 10 for each of 30 classes, not 0"),
        ({"classes": ["a", "b", "a"]}, "the class 'a' is there twice; delete one"),
        ({"classes": ["a", " "]}, "' ' is no name of a class: it must be able to be a folder"),
        ({"classes": ["a", "b/c"]}, "'b/c' is no name of a class: it must be able to be a folder"),
        (
            {"sources": [{"path": "p", "map": {"glass": "glass_jars"}}]},
            "sources.0.map.glass: no class 'glass_jars' in data.classes "
            "(did you mean 'glass_food_jars'?)",
        ),
        (
            {"sources": [{"path": "p", "map": {"x": "shoes"}, "ignore": ["x"]}]},
            "'x' is in map and in ignore; delete one of the two",
        ),
        (
            {"bad_share_warning": 0.3},
            "bad_share_warning (0.3) is above bad_share_stop (0.2): no warning could come before "
            "the stop",
        ),
        ({"near_duplicate_bits": 17}, "Input should be less than or equal to 16"),
        ({"sources": [{"path": ""}]}, "String should have at least 1 character"),
        ({"classes": ["a"]}, "List should have at least 2 items after validation, not 1"),
        ({"clases": ["a"]}, "Extra inputs are not permitted"),
    ],
)
def test_what_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        ImageDataSpec.model_validate(keys)
    assert raised.value.errors()[0]["msg"].removeprefix("Value error, ") == message


def test_parsing_loads_nothing_heavy() -> None:
    code = (
        "import sys, ray_jobs.data.images.spec; "
        "print([m for m in ('PIL', 'numpy', 'pyarrow', 'torch', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
