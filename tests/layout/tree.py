# SPDX-License-Identifier: Apache-2.0
"""Reads a source tree without importing it. Every function takes the root, so that tests can break a copy."""

import ast
import json
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ms_latte", "torch_ref", "converters", "parity")
FRAMEWORKS = ("mindspore", "torch", "diffusers")


@cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def files(root: Path, folder: str) -> list[Path]:
    """All Python files under a folder, sorted."""
    return sorted(p for p in (root / folder).rglob("*.py") if "__pycache__" not in p.parts)


def module_name(root: Path, path: Path) -> str:
    """parity/harness/case.py -> parity.harness.case; a package's __init__ is the package."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def is_script(path: Path) -> bool:
    """Whether a file has an `if __name__ == "__main__"` block."""
    return any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in parse(path).body)


# ------------------------------------------------------------------------------------------------- imports


@dataclass(frozen=True)
class Import:
    """One imported module. lazy: inside a function. checked: under `if TYPE_CHECKING`, never executed."""

    module: str
    line: int
    lazy: bool = False
    checked: bool = False

    @property
    def top(self) -> str:
        return self.module.split(".")[0]


def imports(root: Path, path: Path) -> list[Import]:
    """Every import of a file, lazy ones and `import_module` calls included; "?" where a name is computed."""
    found: list[Import] = []
    package = module_name(root, path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]

    def visit(node: ast.AST, lazy: bool, checked: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, lazy, checked) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            found.append(Import(base, node.lineno, lazy, checked))
            found.extend(
                Import(f"{base}.{alias.name}", node.lineno, lazy, checked)
                for alias in node.names
                if (root / base.replace(".", "/") / f"{alias.name}.py").is_file()
            )
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "import_module",
            "__import__",
        ):
            found.append(Import(_literal_start(node.args[0]), node.lineno, lazy, checked))
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing = checked or (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"))
        for child in ast.iter_child_nodes(node):
            visit(child, inside, typing)

    visit(parse(path), False, False)
    return found


def _literal_start(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "?"


# ------------------------------------------------------------------------------------------------- public names


@dataclass(frozen=True)
class Definition:
    """A public class, function or name of a module. calls: method -> signature ("" for a function's own)."""

    kind: str
    calls: dict[str, str] = field(default_factory=dict)
    bases: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    own: bool = True  # a class with a body of its own, not only a docstring


# The same thing under the frameworks' names.
SYNONYMS = {"construct": "forward", "extend_repr": "extra_repr"}


def public(path: Path) -> dict[str, Definition]:
    """Public classes, functions and assigned names (aliases, tables, constants) of a file's top level."""
    found = {}
    for node in parse(path).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = _class(node)
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = Definition("function", {"": signature(node)})
        elif isinstance(node, ast.Assign):
            names = [n for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)]
            alias = (node.value.id,) if isinstance(node.value, ast.Name) else ()
            found.update({name.id: Definition("name", bases=alias) for name in names})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = Definition("name")
    return {name: definition for name, definition in found.items() if not name.startswith("_")}


def _class(node: ast.ClassDef) -> Definition:
    methods = {
        SYNONYMS.get(item.name, item.name): signature(item)
        for item in node.body
        if isinstance(item, ast.FunctionDef) and (not item.name.startswith("_") or item.name == "__init__")
    }
    fields = tuple(
        ast.unparse(ast.AnnAssign(item.target, ast.Name(""), item.value, 1)).replace(" ", "")
        for item in node.body
        if isinstance(item, ast.AnnAssign)
    )
    own = any(not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)) for item in node.body)
    return Definition("class", methods, tuple(map(ast.unparse, node.bases)), fields, own)


def signature(node: ast.FunctionDef) -> str:
    """Names, order, kinds and defaults of the parameters, without annotations."""
    arguments = node.args
    parts = []
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    for argument, default in zip(positional, defaults, strict=True):
        parts.append(argument.arg + (f"={ast.unparse(default)}" if default else ""))
    if arguments.vararg or arguments.kwonlyargs:
        parts.append("*" + (arguments.vararg.arg if arguments.vararg else ""))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parts.append(argument.arg + (f"={ast.unparse(default)}" if default else ""))
    if arguments.kwarg:
        parts.append(f"**{arguments.kwarg.arg}")
    return f"({', '.join(parts)})"


def attributes_read(root: Path, package: str, folders: Collection[str] = ()) -> set[str]:
    """Every NAME that occurs as `something.NAME` in the code of a package, or of some folders of it."""
    trees = [parse(path) for path in files(root, package) if not folders or path.parent.name in folders]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def config_keys(path: Path, name: str) -> list[str] | None:
    """Keywords of `self.config = dict(...)` in the constructor of a class."""
    owner = next(n for n in parse(path).body if isinstance(n, ast.ClassDef) and n.name == name)
    for node in ast.walk(owner):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "self.config":
            return [keyword.arg for keyword in node.value.keywords]
    return None


# ------------------------------------------------------------------------------------------------- processes


def run(root: Path, code: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter that finds the packages of `root` and writes no byte code."""
    return subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=cwd or root,
        env=environment(root),
        capture_output=True,
        text=True,
        timeout=300,
    )


def environment(root: Path | None) -> dict[str, str]:
    """The caller's environment with the packages of `root` first on the path, or (None) with none of them."""
    import os

    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, **({"PYTHONPATH": str(root)} if root else {}), "PYTHONDONTWRITEBYTECODE": "1"}


def parity_cases(root: Path) -> list[dict[str, str]]:
    """File, target and method of every parity case of a tree."""
    code = (
        "import json; from parity.harness.case import collect; "
        "print(json.dumps([dict(file=c.file, target=c.target, method=c.method) for c in collect()]))"
    )
    done = run(root, code)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
