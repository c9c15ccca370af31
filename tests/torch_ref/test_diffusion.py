# SPDX-License-Identifier: Apache-2.0
"""The reference's diffusion process: tables against other formulas, runs against the published original (golden)."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.helpers import GOLDEN, normal, relative_l2
from torch_ref.diffusion.gaussian import GaussianDiffusion
from torch_ref.diffusion.respace import respaced_betas, space_timesteps, spaced_grid
from torch_ref.diffusion.samplers import guide, make_sampler
from torch_ref.diffusion.schedule import TABLES, Schedule, linear_betas
from torch_ref.models.latte import Latte

# float32 on both sides over 16 steps of a 4-block model whose states grow to 100: 1.2e-7 measured. The original
# computes DDIM's coefficients in float32, which costs it about as much.
TRAJECTORY = 1e-6
# Float32 probabilities near 1 lose digits: the original's first term and ours differ by 1.4e-6, all others by less.
BOUND = 5e-6


def golden(name):
    """Tensors and metadata of a recorded run, and the model that it was made with."""
    with safe_open(GOLDEN / f"diffusion_{name}.io.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = file.metadata()
    model = Latte(input_size=12, hidden_size=48, depth=4, num_heads=3, num_frames=4)
    state = torch.load(GOLDEN / metadata["checkpoint"], weights_only=True)["ema"]
    model.load_state_dict(state, strict=True)
    return tensors, metadata, model


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
@torch.no_grad()
def test_golden_trajectory(name):
    tensors, metadata, model = golden(name)
    sampler = make_sampler(name, int(metadata["timestep_respacing"]))
    assert sampler.timesteps[::-1].tolist() == json.loads(metadata["timestep_map"])
    x, history = sampler.init_scale * tensors["x_T"], ()
    for i, t in enumerate(sampler.timesteps.tolist()):
        output = model(sampler.scale_input(x, i), torch.tensor([t]))
        noise = tensors["noise"][i] if sampler.needs_noise else None
        x, history = sampler.step(i, x, output, noise, history)
    assert relative_l2(x, tensors["out"]) <= TRAJECTORY


@torch.no_grad()
def test_golden_losses():
    tensors, _, model = golden("losses")
    x0, t, noise = (tensors[key] for key in ("x0", "t", "noise"))
    diffusion = GaussianDiffusion()
    x_t = diffusion.q_sample(x0, t, noise)
    mse, vb = diffusion.training_losses(model(x_t, diffusion.map_timesteps(t)), x0, x_t, t, noise)
    assert relative_l2(mse, tensors["mse"]) <= TRAJECTORY
    for got, expected in zip(vb, tensors["vb"], strict=True):  # 2.2, 0.03 and 0.015: each by itself
        assert relative_l2(got, expected) <= BOUND
    assert relative_l2(mse + vb, tensors["loss"]) <= BOUND


def test_tables_against_exact_sums():
    """Products as exponentials of exactly rounded sums of logarithms, differences from 1 without cancellation."""
    betas = linear_betas()
    assert (len(betas), betas[0], betas[-1]) == (1000, 1e-4, 0.02)
    logs = [math.log1p(-beta) for beta in betas]
    log_a = np.array([math.fsum(logs[: t + 1]) for t in range(1000)])
    log_prev = np.append(0.0, log_a[:-1])
    noise, noise_prev = -np.expm1(log_a), -np.expm1(log_prev)
    variance = betas * noise_prev / noise
    expected = dict(
        betas=betas,
        alphas_cumprod=np.exp(log_a),
        alphas_cumprod_prev=np.exp(log_prev),
        sqrt_alphas_cumprod=np.exp(log_a / 2),
        sqrt_one_minus_alphas_cumprod=np.sqrt(noise),
        sqrt_recip_alphas_cumprod=np.exp(-log_a / 2),
        sqrt_recipm1_alphas_cumprod=np.sqrt(np.expm1(-log_a)),
        log_betas=np.log(betas),
        posterior_variance=variance,
        posterior_log_variance_clipped=np.log(np.append(variance[1], variance[1:])),
        posterior_mean_coef1=betas * np.exp(log_prev / 2) / noise,
        posterior_mean_coef2=noise_prev * np.sqrt(1 - betas) / noise,
    )
    schedule = Schedule(betas)
    assert tuple(expected) == TABLES
    for name, table in zip(TABLES, schedule.tables(), strict=True):
        assert table.dtype == np.float64 and table.shape == (1000,)
        # 1 - a is 1e-4 at first, so that its float64 rounding is 1e-12 of it.
        np.testing.assert_allclose(table, expected[name], rtol=4e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("spec", "count", "start", "end"),
    [
        ("", 1000, [0, 1, 2], [998, 999]),
        ("250", 250, [0, 4, 8], [995, 999]),
        ("50", 50, [0, 20, 41, 61, 82], [979, 999]),
        ("17", 17, [0, 62, 125], [937, 999]),
        ("ddim50", 50, [0, 20, 40], [960, 980]),
        ("10,15,20", 45, [0, 37, 74], [982, 999]),
        ("1", 1, [0], [0]),
    ],
)
def test_respacing(spec, count, start, end):
    timesteps = space_timesteps(1000, spec).tolist()
    assert (len(timesteps), timesteps[: len(start)], timesteps[-len(end) :]) == (count, start, end)
    betas, timestep_map = respaced_betas(linear_betas(), timesteps)
    assert timestep_map.tolist() == timesteps
    kept = Schedule(linear_betas()).alphas_cumprod[timesteps]
    np.testing.assert_allclose(Schedule(betas).alphas_cumprod, kept, rtol=1e-12)


def test_respacing_rounds_the_running_sum_half_to_even():
    """Python's own loop over the sum, for every number of steps; 999 / 16 * 8 = 499.5 is a tie."""
    for count in range(2, 1001):
        total, expected = 0.0, []
        for _ in range(count):
            expected.append(round(total))
            total += 999 / (count - 1)
        assert space_timesteps(1000, str(count)).tolist() == expected


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: space_timesteps(1000, "ddim300"), "no integer stride"),
        (lambda: space_timesteps(1000, "1001"), "ask for 1000 or fewer"),
        (lambda: space_timesteps(1000, "fast"), "cannot be read"),
        (lambda: space_timesteps(1000, "10,0"), "cannot be read"),
        (lambda: space_timesteps(1000, "ddim5,5"), "cannot be read"),
        (lambda: respaced_betas(linear_betas(), [3, 2]), "ascending"),
        (lambda: respaced_betas(linear_betas(), [0, 1000]), "ascending"),
        (lambda: spaced_grid(1000, 7, "even"), "expected one of leading"),
        (lambda: spaced_grid(1000, 0, "leading"), "expected 1 to 1000"),
        (lambda: spaced_grid(1000, 1000, "leading", 1), "outside 0 to 999"),
        (lambda: linear_betas(0), "1 or more"),
        (lambda: Schedule([0.1, 1.0]), "between 0 and 1"),
        (lambda: GaussianDiffusion(channel_axis=3), "expected 2 for latents"),
        (lambda: GaussianDiffusion(fixed_variance="tiny"), "small or large"),
        (lambda: GaussianDiffusion([0.1, 0.2], [0]), "1 entries for 2 betas"),
        (lambda: make_sampler("plms", 50), "expected one of ddpm"),
        (lambda: make_sampler("ddim", 50, order=2), "no option order"),
        (lambda: make_sampler("euler", 50, eta=1.0), "eta 1.0"),
        (lambda: make_sampler("ddim", 50, eta=2.0), "eta is 2.0"),
        (lambda: make_sampler("euler", "50"), "must be a number"),
        (lambda: make_sampler("ddim", 50, steps_offset=1), "goes with spacing"),
        (lambda: guide(torch.zeros(3, 2, 8, 4, 4), 7.0), "even batch"),
        (lambda: guide(torch.zeros(2, 2, 8, 4, 4), 7.0, order="first"), "guidance order"),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_wrong_channels_and_missing_noise_are_named():
    x, output = torch.zeros(1, 2, 3, 4, 4), torch.zeros(1, 2, 6, 4, 4)
    with pytest.raises(ValueError, match="check learn_sigma, and channel_axis"):
        make_sampler("ddim", 5, channel_axis=1).step(0, x, output)
    with pytest.raises(ValueError, match="step 0 of DDPMSampler needs noise"):
        make_sampler("ddpm", 5).step(0, x, output)
    with pytest.raises(ValueError, match="needs the history that step 0 returned"):
        make_sampler("dpm++2m", 5).step(1, x, output)


