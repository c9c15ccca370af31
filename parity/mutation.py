# SPDX-License-Identifier: Apache-2.0
"""`python -m parity mutants`: inject every catalogued port bug and show which gate kills it.

The score is the share of cells (mutant, dtype) that die by the gates declared for them, by a margin of at least THIN:
an error hardly above its limit would have been caught by luck. The correct port must raise no alarm on the same cases.
"""

import argparse
import json
import math
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import ConversionError
from converters.output import write_whole
from parity.harness import score
from parity.harness.ahead import LEAST, Ahead, companions
from parity.harness.backends import WorkerError
from parity.harness.behaviour import run_gradients
from parity.harness.case import Case, collect
from parity.harness.gates import CaseResult
from parity.harness.runner import Session, prepare, run_case, workers_of
from parity.harness.suite import TESTS, Run, runs
from parity.harness.trace import fetch
from parity.mutants import DTYPES, MUTANTS, Mutant
from parity.options import check_folder, wanted_dtypes

# An error that is less than twice its limit kills by luck: the error of a correct port scatters by a factor of 1.6
# between layers (the worst ratio measured on one is 1.64), so another seed could bring it below the limit.
THIN = 2.0

# One bug of each sort that matters: every gate, every model file and every way of injecting, single layers only but
# for one net. Most of the time is the start of the workers and the gradients of that net.
QUICK = (
    "gelu_erf_inside",
    "layer_norm_eps_inside",
    "pad_same",
    "chunk_order",
    "spread_tiled",
    "softmax_half",
    "mask_sign",
    "cross_attention_missing",
    "text_projected_once",
    "adaln_scale_shift",
    "timestep_integer",
    "rows_before_columns",
    "rounding_missing",
    "mlp_erf",
    "weight_transposed",
    "stopped_gradient",
    "variance_swapped",
    "vae_scaling_missing",
    "t5_attention_scaled",
    "pad_same_divisible",
    "growth_not_restarted",
)


WIDTH = 2 + max(map(len, MUTANTS))


@dataclass
class Kill:
    """What one gate saw first, and its largest error over the limit (infinite for an exact check)."""

    where: str
    margin: float = math.inf


@dataclass
class Cell:
    """One mutant in one dtype: gate -> Kill. A crash is kept as gate "crash", which nothing declares."""

    gates: dict[str, Kill] = field(default_factory=dict)
    seconds: float = 0.0
    different: str = ""  # an equivalent mutant: the first tap whose bits differ from the port's
    named: str = ""  # with --name: "right", "others" or "none", and what the harness said


@dataclass
class Bench:
    """A session and what the correct port gave in it: bits, (case, run, form) -> results of its taps."""

    session: Session = field(default_factory=Session)
    bits: dict[tuple, Any] = field(default_factory=dict)
    cases: dict[str, Case] = field(default_factory=lambda: {case.id: case for case in collect()})

    def close(self) -> None:
        """End all workers at once, from another thread."""
        self.session.close()

    def stop(self) -> None:
        """End all workers."""
        self.session.stop()

    def runs(self, mutant: Mutant, dtype: str) -> list[tuple[Case, str]]:
        """(case, run) of a mutant; run "fp64" is gate G1 and belongs to the row fp32. Raises ValueError for a case
        that does not exist."""
        absent = [name for name in mutant.cases if name not in self.cases]
        if absent:
            raise ValueError(f"mutant {mutant.name} names cases that do not exist: {', '.join(absent)}")
        runs = [(self.cases[name], run) for name in mutant.cases for run in runs_of(dtype)]
        return [(case, run) for case, run in runs if not case.dtypes or run in case.dtypes]

    def outputs(self, case: Case, run: str, form: str, name: str) -> dict[str, list[np.ndarray]]:
        """tap -> results of the port with a mutant, or of the correct port for ""."""
        key = (case.id, run, form)
        if name or key not in self.bits:
            workers = workers_of(self.session, run)
            result = CaseResult(case.id, "", run, form)
            inputs = prepare(self.session, case, run, form, name, workers, result)
            records = workers[2]("trace", inputs=inputs, method=case.method, keep_inputs=False, stages=False)
            found = {tap: [np.array(fetch(x)) for x in record.outputs] for tap, record in records.items()}
            if name:
                return found
            self.bits[key] = found
        return self.bits[key]


