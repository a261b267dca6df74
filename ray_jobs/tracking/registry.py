"""MLflow's model registry, which says what is deployed: versions, their tags, the two aliases."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs.errors import PreflightError, RetryableError, SpecError
from ray_jobs.storage import Storage, max_attempts

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHALLENGER, CHAMPION = "challenger", "champion"
RUN_ID_TAG = "emberline.run_id"
WORKLOAD_TAG = "emberline.workload"
DATA_DIGEST_TAG, TEST_DIGEST_TAG = "emberline.data_digest", "emberline.test_digest"
GATE_TAG = "emberline.gate"  # followed by the name of a rule
BUNDLE = "bundle"  # the artifact that is the model
_TAG_LENGTH = 5000  # of a value: the narrowest column among MLflow's stores
AUDIT_HEAD_TAG = "emberline.audit_head"  # of the model
_CREDENTIALS = re.compile(r"://[^/\s]*@")
_FIX = "Once it answers, give the same command again."


def tracking_uri(storage: Storage) -> str:
    """MLFLOW_TRACKING_URI, or sqlite under the storage root (under ./runs if that is an object
    store)."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    root = storage.local() if storage.is_local else Path("runs").absolute()
    root.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{root / 'mlflow.db'}"


def check_exists(storage: Storage) -> None:
    """Before a look, which would create an embedded registry where there is none.

    Raises:
        SpecError: nothing has been registered under this root.
    """
    is_embedded = storage.is_local and not os.environ.get("MLFLOW_TRACKING_URI")
    if is_embedded and not storage.exists("mlflow.db"):
        raise SpecError(
            f"no model is registered under {storage.uri!r}; train one, or name with --storage (or "
            "MLFLOW_TRACKING_URI) where there is one"
        )


def quieten() -> None:
    """Settings of MLflow that have to be made before it is imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")  # half a minute, not four
    # Of artifacts on S3: pauses of up to 16 s as `Storage` makes them, not of a tenth of a second.
    os.environ.setdefault("AWS_RETRY_MODE", "legacy")
    os.environ.setdefault("AWS_MAX_ATTEMPTS", str(max_attempts()))
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a result goes there
    # sagemaker's plugin warns of every request to a server that is not SageMaker's.
    logging.getLogger("mlflow.tracking.request_header").setLevel(logging.ERROR)


@contextmanager
def answering(uri: str, what: str, fix: str) -> Iterator[None]:
    """MLflow's failures within, and those of the artifact store behind it, as RetryableErrors.

    Args:
        what: it failed to do.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from requests import RequestException  # of artifacts that a server takes for its store

    try:
        yield
    except (MlflowException, RequestException, Boto3Error, BotoCoreError, ClientError) as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise RetryableError(masked(f"MLflow at {uri} {what}: {cause}. {fix}")) from error


def masked(text: str) -> str:
    """Without the credentials of the URIs in it, as a database's has them."""
    return _CREDENTIALS.sub("://***@", text)


@dataclass(frozen=True)
class Version:
    """A version of a registered model, as `runs.log_run` registers it."""

    model: str
    number: int
    workload: str
    run_id: str
    mlflow_run_id: str
    tags: dict[str, str]