def test_no_gradient_reaches_the_noise_through_the_bound():
    output = torch.from_numpy(normal(3, 2, 8, 4, 6)).requires_grad_(True)
    x0, noise = (torch.from_numpy(normal(3, 2, 4, 4, 6, seed=seed)) for seed in (1, 2))
    diffusion, t = GaussianDiffusion(), torch.tensor([0, 41, 998])
    _, vb = diffusion.training_losses(output, x0, diffusion.q_sample(x0, t, noise), t, noise)
    (gradient,) = torch.autograd.grad(vb.sum(), output)
    assert (gradient[:, :, :4] == 0).all()
    assert (gradient[:, :, 4:] != 0).any()


def test_guidance_is_that_of_both_originals():
    output = torch.from_numpy(normal(4, 3, 8, 4, 6))
    cond, null = output[:2], output[2:]
    got = guide(output, 7.0, guided_channels=4)
    torch.testing.assert_close(got[:, :, :4], (null + 7.0 * (cond - null))[:, :, :4], rtol=0, atol=0)
    assert (got[:, :, 4:] == cond[:, :, 4:]).all()
    swapped = guide(torch.cat([null, cond]), 7.0, channel_axis=1, order="uncond_first")
    torch.testing.assert_close(swapped, null + 7.0 * (cond - null), rtol=0, atol=0)
