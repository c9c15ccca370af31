# SPDX-License-Identifier: Apache-2.0
"""The Chinese README says what the English one says: same sections, code, tables, identifiers and figures.

What is compared needs no knowledge of Chinese. Sections are paired by their place; everything before the first
`##` is the introduction. A complaint names the English section and what its Chinese partner lacks.
"""

import re
from collections import Counter
from itertools import zip_longest

import pytest

from tests.layout.tree import ROOT

ENGLISH = ROOT / "README.md"
CHINESE = ROOT / "ms_latte/README_CN.md"
LINKING = ("README.md", "ms_latte/README_CN.md", "ms_latte/TRAINING.md", "ms_latte/scripts/README.md")

FENCED = re.compile(r"^ *```\w*\n.*?^ *```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
# 3, 6.5, 1,990, 1e-10, 8.7e-07, 256x256, but not the digits of a name (float64, G2, 3d)
FIGURE = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)*(?:e-?\d+)?(?:x\d+)*(?![.,]?\w)", re.ASCII)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def sections(text):
    """[(heading, body)], split at `## ` outside of code blocks; the introduction comes first."""
    code = iter(FENCED.findall(text))
    parts = re.split(r"^## (.*)$", FENCED.sub("\0", text), flags=re.MULTILINE)
    bodies = [re.sub("\0", lambda _: next(code), part) for part in parts[::2]]
    return list(zip(["introduction", *parts[1::2]], bodies, strict=True))


def prose(body):
    """A section without its code blocks."""
    return FENCED.sub("", body)


def tables(body):
    """Per table its rows, per row its code spans as a sorted list."""
    found, inside = [], False
    for line in prose(body).splitlines():
        row = line.startswith("|")
        if row and not inside:
            found.append([])
        if row:
            found[-1].append(sorted(SPAN.findall(line)))
        inside = row
    return found


def spans(body):
    """Code spans outside of tables, with their counts; a span may be broken over two lines."""
    text = "\n".join(line for line in prose(body).splitlines() if not line.startswith("|"))
    return Counter(" ".join(span.split()) for span in SPAN.findall(text))


def figures(body):
    """Numbers with their counts: of sentences, table cells and code spans."""
    return Counter(FIGURE.findall(prose(body)))


def first_line(block):
    """The line behind the fence, to name a block by."""
    return block.splitlines()[1].strip()


def lacking(english, chinese):
    """What each section of the Chinese text lacks of its English partner, one line each."""
    pairs = list(zip_longest(sections(english), sections(chinese)))
    for source, translated in pairs:
        if source is None or translated is None:
            title = (source or translated)[0]
            return [f"{title}: no such section in the {'English' if source is None else 'Chinese'} text"]
    found = []
    for (title, source), (_, translated) in pairs:
        found += [f"{title}: {complaint}" for complaint in _section(source, translated)]
    return found


def _section(source, translated):
    blocks, others = FENCED.findall(source), FENCED.findall(translated)
    if len(blocks) != len(others):
        yield f"has {len(others)} code blocks instead of {len(blocks)}"
        yield from (f"lacks code block {first_line(block)!r}" for block in blocks if block not in others)
    else:
        for number, (block, other) in enumerate(zip(blocks, others, strict=True), start=1):
            lines = zip_longest(block.splitlines(), other.splitlines(), fillvalue="")
            line, changed = next((pair for pair in lines if pair[0] != pair[1]), (None, None))
            if line is not None:
                yield f"code block {number} has {changed!r} instead of {line!r}"
    for number, (rows, others) in enumerate(zip_longest(tables(source), tables(translated)), start=1):
        if rows is None or others is None:
            yield f"table {number} is in one text alone"
        elif len(rows) != len(others):
            yield f"table {number} has {len(others)} rows instead of {len(rows)}"
        else:
            for place, (row, other) in enumerate(zip(rows, others, strict=True), start=1):
                if row != other:
                    yield f"table {number} row {place} has code {other} instead of {row}"
    for what, read in (("code", spans), ("figure", figures)):
        yield from (f"lacks {what} {item!r}" for item in read(source) - read(translated))


def dangling(root, paths):
    """Local links of Markdown files that lead to no file."""
    found = []
    for path in paths:
        for target in LINK.findall(prose((root / path).read_text(encoding="utf-8"))):
            local = target.partition("#")[0]
            if not re.match(r"[a-z]+:", target) and local and not ((root / path).parent / local).is_file():
                found.append(f"{path}: {target}")
    return found


def test_the_chinese_readme_lacks_nothing():
    found = lacking(ENGLISH.read_text(encoding="utf-8"), CHINESE.read_text(encoding="utf-8"))
    assert not found, "ms_latte/README_CN.md against README.md\n" + "\n".join(found)


