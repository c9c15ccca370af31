# SPDX-License-Identifier: Apache-2.0
"""One table of words: two languages with the same placeholders, no limit typed twice, no sentence of the judge lost."""

import ast
import dataclasses
import re
import string

import pytest

from parity.harness import gates, html, report, words
from parity.harness.gates import LIMITS, SEMANTIC, Limits
from parity.harness.words import EN, ITEMS, KEPT, REASONS, TABLE, Words, clip, pad, width
from tests.layout.tree import ROOT

ZH = Words("zh")
SHOWN = (
    "parity/harness/report.py",
    "parity/harness/html.py",
    "parity/harness/figures.py",
    "parity/conftest.py",
    "parity/compare.py",
    "parity/report.py",
    "parity/api.py",
    "parity/harness/score.py",
)
G5_KINDS = ("drift", "training", "graph mode")
JUDGES = ("gates.py", "behaviour.py", "training.py", "runner.py", "diagnosis.py")
# What stands in a Chinese sentence as it is: names of things, not words.
NAMES = r"float\d+|fp\d+|bf16|torch|MindSpore|LayerNorm|CPU|sha256|max|rms|NaN|Inf|GiB|PSS|ULP|PyNative|G\d|L2|Ascend"


def fields(text):
    """Placeholders of a text: {("limit", ".0e"), ...}."""
    return {(name, spec) for _, name, spec, _ in string.Formatter().parse(text) if name is not None}


def constants(source):
    """String constants of a Python source, docstrings left out."""
    tree = ast.parse(source)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    joined = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | joined
    }


def unequal(table):
    """Rows whose two languages differ in their placeholders, or of which one is missing or not translated."""
    return [
        source
        for source, translated in table
        if fields(source) != fields(translated) or not translated.strip() or _untranslated(source, translated)
    ]


def _untranslated(source, translated):
    plain = re.sub(rf"\{{[^}}]*\}}|{NAMES}|\(-\w.*?\)|--\w+", "", source)
    return source == translated and re.search(r"[a-z]{3}", plain) is not None


@pytest.mark.parametrize("table", [list(TABLE.values()), REASONS, ITEMS], ids=["table", "reasons", "items"])
def test_both_languages_say_the_same(table):
    assert len(table) > 1
    assert unequal(table) == []


def checks_of_the_judge():
    """Names that the judge's modules give to contract checks."""
    sources = [path.read_text() for path in sorted((ROOT / "parity").rglob("*.py"))]
    found = {name for source in sources for name in re.findall(r'\bCheck\(\s*f?"([^"]+)"', source)}
    assert "taps of {who}" in found
    return found - {"taps of {who}"} | {"taps of port", "taps of truth"}


def test_every_check_has_a_name_in_both_languages():
    assert {name for name in checks_of_the_judge() if f"check.{name}" not in TABLE} == set()


def test_every_key_is_used_and_every_used_key_exists():
    used = set().union(*(constants((ROOT / path).read_text()) for path in SHOWN))
    script = (ROOT / "parity/harness/report.html").read_text()
    used |= set(re.findall(r'"([a-z]+\.[\w.]+)"', script)) | {f"js.{which}" for which in ("local", "prop")}
    used |= {f"{kind}.{verdict}" for kind in ("verdict", "mean") for verdict in html.VERDICTS}
    used |= {"page.growth_local", "page.growth_prop"} | {
        f"page.{field.name}" for field in dataclasses.fields(Limits)
    }
    used |= {f"{part}.{kind}" for part in ("gate", "heading") for kind in G5_KINDS}
    used |= {f"check.{name}" for name in checks_of_the_judge()}
    said = {key for key in TABLE if not key.startswith("js.") and key.partition(".")[2] in used}
    assert [key for key in TABLE if key not in used | said] == []
    prefixes = {key.partition(".")[0] for key in TABLE}
    keyed = {key for key in used if re.fullmatch(rf"({'|'.join(prefixes)})\.[\w ]+", key)}
    assert keyed - set(TABLE) == set()


# ------------------------------------------------------------------------------------------------- limits


