# SPDX-License-Identifier: Apache-2.0
"""`python -m parity mutants`: inject every catalogued port bug and show which gate kills it."""

import argparse
import time
from dataclasses import dataclass, field

from parity.harness.behaviour import run_gradients
from parity.harness.case import collect
from parity.harness.gates import CaseResult
from parity.harness.runner import Session, run_case
from parity.mutants import MUTANTS, Mutant

DTYPES = ("fp32", "fp16", "bf16")


@dataclass
class Cell:
    """One mutant in one dtype: which gates killed it, the largest margin over a limit, where."""

    gates: dict[str, str] = field(default_factory=dict)
    margin: float = 0.0
    seconds: float = 0.0


def run_mutant(session: Session, mutant: Mutant, dtype: str, healthy: bool = False) -> Cell:
    """Judge the cases of a mutant in a dtype (fp32: G1 too). healthy: the same cases without the bug."""
    cases = {case.id: case for case in collect()}
    absent = [name for name in mutant.cases if name not in cases]
    if absent:
        raise ValueError(f"mutant {mutant.name} names cases that do not exist: {', '.join(absent)}")
    cell, began = Cell(), time.perf_counter()
    for name in mutant.cases:
        for run in ("fp64", "fp32") if dtype == "fp32" else (dtype,):
            form = mutant.form
            results = [run_case(session, cases[name], run, form, "" if healthy else mutant.name)]
            if cases[name].net and "G5" in mutant.expected[dtype]:
                results.append(run_gradients(session, cases[name], run, form, "" if healthy else mutant.name))
            for result in results:
                _note(cell, name, result)
    cell.seconds = time.perf_counter() - began
    return cell


def _note(cell: Cell, name: str, result: CaseResult) -> None:
    """Enter what one run says against the port."""
    for check in result.broken:
        gate = "crash" if check.name == "runs" else "G0"  # a crash satisfies no declaration
        cell.gates.setdefault(gate, f"{name}: {check.name}")
    for tap in result.failures:
        cell.gates.setdefault(result.gate, f"{name}: {tap.tap.rpartition('#')[0] or 'output'}")
        if tap.allowed:
            cell.margin = max(cell.margin, tap.required / tap.allowed)


def verdict(mutant: Mutant, dtype: str, cell: Cell) -> tuple[str, bool]:
    """(word, as declared): killed by exactly the declared gates or more; "-" cells must stay silent."""
    expected = mutant.expected[dtype]
    if expected == "-":
        return (
            ("not detectable here", True)
            if not cell.gates
            else ("killed, though declared not detectable", False)
        )
    missing = [gate for gate in expected.split() if gate not in cell.gates]
    if not cell.gates:
        return "SURVIVED", False
    if missing:
        return f"missed by {' '.join(missing)}, killed by {' '.join(sorted(cell.gates))}", False
    return f"killed by {' '.join(sorted(cell.gates))}", True


def main(arguments: list[str] | None = None) -> int:
    """Print the table; exit status 1 if a mutant survives its declared gate or the correct port raises an alarm."""
    parser = argparse.ArgumentParser(
        prog="python -m parity mutants",
        description="Inject every catalogued port bug into ms_latte and show which gate kills it, in each dtype.",
        epilog="Gates: G0 contract, G1 float64, G2 ratio rule, G5 gradients. "
        "Example: python -m parity mutants --dtype fp32 gelu_erf",
    )
    parser.add_argument("names", nargs="*", metavar="MUTANT", help=f"default: all of {', '.join(MUTANTS)}")
    parser.add_argument("--dtype", default=",".join(DTYPES), help="comma list (default: %(default)s)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in MUTANTS]
    wrong = [name for name in options.dtype.split(",") if name not in DTYPES]
    if unknown or wrong:
        parser.error(
            f"unknown: {', '.join(unknown + wrong)}; mutants: {', '.join(MUTANTS)}; dtypes: {', '.join(DTYPES)}"
        )
    session, good, total, detectable = Session(), True, 0, 0
    print(f"{'mutant':<24} {'dtype':<5} {'verdict':<36} {'margin':>8} {'s':>5}  first seen by")
    try:
        for dtype in options.dtype.split(","):
            for name in options.names or MUTANTS:
                mutant = MUTANTS[name]
                clean = run_mutant(session, mutant, dtype, healthy=True)
                if clean.gates:
                    print(f"{name:<24} {dtype:<5} FALSE ALARM on the correct port: {clean.gates}", flush=True)
                    good = False
                cell = run_mutant(session, mutant, dtype)
                word, declared = verdict(mutant, dtype, cell)
                good &= declared
                total += declared and mutant.expected[dtype] != "-" and not clean.gates
                detectable += mutant.expected[dtype] != "-"
                seen = (
                    "; ".join(f"{gate} {where}" for gate, where in sorted(cell.gates.items())) or mutant.note
                )
                margin = f"{cell.margin:.3g}" if cell.gates else "-"
                print(
                    f"{name:<24} {dtype:<5} {word:<36} {margin:>8} {cell.seconds:>5.1f}  {seen}", flush=True
                )
    finally:
        session.pool.stop()
    print(
        f"\nmutation score {total}/{detectable} of the detectable cells"
        + ("" if good else ": NOT AS DECLARED")
    )
    return 0 if good else 1
