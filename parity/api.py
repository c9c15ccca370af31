# SPDX-License-Identifier: Apache-2.0
"""The harness for any PyTorch -> MindSpore port: two factories and a description of the inputs are enough.

    from parity import api
    from parity.harness.inputs import integers, normal

    if __name__ == "__main__":  # worker processes import this file too, if it defines the factories
        outcome = api.compare(
            reference="pkg.torch_model:make",  # or "path/file.py:make", or a function at the top level of a file
            port="pkg.mindspore_model:make",
            inputs=dict(x=normal(2, 3, 16, 12), t=integers(2, high=1000)),
            weights="auto",  # "names", or {"reference.name": "port.name"}
            dtypes=("fp32",),
        )
        print("\\n".join(outcome.lines))
        assert outcome.passed

The same as a file that `python -m parity other FILE.py` runs is `parity/others/example.py`: copy it.

What happens. Each factory runs in processes of its own, one framework each, so the machine that judges imports
neither. The parameters are paired (`parity.harness.pairing`: by name, map, shape or numeric probing, always proven),
filled with seeded weights that are not degenerate, and their bits are read back. Layers are paired from their
parameters. Then the one judge of this project, `runner.run_case`, compares every paired layer and the output:

    G0 contract, G1 both in float64 (casts to float32 inside either model are lifted to float64), G2 the ratio rule in
    each of `dtypes`, G5 gradients of every parameter and input with `gradients=True`.

In fp16 and bf16 both models run natively, as `.half()` and `.bfloat16()` make them; the truth runs in float64 on the
same rounded weights and inputs. MindSpore's CPU lacks kernels for bf16 and some for fp16 and float64: a float64 run
that the port cannot do is reported as not run, with the reason, unless `semantics=True` demands it.
"""

import argparse
import importlib
import importlib.util
import inspect
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import ConversionError
from parity.harness import pairing, report, weights
from parity.harness.backends import INSIDE, Pool, Worker, WorkerError
from parity.harness.behaviour import run_gradients
from parity.harness.gates import NATIVE_FORMS, CaseResult, Check
from parity.harness.inputs import realize
from parity.harness.other import HALF, Other, keys_of, other_keys
from parity.harness.pairing import Layer, Link, Pairing, PairingError
from parity.harness.runner import Session, run_case
from parity.harness.trace import fetch
from parity.harness.words import EN, LANGUAGES, Words, clip
from parity.options import check_folder, wanted_dtypes

DTYPES = ("fp32", "fp16", "bf16")
DEVICES = ("CPU", "Ascend")
# Constructed tables may differ by this, relative L2: other orders of operations, not other numbers.
TABLE = 1e-5
WARNING = "WARNING: "  # begins a line of the header that is repeated below the tables
HUGE = 1e4  # beyond this a number of a table means "minus infinity"


class ComparisonError(ValueError):
    """A comparison that cannot be made: wrong arguments, a factory that fails, parameters without partners."""


@dataclass(frozen=True)
class Comparison:
    """What is compared, as data. Run it with `compare(**...)`, `run(comparison)` or `python -m parity other FILE`.

    reference, port: factories of a torch.nn.Module and a mindspore.nn.Cell: "package.module:name",
    "path/file.py:name" or a function; `config` goes to both as keyword arguments.
    inputs: name -> `parity.harness.inputs` descriptor or plain value, the keyword arguments of the call; or a list,
    passed by position, where the two sides name their arguments differently.
    weights: "names", "auto", or a map from names or dotted prefixes of the reference to those of the port.
    layers: reference name -> port name, or None to leave a layer out; the rest is paired from the parameters.
    dtypes: of G2. semantics: G1; None runs it if the port can. gradients: G5. method: called instead of the
    model. keep: parameters and buffers (reference names) that stay as the reference constructed them. Buffers that
    no checkpoint of the reference holds (persistent=False) stay as each side constructed them, and are compared.
    """

    reference: str | Callable = ""
    port: str | Callable = ""
    inputs: Mapping[str, Any] | Sequence[Any] = ()
    name: str = "net"
    config: Mapping[str, Any] = field(default_factory=dict)
    weights: str | Mapping[str, Any] = "auto"
    layers: Mapping[str, str | None] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("fp32",)
    semantics: bool | None = None
    gradients: bool = False
    method: str = ""
    keep: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """One name may stand for a list of one. Raises ComparisonError for values of no use."""
        for name in ("dtypes", "keep"):
            value = getattr(self, name)
            listed = (value,) if isinstance(value, str) else value
            object.__setattr__(self, name, tuple(listed) if isinstance(listed, Iterable) else listed)
        wrong = next(_unusable(self), None)
        if wrong:
            raise ComparisonError(wrong)


