# SPDX-License-Identifier: Apache-2.0
"""Gate G5: what a model does over more than one forward. Gradients of its inputs and of every parameter."""

import time

import numpy as np

from parity.harness import gates
from parity.harness.backends import WorkerError
from parity.harness.case import Case
from parity.harness.gates import LIMITS, SEMANTIC, CaseResult, Check, Metrics, TapResult
from parity.harness.runner import Session, prepare, workers_of
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
    result = CaseResult(case.id, "G5", dtype, form, net=case.net)
    truth, control, port = workers = workers_of(session, dtype)
    for worker in dict.fromkeys(workers):
        worker("set_spill", folder=None)
    try:
        inputs = prepare(session, case, dtype, form, mutant, workers, result)
        request = dict(inputs=inputs, method=case.method, seed=PROJECTION)
        theirs, ours = control("gradients", **request), port("gradients", **request)
        exact = theirs if truth is control else truth("gradients", **request)
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
            blocks = sum(name.endswith(("attn.qkv.weight", "attn1.to_q.weight")) for name in ours)
            result.taps = judge(ours, theirs, exact, dtype, form, blocks)
    except WorkerError as error:
        for worker in dict.fromkeys(workers):
            session.pool.drop(worker)
        result.contract.append(Check("runs", False, f"{error.kind}: {(str(error).splitlines() or ['?'])[0]}"))
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


def allowed(metrics: Metrics, dtype: str, form: str, blocks: int, vanished: bool) -> float:
    """The error that a gradient may have: of a run forward and back, so through twice as many blocks.

    A vanished gradient is noise on both sides, of which no more than the order of magnitude can be asked: the
    limit of single elements applies.
    """
    if dtype == "fp64":
        return SEMANTIC["native" if form == "Ascend" else "composed"]
    limits = LIMITS[dtype]
    if vanished:
        return max(limits.max_ratio * metrics.e_r, limits.floor)
    return gates.end_limit(metrics, dtype, 2 * blocks, limits.floor)
