# SPDX-License-Identifier: Apache-2.0
"""The page: self-contained, complete, in both languages, safe for any name, its limits those of the judge."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from parity.harness import gates, html
from parity.harness.words import EN, TABLE, Words
from tests.harness.test_report import broken, metrics, net, part
from tests.layout.tree import ROOT

ZH = Words("zh")
TEMPLATE = (ROOT / "parity/harness/report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Elements, texts and ids of a page; balanced, or an AssertionError."""

    VOID = ("meta", "link", "br", "input")

    def __init__(self, source):
        super().__init__()
        self.open, self.ids, self.texts, self.tags, self.links, self.scripts = [], [], [], [], [], []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes[key] for key in ("href", "src") if key in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style" and data.strip():
            self.texts.append(data.strip())


def data_of(page):
    return json.loads(page.scripts[0])


@pytest.fixture(scope="module")
def results():
    guilty = [f"blocks.{i}.fc" for i in range(28)]
    return [
        net(dtype="fp64"),
        net(),
        broken(case="latte.Latte-bad-thin"),
        part("A", 1e-7),
        net(depth=3, case="latte.Latte-class", bad=guilty[:1]),
    ]


@pytest.mark.parametrize("w", [EN, ZH], ids=["en", "zh"])
def test_the_page_is_whole_and_needs_nothing_else(results, w):
    source = html.page(results, ["device CPU"], w, ["G5"], "3 FAIL")
    page = Page(source)
    assert not re.search(r"@@\w+@@", source)
    assert all(link.startswith("#") for link in page.links), page.links
    assert not re.search(r"url\(|@import|https?://", source)
    for key in ("summary", "failures", "contract", "nets", "spread", "all", "rules"):
        assert key in page.ids and w(f"page.{key}") in page.texts
    for text in ("device CPU", "3 FAIL", w("line.not_run", what="G5"), "latte.Latte-thin", w("rule.G1")):
        assert any(text in found for found in page.texts)
    assert len(page.ids) == len(set(page.ids))


def test_a_page_in_chinese_says_nothing_in_english(results):
    shown = [text for text in Page(html.page(results, [], ZH, [], "")).texts]
    english = [text for text in shown if re.search(r"\b(the|of|and|error|disagrees|limit|port|taps)\b", text)]
    # Names of files, layers and bugs stay.
    assert [
        text for text in english if not re.search(r"pytest|parity\.|looks like a bug|nearest: another", text)
    ] == []


def test_every_failure_has_an_article_with_its_story():
    result = broken()
    page = Page(html.page([net(), result], []))
    assert html.anchor(result) in page.ids
    text = "\n".join(page.texts)
    for kept in (
        "looks like a bug",
        "ms_latte/models/mlp.py:88",
        "[2] port 1",
        result.reproduce,
        result.repro,
        "check 4",
    ):
        assert kept in text
    assert text.count(EN("fail.same", count=27)) == 1  # equal culprits of other blocks are folded
    assert f"#{html.anchor(result, 'blocks.0.fc#0')}" in page.links
    assert EN("page.no_failures") in "\n".join(Page(html.page([net()], [])).texts)
    assert EN("page.nothing") in "\n".join(Page(html.page([], [])).texts)


def test_data_hold_every_tap_in_three_digits(results):
    stored = data_of(Page(html.page(results, [])))
    assert [len(run["tap"]) for run in stored["runs"]] == [len(result.taps) for result in results]
    for run, result in zip(stored["runs"], results, strict=True):
        for i, tap in enumerate(result.taps):
            assert stored["strings"][run["tap"][i]] == tap.tap
            assert stored["verdicts"][run["verdict"][i]][0] == tap.verdict
            assert run["lc"][i] == pytest.approx(tap.local.e_c, rel=5e-3)
            if "pc" in run:
                assert run["pc"][i] == pytest.approx(tap.prop.e_c, rel=5e-3)
    assert stored["words"]["js.search"] == EN.raw("js.search")


def test_what_is_no_number_survives():
    result = net(depth=2)
    result.taps[0].local = metrics(math.inf, math.nan)
    result.taps[1].local = None
    result.taps[2].predicted = 1e-6
    source = html.page([result], [])
    run = data_of(Page(source))["runs"][0]
    assert run["lc"][0] == math.inf and run["lr"][0] is None
    assert run["pred"][2] == 1e-6 and run["pred"][0] is None
    assert not re.search(r"\bNaN\b|\bInfinity\b|>nan<", json.dumps(Page(source).scripts[0]))


def test_names_cannot_break_the_page():
    evil = "</script><img src=x onerror=alert(1)>&\"'\u2028"
    result = broken()
    result.case = result.reproduce = result.taps[0].reason = evil
    result.worst, result.diagnosis, result.notes = [evil], [evil], [evil]
    page = Page(html.page([result], [evil], EN, [evil], evil))
    assert not any(tag == "img" for tag, _ in page.tags)
    assert len(page.scripts) == 2 and data_of(page)["runs"][0]["case"] == evil
    assert "\u2028" not in page.scripts[0]


# ------------------------------------------------------------------------------------------------- curves