def _unusable(what: Comparison) -> Iterator[str]:
    """What was got and what was expected, of every field with a value of another kind."""
    for name, example in (("dtypes", '("fp32",)'), ("keep", '("pos_embed",)')):
        value = getattr(what, name)
        if not (isinstance(value, tuple) and all(isinstance(item, str) for item in value)):
            yield f"{name}={_short(value)}: expected names, e.g. {example}"
    if not isinstance(what.seed, (int, np.integer)) or what.seed < 0:
        yield f"seed={_short(what.seed)}: expected a whole number, zero or more"
    if not isinstance(what.inputs, (Mapping, Sequence)) or isinstance(what.inputs, (str, bytes)):
        kind = type(what.inputs).__name__
        yield f"inputs: got {kind}, expected descriptors, e.g. dict(x=normal(2, 16)) or [normal(2, 16)]"
    for name, example in (
        ("inputs", "dict(x=normal(2, 16))"),
        ("config", "dict(dim=16)"),
        ("layers", '{"act": "gelu", "pool": None}'),
        ("weights", '{"blocks": "layers", "fc.weight": ("out.kernel", "transpose")}'),
    ):
        value = getattr(what, name)
        listed = isinstance(value, (str, Sequence)) and name in ("inputs", "weights")  # these may be no map
        if not listed and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
            yield f"{name}={_short(value)}: expected a map from names, e.g. {example}"
        elif name in ("layers", "weights") and isinstance(value, Mapping):
            strange = [key for key, item in value.items() if not _target(item, name)]
            if strange:
                yield f"{name}: {strange[0]!r} goes to {_short(value[strange[0]])}; expected names, e.g. {example}"
    if not isinstance(what.method, str):
        yield f"method={_short(what.method)}: expected a name"


def _short(value: Any) -> str:
    """A value in one line that leaves room for the rest of a message."""
    return clip(" ".join(repr(value).split()), 80)


def _target(value: Any, name: str) -> bool:
    """Whether a value of the map `layers` or `weights` names something of the port."""
    if name == "layers":
        return value is None or isinstance(value, str)
    pair = isinstance(value, Sequence) and len(value) == 2 and isinstance(value[0], str)
    return isinstance(value, str) or (pair and value[1] in ("", "transpose"))


@dataclass
class Outcome:
    """results: of the judge, one per gate and dtype. header: device, versions, pairing. not_run: what and why."""

    results: list[CaseResult]
    header: list[str]
    pairing: Pairing
    not_run: list[str] = field(default_factory=list)
    verbose: bool = False
    words: Words = EN

    @property
    def passed(self) -> bool:
        """Absent is failed: an outcome without results does not pass."""
        return bool(self.results) and all(result.passed for result in self.results)

    @property
    def lines(self) -> list[str]:
        """Header, tables and failures, as the terminal shows them."""
        w = self.words
        lines = [
            *self.header,
            *(w("line.not_run", what=w.translate(line)) for line in self.not_run),
            report.contract_line(self.results, w),
        ]
        lines += report.summary(self.results, self.verbose, w)
        for result in self.results:
            if not result.passed:
                lines += ["", *report.failure(result, w)]
        return lines + [line for line in self.header if line.startswith(WARNING)]


class OtherPool(Pool):
    """Workers that build models from import paths."""

    def key(self, framework: str, device: str, dtype: str) -> tuple[str, str, str]:
        return f"other-{framework}", device, dtype


