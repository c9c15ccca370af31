# SPDX-License-Identifier: Apache-2.0
"""Cleaned captions against the routine of diffusers' LattePipeline, on nasty strings and on random mixtures of them."""

import random
import re
import sys
from types import SimpleNamespace

import pytest
from diffusers import LattePipeline

from ms_latte.pipelines.captions import RULES, clean_caption, prepare_captions

# At least one for every rule; joined at random below, they meet in ways that nobody writes.
# fmt: off
PARTS = [
    "A Dog on a Beach", "two cats, one dog.", "seven-men", "%20", "a+b", "<person>", "<b>bold</b>",
    "<!-- no -->", "<a href='x'>", "a < b", ">", "http://a.b/c?d=e", "https:/x", "www:/y",
    "www.foo.com/a-b_c/", "foo.com", "me@bar.it", "a.co.ru", ".com", "@nick", "@ ", "中文", "㊗", "カナ", "—",
    "–", "--", "〜", "“quoted”", "«x»", "it’s", "`", "''", '""', "'", '"', "&quot;", "&quot",
    "&amp;quot;", "&amp", "&amp;amp;", "&#65;", "&lt;i&gt;", "a < ＆lt；i",
    "a < ＆amp；gt；", "192.168.10.255", "1.2.3", "at 3:45 中",
    "\\n", "\n", "#1", "#123", "#1234", "#12345", "123456", "12345", "photo.png", "my/file.mp4",
    "png image", "jpg images", "pdf", "...", "..", " . ", ".", "***SALE***", "©", "½", "¿", "~", "/",
    "|", "a-b_c-d-e", "this_is_my_cute_cat", "_", "-", "schÃ¶n", "â€œx", "jc6640", "jc6640vc",
    "6640vc231", "j2d1a2a", "free shipping", "worldwide free shipping", "free download", "download free",
    "click for more", "click on it", "page 12", "20x30", "1.5х2", "3×4", " : ", ":", ";", ",", "a,b",
    "1,000", "x.y", "!", "?", " ", "  ", "\t", "\r\n", "\u2028", "\u200b", "\x00", "İ", "ß", "ﬁ", "🐶",
    "é", ".gov", "7",
]
# fmt: on


def theirs(caption):
    pipeline = SimpleNamespace(bad_punct_regex=LattePipeline.bad_punct_regex)
    for _ in range(2):
        caption = LattePipeline._clean_caption(pipeline, caption)
    return caption


def mixtures(count):
    rng = random.Random(7)
    for _ in range(count):
        yield "".join(rng.choice(PARTS) + rng.choice(["", " "]) for _ in range(rng.randint(2, 12)))


@pytest.mark.filterwarnings("ignore::bs4.MarkupResemblesLocatorWarning")  # of theirs
def test_the_published_routine():
    captions = [
        *PARTS,
        *(f"a {part} b" for part in PARTS),
        *(f"{part}{part}" for part in PARTS),
        *mixtures(300),
    ]
    wrong = [caption for caption in captions if clean_caption(caption) != theirs(caption)]
    assert wrong == []


def test_every_rule_is_reached():
    """A rule that no string above needs is not tested by them."""
    texts = [*PARTS, *(f"a {part} b" for part in PARTS), *mixtures(100)]
    used = set()
    for text in texts:
        for _ in range(2):
            for i, (pattern, replacement, _) in enumerate(RULES):
                before, text = text, re.sub(pattern, replacement, text) if pattern else replacement(text)
                if text != before:
                    used.add(i)
    assert [reason for i, (_, _, reason) in enumerate(RULES) if i not in used] == []


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog at http://x.com/dog.png, jumping!!", "a dog at ., jumping!!"),  # not all of an address goes
        ("Slow-motion shot of waves", "slow-motion shot of waves"),
    ],
)
def test_examples(caption, expected):
    assert clean_caption(caption) == expected


def test_without_cleaning():
    assert prepare_captions(["  A <b>Dog</b> ", ""]) == ["a <b>dog</b>", ""]
    assert prepare_captions(["  A <b>Dog</b> "], clean=True) == ["a dog"]


@pytest.mark.parametrize("package", ["ftfy", "bs4"])
def test_a_missing_package(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r'pip install "ms-latte\[text\]"'):
        clean_caption("a dog")
    assert prepare_captions(["A dog"]) == ["a dog"]
