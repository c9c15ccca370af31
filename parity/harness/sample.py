# SPDX-License-Identifier: Apache-2.0
"""Values at fixed positions of an array that is too large to keep, with statistics of the whole.

Both sides of a comparison are sampled alike; the statistics give lower bounds of the errors outside the sample.
"""

import math
import zlib
from dataclasses import astuple, dataclass, replace
from functools import lru_cache

import numpy as np

from parity.harness import gates
from parity.harness.gates import CHUNK, Metrics


@dataclass(frozen=True)
class Statistics:
    """Of a whole array: sum, sum of squares, least and largest of its finite values, counts of the others."""

    total: float
    squares: float
    low: float
    high: float
    nan: int
    plus: int
    minus: int

    @property
    def nonfinite(self) -> tuple[int, int, int]:
        """Counts of NaN, +Inf, -Inf."""
        return self.nan, self.plus, self.minus


class Sampled(np.ndarray):
    """A flat array of the values at `positions(whole, size)` of an array of shape `whole`."""

    whole: tuple
    statistics: Statistics


def sample(array: np.ndarray, count: int) -> np.ndarray:
    """The array as `Sampled`, or itself where it has no more than `count` values or no floating point numbers."""
    if array.size <= count or array.dtype.kind != "f":
        return array
    values = np.asarray(array).reshape(-1)[positions(array.shape, count)]
    return restore(values, array.shape, statistics(array))


def restore(values: np.ndarray, whole: tuple, of_whole: Statistics) -> Sampled:
    """A `Sampled` from its parts."""
    sampled = np.ascontiguousarray(values).view(Sampled)
    sampled.whole, sampled.statistics = tuple(whole), of_whole
    return sampled


@lru_cache(maxsize=64)
def positions(shape: tuple, count: int) -> np.ndarray:
    """Flat positions, ascending, chosen by a hash of the shape: equal shapes are sampled at equal places."""
    rng = np.random.default_rng([count, zlib.crc32(repr(tuple(map(int, shape))).encode())])
    return np.sort(rng.choice(math.prod(shape), count, replace=False))


def statistics(array: np.ndarray) -> Statistics:
    """Statistics in float64, in chunks."""
    flat = np.asarray(array).reshape(-1)
    found = Statistics(0.0, 0.0, math.inf, -math.inf, 0, 0, 0)
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK].astype(np.float64)
        counts = [int(np.count_nonzero(test(part))) for test in (np.isnan, np.isposinf, np.isneginf)]
        if any(counts):
            part = part[np.isfinite(part)]
        total, squares = found.total + part.sum(), found.squares + part @ part
        low, high = (part.min(), part.max()) if part.size else (math.inf, -math.inf)
        _, _, least, most, *before = astuple(found)
        counts = [a + b for a, b in zip(before, counts, strict=True)]
        found = Statistics(
            float(total), float(squares), min(least, float(low)), max(most, float(high)), *counts
        )
    return found


def shape_of(array: np.ndarray) -> tuple:
    """The shape of the whole array."""
    return tuple(getattr(array, "whole", array.shape))


def place(array: np.ndarray, flat: int) -> tuple[int, ...]:
    """Index in the whole array of the value at a flat position of what was kept of it."""
    if isinstance(array, Sampled):
        flat = positions(array.whole, array.size)[flat]
    return tuple(int(i) for i in np.unravel_index(flat, shape_of(array)))


def compare(c: np.ndarray, r: np.ndarray, t: np.ndarray, dtype: str) -> Metrics:
    """`gates.compare`; sampled arrays are compared at their positions, then by what their statistics prove."""
    metrics = gates.compare(c, r, t, dtype)
    if not any(isinstance(x, Sampled) for x in (c, r, t)) or metrics.problem:
        return metrics
    if not shape_of(c) == shape_of(r) == shape_of(t):
        return _spoiled(metrics, f"shape {shape_of(c)} of the port, {shape_of(r)} of the reference")
    if c.statistics.nonfinite != r.statistics.nonfinite:
        counts = "NaN, +Inf, -Inf: {} {} {} in the port, {} {} {} in the reference"
        return _spoiled(metrics, counts.format(*c.statistics.nonfinite, *r.statistics.nonfinite))
    return bounded(metrics, c.statistics, r.statistics, t.statistics, math.prod(t.whole))


def bounded(metrics: Metrics, c: Statistics, r: Statistics, t: Statistics, n: int) -> Metrics:
    """Metrics of a sample, raised to what the whole arrays prove.

    | |x| - |t| | and |sum(x) - sum(t)| / sqrt(n) are at most |x - t|; max(x) - max(t) is at most max |x - t|.
    """
    norm = math.sqrt(t.squares)
    if not norm:
        return metrics
    rms = norm / math.sqrt(n)

    def errors(x: Statistics) -> tuple[float, float]:
        distance = max(abs(math.sqrt(x.squares) - norm), abs(x.total - t.total) / math.sqrt(n))
        return distance / norm, max(abs(x.high - t.high), abs(x.low - t.low))

    (e_c, peak_c), (e_r, peak_r) = errors(c), errors(r)
    return replace(
        metrics,
        e_c=max(metrics.e_c, e_c),
        e_r=max(metrics.e_r, e_r),
        m_c=max(metrics.m_c, peak_c / rms),
        m_r=max(metrics.m_r, peak_r / rms),
        max_abs=max(metrics.max_abs, peak_c),
        peak=max(abs(t.high), abs(t.low)) / rms,
        size=n,
        norm=norm,
    )


def _spoiled(metrics: Metrics, problem: str) -> Metrics:
    return replace(metrics, problem=problem, e_c=math.inf, m_c=math.inf, max_abs=math.inf)
