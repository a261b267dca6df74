"""Drift of live traffic: `python -m ray_jobs.drift MODEL` prints what the recorded requests, or a
file of rows, say of a version, as JSON. Exit code 7 if something has drifted.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ray_jobs import logs
from ray_jobs.deployments.base import Release
from ray_jobs.deployments.places import TARGETS
from ray_jobs.deployments.release import fetch
from ray_jobs.errors import EmberlineError, SpecError
from ray_jobs.monitoring.drift import DriftReport, Window, compare, conclude
from ray_jobs.monitoring.observation import Observation
from ray_jobs.monitoring.reference import read_reference
from ray_jobs.storage import Storage

ALPHA = 0.01
_MAX_ROWS = 200_000  # the newest; more say nothing new
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def measure(
    storage: Storage | str,
    model: str,
    *,
    version: int | str | None = None,
    name: str | None = None,
    since: datetime | None = None,
    input: str | None = None,
    alpha: float = ALPHA,
    target: str | None = None,
) -> DriftReport:
    """Compare what was recorded of a version's requests with the reference stored with it.

    Args:
        version: its number or an alias; None: the champion, or else the challenger.
        name: of the deployment whose records are read; None: the model's.
        since: of their time; aware.
        input: a path or s3:// URI of rows, pictures or logs that are compared instead.
        alpha: at most this share of windows in which nothing has drifted is called drift.
        target: where it is deployed; needed only where there is one of that name on both.

    Raises:
        SpecError: there is no such model or version; alpha is no rate.
        PreflightError: the input cannot be read, or there is no key to trust.
        JobFailed: the model is refused, or holds no reference.
        RetryableError: the registry or a storage cannot be reached.
    """
    if not 0 < alpha < 0.5:
        raise SpecError(f"alpha is {alpha:g}, but a rate of false alarms is over 0 and below 0.5")
    if input is not None and (name or since or target):
        raise SpecError("an input file has neither a deployment nor a time; leave those out")
    storage = Storage(storage) if isinstance(storage, str) else storage
    release = fetch(storage, model, version)
    reference = read_reference(release.bundle)
    if input is None:
        window = _recorded(storage, release, name or model, since, target)
    else:
        window = _of_files(release, input)
    findings = compare(reference, window.values(), alpha) if window.num_rows else []
    status, reason = conclude(findings, alpha) if findings else ("unknown", window.nothing)
    return DriftReport(
        model=release.model.name,
        version=release.model.version,
        source=window.source,
        status=status,
        reason=reason,
        alpha=alpha,
        num_requests=window.num_requests,
        num_rows=window.num_rows,
        num_skipped=window.num_skipped,
        since=window.since,
        until=window.until,
        findings=tuple(findings),
    )


# What is compared


@dataclass
class _Collected:
    """The newest rows of a window, in order of time."""

    source: str
    nothing: str  # what to say if there are no rows
    num_requests: int = 0
    num_rows: int = 0
    num_skipped: int = 0
    since: datetime | None = None
    until: datetime | None = None
    features: dict[str, list[Any]] = field(default_factory=dict)
    outputs: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, observation: Observation) -> None:
        self.num_requests += 1
        for columns, values in (
            (self.features, observation.features),
            (self.outputs, observation.outputs),
        ):
            _extend(columns, values)
        self.num_rows += max(map(len, observation.features.values()), default=0)

    def values(self) -> Window:
        return Window(
            {name: column[-_MAX_ROWS:] for name, column in self.features.items()},
            {name: column[-_MAX_ROWS:] for name, column in self.outputs.items()},
        )


def _extend(columns: dict[str, list[Any]], values: Mapping[str, Sequence[Any]]) -> None:
    for name, of_rows in values.items():
        column = columns.setdefault(name, [])
        column.extend(of_rows)
        if len(column) > 2 * _MAX_ROWS:
            del column[:-_MAX_ROWS]


def _recorded(
    storage: Storage, release: Release, name: str, since: datetime | None, target: str | None
) -> _Collected:
    """What was recorded of the requests that the version answered."""
    from ray_jobs.deployments.traffic import read_traffic

    traffic = read_traffic(storage, name, since, target=target)
    window = _Collected(
        f"{'captured requests to' if traffic.is_captured else 'live records of'} {name}",
        f"no requests to version {release.model.version} are recorded for deployment {name!r} "
        f"{f'since {since:%Y-%m-%d %H:%M} UTC' if since else 'yet'}; set deployment.record.share "
        "and deploy it, or name the deployment with --name, or a file with --input",
    )
    records = traffic.records
    days: list[tuple[datetime, Observation]] = []
    for record in records:  # day by day, but each worker of a deployment has files of its own
        if record.digest != release.digest or not record.is_answered or record.features is None:
            continue
        if days and record.time.date() != days[0][0].date():
            _add_in_order(window, days)
            days.clear()
        days.append((record.time, Observation(record.features, record.outputs or {})))
    _add_in_order(window, days)
    window.num_skipped = records.num_malformed
    return window


def _add_in_order(window: _Collected, timed: Iterable[tuple[datetime, Observation]]) -> None:
    for time, observation in sorted(timed, key=lambda pair: pair[0]):
        window.since = window.since or time
        window.until = time
        window.add(observation)


def _of_files(release: Release, source: str) -> _Collected:
    """What the model sees in files, and says of them."""
    from ray_jobs.serving.files import endings, score_files
    from ray_jobs.serving.model import load_model
    from ray_jobs.serving.rows import Faults, find_inputs

    model = load_model(release.bundle, digest=release.digest)
    files = find_inputs(source, endings(model.workload))
    faults = Faults(skip=True)
    window = _Collected(source, "")
    for scored in score_files(model, release.bundle, files, faults):
        window.add(model.scorer.observe(scored.inputs, scored.answer))
    window.num_requests, window.num_skipped = len(files), faults.num
    window.nothing = f"nothing that the model takes: {'; '.join(faults.told)}"
    return window


def parse_since(text: str, now: datetime | None = None) -> datetime:
    """`7d`, `12h` (ago), or a time in ISO 8601, which is in UTC unless it says otherwise.

    Raises:
        SpecError: it is neither.
    """
    now = now or datetime.now(UTC)
    found = re.fullmatch(r"(\d{1,6})([mhdw])", text.strip())
    try:
        if found:
            return now - timedelta(**{_UNITS[found[2]]: int(found[1])})
        time = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError):
        raise SpecError(
            f"--since {text!r} is no time; give 7d, 12h, 30m, or a date such as {now:%Y-%m-%d}"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m ray_jobs.drift`; the outcome is the last thing on stdout. Returns the exit code:
    7 if something has drifted."""
    parser = argparse.ArgumentParser(
        prog="python -m ray_jobs.drift",
        description="Compare live requests with what a version was trained on.",
    )
    add = parser.add_argument
    add("model", help="the registered name, e.g. fire")
    add("--version", help="its number or an alias; default: the champion, or else the challenger")
    add("--name", help="of the deployment; default: the model's")
    add("--target", choices=TARGETS, help="where it is deployed; needed if that name is on both")
    add("--input", help="rows, pictures or logs to compare instead of live records")
    add("--since", help="of live records: 7d, 12h, or a time in ISO 8601")
    add("--alpha", type=float, default=ALPHA, help=f"rate of false alarms; default: {ALPHA}")
    add("--storage", default="./runs", help="root of all runs; default: ./runs")
    add("-o", "--output", type=Path, help="write the report, one HTML file")
    options = parser.parse_args(arguments)
    try:
        logs.setup()
        report = measure(
            options.storage,
            options.model,
            version=options.version,
            name=options.name,
            since=parse_since(options.since) if options.since else None,
            input=options.input,
            alpha=options.alpha,
            target=options.target,
        )
        if options.output:
            write_report(report, options.output)
    except EmberlineError as error:
        logs.say_error(error)
        return error.exit_code
    logs.show(report.to_json())
    return report.exit_code


def write_report(report: DriftReport, output: Path) -> None:
    """Write the page.

    Raises:
        SpecError: there is no such folder, or it cannot be written to.
    """
    from ray_jobs.monitoring.drift_report import render_drift_report

    try:
        output.write_text(render_drift_report(report), encoding="utf-8")
    except OSError as error:
        raise SpecError(f"--output {output}: cannot be written ({error.strerror})") from None


if __name__ == "__main__":
    sys.exit(main())
