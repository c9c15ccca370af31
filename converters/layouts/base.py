# SPDX-License-Identifier: Apache-2.0
"""What a layout is: a table of rows (their name, our name, shape), read in both directions, strictly.

A new layout is a new table and one line in `layouts/__init__.py`. Sizes in rows are symbols ("D", "3*D"):
with a configuration they give the expected shapes, and with a file they are solved for (`Layout.solve`), so
that one table serves the names, the shape check and the inference of the configuration.
"""

import difflib
import itertools
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Literal

import numpy as np

from converters.errors import ConversionError
from converters.stream import Entries, TensorEntry

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Config = dict[str, object]
Side = Literal["theirs", "ours"]
ModelName = Literal["Latte", "LatteT2V"]

REPORT_LIMIT = 20  # names per group in an error
NO_MAP = (
    "Latte (adaLN-Zero) has a modulation MLP in every block, LatteT2V (adaLN-single) shares one: "
    "no lossless map exists between them"
)


@dataclass(frozen=True)
class Rule:
    """One row: `theirs` in the published file is `ours` here; `{i}` counts blocks from 0 without a gap.

    `shape` holds the axes of our tensor: numbers, symbols or products ("3*D"). `when` makes the row depend on
    configuration values. `forward`/`backward` rearrange the stored bits (reshape, transpose: no arithmetic).
    """

    theirs: str
    ours: str | None
    shape: tuple[str, ...] = ()
    when: Mapping[str, object] = field(default_factory=dict)
    optional: bool = False
    drop: bool = False  # known, but we have no use for it
    forward: Callable[[np.ndarray], np.ndarray] | None = None
    backward: Callable[[np.ndarray], np.ndarray] | None = None

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        text = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>0|[1-9][0-9]*)", re.escape(self.theirs))
        return re.compile(text)

    @cached_property
    def placeholders(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.theirs)


def same(name: str, *shape: str, **when: object) -> Rule:
    """A row whose name is the same on both sides."""
    return Rule(name, name, shape, when)


def linear(name: str, out: str, into: str, **when: object) -> list[Rule]:
    """The two rows of a linear layer: weight (out, into) and bias (out)."""
    return [same(f"{name}.weight", out, into, **when), same(f"{name}.bias", out, **when)]


@dataclass(frozen=True)
class Model:
    """What is known about one of our models, independent of any layout.

    name     class name
    keys     constructor argument -> kind (see `coerce`)
    ignored  argument of other implementations -> its values without effect here; empty: any value
    aliases  rewrites other spellings of arguments ("extras": 2 -> "condition": "class")
    infer    solved symbols, names -> the arguments that can be read off the tensors
    dims     configuration -> symbol values, as far as its keys allow
    symbols  symbol -> what it is, for error messages
    remedies argument -> why it cannot be inferred and what to do
    validate raises ConversionError when arguments contradict each other
    """

    name: ModelName
    keys: Mapping[str, str]
    ignored: Mapping[str, tuple]
    aliases: Callable[[Config], Config]
    infer: Callable[[Mapping[str, int], Collection[str]], Config]
    dims: Callable[[Config], dict[str, int]]
    symbols: Mapping[str, str]
    remedies: Callable[[str, Mapping[str, int]], str]
    validate: Callable[[Config], None]

    def arguments(
        self, given: Mapping[str, object], origin: str, foreign: bool = True
    ) -> tuple[Config, list[str]]:
        """`given` as constructor arguments, checked and coerced, plus notes about ignored keys.

        With `foreign`, keys that begin with _ and harmless arguments of other implementations may occur.
        """
        config, notes = {}, []
        for key, value in self.aliases(dict(given)).items():
            if key in self.keys:
                config[key] = coerce(key, self.keys[key], value, origin)
            elif foreign and key.startswith("_"):
                continue
            elif foreign and key in self.ignored:
                allowed = self.ignored[key]
                if allowed and value not in allowed:
                    raise ConversionError(
                        f"{origin}: {key} changes the network, and our {self.name} does not compute that",
                        got=repr(value),
                        expected=" or ".join(map(repr, allowed)),
                    )
                notes.append(f"{origin}: {key}={value!r} has no effect here, ignored")
            else:
                close = difflib.get_close_matches(key, self.keys, 1)
                raise ConversionError(
                    f"{origin}: {self.name} has no argument {key!r}",
                    expected=f"{close[0]!r}?" if close else ", ".join(self.keys),
                    remedy=f"correct or remove the key in {origin}",
                )
        return config, notes

    def require(self, config: Config, dims: Mapping[str, int]) -> Config:
        """The configuration in the order of `keys`; raises one error for all arguments that nobody gave."""
        absent = [key for key in self.keys if key not in config]
        if absent:
            why = "; ".join(filter(None, (self.remedies(key, dims) for key in absent)))
            raise ConversionError(
                f"the file does not tell {', '.join(absent)} of {self.name}",
                remedy=why
                or "put a config.json beside it or pass --set " + " ".join(f"{key}=..." for key in absent),
            )
        self.validate(config)
        return {key: config[key] for key in self.keys}


