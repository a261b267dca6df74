"""Run: the folder of one run, `<root>/<workload>/<run_id>/`, and who may write to it.

spec.yaml       the resolved job description
events.jsonl    progress
checkpoints/    one folder a member
artifacts/      predictions, ensemble, histories, the report's data
result.json     written last, atomically
report.html
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Generic

import yaml
from typing_extensions import TypeVar

from ray_jobs.errors import SpecError
from ray_jobs.events import Journal
from ray_jobs.result import JobResult, parse_result
from ray_jobs.sections import JobSpec
from ray_jobs.spec import parse_spec
from ray_jobs.storage import Storage
from ray_jobs.workloads import find
from ray_jobs.workloads.base import Workload

S = TypeVar("S", bound=JobSpec, default=Any)  # the workload's own description
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
RESULT, SPEC, REPORT = "result.json", "spec.yaml", "report.html"
_STOP = "stop"  # a file that asks the run to stop where it can be taken up again


def new_run_id() -> str:
    """A run id that sorts by time and does not repeat."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def check_run_id(run_id: str) -> None:
    """
    Raises:
        SpecError: it is malformed.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise SpecError(
            f"run id {run_id!r}: use letters, digits, '.', '_' and '-', at most 63, "
            "beginning with a letter or digit"
        )


@dataclass(frozen=True)
class Run(Generic[S]):
    """One run of one job description."""

    spec: S
    run_id: str

    @classmethod
    def create(cls, spec: S, run_id: str | None = None) -> Run[S]:
        """Make the run's folder, or attach to the one that stands there.

        Raises:
            SpecError: the id is malformed, or belongs to a run of another job description.
            PreflightError: the storage cannot be written.
        """
        run = cls(spec, run_id or new_run_id())
        check_run_id(run.run_id)
        if run.storage.exists(run.path(SPEC)):
            run._check_same_job(cls.open(spec.storage, spec.workload, run.run_id).spec)
        else:
            run.storage.check_writable()
            run.storage.make_folder(run.path("checkpoints"))
            run.storage.make_folder(run.path("artifacts"))
            run.write_spec()
        return run

    @classmethod
    def open(cls, storage_uri: str, workload: str, run_id: str) -> Run[Any]:
        """A run that exists.

        Raises:
            SpecError: there is none, or its spec.yaml is not of this version.
        """
        storage = Storage(storage_uri)
        path = f"{workload}/{run_id}/{SPEC}"
        if not storage.exists(path):
            raise SpecError(f"no run {run_id!r} of {workload!r} under {storage_uri!r}")
        spec = parse_spec(yaml.safe_load(storage.read_text(path)), source=storage.display(path))
        # The folder may have been moved, or be seen through another mount: it is where it was
        # found.
        return Run(spec.model_copy(update={"storage": storage_uri}), run_id)

    @classmethod
    def at(cls, uri: str) -> Run:
        """The run whose folder is `uri`, as `Run.uri` or `Run.uri_with` gives it."""
        root, workload, run_id = uri.rstrip("/").rsplit("/", 2)
        return cls.open(root, workload, run_id.partition("#")[0])

    @property
    def uri(self) -> str:
        """The run's folder, as a text that a pipeline can pass on."""
        return f"{self.storage.uri}/{self.folder}"

    def uri_with(self, data_digest: str) -> str:
        """The same, with the digest of the run's data as a fragment. What keeps the outcome of a
        step by its inputs does then not take it for that of other data."""
        return f"{self.uri}#{data_digest[:16]}"

    @cached_property
    def storage(self) -> Storage:
        return Storage(self.spec.storage)

    @property
    def workload(self) -> Workload:
        return find(self.spec.workload)

    @property
    def folder(self) -> str:
        return f"{self.spec.workload}/{self.run_id}"

    def path(self, *parts: str) -> str:
        """A path of this run, relative to the storage root."""
        return "/".join((self.folder, *parts))

    def journal(self, step: str) -> Journal:
        return Journal(self.storage, self.folder, step)

    def write_spec(self) -> None:
        self.storage.write_text(self.path(SPEC), self.spec.to_yaml())

    def read_result(self) -> JobResult | None:
        """The result, or None while there is none.

        Raises:
            ValueError: result.json is not a result of this version.
        """
        path = self.path(RESULT)
        if not self.storage.exists(path):
            return None
        return parse_result(self.storage.read_bytes(path), where=self.storage.display(path))

    def write_result(self, result: JobResult) -> None:
        self.storage.write_text(self.path(RESULT), result.to_json())

    def request_stop(self) -> None:
        """Ask whoever trains the run, wherever that is, to write a checkpoint and stop."""
        self.storage.write_bytes(self.path(_STOP), b"")

    def is_stop_requested(self) -> bool:
        return self.storage.exists(self.path(_STOP))

    def clear_stop(self) -> None:
        """The run is taken up again."""
        if self.is_stop_requested():
            self.storage.delete(self.path(_STOP))

    @contextmanager
    def claim(self) -> Iterator[bool]:
        """Hold the run for this process: True if it is ours, False if another process is at it.

        The claim goes with the process, however it ends. On an object store, which has no locks,
        every claim is
        granted: there the scheduler that submits the run keeps it single.
        """
        if not self.storage.is_local:
            yield True
            return
        import fcntl

        with self.storage.local(self.path(".lock")).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _check_same_job(self, stored: JobSpec) -> None:
        if stored.digest() == self.spec.digest():
            return
        old, new = (
            flatten(stored.model_dump(mode="json")),
            flatten(self.spec.model_dump(mode="json")),
        )
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        raise SpecError(
            f"run {self.run_id!r} exists with another job description; it differs in "
            f"{', '.join(changed)}. Take another --run-id, or repeat the first options to attach."
        )


def find_run(storage_uri: str, run_id: str) -> Run:
    """The run with this id, whatever its workload. `fire/ID` names the workload too.

    Raises:
        SpecError: there is none.
    """
    workload, _, name = run_id.rpartition("/")
    if workload:
        return Run.open(storage_uri, workload, name)
    storage = Storage(storage_uri)
    for folder in storage.list():
        if storage.exists(f"{folder}/{run_id}/{SPEC}"):
            return Run.open(storage_uri, folder, run_id)
    raise SpecError(
        f"no run {run_id!r} under {storage_uri!r}; --storage names the root it was started with"
    )


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat
