# SPDX-License-Identifier: Apache-2.0
"""Any MindSpore cell as the port, inside a worker process, on the device under test."""

import contextlib
import sys
from functools import cached_property
from types import ModuleType
from unittest import mock

import numpy as np

from parity.harness.mindspore_side import MindSporeSide
from parity.harness.other import OtherSide
from parity.harness.pairing import describe_layer


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    """Normalisation over the last axes, in elementary operations of the input's type."""
    axes = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(axes, keep_dims=True)
    y = centred / ((centred * centred).mean(axes, keep_dims=True) + eps).sqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


class OtherMindSporeSide(OtherSide, MindSporeSide):
    """See `OtherSide`."""

    expected = "a mindspore.nn.Cell"
    port = True

    def adopt(self, built):
        """The cell in the worker's dtype: parameters, and the plain tensors that cells keep as tables."""
        built.set_train(False)
        self.mark_names(built)
        wanted = dict(
            fp64=self.ms.float64, fp32=self.ms.float32, fp16=self.ms.float16, bf16=self.ms.bfloat16
        )[self.dtype]
        floats = (self.ms.float64, self.ms.float32, self.ms.float16, self.ms.bfloat16)
        for parameter in built.get_parameters():
            if parameter.dtype in floats and parameter.dtype != wanted:
                parameter.set_dtype(wanted)
        for _, cell in built.cells_and_names():
            for name, value in list(vars(cell).items()):
                plain = isinstance(value, self.ms.Tensor) and not isinstance(value, self.ms.Parameter)
                if plain and value.dtype in floats and value.dtype != wanted:
                    setattr(cell, name, value.astype(wanted))
        return built

    def mark_names(self, built):
        """MindSpore names a parameter by its place only if it is asked; two of one name cannot be told apart."""
        for name, parameter in built.parameters_and_names():
            parameter.name = name

    def own_parameters(self):
        floats = (self.ms.float64, self.ms.float32, self.ms.float16, self.ms.bfloat16)
        return {name: value for name, value in self.root.parameters_and_names() if value.dtype in floats}

    def learned(self, value):
        return bool(value.requires_grad)

    def own_layers(self):
        return MindSporeSide.modules(self)

    def native_norms(self):
        """Whether a normalisation runs a kernel of MindSpore that computes in float32 inside and is not lifted."""
        return any(describe_layer(cell)[0] in ("GroupNorm", "BatchNorm") for _, cell in self.own_layers())

    def is_type(self, value):
        return isinstance(value, self.ms.Type)

    def type_named(self, name):
        return getattr(self.ms.common.dtype, name)

    def put(self, parameter, array):
        value = np.ascontiguousarray(array, np.float64 if self.dtype == "fp64" else np.float32)
        parameter.set_data(self.ms.Tensor.from_numpy(value.copy()).astype(parameter.dtype))

    def layer_norms(self):
        """Class -> construct: MindSpore's kernel computes in float32 inside, whatever it is given."""

        def composed(cell, x):
            shape = tuple(x.shape[cell.begin_norm_axis :])
            return layer_norm(x, shape, cell.gamma, cell.beta, cell.epsilon)

        def composed_ext(cell, x):
            return layer_norm(x, cell.normalized_shape, cell.weight, cell.bias, cell.eps)

        return {self.ms.nn.LayerNorm: composed, self.ms.mint.nn.LayerNorm: composed_ext}

    @cached_property
    def lifted_types(self):
        """MindSpore's module of types, in which float32 means float64: for the port, MindSpore's own code has the true
        one."""
        module = ModuleType(self.ms.common.dtype.__name__)
        single = self.ms.float32
        vars(module).update(
            {
                name: self.ms.float64 if value is single else value
                for name, value in vars(self.ms.common.dtype).items()
            }
        )
        return module

    @contextlib.contextmanager
    def lift(self):
        """float32 means float64, however the port imports it, and plain numbers in arithmetic are not rounded to
        float32 (MindSpore's rule)."""
        double, tensor = self.ms.float64, self.ms.Tensor

        def exact(operation):
            def apply(self, other):
                wide = isinstance(other, float) and self.dtype == double
                return operation(self, tensor(other, double) if wide else other)

            return apply

        types = self.lifted_types
        with contextlib.ExitStack() as stack:
            stack.callback(sys.modules.__setitem__, types.__name__, sys.modules[types.__name__])
            sys.modules[types.__name__] = types  # for "from mindspore.common.dtype import float32"
            for owner, name, value in (
                (self.ms, "dtype", types),
                (self.ms.common, "dtype", types),
                (self.ms.common, "float32", double),
                (self.ms, "float32", double),
            ):
                stack.enter_context(mock.patch.object(owner, name, value))
            stack.enter_context(mock.patch.object(tensor, "float", lambda value: value.astype(double)))
            for owner in (self.ms.ops, self.ms.mint.nn.functional):
                stack.enter_context(mock.patch.object(owner, "layer_norm", layer_norm))
            for kind, form in self.layer_norms().items():
                stack.enter_context(mock.patch.object(kind, "construct", form))
            for word in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow"):
                name = f"__{word}__"
                stack.enter_context(mock.patch.object(tensor, name, exact(getattr(tensor, name))))
            yield