def test_each_readme_links_the_other():
    assert "ms_latte/README_CN.md" in LINK.findall(sections(ENGLISH.read_text(encoding="utf-8"))[0][1])
    assert "../README.md" in LINK.findall(sections(CHINESE.read_text(encoding="utf-8"))[0][1])


def test_local_links_lead_to_files():
    assert dangling(ROOT, LINKING) == []


# ---------------------------------------------------------------------------------------------- the checks themselves

SOURCE = """# Title

A net of 28 layers, 1,990 runs.

## Commands

```bash
run --all   # 5 files
## not a heading
```

See `a.py` and [this](b.md): error 1e-10 in fp32 at 256x256.

| file | for |
|---|---|
| `x.yaml` | 3 frames |
| `y.yaml` | 4 frames |

```
table
```

## Limits

None.
"""
TARGET = """# 标题

网络有28层，1,990 次运行。

## 命令

```bash
run --all   # 5 files
## not a heading
```

见 `a.py` 与[此处](../b.md)：256x256 时 fp32 误差为1e-10。

| 文件 | 用途 |
|---|---|
| `x.yaml` | 3 帧 |
| `y.yaml` | 4 帧 |

```
table
```

## 限制

无。
"""


def test_a_faithful_translation_passes():
    assert [title for title, _ in sections(SOURCE)] == ["introduction", "Commands", "Limits"]
    assert lacking(SOURCE, TARGET) == []


@pytest.mark.parametrize(
    ("old", "new", "complaints"),
    [
        ("1,990", "1,991", ["introduction: lacks figure '1,990'"]),
        ("1e-10", "1e-9", ["Commands: lacks figure '1e-10'"]),
        ("`a.py`", "a.py", ["Commands: lacks code 'a.py'"]),
        (
            "--all  ",
            "--all ",
            ["Commands: code block 1 has 'run --all  # 5 files' instead of 'run --all   # 5 files'"],
        ),
        (
            "\n```\ntable\n```\n",
            "",
            ["Commands: has 1 code blocks instead of 2", "Commands: lacks code block 'table'"],
        ),
        (
            "| `y.yaml` | 4 帧 |\n",
            "",
            [
                "Commands: table 1 has 3 rows instead of 4",
                "Commands: lacks figure '4'",
            ],
        ),
        ("`y.yaml`", "`z.yaml`", ["Commands: table 1 row 4 has code ['z.yaml'] instead of ['y.yaml']"]),
        ("## 限制\n\n无。\n", "", ["Limits: no such section in the Chinese text"]),
        ("## 限制", "## 更多\n\n## 限制", ["限制: no such section in the English text"]),
    ],
)
def test_a_flaw_is_named_with_its_section(old, new, complaints):
    assert TARGET.count(old) == 1
    assert lacking(SOURCE, TARGET.replace(old, new)) == complaints


def test_figures_are_numbers_not_parts_of_names():
    text = "3 of 1,990 bf16, G2: 6.5, 1e-10; 8.7e-07 at 256x256, AVX-512，共28层 3d 0.009 %."
    found = ["3", "1,990", "6.5", "1e-10", "8.7e-07", "256x256", "512", "28", "0.009"]
    assert list(figures(text)) == found


def test_code_blocks_in_another_order_are_found():
    blocks = FENCED.findall(SOURCE)
    swapped = TARGET.replace(blocks[1], "\0").replace(blocks[0], blocks[1]).replace("\0", blocks[0])
    assert lacking(SOURCE, swapped) == [
        "Commands: code block 1 has '```' instead of '```bash'",
        "Commands: code block 2 has '```bash' instead of '```'",
    ]


def test_a_flaw_in_a_copy_of_the_readme_is_found():
    english, chinese = (path.read_text(encoding="utf-8") for path in (ENGLISH, CHINESE))
    assert lacking(english.replace("Python 3.10 to 3.12", "Python 3.10 to 3.13"), chinese) == [
        "Two commands: lacks figure '3.13'"
    ]
    last = sections(english)[-1][0]
    assert lacking(english.replace(f"## {last}", f"## New\n\n## {last}"), chinese) == [
        f"{last}: no such section in the Chinese text"
    ]


def test_a_dangling_link_is_found(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.md").write_text("[here](folder/b.md#part) [web](https://x.org) [top](#top) [no](c.md)\n")
    (tmp_path / "folder/b.md").write_text("[back](../a.md) [no](a.md)\n\n```\n[code](nowhere.md)\n```\n")
    assert dangling(tmp_path, ("a.md", "folder/b.md")) == ["a.md: c.md", "folder/b.md: a.md"]
