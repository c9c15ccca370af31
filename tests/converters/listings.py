# SPDX-License-Identifier: Apache-2.0
"""The names and shapes of the published models, as data, and entries to try tables on."""

from pathlib import Path

import numpy as np

from converters.stream import TensorEntry

LISTINGS = Path(__file__).parents[1] / "data" / "listings"


def listing(name):
    """Tensor name -> shape of a real model, from tests/data/listings."""
    lines = [line.split() for line in (LISTINGS / f"{name}.txt").read_text().splitlines()]
    return {name: tuple(map(int, axes.split(","))) for name, axes in lines}


def unread(shapes):
    """Entries that cannot be read: names and shapes are all that may be looked at."""

    def fail():
        raise AssertionError("weights were read")

    return {name: TensorEntry("F32", shape, fail) for name, shape in shapes.items()}


def shapes_of(entries):
    return {name: tuple(entry.shape) for name, entry in entries.items()}


def entries_of(state):
    """torch tensors or arrays as entries."""
    arrays = {name: np.asarray(value) for name, value in state.items()}
    return {name: TensorEntry("F32", a.shape, lambda a=a: a) for name, a in arrays.items()}


def arrays_of(entries):
    return {name: np.ascontiguousarray(entry.read()) for name, entry in entries.items()}


def same_bits(a, b):
    assert a.keys() == b.keys()
    return all(a[name].shape == b[name].shape and a[name].tobytes() == b[name].tobytes() for name in a)
