# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: every import of every package, lazy ones included, against the table of the design."""

import sys

import pytest

from tests.layout.tree import PACKAGES, ROOT, files, imports, module_name

MAY_IMPORT = {
    "ms_latte": {
        *("mindspore", "numpy", "safetensors", "pydantic", "yaml", "PIL", "rich"),
        *("av", "sentencepiece", "ftfy", "bs4", "tensorboardX"),  # extras, imported where they are used
    },
    "torch_ref": {"torch", "numpy"},
    "converters": {"numpy", "safetensors"},
    "parity": {
        *("mindspore", "torch", "numpy", "safetensors", "pydantic", "yaml", "PIL", "rich"),
        *("pytest", "diffusers", "transformers", "mindone"),
        *("ms_latte", "torch_ref", "converters"),
    },
}
# One file alone may cross a border: file -> package.
GATES = {"ms_latte/checkpoint.py": "converters"}
# What loads a framework when imported.
HEAVY = ("mindspore", "torch", "diffusers", "transformers", "ms_latte", "torch_ref")


def is_worker_module(path):
    """Modules of parity that run inside a worker process and may import a framework at module level."""
    return path.name.endswith("_side.py")


def may_be_lazy(path):
    """Judge modules whose functions run inside a worker process."""
    return (
        path.parent.name in ("mutants", "others")
        or path.name == "worker.py"
        or "benchmark" in path.as_posix()
    )


def import_problems(root, package):
    """Imports of a package that the table does not allow."""
    problems, with_mindspore = [], []
    for path in files(root, package):
        name = path.relative_to(root).as_posix()
        for found in imports(root, path):
            if found.module == "?" and package != "parity":  # parity resolves twins from the name of a case
                problems.append(f"{name}:{found.line} imports a computed name")
            if package == "converters" and found.top == "mindspore" and found.lazy and "ckpt" in path.name:
                with_mindspore.append(name)
                continue
            if found.top in {package, "?", *sys.stdlib_module_names, *MAY_IMPORT[package]}:
                continue
            if GATES.get(name) != found.top:
                problems.append(f"{name}:{found.line} imports {found.module}")
    if len(set(with_mindspore)) > 1:
        problems.append(f"one file of converters may import mindspore, not {sorted(set(with_mindspore))}")
    return problems


def judge_problems(root):
    """Judge modules of parity that load a framework, or the workers' side of it, when imported."""
    problems = []
    for path in files(root, "parity"):
        if is_worker_module(path):
            continue
        for found in imports(root, path):
            side = found.module.startswith("parity.") and found.module.endswith("_side")
            if found.checked or not (found.top in HEAVY or side):
                continue
            if not (found.lazy and may_be_lazy(path)):
                problems.append(f"{path.relative_to(root).as_posix()}:{found.line} imports {found.module}")
    return problems


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_follow_the_table(package):
    walked = [found for path in files(ROOT, package) for found in imports(ROOT, path)]
    assert len(walked) > 10  # the walk sees something
    assert import_problems(ROOT, package) == []


def test_the_judge_imports_neither_framework():
    assert judge_problems(ROOT) == []


def test_nobody_imports_tests():
    offenders = [
        module_name(ROOT, path)
        for package in PACKAGES
        for path in files(ROOT, package)
        if any(found.top == "tests" for found in imports(ROOT, path))
    ]
    assert offenders == []


# ---------------------------------------------------------------------------------------------- the checks themselves


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("ms_latte/models/mlp.py", "import torch"),
        ("ms_latte/models/mlp.py", "def f():\n    from torch_ref.models import mlp"),
        ("ms_latte/device.py", "import converters"),
        ("ms_latte/device.py", "import importlib\nimportlib.import_module('parity.harness')"),
        ("torch_ref/models/mlp.py", "from ms_latte.models.positional import timestep_frequencies"),
        ("torch_ref/models/mlp.py", "import scipy"),
        ("converters/stream.py", "def f():\n    import torch"),
        ("converters/stream.py", "def f():\n    import mindspore"),
        ("converters/stream.py", "from importlib import import_module\nimport_module('to' + 'rch')"),
        ("parity/harness/case.py", "def f():\n    import tests.helpers"),
    ],
)
def test_a_forbidden_import_is_found(broken, path, line):
    root, edit = broken
    edit(path, "", f"\n{line}\n")
    assert import_problems(root, path.split("/")[0])


@pytest.mark.parametrize(
    ("path", "line", "wrong"),
    [
        ("parity/harness/gates.py", "import torch", True),
        ("parity/harness/gates.py", "def f():\n    import mindspore", True),
        ("parity/harness/runner.py", "from parity.harness import torch_side", True),
        ("parity/mutants/layers.py", "from ms_latte.models import blocks", True),
        ("parity/mutants/layers.py", "def f():\n    from ms_latte.models import blocks", False),
        ("parity/others/example.py", "import torch", True),
        ("parity/others/example.py", "def f():\n    import torch", False),
        ("parity/harness/torch_side.py", "import torch.nn", False),
    ],
)
def test_a_framework_in_the_judge_is_found(broken, path, line, wrong):
    root, edit = broken
    edit(path, "", f"\n{line}\n")
    assert bool(judge_problems(root)) is wrong
