# SPDX-License-Identifier: Apache-2.0
"""Input descriptors: what a case feeds, as data. `realize` draws them in numpy with a seed."""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Input:
    """An array to be drawn: kind names the rule, shape and values its arguments."""

    kind: str
    shape: tuple = ()
    values: tuple = ()

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """float64, int64 or bool array."""
        if self.kind == "normal":
            mean, scale = self.values
            return mean + scale * rng.standard_normal(self.shape)
        if self.kind == "integers":
            return rng.integers(0, self.values[0], self.shape)
        if self.kind == "array":
            return np.array(self.values).reshape(self.shape)
        if self.kind == "lengths":
            width, lengths = self.values
            return (np.arange(width) < np.array(lengths)[..., None]).astype(np.float64)
        if self.kind == "linspace":
            low, high = self.values
            return np.linspace(low, high, int(np.prod(self.shape))).reshape(self.shape)
        if self.kind == "diagonal":
            return np.broadcast_to(self.values[0] * np.eye(*self.shape[-2:]), self.shape).copy()
        raise ValueError(f"unknown input kind {self.kind!r}")


@dataclass(frozen=True)
class Layout:
    """A `TokenLayout` of the model under test; each framework decodes it to its own class."""

    batch: int
    frames: int
    tokens: int
    attend: str = "space"


@dataclass(frozen=True)
class Seed:
    """A seeded numpy generator; each framework gets its own with the same state."""

    seed: int


def normal(*shape: int, scale: float = 1.0, mean: float = 0.0) -> Input:
    """Normal numbers."""
    return Input("normal", shape, (mean, scale))


def integers(*shape: int, high: int) -> Input:
    """Integers in [0, high)."""
    return Input("integers", shape, (high,))


def array(values: list, shape: tuple | None = None) -> Input:
    """Literal numbers, integers or booleans."""
    flat = np.array(values)
    return Input("array", flat.shape if shape is None else shape, tuple(flat.reshape(-1).tolist()))


def lengths(width: int, kept: list) -> Input:
    """Text mask: 1 for the first `kept` of `width` tokens, 0 behind them; nested lists give further axes."""
    return Input("lengths", (), (width, kept))


def linspace(low: float, high: float, *shape: int) -> Input:
    """Evenly spaced numbers, row-major."""
    return Input("linspace", shape, (low, high))


def diagonal(value: float, *shape: int) -> Input:
    """value on the diagonal of the last two axes, zero elsewhere: row i meets row i alone in a product."""
    return Input("diagonal", shape, (value,))


def realize(inputs: dict[str, Any], seed: int) -> dict[str, Any]:
    """Draw all inputs of a case; each from its own generator, so that adding one changes no other."""
    drawn = {}
    for name, value in inputs.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if isinstance(value, dict):
            drawn[name] = realize(value, seed)
        else:
            drawn[name] = value.draw(rng) if isinstance(value, Input) else value
    return drawn
