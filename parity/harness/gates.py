# SPDX-License-Identifier: Apache-2.0
"""Metrics and verdicts. All arithmetic is float64, in chunks; NaN and Inf are compared by position and sign.

Notation: t truth (reference in float64), r control (reference in the tested dtype), c candidate (the port).
e(x) = |x - t| / |t| (relative L2), m(x) = max|x - t| / rms(t), rho = e(c) / max(e(r), floor).

Gates: G0 contract (exact), G1 semantics (port and reference both in float64), G2 numerics (ratio rule per dtype),
G3 probes (the rule of G2 on inputs that amplify one constant), G5 behaviour (gradients).
The numbers stand in LIMITS, SEMANTIC and `end_limit`; messages are built from them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from parity.harness.emulate import on_grid, to_grid
from parity.harness.trace import is_stage

CHUNK = 1 << 20
PER_DECADE = 4  # bins of a histogram
# Of errors over the root mean square of the truth: from below float64's rounding to nonsense.
DECADES = (-18, 3)
ENTRANCES = ("x_embedder#0", "pos_embed#0")  # layers whose result becomes the residual stream


@dataclass(frozen=True)
class Limits:
    """G2 limits of one dtype; u is its unit roundoff. Reasons are given with LIMITS."""

    u: float
    ratio_fail: float
    ratio_warn: float
    op: float
    floor: float
    max_ratio: float
    end: float
    cap: float


# ratio_fail: 3 in fp32 is 1.8 times the worst block ratio measured on a correct port (1.64); 2 in half precision is the
#   "at most 2x" of FlashAttention's tests and Huawei's L0, twice the measured 1.00-1.01.
# op: a single operation may also be this far off: 32 u in fp32 (MindSpore's CPU exp is 12 u off and harmless; msprobe's
#   rule is 32 ULP), 2 u in half precision (one correct rounding measures 0.42 u).
# floor: an e(r) below it is treated as this large; the candidate cannot be asked to be better than a few roundings.
# end: propagated error may be this many times the control's. cap: a control worse than this does not judge anything; in
#   fp32 it is the rounding of the largest angle, t = 999, of which the models take sine and cosine (3.0e-5; embeddings
#   of t = 977 measure up to 1.03e-5 over 20 seeds).
# Recorded in the CSV and deciding nothing: the share of elements that differ bitwise from the control (flip; on a
#   correct port up to 16 % in fp16 and 9 % in bf16, where a float32 kernel is 12 u off, as in GELU's tail on the CPU)
#   and the bias |mean(c - t)| / rms(c - t), which the CPU's approximate exp makes large on a correct port too.
LIMITS = {
    "fp32": Limits(2.0**-24, 3, 2, 32 * 2.0**-24, 4 * 2.0**-24, 10, 3, 999 * 2.0**-25),
    "fp16": Limits(2.0**-11, 2, 1.25, 2 * 2.0**-11, 2.0**-11 / 4, 5, 2, 1e-2),
    "bf16": Limits(2.0**-8, 2, 1.25, 2 * 2.0**-8, 2.0**-8 / 4, 5, 2, 6e-2),
}

# The control itself may be this far off where it takes the inputs of its float32 products in a narrower format, as the
# device under test does: on the nets HF32 measures up to 3.3e-4, TF32 8.2e-4. All other limits are ratios to
# that control, or belong to operations without products.
PRODUCT_CAPS = {"HF32": 2e-3, "TF32": 4e-3, "fp16": LIMITS["fp16"].cap, "bf16": LIMITS["bf16"].cap}

# A ratio of two errors says how their sizes compare only as well as n numbers tell: for equal sizes its logarithm has
# the standard deviation 1 / sqrt(n - 1) (normal elements: the variance of the logarithm of a sum of n squares is
# trigamma(n / 2), which 2 / (n - 1) meets within 2 % from n = 5 on).
# Limits of ratios of few numbers (gradients of biases, curves of a few steps) allow this many of them on top.
DEVIATIONS = 2

# G1: a composed LayerNorm is float64 throughout (measured 2e-15 to 6e-13 on whole nets), MindSpore's native LayerNorm
# kernel computes in float32 inside (measured 4e-8 an operation, 8e-8 a net); the smallest catalogued bug
# measures 1.9e-6.
SEMANTIC = {"composed": 1e-10, "native": 2e-7}
# Formulation sets with the native kernel; the second is that of a port which this project did not write.
NATIVE_FORMS = ("Ascend", "native norms")


@dataclass
class Metrics:
    """Distances of candidate and control from the truth, and of candidate from control."""

    e_c: float
    e_r: float
    m_c: float
    m_r: float
    max_abs: float
    cosine: float
    flip: float
    bias: float
    peak: float
    size: int
    problem: str = ""
    floor: float = LIMITS["fp32"].floor  # of the dtype it was measured in; 1 under fp64, which has no control
    norm: float = 0.0  # |t|
    which: int = 0  # place of the result that decided, of a tap with several
    count: int = 0  # numbers of the truth that are not 0: what is masked carries no error

    def ratio(self, floor: float) -> float:
        """rho with a floor under e(r)."""
        return self.e_c / max(self.e_r, floor) if math.isfinite(self.e_c) else math.inf

    def peak_ratio(self) -> float:
        """m(c) / m(r), with the floor at the largest element."""
        return self.m_c / max(self.m_r, self.floor * self.peak) if math.isfinite(self.m_c) else math.inf


@dataclass
class TapResult:
    """Verdict on one tap. verdict: ok, warn, inherited, FAIL local, FAIL glue, FAIL end, FAIL contract.

    predicted: the propagated error that the local errors before it explain, 0 where nothing is predicted.
    """

    tap: str
    shape: tuple
    level: str
    local: Metrics | None = None
    prop: Metrics | None = None
    verdict: str = "ok"
    reason: str = ""
    required: float = 0.0
    allowed: float = 0.0
    predicted: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether this tap is a failure of its own."""
        return self.verdict.startswith("FAIL")


