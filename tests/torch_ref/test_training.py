# SPDX-License-Identifier: Apache-2.0
"""The training twin against torch's own optimiser, clipping and loss scale, and against itself."""

import copy

import numpy as np
import pytest
import torch

from tests.helpers import relative_l2
from torch_ref.diffusion.gaussian import GaussianDiffusion
from torch_ref.models.latte import Latte
from torch_ref.models.precision import Precision
from torch_ref.training.ema import EMA
from torch_ref.training.optim import (
    AdamW,
    clip_coefficient,
    decayed_names,
    global_norm,
    trainable_parameters,
)
from torch_ref.training.scaler import next_scale
from torch_ref.training.step import TrainingStep

YES, NO = torch.tensor(True), torch.tensor(False)
SHAPES = {"a.weight": (5, 7), "a.bias": (5,), "b.norm.weight": (3,)}


def parameters(dtype=torch.float64):
    rng = np.random.default_rng(1)
    return {n: torch.nn.Parameter(torch.tensor(rng.normal(size=s), dtype=dtype)) for n, s in SHAPES.items()}


def gradients(k, dtype=torch.float64):
    rng = np.random.default_rng([2, k])
    return [torch.tensor(rng.normal(size=s), dtype=dtype) for s in SHAPES.values()]


# float64: torch multiplies in another order. float32: torch's second moment converges to 1 + 1.3e-5 of what it
# averages, since 1 - float32(0.999) is not 0.001; ours is divided by the sum of the weights really given.
@pytest.mark.parametrize(("compute", "tolerance"), [("fp64", 1e-13), ("fp32", 2e-5)])
def test_adamw_is_torchs(compute, tolerance):
    precision = Precision(compute)
    ours, theirs = parameters(precision.dtype), parameters(precision.dtype)
    start = {name: value.detach().clone() for name, value in ours.items()}
    chosen = decayed_names(ours)
    assert chosen == ["a.weight"]
    settings = dict(betas=(0.9, 0.999), eps=1e-8)
    optimizer = AdamW(ours, weight_decay=0.3, decayed=chosen, precision=precision, **settings)
    groups = [
        dict(params=[theirs[n] for n in chosen], weight_decay=0.3),
        dict(params=[theirs[n] for n in theirs if n not in chosen], weight_decay=0.0),
    ]
    torchs = torch.optim.AdamW(groups, **settings)
    for k in range(30):
        rate = 1e-3 * (k + 1)
        optimizer.update(gradients(k, precision.dtype), torch.tensor(rate, dtype=precision.dtype), YES)
        for group in torchs.param_groups:
            group["lr"] = rate
        for value, gradient in zip(theirs.values(), gradients(k, precision.dtype), strict=True):
            value.grad = gradient
        torchs.step()
    for name in SHAPES:
        went = [(side[name] - start[name]).detach() for side in (ours, theirs)]
        assert relative_l2(*went) <= tolerance


def test_norm_and_clipping_are_torchs():
    for limit in (0.1, 1e6):
        mine, theirs = gradients(0), [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients(0)]
        for value, gradient in zip(theirs, gradients(0), strict=True):
            value.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(theirs, limit)
        assert relative_l2(global_norm(mine), norm) <= 1e-15
        for gradient, value in zip(mine, theirs, strict=True):
            clipped = gradient * clip_coefficient(global_norm(mine), limit)
            assert relative_l2(clipped, value.grad) <= 1e-15


def test_scale_is_that_of_torchs_grad_scaler():
    window = 3
    scale, good = torch.tensor(64.0), torch.tensor(0, dtype=torch.int32)
    theirs, tracker = torch.tensor(64.0), torch.tensor(0, dtype=torch.int32)
    for finite in [1, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1]:
        scale, good = next_scale(scale, good, torch.tensor(bool(finite)), 2.0, window)
        torch._amp_update_scale_(theirs, tracker, torch.tensor(1.0 - finite), 2.0, 0.5, window)
        assert (scale.item(), good.item()) == (theirs.item(), tracker.item())


