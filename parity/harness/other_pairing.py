# SPDX-License-Identifier: Apache-2.0
"""From two factories to a case that the judge can run: both models built, their parameters and layers paired, what
cannot be compared one to one left to its parent, constructed tables compared."""

from dataclasses import replace
from typing import Any

import numpy as np

from parity.harness import pairing, report, weights
from parity.harness.backends import Worker, WorkerError
from parity.harness.gates import Check
from parity.harness.inputs import realize
from parity.harness.other import HALF, Other, keys_of, other_keys
from parity.harness.pairing import Layer, Link, Pairing, PairingError
from parity.harness.runner import Session
from parity.harness.trace import fetch

# Constructed tables may differ by this, relative L2: other orders of operations, not other numbers.
TABLE = 1e-5
WARNING = "WARNING: "  # begins a line of the header that is repeated below the tables
HUGE = 1e4  # beyond this a number of a table means "minus infinity"


class ComparisonError(ValueError):
    """A comparison that cannot be made: wrong arguments, a factory that fails, parameters without partners."""


def pair(session: Session, comparison: Any, case: Other) -> tuple[Other, list[str], bool, list[Check]]:
    """Pair two models as `comparison`, an `api.Comparison`, says.

    The case with its proven pairing, the header, whether the port normalises with MindSpore's native kernels, and
    checks that hold for every run. Raises ComparisonError where a side does not run or the pairing is not sure.
    """
    control, port = _built(session, case, "torch"), _built(session, case, "mindspore")
    theirs, their_layers = control("describe")
    ours, our_layers = port("describe")
    inputs = realize(case.inputs, case.seed)
    request = dict(inputs=inputs, method=case.method)
    try:
        shapes = control("outlines", **request)
    except WorkerError as error:
        raise ComparisonError(f"reference {case.reference} does not run: {error.line}") from None
    case = replace(
        case, keys=tuple(dict.fromkeys(key for shape in shapes.values() for key in keys_of(shape)))
    )
    control, port = _built(session, case, "torch"), _built(session, case, "mindspore")

    def runner_of(worker, which):
        def run_once(tensors):
            try:
                outputs = worker("probe", tensors=tensors, **request)
            except WorkerError as error:
                raise ComparisonError(f"{which} does not run: {error.line}") from None
            _require_results(which, outputs)
            return np.concatenate([np.asarray(fetch(x), np.float64).reshape(-1) for x in outputs])

        return run_once

    runners = runner_of(control, f"reference {case.reference}"), runner_of(port, f"port {case.port}")

    def probe(left, right):
        return pairing.take_signatures(*runners, theirs, ours, left, right)

    try:
        links = pairing.pair_parameters(theirs, ours, comparison.weights, probe)
        layers, left_over = pairing.pair_layers(their_layers, our_layers, links, comparison.layers)
        fixed = {p.name for p in theirs if p.fixed}  # kept anyway
        foreign = [name for name in comparison.keep if name not in {link.theirs for link in links} | fixed]
        if foreign:
            raise PairingError(f"keep: {', '.join(foreign)} is no paired parameter of the reference")
    except PairingError as error:
        raise ComparisonError(str(error)) from None
    case = replace(case, keep=tuple(name for name in case.keep if name not in fixed))
    found = Pairing(tuple(links), layers)
    found, notes = _tried(session, replace(case, pairing=found), left_over, comparison.layers)
    found = replace(found, stated=_stated(found, their_layers, our_layers))
    trained = {p.name for p in ours if p.learned} if comparison.gradients else set()
    case, contract, more = _tables(session, replace(case, pairing=found), trained)
    contract += _keys(session, case, request)
    overruled = pairing.overruled(case.pairing.links, theirs, ours)
    notes += more + _warnings(overruled, "against equal names and shapes")
    if not overruled:
        notes += _warnings(pairing.exchanged(case.pairing.links), "although its name fits another one better")
    header = _header(session, comparison, case, case.pairing, notes, control, port)
    return case, header, port("native_norms"), contract


def _built(session: Session, case: Other, framework: str, dtype: str = "fp32") -> Worker:
    device = session.device if framework == "mindspore" else "CPU"
    which, path = ("port", case.port) if framework == "mindspore" else ("reference", case.reference)
    try:
        worker = session.pool.get(framework, device, dtype)
        worker("build", case=case)
    except WorkerError as error:
        raise ComparisonError(f"{which} {path}: {error.line}") from None
    return worker


