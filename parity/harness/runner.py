# SPDX-License-Identifier: Apache-2.0
"""Runs one case through both frameworks and judges it. The only runner: every gate of every case goes through here."""

import hashlib
import json
import pickle
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from converters.containers.target import save_file
from converters.layouts import OURS
from converters.stream import TensorEntry
from parity.harness import diagnosis, gates, sample, weights
from parity.harness.backends import Pool, Worker, WorkerError, together
from parity.harness.case import Case
from parity.harness.emulate import UNIT_ROUNDOFF, to_grid
from parity.harness.fingerprint import Control, Fingerprint, choose_control
from parity.harness.gates import CaseResult, Check, Metrics, TapResult
from parity.harness.inputs import realize
from parity.harness.memory import PeakMemory
from parity.harness.trace import Record, discard, fetch

HALF = ("fp16", "bf16")
PLAIN = Control("plain", {}, "true float32 in matmul and convolution")
NOTHING = "the net gives 0 everywhere, whatever its layers do: such weights prove nothing (adaLN-Zero before training?)"
STILL_COMPARABLE = (
    "lint",
    "weight bits",
    "weights",
    "order",
    "dtypes",
    "repeatable",
)  # numbers still mean something


@dataclass
class Kept:
    """What truth and control hold, and what they said of it: the same for every formulation and bug of the port.

    key: (case, dtype), and what the workers' `holds` must say for the rest to be true. shapes: of parameters; state:
    the weights; reasons: why they could hide a bug; digests: of their bits; answers: (worker, verb, hash of the
    arguments) -> answer.
    """

    key: tuple | None = None
    shapes: dict[str, tuple] = field(default_factory=dict)
    state: dict[str, np.ndarray] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    answers: dict[tuple, Any] = field(default_factory=dict)


@dataclass
class Session:
    """What does not change between cases: the device under test, the workers, where large arrays go."""

    device: str = "CPU"
    pool: Pool = field(default_factory=Pool)
    spill: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    layout: str = ""
    products: dict[str, str] | None = None  # of the control; None: as the fingerprint of the device shows
    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)  # tested type -> as measured
    diagnosis_left: float = diagnosis.TOTAL  # seconds
    signatures: dict[tuple, diagnosis.Signatures] = field(default_factory=dict)  # of taps diagnosed before
    kept: Kept = field(default_factory=Kept)

    def ask(self, worker: Worker, verb: str, **arguments: Any) -> Any:
        """A question about a case that truth or control may have answered before, for another port."""
        if self.kept.key is None or getattr(worker, "holds", None) != self.kept.key:
            return worker(verb, **arguments)
        place = (worker.name, verb, hashlib.blake2b(pickle.dumps(arguments)).digest())
        if place not in self.kept.answers:
            self.kept.answers[place] = worker(verb, **arguments)
        return self.kept.answers[place]

    def together(self, case: Case, *calls: Callable[[], Any]) -> list[Any]:
        """Results of calls of different workers: at the same time, where neither memory nor a record forbids it."""
        if case.taps == "stages" or not self.pool.live or len(calls) < 2:
            return [call() for call in calls]
        return together(*calls)

    def control(self, dtype: str) -> Control:
        """How the control of a tested type multiplies. A device is asked for its fingerprint once; the CPU, whose
        products are true float32, is not asked. Raises WorkerError if the port's worker cannot start, and if the
        device does not compute in that type."""
        if dtype == "fp64":
            return PLAIN
        if self.products is not None:
            return Control("rounded" if self.products else "plain", self.products, "as it was recorded")
        if dtype not in self.fingerprints:
            if self.device == "CPU":
                return PLAIN
            port = self.pool.get("mindspore", self.device, dtype)
            self.fingerprints[dtype] = port("fingerprint", dtypes=tuple(dict.fromkeys(("fp32", dtype))))
        chosen = choose_control(self.fingerprints[dtype], dtype)
        if chosen.kind == "absent":
            raise WorkerError(
                "NoKernels",
                f"{self.device} does not compute in {dtype} ({chosen.reason}); remedy: leave {dtype} out of --dtype",
            )
        return chosen

    def rounding(self, side: str) -> str:
        """Half precision: the control always emulates; the port emulates on the CPU and is native on a device."""
        return "native" if side == "mindspore" and self.device != "CPU" else "emulated"

    def close(self) -> None:
        """End all workers at once, from another thread."""
        self.pool.close()

    def stop(self) -> None:
        """End all workers."""
        self.pool.stop()

    def forms(self) -> tuple[str, ...]:
        """Formulation sets to judge: the device's own, and on the CPU every other one that has CPU kernels."""
        return ("CPU", "Ascend") if self.device == "CPU" else (self.device,)