def runs_of(dtype: str) -> tuple[str, ...]:
    """Runs behind a row of the table."""
    return ("fp64", "fp32") if dtype == "fp32" else (dtype,)


def judge(
    session: Session, case: Case, run: str, form: str, name: str, gradients: bool, diagnose: bool = False
) -> list[CaseResult]:
    """The forward gates and, if asked and the case is a net, the gradients."""
    results = [run_case(session, case, run, form, name, diagnose=diagnose)]
    if gradients and case.net:
        results.append(run_gradients(session, case, run, form, name))
    return results


def note(cell: Cell, results: list[CaseResult]) -> None:
    """Enter what runs say against the port."""
    for result in results:
        for check in result.broken:
            # A crash satisfies no declaration. What G5 alone asks is not a failure of the contract of a forward.
            gate = {"runs": "crash", "trainable": "G5", "decisions": "G5"}.get(check.name, "G0")
            cell.gates.setdefault(gate, Kill(f"{result.case}: {check.name} ({check.detail[:90]})"))
        for tap in result.failures:
            margin = tap.required / tap.allowed if tap.allowed else math.inf
            kill = cell.gates.setdefault(
                result.gate, Kill(f"{result.case}: {tap.tap.rpartition('#')[0] or 'output'}", margin)
            )
            kill.margin = max(kill.margin, margin)


def run_mutant(bench: Bench, mutant: Mutant, dtype: str, name: bool = False) -> Cell:
    """Judge the cases of a mutant in a dtype (fp32: G1 too). name: let the first failure in the dtype itself be
    diagnosed (G4)."""
    cell, began = Cell(), time.perf_counter()
    gradients = "G5" in mutant.expected[dtype]
    for case, run in bench.runs(mutant, dtype):
        diagnose = name and not cell.named and run == dtype
        results = judge(bench.session, case, run, mutant.form, mutant.name, gradients, diagnose)
        note(cell, results)
        cell.named = cell.named or named(mutant.name, results[0].diagnosis)
        if mutant.equivalent and not cell.different:
            cell.different = _difference(bench, mutant, case, run)
    cell.seconds = time.perf_counter() - began
    return cell


def named(name: str, diagnosis: list[str]) -> str:
    """Whether a diagnosis names this bug ("right"), only others ("others") or none, and its lines; "" without one."""
    if not diagnosis:
        return ""
    looks = [line for line in diagnosis if line.startswith("looks like ")]
    exact = any(
        f"({name})" in line or name in re.split(r"[ ,]+", line.partition("; here")[2]) for line in looks
    )
    return ("right" if exact else "others" if looks else "none") + ": " + " | ".join(diagnosis)


def _difference(bench: Bench, mutant: Mutant, case: Case, run: str) -> str:
    """The first tap whose results differ bitwise from those of the correct port, or ""."""
    try:
        right = bench.outputs(case, run, mutant.form, "")
        wrong = bench.outputs(case, run, mutant.form, mutant.name)
    except WorkerError as error:
        return f"{case.id}: {error}"
    for tap, values in right.items():
        if not all(np.array_equal(a, b) for a, b in zip(values, wrong.get(tap, []), strict=False)) or len(
            values
        ) != len(wrong.get(tap, [])):
            return f"{case.id} {run}: {tap.rpartition('#')[0] or 'output'}"
    return ""


def verdict(mutant: Mutant, dtype: str, cell: Cell) -> tuple[str, bool]:
    """(word, as declared): killed by all declared gates with a margin; "-" cells and equivalents stay silent."""
    declared = mutant.expected[dtype]
    found = " ".join(sorted(cell.gates))
    if mutant.equivalent:
        if cell.gates:
            return f"killed by {found}, though declared equivalent", False
        return ("equivalent, silent" if cell.different else "equivalent, bitwise"), True
    if declared == "-":
        return ("not detectable here", True) if not found else (f"killed by {found}, declared: not", False)
    if not found:
        return "SURVIVED", False
    missing = [gate for gate in declared.split() if gate not in cell.gates]
    if missing:
        return f"missed by {' '.join(missing)}, killed by {found}", False
    thin = [gate for gate in declared.split() if cell.gates[gate].margin < THIN]
    if thin:
        return f"thin in {' '.join(thin)}, killed by {found}", False
    return f"killed by {found}", True


