# SPDX-License-Identifier: Apache-2.0
"""One self-contained page of a run: summary, failures, contract, error growth, heat maps, distributions, every tap.

What explains a failure is plain HTML and SVG; module trees and the list of all taps are drawn by the script in
`report.html` from compact data, row by row as they are needed, so that nets of 28 layers stay quick to open.
"""

import json
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import fields
from html import escape
from pathlib import Path

import numpy as np

from parity.harness import gates
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
from parity.harness.gates import LIMITS, CaseResult, TapResult
from parity.harness.words import EN, TABLE, Words

GATES = ("G0", "G1", "G2", "G3", "G5")
VERDICTS = ("ok", "warn", "inherited", "FAIL local", "FAIL glue", "FAIL end", "FAIL contract")
DEEP = 8  # stages from which on a net gets its curves even if it passes
NUMBER = '<td class="num"'
FIGURE = re.compile(r"(<span[^>]*>)?(inf|-|[\d.]+(e[+-]\d+)?(/\d+)?)(</span>)?")


def page(
    results: list[CaseResult],
    header: Sequence[str],
    w: Words = EN,
    not_run: Iterable[str] = (),
    verdict: str = "",
) -> str:
    """The whole page. header, verdict: lines of the terminal; not_run: what was left out."""
    failed = [result for result in results if not result.passed]
    word = "page.failed" if failed else "page.passed" if results else "page.nothing"
    notes = [w("row.note", case=r.case, dtype=r.dtype, note=w.translate(n)) for r in results for n in r.notes]
    texts = {
        "lang": {"en": "en", "zh": "zh-CN"}[w.lang],
        "title": escape(w("page.title")),
        "word": tag("strong", escape(w(word)), class_="fail" if failed or not results else "ok"),
        "verdict": escape(verdict),
        "header": "".join(tag("p", escape(line)) for line in header),
        "not_run": "".join(tag("p", escape(w("line.not_run", what=what))) for what in not_run),
        "notes": _section(w, "notes", "".join(tag("p", escape(note)) for note in notes)) if notes else "",
        "summary": _section(w, "summary", _summary(results, w)),
        "failures": _section(w, "failures", _failures(failed, w)),
        "contract": _section(w, "contract", _contract(results, w)),
        "nets": _section(w, "nets", tag("p", escape(w("page.how")), class_="dim") + _nets(results, w))
        + _training(results, w),
        "spread": _section(w, "spread", _spreads(results, w)),
        "rules": _section(w, "rules", _rules(w)),
        "all": _section(w, "all", tag("div", "", id="list")),
        "noscript": escape(w("page.noscript")),
        "foot": escape(w("page.foot")),
        "data": _embedded(data(results, w)),
    }
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    return re.sub(r"@@(\w+)@@", lambda found: texts[found.group(1)], template)


def grouped(results: Iterable[CaseResult]) -> list[list[CaseResult]]:
    """Runs of one gate (and kind of G5), dtype and formulation together, in the order in which they came."""
    groups: dict[str, list[CaseResult]] = {}
    for result in results:
        groups.setdefault(run_title(result), []).append(result)
    return list(groups.values())


def run_title(result: CaseResult) -> str:
    """G2-fp32-CPU, G5-fp64-CPU-drift."""
    kind = [result.kind] if result.kind not in ("", "gradients") else []
    return "-".join([result.gate, result.dtype, result.form, *kind])


def contract_counts(results: Iterable[CaseResult]) -> dict[str, list[int]]:
    """Name of a check -> [held, broken]."""
    counts: dict[str, list[int]] = {}
    for result in results:
        for check in result.contract:
            counts.setdefault(check.name, [0, 0])[0 if check.passed else 1] += 1
    return counts


def anchor(result: CaseResult, tap: str = "") -> str:
    """Fragment of the page that shows a run, or one tap of it; the same on every machine and in every language."""
    return "/".join(["run", run_title(result), result.case, *([tap] if tap else [])])


# ------------------------------------------------------------------------------------------------- plain parts


