"""The task of naming the class of a picture."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ray_jobs.class_predictions import ClassPredictions
from ray_jobs.data.dataset import SPLITS
from ray_jobs.data.images.loader import (
    Pictures,
    TrainingBatches,
    scoring_batches,
    start_process_server,
)
from ray_jobs.data.images.manifest import PictureRows, load_manifest
from ray_jobs.errors import PreflightError
from ray_jobs.models.image_bundle import write_image_bundle
from ray_jobs.models.image_classifier import (
    ImageInput,
    build_image_classifier,
    enable_gradient_checkpointing,
    image_input,
)
from ray_jobs.models.image_transforms import check_output, eval_transform, train_transform
from ray_jobs.multiclass import multiclass_metrics
from ray_jobs.result import DataSummary
from ray_jobs.storage import Storage
from ray_jobs.training.batch import Batch
from ray_jobs.training.guards import check_outputs
from ray_jobs.training.learning import BatchSource, Learning
from ray_jobs.training.recipe import make_recipe, prepare_model, sampler_weights, scoring_autocast
from ray_jobs.training.replicas import Replicas
from ray_jobs.training.task import NetworkTask, num_loader_processes

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from ray_jobs.workloads.waste import WasteSpec

_LESS_MEMORY = (
    "set model.gradient_checkpointing=true or train.precision=bf16, or take a smaller model.name "
    "or model.image_size"
)


class ImageClassification(NetworkTask):
    """Trains any timm model on the pictures of a manifest.

    Args:
        num_cpus: of this worker.
    """

    def __init__(
        self,
        spec: WasteSpec,
        data: DataSummary,
        storage: Storage,
        device: torch.device,
        num_cpus: int,
    ):
        self._spec, self._classes = spec, data.classes
        self._manifest = load_manifest(storage, data)
        self._replicas = Replicas()
        self.device = device
        self._num_processes = num_loader_processes(spec.train, num_cpus)
        if self._num_processes:
            start_process_server()
        self._input: ImageInput
        self.notes: list[str] = []

    def build(self, *, weights: bool) -> nn.Module:
        model = self._spec.model
        network = build_image_classifier(model, len(self._classes), weights=weights)
        self._input = image_input(network, model)
        if model.gradient_checkpointing:
            reason = enable_gradient_checkpointing(network, self.device)
            if reason:
                self.notes.append(reason)
        return prepare_model(network, self._spec.train, self.device)

    def prepare(self, network: nn.Module) -> tuple[BatchSource, Learning]:
        train, rows = self._spec.train, self._manifest.rows("train")
        seed, replicas = self._spec.seed, self._replicas
        batches = TrainingBatches(
            self._pictures(rows, for_training=True),
            min(train.batch_size, len(rows)),
            seed,
            train.epochs,
            replicas.rank,
            replicas.world_size,
            self._num_processes,
            sampler_weights(rows.label.tolist()) if train.imbalance == "sampler" else None,
            pin_memory=self.device.type == "cuda",
        )
        recipe = make_recipe(
            network,
            train,
            num_classes=len(self._classes),
            steps_per_epoch=batches.num_batches,
            device=self.device,
            class_counts=np.bincount(rows.label, minlength=len(self._classes)).tolist(),
        )
        is_hard = recipe.mixup is None  # mixed pictures have no class to be right about

        def loss(network: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
            images, labels = recipe.mix(batch.tensors["image"], batch.tensors["label"])
            if train.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            logits = network(images)
            metrics = []
            if is_hard:
                metrics.append((logits.detach().argmax(dim=1) == labels).float().mean())
            return recipe.train_loss_fn(logits, labels), metrics

        learning = recipe.learning(
            train,
            loss,
            batch_size=-(-batches.batch_size // replicas.world_size),
            metrics=("accuracy",) if is_hard else (),
            less_memory=_LESS_MEMORY,
        )
        return batches, learning

    def validate(self, network: nn.Module) -> dict[str, float]:
        p = self._probabilities(network, self._val, self._val_batches)
        seen = np.isfinite(p[:, 0])
        metrics = multiclass_metrics(self._val.label[seen], p[seen])
        objective = self._spec.objective.metric
        return {
            "val_loss": metrics["log_loss"],
            "val_accuracy": metrics["accuracy"],
            objective: metrics[objective],
        }

    def predict(self, network: nn.Module, split: str) -> ClassPredictions:
        """P(class) of every picture of a split that can be read."""
        rows = self._manifest.rows(split)
        p = self._probabilities(network, rows, self._scoring(rows))
        seen = np.isfinite(p[:, 0])
        if not seen.all():
            self.notes.append(
                f"{int((~seen).sum())} of {len(rows)} pictures of {split} could not be read and "
                "are left out of its scores"
            )
        return ClassPredictions(
            rows.row_id[seen], rows.label[seen], rows.group[seen], p[seen], tuple(self._classes)
        )

    def write(self, network: nn.Module, folder: Path) -> None:
        write_image_bundle(folder, network, self._spec.model, self._classes, self._input)

    def check_labels(self) -> str:
        num_classes = len(self._classes)
        for split in SPLITS:
            rows = self._manifest.rows(split)
            wrong = rows.label[(rows.label < 0) | (rows.label >= num_classes)]
            if len(wrong):
                raise PreflightError(
                    f"{len(wrong)} of {len(rows)} labels of {split} are not in "
                    f"0..{num_classes - 1} ({wrong.min()} to {wrong.max()}), the numbers of "
                    "data.classes; delete the dataset's folder and run again"
                )
        return f"0..{num_classes - 1} in every split"

    def check_transforms(self) -> str:
        check_output(train_transform(self._input, self._spec.train.augmentation), self._input)
        check_output(eval_transform(self._input), self._input)
        size = self._input.image_size
        return f"{size} x {size} px in training and scoring, as model.image_size"

    def check_batch(self, batch: Batch) -> str:
        images, labels = batch.tensors["image"], batch.tensors["label"]
        size = self._input.image_size
        wanted = (len(batch), 3, size, size)
        if tuple(images.shape) != wanted or images.dtype != torch.float32:
            raise PreflightError(
                f"the first batch is {images.dtype} of shape {list(images.shape)}, but the network "
                f"takes torch.float32 of {list(wanted)}; set model.image_size to what its "
                "transform gives"
            )
        if labels.dtype != torch.int64:
            raise PreflightError(
                f"the labels of the first batch are {labels.dtype}, but the loss takes torch.int64"
            )
        bad = int((~torch.isfinite(images)).flatten(1).any(dim=1).sum())
        if bad:
            raise PreflightError(
                f"{bad} of the first {len(batch)} pictures have values that are not finite; look "
                "at train.augmentation"
            )
        unread = f", {len(batch.failed)} more cannot be read" if batch.failed else ""
        return f"{list(images.shape)} float32, labels int64{unread}"

    def check_output(self, output: Any, batch: Batch) -> None:
        shape, wanted = list(getattr(output, "shape", [])), [len(batch), len(self._classes)]
        if shape != wanted:
            raise PreflightError(
                f"the network gives {shape} for {len(batch)} pictures of {len(self._classes)} "
                f"classes, not {wanted}; set model.name to a classifier"
            )

    def _probabilities(
        self, network: nn.Module, rows: PictureRows, batches: Iterable[Batch]
    ) -> NDArray[np.float64]:
        """P(class), shape [N, C] in the order of the rows; NaN where a picture cannot be read."""
        replicas = self._replicas
        mine = rows.row_id[replicas.rank :: replicas.world_size].tolist()
        position = {row_id: number for number, row_id in enumerate(mine)}
        p = torch.full((len(mine), len(self._classes)), torch.nan, dtype=torch.float64)
        network.eval()
        with torch.inference_mode():
            for batch in batches:
                if not len(batch):
                    continue
                with scoring_autocast(self._spec.train, self.device):
                    logits = network(batch.to(self.device).tensors["image"])
                check_outputs(logits)
                p[[position[row] for row in batch.ids]] = torch.softmax(logits.double(), 1).cpu()
        return replicas.gather_rows(p, len(rows)).numpy()

    @cached_property
    def _val(self) -> PictureRows:
        return self._manifest.rows("val")

    @cached_property
    def _val_batches(self) -> DataLoader:
        return self._scoring(self._val)

    def _scoring(self, rows: PictureRows) -> DataLoader:
        return scoring_batches(
            self._pictures(rows, for_training=False),
            self._spec.train.micro_batch_size or self._spec.train.batch_size,
            rank=self._replicas.rank,
            world_size=self._replicas.world_size,
            num_processes=self._num_processes,
            pin_memory=self.device.type == "cuda",
        )

    def _pictures(self, rows: PictureRows, *, for_training: bool) -> Pictures:
        transform = (
            train_transform(self._input, self._spec.train.augmentation)
            if for_training
            else eval_transform(self._input)
        )
        seed = self._spec.seed if for_training else None
        size, max_pixels = self._input.image_size, self._spec.data.max_pixels
        return Pictures(rows, transform, size, max_pixels, seed)
