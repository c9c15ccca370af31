# SPDX-License-Identifier: Apache-2.0
"""Results as tables: fixed width for the terminal (copy and paste safe), CSV, JSON, Markdown and a page on disk.

All words come from `words`; CSV and JSON keep the judge's English, whatever the language of the tables.
"""

import csv
import io
import json
import math
import os
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from converters.output import write_whole
from parity.harness import html
from parity.harness.figures import (
    alike,
    label,
    local,
    name,
    num,
    predicted,
    prop,
    ratio,
    sci,
    semantic_limit,
    shape,
    stage,
    worst_first,
    worst_tap,
)
from parity.harness.fingerprint import Control
from parity.harness.gates import LIMITS, SEMANTIC, CaseResult, Check, Metrics, TapResult
from parity.harness.words import EN, TABLE, Words, clip, pad, width

# key of the heading, least width, blanks before it, aligned to the right
COLUMNS = (
    ("tap", 44, 0, False),
    ("shape", 16, 1, False),
    ("max_abs", 8, 1, True),
    ("port", 8, 2, True),
    ("ref", 8, 1, True),
    ("ratio", 6, 1, True),
    ("port", 8, 2, True),
    ("ref", 8, 1, True),
    ("ratio", 6, 1, True),
    ("pred", 8, 1, True),
    ("cosine", 8, 2, True),
    ("verdict", 0, 2, False),
)
CSV_FIELDS = ["case", "gate", "dtype", "form", "tap", "level", "shape", "max_abs"]
CSV_FIELDS += ["local_port", "local_ref", "local_ratio", "end_port", "end_ref", "end_ratio"]
CSV_FIELDS += ["cosine", "flip", "bias", "verdict", "required", "allowed", "reason"]
CSV_FIELDS += ["predicted", "diagnosis"]
MESSAGE = 15  # lines of a failure message at most
ANNOTATIONS = 10  # GitHub shows ten errors of a step


def table(result: CaseResult, verbose: bool = False, w: Words = EN, pred: bool = False) -> list[str]:
    """Per-layer table of one whole net, in order of execution.

    Rows of layers inside a block are shown if they fail or if verbose. Equal rows are hidden: blocks between the first
    and last of their kind, and culprits that are the same layer of a later block. The first culprit is followed by
    its neighbours inside the same module.
    """
    rows = list(result.taps) if verbose else [tap for tap in result.taps if _visible(tap)]
    lines: list[str] = []
    hidden: list[TapResult] = []
    known: set[tuple] = set()
    for tap in rows:
        equal = (
            alike(tap) in known
            if tap.failed
            else stage(tap) and tap.verdict != "warn" and _between(tap, rows)
        )
        known.add(alike(tap))
        if equal and not verbose:
            hidden.append(tap)
            continue
        lines += _collapsed(hidden, result, w)
        hidden = []
        lines.append(row(tap, result, w=w, pred=pred))
        if result.failures and tap is result.failures[0]:
            lines += _neighbours(tap, result, w)
    return lines + _collapsed(hidden, result, w)


def columns(w: Words = EN, pred: bool = False) -> list[str]:
    """The two heading lines of a table."""
    shown = _layout(w, pred)
    line = _line([w(f"column.{key}") for key, *_ in shown], shown)
    start = sum(columns_ + gap for _, columns_, gap, _ in shown[:3])
    middle = sum(columns_ + gap for _, columns_, gap, _ in shown[3:6])
    return [
        f"{' ' * start}{pad(w('group.local'), max(middle + 1, width(w('group.local')) + 2))}{w('group.prop')}",
        line,
    ]


def row(
    tap: TapResult,
    result: CaseResult,
    label_: str = "",
    end: TapResult | None = None,
    w: Words = EN,
    pred: bool = False,
) -> str:
    """One line of a table."""
    m, e = local(tap), prop(end or tap)
    sign = ">" if tap.failed else " "
    cells = [
        sign + clip(label_ or label(tap, w), COLUMNS[0][1] - 1),
        shape(tap.shape, w),
        *(sci(m.max_abs), sci(m.e_c), sci(m.e_r), num(ratio(m, result))),
        *(sci(e.e_c), sci(e.e_r), num(ratio(e, result))),
        *([sci(predicted(end or tap))] if pred else []),
        f"{m.cosine:.6f}",
        w(f"verdict.{tap.verdict}"),
    ]
    return _line(cells, _layout(w, pred))


