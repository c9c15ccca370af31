# SPDX-License-Identifier: Apache-2.0
"""A worker process: owns one framework on one device in one dtype and answers the judge.

Started by `backends.Worker` as `python -m parity.harness.worker`. Messages are (verb, arguments); a verb is a public
method of `Side`. A process cannot change its MindSpore device, and a failed kernel can poison it: hence one
process each.
"""

import gc
import importlib
import inspect
import os
import resource
import statistics
import sys
import time
import traceback
from typing import Any

import numpy as np

from parity.harness import trace, weights
from parity.harness.emulate import to_grid
from parity.harness.inputs import Layout, Seed
from parity.harness.trace import Record, fetch, is_stage, stow


class Side:
    """What both frameworks have in common. Subclasses translate tensors, modules, hooks and parameters."""

    package = ""  # "torch_ref" or "ms_latte"

    def __init__(self, device: str, dtype: str):
        self.device, self.dtype = device, dtype
        self.root: Any = None
        self.spill: str | None = None
        self.lazy = self.bound = self.native_half = False
        self.products: dict[str, str] = {}
        self.trainable: list[str] = []
        # In native half precision: tap -> types of its arguments in the last run.
        self.types: dict[str, Any] = {}
        self.undo: list = []

    # --- verbs

    def environment(self) -> dict[str, Any]:
        """Versions, device and precision settings as read back."""
        raise NotImplementedError

    def set_spill(self, folder: str | None) -> None:
        """Folder for large arrays, or None."""
        self.spill = folder

    def build(
        self,
        case,
        rounding: str,
        form: str = "",
        mutant: str = "",
        lazy: bool = False,
        products: dict[str, str] | None = None,
    ) -> dict[str, tuple]:
        """Build the target of a case. Returns name -> shape of its parameters.

        rounding: of `Precision`; form: formulation set (MindSpore); mutant: a bug to inject (MindSpore); lazy: keep
        float32 parameters and widen each only while its layer runs (torch, for the float64 truth of large nets);
        products: formats other than float32 in which products are taken (torch, see `products_torch_side`).
        """
        self.close()
        self.lazy, self.products = lazy, products or {}
        self.bound = False  # whether the method of the case is already bound (an object that is no module)
        self.begin(form, mutant)
        compute = "fp64" if self.dtype == "fp64" else self.dtype
        precision = self.policy = self.precision(compute, case.islands, rounding)
        self.native_half, self.types = rounding == "native" and compute in ("fp16", "bf16"), {}
        module = importlib.import_module(f"{self.package}.{case.file}")
        target = getattr(module, case.target)
        parts = {
            name: self._find(module, kind)(**init, precision=precision)
            for name, (kind, init) in case.parts.items()
        }
        accepts = inspect.signature(target).parameters
        forwards = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepts.values())
        shared = {"precision": precision} if "precision" in accepts or forwards else {}
        if case.steps:  # what is held is the net; `train` makes the target around it
            self.root = parts["model"]
        elif case.target[0].isupper():
            init = {name: self.decode(value) for name, value in case.init.items()}
            built = target(**init, **parts, **({} if "precision" in case.init else shared))
            self.root = (
                built if self.is_module(built) else self.holder(_bind(getattr(built, case.method), {}), {})
            )
            self.bound = self.root is not built
        else:
            self.root = self.holder(_bind(target, {**parts, **shared}), parts)
        self.trainable = [name for name, value in self.parameters().items() if value.requires_grad]
        return {name: tuple(value.shape) for name, value in self.parameters().items()}

    def load(
        self, tensors: dict[str, np.ndarray] | None, checkpoint: str = "", grid: str = "", **options
    ) -> dict[str, str]:
        """Load parameters strictly, by equal names, rounded once to the grid of the tested dtype on all sides.

        tensors: name -> float32 array on the grid of the dtype, or a checkpoint path that the worker reads itself.
        Returns name -> digest of the bits that are now in the model (as float32; float64 under fp64).
        Raises ValueError listing every missing, unknown and mis-shaped name.
        """
        if tensors is None:
            from converters import load

            tensors = load(checkpoint, **options).tensors
        grid = grid or self.dtype
        if grid in ("fp16", "bf16"):
            tensors = {name: to_grid(np.asarray(tensors[name]), grid) for name in tensors}
        self.fill(tensors)
        self.after_load()
        return self.digests()

    def check_names(self, tensors) -> None:
        """Raise ValueError listing every missing, unknown and mis-shaped name."""
        own = self.parameters()
        problems = [f"missing {name}" for name in own if name not in tensors]
        problems += [f"unknown {name}" for name in tensors if name not in own]
        problems += [
            f"{name} has shape {tuple(tensors[name].shape)}, the model {tuple(own[name].shape)}"
            for name in own
            if name in tensors and tuple(tensors[name].shape) != tuple(own[name].shape)
        ]
        if problems:
            raise ValueError(f"{len(problems)} parameters do not fit: {'; '.join(problems[:20])}")

    def config(self) -> tuple[str, dict[str, Any]]:
        """Class name and constructor arguments of a whole net."""
        return type(self.root).__name__, self.root.config

    def digests(self) -> dict[str, str]:
        """name -> digest of every parameter as it is in the model now."""
        return {name: weights.digest(self.array(value)) for name, value in self.parameters().items()}

    def degenerate(self) -> list[str]:
        """Reasons why the weights that are in the model now could hide a bug."""
        return weights.degenerate(self.state())

    def state(self) -> dict[str, np.ndarray]:
        """name -> array of every parameter."""
        return {name: self.array(value) for name, value in self.parameters().items()}

    def lint(self) -> dict[str, str]:
        """tap name -> the line in which a layer states its constants; parts of other origin are named as such."""
        lines = {}
        for name, module in self.modules():
            lines[name] = f"{type(module).__name__}({self.statement(module)})"
            if self.training(module):
                lines[name] += " in training mode"
        return lines

    def sources(self) -> dict[str, str]:
        """tap name -> file:line of the code that computes it."""
        places = {}
        for name, module in self.modules():
            code = self.code_of(module)
            try:
                path, line = inspect.getsourcefile(code), inspect.getsourcelines(code)[1]
                places[name] = f"{os.path.relpath(path)}:{line}"
            except (OSError, TypeError, ValueError):
                places[name] = type(module).__module__
        return places

    def trace(
        self,
        inputs: dict[str, Any],
        method: str,
        keep_inputs: bool,
        stages: bool,
        inside: str = "",
        args: tuple = (),
    ) -> dict[str, Record]:
        """Run once with every module tapped (stages: depth-one modules only). Returns the ordered trace.

        The last record, "#0" of the net itself, holds the result. inside: run this module alone, on args and
        inputs, and tap the modules inside it.
        """
        records: dict[str, Record] = {}
        calls: dict[str, int] = {}
        handles = []

        def tap(name):
            def record(args, kwargs, out):
                index = calls[name] = calls.get(name, -1) + 1
                kept = self._encode((args, kwargs)) if keep_inputs else ((), {})
                if self.native_half:
                    self.types[f"{name}#{index}"] = self._types((args, kwargs))
                outputs, dtypes = self._results(out)
                records[f"{name}#{index}"] = Record(*kept, outputs, dtypes)

            return record

        for name, module in self.modules():
            if name.startswith(inside + ".") if inside else not stages or is_stage(name):
                handles.append(self.hook(module, tap(name)))
        try:
            if inside:
                self.call(dict(self.modules())[inside], "", self.decode(inputs), *self.decode(args))
                return records
            out = self._call_root(method, inputs)
        finally:
            for handle in handles:
                handle.remove()
        records.pop("#0", None)
        outputs, dtypes = self._results(out)
        records["#0"] = Record((), {}, outputs, dtypes)
        return records

    def splice(
        self,
        inputs: dict[str, Any],
        method: str,
        replace: dict[str, list],
        inside: str = "",
        args: tuple = (),
    ) -> dict[str, Record]:
        """Run the target, or the module `inside` on args and inputs, with the results of some stages replaced.

        replace: tap -> results. Returns the trace of all stages (`is_stage`, seen from `inside`); "#0" is the result.
        """
        records: dict[str, Record] = {}
        calls: dict[str, int] = {}
        handles = []

        def stage(name):
            def record(args, kwargs, out):
                index = calls[name] = calls.get(name, -1) + 1
                tap = f"{name}#{index}"
                if tap in replace:
                    given = [self.decode(item) for item in replace[tap]]
                    out = type(out)(given) if isinstance(out, (list, tuple)) else given[0]
                records[tap] = Record((), {}, *self._results(out))
                return out if tap in replace else None

            return record

        prefix = inside + "." if inside else ""
        for name, module in self.modules():
            if name.startswith(prefix) and is_stage(name.removeprefix(prefix)):
                handles.append(self.hook(module, stage(name)))
        try:
            if inside:
                out = self.call(dict(self.modules())[inside], "", self.decode(inputs), *self.decode(args))
            else:
                out = self._call_root(method, inputs)
        finally:
            for handle in handles:
                handle.remove()
        records["#0"] = Record((), {}, *self._results(out))
        return records

    def run(self, inputs: dict[str, Any], method: str) -> list[Any]:
        """Run once without taps. Returns the results."""
        return self._results(self._call_root(method, inputs))[0]

    def gradients(self, inputs: dict[str, Any], method: str, seed: int) -> dict[str, Any]:
        """Gradients of sum(result * P), P a fixed random array: "input NAME" and every trainable parameter.

        No hooks are set. P is drawn from `seed` in float64 and rounded to float32 on every side.
        """
        decoded = self.decode(inputs)
        floats = [
            name
            for name, value in inputs.items()
            if getattr(fetch(value), "dtype", np.dtype("?")).kind == "f"
        ]
        trainable = {name: self.parameters()[name] for name in self.trainable}

        def loss(out: Any) -> Any:
            items = out if isinstance(out, (list, tuple)) else [out]
            total = 0
            for index, item in enumerate(items):
                rng = np.random.default_rng([seed, index])
                weights_ = rng.standard_normal(tuple(item.shape)).astype(np.float32)
                total = total + (item * self.tensor(weights_)).sum()
            return total

        of_inputs, of_parameters = self.differentiate(decoded, floats, trainable, method, loss)
        found = {f"input {name}": g for name, g in zip(floats, of_inputs, strict=True)}
        found |= dict(zip(trainable, of_parameters, strict=True))
        return {name: stow(self.array(g), self.spill) for name, g in found.items()}

    def iterate(self, inputs: dict[str, Any], method: str, state: str, time: str, times: list) -> list[Any]:
        """A fixed iteration of a net: x <- 0.9 x + 0.1 net(x, t) for t in times. Returns x after every step.

        state, time: names of the two arguments. Of a result with more channels than x the first ones count. The
        update is numpy on both sides, in float64 under fp64, else rounded to the grid: only the net differs.
        """
        x, states = fetch(inputs[state]), []
        for t in times:
            now = {**inputs, state: x, time: np.full_like(fetch(inputs[time]), t)}
            out = np.asarray(fetch(self._results(self._call_root(method, now))[0][0]))
            out = out[tuple(slice(size) for size in x.shape)]
            wide = np.float64 if self.dtype == "fp64" else np.float32
            x = wide(0.9) * x.astype(wide) + wide(0.1) * out.astype(wide)
            x = x if self.dtype == "fp64" else to_grid(x, self.dtype)
            states.append(x)
        return states

    def sample(
        self, inputs: dict[str, Any], method: str, state: str, time: str, sampler: dict[str, Any], noise: int
    ) -> list[Any]:
        """Sampling with a net as the denoiser. Returns the latents after every step.

        state, time: names of the net's arguments; inputs[state] is the unit noise to start from. sampler: arguments of
        `diffusion.samplers.make_sampler`. noise: seed of the fresh noise of the steps, drawn in float32 on every side.
        The net runs in the dtype under test, the sampler in float32 (float64 under fp64).
        """
        samplers = importlib.import_module(f"{self.package}.diffusion.samplers")
        stepper = samplers.make_sampler(**sampler, precision=self.policy)
        rng = np.random.default_rng(noise)
        start = fetch(inputs[state])
        x = self.tensor(start * np.float32(stepper.init_scale))
        states, history = [], ()
        for index, t in enumerate(stepper.timesteps):
            times = np.full(np.shape(fetch(inputs[time])), t)  # whole numbers or, of some solvers, fractions
            now = self.decode({**inputs, time: times})
            now[state] = self.policy.round(stepper.scale_input(x, index))
            out = self.call(self.root, "" if self.bound else method, now)
            fresh = rng.standard_normal(start.shape, dtype=np.float32)
            fresh = self.tensor(fresh) if stepper.needs_noise else None
            x, history = stepper.step(index, x, out, noise=fresh, history=history)
            states.append(self.array(x))
        return states

    def train(self, **request: Any) -> dict[str, np.ndarray]:
        """`training.rehearse` of the net, which afterwards is as it was."""
        from parity.harness.training import rehearse

        kept = {name: np.array(value, np.float32) for name, value in self.state().items()}
        native = self.native_half
        try:
            return rehearse(self, **request)
        finally:
            self.native_half = native
            self.fill(kept)

    def train_nudged(self, **request: Any) -> dict[str, np.ndarray]:
        """`train`, started one unit of float32 away."""
        return self.train(**request, nudged=True)

    def local(self, requests: list[tuple[str, tuple, dict]]) -> list[list[Any]]:
        """Run single modules on given inputs: [(name, args, kwargs)] -> their results. Teacher forcing.

        In native half precision the inputs have the types that they had when the whole was traced: which of them are
        float32 there, its values cannot tell (a float32 result of ReLU may lie on the half grid).
        """
        modules, answers, calls = dict(self.modules()), [], {}
        for name, args, kwargs in requests:
            index = calls[name] = calls.get(name, -1) + 1
            given = self.decode((args, kwargs))
            if self.native_half:
                given = self._retyped(given, self.types.get(f"{name}#{index}"))
            out = self.call(modules[name], "", given[1], *given[0])
            answers.append(self._results(out)[0])
        return answers

    def clock(self, inputs: dict[str, Any], method: str, taps: str = "", loops: int = 1) -> float:
        """Seconds of one forward, results complete: the median of `loops`, after one that warms the caches if
        loops > 1.

        taps: "" for a plain forward, "all" or "stages" as the harness traces a port, results copied out and kept.
        """
        decoded, times = self.decode(inputs), []
        for _ in range(loops + (loops > 1)):
            began = time.perf_counter()
            if taps:
                records = self.trace(inputs, method, keep_inputs=False, stages=taps == "stages")
            else:
                self.finish(self.call(self.root, method, decoded))
            times.append(time.perf_counter() - began)
            if taps:
                trace.discard(*(value for record in records.values() for value in record.outputs))
        return statistics.median(times[-loops:])

    def clock_sampling(self, loops: int = 1, **request: Any) -> float:
        """Seconds of one step of `sample`: the median of `loops`, after one that warms the caches if loops > 1."""
        times = []
        for _ in range(loops + (loops > 1)):
            began = time.perf_counter()
            steps = len(self.sample(**request))
            times.append((time.perf_counter() - began) / steps)
        return statistics.median(times[-loops:])

    def clock_training(self, batch: dict[str, np.ndarray], loops: int = 1, recompute: bool = False) -> float:
        """Seconds of one training step of the net, see `benchmark_training.clock`; its weights move."""
        from parity.benchmark_training import clock

        return clock(self, batch, loops, recompute)

    def peak_memory(self) -> int:
        """Bytes that this process had resident at most."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def close(self) -> None:
        """Drop the model and undo injected bugs and formulations."""
        self.root = None
        while self.undo:
            self.undo.pop()()

    # --- shared helpers

    def decode(self, value: Any) -> Any:
        """Arrays to tensors, `Layout` to the framework's TokenLayout, `Seed` to a generator;
        containers item by item.
        """
        value = fetch(value)
        if isinstance(value, np.ndarray):
            return self.tensor(value)
        if isinstance(value, Layout):
            layers = importlib.import_module(f"{self.package}.models.layers")
            return layers.TokenLayout(value.batch, value.frames, value.tokens, value.attend)
        if isinstance(value, Seed):
            return np.random.default_rng(value.seed)
        if isinstance(value, dict):
            return {name: self.decode(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.decode(item) for item in value)
        return value

    def _find(self, module: Any, kind: str) -> Any:
        """A class of a module, or, with a path, of another one of the package: "models.latte.Latte"."""
        path, _, name = kind.rpartition(".")
        return getattr(importlib.import_module(f"{self.package}.{path}") if path else module, name)

    def _call_root(self, method: str, inputs: dict[str, Any]) -> Any:
        return self.call(self.root, "" if self.bound else method, self.decode(inputs))

    def _encode(self, value: Any) -> Any:
        if type(value).__name__ == "TokenLayout":
            return Layout(*value)
        if isinstance(value, dict):
            return {name: self._encode(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return tuple(self._encode(item) for item in value)
        return stow(self.array(value), self.spill) if self.is_tensor(value) else value

    def _types(self, value: Any) -> Any:
        """Types of the tensors in arguments, in the same containers; None for everything else."""
        if isinstance(value, dict):
            return {name: self._types(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return tuple(self._types(item) for item in value)
        return value.dtype if self.is_tensor(value) else None

    def _retyped(self, value: Any, types: Any) -> Any:
        """Arguments with tensors of the types that `_types` found; as they are where nothing is known of them."""
        if isinstance(value, dict):
            types = types if isinstance(types, dict) else {}
            return {name: self._retyped(item, types.get(name)) for name, item in value.items()}
        # Named tuples, such as TokenLayout, hold no tensors.
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            types = types if isinstance(types, tuple) and len(types) == len(value) else (None,) * len(value)
            return type(value)(map(self._retyped, value, types))
        if not self.is_tensor(value) or types is None or value.dtype == types:
            return value
        floats = all("float" in str(kind).lower() for kind in (value.dtype, types))
        return self.cast(value, types) if floats else value

    def _results(self, out: Any) -> tuple[list[Any], list[str]]:
        if out is None:  # a function that fills parameters (init_weights): its result is the parameters
            out = list(self.parameters().values())
        items = out if isinstance(out, (list, tuple)) else [out]
        items = [np.array(item) if isinstance(item, float) else item for item in items]
        tensors = [item for item in items if self.is_tensor(item) or isinstance(item, np.ndarray)]
        if len(tensors) != len(items):
            kinds = ", ".join(type(item).__name__ for item in items)
            raise TypeError(
                f"a tap returns ({kinds}); only tensors and flat tuples of tensors can be compared"
            )
        arrays = [item if isinstance(item, np.ndarray) else self.array(item) for item in tensors]
        return [stow(item, self.spill) for item in arrays], [self.dtype_name(item) for item in tensors]


def _bind(function: Any, fixed: dict[str, Any]) -> Any:
    return lambda **inputs: function(**inputs, **fixed)


def main() -> None:
    """Serve the judge until it closes the pipe. The first message is (framework, device, dtype, core)."""
    reader = os.fdopen(os.dup(0), "rb")
    writer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the frameworks print goes to stderr, never into the protocol
    framework, device, dtype, core = trace.receive(reader)
    if core is not None:
        os.sched_setaffinity(0, {core})  # before the framework starts its threads
    try:
        if framework == "torch":
            from parity.harness.torch_side import TorchSide as Kind
        elif framework == "other-torch":
            from parity.harness.other_torch_side import OtherTorchSide as Kind
        elif framework == "other-mindspore":
            from parity.harness.other_mindspore_side import OtherMindSporeSide as Kind
        else:
            from parity.harness.mindspore_side import MindSporeSide as Kind
        side = Kind(device, dtype)
        environment = side.environment()
        gc.collect()
        gc.freeze()  # what the frameworks imported stays; every later collection would walk through it
        trace.send(writer, ("ok", environment))
    except BaseException as error:
        trace.send(writer, ("error", type(error).__name__, str(error), traceback.format_exc()))
        return
    while True:
        try:
            verb, arguments = trace.receive(reader)
        except EOFError:
            if device == "CPU":
                os._exit(0)  # nothing is left to do, and MindSpore takes a second to take itself apart
            return
        try:
            answer = ("ok", getattr(side, verb)(**arguments))
        except BaseException as error:
            answer = ("error", type(error).__name__, str(error), traceback.format_exc())
        trace.send(writer, answer)


if __name__ == "__main__":
    sys.exit(main())
