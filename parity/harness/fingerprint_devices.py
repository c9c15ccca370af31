# SPDX-License-Identifier: Apache-2.0
"""Emulated devices, in numpy: they answer the probes of `fingerprint` as a device of that arithmetic would.

They stand in for hardware that is not at hand. Products are exact (float64 holds two float32 factors), partial sums
are rounded to the accumulator one after the other, results once to the type.
"""

from dataclasses import dataclass

import numpy as np

from parity.harness.fingerprint import KNOWN_GOOD, elementary

# name -> (significant bits with the hidden one, smallest and largest exponent of a normal number)
GRIDS = {
    "fp64": (53, -1022, 1023),
    "fp32": (24, -126, 127),
    "HF32": (12, -126, 127),
    "TF32": (11, -126, 127),
    "fp16": (11, -14, 15),
    "bf16": (8, -126, 127),
}


def round_to(x: np.ndarray, grid: str, truncate: bool = False) -> np.ndarray:
    """Values of a format, in float64: rounded to nearest even (or towards zero), with subnormals and overflow."""
    bits, low, high = GRIDS[grid]
    x = np.asarray(x, np.float64)
    if grid == "fp64":
        return x
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        exponent = np.maximum(np.frexp(x)[1] - 1, low)  # subnormals share the exponent of the smallest normal
        unit = np.ldexp(1.0, exponent - (bits - 1))
        scaled = x / unit
        rounded = (np.trunc(scaled) if truncate else np.rint(scaled)) * unit
        largest = np.ldexp(2 - 2.0 ** (1 - bits), high)
        beyond = np.copysign(largest if truncate else np.inf, x)
        rounded = np.where(np.abs(rounded) > largest, beyond, rounded)
    return np.where(np.isfinite(x), rounded, x)


@dataclass(frozen=True)
class EmulatedDevice:
    """matmul, conv: format of the inputs of float32 products. accumulate: of partial sums; half_accumulate: the
    same for half-precision inputs. truncate: formats whose numbers are cut, not rounded. flush: subnormals are zero."""

    name: str
    matmul: str = "fp32"
    conv: str = "fp32"
    accumulate: str = "fp32"
    half_accumulate: str = "fp32"
    truncate: tuple = ()
    flush: bool = False

    def __call__(self, op: str, dtype: str, arrays: tuple) -> np.ndarray:
        arrays = tuple(self._flushed(array) for array in arrays)
        if op == "cast":
            return self._result(arrays[0], dtype)
        if op in ("matmul", "conv"):
            return self._product(op, dtype, *arrays)
        if op == "sum":
            return self._result(self._add_up(arrays[0].astype(np.float64), dtype), dtype)
        if op == "multiply":
            return self._result(arrays[0].astype(np.float64) * arrays[1], dtype)
        if op in KNOWN_GOOD:
            return self._result(KNOWN_GOOD[op](*(array.astype(np.float64) for array in arrays)), dtype)
        return self._result(elementary()[op][1](arrays[0].astype(np.float64)), dtype)

    def _product(self, op, dtype, left, right):
        if op == "conv":  # the probes' kernels have one pixel: a product of a column and a row
            left, right = left.reshape(len(left), -1), right.reshape(len(right), -1).T
        used = dtype if dtype != "fp32" else (self.matmul if op == "matmul" else self.conv)
        cut = used in self.truncate
        left, right = round_to(left, used, cut), round_to(right, used, cut)
        with np.errstate(invalid="ignore", over="ignore"):
            terms = left[:, :, None] * right[None, :, :]  # (M, K, N)
            return self._result(self._add_up(np.moveaxis(terms, 1, -1), dtype), dtype)

    def _add_up(self, terms, dtype):
        grid = self.accumulate if dtype == "fp32" else self.half_accumulate
        total = np.zeros(terms.shape[:-1])
        with np.errstate(invalid="ignore", over="ignore"):
            for index in range(terms.shape[-1]):
                total = round_to(total + terms[..., index], grid)
        return total

    def _result(self, x, dtype):
        x = round_to(round_to(x, dtype, dtype in self.truncate), "fp32")
        with np.errstate(over="ignore"):
            return self._flushed(x.astype(np.float32))

    def _flushed(self, x):
        small = self.flush & (np.abs(x) < np.float32(2.0**-126))
        return np.where(small, np.copysign(np.float32(0), x), x)


DEVICES = {
    device.name: device
    for device in (
        EmulatedDevice("fp32"),
        EmulatedDevice("hf32", matmul="HF32", conv="HF32"),
        EmulatedDevice("hf32-conv", conv="HF32"),  # what CANN does unless told otherwise
        EmulatedDevice("tf32", matmul="TF32", conv="TF32"),
        EmulatedDevice("fp16-cube", matmul="fp16", conv="fp16"),
        EmulatedDevice("bf16", matmul="bf16", conv="bf16"),
        EmulatedDevice("fp16-accumulator", half_accumulate="fp16"),
        EmulatedDevice("bf16-truncating", truncate=("bf16",)),
        EmulatedDevice("hf32-truncating", matmul="HF32", conv="HF32", truncate=("HF32",)),
        EmulatedDevice("flush-to-zero", flush=True),
    )
}
