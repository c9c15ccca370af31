# SPDX-License-Identifier: Apache-2.0
"""Realistic port bugs, injected into the MindSpore side to show that the gates catch them.

One module per model file, each with a list MUTANTS; a new module is found by itself. A bug is written as
  edits    replacements of text in functions of `ms_latte`, so that a reader sees the wrong line,
  replace  other values of attributes while a model is built and run, or
  change   a change of the loaded model.
`cases` names the smallest cases that reach the code. `expected` says for fp32, fp16 and bf16 which gates must kill it;
gate G1 (float64) is part of the row fp32. "-" means not detectable there, with the reason in `note`.
"""

import importlib
import importlib.util
import inspect
import pkgutil
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from parity.harness.case import FOLDERS

DTYPES = ("fp32", "fp16", "bf16")


class MutantError(ValueError):
    """An entry of the registry that does not fit the code of the port (any more)."""


@dataclass(frozen=True)
class Edit:
    """One replacement in the source of a function. place: "layers.LayerNorm.construct", a path below one of the folders
    that have cases, or below `ms_latte` ("checkpoint._fill"). old must occur exactly once."""

    place: str
    old: str
    new: str


def gates(fp32: str, fp16: str, bf16: str = "") -> dict[str, str]:
    """Gates that must kill a mutant, per dtype; bf16 as fp16 unless given."""
    return dict(fp32=fp32, fp16=fp16, bf16=bf16 or fp16)


STATED = gates("G0", "G0")  # a constant that a layer prints, a shape or a set of parameters
NUMBERS = gates("G1 G2", "G2")  # visible on ordinary inputs in every dtype
PROBE = gates("G1 G3", "G3")  # ordinary inputs show it in float64 at best; a probe does in every dtype


@dataclass(frozen=True)
class Mutant:
    """One injected bug.

    equivalent: the proof that it is none, "" for a bug; every gate must stay silent. form: the formulation set that
    has the code. A declared G5 differentiates the nets among the cases too.
    """

    name: str
    description: str
    cases: tuple[str, ...]
    expected: dict[str, str]
    edits: tuple[Edit, ...] = ()
    replace: Callable[[], list[tuple[Any, str, Any]]] | None = None
    change: Callable[[Any], None] | None = None
    note: str = ""
    form: str = "CPU"
    equivalent: str = ""
    file: str = ""

    @contextmanager
    def patched(self) -> Iterator[None]:
        """The port with this bug in its code. Raises MutantError if an edit does not fit the port's source."""
        with ExitStack() as stack:
            for function, code in _edited(self).items():
                stack.callback(setattr, function, "__code__", function.__code__)
                function.__code__ = code  # seen by everyone who imported the function by name, too
            for owner, name, value in self.replace() if self.replace else ():
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)
            _forget()
            stack.callback(_forget)
            yield

    def edit(self, model: Any) -> None:
        """The loaded model with this bug in its state."""
        if self.change:
            self.change(model)


def mutant(
    name: str,
    description: str,
    cases: str | tuple[str, ...],
    expected: dict[str, str],
    *edits: tuple[str, str, str],
    **rest: Any,
) -> Mutant:
    """A registry entry; `edits` are (place, old, new)."""
    cases = (cases,) if isinstance(cases, str) else cases
    return Mutant(name, description, cases, expected, tuple(Edit(*edit) for edit in edits), **rest)


def collect() -> list[Mutant]:
    """All entries, in the order of their files. Raises MutantError for two of one name."""
    found: list[Mutant] = []
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda item: item.name):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        found += [replace(entry, file=module.name) for entry in loaded.MUTANTS]
    names = [entry.name for entry in found]
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise MutantError(f"mutants share a name: {', '.join(doubles)}")
    return found


def cells(model: Any, kind: str) -> list[Any]:
    """All cells of a class, by its name."""
    return [cell for _, cell in model.cells_and_names() if type(cell).__name__ == kind]


def assign(kind: str, attribute: str, value: Any) -> Callable[[Any], None]:
    """A `change`: another value for an attribute of every cell of a class."""

    def change(model):
        found = cells(model, kind)
        if not found:
            raise MutantError(f"the model has no {kind}")
        for cell in found:
            setattr(cell, attribute, value)

    return change


def _edited(entry: Mutant) -> dict[Any, Any]:
    """function -> its code with the edits of a mutant, at the line numbers of the original."""
    edits: dict[Any, list[Edit]] = {}
    for edit in entry.edits:
        edits.setdefault(_function(entry, edit.place), []).append(edit)
    codes = {}
    for function, group in edits.items():
        lines, first = inspect.getsourcelines(function)
        source = textwrap.dedent("".join(lines))
        for edit in group:
            if source.count(edit.old) != 1:
                raise MutantError(
                    f"mutant {entry.name}: {edit.old!r} occurs {source.count(edit.old)} times in {edit.place}, "
                    "expected once; remedy: adapt the entry to the code of the port"
                )
            source = source.replace(edit.old, edit.new)
        # A class cell around the function, so that super() finds it; decorators run, and are looked through.
        wrapped = f"def _outer(__class__):\n{textwrap.indent(source, ' ')}\n return {function.__name__}"
        space = dict(function.__globals__)
        exec(
            compile("\n" * max(first - 2, 0) + wrapped, inspect.getsourcefile(function), "exec"),
            space,
        )
        codes[function] = inspect.unwrap(space["_outer"](None)).__code__
    return codes


def _function(entry: Mutant, place: str) -> Any:
    module, *path = place.split(".")
    packages = [*(f"ms_latte.{folder}" for folder in FOLDERS), "ms_latte"]
    try:
        package = next(
            (name for name in packages if importlib.util.find_spec(f"{name}.{module}")), "ms_latte"
        )
        value = importlib.import_module(f"{package}.{module}")
        for name in path:
            value = getattr(value, name)
    except (ImportError, AttributeError) as error:
        raise MutantError(f"mutant {entry.name}: the port has no {place} ({error})") from error
    return inspect.unwrap(value.fget if isinstance(value, property) else value)


def _forget() -> None:
    """Clear the caches of tables and indices: they hold what the code computed before."""
    for name in ("constants", "layers"):
        for value in vars(importlib.import_module(f"ms_latte.models.{name}")).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


MUTANTS = {entry.name: entry for entry in collect()}
