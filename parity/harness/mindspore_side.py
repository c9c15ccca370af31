# SPDX-License-Identifier: Apache-2.0
"""The MindSpore port inside a worker process, on the device under test."""

import contextlib
from typing import Any

import numpy as np

from ms_latte import device as devices
from parity.harness.emulate import on_grid
from parity.harness.worker import Side

# Cells of MindSpore's own that have no numeric defaults; every other foreign cell is reported by the lint.
NEUTRAL = ("SequentialCell", "CellList", "CellDict", "Identity", "Holder")


class MindSporeSide(Side):
    """See `Side`."""

    package = "ms_latte"

    def __init__(self, device: str, dtype: str):
        super().__init__(device, dtype)
        self.report = devices.select(device)
        import mindspore

        self.ms = mindspore

    def environment(self) -> dict[str, Any]:
        report = self.report
        read = {
            "mindspore": report.mindspore,
            "numpy": report.numpy,
            "device": report.device,
            **report.settings,
        }
        if self.dtype == "fp32":
            read["effective float32 matmul"] = f"{self.mantissa_bits()} bits"
        return read

    def mantissa_bits(self) -> int:
        """Bits of the inputs that a float32 matrix product keeps, measured: 24 for float32, 12 for HF32."""
        steps = np.arange(1, 24)
        x = (1 + 2.0**-steps).astype(np.float32)[:, None]
        one = self.ms.Tensor(np.ones((1, 1), np.float32))
        kept = self.ms.ops.MatMul()(self.ms.Tensor(x), one).asnumpy() == x
        return 1 + int(np.argmin(np.append(kept, False)))

    def precision(self, compute, islands, rounding):
        from ms_latte.models.precision import Precision

        return Precision(compute, islands, rounding)

    def begin(self, form, mutant):
        from parity.mutants import MUTANTS

        stack = contextlib.ExitStack()
        self.undo.append(stack.close)
        stack.enter_context(devices.formulations(form or self.device))
        self.mutant = MUTANTS[mutant] if mutant else None
        if self.mutant:
            stack.enter_context(self.mutant.patched())

    def holder(self, function, parts):
        from mindspore import nn

        class Holder(nn.Cell):
            def __init__(self):
                super().__init__(auto_prefix=True)
                for name, part in parts.items():
                    setattr(self, name, part)

            def construct(self, **inputs):
                return function(**inputs)

        return Holder()

    def is_module(self, value):
        return isinstance(value, self.ms.nn.Cell)

    def is_tensor(self, value):
        return isinstance(value, self.ms.Tensor)

    def tensor(self, array):
        if array.dtype.kind == "f":
            array = array.astype(np.float64 if self.dtype == "fp64" else np.float32, copy=False)
            if self.native_half and on_grid(array, self.dtype):  # values of an island stay in float32
                half = {"fp16": self.ms.float16, "bf16": self.ms.bfloat16}[self.dtype]
                return self.ms.Tensor.from_numpy(np.array(array)).astype(half)
        return self.ms.Tensor.from_numpy(np.array(array, copy=not array.flags.writeable))

    def array(self, tensor):
        if not isinstance(tensor, self.ms.Parameter):
            require_device(str(tensor.device), self.device)
        if tensor.dtype in (self.ms.float16, self.ms.bfloat16):
            tensor = tensor.astype(self.ms.float32)
        return np.array(tensor.asnumpy(), order="C", copy=False)

    def dtype_name(self, value):
        return str(value.dtype).lower()

    def modules(self):
        # Containers are never called; a recomputed cell holds MindSpore's own wrappers of itself.
        return [
            (name, cell)
            for name, cell in self.root.cells_and_names()
            if type(cell).__name__ not in ("CellList", "CellDict")
            and type(cell).__module__ != "mindspore.common.recompute"
        ]

    def parameters(self):
        return dict(self.root.parameters_and_names())

    def fill(self, tensors):
        from ms_latte.checkpoint import load_arrays  # the product's own strict loader is what is judged

        load_arrays(self.root, tensors, self.policy)

    def after_load(self):
        if self.mutant:
            self.mutant.edit(self.root)

    def statement(self, cell):
        if type(cell).__module__.startswith(self.package):
            return cell.extend_repr()
        return "" if type(cell).__name__ in NEUTRAL else "a framework cell with defaults of its own"

    def training(self, cell):
        return bool(cell.training)

    def code_of(self, cell):
        return type(cell).construct

    def hook(self, cell, record):
        def forward_hook(cell, args, kwargs, out):
            record(args, kwargs, out)

        return cell.register_forward_hook(forward_hook, with_kwargs=True)

    def finish(self, out):
        self.ms.runtime.synchronize()

    def call(self, module, method, kwargs, *args):
        return getattr(module, method)(*args, **kwargs) if method else module(*args, **kwargs)

    def differentiate(self, decoded, floats, trainable, method, loss):
        call = getattr(self.root, method) if method and not self.bound else self.root

        def forward(*values):
            return loss(call(**{**decoded, **dict(zip(floats, values, strict=True))}))

        places = tuple(range(len(floats))) or None
        grad = self.ms.grad(
            forward, places, self.ms.ParameterTuple(trainable.values()) if trainable else None
        )
        found = grad(*[decoded[name] for name in floats])
        of_inputs, of_parameters = (
            found if floats and trainable else (((), found) if trainable else (found, ()))
        )
        one = not isinstance(of_inputs, (list, tuple))  # a single position comes without a tuple
        return [of_inputs] if one else list(of_inputs), list(of_parameters)


def require_device(actual: str, wanted: str) -> None:
    """Raise DeviceError unless a result lies on the device under test: MindSpore falls back to the CPU silently."""
    if not actual.startswith(wanted):
        raise devices.DeviceError(
            f"asked for {wanted}, a result lies on {actual}: MindSpore fell back silently"
        )