def _tried(session, case: Other, left_over: list[str], given) -> tuple[Pairing, list[str]]:
    """Run both sides once: leave out layers that only one side calls or that cannot take the other's arguments.

    A layer with parameters that one side does not call stays: the contract reports it. What neither side calls is said.
    given: pairs of layers that the user made. Raises ComparisonError if the results of such a pair cannot be the same.
    """
    control, port = (_built(session, case, framework) for framework in ("torch", "mindspore"))
    state = weights.random_state(control("build", case=case), case.seed)
    port("build", case=case)
    for worker in (control, port):
        worker("load", tensors=state)
    request = dict(inputs=realize(case.inputs, case.seed), method=case.method, stages=False)
    try:
        reference = control("trace", keep_inputs=True, **request)
    except WorkerError as error:
        raise ComparisonError(f"reference {case.reference} does not run: {error.line}") from None
    try:
        answer = port("trace", keep_inputs=False, **request)
    except WorkerError as error:
        raise ComparisonError(f"port {case.port} does not run: {error.line}") from None
    _require_results(f"reference {case.reference}", reference["#0"].outputs)
    _require_results(f"port {case.port}", answer["#0"].outputs)
    found, notes = case.pairing, []
    called = [{tap.rpartition("#")[0] for tap in trace} for trace in (reference, answer)]
    holders = {link.theirs.rpartition(".")[0] for link in found.links}
    one_sided = [
        name
        for name in found.layers
        if name and name not in holders and (name in called[0]) != (name in called[1])
    ]
    if one_sided:
        notes.append(f"called on one side only, judged inside their parents: {', '.join(one_sided)}")
    idle = [name for name in found.layers if name in holders and not any(name in side for side in called)]
    if idle:
        notes.append(f"{WARNING}never called with these inputs, so not judged: {', '.join(idle)}")
    out = {}  # layers that cannot be compared one to one -> why
    for tap, record in reference.items():
        name = tap.rpartition("#")[0]
        mine, other = ([tuple(fetch(x).shape) for x in r.outputs] for r in (record, answer.get(tap, record)))
        if name and mine != other and len(mine) == len(other):
            turned = [sorted(shape) for shape in mine] == [sorted(shape) for shape in other]
            why = f"results are {_sizes(other)} instead of {_sizes(mine)}{': another order of axes' * turned}"
            if name in given and not turned:
                raise ComparisonError(f"layers: {name} goes to {given[name]}, whose {why}")
            out.setdefault(name, why)
    taps = [tap for tap in reference if tap.rpartition("#")[0] not in ("", *one_sided, *out)]
    requests = [(tap.rpartition("#")[0], reference[tap].args, reference[tap].kwargs) for tap in taps]
    refusals = [worker("attempt", requests=requests) for worker in (control, port)]
    for tap, mine, other in zip(taps, *refusals, strict=True):
        why = mine or other
        if why:
            out.setdefault(tap.rpartition("#")[0], f"cannot be called with the reference's arguments ({why})")
    notes += [f"{name} is judged inside its parent: {why}" for name, why in out.items()]
    if left_over:
        notes.append(f"without a partner, judged inside their parents: {', '.join(left_over)}")
    layers = {
        name: other for name, other in found.layers.items() if name not in one_sided and name not in out
    }
    kept = [tap for tap in reference if tap.rpartition("#")[0] in layers]
    moved = next(
        (a for a, b in zip(kept, [tap for tap in answer if tap in kept], strict=False) if a != b), ""
    )
    if moved:
        notes.append(f"the port runs its layers in another order, from {moved.rpartition('#')[0]} on")
    return replace(found, layers=layers, order=tuple(kept), notes=tuple(notes)), notes


def _require_results(which: str, outputs: list) -> None:
    if not outputs:
        raise ComparisonError(f"{which} returns nothing; expected a tensor, or a tuple or mapping of tensors")


def _tables(session: Session, case: Other, trained: set[str]) -> tuple[Other, list[Check], list[str]]:
    """Compare the tables that no checkpoint holds, as both sides construct them: the case, its check, notes.

    Nothing is loaded into them, or a wrong one would never show; the float64 port alone gets the float64 values of
    those that agree. A pair made by its shape alone may be two different things: the taps judge them, not this check.
    trained: own names of the port whose gradients are judged.
    """
    links = [link for link in case.pairing.links if link.fixed]
    if not links:
        return case, [], []
    theirs, exact = (_built(session, case, "torch", dtype)("tables") for dtype in ("fp32", "fp64"))
    ours = _built(session, case, "mindspore")("tables")
    problems, strangers, equal = [], [], {}
    for link in links:
        name = link.theirs
        off, limit = _off(ours[name], theirs[name]), max(TABLE, 10 * _off(theirs[name], exact[name]))
        if off <= limit:
            equal[name] = exact[name]
        elif link.by == "shape":
            strangers.append(link)
        else:
            problems.append(
                f"{name} is in no checkpoint, and the port constructs another one: {off:.1e} off, allowed {limit:.1e}"
            )
        if link.ours in trained and link not in strangers:
            problems.append(f"{name} is trainable in the port, a fixed table of the reference")
    notes = [f"fixed tables, each side keeps its own: {', '.join(link.theirs for link in links)}"]
    notes += [
        f"{link.theirs} and {link.ours} of the port have one shape and other values: not taken for one table"
        for link in strangers
    ]
    kept = tuple(link for link in case.pairing.links if link not in strangers)
    check = Check("tables", not problems, "; ".join(problems))
    return replace(case, pairing=replace(case.pairing, links=kept), tables=equal), [check], notes