@dataclass
class Check:
    """One exact check of the contract (G0)."""

    name: str
    passed: bool
    detail: str = ""


@dataclass
class CaseResult:
    """Everything the judge found out about one case under one gate, dtype and formulation set.

    diagnosis: the registered bugs that the first culprit looks like (G4); downstream: what became of its error;
    reproduce: the command that repeats this run; repro: the command that packs the first culprit into one file;
    kind: what gate G5 judged: "gradients", "drift", "training" or "graph mode"; histogram: of the first culprit's
    errors; curves: loss of every step of a training, "port", "ref" and "truth" (NaN: a dropped step).
    """

    case: str
    gate: str
    dtype: str
    form: str
    taps: list[TapResult] = field(default_factory=list)
    contract: list[Check] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    sources: dict[str, tuple[str, str]] = field(default_factory=dict)
    worst: list[str] = field(default_factory=list)
    diagnosis: list[str] = field(default_factory=list)
    net: str = ""
    reproduce: str = ""
    histogram: dict = field(default_factory=dict)
    downstream: str = ""
    repro: str = ""
    kind: str = ""
    curves: dict[str, list[float]] = field(default_factory=dict)

    @property
    def failures(self) -> list[TapResult]:
        """Taps at fault, in order of execution."""
        return [tap for tap in self.taps if tap.failed]

    @property
    def broken(self) -> list[Check]:
        """Contract checks that failed."""
        return [check for check in self.contract if not check.passed]

    @property
    def passed(self) -> bool:
        """Absent is failed: a case without taps does not pass."""
        return bool(self.taps) and not self.failures and not self.broken


