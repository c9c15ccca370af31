# SPDX-License-Identifier: Apache-2.0
"""The port's diffusion process against recorded runs of the published original; its types, gradients and graph."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import nn, ops
from safetensors import safe_open

from ms_latte.diffusion.gaussian import GaussianDiffusion
from ms_latte.diffusion.respace import respaced_betas, space_timesteps, spaced_grid
from ms_latte.diffusion.samplers import guide, make_sampler
from ms_latte.diffusion.schedule import TABLES, Schedule, linear_betas
from ms_latte.models.latte import Latte
from ms_latte.models.precision import Precision
from tests.helpers import GOLDEN, normal, relative_l2
from tests.ms_latte.tiny import parameters, tensor
from torch_ref.diffusion import respace as torch_respace
from torch_ref.diffusion import schedule as torch_schedule

# float32 on both sides over 16 steps of a 4-block model whose states grow to 100 times the initial noise.
TRAJECTORY = 2e-6
# Float32 probabilities near 1 lose digits in the original: its first term is 1.4e-6 off ours.
BOUND = 5e-6


def golden(name):
    """Tensors of a recorded run (numpy), its number of steps, and the model that it was made with."""
    with safe_open(GOLDEN / f"diffusion_{name}.io.safetensors", "np") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = file.metadata()
    model = Latte(input_size=12, hidden_size=48, depth=4, num_heads=3, num_frames=4).set_train(False)
    state = torch.load(GOLDEN / metadata["checkpoint"], weights_only=True)["ema"]
    own = parameters(model)
    assert own.keys() == state.keys()
    for key, value in state.items():
        own[key].set_data(ms.Tensor(value.numpy()))
    return tensors, int(metadata.get("timestep_respacing", 0)), model


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_golden_trajectory(name):
    tensors, steps, model = golden(name)
    sampler = make_sampler(name, steps)
    x, history = ms.Tensor(sampler.init_scale * tensors["x_T"]), ()
    for i, t in enumerate(sampler.timesteps.tolist()):
        output = model(sampler.scale_input(x, i), ms.Tensor([t], ms.int32))
        noise = ms.Tensor(tensors["noise"][i]) if sampler.needs_noise else None
        x, history = sampler.step(i, x, output, noise, history)
    assert relative_l2(x.asnumpy(), tensors["out"]) <= TRAJECTORY


def test_golden_losses():
    tensors, _, model = golden("losses")
    x0, t, noise = (tensor(tensors[key]) for key in ("x0", "t", "noise"))
    diffusion = GaussianDiffusion()
    x_t = diffusion.q_sample(x0, t, noise)
    mse, vb = diffusion.training_losses(model(x_t, diffusion.map_timesteps(t)), x0, x_t, t, noise)
    assert relative_l2(mse.asnumpy(), tensors["mse"]) <= TRAJECTORY
    for got, expected in zip(vb.asnumpy(), tensors["vb"], strict=True):
        assert relative_l2(got, expected) <= BOUND


def test_tables_of_both_twins_are_bitwise_equal():
    betas = linear_betas()
    assert np.array_equal(betas, torch_schedule.linear_betas())
    for spec in ("", "250", "ddim50", "10,15,20"):
        timesteps = space_timesteps(1000, spec)
        assert np.array_equal(timesteps, torch_respace.space_timesteps(1000, spec))
        ours, theirs = respaced_betas(betas, timesteps)[0], torch_respace.respaced_betas(betas, timesteps)[0]
        assert np.array_equal(ours, theirs)
        pairs = zip(Schedule(ours).tables(), torch_schedule.Schedule(theirs).tables(), strict=True)
        for name, (a, b) in zip(TABLES, pairs, strict=True):
            assert a.dtype == b.dtype == np.float64 and np.array_equal(a, b), name
    for spacing in ("leading", "trailing", "linspace"):
        grid = spaced_grid(1000, 7, spacing)
        assert np.array_equal(grid, torch_respace.spaced_grid(1000, 7, spacing))


class Losses(nn.Cell):
    """The two terms of the loss as one number, for a compiled training step."""

    def __init__(self):
        super().__init__()
        self.diffusion = GaussianDiffusion()

    def construct(self, output, x0, t, noise, weight):
        x_t = self.diffusion.q_sample(x0, t, noise)
        mse, vb = self.diffusion.training_losses(output, x0, x_t, t, noise)
        return ops.ReduceSum()(mse) * weight + ops.ReduceSum()(vb)


def loss_inputs():
    x0, noise = (ms.Tensor(normal(3, 2, 4, 4, 6, seed=seed)) for seed in (1, 2))
    return ms.Tensor(normal(3, 2, 8, 4, 6)), x0, ms.Tensor([0, 41, 998], ms.int32), noise


def test_no_gradient_reaches_the_noise_through_the_bound():
    gradient = ms.grad(Losses())(*loss_inputs(), 0.0).asnumpy()
    assert (gradient[:, :, :4] == 0).all()
    assert (gradient[:, :, 4:] != 0).any()
    assert np.isfinite(gradient).all()


def test_the_losses_compile():
    """The tables are constants of the graph; a compiled sum of ~200 terms may round differently."""
    net, inputs = Losses(), loss_inputs()
    expected = net(*inputs, 1.0).asnumpy()

    @ms.jit
    def compiled(*args):
        return net(*args, 1.0)

    assert relative_l2(compiled(*inputs).asnumpy(), expected) <= 1e-6


def test_the_state_stays_float32_beside_a_half_precision_model():
    x, output = ms.Tensor(normal(1, 2, 3, 4, 6)), ms.Tensor(normal(1, 2, 6, 4, 6)).astype(ms.float16)
    for name in ("ddpm", "ddim", "euler", "dpm++2m"):
        sampler = make_sampler(name, 5, precision=Precision("fp16"))
        result, history = sampler.step(0, x.astype(ms.float16), output, x.astype(ms.float16))
        assert result.dtype == ms.float32 and all(item.dtype == ms.float32 for item in history), name
    assert guide(ops.cat([output, output]), 7.0, precision=Precision("fp16")).dtype == ms.float32


def test_mistakes_are_named():
    x, output = ms.Tensor(normal(1, 2, 3, 4, 6)), ms.Tensor(normal(1, 2, 6, 4, 6))
    with pytest.raises(ValueError, match="expected one of ddpm"):
        make_sampler("plms", 50)
    with pytest.raises(ValueError, match="check learn_sigma, and channel_axis"):
        make_sampler("ddim", 5, channel_axis=1).step(0, x, output)
    with pytest.raises(ValueError, match="needs the history that step 0 returned"):
        make_sampler("dpm++2m", 5).step(1, x, output)
    with pytest.raises(ValueError, match="step 0 of DDPMSampler needs noise"):
        make_sampler("ddpm", 5).step(0, x, output)
