"""Live records: of some requests to a deployment, what was asked, who answered, and what.

JSON lines below `<storage root>/.live/<deployment>/<day of UTC>/`, one a request and variant.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ray_jobs.errors import SpecError
from ray_jobs.serving.routing import Role
from ray_jobs.storage import Storage

_FOLDER = ".live"
_MAX_NAME = 128


@dataclass(frozen=True)
class Record:
    """A request to one variant. One that was refused has no features and outputs."""

    time: datetime  # of the answer; aware, in UTC
    request_id: str
    variant: Role
    is_shadow: bool  # asked beside the champion: its answer went to nobody
    version: str
    digest: str
    status: int  # of HTTP
    seconds: float
    num_rows: int
    features: Mapping[str, Sequence[float | None]] | None = None
    outputs: Mapping[str, Sequence[Any]] | None = None  # numbers, texts or None

    @property
    def is_answered(self) -> bool:
        return 200 <= self.status < 300

    def to_json(self) -> str:
        """A line."""
        fields: dict[str, Any] = {**vars(self), "time": self.time.isoformat()}
        for name in ("features", "outputs"):
            if fields[name] is None:
                del fields[name]
            else:
                fields[name] = {key: _finite(values) for key, values in fields[name].items()}
        return json.dumps(fields, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> Record:
        """A line as a record.

        Raises:
            ValueError: it is none.
        """
        try:
            fields = json.loads(line)
            record = cls(**{**fields, "time": datetime.fromisoformat(fields["time"])})
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"no record: {error}") from None
        if not _is_sound(record):
            raise ValueError("no record: a field is of another type")
        return record


def _finite(values: Sequence[Any]) -> list[Any]:
    """JSON has no NaN."""
    return [None if isinstance(v, float) and not math.isfinite(v) else v for v in values]


def _is_sound(record: Record) -> bool:
    texts = (record.request_id, record.version, record.digest)
    numbers = (record.status, record.seconds, record.num_rows)
    tables = [table for table in (record.features, record.outputs) if table is not None]
    return (
        record.time.tzinfo is not None
        and record.variant in ("champion", "challenger")
        and isinstance(record.is_shadow, bool)
        and all(isinstance(text, str) for text in texts)
        and all(type(number) in (int, float) and number >= 0 for number in numbers)
        and all(isinstance(table, dict) for table in tables)
        and all(isinstance(values, list) for table in tables for values in table.values())
    )


def folder_of(name: str) -> str:
    """Where the records of a deployment lie, below a storage's root.

    Raises:
        SpecError: it cannot be a folder's name.
    """
    if not name or len(name) > _MAX_NAME or name.startswith(".") or set(name) & set("/\\\0"):
        raise SpecError(
            f"deployment {name!r} cannot name a folder: use at most {_MAX_NAME} characters, none "
            "of them / or \\, and no leading dot (set deployment.name)"
        )
    return f"{_FOLDER}/{name}"


class Records(Iterator[Record]):
    """The records of a deployment, day by day; within a day in no particular order."""

    def __init__(self, records: Iterable[bytes], since: datetime | None, until: datetime | None):
        self.num_malformed = 0  # lines that were skipped so far
        self._records = self._parsed(records, since, until)

    def __next__(self) -> Record:
        return next(self._records)

    def _parsed(
        self, lines: Iterable[bytes], since: datetime | None, until: datetime | None
    ) -> Iterator[Record]:
        for line in lines:
            try:
                record = Record.from_json(line)
            except ValueError:  # cut off, or damaged
                self.num_malformed += 1
                continue
            if (since is None or record.time >= since) and (until is None or record.time < until):
                yield record


def read_records(
    storage: Storage, name: str, since: datetime | None = None, until: datetime | None = None
) -> Records:
    """The records of a deployment. A line that is none is counted and skipped.

    Args:
        since, until: of their time; aware. From the first to before the second.

    Raises:
        SpecError: the name cannot be a folder's.
        StorageUnavailable, StorageRefused: while they are read, where the storage is remote.
    """
    return Records(_lines(storage, folder_of(name), since, until), since, until)


def _lines(
    storage: Storage, folder: str, since: datetime | None, until: datetime | None
) -> Iterator[bytes]:
    first = "" if since is None else since.astimezone(UTC).date().isoformat()
    last = "~" if until is None else until.astimezone(UTC).date().isoformat()
    for path in storage.list(folder, recursive=True):
        day = path.removeprefix(f"{folder}/").partition("/")[0]
        if path.endswith(".jsonl") and first <= day <= last:
            yield from storage.read_bytes(path).splitlines()
