# SPDX-License-Identifier: Apache-2.0
"""The one object that decides in which numbers a model computes."""

from dataclasses import dataclass

import mindspore as ms
from mindspore import mint, ops

from ms_latte.device import formulation

DTYPES = {"fp64": ms.float64, "fp32": ms.float32, "fp16": ms.float16, "bf16": ms.bfloat16}


@ms.jit_class
@dataclass(frozen=True)
class Precision:
    """Compute type, fp32 islands and rounding mode of a model.

    compute: "fp64", "fp32", "fp16" or "bf16": the type of weights, activations and matrix products.
    islands: "fp32" keeps the timestep sinusoid, position tables, modulation vectors, LayerNorm and softmax in float32
        (recommended); "compute" does all of it in the compute type, as the published originals do after `.half()`.
    rounding: "native" uses tensors of the compute type. "emulated" holds values of the half grid in float32 tensors,
        computes in float32 and rounds once at the end of every operation: half-precision numbers on a device
        that has no half-precision kernels, as an accelerator with a float32 accumulator computes them.
    "fp64" turns islands, sinusoid and tables to float64 too: it is the truth that the other policies are judged by.

    Raises ValueError for a word that is not listed above.
    """

    compute: str = "fp32"
    islands: str = "fp32"
    rounding: str = "native"

    def __post_init__(self):
        for name, value, allowed in (
            ("compute", self.compute, tuple(DTYPES)),
            ("islands", self.islands, ("fp32", "compute")),
            ("rounding", self.rounding, ("native", "emulated")),
        ):
            if value not in allowed:
                raise ValueError(f"Precision.{name} is {value!r}; expected one of {', '.join(allowed)}")

    @property
    def half(self):
        """True for fp16 and bf16."""
        return self.compute in ("fp16", "bf16")

    @property
    def emulated(self):
        """True where half-precision values are held in float32 tensors."""
        return self.half and self.rounding == "emulated"

    @property
    def dtype(self):
        """Type of the tensors that hold weights and activations."""
        return ms.float32 if self.emulated else DTYPES[self.compute]

    @property
    def island_dtype(self):
        """Type in which the islands compute."""
        return ms.float32 if self.half and (self.emulated or self.islands == "fp32") else self.dtype

    @property
    def table_dtype(self):
        """Type of position tables and of the timestep sinusoid: float32 in every policy but fp64."""
        return ms.float64 if self.compute == "fp64" else ms.float32

    def up(self, x):
        """x in the island type."""
        return (
            x if x.dtype == self.island_dtype else ops.cast(x, self.island_dtype)
        )  # MS: a cast to itself copies

    def step(self, x):
        """An intermediate result inside an operation: rounded only when the islands follow the compute
        type."""
        return self._grid(x) if self.islands == "compute" else x

    def round(self, x):
        """The result of an operation: rounded once to the compute type."""
        if self.emulated:
            return self._grid(x)
        return x if x.dtype == self.dtype else ops.cast(x, self.dtype)  # MS: a cast to itself copies

    def _grid(self, x):
        return HALF_GRID[formulation("half_grid")](x, DTYPES[self.compute]) if self.emulated else x


def _by_cast(x, dtype):
    return ops.cast(ops.cast(x, dtype), x.dtype)


def _by_copy(x, dtype):
    # MindSpore's CPU cast takes ten times as long as a copy. Equal bits, but a gradient passes a copy unrounded.
    half, out = mint.empty_like(x, dtype=dtype), mint.empty_like(x)
    half.copy_(x)
    out.copy_(half)
    return out


# Formulations of the rounding of a float32 tensor to a half grid; "copy" is for a PyNative forward alone.
HALF_GRID = {"cast": _by_cast, "copy": _by_copy}