def compare(
    c: np.ndarray, r: np.ndarray, t: np.ndarray, dtype: str, least: float = 0.0, rounded: bool = True
) -> Metrics:
    """All metrics of one output. c, r, t: arrays of one shape.

    least: errors are relative to |t|, or to this if it is larger. rounded: the result of an operation that rounds
    to the grid of `dtype`; gradients are sums of such results and need not lie on it.

    `problem` names what makes numbers meaningless: different shapes, an empty output, NaN or Inf where the truth,
    rounded to `dtype`, has none (or of the other sign), nothing finite, values off the grid of `dtype`.
    """
    bad = dict(e_c=math.inf, e_r=math.nan, m_c=math.inf, m_r=math.nan, max_abs=math.inf, cosine=math.nan)
    floor = LIMITS[dtype].floor if dtype in LIMITS else 1.0
    rest = dict(flip=1.0, bias=0.0, peak=0.0, size=int(c.size), floor=floor)
    if c.shape != t.shape or r.shape != t.shape:
        return Metrics(
            **bad, **rest, problem=f"shape {tuple(c.shape)} of the port, {tuple(r.shape)} of the reference"
        )
    if t.size == 0:
        return Metrics(**bad, **rest, problem="empty output: nothing was compared")
    sums = np.zeros(9)
    peaks = np.zeros(3)
    problem, compared = "", 0
    flat = [np.asarray(x).reshape(-1) for x in (c, r, t)]
    for start in range(0, t.size, CHUNK):
        cc, rr, tt = (x[start : start + CHUNK].astype(np.float64) for x in flat)
        with np.errstate(over="ignore"):
            expected = to_grid(tt, dtype).astype(np.float64) if dtype != "fp64" and rounded else tt
        finite = np.isfinite(cc) & np.isfinite(rr) & np.isfinite(tt)
        whole = finite.all()
        for who, values in (("port", cc), ("reference", rr)):
            if not problem and not (whole and np.isfinite(expected).all()):
                problem = _nonfinite(values, expected, who)
        if not whole:
            cc, rr, tt = cc[finite], rr[finite], tt[finite]
        compared += cc.size
        dc, dr = cc - tt, rr - tt
        flips = np.count_nonzero(cc != rr)
        sums += [dc @ dc, dr @ dr, tt @ tt, cc @ rr, cc @ cc, rr @ rr, dc.sum(), flips, np.count_nonzero(tt)]
        if cc.size:
            peaks = np.maximum(peaks, [np.abs(dc).max(), np.abs(dr).max(), np.abs(tt).max()])
    if not problem and not compared:
        problem = "no finite value: nothing was compared"
    if not problem and rounded and on_grid(np.asarray(r), dtype) and not on_grid(np.asarray(c), dtype):
        problem = f"values of the port are not representable in {dtype}: a rounding is missing"
    n = t.size
    norm = max(math.sqrt(sums[2]), least)
    rms = norm / math.sqrt(n)
    spread = math.sqrt(sums[0] / n)
    metrics = Metrics(
        e_c=_ratio(math.sqrt(sums[0]), norm),
        e_r=_ratio(math.sqrt(sums[1]), norm),
        m_c=_ratio(peaks[0], rms),
        m_r=_ratio(peaks[1], rms),
        max_abs=float(peaks[0]),
        cosine=_cosine(sums[3], sums[4], sums[5]),
        flip=sums[7] / n,
        bias=abs(sums[6] / n) / spread if spread else 0.0,
        peak=_ratio(peaks[2], rms) if rms else 1.0,
        size=n,
        problem=problem,
        floor=floor,
        norm=norm,
        count=int(sums[8]),
    )
    if problem:
        metrics.e_c = math.inf
    return metrics


def merge(parts: list[Metrics]) -> Metrics:
    """Metrics of a tap with several outputs: the worst candidate error with its control, and the worst element.

    Errors are ranked above the dtype's floor, or an output whose control is exact would outshine every other one.
    """
    for place, part in enumerate(parts):
        if part.problem:
            return replace(part, which=place)
    worst, peaked = max(parts, key=lambda part: part.ratio(part.floor)), max(parts, key=Metrics.peak_ratio)
    decided = dict(which=parts.index(worst), max_abs=max(p.max_abs for p in parts))
    return replace(worst, m_c=peaked.m_c, m_r=peaked.m_r, peak=peaked.peak, **decided)


def histogram(c: np.ndarray, r: np.ndarray, t: np.ndarray) -> dict[str, list]:
    """How the errors of one tap are spread: counts of |x - t| / rms(t) by quarter decades, for port and reference.

    c, r, t: port, reference, truth, of one shape. {"edges": exponents of 10, "port": counts, "reference": counts,
    "exact": elements without error of either}. Not finite errors count in the last bin.
    """
    t = np.asarray(t, np.float64)
    rms = math.sqrt(float(np.mean(np.square(t[np.isfinite(t)])))) if np.isfinite(t).any() else 0.0
    edges = np.linspace(*DECADES, (DECADES[1] - DECADES[0]) * PER_DECADE + 1)
    found: dict[str, list] = {"edges": edges.tolist(), "exact": []}
    for who, x in (("port", c), ("reference", r)):
        x = np.asarray(x, np.float64)
        with np.errstate(invalid="ignore"):
            error = np.where(x == t, 0.0, np.abs(x - t)).ravel() / (rms or 1.0)
        found["exact"].append(int((error == 0).sum()))
        error = np.nan_to_num(error[error != 0], nan=np.inf)
        with np.errstate(divide="ignore"):
            places = np.clip(np.log10(error), edges[0], edges[-1])
        found[who] = np.histogram(places, edges)[0].tolist()
    return found


