# SPDX-License-Identifier: Apache-2.0
"""Runs one case through both frameworks and judges it. The only runner: every gate of every case goes through here."""

import json
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from converters.containers.target import save_file
from converters.layouts import OURS
from converters.stream import TensorEntry
from parity.harness import gates, weights
from parity.harness.backends import Pool, Worker, WorkerError
from parity.harness.case import Case
from parity.harness.emulate import to_grid
from parity.harness.gates import CaseResult, Check, Metrics, TapResult
from parity.harness.inputs import realize
from parity.harness.memory import PeakMemory
from parity.harness.trace import Record, discard, fetch

HALF = ("fp16", "bf16")
STILL_COMPARABLE = (
    "lint",
    "weight bits",
    "weights",
    "order",
    "dtypes",
    "repeatable",
)  # numbers still mean something


@dataclass
class Session:
    """What does not change between cases: the device under test, the workers, where large arrays go."""

    device: str = "CPU"
    pool: Pool = field(default_factory=Pool)
    spill: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    layout: str = ""

    def rounding(self, side: str) -> str:
        """Half precision: the control always emulates; the port emulates on the CPU and is native on a device."""
        return "native" if side == "mindspore" and self.device != "CPU" else "emulated"

    def forms(self) -> tuple[str, ...]:
        """Formulation sets to judge: the device's own, and on the CPU every other one that has CPU kernels."""
        return ("CPU", "Ascend") if self.device == "CPU" else (self.device,)


def run_case(session: Session, case: Case, dtype: str, form: str = "", mutant: str = "") -> CaseResult:
    """Judge one case. dtype "fp64" is gate G1 (always on the CPU), the others G2 (probes: G3) on the device.

    A case that a framework cannot build or run fails its check "runs". Raises WorkerError if a worker cannot start.
    """
    began = time.perf_counter()
    device = "CPU" if dtype == "fp64" else session.device
    form = form or device
    gate = "G1" if dtype == "fp64" else "G3" if case.probe else "G2"
    result = CaseResult(case.id, gate, dtype, form, net=case.net)
    truth, control, port = workers_of(session, dtype)
    workers = list(dict.fromkeys((truth, control, port)))
    stages = case.taps == "stages"
    memory = PeakMemory(session.pool.pids()) if stages else None
    for worker in workers:
        worker("set_spill", folder=session.spill if stages else None)
    try:
        inputs = prepare(session, case, dtype, form, mutant, (truth, control, port), result)
        reference = control("trace", inputs=inputs, method=case.method, keep_inputs=True, stages=stages)
        answer = port("trace", inputs=inputs, method=case.method, keep_inputs=False, stages=stages)
        ends = reference
        if truth is not control:
            ends = truth("trace", inputs=inputs, method=case.method, keep_inputs=False, stages=stages)
        native = dtype if session.rounding("mindspore") == "native" else ""
        _contract_of_traces(reference, answer, ends, result, native)
        _contract_of_runs(port, inputs, case.method, answer, result)
        if all(check.name in STILL_COMPARABLE for check in result.broken):
            _judge_taps(case, dtype, form, (truth, control, port), (reference, answer, ends), result)
        if result.failures:
            _explain(control, port, result)
    except WorkerError as error:
        # Absent is failed: the case stays in the report. Whatever failed may have poisoned its process.
        for worker in workers:
            session.pool.drop(worker)
        result.contract.append(Check("runs", False, f"{error.kind}: {(str(error).splitlines() or ['?'])[0]}"))
    finally:
        if memory:
            result.notes.append(f"peak memory {memory.stop() / 2**30:.2f} GiB (PSS of judge and workers)")
    result.seconds = time.perf_counter() - began
    return result


def prepare(session, case, dtype, form, mutant, workers, result) -> dict[str, Any]:
    """Build the case in all workers, load equal weights, check the contract so far; returns the inputs."""
    truth, control, port = workers
    stages = case.taps == "stages"
    shapes = {}
    for worker in dict.fromkeys(workers):
        side = "mindspore" if worker is port else "torch"
        extra = dict(form=form, mutant=mutant) if worker is port else dict(lazy=stages and worker is truth)
        shapes[worker] = worker("build", case=case, rounding=session.rounding(side), **extra)
    _load(session, case, dtype, workers, shapes, result)
    _contract_of_layers(control, port, result)
    inputs = {name: _rounded(value, dtype) for name, value in realize(case.inputs, case.seed).items()}
    constant = [name for name, value in inputs.items() if _is_constant(value)]
    detail = f"constant, could hide a bug: {', '.join(constant)}"
    result.contract.append(Check("inputs", not constant, detail))
    return inputs


