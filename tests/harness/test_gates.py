# SPDX-License-Identifier: Apache-2.0
"""The judge judged: metrics and verdicts on literal arrays, no framework."""

import math
from dataclasses import replace

import numpy as np
import pytest

from parity.harness import gates
from parity.harness.emulate import to_grid
from parity.harness.gates import LIMITS, SEMANTIC, CaseResult, Check, Metrics, TapResult

DTYPES = tuple(LIMITS)
BASE = np.array([[3.0, -4.0, 0.5], [1.25, -2.0, 8.0]])


def compare(c, r=None, t=BASE, dtype="fp32"):
    """Metrics of c against truth t; the control r is exact unless given."""
    return gates.compare(np.asarray(c), np.asarray(t if r is None else r), np.asarray(t), dtype)


def metrics(e_c=0.0, e_r=0.0, m_c=0.0, m_r=0.0, peak=1.0, problem="", **more):
    """Literal metrics, harmless unless said otherwise."""
    rest = dict(max_abs=0.0, cosine=1.0, flip=0.0, bias=0.0, size=6)
    return Metrics(e_c=e_c, e_r=e_r, m_c=m_c, m_r=m_r, peak=peak, problem=problem, **{**rest, **more})


def above(x):
    return math.nextafter(x, math.inf)


# ------------------------------------------------------------------------------------------------- compare


@pytest.mark.parametrize("dtype", [*DTYPES, "fp64"])
def test_identical_arrays_have_no_distance(dtype):
    m = compare(BASE, BASE, dtype=dtype)
    assert (m.e_c, m.e_r, m.m_c, m.m_r, m.max_abs, m.flip, m.bias, m.problem) == (0, 0, 0, 0, 0, 0, 0, "")
    assert m.cosine == pytest.approx(1.0, abs=1e-15)  # one rounding of the quotient
    assert m.size == 6


def test_scaled_error_is_measured_exactly():
    m = compare(BASE * (1 + 1e-3), BASE * (1 - 1e-4))
    # Relative L2 of a scaled array is the scale itself; float64 arithmetic on numbers of order one.
    assert m.e_c == pytest.approx(1e-3, rel=1e-12)
    assert m.e_r == pytest.approx(1e-4, rel=1e-11)
    rms = np.sqrt(np.mean(BASE**2))
    assert m.max_abs == pytest.approx(8e-3, rel=1e-12)
    assert m.m_c == pytest.approx(8e-3 / rms, rel=1e-12)
    assert m.peak == pytest.approx(8 / rms, rel=1e-12)
    assert m.flip == 1.0
    assert m.ratio(1e-300) == pytest.approx(10, rel=1e-10)
    assert m.ratio(1e-2) == pytest.approx(0.1, rel=1e-10)


def test_one_wrong_element_shows_in_the_maximum():
    c = BASE.copy()
    c[0, 1] += 0.5
    m = compare(c)
    assert m.max_abs == 0.5 and m.flip == pytest.approx(1 / 6)
    assert m.bias == pytest.approx((0.5 / 6) / (0.5 / math.sqrt(6)))


def test_chunks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(1)
    t = rng.standard_normal(1000)
    c, r = t + 1e-3 * rng.standard_normal(1000), t + 1e-4 * rng.standard_normal(1000)
    whole = compare(c, r, t)
    monkeypatch.setattr(gates, "CHUNK", 7)
    pieces = compare(c, r, t)
    for name in ("e_c", "e_r", "m_c", "m_r", "max_abs", "cosine", "flip", "bias", "peak"):
        # other summation order of 1000 float64 terms
        assert getattr(pieces, name) == pytest.approx(getattr(whole, name), rel=1e-9), name


def test_a_bad_value_in_a_late_chunk_is_seen(monkeypatch):
    monkeypatch.setattr(gates, "CHUNK", 2)
    c = BASE.copy()
    c[1, 2] = np.nan
    assert "NaN" in compare(c).problem


