"""The `train` section of a workload that trains a network: the recipe, its guards and
checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ray_jobs.sections import Section, Share

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]


class GuardSpec(Section):
    """How much may go wrong before a run says so or stops."""

    nonfinite_in_a_row: Count = 10  # steps skipped in a row that stop the run
    nonfinite_share: Share = 0.05  # share of steps skipped that stops it, once 100 were tried
    bad_share_warning: Share = 0.05  # share of samples left out that is a warning
    bad_share_stop: Share = 0.20  # share of samples left out that stops the run

    @model_validator(mode="after")
    def _warns_first(self) -> GuardSpec:
        if self.bad_share_warning > self.bad_share_stop:
            raise ValueError(
                f"bad_share_warning={self.bad_share_warning:g} lies above "
                f"bad_share_stop={self.bad_share_stop:g}, so the run would stop without a warning; "
                "lower bad_share_warning"
            )
        return self


class CheckpointSpec(Section):
    """When to save within an epoch; at its end the run is always saved."""

    every_steps: Count | None = None
    every_minutes: Positive | None = 5.0


class AugmentationSpec(Section):
    """What a training picture goes through; the names are those of timm's `create_transform`."""

    scale: tuple[Positive, Positive] = (0.08, 1.0)  # of the picture's area that is cropped
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)  # width : height of the crop
    horizontal_flip: Probability = 0.5
    vertical_flip: Probability = 0.0
    color_jitter: NonNegative = 0.4  # of brightness, contrast, saturation; not with auto_augment
    auto_augment: str | None = None  # a policy of timm, e.g. rand-m9-mstd0.5-inc1
    random_erasing: Probability = 0.0

    @model_validator(mode="after")
    def _ranges(self) -> AugmentationSpec:
        for key in ("scale", "ratio"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key} goes from low to high, not from {low:g} to {high:g}")
        if self.scale[1] > 1:
            raise ValueError(
                f"scale is a share of the picture's area, but its end is {self.scale[1]:g}; "
                "set it to 1 or less"
            )
        return self


class TrainSpec(Section):
    """How a network is trained."""

    epochs: Count
    batch_size: Count  # samples of one optimizer step, over all workers
    micro_batch_size: Count | None = None  # samples held at once by a worker; default: all it has
    optimizer: str = "adamw"  # any of timm.optim.list_optimizers()
    learning_rate: Positive
    weight_decay: NonNegative = 0.05
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None  # learning rate, layer by layer
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: NonNegative = 0.0  # of `epochs`
    warmup_learning_rate: NonNegative = 1e-6  # at the start of warm-up
    min_learning_rate: NonNegative = 1e-6  # at the end of the cosine
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    focal_gamma: NonNegative = 2.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    imbalance: Literal["none", "sampler", "weighted_loss"] = "none"
    mixup: NonNegative = 0.0  # alpha of the Beta distribution; 0: off
    cutmix: NonNegative = 0.0  # likewise
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None  # of the averaged weights
    clip_grad_norm: Positive | None = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 on a GPU that has it
    channels_last: bool = False
    compile: bool = False
    patience: Count = 8  # epochs without an improvement before it stops
    checkpoint: CheckpointSpec = CheckpointSpec()
    guards: GuardSpec = GuardSpec()
    num_loader_workers: Annotated[int, Field(ge=0)] | None = None  # default: by the CPUs at hand
    augmentation: AugmentationSpec = AugmentationSpec()

    @property
    def mixes(self) -> bool:
        """Whether pictures are mixed, which makes the targets soft."""
        return self.mixup > 0 or self.cutmix > 0

    @model_validator(mode="after")
    def _sizes(self) -> TrainSpec:
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size={self.micro_batch_size} is more than "
                f"batch_size={self.batch_size}; lower it or leave it out"
            )
        smallest = min(self.batch_size, self.micro_batch_size or self.batch_size)
        if self.mixes and smallest < 2:
            key = "micro_batch_size" if self.micro_batch_size == 1 else "batch_size"
            raise ValueError(f"mixup and cutmix mix pairs of pictures; set {key} to 2 or more")
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> TrainSpec:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs:g} leaves nothing of epochs={self.epochs}; "
                "set warmup_epochs below epochs"
            )
        floors = {
            "warmup_learning_rate": self.warmup_epochs > 0,
            "min_learning_rate": self.schedule == "cosine",
        }
        for key, is_used in floors.items():
            if is_used and getattr(self, key) > self.learning_rate:
                raise ValueError(
                    f"{key}={getattr(self, key):g} is above "
                    f"learning_rate={self.learning_rate:g}; lower it"
                )
        return self

    @model_validator(mode="after")
    def _loss_fits_targets(self) -> TrainSpec:
        mixing = " and ".join(key for key in ("mixup", "cutmix") if getattr(self, key) > 0)
        if self.loss == "focal" and mixing:
            raise ValueError(
                f"loss=focal needs one class a picture, but under {mixing} it has shares of "
                f"two; set loss=cross_entropy, or {_zero(mixing)}"
            )
        if self.loss == "focal" and self.label_smoothing > 0:
            raise ValueError(
                "loss=focal needs one class a picture, but under label_smoothing it has shares "
                "of all; set loss=cross_entropy, or label_smoothing=0"
            )
        if self.imbalance == "weighted_loss" and mixing:
            raise ValueError(
                f"imbalance=weighted_loss needs one class a picture, but under {mixing} it has "
                f"shares of two; set imbalance=sampler, or {_zero(mixing)}"
            )
        return self


def _zero(keys: str) -> str:
    return " and ".join(f"{key}=0" for key in keys.split(" and "))
