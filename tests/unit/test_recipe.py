from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional

from ray_jobs.errors import PreflightError, SpecError
from ray_jobs.training.losses import CrossEntropy, FocalLoss
from ray_jobs.training.recipe import (
    Recipe,
    choose_precision,
    class_weights,
    make_recipe,
    prepare_model,
    sampler_weights,
)
from ray_jobs.training.spec import TrainSpec

CPU = torch.device("cpu")
NUM_CLASSES = 4
STEPS = 10  # an epoch


def train(**keys: object) -> TrainSpec:
    required = {"epochs": 4, "batch_size": 8, "learning_rate": 1e-3}
    return TrainSpec.model_validate({**required, **keys})


def tiny(name: str = "test_vit", **keys: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=NUM_CLASSES, **keys)


def recipe_of(
    spec: TrainSpec, model: nn.Module | None = None, class_counts: list[int] | None = None
) -> Recipe:
    return make_recipe(
        nn.Linear(3, NUM_CLASSES) if model is None else model,
        spec,
        num_classes=NUM_CLASSES,
        steps_per_epoch=STEPS,
        device=CPU,
        class_counts=class_counts,
    )


def rates(recipe: Recipe, num_updates: int) -> list[float]:
    recipe.scheduler.step_update(num_updates)
    return [group["lr"] for group in recipe.optimizer.param_groups]


def logits_and_classes(n: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(n, NUM_CLASSES, generator=generator)
    return logits, torch.arange(n) % NUM_CLASSES


@pytest.mark.parametrize("warmup_epochs", [0.0, 1.0, 0.25])
def test_the_schedule_warms_up_and_falls_along_a_cosine(warmup_epochs: float) -> None:
    spec = train(warmup_epochs=warmup_epochs, warmup_learning_rate=1e-5, min_learning_rate=1e-6)
    recipe = recipe_of(spec)
    warmup, total = warmup_epochs * STEPS, spec.epochs * STEPS
    started_at = recipe.optimizer.param_groups[0]["lr"]
    assert started_at == pytest.approx(1e-5 if warmup else 1e-3)
    for step in range(total + 1):
        if step < warmup:
            expected = 1e-5 + (1e-3 - 1e-5) * step / warmup
        else:
            angle = math.pi * (step - warmup) / (total - warmup)
            expected = 1e-6 + (1e-3 - 1e-6) * (1 + math.cos(angle)) / 2
        assert rates(recipe, step) == pytest.approx([expected, expected])
    assert rates(recipe, total + 100) == pytest.approx([1e-6, 1e-6])


def test_a_constant_schedule_only_warms_up() -> None:
    recipe = recipe_of(train(schedule="constant", warmup_epochs=1, warmup_learning_rate=0))
    assert rates(recipe, 5) == pytest.approx([5e-4, 5e-4])
    assert [rates(recipe, step) for step in (10, 25, 40, 1000)] == [[1e-3, 1e-3]] * 4


@settings(max_examples=20, deadline=None)
@given(num_updates=st.integers(0, 4 * STEPS), warmup_epochs=st.sampled_from([0.0, 0.5, 2.0]))
def test_a_resumed_schedule_is_the_same(num_updates: int, warmup_epochs: float) -> None:
    spec = train(warmup_epochs=warmup_epochs)
    straight, resumed = recipe_of(spec), recipe_of(spec)
    for step in range(num_updates + 1):
        expected = rates(straight, step)
    resumed.optimizer.load_state_dict(straight.optimizer.state_dict())
    assert rates(resumed, num_updates) == expected


def test_deeper_layers_learn_slower_under_layer_decay() -> None:
    model = tiny()
    recipe = recipe_of(train(layer_decay=0.5), model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates(recipe, 7)
    rate_of = {
        names[parameter]: group["lr"]
        for group in recipe.optimizer.param_groups
        for parameter in group["params"]
    }
    order = ["patch_embed.proj", "blocks.0.mlp.fc1", "blocks.5.mlp.fc1", "head"]
    found = [rate_of[f"{name}.weight"] for name in order]
    assert found == sorted(found)
    assert rate_of["blocks.1.mlp.fc1.weight"] == 2 * rate_of["blocks.0.mlp.fc1.weight"]
    peak = 1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * 7 / 40)) / 2
    assert rate_of["head.weight"] == pytest.approx(peak)


