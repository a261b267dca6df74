"""Does Emberline reach what timm's own recipe reaches, on real photos, in the same time?

    python tests/bench/waste_quality.py [--epochs 15] [--seeds 3]

"emberline" is `emberline run waste` on the 600 photos of trashnet_subset, whose six classes are
mapped onto six of the thirty. "timm" is written here with timm and PyTorch alone, as timm's
train.py does it: the same rows in the same splits, model, hyperparameters, epochs and seeds, and
the epoch of the best validation macro F1. Both train from scratch, on all cores, with one loader
process less than cores; a seed decides the split as well. Order and augmentation are drawn by each
in its own way. Test scores are compared with Emberline's bootstrap interval, seed by seed and on
average.

Seconds are those of the epochs, with their validation; photos/s is an epoch's median, without. Load
is the machine's over the last minute when a training ended: where others work too, set
GOMP_SPINCOUNT=1000 for both, or threads that wait for each other burn the cores that they lack.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score
from timm.data import create_transform, resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from ray_jobs.data.images.manifest import PictureRows, load_manifest
from ray_jobs.members import read_history
from ray_jobs.prepare import read_data
from ray_jobs.run import Run
from ray_jobs.workloads.network import MODEL

RESULTS = Path(__file__).with_suffix(".csv")
OWN_NAME, DATA = "tests/bench/waste_quality.py", "trashnet_subset"
CLASSES = {
    "cardboard": "cardboard_boxes", "glass": "glass_food_jars", "metal": "aluminum_soda_cans",
    "paper": "office_paper", "plastic": "plastic_water_bottles", "trash": "food_waste",
}  # fmt: skip
NETWORK, IMAGE_SIZE, BATCH_SIZE = "resnet10t", 64, 32
LEARNING_RATE, WEIGHT_DECAY, WARMUP_EPOCHS, LEAST_RATE = 2e-3, 0.05, 1, 1e-6
LABEL_SMOOTHING, CLIP_GRAD_NORM, SCALE = 0.1, 1.0, (0.5, 1.0)
NUM_CPUS = len(os.sched_getaffinity(0))
COLUMNS = (
    "way", "seed", "epochs", "test photos", "test accuracy", "accuracy interval", "test macro f1",
    "macro f1 interval", *(f"f1 {name}" for name in CLASSES), "best epoch", "seconds", "photos/s",
    "load", "command",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What one training came to. Scores are of the test split."""

    accuracy: float
    macro_f1: float
    class_f1: list[float]  # in the order of CLASSES
    best_epoch: int
    seconds: float  # of all epochs
    photos_per_second: float
    load: float  # of the machine, over the last minute
    intervals: dict[str, tuple[float, float]]  # of accuracy and macro_f1, where there are any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    photos, rows, pairs = find_photos(), [], []
    spin = os.environ.get("GOMP_SPINCOUNT")
    command = f"GOMP_SPINCOUNT={spin} " if spin else ""
    command += f"python {OWN_NAME} --epochs {options.epochs} --seeds {options.seeds}"
    with TemporaryDirectory(prefix="emberline-bench-") as storage:
        for seed in range(options.seeds):
            run, ours = train_emberline(photos, storage, seed, options.epochs)
            manifest = load_manifest(run.storage, read_data(run))
            parts = [manifest.rows(split) for split in ("train", "val", "test")]
            classes = run.spec.data.classes
            theirs = train_timm(*parts, classes, seed, options.epochs)
            for way, outcome in (("emberline", ours), ("timm", theirs)):
                rows.append(row(way, seed, options.epochs, len(parts[2]), outcome, command))
                print(line(way, seed, outcome), flush=True)
            pairs.append((ours, theirs))
    with RESULTS.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    report(pairs)


def find_photos() -> Path:
    """The folder of real photos, where the tests look for it."""
    default = Path(__file__).parents[3] / "shared" / "data"
    root = Path(os.environ.get("EMBERLINE_TEST_DATA", default)).resolve()
    if not (root / DATA).is_dir():
        sys.exit(
            f"no folder {root / DATA}; set EMBERLINE_TEST_DATA to the folder that holds {DATA}"
        )
    return root / DATA


# Emberline


