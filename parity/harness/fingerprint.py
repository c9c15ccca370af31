# SPDX-License-Identifier: Apache-2.0
"""Which arithmetic a device really does, read from the results of micro-probes alone.

A probe is one operation on fixed inputs and a reading of its result. Whoever answers the probes (a MindSpore worker,
or an emulated device of `fingerprint_devices`) runs `answer(op, dtype, arrays)` with float32 arrays whose values lie on
the grid of `dtype`; the reading knows nothing about the device.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from parity.harness.emulate import to_grid

DTYPES = ("fp32", "fp16", "bf16")
# (significant bits with the hidden one, exponent bits) -> what people call it
FORMATS = {(24, 8): "fp32", (12, 8): "HF32", (11, 8): "TF32", (11, 5): "fp16", (8, 8): "bf16"}
WIDE = 30  # the accumulator probe stops here: wider ones print as "30 bits or more"
SUM_WIDE = {"fp32": WIDE, "fp16": 16, "bf16": WIDE}  # without products, float16 ends at 2^15
TERMS = 64  # length of the sum whose order is read


@dataclass(frozen=True)
class Probe:
    """One operation on fixed inputs. read: result -> value of the fact, an int, a float or a word. calls: how often it
    is asked; answers that differ are a fact of their own."""

    fact: str
    op: str
    dtype: str
    arrays: tuple
    read: Callable[[np.ndarray], Any]
    calls: int = 1


@dataclass
class Fingerprint:
    """What the probes showed: fact -> value, and the facts that could not be read -> reason."""

    facts: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def format(self, unit: str) -> str:
        """Name of the format in which the float32 inputs of "matmul" or "conv" are multiplied, with its bits."""
        bits = min(self.facts.get(f"fp32 {unit} {side} bits", 0) for side in ("left", "right"))
        exponent = self.facts.get(f"fp32 {unit} exponent bits", 0)
        return FORMATS.get((bits, exponent), f"unknown ({bits} bits, exponent {exponent or '?'} bits)")

    def effective(self, unit: str) -> str:
        """Bits that the float32 inputs of "matmul" or "conv" keep, with the name of the format unless it is fp32."""
        name = self.format(unit)
        return f"{_bits(self, unit)} bits" + ("" if name == "fp32" else f" ({name})")

    def lines(self) -> list[str]:
        """The fingerprint in at most two lines."""
        get = self.facts.get
        parts = [f"{unit} {self.format(unit)} ({_bits(self, unit)} bits)" for unit in ("matmul", "conv")]
        for dtype in DTYPES:
            bits = get(f"{dtype} matmul accumulator bits")
            if bits is not None:
                parts.append(f"{dtype} accumulator {accumulator(bits)}")
        parts.append(f"subnormals {get('fp32 subnormals', '?')}")
        parts.append(f"-0 {get('fp32 negative zero', '?')}")
        parts.append(f"bf16 rounding {get('bf16 rounding', '?')}")
        ulps = [f"{n.split()[1]} {v:.3g}" for n, v in self.facts.items() if n.endswith("worst ulp")]
        return ["effective: " + " · ".join(parts)] + (["worst ULP: " + " · ".join(ulps)] if ulps else [])

    def table(self) -> list[str]:
        """One row for every fact, read or not."""
        rows = {name: f"{v:.3g}" if isinstance(v, float) else str(v) for name, v in self.facts.items()}
        for name, value in self.facts.items():
            limit = SUM_WIDE[name.split()[0]] if " sum " in name else WIDE
            if name.endswith("accumulator bits") and value >= limit:
                rows[name] += " or more"
        rows |= {name: f"not read: {reason}" for name, reason in self.missing.items()}
        width = max(map(len, rows), default=0)
        return [f"{name:<{width}}  {rows[name]}" for name in sorted(rows, key=_order)]


def accumulator(bits: int) -> str:
    """Words for the width of an accumulator."""
    if bits >= WIDE:
        return f"{WIDE} bits or more"
    name = {24: "fp32", 11: "fp16", 8: "bf16"}.get(bits)
    return f"{name} ({bits} bits)" if name else f"{bits} bits"


def read(answer: Callable, dtypes: Iterable[str] = DTYPES, about: str = "") -> Fingerprint:
    """Ask `answer(op, dtype, arrays)` every probe whose fact contains the words `about`.

    An answer that raises LookupError has no such operation: the fact is missing, with the reason.
    """
    found = Fingerprint()
    for probe in probes():
        if probe.dtype not in dtypes or about not in probe.fact:
            continue
        try:
            results = [answer(probe.op, probe.dtype, probe.arrays) for _ in range(probe.calls)]
        except LookupError as error:
            found.missing[probe.fact] = str(error).strip("'\"")
            continue
        values = sorted({probe.read(np.asarray(result)) for result in results})
        found.facts[probe.fact] = (
            values[0] if len(values) == 1 else " or ".join(values) + ", from call to call"
        )
    return found


@lru_cache(maxsize=1)
def probes() -> tuple[Probe, ...]:
    """All probes. Inputs are exact in the type they are asked in, so that only the device can change them."""
    found = [*_inputs("matmul"), *_inputs("conv")]
    for dtype in DTYPES:
        found.append(Probe(f"{dtype} matmul accumulator bits", "matmul", dtype, _cancelling(), _kept_sums))
        rows = _cancelling_rows(SUM_WIDE[dtype])
        found.append(Probe(f"{dtype} sum accumulator bits", "sum", dtype, rows, _kept_rows))
    found.append(Probe("fp32 matmul order of sums", "matmul", "fp32", _absorbing(), _tree))
    for dtype in ("fp16", "bf16"):  # a running sum in the type itself stalls at 2048 and at 256
        found.append(
            Probe(f"{dtype} sum of 8192 ones", "sum", dtype, (np.ones((1, 8192), np.float32),), _total)
        )
        found.append(Probe(f"{dtype} rounding", "cast", dtype, (_ties(dtype),), _rounding(dtype)))
    # Many elements and calls: MindSpore on the CPU keeps subnormals in its main thread and flushes them in the others;
    # in its first 15 calls of a kernel it tries how many threads are best, so both are seen.
    left = np.repeat(np.float32([2.0**-127, 2.0**-149, 2.0**-100, 2.0**-75]), 1 << 15)  # inputs, then results
    right = np.repeat(np.float32([2.0**40, 2.0**40, 2.0**-40, 2.0**-74]), 1 << 15)
    found += [
        Probe("fp32 subnormals", "multiply", "fp32", (left, right), _subnormals(left, right), 32),
        Probe(
            "fp32 negative zero",
            "multiply",
            "fp32",
            (np.float32([-0.0, 0.0, -1.0]), np.float32([1.0, -1.0, 0.0])),
            lambda result: "kept" if np.signbit(result).all() and not result.any() else "lost",
        ),
    ]
    found += [
        Probe(f"fp32 {name} worst ulp", name, "fp32", (grid,), _worst_ulp(truth(grid.astype(np.float64))))
        for name, (grid, truth) in elementary().items()
    ]
    found += [
        Probe(f"fp32 {name} error", name, "fp32", arrays, _relative_error(KNOWN_GOOD[name], arrays))
        for name, arrays in _known_good_inputs().items()
    ]
    return tuple(found)


# --- width of the inputs


def _inputs(unit: str) -> list[Probe]:
    """Products 1 x (1 + 2^-k) lose the step when an input has fewer bits; powers of two show the exponent's range."""
    x = (1 + 2.0 ** -np.arange(1, 24)).astype(np.float32)
    steps = np.arange(1, 23)
    thirds = (1 + 1.5 * 2.0**-steps).astype(np.float32)
    powers = (2.0 ** np.array([14, 20, 100, -14, -30, -100])).astype(np.float32)
    one = np.ones(1, np.float32)

    def arrays(left, right):
        # Zeros around them: libraries replace products with a single term, row or column by multiplication, which
        # is not what nets of usual sizes are computed with.
        left, right = _bordered(left), _bordered(right)
        if unit == "matmul":
            return left, np.ascontiguousarray(right.T)
        return left[..., None, None], right[..., None, None]  # (N, C, 1, 1) and (O, C, 1, 1)

    def read(result, count):
        """The products of a column of numbers and one, or of one and a row."""
        result = result.reshape(len(result), -1)
        return result[:count, 0] if result[1, 0] else result[0, :count]

    def bits(result):
        return 1 + _leading(read(result, len(x)) == x)

    def rounding(result):
        """With f fraction bits, 1 + 0.75 * 2^-f (step f + 1) goes up to 1 + 2^-f, or down to 1 if cut."""
        result = read(result, len(thirds))
        f = 1 + _leading(result == thirds)
        if f > len(steps):
            return "exact"
        return {1 + 2.0**-f: "to nearest", 1.0: "truncation"}.get(float(result[f]), "none of the known rules")

    def exponent(result):
        kept = read(result, len(powers)) == powers
        if kept.all():
            return 8
        return 5 if kept[0] and kept[3] and not kept[[1, 2, 5]].any() else 0

    return [
        Probe(f"fp32 {unit} left bits", unit, "fp32", arrays(x, one), bits),
        Probe(f"fp32 {unit} right bits", unit, "fp32", arrays(one, x), bits),
        Probe(f"fp32 {unit} exponent bits", unit, "fp32", arrays(powers, one), exponent),
        Probe(f"fp32 {unit} input rounding", unit, "fp32", arrays(thirds, one), rounding),
    ]