def test_layer_decay_sees_through_a_compiled_model() -> None:
    def scales(model: nn.Module) -> list[float]:
        groups = recipe_of(train(layer_decay=0.5), model).optimizer.param_groups
        return [group["lr_scale"] for group in groups]

    plain = tiny()
    compiled = prepare_model(plain, train(compile=True), CPU)
    assert compiled._compiled_call_impl is not None
    assert list(compiled.state_dict()) == list(tiny().state_dict())
    assert scales(compiled) == scales(plain)
    assert len(set(scales(plain))) > 5


def test_norms_and_biases_do_not_decay() -> None:
    model = tiny("test_resnet")
    recipe = recipe_of(train(weight_decay=0.05), model)
    for group in recipe.optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize(
    ("optimizer", "error", "message"),
    [
        (
            "adamv",
            SpecError,
            "timm has no optimizer 'adamv' (near it: adam, radam, nadam); set train.optimizer to "
            "one of timm.optim.list_optimizers()",
        ),
        (
            "adahessian",
            SpecError,
            "train.optimizer=adahessian needs second derivatives, which the loop does not take; "
            "set train.optimizer=adamw",
        ),
    ],
)
def test_an_optimizer_that_cannot_be_used_is_refused(
    optimizer: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        recipe_of(train(optimizer=optimizer))
    assert str(raised.value) == message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there APEX is what is missing")
def test_an_optimizer_of_another_device_is_refused() -> None:
    with pytest.raises(PreflightError) as raised:
        recipe_of(train(optimizer="fusedadam"))
    assert str(raised.value) == (
        "train.optimizer=fusedadam cannot be used here (CUDA required for APEX optimizers); set "
        "train.optimizer=adamw"
    )


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb"])
def test_a_model_learns_a_batch_by_heart(name: str, optimizer: str) -> None:
    learning_rate = 0.05 if optimizer == "sgd" else 5e-3
    spec = train(optimizer=optimizer, learning_rate=learning_rate, epochs=2, channels_last=True)
    model = prepare_model(tiny(name), spec, CPU)
    recipe = recipe_of(spec, model)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(8) % NUM_CLASSES
    losses = []
    for step in range(1, 21):
        loss = recipe.train_loss_fn(model(images), targets)
        recipe.optimizer.zero_grad()
        loss.backward()
        recipe.optimizer.step()
        recipe.scheduler.step_update(step)
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_averaged_weights_follow_behind() -> None:
    model = tiny("test_resnet")
    recipe = recipe_of(train(ema_decay=0.9), model)
    assert recipe.ema is not None
    start = model.fc.weight.detach().clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    recipe.ema.update(model, step=1000)
    averaged = recipe.ema.module.fc.weight
    assert torch.allclose(averaged, start + 0.1, atol=1e-6)
    recipe.ema.update(model, step=1)  # the first update copies
    assert torch.equal(averaged, model.fc.weight)
    assert recipe_of(train(), model).ema is None


@pytest.mark.parametrize("keys", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
@pytest.mark.parametrize("num_pictures", [1, 6, 7])
def test_mixed_targets_are_shares(keys: dict[str, float], num_pictures: int) -> None:
    recipe = recipe_of(train(label_smoothing=0.1, **keys))
    np.random.seed(0)
    images = torch.rand(num_pictures, 3, 16, 16)
    before = images.clone()
    classes = torch.arange(num_pictures) % NUM_CLASSES
    mixed, targets = recipe.mix(images, classes)
    assert mixed.shape == before.shape
    assert targets.shape == (num_pictures, NUM_CLASSES)
    assert torch.allclose(targets.sum(1), torch.ones(num_pictures))
    assert (targets >= 0.1 / NUM_CLASSES - 1e-6).all()
    num_paired = num_pictures // 2 * 2
    assert num_paired == 0 or not torch.equal(mixed[:num_paired], before[:num_paired])
    if num_pictures % 2:
        assert torch.equal(mixed[-1], before[-1])
        assert targets[-1].argmax() == classes[-1]
        assert targets[-1].max() == pytest.approx(0.9 + 0.1 / NUM_CLASSES)
    logits = torch.randn(num_pictures, NUM_CLASSES)
    expected = SoftTargetCrossEntropy()(logits, targets)  # smoothed once, by the mixing
    assert torch.allclose(recipe.train_loss_fn(logits, targets), expected)


def test_without_mixing_pictures_pass() -> None:
    images, classes = torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2])
    mixed, targets = recipe_of(train()).mix(images, classes)
    assert mixed is images
    assert targets is classes


