# SPDX-License-Identifier: Apache-2.0
"""Gate G5: what a model does over more than one forward, and compiled.

Gradients of its inputs and of every parameter; drift over many steps; graph mode against PyNative.
"""

import math
import time
from functools import partial

import numpy as np

from parity.harness import gates
from parity.harness.backends import WorkerError
from parity.harness.case import Case
from parity.harness.emulate import to_grid
from parity.harness.gates import LIMITS, SEMANTIC, CaseResult, Check, Metrics, TapResult
from parity.harness.runner import Session, prepare, workers_of, worst_elements
from parity.harness.trace import fetch

PROJECTION = 20240105  # seed of the array that makes a number of a result
# A gradient this much smaller than the typical one of the net, in the float64 truth, is zero in exact arithmetic:
# softmax, for example, ignores what the bias of the keys adds to all logits of a row. 1e-9 lies far above float64's
# rounding (1e-16 times the terms that cancel) and far below any gradient that means something.
VANISHED = 1e-9


def run_gradients(session: Session, case: Case, dtype: str, form: str = "", mutant: str = "") -> CaseResult:
    """Judge all gradients of one case. Under fp64 by the limit of G1, else by the ratio rule at the end of a run.

    A case that a framework cannot build, run or differentiate fails its check "runs".
    """
    began = time.perf_counter()
    form = form or ("CPU" if dtype == "fp64" else session.device)
    result = CaseResult(case.id, "G5", dtype, form, net=case.net, kind="gradients")
    truth, control, port = workers = workers_of(session, dtype)
    try:
        for worker in dict.fromkeys(workers):
            worker("set_spill", folder=None)
        inputs = prepare(session, case, dtype, form, mutant, workers, result)
        request = dict(inputs=inputs, method=case.method, seed=PROJECTION)
        asked = [
            partial(session.ask, worker, "gradients", **request) for worker in dict.fromkeys((control, truth))
        ]
        theirs, ours, *exact = session.together(
            case, asked[0], partial(port, "gradients", **request), *asked[1:]
        )
        exact = exact[0] if exact else theirs
        wrong = sorted(set(theirs) ^ set(ours))
        detail = f"not differentiated on both sides: {', '.join(wrong[:4])}" if wrong else ""
        result.contract.append(Check("trainable", not wrong, detail))
        again = port("gradients", **request)
        moved = [
            name for name in ours if not np.array_equal(fetch(ours[name]), fetch(again[name]), equal_nan=True)
        ]
        result.contract.append(
            Check("repeatable", not moved, f"two runs differ in {', '.join(moved[:4])}" if moved else "")
        )
        if not wrong:
            blocks = depth({name: fetch(value).shape for name, value in exact.items()})
            result.taps = judge(ours, theirs, exact, dtype, form, blocks)
            for tap in result.failures[:1]:
                name = tap.tap.removesuffix("#0")
                result.worst = worst_elements(*(fetch(side[name]) for side in (ours, theirs, exact)))
    except WorkerError as error:
        crashed(session, workers, result, error)
    result.seconds = time.perf_counter() - began
    return result


def judge(ours: dict, theirs: dict, exact: dict, dtype: str, form: str, blocks: int) -> list[TapResult]:
    """A verdict on every gradient. Each is the end of a run forward and back, so twice as many blocks."""
    arrays = {name: tuple(np.asarray(fetch(side[name])) for side in (ours, theirs, exact)) for name in exact}
    norms = {name: float(np.linalg.norm(np.asarray(t, np.float64))) for name, (_, _, t) in arrays.items()}
    typical = float(np.median([norms[name] / t.size**0.5 for name, (_, _, t) in arrays.items()]))
    taps = []
    for name, (c, r, t) in arrays.items():
        least = typical * t.size**0.5
        vanished = norms[name] < VANISHED * least
        metrics = gates.compare(c, r, t, dtype, least if vanished else 0.0, rounded=False)
        tap = TapResult(f"{name}#0", tuple(t.shape), "gradient", metrics, metrics)
        tap.required, tap.allowed = metrics.e_c, allowed(metrics, dtype, form, blocks, vanished)
        if metrics.problem or not metrics.e_c <= tap.allowed:
            tap.verdict = "FAIL end"
            tap.reason = metrics.problem or (
                f"gradient is {metrics.e_c:.1e} off, that of torch {dtype} {metrics.e_r:.1e}; allowed "
                f"{tap.allowed:.1e} (G5 {dtype})"
            )
        taps.append(tap)
    return taps


def depth(shapes: dict[str, tuple]) -> int:
    """Blocks of a net by the names and shapes of its gradients: attentions over one axis; in nets of others, where no
    name tells, every four matrices, the number of products of such a block.
    """
    named = sum(name.endswith(("attn.qkv.weight", "attn1.to_q.weight")) for name in shapes)
    matrices = sum(len(shape) > 1 for name, shape in shapes.items() if not name.startswith("input "))
    return named or matrices // 4