def tag(kind: str, content: str = "", **attributes: object) -> str:
    """An element; `class_` is class, other underlines are hyphens. Content is HTML already."""
    inside = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items()
    )
    return f"<{kind}{inside}>{content}</{kind}>"


def _section(w: Words, key: str, content: str) -> str:
    return tag("section", tag("h2", escape(w(f"page.{key}"))) + content, id=key)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], **attributes: object) -> str:
    """A table: cells that are numbers stand on the right."""
    rows = [[_cell(cell) for cell in cells] for cells in rows]
    first = rows[0] if rows else []
    top = "".join(
        tag("th", escape(text), class_="num" if i < len(first) and first[i].startswith(NUMBER) else "")
        for i, text in enumerate(head)
    )
    body = "".join(tag("tr", "".join(cells)) for cells in rows)
    return tag(
        "div", tag("table", tag("thead", tag("tr", top)) + tag("tbody", body), **attributes), class_="scroll"
    )


def _cell(content: str) -> str:
    return tag("td", content, class_="num" if FIGURE.fullmatch(content) else "")


def _badge(verdict: str, w: Words) -> str:
    return tag("span", escape(w(f"verdict.{verdict}")), class_=f"badge {_kind(verdict)}")


def _kind(verdict: str) -> str:
    return "fail" if verdict.startswith("FAIL") else verdict


def _gate(result: CaseResult, w: Words) -> str:
    keys = [f"gate.{word}" for word in (result.kind, result.gate, "other")]
    return w(next(key for key in keys if key in TABLE), gate=result.gate)


def _summary(results: list[CaseResult], w: Words) -> str:
    keys = ("page.gate", "page.dtype", "page.form", "page.cases", "page.taps", *VERDICTS[:3], "FAIL")
    head = [w(key if key.startswith("page.") else f"verdict.{key}") for key in keys[:-1]]
    head += [w("verdict.fail"), w("page.worst"), w("column.ratio"), w("page.seconds")]
    rows = []
    for members in grouped(results):
        taps = [tap for result in members for tap in result.taps]
        judged = worst_first([result for result in members if result.taps])
        passed = sum(result.passed for result in members)
        about = (_gate(members[0], w), members[0].dtype, members[0].form)
        state = tag("span", f"{passed}/{len(members)}", class_="ok" if passed == len(members) else "fail")
        worst, value = "-", "-"
        if judged:
            tap = worst_tap(judged[0])
            worst = _link(judged[0], tap, f"{judged[0].case} · {label(tap, w)}")
            value = num(ratio(local(tap), judged[0]))
        counts = [str(sum(tap.verdict == verdict for tap in taps)) for verdict in VERDICTS[:3]]
        counts.append(str(sum(tap.failed for tap in taps)))
        seconds = f"{sum(result.seconds for result in members):.1f}"
        rows.append([*about, state, str(len(taps)), *counts, worst, value, seconds])
    return _table(head, rows)


def _link(result: CaseResult, tap: TapResult | None, text: str) -> str:
    target = anchor(result, tap.tap if tap else "")
    return tag("a", escape(text), href=f"#{target}")


def _failures(failed: list[CaseResult], w: Words) -> str:
    if not failed:
        return tag("p", escape(w("page.no_failures")), class_="ok")
    return "".join(_failure(result, w) for result in worst_first(failed))