def failure(result: CaseResult, w: Words = EN, place: str = "") -> list[str]:
    """What to show for one failed case, at most 15 lines. place: where the page with the whole story is.

    The head, the reason, the diagnosis and the command stay; sources, elements and context give way if it gets long.
    """
    gate = dict(case=result.case, gate=result.gate, dtype=result.dtype, form=result.form)
    lines: list[tuple[int, str]] = [(0, w("fail.head", **gate))]  # (how readily it gives way, line)
    for check in result.broken[:3]:
        detail = w.translate(check.detail) or w("fail.failed")
        lines.append((0, clip(w("fail.check", check=w.check(check.name), detail=detail), 220)))
    if not result.taps and not result.broken:
        lines.append((0, w("fail.nothing")))
    if result.failures:
        tap = result.failures[0]
        verdict = w(f"verdict.{tap.verdict}")
        lines.append((0, w("fail.culprit", name=label(tap, w), shape=shape(tap.shape, w), verdict=verdict)))
        lines.append((0, clip(w("fail.reason", reason=w.translate(tap.reason)), 400)))  # it ends with a name
    for line in result.diagnosis[:2]:
        lines.append((0, clip(w("fail.diagnosis", line=w.translate(line)), 220)))
    if result.failures:
        if tap.tap in result.sources:
            theirs, ours = result.sources[tap.tap]
            lines.append((2, w("fail.torch", place=theirs)))
            lines.append((2, w("fail.port", place=ours)))
        lines += [
            (4 - (i == 0), w("fail.worst", line=w.translate(line))) for i, line in enumerate(result.worst[:3])
        ]
        lines.append((1, w("fail.required", required=sci(tap.required), allowed=sci(tap.allowed))))
        others = ", ".join(label(other, w) for other in result.failures[1:4])
        if others:
            lines.append((1, clip(w("fail.names", names=others), 220)))
        if result.downstream:
            lines.append((1, w("fail.downstream", what=w.translate(result.downstream))))
    if result.reproduce:
        lines.append((0, w("fail.reproduce", command=result.reproduce)))
    if result.repro:
        lines.append((1, w("fail.repro", command=result.repro)))
    if place:
        lines.append((0, w("fail.report", place=f"{place}#{html.anchor(result)}")))
    while len(lines) > MESSAGE:
        most = max(weight for weight, _ in lines)
        lines.pop(max(i for i, (weight, _) in enumerate(lines) if weight == most))
    return [line for _, line in lines]


def control_line(dtype: str, control: Control, w: Words = EN) -> str:
    """Which control judges a type, and why: the header of a run on a device that was asked for its fingerprint."""
    formats = ", ".join(f"{unit} {name}" for unit, name in control.products.items())
    keys = {
        "plain": "header.control_plain",
        "rounded": "header.control_rounded",
        "strict": "header.control_strict",
    }
    filled = {"formats": formats} if formats else {}
    return w(keys[control.kind], dtype=dtype, reason=control.reason, **filled)


def summary(results: Iterable[CaseResult], verbose: bool = False, w: Words = EN) -> list[str]:
    """All tables: parts one line a case, worst first, whole nets one table each, per gate, dtype and formulation."""
    results = list(results)
    lines: list[str] = []
    for members in html.grouped(results):
        pred = any(not math.isnan(predicted(tap)) for result in members for tap in result.taps)
        lines += ["", heading(members, w), *columns(w, pred)]
        judged = [result for result in members if result.taps]
        parts = worst_first([result for result in judged if not result.net])
        shown = parts if verbose else _notable(parts)
        lines += [row(worst_tap(result), result, result.case, w=w, pred=pred) for result in shown]
        if len(shown) < len(parts):
            rest = [result for result in parts if result not in shown]
            worst = max(ratio(local(worst_tap(result)), result) for result in rest)
            lines.append(w("row.parts_hidden", count=len(rest), worst=num(worst)))
        for result in judged:
            if not result.net:
                continue
            shown_whole = result.gate != "G5" and result.case.endswith(("-thin", "-full", "-file", "-other"))
            if result.failures or verbose or shown_whole:
                lines.append(w("row.net", case=result.case, count=len(result.taps)))
                lines += table(result, verbose, w, pred)
            else:  # a small net in one line: its worst layer, and its output
                gradients = result.gate == "G5"
                worst = worst_tap(result)
                what = w(
                    "row.gradients" if gradients else "row.taps", case=result.case, count=len(result.taps)
                )
                lines.append(row(worst, result, what, worst if gradients else result.taps[-1], w, pred))
        for result in members:
            for check in result.broken:
                detail = w.translate(check.detail)
                lines.append(
                    clip(w("row.broken", case=result.case, check=w.check(check.name), detail=detail), 200)
                )
    return [*lines, "", verdict_line(results, w)]


