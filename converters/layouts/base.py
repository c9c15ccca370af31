# SPDX-License-Identifier: Apache-2.0
"""What a layout is: a table of rows (their name, our name, shape), read in both directions, strictly.

A new layout is a new table and one listing in `layouts/__init__.py`. Sizes in rows are symbols ("D", "3*D"):
with a configuration they give the expected shapes, and with a file they are solved for (`Layout.solve`), so
that one table serves the names, the shape check and the inference of the configuration.
"""

import difflib
import itertools
import re
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Literal

import numpy as np

from converters.errors import ConversionError
from converters.stream import Entries, TensorEntry, same_bits

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Dims = Mapping[str, int]
Config = dict[str, object]
Side = Literal["theirs", "ours"]

REPORT_LIMIT = 20  # names per group in an error
MAX_COUNT = 1 << 31  # of whatever an argument counts
MAX_FILL = 1 << 28  # numbers of a computed table: 1 GB, 480x480 patches of Latte-1
MAX_ROWS = 200_000  # of one model; more is a damaged or hostile configuration


@dataclass(frozen=True)
class Change:
    """An invertible rearrangement of the stored bits: reshape, transpose, no arithmetic. Both take (bits, dims)."""

    forward: Callable[[np.ndarray, Dims], np.ndarray]  # theirs -> ours
    backward: Callable[[np.ndarray, Dims], np.ndarray]  # ours -> theirs


# A 1x1 convolution (O, I, 1, 1) that is a linear layer (O, I) here.
CONV_1X1 = Change(lambda bits, dims: bits[:, :, 0, 0], lambda bits, dims: bits[:, :, None, None])


@dataclass(frozen=True)
class Rule:
    """One row: `theirs` in the published file is `ours` here.

    `{i}` in names and shapes counts from 0 without a gap; `{~i}` counts the same range downwards. `shape` holds
    the axes of our tensor: numbers, symbols or products ("3*D"); `their_shape` those of theirs, where a
    `change` makes them differ. A row exists where `when` (argument -> its value, or a tuple of them) agrees with
    the configuration and `only` with the indices and sizes.

    optional  an extra that is written only where the source has it
    extra   no part of the network: kept beside the tensors, so that nothing is lost on the way back
    tied    another name of a tensor that has a row already; the file may hold either, or both with equal bits
    drop    known, of no use here, not kept; `{*}` in its name stands for anything
    fill    configuration -> the tensor, where a side lacks it: what the originals' constructor puts there
    exact   a tensor in the file must agree with `fill`, because our network computes it
    why     why a dropped tensor is not needed, or how a missing one is filled
    """

    theirs: str
    ours: str | None
    shape: tuple[str, ...] = ()
    when: Mapping[str, object] = field(default_factory=dict)
    only: Callable[[Mapping[str, int], Dims], bool] | None = None
    their_shape: tuple[str, ...] | None = None
    change: Change | None = None
    extra: bool = False
    optional: bool = False
    tied: bool = False
    drop: bool = False
    fill: Callable[[Config], np.ndarray] | None = None
    exact: bool = False
    why: str = ""

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        text = re.escape(self.theirs).replace(r"\{\*\}", ".*")
        return re.compile(re.sub(r"\\\{(\\?~)?(\w+)\\\}", self._group, text), re.DOTALL)

    @staticmethod
    def _group(found: re.Match) -> str:
        reverse, name = found.groups()
        return f"(?P<{'down_' if reverse else ''}{name}>0|[1-9][0-9]{{0,8}})"

    @cached_property
    def placeholders(self) -> list[str]:
        return list(dict.fromkeys(re.findall(r"\{~?(\w+)\}", f"{self.theirs} {self.ours or ''}")))

    @property
    def axes(self) -> tuple[str, ...]:
        """The shape in their file."""
        return self.shape if self.their_shape is None else self.their_shape


def same(name: str, *shape: str, **when: object) -> Rule:
    """A row whose name is the same on both sides."""
    return Rule(name, name, shape, when)


