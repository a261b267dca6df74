"""`emberline compare MODEL --live`: champion and challenger on the requests that were recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from ray_jobs.deployments.release import fetch
from ray_jobs.errors import DataError, JobFailed, SpecError
from ray_jobs.storage import Storage

if TYPE_CHECKING:
    from rich.console import Console

    from ray_jobs.gcode_metrics import Tolerance
    from ray_jobs.monitoring.comparison import Difference, LiveComparison, Side
    from ray_jobs.monitoring.records import Record
    from ray_jobs.monitoring.sequential import Estimate
    from ray_jobs.tracking.models import LocatedModel

_NUM_SHARES = 10  # decisions told
_MOVED = "has moved"  # and the interval is of a mean that has stayed


@dataclass(frozen=True)
class LiveOutcome:
    """What `emberline compare --live` prints."""

    name: str
    comparison: LiveComparison
    is_captured: bool = False  # by SageMaker, which notes no latency and no request that failed
    exit_code: ClassVar[int] = 0

    def to_json(self) -> str:
        return self.comparison.to_json()

    def print(self, console: Console) -> None:
        from rich.markup import escape
        from rich.table import Table

        live = self.comparison
        sides = (live.champion, live.challenger)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        other = "shadow" if live.mode == "shadow" else "challenger"
        table.add_column()
        for column in ("champion", other, "difference"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_row("version", *(escape(side.version) for side in sides))
        table.add_row("requests", *(f"{side.num_requests:,}" for side in sides))
        if self.is_captured:
            table.add_row("latency", *("not captured" for _ in sides))
        else:
            table.add_row("latency p50", *(_seconds(side.p50_s) for side in sides))
            table.add_row("latency p99", *(_seconds(side.p99_s) for side in sides))
        for difference in live.differences:
            means = [side.means[difference.measure] for side in sides]
            table.add_row(difference.measure, *map(_estimate, means), _difference(difference))
        for name in _most_common(sides):
            table.add_row(f"says {escape(name)}", *(f"{s.shares.get(name, 0):.1%}" for s in sides))
        if live.agreement is not None:
            table.add_row("agreement", "", _estimate(live.agreement))
        console.print(table)
        console.print(
            f"{live.start:%Y-%m-%d %H:%M} to {live.end:%Y-%m-%d %H:%M} UTC; each interval holds "
            f"at all times at once with {live.confidence:.3g}, of a mean that stays",
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
    interval = f"{estimate.low:.3f}–{estimate.high:.3f}" if estimate.is_steady else _MOVED
    return f"{estimate.value:.3f} ({interval})"


def _difference(difference: Difference) -> str:
    estimate = difference.estimate
    colour = {"challenger": "green", "champion": "red", None: "default"}[difference.winner]
    interval = f"{estimate.low:+.3f}, {estimate.high:+.3f}" if estimate.is_steady else _MOVED
    said = f"{estimate.value:+.3f} ({interval})"
    return f"[{colour}]{said}[/]"


def compare(
    storage: str,
    model: str,
    *,
    name: str | None = None,
    since: str | None = None,
    outcomes: str | None = None,
    target: str | None = None,
    confidence: float = 0.95,
) -> LiveOutcome:
    """Compare the versions of a model that answer under one name.

    Args:
        name: of the deployment; default: the model's.
        since: a span such as 7d, or a time in ISO 8601.
        outcomes: a table of what turned out to be true; see `read_outcomes`.
        target: where it is deployed; needed only where there is one of that name on both.

    Raises:
        SpecError: there is no such model, or `since` or the confidence is none.
        DataError: there are no records of two versions, or the outcomes cannot be used.
        JobFailed, PreflightError: a version's files are not what was signed.
        RetryableError: the registry or a storage cannot be reached.
    """
    from ray_jobs.deployments.traffic import read_traffic
    from ray_jobs.drift import parse_since
    from ray_jobs.monitoring import comparison
    from ray_jobs.monitoring.judging import judge_of
    from ray_jobs.monitoring.outcomes import read_outcomes
    from ray_jobs.tracking.models import find_model
    from ray_jobs.tracking.registry import WORKLOAD_TAG, Registry, check_exists

    if not 0.5 <= confidence < 1:
        raise SpecError(f"--confidence {confidence:g} must be from 0.5 to below 1, as in 0.95")
    root, name = Storage(storage), name or model
    start = None if since is None else parse_since(since)
    truth = None if outcomes is None else read_outcomes(outcomes)
    traffic = read_traffic(root, name, start, target=target)
    records = list(traffic.records)
    if not records:
        check_exists(root)
        Registry(root).champion(model)  # or there is no such model, and that is why
        raise DataError(
            f"no request to {name!r} is recorded below {root.uri!r}; serve with --record-share or "
            "deployment.record.share, and look at --name, --since and --storage"
        )
    if traffic.is_captured and not _are_paired(records):
        raise DataError(
            "no request to the champion has the id of one to its shadow, so they cannot be paired: "
            "send an InferenceId with each request to the endpoint"
        )
    located = find_model(root, model, max(records, key=lambda record: record.time).version)
    workload = located.tags.get(WORKLOAD_TAG)
    if workload is None:
        raise JobFailed(f"{located} was registered by other means than emberline's; train it again")
    judge = judge_of(workload, _threshold_of(storage, model), _tolerance_of(root, located))
    found = comparison.compare(records, judge, outcomes=truth, confidence=confidence)
    found = replace(found, num_malformed=traffic.records.num_malformed)
    return LiveOutcome(name, found, is_captured=traffic.is_captured)


def _tolerance_of(root: Storage, model: LocatedModel) -> Tolerance | None:
    """How far the values of a line may be off, as a version was trained; None: not gcode's."""
    from ray_jobs.run import Run
    from ray_jobs.tracking.registry import RUN_ID_TAG, WORKLOAD_TAG

    if model.tags[WORKLOAD_TAG] != "gcode":
        return None
    spec: Any = Run.open(root.uri, "gcode", model.tags[RUN_ID_TAG]).spec
    return spec.value_tolerance.parsed()


def _are_paired(records: Sequence[Record]) -> bool:
    """Whether some request to a shadow has its champion's id; without a shadow there is none to."""
    shadows = {record.request_id for record in records if record.is_shadow}
    others = {record.request_id for record in records if not record.is_shadow}
    return not shadows or bool(shadows & others)


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