def test_average_is_the_published_one():
    values = parameters()
    average = EMA(values)
    expected = {name: value.detach().clone() for name, value in values.items()}
    for k in range(5):
        for value, gradient in zip(values.values(), gradients(k), strict=True):
            value.data += gradient
        average.update(torch.tensor(0.9, dtype=torch.float64), YES)
        for name, value in expected.items():
            value.mul_(0.9).add_(values[name].detach(), alpha=0.1)
    assert all(relative_l2(average.shadow[name], expected[name]) <= 1e-14 for name in SHAPES)


def tiny(seed=3, compute="fp64"):
    precision = Precision(compute, rounding="emulated")
    model = Latte((4, 6), hidden_size=24, depth=2, num_heads=2, num_frames=3, precision=precision)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for _, value in sorted(model.named_parameters()):
            if value.requires_grad:
                value.copy_(precision.round(torch.tensor(0.2 * rng.normal(size=tuple(value.shape)))))
    return model, precision


def batch(samples, start=0):
    rng = np.random.default_rng(8)
    full = {name: rng.normal(size=(4, 3, 4, 4, 6)) for name in ("latents", "noise")} | {
        "t": np.array([3, 800, 41, 0])
    }
    part = {name: torch.tensor(value[start : start + samples]) for name, value in full.items()}
    lr, decay = (torch.tensor(x, dtype=torch.float64) for x in (1e-3, 0.9))
    return part | dict(lr=lr, ema_decay=decay, clip=YES)


def step_of(model, precision, **rest):
    optimizer = AdamW(trainable_parameters(model), precision=precision)
    return TrainingStep(
        model, GaussianDiffusion(precision=precision), optimizer, EMA(optimizer.masters), **rest
    )


def test_two_micro_steps_are_one_step_of_both():
    model, precision = tiny()
    whole, parts = step_of(copy.deepcopy(model), precision), step_of(model, precision, accumulation_steps=2)
    expected = whole(batch(4))
    assert not parts(batch(2))["updated"]
    metrics = parts(batch(2, 2))
    assert metrics["updated"]
    assert relative_l2(metrics["grad_norm"], expected["grad_norm"]) <= 1e-13
    for name, value in whole.state().items():
        assert (
            relative_l2(parts.state()[name].double(), value.double()) <= 1e-10
        )  # where v is tiny, eps magnifies


def test_gradients_are_finite_differences_of_the_loss_without_the_bound():
    """Along a direction of the noise channels, which the bound does not train, only mse changes the loss."""
    model, precision = tiny()
    step = step_of(model, precision)
    one = torch.tensor(1.0, dtype=torch.float64)
    _, gradients_ = step._value_and_grad(batch(2), one)
    gradient = dict(zip(step.optimizer.names, gradients_, strict=True))["final_layer.linear.bias"]
    bias = model.final_layer.linear.bias
    noise = torch.tensor(
        [c < 4 for _ in range(4) for c in range(8)]
    ).double()  # (p*p*2C,): noise channels come first
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            bias += sign * 1e-5 * noise
            values.append(step.scaled_loss(batch(2), one)[1])
            bias -= sign * 1e-5 * noise
    slope = (values[0] - values[1]) / 2e-5
    assert relative_l2((gradient * noise).sum(), slope) <= 1e-9  # mse is of order 1 and quadratic in a bias


def test_masters_keep_what_half_precision_would_lose():
    model, precision = tiny(compute="bf16")
    step = step_of(model, precision)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    low = {name: value.float() if value.dtype == torch.float64 else value for name, value in batch(2).items()}
    low["lr"] = torch.tensor(1e-6)
    for _ in range(3):
        step(low)
    for name, master in step.optimizer.masters.items():
        assert master.dtype == torch.float32
        assert torch.equal(dict(model.named_parameters())[name], precision.round(master))
        assert not torch.equal(master, before[name])
