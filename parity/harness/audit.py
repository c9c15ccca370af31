# SPDX-License-Identifier: Apache-2.0
"""Which operators MindSpore dispatches, and what its own installed documentation says about Ascend.

The record is MindSpore's log of its interpreted mode (PyNative), the only place where every dispatch has a line:
operators behind Python functions, tensor methods, operator signs and gradients alike. The documentation is read from
the installed package's source files without importing it, references followed.
"""

import ast
import importlib.util
import mmap
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# MindSpore reads this variable once, when it is imported: a worker that records is started with it.
LOGGING = {"MS_SUBMODULE_LOG_v": "{PYNATIVE:0}"}
MARK = "@@ at"  # lines that the recorder writes between those of MindSpore: where in ms_latte the next ones arise
OUTSIDE = "harness"  # place of operators that no line of ms_latte asked for: the loss of the gradient


@dataclass(frozen=True)
class Dispatch:
    """One operator at one place. place: file:line of ms_latte, or "gradient of OPERATOR". view: MindSpore only set
    shape and strides, no kernel of any device was asked."""

    operator: str
    place: str
    view: bool = False


# What MindSpore 2.10 logs at a dispatch, in the order of trying. A start has an end, and what lies between is the
# inside of a kernel, which another device builds otherwise: it does not count.
_STARTS = re.compile(r"Run Pyboost(\w+) start|Begin execute native func (\w+)|\] In (\w+) function")
_ENDS = re.compile(r"Run Pyboost(\w+) end|End execute native func (\w+)|\] Out (\w+) function")
_ASKED = re.compile(
    r"\] (?:RunOp name: |Run slice op name:|Emit op )(\w+)"
)  # no end; a start or a run may follow
_RUN = re.compile(r"RunInner(?:Dynamic)?\] RunOp name (\w+) device")
_VIEW = re.compile(r"ProcessViewOp\] Start, op:(\w+)")  # follows "Run slice op name"
_GRADIENT = re.compile(r"(Begin|End) CallBackward: (\w+)")
_BACKWARD = re.compile(r"BackPropagate\] Begin calculate op: (\w+)-")


def parse(lines: Iterable[str]) -> Counter:
    """Count dispatches in MindSpore's log of one forward and one gradient.

    Raises ValueError for a log without any, and for one that names an operator as differentiated that it never shows
    dispatched: then it has lines that are not understood here.
    """
    found: Counter = Counter()
    seen, differentiated = set(), set()
    place, gradient, inside, asked = OUTSIDE, "", "", ""
    for line in lines:
        if line.startswith(MARK):
            place, gradient = line[len(MARK) :].strip() or OUTSIDE, ""
            continue
        if match := _BACKWARD.search(line):
            gradient = f"gradient of {match[1]}"
            if (
                match[1][0].isupper() and match[1] != "GraphRoot"
            ):  # the others are leaves: inputs and parameters
                differentiated.add(match[1])
        elif match := _GRADIENT.search(line):
            differentiated.add(match[2])
            gradient = f"gradient of {match[2]}" if match[1] == "Begin" else "sums of gradients"
        if (match := _VIEW.search(line)) and match[1] == asked and not inside:
            found[Dispatch(asked, gradient or place)] -= 1
            found[Dispatch(asked, gradient or place, True)] += 1
        match, ends = _first(_STARTS, line), _first(_ENDS, line)
        alone = _first(_ASKED, line)
        run = _first(_RUN, line)
        name = match or alone or run
        if name:
            seen.add(name)
        if ends == inside and ends:
            inside = ""
        elif inside or not name:
            continue
        elif match:
            inside = match
            found[Dispatch(match, gradient or place)] += match != asked
            asked = ""
        else:
            found[Dispatch(name, gradient or place)] += not (run and run == asked)
            asked = alone
    if inside:
        raise ValueError(f"MindSpore's log never ends {inside}: what came behind it was not counted")
    found = +found
    if not found:
        raise ValueError(
            "MindSpore's log names no operator; expected lines like 'Run PyboostMul start'. Remedy: start the process "
            f"with {' '.join(f'{k}={v}' for k, v in LOGGING.items())}; another MindSpore version may log otherwise"
        )
    unseen = sorted(differentiated - seen)
    if unseen:
        raise ValueError(
            f"MindSpore differentiated {', '.join(unseen)}, but its log shows no such dispatch: it has lines that "
            "parity/harness/audit.py does not understand; the audit would be incomplete"
        )
    return found


