"""What the guards cost: samples a second of the guarded loop against a bare PyTorch loop.

    python -m tests.bench.loop_overhead [--rounds 60] [--workers-rounds 10]

Both loops have the same network, batches, optimizer (AdamW) and clipping, one thread a worker, and
write no checkpoint. With two workers the bare loop is DistributedDataParallel's over gloo. The
loops take turns within a round, the first one alternating; the ratio is the median over the rounds,
each round's being its own. A clock runs from the first batch to the end of the last step.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.nn.parallel import DistributedDataParallel

from ray_jobs.models.networks import LSTMNetwork
from ray_jobs.training import loop
from ray_jobs.training.batch import Batch
from ray_jobs.training.learning import Learning
from ray_jobs.training.replicas import Replicas
from tests import toy_training as toy

RESULTS = Path(__file__).with_suffix(".csv")
COLUMNS = (
    "network", "workers", "batch", "rounds", "bare samples/s", "guarded samples/s", "ratio",
    "ratio's quartiles", "command",
)  # fmt: skip
BATCH_SIZE, CLIP_GRAD_NORM, NUM_DISTINCT = 32, 1.0, 8

Loss = Callable[[nn.Module, Batch], tuple[Tensor, list[Tensor]]]
Pair = tuple[float, float]  # seconds of a round: bare, guarded


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    loss: Loss
    x_shape: tuple[int, ...]
    y_shape: tuple[int, ...]
    num_steps: int  # of a round
    rounds_factor: int = 1  # short rounds, more of them

    def batches(self) -> list[Batch]:
        generator = torch.Generator().manual_seed(Replicas().rank)
        return [
            Batch(
                {
                    "x": torch.randn(BATCH_SIZE, *self.x_shape, generator=generator),
                    "y": torch.randint(0, 2, (BATCH_SIZE, *self.y_shape), generator=generator),
                },
                list(range(BATCH_SIZE)),
            )
            for _ in range(NUM_DISTINCT)
        ]


def picture_loss(network: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    return cross_entropy(network(batch.tensors["x"]), batch.tensors["y"]), []


def reading_loss(network: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    logits = network(batch.tensors["x"])
    return binary_cross_entropy_with_logits(logits, batch.tensors["y"].float()), []


CASES = {
    "resnet10t, 64 px": Case(
        lambda: timm.create_model("resnet10t", num_classes=2),
        picture_loss,
        (3, 64, 64),
        (),
        num_steps=2,
    ),
    "LSTM, 16 x 18": Case(
        lambda: LSTMNetwork(18, hidden_size=64, num_layers=1, dropout=0.2),
        reading_loss,
        (16, 18),
        (16,),
        num_steps=20,
        rounds_factor=8,
    ),
}


class Timed:
    """Prebuilt batches, and the seconds from the first to the end of the last one's step."""

    def __init__(self, batches: list[Batch], num_steps: int):
        self._batches, self._num_steps = batches, num_steps
        self.seconds = 0.0

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        started = time.perf_counter()
        for step in range(start, self._num_steps):
            yield self._batches[step % len(self._batches)]
        self.seconds = time.perf_counter() - started


def bare(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, source: Timed) -> float:
    network.train()
    total = 0.0
    for batch in source.epoch(1, 0):
        optimizer.zero_grad()
        value, _ = loss(network, batch)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP_GRAD_NORM)
        optimizer.step()
        total += value.item()
    return source.seconds


def guarded(
    network: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, source: Timed
) -> float:
    learning = Learning(
        loss=loss,
        optimizer=optimizer,
        epochs=1,
        patience=1,
        batch_size=BATCH_SIZE,
        clip_grad_norm=CLIP_GRAD_NORM,
    )
    context, _ = toy.context()
    loop.fit(network, source, learning, lambda network: {"val_loss": 1.0}, context)
    return source.seconds


def take_turns(name: str, num_rounds: int) -> list[Pair]:
    """Seconds of each round; the first round only warms up."""
    torch.set_num_threads(1)
    case = CASES[name]
    sides = []
    for run in (bare, guarded):
        torch.manual_seed(0)
        network = case.make()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        if run is bare and not Replicas().is_alone:
            network = DistributedDataParallel(network)
        source = Timed(case.batches(), case.num_steps)
        sides.append((run, network, optimizer, case.loss, source))
    pairs = []
    for number in range(num_rounds * case.rounds_factor + 1):
        seconds = [0.0, 0.0]
        for side in (0, 1) if number % 2 else (1, 0):
            run, *arguments = sides[side]
            seconds[side] = run(*arguments)
        pairs.append((seconds[0], seconds[1]))
    return pairs[1:]


def row(name: str, num_workers: int, pairs: list[Pair], command: str) -> tuple[object, ...]:
    num_samples = CASES[name].num_steps * BATCH_SIZE * num_workers
    ratios = sorted(bare_s / guarded_s for bare_s, guarded_s in pairs)
    low, middle, high = statistics.quantiles(ratios, n=4)
    speeds = [num_samples / statistics.median(side) for side in zip(*pairs, strict=True)]
    found = (
        name, num_workers, BATCH_SIZE, len(pairs), *(round(speed, 1) for speed in speeds),
        round(middle, 3), f"{low:.3f} to {high:.3f}",
    )  # fmt: skip
    print("{:18} {} workers, batch {}, {} rounds: {:9} /s bare, {:9} /s guarded, {} ({})"
          .format(*found), flush=True)  # fmt: skip
    return (*found, command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--workers-rounds", type=int, default=10)
    options = parser.parse_args()
    command = (
        f"python -m tests.bench.loop_overhead --rounds {options.rounds} "
        f"--workers-rounds {options.workers_rounds}"
    )
    rows = [row(name, 1, take_turns(name, options.rounds), command) for name in CASES]
    with TemporaryDirectory(prefix="emberline-bench-") as folder:
        for name in CASES:
            pairs = toy.on_workers(
                take_turns, Path(folder), name, options.workers_rounds, timeout_s=600
            )[0]
            rows.append(row(name, 2, pairs, command))
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


if __name__ == "__main__":
    main()
