# SPDX-License-Identifier: Apache-2.0
"""Position and timestep tables, in numpy float64.

Sources: the sine-cosine tables of MAE as used by Vchitect/Latte `models/latte.py` and by diffusers
`models/embeddings.py` (`get_2d_sincos_pos_embed`); the timestep sinusoid of OpenAI GLIDE as used by both.
"""

import math

import numpy as np


def get_1d_sincos_pos_embed(embed_dim, length, interpolation_scale=1.0):
    """Table of positions 0 .. length-1, divided by `interpolation_scale`.

    Returns (length, embed_dim) float64, [sin | cos] halves, frequencies 10000^(-k / (embed_dim / 2)).
    Raises ValueError if embed_dim is odd.
    """
    return _sincos(embed_dim, np.arange(length, dtype=np.float64) / interpolation_scale)


def get_2d_sincos_pos_embed(embed_dim, grid_size, base_size=None, interpolation_scale=1.0):
    """Table of a grid of patches, row-major.

    grid_size: int or (h, w), patches. base_size: int or (h, w), or None: the grid is rescaled to span
    [0, base_size / interpolation_scale) on each axis; None means the grid itself (plain 0, 1, 2 ...).
    Returns (h * w, embed_dim) float64; the first half of the width encodes the column, the second half the
    row. Raises ValueError if embed_dim is not divisible by 4.
    """
    if embed_dim % 4:
        raise ValueError(f"embed_dim of a 2-D table must be divisible by 4, got {embed_dim}")
    h, w = _pair(grid_size)
    base_h, base_w = (h, w) if base_size is None else _pair(base_size)
    rows = np.arange(h, dtype=np.float64) / (h / base_h) / interpolation_scale
    columns = np.arange(w, dtype=np.float64) / (w / base_w) / interpolation_scale
    rows, columns = np.repeat(rows, w), np.tile(columns, h)  # (h*w,) each, row-major
    # QUIRK(column_first): the originals take the meshgrid with w first; released weights were trained so.
    return np.concatenate([_sincos(embed_dim // 2, columns), _sincos(embed_dim // 2, rows)], axis=1)


def timestep_frequencies(dim, max_period=10000.0, double=False, downscale_freq_shift=0):
    """Angular frequencies of the timestep sinusoid: exp(-ln(max_period) * i / (dim // 2 - downscale_freq_shift)).

    Returns (dim // 2,). double=False gives float32 in the originals' order (the exponent is rounded to
    float32 first), so that angles agree with theirs to the last bit or two even at t = 999; double=True gives
    float64.
    """
    half, span = dim // 2, dim // 2 - downscale_freq_shift
    if double:
        return np.exp(-math.log(max_period) * np.arange(half, dtype=np.float64) / span)
    exponent = -np.float32(math.log(max_period)) * np.arange(half, dtype=np.float32) / np.float32(span)
    return np.exp(exponent.astype(np.float64)).astype(np.float32)


def _sincos(embed_dim, positions):
    if embed_dim % 2:
        raise ValueError(f"embed_dim of a sine-cosine table must be even, got {embed_dim}")
    omega = 10000.0 ** (-np.arange(embed_dim // 2, dtype=np.float64) / (embed_dim / 2))
    angles = positions[:, None] * omega[None, :]  # (M, embed_dim/2)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def _pair(size):
    return (size, size) if isinstance(size, int) else tuple(size)