def _failure(result: CaseResult, w: Words) -> str:
    """One failed run in full: contract, every culprit, diagnosis, sources, elements, command."""
    gate = dict(case=result.case, gate=result.gate, dtype=result.dtype, form=result.form)
    parts = [tag("h3", tag("a", escape(w("fail.head", **gate)), href=f"#{anchor(result)}"))]
    for check in result.broken:
        detail = w.translate(check.detail) or w("fail.failed")
        parts.append(
            tag("p", escape(w("fail.check", check=w.check(check.name), detail=detail).strip()), class_="fail")
        )
    if not result.taps and not result.broken:
        parts.append(tag("p", escape(w("fail.nothing").strip()), class_="fail"))
    for line in result.diagnosis:
        parts.append(tag("p", escape(w.translate(line)), class_="diagnosis"))
    kinds: dict[tuple, list[TapResult]] = {}
    for tap in result.failures:
        kinds.setdefault(alike(tap), []).append(tap)
    for i, (tap, *others) in enumerate(kinds.values()):
        parts.append(tag("div", _culprit(result, tap, others, i == 0, w), class_="culprit"))
    if result.downstream:
        parts.append(tag("p", escape(w("fail.downstream", what=w.translate(result.downstream)).strip())))
    for command in filter(None, (result.reproduce, result.repro)):
        copy = tag("button", escape(w("page.copy")), type="button", data_copy=command)
        parts.append(tag("div", tag("code", escape(command)) + copy, class_="command"))
    parts.append(tag("p", _link(result, None, w("page.open"))))
    return tag("article", "".join(parts), id=anchor(result), class_="failure")


def _culprit(result: CaseResult, tap: TapResult, others: list[TapResult], first: bool, w: Words) -> str:
    """One culprit and the same layer of other blocks."""
    shown = _badge(tap.verdict, w) + " " + _link(result, tap, f"{label(tap, w)} {shape(tap.shape, w)}")
    shown += tag("p", escape(w.translate(tap.reason)))
    if tap.tap in result.sources:
        theirs, ours = result.sources[tap.tap]
        lines = (w("fail.torch", place=theirs), w("fail.port", place=ours))
        shown += tag("pre", escape("\n".join(line.strip() for line in lines)))
    if first:
        shown += tag("pre", escape("\n".join(map(w.translate, result.worst)))) if result.worst else ""
        shown += tag("p", escape(_required(tap, w)))
        shown += _values(result, tap, w)
    if others:
        links = ", ".join(_link(result, other, label(other, w)) for other in others)
        title = tag("summary", escape(w("fail.same", count=len(others))))
        shown += tag("details", title + tag("p", links))
    return shown


def _required(tap: TapResult, w: Words) -> str:
    return w("fail.required", required=sci(tap.required), allowed=sci(tap.allowed)).strip()


def _values(result: CaseResult, tap: TapResult, w: Words) -> str:
    """The histogram of the worst tap's errors, where the run has kept one."""
    kept = result.histogram
    if not kept:
        return ""
    bars = {"port": kept["port"], "ref": kept["reference"]}
    return _histogram(kept["edges"], bars, w("page.values", tap=label(tap, w)), w, [])


def _contract(results: list[CaseResult], w: Words) -> str:
    rows = [
        [escape(w.check(check)), str(good), tag("span", str(bad), class_="fail") if bad else "0"]
        for check, (good, bad) in contract_counts(results).items()
    ]
    found = _table([w("page.check"), w("page.held"), w("page.broken")], rows, class_="narrow")
    broken = [
        [_link(result, None, result.case), result.dtype, result.form, escape(w.check(check.name))]
        + [escape(w.translate(check.detail) or w("fail.failed"))]
        for result in results
        for check in result.broken
    ]
    if not broken:
        return found + tag("p", escape(w("page.contract_held")), class_="ok" if rows else "dim")
    keys = ("case", "dtype", "form", "check", "detail")
    return found + _table([w(f"page.{key}") for key in keys], broken, class_="prose")


def _rules(w: Words) -> str:
    rows = [[escape(w(f"{part}.{gate}")) for part in ("gate", "ask", "rule")] for gate in GATES]
    found = _table([w("page.gate"), w("page.question"), w("page.rule")], rows, class_="prose")
    limits = list(LIMITS.items())
    names = [field.name for field in fields(gates.Limits)]
    rows = [
        [escape(w(f"page.{key}"))] + [f"{getattr(limit, key):.3g}" for _, limit in limits] for key in names
    ]
    found += tag("h3", escape(w("page.limits"))) + _table(["", *(dtype for dtype, _ in limits)], rows)
    meanings = [[_badge(verdict, w), escape(w(f"mean.{verdict}"))] for verdict in VERDICTS]
    return found + tag("h3", escape(w("page.verdicts"))) + _table([], meanings, class_="prose")


