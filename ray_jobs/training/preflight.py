"""The preflight of a network: a few pictures, windows or whatever it learns from go once through
all that training will do, on a network that is thrown away.

Imports torch: for code that has found it sound.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ray_jobs import ray_runtime, workloads
from ray_jobs.checks import Checklist, Estimate, counted, duration
from ray_jobs.devices import choose_device
from ray_jobs.errors import PreflightError
from ray_jobs.result import DataSummary
from ray_jobs.storage import Storage, brief_cause
from ray_jobs.training.batch import Batch
from ray_jobs.training.footprint import (
    Footprint,
    advise_micro_batch,
    find_disk,
    find_memory,
    free_memory,
    num_bytes,
    own_memory,
    tensors_of,
)
from ray_jobs.training.guards import is_out_of_memory
from ray_jobs.training.recipe import choose_precision
from ray_jobs.training.task import NetworkTask, num_loader_processes
from ray_jobs.workloads.network import NetworkWorkload

PROBE_SIZE = 4  # samples: enough for BatchNorm, few enough for a large network on a CPU
_AFFORDABLE_S = 4.0  # for steps of one size; on a CPU the time of a larger one is extrapolated
_NUM_REPEATS = 3
_BACKWARD_SHARE = 1.5  # peak : activations kept for the backward pass, seen between 1.1 and 1.6


def check_network(
    checklist: Checklist, spec: Any, data: DataSummary, storage: Storage, *, num_sharing: int = 1
) -> None:
    """Add the checks of a network and its samples, and an estimate of what its training takes.

    Args:
        spec: of a NetworkWorkload; its device is there.
        num_sharing: processes like this one that share the memory of a device.
    """
    probe = _Probe(spec, data, storage)
    make = checklist.make
    with _threads(ray_runtime.cpus_per_worker(spec.resources)):
        make("labels", probe.check_labels)
        make("model", probe.build, needs=["labels"])
        make("transforms", probe.check_transforms, needs=["model"])
        make("recipe", probe.prepare, needs=["model"])
        make("first batch", probe.load, needs=["transforms", "recipe"])
        make("first step", probe.step, needs=["first batch"])
        make("training memory", lambda: probe.check_memory(num_sharing), needs=["first step"])
        make("checkpoints", probe.check_disk, needs=["first step"])
        make("time", probe.estimate_time, needs=["first step"])
    checklist.estimate = probe.estimate
    probe.close()


@dataclass(frozen=True)
class _Cost:
    """What a step has taken."""

    size: int  # samples
    seconds: float
    sample_bytes: float  # of all that grows with the samples


class _Probe:
    """Does what training will do, one thing a method, and says what it found."""

    def __init__(self, spec: Any, data: DataSummary, storage: Storage):
        self._spec, self._data, self._storage = spec, data, storage
        self._device = choose_device(spec.resources.device)
        self._free_bytes = free_memory(self._device)  # before the network takes its own
        self._own_bytes = own_memory(self._device)
        train, num_train = spec.train, data.splits["train"].num_rows
        whole = -(-min(train.batch_size, num_train) // spec.resources.num_workers)
        self._micro_batch_size = min(train.micro_batch_size or whole, whole)
        self._load_s = self._predict_s = 0.0  # a sample
        self.estimate: Estimate | None = None

    def check_labels(self) -> str:
        workload = workloads.find(self._spec.workload)
        assert isinstance(workload, NetworkWorkload), self._spec.workload
        few = {
            "batch_size": max(min(PROBE_SIZE, self._micro_batch_size), 2),
            "micro_batch_size": None,
            "num_loader_workers": 0,
            "compile": False,  # takes longer than all the rest
        }
        spec = self._spec.model_copy(update={"train": self._spec.train.model_copy(update=few)})
        self._task: NetworkTask = workload.task(
            spec, self._data, storage=self._storage, device=self._device, num_cpus=1
        )
        return self._task.check_labels()

    def build(self) -> str:
        torch.manual_seed(self._spec.seed)
        self._network = self._task.build(weights=True)
        self._num_parameters = sum(p.numel() for p in self._network.parameters())
        notes = "".join(f"; {note}" for note in self._task.notes)
        return f"{self._num_parameters / 1e6:.1f} M parameters{notes}"

    def check_transforms(self) -> str:
        return self._task.check_transforms()

    def prepare(self) -> str:
        self._batches, self._learning = self._task.prepare(self._network)
        precision = choose_precision(self._spec.train, self._device)
        return f"{type(self._learning.optimizer).__name__} in {precision}"

    def load(self) -> str:
        batches = self._batches.epoch(1, 0)
        started = time.monotonic()
        batch = next(batches)
        loaded = time.monotonic()
        if next(batches, None) is not None:  # the first one loads libraries, too
            started, loaded = loaded, time.monotonic()
        self._load_s = (loaded - started) / (len(batch) + len(batch.failed))
        if not len(batch):
            reasons = "; ".join(sorted(set(batch.failed.values())))
            raise PreflightError(
                f"none of the first {len(batch.failed)} samples can be used ({reasons}); mend "
                "their files, or take them out of the data"
            )
        self._batch = batch.to(self._device)
        return self._task.check_batch(batch)

    def step(self) -> str:
        loss = self._try_step(self._batch, check=True)
        batch = _repeated(self._batch, min(len(self._batch), self._micro_batch_size))
        self._measure(batch)
        while (size := self._affordable_size()) > len(batch):
            batch = _repeated(batch, size)
            self._measure(batch)
        self._network.eval()
        with torch.inference_mode(), self._learning.autocast():
            started = self._now()
            self._learning.loss(self._network, batch)
            self._predict_s = (self._now() - started) / len(batch)
        return (
            f"{counted(len(self._batch), 'sample')}, loss {loss:.3f} and its gradient finite; "
            f"{self._cost.size} at once in {self._cost.seconds:.2f} s"
        )

    def check_memory(self, num_sharing: int) -> str:
        return find_memory(
            self._footprint(),
            available_bytes=self._free_bytes,
            less_memory=self._learning.less_memory,
            num_sharing=num_sharing,
        )

    def check_disk(self) -> str:
        networks = 2 if self._learning.ema else 1
        weights = networks * num_bytes(self._network.state_dict().values())
        return find_disk(self._storage, weights + num_bytes(tensors_of(self._learning.optimizer)))

    def estimate_time(self) -> str:
        """Extrapolated from the largest step that was measured."""
        spec, cost = self._spec, self._cost
        num_loaders = num_loader_processes(spec.train, ray_runtime.cpus_per_worker(spec.resources))

        def seconds(split: str, compute_s: float) -> float:
            num_samples = self._data.splits[split].num_rows / spec.resources.num_workers
            if not num_loaders:
                return num_samples * (compute_s + self._load_s)
            return num_samples * max(compute_s, self._load_s / num_loaders)

        epoch_s = seconds("train", cost.seconds / cost.size) + seconds("val", self._predict_s)
        self.estimate = Estimate(
            num_parameters=self._num_parameters,
            memory_bytes=round(self._footprint().num_bytes),
            epoch_s=epoch_s,
            total_s=epoch_s * spec.train.epochs,
        )
        return (
            f"about {duration(epoch_s)} an epoch, {duration(self.estimate.total_s)} for "
            f"{counted(spec.train.epochs, 'epoch')}"
        )

    def close(self) -> None:
        """Give back what the network took."""
        vars(self).clear()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _try_step(self, batch: Batch, *, check: bool = False) -> float:
        """One forward and backward pass and an update; the loss.

        Raises:
            PreflightError: it cannot be done, or something of it is not finite.
        """
        network, learning = self._network, self._learning
        outputs: list[Any] = []
        handle = network.register_forward_hook(
            lambda _module, _args, output: outputs.append(output)
        )
        network.train()
        learning.optimizer.zero_grad(set_to_none=True)
        try:
            with learning.autocast():
                loss, _ = learning.loss(network, batch)
            if check:
                self._task.check_output(outputs[0], batch)
            outputs.clear()
            loss.backward()
            if check:
                check_finite(loss, network)
            learning.optimizer.step()
        except ValueError as error:  # of BatchNorm
            if len(batch) > 1:
                raise
            raise PreflightError(
                f"the network cannot learn from a single sample at once ({brief_cause(error)}); "
                "set train.batch_size and train.micro_batch_size to 2 or more"
            ) from None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise PreflightError(
                f"memory ran out with {counted(len(batch), 'sample')} at once; "
                f"{advise_micro_batch(len(batch) // 2, learning.less_memory)}"
            ) from None
        finally:
            handle.remove()
        return loss.item()

    def _affordable_size(self) -> int:
        """Samples of the largest step, up to that of training, whose time can be spared."""
        if self._device.type != "cpu":
            return self._micro_batch_size
        times = int(_AFFORDABLE_S / self._cost.seconds)
        return min(self._micro_batch_size, self._cost.size * times)

    def _measure(self, batch: Batch) -> None:
        """Take the time and the memory of a step."""
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        is_gpu = self._device.type == "cuda"
        fixed = self._fixed_bytes()
        if is_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
        started = self._now()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self._try_step(batch)
        seconds = self._now() - started
        if is_gpu:
            activation_bytes: float = torch.cuda.max_memory_allocated(self._device) - fixed
        else:
            for parameter in self._network.parameters():
                kept.pop(parameter.untyped_storage().data_ptr(), None)
            activation_bytes = _BACKWARD_SHARE * sum(kept.values())
        spent = seconds
        for _ in range(_NUM_REPEATS):  # a short step is easily disturbed: the shortest counts
            if spent > _AFFORDABLE_S:
                break
            started = self._now()
            self._try_step(batch)
            repeated = self._now() - started
            seconds, spent = min(seconds, repeated), spent + repeated
        self._cost = _Cost(len(batch), seconds, activation_bytes / len(batch))

    def _footprint(self) -> Footprint:
        return Footprint(
            fixed_bytes=self._own_bytes + self._fixed_bytes(),
            sample_bytes=self._cost.sample_bytes,
            micro_batch_size=self._micro_batch_size,
        )

    def _fixed_bytes(self) -> int:
        """Of weights, gradients, the optimizer's state and the average of the weights."""
        network, learning = self._network, self._learning
        tensors = [*network.parameters(), *network.buffers(), *tensors_of(learning.optimizer)]
        tensors += [p.grad for p in network.parameters() if p.grad is not None]
        if learning.ema is not None:
            tensors += learning.ema.module.state_dict().values()
        return num_bytes(tensors)

    def _now(self) -> float:
        """Seconds, after all that the device was given to do."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
        return time.monotonic()


def check_finite(loss: Tensor, network: nn.Module) -> None:
    """Whether a loss and the gradients of it are finite.

    Raises:
        PreflightError: one is not.
    """
    if not math.isfinite(loss.item()):
        raise PreflightError(
            f"the loss of the first batch is {loss.item():g}; look for values that are not finite "
            "in the data and in the pretrained weights, or set train.precision=fp32"
        )
    names = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
    ]
    if names:
        raise PreflightError(
            f"the gradient of {counted(len(names), 'tensor')} of weights is not finite "
            f"({names[0]}{', ...' if len(names) > 1 else ''}); set train.precision=fp32, or take "
            "another train.loss"
        )


def _repeated(batch: Batch, size: int) -> Batch:
    """`size` samples, the same ones again and again."""
    times = -(-size // len(batch))
    tensors = {name: torch.cat([part] * times)[:size] for name, part in batch.tensors.items()}
    return Batch(tensors, (batch.ids * times)[:size])


@contextmanager
def _threads(num_threads: int) -> Iterator[None]:
    """As many threads as a worker will have, for the times to be its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
