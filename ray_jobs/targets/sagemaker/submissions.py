"""The training jobs that were made for a run: a small file of each in the run's folder.

    submissions/<part>.<round>.<attempt>     the name of the training job
    submissions/channels.json                where the data of the present round lie on S3

A name is never free again, so each attempt at a part of the run has a number of its own. A round
is one submission of the run by its user, and what follows from it: another one takes up what the
last has left unfinished.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ray_jobs.run import Run
from ray_jobs.targets.names import sagemaker_name
from ray_jobs.workloads.base import COMBINE

_FOLDER = "submissions"
_CHANNELS = f"{_FOLDER}/channels.json"
_WHOLE = "-"  # stands for the part of a job that carries out all of the run
_FILE = re.compile(r"(?P<part>[a-z_][a-z0-9_]*|-)\.(?P<round>\d+)\.(?P<attempt>\d+)")


@dataclass(frozen=True)
class Submission:
    """A training job of a run."""

    round: int
    attempt: int
    part: str | None  # a member, or `COMBINE`; None: all of the run

    def job_name(self, run: Run) -> str:
        return sagemaker_name(run.spec.workload, run.run_id, self.attempt, self.part)

    @property
    def label(self) -> str | None:
        """What its lines begin with in the log of the run."""
        return "combine" if self.part == COMBINE else self.part


def read_submissions(run: Run) -> list[Submission]:
    """All of the run, the oldest round and attempt first."""
    paths = run.storage.list(run.path(_FOLDER))
    found = [_FILE.fullmatch(path.rpartition("/")[2]) for path in paths]
    made = [
        Submission(
            int(match["round"]),
            int(match["attempt"]),
            None if match["part"] == _WHOLE else match["part"],
        )
        for match in found
        if match is not None
    ]
    return sorted(made, key=lambda one: (one.round, one.attempt))


def write_submission(run: Run, made: Submission) -> None:
    """Note a training job, once it is made."""
    path = run.path(_FOLDER, f"{made.part or _WHOLE}.{made.round}.{made.attempt}")
    run.storage.write_text(path, made.job_name(run))


def read_channels(run: Run) -> dict[str, str]:
    """The channels of the present round: name -> S3 prefix."""
    return json.loads(run.storage.read_bytes(run.path(_CHANNELS)))


def begin_round(run: Run, channels: Mapping[str, str]) -> None:
    """Note the round's channels, and that the run is not to stop any more."""
    run.storage.write_text(run.path(_CHANNELS), json.dumps(dict(channels)))
    run.clear_stop()


def begin_to_stop(run: Run) -> None:
    """Have no other job made in this round."""
    run.request_stop()


def is_stopping(run: Run) -> bool:
    return run.is_stop_requested()


def newest(made: Iterable[Submission]) -> dict[str | None, Submission]:
    """The newest of each part."""
    return {one.part: one for one in sorted(made, key=lambda one: one.attempt)}
