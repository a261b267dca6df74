"""Replicas: the workers that train one model together, each on its share of every batch.

Gradients are summed after the whole backward pass, in the same exchange as the verdict on the step:
a worker that ran out of memory, got no usable sample or met a NaN takes part like any other, with
zeros and its verdict, and no worker waits for one that has given up. DistributedDataParallel, which
sums during the backward pass, cannot promise that: there a worker whose backward pass breaks off
leaves the others waiting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

_BUCKET_BYTES = 64 * 2**20


class Replicas:
    """The process group of this worker; one worker alone needs none."""

    def __init__(self) -> None:
        is_group = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if is_group else 0
        self.world_size = dist.get_world_size() if is_group else 1

    @property
    def is_alone(self) -> bool:
        return self.world_size == 1

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every worker the first one's."""
        if not self.is_alone:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def sum_step(
        self, parameters: Iterable[Tensor], verdict: Tensor, nonfinite: int
    ) -> tuple[Tensor, bool]:
        """Sum the gradients of all workers in place, and their verdicts.

        Args:
            parameters: those that are trained; one without a gradient counts as zeros.
            verdict: a few numbers, shape [V], on the parameters' device.
            nonfinite: which of them becomes 1 if a gradient of this worker is not finite.

        Returns:
            The summed verdict, shape [V]; and whether this worker's own gradients are finite.
        """
        assert not self.is_alone
        buckets = list(_buckets(parameters))
        is_finite = torch.ones((), dtype=torch.bool, device=verdict.device)
        for bucket in buckets:
            gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in bucket]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            is_finite &= torch.isfinite(flat.sum())
            if bucket is buckets[-1]:  # by now all gradients have been looked at
                verdict[nonfinite] = torch.maximum(
                    verdict[nonfinite], (~is_finite).to(verdict.dtype)
                )
                flat = torch.cat([flat, verdict.to(flat.dtype)])
            dist.all_reduce(flat)
            start = 0
            for parameter in bucket:
                parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
                start += parameter.numel()
        return flat[-len(verdict) :], bool(is_finite)

    def sum_numbers(self, numbers: Sequence[float], device: torch.device) -> list[float]:
        """The sums over all workers."""
        if self.is_alone:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=_exchangeable(device))
        dist.all_reduce(total)
        return total.tolist()

    def gather_rows(self, rows: Tensor, num_total: int) -> Tensor:
        """The rows of all workers in their first order, where worker r had rows r, r + W, ...

        Args:
            rows: this worker's, shape [n, ...].
            num_total: N, over all workers.

        Returns:
            Shape [N, ...].
        """
        if self.is_alone:
            return rows
        here, rows = rows.device, rows.to("cuda" if dist.get_backend() == "nccl" else "cpu")
        longest = -(-num_total // self.world_size)
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(gathered, padded)
        interleaved = torch.stack(gathered, dim=1).flatten(0, 1)
        return interleaved[:num_total].to(here)


def _exchangeable(device: torch.device) -> torch.device:
    return device if device.type == "cuda" else torch.device("cpu")


def _buckets(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters together as far as a bucket goes: few large exchanges are faster than many."""
    bucket: list[Tensor] = []
    num_bytes = 0
    for parameter in parameters:
        if bucket and (
            num_bytes + parameter.nbytes > _BUCKET_BYTES or parameter.dtype != bucket[0].dtype
        ):
            yield bucket
            bucket, num_bytes = [], 0
        bucket.append(parameter)
        num_bytes += parameter.nbytes
    if bucket:
        yield bucket
