"""The URI of a run's folder, as a pipeline passes it on."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs.run import Run
from ray_jobs.spec import load_spec


@pytest.mark.parametrize("root", ["runs", "runs#2"])
def test_a_run_is_found_by_its_uri_with_and_without_a_digest(tmp_path: Path, root: str) -> None:
    run = Run.create(load_spec("fire", storage=str(tmp_path / root)), "one")
    keyed = run.uri_with("0f" * 32)
    assert keyed == f"{run.uri}#{'0f' * 8}"
    for uri in (run.uri, keyed, f"{run.uri}/"):
        found = Run.at(uri)
        assert (found.uri, found.run_id) == (run.uri, "one")
