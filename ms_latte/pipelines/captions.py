# SPDX-License-Identifier: Apache-2.0
"""Captions as the published pipelines hand them to the tokenizer.

Without cleaning a caption is lowered and stripped. Cleaning has the effect of the routine of DeepFloyd IF, which the
pipelines of Latte apply twice with clean_caption=True: what web pages leave goes - addresses, markup, file names,
product numbers, Chinese characters - and with it some innocent text, as when the weights were trained.
"""

import html
import re
import urllib.parse
import warnings

_DOMAIN = r"[a-zA-Z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
    "\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)


def _text_of_html(caption):
    from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning, ParserRejectedMarkup

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)  # a caption may look like a file name
        try:
            return BeautifulSoup(caption, features="html.parser").text
        except ParserRejectedMarkup as error:
            raise ValueError(
                f"the caption {caption!r} cannot be cleaned: its markup is broken ({error}); "
                "remedy: remove the sign < or switch cleaning off"
            ) from error


def _separate_words(caption):
    return re.sub("[-_]", " ", caption) if len(re.findall("[-_]", caption)) > 3 else caption


def _repair_encoding(caption):
    import ftfy

    return ftfy.fix_text(caption)


def _lower(caption):
    return urllib.parse.unquote_plus(caption).strip().lower()


# (pattern, replacement, reason), applied in this order; pattern None: the replacement is a function of the caption.
RULES = (
    (None, _lower, "%20 and + of addresses are spaces; lower case"),
    ("<person>", "person", "mark of an anonymised name, not markup"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", "", "web addresses: scheme and domains"),
    (rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", "", "the same, and what the first pass left"),
    (None, _text_of_html, "markup; entities become characters"),
    (r"@[\w\d]+\b", "", "nicknames"),
    ("[\u31c0-\u9fff]+", "", "Chinese characters, strokes, enclosed letters, hexagrams"),
    (f"[{_DASHES}]+", "-", "one kind of dash, one dash of many"),
    ("[`´«»“”¨]", '"', "one kind of quotation mark"),
    ("[‘’]", "'", "one kind of apostrophe"),
    ("&quot;?", "", "entities that were escaped twice"),
    ("&amp", "", "the same"),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " ", "addresses of hosts"),
    (r"\d:\d\d\s+$", "", "a time or article number at the end"),
    (r"\\n", " ", "a line break written as two signs"),
    (r"#\d{1,3}\b", "", "short numbers after #"),
    (r"#\d{5,}\b", "", "long numbers after #"),
    (r"\b\d{6,}\b", "", "long numbers"),
    (rf"\S+\.(?:{_FILES})", "", "file names"),
    ("[\"']{2,}", '"', "runs of quotation marks"),
    (r"\.{2,}", " ", "runs of full stops"),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " ", "signs that no sentence needs"),
    (r"\s+\.\s+", " ", "a full stop by itself"),
    (None, _separate_words, "this-is-a-file_name: words between more than three dashes"),
    (None, _repair_encoding, "text decoded wrongly"),
    (None, html.unescape, "entities again"),
    (None, html.unescape, "and entities of entities"),
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", "", "article numbers: jc6640"),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", "", "article numbers: jc6640vc"),
    (r"\b\d+[a-zA-Z]+\d+\b", "", "article numbers: 6640vc231"),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", "", "phrases of shops"),
    (r"(?:free\s)?download(?:\sfree)?", "", "phrases of download pages"),
    (r"\bclick\b\s(?:for|on)\s\w+", "", "phrases of links"),
    (rf"\b(?:{_FILES})(?:\simages?)?", "", "kinds of files"),
    (r"\bpage\s+\d+\b", "", "page numbers"),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " ", "article numbers: j2d1a2a"),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", "", "sizes: 20x30, with the Latin, the Cyrillic and the true sign"),
    (r"\b\s+:\s+", ": ", "no space before a colon"),
    (r"(\D[,./])\b", r"\1 ", "a space behind commas and full stops, but not within numbers"),
    (r"\s+", " ", "single spaces"),
    (r"""^["']([\w\W]+)["']$""", r"\1", "quotation marks around the whole"),
    ("^['_,:;-]", "", "a sign that begins it"),
    ("['_,:+-]$", "", "a sign that ends it"),
    (r"^\.\S+$", "", "a single word behind a full stop"),
    (None, str.strip, "spaces at both ends"),
)
_COMPILED = tuple((pattern and re.compile(pattern), replacement) for pattern, replacement, _ in RULES)


def clean_caption(caption):
    """The caption without what web pages left in it: all RULES in order, twice, as in the published pipelines.

    Raises ValueError if ftfy or beautifulsoup4 is not installed, and for markup that cannot be read.
    """
    try:
        for _ in range(2):
            for pattern, replacement in _COMPILED:
                caption = pattern.sub(replacement, caption) if pattern else replacement(caption)
    except ImportError as error:
        raise ValueError(
            f"cleaning captions needs ftfy and beautifulsoup4 ({error}); "
            'remedy: pip install "ms-latte[text]" or switch cleaning off'
        ) from error
    return caption


def prepare_captions(captions, clean=False):
    """What the tokenizer gets of a list of captions: cleaned, or lowered and stripped. Raises as `clean_caption`."""
    return [clean_caption(caption) if clean else caption.lower().strip() for caption in captions]