@dataclass
class Evidence:
    """The first tap at fault: what went in and what came out. local: of its own run on the control's inputs, else
    of the free run of the whole target (args and kwargs are then empty).
    """

    tap: str
    local: bool
    args: tuple
    kwargs: dict[str, Any]
    port: list[np.ndarray]
    control: list[np.ndarray]
    truth: list[np.ndarray]


def run_case(
    session: Session,
    case: Case,
    dtype: str,
    form: str = "",
    mutant: str = "",
    diagnose: bool | None = None,
) -> CaseResult:
    """Judge one case. dtype "fp64" is gate G1 (always on the CPU), the others G2 (probes: G3) on the device.

    diagnose: name the bug of a failure (G4); None: unless a bug was injected, whose name is known.
    A case that a framework cannot build or run fails its check "runs". Raises WorkerError if a worker cannot start.
    """
    if case.steps:
        from parity.harness.training import run_training  # it needs this file

        return run_training(session, case, dtype, form, mutant)
    began = time.perf_counter()
    device = "CPU" if dtype == "fp64" else session.device
    form = form or device
    gate = "G1" if dtype == "fp64" else "G3" if case.probe else "G2"
    result = CaseResult(case.id, gate, dtype, form, net=case.net)
    truth, control, port = workers_of(session, dtype)
    workers = list(dict.fromkeys((truth, control, port)))
    stages = case.taps == "stages"
    memory = PeakMemory(session.pool.pids()) if stages else None
    try:
        for worker in workers:
            worker("set_spill", folder=session.spill if stages else None)
        inputs = prepare(session, case, dtype, form, mutant, (truth, control, port), result)
        call = dict(inputs=inputs, method=case.method, stages=stages)
        traces = session.together(
            case,
            partial(session.ask, control, "trace", keep_inputs=True, **call),
            partial(port, "trace", keep_inputs=False, **call),
            *([partial(session.ask, truth, "trace", keep_inputs=False, **call)] * (truth is not control)),
        )
        reference, answer, ends = traces if truth is not control else (*traces, traces[0])
        native = dtype if session.rounding("mindspore") == "native" else ""
        _contract_of_traces(reference, answer, ends, result, native)
        _contract_of_runs(port, inputs, case.method, answer, result)
        if all(check.name in STILL_COMPARABLE for check in result.broken):
            traces = (reference, answer, ends)
            evidence = _judge_taps(session, case, dtype, form, (truth, control, port), traces, result)
            if evidence is not None:
                _explain(case, mutant, control, port, result)
                if diagnose or (diagnose is None and not mutant):
                    result.diagnosis = _diagnose(session, case, dtype, form, inputs, evidence)
    except WorkerError as error:
        # Absent is failed: the case stays in the report. Whatever failed may have poisoned its process.
        for worker in workers:
            session.pool.drop(worker)
        result.contract.append(Check("runs", False, error.line))
    finally:
        if memory:
            result.notes.append(f"peak memory {memory.stop() / 2**30:.2f} GiB (PSS of judge and workers)")
    result.seconds = time.perf_counter() - began
    return result


def prepare(session, case, dtype, form, mutant, workers, result) -> dict[str, Any]:
    """Build the case in all workers, load equal weights, check the contract so far; returns the inputs.

    Truth and control are left as they are if they hold this case already.
    """
    truth, control, port = workers
    _recall(session, case, dtype, truth, control)
    builds = {}
    if not session.kept.shapes:
        lazy = case.taps == "stages" and truth is not control
        builds[truth] = dict(rounding=session.rounding("torch"), lazy=lazy)
        products = session.control(dtype).products
        extra = dict(products=products) if products else {}  # plain builds keep their name in recordings
        builds.setdefault(control, dict(rounding=session.rounding("torch"), **extra))
    builds[port] = dict(rounding=session.rounding("mindspore"), form=form, mutant=mutant)
    calls = [partial(worker, "build", case=case, **extra) for worker, extra in builds.items()]
    shapes = dict(zip(builds, session.together(case, *calls), strict=True))
    session.kept.shapes = shapes.get(control) or session.kept.shapes
    _load(session, case, dtype, workers, shapes[port], list(builds), result)
    _contract_of_layers(control, port, result)
    inputs = {name: _rounded(value, dtype) for name, value in realize(case.inputs, case.seed).items()}
    constant = [name for name, value in inputs.items() if _is_constant(value)]
    detail = f"constant, could hide a bug: {', '.join(constant)}"
    result.contract.append(Check("inputs", not constant, detail))
    return inputs


