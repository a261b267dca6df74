"""A pipeline's step as Kubeflow runs it: the component's own command, in a process group."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from components.train_member import train_member
from ray_jobs.events import read_events
from ray_jobs.prepare import prepare
from ray_jobs.run import Run
from ray_jobs.spec import load_spec

REPOSITORY = Path(__file__).parents[2]
MEMBER = "lstm_classifier"


@dataclass(frozen=True)
class Step:
    """One that trains a member, under way."""

    process: subprocess.Popen[str]
    log: Path

    def signal(self, number: signal.Signals) -> None:
        """To every process of its pod's container, as its runtime sends it."""
        os.killpg(self.process.pid, number)

    def finish(self, timeout_s: float = 120) -> tuple[int, str]:
        """Its exit code and what it has written."""
        code = self.process.wait(timeout=timeout_s)
        return code, self.log.read_text()


def prepared(folder: Path, *overrides: str) -> Run:
    """A run, some of whose steps are done: the next one trains a member."""
    few = ("data.samples=2000", "tracking.enabled=false")
    spec = load_spec("fire", overrides=[*few, *overrides], storage=str(folder / "runs"))
    run: Run = Run.create(spec, "night")
    prepare(run)
    return run


def start_step(run: Run, folder: Path, pod: Mapping[str, str]) -> Step:
    """Start the step in a pod of this name and uid, and of this run of the pipeline.

    Args:
        folder: for its outputs and its log.
        pod: `name` and `uid`, and `namespace`.
    """
    folder.mkdir(parents=True)
    container = train_member.component_spec.implementation.container
    executor_input = {
        "inputs": {"parameterValues": {"member": f"{run.uri}/checkpoints/{MEMBER}"}},
        "outputs": {
            "parameters": {"Output": {"outputFile": str(folder / "output")}},
            "artifacts": {
                "metrics": {
                    "artifacts": [
                        {
                            "name": "metrics",
                            "type": {"schemaTitle": "system.Metrics"},
                            "uri": str(folder / "metrics"),
                            "metadata": {},
                        }
                    ]
                }
            },
            "outputFile": str(folder / "executor_output.json"),
        },
    }
    words = [*container.command, *container.args]
    words = [json.dumps(executor_input) if word == "{{$}}" else word for word in words]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "KFP_POD_NAME": pod["name"],
        "KFP_POD_UID": pod["uid"],
        "NAMESPACE": pod["namespace"],
        "EMBERLINE_PIPELINE_RUN": "pipeline-run-1",
    }
    environment.pop("RAY_ADDRESS", None)
    log = folder / "step.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, env=environment, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=output,
            stderr=output, text=True, start_new_session=True,
        )  # fmt: skip
    return Step(process, log)


def wait_for_epoch(run: Run, step: Step, number: int = 1) -> None:
    """Until the member has trained for some epochs, wherever that is."""

    def has_come() -> bool:
        events = read_events(run.storage, run.folder)
        return sum(event["event"] == "epoch" for event in events) >= number

    wait_until(has_come, step.log.read_text, step.process)


def wait_until(
    condition: Callable[[], bool],
    why: Callable[[], str] = lambda: "",
    process: subprocess.Popen[str] | None = None,
    timeout_s: float = 120,
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, why()
        assert process is None or process.poll() is None, why()
        time.sleep(0.1)


def reap(*words: str) -> tuple[int, dict]:
    """The reaper as the chart's CronJob starts it: its exit code, and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "ray_jobs.reap", "--json", *words],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)
