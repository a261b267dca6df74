"""`emberline compare MODEL --live`: champion and challenger on the requests that were recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from ray_jobs.deployments.release import fetch
from ray_jobs.errors import DataError, JobFailed, SpecError
from ray_jobs.storage import Storage

if TYPE_CHECKING:
    from rich.console import Console

    from ray_jobs.monitoring.comparison import Difference, LiveComparison, Side
    from ray_jobs.monitoring.records import Record
    from ray_jobs.monitoring.sequential import Estimate

_NUM_SHARES = 10  # decisions told


@dataclass(frozen=True)
class LiveOutcome:
    """What `emberline compare --live` prints."""

    name: str
    comparison: LiveComparison
    exit_code: ClassVar[int] = 0

    def to_json(self) -> str:
        return self.comparison.to_json()

    def print(self, console: Console) -> None:
        from rich.markup import escape
        from rich.table import Table

        live = self.comparison
        sides = (live.champion, live.challenger)
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        other = "challenger (shadow)" if live.mode == "shadow" else "challenger"
        for column in ("", "champion", other, "difference"):
            table.add_column(column, justify="left" if not column else "right")
        table.add_row("version", *(escape(side.version) for side in sides))
        table.add_row("requests", *(f"{side.num_requests:,}" for side in sides))
        table.add_row("latency p50", *(_seconds(side.p50_s) for side in sides))
        table.add_row("latency p99", *(_seconds(side.p99_s) for side in sides))
        for difference in live.differences:
            means = [side.means[difference.measure] for side in sides]
            table.add_row(difference.measure, *map(_estimate, means), _difference(difference))
        for name in _most_common(sides):
            table.add_row(
                f"predicted {escape(name)}", *(f"{s.shares.get(name, 0):.1%}" for s in sides)
            )
        if live.agreement is not None:
            table.add_row("agreement", "", _estimate(live.agreement))
        console.print(table)
        console.print(
            f"{live.start:%Y-%m-%d %H:%M} to {live.end:%Y-%m-%d %H:%M} UTC; each interval holds "
            f"at all times at once with {live.confidence:.0%}",
            soft_wrap=True,
        )
        if live.num_unused:
            console.print(
                f"[yellow]warning:[/] {live.num_unused:,} requests of the outcomes were not "
                "recorded, or have no such row"
            )
        if live.num_malformed:
            console.print(f"[yellow]warning:[/] {live.num_malformed:,} lines are no records")
        console.print(f"[bold]{escape(live.sentence)}[/]", soft_wrap=True)


def _most_common(sides: tuple[Side, Side]) -> list[str]:
    names = {
        name: max(side.shares.get(name, 0) for side in sides) for s in sides for name in s.shares
    }
    return sorted(names, key=lambda name: -names[name])[:_NUM_SHARES]


def _seconds(value: float | None) -> str:
    return "—" if value is None else f"{1000 * value:.1f} ms"


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} ({estimate.low:.3f}–{estimate.high:.3f})"


def _difference(difference: Difference) -> str:
    estimate = difference.estimate
    colour = {"challenger": "green", "champion": "red", None: "default"}[difference.winner]
    said = f"{estimate.value:+.4f} ({estimate.low:+.3f} to {estimate.high:+.3f})"
    return f"[{colour}]{said}[/]"


def compare(
    storage: str,
    model: str,
    *,
    name: str | None = None,
    since: str | None = None,
    outcomes: str | None = None,
    confidence: float = 0.95,
) -> LiveOutcome:
    """Compare the versions of a model that answer under one name.

    Args:
        name: of the deployment; default: the model's.
        since: a span such as 7d, or a time in ISO 8601.
        outcomes: a table of what turned out to be true; see `read_outcomes`.

    Raises:
        SpecError: there is no such model, or `since` or the confidence is none.
        DataError: there are no records of two versions, or the outcomes cannot be used.
        JobFailed, PreflightError: a version's files are not what was signed.
        RetryableError: the registry or a storage cannot be reached.
    """
    from ray_jobs.drift import parse_since
    from ray_jobs.monitoring import comparison
    from ray_jobs.monitoring.judging import judge_of
    from ray_jobs.monitoring.outcomes import read_outcomes
    from ray_jobs.monitoring.records import read_records
    from ray_jobs.tracking.models import find_model
    from ray_jobs.tracking.registry import WORKLOAD_TAG

    if not 0.5 <= confidence < 1:
        raise SpecError(f"--confidence {confidence:g} must be from 0.5 to below 1, as in 0.95")
    root, name = Storage(storage), name or model
    start = None if since is None else parse_since(since)
    truth = None if outcomes is None else read_outcomes(outcomes)
    read = read_records(root, name, start)
    records = list(read)
    if not records:
        raise DataError(
            f"no request to {name!r} is recorded below {root.uri!r}; serve with --record-share or "
            "deployment.record.share, and look at --name, --since and --storage"
        )
    located = find_model(root, model, max(records, key=lambda record: record.time).version)
    workload = located.tags.get(WORKLOAD_TAG)
    if workload is None:
        raise JobFailed(f"{located} was registered by other means than emberline's; train it again")
    judge = judge_of(workload, _threshold_of(storage, model))
    found = comparison.compare(records, judge, outcomes=truth, confidence=confidence)
    return LiveOutcome(name, replace(found, num_malformed=read.num_malformed))


def _threshold_of(storage: str, model: str) -> Callable[[Record], float]:
    """How to know from which probability a version of fire says so: from its signed bundle."""
    from ray_jobs.models.bundle_files import read_index

    @cache
    def threshold(version: str, digest: str) -> float:
        release = fetch(Storage(storage), model, version)
        if release.digest != digest:
            raise JobFailed(
                f"the records of version {version} are of a model with sha256 {digest}, but "
                f"{release.model} has {release.digest}; look at --name and --storage"
            )
        return float(read_index(release.bundle)["ensemble"]["threshold"])

    return lambda record: threshold(record.version, record.digest)