def test_cross_entropy_is_that_of_torch_and_timm() -> None:
    logits, classes = logits_and_classes()
    plain = functional.cross_entropy(logits, classes)
    assert torch.allclose(CrossEntropy()(logits, classes), plain)
    smoothed = LabelSmoothingCrossEntropy(0.2)(logits, classes)
    assert torch.allclose(CrossEntropy(0.2)(logits, classes), smoothed)
    assert not torch.allclose(smoothed, plain)
    shares = torch.rand(16, NUM_CLASSES).softmax(1)
    assert torch.allclose(CrossEntropy()(logits, shares), SoftTargetCrossEntropy()(logits, shares))


def test_focal_loss() -> None:
    logits, classes = logits_and_classes()
    assert torch.allclose(FocalLoss(0.0)(logits, classes), CrossEntropy()(logits, classes))
    p = logits.double().softmax(1)[torch.arange(16), classes]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    assert float(FocalLoss(2.0)(logits, classes)) == pytest.approx(float(expected))
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = (-weights[classes] * (1 - p) ** 2 * p.log()).mean()
    assert float(FocalLoss(2.0, weights)(logits, classes)) == pytest.approx(float(expected))


@settings(deadline=None)
@given(gamma=st.floats(0, 5), margin=st.floats(-200, 200))
def test_focal_loss_and_its_gradient_stay_finite(gamma: float, margin: float) -> None:
    logits = torch.tensor([[margin, 0.0]], requires_grad=True)
    loss = FocalLoss(gamma)(logits, torch.tensor([0]))
    loss.backward()
    assert loss.isfinite()
    assert loss.item() >= 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_a_weighted_loss_weighs_classes_alike(loss: str) -> None:
    counts = [8, 4, 4, 0]
    recipe = recipe_of(train(loss=loss, imbalance="weighted_loss"), class_counts=counts)
    classes = torch.tensor([0] * 8 + [1] * 4 + [2] * 4)
    logits = logits_and_classes()[0]
    total = recipe.train_loss_fn(logits, classes)
    plain = recipe_of(train(loss=loss)).train_loss_fn
    per_class = [plain(logits[classes == k], classes[classes == k]) for k in range(3)]
    assert torch.allclose(total, torch.stack(per_class).mean())
    # Parts of a batch add up to the whole, as gradient accumulation takes for granted.
    parts = [recipe.train_loss_fn(logits[i::2], classes[i::2]) for i in range(2)]
    assert torch.allclose(torch.stack(parts).mean(), total)


@given(counts=st.lists(st.integers(0, 1000), min_size=1).filter(any))
def test_class_weights_balance(counts: list[int]) -> None:
    weights = class_weights(counts)
    mass = [weight * count for weight, count in zip(weights, counts, strict=True)]
    assert sum(mass) == pytest.approx(sum(counts))
    present = [part for part, count in zip(mass, counts, strict=True) if count]
    assert present == pytest.approx([present[0]] * len(present))
    assert all(weight == 0 for weight, count in zip(weights, counts, strict=True) if not count)


@given(labels=st.lists(st.integers(0, 5), min_size=1))
def test_sampler_draws_classes_alike(labels: list[int]) -> None:
    drawn: Counter[int] = Counter()
    for label, weight in zip(labels, sampler_weights(labels), strict=True):
        drawn[label] += weight  # type: ignore[assignment]
    assert list(drawn.values()) == pytest.approx([1] * len(drawn))


@pytest.mark.parametrize(
    ("has_bf16", "precision", "expected"),
    [
        (True, "auto", "bf16"),
        (False, "auto", "fp32"),
        (True, "fp16", "fp16"),
        (True, "fp32", "fp32"),
        (True, "bf16", "bf16"),
    ],
)
def test_precision_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, precision: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert choose_precision(train(precision=precision), torch.device("cuda")) == expected


