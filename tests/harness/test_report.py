# SPDX-License-Identifier: Apache-2.0
"""The terminal's tables, messages and files: aligned in both languages, short, complete, from one table of words."""

import ast
import csv
import json
import re
from dataclasses import replace

import pytest

from parity import report as command
from parity.harness import figures, gates, html, report
from parity.harness.gates import CaseResult, Check, Metrics, TapResult
from parity.harness.words import EN, TABLE, Words, width
from tests.layout.tree import ROOT

ZH = Words("zh")
LANGUAGES = pytest.mark.parametrize("w", [EN, ZH], ids=["en", "zh"])


def metrics(error, control=1e-7, **more):
    values = dict(m_c=error, m_r=control, max_abs=error, cosine=1.0, flip=0.0, bias=0.0, peak=1.0, size=60)
    return Metrics(e_c=error, e_r=control, **{**values, **more})


def net(depth=28, bad=(), dtype="fp32", case="latte.Latte-thin", **more):
    """A whole net as the judge leaves it. bad: names of layers whose local error is large."""
    taps = []
    for i in range(depth):
        for name, level in ((f"blocks.{i}.fc", "op"), (f"blocks.{i}", "block")):
            wrong = name in bad
            local, prop = metrics(1e-3 if wrong else 1e-7), metrics(2e-7 * (i + 1) ** 0.5)
            taps.append(TapResult(f"{name}#0", (2, 3, 5), level, local, prop))
    end = metrics(1e-6)
    taps.append(TapResult("#0", (2, 3, 5), "net", end, end))
    gates.mark(taps, dtype, depth, 1e-4 if dtype == "fp64" else None)
    gate = "G1" if dtype == "fp64" else "G2"
    about = dict(net="Latte", seconds=1.5, reproduce="pytest 'x[y]' --device CPU", **more)
    return CaseResult(case, gate, dtype, "CPU", taps, [Check("lint", True)], **about)


def part(name, error):
    tap = TapResult("#0", (3, 7), "op", metrics(error), metrics(error))
    tap.verdict = "ok" if error < 1e-6 else "FAIL local"
    return CaseResult(f"layers.{name}", "G2", "fp32", "CPU", [tap], [Check("lint", True)])


def broken(**more):
    """A failed run with everything that a failure can carry."""
    result = net(bad=[f"blocks.{i}.fc" for i in range(28)], **more)
    result.contract += [Check(f"check {i}", False, "x" * 300) for i in range(5)]
    first = result.failures[0].tap
    result.sources = {first: ("torch_ref/models/mlp.py:31", "ms_latte/models/mlp.py:88")}
    result.worst = [f"[{i}] port 1  ref 2  truth 2" for i in range(3)]
    result.diagnosis = ["looks like a bug", "nearest: another one"]
    result.downstream = "28 taps inherited the error; no second culprit (teacher-forced)"
    result.repro = "python -m parity repro latte.Latte-thin:blocks.0.fc"
    return result


# ------------------------------------------------------------------------------------------------- tables


def starts(line):
    """Display columns at which a line's cells begin or end: where its blanks meet its words."""
    return {width(line[: found.end()]) for found in re.finditer(r"\S+(?: \S+)*", line)}


@LANGUAGES
@pytest.mark.parametrize("pred", [False, True])
def test_columns_stay_aligned(w, pred):
    result = net(bad=["blocks.3.fc"])
    lines = [report.row(tap, result, w=w, pred=pred) for tap in result.taps]
    heading = report.columns(w, pred)[1]
    shown = [key for key, *_ in report.COLUMNS if pred or key != "pred"]
    numbers = [i for i, (key, _, _, right) in enumerate(report.COLUMNS) if right and key in shown]
    ends = 0
    at = []
    for key, least, gap, _right in report.COLUMNS:
        if key in shown:
            ends += gap + max(least, width(w(f"column.{key}")))
            at.append(ends)
    for line in [heading, *lines]:
        # Every right-aligned cell ends at its column's end, in display columns, whatever the language.
        assert {at[shown.index(report.COLUMNS[i][0])] for i in numbers} <= starts_and_ends(line)