def judge_semantics(local: Metrics, prop: Metrics, limit: float) -> tuple[str, str, float, float]:
    """G1 verdict of one tap: (verdict, reason, required, allowed)."""
    for metrics, verdict in ((local, "FAIL local"), (prop, "FAIL end")):
        if metrics.problem:
            return verdict, metrics.problem, math.inf, limit
        if not metrics.e_c <= limit:
            where = "on the reference's input" if verdict == "FAIL local" else "at the end of the run"
            reason = f"float64 results differ by {metrics.e_c:.1e} {where} (limit {limit:.0e}, G1)"
            return verdict, reason, metrics.e_c, limit
    return "ok", "", max(local.e_c, prop.e_c), limit


def judge_local(m: Metrics, level: str, dtype: str) -> tuple[str, str, float, float]:
    """G2 verdict on teacher-forced results: (verdict, reason, required, allowed)."""
    limits = LIMITS[dtype]
    if m.problem:
        return "FAIL local", m.problem, math.inf, limits.ratio_fail
    if level == "op":
        allowed = max(limits.ratio_fail * m.e_r, limits.op)
        peak_allowed = limits.max_ratio * max(m.m_r, limits.op * m.peak)
        if not m.e_c <= allowed:
            reason = (
                f"error {m.e_c:.1e} against {m.e_r:.1e} of torch {dtype} on the same input; allowed "
                f"max({limits.ratio_fail:g} x reference, {limits.op:.1e}) = {allowed:.1e} (G2 {dtype} op)"
            )
            return "FAIL local", reason, m.e_c, allowed
    else:
        rho = m.ratio(limits.floor)
        peak_allowed = limits.max_ratio * max(m.m_r, limits.floor * m.peak)
        if not rho <= limits.ratio_fail:
            reason = (
                f"error is {rho:.3g} times that of torch {dtype} on the same input ({m.e_c:.1e} against "
                f"max({m.e_r:.1e}, {limits.floor:.1e})); allowed {limits.ratio_fail:g} (G2 {dtype} block)"
            )
            return "FAIL local", reason, rho, limits.ratio_fail
    if not m.m_c <= peak_allowed:
        reason = (
            f"largest error {m.m_c:.1e} rms against {m.m_r:.1e} of torch {dtype}; allowed {peak_allowed:.1e} "
            f"({limits.max_ratio:g} x, G2 {dtype} max)"
        )
        return "FAIL local", reason, m.m_c, peak_allowed
    if level != "op" and m.ratio(limits.floor) > limits.ratio_warn:
        return (
            "warn",
            f"ratio {m.ratio(limits.floor):.2f} above {limits.ratio_warn:g}",
            m.ratio(limits.floor),
            0,
        )
    return "ok", "", m.ratio(limits.floor), limits.ratio_fail


def scatter(count: int) -> float:
    """Factor by which the ratio of two errors of so many numbers may exceed that of their sizes."""
    return math.exp(DEVIATIONS / math.sqrt(max(count - 1, 1)))


def end_limit(m: Metrics, dtype: str, blocks: int, median_local: float, scattered: float = 1.0) -> float:
    """Allowed propagated error: `end` times the control's (times `scattered`), in fp32 at least 3 sqrt(N) median local
    error of the control.

    Rounding errors of N blocks add up like a random walk (Higham and Mary); in half precision the floor is one unit.
    """
    limits = LIMITS[dtype]
    walk = 3 * math.sqrt(max(blocks, 1)) * max(median_local, limits.floor) if dtype == "fp32" else limits.u
    return max(limits.end * scattered * m.e_r, walk)