def margin(mutant: Mutant, dtype: str, cell: Cell) -> str:
    """The smallest margin among the declared gates, as text."""
    numbers = [cell.gates[gate].margin for gate in mutant.expected[dtype].split() if gate in cell.gates]
    if not numbers:
        return "-"
    return "exact" if math.isinf(min(numbers)) else f"{min(numbers):.3g}"


def main(arguments: list[str] | None = None) -> int:
    """Print the table; exit status 1 if a mutant is not killed as declared or the correct port raises an alarm."""
    options = _options(arguments)
    chosen, dtypes = _chosen(options), options.dtypes
    session = Session(diagnosis_left=math.inf)
    bench, began, rows, alarms, checked = Bench(session), time.perf_counter(), [], {}, 0
    state = score.state()
    print(f"{'mutant':<{WIDTH}} {'dtype':<5} {'verdict':<32} {'margin':>8} {'s':>5}  first seen by")
    wanted = {dtype: _clean(bench, chosen, dtype, options) for dtype in dtypes}
    jobs = {}
    for d in dtypes:
        jobs |= {("mutant", d, m.name): partial(_row, mutant=m, dtype=d, name=options.name) for m in chosen}
        jobs |= {("port", d, key): partial(_alarms, run=run, seed=key[-1]) for key, run in wanted[d].items()}
    beside = companions(session, options.jobs) if len(jobs) >= LEAST else []
    ahead = Ahead(jobs, [Bench(each) for each in beside])
    try:
        for dtype in dtypes:
            for run in runs_of(dtype):
                _progress(f"{dtype}: starting workers")
                workers_of(bench.session, run)
            for place, mutant in enumerate(chosen, 1):
                _progress(f"{dtype} {place}/{len(chosen)} {mutant.name}")
                rows.append(ahead.take(("mutant", dtype, mutant.name), bench))
                print(_line(rows[-1]), flush=True)
            for place, key in enumerate(wanted[dtype], 1):
                test, name, seed = key
                _progress(f"{dtype} correct port {place}/{len(wanted[dtype])} {test} {name} seed {seed}")
                found = ahead.take(("port", dtype, key), bench)
                for where, what in found.items():
                    print(f"FALSE ALARM {where} {what}", flush=True)
                checked, alarms = checked + 1, alarms | found
    finally:
        try:
            ahead.stop()
        finally:
            bench.stop()
        _progress("")
    good = all(row["as_declared"] for row in rows) and not alarms
    summary = _summary(rows, checked, alarms, options.seeds, time.perf_counter() - began)
    print("\n" + "\n".join(summary))
    if options.store:
        score.STORED.unlink(missing_ok=True)  # a failure is no score
    if options.store and score.state() != state:
        print("the score is not kept: bugs, cases, judge or models changed during the run", file=sys.stderr)
        return 1
    if options.store and good:
        real = [row for row in rows if not row["equivalent"]]
        detectable = sum(row["declared"] != "-" for row in real)
        counts = dict(killed=detectable, detectable=detectable, bugs=len({row["mutant"] for row in real}))
        _write(score.STORED, dict(state=state, **counts, runs=checked, seeds=options.seeds))
    if options.report:
        _write(options.report, dict(thin=THIN, seeds=options.seeds, passed=good, rows=rows, alarms=alarms))
    return 0 if good else 1


