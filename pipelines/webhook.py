"""`emberline webhook`: a moved alias in MLflow's registry becomes a deployment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ray_jobs import logs, webhook

if TYPE_CHECKING:
    from ray_jobs.sections import JobSpec


def receive(
    where: JobSpec | str,
    models: Sequence[str],
    target: str,
    host: str,
    port: int,
    *,
    overrides: Sequence[str] = (),
    interval_s: float = webhook.INTERVAL_S,
    register: bool = False,
    url: str | None = None,
) -> int:
    """As `ray_jobs.webhook.receive`; its progress goes to stderr."""
    return webhook.receive(
        where,
        models,
        target=target,
        overrides=overrides,
        host=host,
        port=port,
        interval_s=interval_s,
        register=register,
        url=url,
        say=logs.say,
    )