def train_emberline(photos: Path, storage: str, seed: int, epochs: int) -> tuple[Run, Outcome]:
    source = [{"path": str(photos), "map": CLASSES}]
    settings = {
        "seed": seed,
        "data.sources": source,
        "model.name": NETWORK,
        "model.pretrained": False,
        "model.image_size": IMAGE_SIZE,
        "train.epochs": epochs,
        "train.patience": epochs,
        "train.batch_size": BATCH_SIZE,
        "train.learning_rate": LEARNING_RATE,
        "train.layer_decay": None,
        "train.weight_decay": WEIGHT_DECAY,
        "train.warmup_epochs": WARMUP_EPOCHS,
        "train.warmup_learning_rate": LEAST_RATE,
        "train.min_learning_rate": LEAST_RATE,
        "train.label_smoothing": LABEL_SMOOTHING,
        "train.clip_grad_norm": CLIP_GRAD_NORM,
        "train.augmentation.scale": SCALE,
        "train.ema_decay": None,
        "resources.device": "cpu",
        "tracking.enabled": False,
    }
    run_id = f"seed-{seed}"
    command = [sys.executable, "-m", "pipelines.cli", "run", "waste", "--json",
               "--storage", storage, "--run-id", run_id]  # fmt: skip
    for key, value in settings.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"emberline run waste exited with {done.returncode}:\n{done.stderr}")
    run = Run.open(storage, "waste", run_id)
    result, history = run.read_result(), read_history(run, MODEL)
    assert result is not None, "a run that ended well has a result"
    test = result.metrics["test"]
    f1 = {scores.name: scores.f1 for scores in result.classes["test"]}
    return run, Outcome(
        accuracy=test["accuracy"].value,
        macro_f1=test["macro_f1"].value,
        class_f1=[f1[name] for name in CLASSES.values()],
        best_epoch=result.members[0].best_epoch,
        seconds=sum(epoch["seconds"] for epoch in history),
        photos_per_second=statistics.median(epoch["samples_per_second"] for epoch in history),
        load=os.getloadavg()[0],
        intervals={name: (test[name].low, test[name].high) for name in ("accuracy", "macro_f1")},
    )


# timm and PyTorch alone


class Photos(Dataset):
    def __init__(self, rows: PictureRows, transform):
        self.paths, self.labels, self.transform = rows.path, rows.label.tolist(), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as photo:
            return self.transform(photo.convert("RGB")), self.labels[index]


def train_timm(
    train: PictureRows,
    val: PictureRows,
    test: PictureRows,
    classes: list[str],
    seed: int,
    epochs: int,
) -> Outcome:
    torch.manual_seed(seed)
    torch.set_num_threads(NUM_CPUS)
    network = timm.create_model(NETWORK, num_classes=len(classes))
    config = resolve_model_data_config(network) | {"input_size": (3, IMAGE_SIZE, IMAGE_SIZE)}
    loader = load(
        Photos(train, augmentation(config)), shuffle=True, drop_last=True, persistent_workers=True
    )
    val_loader = load(Photos(val, create_transform(**config)), persistent_workers=True)
    optimizer = create_optimizer_v2(
        network, opt="adamw", lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
    )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=epochs,
        min_lr=LEAST_RATE,
        warmup_lr=LEAST_RATE,
        warmup_epochs=WARMUP_EPOCHS,
        step_on_epochs=False,
        updates_per_epoch=len(loader),
    )
    num_updates, best, best_epoch, weights, speeds = 0, -1.0, 0, {}, []
    started = time.perf_counter()
    for epoch in range(1, epochs + 1):
        network.train()
        began = time.perf_counter()
        for images, labels in loader:
            scheduler.step_update(num_updates)
            loss = cross_entropy(network(images), labels, label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP_GRAD_NORM)
            optimizer.step()
            num_updates += 1
        speeds.append(len(loader) * BATCH_SIZE / (time.perf_counter() - began))
        score = macro_f1(val.label, classify(network, val_loader))
        if score > best:
            best, best_epoch = score, epoch
            weights = {name: value.clone() for name, value in network.state_dict().items()}
    seconds = time.perf_counter() - started
    network.load_state_dict(weights)
    named = classify(network, load(Photos(test, create_transform(**config))))
    labels = [classes.index(name) for name in CLASSES.values()]
    return Outcome(
        accuracy=float(accuracy_score(test.label, named)),
        macro_f1=macro_f1(test.label, named),
        class_f1=f1_score(test.label, named, labels=labels, average=None).tolist(),
        best_epoch=best_epoch,
        seconds=seconds,
        photos_per_second=statistics.median(speeds),
        load=os.getloadavg()[0],
        intervals={},
    )


