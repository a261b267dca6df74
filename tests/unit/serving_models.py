"""Tiny models of each workload to serve, and how the tests ask for their predictions."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np
import torch
from PIL import Image
from starlette.testclient import TestClient

from ray_jobs.bundle import describe
from ray_jobs.data.dataset import Rows
from ray_jobs.data.features import FEATURES
from ray_jobs.data.machine_logs.windows import Frame
from ray_jobs.ensembling.ensemble import Ensemble
from ray_jobs.models.base import FitContext, MemberConfig
from ray_jobs.models.bundle_files import add_files, write_index
from ray_jobs.models.gcode_bundle import write_gcode_bundle
from ray_jobs.models.gcode_network import GcodeNetwork
from ray_jobs.models.gcode_spec import GcodeModelSpec
from ray_jobs.models.image_bundle import write_image_bundle
from ray_jobs.models.image_classifier import ImageModelSpec, build_image_classifier, image_input
from ray_jobs.models.registry import FAMILIES
from ray_jobs.monitoring.reference import REFERENCE, make_reference
from ray_jobs.result import Objective
from ray_jobs.serving.app import create_app
from ray_jobs.serving.example import EXAMPLE, record_example
from ray_jobs.serving.model import Model, load_model
from ray_jobs.serving.service import Service
from ray_jobs.workloads.base import Request

PUBLISHED = "25.0,5.0,45.0,40.0,10.0,5.0,2.0,1.0,3.0,1.5,5.0,2.0,30.0,5.0,1.0,450.0,50.0,5.0"
CSV, JSON = "text/csv", "application/json"
WAIT_S = 120  # for a busy machine
MEMBERS = {
    "random_forest": {"num_trees": 10, "max_depth": 5},
    "gradient_boosting": {"num_rounds": 5},
    "logistic_regression": {},
    "lstm_classifier": {"epochs": 1, "hidden_size": 8, "window": 4},
}
WEIGHTS = {"random_forest": 0.4, "gradient_boosting": 0.4, "logistic_regression": 0.0,
           "lstm_classifier": 0.2}  # fmt: skip
CLASSES = ("cardboard", "glass", "metal", "paper", "plastic", "shoes")
FRAME = Frame(
    features=("spindle", "x_load", "y_load"),
    mean=(1.0, 2.0, 3.0),
    std=(1.0, 2.0, 0.5),
    commands=("G0", "G1", "G2"),
    window=6,
    runs=("face1_000",),
    operations=("face1",),
)


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, "not within the time given"
        time.sleep(0.01)


@contextmanager
def serving(load: Callable[[], Model], **limits: Any) -> Iterator[TestClient]:
    app = create_app(Service(load, limits))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@contextmanager
def ready(load: Callable[[], Model], **limits: Any) -> Iterator[TestClient]:
    with serving(load, **limits) as client:
        wait_for(lambda: client.get("/ping").status_code == 200)
        yield client


def post(client: TestClient, body: Any, media_type: str = CSV, **headers: str) -> Any:
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    return client.post(
        "/invocations", content=content, headers={"content-type": media_type, **headers}
    )


def predictions(client: TestClient, body: Any, media_type: str = CSV) -> list[dict[str, Any]]:
    response = post(client, body, media_type)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == JSON
    return response.json()["predictions"]


def refusal(client: TestClient, body: Any, media_type: str = CSV, *, status: int = 422) -> str:
    response = post(client, body, media_type)
    assert response.status_code == status, response.text
    assert "Traceback" not in response.text
    assert set(response.json()) == {"error"}
    return response.json()["error"]


def to_csv(x: np.ndarray, names: Sequence[str] = ()) -> str:
    lines = [",".join(names)] if names else []
    return "\n".join([*lines, *(",".join(map(repr, row)) for row in x.tolist())])


# Models

_HOME = TemporaryDirectory(prefix="emberline-models-")  # gone when the tests have ended


def new_folder() -> Path:
    return Path(mkdtemp(dir=_HOME.name))


def readings(num_rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(20, 10, (num_rows, 18)).astype(np.float32)


def complete(folder: Path, requests: Sequence[Request]) -> None:
    """Add an example and a reference, as a registered model has them."""
    scorer = load_model(folder).scorer
    example = record_example(scorer, requests[0].media_type, requests[0].body)
    num_rows = dict.fromkeys(("train", "test"), len(requests) // 2)
    reference = make_reference(scorer, requests[::2], requests[1::2], num_rows)
    contents = {EXAMPLE: example.to_json(), REFERENCE: reference.model_dump_json()}
    add_files(folder, {name: content.encode() for name, content in contents.items()})


@cache
def fire_folder() -> Path:
    """A bundle of four tiny members; not to be written to."""
    folder = new_folder()
    x = readings(400, 0)
    y = (x[:, 0] + x[:, 1] > 40).astype(np.int8)
    train, val = (
        Rows(x[part], y[part], np.arange(200) // 10, np.arange(200), FEATURES)
        for part in (slice(200), slice(200, 400))
    )
    configs: dict[str, MemberConfig] = {}
    files: dict[str, str] = {}
    for name, keys in MEMBERS.items():
        configs[name] = FAMILIES[name].model_validate(keys)
        member = configs[name].build()
        member.fit(train, val, FitContext(7, Objective(metric="f1", mode="max")))
        home = folder / "members" / name
        home.mkdir(parents=True)
        member.save(home)
        for path in home.iterdir():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            files[f"members/{name}/{path.name}"] = digest
    ensemble = Ensemble.model_validate(
        {
            "strategy": "greedy",
            "blend": {"weights": WEIGHTS},
            "calibration": {"kind": "sigmoid", "slope": 1.1, "intercept": -0.1},
            "threshold": 0.4,
        }
    )
    write_index(folder, describe(FEATURES, ensemble, configs), files)
    complete(folder, [Request(CSV, to_csv(row[None]).encode(), i // 10) for i, row in enumerate(x)])
    return folder


@cache
def waste_folder() -> Path:
    folder = new_folder()
    torch.manual_seed(0)
    spec = ImageModelSpec(name="test_resnet", pretrained=False, image_size=32)
    network = build_image_classifier(spec, len(CLASSES)).eval()
    write_image_bundle(folder, network, spec, CLASSES, image_input(network, spec))
    complete(folder, [Request("image/png", picture(seed), seed) for seed in range(60)])
    return folder


@cache
def gcode_folder() -> Path:
    folder = new_folder()
    torch.manual_seed(0)
    spec = GcodeModelSpec(
        hidden_dim=16, num_heads=2, num_layers=1, dropout=0.0, value_head="regression"
    )
    network = GcodeNetwork(spec, num_features=3, num_commands=3, window=6, learns_weights=False)
    network.param_value.fit(torch.randn(20, 5) * 3)
    write_gcode_bundle(folder, network.eval(), spec, FRAME)
    complete(folder, [Request(JSON, run_rows(seed), seed) for seed in range(60)])
    return folder


def run_rows(seed: int, num_rows: int = 6) -> bytes:
    """Rows of a run as JSON, some of them without a value."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(FRAME.mean, FRAME.std, (num_rows, 3)).astype(object)
    rows[rng.random(rows.shape) < 0.1] = None
    table = {"columns": FRAME.features, "data": rows.tolist()}
    return json.dumps({"dataframe_split": table}).encode()


def picture(seed: int, kind: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()