def _keys(session: Session, case: Other, request: dict[str, Any]) -> list[Check]:
    """Whether mappings that both sides return have the same keys; no check where none does."""
    theirs, ours = (_built(session, case, side)("outlines", **request) for side in ("torch", "mindspore"))
    both = [name for name in theirs if name in ours]
    problems = [
        problem for name in both for problem in other_keys(theirs[name], ours[name], name or "the net")
    ]
    return [Check("keys", not problems, "; ".join(problems))] if both else []


def _off(a: np.ndarray, b: np.ndarray) -> float:
    """Relative L2 distance of two tables. Masks say -inf, -1e9 or the type's least number and mean the same."""
    a, b = (np.clip(np.asarray(fetch(x), np.float64), -HUGE, HUGE) for x in (a, b))
    if np.array_equal(a, b, equal_nan=True):
        return 0.0
    off = float(np.linalg.norm(a - b) / max(np.linalg.norm(b), np.finfo(np.float32).tiny))
    return off if np.isfinite(off) else float("inf")


def _warnings(links: list[Link], what: str) -> list[str]:
    """What a reader must decide: the names say one thing, the numbers another."""
    if not links:
        return []
    lines = [f"{WARNING}{_pair_line(link)} {what}" for link in links]
    if what.startswith("although"):
        return [
            *lines,
            f"{WARNING}if the names are right, the port exchanges these and this pairing hides it; judge it by a map "
            "of names, weights={...}",
        ]
    by_name = ", ".join(f'"{link.theirs}": "{link.theirs}"' for link in links)
    return [
        *lines,
        f"{WARNING}if those names are right, the port mixes them up and this pairing hides it; judge it by its names: "
        f"weights={{{by_name}}}",
    ]


def _pair_line(link: Link) -> str:
    return f"{link.theirs} -> {link.ours} ({', '.join(filter(None, (f'by {link.by}', link.transform)))})"


def _sizes(shapes: list[tuple]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes)


def _stated(found: Pairing, theirs: list[Layer], ours: list[Layer]) -> tuple[str, ...]:
    """Layers of one kind whose constants both sides state."""
    mine, other = {layer.name: layer for layer in theirs}, {layer.name: layer for layer in ours}
    return tuple(
        name
        for name, partner in found.layers.items()
        if mine[name].statement and other[partner].statement and mine[name].kind == other[partner].kind
    )


def _header(
    session, comparison, case: Other, found: Pairing, notes, control: Worker, port: Worker
) -> list[str]:
    theirs, ours = control.environment, port.environment
    by = {}
    for link in found.links:
        by[link.by] = by.get(link.by, 0) + 1
    changed = [f"{link.theirs} {link.transform}" for link in found.links if link.transform]
    lines = [
        f"{comparison.name}: reference {case.reference} · port {case.port}",
        f"device {ours['device']} · MindSpore {ours['mindspore']} · torch {theirs['torch']} CPU · "
        f"numpy {ours['numpy']}",
        "truth float64 torch · control torch in the tested dtype · casts to float32 inside both are lifted in float64",
        f"paired {len(found.links)} parameters ({', '.join(f'{n} by {rule}' for rule, n in by.items())}), "
        f"{len(found.layers)} layers, constants of {len(found.stated)} compared",
        *(f"  {_pair_line(link)}" for link in found.links if link.by != "names"),
    ]
    if changed:
        more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
        lines.append(f"transforms: {', '.join(changed[:6])}{more}")
    if session.device != "CPU":
        lines += [report.control_line(dtype, session.control(dtype)) for dtype in comparison.dtypes]
    if any(dtype in HALF for dtype in comparison.dtypes):
        lines.append("fp16, bf16: both models natively in half precision, weights and inputs rounded once")
        if ours["device"] == "CPU":
            lines.append(
                "on the CPU, MindSpore's half kernels round more often than torch's (a Dense twice): ratios up to "
                "about 2 are theirs, not the port's"
            )
    return lines + notes
