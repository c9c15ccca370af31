# SPDX-License-Identifier: Apache-2.0
"""`python -m parity bisect CASE`: splice reference and port at the borders of stages until the fault is cornered.

Teacher forcing judges every layer on the reference's input, so it cannot see a fault between layers, or one that takes
two of them. Here stages j to k run in the port and all others in the reference, each on what really reaches it. The
code between stages belongs to whoever runs the stage behind it.
"""

import argparse
import difflib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from parity.harness import gates
from parity.harness.backends import WorkerError
from parity.harness.case import Case, collect
from parity.harness.gates import CaseResult
from parity.harness.runner import Session, prepare, workers_of
from parity.harness.trace import Record, fetch

DTYPES = ("fp64", "fp32", "fp16", "bf16")
FORMS = ("CPU", "Ascend")
END = "the end"  # the code behind the last stage


@dataclass
class Trial:
    """Stages start <= i < stop in the port, the others in the reference: error at the end, what is allowed."""

    start: int
    stop: int
    error: float
    allowed: float

    @property
    def failed(self) -> bool:
        """Whether the result is wrong. Written so that NaN is."""
        return not self.error <= self.allowed


@dataclass
class Finding:
    """Answer of one search: stage `culprit` is wrong on its own, or stages first .. culprit only together.

    passing, failing: lengths of the largest passing and the minimal failing prefix found. trials: all that was run.
    """

    first: int
    culprit: int
    passing: int
    failing: int
    trials: list[Trial] = field(default_factory=list)

    @property
    def alone(self) -> bool:
        """Whether one stage suffices."""
        return self.first == self.culprit


def search(count: int, trial: Callable[[int, int], Trial]) -> Finding | None:
    """Corner the fault among `count` stages; None if the port as a whole passes. Takes about 2 log2(count) trials.

    A failing prefix whose next shorter one passes is found by halving, and so is the latest start from which it still
    fails. Errors may cancel: then there are several such prefixes, and this is one of them.
    """
    trials: list[Trial] = []

    def failed(start: int, stop: int) -> bool:
        trials.append(trial(start, stop))
        return trials[-1].failed

    if not failed(0, count):
        return None
    passing, failing = 0, count  # no stage in the port is the reference itself
    while failing - passing > 1:
        middle = (passing + failing) // 2
        if failed(0, middle):
            failing = middle
        else:
            passing = middle
    first, last = 0, failing - 1
    if last and failed(last, failing):
        first = last
    while last - first > 1:  # [first, failing) fails, [last, failing) passes
        middle = (first + last) // 2
        if failed(middle, failing):
            first = middle
        else:
            last = middle
    return Finding(first, failing - 1, passing, failing, trials)


@dataclass
class Bench:
    """One case in three workers, and the reference's trace with inputs."""

    case: Case
    dtype: str
    form: str
    workers: tuple
    inputs: dict
    reference: dict[str, Record]
    products: dict[str, str] = field(default_factory=dict)  # of the control

    def bisect(self, scope: str = "", index: str = "0", write: Callable[[str], None] = print) -> str:
        """Search the stages of the target ("") or of a module, then inside the stage found. Returns the answer, "" if
        the port passes."""
        truth, control, port = self.workers
        record = self.reference[f"{scope}#{index}"]
        call = dict(inputs=self.inputs, method=self.case.method)
        if scope:
            call = dict(inputs=record.kwargs, args=record.args, method="", inside=scope)
        theirs = control("splice", replace={}, **call)
        exact = theirs if truth is control else truth("splice", replace={}, **call)
        stages = _outermost([tap for tap in theirs if tap != "#0"])
        if not stages:
            raise ValueError(f"{_label(scope)} has no parts to splice; pytest parity/ judges it as a whole")
        names = [*stages, END]
        blocks = sum("block" in tap for tap in stages)

        def trial(start: int, stop: int) -> Trial:
            given = {tap: theirs[tap].outputs for tap in stages[:start]}
            answer = port("splice", replace=given, **call)
            absent = [tap for tap in stages[start:stop] if tap not in answer]
            if stop <= len(stages) and not absent:
                given |= {tap: answer[tap].outputs for tap in stages[start:stop]}
                answer = control("splice", replace=given, **call)
            error, allowed = self._judge(answer["#0"], theirs["#0"], exact["#0"], scope, blocks)
            error = math.inf if absent else error  # a stage that the port does not call
            done = Trial(start, stop, error, allowed)
            who = f"port {_span(names[start:stop])}, reference elsewhere"
            write(f"  {who:<72} {error:.1e} of {allowed:.1e}  {'FAIL' if done.failed else 'ok'}")
            return done

        write(f"{_label(scope)}: {len(stages)} stages, {_label(names[0])} to {_label(names[-2])}")
        found = search(len(names), trial)
        if found is None:
            return ""
        write(
            f"  largest passing prefix: {_span(names[: found.passing])}; "
            f"minimal failing prefix: {_span(names[: found.failing])}"
        )
        culprit = names[found.culprit]
        if not found.alone:
            together = _span(names[found.first : found.culprit + 1])
            return f"{together}: wrong only together in the port; each shorter run of them passes"
        before = f" behind {_label(names[found.culprit - 1])}" if found.culprit else ""
        if culprit == END:
            return f"the code of {_label(scope)}{before} (what follows the last stage) is wrong"
        name, _, call_index = culprit.rpartition("#")
        given = self.reference[culprit]
        request = [(name, given.args, given.kwargs)]
        mine, true = port("local", requests=request)[0], truth("local", requests=request)[0]
        error, allowed = self._judge(Record(outputs=mine), given, Record(outputs=true), name, 0)
        if error <= allowed:
            right = f"{_label(culprit)} is right on the reference's input"
            return f"{right}: the code of {_label(scope)}{before} that feeds it is wrong"
        inside = [tap for tap in self.reference if tap.startswith(name + ".")]
        if not inside:
            return f"{_label(culprit)} itself is wrong: {error:.1e} on the reference's input, allowed {allowed:.1e}"
        return self.bisect(name, call_index, write) or (
            f"{_label(culprit)} is wrong in the net, and right on the reference's input"
        )

    def _judge(
        self, mine: Record, theirs: Record, exact: Record, scope: str, blocks: int
    ) -> tuple[float, float]:
        """(error, allowed) by the rules of the gates: of the end for a whole net, else of a single layer."""
        arrays = zip(mine.outputs, theirs.outputs, exact.outputs, strict=True)
        metrics = gates.merge([gates.compare(*map(fetch, three), self.dtype) for three in arrays])
        if self.dtype == "fp64":
            return metrics.e_c, gates.SEMANTIC["native" if self.form in gates.NATIVE_FORMS else "composed"]
        if self.case.net and not scope:
            return metrics.e_c, gates.end_limit(metrics, self.dtype, blocks, 0.0)
        parts = any(tap.startswith(scope + ".") for tap in self.reference) if scope else True
        verdict, _, required, allowed = gates.judge_local(metrics, "block" if parts else "op", self.dtype)
        return (required, allowed) if verdict != "warn" else (required, gates.LIMITS[self.dtype].ratio_fail)