def workers_of(session: Session, dtype: str) -> tuple[Worker, Worker, Worker]:
    """(truth, control, port) for a dtype; under fp64 the truth is its own control."""
    truth = session.pool.get("torch", "CPU", "fp64")
    control = truth if dtype == "fp64" else session.pool.get("torch", "CPU", dtype)
    return truth, control, session.pool.get("mindspore", "CPU" if dtype == "fp64" else session.device, dtype)


def _load(session, case, dtype, workers, shapes, result):
    truth, control, port = workers
    names_c, names_p = shapes[control], shapes[port]
    wrong = sorted(set(names_c.items()) ^ set(names_p.items()))
    result.contract.append(
        Check("parameters", not wrong, f"not equal on both sides: {wrong[:6]}" if wrong else "")
    )
    if wrong:
        return
    path = case.weights
    if case.size == "full" and not path:
        path = write_weights(names_c, case, *control("config"), session.spill)
    if path:
        options = dict(layout=session.layout or None, overrides=session.overrides, grid=dtype)
        digests = {
            worker: worker("load", tensors=None, checkpoint=path, **options)
            for worker in dict.fromkeys((truth, control, port))
        }
        expected = digests[control]
    else:
        state = weights.random_state({k: v for k, v in names_c.items() if k not in case.keep}, case.seed)
        if case.keep:
            kept = control("state")
            state.update({name: kept[name].astype(np.float32) for name in case.keep})
        state = {name: to_grid(value, dtype).astype(np.float32) for name, value in state.items()}
        reasons = [] if case.target == "init_weights" else weights.degenerate(state)
        result.contract.append(Check("weights", not reasons, "; ".join(reasons[:4])))
        loaded = _load_state(state, case, (truth, control, port), names_c)
        expected = {name: weights.digest(to_grid(value, dtype)) for name, value in state.items()}
        digests = {port: loaded, control: expected}
    unequal = [name for name in expected if digests[port].get(name) != expected[name]]
    detail = f"{len(unequal)} of {len(expected)} differ bitwise from the source: {', '.join(unequal[:4])}"
    result.contract.append(
        Check("weight bits", not unequal, detail if unequal else f"{len(expected)} bitwise equal")
    )


def _load_state(state, case, workers, shapes) -> dict[str, str]:
    """Seeded weights into all workers: whole nets as a file through the converters, single layers directly."""
    _, control, port = workers
    distinct = dict.fromkeys(workers)
    if not case.net:
        return {worker: worker("load", tensors=state) for worker in distinct}[port]
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        path = write_weights(shapes, case, *control("config"), folder, state)
        return {worker: worker("load", tensors=None, checkpoint=path) for worker in distinct}[port]


def write_weights(
    shapes: dict[str, tuple],
    case: Case,
    model: str,
    config: dict[str, Any],
    folder: str,
    state: dict[str, np.ndarray] | None = None,
) -> str:
    """Weights of a net in our own layout, as one file that all workers map, written tensor by tensor.

    state: the values; None draws them from the case's seed while writing, so that no large net is held in memory.
    """

    def bits(name, shape):
        return weights.random_parameter(name, shape, case.seed) if state is None else state[name]

    entries = {name: TensorEntry("F32", shape, partial(bits, name, shape)) for name, shape in shapes.items()}
    known = OURS[model].model.keys
    config = {name: value for name, value in config.items() if name in known}
    path = Path(folder) / "weights.safetensors"
    save_file(path, entries, {"model": model, "config": json.dumps(config), "layout": "ours"})
    return str(path)


def _contract_of_layers(control, port, result):
    theirs, ours = control("lint"), port("lint")
    wrong = [
        f"{name or 'the net'}: port {ours.get(name, 'absent')}, reference {theirs.get(name, 'absent')}"
        for name in dict.fromkeys([*theirs, *ours])
        if _statement(ours.get(name)) != _statement(theirs.get(name))
    ]
    result.contract.append(
        Check("lint", not wrong, "; ".join(wrong[:3]) + (" ..." if len(wrong) > 3 else ""))
    )


