"""`emberline data`: simulated rows as Parquet, for whoever wants them."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast, get_args

from ray_jobs.errors import SpecError
from ray_jobs.storage import Storage

if TYPE_CHECKING:
    from rich.console import Console

Generator = Literal["episodes", "independent"]
_WORKLOADS = ("fire",)  # those that have a simulator of rows


@dataclass(frozen=True)
class Written:
    """What was written where."""

    path: str
    num_rows: int
    num_files: int
    seconds: float
    exit_code: ClassVar[int] = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def print(self, console: Console) -> None:
        console.print(
            f"{self.num_rows:,} rows in {self.num_files} Parquet files under {self.path} "
            f"({self.seconds:.1f} s)",
            soft_wrap=True,
        )
        console.print(
            f"train on them with: emberline run fire --set data.path={self.path}", soft_wrap=True
        )


def write(workload: str, output: str, *, samples: int, generator: str, seed: int) -> Written:
    """Simulate rows into a new folder or prefix.

    Raises:
        SpecError: there is no such workload or generator, or the folder already holds rows.
        PreflightError: the folder cannot be written.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from ray_jobs.data.simulator import generate_shards

    if workload not in _WORKLOADS:
        raise SpecError(f"no simulator for {workload!r}; there is one for {', '.join(_WORKLOADS)}")
    if generator not in get_args(Generator):
        raise SpecError(f"--generator {generator!r} is not one of {', '.join(get_args(Generator))}")
    storage = Storage(output)
    if any(path.endswith(".parquet") for path in storage.list()):
        raise SpecError(f"{output} already holds Parquet files; name an empty folder with -o")
    storage.check_writable()
    started = time.monotonic()
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("rows", total=samples)
        paths = generate_shards(
            storage,
            "",
            generator=cast("Generator", generator),
            num_samples=samples,
            seed=seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    return Written(storage.uri, samples, len(paths), round(time.monotonic() - started, 3))
