# SPDX-License-Identifier: Apache-2.0
"""Cases of `models/precision.py`: the grids themselves, subnormals and ties included."""

from parity.harness.case import Case
from parity.harness.inputs import array, normal

TIES = array(
    [1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 2.0**-24, 2.0**-25, 1e-40, -0.0, 65504.0]
)

CASES = [
    Case(
        "Precision",
        dict(compute="fp16", rounding="emulated"),
        dict(x=normal(40, 24)),
        "fp16",
        "round",
        dtypes=("fp32",),
    ),
    Case(
        "Precision",
        dict(compute="bf16", rounding="emulated"),
        dict(x=normal(40, 24)),
        "bf16",
        "round",
        dtypes=("fp32",),
    ),
    Case(
        "Precision",
        dict(compute="fp16", rounding="emulated"),
        dict(x=TIES),
        "fp16_ties",
        "round",
        dtypes=("fp32",),
    ),
    Case(
        "Precision",
        dict(compute="bf16", rounding="emulated"),
        dict(x=TIES),
        "bf16_ties",
        "round",
        dtypes=("fp32",),
    ),
    # Values that float16 does not hold and bf16 does (rounding_by_float16).
    Case(
        "Precision",
        dict(compute="bf16", rounding="emulated"),
        dict(x=array([1e5, -3e30, 7e-30, 1.5])),
        "probe_bf16_range",
        "round",
        dtypes=("fp32",),
        probe="range of bf16",
    ),
]
