"""The `data` section of a machine-log workload."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ray_jobs.sections import Section, SplitShares

Protocol = Literal["by_run", "by_operation", "published"]

# The protocol of the earlier work: 64-row windows, three quarters of each shared with the next.
PUBLISHED_WINDOW, PUBLISHED_STRIDE = 64, 16
PUBLISHED_LEAKS = ("mpox", "mpoy", "mpoz")  # machine positions, which it learned from
MIN_SIMULATED_RUNS = 6  # fewer leave no operation with a run for each split


class MachineSplit(SplitShares):
    """Shares of the runs (by_run), operations (by_operation) or windows (published)."""

    protocol: Protocol = "by_run"


class MachineLogsSpec(Section):
    """Where the runs come from, and what is asked of their windows."""

    source: Literal["simulator", "machine-logs"] | None = None  # default: by whether path is set
    path: str | None = None  # file, folder, glob or s3:// prefix of logs, one run a file
    added: list[str] = []  # more logs, for train alone: val and test stay as they are
    runs: Annotated[int, Field(ge=MIN_SIMULATED_RUNS, le=10_000)] | None = None  # default 24
    gcode_column: str = "gcode_string"  # the line in force at a row
    time_column: str | None = None  # seconds, or h:mm:ss; only resample_s needs it
    operation_pattern: str = r"(?P<operation>.+?)_\d+(?:_aligned)?"  # of a file's name, no ending
    resample_s: Annotated[float, Field(gt=0)] | None = None  # hold each row's values to this grid
    # Rows. On the real logs, windows of 64 told more of unseen runs than those of 16 or 32.
    window: Annotated[int, Field(ge=2, le=4096)] | None = None  # default 64
    stride: Annotated[int, Field(ge=1, le=4096)] | None = None  # default 4, published 16
    target: Literal["last_row", "most_frequent_line"] | None = None  # default last_row
    modal: Literal["logged", "inherit"] = "logged"  # logged: by the controller's code, if logged
    malformed: Literal["refuse", "skip"] = "refuse"  # skip: such a row has no target
    nonfinite: Literal["mask", "refuse"] = "mask"  # cells that are inf
    max_empty_share: Annotated[float, Field(ge=0, le=1)] = 0.5  # of a run's cells
    min_run_share: Annotated[float, Field(gt=0, le=1)] = 0.5  # of train's runs that have a sensor
    feature_columns: list[str] = []  # names, or patterns such as *.RMS; default: all that serve
    leaks: Literal["exclude", "refuse"] = "exclude"  # columns that give a target away
    allow_leaks: list[str] = []  # kept on purpose; published keeps mpox, mpoy, mpoz
    split: MachineSplit = MachineSplit()

    @field_validator("split", mode="before")
    @classmethod
    def _named(cls, split: Any) -> Any:
        return {"protocol": split} if isinstance(split, str) else split

    @field_validator("operation_pattern")
    @classmethod
    def _names_operation(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if "operation" not in groups:
            raise ValueError("the pattern needs a group (?P<operation>...)")
        return pattern

    @model_validator(mode="after")
    def _fits_source(self) -> MachineLogsSpec:
        source = self.source or ("machine-logs" if self.path else "simulator")
        if source == "simulator" and self.path:
            raise ValueError(
                "path belongs to data.source=machine-logs, but data.source is simulator"
            )
        if source == "machine-logs" and not self.path:
            raise ValueError(
                "data.source=machine-logs needs data.path: a file, folder, glob or s3:// prefix of "
                "logs, one run a file"
            )
        if source == "machine-logs" and self.runs is not None:
            raise ValueError("runs belongs to data.source=simulator, but data.path is set")
        object.__setattr__(self, "source", source)
        if source == "simulator" and self.runs is None:
            object.__setattr__(self, "runs", 24)
        if self.resample_s is not None and self.time_column is None:
            raise ValueError("resample_s needs data.time_column: the column with the rows' times")
        return self

    @model_validator(mode="after")
    def _fits_protocol(self) -> MachineLogsSpec:
        published = self.split.protocol == "published"
        defaults = {
            "window": PUBLISHED_WINDOW if published else 64,
            "stride": PUBLISHED_STRIDE if published else 4,
            "target": "most_frequent_line" if published else "last_row",
        }
        for key, value in defaults.items():
            given = getattr(self, key)
            if given is None:
                object.__setattr__(self, key, value)
            elif published and given != value:
                raise ValueError(
                    f"data.split=published is a protocol with {key}={value}, not {given}; leave "
                    f"{key} out, or take data.split=by_run"
                )
        return self

    @property
    def protocol(self) -> Protocol:
        return self.split.protocol

    @property
    def kept_leaks(self) -> tuple[str, ...]:
        """Columns that stay although they give a target away."""
        by_protocol = PUBLISHED_LEAKS if self.protocol == "published" else ()
        return tuple(dict.fromkeys((*self.allow_leaks, *by_protocol)))
