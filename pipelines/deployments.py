"""`emberline deployments` and `emberline undeploy`: what is deployed, what it costs, its end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pipelines.deploy import price, versions
from ray_jobs import deploy as deployment_job
from ray_jobs import logs
from ray_jobs.deployments.base import Deployment
from ray_jobs.deployments.places import deployers
from ray_jobs.errors import EXIT_OK
from ray_jobs.storage import Storage

if TYPE_CHECKING:
    from rich.console import Console

    from ray_jobs.sections import JobSpec

_STYLES = {"PENDING": "dim", "RUNNING": "cyan", "FAILED": "red", "STOPPED": "yellow"}


@dataclass(frozen=True)
class Deployments:
    """All that are deployed from one storage root."""

    deployments: Sequence[Deployment]

    exit_code = EXIT_OK

    def to_json(self) -> str:
        return json.dumps([asdict(one) for one in self.deployments], indent=2)

    def print(self, console: Console) -> None:
        if not self.deployments:
            console.print("nothing is deployed")
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for column in ("name", "model", "target", "versions", "status", "url", "cost"):
            table.add_column(column, overflow="fold")
        for one in self.deployments:
            table.add_row(
                one.name,
                one.model,
                one.target,
                versions(one).removeprefix("version ") if one.variants else "–",
                Text(one.status.lower(), _STYLES[one.status]),
                one.url or "–",
                price(one.costs),
            )
        console.print(table)
        for one in self.deployments:
            if one.reason:
                console.print(f"{one.name}: {one.reason}", soft_wrap=True, markup=False)
            for cost in one.costs:
                note = f" ({cost.note})" if cost.note else ""
                known = cost.usd_per_hour is not None
                rate = f"${cost.usd_per_hour:.3f} an hour" if known else "no price is known"
                line = f"{one.name}: {cost.resource}: {rate}{note}"
                console.print(line, soft_wrap=True, markup=False)


@dataclass(frozen=True)
class Removed:
    """What was removed with a deployment."""

    name: str
    removed: Sequence[str]

    exit_code = EXIT_OK

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def print(self, console: Console) -> None:
        for line in self.removed:
            console.print(f"removed: {line}", soft_wrap=True, markup=False)


def deployments(storage: str, spec: JobSpec | None) -> Deployments:
    """What is deployed from a storage root.

    Args:
        spec: whose account of SageMaker is looked at, too.

    Raises:
        RetryableError: a place of a deployment does not answer now.
        PreflightError: it refuses.
    """
    there = deployers(Storage(storage), spec)
    found = [deployer.find(name) for (_, name), deployer in sorted(there.items())]
    return Deployments([one for one in found if one is not None])


def undeploy(storage: str, name: str, target: str | None, spec: JobSpec | None) -> Removed:
    """As `ray_jobs.deploy.undeploy`."""
    removed = deployment_job.undeploy(
        Storage(storage),
        name,
        target=target,
        spec=spec,
        say=logs.say,
    )
    return Removed(name, removed)
