# SPDX-License-Identifier: Apache-2.0
"""Numbers and tables as constant tensors: computed once in numpy, kept, and visible to the graph compiler as
constants.

This file has no twin: torch needs neither the float64 wrapping nor constant expressions.
"""

from functools import lru_cache

import mindspore as ms
import numpy as np
from mindspore import ops

from ms_latte.models.positional import get_1d_sincos_pos_embed, get_2d_sincos_pos_embed, timestep_frequencies


def constant(value, like):
    """A number to combine with the tensor `like`: MindSpore rounds a Python number to float32 even beside
    float64."""
    return _float64(value) if like.dtype == ms.float64 else value


@ops.constexpr
def _float64(value):
    return ms.Tensor(value, ms.float64)


@ops.constexpr
def sincos_1d(embed_dim, length, interpolation_scale, double):
    """`get_1d_sincos_pos_embed` as a tensor, (length, embed_dim)."""
    return _sincos_1d(embed_dim, length, interpolation_scale, double)


@ops.constexpr
def sincos_2d(embed_dim, height, width, base_size, interpolation_scale, double):
    """`get_2d_sincos_pos_embed` as a tensor, (height * width, embed_dim)."""
    return _sincos_2d(embed_dim, height, width, base_size, interpolation_scale, double)


@ops.constexpr
def frequencies(dim, double, downscale_freq_shift=0):
    """`timestep_frequencies` as a tensor, (dim // 2,)."""
    return _frequencies(dim, double, downscale_freq_shift)


@lru_cache(maxsize=16)
def _sincos_1d(embed_dim, length, interpolation_scale, double):
    return _tensor(get_1d_sincos_pos_embed(embed_dim, length, interpolation_scale), double)


@lru_cache(maxsize=16)
def _sincos_2d(embed_dim, height, width, base_size, interpolation_scale, double):
    return _tensor(
        get_2d_sincos_pos_embed(embed_dim, (height, width), base_size, interpolation_scale), double
    )


@lru_cache(maxsize=4)
def _frequencies(dim, double, downscale_freq_shift):
    table = timestep_frequencies(dim, double=double, downscale_freq_shift=downscale_freq_shift)
    return _tensor(table, double)


def _tensor(table, double):
    return ms.Tensor(table.astype(np.float64 if double else np.float32))
