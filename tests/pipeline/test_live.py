"""Two registered versions behind one endpoint, as users start it, and their comparison."""

from __future__ import annotations

import csv
import http.client
import io
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from rich.console import Console

from pipelines import live
from ray_jobs.errors import DataError, JobFailed, SpecError
from ray_jobs.models.bundle_files import INDEX
from ray_jobs.monitoring.observation import Observation
from ray_jobs.monitoring.recorder import Recorder
from ray_jobs.monitoring.records import Record, read_records
from ray_jobs.storage import Storage
from ray_jobs.tracking.registry import WORKLOAD_TAG
from tests.conftest import emberline, start_emberline
from tests.unit.serving_models import WAIT_S, fire_folder, readings, to_csv, wait_for
from tests.unit.test_models_registry import own_signing_key, register

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

NUM = 150
LOW, HIGH = 0.4, 0.6  # the thresholds of the versions: fires between them are seen by one alone


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where runs/ has `fire`: version 1, which is strict, and version 2, which is not."""
    home = tmp_path_factory.mktemp("live")
    with own_signing_key(home / "config"):
        for threshold in (HIGH, LOW):
            bundle = shutil.copytree(fire_folder(), home / f"bundle-{threshold}")
            index = json.loads((bundle / INDEX).read_bytes())
            index["ensemble"]["threshold"] = threshold
            (bundle / INDEX).write_text(json.dumps(index))
            (home / "runs").mkdir(exist_ok=True)
            register(home / "runs", "fire", bundle, **{WORKLOAD_TAG: "fire"})
        yield home


class Endpoint:
    """What listens behind `emberline serve`."""

    def __init__(self, process: subprocess.Popen[str]):
        assert process.stderr is not None
        told = []
        while not told or not told[-1].startswith("serving "):
            told.append(process.stderr.readline())
            assert told[-1], told
        self.process, self.told = process, told
        self.port = urlsplit(told[-1].split()[-1]).port

    def ask(self, method: str, path: str, body: str | None = None, **headers: str):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        try:
            connection.request(method, path, body, {"content-type": "text/csv", **headers})
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def metrics(self) -> str:
        return self.ask("GET", "/metrics")[1].decode()


@contextmanager
def served(home: Path, *words: str) -> Iterator[Endpoint]:
    process = start_emberline("serve", "fire", "--version", "1", "--port", "0", *words, cwd=home)
    try:
        endpoint = Endpoint(process)
        wait_for(lambda: endpoint.ask("GET", "/ping")[0].status == 200)
        yield endpoint
    finally:
        process.kill()
        process.communicate()


def ask_all(endpoint: Endpoint) -> dict[str, tuple[str, dict]]:
    """Who answered each request, and what."""
    answers = {}
    for number, row in enumerate(readings(NUM, 3)):
        response, body = endpoint.ask(
            "POST", "/invocations", to_csv(row[None]), **{"x-request-id": f"r{number}"}
        )
        assert response.status == 200, body
        assert response.getheader("x-request-id") == f"r{number}"
        (said,) = json.loads(body)["predictions"]
        answers[f"r{number}"] = (response.getheader("x-emberline-variant"), said)
    return answers


def printed(outcome: live.LiveOutcome) -> str:
    console = Console(file=io.StringIO(), width=140)
    outcome.print(console)
    return console.file.getvalue()


def drain(endpoint: Endpoint) -> None:
    endpoint.process.send_signal(signal.SIGTERM)
    assert endpoint.process.wait(WAIT_S) == 0


def test_a_shadow_that_is_right_more_often_is_found_out(home: Path) -> None:
    shadow = ("--challenger", "2", "--mode", "shadow", "--weight", "1", "--record-share", "1")
    with served(home, *shadow) as endpoint:
        assert "shadow fire version 2\n" in endpoint.told
        answers = ask_all(endpoint)
        assert {variant for variant, _ in answers.values()} == {"champion"}
        assert {said["model_version"] for _, said in answers.values()} == {"1"}
        asked = f'emberline_shadow_requests_total{{outcome="200"}} {NUM}.0'
        wait_for(lambda: asked in endpoint.metrics())
        assert 'emberline_model_info{digest="' in endpoint.metrics()
        drain(endpoint)  # what was recorded is written
    records = list(read_records(Storage(home / "runs"), "fire"))
    assert len(records) == 2 * NUM
    assert {(r.version, r.is_shadow) for r in records} == {("1", False), ("2", True)}
    between = sum(LOW <= said["probability"] < HIGH for _, said in answers.values())
    assert between > 20  # else there is nothing to find out
    with (home / "outcomes.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(("request_id", "label"))
        for request_id, (_, said) in answers.items():
            writer.writerow((request_id, int(said["probability"] >= LOW)))
    words = ("--outcomes", "outcomes.csv", "--since", "1d", "--json")
    done = emberline("compare", "fire", "--live", *words, cwd=home)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["mode"], found["verdict"]) == ("shadow", "challenger")
    assert found["challenger"]["means"]["accuracy"]["value"] == 1.0
    wrong = 1 - found["champion"]["means"]["accuracy"]["value"]
    assert wrong == pytest.approx(between / NUM)
    assert 1 - found["agreement"]["value"] == pytest.approx(between / NUM)
    shown = printed(live.compare(str(home / "runs"), "fire", outcomes=str(home / "outcomes.csv")))
    assert "decided: the challenger (version 2) is better in accuracy by" in shown
    assert "shadow" in shown.splitlines()[0]


def test_a_split_is_answered_by_both(home: Path) -> None:
    shutil.rmtree(home / "runs" / ".live", ignore_errors=True)
    split = ("--challenger", "2", "--mode", "split", "--weight", "0.4", "--record-share", "1")
    with served(home, *split) as endpoint:
        answers = ask_all(endpoint)
        assert ask_all(endpoint) == answers  # the same id, the same variant
        drain(endpoint)
    version = {"champion": "1", "challenger": "2"}
    assert all(said["model_version"] == version[variant] for variant, said in answers.values())
    by_challenger = [variant for variant, _ in answers.values()].count("challenger")
    assert 0.25 * NUM < by_challenger < 0.55 * NUM
    found = json.loads(live.compare(str(home / "runs"), "fire").to_json())
    assert (found["mode"], found["verdict"], found["agreement"]) == ("split", "undecided", None)
    assert abs(found["challenger"]["num_requests"] - by_challenger) <= 10  # since both answer


def test_what_cannot_be_compared(home: Path) -> None:
    runs = str(home / "runs")
    with pytest.raises(SpecError, match=r"no model 'gone' is registered at .*; train it"):
        live.compare(runs, "gone")
    with pytest.raises(DataError, match=r"no request to 'elsewhere' is recorded below .*--name"):
        live.compare(runs, "fire", name="elsewhere")
    with pytest.raises(SpecError, match=r"--confidence 95 must be from 0.5 to below 1, as in 0.95"):
        live.compare(runs, "fire", confidence=95)
    with pytest.raises(SpecError, match="--since 'monday' is no time"):
        live.compare(runs, "fire", since="monday")
    kept = Recorder(Storage(runs), "fire", share=1, max_mb_per_day=1)
    kept.start(max_waiting_rows=9, count=lambda outcome: None)
    seen = Observation({}, {"probability": [0.5]})
    for number in range(4):
        role = "challenger" if number % 2 else "champion"
        one = Record(datetime.now(UTC), f"{number}", role, False, "1", "d", 200, 0.1, 1)
        kept.offer(one, lambda: seen)
    kept.close()
    with pytest.raises(JobFailed, match="the records of version 1 are of a model with sha256 d, "):
        live.compare(runs, "fire", since="1m")