def _first(pattern: re.Pattern, line: str) -> str:
    """The operator that a line names, spelled as a primitive; "" if the pattern does not match."""
    match = pattern.search(line)
    if not match:
        return ""
    name = next(group for group in match.groups() if group)
    if match.lastindex == 3:  # a C++ function: batch_mat_mul -> BatchMatMul
        return "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    return name


# --- documentation


@dataclass(frozen=True)
class Entry:
    """A class or function of the installed package. platforms: those that its docstring lists, () without a list;
    references: names that it refers to."""

    name: str
    place: str
    platforms: tuple[str, ...]
    references: tuple[str, ...]


_PLATFORMS = re.compile(r"Supported Platforms:\s*\n\s*(.+)")
_REFERS = re.compile(r"[Rr]efer to :(?:func|class):`~?([\w.]+)`")


class Documentation:
    """The docstrings below mindspore/ops and mindspore/mint, by name. root: the package's folder."""

    def __init__(self, root: Path):
        self.root = root
        self.entries: dict[str, list[Entry]] = defaultdict(list)
        for folder in ("ops", "mint"):
            for path in sorted((root / folder).rglob("*.py")):
                self._read(path)
        if not self.entries:
            raise ValueError(
                f"no documentation below {root}; expected the folders ops and mint of a MindSpore wheel"
            )

    def _read(self, path: Path) -> None:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node) or ""
                match = _PLATFORMS.search(text)
                listed = tuple(re.findall(r"``(\w+)``", match[1])) if match else ()
                place = f"{path.relative_to(self.root).as_posix()}:{node.lineno}"
                self.entries[node.name].append(Entry(node.name, place, listed, tuple(_REFERS.findall(text))))

    def platforms(self, operator: str) -> tuple[tuple[str, ...], list[str]]:
        """(platforms, chain of places that led there); ((), places without an answer) if nobody says.

        A primitive's own class counts first, then what it refers to. Several definitions of one name must agree on
        Ascend, else the strictest one counts.
        """
        seen, chain = set(), []
        wanted = [operator]
        while wanted:
            name = wanted.pop(0).rpartition(".")[2]
            if name in seen:
                continue
            seen.add(name)
            entries = [
                entry
                for entry in self.entries.get(name, [])
                if "mint/" not in entry.place or name != operator
            ]
            chain += [f"{entry.name} ({entry.place})" for entry in entries]
            told = [entry.platforms for entry in entries if entry.platforms]
            if told:
                return min(told, key=lambda platforms: ("Ascend" in platforms, -len(platforms))), chain
            wanted += [reference for entry in entries for reference in entry.references]
        return (), chain


def installed() -> Path:
    """Folder of the installed MindSpore, which is not imported. Raises ValueError if there is none."""
    spec = importlib.util.find_spec("mindspore")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("MindSpore is not installed. Remedy: pip install mindspore==2.10.0")
    return Path(spec.submodule_search_locations[0])


# --- operators that MindSpore documents nowhere


@dataclass(frozen=True)
class Explanation:
    """Why an undocumented operator is none of our concern. forward: operators whose documentation must list Ascend;
    the operator must also appear in one of the Ascend libraries of the wheel. view: it must have run as a view only.
    All of it is looked up in every run."""

    reason: str
    forward: tuple[str, ...] = ()
    view: bool = False


def _gradient_of(*forward: str) -> Explanation:
    return Explanation(f"internal: computes the gradient of {' and '.join(forward)}", forward)


EXPLAINED = {
    "BiasAddGrad": _gradient_of("BiasAdd"),
    "Conv2DBackpropFilter": _gradient_of("Conv2D"),
    "GeLUGrad": _gradient_of("GeLU"),
    "Muls": Explanation("internal: what Mul becomes for a tensor and a Python number", ("Mul",)),
    "LayerNormGrad": _gradient_of("LayerNorm"),
    "RsqrtGrad": _gradient_of("Rsqrt"),
    "SelectView": Explanation("a view, x[i]: only shape and strides are set", view=True),
    "SigmoidGrad": _gradient_of("Sigmoid"),
    "SoftmaxBackward": _gradient_of("Softmax"),
    "SplitWithSize": Explanation("internal: what Split becomes for parts of unequal size", ("Split",)),
    "StridedSliceGrad": _gradient_of("StridedSlice"),
    "ToDtype": Explanation("internal: what Tensor.astype becomes, a Cast", ("Cast",)),
}
# Operators that the Ascend formulations dispatch on the device alone: no CPU run can record them.
ON_DEVICE_ONLY = {
    Dispatch("FlashAttentionScore", "ms_latte/models/attention.py, on Ascend alone"): 1,
    Dispatch("FlashAttentionScoreGrad", "gradient of FlashAttentionScore"): 1,
}
LIBRARIES = ("lib/plugin/libmindspore_ops_ascend.so", "lib/plugin/ascend/libmindspore_ascend_res_manager.so")


