# SPDX-License-Identifier: Apache-2.0
"""The control of a device that rounds the float32 inputs of its products: torch that multiplies the same way.

The mode works below autograd, so that the products of a gradient are rounded like those of a forward pass.
"""

import contextlib
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

# operator -> (unit of the device, places of the factors among its arguments)
FACTORS = {
    "mm": ("matmul", (0, 1)),
    "bmm": ("matmul", (0, 1)),
    "mv": ("matmul", (0, 1)),
    "dot": ("matmul", (0, 1)),
    "addmm": ("matmul", (1, 2)),
    "baddbmm": ("matmul", (1, 2)),
    "addmv": ("matmul", (1, 2)),
    "convolution": ("conv", (0, 1)),
    "convolution_backward": ("conv", (0, 1, 2)),
}
FUSED = ("attention", "linear", "einsum", "addr", "rnn", "lstm", "gru")  # they would multiply unseen
DROPPED = {"HF32": 12, "TF32": 13, "bf16": 16}  # of the 23 stored bits of a fraction
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def rounded(x: torch.Tensor, grid: str) -> torch.Tensor:
    """float32 values rounded to nearest even on the grid "HF32", "TF32", "fp16" or "bf16", held in float32."""
    if grid == "fp16":
        return x.half().float()
    bits, drop = x.contiguous().view(torch.int32), DROPPED[grid]
    odd = (bits >> drop) & 1
    kept = ((bits + ((1 << (drop - 1)) - 1) + odd) & -(1 << drop)).view(torch.float32)
    return torch.where(torch.isfinite(x), kept, x)  # a NaN's payload must not carry into its sign


class Products(TorchDispatchMode):
    """While active, factors of float32 products are rounded. formats: {"matmul": "HF32", "conv": "fp32"}, say.

    dtype: the tested type. Where that is a half type, tensors on its grid belong to products of that type, which a
    device does not round again; only the float32 islands are rounded. Operators that multiply inside and are not
    listed in FACTORS raise NotImplementedError.
    """

    def __init__(self, formats: dict[str, str], dtype: str):
        super().__init__()
        self.formats, self.half = formats, HALF.get(dtype)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name not in FACTORS:
            if any(word in name for word in FUSED):
                raise NotImplementedError(f"{name} multiplies inside; no control of rounded products has it")
            return func(*args, **(kwargs or {}))
        unit, places = FACTORS[name]
        given = [self._factor(x, unit) if place in places else x for place, x in enumerate(args)]
        out = func(*given, **(kwargs or {}))
        if name == "convolution_backward" and out[2] is not None:  # a sum of the gradient, no product
            gradient = args[0]
            out = (*out[:2], gradient.sum([axis for axis in range(gradient.ndim) if axis != 1]))
        return out

    def _factor(self, x: torch.Tensor, unit: str) -> torch.Tensor:
        grid = self.formats.get(unit, "fp32")
        if grid == "fp32" or x.dtype != torch.float32:
            return x
        if self.half is not None and bool(((x.to(self.half).float() == x) | x.isnan()).all()):
            return x
        return rounded(x, grid)


@contextlib.contextmanager
def arithmetic(formats: dict[str, str], dtype: str) -> Any:
    """Products of the given formats; fused attention is taken apart. Nothing changes without formats."""
    if not formats:
        yield
        return
    with sdpa_kernel(SDPBackend.MATH), Products(formats, dtype):
        yield