def mark(
    taps: list[TapResult], dtype: str, blocks: int, exact: float | None = None, products: Iterable[str] = ()
) -> None:
    """Set the verdicts of a trace in order of execution; the net itself ("") comes last.

    A tap whose local error fails is a culprit. A tap whose propagated error fails while its local error is fine has
    inherited it, if there is a culprit before it or inside it. Otherwise the fault lies between the taps: the
    module that encloses the first such tap is marked FAIL glue (wrong wiring, position, mask or order), or
    the net FAIL end.
    exact: the limit of G1; None applies G2. products: formats other than float32 in which the control multiplies.
    """
    local_errors = [
        tap.local.e_r for tap in taps if tap.local and tap.level != "op" and tap.local.e_r == tap.local.e_r
    ]
    median_local = float(np.median(local_errors)) if local_errors else 0.0
    bad_ends = []
    for tap in taps:
        end_bad = False
        if exact is not None:
            tap.verdict, tap.reason, tap.required, tap.allowed = judge_semantics(tap.local, tap.prop, exact)
            if tap.level == "net" and tap.failed:
                tap.verdict = "FAIL end"
            end_bad = tap.verdict == "FAIL end"
        else:
            judged = judge_local(tap.local, tap.level, dtype)
            if tap.level == "net":  # a whole net has no local error: its end is judged below
                judged = ("ok", "", tap.prop.ratio(LIMITS[dtype].floor), LIMITS[dtype].end)
            tap.verdict, tap.reason, tap.required, tap.allowed = judged
            cap = max([LIMITS[dtype].cap, *(PRODUCT_CAPS[name] for name in products)])
            if not tap.failed and tap.local.e_r > cap:
                tap.verdict, tap.reason = (
                    "FAIL contract",
                    f"the control itself is {tap.local.e_r:.1e} off (cap {cap:.0e})",
                )
            if not tap.failed and tap.prop is not None:
                allowed = end_limit(tap.prop, dtype, blocks, median_local)
                end_bad = bool(tap.prop.problem) or not tap.prop.e_c <= allowed
                if end_bad:
                    tap.verdict, tap.required, tap.allowed = "FAIL end", tap.prop.e_c, allowed
                    tap.reason = tap.prop.problem or (
                        f"propagated error {tap.prop.e_c:.1e} against {tap.prop.e_r:.1e} of torch {dtype}; allowed "
                        f"{allowed:.1e} (G2 {dtype} end)"
                    )
        if end_bad:
            bad_ends.append(tap)
    _attribute(taps, bad_ends, "" if exact is not None else dtype)


def predict(taps: list[TapResult]) -> None:
    """Set `predicted` on the blocks of a residual stream: the error that they should have by what is known before.

    e(l)^2 = sum over j <= l of e_loc(j)^2 g_j^2 + x(l)^2, g_j = |stream at j| / |stream at l|: the stream carries
    each block's own error along unchanged, and errors of different blocks are independent. x(l) is what the same
    sum leaves unexplained in the control, chiefly the error of the conditioning that enters every block, times the
    ratio of both sides' errors in the conditioning. Measured over predicted on Latte-thin: 0.99 to 1.02 (fp32, fp16);
    with a wrong GELU, whose errors point the same way in every block, up to 1.19. Without x: up to 8 in fp32.
    x is taken from the control's own run, so on a correct port the agreement is in part by construction.
    """
    stream = [
        tap for tap in taps if is_stage(tap.tap.rpartition("#")[0]) and tap.prop is not None and tap.prop.norm
    ]
    blocks = [tap for tap in stream if "block" in tap.tap]
    if not blocks:
        return
    before = [tap for tap in stream[: stream.index(blocks[0])] if tap.tap not in ENTRANCES and tap.prop.e_r]
    condition = max(before, key=lambda tap: tap.prop.e_r, default=None)
    scale = condition.prop.e_c / condition.prop.e_r if condition else 1.0
    ours = theirs = 0.0
    for tap in stream:
        if tap.prop.size != blocks[0].prop.size or not (tap in blocks or tap.tap in ENTRANCES):
            continue
        ours += (tap.local.e_c * tap.local.norm) ** 2
        theirs += (tap.local.e_r * tap.local.norm) ** 2
        rest = max((tap.prop.e_r * tap.prop.norm) ** 2 - theirs, 0.0) * scale**2
        total = ours + rest
        tap.predicted = math.sqrt(total) / tap.prop.norm if math.isfinite(total) else math.inf