def verdict_line(results: list[CaseResult], w: Words = EN) -> str:
    """The one line to quote."""
    taps = [tap for result in results for tap in result.taps]
    checks = [check for result in results for check in result.contract]
    count = {word: sum(tap.verdict == word for tap in taps) for word in ("ok", "warn", "inherited")}
    failed = sum(tap.failed for tap in taps) + sum(not check.passed for check in checks)
    seconds = f"{sum(result.seconds for result in results):.0f}"
    sizes = dict(taps=len(taps), runs=len(results), checks=len(checks), seconds=seconds)
    return w("line.verdict", failed=failed, **count, **sizes)


def contract_line(results: list[CaseResult], w: Words = EN) -> str:
    """G0 in one line."""
    counts = html.contract_counts(results)
    return w(
        "line.contract",
        parts=" · ".join(f"{w.check(n)} {good}/{good + bad}" for n, (good, bad) in counts.items()),
    )


def annotations(results: list[CaseResult], w: Words = EN) -> list[str]:
    """Workflow commands with which GitHub marks the lines at fault; worst first, as many as it shows of one step."""
    failed = worst_first([result for result in results if not result.passed])
    commands = []
    for result in failed[:ANNOTATIONS]:
        message = failure(result, w)
        place = next(iter(result.sources.values()), ("", ""))[1]
        path, _, line = place.rpartition(":")
        at = [f"file={_escaped(path, ':,')}", f"line={line}"] if line.isdigit() and path else []
        at.append(f"title={_escaped(message[0], ':,')}")
        text = "\n".join(message[1:])
        if len(failed) > ANNOTATIONS and len(commands) == ANNOTATIONS - 1:
            text += "\n" + w("note.more", count=len(failed) - ANNOTATIONS)
        commands.append(f"::error {','.join(at)}::{_escaped(text)}")
    return commands


def write(
    results: list[CaseResult],
    header: list[str],
    folder: Path,
    w: Words = EN,
    not_run: Sequence[str] = (),
) -> list[Path]:
    """Write parity.csv, parity.json, parity.md and parity.html, each whole or not at all and as soon as it is rendered:
    a page that cannot be must not cost the numbers of a long run. Arguments as of `rendered`."""
    return store(rendered(results, header, w, not_run), folder)


def store(contents: Iterable[tuple[str, str]], folder: Path) -> list[Path]:
    """Write what `rendered` gives. The Markdown goes to the summary page of GitHub Actions too."""
    paths = []
    for ending, content in contents:
        folder.mkdir(parents=True, exist_ok=True)
        paths.append(folder / f"parity.{ending}")
        write_whole(paths[-1], content)
        if ending == "md" and os.environ.get("GITHUB_STEP_SUMMARY"):
            with open(os.environ["GITHUB_STEP_SUMMARY"], "a", encoding="utf-8") as file:
                file.write(content)
    return paths


def rendered(
    results: list[CaseResult], header: list[str], w: Words = EN, not_run: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """(ending, content) of every file of a report, one after the other.

    header, not_run: English lines; the second says what was left out and why, shown as neither passed nor failed.
    """
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, CSV_FIELDS)
    writer.writeheader()
    for result in results:
        writer.writerows(_csv_rows(result))
    yield "csv", table.getvalue()
    about = {"header": header, "not_run": list(not_run), **_limits()}
    yield "json", json.dumps({**about, "results": results}, default=_plain)
    header, not_run = ([w.translate(line) for line in lines] for lines in (header, not_run))
    yield "md", markdown(results, header, w, not_run)
    yield "html", html.page(results, header, w, not_run, verdict_line(results, w))