def _recall(session, case, dtype, truth, control):
    """Forget what is kept, unless truth and control hold this very case."""
    small = not (case.taps == "stages" or case.weights or case.size == "full")
    # Pickled: the repr of a large array leaves most of it out.
    key = (pickle.dumps(case), dtype) if small and session.pool.live else None
    if key is None or not session.kept.key == truth.holds == control.holds == key:
        session.kept = Kept(key)


def workers_of(session: Session, dtype: str) -> tuple[Worker, Worker, Worker]:
    """(truth, control, port) for a dtype; under fp64 the truth is its own control."""
    device = "CPU" if dtype == "fp64" else session.device
    keys = [("torch", "CPU", "fp64"), ("torch", "CPU", dtype), ("mindspore", device, dtype)]
    if session.pool.live:
        session.pool.begin(*keys)
    truth, control, port = (session.pool.get(*key) for key in keys)
    return truth, control, port


def _load(session, case, dtype, workers, names_p, fresh, result):
    """Weights into the workers that were built anew. names_p: shapes of the port's parameters."""
    truth, control, port = workers
    kept = session.kept
    wrong = sorted(set(kept.shapes.items()) ^ set(names_p.items()))
    result.contract.append(
        Check("parameters", not wrong, f"not equal on both sides: {wrong[:6]}" if wrong else "")
    )
    if wrong:
        session.kept = Kept()  # nothing was loaded
        return
    path = case.weights
    if case.size == "full" and not path:
        path = write_weights(kept.shapes, case, *control("config"), session.spill)
    if path:
        options = dict(layout=session.layout or None, overrides=session.overrides, grid=dtype)
        digests = {worker: worker("load", tensors=None, checkpoint=path, **options) for worker in fresh}
        loaded, kept.digests = digests[port], digests[control]
        hiding = port("degenerate") if case.weights else []
        if hiding:
            more = f" and {len(hiding) - 3} more" if len(hiding) > 3 else ""
            result.notes.append(f"weights of the file that could hide a bug: {', '.join(hiding[:3])}{more}")
    else:
        if not kept.digests:
            kept.state = seeded_state(case, dtype, kept.shapes, control)
            kept.reasons = [] if case.target == "init_weights" else weights.degenerate(kept.state)
            kept.digests = {k: weights.digest(to_grid(value, dtype)) for k, value in kept.state.items()}
        result.contract.append(Check("weights", not kept.reasons, "; ".join(kept.reasons[:4])))
        loaded = _load_state(session, case, kept, control, fresh)[port]
        if kept.key:
            truth.holds = control.holds = kept.key
    unequal = [name for name in kept.digests if loaded.get(name) != kept.digests[name]]
    detail = f"{len(unequal)} of {len(kept.digests)} differ bitwise from the source: {', '.join(unequal[:4])}"
    result.contract.append(
        Check("weight bits", not unequal, detail if unequal else f"{len(kept.digests)} bitwise equal")
    )


def seeded_state(case: Case, dtype: str, shapes: dict[str, tuple], worker: Worker) -> dict[str, np.ndarray]:
    """The weights of a case without a file, float32 on the grid of a dtype. worker: holds the case as built."""
    state = weights.random_state({k: v for k, v in shapes.items() if k not in case.keep}, case.seed)
    if case.keep:
        kept = worker("state")
        state.update({name: kept[name].astype(np.float32) for name in case.keep})
    return {name: to_grid(value, dtype).astype(np.float32) for name, value in state.items()}


def _load_state(session, case, kept, control, fresh) -> dict[Worker, dict[str, str]]:
    """Seeded weights into workers: whole nets as a file through the converters, single layers directly."""
    if case.net not in OURS:  # a part, or a net of others: no layout of ours
        calls = [partial(worker, "load", tensors=kept.state) for worker in fresh]
        return dict(zip(fresh, session.together(case, *calls), strict=True))
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        path = write_weights(kept.shapes, case, *control("config"), folder, kept.state)
        calls = [partial(worker, "load", tensors=None, checkpoint=path) for worker in fresh]
        return dict(zip(fresh, session.together(case, *calls), strict=True))


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
    detail = f"no tensor comes out of {empty[:4]}"
    results = [fetch(value) for value in ends["#0"].outputs] if "#0" in ends else []
    if result.net and any(value.size for value in results) and not any(map(np.any, results)):
        empty, detail = ["#0"], NOTHING
    result.contract.append(Check("outputs", bool(reference) and not empty, detail))
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