# ------------------------------------------------------------------------------------------------- whole nets


def _nets(results: list[CaseResult], w: Words) -> str:
    """Per net a tree that the script fills, and the curves of its deep runs."""
    nets: dict[str, list[CaseResult]] = {}
    for result in results:
        if result.net and result.gate != "G5" and result.taps:
            nets.setdefault(result.case, []).append(result)
    parts = []
    for case, runs in nets.items():
        failed = sum(not run.passed for run in runs)
        deep = any(len(_stages(run)) >= DEEP for run in runs)
        state = tag("span", f"{len(runs) - failed}/{len(runs)}", class_="fail" if failed else "ok")
        curves = "".join(_growth(run, w) for run in runs if len(_stages(run)) >= DEEP or not run.passed)
        if curves:
            curves = tag("h3", escape(w("page.growth"))) + tag("div", curves, class_="charts")
        inside = tag("summary", f"{escape(case)} {state}") + tag("div", "", class_="tree", data_case=case)
        opened = dict(open="") if failed or deep or len(nets) == 1 else {}
        parts.append(tag("details", inside + curves, class_="net", **opened))
    return "".join(parts)


def _stages(result: CaseResult) -> list[TapResult]:
    """The taps along the depth of a net: its direct parts and its blocks; the output last."""
    return [tap for tap in result.taps if "." not in name(tap) or stage(tap)]


def _growth(result: CaseResult, w: Words) -> str:
    """Two charts, local and propagated error over depth: port, reference, limit, prediction."""
    title = " · ".join((_gate(result, w), result.dtype, result.form))
    panels = []
    for kind, metrics in (("local", local), ("prop", prop)):
        taps = [
            tap for tap in _stages(result) if kind == "prop" or tap.level != "net"
        ]  # a net has no local error
        curves = {
            "limit": [limit(result, tap, kind) for tap in taps],
            "ref": [metrics(tap).e_r for tap in taps] if result.dtype != "fp64" else [],
            "pred": [predicted(tap) for tap in taps] if kind == "prop" else [],
            "port": [metrics(tap).e_c for tap in taps],
        }
        panels.append(_chart(f"{title} · {w(f'page.growth_{kind}')}", taps, curves, result, w))
    return tag("figure", "".join(panels), id=f"growth/{anchor(result)}")


def limit(result: CaseResult, tap: TapResult, kind: str) -> float:
    """The error that a tap may have, local or propagated: the formulas of the judge."""
    if result.dtype == "fp64":
        return semantic_limit(result.form)
    limits = LIMITS[result.dtype]
    if kind == "prop":
        return gates.end_limit(prop(tap), result.dtype, _blocks(result), _median(result))
    least = limits.op if tap.level == "op" else limits.ratio_fail * limits.floor
    return max(limits.ratio_fail * local(tap).e_r, least)


def _blocks(result: CaseResult) -> int:
    """Number of blocks, as the judge counts them for the limit of a whole run."""
    return len(
        {name(tap) for tap in result.taps if name(tap).split(".")[-1].isdigit() and "block" in name(tap)}
    )


def _median(result: CaseResult) -> float:
    """Median local error of the control, as the judge takes it for the limit of a whole run."""
    errors = [tap.local.e_r for tap in result.taps if tap.local and tap.level != "op"]
    errors = [error for error in errors if not math.isnan(error)]
    return statistics.median(errors) if errors else 0.0