def allowed(metrics: Metrics, dtype: str, form: str, blocks: int, vanished: bool) -> float:
    """The error that a gradient may have: of a run forward and back, so through twice as many blocks.

    Few numbers tell the size of an error only roughly (`gates.scatter`). A vanished gradient is noise on both sides, of
    which no more than the order of magnitude can be asked: the limit of single elements applies. Under fp64 the native
    LayerNorm rounds to float32 on the way forward and on the way back: a random walk of as many steps as in fp32
    (`end_limit`), of a unit each instead of four, since all else is float64 (20 seeds of five nets: up to 3.9e-7, where
    5.1e-7 are allowed).
    """
    if dtype == "fp64":
        if form not in gates.NATIVE_FORMS:
            return SEMANTIC["composed"]
        return max(SEMANTIC["native"], 3 * math.sqrt(2 * max(blocks, 1)) * LIMITS["fp32"].u)
    limits = LIMITS[dtype]
    if vanished:
        return max(limits.max_ratio * metrics.e_r, limits.floor)
    return gates.end_limit(metrics, dtype, 2 * blocks, limits.floor, gates.scatter(metrics.count))


# --- drift over many steps

# A trajectory may drift this many times as far from the truth as the control's, or as its twin's one ulp away.
DRIFT = 2


def drift_limit(metrics: Metrics, noise: float, dtype: str) -> float:
    """Allowed error of a state after some steps; noise: that of the twin.

    As in G2, none need be better than the floor of the type, a quarter of a unit in half precision.
    """
    return DRIFT * max(metrics.e_r, noise, LIMITS[dtype].floor)


def run_drift(
    session: Session,
    case: Case,
    dtype: str,
    form: str = "",
    mutant: str = "",
    verb: str = "iterate",
    state: str = "x",
    label: str = "",
    **options,
) -> CaseResult:
    """Judge trajectories of many steps: the port's against those of the control and of its noise twin.

    verb: a method of the workers that takes inputs, method, state and `options` and returns the state after every
    step; state: name of the input it starts from; label: what is iterated, for the name of the result. The twin is
    the control started one ulp away: what it does to a rounding is the chaos of the iteration, not a fault of the
    port. FAIL at step k if drift_c(k) > 2 max(drift_r(k), drift_twin(k)), all distances from the float64 trajectory.
    Under fp64 the truth has no control: every step is judged by the limit of G1.
    """
    began = time.perf_counter()
    form = form or ("CPU" if dtype == "fp64" else session.device)
    name = case.id + (f" {label}" if label else "")
    result = CaseResult(name, "G5", dtype, form, net=case.net, kind="drift")
    workers = workers_of(session, dtype)
    try:
        for worker in dict.fromkeys(workers):
            worker("set_spill", folder=None)
        inputs = prepare(session, case, dtype, form, mutant, workers, result)
        request = dict(method=case.method, state=state, **options)
        asked = [partial(worker, verb, inputs=inputs, **request) for worker in dict.fromkeys(workers[::-1])]
        ours, theirs, *exact = session.together(case, *asked)
        exact, twin = (exact[0] if exact else theirs), theirs
        if dtype != "fp64":
            nudged = {**inputs, state: one_ulp_away(inputs[state], dtype)}
            twin = workers[1](verb, inputs=nudged, **request)
        lengths = [len(item) for item in (ours, theirs, exact, twin)]
        same = len(set(lengths)) == 1 and lengths[0] > 0
        result.contract.append(Check("steps", same, "" if same else f"trajectories of {lengths} steps"))
        if same:
            result.taps = judge_drift(ours, theirs, exact, twin, dtype)
    except WorkerError as error:
        crashed(session, workers, result, error)
    result.seconds = time.perf_counter() - began
    return result


def one_ulp_away(start: np.ndarray, dtype: str) -> np.ndarray:
    """Every element moved to its neighbour on the grid of a dtype, away from zero."""
    start = to_grid(np.asarray(start), dtype)
    bits = start.astype(np.float32).view(np.int32)  # magnitude and sign: adding one moves away from zero
    if dtype == "fp16":
        half = start.astype(np.float16)
        return np.nextafter(half, np.copysign(np.float16(np.inf), half)).astype(np.float32)
    return (bits + (1 << 16 if dtype == "bf16" else 1)).view(np.float32)