@dataclass(frozen=True)
class Row:
    """A rule for one block of one configured model; None stands for a shape or axis that is not known."""

    rule: Rule
    theirs: str
    ours: str | None
    shape: dict[Side, tuple[int | None, ...] | None]
    needed: bool


@dataclass(frozen=True)
class Layout:
    """One published format of one model."""

    name: str
    model: Model
    rules: tuple[Rule, ...]
    detect: Callable[[Collection[str]], bool]
    defaults: Callable[[Config], Config] = lambda config: {}

    def resolve(self, shapes: Shapes, given: Config, origin: str) -> Config:
        """Constructor arguments for a file in this layout: shapes, then `given`, then this layout's defaults.

        Raises ConversionError with everything that does not fit, names and shapes first.
        """
        solved = self.solve(shapes)
        config = {**self.model.infer(solved, shapes), **given}
        self.check(shapes, config, solved, origin)
        config = {**self.defaults(config), **config}
        return self.model.require(config, solved)

    def translate(self, entries: Entries, config: Config, to: Side = "ours") -> tuple[Entries, list[str]]:
        """Rename (and rearrange) every tensor; returns the entries, in file order, and the dropped names."""
        side: Side = "theirs" if to == "ours" else "ours"
        self.check(
            {name: entry.shape for name, entry in entries.items()}, config, {}, "the configuration", side
        )
        rows = {getattr(row, side): row for row in self.rows(config, self.model.dims(config))}
        result, dropped = OrderedDict(), []
        for name, entry in entries.items():
            row = rows[name]
            if row.rule.drop:
                dropped.append(name)
            else:
                change = row.rule.forward if to == "ours" else row.rule.backward
                result[getattr(row, to)] = _rearrange(entry, change)
        return result, dropped

    def rows(self, config: Config, dims: Mapping[str, int]) -> Iterator[Row]:
        """Every tensor that a model of this configuration has, in the order of the table."""
        for rule in self.rules:
            if any(key in config and config[key] != value for key, value in rule.when.items()):
                continue
            needed = not (rule.optional or rule.drop or any(key not in config for key in rule.when))
            ours = tuple(evaluate(axis, dims) for axis in rule.shape) if rule.shape else None
            shape = {"ours": ours, "theirs": _rearranged_shape(ours, rule.backward)}
            for index in itertools.product(*(range(dims.get(name, 0)) for name in rule.placeholders)):
                at = dict(zip(rule.placeholders, index, strict=True))
                yield Row(rule, rule.theirs.format(**at), rule.ours and rule.ours.format(**at), shape, needed)

    def solve(self, shapes: Shapes) -> dict[str, int]:
        """The value of every symbol that their shapes show; where they disagree, the majority wins."""
        votes: dict[str, Counter[int]] = {}
        products = []
        for name, shape in shapes.items():
            rule, match = next(((r, m) for r in self.rules if (m := r.pattern.fullmatch(name))), (None, None))
            if rule is None or rule.drop:
                continue
            for symbol, index in match.groupdict().items():
                last = max(votes.get(symbol, [0]))
                votes[symbol] = Counter([max(last, int(index) + 1)])
            shape = _rearranged_shape(shape, rule.forward)
            if len(shape) == len(rule.shape):
                for axis, size in zip(rule.shape, shape, strict=True):
                    if "*" in axis:
                        products.append((axis, size))
                    elif not axis.isdigit():
                        votes.setdefault(axis, Counter())[size] += 1
        dims = {symbol: counter.most_common(1)[0][0] for symbol, counter in votes.items()}
        for axis, size in products:  # "p*p*O" gives O once p is known
            factors = axis.split("*")
            unknown = [factor for factor in factors if evaluate(factor, dims) is None]
            known = prod(evaluate(factor, dims) for factor in factors if factor not in unknown)
            if len(unknown) == 1 and known and size % known == 0:
                dims[unknown[0]] = size // known
        return dims

    def check(
        self, shapes: Shapes, config: Config, solved: Mapping[str, int], origin: str, side: Side = "theirs"
    ) -> None:
        """Raise one ConversionError that lists every missing, unknown and mis-shaped name."""
        dims = self.model.dims(config)
        rows = {getattr(row, side): row for row in self.rows(config, {**solved, **dims})}
        missing = [
            name for name, row in rows.items() if name is not None and row.needed and name not in shapes
        ]
        unknown = [name for name in shapes if name not in rows]
        misshaped = [
            name for name in shapes if name in rows and not _fits(shapes[name], rows[name].shape[side])
        ]
        if not (missing or unknown or misshaped):
            return

        conflicts = [s for s in dims if s in solved and s in self.model.symbols and dims[s] != solved[s]]
        groups = {
            "configuration": [
                f"{self.model.symbols[s]}: {dims[s]} by {origin}, {solved[s]} in the file" for s in conflicts
            ],
            "missing": [f"{name} {_show(rows[name].shape[side])}" for name in missing],
            "unknown": [
                f"{name} {_show(shapes[name])}" + self._hint(name, missing or list(rows), config)
                for name in unknown[:REPORT_LIMIT]
            ]
            + unknown[REPORT_LIMIT:],
            "mis-shaped": [
                f"{name}: got {_show(shapes[name])}, expected {_show(rows[name].shape[side])}"
                for name in misshaped
            ],
        }
        lines = [f"the file does not fit layout {self.name!r} of {self.model.name}"]
        for title, group in groups.items():
            if group:
                lines.append(f"  {title} ({len(group)}):")
                lines += [f"    {line}" for line in group[:REPORT_LIMIT]]
                lines += (
                    [f"    ... and {len(group) - REPORT_LIMIT} more"] if len(group) > REPORT_LIMIT else []
                )
        lines.append(
            "  remedy: choose the layout with --from, correct the configuration with --set, or fix the file"
        )
        raise ConversionError("\n".join(lines))

    def _hint(self, name: str, candidates: list[str], config: Config) -> str:
        for rule in self.rules:
            if rule.pattern.fullmatch(name):
                wrong = [f"{k}={v!r}" for k, v in rule.when.items() if config.get(k) != v]
                return f", belongs to {', '.join(wrong)}" if wrong else ", beyond the last block"
        close = difflib.get_close_matches(name, candidates, 1, cutoff=0.8)
        return f", did you mean {close[0]}?" if close else ""