def _attribute(taps: list[TapResult], bad_ends: list[TapResult], dtype: str) -> None:
    """Separate culprits from taps that inherited, children before parents. dtype: of G2, "" under G1."""
    local = [tap for tap in taps if tap.verdict == "FAIL local"]
    for tap in local:  # a parent is at fault itself only if none of its children is
        children = [other for other in taps if _inside(other.tap, tap.tap)]
        guilty = [other for other in children if other in local]
        if guilty:
            tap.verdict, tap.reason = "inherited", f"from {guilty[0].tap}"
        elif children and (coarse := _coarse_part(tap, children, dtype)):
            part, times = coarse
            part.verdict, part.required, part.allowed = "FAIL local", tap.required, tap.allowed
            part.reason = (
                f"as an operation it may be {part.local.e_c:.1e} off, {times:.3g} times torch's error, but that "
                f"explains {tap.tap}: {tap.reason}"
            )
            tap.verdict, tap.reason = "inherited", f"from {part.tap}"
        elif children:
            tap.verdict = "FAIL glue"
            tap.reason = f"its parts agree, their combination does not: {tap.reason}"
    culprits = [tap for tap in taps if tap.verdict in ("FAIL local", "FAIL glue")]
    place = {id(tap): i for i, tap in enumerate(taps)}
    first = None  # the first wrong result that no culprit explains
    for tap in bad_ends:
        causes = [c for c in culprits if place[id(c)] < place[id(tap)] or _inside(tap.tap, c.tap)]
        cause = causes[0] if causes else first
        if cause is not None and (causes or tap is not bad_ends[-1]):
            tap.verdict, tap.reason = "inherited", f"from {cause.tap}"
        elif not causes:
            first = first or tap
    unexplained = [tap for tap in bad_ends if tap.verdict == "FAIL end"]
    if len(unexplained) > 1 and unexplained[-1].level == "net":
        # The fault lies between the layers, in the net: blame its end and name the first layer that shows it.
        shows, net = unexplained[0], unexplained[-1]
        shows.verdict = "inherited"
        net.reason += (
            f"; every layer is right on its own input, the first wrong result is that of {shows.tap}"
        )
    for tap in culprits[:1]:
        shown = [end for end in bad_ends if _inside(end.tap, tap.tap)]
        if tap.verdict == "FAIL glue" and shown:
            tap.reason += f"; the first layer whose result goes wrong is {shown[0].tap}"


def _coarse_part(tap: TapResult, children: list[TapResult], dtype: str) -> tuple[TapResult, float] | None:
    """(part, its error over the control's) that explains the local error of a block, if one does.

    An operation may be `op` off however exact torch is; a block of such operations may then exceed `ratio_fail`. To
    first order both sides carry the errors of the parts to the end with the same gains, e^2 = sum g_i^2 e_i^2, so a
    block is at most K times as far off as the control's, where K is the largest such factor of a part. Wrong wiring
    exceeds that. A control's error counts as a quarter of a unit at least: an operation that it happens to hit exactly
    has no gain to be read from.
    """
    parts = [part for part in children if part.level == "op" and not part.local.problem]
    if not dtype or not parts or tap.local.problem:
        return None
    factors = [part.local.e_c / max(part.local.e_r, LIMITS[dtype].u / 4) for part in parts]
    times = max(factors)
    explained = tap.local.e_c <= times * tap.local.e_r and tap.local.m_c <= times * tap.local.m_r
    return (parts[factors.index(times)], times) if explained else None


def _inside(child: str, parent: str) -> bool:
    child, parent = child.rpartition("#")[0], parent.rpartition("#")[0]
    return child != parent and (parent == "" or child.startswith(parent + "."))


def _nonfinite(values: np.ndarray, expected: np.ndarray, who: str) -> str:
    for word, test in (("NaN", np.isnan), ("+Inf", np.isposinf), ("-Inf", np.isneginf)):
        wrong = test(values) != test(expected)
        if wrong.any():
            found = "has" if test(values)[wrong][0] else "lacks"
            return f"the {who} {found} {word} at {int(wrong.sum())} of {values.size} elements where the truth differs"
    return ""


def _ratio(a: float, b: float) -> float:
    if b == 0:
        return 0.0 if a == 0 else math.inf
    return float(a / b)


def _cosine(dot: float, a: float, b: float) -> float:
    return float(dot / math.sqrt(a * b)) if a > 0 and b > 0 else (1.0 if a == b else 0.0)
