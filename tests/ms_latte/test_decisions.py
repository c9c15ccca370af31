# SPDX-License-Identifier: Apache-2.0
"""DECISIONS.md is complete and true: every point has a row, every quirk its tag, every decision a test."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "ms_latte" / "models"
WORDS = ("kept", "fixed", "refused", "not ours yet")
IDS = (
    [f"C1-{n}" for n in (*range(1, 26), 29, 30, 31)]
    + [f"C5-{n}" for n in range(1, 25)]
    + [f"C6-{n}" for n in range(1, 15)]
    + [f"O-{n}" for n in range(1, 5)]
    + [f"S-{n}" for n in range(1, 3)]
    + ["D-1"]
)


def rows():
    lines = (MODELS / "DECISIONS.md").read_text(encoding="utf-8").splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if re.match(r"\| [A-Z]\d*-\d", line)
    ]
    assert all(len(row) == 5 for row in cells)
    return cells


def quirks(package):
    """(file, tag) of every quirk in a package."""
    return {
        (path.relative_to(ROOT / package).as_posix(), tag)
        for path in (ROOT / package).rglob("*.py")
        for tag in re.findall(r"QUIRK\((\w+)\)", path.read_text(encoding="utf-8"))
    }


def test_every_point_has_one_row():
    assert [row[0] for row in rows()] == IDS


@cache
def defined_tests():
    """Names of all test functions of the repository."""
    return {
        test
        for path in (ROOT / "tests").rglob("test_*.py")
        for test in re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.M)
    }


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_row(row):
    """Decided in one of four words; the files and the test functions exist."""
    name, _, decision, where, tests = row
    assert decision.startswith(WORDS), f"{name}: {decision!r} starts with none of {', '.join(WORDS)}"
    if decision.startswith("not ours yet"):
        assert (where, tests) == ("-", "-")
        return
    for file in where.split(", "):
        assert (ROOT / file if file == "converters" else MODELS / file).exists(), f"{name}: no {file}"
    named = re.findall(r"`(test_\w+)`", tests)
    assert named and tests == ", ".join(f"`{test}`" for test in named)
    assert not set(named) - defined_tests(), f"{name} names tests that do not exist"


def test_quirks_are_the_same_in_both_twins_and_decided():
    tags = quirks("ms_latte")
    twinned = {(file, tag) for file, tag in tags if (ROOT / "torch_ref" / file).exists()}
    assert twinned == quirks("torch_ref") and twinned
    text = "\n".join(row[2] for row in rows() if not row[2].startswith("refused"))
    assert {tag for _, tag in tags} == set(re.findall(r"QUIRK\((\w+)\)", text))


@pytest.mark.parametrize(("package", "framework"), [("ms_latte", "mindspore"), ("torch_ref", "torch")])
def test_models_are_self_contained(package, framework):
    """The networks import their framework, numpy, the standard library and their own package."""
    allowed = {package, framework, "numpy", *sys.stdlib_module_names}
    for path in (ROOT / package / "models").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, path