def evaluate(axis: str, dims: Mapping[str, int]) -> int | None:
    """ "3*D" -> 3 * dims["D"]; None if a symbol has no value."""
    factors = [int(factor) if factor.isdigit() else dims.get(factor) for factor in axis.split("*")]
    return None if None in factors else prod(factors)


def coerce(key: str, kind: str, value: object, origin: str) -> object:
    """A value as the constructor wants it. Kinds: count, count?, fraction, flag, size, or words "a|b|c".

    A size is an int or [height, width]; `?` admits None.
    """

    def is_count(x: object) -> bool:
        return type(x) is int and x > 0

    if (kind == "count" and is_count(value)) or (kind == "flag" and type(value) is bool):
        return value
    if kind == "count?" and (value is None or is_count(value)):
        return value
    if kind == "fraction" and type(value) in (int, float) and 0 <= value < float("inf"):
        return float(value)
    if kind == "size":
        if is_count(value):
            return value
        if isinstance(value, (list, tuple)) and len(value) == 2 and all(map(is_count, value)):
            return list(value)
    if isinstance(value, str) and value in kind.split("|"):
        return value
    wanted = {
        "count": "a positive integer",
        "count?": "a positive integer or null",
        "fraction": "a number, 0 or more",
        "flag": "true or false",
        "size": "a positive integer or height,width",
    }
    raise ConversionError(
        f"{origin}: {key} has a wrong value",
        got=repr(value),
        expected=wanted.get(kind, kind.replace("|", ", ")),
    )


def _rearrange(entry: TensorEntry, change: Callable | None) -> TensorEntry:
    if change is None:
        return entry
    return TensorEntry(entry.dtype, _rearranged_shape(entry.shape, change), lambda: change(entry.bits()))


def _rearranged_shape(shape: tuple | None, change: Callable | None) -> tuple | None:
    """The shape after a rearrangement, tried out on an array that takes no memory."""
    if change is None or shape is None or None in shape:
        return shape if change is None else None
    return change(np.broadcast_to(np.uint8(0), shape)).shape


def _fits(shape: Shape, expected: tuple[int | None, ...] | None) -> bool:
    if expected is None:
        return True
    return len(shape) == len(expected) and all(
        b is None or a == b for a, b in zip(shape, expected, strict=True)
    )


def _show(shape: tuple | None) -> str:
    return "" if shape is None else "(" + ", ".join("?" if n is None else str(n) for n in shape) + ")"
