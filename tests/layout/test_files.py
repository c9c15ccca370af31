# SPDX-License-Identifier: Apache-2.0
"""Names and first lines: the top level is fixed, licences are stated, no script is shadowed by its neighbours."""

import subprocess
import sys

from tests.layout.test_commands import scripts
from tests.layout.tree import PACKAGES, ROOT, files

TOP_LEVEL = {
    *PACKAGES,
    *("tests", "pyproject.toml", "README.md"),
    *(".gitignore", ".gitattributes", ".ci", ".pre-commit-config.yaml", ".github"),
}
SPDX = "# SPDX-License-Identifier: Apache-2.0"


def repository_files(root):
    """Paths that git keeps or would keep (new files that no rule ignores)."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return [path for path in done.stdout.split("\0") if path]


def unexpected(paths):
    """Entries of the top level that the layout does not have."""
    return sorted({path.split("/")[0] for path in paths} - TOP_LEVEL)


def without_licence(root, paths):
    """Python files whose first line (behind a #! line) is not the SPDX line."""
    missing = []
    for path in paths:
        if path.endswith(".py") and (root / path).is_file():
            lines = (root / path).read_text(encoding="utf-8").splitlines()
            lines = lines[1:] if lines and lines[0].startswith("#!") else lines
            if not lines or lines[0] != SPDX:
                missing.append(path)
    return missing


def shadowing(root):
    """Modules with a standard-library name in a folder whose files are run by path.

    `python folder/script.py` puts the folder first on the path, so such a module would replace the standard one.
    """
    folders = {path.parent for path in scripts(root)} | {root / "converters", root / "ms_latte"}
    return sorted(
        path.relative_to(root).as_posix()
        for folder in folders
        for path in folder.iterdir()
        if path.stem in sys.stdlib_module_names and (path.suffix == ".py" or (path / "__init__.py").exists())
    )


def test_top_level_holds_nothing_else():
    paths = repository_files(ROOT)
    assert {"pyproject.toml", "ms_latte/__init__.py"} <= set(paths)
    assert unexpected(paths) == []


def test_every_python_file_states_its_licence():
    paths = repository_files(ROOT)
    assert sum(path.endswith(".py") for path in paths) > 50
    assert without_licence(ROOT, paths) == []


def test_no_module_shadows_the_standard_library():
    assert shadowing(ROOT) == []


def test_every_folder_of_a_package_is_a_package():
    folders = {path.parent for package in PACKAGES for path in files(ROOT, package)}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


# ---------------------------------------------------------------------------------------------- the checks themselves


def test_intruders_are_found(broken):
    root, edit = broken
    edit("converters/inspect.py", "", "x = 1\n")
    (root / "ms_latte/json").mkdir()
    edit("ms_latte/json/__init__.py", "", f"{SPDX}\n")
    edit("ms_latte/trainer.py", "", f"#!/usr/bin/env python\n{SPDX}\n")
    assert shadowing(root) == ["converters/inspect.py", "ms_latte/json"]
    paths = ["converters/inspect.py", "ms_latte/trainer.py", "ms_latte/json/__init__.py"]
    assert without_licence(root, paths) == ["converters/inspect.py"]
    assert unexpected(["setup.py", "docs/index.md", "README.md", "tests/x.py"]) == ["docs", "setup.py"]
