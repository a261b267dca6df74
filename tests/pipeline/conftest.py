"""Versions of fire that real runs registered, trained once for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs.spec import load_spec
from tests.conftest import train

# So few episodes would tell little of the test.
_DATA = ("data.samples=1500", "data.generator=independent")
_FOREST = ("members=[random_forest]", "members.random_forest.num_trees=20")
_RULES = ("promotion.max_gap=1", "promotion.max_ece=1")
_LENIENT = ("promotion.must_be_better=false", "promotion.confidence=0.999")
_RUNS = {  # storage root -> run id -> what it differs in, in the order of their versions
    "runs": {
        "base": _FOREST,
        "worse": ("members=[logistic_regression]",),
        "other": ("members=[logistic_regression]", "seed=1"),
    },
    "lenient": {"base": (*_FOREST, *_LENIENT, "deployment.local.port=0")},
}


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("trained")
    train(
        home,
        [
            (run_id, load_spec("fire", storage=root, overrides=[*_DATA, *_RULES, *overrides]))
            for root, runs in _RUNS.items()
            for run_id, overrides in runs.items()
        ],
    )
    return home


@pytest.fixture(scope="session")
def trained(_trained: Path) -> Path:
    """A storage root with three finished runs, each a version of `fire`; no champion yet. It is to
    be copied: the models' files of a copy are still these, all else is its own."""
    return _trained / "runs"


@pytest.fixture(scope="session")
def lenient(_trained: Path) -> Path:
    """The same with one run, whose rules let any version pass that does not do harm."""
    return _trained / "lenient"
