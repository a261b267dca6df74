"""`emberline predict`: a registered model's predictions for files of any size."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any, ClassVar

from ray_jobs.deployments.release import fetch
from ray_jobs.errors import DataError, SpecError
from ray_jobs.storage import Storage

if TYPE_CHECKING:
    from rich.console import Console

    from ray_jobs.data.table import DataFile

_COLUMNS = {
    "fire": ("file", "row", "probability", "decision", "model_version"),
    "waste": ("file", "class", "probability", "model_version"),
    "gcode": ("file", "row", "command", "F", "R", "X", "Y", "Z", "model_version"),
}
_TYPES = {"row": "int64", "probability": "double", "decision": "bool",
          **dict.fromkeys("FRXYZ", "double")}  # fmt: skip


@dataclass(frozen=True)
class Predictions:
    """What was predicted, and where it lies."""

    model: str
    version: int
    alias: str | None
    output: str
    num_files: int
    num_predictions: int
    num_skipped: int
    skipped: list[str]  # the first few
    seconds: float
    exit_code: ClassVar[int] = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def print(self, console: Console) -> None:
        alias = f" ({self.alias})" if self.alias else ""
        console.print(
            f"{self.num_predictions:,} predictions by {self.model} version {self.version}{alias} "
            f"in {self.output} ({self.seconds:.1f} s)",
            soft_wrap=True,
            markup=False,
        )
        if self.num_skipped:
            console.print(f"[yellow]warning:[/] {self.num_skipped:,} skipped:")
        for place in self.skipped:
            console.print(f"  {place}", soft_wrap=True, markup=False)
        if self.num_skipped > len(self.skipped):
            console.print("  ...")


def predict(
    storage: str,
    name: str,
    version: str | None,
    input: str,
    output: str,
    *,
    skip_bad: bool = False,
) -> Predictions:
    """Predict for all rows or pictures of a file, or of the files below a folder, and write a table
    of them. It appears when it is whole.

    Args:
        input: a path or s3:// URI: CSV or Parquet rows (fire), pictures (waste), logs (gcode).
        output: a path or s3:// URI; .csv, .parquet or .jsonl.
        skip_bad: what the model cannot take is left out and counted.

    Raises:
        SpecError: there is no such model or version, or no way to write such an output.
        DataError: the input cannot be read, or the model cannot take a row of it.
        PreflightError: the output cannot be written.
        JobFailed: the model is refused.
        RetryableError: the registry or a storage cannot be reached.
    """
    from ray_jobs.ray_runtime import spin_briefly

    spin_briefly()
    from rich.console import Console

    from ray_jobs.serving.files import endings, predict_files
    from ray_jobs.serving.model import load_model
    from ray_jobs.serving.rows import Faults, find_inputs

    started = time.monotonic()
    _writer(output)
    release = fetch(Storage(storage), name, version)
    model = load_model(release.bundle, version=str(release.model.version), digest=release.digest)
    files = _others(find_inputs(input, endings(model.workload)), output)
    faults = Faults(skip_bad)
    console = Console(stderr=True, highlight=False)
    num_predictions = 0
    with _table(output, _COLUMNS[model.workload]) as write, console.status("") as status:
        for predictions in predict_files(model, release.bundle, files, faults):
            write(predictions)
            num_predictions += len(predictions)
            status.update(f"{num_predictions:,} predictions by {release.model}")
        if not num_predictions:
            raise DataError(f"{input}: nothing that the model takes: {'; '.join(faults.told)}")
    return Predictions(
        name,
        release.model.version,
        release.model.alias,
        output,
        len(files),
        num_predictions,
        faults.num,
        faults.told,
        time.monotonic() - started,
    )


def _others(files: Sequence[DataFile], output: str) -> list[DataFile]:
    """Without the output of an earlier call, which may lie among them.

    Raises:
        SpecError: it is all there is.
    """
    _, path = _resolved(output)
    others = [file for file in files if file.path != path]
    if not others:
        raise SpecError(f"--output {output!r} is the input; name another file")
    return others


def _resolved(output: str) -> tuple[str, str]:
    """The output's folder, and its path within its filesystem."""
    from ray_jobs.storage import resolve_filesystem

    folder, _, _ = output.rpartition("/")
    return folder or ("/" if output.startswith("/") else "."), resolve_filesystem(output)[1]


# The table


Write = Callable[[list[dict[str, Any]]], Any]  # adds predictions to a table


@contextmanager
def _table(output: str, columns: Sequence[str]) -> Iterator[Write]:
    """A table that appears at `output` when it is closed without an error."""
    writer = _writer(output)
    folder, path = _resolved(output)
    storage = Storage(folder)
    storage.check_writable()
    with storage.open_output(path.rpartition("/")[2]) as stream, writer(stream, columns) as write:
        yield write


def _writer(output: str) -> Any:
    """How to write the kind of table that its ending names.

    Raises:
        SpecError: none.
    """
    for ending, writer in _WRITERS.items():
        if output.lower().endswith(ending):
            return writer
    raise SpecError(f"--output {output!r} must end in one of {', '.join(_WRITERS)}")


@contextmanager
def _csv(stream: IO[bytes], columns: Sequence[str]) -> Iterator[Write]:
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    try:
        yield writer.writerows
    finally:
        text.detach()  # the stream is closed by whoever opened it


@contextmanager
def _json_lines(stream: IO[bytes], columns: Sequence[str]) -> Iterator[Write]:
    def write(predictions: list[dict[str, Any]]) -> None:
        for one in predictions:
            stream.write(json.dumps({name: one[name] for name in columns}).encode() + b"\n")

    yield write


@contextmanager
def _parquet(stream: IO[bytes], columns: Sequence[str]) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, _TYPES.get(name, "string")) for name in columns])
    with pq.ParquetWriter(stream, schema) as writer:
        yield lambda predictions: writer.write_batch(
            pa.RecordBatch.from_pylist(predictions, schema)
        )


_WRITERS = {".csv": _csv, ".parquet": _parquet, ".jsonl": _json_lines}
