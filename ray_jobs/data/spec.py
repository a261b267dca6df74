"""The `data` section of a table's rows or simulated ones."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ray_jobs.sections import Section, SplitShares

_ROLES = ("label", "group", "time", "id")


class DataSpec(Section):
    """Where the rows come from."""

    source: Literal["simulator", "table"] | None = None  # default: table if a path is given
    path: str | None = None  # table: a file, folder, glob or s3:// prefix of CSV or Parquet
    added: list[str] = []  # more tables, for train alone: val and test stay as they are
    samples: Annotated[int, Field(ge=100)] | None = None  # simulator: default 100,000
    generator: Literal["episodes", "independent"] | None = None  # simulator: default episodes
    label_column: str | None = None
    feature_columns: list[str] | None = None  # default: every numeric column
    group_column: str | None = None  # rows of one group stay in one split
    time_column: str | None = None  # order within a group; default: the file's order
    id_column: str | None = None  # default: the row's position
    nonfinite: Literal["refuse", "drop", "impute"] = "refuse"  # NaN and inf cells
    allow_leaks: list[str] = []  # columns that predict the label alone, kept on purpose
    shuffle_labels: bool = False  # the null experiment: what a score of no information looks like
    split: SplitShares = SplitShares()

    @model_validator(mode="after")
    def _fits_source(self) -> DataSpec:
        source = self.source or ("table" if self.path else "simulator")
        only = {
            "simulator": ("samples", "generator"),
            "table": ("path", "feature_columns", *(f"{role}_column" for role in _ROLES)),
        }
        other = "table" if source == "simulator" else "simulator"
        for key in only[other]:
            if getattr(self, key) is not None:
                raise ValueError(
                    f"{key} belongs to data.source={other}, but data.source is {source}"
                )
        if source == "table" and not self.path:
            raise ValueError(
                "data.source=table needs data.path: a file, folder, glob or s3:// prefix"
            )
        if self.added and self.shuffle_labels:
            raise ValueError(
                "shuffle_labels is an experiment on data.path alone; leave data.added out"
            )
        values: dict[str, Any] = {"source": source}
        if source == "simulator":
            values |= {
                "samples": self.samples or 100_000,
                "generator": self.generator or "episodes",
            }
        for key, value in values.items():
            object.__setattr__(self, key, value)
        return self