def _statement(line):
    """Class names of containers differ between the frameworks (Sequential, SequentialCell); constants must not."""
    if line is None:
        return None
    return line.replace("SequentialCell(", "Sequential(")


def _contract_of_traces(reference, answer, ends, result, native=""):
    for who, other in (("port", answer), ("truth", ends)):
        missing = [tap for tap in reference if tap not in other]
        surplus = [tap for tap in other if tap not in reference]
        detail = f"{who} lacks {missing[:4]}, has in addition {surplus[:4]}" if missing or surplus else ""
        result.contract.append(Check(f"taps of {who}", not missing and not surplus, detail))
    empty = [tap for tap, record in reference.items() if not record.outputs]
    result.contract.append(
        Check("outputs", bool(reference) and not empty, f"no tensor comes out of {empty[:4]}")
    )
    moved = next((a for a, b in zip(reference, answer, strict=False) if a != b), "")
    result.contract.append(Check("order", not moved, f"modules run in another order from {moved} on"))
    wrong = [
        f"{tap}: {answer[tap].dtypes} instead of {reference[tap].dtypes}"
        for tap in reference
        if tap in answer and not _same_dtypes(reference[tap], answer[tap], native)
    ]
    result.contract.append(Check("dtypes", not wrong, "; ".join(wrong[:3])))


def _same_dtypes(reference: Record, answer: Record, native: str = "") -> bool:
    """Equal result types; native: the half type in which a device may hold what the control emulates in float32."""
    allowed = {"fp16": "float16", "bf16": "bfloat16"}.get(native)
    return len(reference.dtypes) == len(answer.dtypes) and all(
        a == b or (b == allowed and a == "float32")
        for a, b in zip(reference.dtypes, answer.dtypes, strict=True)
    )


def _contract_of_runs(port, inputs, method, answer, result):
    again = [fetch(value) for value in port("run", inputs=inputs, method=method)]
    tapped = [fetch(value) for value in answer["#0"].outputs] if "#0" in answer else []
    same = len(again) == len(tapped) and all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(again, tapped, strict=True)
    )
    if not same:
        third = [fetch(value) for value in port("run", inputs=inputs, method=method)]
        steady = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(again, third, strict=True))
        detail = "taps change the result" if steady else "two runs differ: nondeterministic"
        result.contract.append(Check("repeatable", False, detail))
    else:
        result.contract.append(Check("repeatable", True, "bitwise equal with and without taps"))


def _judge_taps(case, dtype, form, workers, traces, result):
    _, control, _ = workers
    reference, answer, ends = traces
    streamed = case.taps == "stages"
    batch = [tap for tap in reference if tap != "#0"]
    local: dict[str, Metrics] = {}
    for group in [[tap] for tap in batch] if streamed else [batch]:
        local.update(_local(workers, {tap: reference[tap] for tap in group}, dtype))
    modules = list(control("lint"))
    taps = []
    for tap, record in reference.items():
        prop = _metrics(answer[tap].outputs, record.outputs, ends[tap].outputs, dtype)
        level = "net" if tap == "#0" and case.net else _level(tap, modules)
        taps.append(TapResult(tap, _shape(record), level, local.get(tap, prop), prop))
    blocks = sum(1 for name in modules if name.split(".")[-1].isdigit() and "block" in name)
    exact = None
    if dtype == "fp64":
        exact = gates.SEMANTIC["native" if form == "Ascend" else "composed"]
    gates.mark(taps, dtype, blocks, exact)
    inner: dict[str, Record] = {}
    if streamed:
        taps, inner = _descend(workers, reference, taps, modules, dtype)
        gates.mark(taps, dtype, blocks, exact)
    result.taps = taps
    first = next((tap for tap in taps if tap.failed), None)
    if first is not None:
        result.worst = _worst_elements(workers, first, traces, inner)
    if streamed:
        for trace_ in {id(trace_): trace_ for trace_ in traces}.values():
            for record in trace_.values():
                discard(*record.outputs, *record.args, *record.kwargs.values())


def _local(workers, records: dict[str, Record], dtype: str) -> dict[str, Metrics]:
    """Teacher forcing: every module of port and truth on the control's own inputs."""
    truth, control, port = workers
    requests = [(tap.rpartition("#")[0], record.args, record.kwargs) for tap, record in records.items()]
    ours = port("local", requests=requests)
    true = (
        truth("local", requests=requests) if truth is not control else [r.outputs for r in records.values()]
    )
    metrics = {}
    for (tap, record), mine, exact in zip(records.items(), ours, true, strict=True):
        metrics[tap] = _metrics(mine, record.outputs, exact, dtype)
        discard(*mine)
        if truth is not control:
            discard(*exact)
    return metrics


