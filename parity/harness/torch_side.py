# SPDX-License-Identifier: Apache-2.0
"""The PyTorch reference inside a worker process: the truth (float64) and the same-precision control,
always on the CPU.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from parity.harness.emulate import to_grid
from parity.harness.products_torch_side import arithmetic
from parity.harness.worker import Side
from torch_ref.models.precision import Precision


class Holder(nn.Module):
    """A function as a module, so that it has a tap; its parts are children."""

    def __init__(self, function, parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, **inputs):
        return self.function(**inputs)


class TorchSide(Side):
    """See `Side`."""

    package = "torch_ref"

    def environment(self) -> dict[str, Any]:
        return {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "threads": torch.get_num_threads(),
            "device": "CPU",
        }

    def precision(self, compute, islands, rounding):
        return Precision(compute, islands, rounding)

    def begin(self, form, mutant):
        """The reference has no formulations and no bugs to inject."""

    def holder(self, function, parts):
        return Holder(function, parts)

    def is_module(self, value):
        return isinstance(value, nn.Module)

    def is_tensor(self, value):
        return isinstance(value, torch.Tensor)

    def tensor(self, array):
        if array.dtype.kind == "f":
            dtype = torch.float64 if self.dtype == "fp64" else torch.float32
            return torch.from_numpy(np.array(array, copy=not array.flags.writeable)).to(dtype)
        return torch.from_numpy(np.array(array))

    def cast(self, tensor, dtype):
        return tensor.to(dtype)

    def array(self, tensor):
        tensor = tensor.detach()
        return (
            (tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor)
            .contiguous()
            .numpy()
        )

    def dtype_name(self, value):
        return str(value.dtype).removeprefix("torch.")

    def modules(self):
        skipped = (nn.ModuleList, nn.ModuleDict)  # containers that are never called
        return [
            (name, module) for name, module in self.root.named_modules() if not isinstance(module, skipped)
        ]

    def parameters(self):
        return dict(self.root.named_parameters())

    def fill(self, tensors):
        self.check_names(tensors)
        for name in tensors:
            value = np.asarray(tensors[name])
            self.assign(
                name, value if self.lazy else to_grid(value, "fp64" if self.dtype == "fp64" else "fp32")
            )

    def assign(self, name, array):
        owner, _, leaf = name.rpartition(".")
        module = self.root.get_submodule(owner)
        keep = torch.float32 if self.lazy else getattr(module, leaf).dtype
        value = torch.from_numpy(array if array.flags.writeable else np.array(array)).to(keep)
        setattr(module, leaf, nn.Parameter(value, requires_grad=False))

    def set_value(self, tensor, array):
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(array))

    def after_load(self):
        if self.lazy:
            for module in self.root.modules():
                if module._parameters:
                    _widen_while_running(module)

    def statement(self, module):
        return module.extra_repr() if type(module).__module__.startswith(self.package) else ""

    def training(self, module):
        return False  # the reference has no layer that asks

    def code_of(self, module):
        return type(module).forward

    def hook(self, module, record):
        def forward_hook(module, args, kwargs, out):
            return record(args, kwargs, out)  # None keeps the result

        return module.register_forward_hook(forward_hook, with_kwargs=True)

    def finish(self, out):
        """Results of CPU kernels are complete when the call returns."""

    def call(self, module, method, kwargs, *args):
        with torch.no_grad(), arithmetic(self.products, self.dtype):
            return getattr(module, method)(*args, **kwargs) if method else module(*args, **kwargs)

    def train(self, **request):
        with arithmetic(self.products, self.dtype):
            return super().train(**request)

    def differentiate(self, decoded, floats, trainable, method, loss):
        leaves = [decoded[name].requires_grad_(True) for name in floats]
        leaves += [parameter.requires_grad_(True) for parameter in trainable.values()]
        try:
            with arithmetic(self.products, self.dtype):
                call = getattr(self.root, method) if method and not self.bound else self.root
                found = torch.autograd.grad(loss(call(**decoded)), leaves, allow_unused=True)
        finally:
            for parameter in trainable.values():
                parameter.requires_grad_(False)
        found = [torch.zeros_like(a) if g is None else g for a, g in zip(leaves, found, strict=True)]
        return found[: len(floats)], found[len(floats) :]


def _widen_while_running(module):
    stored = dict(module._parameters)

    def widen(module, args):
        for name, value in stored.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(value.double(), requires_grad=False)

    def restore(module, args, out):
        module._parameters.update(stored)

    module.register_forward_pre_hook(widen)
    module.register_forward_hook(restore)
