# SPDX-License-Identifier: Apache-2.0
"""Models that this project did not write, inside a worker: built from an import path, seen under the reference's names.

`OtherSide` goes before `TorchSide` or `MindSporeSide`. After pairing, parameters and layers of the port bear the
names of the reference and arrays cross the border through the transforms of their links, so that the one
runner judges them as it judges twins.
"""

import importlib
import importlib.util
import sys
import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness import weights
from parity.harness.case import Case
from parity.harness.pairing import Layer, Pairing, Parameter, describe_layer
from parity.harness.trace import Record, fetch, first_line, stow

HALF = ("fp16", "bf16")
FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Dtype:
    """A type among the arguments of a call, as every framework names it."""

    name: str


@dataclass(frozen=True)
class Opaque:
    """An argument that only its framework understands; a layer that uses it is not called on the other side."""

    words: str


@dataclass(frozen=True)
class Other(Case):
    """A case whose two sides are factories, "package.module:function" or "path/file.py:function".

    `init` goes to both as keyword arguments. `pairing` is None while the pairing is being found. `tables`: what the
    reference constructs in float64 where the port's own table agrees; a port may hold it in float32 only. `keys`: of
    the mappings that the reference returns, in its order, in which those of both sides are flattened.
    """

    reference: str = ""
    port: str = ""
    pairing: Pairing | None = None
    tables: Mapping[str, np.ndarray] = field(default_factory=dict)
    keys: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Unique name."""
        return self.name


def locate(path: str) -> Any:
    """The object behind "package.module:name" or "path/file.py:name". Raises ImportError with the remedy."""
    place, _, name = path.rpartition(":")
    if not place or not name:
        raise ImportError(f"factory {path!r}: expected 'package.module:function' or 'path/file.py:function'")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise ImportError(f"factory {path!r}: no file {place}")
        title = f"_other_{zlib.crc32(str(Path(place).resolve()).encode()):x}_{Path(place).stem}"
        if title not in sys.modules:
            spec = importlib.util.spec_from_file_location(title, place)
            sys.modules[title] = module = importlib.util.module_from_spec(spec)  # dataclasses look there
            sys.path.insert(0, str(Path(place).resolve().parent))  # modules beside the file, as in a script
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[title]
                raise
        module = sys.modules[title]
    else:
        module = importlib.import_module(place)
    if not hasattr(module, name):
        raise ImportError(f"factory {path!r}: {place} has no {name!r}")
    return getattr(module, name)


class OtherSide:
    """What both frameworks need in addition; subclasses: `spec`, `adopt`, `own_parameters`, `own_layers`, `put`."""

    pairing: Pairing | None = None
    port = False  # whether this side is renamed
    order: Mapping[str, int] = {}  # key of a mapping -> its place among the results

    def build(
        self,
        case: Other,
        rounding: str = "",
        form: str = "",
        mutant: str = "",
        lazy: bool = False,
        products: dict[str, str] | None = None,
    ):
        """Build one side of a case in the worker's dtype. Returns name -> shape, in the reference's names and
        shapes once the case has a pairing."""
        self.close()
        self.products = products or {}
        self.lazy = self.bound = False
        self.native_half, self.types = self.dtype in HALF, {}
        self.mutant = self.policy = self.pairing = None
        path = case.port if self.port else case.reference
        with self.lifted():
            built = locate(path)(**case.init)
        if not self.is_module(built):
            raise TypeError(f"factory {path!r} returned a {type(built).__name__}, expected {self.expected}")
        self.root = self.adopt(built)
        self.pairing = case.pairing
        self.order = {key: place for place, key in enumerate(case.keys)}
        if self.port and self.dtype == "fp64":
            own = self.own_parameters()
            for name, table in case.tables.items():
                self.put(own[self._link(name).ours], self._link(name).forward(table))
        self.trainable = [name for name, value in self.parameters().items() if value.requires_grad]
        return self._shapes()

    def describe(self) -> tuple[list[Parameter], list[Layer]]:
        """Own parameters (of the reference also its float buffers) and layers, as the pairing wants them."""
        layers = [Layer(name, *describe_layer(layer)) for name, layer in self.own_layers()]
        kinds = {layer.name: layer.kind for layer in layers}
        fixed = self.fixed()
        parameters = [
            Parameter(
                name,
                tuple(value.shape),
                kinds.get(name.rpartition(".")[0], ""),
                self.learned(value),
                name in fixed,
            )
            for name, value in self.own_parameters().items()
        ]
        return parameters, layers

    def fixed(self) -> set[str]:
        """Own parameters that no checkpoint holds, as far as the framework tells."""
        return set()

    def tables(self) -> dict[str, np.ndarray]:
        """Tables that no checkpoint holds, as constructed; in the reference's names and shapes."""
        own = self.own_parameters()
        links = [link for link in self.pairing.links if link.fixed]
        return {
            x.theirs: self._back(x.theirs, self.array(own[x.ours if self.port else x.theirs])) for x in links
        }

    def outlines(self, inputs: dict[str, Any], method: str) -> dict[str, Any]:
        """Run once: layer ("" is the net) -> the `outline` of its first result, where that holds a mapping."""
        found, handles = {}, []

        def watch(name):
            def record(args, kwargs, out):
                found.setdefault(name, outline(out, self.is_tensor))

            return record

        for name, module in self.modules():
            if name:
                handles.append(self.hook(module, watch(name)))
        try:
            out = self._call_root(method, inputs)
        finally:
            for handle in handles:
                handle.remove()
        found[""] = outline(out, self.is_tensor)
        return {name: shape for name, shape in found.items() if keys_of(shape)}

    def probe(self, tensors: dict[str, np.ndarray], inputs: dict[str, Any], method: str) -> list[Any]:
        """Run once with some own parameters replaced; they are put back."""
        own = self.own_parameters()
        before = {name: self.array(own[name]).copy() for name in tensors}
        for name, value in tensors.items():
            self.put(own[name], value)
        try:
            return self.run(inputs, method)
        finally:
            for name, value in before.items():
                self.put(own[name], value)

    def attempt(self, requests: list[tuple[str, tuple, dict]]) -> list[str]:
        """Whether single layers accept the reference's arguments: "" or what went wrong, per request."""
        answers = []
        for request in requests:
            try:
                self.local([request])
                answers.append("")
            except Exception as error:  # whatever the layer's own code raises
                answers.append(f"{type(error).__name__}: {first_line(str(error))}")
        return answers

    # --- the verbs of Side, under the reference's names

    def parameters(self) -> dict[str, Any]:
        own = self.own_parameters()
        if self.pairing is None:
            return own
        links = [link for link in self.pairing.links if not link.fixed]
        return {link.theirs: own[link.ours if self.port else link.theirs] for link in links}

    def modules(self) -> list[tuple[str, Any]]:
        own = dict(self.own_layers())
        if self.pairing is None:
            return list(own.items())
        pairs = self.pairing.layers
        return [(theirs, own[ours if self.port else theirs]) for theirs, ours in pairs.items()]

    def lint(self) -> dict[str, str]:
        """Layer -> its constants, where both sides' can be read."""
        lines = {}
        for name, layer in self.modules():
            stated = self.pairing is not None and name in self.pairing.stated
            lines[name] = describe_layer(layer)[1] if stated else "constants cannot be read"
            if self.training(layer):
                lines[name] += " in training mode"
        return lines

    def check_names(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Raise ValueError listing every missing, unknown and mis-shaped name."""
        own = self._shapes()
        problems = [f"missing {name}" for name in own if name not in tensors]
        problems += [f"unknown {name}" for name in tensors if name not in own]
        problems += [
            f"{name} has shape {tuple(tensors[name].shape)}, expected {shape}"
            for name, shape in own.items()
            if name in tensors and tuple(tensors[name].shape) != shape
        ]
        if problems:
            raise ValueError(f"{len(problems)} parameters do not fit: {'; '.join(problems[:20])}")

    def fill(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.check_names(tensors)
        own = self.parameters()
        for name, value in tensors.items():
            self.put(own[name], self._link(name).forward(np.asarray(value)) if self._mapped() else value)

    def state(self) -> dict[str, np.ndarray]:
        return {name: self._back(name, self.array(value)) for name, value in self.parameters().items()}

    def digests(self) -> dict[str, str]:
        return {
            name: weights.digest(value if self.dtype == "fp64" else value.astype(np.float32))
            for name, value in self.state().items()
        }

    def gradients(self, inputs: dict[str, Any], method: str, seed: int) -> dict[str, Any]:
        found = super().gradients(inputs, method, seed)
        return {
            name: value if name.startswith("input ") else stow(self._back(name, fetch(value)), self.spill)
            for name, value in found.items()
        }

    def trace(self, *args: Any, **kwargs: Any) -> dict[str, Record]:
        records = super().trace(*args, **kwargs)
        if self.pairing is None or not self.port:
            return records
        place = {tap: index for index, tap in enumerate(self.pairing.order)}
        last = len(place)  # the net itself stays last
        return dict(sorted(records.items(), key=lambda item: place.get(item[0], last)))

    def call(self, module: Any, method: str, kwargs: dict[str, Any], *args: Any) -> Any:
        args, kwargs = (*args, *positional(kwargs)), named(kwargs)
        with self.lifted():
            return super().call(module, method, kwargs, *args)

    def differentiate(self, decoded, floats, trainable, method, loss):
        root = self.root
        target = getattr(root, method) if method else root
        self.root = lambda **inputs: self._flat(target(*positional(inputs), **named(inputs)))
        try:
            with self.lifted():
                return super().differentiate(decoded, floats, trainable, "", loss)
        finally:
            self.root = root

    def lifted(self):
        """Under fp64, casts to float32 inside a model are lifted to float64, or they would blur the comparison."""
        return self.lift() if self.dtype == "fp64" else nullcontext()

    def decode(self, value: Any) -> Any:
        if isinstance(value, Dtype):
            wanted = "float64" if self.dtype == "fp64" and value.name in FLOATS else value.name
            return self.type_named(wanted)
        return super().decode(value)

    # --- helpers

    def _encode(self, value: Any) -> Any:
        if self.is_type(value):
            return Dtype(str(value).lower().rpartition(".")[2])
        if not self.is_tensor(value) and type(value).__module__.split(".")[0] in ("torch", "mindspore"):
            return super()._encode(value) if isinstance(value, (list, tuple, dict)) else Opaque(str(value))
        return super()._encode(value)

    def _call_root(self, method: str, inputs: dict[str, Any]) -> Any:
        out = super()._call_root(method, inputs)
        lost = sorted(others(out, self.is_tensor))
        if lost:
            raise TypeError(
                f"the model returns {', '.join(lost)} beside its tensors, which nothing would compare; wrap it in the "
                "factory so that it returns tensors, or tuples, lists and mappings of them"
            )
        return out

    def _results(self, out: Any) -> tuple[list[Any], list[str]]:
        return super()._results(self._flat(out))

    def _flat(self, out: Any) -> list[Any]:
        return flat(out, self.is_tensor, self.order)

    def _mapped(self) -> bool:
        return self.port and self.pairing is not None

    def _link(self, name: str):
        return next(link for link in self.pairing.links if link.theirs == name)

    def _back(self, name: str, value: np.ndarray) -> np.ndarray:
        return self._link(name).backward(value) if self._mapped() else value

    def _shapes(self) -> dict[str, tuple]:
        if self._mapped():
            return {link.theirs: link.shape for link in self.pairing.links if not link.fixed}
        return {name: tuple(value.shape) for name, value in self.parameters().items()}


def positional(inputs: Mapping[str, Any]) -> tuple:
    """Inputs whose names are numbers, in order: frameworks may call an argument differently."""
    return tuple(inputs[name] for name in sorted((name for name in inputs if name.isdigit()), key=int))


def named(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The other inputs."""
    return {name: value for name, value in inputs.items() if not name.isdigit()}


def flat(out: Any, is_tensor: Any, order: Mapping[str, int]) -> list[Any]:
    """The tensors in a result: of tuples and lists in their order, of mappings (output classes of model libraries) in
    that of their keys, those that it does not know last."""
    if is_tensor(out):
        return [out]
    if isinstance(out, Mapping):
        items = [out[key] for key in sorted(out, key=lambda key: order.get(str(key), len(order)))]
    else:
        items = out if isinstance(out, (list, tuple)) else []
    return [tensor for item in items for tensor in flat(item, is_tensor, order)]


def outline(out: Any, is_tensor: Any) -> Any:
    """What a result is made of: mappings and lists of "tensor", without what holds none."""
    if is_tensor(out):
        return "tensor"
    if isinstance(out, Mapping):
        items = {str(key): outline(item, is_tensor) for key, item in out.items()}
        return {key: item for key, item in items.items() if item}
    items = out if isinstance(out, (list, tuple)) else []
    return [item for item in (outline(item, is_tensor) for item in items) if item]


def keys_of(shape: Any) -> list[str]:
    """All keys of an outline, from the outside in."""
    if isinstance(shape, dict):
        return [*shape, *(key for item in shape.values() for key in keys_of(item))]
    return [key for item in shape for key in keys_of(item)] if isinstance(shape, list) else []


def other_keys(theirs: Any, ours: Any, place: str) -> list[str]:
    """Where two outlines are mappings with other keys; a tuple in the place of a mapping goes by position."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        if set(theirs) != set(ours):
            return [f"{place}: the port returns {', '.join(ours)}, the reference {', '.join(theirs)}"]
        pairs = [(theirs[key], ours[key], f"{place}[{key}]") for key in theirs]
    elif isinstance(theirs, list) and isinstance(ours, list):
        pairs = [(a, b, f"{place}[{i}]") for i, (a, b) in enumerate(zip(theirs, ours, strict=False))]
    else:
        return []
    return [problem for a, b, inside in pairs for problem in other_keys(a, b, inside)]


def others(out: Any, is_tensor: Any) -> set[str]:
    """Types in a result that `flat` leaves out; None is no result."""
    if out is None or is_tensor(out):
        return set()
    if isinstance(out, (Mapping, list, tuple)):
        items = out.values() if isinstance(out, Mapping) else out
        return set().union(*(others(item, is_tensor) for item in items))
    return {type(out).__name__}
