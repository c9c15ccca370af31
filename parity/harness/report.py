# SPDX-License-Identifier: Apache-2.0
"""Results as tables: fixed width for the terminal (copy and paste safe), CSV, JSON and Markdown on disk."""

import csv
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from parity.harness.gates import LIMITS, SEMANTIC, CaseResult, TapResult

COLUMNS = (
    f"{'tap':<44} {'shape':<16} {'max abs':>8}  {'port':>8} {'ref':>8} {'ratio':>6}  "
    f"{'port':>8} {'ref':>8} {'ratio':>6}  {'cosine':>8}  verdict"
)
CSV_FIELDS = ["case", "gate", "dtype", "form", "tap", "level", "shape", "max_abs"]
CSV_FIELDS += ["local_port", "local_ref", "local_ratio", "end_port", "end_ref", "end_ratio"]
CSV_FIELDS += ["cosine", "flip", "bias", "verdict", "required", "allowed", "reason"]


def table(result: CaseResult, verbose: bool = False) -> list[str]:
    """Per-layer table of one whole net. Rows of layers inside a block are shown if they fail or if verbose."""
    rows = list(result.taps) if verbose else _visible(result.taps)
    lines, hidden = [], []
    for tap in rows:
        if not verbose and tap.verdict == "ok" and _member(tap) and _settled(hidden, tap, rows):
            hidden.append(tap)
            continue
        lines += _collapsed(hidden, result)
        hidden = []
        lines.append(row(tap, result))
    return lines + _collapsed(hidden, result)


def row(tap: TapResult, result: CaseResult, label: str = "", end: TapResult | None = None) -> str:
    """One line of a table."""
    m, e = tap.local, (end or tap).prop
    name = label or _label(tap)
    sign = ">" if tap.failed else " "
    return (
        f"{sign}{_clip(name, 43):<43} {_shape(tap.shape):<16} {_sci(m.max_abs):>8}  "
        f"{_sci(m.e_c):>8} {_sci(m.e_r):>8} {_num(_rho(m, result)):>6}  "
        f"{_sci(e.e_c):>8} {_sci(e.e_r):>8} {_num(_rho(e, result)):>6}  {m.cosine:>8.6f}  {tap.verdict}"
    ).rstrip()


def failure(result: CaseResult) -> list[str]:
    """What to show for one failed case, at most 15 lines."""
    where = f"{result.case} ({result.gate} {result.dtype}, formulation {result.form})"
    lines = [f"{where} disagrees"]
    for check in result.broken[:3]:
        lines.append(_clip(f"  G0 {check.name}: {check.detail or 'failed'}", 220))
    if not result.taps and not result.broken:
        lines.append("  nothing was compared: absent is failed")
    if result.failures:
        tap = result.failures[0]
        lines.append(f"  first culprit: {_label(tap)} {_shape(tap.shape)} [{tap.verdict}]")
        lines.append(_clip(f"  {tap.reason}", 220))
        if tap.tap in result.sources:
            theirs, ours = result.sources[tap.tap]
            lines.append(f"  torch : {theirs}")
            lines.append(f"  port  : {ours}")
        lines += [f"  worst : {line}" for line in result.worst[:3]]
        lines.append(f"  required {_sci(tap.required)}  allowed {_sci(tap.allowed)}")
        others = [_label(other) for other in result.failures[1:4]]
        inherited = sum(other.verdict == "inherited" for other in result.taps)
        lines.append(
            f"  further culprits: {', '.join(others) or 'none'}; {inherited} taps inherited the error"
        )
    if result.reproduce:
        lines.append(f"  reproduce: {result.reproduce}")
    return lines[:15]


