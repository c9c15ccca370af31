# SPDX-License-Identifier: Apache-2.0
"""Tiny models with seeded, non-degenerate weights, and calls on numpy arrays. All sizes differ from each other."""

import mindspore as ms
import numpy as np

from ms_latte.models.latte import Latte
from ms_latte.models.latte_t2v import LatteT2V
from parity.harness.weights import random_state
from tests.helpers import normal

LATTE = dict(
    input_size=8,
    patch_size=2,
    hidden_size=48,
    depth=4,
    num_heads=3,
    num_frames=3,
    num_classes=7,
    mlp_ratio=2.0,
)
LATTE_T2V = dict(
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
    norm_elementwise_affine=False,
    norm_eps=1e-6,
    caption_channels=20,
    video_length=3,
)
TEXT = 7  # text tokens

# The same arithmetic in another batch or order: float32 sums of ~50 terms, 4 blocks deep.
SAME = 1e-6


def fill(model, seed=5):
    """Give a model seeded weights (stored position tables stay); returns the model."""
    for name, value in random_state(shapes(model), seed).items():
        if name not in ("pos_embed", "temp_embed"):
            parameter = parameters(model)[name]
            parameter.set_data(ms.Tensor(value, parameter.dtype))
    return model


def tiny_latte(**changes):
    return fill(Latte(**{**LATTE, **changes})).set_train(False)


def tiny_t2v(**changes):
    return fill(LatteT2V(**{**LATTE_T2V, **changes})).set_train(False)


def parameters(model):
    return dict(model.parameters_and_names())


def shapes(model):
    return {name: tuple(parameter.shape) for name, parameter in model.parameters_and_names()}


def tensor(value):
    """numpy array -> Tensor (int64 -> int32, as MindSpore users pass ids); anything else unchanged."""
    if not isinstance(value, np.ndarray):
        return value
    return ms.Tensor(value.astype(np.int32) if value.dtype == np.int64 else value)


def run(model, *arguments, **named):
    """Call with numpy arguments, numpy result."""
    named = {name: tensor(value) for name, value in named.items()}
    return model(*[tensor(value) for value in arguments], **named).asnumpy()


def latte_inputs(batch=2, frames=3, height=8, width=8):
    """x (N, F, C, H, W), t (N,)."""
    return normal(batch, frames, 4, height, width, seed=1), np.array([999, 3, 500, 41])[:batch]


def t2v_inputs(batch=2, frames=3, height=8, width=8, rows=None):
    """hidden_states (B, C, F, H, W), timestep (B,), encoder_hidden_states (B, L, 20) or (B, rows, L, 20)."""
    text = normal(batch, TEXT, 20, seed=2) if rows is None else normal(batch, rows, TEXT, 20, seed=2)
    return normal(batch, 4, frames, height, width, seed=1), np.array([999, 3, 500, 41])[:batch], text
