"""ImageBundle: a trained image classifier as one folder that predicts, and nothing in it is a
pickle.

    bundle.json             workload, architecture, classes, input, sha256 of the weights
    weights.safetensors
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ray_jobs.models.bundle_files import read_network, write_network
from ray_jobs.models.image_classifier import ImageInput, ImageModelSpec, build_image_classifier

if TYPE_CHECKING:
    from torch import Tensor, nn

WORKLOAD = "waste"


class ImageBundle:
    """A loaded classifier of pictures."""

    def __init__(self, network: nn.Module, classes: tuple[str, ...], image: ImageInput):
        from ray_jobs.models.image_transforms import eval_transform

        self.network, self.classes, self.image = network, classes, image
        self._transform = eval_transform(image)

    def predict_proba(
        self, contents: Sequence[bytes], *, max_pixels: int = 50_000_000
    ) -> NDArray[np.float64]:
        """P(class) of pictures given as the bytes of their files, shape [N, C].

        Raises:
            BadPicture: one of them cannot be decoded.
        """
        import torch

        pictures = [self.prepare(content, max_pixels=max_pixels) for content in contents]
        return self.predict_prepared(torch.stack(pictures))

    def prepare(self, content: bytes, *, max_pixels: int = 50_000_000) -> Tensor:
        """The network's input, float32 [3, S, S], from the bytes of a picture's file.

        Raises:
            BadPicture: it cannot be decoded.
        """
        from ray_jobs.data.images.decode import decode

        return self._transform(decode(content, max_pixels=max_pixels)[0])

    def predict_prepared(self, pictures: Tensor) -> NDArray[np.float64]:
        """P(class), [N, C], of inputs [N, 3, S, S]."""
        import torch

        with torch.inference_mode():
            return torch.softmax(self.network(pictures).double(), dim=1).numpy()


def write_image_bundle(
    folder: Path,
    network: nn.Module,
    spec: ImageModelSpec,
    classes: Sequence[str],
    image: ImageInput,
) -> None:
    """Write a bundle into an existing folder."""
    about = {
        "workload": WORKLOAD,
        "model": spec.model_dump(mode="json"),
        "classes": list(classes),
        "image": asdict(image),
    }
    write_network(folder, network, about)


def load_image_bundle(folder: Path) -> ImageBundle:
    """Check the weights' digest, then load.

    Raises:
        JobFailed: a file is missing or altered; names it.
    """
    index, weights = read_network(folder)
    spec = ImageModelSpec.model_validate(index["model"])
    network = build_image_classifier(spec, len(index["classes"]), weights=False)
    network.load_state_dict(weights)
    network.eval()
    return ImageBundle(network, tuple(index["classes"]), ImageInput(**index["image"]))
