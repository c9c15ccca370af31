# SPDX-License-Identifier: Apache-2.0
"""The MindSpore port inside a worker process, on the device under test."""

import contextlib
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ms_latte import device as devices
from parity.harness import audit, fingerprint
from parity.harness.emulate import on_grid
from parity.harness.trace import first_line
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
        self.compiled = False

    def environment(self) -> dict[str, Any]:
        report = self.report
        read = {
            "mindspore": report.mindspore,
            "numpy": report.numpy,
            "device": report.device,
            **report.settings,
        }
        if (
            self.dtype == "fp32"
        ):  # what the settings came to, measured; `python -m parity fingerprint` shows all of it
            found = fingerprint.read(self._answer, ("fp32",), "t bits")  # left and right, of the exponent
            for unit, words in (("matmul", "matmul"), ("conv", "convolution")):
                read[f"effective float32 {words}"] = found.effective(unit)
        return read

    def fingerprint(self, dtypes: tuple[str, ...] = ()) -> Any:
        """Facts of the probes in native tensors of some types, in that of this worker unless others are named."""
        return fingerprint.read(self._answer, dtypes or (self.dtype,))

    def compile(self) -> bool:
        """Graph mode for the rest of this process, which cannot leave it cleanly. Returns what is read back."""
        self.ms.set_context(mode=self.ms.GRAPH_MODE)
        self.compiled = True
        return self.ms.get_context("mode") == self.ms.GRAPH_MODE

    def platform(self) -> dict[str, str]:
        """What a calibration depends on: chip, CANN and MindSpore versions."""
        return {**devices.platform(self.device), "mindspore": self.ms.__version__}

    def operators(self, inputs: dict[str, Any], method: str) -> Counter:
        """Every operator dispatched in one forward and one gradient (`audit.Dispatch` -> count).

        MindSpore writes its log to the process's stderr; between its lines this method writes where in ms_latte the
        interpreter stands. The process must have been started with `audit.LOGGING`.
        """
        root = str(Path(devices.__file__).parents[1]) + os.sep
        with tempfile.TemporaryFile() as log, _redirected(2, log):
            with _marking(root, self.package):
                self.run(inputs, method)
                self.gradients(inputs, method, 0)
            self.ms.runtime.synchronize()
            log.seek(0)
            return audit.parse(line.decode(errors="replace") for line in log)

    def _answer(self, op, dtype, arrays):
        """Run one probe. Raises LookupError where the device has no such kernel."""
        ops = self.ms.ops
        functions = {
            "matmul": ops.MatMul(),
            "conv": ops.conv2d,
            "multiply": ops.mul,
            "sum": lambda x: ops.ReduceSum()(x, -1),
            "cast": lambda x: x,
            "softmax": ops.Softmax(-1),
            "gelu": lambda x: ops.gelu(x, approximate="tanh"),
            "layer_norm": self._layer_norm,
        }
        kind = {"fp32": self.ms.float32, "fp16": self.ms.float16, "bf16": self.ms.bfloat16}[dtype]
        tensors = [self.ms.Tensor.from_numpy(np.array(array)).astype(kind) for array in arrays]
        try:
            return functions.get(op, getattr(ops, op, None))(*tensors).astype(self.ms.float32).asnumpy()
        except (RuntimeError, TypeError) as error:
            raise LookupError(f"no {dtype} kernel ({first_line(str(error))[:120]})") from None

    def _layer_norm(self, x):
        ones, zeros = self.ms.ops.ones(x.shape[-1:], x.dtype), self.ms.ops.zeros(x.shape[-1:], x.dtype)
        norm = self.ms.ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=1e-6)
        return norm(x, ones, zeros)[0]

    def precision(self, compute, islands, rounding):
        from ms_latte.models.precision import Precision

        return Precision(compute, islands, rounding)

    def begin(self, form, mutant):
        from parity.mutants import MUTANTS

        stack = contextlib.ExitStack()
        self.undo.append(stack.close)
        # On the CPU a forward in PyNative alone may round by copies: ten times as fast, the same bits.
        forward = {"half_grid": "copy"} if self.device == "CPU" and not self.compiled else {}
        stack.enter_context(devices.formulations(form or self.device, **forward))
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
        made = self.ms.Tensor.from_numpy(np.array(array, copy=not array.flags.writeable))
        made.given = True  # it says "CPU" until an operator has used it
        return made

    def cast(self, tensor, dtype):
        return tensor.astype(dtype)

    def array(self, tensor):
        if not (isinstance(tensor, self.ms.Parameter) or getattr(tensor, "given", False)):
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

    def set_value(self, tensor, array):
        tensor.set_data(self.ms.Tensor(array, tensor.dtype))

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
            return record(args, kwargs, out)  # None keeps the result

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
        with devices.formulations(half_grid="cast"):
            found = grad(*[decoded[name] for name in floats])
        of_inputs, of_parameters = (
            found if floats and trainable else (((), found) if trainable else (found, ()))
        )
        one = not isinstance(of_inputs, (list, tuple))  # a single position comes without a tuple
        return [of_inputs] if one else list(of_inputs), list(of_parameters)


@contextlib.contextmanager
def _redirected(descriptor, file):
    kept = os.dup(descriptor)
    os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


@contextlib.contextmanager
def _marking(root, package):
    """Write a line to stderr whenever the interpreter enters another line of the package or returns to one."""

    def ours(frame):
        return frame.f_code.co_filename.startswith(os.path.join(root, package))

    def mark(frame):
        while frame is not None and not ours(frame):
            frame = frame.f_back
        place = f"{frame.f_code.co_filename.removeprefix(root)}:{frame.f_lineno}" if frame else ""
        os.write(2, f"{audit.MARK} {place}\n".encode())

    def local(frame, event, argument):
        mark(frame.f_back if event == "return" else frame)
        return local

    before = sys.gettrace()
    sys.settrace(lambda frame, event, argument: local if ours(frame) else None)
    try:
        yield
    finally:
        sys.settrace(before)


def require_device(actual: str, wanted: str) -> None:
    """Raise DeviceError unless a result lies on the device under test: MindSpore falls back to the CPU silently."""
    if not actual.startswith(wanted):
        raise devices.DeviceError(
            f"asked for {wanted}, a result lies on {actual}: MindSpore fell back silently"
        )
