"""Any image model of timm as a classifier, at the size and with the weights that a spec asks for.

torch and timm are imported in the functions, so that a job description is parsed without them.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ray_jobs.errors import PreflightError, SpecError
from ray_jobs.sections import Section

if TYPE_CHECKING:
    import torch
    from timm.models import PretrainedCfg
    from torch import nn

DropRate = Annotated[float, Field(ge=0, lt=1)]


class ImageModelSpec(Section):
    """The `model` section of a workload on pictures."""

    name: str  # of timm, with a tag of weights (`x.y`) or without
    pretrained: bool = True
    image_size: Annotated[int, Field(ge=1)] = 224  # pixels a side; every transform reads it here
    interpolate_positions: bool = False  # resize position embeddings to another image_size
    drop_rate: DropRate | None = None  # default: the model's own, mostly 0
    drop_path_rate: DropRate | None = None  # likewise
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class ImageInput:
    """What a model takes, and all that a transform must know; equal after a round trip in JSON."""

    image_size: int  # pixels a side
    mean: tuple[float, ...]  # of each channel, pictures in 0..1
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float  # image_size / side of the resized picture that it is cropped from
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        for key in ("mean", "std"):
            object.__setattr__(self, key, tuple(getattr(self, key)))


def build_image_classifier(
    spec: ImageModelSpec, num_classes: int, *, weights: bool = True
) -> nn.Module:
    """A timm model of `num_classes` logits, on the CPU.

    Args:
        weights: load the pretrained weights if the spec asks for them; False: the architecture
            alone, for a checkpoint that will be loaded.

    Raises:
        SpecError: timm has no such model or weights, or the model does not take `image_size`.
        PreflightError: the weights cannot be downloaded.
    """
    import timm

    config = _find_config(spec.name)
    args = _model_args(spec, config) | {"num_classes": num_classes}
    pretrained = weights and spec.pretrained
    if pretrained and not config.has_weights:
        raise SpecError(
            f"timm has no weights of {spec.name}; set model.pretrained=false, or model.name to one "
            f"that has{_nearest(spec.name, timm.list_pretrained())}"
        )
    _try_out(spec, config, args)
    if not pretrained:
        return timm.create_model(spec.name, **args)
    return _with_weights(spec, config, args)


def image_input(model: nn.Module, spec: ImageModelSpec) -> ImageInput:
    """The input that a model built from `spec` was pretrained on, at the spec's size."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    return ImageInput(
        image_size=spec.image_size,
        mean=config["mean"],
        std=config["std"],
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
    )


def enable_gradient_checkpointing(model: nn.Module, device: torch.device) -> str | None:
    """Trade time for memory; returns why not, where it cannot be done."""
    if device.type == "mps":
        return "gradient checkpointing crashes on MPS; it is left off"
    unsupported = f"{type(model).__name__} does not support gradient checkpointing; it is left off"
    enable = getattr(model, "set_grad_checkpointing", None)
    if enable is None:
        return unsupported
    try:
        enable(True)
    except AssertionError:  # how timm's models say that they cannot
        return unsupported
    return None


def _find_config(name: str) -> PretrainedCfg:
    """timm's entry of a model: its input and where its weights are."""
    import timm
    from timm.models import get_deprecated_models, get_pretrained_cfg, split_model_name_tag

    architecture, tag = split_model_name_tag(name)
    renamed = get_deprecated_models().get(architecture)
    if renamed:
        raise SpecError(f"timm calls the model {architecture} {renamed} now; set model.name to it")
    if not timm.is_model(architecture):
        raise SpecError(
            f"timm has no model {architecture!r}{_nearest(architecture, timm.list_models())}; set "
            "model.name to one of timm.list_models()"
        )
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        known = f"has {', '.join(tagged)}" if tagged else "has none"
        raise SpecError(
            f"timm has no weights {tag!r} of {architecture}, it {known}; set model.name to one of "
            f"these, or to {architecture}"
        )
    config = get_pretrained_cfg(name)
    assert config is not None, f"{name} is registered without a configuration"
    return config


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f" (near it: {', '.join(near)})" if near else ""


def _model_args(spec: ImageModelSpec, config: PretrainedCfg) -> dict[str, Any]:
    """Arguments for timm's create_model; img_size only where it differs from the model's own."""
    args: dict[str, Any] = {"drop_rate": spec.drop_rate, "drop_path_rate": spec.drop_path_rate}
    own_size = config.input_size[-1]
    if config.fixed_input_size and spec.image_size != own_size:
        if not spec.interpolate_positions:
            raise SpecError(
                f"{spec.name} takes {own_size} px pictures, but model.image_size is "
                f"{spec.image_size}; set model.image_size={own_size}, or "
                "model.interpolate_positions=true to resize its position embeddings"
            )
        args["img_size"] = spec.image_size
    return {key: value for key, value in args.items() if value is not None}


def _try_out(spec: ImageModelSpec, config: PretrainedCfg, args: dict[str, Any]) -> None:
    """Put one picture through the architecture without memory, before weights are downloaded.

    Raises:
        SpecError: the model takes no such argument or no picture of this size.
    """
    import timm
    import torch

    size = spec.image_size
    try:
        with torch.device("meta"), torch.inference_mode():
            model = timm.create_model(spec.name, **args).eval()
            model(torch.zeros(1, 3, size, size))
    except TypeError as error:  # the model's __init__ names the argument that it lacks
        refused = [key for key in ("drop_rate", "drop_path_rate") if f"'{key}'" in str(error)]
        if not refused:
            raise
        raise SpecError(
            f"{spec.name} takes no {refused[0]}; leave model.{refused[0]} out"
        ) from None
    except (AssertionError, RuntimeError, ValueError) as error:
        raise SpecError(
            f"{spec.name} takes no pictures of model.image_size={size} ({_brief(error)}); its own "
            f"size is {config.input_size[-1]}"
        ) from None


def _with_weights(spec: ImageModelSpec, config: PretrainedCfg, args: dict[str, Any]) -> nn.Module:
    import timm
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        if config.hf_hub_id:
            # Fails at once where neither hub nor cache is there; timm would retry for a minute.
            repository, _, revision = config.hf_hub_id.partition("@")
            snapshot_download(repository, revision=revision or None, allow_patterns=["config.json"])
        return timm.create_model(spec.name, pretrained=True, **args)
    except (OSError, HTTPError) as error:
        raise PreflightError(_unreachable(spec.name, config, error)) from None
    except RuntimeError as error:  # of load_state_dict
        raise SpecError(
            f"the pretrained weights of {spec.name} do not fit it at "
            f"model.image_size={spec.image_size} ({_brief(error)}); set "
            f"model.image_size={config.input_size[-1]}"
        ) from None


def _unreachable(name: str, config: PretrainedCfg, error: BaseException) -> str:
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    while error.__cause__ is not None:
        error = error.__cause__
    cause = _brief(getattr(error, "reason", error))  # urllib wraps what went wrong
    if config.hf_hub_id:
        host, cache = urlsplit(str(constants.ENDPOINT)).hostname, "HF_HOME"
    else:
        host, cache = urlsplit(str(config.url)).hostname, "TORCH_HOME"
    return (
        f"the pretrained weights of {name} cannot be downloaded ({cause}); connect to {host}, put "
        f"them into the cache that {cache} names, or train from scratch with "
        "--set model.pretrained=false"
    )


def _brief(error: object) -> str:
    """The first line of an error's message that says something."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__).rstrip(".")
