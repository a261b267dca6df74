"""`emberline data`: simulated data as a user's own would lie: rows as Parquet, pictures in folders,
logs of machine runs as CSV."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast, get_args

from ray_jobs.errors import SpecError
from ray_jobs.storage import Storage

if TYPE_CHECKING:
    from rich.console import Console

Generator = Literal["episodes", "independent"]
_NUM_ROWS, _MIN_ROWS = 100_000, 100


@dataclass(frozen=True)
class Written:
    """What was written where."""

    path: str
    num_samples: int
    num_files: int
    kind: str
    usage: str  # a command that trains on it
    seconds: float
    exit_code: ClassVar[int] = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def print(self, console: Console) -> None:
        console.print(
            f"{self.num_samples:,} {self.kind}, {self.num_files:,} files under {self.path} "
            f"({self.seconds:.1f} s)",
            soft_wrap=True,
        )
        console.print(f"train on them with: {self.usage}", soft_wrap=True, markup=False)


def write(
    workload: str, output: str, *, samples: int | None, generator: str | None, seed: int
) -> Written:
    """Simulate data into a new folder or prefix.

    Args:
        samples: rows, pictures or runs; default: as many as a run without data makes.
        generator: of rows; default: episodes.

    Raises:
        SpecError: there is no such workload or generator, or the folder already holds data.
        PreflightError: the folder cannot be written.
    """
    if workload not in _WRITERS:
        known = ", ".join(_WRITERS)
        raise SpecError(f"no simulator for {workload!r}; there is one for {known}")
    storage = Storage(output)
    if storage.list():
        raise SpecError(f"{output} already holds files; name an empty folder with -o")
    storage.check_writable()
    return _WRITERS[workload](storage, samples, generator, seed)


def _write_rows(storage: Storage, samples: int | None, generator: str | None, seed: int) -> Written:
    from ray_jobs.data.simulator import generate_shards

    generator, samples = generator or "episodes", samples or _NUM_ROWS
    if generator not in get_args(Generator):
        raise SpecError(f"--generator {generator!r} is not one of {', '.join(get_args(Generator))}")
    if samples < _MIN_ROWS:
        raise SpecError(f"--samples {samples}: at least {_MIN_ROWS} rows are needed")
    started = time.monotonic()
    with _bar("rows", samples) as progress:
        paths = generate_shards(
            storage,
            "",
            generator=cast("Generator", generator),
            num_samples=samples,
            seed=seed,
            progress=progress,
        )
    usage = f"emberline run fire --set {shlex.quote(f'data.path={storage.uri}')}"
    seconds = round(time.monotonic() - started, 3)
    return Written(storage.uri, samples, len(paths), "rows in Parquet", usage, seconds)


def _write_pictures(
    storage: Storage, samples: int | None, generator: str | None, seed: int
) -> Written:
    from ray_jobs.data.images.procedural import draw_set
    from ray_jobs.data.images.spec import MIN_PICTURES_PER_CLASS, WASTE_CLASSES, ImageDataSpec

    if generator is not None:
        raise SpecError("--generator belongs to fire: pictures are drawn in one way")
    least = MIN_PICTURES_PER_CLASS * len(WASTE_CLASSES)
    if samples is not None and samples < least:
        raise SpecError(
            f"--samples {samples}: at least {least} pictures are needed, {MIN_PICTURES_PER_CLASS} "
            f"of each of {len(WASTE_CLASSES)} classes"
        )
    data = ImageDataSpec(samples=samples)
    assert data.samples is not None, "the spec fills it in"
    assert data.picture_size is not None, "the spec fills it in"
    started = time.monotonic()
    with _bar("pictures", data.samples) as progress:
        draw_set(
            storage,
            "",
            classes=data.classes,
            num_samples=data.samples,
            size=data.picture_size,
            seed=seed,
            num_workers=None,
            progress=progress,
        )
    usage = f"emberline run waste --set 'data.sources=[{{path: {storage.uri}}}]'"
    seconds = round(time.monotonic() - started, 3)
    return Written(storage.uri, data.samples, data.samples, "drawn pictures", usage, seconds)


def _write_logs(storage: Storage, samples: int | None, generator: str | None, seed: int) -> Written:
    from ray_jobs.data.machine_logs.simulated_logs import write_logs
    from ray_jobs.data.machine_logs.spec import MIN_SIMULATED_RUNS, MachineLogsSpec

    if generator is not None:
        raise SpecError("--generator belongs to fire: runs are simulated in one way")
    if samples is not None and samples < MIN_SIMULATED_RUNS:
        raise SpecError(f"--samples {samples}: at least {MIN_SIMULATED_RUNS} runs are needed")
    num_runs = samples or MachineLogsSpec().runs
    assert num_runs is not None, "the spec fills it in"
    started = time.monotonic()
    with _bar("runs", num_runs) as progress:
        names = write_logs(storage, num_runs, seed=seed, progress=progress)
    usage = f"emberline run gcode --set {shlex.quote(f'data.path={storage.uri}')}"
    seconds = round(time.monotonic() - started, 3)
    return Written(storage.uri, num_runs, len(names), "runs in CSV logs", usage, seconds)


@contextmanager
def _bar(unit: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr; yields what moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(unit, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)


_WRITERS = {"fire": _write_rows, "waste": _write_pictures, "gcode": _write_logs}
