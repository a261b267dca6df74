"""The variables that a training job finds in its environment."""

from __future__ import annotations

import os
from ipaddress import ip_address
from urllib.parse import urlsplit

from ray_jobs.errors import PreflightError
from ray_jobs.targets.sagemaker.spec import SageMakerSpec

_TRACKING = "MLFLOW_TRACKING_URI"


def job_environment(sagemaker: SageMakerSpec) -> dict[str, str]:
    """The variables of this process that the job gets: those of `sagemaker.env`, and the tracking
    server if the job can reach it.

    Raises:
        PreflightError: a variable is not set, or the server's address holds a password.
    """
    missing = [name for name in sagemaker.env if name not in os.environ]
    if missing:
        raise PreflightError(
            f"sagemaker.env names {', '.join(missing)}, which is not set here; set it, or take it "
            "out of sagemaker.env"
        )
    names = [*sagemaker.env, *([_TRACKING] if is_tracking_reachable() else [])]
    return {name: os.environ[name] for name in names}


def is_tracking_reachable() -> bool:
    """Whether MLFLOW_TRACKING_URI names a server that another machine can ask.

    Raises:
        PreflightError: its address holds a password.
    """
    uri = urlsplit(os.environ.get(_TRACKING, ""))
    if uri.scheme not in ("http", "https") or not uri.hostname:
        return False
    if uri.password is not None:
        raise PreflightError(
            f"{_TRACKING} holds a password, and everyone who may describe the job would read it; "
            "take it out, and let the server know the job by its role or its network"
        )
    try:
        address = ip_address(uri.hostname)
    except ValueError:
        return uri.hostname != "localhost" and not uri.hostname.endswith(".localhost")
    return not (address.is_loopback or address.is_unspecified)
