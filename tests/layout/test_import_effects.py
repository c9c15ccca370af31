# SPDX-License-Identifier: Apache-2.0
"""Importing does nothing: no framework, no file written, no process, no network; and either framework may be absent."""

import json

import pytest

from tests.layout.test_imports import is_worker_module
from tests.layout.tree import FRAMEWORKS, PACKAGES, ROOT, files, module_name, run

PROBE = """
import importlib, json, os, sys, sysconfig
import numpy  # sets variables of its own BLAS when imported

modules, blocked, watched = json.loads(sys.argv[1])
found, here = [], ""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EVENTS = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "subprocess.Popen", "os.system",
          "socket.connect", "socket.getaddrinfo", "os.putenv")
HOME = tuple(map(os.path.realpath, (sys.prefix, sys.base_prefix, sysconfig.get_path("purelib"))))


def watch(event, args):
    if not here:
        return
    if event == "open":
        path, mode, flags = args
        if isinstance(path, str) and (flags or 0) & WRITES and path != os.devnull:
            if not os.path.realpath(path).startswith(HOME):
                found.append(f"{here} opens {path} for writing")
    elif event in EVENTS:
        found.append(f"{here}: {event} {args[:1]}")


class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)


sys.meta_path.insert(0, Block())
sys.addaudithook(watch)
for name in modules:
    here = name if watched else ""
    try:
        importlib.import_module(name)
    except BaseException as error:
        found.append(f"{name} cannot be imported: {type(error).__name__}: {error}")
    here = ""
    if watched:
        for framework in ("mindspore", "torch", "diffusers"):
            if framework in sys.modules and framework not in blocked:
                found.append(f"{name} loads {framework}")
                blocked.append(framework)  # once
print("\\n" + json.dumps(found))
"""


def effects(root, modules, blocked=(), watched=True, cwd=None):
    """What importing modules, in one fresh process, does that it should not."""
    request = json.dumps([modules, list(blocked), watched])
    done = run(root, f"import sys; sys.argv[1:] = [{request!r}]\n{PROBE}", cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def light(root):
    """Modules that must load no framework: every package itself, all of converters, the judge."""
    modules = list(PACKAGES) + [
        module_name(root, path)
        for path in [*files(root, "converters"), *files(root, "parity")]
        if not is_worker_module(path)
    ]
    modules += [
        module_name(root, path)
        for package in ("ms_latte", "torch_ref")
        for path in files(root, package)
        if path.name in ("__init__.py", "device.py", "config.py", "positional.py")
    ]
    return [name for name in dict.fromkeys(modules) if not name.endswith("__main__")]


def everything(root, package):
    return [module_name(root, path) for path in files(root, package) if path.name != "__main__.py"]


def test_importing_has_no_effects(tmp_path):
    modules = light(ROOT)
    assert {"parity.harness.gates", "parity.models.latte", "converters.stream", "ms_latte.device"} <= set(
        modules
    )
    assert effects(ROOT, modules, cwd=tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("absent", FRAMEWORKS)
def test_the_judge_and_the_converters_need_no_framework(absent):
    assert effects(ROOT, light(ROOT), [absent]) == []


def test_the_port_needs_no_torch(tmp_path):
    blocked = ["torch", "diffusers", "transformers", "torch_ref", "parity", "tests"]
    modules = everything(ROOT, "ms_latte")
    assert "ms_latte.checkpoint" in modules
    assert effects(ROOT, modules, blocked, watched=False, cwd=tmp_path) == []
    assert list(tmp_path.iterdir()) == []  # MindSpore likes to leave folders behind


def test_the_reference_needs_no_mindspore():
    blocked = ["mindspore", "diffusers", "transformers", "ms_latte", "converters", "parity", "tests"]
    assert effects(ROOT, everything(ROOT, "torch_ref"), blocked, watched=False) == []


# ---------------------------------------------------------------------------------------------- the checks themselves


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import torch", "converters.stream loads torch"),
        ("open('left_behind.txt', 'w').close()", "converters.stream opens left_behind.txt for writing"),
        ("import os\nos.environ['GLOG_v'] = '3'", "converters.stream: os.putenv"),
        (
            "import subprocess, sys\nsubprocess.run([sys.executable, '-V'])",
            "converters.stream: subprocess.Popen",
        ),
        ("raise RuntimeError('at import')", "converters.stream cannot be imported: RuntimeError: at import"),
    ],
)
def test_an_effect_is_found(broken, line, found):
    root, edit = broken
    edit("converters/stream.py", "", f"\n{line}\n")
    assert any(problem.startswith(found) for problem in effects(root, ["converters.stream"]))


def test_a_needed_framework_is_found(broken):
    root, edit = broken
    edit("parity/harness/case.py", "", "\nimport torch\n")
    assert "blocked" in effects(root, ["parity.harness.case"], ["torch"])[0]