class Registry:
    """What promotion needs of the registry.

    Every method raises:
        RetryableError: MLflow or its artifact store cannot be reached, or refuses.
    """

    def __init__(self, storage: Storage):
        quieten()
        from mlflow import MlflowClient

        self.uri = tracking_uri(storage)
        with self._answering():
            self._client: MlflowClient = MlflowClient(self.uri)

    def version(self, model: str, number: int | None = None) -> Version:
        """One version; by default the challenger.

        Raises:
            SpecError: there is no such model or version, or no challenger.
            PreflightError: it was registered by other means, so nothing is known of it.
        """
        from mlflow.exceptions import MlflowException

        numbers = self._numbers(model)
        with self._answering():
            try:
                found = (
                    self._client.get_model_version_by_alias(model, CHALLENGER)
                    if number is None
                    else self._client.get_model_version(model, str(number))
                )
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                wanted = "challenger" if number is None else f"version {number}"
                raise SpecError(
                    f"model {model!r} has no {wanted}; there is {numbers or 'none'}; name one with "
                    "--version"
                ) from None
        tags = dict(found.tags)
        missing = [tag for tag in (RUN_ID_TAG, WORKLOAD_TAG, TEST_DIGEST_TAG) if tag not in tags]
        if missing or not found.run_id:
            raise PreflightError(
                f"version {found.version} of {model!r} lacks {', '.join(missing) or 'its run'}: it "
                "was not registered by a run of this version; train it again"
            )
        return Version(
            model,
            int(found.version),
            tags[WORKLOAD_TAG],
            tags[RUN_ID_TAG],
            found.run_id,
            tags,
        )

    def champion(self, model: str) -> int | None:
        """The champion's version.

        Raises:
            SpecError: there is no such model.
        """
        from mlflow.exceptions import MlflowException

        with self._answering():
            try:
                aliases = self._client.get_registered_model(model).aliases
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                raise SpecError(
                    f"no model {model!r} is registered at {masked(self.uri)}; train it first, and "
                    "look at --storage and MLFLOW_TRACKING_URI"
                ) from None
        number = aliases.get(CHAMPION)
        return None if number is None else int(number)

    def has(self, model: str, number: int | None) -> bool:
        """Whether there is such a version."""
        from mlflow.exceptions import MlflowException

        if number is None:
            return False
        with self._answering():
            try:
                self._client.get_model_version(model, str(number))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return False
        return True

    def make_champion(self, model: str, number: int) -> None:
        """Move the alias: one call, so that there is a champion at every moment."""
        with self._answering():
            self._client.set_registered_model_alias(model, CHAMPION, str(number))

    def remove_champion(self, model: str) -> None:
        """Take the alias away: nothing is the champion then."""
        with self._answering():
            self._client.delete_registered_model_alias(model, CHAMPION)

    def audit_head(self, model: str) -> str | None:
        """What `set_audit_head` kept; None: nothing, or there is no such model."""
        from mlflow.exceptions import MlflowException

        with self._answering():
            try:
                return dict(self._client.get_registered_model(model).tags).get(AUDIT_HEAD_TAG)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None

    def set_audit_head(self, model: str, head: str) -> None:
        """Keep where the audit log of a model ends, apart from its files."""
        with self._answering():
            self._client.set_registered_model_tag(model, AUDIT_HEAD_TAG, head)

    def metrics(self, version: Version) -> dict[str, float]:
        """What the version's run scored: `test.f1` and the like; NaN where MLflow has NaN."""
        with self._answering():
            return dict(self._client.get_run(version.mlflow_run_id).data.metrics)

    def tag(self, version: Version, tags: dict[str, str]) -> None:
        """Set tags of a version."""
        with self._answering():
            for name, value in tags.items():
                self._client.set_model_version_tag(
                    version.model, str(version.number), name, value[:_TAG_LENGTH]
                )

    def download(self, version: Version, folder: Path) -> Path:
        """Copy the model's bundle into a folder; where it is then.

        Raises:
            JobFailed: it was deleted, holds a link, or is too large.
        """
        from ray_jobs.tracking.artifacts import fetch_bundle

        with self._answering():
            return fetch_bundle(self._client, version.model, str(version.number), folder / BUNDLE)

    def _numbers(self, model: str) -> str:
        """The versions that there are, the newest first."""
        self.champion(model)  # whether there is the model
        with self._answering():
            found = self._client.search_model_versions(f"name = '{model}'", max_results=20)
        return ", ".join(str(version.version) for version in found)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        with answering(self.uri, "did not answer", _FIX):
            yield
