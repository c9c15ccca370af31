# SPDX-License-Identifier: Apache-2.0
"""Factories of mindone's and diffusers' models, and what mindone 0.5.0 needs to run on MindSpore's CPU kernels.

Only worker processes import this file. `cpu_forms` changes MindSpore for the whole process: a worker of a
comparison serves nothing else. On Ascend nothing is replaced (not yet run on the device).
"""

import importlib
import importlib.util
import math

MISSING = (
    "mindone is not installed; it is an optional extra. Remedy: pip install mindone==0.5.0 (it brings diffusers "
    "and transformers; MindSpore 2.10 needs numpy<2)"
)


def diffusers_model(name: str, config: dict):
    """A model class of diffusers, constructed."""
    return getattr(importlib.import_module("diffusers"), name)(**config)


def mindone_model(name: str, config: dict):
    """The class of the same name in mindone.diffusers, constructed. Raises RuntimeError without mindone."""
    import mindspore as ms

    if importlib.util.find_spec("mindone") is None:
        raise RuntimeError(MISSING)
    if ms.get_context("device_target") == "CPU":
        cpu_forms()
    return getattr(importlib.import_module("mindone.diffusers"), name)(**config)


def cpu_forms() -> None:
    """Give what has no CPU kernel in MindSpore 2.10 a formulation of the same mathematics.

    Constructors call mint.arange, stack, outer and randn (zeros: every parameter is filled later). Forwards call
    mint.einsum (permutations only), GELU, LayerNorm without weights, Conv2d (patches only), Embedding and
    Tensor.repeat_interleave. Everything else of mindone runs as it is, mint.exp among it; a disagreement in one of
    the layers named here would first have to be looked for in this function.
    """
    import mindspore as ms
    import numpy as np
    from mindspore import mint

    from parity.harness.other_mindspore_side import layer_norm

    def arange(start=0, end=None, step=1, *, dtype=None):
        start, end = (0, start) if end is None else (start, end)
        return ms.Tensor(np.arange(start, end, step), dtype)

    def stack(tensors, dim=0):
        return ms.ops.stack(list(tensors), dim)

    def outer(a, b):
        return a.reshape(-1, 1) * b.reshape(1, -1)

    def randn(*size, dtype=None):
        size = size[0] if len(size) == 1 and isinstance(size[0], (tuple, list)) else size
        return ms.Tensor(np.zeros(size), dtype or ms.float32)

    def convolve(self, x):
        """A convolution whose stride is its kernel is a matrix product of patches."""
        kernel = tuple(self.weight.shape[2:])
        assert tuple(self.stride) == kernel and not any(self.padding) and self.groups == 1, "patches only"
        n, c, height, width = x.shape
        rows, columns = height // kernel[0], width // kernel[1]
        x = x[:, :, : rows * kernel[0], : columns * kernel[1]].reshape(
            n, c, rows, kernel[0], columns, kernel[1]
        )
        x = x.transpose(0, 2, 4, 1, 3, 5).reshape(n * rows * columns, -1)  # (N * rows * columns, C * kernel)
        y = ms.ops.matmul(x, self.weight.reshape(self.weight.shape[0], -1).swapaxes(0, 1))
        y = y if self.bias is None else y + self.bias
        return y.reshape(n, rows, columns, -1).transpose(0, 3, 1, 2)

    def gelu(input, *, approximate="none"):
        def constant(value):  # a plain number would be rounded to float32 in a float64 run
            return ms.Tensor(value, input.dtype)

        if approximate == "tanh":  # as x * sigmoid(2 y): 1 + tanh(y) cancels where y is far below 0
            inner = constant(-2 * math.sqrt(2 / math.pi)) * (
                input + constant(0.044715) * input * input * input
            )
            return input / (1 + ms.ops.exp(inner))
        return input * ms.ops.erfc(input * constant(-1 / math.sqrt(2))) / 2

    def repeat_interleave(self, repeats, dim=None, *, output_size=None):
        dim = dim % self.ndim
        spread = ms.ops.tile(
            self.expand_dims(dim + 1), (*[1] * (dim + 1), repeats, *[1] * (self.ndim - dim - 1))
        )
        return spread.reshape(*self.shape[:dim], self.shape[dim] * repeats, *self.shape[dim + 1 :])

    def einsum(equation, operand):
        before, after = equation.split("->")
        assert sorted(before) == sorted(after), "permutations only"
        return operand.transpose(*(before.index(axis) for axis in after))

    def lookup(self, input):
        return self.weight[input]

    def normalise(self, input):
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def activate(self, input):
        return gelu(input, approximate=self.approximate)

    forms = {
        mint: dict(arange=arange, stack=stack, outer=outer, randn=randn, einsum=einsum),
        mint.nn.functional: dict(gelu=gelu),
        mint.nn.GELU: dict(construct=activate),
        mint.nn.LayerNorm: dict(construct=normalise),
        mint.nn.Conv2d: dict(construct=convolve),
        mint.nn.Embedding: dict(construct=lookup),
        ms.Tensor: dict(repeat_interleave=repeat_interleave),
    }
    for owner, changes in forms.items():
        for name, form in changes.items():
            setattr(owner, name, form)