def judge_drift(ours: list, theirs: list, exact: list, twin: list, dtype: str) -> list[TapResult]:
    """A verdict on every step; the last one is tap "#0"."""
    taps = []
    for index, arrays in enumerate(zip(ours, theirs, exact, twin, strict=True), 1):
        c, r, t, w = (np.asarray(fetch(item)) for item in arrays)
        metrics = gates.compare(c, r, t, dtype, rounded=False)
        noise = gates.compare(w, r, t, dtype, rounded=False).e_c
        name = f"step {index}#0" if index < len(ours) else "#0"
        tap = TapResult(name, tuple(t.shape), "net" if name == "#0" else "step", metrics, metrics)
        tap.required = metrics.e_c
        if dtype == "fp64":
            tap.allowed = SEMANTIC["composed"]
            reason = f"step {index} is {metrics.e_c:.1e} off; allowed {tap.allowed:.0e} (G5 fp64 drift)"
        else:
            tap.allowed = drift_limit(metrics, noise, dtype)
            reason = (
                f"step {index} drifted {metrics.e_c:.1e} from the truth, torch {dtype} {metrics.e_r:.1e}, started one "
                f"ulp away {noise:.1e}; allowed {DRIFT} times the larger or the floor, {tap.allowed:.1e} "
                f"(G5 {dtype} drift)"
            )
        if metrics.problem or not metrics.e_c <= tap.allowed:
            tap.verdict, tap.reason = "FAIL end", metrics.problem or reason
        taps.append(tap)
    first = next((tap for tap in taps if tap.failed), None)
    for tap in taps:
        if tap.failed and tap is not first and not tap.local.problem:
            tap.verdict = "inherited"
    return taps


# --- graph mode


def run_graph(session: Session, case: Case, dtype: str, form: str = "", mutant: str = "") -> CaseResult:
    """Judge the compiled port: bitwise equal to the port in PyNative, or as good by the rule of the end of a run.

    The compiled port has a process of its own: one that was in graph mode cannot leave it cleanly. Hooks are lost
    there, so only the result is judged.
    """
    began = time.perf_counter()
    form = form or ("CPU" if dtype == "fp64" else session.device)
    result = CaseResult(case.id, "G5", dtype, form, net=case.net, kind="graph mode")
    truth, control, port = workers_of(session, dtype)
    device = "CPU" if dtype == "fp64" else session.device
    graph = session.pool.get("mindspore graph", device, dtype)
    try:
        for worker in dict.fromkeys((truth, control, port, graph)):
            worker("set_spill", folder=None)
        compiled = graph("compile")
        result.contract.append(
            Check("graph mode", compiled, "" if compiled else "the mode reads back as PyNative")
        )
        call = dict(inputs=prepare(session, case, dtype, form, mutant, (truth, control, port), result))
        prepare(session, case, dtype, form, mutant, (truth, control, graph), result)
        call["method"] = case.method
        eager, ours = port("run", **call), graph("run", **call)
        theirs = control("run", **call)
        exact = theirs if truth is control else truth("run", **call)
        result.taps = [
            judge_graph(*(list(map(fetch, item)) for item in (ours, eager, theirs, exact)), dtype, form)
        ]
    except WorkerError as error:
        crashed(session, (truth, control, port, graph), result, error)
    result.seconds = time.perf_counter() - began
    return result


def judge_graph(ours: list, eager: list, theirs: list, exact: list, dtype: str, form: str) -> TapResult:
    """The verdict on a compiled result: equal bits pass; others pass if no worse than the limit of the end of a run,
    with PyNative beside torch as a control."""
    same = len(ours) == len(eager) and all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(ours, eager, strict=True)
    )
    alike = len(ours) == len(exact) and all(
        np.shape(a) == np.shape(b) for a, b in zip(ours, exact, strict=True)
    )
    ours = ours if alike else [np.zeros(0)] * len(exact)
    metrics = gates.merge([gates.compare(*three, dtype) for three in zip(ours, theirs, exact, strict=True)])
    tap = TapResult("#0", tuple(np.shape(exact[0])), "net", metrics, metrics)
    tap.required = metrics.e_c
    tap.allowed = allowed(metrics, dtype, form, 1, False)
    tap.reason = "the bits of PyNative" if same else "other bits than PyNative"
    if not same and (metrics.problem or not metrics.e_c <= tap.allowed):
        tap.verdict = "FAIL end"
        tap.reason = metrics.problem or (
            f"the compiled result is {metrics.e_c:.1e} off, that of torch {dtype} {metrics.e_r:.1e}; allowed "
            f"{tap.allowed:.1e}, or the bits of PyNative (G5 {dtype} graph mode)"
        )
    return tap


def crashed(session, workers, result, error):
    """Absent is failed; whatever failed may have poisoned its process."""
    for worker in dict.fromkeys(workers):
        session.pool.drop(worker)
    result.contract.append(Check("runs", False, error.line))
