# SPDX-License-Identifier: Apache-2.0
"""Any torch module as the reference, inside a worker process: float64 truth, and the control in the tested dtype."""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode

from parity.harness.emulate import on_grid
from parity.harness.other import OtherSide
from parity.harness.torch_side import TorchSide

TYPES = {"fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Lift(TorchFunctionMode):
    """Casts to float32 become casts to float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if value is torch.float32 else value for value in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


class OtherTorchSide(OtherSide, TorchSide):
    """See `OtherSide`."""

    expected = "a torch.nn.Module"

    def adopt(self, built):
        for parameter in built.parameters():
            parameter.grad = None
        return built.eval().to(TYPES[self.dtype])

    def own_parameters(self):
        buffers = {name: value for name, value in self.root.named_buffers() if value.is_floating_point()}
        return {**dict(self.root.named_parameters()), **buffers}

    def learned(self, value):
        return isinstance(value, torch.nn.Parameter)

    def fixed(self):
        return {
            f"{path}.{name}".removeprefix(".")
            for path, module in self.root.named_modules()
            for name in module._non_persistent_buffers_set
        }

    def own_layers(self):
        skipped = (torch.nn.ModuleList, torch.nn.ModuleDict)  # containers that are never called
        return [(name, item) for name, item in self.root.named_modules() if not isinstance(item, skipped)]

    def put(self, parameter, array):
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(array.copy()))

    def tensor(self, array):
        value = super().tensor(array)
        if array.dtype.kind == "f" and self.native_half and on_grid(array, self.dtype):
            return value.to(TYPES[self.dtype])
        return value

    def is_type(self, value):
        return isinstance(value, torch.dtype)

    def type_named(self, name):
        return getattr(torch, name)

    def training(self, module):
        return module.training

    @contextmanager
    def lift(self):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with Lift():
                yield
        finally:
            torch.set_default_dtype(before)