@pytest.mark.parametrize(
    ("port", "truth", "word"),
    [
        (np.nan, 1.0, "has NaN"),
        (np.inf, 1.0, r"has +Inf"),
        (-np.inf, 1.0, r"has -Inf"),
        (np.inf, -np.inf, r"has +Inf"),
        (-np.inf, np.inf, r"lacks +Inf"),
        (1.0, np.nan, "lacks NaN"),
        (1.0, np.inf, r"lacks +Inf"),
        (1.0, -np.inf, r"lacks -Inf"),
        (np.nan, np.inf, "has NaN"),
    ],
)
@pytest.mark.parametrize("dtype", [*DTYPES, "fp64"])
def test_nonfinite_values_must_agree_in_place_and_sign(port, truth, word, dtype):
    c, t = BASE.copy(), BASE.copy()
    c[0, 1], t[0, 1] = port, truth
    m = compare(c, t, t, dtype)
    assert f"the port {word} at 1 of 6" in m.problem
    assert m.e_c == math.inf
    if dtype != "fp64":
        assert gates.judge_local(m, "op", dtype)[0] == "FAIL local"
    assert gates.judge_semantics(m, m, 1e-10)[0] == "FAIL local"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_values_in_the_same_place_are_no_problem(value):
    t = BASE.copy()
    t[0, 1] = value
    m = compare(t * (1 + 1e-3), t, t)
    assert m.problem == ""
    assert m.e_c == pytest.approx(1e-3, rel=1e-9)  # of the finite elements


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_finite_is_nothing_compared(value):
    t = np.full((2, 3), value)
    m = compare(t, t, t)
    assert "nothing was compared" in m.problem
    assert m.e_c == math.inf


def test_a_bad_control_is_named():
    r = BASE.copy()
    r[0, 0] = np.inf
    assert compare(BASE, r).problem.startswith("the reference has +Inf")


@pytest.mark.parametrize(("c", "r"), [((6,), (2, 3)), ((3, 2), (2, 3)), ((2, 3), (1, 3)), ((), (2, 3))])
def test_shapes_must_be_equal(c, r):
    m = compare(np.ones(c), np.ones(r))
    assert m.problem.startswith(f"shape {c} of the port, {r} of the reference")
    assert m.e_c == math.inf
    assert gates.judge_local(m, "block", "fp32")[0] == "FAIL local"


def test_empty_outputs_are_a_problem():
    empty = np.zeros((0, 3))
    m = compare(empty, empty, empty)
    assert "nothing was compared" in m.problem and m.e_c == math.inf


def test_overflow_of_float16_is_expected_where_the_truth_overflows():
    t = np.array([1.0, 70000.0, -70000.0, 65519.0])
    right = np.array([1.0, np.inf, -np.inf, 65504.0])
    assert compare(right, right, t, "fp16").problem == ""
    saturated = np.array([1.0, 65504.0, -np.inf, 65504.0])
    assert "the port lacks +Inf" in compare(saturated, right, t, "fp16").problem
    assert "the port has +Inf" in compare(right, right, t, "bf16").problem


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_values_off_the_grid_are_a_problem(dtype):
    t = BASE + 1e-4
    r = to_grid(t, dtype)
    off = r.copy()
    off[0, 0] = np.nextafter(off[0, 0], np.float32(9))
    assert compare(r, r, t, dtype).problem == ""
    assert "not representable" in compare(off, r, t, dtype).problem
    # A control off the grid itself (a native float32 table) makes no such demand.
    assert compare(off, off, t, dtype).problem == ""
    assert compare(off, r, t, "fp32").problem == ""


def test_zero_truth():
    zero = np.zeros(4)
    assert compare(zero, zero, zero).e_c == 0
    m = compare(np.full(4, 1e-30), zero, zero)
    assert m.e_c == math.inf and gates.judge_local(m, "op", "fp32")[0] == "FAIL local"
    # A control that is off judges nothing either.
    both = compare(np.full(4, 1e-30), np.full(4, 1e-30), zero)
    tap = TapResult("a#0", (4,), "op", both, both)
    gates.mark([tap], "fp32", 1)
    assert tap.failed


def test_integers_and_booleans_are_compared_too():
    ids = np.array([1, 2, 3])
    assert compare(ids, ids, ids, "fp16").e_c == 0
    assert compare(ids, ids, np.array([1, 2, 4]), "fp16").e_c > 0
    flags = np.array([True, False])
    assert compare(flags, flags, flags, "bf16").problem == ""


# ------------------------------------------------------------------------------------------------- merge


def test_merge_takes_the_worst_output():
    good, bad = metrics(e_c=1e-7, e_r=1e-7), metrics(e_c=9e-6, e_r=1e-6)
    assert gates.merge([good, bad]).e_c == gates.merge([bad, good]).e_c == 9e-6
    broken = metrics(problem="NaN")
    assert gates.merge([bad, broken]) == replace(broken, which=1)
    assert [gates.merge(parts).which for parts in ([good, bad], [bad, good])] == [1, 0]