def _judge_taps(session, case, dtype, form, workers, traces, result):
    _, control, _ = workers
    reference, answer, ends = traces
    streamed = case.taps == "stages"
    modules = list(control("lint"))
    blocks = sum(1 for name in modules if name.split(".")[-1].isdigit() and "block" in name)
    exact = None
    if dtype == "fp64":
        exact = gates.SEMANTIC["native" if form in gates.NATIVE_FORMS else "composed"]
    products = session.control(dtype).products.values()

    def judged(local: dict[str, Metrics]) -> list[TapResult]:
        taps = []
        for tap, record in reference.items():
            prop = _metrics(answer[tap].outputs, record.outputs, ends[tap].outputs, dtype)
            level = "net" if tap == "#0" and case.net else _level(tap, modules)
            taps.append(TapResult(tap, _shape(record), level, local.get(tap, prop), prop))
        gates.mark(taps, dtype, blocks, exact, products)
        return taps

    # In float64 one limit holds for both errors, and layers whose inputs agree leave them equal: where every tap
    # agrees, teacher forcing would repeat it. It finds the culprit where something does not. (What happens to a value
    # between two taps is judged by the result of the tap around them; the other types force every layer.)
    taps = judged({}) if dtype == "fp64" and not streamed else []
    forced = not taps or any(tap.failed for tap in taps)
    if forced:
        batch = [tap for tap in reference if tap != "#0"]
        local: dict[str, Metrics] = {}
        for group in [[tap] for tap in batch] if streamed else [batch]:
            local.update(_local(session, case, workers, {tap: reference[tap] for tap in group}, dtype))
        taps = judged(local)
    inner: dict[str, Record] = {}
    if streamed:
        taps, inner = _descend(session, case, workers, reference, taps, modules, dtype, result.notes)
        gates.mark(taps, dtype, blocks, exact, products)
    if forced:
        gates.predict(taps)
    result.taps = taps
    for tap in taps:
        count = len((inner.get(tap.tap) or reference[tap.tap]).outputs)
        if tap.failed and count > 1:
            judged_by = tap.prop if tap.verdict == "FAIL end" else tap.local
            tap.reason += f"; of its {count} results number {judged_by.which + 1} is the worst"
    first = next((tap for tap in taps if tap.failed), None)
    evidence = None
    if first is not None:
        evidence = _evidence(workers, first, traces, inner)
        decided = (first.prop if first.verdict == "FAIL end" else first.local).which
        sides = evidence.port, evidence.control, evidence.truth
        if len({len(side) for side in sides}) == 1 and len(evidence.truth) > decided:
            arrays = [side[decided] for side in sides]
            result.worst = worst_elements(*arrays)
            if len({array.shape for array in arrays}) == 1:
                result.histogram = gates.histogram(*arrays)
    if streamed:
        for trace_ in {id(trace_): trace_ for trace_ in traces}.values():
            for record in trace_.values():
                discard(*record.outputs, *record.args, *record.kwargs.values())
    return evidence


def _local(session, case, workers, records: dict[str, Record], dtype: str) -> dict[str, Metrics]:
    """Teacher forcing: every module of port and truth on the control's own inputs."""
    truth, control, port = workers
    requests = [(tap.rpartition("#")[0], record.args, record.kwargs) for tap, record in records.items()]
    calls = [partial(port, "local", requests=requests)]
    if truth is not control:
        calls.append(partial(session.ask, truth, "local", requests=requests))
    ours, *true = session.together(case, *calls)
    true = true[0] if true else [record.outputs for record in records.values()]
    metrics = {}
    for (tap, record), mine, exact in zip(records.items(), ours, true, strict=True):
        metrics[tap] = _metrics(mine, record.outputs, exact, dtype)
        discard(*mine)
        if truth is not control:
            discard(*exact)
    return metrics