def _bordered(numbers: np.ndarray) -> np.ndarray:
    """(n, k): numbers in the first column, zeros elsewhere, n and k multiples of 16."""
    wide = np.zeros((len(numbers) + -len(numbers) % 16, 16), np.float32)
    wide[: len(numbers), 0] = numbers
    return wide


def _leading(kept: np.ndarray) -> int:
    """Number of True before the first False."""
    return int(np.argmin(np.append(kept, False)))


def _bits(found: Fingerprint, unit: str) -> int:
    return min(found.facts.get(f"fp32 {unit} {side} bits", 0) for side in ("left", "right"))


# --- width of the accumulator


# Places and sign of 2^k, 1, -2^k: in every tree of sums one of them adds 1 to 2^k first (to -2^k would need one bit
# less).
ORDERS = [(places, sign) for places in ((0, 1, 2), (1, 0, 2), (0, 2, 1)) for sign in (1, -1)]


def _cancelling() -> tuple[np.ndarray, np.ndarray]:
    """Diagonal element k of the product is 2^k + 1 - 2^k in one order: 1 if the accumulator holds k + 1 bits.

    2^k is a product of two halves, so that half-precision inputs can hold it.
    """
    left, right = [], []
    for places, sign in ORDERS:
        for k in range(1, WIDE):
            a = np.array([2.0 ** (k - k // 2), 1, 2.0 ** (k - k // 2)])
            b = np.array([sign * 2.0 ** (k // 2), 1, -sign * 2.0 ** (k // 2)])
            left.append(a[np.argsort(places)])
            right.append(b[np.argsort(places)])
    return np.float32(left), np.ascontiguousarray(np.float32(right).T)


def _kept_sums(result: np.ndarray) -> int:
    rows = np.diagonal(result).reshape(len(ORDERS), WIDE - 1)
    return min(1 + _leading(row == 1) for row in rows)


def _cancelling_rows(wide: int) -> tuple[np.ndarray]:
    """The same without products."""
    steps = range(1, wide)
    rows = [np.array([s * 2.0**k, 1, -s * 2.0**k])[np.argsort(p)] for p, s in ORDERS for k in steps]
    return (np.float32(rows),)


def _kept_rows(result: np.ndarray) -> int:
    return min(1 + _leading(row == 1) for row in result.reshape(len(ORDERS), -1))


def _total(result: np.ndarray) -> int:
    return int(result.reshape(-1)[0])


# --- order of the sum


def _absorbing() -> tuple[np.ndarray, np.ndarray]:
    """Row j holds 2^30 at 0 and -2^30 at j among units of 1/64, which even together are absorbed: the units that
    survive were added after those two had met; the others are the smallest part of the tree of sums with both."""
    left, right = (
        np.full((TERMS - 1, TERMS), 0.125, np.float32),
        np.full((TERMS, TERMS - 1), 0.125, np.float32),
    )
    for j in range(1, TERMS):
        left[j - 1, [0, j]] = 2.0**15, -(2.0**15)
        right[[0, j], j - 1] = 2.0**15
    return left, right


def _tree(result: np.ndarray) -> str:
    sizes = TERMS - TERMS * np.diagonal(result)
    places = np.arange(1, TERMS)
    if not np.isfinite(sizes).all():
        return "unreadable: the accumulator overflows at 2^30"
    if (sizes == places + 1).all():
        return "one after the other"
    if (sizes == 2 ** np.ceil(np.log2(places + 1))).all():
        return "pairwise"
    if (sizes == 2).all():
        return "exact: nothing is absorbed"
    shown = sorted({int(size) for size in sizes})
    some = ", ".join(map(str, shown[:6])) + (" ..." if len(shown) > 6 else "")
    return f"in parts: partial sums that hold the first term have {some} terms"


# --- rounding and small numbers


def _ties(dtype: str) -> np.ndarray:
    """Halfway cases, even and odd, and their neighbours on both sides; both signs."""
    step = 2.0 ** (-7 if dtype == "bf16" else -10)
    x = np.array([1 + step / 2, 1 + 1.5 * step, 1 + 0.51 * step, 1 + 0.49 * step, 1 + 0.99 * step])
    return np.float32(np.concatenate([x, -x]))


def _rounding(dtype: str) -> Callable[[np.ndarray], str]:
    x = _ties(dtype).astype(np.float64)
    scaled = np.abs(x) * 2.0 ** (7 if dtype == "bf16" else 10)
    sign, unit = np.sign(x), 2.0 ** (-7 if dtype == "bf16" else -10)
    rules = {
        "to nearest even": np.rint(scaled),
        "truncation": np.floor(scaled),
        "to nearest, ties away from zero": np.floor(scaled + 0.5),
    }

    def name(result):
        return next(
            (w for w, v in rules.items() if np.array_equal(result, sign * v * unit)),
            "none of the known rules",
        )

    return name


def _subnormals(left: np.ndarray, right: np.ndarray) -> Callable[[np.ndarray], str]:
    expected = left.astype(np.float64) * right

    def word(kept, result):
        if kept.all():
            return "kept"
        return "kept in part" if kept.any() else ("wrong" if result.any() else "flushed to zero")

    def words(result):
        inputs, results = (
            word(*half) for half in zip(np.split(result == expected, 2), np.split(result, 2), strict=True)
        )
        return inputs if inputs == results else f"inputs {inputs}, results {results}"

    return words


# --- elementary functions and known-good operations


def elementary() -> dict[str, tuple[np.ndarray, Callable]]:
    """name -> (fixed grid of float32 numbers, float64 truth)."""
    erf = np.vectorize(math.erf, otypes=[np.float64])
    line = np.float32(np.linspace(-1, 1, 2001))
    return {
        "exp": (line * np.float32(20), np.exp),
        "tanh": (line * np.float32(6), np.tanh),
        "erf": (line * np.float32(4), erf),
        "rsqrt": (np.float32(np.logspace(-6, 6, 2001)), lambda x: 1 / np.sqrt(x)),
        "sigmoid": (line * np.float32(16), lambda x: 1 / (1 + np.exp(-x))),
    }


def _worst_ulp(truth: np.ndarray) -> Callable[[np.ndarray], float]:
    unit = np.spacing(np.abs(truth).astype(np.float32)).astype(np.float64)

    def worst(result):
        return float(np.max(np.abs(result.astype(np.float64) - truth) / unit))

    return worst


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _layer_norm(x):
    d = x - x.mean(-1, keepdims=True)
    return d / np.sqrt((d * d).mean(-1, keepdims=True) + x.dtype.type(1e-6))


def _gelu(x):
    return (
        0.5
        * x
        * (1 + np.tanh(x.dtype.type(math.sqrt(2 / math.pi)) * (x + x.dtype.type(0.044715) * x * x * x)))
    )


# op -> the same in numpy, run in float64 for the truth and in float32 for the reference of the ratio
KNOWN_GOOD = {"matmul": np.matmul, "softmax": _softmax, "layer_norm": _layer_norm, "gelu": _gelu}


def _known_good_inputs() -> dict[str, tuple]:
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    return {
        "matmul": (draw(48, 96), draw(96, 40)),
        "softmax": (draw(24, 96),),
        "layer_norm": (draw(24, 96),),
        "gelu": (draw(24, 96),),
    }


def _relative_error(function: Callable, arrays: tuple) -> Callable[[np.ndarray], float]:
    """Relative L2 distance of a result from float64."""
    truth = function(*(array.astype(np.float64) for array in arrays))

    def error(result):
        return float(np.linalg.norm(result.astype(np.float64) - truth) / np.linalg.norm(truth))

    return error


def error_ratios(found: Fingerprint) -> dict[str, float]:
    """op -> error of the device over the error of numpy in float32, both against float64."""
    ratios = {}
    for name, arrays in _known_good_inputs().items():
        if f"fp32 {name} error" in found.facts:
            reference = _relative_error(KNOWN_GOOD[name], arrays)(KNOWN_GOOD[name](*arrays))
            ratios[name] = found.facts[f"fp32 {name} error"] / reference
    return ratios


# --- what follows for the control


@dataclass(frozen=True)
class Policy:
    """How the control must compute to be the same-precision reference of a device, for one tested type.

    matmul, conv: format to which the inputs of products are rounded ("fp32", "HF32", "TF32", "fp16", "bf16").
    accumulate: "fp32", or "none" if no control can stand in. flush: whether subnormal numbers always become zero.
    """

    name: str
    matmul: str
    conv: str
    accumulate: str
    flush: bool
    reason: str


def control_policy(found: Fingerprint, dtype: str = "fp32") -> Policy:
    """The policy for a tested type. name is "none" if no emulation reproduces the device; reason says why.

    Half precision: the control rounds once per operation and accumulates in float32, so an accumulator of at least 24
    bits is required. A half type without kernels has "no kernels".
    """
    flush = found.facts.get("fp32 subnormals") == "flushed to zero"
    matmul, conv = (found.format("matmul"), found.format("conv")) if dtype == "fp32" else (dtype, dtype)
    bits = found.facts.get(f"{dtype} matmul accumulator bits")
    if bits is None:
        reason = found.missing.get(f"{dtype} matmul accumulator bits", f"the {dtype} probes were not run")
        name = "none" if dtype == "fp32" else "no kernels"
        return Policy(name, matmul, conv, "fp32", flush, reason)
    if bits < 24:
        reason = f"products of {dtype} are added in {accumulator(bits)}; the control adds in float32"
        return Policy("none", matmul, conv, "none", flush, reason)
    if dtype in ("fp16", "bf16"):
        rule = found.facts.get(f"{dtype} rounding", "unknown")
        if rule != "to nearest even":
            reason = f"the device rounds to {dtype} by {rule}; the control rounds to nearest even"
            return Policy("none", matmul, conv, "none", flush, reason)
        return Policy(
            dtype, matmul, conv, "fp32", flush, f"{dtype} inputs, float32 accumulation, one rounding"
        )
    for unit in ("matmul", "conv"):
        fact = f"fp32 {unit} input rounding"
        if fact not in found.facts:
            reason = f"{unit} could not be probed: {found.missing.get(fact, 'it was not asked')}"
            return Policy("none", matmul, conv, "none", flush, reason)
        rule = found.facts[fact]
        if rule not in ("exact", "to nearest"):
            reason = f"inputs of {unit} are rounded by {rule}; the control rounds to nearest even"
            return Policy("none", matmul, conv, "none", flush, reason)
    unknown = [
        f"{unit} {name}" for unit, name in (("matmul", matmul), ("conv", conv)) if name.startswith("unknown")
    ]
    if unknown:
        return Policy("none", matmul, conv, "none", flush, f"no emulation of {' and '.join(unknown)}")
    if matmul == conv == "fp32":
        return Policy("fp32", matmul, conv, "fp32", flush, "true float32 in matmul and convolution")
    if matmul == conv:
        return Policy(
            matmul.lower(), matmul, conv, "fp32", flush, f"inputs of every product are rounded to {matmul}"
        )
    reason = f"inputs of matmul are {matmul}, of convolution {conv}"
    return Policy(f"{matmul.lower()} matmul, {conv.lower()} conv", matmul, conv, "fp32", flush, reason)


@dataclass(frozen=True)
class Control:
    """The control of one tested type, as it follows from a fingerprint.

    kind: "plain", "rounded" (inputs of float32 products are), "strict" (no control computes like the device), or
    "absent" (the device does not compute in this type).
    products: unit -> format other than float32, what the control's worker is told. reason: for the header.
    """

    kind: str
    products: dict[str, str]
    reason: str


def choose_control(found: Fingerprint, dtype: str) -> Control:
    """How torch has to multiply to be the same-precision reference of a device. found: facts of fp32 and of `dtype`.

    Half precision has float32 products as well, in its islands; they are taken as the device takes them. A device that
    no control reproduces is judged by plain torch: that may ask more of it than it can give, never less.
    """
    wide, own = control_policy(found), control_policy(found, dtype)
    if own.name == "no kernels":
        return Control("absent", {}, own.reason)
    for policy in (own, wide):
        if policy.name == "none":
            return Control("strict", {}, policy.reason)
    products = {unit: name for unit, name in (("matmul", wide.matmul), ("conv", wide.conv)) if name != "fp32"}
    return Control("rounded" if products else "plain", products, wide.reason if products else own.reason)


# --- comparison with a stored fingerprint


def changes(stored: dict[str, Any], found: Fingerprint) -> list[str]:
    """What differs from a stored fingerprint, in words; empty if nothing does.

    Kernels are deterministic on these inputs, so every fact must be equal, floats to three digits (the printed
    precision).
    """
    now = facts_of(found)
    lines = []
    for name in sorted({*stored, *now}, key=_order):
        before, after = stored.get(name, "not measured"), now.get(name, "not measured")
        if before != after:
            lines.append(f"{name}: stored {before}, measured {after}")
    return lines


def facts_of(found: Fingerprint) -> dict[str, Any]:
    """All facts as they are stored: floats to three digits, missing ones with their reason."""
    rounded = {n: float(f"{v:.3g}") if isinstance(v, float) else v for n, v in found.facts.items()}
    return rounded | {name: f"not read: {reason}" for name, reason in found.missing.items()}


def _order(name: str) -> tuple:
    known = {probe.fact: index for index, probe in enumerate(probes())}
    return known.get(name, len(known)), name


def on_own_grid(probe: Probe) -> bool:
    """Whether the inputs of a probe are exact in its type ("cast" asks for rounding and is exempt)."""
    return probe.op == "cast" or all(np.array_equal(to_grid(a, probe.dtype), a) for a in probe.arrays)