def test_merge_is_not_distracted_by_an_exact_control():
    """An output whose control is exact has an infinite ratio, although its error is far below every limit."""
    c, r, t = BASE * (1 + 1e-2), BASE * (1 + 1e-5), BASE
    nearly, wrong = compare(BASE * (1 + 1e-9), BASE), compare(c, r, t)
    for parts in ([nearly, wrong], [wrong, nearly]):
        assert gates.judge_local(gates.merge(parts), "block", "fp32")[0] == "FAIL local"


def test_merge_sees_a_zero_output_that_is_off_on_both_sides():
    zero, noise = np.zeros(4), np.full(4, 1e-30)
    strange, fine = compare(noise, noise, zero), compare(BASE, BASE)
    assert gates.merge([strange, fine]).e_c == gates.merge([fine, strange]).e_c == math.inf


def test_merge_keeps_the_largest_element_error_of_any_output():
    smooth, peaked = metrics(e_c=2e-7, e_r=1e-7), metrics(e_c=1e-7, e_r=1e-7, m_c=1.0, m_r=1e-6)
    for parts in ([smooth, peaked], [peaked, smooth]):
        assert gates.judge_local(gates.merge(parts), "block", "fp32")[1].startswith("largest error")


# ------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize("limit", SEMANTIC.values())
def test_semantic_limit(limit):
    at, over = metrics(e_c=limit), metrics(e_c=above(limit))
    assert gates.judge_semantics(at, at, limit)[0] == "ok"
    assert gates.judge_semantics(over, at, limit)[0] == "FAIL local"
    assert gates.judge_semantics(at, over, limit)[0] == "FAIL end"
    assert gates.judge_semantics(at, metrics(problem="NaN"), limit)[:2] == ("FAIL end", "NaN")
    assert gates.judge_semantics(metrics(e_c=math.nan), at, limit)[0] == "FAIL local"


@pytest.mark.parametrize("dtype", DTYPES)
def test_op_limit(dtype):
    limits = LIMITS[dtype]
    for e_r in (0.0, limits.op):  # below and above the floor of an operation
        allowed = max(limits.ratio_fail * e_r, limits.op)
        assert gates.judge_local(metrics(e_c=allowed, e_r=e_r), "op", dtype)[0] == "ok"
        verdict, reason, required, got = gates.judge_local(metrics(e_c=above(allowed), e_r=e_r), "op", dtype)
        assert (verdict, required, got) == ("FAIL local", above(allowed), allowed)
        assert f"G2 {dtype} op" in reason