def augmentation(config: dict):
    chosen = ("input_size", "interpolation", "mean", "std")
    return create_transform(
        **{key: config[key] for key in chosen}, is_training=True, scale=SCALE, ratio=(3 / 4, 4 / 3)
    )


def load(photos: Photos, **options: bool) -> DataLoader:
    return DataLoader(photos, BATCH_SIZE, num_workers=NUM_CPUS - 1, **options)


def classify(network: nn.Module, loader: DataLoader) -> NDArray[np.int64]:
    """The class named of every photo, shape [N]."""
    network.eval()
    with torch.inference_mode():
        return torch.cat([network(images).argmax(1) for images, _ in loader]).numpy()


def macro_f1(y: NDArray[np.int64], named: NDArray[np.int64]) -> float:
    """Mean F1 of the classes that stand in `y`."""
    return float(f1_score(y, named, labels=np.unique(y), average="macro"))


# What came of it


def row(way: str, seed: int, epochs: int, num_test: int, outcome: Outcome, command: str) -> tuple:
    scores = []
    for name in ("accuracy", "macro_f1"):
        interval = outcome.intervals.get(name)
        text = "{:.3f} to {:.3f}".format(*interval) if interval else ""
        scores += [round(getattr(outcome, name), 4), text]
    class_f1 = [round(value, 3) for value in outcome.class_f1]
    return (
        way, seed, epochs, num_test, *scores, *class_f1,
        outcome.best_epoch, round(outcome.seconds, 1),
        round(outcome.photos_per_second, 1), round(outcome.load, 1), command,
    )  # fmt: skip


def line(way: str, seed: int, outcome: Outcome) -> str:
    text = f"seed {seed}  {way:9}"
    for name, label in (("accuracy", "accuracy"), ("macro_f1", "macro F1")):
        interval = outcome.intervals.get(name)
        given = "({:.3f} to {:.3f})".format(*interval) if interval else ""
        text += f"  test {label} {getattr(outcome, name):.3f} {given:18}"
    return (
        f"{text} best epoch {outcome.best_epoch:2} {outcome.seconds:6.1f} s "
        f"{outcome.photos_per_second:6.1f} photos/s  load {outcome.load:.1f}"
    )


def report(pairs: list[tuple[Outcome, Outcome]]) -> None:
    """Print means over the seeds, and whether they lie within the interval."""
    print(f"\n{'test F1':10} emberline  timm")
    for number, name in enumerate(CLASSES):
        ours, theirs = (
            statistics.mean(o.class_f1[number] for o in way) for way in zip(*pairs, strict=True)
        )
        print(f"{name:10} {ours:9.3f} {theirs:5.3f}")
    print()
    for verdict in verdicts(pairs):
        print(verdict)
    ratio = statistics.mean(ours.seconds for ours, _ in pairs)
    ratio /= statistics.mean(theirs.seconds for _, theirs in pairs)
    print(f"seconds of the epochs, emberline to timm: {ratio:.2f}")


def verdicts(pairs: list[tuple[Outcome, Outcome]]) -> Iterator[str]:
    """For each metric, what the means over the seeds say.

    The interval of Emberline's mean is that of the mean test split; the standard error is that of
    the differences seed by seed, which share their splits.
    """
    for name in ("accuracy", "macro_f1"):
        lows, highs = zip(*(ours.intervals[name] for ours, _ in pairs), strict=True)
        values = [(getattr(ours, name), getattr(theirs, name)) for ours, theirs in pairs]
        num_inside = sum(
            low <= theirs <= high
            for low, high, (_, theirs) in zip(lows, highs, values, strict=True)
        )
        ours, theirs = (statistics.mean(way) for way in zip(*values, strict=True))
        low, high = statistics.mean(lows), statistics.mean(highs)
        verdict = "within" if low <= theirs <= high else "OUTSIDE"
        error = ""
        if len(pairs) > 1:
            differences = [ours - theirs for ours, theirs in values]
            error = f" +- {statistics.stdev(differences) / len(pairs) ** 0.5:.3f}"
        yield (
            f"{name}: emberline {ours:.3f}, timm {theirs:.3f}, difference {ours - theirs:+.3f}"
            f"{error}; timm lies {verdict} emberline's interval {low:.3f} to {high:.3f} "
            f"(seed by seed in {num_inside} of {len(pairs)})"
        )


if __name__ == "__main__":
    main()