def compare(
    *, device: str = "CPU", report: str | None = None, verbose: bool = False, command: str = "", **what: Any
) -> Outcome:
    """Judge a port. what: the fields of `Comparison`. report: folder for the CSV, JSON, Markdown and HTML files.

    Raises ComparisonError for wrong arguments, a factory that fails, or parameters that cannot be paired for sure.
    """
    unknown = [name for name in what if name not in Comparison.__dataclass_fields__]
    if unknown:
        raise ComparisonError(
            f"unknown: {', '.join(unknown)}; expected {', '.join(Comparison.__dataclass_fields__)}"
        )
    return run(Comparison(**what), device, report, verbose, command)


def run(
    comparison: Comparison,
    device: str = "CPU",
    folder: str | None = None,
    verbose: bool = False,
    command: str = "",
    pool: OtherPool | None = None,
    language: str = "en",
) -> Outcome:
    """Pair, then judge every gate asked for. command: the line that repeats it, for the messages. pool: processes to
    reuse for several comparisons; they are left running. language: of tables and messages, "en" or "zh".

    Raises ComparisonError, at once inside a worker: it executes the file of a factory, and a call at the top level of
    that file would start workers without end.
    """
    if INSIDE in os.environ:
        raise ComparisonError(
            "the file that defines this factory compares at its top level, and the worker processes execute that file "
            'too; put the call below `if __name__ == "__main__":`'
        )
    case = _case(comparison, device)
    if folder is not None:
        try:
            check_folder("report", Path(folder))
        except ConversionError as error:
            raise ComparisonError(str(error)) from None
    session = Session(device=device, pool=pool or OtherPool())
    try:
        case, header, norms, contract = _pair(session, comparison, case)
        outcome = Outcome([], header, case.pairing, verbose=verbose, words=Words(language))
        form = NATIVE_FORMS[1] if norms else device
        if comparison.semantics is not False:
            result = run_case(session, case, "fp64", form, diagnose=False)
            excuse = _cannot(session, result) if comparison.semantics is None else ""
            if excuse:
                outcome.not_run.append(f"G1, float64: {excuse}")
            else:
                outcome.results.append(result)
                if comparison.gradients:
                    outcome.results.append(run_gradients(session, case, "fp64", form))
        outcome.not_run += _not_asked(comparison)
        for dtype in comparison.dtypes:
            outcome.results.append(run_case(session, case, dtype, form, diagnose=False))
            if comparison.gradients:
                outcome.results.append(run_gradients(session, case, dtype, form))
    except WorkerError as error:
        raise ComparisonError(_first_line(error)) from None
    finally:
        if pool is None:
            session.pool.stop()
    for result in outcome.results:
        result.contract += contract
        result.reproduce, result.repro = command, ""
    if folder is not None:
        paths = report.write(outcome.results, header, Path(folder), outcome.words, outcome.not_run)
        paths.append(
            report.junit(outcome.results, Path(folder) / "junit.xml", f"parity other {comparison.name}")
        )
        outcome.header = [*header, f"report: {', '.join(map(str, paths))}"]
    return outcome


def _case(comparison: Comparison, device: str) -> Other:
    wrong = [dtype for dtype in comparison.dtypes if dtype not in DTYPES]
    if wrong:
        raise ComparisonError(f"dtypes: {', '.join(wrong)} unknown; expected some of {', '.join(DTYPES)}")
    if device not in DEVICES:
        raise ComparisonError(f"device {device!r}: expected {' or '.join(DEVICES)}")
    if not comparison.inputs:
        raise ComparisonError(
            "inputs: none given; expected descriptors, e.g. dict(x=normal(2, 16)) or [normal(2, 16)]"
        )
    inputs = comparison.inputs
    inputs = dict(inputs) if isinstance(inputs, Mapping) else {str(i): item for i, item in enumerate(inputs)}
    try:
        realize(inputs, comparison.seed)
    except (TypeError, ValueError) as error:
        raise ComparisonError(f"inputs cannot be drawn: {str(error).splitlines()[0]}") from None
    return Other(
        target=comparison.name,
        init=dict(comparison.config),
        inputs=inputs,
        name=f"{comparison.name}-other",
        method=comparison.method,
        net=f"other {comparison.name}",
        keep=tuple(comparison.keep),
        seed=comparison.seed,
        reference=_path(comparison.reference, "reference"),
        port=_path(comparison.port, "port"),
    )


