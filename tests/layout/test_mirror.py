# SPDX-License-Identifier: Apache-2.0
"""Twins: starred files exist three times, define the same names with equal signatures, and have parity cases."""

import re

import pytest

from tests.layout.tree import ROOT, attributes_read, config_keys, parity_cases, public

# The starred entries of the layout. A new starred file is added here first.
FOLDERS = {
    "models": (
        "precision",
        "layers",
        "positional",
        "embeddings",
        "attention",
        "mlp",
        "norms",
        "blocks",
        "latte",
        "latte_t2v",
    ),
    "diffusion": ("schedule", "respace", "gaussian", "samplers"),
    "encoders": ("vae_layers", "vae_blocks", "vae_coders", "vae", "t5"),
    "training": ("schedules", "optim", "ema", "scaler", "losses", "step"),
}
STARRED = tuple(f"{folder}/{name}.py" for folder, names in FOLDERS.items() for name in names)
PACKAGES = ("ms_latte", "torch_ref", "parity")
# Files beside starred ones that exist on one side only, with the reason.
EXTRAS = {
    "ms_latte/models/constants.py": "constant expressions of the graph compiler; torch needs none",
    "ms_latte/models/primitives.py": "operators made once; torch's are functions",
    "ms_latte/encoders/tokenizer.py": "text to whole numbers, no tensors",
    "ms_latte/encoders/text_cache.py": "files of text features, no tensors",
    **{
        f"ms_latte/training/{name}.py": "the command around the step: files, processes and lines, no arithmetic"
        for name in (
            "build",
            "feeding",
            "folder",
            "initial",
            "log",
            "loop",
            "parallel",
            "preview",
            "run",
            "run_state",
            "session",
            "sizing",
            "stopping",
        )
    },
}
# Public functions that return objects, which have cases themselves.
FACTORIES = {"diffusion/samplers.py": ("make_sampler",)}
# What has no result that a case could compare, with what judges it.
OTHERWISE = {
    "training/optim.py": {
        "AdamW": "holds state: every case of training/step.py trains with it",
        "trainable_parameters": "names: every case of training/step.py trains these",
        "decayed_names": "names: every case of training/step.py decays these",
    },
    "training/ema.py": {"EMA": "holds state: every case of training/step.py averages with it"},
    "training/scaler.py": {"LossScaler": "holds state: every case of training/step.py scales with it"},
    "training/losses.py": {"condition_kind": "a word, by which `predict` calls the net"},
}
# Public names that one twin alone defines, with the reason.
ONE_SIDED = {
    "ms_latte/models/layers.py": {"FORMULATIONS": "torch has one formulation of everything"},
    "ms_latte/models/precision.py": {"HALF_GRID": "a row of FORMULATIONS that layers.py imports"},
    "ms_latte/encoders/vae_layers.py": {
        "FORMULATIONS": "torch has one formulation of everything",
        "UNFOLDED": "memory of a formulation",
    },
}


def mirror_problems(root):
    """Everything by which the three folders fail to mirror each other."""
    problems = [
        f"{package}/{path} does not exist"
        for path in STARRED
        for package in PACKAGES
        if not (root / package / path).is_file()
    ]
    for folder in sorted({path.rpartition("/")[0] for path in STARRED}):
        for package in PACKAGES:
            for file in sorted((root / package / folder).glob("*.py")):
                path = f"{folder}/{file.name}"
                if path not in STARRED and file.name != "__init__.py" and f"{package}/{path}" not in EXTRAS:
                    problems.append(f"{package}/{path} has no twin: star it or list it in EXTRAS")
    return problems


def twin_problems(root, path):
    """Differences between the public surfaces of both twins of one file."""
    ours, theirs = public(root / "ms_latte" / path), public(root / "torch_ref" / path)
    allowed = ONE_SIDED.get(f"ms_latte/{path}", {})
    stale = [name for name in allowed if name not in ours or name in theirs]
    problems = [f"{path}: {name} is listed in ONE_SIDED without need" for name in stale]
    problems += [
        f"{path}: {name} only in ms_latte" for name in ours if name not in theirs and name not in allowed
    ]
    problems += [f"{path}: {name} only in torch_ref" for name in theirs if name not in ours]
    for name in ours:
        if name not in theirs:
            continue
        a, b = ours[name], theirs[name]
        if (a.kind, a.fields) != (b.kind, b.fields):
            problems.append(f"{path}: {name} is {a.kind} {a.fields} and {b.kind} {b.fields}")
        if a.kind == "name" and a.bases != b.bases:
            problems.append(f"{path}: {name} stands for {a.bases} and {b.bases}")
        for call in dict.fromkeys([*a.calls, *b.calls]):
            if a.calls.get(call) != b.calls.get(call):
                where = f"{name}.{call}" if call else name
                problems.append(
                    f"{path}: {where}{a.calls.get(call, ' absent')} and {b.calls.get(call, ' absent')}"
                )
    tags = [re.findall(r"QUIRK\((\w+)\)", (root / package / path).read_text()) for package in PACKAGES[:2]]
    if sorted(tags[0]) != sorted(tags[1]):
        problems.append(f"{path}: QUIRK tags {tags[0]} and {tags[1]}")
    return problems