def library_evidence(root: Path, names: Iterable[str]) -> dict[str, str]:
    """operator -> library of the wheel's Ascend part that has a kernel or a graph adapter of that name.

    A kernel is a class <name>Ascend, an adapter a constant cz<name>, both as the compiler spells their names: with
    the length in front, so that one name cannot be part of another.
    """
    wanted = {
        name: re.compile("|".join(f"{len(word)}{word}" for word in (f"{name}Ascend", f"cz{name}")).encode())
        for name in names
    }
    found: dict[str, str] = {}
    for library in LIBRARIES:
        path = root / library
        if not path.is_file():
            continue
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for name, pattern in wanted.items():
                if name not in found and pattern.search(content):
                    found[name] = library.rpartition("/")[2]
    return found


# --- verdict


@dataclass
class Row:
    """One operator: verdict is "documented", "explained", "NOT ON ASCEND" or "UNRESOLVED"; why is its evidence."""

    operator: str
    count: int
    places: list[str]
    platforms: tuple[str, ...]
    verdict: str
    why: str

    @property
    def good(self) -> bool:
        """Whether the operator may run on Ascend as far as MindSpore says."""
        return self.verdict in ("documented", "explained")


def judge(found: Counter, docs: Documentation, explained: dict[str, Explanation] = EXPLAINED) -> list[Row]:
    """One row for every operator, the ones that fail first."""
    names = {dispatch.operator for dispatch in found}
    evidence = library_evidence(docs.root, names & set(explained))
    rows = []
    for name in sorted(names):
        uses: Counter = Counter()
        for dispatch, count in found.items():
            if dispatch.operator == name:
                uses[dispatch.place] += count
        places = sorted(uses, key=lambda place: (place.startswith("gradient"), place))
        views = all(dispatch.view for dispatch in found if dispatch.operator == name)
        row = Row(name, sum(uses.values()), places, *_verdict(name, docs, explained, evidence, views))
        rows.append(row)
    return sorted(rows, key=lambda row: (row.good, row.operator))


def _verdict(name, docs, explained, evidence, views):
    platforms, chain = docs.platforms(name)
    if "Ascend" in platforms:
        return platforms, "documented", " -> ".join(chain)
    if platforms:
        return platforms, "NOT ON ASCEND", f"documented for {', '.join(platforms)} only: {' -> '.join(chain)}"
    where = f"no platform line at {', '.join(chain)}" if chain else "no class or function of this name"
    entry = explained.get(name)
    if entry is None:
        return (), "UNRESOLVED", f"{where}, and no explanation"
    if entry.view:
        if views:
            return (), "explained", f"{entry.reason}, no kernel was asked"
        return (), "UNRESOLVED", f"{entry.reason}, but a kernel was asked"
    told = {forward: docs.platforms(forward)[0] for forward in entry.forward}
    silent = [forward for forward, listed in told.items() if "Ascend" not in listed]
    if silent:
        return (), "UNRESOLVED", f"{entry.reason}, but {', '.join(silent)} is not documented for Ascend"
    if name not in evidence:
        return (), "UNRESOLVED", f"{entry.reason}, but no Ascend library of this wheel has it"
    return (), "explained", f"{entry.reason}, documented for Ascend; {evidence[name]} has it"


def table(rows: list[Row], verbose: bool = False) -> list[str]:
    """Fixed-width lines; verbose adds every place and the evidence of every row."""
    width = max((len(row.operator) for row in rows), default=8)
    lines = [f"{'operator':<{width}} {'count':>6}  {'platforms':<16} {'verdict':<14} used at"]
    for row in rows:
        shown = row.places if verbose else row.places[:2]
        more = f" and {len(row.places) - len(shown)} more" if len(row.places) > len(shown) else ""
        platforms = " ".join(row.platforms) or "-"
        lines.append(
            f"{row.operator:<{width}} {row.count:>6}  {platforms:<16} {row.verdict:<14} {', '.join(shown)}{more}"
        )
        if verbose or not row.good or row.verdict == "explained":
            lines.append(f"{'':<{width}}         {row.why}")
    return lines