def _not_asked(comparison: Comparison) -> list[str]:
    """Gates that the comparison leaves out: skipped is not passed."""
    words = {
        "not_run.no_semantics": comparison.semantics is False,
        "not_run.no_dtypes": not comparison.dtypes,
        "not_run.no_gradients": not comparison.gradients,
    }
    return [EN(key) for key, left_out in words.items() if left_out]


def _path(factory: str | Callable, which: str) -> str:
    """A factory as a path that a worker can follow."""
    if isinstance(factory, str):
        place, colon, name = factory.rpartition(":")
        if not (place and colon and name):
            raise ComparisonError(
                f"{which}={factory!r}: expected 'package.module:function' or 'path/file.py:function'"
            )
        return f"{Path(place).resolve()}:{name}" if place.endswith(".py") else factory
    name = getattr(factory, "__qualname__", "<?>")
    if not callable(factory) or "<" in name or "." in name:
        raise ComparisonError(
            f"{which}: expected a path or a function at the top level of a file, got {factory!r}"
        )
    try:
        file = Path(inspect.getsourcefile(inspect.unwrap(factory)) or "?").resolve()
    except (TypeError, OSError):  # compiled, or typed into an interpreter
        file = Path("?")
    if file.suffix != ".py" or not file.is_file():
        raise ComparisonError(
            f"{which}={factory!r}: no Python file defines it (a notebook, standard input, compiled code?), so that a "
            f"worker process cannot import it; write it to a file and pass 'path/file.py:{name}'"
        )
    return f"{file}:{name}"


# ------------------------------------------------------------------------------------------------- pairing


def _pair(
    session: Session, comparison: Comparison, case: Other
) -> tuple[Other, list[str], bool, list[Check]]:
    """The case with its proven pairing, the header, whether the port normalises with MindSpore's native kernels, and
    checks that hold for every run."""
    control, port = _built(session, case, "torch"), _built(session, case, "mindspore")
    theirs, their_layers = control("describe")
    ours, our_layers = port("describe")
    inputs = realize(case.inputs, case.seed)
    request = dict(inputs=inputs, method=case.method)
    try:
        shapes = control("outlines", **request)
    except WorkerError as error:
        raise ComparisonError(f"reference {case.reference} does not run: {_first_line(error)}") from None
    case = replace(
        case, keys=tuple(dict.fromkeys(key for shape in shapes.values() for key in keys_of(shape)))
    )
    control, port = _built(session, case, "torch"), _built(session, case, "mindspore")

    def runner_of(worker, which):
        def run_once(tensors):
            try:
                outputs = worker("probe", tensors=tensors, **request)
            except WorkerError as error:
                raise ComparisonError(f"{which} does not run: {_first_line(error)}") from None
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
    found, notes = _tried(session, replace(case, pairing=found), left_over)
    found = replace(found, stated=_stated(found, their_layers, our_layers))
    trained = {p.name for p in ours if p.learned} if comparison.gradients else set()
    case, contract, more = _tables(session, replace(case, pairing=found), trained)
    contract += _keys(session, case, request)
    notes += more + _warnings(pairing.overruled(case.pairing.links, theirs, ours))
    header = _header(session, comparison, case, case.pairing, notes, control, port)
    return case, header, port("native_norms"), contract


def _built(session: Session, case: Other, framework: str, dtype: str = "fp32") -> Worker:
    device = session.device if framework == "mindspore" else "CPU"
    which, path = ("port", case.port) if framework == "mindspore" else ("reference", case.reference)
    try:
        worker = session.pool.get(framework, device, dtype)
        worker("build", case=case)
    except WorkerError as error:
        raise ComparisonError(f"{which} {path}: {_first_line(error)}") from None
    return worker


