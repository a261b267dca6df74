"""The training loop: epochs of optimizer steps, a validation after each, the best weights at the
end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ray_jobs.errors import JobFailed
from ray_jobs.models.base import FitContext, FitReport
from ray_jobs.training.early_stopping import EarlyStopping

MAX_GRAD_NORM = 1.0


def fit(
    network: nn.Module,
    *,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
    epochs: int,
    patience: int,
    train_losses: Callable[[int], Iterable[Tensor]],
    validate: Callable[[], dict[str, float]],
    context: FitContext,
) -> FitReport:
    """Train `network` in place and leave it with the weights of its best epoch.

    Args:
        train_losses: for an epoch (from 1), the loss of each batch in turn; each is backpropagated
            before the next.
        validate: the validation metrics; must hold the objective.
        scheduler: stepped after every optimizer step.

    Raises:
        JobFailed: a loss or gradient is not finite.
    """
    stopping = EarlyStopping(context.objective, patience)
    history: list[dict[str, Any]] = []
    best_weights: dict[str, Tensor] = {}
    for epoch in range(1, epochs + 1):
        started = time.monotonic()
        network.train()
        total, num_batches = 0.0, 0
        for loss in train_losses(epoch):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = float(nn.utils.clip_grad_norm_(network.parameters(), MAX_GRAD_NORM))
            if not math.isfinite(norm):
                raise JobFailed(
                    f"the loss or its gradient became {norm} in epoch {epoch}; "
                    "lower the learning_rate"
                )
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            total += float(loss.detach())
            num_batches += 1
        network.eval()
        with torch.inference_mode():
            metrics = validate()
        if stopping.update(epoch, metrics):
            best_weights = {key: value.clone() for key, value in network.state_dict().items()}
        entry = {
            "epoch": epoch,
            "train_loss": total / max(num_batches, 1),
            **metrics,
            "learning_rate": optimizer.param_groups[0]["lr"],
            "seconds": round(time.monotonic() - started, 3),
        }
        history.append(entry)
        context.emit(
            "epoch",
            epoch=epoch,
            num_epochs=epochs,
            metrics=metrics,
            train_loss=entry["train_loss"],
            best=stopping.best,
            patience=f"{stopping.num_bad_epochs}/{patience}",
            learning_rate=entry["learning_rate"],
        )
        if stopping.should_stop:
            break
    if not best_weights:
        raise JobFailed(f"{context.objective.metric} was never finite; lower the learning_rate")
    network.load_state_dict(best_weights)
    network.eval()
    return FitReport(
        history=history,
        best_epoch=stopping.best_epoch,
        num_epochs=len(history),
        num_parameters=sum(p.numel() for p in network.parameters()),
        degenerate=stopping.is_degenerate,
    )
