"""The recipe a network is trained by: timm's optimizer, schedule, averaged weights and mixing.

Imports torch and timm: for the code that trains, not for what reads a job description.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ray_jobs.errors import PreflightError, SpecError
from ray_jobs.training.learning import Learning, Loss
from ray_jobs.training.losses import CrossEntropy, FocalLoss
from ray_jobs.training.spec import TrainSpec

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Recipe:
    """What the loop needs for a step, apart from the network and its batches.

    The learning rates are a function of the number of updates alone: after each, and after a
    restart, `scheduler.step_update(num_updates)` sets those of the next. `ema.update(network,
    step=num_updates)` likewise.
    """

    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    ema: ModelEmaV3 | None
    autocast: Callable[[], AbstractContextManager[Any]]
    scaler: torch.amp.GradScaler | None  # fp16 alone needs one
    train_loss_fn: nn.Module  # (logits [N, K], what `mix` gave) -> mean over the samples
    mixup: Mixup | None
    precision: str  # the one "auto" came to: fp32, bf16 or fp16

    def mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [N, 3, H, W], mixed in place, and their targets: [N], or mixed [N, K].

        timm mixes even batches alone, so the last picture of an odd one stays as it is. Draws from
        torch's generator.
        """
        if self.mixup is None:
            return images, targets
        # The loop seeds torch for each step; timm draws from numpy.
        np.random.seed(int(torch.randint(2**31, ())))
        num_paired = len(images) - len(images) % 2
        smoothing, num_classes = self.mixup.label_smoothing, self.mixup.num_classes
        mixed = [mixup_target(targets[num_paired:], num_classes, smoothing=smoothing)]
        if num_paired:
            mixed.insert(0, self.mixup(images[:num_paired], targets[:num_paired])[1])
        return images, torch.cat(mixed)

    def learning(
        self,
        spec: TrainSpec,
        loss: Loss,
        *,
        batch_size: int,
        metrics: tuple[str, ...],
        less_memory: str,
    ) -> Learning:
        """What the loop takes: this recipe, the rest of its `train` section, and a task's loss."""
        return Learning(
            loss=loss,
            optimizer=self.optimizer,
            epochs=spec.epochs,
            patience=spec.patience,
            batch_size=batch_size,
            micro_batch_size=spec.micro_batch_size,
            metrics=metrics,
            set_learning_rate=self.scheduler.step_update,
            clip_grad_norm=spec.clip_grad_norm,
            autocast=self.autocast,
            scaler=self.scaler,
            ema=self.ema,
            guards=spec.guards,
            checkpoint=spec.checkpoint,
            less_memory=less_memory,
        )


def make_recipe(
    model: nn.Module,
    spec: TrainSpec,
    *,
    num_classes: int,
    steps_per_epoch: int,
    device: torch.device,
    class_counts: Sequence[int] | None = None,
) -> Recipe:
    """The recipe of a `train` section for a model that `prepare_model` has prepared.

    The schedule rises linearly from `warmup_learning_rate` to `learning_rate` over `warmup_epochs`,
    then falls along half a cosine (Loshchilov & Hutter 2017) to `min_learning_rate` at the end of
    `epochs`, or stays. Under `layer_decay` (BEiT, Bao et al. 2022) a layer's rate is scaled by
    layer_decay^(layers above it). The averaged weights follow closely at first: their decay is
    1 - (1 + updates)^(-2/3), at most `ema_decay`.

    Args:
        steps_per_epoch: optimizer steps.
        class_counts: training pictures of each class; needed for imbalance=weighted_loss.

    Raises:
        SpecError: there is no such optimizer, or it needs second derivatives.
        PreflightError: the device lacks the precision, or what the optimizer needs.
    """
    assert steps_per_epoch > 0, "an epoch without a step"
    precision = choose_precision(spec, device)
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    if precision != "fp32":
        autocast = partial(torch.autocast, device.type, dtype=_DTYPES[precision])
    optimizer = _make_optimizer(model, spec)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=spec.schedule,
        num_epochs=spec.epochs - spec.warmup_epochs,  # type: ignore[arg-type] # in steps below
        warmup_epochs=spec.warmup_epochs,  # type: ignore[arg-type]
        warmup_lr=spec.warmup_learning_rate,
        warmup_prefix=True,
        min_lr=spec.min_learning_rate,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    assert scheduler is not None
    mixup = None
    if spec.mixes:
        mixup = Mixup(
            spec.mixup,
            spec.cutmix,
            label_smoothing=spec.label_smoothing,
            num_classes=num_classes,
        )
    ema = None
    if spec.ema_decay is not None:
        ema = ModelEmaV3(model, decay=spec.ema_decay, use_warmup=True)
    return Recipe(
        optimizer=optimizer,
        scheduler=scheduler,
        ema=ema,
        autocast=autocast,
        scaler=torch.amp.GradScaler(device.type) if precision == "fp16" else None,
        train_loss_fn=_make_loss(spec, num_classes, class_counts).to(device),
        mixup=mixup,
        precision=precision,
    )