def bench(session: Session, case: Case, dtype: str, form: str = "", mutant: str = "") -> Bench:
    """Build a case in its workers and run the reference once. Raises WorkerError for what does not run."""
    form = form or ("CPU" if dtype == "fp64" else session.device)
    workers = workers_of(session, dtype)
    for worker in dict.fromkeys(workers):
        worker("set_spill", folder=None)
    result = CaseResult(case.id, "bisect", dtype, form)
    inputs = prepare(session, case, dtype, form, mutant, workers, result)
    unfit = [check for check in result.broken if check.name == "parameters"]  # then nothing was loaded
    if unfit:
        raise ValueError(
            f"G0 parameters: {unfit[0].detail}; nothing can be spliced or packed before they agree"
        )
    reference = workers[1]("trace", inputs=inputs, method=case.method, keep_inputs=True, stages=False)
    return Bench(case, dtype, form, workers, inputs, reference, session.control(dtype).products)


def find_case(name: str) -> Case:
    """The case of an id. Raises ValueError naming the nearest ones for an unknown id, or one that is too large."""
    cases = {case.id: case for case in collect()}
    if name not in cases:
        near = difflib.get_close_matches(name, cases, 4, 0.3) or list(cases)[:4]
        raise ValueError(
            f"no case {name!r}; near it: {', '.join(near)} (pytest parity/ --collect-only lists all)"
        )
    return cases[name]


def check_mutant(name: str) -> None:
    """Raise ValueError for a mutant that is not registered."""
    from parity.mutants import MUTANTS

    if name and name not in MUTANTS:
        near = difflib.get_close_matches(name, MUTANTS, 4, 0.3)
        raise ValueError(f"no mutant {name!r}; near it: {', '.join(near) or 'none'}")


def main(arguments: list[str] | None = None) -> int:
    """Print the trials and the answer. Exit status 0 if the port passes, 1 if a fault was found, 2 for a mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m parity bisect",
        description="Run stages of a net partly in the port and partly in the reference until the fault is cornered: "
        "a layer, the code between two layers, or layers that are wrong only together.",
        epilog="Example: python -m parity bisect latte.Latte-class --mutant no_temporal_embedding",
    )
    parser.add_argument("case", metavar="CASE", help="id of a case, e.g. latte.Latte-class")
    parser.add_argument(
        "--dtype", default="fp32", choices=DTYPES, help="fp64 is gate G1 (default: %(default)s)"
    )
    parser.add_argument("--device", default="CPU", choices=("CPU", "Ascend"), help="device of the port")
    parser.add_argument(
        "--form", default="", choices=FORMS, help="formulation set of the port (default: the device's)"
    )
    parser.add_argument(
        "--mutant", default="", metavar="NAME", help="inject a registered bug, to see it found"
    )
    options = parser.parse_args(arguments)
    session = Session(device=options.device)
    try:
        case = find_case(options.case)
        check_mutant(options.mutant)
        answer = bench(session, case, options.dtype, options.form, options.mutant).bisect()
    except (ValueError, WorkerError) as error:
        print(f"error: {(str(error).splitlines() or ['?'])[0]}", file=sys.stderr)
        return 2
    finally:
        session.pool.stop()
    print(answer or f"{case.id} passes in {options.dtype}: nothing to bisect")
    return 1 if answer else 0


def _outermost(taps: list[str]) -> list[str]:
    """Without stages inside other stages (members of a sequence that is itself called)."""
    names = {tap.rpartition("#")[0] for tap in taps}
    return [tap for tap in taps if tap.rpartition("#")[0].rpartition(".")[0] not in names]


def _label(tap: str) -> str:
    name, hash_, index = tap.rpartition("#")
    if not hash_:
        return tap or "the net"
    return (name or "the net") + (f" (call {int(index) + 1})" if index != "0" else "")


def _span(taps: list[str]) -> str:
    if len(taps) < 2:
        return _label(taps[0]) if taps else "nothing"
    return f"{_label(taps[0])} .. {_label(taps[-1])}"