def typed(table):
    """Numbers of a text that are no placeholders and no part of a name."""
    found = {}
    for key, (text, _) in table.items():
        bare = re.sub(rf"\{{[^}}]*\}}|{NAMES}", "", text)
        numbers = set(re.findall(r"(?<![\w.])\d[\d.]*(?:e-?\d+)?", bare))
        if numbers - {"0"}:
            found[key] = numbers
    return found


def test_no_limit_is_typed():
    assert typed(TABLE) == {}


def test_texts_follow_the_limits(monkeypatch):
    before = [EN(f"rule.{gate}") for gate in html.GATES], html.page([], [])
    monkeypatch.setitem(LIMITS, "fp16", Limits(2.0**-11, 7, 1.25, 1e-3, 1e-4, 5, 2, 1e-2))
    monkeypatch.setitem(SEMANTIC, "composed", 3e-11)
    after = [EN(f"rule.{gate}") for gate in html.GATES], html.page([], [])
    assert "3e-11" in after[0][1] and "or 7 (" in after[0][2] and ">7<" in after[1]
    assert "3e-11" not in before[0][1] and ">7<" not in before[1]


def figures_of(text):
    """Numbers of a rule, without those that are part of a name (float64, fp32, G1)."""
    return sorted(map(float, re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?", text)))


def drifted(readme):
    """Rows of the README's table of gates whose numbers are not those of the limits."""
    rows = dict(re.findall(r"^\| (G\d [\w ]+?) *\|[^|]*\|([^|]*)\|$", readme, re.MULTILINE))
    gates = {EN(f"gate.{gate}"): gate for gate in html.GATES}
    assert set(gates) <= set(rows), "the README has no table of gates"
    return [
        gate for title, gate in gates.items() if figures_of(rows[title]) != figures_of(EN(f"rule.{gate}"))
    ]


def test_the_readme_states_the_limits_of_the_table():
    assert drifted((ROOT / "README.md").read_text()) == []


# ------------------------------------------------------------------------------------------------- the judge's English


def sentences(source):
    """Messages that a judge module can write, with 7 for every number: what goes into a reason, detail or note."""
    tree, found = ast.parse(source), []
    quoted = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    named = {
        id(n)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Check"
        for n in node.args[:1]
    }
    raised = {id(n) for node in ast.walk(tree) if isinstance(node, ast.Raise) for n in ast.walk(node)}
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in quoted | named | raised | docs:
            continue
        if isinstance(node, ast.JoinedStr):
            text = "".join(p.value if isinstance(p, ast.Constant) else _sample(p) for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if len(re.findall(r"[A-Za-z]{2,}", text)) >= 3 and " " in text and not text.startswith("python -m"):
            found.append(text)
    return found


def _sample(part):
    """A value for one placeholder; words that a message chooses from stand here."""
    chosen = {"where": "on the reference's input", "who": "port", "found": "has", "word": "NaN"}
    return chosen.get(getattr(part.value, "id", ""), "7")


# Pieces that others join into a sentence, each tried inside one: (piece, sentence around it).
PIECES = [
    ("; every layer is right", "ratio 7 above 7{}"),
    ("; the first layer whose", "ratio 7 above 7{}"),
    ("; of its 7 results", "ratio 7 above 7{}"),
    ("on the reference's input", "float64 results differ by 7 {} (limit 7, G1)"),
    ("at the end of the run", "float64 results differ by 7 {} (limit 7, G1)"),
    (" taps inherited the error", "{}; no second culprit (teacher-forced)"),
    ("final propagated error", "7 taps inherited the error; {}; 7 further culprits"),
    ("registered bugs tried", "no registered bug fits ({})"),
    (", the others not for want of time", "no registered bug fits (7{})"),
    (" (next: ", "looks like a bug (x), 7, explains 7 of the error{}"),
    ("; here the same as", "looks like a bug (x), 7, explains 7 of the error (next: 7){}"),
    (", explains 7 of the error", "{} (next: 7)"),
    ("none above 0.1", "looks like a bug (x), 7, explains 7 of the error (next: {})"),
    (" of torch)", None),
    ("alpha = 7", None),
]


def lost(source):
    """Sentences that a judge module writes and no translation knows."""
    missing = []
    for text in sentences(source):
        around = next((whole for piece, whole in PIECES if piece in text), "{}")
        if around is not None and text == ZH.translate(text) == EN.translate(text):
            whole = around.format(text)
            if ZH.translate(whole) == whole:
                missing.append(text)
    return missing


@pytest.mark.parametrize("module", JUDGES)
def test_every_sentence_of_the_judge_has_a_translation(module):
    source = (ROOT / "parity/harness" / module).read_text()
    assert sentences(source)
    assert lost(source) == [], "add these sentences to REASONS of parity/harness/words.py"


@pytest.mark.parametrize(
    ("english", "expected"),
    [
        ("from blocks.0#0", "来自 blocks.0#0"),
        ("its parts agree, their combination does not: ratio 2.00 above 1", "组合不一致: 误差比 2.00 高于 1"),
        ("a: port X(eps=1), reference X(eps=2); b: port Y, reference Z", "b: 移植 Y, 标杆 Z"),
        ("the net[aux]: the port returns a, c, the reference a, b", "移植返回 a, c, 标杆返回 a, b"),
        (
            "pos is in no checkpoint, and the port constructs another one: 1.2e+00 off, allowed 1.0e-05; b is "
            "trainable in the port, a fixed table of the reference",
            "误差 1.2e+00, 允许 1.0e-05; b 在移植中可训练",
        ),
        ("something that nobody wrote", "something that nobody wrote"),
        (
            "the port has NaN at 3 of 7 elements where the truth differs",
            "移植在 3/7 个元素上出现 NaN, 与真值不符",
        ),
    ],
)
def test_translation_is_recursive_and_never_loses_a_sentence(english, expected):
    assert expected in ZH.translate(english)
    assert EN.translate(english) == english


def test_what_results_keep_in_english_is_shown_in_chinese():
    for key in TABLE:
        if key.startswith(KEPT):
            shown = {name: "x" for name, _ in fields(TABLE[key][0])}
            assert ZH.translate(EN(key, **shown)) == ZH(key, **shown)


def test_an_unknown_language_is_refused():
    with pytest.raises(ValueError, match="expected en or zh"):
        Words("de")


# ------------------------------------------------------------------------------------------------- widths


def test_wide_characters_take_two_columns():
    assert width("误差比 abc") == 10
    assert width("e\u0301") == 1
    assert [width(pad(text, 12)) for text in ("误差比", "ratio", "")] == [12, 12, 12]
    assert pad("误差", 6, right=True) == "  误差"
    assert clip("误差误差", 5) == "误差…" and clip("abc", 3) == "abc"


# ---------------------------------------------------------------------------------------------- the checks themselves


def test_a_placeholder_lost_in_translation_is_found():
    assert unequal([("limit {limit}", "限值")]) == ["limit {limit}"]
    assert unequal([("limit {limit:.0e}", "限值 {limit}")]) == ["limit {limit:.0e}"]
    assert unequal([("not translated", "not translated")]) == ["not translated"]
    assert unequal([("fp32 {x}", "fp32 {x}")]) == []


def test_a_typed_limit_is_found():
    assert typed({"a": ("at most 1e-10 of G2 in float64", ""), "b": ("{x} 3 times", "")}) == {
        "a": {"1e-10"},
        "b": {"3"},
    }


def test_a_drifting_readme_is_found():
    readme = (ROOT / "README.md").read_text()
    assert readme.count("at most 1e-10 (") == 1
    assert drifted(readme.replace("at most 1e-10 (", "at most 1e-9 (")) == ["G1"]


def test_a_sentence_without_translation_is_found():
    source = 'def f(x):\n    """Doc string with words."""\n    return f"the moon is {x} too large"\n'
    assert lost(source) == ["the moon is 7 too large"]
    raised = 'def f(x):\n    raise ValueError("the moon is too large")\n'
    assert lost(raised) == []


def test_modules_of_this_test_are_the_ones_in_use():
    assert report.LIMITS is gates.LIMITS is words.LIMITS
