"""The `data` section of a picture workload."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ray_jobs.sections import Section, SplitShares

MIN_PICTURES_PER_CLASS = 10  # of drawn ones: fewer leave a split without a class

# The folders of "Recyclable and Household Waste Classification" (Kaggle, 2024).
WASTE_CLASSES = (
    "aerosol_cans", "aluminum_food_cans", "aluminum_soda_cans", "cardboard_boxes",
    "cardboard_packaging", "clothing", "coffee_grounds", "disposable_plastic_cutlery", "eggshells",
    "food_waste", "glass_beverage_bottles", "glass_cosmetic_containers", "glass_food_jars",
    "magazines", "newspaper", "office_paper", "paper_cups", "plastic_cup_lids",
    "plastic_detergent_bottles", "plastic_food_containers", "plastic_shopping_bags",
    "plastic_soda_bottles", "plastic_straws", "plastic_trash_bags", "plastic_water_bottles",
    "shoes", "steel_food_cans", "styrofoam_cups", "styrofoam_food_containers", "tea_bags",
)  # fmt: skip


class ImageSource(Section):
    """A folder whose subfolders are classes."""

    path: Annotated[str, Field(min_length=1)]  # local, or s3://
    map: dict[str, str] = {}  # the source's class -> one of data.classes; the same name needs none
    ignore: list[str] = []  # the source's classes to leave out on purpose

    @model_validator(mode="after")
    def _not_both(self) -> ImageSource:
        for name in self.ignore:
            if name in self.map:
                raise ValueError(f"{name!r} is in map and in ignore; delete one of the two")
        return self


class ImageDataSpec(Section):
    """Where the pictures come from."""

    source: Literal["procedural", "image-folders"] | None = None  # default: folders if any is given
    sources: list[ImageSource] = []
    added: list[ImageSource] = []  # more folders, for train alone: val and test stay as they are
    classes: Annotated[list[str], Field(min_length=2)] = list(WASTE_CLASSES)  # order: their numbers
    samples: int | None = None  # procedural: pictures in all; default 600, at least 10 a class
    picture_size: Annotated[int, Field(ge=16, le=1024)] | None = None  # procedural: px; default 64
    unmapped: Literal["refuse", "ignore"] = "refuse"  # source classes that no class is named for
    max_pixels: Annotated[int, Field(ge=1)] = 50_000_000  # larger pictures are left out, undecoded
    near_duplicate_bits: Annotated[int, Field(ge=0, le=16)] = 4  # of 64 in which hashes may differ
    bad_share_warning: Annotated[float, Field(ge=0, le=1)] = 0.05  # of unusable pictures
    bad_share_stop: Annotated[float, Field(ge=0, le=1)] = 0.20
    split: SplitShares = SplitShares()

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: list[str]) -> list[str]:
        for name in classes:
            if not name.strip() or "/" in name or name.startswith("."):
                raise ValueError(f"{name!r} is no name of a class: it must be able to be a folder")
            if classes.count(name) > 1:
                raise ValueError(f"the class {name!r} is there twice; delete one")
        return classes

    @model_validator(mode="after")
    def _fits_source(self) -> ImageDataSpec:
        source = self.source or ("image-folders" if self.sources else "procedural")
        only = {"procedural": ("samples", "picture_size"), "image-folders": ("sources",)}
        other = "image-folders" if source == "procedural" else "procedural"
        for key in only[other]:
            if getattr(self, key):
                raise ValueError(
                    f"{key} belongs to data.source={other}, but data.source is {source}"
                )
        if source == "image-folders" and not self.sources:
            raise ValueError(
                "data.source=image-folders needs data.sources: folders or s3:// prefixes whose "
                "subfolders are classes"
            )
        values: dict[str, Any] = {"source": source}
        if source == "procedural":
            least = MIN_PICTURES_PER_CLASS * len(self.classes)
            values["samples"] = max(600, least) if self.samples is None else self.samples
            values["picture_size"] = self.picture_size or 64
            if values["samples"] < least:
                raise ValueError(
                    f"samples must be at least {least}, {MIN_PICTURES_PER_CLASS} for each of "
                    f"{len(self.classes)} classes, not {self.samples}"
                )
        for key, value in values.items():
            object.__setattr__(self, key, value)
        return self

    @field_validator("added", mode="before")
    @classmethod
    def _as_sources(cls, added: Any) -> Any:
        """A path alone is a folder whose subfolders are called as the classes are."""
        if not isinstance(added, list):
            return added
        return [{"path": entry} if isinstance(entry, str) else entry for entry in added]

    @model_validator(mode="after")
    def _known_targets(self) -> ImageDataSpec:
        for fault in self._map_faults():
            raise ValueError(fault)
        return self

    def _map_faults(self) -> Iterator[str]:
        for key in ("sources", "added"):
            for i, source in enumerate(getattr(self, key)):
                for name, target in source.map.items():
                    if target not in self.classes:
                        near = difflib.get_close_matches(target, self.classes, n=1, cutoff=0.5)
                        guess = f" (did you mean {near[0]!r}?)" if near else ""
                        yield f"{key}.{i}.map.{name}: no class {target!r} in data.classes{guess}"

    @model_validator(mode="after")
    def _warns_before_it_stops(self) -> ImageDataSpec:
        if self.bad_share_warning > self.bad_share_stop:
            raise ValueError(
                f"bad_share_warning ({self.bad_share_warning:g}) is above bad_share_stop "
                f"({self.bad_share_stop:g}): no warning could come before the stop"
            )
        return self
