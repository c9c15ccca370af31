# SPDX-License-Identifier: Apache-2.0
"""Rounding to the grids of the tested types, in numpy, bit for bit as the frameworks' casts."""

import numpy as np

UNIT_ROUNDOFF = {"fp64": 2.0**-53, "fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}


def to_grid(array: np.ndarray, dtype: str) -> np.ndarray:
    """Round to nearest even on the grid of `dtype`, held in float32 (float64 for "fp64"). Integers pass unchanged.

    "fp64" keeps float32 values in float64 arrays: the semantic gate starts from the same bits as the others.
    Raises ValueError for an unknown dtype.
    """
    if array.dtype.kind != "f":
        return array
    if dtype == "fp64":
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # overflow is judged elsewhere; NaNs may be signalling
            return array.astype(np.float32).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        array = array.astype(np.float32, copy=False)
    if dtype == "fp32":
        return array
    if dtype == "fp16":
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(np.float16).astype(np.float32)
    if dtype == "bf16":
        bits = np.ascontiguousarray(array).view(np.uint32)
        rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
        rounded = (rounded & np.uint32(0xFFFF0000)).view(np.float32).reshape(array.shape)
        return np.where(np.isnan(array), array, rounded)  # a NaN's payload must not round up to infinity
    raise ValueError(f"unknown dtype {dtype!r}; expected one of {', '.join(UNIT_ROUNDOFF)}")


def on_grid(array: np.ndarray, dtype: str) -> bool:
    """Whether every value is representable in `dtype`."""
    if array.dtype.kind != "f" or dtype in ("fp32", "fp64"):
        return True
    return bool(np.array_equal(to_grid(array, dtype), array.astype(np.float32), equal_nan=True))