def prepare_model(model: nn.Module, spec: TrainSpec, device: torch.device) -> nn.Module:
    """The model on its device, in its memory format, compiled if the spec says so."""
    model = model.to(device)
    if spec.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if spec.compile:
        model.compile()  # in place: the names of its weights stay
    return model


def choose_precision(spec: TrainSpec, device: torch.device) -> str:
    """fp32, bf16 or fp16.

    Raises:
        PreflightError: the device lacks the precision that the spec names.
    """
    is_gpu = device.type == "cuda"
    gpu_has_bf16 = is_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if spec.precision == "auto":
        return "bf16" if gpu_has_bf16 else "fp32"
    if spec.precision == "bf16" and is_gpu and not gpu_has_bf16:
        raise PreflightError(
            f"train.precision=bf16, but {torch.cuda.get_device_name(device)} has no bf16; set "
            "train.precision=fp16 or fp32"
        )
    if spec.precision == "fp16" and not is_gpu:
        raise PreflightError(
            f"train.precision=fp16 needs an NVIDIA GPU, but the device is {device.type}; set "
            "train.precision=auto"
        )
    return spec.precision


def scoring_autocast(spec: TrainSpec, device: torch.device) -> AbstractContextManager[Any]:
    """As in training, but for fp16, which needs a loss scale to be worth it."""
    if choose_precision(spec, device) == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def class_weights(counts: Sequence[int]) -> list[float]:
    """The weight of each class, inverse to its samples and 1 on average over all samples.

    A class without a sample weighs 0.
    """
    num_present = sum(count > 0 for count in counts)
    return [sum(counts) / (num_present * count) if count else 0.0 for count in counts]


def sampler_weights(labels: Iterable[int]) -> list[float]:
    """The weight of each sample with which all classes present are drawn equally often."""
    labels = list(labels)
    counts = Counter(labels)
    return [1 / counts[label] for label in labels]


def _make_optimizer(network: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    name, known = spec.optimizer.lower(), [str(each) for each in list_optimizers()]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        guess = f" (near it: {', '.join(near)})" if near else ""
        raise SpecError(
            f"timm has no optimizer {spec.optimizer!r}{guess}; set train.optimizer to one of "
            "timm.optim.list_optimizers()"
        )
    if get_optimizer_info(name).second_order:
        raise SpecError(
            f"train.optimizer={spec.optimizer} needs second derivatives, which the loop does not "
            "take; set train.optimizer=adamw"
        )
    try:
        return create_optimizer_v2(
            network,
            opt=name,
            lr=spec.learning_rate,
            weight_decay=spec.weight_decay,
            layer_decay=spec.layer_decay,
        )
    except (AssertionError, ImportError) as error:  # of APEX and bitsandbytes
        raise PreflightError(
            f"train.optimizer={spec.optimizer} cannot be used here ({error}); set "
            "train.optimizer=adamw"
        ) from None


def _make_loss(
    spec: TrainSpec, num_classes: int, class_counts: Sequence[int] | None
) -> CrossEntropy | FocalLoss:
    weights = None
    if spec.imbalance == "weighted_loss":
        assert class_counts is not None, "imbalance=weighted_loss weighs by class_counts"
        assert len(class_counts) == num_classes, "one count a class"
        weights = torch.tensor(class_weights(class_counts))
    if spec.loss == "focal":
        return FocalLoss(spec.focal_gamma, weights)
    # Mixup smooths the labels itself, before it mixes them.
    return CrossEntropy(0.0 if spec.mixes else spec.label_smoothing, weights)
