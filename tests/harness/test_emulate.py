# SPDX-License-Identifier: Apache-2.0
"""Rounding to half grids against numpy's float16, an independent bfloat16, and torch where it is installed."""

import numpy as np
import pytest

from parity.harness.emulate import UNIT_ROUNDOFF, on_grid, to_grid


def special():
    """Ties, neighbours of ties, subnormals, limits, signed zeros, infinities, NaN, and normal numbers; float32."""
    ties = [1 + k * 2.0**-e for e in (8, 9, 11, 12) for k in (1, 2, 3, 5)]
    tiny = [k * 2.0**e for e in (-149, -134, -133, -126, -25, -24, -14) for k in (1, 1.5, 2, 2.5, 3)]
    large = [65504, 65519.99, 65520, 65536, 3.3895314e38, 3.3961775e38, 3.4028235e38]
    base = np.array([0.0, *ties, *tiny, *large], np.float32)
    with np.errstate(over="ignore"):
        base = np.concatenate(
            [base, np.nextafter(base, np.float32(np.inf)), np.nextafter(base, np.float32(0))]
        )
    rng = np.random.default_rng(3)
    wide = rng.standard_normal(4000) * 2.0 ** rng.integers(-140, 120, 4000)
    base = np.concatenate([base, wide.astype(np.float32)])
    return np.concatenate([base, -base, np.array([np.inf, -np.inf, np.nan], np.float32)])


def bfloat16(values):
    """Round to nearest even by arithmetic in float64: no bit tricks shared with the code under test."""
    x = values.astype(np.float64)
    _, exponent = np.frexp(np.where(np.isfinite(x), x, 1.0))
    step = np.exp2(
        np.maximum(exponent - 8, -133).astype(np.float64)
    )  # 8 significant bits; subnormals share one step
    rounded = np.where(np.isfinite(x), np.rint(np.where(np.isfinite(x), x, 0) / step) * step, x)
    largest = (2 - 2.0**-7) * 2.0**127
    return np.where(np.abs(rounded) > largest, np.copysign(np.inf, x), rounded)


def same_bits(a, b):
    nan = np.isnan(a)
    assert np.array_equal(nan, np.isnan(b))
    a, b = a[~nan], b[~nan]
    wrong = a.astype(np.float32).view(np.uint32) != b.astype(np.float32).view(np.uint32)
    assert not wrong.any(), (a[wrong][:4], b[wrong][:4])


def test_float16_is_numpys():
    with np.errstate(over="ignore"):
        same_bits(to_grid(special(), "fp16"), special().astype(np.float16).astype(np.float32))


def test_bfloat16_is_round_to_nearest_even():
    same_bits(to_grid(special(), "bf16"), bfloat16(special()))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_both_are_torchs(dtype):
    torch = pytest.importorskip("torch")
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    same_bits(to_grid(special(), dtype), torch.from_numpy(special()).to(kind).float().numpy())


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("fp16", 1 + 2.0**-11, 1.0),
        ("fp16", 1 + 3 * 2.0**-11, 1 + 2.0**-9),
        ("fp16", 2.0**-25, 0.0),
        ("fp16", 3 * 2.0**-25, 2.0**-23),
        ("fp16", 65519.0, 65504.0),
        ("fp16", 65520.0, np.inf),
        ("bf16", 1 + 2.0**-8, 1.0),
        ("bf16", 1 + 3 * 2.0**-8, 1 + 2.0**-6),
        ("bf16", 2.0**-134, 0.0),
        ("bf16", 3.4e38, np.inf),
        ("bf16", -np.inf, -np.inf),
    ],
)
def test_literal_values(dtype, value, expected):
    assert to_grid(np.array([value]), dtype)[0] == expected


def test_every_payload_of_nan_stays_nan():
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(np.float32)
    for dtype in UNIT_ROUNDOFF:
        assert np.isnan(to_grid(nans, dtype)).all(), dtype


@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
def test_shape_type_and_order_survive(dtype):
    held = np.float64 if dtype == "fp64" else np.float32
    for array in (
        np.float32(1.1) * np.ones((), np.float32),
        np.ones((0, 3)),
        np.arange(6.0).reshape(2, 3).T / 7,
    ):
        rounded = to_grid(array, dtype)
        assert rounded.shape == array.shape and rounded.dtype == held
        assert on_grid(rounded, dtype)
        assert np.array_equal(to_grid(rounded, dtype), rounded)
    ids = np.array([1, 70001])
    assert to_grid(ids, dtype) is ids
    flags = np.array([True])
    assert to_grid(flags, dtype) is flags


def test_rounding_does_not_touch_its_argument():
    for dtype in ("fp16", "bf16"):
        array = special()
        before = array.tobytes()
        to_grid(array, dtype)
        assert array.tobytes() == before


def test_float64_starts_from_the_bits_of_float32():
    x = np.array([0.1, 1 / 3])
    assert np.array_equal(to_grid(x, "fp64"), x.astype(np.float32).astype(np.float64))


def test_on_grid():
    x = np.array([1.0, np.nan, np.inf, 0.5], np.float32)
    assert on_grid(x, "fp16") and on_grid(x, "bf16")
    off = np.array([1 + 2.0**-12], np.float32)
    assert not on_grid(off, "fp16") and not on_grid(off, "bf16") and on_grid(off, "fp32")


def test_error_is_at_most_the_unit_roundoff():
    x = np.random.default_rng(0).standard_normal(10000).astype(np.float32)
    for dtype in ("fp16", "bf16"):
        error = np.abs(to_grid(x, dtype).astype(np.float64) - x) / np.abs(x)
        normal = np.abs(x) > 2.0**-14
        assert 0.9 * UNIT_ROUNDOFF[dtype] < error[normal].max() <= UNIT_ROUNDOFF[dtype]


def test_unknown_dtype():
    with pytest.raises(ValueError, match="unknown dtype 'fp8'; expected one of fp64, fp32, fp16, bf16"):
        to_grid(np.ones(1), "fp8")