def _descend(workers, reference, taps, modules, dtype, most: int = 2) -> tuple[list[TapResult], dict]:
    """Look inside the first failing stages of a net that was compared stage by stage."""
    truth, control, port = workers
    found: list[TapResult] = []
    inner: dict[str, Record] = {}
    looked = 0
    for tap in taps:
        if tap.verdict in ("FAIL local", "FAIL glue") and tap.level == "block" and looked < most:
            looked += 1
            record, name = reference[tap.tap], tap.tap.rpartition("#")[0]
            here = dict(inputs=record.kwargs, args=record.args, method="", stages=False, inside=name)
            theirs = control("trace", keep_inputs=True, **here)
            ours, true = (worker("trace", keep_inputs=False, **here) for worker in (port, truth))
            inner.update(theirs)
            for part, metrics in _local(workers, theirs, dtype).items():
                prop = _metrics(ours[part].outputs, theirs[part].outputs, true[part].outputs, dtype)
                found.append(TapResult(part, _shape(theirs[part]), _level(part, modules), metrics, prop))
        found.append(tap)
    return found, inner


def _level(tap: str, modules: list[str]) -> str:
    name = tap.rpartition("#")[0]
    inside = any(other != name and (name == "" or other.startswith(name + ".")) for other in modules)
    return "block" if inside else "op"


def _shape(record: Record) -> tuple:
    return tuple(fetch(record.outputs[0]).shape)


def _metrics(mine: list, theirs: list, exact: list, dtype: str) -> Metrics:
    if not len(mine) == len(theirs) == len(exact):
        empty = np.zeros(0)
        metrics = gates.compare(empty, empty, empty, dtype)
        metrics.problem = f"{len(mine)} outputs of the port, {len(theirs)} of the reference"
        return metrics
    return gates.merge(
        [
            gates.compare(fetch(a), fetch(b), fetch(c), dtype)
            for a, b, c in zip(mine, theirs, exact, strict=True)
        ]
    )


def _worst_elements(workers, tap, traces, inner) -> list[str]:
    """The worst elements of a tap at fault: of its local run if that is what failed, else of the free run."""
    truth, _, port = workers
    reference, answer, ends = traces
    record = inner.get(tap.tap) or reference[tap.tap]
    if tap.verdict == "FAIL end" or tap.tap == "#0":
        return _worst(answer[tap.tap].outputs, record.outputs, ends[tap.tap].outputs)
    request = [(tap.tap.rpartition("#")[0], record.args, record.kwargs)]
    return _worst(port("local", requests=request)[0], record.outputs, truth("local", requests=request)[0])


def _worst(mine: list, theirs: list, exact: list, count: int = 3) -> list[str]:
    """The elements with the largest error: index, port, reference, truth."""
    c, r, t = (np.asarray(fetch(x[0]), np.float64) for x in (mine, theirs, exact))
    if not c.shape == r.shape == t.shape:
        return []
    with np.errstate(invalid="ignore"):
        error = np.where(c == t, 0.0, np.abs(c - t))  # equal infinities differ by NaN
    error[~np.isfinite(error)] = np.inf
    lines = []
    for flat in np.argsort(error, axis=None)[::-1][:count]:
        index = np.unravel_index(flat, t.shape)
        place = ",".join(str(int(i)) for i in index)
        lines.append(f"[{place}] port {c[index]:.7g}  ref {r[index]:.7g}  truth {t[index]:.7g}")
    return lines


def _explain(control, port, result):
    theirs, ours = control("sources"), port("sources")
    for tap in result.failures[:3]:
        name = tap.tap.rpartition("#")[0]
        result.sources[tap.tap] = (theirs.get(name, "?"), ours.get(name, "?"))


def _is_constant(value: Any) -> bool:
    return (
        isinstance(value, np.ndarray)
        and value.dtype.kind == "f"
        and value.size > 1
        and bool(value.std() == 0)
    )


def _rounded(value: Any, dtype: str) -> Any:
    if isinstance(value, np.ndarray):
        return to_grid(value, dtype)
    return value
