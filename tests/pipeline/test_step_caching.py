"""KFP's cache reuses a step for the same data, and never for others: a preparation that is always
carried out, and a step behind it, by KFP's local runner with its cache."""

from pathlib import Path

import numpy as np
import pytest
from kfp import dsl, local

from components.prepare import prepare
from components.step import step
from pipelines.steps import CACHEABLE
from ray_jobs.kubeflow_spec import STEPS
from ray_jobs.spec import load_spec

pytestmark = pytest.mark.slow


@step
def note(run: str, path: str) -> str:
    """Note that this step was carried out, and for which run."""
    with open(path, "a") as file:
        file.write(f"{run}\n")
    return run


def readings(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(400, 2)).round(4)
    label = (rows.sum(1) + rng.normal(size=400) > 0).astype(int)
    lines = [f"{a},{b},{fire}" for (a, b), fire in zip(rows, label, strict=True)]
    path.write_text("\n".join(["a,b,fire", *lines]) + "\n")


def test_a_step_is_carried_out_again_for_other_data(tmp_path: Path) -> None:
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(tmp_path / "kfp"),
        enable_caching=True,
        cache_root=str(tmp_path / "cache"),
    )
    table, noted = tmp_path / "readings.csv", tmp_path / "noted"
    job = load_spec(
        "fire",
        overrides=[f"data.path={table}", "data.label_column=fire"],
        storage=str(tmp_path / "runs"),
    )

    @dsl.pipeline(name="caching")
    def caching(spec: str, path: str) -> None:
        prepared = prepare(spec=spec, run_id="a", pipeline_run=dsl.PIPELINE_JOB_ID_PLACEHOLDER)
        prepared.set_caching_options(False)
        note(run=prepared.outputs["run"], path=path).set_caching_options(True)

    def carried_out() -> list[str]:
        caching(spec=job.to_yaml(), path=str(noted))
        return noted.read_text().split()

    readings(table, seed=0)
    first = carried_out()
    assert carried_out() == first  # the cache answered
    readings(table, seed=1)
    before, after = carried_out()
    assert before == first[0]
    assert before.partition("#")[0] == after.partition("#")[0]  # the same run
    assert before != after


def test_a_step_that_looks_at_the_world_is_never_cached() -> None:
    assert set(CACHEABLE) < set(STEPS)
    for name in ("prepare", "scan", "read_logs", "retrain", "drift", "promote", "deploy"):
        assert name not in CACHEABLE