def _descend(
    session, case, workers, reference, taps, modules, dtype, notes, most: int = 2
) -> tuple[list[TapResult], dict]:
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
            try:
                theirs = control("trace", keep_inputs=True, **here)
            except WorkerError as error:
                if error.kind != "NotRecorded":
                    raise
                notes.append(str(error))  # a recording that keeps this stage closed
                found.append(tap)
                continue
            ours, true = (worker("trace", keep_inputs=False, **here) for worker in (port, truth))
            lost = [part for part in theirs if part not in ours or part not in true]
            if lost:  # the contract of traces covers stages only
                notes.append(f"inside {name} the port does not run {', '.join(lost[:4])}")
                found.append(tap)
                continue
            inner.update(theirs)
            for part, metrics in _local(session, case, workers, theirs, dtype).items():
                prop = _metrics(ours[part].outputs, theirs[part].outputs, true[part].outputs, dtype)
                found.append(TapResult(part, _shape(theirs[part]), _level(part, modules), metrics, prop))
        found.append(tap)
    return found, inner


def _level(tap: str, modules: list[str]) -> str:
    name = tap.rpartition("#")[0]
    inside = any(other != name and (name == "" or other.startswith(name + ".")) for other in modules)
    return "block" if inside else "op"


def _shape(record: Record) -> tuple:
    return sample.shape_of(fetch(record.outputs[0]))


def _metrics(mine: list, theirs: list, exact: list, dtype: str) -> Metrics:
    if not len(mine) == len(theirs) == len(exact):
        empty = np.zeros(0)
        metrics = gates.compare(empty, empty, empty, dtype)
        metrics.problem = f"{len(mine)} outputs of the port, {len(theirs)} of the reference"
        return metrics
    return gates.merge(
        [
            sample.compare(fetch(a), fetch(b), fetch(c), dtype)
            for a, b, c in zip(mine, theirs, exact, strict=True)
        ]
    )


def _evidence(workers, tap, traces, inner) -> Evidence:
    """What the verdict on a tap at fault rests on: its local run if that is what failed, else the free run."""
    truth, _, port = workers
    reference, answer, ends = traces
    record = inner.get(tap.tap) or reference[tap.tap]
    theirs = _arrays(record.outputs)
    if tap.verdict == "FAIL end" or tap.tap == "#0":
        ours, exact = (_arrays(trace_[tap.tap].outputs) for trace_ in (answer, ends))
        return Evidence(tap.tap, False, (), {}, ours, theirs, exact)
    args, kwargs = _arrays(record.args), _arrays(record.kwargs)
    request = [(tap.tap.rpartition("#")[0], args, kwargs)]
    ours, exact = (_arrays(worker("local", requests=request)[0]) for worker in (port, truth))
    return Evidence(tap.tap, True, args, kwargs, ours, theirs, exact)