def junit(results: list[CaseResult], path: Path, name: str) -> Path:
    """The results for a CI server, where pytest is not there to write them. name: of the suite."""
    failed = sum(not result.passed for result in results)
    suite = xml.Element("testsuite", name=name, tests=str(len(results)), failures=str(failed))
    for result in results:
        run = f"{result.dtype}-{result.form}-{result.case}"
        case = xml.SubElement(
            suite, "testcase", classname=f"parity.{result.gate}", name=run, time=f"{result.seconds:.3f}"
        )
        if not result.passed:
            lines = failure(result)
            xml.SubElement(case, "failure", message=lines[0]).text = "\n".join(lines)
    write_whole(path, xml.tostring(suite, encoding="utf-8", xml_declaration=True))
    return path


def load(path: Path) -> tuple[list[CaseResult], list[str], list[str]]:
    """(results, header, not_run) of a parity.json. Raises ValueError if it is none or was judged by other limits."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        results = [_result(item) for item in stored["results"]]
        header, not_run = _lines(stored["header"]), _lines(stored.get("not_run", []))
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no parity.json of this version ({type(error).__name__}: {error})"
        ) from None
    stale = [key for key, value in json.loads(json.dumps(_limits())).items() if stored.get(key) != value]
    if stale:
        raise ValueError(
            f"{path} was judged with other {' and '.join(stale)} than this version has; render it with the version "
            "that wrote it, or run pytest parity/ again"
        )
    return results, header, not_run


def markdown(results: list[CaseResult], header: list[str], w: Words = EN, not_run: Iterable[str] = ()) -> str:
    """A page for an issue: header, one row a run, failures in full."""
    lines = [
        w("md.title"),
        "",
        *(f"    {line}" for line in header),
        "",
        "    " + verdict_line(results, w),
        "",
    ]
    for what in not_run:
        lines += ["    " + w("line.not_run", what=what), ""]
    lines.append(w("md.head"))
    lines.append("|" + "---|" * (w("md.head").count("|") - 1))
    shown = [result for result in results if result.net or not result.passed]
    for result in shown:
        if not result.taps:
            cells = ["-", "-", "-", "-"]
        else:
            worst = worst_tap(result)
            end = prop(result.taps[-1])
            cells = [label(worst, w), sci(local(worst).e_c), num(ratio(local(worst), result)), sci(end.e_c)]
        word = w("verdict.pass") if result.passed else f"**{w('verdict.fail')}**"
        row_ = [result.case, result.gate, result.dtype, result.form, str(len(result.taps)), *cells, word]
        lines.append("| " + " | ".join(row_) + " |")
    lines.append(w("md.rest", count=len(results) - len(shown)))
    for result in results:
        if not result.passed:
            lines += ["", "```", *failure(result, w), "```"]
    return "\n".join(lines) + "\n"


def heading(members: list[CaseResult], w: Words = EN) -> str:
    """What a group of runs judges, by which limit, and how many of them pass."""
    gate, dtype, form = members[0].gate, members[0].dtype, members[0].form
    key, limit = gate, ""
    if gate == "G1":
        limit = f"{semantic_limit(form):.0e}"
    elif dtype in LIMITS:
        limit = f"{LIMITS[dtype].ratio_fail:g}"
    if members[0].kind not in ("", "gradients"):
        key = members[0].kind
    key = f"heading.{key}" if f"heading.{key}" in TABLE else "heading.other"
    what = w(key, gate=gate, dtype=dtype, limit=limit)
    passed = sum(result.passed for result in members)
    return w("heading.tail", what=what, form=form, passed=passed, total=len(members))


def _lines(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise TypeError(f"expected a list of lines, got {clip(repr(value), 80)}")
    return value


def _limits() -> dict:
    return {"limits": {name: asdict(value) for name, value in LIMITS.items()}, "semantic": SEMANTIC}


def _result(item: dict) -> CaseResult:
    """A CaseResult from its JSON; fields that this version does not know are left out."""
    taps = []
    for tap in item["taps"]:
        sides = {side: _known(Metrics, tap[side]) if tap[side] else None for side in ("local", "prop")}
        taps.append(_known(TapResult, {**tap, **sides, "shape": tuple(tap["shape"])}))
    checks = [_known(Check, check) for check in item["contract"]]
    sources = {tap: tuple(places) for tap, places in item["sources"].items()}
    return _known(CaseResult, {**item, "taps": taps, "contract": checks, "sources": sources})


def _plain(value: Any) -> Any:
    """What JSON knows of a value; `asdict`, which copies everything, takes ten times as long."""
    return vars(value) if is_dataclass(value) else str(value)


def _known(kind: type, values: dict):
    return kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})


def _csv_rows(result: CaseResult) -> Iterable[dict]:
    culprit = next(iter(result.failures), None)
    for tap in result.taps:
        m, e = local(tap), prop(tap)
        values = [result.case, result.gate, result.dtype, result.form]
        values += [tap.tap, tap.level, shape(tap.shape), m.max_abs]
        values += [m.e_c, m.e_r, ratio(m, result), e.e_c, e.e_r, ratio(e, result), m.cosine, m.flip, m.bias]
        values += [tap.verdict, tap.required, tap.allowed, tap.reason]
        guess = predicted(tap)
        values += ["" if math.isnan(guess) else guess, "; ".join(result.diagnosis) if tap is culprit else ""]
        yield dict(zip(CSV_FIELDS, values, strict=True))
    for check in result.broken:
        where = dict(case=result.case, gate="G0", dtype=result.dtype, form=result.form, tap=check.name)
        yield {**where, "verdict": "FAIL contract", "reason": check.detail}


def _layout(w: Words, pred: bool) -> list[tuple[str, int, int, bool]]:
    """Columns with the width that a language needs for its headings."""
    return [
        (key, max(least, width(w(f"column.{key}"))), gap, right)
        for key, least, gap, right in COLUMNS
        if pred or key != "pred"
    ]


def _line(cells: list[str], layout: list[tuple[str, int, int, bool]]) -> str:
    filled = [
        " " * gap + pad(cell, columns_, right)
        for cell, (_, columns_, gap, right) in zip(cells, layout, strict=True)
    ]
    return "".join(filled).rstrip()


def _visible(tap: TapResult) -> bool:
    """Stages, whatever is not ok, and the net itself."""
    return "." not in name(tap) or stage(tap) or tap.verdict not in ("ok", "inherited")


def _between(tap: TapResult, rows: list[TapResult]) -> bool:
    """Neither the first nor the last of its kind of block."""
    kind = name(tap).split(".")[0]
    of_kind = [other for other in rows if name(other).split(".")[0] == kind]
    return tap is not of_kind[0] and tap is not of_kind[-1]


def _notable(parts: list[CaseResult], count: int = 6) -> list[CaseResult]:
    """Parts that are not plainly ok, and those with the largest ratios. parts: worst first."""
    return [
        result
        for i, result in enumerate(parts)
        if i < count or any(tap.verdict != "ok" for tap in result.taps)
    ]


def _collapsed(hidden: list[TapResult], result: CaseResult, w: Words) -> list[str]:
    if not hidden:
        return []
    worst = num(max(ratio(local(tap), result) for tap in hidden))
    counts = Counter(tap.verdict for tap in hidden)
    verdicts = ", ".join(
        w("row.some", count=count, verdict=w(f"verdict.{verdict}")) for verdict, count in counts.items()
    )
    if len(counts) == 1:
        return [w("row.hidden", count=len(hidden), verdict=w(f"verdict.{hidden[0].verdict}"), worst=worst)]
    return [w("row.hidden_mixed", count=len(hidden), verdicts=verdicts, worst=worst)]


def _neighbours(tap: TapResult, result: CaseResult, w: Words) -> list[str]:
    """The layers of the module around a culprit, in one line, with their ratios."""
    around = name(tap).rpartition(".")[0]
    if not around or stage(tap):
        return []
    parts = []
    for other in result.taps:
        if name(other).rpartition(".")[0] == around:
            short, value = name(other).rpartition(".")[2], num(ratio(local(other), result))
            parts.append(w("row.here", name=short, ratio=value) if other is tap else f"{short} {value}")
    return [clip(w("row.inside", name=around, parts=" · ".join(parts)), 180)]


def _escaped(text: str, more: str = "") -> str:
    """For a workflow command: its own separators as percent codes."""
    for sign in ("%", "\r", "\n", *more):
        text = text.replace(sign, f"%{ord(sign):02X}")
    return text