def evidence_problems(root, cases):
    """Public classes, functions and entry methods without a parity case."""
    problems = []
    referred = attributes_read(root, "ms_latte", FOLDERS)  # pipelines and training call from outside
    for path in STARRED:
        file = path.removesuffix(".py").replace("/", ".")
        targets = {case["target"] for case in cases if case["file"] == file}
        methods = {(case["target"], case["method"]) for case in cases if case["file"] == file}
        definitions = public(root / "ms_latte" / path)
        for target in sorted(targets - set(definitions)):
            problems.append(f"{path}: a case names {target}, which does not exist")
        for name, definition in definitions.items():
            if definition.kind == "name" or "NamedTuple" in definition.bases:
                continue  # tables, constants, aliases of a class that has cases; data without computation
            if name in OTHERWISE.get(path, ()):
                continue
            inherited = not definition.own and set(definition.bases) & targets
            if name not in (*targets, *FACTORIES.get(path, ())) and not inherited:
                problems.append(f"{path}: {name} has no parity case")
            # A public method that no code of the twins calls is an entry point: it needs a case of its own.
            for method in definition.calls:
                entry = method not in ("", "__init__", "forward", "extra_repr") and method not in referred
                if entry and (name, method) not in methods:
                    problems.append(f"{path}: {name}.{method} has no parity case")
        for target, method in sorted(methods):
            if method and target in definitions and method not in definitions[target].calls:
                problems.append(f"{path}: a case calls {target}.{method}, which does not exist")
    return problems


def config_problems(root, path, name):
    """`self.config` must hold exactly the constructor arguments but precision, in order, in both twins."""
    problems = []
    for package in PACKAGES[:2]:
        arguments = re.findall(r"(\w+)=", public(root / package / path)[name].calls["__init__"])
        expected, got = [a for a in arguments if a != "precision"], config_keys(root / package / path, name)
        if got != expected:
            problems.append(f"{package}/{path}: {name}.config records {got}, expected {expected}")
    return problems


def test_starred_files_exist_three_times():
    assert mirror_problems(ROOT) == []


@pytest.mark.parametrize("path", STARRED)
def test_twins_have_the_same_surface(path):
    assert len(public(ROOT / "torch_ref" / path)) > 0
    assert twin_problems(ROOT, path) == []


def test_every_public_name_has_a_parity_case():
    assert evidence_problems(ROOT, parity_cases(ROOT)) == []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("models/latte.py", "Latte"),
        ("models/latte_t2v.py", "LatteT2V"),
        ("encoders/vae.py", "AutoencoderKL"),
        ("encoders/vae.py", "AutoencoderKLTemporalDecoder"),
        ("encoders/t5.py", "T5EncoderModel"),
    ],
)
def test_config_records_the_constructor(path, name):
    assert config_problems(ROOT, path, name) == []


# ---------------------------------------------------------------------------------------------- the checks themselves


def test_a_missing_and_an_extra_file_are_found(broken):
    root, edit = broken
    (root / "parity/models/mlp.py").unlink()
    edit("torch_ref/models/helpers.py", "", "x = 1\n")
    assert mirror_problems(root) == [
        "parity/models/mlp.py does not exist",
        "torch_ref/models/helpers.py has no twin: star it or list it in EXTRAS",
    ]


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("class GELUProjection", "class GeluProjection", "GELUProjection only in torch_ref"),
        ("def construct(self, x)", "def construct(self, y)", "Mlp.forward(self, y) and (self, x)"),
        ("mult=4", "mult=3", "FeedForward.__init__"),
        ("", "\n\ndef helper(x):\n    return x\n", "helper only in ms_latte"),
        ("", "\n# QUIRK(new): why\n", "QUIRK tags ['new'] and []"),
    ],
)
def test_twins_that_differ_are_found(broken, old, new, found):
    root, edit = broken
    edit("ms_latte/models/mlp.py", old, new)
    assert any(found in problem for problem in twin_problems(root, "models/mlp.py"))


def test_a_name_without_a_case_is_found(broken):
    root, edit = broken
    edit(
        "parity/models/mlp.py",
        '    Case("Mlp", dict(in_features=24, hidden_features=40), dict(x=normal(30, 24))),\n',
        "",
    )
    edit("parity/models/latte.py", 'method="forward_with_cfg"', 'method="nonsense"')
    edit("parity/models/latte.py", 'method="forward_with_cfg"', 'method="positions"')
    problems = evidence_problems(root, parity_cases(root))
    assert problems == [
        "models/mlp.py: Mlp has no parity case",
        "models/latte.py: Latte.forward_with_cfg has no parity case",
        "models/latte.py: a case calls Latte.nonsense, which does not exist",
    ]


def test_an_unrecorded_argument_is_found(broken):
    root, edit = broken
    edit("torch_ref/models/latte.py", "            num_heads=num_heads,\n", "")
    assert len(config_problems(root, "models/latte.py", "Latte")) == 1