def starts_and_ends(line):
    found = set()
    for word in re.finditer(r"\S+", line):
        found |= {width(line[: word.start()]), width(line[: word.end()])}
    return found


@LANGUAGES
def test_group_headings_stand_above_their_columns(w):
    top, bottom = report.columns(w)
    second = width(bottom[: bottom.index(w("column.port"), bottom.index(w("column.ref")))])
    assert abs(width(top[: top.index(w("group.prop"))]) - second) <= 8


def test_the_english_table_keeps_its_form():
    top, bottom = report.columns()
    assert bottom == (
        f"{'tap':<44} {'shape':<16} {'max abs':>8}  {'port':>8} {'ref':>8} {'ratio':>6}  "
        f"{'port':>8} {'ref':>8} {'ratio':>6}  {'cosine':>8}  verdict"
    )
    assert top == f"{' ' * 70}{'local error':<27}propagated error"


def test_a_predicted_error_gets_a_column_only_where_there_is_one():
    result = net()
    assert "pred" not in "\n".join(report.summary([result]))
    result.taps[5].predicted = 4.25e-7
    text = "\n".join(report.summary([result], verbose=True))
    assert "pred" in text and text.count("4.2e-07") + text.count("4.3e-07") == 1


def test_equal_rows_are_hidden_and_verbose_shows_them():
    healthy = report.table(net())
    assert [line.split()[0] for line in healthy] == ["blocks.0", "...", "blocks.27", "output"]
    assert "26 rows ok" in healthy[1]
    assert len(report.table(net(), verbose=True)) == 57
    failing = report.table(net(bad=[f"blocks.{i}.fc" for i in range(28)]))
    assert sum(line.startswith(">") for line in failing) == 1  # the same layer of 27 more blocks is one line
    assert "27 FAIL local" in "\n".join(failing) and "fc" in failing[1] and "<- HERE" in failing[1]
    assert len(failing) < 9


def test_different_culprits_are_all_shown():
    lines = report.table(net(bad=["blocks.3.fc", "blocks.9"]))
    assert sum(line.startswith(">") for line in lines) == 2


def test_parts_are_listed_worst_first():
    parts = [part("A", 2e-7), part("Bad", 1e-3), *(part(f"C{i}", 1e-8 * i) for i in range(8))]
    lines = [line for line in report.summary(parts) if "layers." in line]
    assert lines[0].startswith(">layers.Bad") and lines[1].startswith(" layers.A")
    assert len(lines) == 6
    assert report.verdict_line(parts).startswith("1 FAIL")


@LANGUAGES
def test_every_verdict_and_gate_has_words(w):
    for verdict in html.VERDICTS:
        tap = replace(net().taps[0], verdict=verdict)
        assert w(f"verdict.{verdict}") in report.row(tap, net(), w=w)
    for gate, dtype, kind in (
        ("G3", "fp16", ""),
        ("G5", "fp64", "gradients"),
        ("G5", "fp32", "drift"),
        ("G9", "fp32", ""),
    ):
        heading = report.heading([replace(net(), gate=gate, dtype=dtype, kind=kind)], w)
        assert gate in heading and ("{" not in heading)


# ------------------------------------------------------------------------------------------------- failures


@LANGUAGES
def test_a_failure_message_is_short_and_keeps_what_matters(w):
    result = broken()
    lines = report.failure(result, w, "out/parity.html")
    assert len(lines) == report.MESSAGE
    text = "\n".join(lines)
    for kept in (
        result.case,
        result.reproduce,
        w.translate("looks like a bug"),
        "blocks.0.fc",
        "out/parity.html#run/",
    ):
        assert kept in text
    assert all(width(line) <= 240 for line in lines)


def test_a_failure_message_without_extras_is_complete():
    result = broken()
    result.contract, result.diagnosis = [], ["looks like a bug"]
    text = "\n".join(report.failure(result, EN, "p.html"))
    for kept in (
        "torch_ref/models/mlp.py:31",
        "worst : [2]",
        "required",
        "downstream: 28",
        "parity repro",
        "further",
    ):
        assert kept in text
    nothing = report.failure(CaseResult("c", "G2", "fp32", "CPU"))
    assert "absent is failed" in nothing[1]


