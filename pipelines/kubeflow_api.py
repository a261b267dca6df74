"""The API of Kubeflow Pipelines: where it is, who asks, and what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ray_jobs.errors import EmberlineError, JobFailed, PreflightError, RetryableError

TOKEN = "KFP_TOKEN"  # noqa: S105
TOKEN_PATH = "KF_PIPELINES_SA_TOKEN_PATH"  # noqa: S105 - of KFP's own client, as its pods have it
TIMEOUT_S = 30  # of one answer; the client takes no notice of a fraction
_PAGE_SIZE = 100
_MAX_PAGES = 100


class Conflict(JobFailed):
    """There is one of that name."""


class Api:
    """The services of KFP's own client, with errors that say what to do."""

    def __init__(self, endpoint: str, token_path: str | None, environ: Mapping[str, str]):
        """
        Args:
            token_path: of a file that may be exchanged now and then.

        Raises:
            PreflightError: the file cannot be read.
        """
        import kfp_server_api as api
        from urllib3 import Retry

        self.endpoint = endpoint
        configuration = api.Configuration()
        configuration.host = endpoint
        configuration.retries = Retry(0)  # whoever asks knows what may be asked again
        configuration.ssl_ca_cert = environ.get("SSL_CERT_FILE")

        def refresh(configuration: Any) -> None:
            token = _token(token_path, environ)
            if token:
                configuration.api_key["authorization"] = token
                configuration.api_key_prefix["authorization"] = "Bearer"

        refresh(configuration)
        configuration.refresh_api_key_hook = refresh
        self._client = client = api.ApiClient(configuration)
        self.models = api
        self.experiments = api.ExperimentServiceApi(client)
        self.pipelines = api.PipelineServiceApi(client)
        self.uploads = api.PipelineUploadServiceApi(client)
        self.runs = api.RunServiceApi(client)
        self.schedules = api.RecurringRunServiceApi(client)

    def ask(self, call: Callable[..., Any], *args: Any, **fields: Any) -> Any:
        """The answer of one of the services' methods.

        Raises:
            PreflightError: the API refuses who asks, or what answers is no such API.
            RetryableError: it does not answer, or not now.
            Conflict: there is one of that name.
            JobFailed: it refuses what it is asked for.
        """
        from kfp_server_api import ApiException
        from urllib3.exceptions import HTTPError

        try:
            answer = call(*args, _request_timeout=TIMEOUT_S, **fields)
        except ApiException as error:
            raise self._refusal(error) from None
        except HTTPError as error:
            raise self._silence(_brief(error)) from None
        except (ValueError, TypeError):  # JSON, but of something else
            raise self._no_api() from None
        if not _is_json(self._client.last_response.data):  # of a page it makes an empty answer
            raise self._no_api()
        return answer

    def listing(
        self, call: Callable[..., Any], field: str, name: str | None, **fields: Any
    ) -> Iterator[Any]:
        """Every item of a list, page by page, or those with this display name.

        Raises:
            As `ask`.
        """
        given = {key: value for key, value in fields.items() if value is not None}
        if name is not None:
            predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
            given["filter"] = json.dumps({"predicates": [predicate]})
        token = ""
        for _ in range(_MAX_PAGES):
            page = self.ask(call, page_token=token, page_size=_PAGE_SIZE, **given)
            items = getattr(page, field, None) or ()
            yield from (item for item in items if name is None or item.display_name == name)
            token = page.next_page_token or ""
            if not token:
                return

    def _refusal(self, error: Any) -> EmberlineError:
        status, said = error.status or 0, _said(error)
        if status in (401, 403):
            return PreflightError(
                f"Kubeflow Pipelines at {self.endpoint} refuses the request ({status}: {said}); "
                f"set {TOKEN}, or kubeflow.token_path to the file of a service account's token "
                "that may use it"
            )
        if status >= 500 or status in (0, 408, 429):
            return self._silence(f"{status}: {said}")
        if not _is_json(error.body):
            return self._no_api()
        kind = Conflict if status == 409 else JobFailed
        return kind(f"Kubeflow Pipelines at {self.endpoint}: {said}")

    def _silence(self, cause: str) -> RetryableError:
        return RetryableError(
            f"Kubeflow Pipelines at {self.endpoint} does not answer ({cause}). Once it answers, "
            "give the same command again"
        )

    def _no_api(self) -> PreflightError:
        return PreflightError(
            f"what answers at {self.endpoint} is not the API of Kubeflow Pipelines, but maybe a "
            f"page that asks to sign in; set {TOKEN}, or --endpoint to the service ml-pipeline"
        )


def _token(path: str | None, environ: Mapping[str, str]) -> str | None:
    if environ.get(TOKEN):
        return environ[TOKEN]
    key = "kubeflow.token_path" if path else TOKEN_PATH
    path = path or environ.get(TOKEN_PATH)
    if not path:
        return None
    try:
        return Path(path).expanduser().read_text().strip()
    except OSError as error:
        raise PreflightError(f"{key} {path!r} cannot be read ({error.strerror})") from None


def _is_json(body: str | bytes | None) -> bool:
    try:
        json.loads(body or "")
    except ValueError:
        return False
    return True


def _said(error: Any) -> str:
    """What an error of the API comes down to."""
    said = error.body if isinstance(error.body, str) else None
    if _is_json(error.body):
        found = json.loads(error.body)
        if isinstance(found, dict):
            said = found.get("message") or found.get("error_message") or found.get("error")
    return str(said or error.reason or "no reason given").strip().partition("\n")[0][:300]


def _brief(error: Exception) -> str:
    from urllib3.exceptions import MaxRetryError, NewConnectionError, TimeoutError

    reason = error.reason if isinstance(error, MaxRetryError) else error
    if isinstance(reason, TimeoutError) and not isinstance(reason, NewConnectionError):
        return f"no answer in {TIMEOUT_S} s"
    return str(reason).rpartition(": ")[2][:200] or type(reason).__name__
