"""Every check is made to fail once, and says what is wrong and how to mend it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs import checks, preflight, ray_runtime
from ray_jobs.checks import GIB, Check, Checklist, duration, in_gib
from ray_jobs.data.images.manifest import load_manifest
from ray_jobs.errors import PreflightError, RetryableError
from ray_jobs.events import read_events
from ray_jobs.preflight import Offer, examine, find_workers
from ray_jobs.result import DataSummary
from ray_jobs.run import Run
from ray_jobs.sections import ResourceSpec
from ray_jobs.spec import load_spec
from ray_jobs.storage import Storage
from ray_jobs.training import image_classification
from ray_jobs.training import preflight as network_preflight
from ray_jobs.training.batch import Batch
from ray_jobs.training.footprint import Footprint, find_disk, find_memory
from ray_jobs.training.image_classification import ImageClassification
from tests.conftest import SMALL_WASTE, assert_names_keys

NAMES = [
    "packages", "torch", "storage", "device", "workers", "labels", "model", "transforms", "recipe",
    "first batch", "first step", "training memory", "checkpoints", "time",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def spec_of(root: Path) -> Callable:
    """A small job on drawn pictures, with changes."""

    def make(*overrides: str):
        words = (*SMALL_WASTE, "resources.num_cpus=1", *overrides)
        return load_spec("waste", overrides=words, storage=str(root))

    return make


@pytest.fixture
def data(spec_of: Callable, root: Path) -> DataSummary:
    return prepare(spec_of(), Storage(root))


@pytest.fixture
def task(spec_of: Callable, data: DataSummary, root: Path) -> ImageClassification:
    made = ImageClassification(spec_of(), data, Storage(root), torch.device("cpu"), num_cpus=1)
    made.build(weights=False)
    return made


def prepare(spec, storage: Storage) -> DataSummary:
    from ray_jobs.workloads import find

    return find("waste").prepare(spec, storage=storage, num_workers=1, emit=lambda *_, **__: None)


def rewrite(data: DataSummary, root: Path, **columns) -> DataSummary:
    """The dataset with other columns in its manifest."""
    storage = Storage(root)
    changed = replace(load_manifest(storage, data), **columns)
    path = f"datasets/changed-{'-'.join(columns)}.parquet"
    changed.write(storage, path)
    assert data.scan is not None
    scan = data.scan.model_copy(update={"manifest": path})
    return data.model_copy(update={"scan": scan, "digest": changed.digest()})


def found(checklist: Checklist) -> dict[str, Check]:
    return {check.name: check for check in checklist.checks}


def only_failure(checklist: Checklist, name: str) -> str:
    """What the one failed check says; those that need it are not checked."""
    assert [check.name for check in checklist.failed] == [name]
    with pytest.raises(PreflightError) as caught:
        checklist.raise_failed()
    return str(caught.value).removeprefix(f"{name}: ")


# The whole


def test_a_sound_job_passes_every_check(spec_of: Callable, data: DataSummary, root: Path) -> None:
    num_threads = torch.get_num_threads()
    checklist = examine(spec_of("train.micro_batch_size=8"), data, Storage(root))
    assert [check.name for check in checklist.checks] == NAMES
    assert checklist.failed == []
    checklist.raise_failed()
    said = {name: check.found for name, check in found(checklist).items()}
    assert said["labels"] == "0..3 in every split"
    assert said["workers"] == "1 worker with 1 CPU"
    assert said["transforms"] == "32 x 32 px in training and scoring, as model.image_size"
    assert said["recipe"] == "AdamW in fp32"
    assert said["first batch"] == "[4, 3, 32, 32] float32, labels int64"
    assert said["first step"].startswith("4 samples, loss 1.")
    assert "; 8 at once in " in said["first step"]
    assert "with 8 samples at once, of " in said["training memory"]
    assert said["checkpoints"].startswith("about 1.0 GiB needed, ")
    estimate = checklist.estimate
    assert estimate is not None
    assert said["model"] == f"{estimate.num_parameters / 1e6:.1f} M parameters"
    assert estimate.total_s == pytest.approx(3 * estimate.epoch_s)
    assert 0 < estimate.epoch_s < 60
    assert estimate.memory_bytes > 16 * estimate.num_parameters
    assert torch.get_num_threads() == num_threads


def test_a_run_keeps_what_was_checked(spec_of: Callable) -> None:
    run = Run.create(spec_of(), "kept")
    write_data(run)
    made = preflight.preflight(run)
    report = json.loads(run.storage.read_text(run.path("artifacts/preflight.json")))
    assert [check.name for check in made] == NAMES
    assert [check["name"] for check in report["checks"]] == NAMES
    assert report["estimate"]["num_parameters"] > 0
    events = read_events(run.storage, run.folder)
    assert [event["event"] for event in events] == ["step_started", "preflight", "step_ended"]
    assert {event["step"] for event in events} == {"preflight"}
    assert events[1]["checks"] == report["checks"]


def test_all_that_is_wrong_is_said_at_once(spec_of: Callable) -> None:
    spec = spec_of("resources.num_workers=3", "train.optimizer=adamwx")
    run = Run.create(spec, "wrong")
    write_data(run)
    with pytest.raises(PreflightError) as caught:
        preflight.preflight(run)
    assert caught.value.exit_code == 3
    assert str(caught.value).splitlines() == [
        "workers: resources.num_workers=3 needs 3 CPUs, but this machine has 1 for the job; set "
        "resources.num_workers=1 or less",
        "recipe: timm has no optimizer 'adamwx' (near it: adamw, radamw, nadamw); set "
        "train.optimizer to one of timm.optim.list_optimizers()",
    ]
    report = json.loads(run.storage.read_text(run.path("artifacts/preflight.json")))
    assert report["estimate"] is None
    step = next(check for check in report["checks"] if check["name"] == "first batch")
    assert step == {
        "name": "first batch", "passed": None, "found": "not checked: it needs recipe", "fix": "",
    }  # fmt: skip


def write_data(run: Run) -> None:
    summary = prepare(run.spec, run.storage)
    run.storage.write_text(run.path("artifacts/data.json"), summary.model_dump_json())


def test_what_is_no_fault_of_the_job_is_raised() -> None:
    def lose_the_network() -> str:
        raise RetryableError("the network is down")

    with pytest.raises(RetryableError):
        Checklist().make("data", lose_the_network)


# Packages


def test_a_package_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["torch==2.0.1", "no-such-package>=1", "numpy>=2"]
    monkeypatch.setattr(checks, "requires", {"emberline": declared}.get)
    check = checks.check_packages()
    assert not check.passed
    assert check.found == f"torch is {version('torch')}, not ==2.0.1; no-such-package is missing"
    assert check.fix == "make setup"


def test_torch_and_torchvision_of_two_builds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    fault = "operator torchvision::nms does not exist"
    (package / "__init__.py").write_text(f"raise RuntimeError({fault!r})")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    check = checks.check_torch()
    assert not check.passed
    assert check.found.startswith(f"numpy {np.__version__}, torch ")
    assert check.found.endswith(f" do not load together ({fault})")
    assert check.fix == (
        "install the three that pyproject.toml names, from one build: make clean setup"
    )


def test_emberline_itself_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(checks, "requires", requires)
    assert checks.check_packages() == Check(
        "packages", False, "emberline is not installed", "make setup"
    )


# Device and workers


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there(spec_of: Callable, data: DataSummary, root: Path) -> None:
    checklist = examine(spec_of("resources.device=cuda"), data, Storage(root))
    assert only_failure(checklist, "device").startswith(
        "resources.device=cuda, but this machine has only: "
    )
    assert "set resources.device=auto, or install PyTorch and a driver for it" in (
        found(checklist)["device"].found
    )
    assert found(checklist)["workers, network"].found == "not checked: it needs device"


@pytest.mark.parametrize(
    ("num_workers", "num_cpus", "offer", "is_gpu", "message"),
    [
        (
            4, 8, Offer("this machine", 8, 1), True,
            "resources.num_workers=4 needs 4 GPUs, but this machine has 1; set "
            "resources.num_workers=1",
        ),
        (
            2, 8, Offer("the cluster", 8, 0), True,
            "resources.num_workers=2 needs 2 GPUs, but the cluster has 0; set "
            "resources.num_workers=1 and resources.device=cpu",
        ),
        (
            3, 2, Offer("this machine", 2, 0), False,
            "resources.num_workers=3 needs 3 CPUs, but this machine has 2 for the job; set "
            "resources.num_workers=2 or less",
        ),
        (
            2, 16, Offer("the cluster", 4, 0, 2), False,
            "resources.num_workers=2 with 8 CPUs each needs 16, but the cluster has 4; set "
            "resources.num_cpus=4",
        ),
    ],
)  # fmt: skip
def test_more_workers_than_there_is_room_for(
    num_workers: int, num_cpus: int, offer: Offer, is_gpu: bool, message: str
) -> None:
    resources = ResourceSpec(num_workers=num_workers, num_cpus=num_cpus)
    with pytest.raises(PreflightError) as caught:
        find_workers(resources, offer, is_gpu=is_gpu)
    assert str(caught.value) == message


def test_workers_that_find_room() -> None:
    resources = ResourceSpec(num_workers=2, num_cpus=8)
    offer = Offer("the cluster", 8, 2)
    assert find_workers(resources, offer, is_gpu=True) == "2 workers with 4 CPUs and a GPU each"


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def session(resources: ResourceSpec) -> Iterator[int]:
        raise ConnectionError("no GCS there")
        yield 0

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray_runtime, "session", session)
    with pytest.raises(PreflightError) as caught:
        preflight.find_offer(ResourceSpec())
    assert str(caught.value) == (
        "the Ray cluster at RAY_ADDRESS=10.0.0.1:6379 does not answer (no GCS there); start it, or "
        "unset RAY_ADDRESS to train on this machine"
    )


# Network and samples


def test_an_input_of_another_size(spec_of: Callable, data: DataSummary, root: Path) -> None:
    spec = spec_of("model.name=eva02_tiny_patch14_224", "model.image_size=448")
    assert only_failure(examine(spec, data, Storage(root)), "model") == (
        "eva02_tiny_patch14_224 takes 224 px pictures, but model.image_size is 448; set "
        "model.image_size=224, or model.interpolate_positions=true to resize its position "
        "embeddings"
    )


def test_labels_of_no_class(spec_of: Callable, data: DataSummary, root: Path) -> None:
    manifest = load_manifest(Storage(root), data)
    label = manifest.label.copy()
    label[np.flatnonzero(manifest.split == "val")[:3]] = [7, -1, 9]
    checklist = examine(spec_of(), rewrite(data, root, label=label), Storage(root))
    num_val = data.splits["val"].num_rows
    assert only_failure(checklist, "labels") == (
        f"3 of {num_val} labels of val are not in 0..3 (-1 to 9), the numbers of data.classes; "
        "delete the dataset's folder and run again"
    )


def test_a_manifest_that_was_changed(spec_of: Callable, data: DataSummary, root: Path) -> None:
    changed = data.model_copy(update={"digest": "0" * 64})
    message = only_failure(examine(spec_of(), changed, Storage(root)), "labels")
    assert "these are not the pictures that were split. Delete its folder and run again" in message


def test_a_transform_of_another_size(
    spec_of: Callable, data: DataSummary, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform = image_classification.eval_transform
    monkeypatch.setattr(
        image_classification,
        "eval_transform",
        lambda image: transform(replace(image, image_size=448)),
    )
    assert only_failure(examine(spec_of(), data, Storage(root)), "transforms") == (
        "the transform gives 448 x 448 pixels, but model.image_size is 32; make it with "
        "eval_transform or train_transform of this model's own input"
    )


def test_pictures_that_are_gone(spec_of: Callable, data: DataSummary, root: Path) -> None:
    paths = np.array([f"{path}.gone" for path in load_manifest(Storage(root), data).path], object)
    checklist = examine(spec_of(), rewrite(data, root, path=paths), Storage(root))
    assert only_failure(checklist, "first batch") == (
        "none of the first 4 samples can be used (unreadable: FileNotFoundError); mend their "
        "files, or take them out of the data"
    )


def batch_of(size: int = 4, pixels: int = 32) -> Batch:
    tensors = {
        "image": torch.zeros(size, 3, pixels, pixels),
        "label": torch.zeros(size, dtype=torch.int64),
    }
    return Batch(tensors, list(range(size)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image": torch.zeros(4, 3, 48, 48)},
            "the first batch is torch.float32 of shape [4, 3, 48, 48], but the network takes "
            "torch.float32 of [4, 3, 32, 32]; set model.image_size to what its transform gives",
        ),
        (
            {"image": torch.zeros(4, 3, 32, 32, dtype=torch.float64)},
            "the first batch is torch.float64 of shape [4, 3, 32, 32], but the network takes "
            "torch.float32 of [4, 3, 32, 32]; set model.image_size to what its transform gives",
        ),
        (
            {"label": torch.zeros(4)},
            "the labels of the first batch are torch.float32, but the loss takes torch.int64",
        ),
        (
            {"image": torch.full((4, 3, 32, 32), torch.inf)},
            "4 of the first 4 pictures have values that are not finite; look at train.augmentation",
        ),
    ],
)
def test_a_batch_that_the_network_does_not_take(
    task: ImageClassification, change: dict[str, torch.Tensor], message: str
) -> None:
    batch = batch_of()
    batch.tensors |= change
    with pytest.raises(PreflightError) as caught:
        task.check_batch(batch)
    assert str(caught.value) == message


def test_what_could_not_be_read_of_a_batch_is_said(task: ImageClassification) -> None:
    batch = replace(batch_of(), failed={9: "truncated"})
    assert task.check_batch(batch).endswith("labels int64, 1 more cannot be read")


@pytest.mark.parametrize(
    ("output", "shape"), [(torch.zeros(4, 7), "[4, 7]"), ((torch.zeros(4, 4),), "[]")]
)
def test_an_output_of_another_shape(task: ImageClassification, output: object, shape: str) -> None:
    with pytest.raises(PreflightError) as caught:
        task.check_output(output, batch_of())
    assert str(caught.value) == (
        f"the network gives {shape} for 4 pictures of 4 classes, not [4, 4]; set model.name to a "
        "classifier"
    )


def change_network(monkeypatch: pytest.MonkeyPatch, change: Callable) -> None:
    build = ImageClassification.build

    def changed(self: ImageClassification, *, weights: bool) -> torch.nn.Module:
        network = build(self, weights=weights)
        change(network)
        return network

    monkeypatch.setattr(ImageClassification, "build", changed)


def test_the_output_is_looked_at_in_the_first_step(
    spec_of: Callable, data: DataSummary, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_network(monkeypatch, lambda network: network.reset_classifier(9))
    message = only_failure(examine(spec_of(), data, Storage(root)), "first step")
    assert message.startswith("the network gives [4, 9] for 4 pictures of 4 classes, not [4, 4]")


def test_a_loss_that_is_not_finite(
    spec_of: Callable, data: DataSummary, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @torch.no_grad()
    def poison(network: torch.nn.Module) -> None:
        next(network.parameters()).fill_(torch.nan)

    change_network(monkeypatch, poison)
    checklist = examine(spec_of(), data, Storage(root))
    assert only_failure(checklist, "first step") == (
        "the loss of the first batch is nan; look for values that are not finite in the data and "
        "in the pretrained weights, or set train.precision=fp32"
    )
    assert found(checklist)["time"].found == "not checked: it needs first step"
    assert checklist.estimate is None


def test_a_gradient_that_is_not_finite() -> None:
    network = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        network.weight.zero_()
    loss = network(torch.ones(2)).sqrt().sum()  # its slope at 0 is infinite
    loss.backward()
    with pytest.raises(PreflightError) as caught:
        network_preflight.check_finite(loss, network)
    assert str(caught.value) == (
        "the gradient of 1 tensor of weights is not finite (weight); set train.precision=fp32, or "
        "take another train.loss"
    )


def test_memory_that_runs_out(
    spec_of: Callable, data: DataSummary, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hoard(network: torch.nn.Module) -> None:
        network.register_forward_pre_hook(lambda *_: torch.empty(2**55) and None)

    change_network(monkeypatch, hoard)
    assert only_failure(examine(spec_of(), data, Storage(root)), "first step") == (
        "memory ran out with 4 samples at once; set train.micro_batch_size=2: the batch stays "
        "the same"
    )


def test_one_sample_at_once_is_too_few_for_batchnorm(
    spec_of: Callable, data: DataSummary, root: Path
) -> None:
    checklist = examine(spec_of("train.micro_batch_size=1"), data, Storage(root))
    message = only_failure(checklist, "first step")
    assert message.startswith("the network cannot learn from a single sample at once (Expected")
    assert message.endswith("; set train.batch_size and train.micro_batch_size to 2 or more")


# Memory and disk


def test_less_memory_than_training_needs() -> None:
    footprint = Footprint(fixed_bytes=GIB, sample_bytes=GIB / 8, micro_batch_size=64)
    assert find_memory(footprint, available_bytes=16 * GIB, less_memory="") == (
        "training needs about 9.0 GiB with 64 samples at once, of 16.0 GiB available"
    )
    with pytest.raises(PreflightError) as caught:
        find_memory(footprint, available_bytes=16 * GIB, less_memory="", num_sharing=2)
    assert str(caught.value) == (
        "each worker needs about 9.0 GiB with 64 samples at once, but there are 8.0 GiB available "
        "for each; set train.micro_batch_size=56: the batch stays the same"
    )
    with pytest.raises(PreflightError) as caught:
        find_memory(footprint, available_bytes=GIB, less_memory="take a smaller model.name")
    assert str(caught.value).endswith("; take a smaller model.name")


def test_the_advice_where_memory_does_not_hold_one_picture(
    spec_of: Callable, task: ImageClassification
) -> None:
    _, learning = task.prepare(task.build(weights=False))
    assert learning.less_memory == (
        "set model.gradient_checkpointing=true or train.precision=bf16, or take a smaller "
        "model.name or model.image_size"
    )
    assert_names_keys(learning.less_memory, spec_of())


@given(st.data())
def test_the_advice_on_memory_helps(data: st.DataObject) -> None:
    micro_batch_size = data.draw(st.integers(2, 4096))
    fitting = data.draw(st.integers(1, micro_batch_size - 1))
    fixed, sample = data.draw(st.integers(0, 10**12)), data.draw(st.integers(1, 10**10))
    available = fixed + fitting * sample + data.draw(st.integers(0, sample - 1))
    with pytest.raises(PreflightError) as caught:
        find_memory(
            Footprint(fixed, sample, micro_batch_size), available_bytes=available, less_memory=""
        )
    advised = re.search(r"set train\.micro_batch_size=(\d+)", str(caught.value))
    assert advised is not None
    assert int(advised[1]) == fitting
    find_memory(Footprint(fixed, sample, fitting), available_bytes=available, less_memory="")


def test_less_disk_than_a_run_needs(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "not" / "yet")
    with pytest.raises(PreflightError) as caught:
        find_disk(storage, 2**60)
    message = str(caught.value)
    assert message.startswith(f"the run needs about {in_gib(2**62 + GIB)}, but ")
    assert message.endswith(f"free at {tmp_path}; make room, or set storage to another disk")


def test_a_machine_with_too_little() -> None:
    memory, disk = checks.check_memory(2**60), checks.check_disk(".", 2**60)
    assert not memory.passed
    assert not disk.passed
    assert memory.fix == (
        "1073741824.0 GiB are needed: end other programs, or train fewer members at once "
        "(--set parallel=false)"
    )
    assert disk.fix == ("1073741824.0 GiB are needed: make room, or name another --storage")


@pytest.mark.parametrize(
    ("amount", "text"),
    [(3 * 2**20, "3 MiB"), (GIB, "1.0 GiB"), (1.25 * GIB, "1.2 GiB")],
)
def test_amounts_are_short(amount: float, text: str) -> None:
    assert in_gib(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.2 s"), (12.4, "12 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