def test_annotations_mark_the_line_at_fault():
    result = broken()
    (line,) = report.annotations([net(), result])
    assert line.startswith("::error file=ms_latte/models/mlp.py,line=88,title=latte.Latte-thin (G2 fp32%2C")
    assert "\n" not in line and "%0A  first culprit: blocks.0.fc" in line
    assert report.annotations([net()]) == []


def test_annotations_are_as_many_as_github_shows():
    many = [broken(case=f"latte.Latte-{i}") for i in range(12)]
    found = report.annotations(many)
    assert len(found) == report.ANNOTATIONS and found[-1].endswith("%0A2 more failures, in the report")
    strange = broken()
    strange.sources = {strange.failures[0].tap: ("?", "?")}
    strange.reproduce = "50%\nmore"
    assert (
        report.annotations([strange])[0].startswith("::error title=")
        and "50%25%0Amore" in report.annotations([strange])[0]
    )


# ------------------------------------------------------------------------------------------------- files


def test_files_appear_and_the_csv_grows_at_its_end(tmp_path):
    paths = report.write([net(), broken()], ["device CPU"], tmp_path, ZH, ["G1 and G5 (nets of full size)"])
    assert [path.name for path in paths] == ["parity.csv", "parity.json", "parity.md", "parity.html"]
    before = "case gate dtype form tap level shape max_abs local_port local_ref local_ratio end_port end_ref end_ratio "
    before += "cosine flip bias verdict required allowed reason"
    rows = list(csv.DictReader(paths[0].open()))
    assert list(rows[0])[: len(before.split())] == before.split()
    assert {row["verdict"] for row in rows} >= {"ok", "FAIL local"}  # files keep the judge's English
    assert [row["diagnosis"] for row in rows if row["diagnosis"]] == [
        "looks like a bug; nearest: another one"
    ]
    assert "完整规模网络" in paths[2].read_text() and "| 用例 |" in paths[2].read_text()
    assert json.loads(paths[1].read_text())["not_run"] == ["G1 and G5 (nets of full size)"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write([net()], [], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parity.csv", "parity.json", "parity.md"]


def test_results_come_back_from_their_file(tmp_path):
    results = [net(), broken()]
    results[0].taps[3].local.e_r = float("nan")
    report.write(results, ["device CPU"], tmp_path, EN, ["x"])
    found, header, not_run = report.load(tmp_path / "parity.json")
    assert repr(found) == repr(results) and (header, not_run) == (["device CPU"], ["x"])


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "KeyError"), ("not json", "JSONDecodeError"), ('{"results": [1], "header": []}', "TypeError")],
)
def test_a_file_that_is_no_report_is_refused(tmp_path, capsys, text, message):
    (tmp_path / "parity.json").write_text(text)
    assert command.main([str(tmp_path / "parity.json")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["parity.json"]


@pytest.mark.parametrize(
    "damage",
    [
        dict(not_run=None),
        dict(not_run=[7]),
        dict(header=[1, 2]),
        dict(header="device CPU"),
        {"case": None},
        {"worst": 3},
        {"taps": [{"tap": 1}]},
    ],
    ids=str,
)
def test_a_damaged_report_leaves_no_file(tmp_path, capsys, damage):
    report.write([broken()], ["device CPU"], tmp_path / "first", EN, ["x"])
    stored = json.loads((tmp_path / "first/parity.json").read_text())
    for key, value in damage.items():
        (stored if key in stored else stored["results"][0])[key] = value
    (tmp_path / "parity.json").write_text(json.dumps(stored))
    assert command.main([str(tmp_path / "parity.json"), "-o", str(tmp_path / "second")]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and "is no parity.json of this version" in said.err
    assert said.err.count("\n") == 1 and not (tmp_path / "second").exists()


def test_a_report_of_other_limits_is_refused(tmp_path, capsys):
    report.write([net()], [], tmp_path)
    stored = json.loads((tmp_path / "parity.json").read_text())
    stored["limits"]["fp32"]["ratio_fail"] = 4
    (tmp_path / "parity.json").write_text(json.dumps(stored))
    assert command.main([str(tmp_path / "parity.json")]) == 2
    assert "other limits" in capsys.readouterr().err


def test_a_run_is_shown_again_in_chinese(tmp_path, capsys):
    report.write([net(), broken()], [EN("header.rules")], tmp_path, EN, [])
    assert command.main([str(tmp_path / "parity.json"), "--lang", "zh", "-o", str(tmp_path / "zh")]) == 0
    assert "真值 float64 torch" in capsys.readouterr().out
    assert "精度比对报告" in (tmp_path / "zh/parity.html").read_text()


# ------------------------------------------------------------------------------------- no words outside the table

# Constants of these calls, and of comparisons, subscripts and dictionary keys, are never shown.
SILENT_CALLS = {
    "getattr",
    "startswith",
    "endswith",
    "open",
    "get",
    "rpartition",
    "partition",
    "split",
    "compile",
    "match",
}
SILENT_CALLS |= {
    "sub",
    "join",
    "replace",
    "with_name",
    "read_text",
    "fullmatch",
    "w",
    "EN",
    "check",
    "raw",
}
# Calls whose first argument is no text: the kind of an element; keywords name attributes.
ELEMENTS = {"tag", "_section"}
# Names of files, of CSV columns, of the keys of JSON and data, of gates and dtypes; escapes of JSON.
ALONE = r"(parity\.)?(csv|json|md|html)|G\d|fp\d+|FAIL.*|utf-8|[a-z_]+|zh-CN|-?1e\d+|\\u\w+"
# Pieces of anchors, and of workflow commands of GitHub.
INSIDE = r"::error|title=|file=|line=|/|growth/|parity\."
INSIDE += "".join(
    f"|{re.escape(key)}|{re.escape(key.partition('.')[0])}\\." for key in TABLE
)  # keys of the table


def spoken(source):
    """String constants of a module that a user could read: all but the silent ones above."""
    tree = ast.parse(source)
    silent = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Raise, ast.Compare, ast.Subscript)):
            silent |= {id(n) for n in ast.walk(node)}
        elif isinstance(node, ast.Dict):
            silent |= {id(key) for key in node.keys}
        elif isinstance(node, ast.Expr):
            silent.add(id(node.value))
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in SILENT_CALLS:
                deep = called in ("w", "EN", "endswith", "startswith")  # a choice of keys, a tuple of endings
                silent |= {id(n) for arg in node.args for n in (ast.walk(arg) if deep else [arg])}
            if called in ELEMENTS:
                silent |= {id(arg) for arg in node.args[:2] if not isinstance(arg, ast.BinOp)}
                silent |= {id(n) for k in node.keywords if k.arg != "title" for n in ast.walk(k.value)}
    joined = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            text = re.sub(r"</?\w*( class=\"?\w*\"?)?>?", "", node.value).strip()  # markup is no word
            formal = INSIDE if id(node) in joined else INSIDE + "|" + ALONE
            if re.search(r"[A-Za-z]{2,}", text) and not re.fullmatch(formal, text):
                found.append(text)
    return found


@pytest.mark.parametrize("module", ["report.py", "html.py", "figures.py"])
def test_no_word_stands_outside_the_table(module):
    assert spoken((ROOT / "parity/harness" / module).read_text()) == []


def test_a_word_outside_the_table_is_found():
    source = (ROOT / "parity/harness/report.py").read_text()
    place = 'lines += ["", heading('
    assert place in source
    assert spoken(source.replace(place, 'lines += ["All is well", heading(')) == ["All is well"]
    assert spoken(source.replace(place, 'lines += [f"{1} taps too many", heading(')) == ["taps too many"]
    assert spoken(source.replace(place, 'lines += [f"{1} taps", heading(')) == ["taps"]
    assert spoken(source.replace(place, 'lines.append("All is well"); lines += ["", heading(')) == [
        "All is well"
    ]


def test_ratios_and_numbers():
    assert [figures.num(x) for x in (0, 2e-5, 0.5, 1234, 5e6, float("inf"), float("nan"))] == [
        *("0.00", "2e-05", "0.50", "1234", "5e+06", "inf", "inf")
    ]
    assert figures.alike(net().taps[0]) == figures.alike(net().taps[2]) != figures.alike(net().taps[1])