def _arrays(value: Any) -> Any:
    """Values of a trace with every spilled array in memory: its file is deleted before they are used."""
    if isinstance(value, dict):
        return {name: _arrays(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_arrays(item) for item in value)
    value = fetch(value)
    return np.array(value) if isinstance(value, np.memmap) else value


def worst_elements(port: np.ndarray, control: np.ndarray, truth: np.ndarray, count: int = 3) -> list[str]:
    """The elements with the largest error: index, port, reference, truth."""
    c, r, t = (np.asarray(x, np.float64) for x in (port, control, truth))
    if not c.shape == r.shape == t.shape:
        return []
    with np.errstate(invalid="ignore"):
        error = np.where(c == t, 0.0, np.abs(c - t))  # equal infinities differ by NaN
    error[~np.isfinite(error)] = np.inf
    lines = []
    for flat in np.argsort(error, axis=None)[::-1][:count]:
        index = np.unravel_index(flat, t.shape)
        place = ",".join(map(str, sample.place(truth, flat)))
        lines.append(f"[{place}] port {c[index]:.7g}  ref {r[index]:.7g}  truth {t[index]:.7g}")
    return lines


def _explain(case, mutant, control, port, result):
    """Where the culprits stand in the code, what became of the error, how to pack the first one into a file."""
    theirs, ours = control("sources"), port("sources")
    for tap in result.failures[:3]:
        name = tap.tap.rpartition("#")[0]
        result.sources[tap.tap] = (theirs.get(name, "?"), ours.get(name, "?"))
    first, *others = result.failures
    inherited = sum(tap.verdict == "inherited" for tap in result.taps)
    end = result.taps[-1]
    words = [f"{inherited} taps inherited the error"]
    if end.prop is not None and end is not first:
        share = f" ({end.prop.e_r:.1e} of torch)" if result.dtype != "fp64" else ""
        words.append(f"final propagated error {end.prop.e_c:.1e}{share}")
    words.append(f"{len(others)} further culprits" if others else "no second culprit (teacher-forced)")
    result.downstream = "; ".join(words)
    name, _, index = first.tap.rpartition("#")
    place = shlex.quote(f"{result.case}:{name}" + (f"#{index}" if index != "0" else ""))
    extra = f" --form {result.form}" if result.form != "CPU" else ""
    extra += f" --mutant {mutant}" if mutant else ""
    if case.weights:
        return  # a file's weights are not the harness's to pack
    result.repro = f"python -m parity repro {place} --dtype {result.dtype}{extra}"


def _diagnose(session, case, dtype, form, inputs, evidence) -> list[str]:
    """Gate G4: the registered bugs that the first culprit looks like. Signatures are computed in the float64 port,
    on the bits that the failing run saw.
    """
    if case.size == "full":
        return ["signatures are not computed at full size; the thin net of this model names the bug"]
    from parity.mutants import MUTANTS  # needed for a failure alone

    key = (repr(case), dtype, form, evidence.tap, evidence.local)
    if key not in session.signatures:
        if session.diagnosis_left <= 0:
            return [
                f"not looked for: earlier failures took the {diagnosis.TOTAL:.0f} s of a session; run it alone"
            ]
        began = time.perf_counter()
        truth = session.pool.get("torch", "CPU", "fp64")
        ranks = _ranks(case, form, evidence.tap.rpartition("#")[0], truth("lint"), truth("sources"))
        names = sorted(MUTANTS, key=lambda name: ranks(MUTANTS[name]))
        run = partial(_mutated, session, case, dtype, form, inputs, evidence)
        seconds = min(diagnosis.SECONDS, session.diagnosis_left)
        session.signatures[key] = diagnosis.collect_signatures(run, names, seconds)
        session.diagnosis_left -= time.perf_counter() - began
    return diagnosis.explain(
        evidence.port,
        evidence.control,
        session.signatures[key],
        lambda name: MUTANTS[name].description,
        UNIT_ROUNDOFF[dtype],
    )


def _ranks(case, form, name, lint, sources):
    """How far a registered bug is from a tap, by the cases it names.

    The parts of a failing module with parts agree with the reference, or they would be the culprits: functions between
    layers come first there, then its own code. Of a layer without parts its own bugs come first.
    """
    kind = lint.get(name, "").partition("(")[0]
    file = sources.get(name, "").rpartition("/")[2].partition(".py")[0]
    parts = any(tap != name and (not name or tap.startswith(name + ".")) for tap in lint)

    def rank(mutant):
        places = [place.partition("-")[0].partition(".") for place in mutant.cases]
        if mutant.form not in ("CPU", form):
            return 4
        if parts and any(target[:1].islower() for _, _, target in places):
            return 0
        if any(target in (kind, case.target) for _, _, target in places):
            return 1
        return 2 if any(stem == file for stem, _, _ in places) else 3

    return rank


def _mutated(session, case, dtype, form, inputs, evidence, bug) -> list[np.ndarray] | None:
    """Results of the tap at fault in the float64 port with a bug ("": none); None if the bug makes it crash."""
    worker = session.pool.get("mindspore", "CPU", "fp64")
    try:
        shapes = worker("build", case=case, rounding="emulated", form=form, mutant=bug)
        if case.weights:
            options = dict(layout=session.layout or None, overrides=session.overrides, grid=dtype)
            worker("load", tensors=None, checkpoint=case.weights, **options)
        else:
            worker("load", tensors=seeded_state(case, dtype, shapes, worker))
        if evidence.local:
            request = [(evidence.tap.rpartition("#")[0], evidence.args, evidence.kwargs)]
            return worker("local", requests=request)[0]
        if evidence.tap == "#0":
            return worker("run", inputs=inputs, method=case.method)
        whole = worker("trace", inputs=inputs, method=case.method, keep_inputs=False, stages=False)
        return whole[evidence.tap].outputs
    except (WorkerError, KeyError):  # a bug that crashes, or loses the tap, is not the one that gave a number
        session.pool.drop(worker)
        return None


def _is_constant(value: Any) -> bool:
    return (
        isinstance(value, np.ndarray)
        and value.dtype.kind == "f"
        and value.size > 1
        and weights.constant(value)
    )


def _rounded(value: Any, dtype: str) -> Any:
    if isinstance(value, np.ndarray):
        return to_grid(value, dtype)
    return value
