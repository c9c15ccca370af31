# SPDX-License-Identifier: Apache-2.0
"""The reference LatteT2V against diffusers' `LatteTransformer3DModel`, live, values and gradients."""

import numpy as np
import pytest
import torch
from diffusers import LatteTransformer3DModel

from parity.harness.weights import degenerate, random_state
from tests.helpers import normal, relative_l2
from torch_ref.models.latte_t2v import LatteT2V

# float32 on both sides, sums in another order: a random walk of 4 units a block (Higham and Mary), as gate G2 allows a
# whole net, 1.4e-6 for the 4 blocks of 2 layers (1.2e-6 measured on an Intel Xeon, whose products differ from those of
# an AMD EPYC). The smallest slip known, LayerNorm's eps, is 1.9e-6.
VALUES = 3 * 4**0.5 * 4 * 2.0**-24
GRADIENTS = 1e-5  # the same, through twice as many operations

CONFIG = dict(
    num_attention_heads=3,
    attention_head_dim=16,
    in_channels=4,
    out_channels=8,
    num_layers=2,
    cross_attention_dim=48,
    attention_bias=True,
    sample_size=8,
    patch_size=2,
    activation_fn="gelu-approximate",
    norm_type="ada_norm_single",
    norm_elementwise_affine=False,
    norm_eps=1e-6,
    caption_channels=20,
    video_length=3,
)


def pair(**changes):
    """Our model and theirs, with the same weights under equal names."""
    config = {**CONFIG, **changes}
    theirs = LatteTransformer3DModel(**config)
    state = random_state({name: tuple(p.shape) for name, p in theirs.named_parameters()}, seed=5)
    assert not degenerate(state)
    ours = LatteT2V(**config, temporal_interpolation_scale=1.0)
    state = {name: torch.from_numpy(value) for name, value in state.items()}
    for model in (ours, theirs):
        model.load_state_dict(state, strict=True)
    return ours.eval(), theirs.eval()


def inputs(frames=3, height=8, width=8, batch=2, channels=20):
    return (
        torch.from_numpy(normal(batch, 4, frames, height, width, seed=1)),
        torch.tensor([999, 3][:batch]),
        torch.from_numpy(normal(batch, 7, channels, seed=2)),
    )


CASES = {
    "square": ({}, {}),
    "wide": ({}, dict(height=8, width=12)),
    "tall": ({}, dict(height=14, width=6)),
    "other_square": ({}, dict(height=6, width=6)),
    "one_frame": ({}, dict(frames=1)),
    "one_token": (dict(sample_size=2), dict(height=2, width=2)),
    "interpolated": (dict(sample_size=128), dict(height=8, width=12)),
    "three_layers": (dict(num_layers=3), {}),
    "erf": (dict(activation_fn="gelu"), {}),
    "affine": (dict(norm_elementwise_affine=True, norm_eps=1e-5), {}),
    "no_attention_bias": (dict(attention_bias=False), {}),
    "layer_norm": (dict(norm_type="layer_norm", norm_elementwise_affine=True, activation_fn="geglu"), {}),
    "no_sigma": (dict(out_channels=None), {}),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_values(case):
    changes, sizes = CASES[case]
    ours, theirs = pair(**changes)
    x, t, text = inputs(**sizes)
    expected = theirs(x, t, text).sample
    assert relative_l2(ours(x, t, text), expected) <= VALUES


@pytest.mark.parametrize("flash", [False, True], ids=["math", "flash"])
@torch.no_grad()
def test_ready_made_bias(flash):
    """theirs: `encoder_attention_mask` is taken as a bias, one row a frame, whatever the docstring says."""
    ours, theirs = pair()
    if flash:
        state = ours.state_dict()
        ours = LatteT2V(**CONFIG, temporal_interpolation_scale=1.0, enable_flash_attention=True).eval()
        ours.load_state_dict(state)
    x, t, text = inputs(width=12)
    bias = torch.from_numpy(normal(6, 1, 7, seed=3, scale=2.0))  # another bias in every frame
    bias[1, 0, 4:] = -10000.0
    expected = theirs(x, t, text, encoder_attention_mask=bias).sample
    assert relative_l2(ours(x, t, text, encoder_attention_bias=bias), expected) <= VALUES
    assert relative_l2(ours(x, t, text), expected) > 1e-3  # the bias matters


@torch.no_grad()
def test_mask_is_the_repeated_bias():
    """Our 2-D mask equals the bias that theirs needs: -10000 where 0, each row once per frame."""
    ours, theirs = pair()
    x, t, text = inputs()
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]])
    bias = ((1 - mask.float()) * -10000.0).repeat_interleave(3, dim=0)[:, None, :]
    expected = theirs(x, t, text, encoder_attention_mask=bias).sample
    for form in (mask, mask.bool(), mask.float()):
        assert relative_l2(ours(x, t, text, encoder_attention_mask=form), expected) <= VALUES
    row_bias = ((1 - mask.float()) * -10000.0)[:, None, :]
    assert relative_l2(ours(x, t, text, encoder_attention_bias=row_bias), expected) <= VALUES


@torch.no_grad()
def test_without_temporal_attention():
    ours, theirs = pair()
    x, t, text = inputs(width=12)
    expected = theirs(x, t, text, enable_temporal_attentions=False).sample
    assert relative_l2(ours(x, t, text, enable_temporal_attentions=False), expected) <= VALUES
    assert relative_l2(ours(x, t, text), expected) > 1e-3


@torch.no_grad()
def test_float_timestep():
    ours, theirs = pair()
    x, _, text = inputs()
    t = torch.tensor([987.25, 0.5])
    assert relative_l2(ours(x, t, text), theirs(x, t, text).sample) <= VALUES


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("case", ["square", "wide", "affine"])
def test_gradients(case, recompute):
    changes, sizes = CASES[case]
    ours, theirs = pair(**changes)
    ours.use_recompute = recompute
    x, t, text = inputs(**sizes)
    weight = torch.from_numpy(normal(2, 8, *x.shape[2:], seed=4))
    gradients = []
    for model in (ours.train(), theirs.train()):
        leaves = [x.clone().requires_grad_(), text.clone().requires_grad_()]
        out = model(leaves[0], t, leaves[1])
        out = out if torch.is_tensor(out) else out.sample
        (out * weight).sum().backward()
        found = {name: p.grad.numpy() for name, p in model.named_parameters()}
        gradients.append(found | {"x": leaves[0].grad.numpy(), "text": leaves[1].grad.numpy()})
    assert_gradients(*gradients, GRADIENTS)


def assert_gradients(got, expected, tolerance):
    """The gradient of every parameter within tolerance of its norm.

    A key bias moves all logits of a query alike: its gradient is zero but for rounding, so its error is measured
    against the query bias of the same attention.
    """
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].shape == value.shape, name
        scale = np.linalg.norm(expected[name.replace("to_k.bias", "to_q.bias")].astype(np.float64))
        error = np.linalg.norm(got[name].astype(np.float64) - value)
        assert error <= tolerance * scale, f"gradient of {name} is off by {error / scale:.1e}"
