"""`emberline serve`: a registered model behind HTTP, on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_jobs import logs
from ray_jobs.deployments.release import fetch
from ray_jobs.storage import Storage

if TYPE_CHECKING:
    from ray_jobs.serving.routing import Mode


def serve(
    storage: str,
    name: str,
    version: str | None,
    host: str,
    port: int,
    *,
    challenger: str | None = None,
    mode: Mode = "shadow",
    weight: float = 0.1,
    record_share: float = 0.0,
) -> int:
    """Serve a version of a model until SIGTERM or SIGINT. Returns the exit code.

    Args:
        challenger: another version, its number or alias, beside it.
        weight: 0 to 1, of the requests, which the challenger answers or as a shadow is asked too.
        record_share: 0 to 1, of the requests, which are recorded below `storage`.

    Raises:
        SpecError: there is no such model or version.
        PreflightError: the port cannot be had, or there is no key to trust.
        JobFailed: the model is refused, or the challenger takes other requests.
        RetryableError: the registry or its artifact store cannot be reached.
    """
    from ray_jobs import serve as server

    root = Storage(storage)
    champion = fetch(root, name, version)
    logs.say(f"model {champion.model}", event="model")
    other = None
    if challenger is not None:
        second = fetch(root, name, challenger)
        logs.say(f"{mode} {second.model}", event="model")
        other = server.ChallengerModel(
            second.bundle, str(second.model.version), second.digest, mode, weight
        )
    return server.serve(
        champion.bundle,
        host=host,
        port=port,
        name=name,
        version=str(champion.model.version),
        digest=champion.digest,
        challenger=other,
        recording=server.Recording(storage, name, record_share) if record_share else None,
    )
