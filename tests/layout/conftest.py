# SPDX-License-Identifier: Apache-2.0
"""A copy of the source tree that a test may break."""

import shutil

import pytest

from tests.layout.tree import PACKAGES, ROOT


@pytest.fixture
def broken(tmp_path):
    """(root, edit): a copy of all packages, and edit(path, old, new) which must find `old`."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))

    def edit(path, old, new):
        text = (tmp_path / path).read_text() if (tmp_path / path).exists() else ""
        assert old in text, f"{path} has no {old!r}: the self-test needs another place to break"
        (tmp_path / path).write_text(text.replace(old, new, 1) if old else text + new)

    return tmp_path, edit