def _chart(title: str, taps: list[TapResult], curves: dict, result: CaseResult, w: Words) -> str:
    """An SVG of errors over stages, logarithmic. Values of zero lie on the lower edge."""
    wide, high, left, top, right, bottom = 520, 230, 52, 26, 10, 40
    values = [v for curve in curves.values() for v in curve if 0 < v < math.inf]
    if not values:
        return ""
    low, up = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    up = max(up, low + 1)

    def across(i: int) -> float:
        return left + (wide - left - right) * (i / max(len(taps) - 1, 1))

    def down(value: float) -> float:
        level = low if value == 0 else up if math.isinf(value) else math.log10(value)
        return high - bottom - (high - top - bottom) * (min(max(level, low), up) - low) / (up - low)

    step = max(1, -(-(up - low) // 6))
    parts = [tag("text", escape(title), x=left, y=14, class_="head")]
    for power in range(low, up + 1, step):
        y = f"{down(10.0**power):.1f}"
        parts.append(tag("line", x1=left, x2=wide - right, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", f"1e{power}", x=left - 5, y=y, class_="tick"))
    for key, curve in curves.items():
        pieces: list[str] = []
        for i, value in enumerate(curve):
            if math.isnan(value):
                continue
            joined = "L" if i and not math.isnan(curve[i - 1]) else "M"
            pieces.append(f"{joined}{across(i):.1f} {down(value):.1f}")
        if pieces:
            parts.append(tag("path", d="".join(pieces), class_=f"curve {key}"))
    half = (wide - left - right) / max(len(taps) - 1, 1) / 2
    for i, tap in enumerate(taps):
        if tap.verdict != "ok":
            spot = dict(cx=f"{across(i):.1f}", cy=f"{down(curves['port'][i]):.1f}", r=3)
            parts.append(tag("circle", class_=f"spot {_kind(tap.verdict)}", **spot))
        said = " · ".join(
            f"{_curve(key, w)} {sci(curve[i])}"
            for key, curve in curves.items()
            if curve and curve[i] == curve[i]
        )
        said = f"{label(tap, w)}: {said} · {w(f'verdict.{tap.verdict}')}"
        area = dict(x=f"{across(i) - half:.1f}", y=top, width=f"{2 * half:.1f}", height=high - top - bottom)
        aim = tag("rect", tag("title", escape(said)), class_="hover", **area)
        parts.append(tag("a", aim, href=f"#{anchor(result, tap.tap)}"))
    parts.append(tag("text", escape(w("page.axis_depth")), x=left, y=high - bottom + 16, class_="axis"))
    parts.append(
        _legend([key for key, curve in curves.items() if any(v == v for v in curve)], left, high - 8, w)
    )
    return tag("svg", "".join(parts), viewBox=f"0 0 {wide} {high}", role="img", aria_label=title)


def _curve(key: str, w: Words) -> str:
    return w("page.limit") if key == "limit" else w(f"column.{key}")


def _legend(keys: list[str], left: float, y: float, w: Words) -> str:
    parts, x = [], left
    for key in reversed(keys):
        parts.append(tag("path", d=f"M{x} {y - 4}h18", class_=f"curve {key}"))
        parts.append(tag("text", escape(_curve(key, w)), x=x + 23, y=y, class_="axis"))
        x += 100
    return "".join(parts)


# ------------------------------------------------------------------------------------------------- training


def _training(results: list[CaseResult], w: Words) -> str:
    """Per training: the losses of port and reference in one chart, and how far each is from the truth."""
    charts = []
    for result in results:
        if not result.curves:
            continue
        title = " · ".join((result.case, result.dtype, result.form))
        truth = result.curves["truth"]
        sides = {key: result.curves[key] for key in ("ref", "port")}
        apart = {
            key: [abs(a - t) / abs(t) if t else math.nan for a, t in zip(curve, truth, strict=True)]
            for key, curve in sides.items()
            if key == "port" or result.dtype != "fp64"  # the reference in float64 is the truth
        }
        charts.append(_lines(f"{title} · {w('page.losses')}", sides, w))
        charts.append(_lines(f"{title} · {w('page.loss_drift')}", apart, w))
    return _section(w, "training", tag("div", "".join(charts), class_="charts")) if charts else ""


def _lines(title: str, curves: dict[str, list[float]], w: Words) -> str:
    """An SVG of curves over steps, logarithmic; NaN leaves a gap, zero lies on the lower edge."""
    wide, high, left, top, right, bottom = 520, 200, 52, 26, 10, 40
    values = [v for curve in curves.values() for v in curve if 0 < v < math.inf]
    if not values:
        return ""
    low, up = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    up = max(up, low + 1)
    steps = max(len(curve) for curve in curves.values())

    def down(value: float) -> float:
        level = low if value == 0 else math.log10(value)
        return high - bottom - (high - top - bottom) * (min(max(level, low), up) - low) / (up - low)

    parts = [tag("text", escape(title), x=left, y=14, class_="head")]
    for power in range(low, up + 1, max(1, -(-(up - low) // 6))):
        y = f"{down(10.0**power):.1f}"
        parts.append(tag("line", x1=left, x2=wide - right, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", f"1e{power}", x=left - 5, y=y, class_="tick"))
    for key, curve in curves.items():
        pieces = []
        for i, value in enumerate(curve):
            if math.isfinite(value):
                x = left + (wide - left - right) * i / max(steps - 1, 1)
                joined = "L" if i and math.isfinite(curve[i - 1]) else "M"
                pieces.append(f"{joined}{x:.1f} {down(value):.1f}")
        parts.append(tag("path", d="".join(pieces), class_=f"curve {key}"))
    axis = w("page.axis_steps", count=steps)
    parts.append(tag("text", escape(axis), x=left, y=high - bottom + 16, class_="axis"))
    parts.append(_legend(list(curves), left, high - 8, w))
    return tag("svg", "".join(parts), viewBox=f"0 0 {wide} {high}", role="img", aria_label=title)


# ------------------------------------------------------------------------------------------------- distributions


def _spreads(results: list[CaseResult], w: Words) -> str:
    """Per gate, dtype and formulation: how the local ratios of all taps are spread."""
    parts = []
    for members in grouped(results):
        values = [ratio(local(tap), result) for result in members for tap in result.taps]
        if not values:
            continue
        finite = [math.log10(value) for value in values if 0 < value < math.inf]
        low = min(max(math.floor(min(finite, default=-1)), -9), 0)
        up = min(max(math.ceil(max(finite, default=1)), 1), 9)
        fine = gates.PER_DECADE if up - low > 4 else 3 * gates.PER_DECADE
        edges = [low + i / fine for i in range((up - low) * fine + 1)]
        places = [
            edges[0] if not value > 0 else edges[-1] if math.isinf(value) else math.log10(value)
            for value in values
        ]
        counts = np.histogram(np.clip(places, edges[0], edges[-1]), edges)[0].tolist()
        most = 1.0 if members[0].dtype == "fp64" else LIMITS[members[0].dtype].ratio_fail
        title = " · ".join((_gate(members[0], w), members[0].dtype, members[0].form))
        title = w("page.spread_of", title=title, count=len(values))
        parts.append(_histogram(edges, {"port": counts}, title, w, [math.log10(most)]))
    return tag("div", "".join(parts), class_="charts small")


def _histogram(
    edges: list[float], bars: dict[str, list[int]], title: str, w: Words, lines: list[float]
) -> str:
    """An SVG histogram over powers of ten; the heights are square roots of the counts, so that single taps show."""
    wide, high, left, top, right, bottom = 340, 156, 18, 26, 18, 40
    peak = max((max(counts) for counts in bars.values()), default=0) or 1
    span = edges[-1] - edges[0]

    def across(power: float) -> float:
        return left + (wide - left - right) * (power - edges[0]) / span

    parts = [tag("text", escape(title), x=left, y=14, class_="head")]
    for key, counts in bars.items():
        for i, count in enumerate(counts):
            if count:
                tall = max((high - top - bottom) * math.sqrt(count / peak), 1.5)
                at = dict(x=f"{across(edges[i]):.1f}", y=f"{high - bottom - tall:.1f}", height=f"{tall:.1f}")
                said = f"{10 ** edges[i]:.2g} - {10 ** edges[i + 1]:.2g}: {count}"
                thick = f"{max(across(edges[i + 1]) - across(edges[i]) - 0.6, 0.8):.1f}"
                parts.append(tag("rect", tag("title", said), width=thick, class_=f"bar {key}", **at))
    base = high - bottom
    parts.append(tag("line", x1=left, x2=wide - right, y1=base, y2=base, class_="grid"))
    for place in lines:
        x = f"{across(place):.1f}"
        parts.append(tag("line", x1=x, x2=x, y1=top, y2=base, class_="curve limit"))
    step = max(1, math.ceil(span / 6))
    for power in range(math.ceil(edges[0]), math.floor(edges[-1]) + 1, step):
        parts.append(tag("text", f"1e{power}", x=f"{across(power):.1f}", y=base + 13, class_="mid"))
    if len(bars) > 1:
        parts.append(_legend(list(bars), left, high - 8, w))
    else:
        parts.append(tag("text", escape(w("page.axis_ratio")), x=left, y=high - 8, class_="axis"))
    return tag("svg", "".join(parts), viewBox=f"0 0 {wide} {high}", role="img", aria_label=title)


# ------------------------------------------------------------------------------------------------- data of the script


def data(results: list[CaseResult], w: Words = EN) -> dict:
    """Everything the page's script draws: strings once, taps as columns of numbers in three digits.

    NaN is null, infinity 1e999 (which JSON readers take for it).
    """
    strings: dict[str, int] = {}

    def known(text: str) -> int:
        return strings.setdefault(text, len(strings))

    runs = []
    for result in results:
        taps, same = result.taps, all(tap.prop is tap.local or tap.local is None for tap in result.taps)
        limits = LIMITS.get(result.dtype)
        run = {
            "case": result.case,
            "title": run_title(result),
            "gate": result.gate,
            "dtype": result.dtype,
            "form": result.form,
            "net": result.net,
            "passed": result.passed,
            # ratio = error / max(error of the reference, floor); in float64 error / limit
            "floor": _Number(limits.floor if limits else semantic_limit(result.form)),
            "exact": result.dtype == "fp64",
            "fail": _Number(limits.ratio_fail if limits else 1.0),
            "warn": _Number(limits.ratio_warn if limits else 1.0),
            "tap": [known(tap.tap) for tap in taps],
            "shape": [known(shape(tap.shape, w)) for tap in taps],
            "level": [known(tap.level) for tap in taps],
            "verdict": [VERDICTS.index(tap.verdict) for tap in taps],
            "reason": [known(w.translate(tap.reason)) for tap in taps],
            "lc": [_Number(local(tap).e_c) for tap in taps],
            "lr": [_Number(local(tap).e_r) for tap in taps],
            "abs": [_Number(local(tap).max_abs) for tap in taps],
            "cos": [_Number(1 - local(tap).cosine) for tap in taps],
        }
        if not same:
            run["pc"] = [_Number(prop(tap).e_c) for tap in taps]
            run["pr"] = [_Number(prop(tap).e_r) for tap in taps]
        if any(tap.failed for tap in taps):
            run["required"] = [_Number(tap.required) if tap.failed else _Number(0.0) for tap in taps]
            run["allowed"] = [_Number(tap.allowed) if tap.failed else _Number(0.0) for tap in taps]
        if any(not math.isnan(predicted(tap)) for tap in taps):
            run["pred"] = [_Number(predicted(tap)) for tap in taps]
        runs.append(run)
    words = {
        key: w.raw(key) for key in TABLE if key.startswith(("js.", "column.", "group.", "gate.", "row."))
    }
    verdicts = [[verdict, _kind(verdict), w(f"verdict.{verdict}")] for verdict in VERDICTS]
    return {"words": words, "verdicts": verdicts, "strings": list(strings), "runs": runs}


class _Number(float):
    """A float that is written in three digits."""

    def __repr__(self) -> str:
        if math.isnan(self):
            return "null"
        if math.isinf(self):
            return "1e999" if self > 0 else "-1e999"
        return f"{float(self):.3g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def _embedded(value: object) -> str:
    """JSON that is safe inside a script element."""
    return _json(value).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _json(value: object) -> str:
    """json.dumps without blanks and with our numbers: its C encoder would write all digits of every float."""
    if isinstance(value, _Number):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_json, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