def test_a_deep_net_gets_its_curves():
    result = net()
    page = Page(html.page([result], []))
    curves = [
        attributes for tag, attributes in page.tags if tag == "path" and attributes["class"] == "curve port"
    ]
    local, prop = (attributes["d"] for attributes in curves if attributes["d"].count("L") > 20)
    assert (local.count("L"), prop.count("L")) == (27, 28)  # the net itself has no local error
    assert sum(attributes.get("class") == "hover" for _, attributes in page.tags) == 28 + 29
    assert "curve pred" not in str(page.tags)
    result.taps[1].predicted = result.taps[3].predicted = 1e-7
    assert "curve pred" in str(Page(html.page([result], [])).tags)
    shallow = Page(html.page([net(depth=3)], []))
    assert not any(tag == "figure" for tag, _ in shallow.tags)


def test_curves_survive_zeros_and_infinities():
    result = net()
    zero = metrics(0.0, 0.0)
    for tap in result.taps:
        tap.local = tap.prop = zero
    assert "<figure" in html.page([result], [])
    result.taps[5].prop = metrics(math.inf, math.nan)
    drawn = re.findall(r'(?:\bd|x|y|width|height)="([^"]*)"', html.page([result], []))
    assert len(drawn) > 100 and not any(re.search("nan|inf", place) for place in drawn)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_limits_of_the_curves_are_those_of_the_judge(dtype):
    """Whatever lies above a drawn limit failed, whatever lies below did not."""
    for factor in (0.99, 1.01):
        for kind in ("local", "prop"):
            result = net(dtype=dtype)
            tap = result.taps[9]
            allowed = html.limit(result, tap, kind)
            wrong = replace(getattr(tap, kind), e_c=factor * allowed, m_c=0.0)
            setattr(tap, kind, wrong)
            gates.mark(result.taps, dtype, 28)
            assert tap.failed == (factor > 1), (kind, factor, tap)


# ------------------------------------------------------------------------------------------------- distributions


def test_histogram_counts_every_element():
    rng = np.random.default_rng(0)
    t = rng.standard_normal((7, 9))
    c, r = t + 1e-3 * rng.standard_normal(t.shape), t + 1e-6
    r[0, 0], c[1, 1], c[2, 2] = t[0, 0], np.inf, np.nan
    found = gates.histogram(c, r, t)
    assert sum(found["port"]) == 63 and sum(found["reference"]) == 62 and found["exact"] == [0, 1]
    assert found["port"][-1] == 2  # not finite
    centre = np.average(found["edges"][:-1], weights=found["reference"])
    assert abs(centre + 6) < 0.5
    result = broken()
    result.histogram = found
    text = html.page([result], [])
    assert EN("page.values", tap="blocks.0.fc") in text and 'class="bar ref"' in text


def test_every_group_has_its_distribution(results):
    page = Page(html.page(results, []))
    groups = html.grouped(results)
    shown = [text for text in page.texts if re.search(r": \d+ taps$", text)]
    assert len(shown) == len(groups) == 2
    counted = sum(int(text.rpartition(": ")[2].split()[0]) for text in shown)
    assert counted == sum(len(result.taps) for result in results)


# ------------------------------------------------------------------------------------------------- the template


def script_words(source):
    """String literals of the page's script that look like words for a reader: a blank between words, or a capital."""
    script = source.rpartition("<script>")[2]
    script = re.sub(r"^\s*//.*$|(?<=[;{]) // .*$|\s// [^\"]*$", "", script, flags=re.MULTILINE)
    literals = re.findall(r'"((?:[^"\\\n]|\\.)*)"', script)
    known = {"use strict", *(f"rgba(var(--{name})," for name in ("bad", "from", "mid", "good"))}
    found = [
        text
        for text in literals
        if text not in known and re.search(r"[A-Za-z]{2,} [A-Za-z]{2,}|\b[A-Z][a-z]+", text)
    ]
    technical = ("FAIL local", "FAIL end", "section > h2", "Infinity", "details.net")
    return [text for text in found if text not in technical and not text.startswith(("badge", "article a["))]


def template_words(source):
    """Texts of the template itself: everything that a reader sees is a placeholder."""
    return [text for text in Page(source).texts if re.sub(r"@@\w+@@", "", text).strip()]


def test_the_template_holds_no_words():
    assert template_words(TEMPLATE) == []
    assert script_words(TEMPLATE) == []


def test_words_in_the_template_are_found():
    assert template_words(TEMPLATE.replace("<h1>@@title@@", "<h1>Report")) == ["Report"]
    assert script_words(TEMPLATE.replace('W["js.more"])', '"Show more")')) == ["Show more"]


def test_the_script_asks_for_words_that_exist():
    asked = set(re.findall(r'W\["([\w.]+)"\]|\["((?:js|column|group)\.[\w.]+)",', TEMPLATE))
    asked = {one or other for one, other in asked}
    assert len(asked) > 20 and asked <= set(TABLE)


def test_the_page_of_a_large_run_stays_small():
    """28 blocks twice over, eight taps each, four runs: at most 80 bytes a tap."""
    large = []
    for dtype in ("fp64", "fp32", "fp16", "bf16"):
        result = net(dtype=dtype)
        for j in range(8):
            result.taps[:0] = [
                replace(
                    tap, tap=f"{tap.tap[:-2]}.part{j}#0", local=metrics(1.2345e-7), prop=metrics(3.456e-7)
                )
                for tap in net(depth=56).taps[:-1]
            ]
        large.append(result)
    count = sum(len(result.taps) for result in large)
    assert count > 3600
    assert len(html._embedded(html.data(large))) < 80 * count
