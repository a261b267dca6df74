"""Attempts of a pipeline's step: what has failed for good is not tried again.

Kubeflow Pipelines retries a step that has failed, however it has failed: its launcher ends with 1
whatever the step's own exit code. So a failure that no retry will mend is written down under
`<root>/pipelines/<run of the pipeline>/`, and the next attempt ends at once with the same error. A
pod that was lost, or killed, writes nothing, and a RetryableError is not written down: those are
tried again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_jobs.errors import EXIT_INTERRUPTED, EmberlineError, RetryableError
from ray_jobs.storage import Storage

PIPELINE_RUN = "EMBERLINE_PIPELINE_RUN"  # the variable that names the run of the pipeline
# 0 in the first attempt, also when a user has the step tried again. KFP before 2.17 sets none.
_RETRY_INDEX = "KFP_RETRY_INDEX"
_NOT_FINAL = (RetryableError.exit_code, EXIT_INTERRUPTED)


@dataclass(frozen=True)
class Attempt:
    """One attempt of one step in one run of a pipeline."""

    storage: Storage
    path: str
    is_first: bool

    @classmethod
    def of(
        cls, root: str, step: str, inputs: Mapping[str, object], environ: Mapping[str, str]
    ) -> Attempt | None:
        """This process's, or None outside of a pipeline on a cluster.

        Args:
            root: of the storage.
            inputs: of the step: they tell the members of one ensemble apart.
        """
        pipeline_run = environ.get(PIPELINE_RUN)
        if not pipeline_run:
            return None
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        path = f"pipelines/{pipeline_run}/{step}-{digest[:12]}.json"
        return cls(Storage(root), path, environ.get(_RETRY_INDEX) == "0")

    def check(self) -> None:
        """Raise what an earlier attempt has failed with, if no retry mends it.

        Raises:
            EmberlineError: that, with its exit code.
        """
        if not self.storage.exists(self.path):
            return
        if self.is_first:
            self.storage.delete(self.path)
            return
        failure = json.loads(self.storage.read_bytes(self.path))
        error = EmberlineError(
            f"{failure['reason']} (so ended the attempt before; a retry would end the same way)"
        )
        error.exit_code = failure["exit_code"]
        raise error

    def record(self, error: Exception) -> None:
        """Note how this attempt has failed, for those after it."""
        code = exit_code_of(error)
        if code in _NOT_FINAL:
            return
        failure = {"reason": str(error) or type(error).__name__, "exit_code": code}
        try:
            self.storage.write_text(self.path, json.dumps(failure))
        except (OSError, EmberlineError) as cause:  # then it is tried again in vain, and no worse
            print(f"the failure could not be noted for later attempts: {cause}")


def read_failures(storage: Storage, pipeline_run: str) -> list[dict[str, Any]]:
    """What steps of a pipeline's run have noted: `reason` and `exit_code` of each.

    Raises:
        As `Storage.list`.
    """
    paths = storage.list(f"pipelines/{pipeline_run}")
    return [json.loads(storage.read_bytes(path)) for path in paths]


def exit_code_of(error: Exception) -> int:
    """The process exit code of an error: its own, or that of a failure that will repeat."""
    return error.exit_code if isinstance(error, EmberlineError) else EmberlineError.exit_code


def of_this_process(root: str, step: str, inputs: Mapping[str, object]) -> Attempt | None:
    """`Attempt.of` with this process's environment."""
    return Attempt.of(root, step, inputs, os.environ)
