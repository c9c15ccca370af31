# SPDX-License-Identifier: Apache-2.0
"""Every command answers --help from any folder, quickly: without loading a framework."""

import itertools
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.layout.tree import FRAMEWORKS, PACKAGES, ROOT, environment, files, is_script, module_name

# Started by another process and spoken to through a pipe: not a command.
NOT_COMMANDS = {"parity.harness.worker"}


def scripts(root):
    """Paths of files that are run as commands."""
    found = [path for package in PACKAGES for path in files(root, package) if is_script(path)]
    return [
        path for path in found if module_name(root, path) not in NOT_COMMANDS and path.name != "__main__.py"
    ]


def mains(root):
    """Packages that answer to `python -m PACKAGE`."""
    return [
        module_name(root, path.parent / "__init__.py")
        for package in PACKAGES
        for path in files(root, package)
        if path.name == "__main__.py"
    ]


def ask(arguments, cwd, root=None):
    """(return code, stdout, frameworks loaded, stderr) of a Python command; root None: nothing on the path."""
    variables = environment(root)
    with tempfile.TemporaryDirectory() as folder:
        if root is None:  # not through an editable install either: Python reads this file after those
            forget = f"import sys\nsys.path[:] = [place for place in sys.path if place != {str(ROOT)!r}]\n"
            Path(folder, "sitecustomize.py").write_text(forget)
            variables["PYTHONPATH"] = folder
        done = subprocess.run(
            [sys.executable, "-B", "-X", "importtime", *map(str, arguments)],
            cwd=cwd,
            env=variables,
            capture_output=True,
            text=True,
            timeout=120,
        )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line}
    assert "os" in loaded or "site" in loaded  # the log of imports is there
    words = "\n".join(line for line in done.stderr.splitlines() if "import time:" not in line)
    return done.returncode, done.stdout, sorted(loaded & set(FRAMEWORKS)), words


def verbs_of(text):
    """The verbs of a help page: argparse's {a,b,c}, or the first words below a line "verbs:"."""
    found = re.search(r"\{([\w,-]+)\}", text)
    if found:
        return found.group(1).split(",")
    lines = text.partition("verbs:\n")[2].splitlines()
    return [line.split()[0] for line in itertools.takewhile(lambda line: line.startswith("  "), lines)]


def check(arguments, cwd, root=None):
    """The help page, after making sure that it came, from a process without frameworks."""
    code, out, loaded, err = ask([*arguments, "--help"], cwd, root)
    assert code == 0, err
    assert "usage" in out.lower()
    assert loaded == []
    return out


def test_the_known_commands_are_found():
    assert "converters.latte_converter" in [module_name(ROOT, path) for path in scripts(ROOT)]


@pytest.mark.parametrize("path", scripts(ROOT), ids=lambda path: module_name(ROOT, path))
def test_script_answers_from_another_folder(path, tmp_path):
    if path.parent.name != "parity":  # there, `python -m parity VERB` is the command
        check([path], tmp_path)  # as a file: neither installed nor on the path
    check(["-m", module_name(ROOT, path)], tmp_path, ROOT)


@pytest.mark.parametrize("package", mains(ROOT))
def test_package_and_all_its_verbs_answer(package, tmp_path):
    verbs = verbs_of(check(["-m", package], tmp_path, ROOT))
    assert verbs, f"python -m {package} --help lists no verb"
    for verb in verbs:
        assert verb in check(["-m", package, verb], tmp_path, ROOT)


# ---------------------------------------------------------------------------------------------- the checks themselves


def test_a_slow_command_is_found(broken, tmp_path):
    root, edit = broken
    edit("converters/latte_converter.py", "import sys\n", "import sys\n\nimport torch\n")
    code, _, loaded, _ = ask([root / "converters/latte_converter.py", "--help"], tmp_path)
    assert code == 0 and "torch" in loaded


def test_a_command_that_needs_its_folder_is_found(broken, tmp_path):
    root, edit = broken
    edit("converters/latte_converter.py", "if not __package__:", "if False:")
    (tmp_path / "elsewhere").mkdir()
    code, _, _, err = ask([root / "converters/latte_converter.py", "--help"], tmp_path / "elsewhere")
    assert code != 0 and "converters" in err


def test_verbs_are_read_from_the_help_page():
    assert verbs_of("usage: parity [-h] {mutants,benchmark} ...") == ["mutants", "benchmark"]
    assert verbs_of(
        "usage: x VERB\n\nverbs:\n  mutants  inject bugs\n  repro    repeat one\n\nMore: ..."
    ) == [
        "mutants",
        "repro",
    ]
    assert verbs_of("usage: tool [-h]") == []