def test_a_gpu_without_bf16_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(PreflightError) as raised:
        choose_precision(train(precision="bf16"), torch.device("cuda"))
    assert str(raised.value) == (
        "train.precision=bf16, but Tesla T4 has no bf16; set train.precision=fp16 or fp32"
    )


def test_precision_of_a_cpu() -> None:
    assert choose_precision(train(), CPU) == "fp32"
    with pytest.raises(PreflightError) as raised:
        choose_precision(train(precision="fp16"), CPU)
    assert str(raised.value) == (
        "train.precision=fp16 needs an NVIDIA GPU, but the device is cpu; set train.precision=auto"
    )


def test_autocast_computes_in_bf16_and_the_loss_in_fp32() -> None:
    model = nn.Linear(3, NUM_CLASSES)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        recipe = recipe_of(train(precision=precision), model)
        assert recipe.precision == precision
        assert recipe.scaler is None
        with recipe.autocast():
            logits = model(torch.zeros(2, 3))
            loss = recipe.train_loss_fn(logits, torch.tensor([0, 1]))
        assert logits.dtype == dtype
        assert loss.dtype == torch.float32


def test_losses_are_reckoned_in_fp32() -> None:
    logits, classes = logits_and_classes()
    for loss_fn in (CrossEntropy(), FocalLoss(2.0)):
        loss = loss_fn(logits.bfloat16(), classes)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, loss_fn(logits.bfloat16().float(), classes))


def test_channels_last() -> None:
    model = prepare_model(tiny("test_resnet"), train(channels_last=True), CPU)
    assert model.get_parameter("conv1.0.weight").is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"micro_batch_size": 16},
            "micro_batch_size=16 is more than batch_size=8; lower it or leave it out",
        ),
        (
            {"micro_batch_size": 1, "mixup": 0.2},
            "mixup and cutmix mix pairs of pictures; set micro_batch_size to 2 or more",
        ),
        (
            {"batch_size": 1, "cutmix": 0.2},
            "mixup and cutmix mix pairs of pictures; set batch_size to 2 or more",
        ),
        (
            {"warmup_epochs": 4},
            "warmup_epochs=4 leaves nothing of epochs=4; set warmup_epochs below epochs",
        ),
        (
            {"min_learning_rate": 0.1},
            "min_learning_rate=0.1 is above learning_rate=0.001; lower it",
        ),
        (
            {"warmup_epochs": 1, "warmup_learning_rate": 0.1},
            "warmup_learning_rate=0.1 is above learning_rate=0.001; lower it",
        ),
        (
            {"loss": "focal", "mixup": 0.2, "cutmix": 1.0},
            "loss=focal needs one class a picture, but under mixup and cutmix it has shares of "
            "two; set loss=cross_entropy, or mixup=0 and cutmix=0",
        ),
        (
            {"loss": "focal", "label_smoothing": 0.1},
            "loss=focal needs one class a picture, but under label_smoothing it has shares of "
            "all; set loss=cross_entropy, or label_smoothing=0",
        ),
        (
            {"imbalance": "weighted_loss", "cutmix": 1.0},
            "imbalance=weighted_loss needs one class a picture, but under cutmix it has shares of "
            "two; set imbalance=sampler, or cutmix=0",
        ),
        (
            {"guards": {"bad_share_warning": 0.5}},
            "bad_share_warning=0.5 lies above bad_share_stop=0.2, so the run would stop without a "
            "warning; lower bad_share_warning",
        ),
        (
            {"augmentation": {"scale": (0.9, 0.1)}},
            "scale goes from low to high, not from 0.9 to 0.1",
        ),
        (
            {"augmentation": {"scale": (0.9, 1.1)}},
            "scale is a share of the picture's area, but its end is 1.1; set it to 1 or less",
        ),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        train(**keys)
    assert raised.value.errors()[0]["msg"] == f"Value error, {message}"


@pytest.mark.parametrize(
    "keys",
    [
        {"epochs": 0},
        {"learning_rate": 0},
        {"learning_rate": math.nan},
        {"layer_decay": 1.5},
        {"label_smoothing": 1.0},
        {"ema_decay": 1.0},
        {"precision": "fp8"},
        {"schedule": "linear"},
        {"checkpoint": {"every_minutes": 0}},
        {"lr": 0.1},
    ],
)
def test_a_value_out_of_range_is_refused(keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        train(**keys)
