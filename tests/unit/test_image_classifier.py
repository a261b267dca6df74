from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from ray_jobs.errors import PreflightError, SpecError
from ray_jobs.models.image_classifier import (
    ImageInput,
    ImageModelSpec,
    build_image_classifier,
    enable_gradient_checkpointing,
    image_input,
)

CPU = torch.device("cpu")
REFUSED = f"[Errno {errno.ECONNREFUSED}] {os.strerror(errno.ECONNREFUSED)}"


def spec(name: str = "test_resnet", **keys: object) -> ImageModelSpec:
    return ImageModelSpec.model_validate({"name": name, "pretrained": False, **keys})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that nobody answers at."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    return cache


def cache_weights(hub: Path, name: str, model: nn.Module) -> None:
    """What huggingface_hub leaves behind when it has downloaded a model."""
    folder = hub / f"models--timm--{name}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    (snapshot / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("test_resnet", {"image_size": 48}),
        ("test_resnet.r160_in1k", {"image_size": 33, "drop_rate": 0.1, "drop_path_rate": 0.1}),
        ("test_vit", {"image_size": 160}),
        ("test_vit3", {"image_size": 64, "interpolate_positions": True}),
    ],
)
def test_a_model_takes_pictures_of_its_size_and_learns(name: str, keys: dict[str, object]) -> None:
    built = spec(name, **keys)
    model = build_image_classifier(built, 5)
    logits = model(torch.randn(2, 3, built.image_size, built.image_size))
    assert logits.shape == (2, 5)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_drop_rates_are_the_models_own_unless_set() -> None:
    own = build_image_classifier(spec(image_size=64), 2)
    dropping = build_image_classifier(spec(image_size=64, drop_rate=0.25), 2)
    assert (own.drop_rate, dropping.drop_rate) == (0.0, 0.25)


def test_building_draws_nothing_beyond_the_weights() -> None:
    torch.manual_seed(0)
    expected = timm.create_model("test_resnet", num_classes=3).state_dict()
    torch.manual_seed(0)
    built = build_image_classifier(spec(image_size=64), 3).state_dict()
    assert all(torch.equal(built[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"name": "eva02_base_pach14_224"},
            "timm has no model 'eva02_base_pach14_224' (near it: eva02_base_patch14_224, "
            "eva02_base_patch14_448, eva02_large_patch14_224); set model.name to one of "
            "timm.list_models()",
        ),
        (
            {"name": "hf-hub:timm/x"},
            "timm has no model 'hf-hub:timm/x'; set model.name to one of timm.list_models()",
        ),
        (
            {"name": "eva02_base_patch14_224.in1k"},
            "timm has no weights 'in1k' of eva02_base_patch14_224, it has "
            "eva02_base_patch14_224.mim_in22k; set model.name to one of these, or to "
            "eva02_base_patch14_224",
        ),
        (
            {"name": "resnet51q.x", "pretrained": True},
            "timm has no weights 'x' of resnet51q, it has resnet51q.ra2_in1k; set model.name to "
            "one of these, or to resnet51q",
        ),
        (
            {"name": "convnext_tiny_in22ft1k"},
            "timm calls the model convnext_tiny_in22ft1k convnext_tiny.fb_in22k_ft_in1k now; set "
            "model.name to it",
        ),
        (
            {"name": "botnet50ts_256", "image_size": 256, "pretrained": True},
            "timm has no weights of botnet50ts_256; set model.pretrained=false, or model.name to "
            "one that has (near it: halo2botnet50ts_256.a1h_in1k, lamhalobotnet50ts_256.a1h_in1k, "
            "botnet26t_256.c1_in1k)",
        ),
        (
            {"name": "eva02_base_patch14_224", "image_size": 448},
            "eva02_base_patch14_224 takes 224 px pictures, but model.image_size is 448; set "
            "model.image_size=224, or model.interpolate_positions=true to resize its position "
            "embeddings",
        ),
        (
            {"name": "test_vit", "image_size": 50, "interpolate_positions": True},
            "test_vit takes no pictures of model.image_size=50 (Input height (50) should be "
            "divisible by patch size (16)); its own size is 160",
        ),
        (
            {"name": "test_convnext", "image_size": 8},
            "test_convnext takes no pictures of model.image_size=8 (Calculated padded input size "
            "per channel: (1 x 1). Kernel size: (2 x 2). Kernel size can't be greater than actual "
            "input size); its own size is 160",
        ),
        (
            {"name": "vgg11", "drop_path_rate": 0.1},
            "vgg11 takes no drop_path_rate; leave model.drop_path_rate out",
        ),
    ],
)
def test_a_model_that_cannot_be_is_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as raised:
        build_image_classifier(spec(**keys), 5)  # type: ignore[arg-type]
    assert str(raised.value) == message