def summary(results: Iterable[CaseResult], verbose: bool = False) -> list[str]:
    """All tables: parts one line a case, whole nets one table each, per gate, dtype and formulation."""
    results = list(results)
    lines: list[str] = []
    groups: dict[tuple, list[CaseResult]] = {}
    for result in results:
        groups.setdefault((result.gate, result.dtype, result.form), []).append(result)
    for (gate, dtype, form), members in groups.items():
        lines += [
            "",
            _heading(gate, dtype, form, members),
            f"{' ' * 70}{'local error':<27}{'propagated error'}",
            COLUMNS,
        ]
        judged = [result for result in members if result.taps]
        parts = [result for result in judged if not result.net]
        shown = parts if verbose else _notable(parts)
        lines += [row(_worst_tap(result), result, label=result.case) for result in shown]
        if len(shown) < len(parts):
            worst = max(_rho(_worst_tap(result).local, result) for result in parts if result not in shown)
            lines.append(
                f"   ... {len(parts) - len(shown)} parts ok, ratio <= {_num(worst)} (-v shows them) ..."
            )
        for result in judged:
            if not result.net:
                continue
            shown_whole = result.gate != "G5" and result.case.endswith(("-thin", "-full", "-file"))
            if result.failures or verbose or shown_whole:
                lines.append(f" {result.case}, {len(result.taps)} taps:")
                lines += table(result, verbose)
            else:  # a small net in one line: its worst layer, and its output
                what = "gradients" if result.gate == "G5" else "taps"
                worst = _worst_tap(result)
                end = worst if result.gate == "G5" else result.taps[-1]
                lines.append(row(worst, result, label=f"{result.case} ({len(result.taps)} {what})", end=end))
        for result in members:
            for check in result.broken:
                lines.append(_clip(f">{result.case}: G0 {check.name} FAIL: {check.detail}", 200))
    lines += ["", verdict_line(results)]
    return lines


def verdict_line(results: list[CaseResult]) -> str:
    """The one line to quote."""
    taps = [tap for result in results for tap in result.taps]
    checks = [check for result in results for check in result.contract]
    count = {word: sum(tap.verdict == word for tap in taps) for word in ("ok", "warn", "inherited")}
    failed = sum(tap.failed for tap in taps) + sum(not check.passed for check in checks)
    seconds = sum(result.seconds for result in results)
    return (
        f"{failed} FAIL · {count['inherited']} inherited · {count['warn']} warn · {count['ok']} ok of {len(taps)} "
        f"taps in {len(results)} runs · {len(checks)} contract checks · {seconds:.0f} s"
    )


def contract_line(results: list[CaseResult]) -> str:
    """G0 in one line."""
    counts: dict[str, list[int]] = {}
    for result in results:
        for check in result.contract:
            counts.setdefault(check.name, [0, 0])[0 if check.passed else 1] += 1
    parts = [f"{name} {good}/{good + bad}" for name, (good, bad) in counts.items()]
    return "G0 contract   " + " · ".join(parts)


