"""The webhook as MLflow's server knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ray_jobs.errors import SpecError
from ray_jobs.storage import Storage
from ray_jobs.tracking.registry import answering, masked, quieten, tracking_uri
from ray_jobs.webhooks.app import EVENTS
from ray_jobs.webhooks.signature import SECRET_VARIABLE

if TYPE_CHECKING:
    from mlflow import MlflowClient

_FIX = "Look at MLFLOW_TRACKING_URI and the server; then give the same command again"


def register(storage: Storage, name: str, url: str, secret: bytes) -> bool:
    """Have MLflow's server send events of aliases to a URL; one of the same name is changed.

    Returns:
        Whether it is a new one.

    Raises:
        SpecError: the registry is no server, or refuses the URL.
        RetryableError: it does not answer.
    """
    uri = tracking_uri(storage)
    if urlsplit(uri).scheme not in ("http", "https"):
        raise SpecError(
            f"the registry at {masked(uri)} is no server, so it sends no webhooks; name one with "
            "MLFLOW_TRACKING_URI, or poll: emberline deploy MODEL --follow"
        )
    quieten()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    with answering(uri, "did not take the webhook", _FIX):
        client = MlflowClient(uri)
        try:
            existing = _find(client, name)
            if existing is None:
                client.create_webhook(name, url, list(EVENTS), secret=secret.decode())
            else:
                client.update_webhook(
                    existing,
                    url=url,
                    events=list(EVENTS),
                    secret=secret.decode(),
                    status="ACTIVE",
                )
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise SpecError(
                f"MLflow at {masked(uri)} refuses the webhook {url}: {error.message}. A URL of "
                "http:// or of this machine has to be allowed at the server: "
                "MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true, "
                f"and {SECRET_VARIABLE} needs MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY there"
            ) from None
    return existing is None


def _find(client: MlflowClient, name: str) -> str | None:
    """The id of the webhook of a name."""
    token = None
    while True:
        page = client.list_webhooks(page_token=token)
        for webhook in page:
            if webhook.name == name:
                return webhook.webhook_id
        token = page.token
        if not token:
            return None