def test_positions_are_resized_to_the_spec() -> None:
    with torch.device("meta"):
        model = build_image_classifier(
            spec("eva02_base_patch14_224", image_size=448, interpolate_positions=True), 30
        )
    assert model.pos_embed.shape == (1, 1 + (448 // 14) ** 2, 768)


def test_a_model_that_cannot_be_resized_is_refused() -> None:
    # Takes an img_size and has no use for it.
    with pytest.raises(SpecError) as raised:
        build_image_classifier(
            spec("efficientformer_l1", image_size=448, interpolate_positions=True), 5
        )
    message = str(raised.value)
    assert message.startswith("efficientformer_l1 takes no pictures of model.image_size=448 (")
    assert message.endswith("; its own size is 224")


def test_weights_out_of_reach_are_told_at_once(hub: Path) -> None:
    with pytest.raises(PreflightError) as raised:
        build_image_classifier(spec(image_size=64, pretrained=True), 5)
    assert str(raised.value) == (
        f"the pretrained weights of test_resnet cannot be downloaded ({REFUSED}); "
        "connect to 127.0.0.1, put them into the cache that HF_HOME names, or train "
        "from scratch with --set model.pretrained=false"
    )
    assert raised.value.exit_code == 3
    build_image_classifier(spec(image_size=64, pretrained=True), 5, weights=False)


def test_weights_outside_the_hub_are_told_likewise(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr("urllib.request._opener", None)  # it keeps the proxies of its first use
    with pytest.raises(PreflightError) as raised:
        build_image_classifier(spec("gcvit_xxtiny", pretrained=True), 5)
    assert str(raised.value) == (
        f"the pretrained weights of gcvit_xxtiny cannot be downloaded ({REFUSED}); "
        "connect to github.com, put them into the cache that TORCH_HOME names, or "
        "train from scratch with --set model.pretrained=false"
    )


@pytest.mark.parametrize("is_offline", [True, False])
def test_cached_weights_need_no_hub(
    hub: Path, monkeypatch: pytest.MonkeyPatch, is_offline: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
    if is_offline:
        with pytest.raises(PreflightError, match=r"cannot be downloaded \(.*offline mode is ena"):
            build_image_classifier(spec(image_size=64, pretrained=True), 5)
    source = timm.create_model("test_resnet")
    cache_weights(hub, "test_resnet.r160_in1k", source)
    model = build_image_classifier(spec(image_size=64, pretrained=True), 5)
    expected = source.state_dict()
    assert all(
        torch.equal(value, expected[key])
        for key, value in model.state_dict().items()
        if not key.startswith("fc.")
    )
    assert model.fc.weight.shape[0] == 5


def test_weights_that_do_not_fit_are_refused(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cache_weights(hub, "test_resnet.r160_in1k", timm.create_model("test_convnext"))
    with pytest.raises(SpecError) as raised:
        build_image_classifier(spec(image_size=64, pretrained=True), 1000)
    assert str(raised.value) == (
        "the pretrained weights of test_resnet do not fit it at model.image_size=64 (Error(s) in "
        "loading state_dict for ResNet:); set model.image_size=160"
    )


def test_the_input_is_the_pretraining_at_the_specs_size() -> None:
    built = spec(image_size=96)
    image = image_input(build_image_classifier(built, 5), built)
    assert image == ImageInput(
        image_size=96,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation="bilinear",
        crop_pct=0.95,
    )
    assert ImageInput(**json.loads(json.dumps(dataclasses.asdict(image)))) == image


def test_gradient_checkpointing_where_it_works() -> None:
    model = build_image_classifier(spec(image_size=64), 5)
    assert enable_gradient_checkpointing(model, torch.device("mps")) == (
        "gradient checkpointing crashes on MPS; it is left off"
    )
    assert not model.grad_checkpointing
    assert enable_gradient_checkpointing(model, CPU) is None
    assert model.grad_checkpointing
    with torch.device("meta"):
        vgg = timm.create_model("vgg11")
    for other, name in ((vgg, "VGG"), (nn.Linear(1, 1), "Linear")):
        assert enable_gradient_checkpointing(other, CPU) == (
            f"{name} does not support gradient checkpointing; it is left off"
        )


def test_a_spec_is_read_without_heavy_imports() -> None:
    code = (
        "import sys, ray_jobs.models.image_classifier, ray_jobs.models.image_transforms\n"
        "import ray_jobs.training.spec\n"
        "print({'torch', 'timm', 'torchvision', 'PIL', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("keys", [{"image_size": 0}, {"drop_rate": 1.0}, {"size": 224}])
def test_a_faulty_spec_is_refused(keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        spec(**keys)  # type: ignore[arg-type]