def _tried(session, case: Other, left_over: list[str]) -> tuple[Pairing, list[str]]:
    """Run both sides once: leave out layers that only one side calls or that cannot take the other's arguments.

    A layer with parameters that one side does not call stays: the contract reports it.
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
        raise ComparisonError(f"reference {case.reference} does not run: {_first_line(error)}") from None
    try:
        answer = port("trace", keep_inputs=False, **request)
    except WorkerError as error:
        raise ComparisonError(f"port {case.port} does not run: {_first_line(error)}") from None
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
    out = {}  # layers that cannot be compared one to one -> why
    for tap, record in reference.items():
        name = tap.rpartition("#")[0]
        mine, other = ([tuple(fetch(x).shape) for x in r.outputs] for r in (record, answer.get(tap, record)))
        if name and mine != other and len(mine) == len(other):
            out.setdefault(
                name, f"results are {_sizes(other)} instead of {_sizes(mine)}: another order of axes"
            )
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


def _warnings(links: list[Link]) -> list[str]:
    """What a reader must decide: the names say one thing, the numbers another."""
    if not links:
        return []
    lines = [f"{WARNING}{_pair_line(link)} against equal names and shapes" for link in links]
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


def _cannot(session: Session, result: CaseResult) -> str:
    """Why the port cannot run in float64 at all, or ""."""
    crash = next((check for check in result.broken if check.name == "runs"), None)
    return crash.detail if crash else ""


def _first_line(error: WorkerError) -> str:
    lines = str(error).strip().splitlines() or ["?"]
    return f"{error.kind}: {lines[0]}"


# ------------------------------------------------------------------------------------------------- command line


def examples() -> dict[str, Path]:
    """Definitions that come with the project: name -> file."""
    folder = Path(__file__).parent / "others"
    files = sorted(folder.glob("*.py"))
    return {
        file.stem: file for file in files if not file.stem.startswith("_") and not file.stem.endswith("_side")
    }


def definition(word: str) -> Comparison:
    """COMPARISON of a file, or of an example by name. Raises ComparisonError."""
    path = examples().get(word, Path(word))
    if not path.is_file():
        raise ComparisonError(f"{word}: no such file, nor one of the examples {', '.join(examples())}")
    title = f"_definition_{path.stem}"
    spec = importlib.util.spec_from_file_location(title, path)
    if spec is None:
        raise ComparisonError(f"{word}: expected a Python file, *.py")
    sys.modules[title] = module = importlib.util.module_from_spec(
        spec
    )  # before it runs: dataclasses look there
    try:
        spec.loader.exec_module(module)
    except ComparisonError as error:
        raise ComparisonError(f"{path}: {error}") from None
    except Exception as error:  # a user's file may raise anything
        raise ComparisonError(f"{path}: {type(error).__name__}: {error}") from None
    found = getattr(module, "COMPARISON", None)
    if not isinstance(found, Comparison):
        raise ComparisonError(
            f"{path}: expected COMPARISON = api.Comparison(...), found {type(found).__name__}"
        )
    return found


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0: all gates pass, 1: a disagreement, 2: the comparison could not be made."""
    parser = argparse.ArgumentParser(
        prog="python -m parity other",
        description="Judge a port of other people, a torch module against a MindSpore cell, by this project's gates.",
        epilog=f"Examples that come with the project: {', '.join(examples())}. "
        "Start with: cp parity/others/example.py mine.py; python -m parity other mine.py --dtype fp32",
    )
    parser.add_argument(
        "file", metavar="FILE", help="a file that defines COMPARISON, or the name of an example"
    )
    parser.add_argument("--device", default="CPU", help="device of the port: CPU or Ascend (default: CPU)")
    parser.add_argument("--dtype", default="", help="comma list of fp32, fp16, bf16 (default: the file's)")
    parser.add_argument("--gradients", action="store_true", help="gate G5 too, whatever the file says")
    parser.add_argument("--report", default="parity-report", metavar="DIR", help="where the report files go")
    parser.add_argument(
        "--lang", default="en", choices=LANGUAGES, help="language of the tables (default: en)"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="all rows of all tables")
    options = parser.parse_args(arguments)
    try:
        comparison = definition(options.file)
        if options.dtype:
            comparison = replace(comparison, dtypes=tuple(wanted_dtypes(options.dtype, DTYPES)))
        if options.gradients:
            comparison = replace(comparison, gradients=True)
        command = ["python", "-m", "parity", "other", options.file]
        command += ["--dtype", ",".join(comparison.dtypes)] + (["--gradients"] if options.gradients else [])
        repeat = shlex.join(command)
        outcome = run(
            comparison, options.device, options.report, options.verbose, repeat, language=options.lang
        )
    except (ComparisonError, ConversionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(outcome.lines))
    return 0 if outcome.passed else 1