def linear(name: str, out: str, into: str, **when: object) -> list[Rule]:
    """The two rows of a linear layer: weight (out, into) and bias (out)."""
    return [same(f"{name}.weight", out, into, **when), same(f"{name}.bias", out, **when)]


def rename(rules: Collection[Rule], *pairs: tuple[str, str]) -> tuple[Rule, ...]:
    """The same rows where their names are spelt otherwise: regular expressions and replacements, in order."""

    def spelt(name: str) -> str:
        for pattern, text in pairs:
            name = re.sub(pattern, text, name)
        return name

    return tuple(replace(rule, theirs=spelt(rule.theirs)) for rule in rules)


@dataclass(frozen=True)
class Model:
    """What is known about one of our models, independent of any layout.

    name     class name of the model
    keys     constructor argument -> kind (see `coerce`)
    ignored  argument of other implementations -> its values without effect here; empty: any value
    aliases  rewrites other spellings of arguments ("extras": 2 -> "condition": "class")
    infer    solved symbols, names -> the arguments that can be read off the tensors
    dims     configuration -> symbol values, as far as its keys allow
    symbols  symbol -> what it is, for error messages
    remedies argument -> why it cannot be inferred and what to do
    validate raises ConversionError when arguments contradict each other
    derived  arguments that a layout derives from others, and nobody is asked for as long as those are absent
    assume   solved symbols, names -> arguments that no tensor shows, as every published net of such sizes has them
    """

    name: str
    keys: Mapping[str, str]
    ignored: Mapping[str, tuple]
    aliases: Callable[[Config], Config]
    infer: Callable[[Mapping[str, int], Collection[str]], Config]
    dims: Callable[[Config], dict[str, int]]
    symbols: Mapping[str, str]
    remedies: Callable[[str, Mapping[str, int]], str]
    validate: Callable[[Config], None]
    assume: Callable[[Dims, Collection[str]], Config] = lambda dims, names: {}
    derived: Collection[str] = ()

    def arguments(
        self, given: Mapping[str, object], origin: str, foreign: bool = True
    ) -> tuple[Config, list[str]]:
        """`given` as constructor arguments, checked and coerced, plus notes about ignored keys.

        With `foreign`, keys that begin with _ and harmless arguments of other implementations may occur.
        """
        config, idle = {}, []
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
                idle.append(f"{key}={value!r}")
            else:
                close = difflib.get_close_matches(key, self.keys, 1)
                raise ConversionError(
                    f"{origin}: {self.name} has no argument {key!r}",
                    expected=f"{close[0]!r}?" if close else ", ".join(self.keys),
                    remedy=f"correct or remove the key in {origin}",
                )
        return config, [f"{origin}: without effect here: {', '.join(idle)}"] if idle else []

    def require(self, config: Config, dims: Mapping[str, int]) -> Config:
        """The configuration in the order of `keys`; raises one error for all arguments that nobody gave."""
        absent = [key for key in self.keys if key not in config]
        absent = [key for key in absent if key not in self.derived] or absent
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
    """One published format of one model.

    detect      shapes -> do they look like this layout
    evidence    the same in words, for people
    defaults    configuration -> what this layout fixes and no tensor shows
    describe    configuration -> the config.json that belongs to this layout
    wrapper     key under which its .pt files hold the weights
    sizes       symbols that no tensor of it shows
    presumes    arguments that its tensors would tell wrongly
    unsure      arguments that the model would assume, but that differ among the published nets of this layout
    initial     weights to start training from: read only, not a trained model of ours
    """

    name: str
    model: Model
    rules: tuple[Rule, ...]
    detect: Callable[[Shapes], bool]
    evidence: str = ""
    defaults: Callable[[Config], Config] = lambda config: {}
    describe: Callable[[Config], dict] | None = None
    wrapper: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    presumes: Config = field(default_factory=dict)
    unsure: Collection[str] = ()
    initial: bool = False

    def assumed(self, shapes: Shapes, given: Config, solved: Dims | None = None) -> Config:
        """Arguments that neither the file nor anybody says, and that are taken as published nets have them."""
        known = {**self.defaults(given), **self.presumes, **given}
        found = self.model.assume(self.solve(shapes) if solved is None else solved, shapes)
        return {key: value for key, value in found.items() if key not in known and key not in self.unsure}

    def resolve(self, shapes: Shapes, given: Config, origin: str) -> Config:
        """Constructor arguments for a file in this layout: shapes, then `given`, then this layout's defaults.

        Raises ConversionError with everything that does not fit, names and shapes first.
        """
        solved = self.solve(shapes)
        config = {
            **self.model.infer(solved, shapes),
            **self.presumes,
            **self.assumed(shapes, given, solved),
            **given,
        }
        self.check(shapes, config, solved, origin)
        config = {**self.defaults(config), **config}
        return self.model.require(config, solved)

    def to_ours(self, entries: Entries, config: Config) -> tuple[Entries, Entries, list[str]]:
        """Their entries as (tensors, extras, notes) in our names, in file order.

        Raises ConversionError for names and shapes that do not fit, tied tensors that differ, and computed
        tables that are not those of our network.
        """
        dims = self.model.dims(config)
        self.check(_shapes(entries), config, {}, "the configuration", "theirs")
        rows = {row.theirs: row for row in self.rows(config, dims)}
        tensors, extras, notes = OrderedDict(), OrderedDict(), []
        dropped: dict[str, list[str]] = {}
        for name, entry in entries.items():
            row = rows.get(name) or self._dropping(name)
            if row.rule.drop:
                dropped.setdefault(row.rule.why, []).append(name)
                continue
            entry = _changed(entry, row.rule.change and row.rule.change.forward, dims, name)
            if row.rule.exact:
                self._check_computed(name, entry, row.rule.fill(config))
            into = extras if row.rule.extra else tensors
            if row.ours in into:
                _check_tied(name, row.ours, entry, into[row.ours])
            else:
                into[row.ours] = entry
        for why, names in dropped.items():
            few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            notes.append(f"dropped {few}: {why or f'nothing in {self.model.name} uses it'}")
        for row in rows.values():
            if row.rule.fill and not row.rule.extra and row.needed and row.ours not in tensors:
                tensors[row.ours] = _filled(row, config)
                notes.append(f"added {row.ours}: {row.rule.why}")
        return tensors, extras, notes

    def to_theirs(
        self, tensors: Entries, extras: Entries, config: Config
    ) -> tuple[Entries, Entries, list[str]]:
        """Our tensors and extras as (their entries, extras without a place there, notes).

        Raises ConversionError if this layout cannot express the configuration.
        """
        if self.initial:
            raise ConversionError(
                f"layout {self.name!r} is read only: it holds weights to start from, not a {self.model.name}",
                remedy="choose another --to",
            )
        fixed = self.defaults(config)
        if wrong := [key for key in fixed if fixed[key] != config[key]]:
            raise ConversionError(
                f"layout {self.name!r} cannot hold this {self.model.name}: its code would compute another function",
                got=", ".join(f"{key}={config[key]!r}" for key in wrong),
                expected=", ".join(f"{key}={fixed[key]!r}" for key in wrong),
                remedy="choose another --to",
            )
        dims = self.model.dims(config)
        self.check(_shapes(tensors), config, {}, "the configuration", "ours")
        entries, left, notes = OrderedDict(), dict(extras), []
        for row in self.rows(config, dims):
            if row.rule.drop or row.rule.tied:
                continue
            if row.rule.extra:
                kept = left.pop(row.ours, None)
                if kept is not None and row.rule.exact:
                    self._check_computed(row.ours, kept, row.rule.fill(config))
                if kept is None and (row.rule.optional or row.rule.fill is None):
                    continue
                if kept is None:
                    kept = _filled(row, config)
                    notes.append(f"added {row.theirs}: {row.rule.why}")
            change = row.rule.change and row.rule.change.backward
            entries[row.theirs] = _changed(
                kept if row.rule.extra else tensors[row.ours], change, dims, row.ours
            )
        return entries, left, notes

    def card(self, config: Config) -> dict:
        """What config.json says beside weights in this layout."""
        return self.describe(config) if self.describe else {"_class_name": self.model.name, **config}

    def rows(self, config: Config, dims: Dims) -> Iterator[Row]:
        """Every tensor that a model of this configuration has, in the order of the table."""
        count = sum(prod(dims.get(name, 0) for name in rule.placeholders) for rule in self.rules)
        if count > MAX_ROWS:
            raise ConversionError(
                f"the configuration asks for {count:,} tensors",
                expected=f"at most {MAX_ROWS:,}",
                remedy="correct the number of blocks",
            )
        for rule in self.rules:
            if "{*}" in rule.theirs:
                continue
            if any(key in config and not _agrees(config[key], value) for key, value in rule.when.items()):
                continue
            needed = not (rule.extra or rule.tied or rule.drop or any(key not in config for key in rule.when))
            for index in itertools.product(*(range(dims.get(name, 0)) for name in rule.placeholders)):
                at = dict(zip(rule.placeholders, index, strict=True))
                if rule.only is not None and not rule.only(at, dims):
                    continue
                shape = {
                    "ours": _sizes(rule.shape, at, dims) if rule.shape else None,
                    "theirs": _sizes(rule.axes, at, dims) if rule.axes else None,
                }
                ours = rule.ours and _spell(rule.ours, at, dims)
                yield Row(rule, _spell(rule.theirs, at, dims), ours, shape, needed)

    def solve(self, shapes: Shapes) -> dict[str, int]:
        """The value of every symbol that their shapes show; where they disagree, the majority wins."""
        found, counts = [], Counter()
        for name, shape in shapes.items():
            rule, match = next(((r, m) for r in self.rules if (m := r.pattern.fullmatch(name))), (None, None))
            if rule is None or rule.drop:
                continue
            at = {key: int(value) for key, value in match.groupdict().items()}
            if any(value >= len(shapes) for value in at.values()):
                continue  # no file has more blocks than tensors
            for key, value in at.items():
                key = key.removeprefix("down_")
                counts[key] = max(counts[key], value + 1)
            found.append((rule, at, shape))

        votes: dict[str, Counter[int]] = {}
        products = []
        for rule, at, shape in found:
            at = {
                key.removeprefix("down_"): counts[key[5:]] - 1 - value if key.startswith("down_") else value
                for key, value in at.items()
            }
            if len(shape) == len(rule.axes):
                for axis, size in zip(rule.axes, shape, strict=True):
                    axis = axis.format(**at)
                    if "*" in axis:
                        products.append((axis, size))
                    elif not axis.isdigit():
                        votes.setdefault(axis, Counter())[size] += 1
        dims = {**self.sizes, **{symbol: counter.most_common(1)[0][0] for symbol, counter in votes.items()}}
        dims |= counts
        for axis, size in products * 2:  # "p*p*O" gives O once p is known
            factors = axis.split("*")
            unknown = [factor for factor in factors if evaluate(factor, dims) is None]
            known = prod(evaluate(factor, dims) for factor in factors if factor not in unknown)
            if not unknown or not known or size % known or len(set(unknown)) > 1:
                continue
            root = round((size // known) ** (1 / len(unknown)))
            if root ** len(unknown) == size // known:
                dims[unknown[0]] = root
        return dims

    def differences(
        self, shapes: Shapes, config: Config, solved: Dims, side: Side = "theirs"
    ) -> dict[str, list]:
        """What is missing, unknown and mis-shaped, as lines for people: group -> lines, only groups that have any."""
        rows: dict[str, Row] = {}
        here = set()  # what is present under any of its names
        for row in self.rows(config, {**solved, **self.model.dims(config)}):
            name = getattr(row, side)
            if name is not None:
                if name not in rows or not row.rule.tied:
                    rows[name] = row
                if name in shapes:
                    here.add(row.ours)
        missing = [
            name
            for name, row in rows.items()
            if row.needed
            and name not in shapes
            and not (side == "theirs" and (row.ours in here or row.rule.fill))
        ]
        unknown = [name for name in shapes if name not in rows and not self._dropping(name)]
        groups = {
            "missing": [f"{name} {_show(rows[name].shape[side])}" for name in missing],
            "unknown": [
                f"{name} {_show(shapes[name])}" + self._hint(name, missing or list(rows), config)
                for name in unknown[:REPORT_LIMIT]
            ]
            + unknown[REPORT_LIMIT:],
            "mis-shaped": [
                f"{name}: got {_show(shapes[name])}, expected {_show(rows[name].shape[side])}"
                for name in shapes
                if name in rows and not _fits(shapes[name], rows[name].shape[side])
            ],
        }
        return {title: lines for title, lines in groups.items() if lines}

    def check(self, shapes: Shapes, config: Config, solved: Dims, origin: str, side: Side = "theirs") -> None:
        """Raise one ConversionError that lists every missing, unknown and mis-shaped name."""
        groups = self.differences(shapes, config, solved, side)
        if not groups:
            return
        dims = self.model.dims(config)
        conflicts = [s for s in dims if s in solved and s in self.model.symbols and dims[s] != solved[s]]
        words = [
            f"{self.model.symbols[s]}: {dims[s]} by {origin}, {solved[s]} in the file" for s in conflicts
        ]
        lines = [f"the file does not fit layout {self.name!r} of {self.model.name}"]
        for title, group in ({"configuration": words} | groups).items():
            if group:
                lines.append(f"  {title} ({len(group)}):")
                lines += [f"    {line}" for line in group[:REPORT_LIMIT]]
                more = len(group) - REPORT_LIMIT
                lines += [f"    ... and {more} more"] if more > 0 else []
        lines.append(
            "  remedy: choose the layout with --from, correct the configuration with --set, or fix the file"
        )
        raise ConversionError("\n".join(lines))

    def _dropping(self, name: str) -> Row | None:
        """The row of a name that a rule with {*} drops."""
        for rule in self.rules:
            if rule.drop and "{*}" in rule.theirs and rule.pattern.fullmatch(name):
                return Row(rule, name, None, {"ours": None, "theirs": None}, False)
        return None

    def _check_computed(self, name: str, entry: TensorEntry, expected: np.ndarray) -> None:
        """A table in the file against the one that our network computes; stored precision is taken into account."""
        step = {"F64": 2.0**-24, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}.get(entry.dtype, 0.0)
        difference = np.abs(entry.read().astype(np.float64).reshape(expected.shape) - expected).max(
            initial=0.0
        )
        # Entries are sines and cosines, at most 1. The originals compute angles of up to about 100 in float64
        # or float32: 1e-5 is an angle's rounding in float32, and far below the distance of two positions.
        if not difference <= 1e-5 + step:
            raise ConversionError(
                f"{name} is not the table that {self.model.name} computes",
                got=f"a largest difference of {difference:.2g}",
                expected=f"at most {1e-5 + step:.2g}",
                remedy="correct the sizes and scales of the configuration with --set",
            )

    def _hint(self, name: str, candidates: list[str], config: Config) -> str:
        for rule in self.rules:
            if rule.pattern.fullmatch(name):
                wrong = {
                    key: value for key, value in rule.when.items() if not _agrees(config.get(key), value)
                }
                words = [
                    f"{key}={' or '.join(map(repr, value)) if isinstance(value, tuple) else repr(value)}"
                    for key, value in wrong.items()
                ]
                return f", belongs to {', '.join(words)}" if words else ", beyond the last block"
        close = difflib.get_close_matches(name, candidates, 1, cutoff=0.8) if len(name) < 500 else []
        return f", did you mean {close[0]}?" if close else ""


def _agrees(value: object, wanted: object) -> bool:
    """Whether an argument has the wanted value, or one of a tuple of them."""
    return value in wanted if isinstance(wanted, tuple) else value == wanted


def _shapes(entries: Entries) -> dict[str, Shape]:
    return {name: entry.shape for name, entry in entries.items()}


def _spell(name: str, at: Mapping[str, int], dims: Dims) -> str:
    """Fill the placeholders in; {~i} counts downwards."""
    return re.sub(r"\{(~?)(\w+)\}", lambda m: str(dims[m[2]] - 1 - at[m[2]] if m[1] else at[m[2]]), name)


def _sizes(axes: tuple[str, ...], at: Mapping[str, int], dims: Dims) -> tuple[int | None, ...]:
    return tuple(evaluate(axis.format(**at), dims) for axis in axes)


def _filled(row: Row, config: Config) -> TensorEntry:
    """The tensor that the configuration implies."""
    size = prod(row.shape["ours"]) if row.shape["ours"] and None not in row.shape["ours"] else 0
    if size > MAX_FILL:
        raise ConversionError(
            f"{row.ours} would be a table of {size:,} numbers",
            expected=f"at most {MAX_FILL:,}",
            remedy="correct the sizes with --set",
        )
    array = np.ascontiguousarray(row.rule.fill(config), np.float32)
    return TensorEntry("F32", array.shape, lambda: array)


def _check_tied(name: str, ours: str, a: TensorEntry, b: TensorEntry) -> None:
    """Two names of one tensor must hold the same bits."""
    if not same_bits(a, b):
        raise ConversionError(
            f"{name} and the other name of {ours} are one tensor, but the file holds two that differ",
            remedy="the file is damaged, or of another model",
        )


def evaluate(axis: str, dims: Mapping[str, int]) -> int | None:
    """ "3*D" -> 3 * dims["D"]; None if a symbol has no value."""
    factors = [int(factor) if factor.isdigit() else dims.get(factor) for factor in axis.split("*")]
    return None if None in factors else prod(factors)


def coerce(key: str, kind: str, value: object, origin: str) -> object:
    """A value as the constructor wants it. Kinds: count, count?, counts, fraction, flag, size, or words "a|b|c".

    A size is an int or [height, width], counts are a list; `?` admits None.
    """

    def is_count(x: object) -> bool:
        return type(x) is int and 0 < x < MAX_COUNT

    if (kind == "count" and is_count(value)) or (kind == "flag" and type(value) is bool):
        return value
    if kind == "count?" and (value is None or is_count(value)):
        return value
    if kind == "fraction" and type(value) in (int, float) and 0 <= value <= sys.float_info.max:
        return float(value)
    if kind == "counts" and isinstance(value, (list, tuple)) and value and all(map(is_count, value)):
        return list(value)
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
        "counts": "a list of positive integers",
        "fraction": "a number, 0 or more",
        "flag": "true or false",
        "size": "a positive integer or height,width",
    }
    raise ConversionError(
        f"{origin}: {key} has a wrong value",
        got=repr(value),
        expected=wanted.get(kind, kind.replace("|", ", ")),
    )


def _changed(entry: TensorEntry, change: Callable | None, dims: Dims, name: str) -> TensorEntry:
    """The entry with its bits rearranged when they are read."""
    if change is None:
        return entry
    try:
        shape = change(np.broadcast_to(np.uint8(0), entry.shape), dims).shape  # takes no memory
    except (ValueError, IndexError, KeyError) as error:
        raise ConversionError(
            f"{name} cannot be rearranged", got=f"shape {_show(entry.shape)}: {error}"
        ) from None
    return TensorEntry(entry.dtype, shape, lambda: change(entry.bits(), dims), entry.convert, entry.release)


def _fits(shape: Shape, expected: tuple[int | None, ...] | None) -> bool:
    if expected is None:
        return True
    return len(shape) == len(expected) and all(
        b is None or a == b for a, b in zip(shape, expected, strict=True)
    )


def _show(shape: tuple | None) -> str:
    return "" if shape is None else "(" + ", ".join("?" if n is None else str(n) for n in shape) + ")"
