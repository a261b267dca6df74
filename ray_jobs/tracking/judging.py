"""The gate's verdicts on a registered version, against the champion."""

from __future__ import annotations

from ray_jobs.errors import PreflightError
from ray_jobs.storage import Storage
from ray_jobs.tracking.evidence import gather, gather_tested
from ray_jobs.tracking.gate import Verdict, judge
from ray_jobs.tracking.promotion_spec import PromotionSpec
from ray_jobs.tracking.registry import Registry, Version


def judge_version(
    storage: Storage,
    registry: Registry,
    version: Version,
    champion: int | None,
    rules: PromotionSpec,
) -> list[Verdict]:
    """Gather what is known of a version, and judge it.

    Raises:
        SpecError: its run, or the champion's, is not under this storage root.
        PreflightError: what has to be read is gone or damaged.
        RetryableError: the registry or the storage does not answer.
    """
    try:
        candidate = gather(storage, registry, version)
    except ValueError as error:  # its result is not one, as with a metric that is not finite
        return [Verdict("result", "malformed", "a result", passed=False, why=str(error))]
    standing = None
    if champion is not None:
        try:
            standing = gather_tested(storage, registry.version(version.model, champion))
        except ValueError as error:
            raise PreflightError(
                f"the champion, version {champion}, cannot be compared with: {error}"
            ) from None
    return judge(candidate, standing, rules)