def _options(arguments):
    files = list(dict.fromkeys(mutant.file for mutant in MUTANTS.values()))
    parser = argparse.ArgumentParser(
        prog="python -m parity mutants",
        description=f"Inject each of {len(MUTANTS)} catalogued port bugs into ms_latte and show which gate kills it, "
        "in each dtype. Exit status 1 if one survives, dies by another gate than the declared one, dies by less than "
        f"{THIN:g} times the limit, or if the correct port raises an alarm.",
        epilog="Gates: G0 contract, G1 float64 (in the row fp32), G2 ratio rule, G3 the same on probes, G5 gradients. "
        "Example: python -m parity mutants gelu_erf_inside spread_tiled --dtype fp32,bf16",
    )
    parser.add_argument("names", nargs="*", metavar="MUTANT", help="default: all; --list shows them")
    parser.add_argument("--dtype", default=",".join(DTYPES), help="comma list (default: %(default)s)")
    parser.add_argument("--file", choices=files, help="entries of one file of parity/mutants only")
    parser.add_argument(
        "--quick", action="store_true", help=f"{len(QUICK)} representative mutants, about a minute"
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help=SEEDS_HELP)
    parser.add_argument(
        "--name",
        action="store_true",
        help="let the harness name each bug from its numbers (G4) and count how often it is right; many minutes",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=2,
        metavar="N",
        help="at the same time, each with a core (default: %(default)s)",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write all results as JSON")
    parser.add_argument(
        "--store", action="store_true", help="keep the score of a full run for the header of pytest parity/"
    )
    parser.add_argument("--list", action="store_true", help="print the chosen mutants and run nothing")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in MUTANTS]
    if unknown:
        import difflib

        near = difflib.get_close_matches(unknown[0], MUTANTS, 3, cutoff=0.4)
        parser.error(
            f"got unknown mutant {unknown[0]!r}, expected a name of --list; near: {', '.join(near) or 'none'}"
        )
    try:
        options.dtypes = wanted_dtypes(options.dtype, DTYPES)
    except ConversionError as error:
        parser.error(str(error))
    partly = options.names or options.file or options.quick or set(options.dtypes) != set(DTYPES)
    if options.store and partly:
        parser.error("--store keeps the score of all mutants in all dtypes; got a part of them")
    if options.seeds < 1:
        parser.error(f"got --seeds {options.seeds}, expected 1 or more")
    if options.jobs < 1:
        parser.error(f"got --jobs {options.jobs}, expected 1 or more")
    if options.report and options.report.is_dir():
        parser.error(f"--report {options.report} is a folder, expected a file")
    if options.report and not options.report.resolve().parent.is_dir():
        parser.error(
            f"folder {options.report.parent} does not exist; remedy: mkdir -p {options.report.parent}"
        )
    try:
        if options.report:
            check_folder(f"--report {options.report}", options.report.absolute().parent)
    except ConversionError as error:
        parser.error(str(error))
    if options.list:
        for mutant in _chosen(options):
            gates = " ".join(f"{dtype}:{'+'.join(g.split())}" for dtype, g in mutant.expected.items())
            print(f"{mutant.name:<{WIDTH}} {mutant.file:<11} {gates:<40} {mutant.description}")
        parser.exit(0)
    return options


SEEDS_HELP = (
    "judge the correct port with N seeds of weights and inputs in the runs of the chosen mutants; with all mutants "
    "chosen, in all runs of `pytest parity/` (default: %(default)s)"
)


def _chosen(options):
    names = dict.fromkeys(options.names) or (QUICK if options.quick else MUTANTS)
    chosen = [MUTANTS[name] for name in names if options.file in (None, MUTANTS[name].file)]
    if not chosen:
        print(f"error: no mutant of those chosen stands in the file {options.file}", file=sys.stderr)
        raise SystemExit(2)
    return chosen


def _row(bench, mutant, dtype, name) -> dict[str, Any]:
    """One line of the table, as data."""
    cell = run_mutant(bench, mutant, dtype, name)
    word, good = verdict(mutant, dtype, cell)
    return dict(
        mutant=mutant.name,
        file=mutant.file,
        description=mutant.description,
        dtype=dtype,
        declared=mutant.expected[dtype],
        verdict=word,
        as_declared=good,
        margin=margin(mutant, dtype, cell),
        seconds=round(cell.seconds, 2),
        gates={gate: asdict(kill) for gate, kill in sorted(cell.gates.items())},
        equivalent=mutant.equivalent,
        different=cell.different,
        named=cell.named,
        note=mutant.note,
    )


