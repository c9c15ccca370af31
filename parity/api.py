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

Models return tensors, tuples or mappings of them; unpack a dataclass in the factory's module. A relative path is taken
from the current folder; imports are looked up there and beside the FILE of `python -m parity other`.

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

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import ConversionError
from parity.harness import report
from parity.harness.backends import INSIDE, Pool, WorkerError
from parity.harness.behaviour import run_gradients
from parity.harness.gates import NATIVE_FORMS, CaseResult
from parity.harness.inputs import realize
from parity.harness.other import Other
from parity.harness.other_pairing import WARNING, ComparisonError, pair
from parity.harness.pairing import Pairing
from parity.harness.runner import Session, run_case
from parity.harness.words import EN, Words, clip
from parity.options import check_folder

DTYPES = ("fp32", "fp16", "bf16")
DEVICES = ("CPU", "Ascend")


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
        case, header, norms, contract = pair(session, comparison, case)
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
        raise ComparisonError(error.line) from None
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


def _cannot(session: Session, result: CaseResult) -> str:
    """Why the port cannot run in float64 at all, or ""."""
    crash = next((check for check in result.broken if check.name == "runs"), None)
    return crash.detail if crash else ""
