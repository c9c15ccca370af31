# SPDX-License-Identifier: Apache-2.0
"""Weights that can tell the truth: seeded, non-degenerate (fresh adaLN-Zero models output exactly 0),
and their digests.
"""

import hashlib
import zlib
from collections.abc import Mapping

import numpy as np

SMALL = 0.5  # gain of modulation weights: keeps 1 + scale and gates of order one through 28 layers


def random_parameter(name: str, shape: tuple, seed: int) -> np.ndarray:
    """One parameter, float32: weights N(0, 1/fan_in), biases and tables non-zero, norm weights around 1.

    Every parameter has a generator of its own (seed and name), so that no draw depends on the order of a model.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    value = rng.standard_normal(shape, dtype=np.float32)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "bias":
        value *= 0.2
    elif leaf == "scale_shift_table":
        value *= 0.3
    elif name in ("pos_embed", "temp_embed") or "embedding_table" in name or name.startswith("emb."):
        value *= 0.7
    elif len(shape) == 1:  # weight of an affine norm
        value = 1 + 0.2 * value
    else:
        value *= np.float32(1 / np.sqrt(np.prod(shape[1:])))
        if "adaLN_modulation" in name or "adaln_single.linear" in name:
            value *= SMALL
    return np.asarray(value, np.float32)


def random_state(shapes: Mapping[str, tuple], seed: int) -> dict[str, np.ndarray]:
    """name -> array for all parameters."""
    return {name: random_parameter(name, tuple(shape), seed) for name, shape in shapes.items()}


def constant(value: np.ndarray) -> bool:
    """Whether all numbers are equal. (Their standard deviation need not be 0: their mean is rounded.)"""
    return bool(value.min() == value.max())


def degenerate(state: Mapping[str, np.ndarray]) -> list[str]:
    """Reasons why weights could hide a bug: constant parameters, zeros, two equal parameters of one shape."""
    reasons, seen = [], {}
    for name, value in state.items():
        if value.size > 1 and constant(value):
            reasons.append(f"{name} is constant")
        key = (value.shape, digest(value))
        if value.size > 1 and key in seen:
            reasons.append(f"{name} equals {seen[key]}")
        seen[key] = name
    return reasons


def digest(array: np.ndarray) -> str:
    """Hash of the bits of a float32 (or float64, integer) array."""
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).hexdigest()