def _line(row) -> str:
    seen = "; ".join(f"{gate} {kill['where']}" for gate, kill in row["gates"].items())
    seen = seen or row["equivalent"] or row["note"]
    seen += f"; named {row['named']}" if row["named"] else ""
    mark = " " if row["as_declared"] else ">"
    head = f"{row['mutant']:<{WIDTH - 1}}{mark} {row['dtype']:<5} {row['verdict']:<32}"
    return f"{head} {row['margin']:>8} {row['seconds']:>5.1f}  {seen}"


def _clean(bench, chosen, dtype, options) -> dict[tuple, Run]:
    """Runs of the correct port in a dtype: (test, id, seed) -> run; seed 0 gives what the mutants run on."""
    wanted: dict[tuple, Run] = {}
    for mutant in chosen:
        for case, run in bench.runs(mutant, dtype):
            tests = ["semantics" if run == "fp64" else "numerics"]
            tests += ["gradients"] if case.net and "G5" in mutant.expected[dtype] else []
            for made in (Run(test, case, run, mutant.form) for test in tests):
                wanted[made.test, made.id] = made
    if options.seeds > 1 and len(chosen) == len(MUTANTS):
        for test in TESTS:
            for made in runs(test, bench.cases.values(), DTYPES, bench.session.device):
                if made.dtype in runs_of(dtype) and not made.repeated:
                    wanted.setdefault((made.test, made.id), made)
    return {(*key, seed): made.drawn(seed) for seed in range(options.seeds) for key, made in wanted.items()}


def _alarms(bench, run, seed) -> dict[str, str]:
    """Where the correct port raises an alarm in a run, and which."""
    cell = Cell()
    note(cell, [run(bench.session)])
    where = f"{run.test} {run.id} seed {seed}"
    return {
        f"{where}: {gate}": f"{kill.where}, margin {kill.margin:.3g}" for gate, kill in cell.gates.items()
    }


def _summary(rows, checked, alarms, seeds, seconds) -> list[str]:
    real = [row for row in rows if not row["equivalent"]]
    detectable = [row for row in real if row["declared"] != "-"]
    killed = sum(row["as_declared"] for row in detectable)
    lines = []
    silent = {row["mutant"]: row for row in real if row["declared"] == "-"}
    if silent:
        lines.append("not detectable, with the reason:")
        for name, row in silent.items():
            where = ", ".join(r["dtype"] for r in real if r["mutant"] == name and r["declared"] == "-")
            lines.append(f"  {name} in {where}: {row['note']}")
    proofs = {row["mutant"]: row for row in rows if row["equivalent"]}
    if proofs:
        lines.append("equivalent mutants, no bugs:")
        for name, row in proofs.items():
            cells = [r for r in rows if r["mutant"] == name]
            proof = (
                "bitwise equal in every run"
                if not any(r["different"] for r in cells)
                else "silent in every gate"
            )
            lines.append(f"  {name}: {row['equivalent']} ({proof})")
    told = [row["named"].partition(":")[0] for row in real if row["named"]]
    if told:
        lines.append(
            f"diagnosis (G4) of {len(told)} failing cells: {told.count('right')} named right, {told.count('others')} "
            f"named as other bugs only, {told.count('none')} not named"
        )
    bad = [f"  {row['mutant']} {row['dtype']}: {row['verdict']}" for row in rows if not row["as_declared"]]
    lines += ["NOT AS DECLARED:", *bad] if bad else []
    lines += ["FALSE ALARMS on the correct port:"] if alarms else []
    lines += [f"  {where}: {what}" for where, what in alarms.items()]
    lines.append(
        f"mutation score {killed}/{len(detectable)} of the detectable cells ({len({r['mutant'] for r in real})} "
        f"mutants) · {len(real) - len(detectable)} cells not detectable · {len(proofs)} equivalent · correct port: "
        f"{len(alarms)} alarms in {checked} runs, {seeds} seed{'s' * (seeds > 1)} · {seconds:.0f} s"
    )
    return lines


def _progress(text: str) -> None:
    """One line on stderr, overwritten on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def _write(path: Path, content: dict) -> None:
    """JSON; an interrupted run leaves the old file."""
    write_whole(path, json.dumps(_finite(content), indent=1, ensure_ascii=False) + "\n")


def _finite(value: Any) -> Any:
    """JSON has no infinity: an exact kill has margin null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and math.isinf(value) else value