def write(results: list[CaseResult], header: list[str], folder: Path) -> list[Path]:
    """Write parity.csv, parity.json and parity.md; the Markdown goes to the summary page of GitHub Actions too."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "parity.csv", folder / "parity.json", folder / "parity.md"]
    with _replacing(paths[0]) as file:
        writer = csv.DictWriter(file, CSV_FIELDS)
        writer.writeheader()
        for result in results:
            writer.writerows(_csv_rows(result))
    with _replacing(paths[1]) as file:
        limits = {"limits": {name: asdict(value) for name, value in LIMITS.items()}, "semantic": SEMANTIC}
        json.dump(
            {"header": header, **limits, "results": [asdict(result) for result in results]}, file, default=str
        )
    text = markdown(results, header)
    with _replacing(paths[2]) as file:
        file.write(text)
    if os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(os.environ["GITHUB_STEP_SUMMARY"], "a") as file:
            file.write(text)
    return paths


def markdown(results: list[CaseResult], header: list[str]) -> str:
    """A page for an issue: header, one row a run, failures in full."""
    lines = ["# Parity", "", *(f"    {line}" for line in header), "", "    " + verdict_line(results), ""]
    lines += ["| case | gate | dtype | formulation | taps | worst tap | local | ratio | output | verdict |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    shown = [result for result in results if result.net or not result.passed]
    for result in shown:
        if not result.taps:
            cells = ["-", "-", "-", "-"]
        else:
            worst = _worst_tap(result)
            end = result.taps[-1].prop
            cells = [_label(worst), _sci(worst.local.e_c), _num(_rho(worst.local, result)), _sci(end.e_c)]
        word = "pass" if result.passed else "**FAIL**"
        row_ = [result.case, result.gate, result.dtype, result.form, str(len(result.taps)), *cells, word]
        lines.append("| " + " | ".join(row_) + " |")
    lines.append(
        f"\n{len(results) - len(shown)} further runs of single layers passed (parity.csv lists them)."
    )
    for result in results:
        if not result.passed:
            lines += ["", "```", *failure(result), "```"]
    return "\n".join(lines) + "\n"


class _replacing:
    """A text file that appears whole or not at all."""

    def __init__(self, path: Path):
        self.path, self.temporary = path, path.with_name(f".{path.name}.{os.getpid()}")

    def __enter__(self):
        self.file = open(self.temporary, "w", newline="")
        return self.file

    def __exit__(self, kind, *rest):
        self.file.close()
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def _csv_rows(result: CaseResult) -> Iterable[dict]:
    for tap in result.taps:
        m, e = tap.local, tap.prop
        values = [
            result.case,
            result.gate,
            result.dtype,
            result.form,
            tap.tap,
            tap.level,
            _shape(tap.shape),
            m.max_abs,
        ]
        values += [m.e_c, m.e_r, _rho(m, result), e.e_c, e.e_r, _rho(e, result), m.cosine, m.flip, m.bias]
        yield dict(
            zip(CSV_FIELDS, [*values, tap.verdict, tap.required, tap.allowed, tap.reason], strict=True)
        )
    for check in result.broken:
        yield {
            "case": result.case,
            "gate": "G0",
            "dtype": result.dtype,
            "form": result.form,
            "tap": check.name,
            "verdict": "FAIL contract",
            "reason": check.detail,
        }


def _heading(gate: str, dtype: str, form: str, members: list[CaseResult]) -> str:
    passed = sum(result.passed for result in members)
    if gate == "G1":
        what = (
            f"G1 semantics, port and reference in float64 on the CPU, limit {_semantic_limit(form):.0e} "
            "(ratio: share of the limit)"
        )
    elif gate == "G5":
        what = (
            f"G5 gradients {dtype} of inputs and parameters (columns repeat: a gradient has no local error)"
        )
    else:
        limits = LIMITS[dtype]
        what = f"G2 numerics {dtype}, ratio limit {limits.ratio_fail:g}"
    return f"{what}, formulations of {form}: {passed} of {len(members)} cases pass"


def _visible(taps: list[TapResult]) -> list[TapResult]:
    """Stages, whatever is not ok, and the net itself."""
    return [tap for tap in taps if _depth(tap) <= 1 or _member(tap) or tap.verdict not in ("ok", "inherited")]


def _notable(parts: list[CaseResult], count: int = 6) -> list[CaseResult]:
    """Parts that are not plainly ok, and those with the largest ratios."""
    ranked = sorted(parts, key=lambda result: -_rho(_worst_tap(result).local, result))[:count]
    return [result for result in parts if result in ranked or any(tap.verdict != "ok" for tap in result.taps)]


def _worst_tap(result: CaseResult) -> TapResult:
    failed = result.failures
    if failed:
        return failed[0]
    return max(result.taps, key=lambda tap: _rho(tap.local, result))


def _name(tap: TapResult) -> str:
    return tap.tap.rpartition("#")[0]


def _label(tap: TapResult) -> str:
    name, _, index = tap.tap.rpartition("#")
    return (name or "output") + (f" (call {int(index) + 1})" if index != "0" else "")


def _depth(tap: TapResult) -> int:
    return len(_name(tap).split(".")) if _name(tap) else 0


def _member(tap: TapResult) -> bool:
    parts = _name(tap).split(".")
    return len(parts) == 2 and parts[1].isdigit()


def _settled(hidden: list[TapResult], tap: TapResult, rows: list[TapResult]) -> bool:
    """Rows of a run of equal blocks are hidden but for the first and last of each kind."""
    kind = _name(tap).split(".")[0]
    of_kind = [other for other in rows if _name(other).split(".")[0] == kind]
    return tap is not of_kind[0] and tap is not of_kind[-1]


def _collapsed(hidden: list[TapResult], result: CaseResult) -> list[str]:
    if not hidden:
        return []
    worst = max(_rho(tap.local, result) for tap in hidden)
    return [f"   ... {len(hidden)} rows ok, ratio <= {_num(worst)} (-v shows them) ..."]


def _rho(metrics, result: CaseResult) -> float:
    """Printed ratio: error over that of the control (with the floor of the dtype); in G1, error over the limit."""
    if result.dtype == "fp64":
        return metrics.e_c / _semantic_limit(result.form)
    return metrics.ratio(LIMITS[result.dtype].floor)


def _semantic_limit(form: str) -> float:
    return SEMANTIC["native" if form == "Ascend" else "composed"]


def _shape(shape: tuple) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _sci(value: float) -> str:
    return "0" if value == 0 else "-" if math.isnan(value) else "inf" if math.isinf(value) else f"{value:.1e}"


def _num(value: float) -> str:
    if math.isinf(value) or math.isnan(value):
        return "inf"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}" if value < 1e5 else f"{value:.0e}"


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
