"""Schedules on Kubeflow: made once, whatever happens on the way, and each run of one under an id of
its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import dsl, local

from pipelines import kubeflow_api, schedules
from pipelines.compilation import Variant
from ray_jobs.errors import SpecError
from ray_jobs.spec import load_spec
from tests.kubeflow_emulator import KubeflowEmulator

GCODE = Variant("gcode")
NIGHTLY = schedules.trigger_of("0 3 * * *", None)


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeflowEmulator]:
    monkeypatch.setattr(schedules, "_SETTLE_S", 0.01)
    monkeypatch.setattr(kubeflow_api, "TIMEOUT_S", 1)
    with KubeflowEmulator() as server:
        yield server


def job(emulator: KubeflowEmulator, *overrides: str) -> Any:
    keys = [f"kubeflow.endpoint={emulator.endpoint}", *overrides]
    return load_spec("gcode", overrides=keys, storage="s3://bucket/runs")


def test_a_schedule_is_made_once(emulator: KubeflowEmulator) -> None:
    first = schedules.schedule(GCODE, job(emulator), NIGHTLY)
    second = schedules.schedule(GCODE, job(emulator), NIGHTLY)
    assert (first.is_new, second.is_new) == (True, False)
    assert first.schedule.id == second.schedule.id
    (made,) = emulator.schedules.values()
    assert made.trigger.cron_schedule.cron == "0 0 3 * * *"
    assert (made.mode, made.no_catchup, made.max_concurrency) == ("ENABLE", True, "1")
    assert first.url == f"{emulator.endpoint}/#/recurringrun/details/{made.recurring_run_id}"
    parameters = made.runtime_config.parameters
    assert parameters["run_id"] == ""  # each run takes the id of the pipeline's
    assert yaml.safe_load(parameters["spec"])["workload"] == "gcode"


@pytest.mark.parametrize("kind", ["lost", "unavailable", "hangs"])
def test_a_creation_that_is_not_answered_makes_one_schedule(
    emulator: KubeflowEmulator, kind: str
) -> None:
    emulator.fail("POST", "/recurringruns$", kind)
    assert schedules.schedule(GCODE, job(emulator), NIGHTLY).is_new
    assert len(emulator.schedules) == 1


def test_of_two_that_do_the_same_the_first_is_kept(
    emulator: KubeflowEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = schedules.schedule(GCODE, job(emulator), NIGHTLY)
    monkeypatch.setattr(schedules.Kubeflow, "schedules", blind_once(schedules.Kubeflow.schedules))
    again = schedules.schedule(GCODE, job(emulator), NIGHTLY)
    assert len(emulator.schedules) == 1
    assert again.schedule.id in emulator.schedules
    assert emulator.count("POST", "/recurringruns$") == 2
    assert first.schedule.name == again.schedule.name


def blind_once(look: Any) -> Any:
    """As of a process that looked before another had made its schedule."""
    seen: list[int] = []

    def looked(self: Any, name: str | None = None) -> Any:
        seen.append(1)
        return [] if len(seen) == 1 else look(self, name)

    return looked


def test_another_schedule_of_the_name_is_not_replaced_unasked(emulator: KubeflowEmulator) -> None:
    schedules.schedule(GCODE, job(emulator), NIGHTLY)
    hourly = schedules.trigger_of(None, "1h")
    with pytest.raises(SpecError) as caught:
        schedules.schedule(GCODE, job(emulator), hourly)
    assert str(caught.value) == (
        "there is another schedule 'gcode' (cron 0 0 3 * * *); take its place with --replace, or "
        "take another --name"
    )
    beside = schedules.schedule(GCODE, job(emulator), hourly, name="hourly")
    assert beside.schedule.trigger.every_s == 3600
    replaced = schedules.schedule(GCODE, job(emulator), hourly, replace=True)
    assert replaced.is_new
    triggers = [str(one.trigger) for one in schedules.listing(job(emulator).kubeflow).schedules]
    assert triggers == ["every 1h", "every 1h"]


def test_what_it_would_run_is_part_of_what_a_schedule_is(emulator: KubeflowEmulator) -> None:
    schedules.schedule(GCODE, job(emulator), NIGHTLY)
    for other in ("seed=1", "kubeflow.retries.num=4", "kubeflow.experiment=other"):
        with pytest.raises(SpecError, match="there is another schedule 'gcode'"):
            schedules.schedule(GCODE, job(emulator, other), NIGHTLY)


def test_a_schedule_is_disabled_and_enabled(emulator: KubeflowEmulator) -> None:
    off = schedules.schedule(GCODE, job(emulator), NIGHTLY, is_enabled=False)
    assert not off.schedule.is_enabled
    on = schedules.schedule(GCODE, job(emulator), NIGHTLY)
    assert on.schedule.is_enabled
    off = schedules.schedule(GCODE, job(emulator), NIGHTLY, is_enabled=False)
    assert not off.schedule.is_enabled
    assert [one.mode for one in emulator.schedules.values()] == ["DISABLE"]


def test_a_schedule_is_ended_by_its_name(emulator: KubeflowEmulator) -> None:
    schedules.schedule(GCODE, job(emulator), NIGHTLY)
    spec = job(emulator).kubeflow
    with pytest.raises(SpecError, match=r"no schedule 'fire' at .*; there is gcode"):
        schedules.unschedule(spec, "fire")
    assert [one.name for one in schedules.unschedule(spec, "gcode").schedules] == ["gcode"]
    assert not emulator.schedules
    with pytest.raises(SpecError, match="there is none"):
        schedules.unschedule(spec, "gcode")


def test_schedules_of_others_are_left_alone(emulator: KubeflowEmulator) -> None:
    schedules.schedule(GCODE, job(emulator), NIGHTLY)
    (made,) = emulator.schedules.values()
    made.description = "made in the UI"
    spec = job(emulator).kubeflow
    assert not schedules.listing(spec).schedules
    with pytest.raises(SpecError, match="no schedule 'gcode'"):
        schedules.unschedule(spec, "gcode")


def test_a_retraining_is_scheduled_with_its_data(emulator: KubeflowEmulator) -> None:
    given = {"data": ["s3://new/"], "on": "drift", "since": "7d"}
    retraining = Variant("gcode", retrains=True)
    done = schedules.schedule(retraining, job(emulator), NIGHTLY, retraining=given)
    assert done.schedule.name == "gcode-retraining"
    (made,) = emulator.schedules.values()
    assert made.runtime_config.parameters == {**given, "storage": "s3://bucket/runs"}


@pytest.mark.parametrize("every", ["30m", "6h", "1d", "2w", "90m"])
def test_an_interval_is_told_as_it_was_given(every: str) -> None:
    assert str(schedules.trigger_of(None, every)) == f"every {every}"


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("0 3 * * *", "0 0 3 * * *"),
        ("*/15 8-18 * * MON-FRI", "0 */15 8-18 * * MON-FRI"),
        ("30 0 3 1,15 JAN ?", "30 0 3 1,15 JAN ?"),
    ],
)
def test_a_cron_expression_gets_kfps_seconds(cron: str, expected: str) -> None:
    assert schedules.trigger_of(cron, None).cron == expected


@pytest.mark.parametrize(
    ("cron", "every", "message"),
    [
        (None, None, 'say when: --cron "0 3 * * *" or --every 6h'),
        ("0 3 * * *", "6h", 'say when: --cron "0 3 * * *" or --every 6h'),
        ("0 3 * *", None, "--cron '0 3 * *' has 4 fields; it has five: minute, hour, day of the"),
        ("0 24 * * *", None, "--cron '0 24 * * *': '24' are no hours; write numbers from 0 to 23"),
        ("0 3 * * FRI-MON", None, "'FRI-MON' are no days of the week"),
        ("*/0 3 * * *", None, "'*/0' are no minutes"),
        ("0 3 0 * *", None, "'0' are no days of the month"),
        (None, "6 hours", "--every '6 hours' is no interval; give 30m, 6h, 1d or 2w"),
        (None, "0h", "--every '0h' is no interval"),
    ],
)
def test_a_time_that_never_comes_is_refused(
    cron: str | None, every: str | None, message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        schedules.trigger_of(cron, every)
    assert message in str(caught.value)


@pytest.mark.slow
def test_each_run_of_a_schedule_has_an_id_of_its_own(tmp_path: Path) -> None:
    """Its first step, carried out twice by KFP's local runner with a schedule's parameters."""
    from components.read_logs import read_logs

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "kfp"))
    spec = load_spec("gcode", overrides=["data.runs=12"], storage=str(tmp_path / "runs"))

    @dsl.pipeline(name="scheduled")
    def scheduled(spec: str, run_id: str = "") -> str:
        made = read_logs(spec=spec, run_id=run_id, pipeline_run=dsl.PIPELINE_JOB_ID_PLACEHOLDER)
        return made.outputs["Output"]

    uris = [scheduled(spec=spec.to_yaml()).output for _ in range(2)]
    folders = {path.name for path in (tmp_path / "runs" / "gcode").iterdir()}
    assert len(folders) == 2
    runs, digests = zip(*(uri.rsplit("/", 1)[1].split("#") for uri in uris), strict=True)
    assert set(runs) == folders
    assert len(set(digests)) == 1  # of the same data