@pytest.mark.parametrize("level", ["block", "net"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_block_limit(dtype, level):
    limits = LIMITS[dtype]
    for e_r in (0.0, 4 * limits.floor):
        base = max(e_r, limits.floor)
        calm = metrics(e_c=limits.ratio_warn * base, e_r=e_r)
        assert gates.judge_local(calm, level, dtype)[0] == "ok"
        uneasy = metrics(e_c=base * limits.ratio_warn * (1 + 1e-9), e_r=e_r)
        assert gates.judge_local(uneasy, level, dtype)[0] == "warn"
        assert gates.judge_local(metrics(e_c=limits.ratio_fail * base, e_r=e_r), level, dtype)[0] == "warn"
        wrong = metrics(e_c=base * limits.ratio_fail * (1 + 1e-9), e_r=e_r)
        verdict, reason, _, allowed = gates.judge_local(wrong, level, dtype)
        assert (verdict, allowed) == ("FAIL local", limits.ratio_fail)
        assert f"G2 {dtype} block" in reason


@pytest.mark.parametrize(("level", "floor"), [("op", "op"), ("block", "floor")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_largest_error_limit(dtype, level, floor):
    limits = LIMITS[dtype]
    low = getattr(limits, floor) * 3.0  # peak 3: the floor follows the largest element
    for m_r in (0.0, 2 * low):
        allowed = limits.max_ratio * max(m_r, low)
        assert gates.judge_local(metrics(m_c=allowed, m_r=m_r, peak=3.0), level, dtype)[0] == "ok"
        verdict, reason, *_ = gates.judge_local(metrics(m_c=above(allowed), m_r=m_r, peak=3.0), level, dtype)
        assert verdict == "FAIL local" and f"G2 {dtype} max" in reason


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_metrics_fail(dtype):
    for level in ("op", "block", "net"):
        assert gates.judge_local(metrics(e_c=math.nan), level, dtype)[0] == "FAIL local"
        assert gates.judge_local(metrics(m_c=math.nan), level, dtype)[0] == "FAIL local"


def test_end_limit_formula():
    u = 2.0**-24
    # fp32: 3 times the control, or a random walk of 56 blocks of median local error, at least 4 u each
    assert gates.end_limit(metrics(e_r=1e-5), "fp32", 56, 1e-7) == 3 * 1e-5
    assert gates.end_limit(metrics(e_r=0.0), "fp32", 56, 5e-7) == 3 * math.sqrt(56) * 5e-7
    assert gates.end_limit(metrics(e_r=0.0), "fp32", 0, 0.0) == 3 * 4 * u
    assert gates.end_limit(metrics(e_r=1e-2), "fp16", 56, 1.0) == 2 * 1e-2
    assert gates.end_limit(metrics(e_r=0.0), "bf16", 56, 1.0) == 2.0**-8


# ------------------------------------------------------------------------------------------------- attribution

OK, BAD = metrics(e_c=1e-7, e_r=1e-7), metrics(e_c=1e-3, e_r=1e-7)


def taps(*rows):
    """(tap, level, local, prop) rows as results, marked as an fp32 trace; name -> result."""
    results = [TapResult(tap, (6,), level, local, prop) for tap, level, local, prop in rows]
    gates.mark(results, "fp32", 2)
    return {result.tap: result for result in results}


def test_everything_right():
    marked = taps(("a.x#0", "op", OK, OK), ("a#0", "block", OK, OK), ("#0", "net", OK, OK))
    assert [tap.verdict for tap in marked.values()] == ["ok"] * 3


def test_the_culprit_is_the_child_and_the_rest_inherits():
    marked = taps(
        ("a.x#0", "op", BAD, BAD),
        ("a#0", "block", BAD, BAD),
        ("b.x#0", "op", OK, BAD),
        ("b#0", "block", OK, BAD),
        ("#0", "net", BAD, BAD),
    )
    assert [tap.verdict for tap in marked.values()] == ["FAIL local", *["inherited"] * 4]
    assert marked["a#0"].reason == marked["b#0"].reason == "from a.x#0"


def test_two_culprits_are_both_named():
    marked = taps(
        ("a#0", "op", BAD, BAD), ("b#0", "op", OK, BAD), ("c#0", "op", BAD, BAD), ("#0", "net", BAD, BAD)
    )
    assert [tap.verdict for tap in marked.values()] == ["FAIL local", "inherited", "FAIL local", "inherited"]


def test_right_parts_wrongly_combined_are_glue():
    marked = taps(
        ("a.x#0", "op", OK, OK),
        ("a.y#0", "op", OK, BAD),
        ("a#0", "block", BAD, BAD),
        ("#0", "net", BAD, BAD),
    )
    assert [tap.verdict for tap in marked.values()] == ["ok", "inherited", "FAIL glue", "inherited"]
    assert marked["a#0"].reason.startswith("its parts agree, their combination does not")


COARSE = metrics(
    e_c=6e-7, e_r=6e-8, m_c=6e-6, m_r=6e-7
)  # an operation 10 times as far off as torch's, within 32 u


def block(times):
    """A block whose error is so many times the control's, which is above the floor."""
    return metrics(e_c=times * 3e-7, e_r=3e-7, m_c=times * 3e-6, m_r=3e-6)


@pytest.mark.parametrize(("times", "word"), [(3.1, "local"), (9.9, "local"), (10.1, "glue"), (1e4, "glue")])
def test_a_part_that_is_coarse_explains_its_block(times, word):
    """The part passes by itself; the block fails, and by no more than the part's factor."""
    marked = taps(
        ("a.x#0", "op", COARSE, OK),
        ("a.y#0", "op", OK, OK),
        ("a#0", "block", block(times), OK),
        ("#0", "net", OK, OK),
    )
    verdicts = [tap.verdict for tap in marked.values()]
    assert verdicts == (
        ["FAIL local", "ok", "inherited", "ok"] if word == "local" else ["ok", "ok", "FAIL glue", "ok"]
    )
    if word == "local":
        culprit = marked["a.x#0"]
        assert culprit.reason.startswith(
            "as an operation it may be 6.0e-07 off, 10 times torch's error, but "
        )
        assert (culprit.required, culprit.allowed) == (pytest.approx(times), LIMITS["fp32"].ratio_fail)


def test_a_coarse_part_explains_neither_other_blocks_nor_single_elements_nor_float64():
    net = ("#0", "net", OK, OK)
    marked = taps(("a.x#0", "op", COARSE, OK), ("a#0", "block", OK, OK), ("b.x#0", "op", OK, OK),
                  ("b#0", "block", block(5), OK), net)  # fmt: skip
    assert [tap.verdict for tap in marked.values()] == ["ok", "ok", "ok", "FAIL glue", "ok"]
    peaked = metrics(e_c=9e-7, e_r=3e-7, m_c=3.1e-5, m_r=3e-6)
    marked = taps(("a.x#0", "op", COARSE, OK), ("a#0", "block", peaked, OK), net)
    assert [tap.verdict for tap in marked.values()] == ["ok", "FAIL glue", "ok"]
    results = [TapResult("a.x#0", (6,), "op", COARSE, OK), TapResult("a#0", (6,), "block", block(5), OK)]
    gates.mark(results, "fp64", 0, 1e-6)
    assert [tap.verdict for tap in results] == ["ok", "FAIL glue"]


def test_an_operation_that_torch_hits_exactly_explains_nothing():
    exact = metrics(e_c=2.0**-26, e_r=0.0, m_c=1e-7)
    marked = taps(("a.x#0", "op", exact, OK), ("a#0", "block", block(3.5), OK), ("#0", "net", OK, OK))
    assert [tap.verdict for tap in marked.values()] == ["ok", "FAIL glue", "ok"]


def test_a_name_that_only_begins_alike_is_no_child():
    marked = taps(
        ("block.1.x#0", "op", BAD, BAD),
        ("block.10.x#0", "op", OK, BAD),
        ("block.10#0", "block", BAD, BAD),
        ("#0", "net", BAD, BAD),
    )
    assert marked["block.10#0"].verdict == "FAIL glue"


def test_right_layers_with_a_wrong_end():
    marked = taps(("a#0", "block", OK, OK), ("b#0", "block", OK, BAD), ("#0", "net", OK, BAD))
    assert [tap.verdict for tap in marked.values()] == ["ok", "inherited", "FAIL end"]
    assert "the first wrong result is that of b#0" in marked["#0"].reason


def test_a_failing_trace_always_has_a_failure_of_its_own():
    """Inheritance must never explain everything away, whatever combination of taps is wrong."""
    names = [("a.x#0", "op"), ("a#0", "block"), ("b#0", "block"), ("#0", "net")]
    for pattern in range(1, 2**8):
        rows = [
            (tap, level, BAD if pattern >> 2 * i & 1 else OK, BAD if pattern >> 2 * i & 2 else OK)
            for i, (tap, level) in enumerate(names)
        ]
        rows[-1] = (*rows[-1][:2], rows[-1][3], rows[-1][3])  # a net has no local error but that of its end
        if not any(BAD in row for row in rows):
            continue
        assert any(tap.failed for tap in taps(*rows).values()), bin(pattern)


def test_a_control_above_its_cap_judges_nothing():
    cap = LIMITS["fp32"].cap
    poor = metrics(e_c=2 * cap, e_r=above(cap))
    marked = taps(("a#0", "op", poor, poor), ("#0", "net", OK, OK))
    assert marked["a#0"].verdict == "FAIL contract" and marked["a#0"].failed
    edge = metrics(e_c=cap, e_r=cap)
    assert taps(("a#0", "op", edge, edge))["a#0"].verdict == "ok"


def test_semantic_trace():
    results = [TapResult("a#0", (6,), "op", metrics(e_c=1e-9), metrics(e_c=1e-9))]
    gates.mark(results, "fp64", 0, 2e-7)
    assert results[0].verdict == "ok"
    gates.mark(results, "fp64", 0, 1e-10)
    assert results[0].verdict == "FAIL local"


def test_absent_is_failed():
    result = CaseResult("case", "G1", "fp64", "CPU")
    assert not result.passed
    result.taps = [TapResult("#0", (6,), "op", OK, OK)]
    assert result.passed
    result.contract.append(Check("weights", False))
    assert not result.passed and result.broken
