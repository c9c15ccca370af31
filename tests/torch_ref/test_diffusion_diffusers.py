# SPDX-License-Identifier: Apache-2.0
"""The samplers of the reference against diffusers' schedulers, whole runs with a known model and recorded noise."""

import diffusers
import numpy as np
import pytest
import torch

from tests.helpers import relative_l2
from torch_ref.diffusion.samplers import make_sampler
from torch_ref.diffusion.schedule import Schedule, linear_betas
from torch_ref.models.precision import Precision

BETAS = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
FLOAT64 = 1e-13  # our float64 tables in both: 1.6e-15 measured after 50 steps
# diffusers holds sigmas in float32 and rounds the state in every step: 8e-7 measured after 50 steps.
FLOAT32 = 4e-6

SPACINGS = [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)]


def model(x, t):
    """Noise and variance (2, 8, 3, 6, 4) of latents (2, 4, 3, 6, 4)."""
    t = float(t)
    return torch.cat([torch.sin(1.3 * x + t / 300), torch.cos(2 * x + t / 100)], dim=1)


def draw(count):
    rng = np.random.default_rng(5)
    return [torch.from_numpy(rng.standard_normal((2, 4, 3, 6, 4))) for _ in range(count)]


def distance(sampler, scheduler, steps, call=None, learn_sigma=False):
    """Largest difference between both after any step. call: step -> further arguments of diffusers."""
    scheduler.alphas_cumprod = torch.from_numpy(
        Schedule(linear_betas()).alphas_cumprod
    )  # its own are float32
    scheduler.set_timesteps(steps)
    np.testing.assert_array_equal(
        np.asarray(scheduler.timesteps, np.float64), sampler.timesteps.astype(float)
    )
    assert float(scheduler.init_noise_sigma) == pytest.approx(sampler.init_scale, rel=1e-6)  # float32 there
    x, *noise = draw(steps + 1)
    x, history, largest = x * sampler.init_scale, (), 0.0
    theirs = x
    for i, t in enumerate(scheduler.timesteps):
        output = model(scheduler.scale_model_input(theirs, t), t)
        output = output if learn_sigma else output[:, :4]
        theirs = scheduler.step(output, t, theirs, **(call(noise[i]) if call else {})).prev_sample
        x, history = sampler.step(i, x, model(sampler.scale_input(x, i), t), noise[i], history)
        largest = max(largest, relative_l2(x, theirs))
    return largest


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [7, 50])
@pytest.mark.parametrize(("spacing", "steps_offset"), SPACINGS)
def test_ddim(spacing, steps_offset, steps, eta, set_alpha_to_one):
    options = dict(steps_offset=steps_offset, set_alpha_to_one=set_alpha_to_one)
    sampler = make_sampler(
        "ddim", steps, channel_axis=1, eta=eta, spacing=spacing, precision=Precision("fp64"), **options
    )
    assert sampler.needs_noise == (eta > 0)
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing=spacing, **options)
    if not set_alpha_to_one:
        scheduler.final_alpha_cumprod = torch.tensor(1.0 - 1e-4, dtype=torch.float64)
    call = (lambda noise: dict(eta=eta, variance_noise=noise)) if eta else None
    assert distance(sampler, scheduler, steps, call) <= FLOAT64


@pytest.mark.parametrize("steps", [7, 50])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_ddpm(spacing, steps, monkeypatch):
    """With spacings that end at timestep 0: behind another last timestep diffusers adds a trace of noise."""
    sampler = make_sampler("ddpm", steps, channel_axis=1, spacing=spacing, precision=Precision("fp64"))
    scheduler = diffusers.DDPMScheduler(
        **BETAS, clip_sample=False, variance_type="learned_range", timestep_spacing=spacing
    )
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    queue = draw(steps + 1)[1:]
    place = diffusers.schedulers.scheduling_ddpm
    monkeypatch.setattr(place, "randn_tensor", lambda *args, **kwargs: queue.pop(0))
    assert distance(sampler, scheduler, steps, learn_sigma=True) <= FLOAT64


@pytest.mark.parametrize(
    ("name", "kind"),
    [("euler", diffusers.EulerDiscreteScheduler), ("dpm++2m", diffusers.DPMSolverMultistepScheduler)],
)
@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize(("spacing", "steps_offset"), SPACINGS)
def test_solvers(name, kind, spacing, steps_offset, steps):
    sampler = make_sampler(
        name, steps, channel_axis=1, spacing=spacing, steps_offset=steps_offset, precision=Precision("fp64")
    )
    scheduler = kind(**BETAS, timestep_spacing=spacing, steps_offset=steps_offset)
    assert distance(sampler, scheduler, steps) <= FLOAT32


def test_a_wrong_coefficient_is_outside_the_tolerance():
    sampler = make_sampler("dpm++2m", 7, channel_axis=1, precision=Precision("fp64"))
    sampler.ratio[3] *= 1.001
    scheduler = diffusers.DPMSolverMultistepScheduler(**BETAS, timestep_spacing="linspace")
    assert distance(sampler, scheduler, 7) > FLOAT32
