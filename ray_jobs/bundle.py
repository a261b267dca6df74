"""Bundle: a trained ensemble as one folder that predicts, and nothing in it is a pickle.

    bundle.json             workload, features, ensemble, members' configurations, sha256 of every
                            other file
    members/<name>/...      each member's own files

Whoever deploys, serves or registers a model moves this folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ray_jobs.data.dataset import Rows
from ray_jobs.ensembling.ensemble import Ensemble
from ray_jobs.errors import JobFailed
from ray_jobs.models.base import Member, MemberConfig
from ray_jobs.models.bundle_files import INDEX, read_index, verify, write_index
from ray_jobs.models.registry import FAMILIES
from ray_jobs.result import MemberResult
from ray_jobs.run import Run

WORKLOAD = "fire"


class Predictor(Protocol):
    """As much of a member as scoring needs."""

    def predict_proba(self, rows: Rows) -> NDArray[np.float64]: ...


class Bundle:
    """A loaded bundle."""

    def __init__(
        self, features: tuple[str, ...], ensemble: Ensemble, members: Mapping[str, Predictor]
    ):
        self.features = features
        self.ensemble = ensemble
        self.members = members

    def predict_proba(self, rows: Rows) -> NDArray[np.float64]:
        """P(label = 1) of each row, given the rows of its group before it. Shape [N]."""
        weights = self.ensemble.weights
        predictions = {  # whose weight is 0 changes nothing, so it need not be asked
            name: member.predict_proba(rows) if weights.get(name) else np.zeros(len(rows))
            for name, member in self.members.items()
        }
        return self.ensemble.predict_proba(predictions)

    def score(self, x: NDArray[np.float32], *, as_history: bool = False) -> NDArray[np.float64]:
        """P(label = 1) of feature rows x [N, F].

        Args:
            as_history: the rows are consecutive readings of one place, oldest first; otherwise each
                stands alone.
        """
        # A copy, for torch cannot share a read-only array; row by row, or sums round otherwise.
        x = np.array(x, np.float32, order="C")
        group = np.zeros(len(x), np.int64) if as_history else np.arange(len(x))
        y = np.zeros(len(x), np.int8)  # unknown, and read by no member that predicts
        return self.predict_proba(Rows(x, y, group, np.arange(len(x)), self.features))


def write_bundle(
    run: Run, folder: Path, *, features: list[str], ensemble: Ensemble, members: list[MemberResult]
) -> None:
    """Copy the members that the ensemble needs into `folder`, and index them."""
    needed = [member for member in members if member.name in ensemble.members]
    files: dict[str, str] = {}
    for member in needed:
        target = folder / "members" / member.name
        target.mkdir(parents=True)
        with run.storage.local_folder(run.path("checkpoints", member.name)) as source:
            for name in member.digests:
                shutil.copyfile(source / name, target / name)
                files[f"members/{member.name}/{name}"] = member.digests[name]
    configs = {member.name: run.spec.members[member.name] for member in needed}
    write_index(folder, describe(features, ensemble, configs), files)
    verify(folder, files)


def describe(
    features: Sequence[str], ensemble: Ensemble, members: Mapping[str, MemberConfig]
) -> dict[str, Any]:
    """What the index says of an ensemble, beside its files."""
    return {
        "workload": WORKLOAD,
        "features": list(features),
        "ensemble": ensemble.model_dump(mode="json"),
        "members": {name: config.model_dump(mode="json") for name, config in members.items()},
    }


def load_bundle(folder: Path) -> Bundle:
    """Check every file's digest, then load.

    Raises:
        JobFailed: a file is missing or altered; names it.
    """
    index = read_index(folder)
    members: dict[str, Member] = {}
    for name, config in index["members"].items():
        if not any(file.startswith(f"members/{name}/") for file in index["files"]):
            raise JobFailed(f"{INDEX}: member {name!r} has no files, so nothing says what it was")
        members[name] = FAMILIES[config["family"]].model_validate(config).build()
        members[name].load(folder / "members" / name)
    ensemble = Ensemble.model_validate(index["ensemble"])
    return Bundle(tuple(index["features"]), ensemble, members)
