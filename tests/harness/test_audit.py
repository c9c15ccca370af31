# SPDX-License-Identifier: Apache-2.0
"""The operator audit: MindSpore's log is read in full, its documentation followed, nothing left unexplained."""

from collections import Counter
from contextlib import contextmanager

import pytest

from parity import audit as command
from parity.harness import audit
from parity.harness.audit import Dispatch, Documentation, Explanation, judge, parse
from parity.harness.case import collect

# --- the log

LOG = """
[DEBUG] [mindspore/core.cc:26894] MulRegister] Register tensor method mul
@@ at ms_latte/models/layers.py:10
[DEBUG] PYNATIVE(1): [pyboost_core.cc:1] PyboostMulOp] Run PyboostMul start
[DEBUG] PYNATIVE(1): [functions.cc:1] mul] In mul function
[DEBUG] PYNATIVE(1): [functions.cc:2] mul_impl] In mul impl function
[DEBUG] PYNATIVE(1): [functions.cc:3] contiguous] In contiguous function
[DEBUG] PYNATIVE(1): [functions.cc:4] contiguous] Out contiguous function
[DEBUG] PYNATIVE(1): [functions.cc:5] mul] Out mul function
[DEBUG] PYNATIVE(1): [pyboost_core.cc:2] PyboostMulOp] Run PyboostMul end
@@ at ms_latte/models/layers.py:11
[DEBUG] PYNATIVE(1): [forward.cc:651] RunOpFrontend] RunOp name: BiasAdd
[DEBUG] PYNATIVE(1): [op_backend.cc:154] RunInner] RunOp name BiasAdd device CPU id 0 with static shape
[DEBUG] PYNATIVE(1): [forward.cc:651] RunOpFrontend] RunOp name: BiasAdd
[DEBUG] PYNATIVE(1): [op_backend.cc:154] RunInner] RunOp name BiasAdd device CPU id 0 with static shape
[DEBUG] PYNATIVE(1): [forward.cc:608] RunSliceOpFrontend] Run slice op name:SelectView
[DEBUG] PYNATIVE(1): [forward.cc:530] ProcessViewOp] Start, op:SelectView
@@ at
[DEBUG] PYNATIVE(1): [native.cc:1] Ones] Begin execute native func Ones
[DEBUG] PYNATIVE(1): [native.cc:2] Ones] End execute native func Ones
[DEBUG] PYNATIVE(1): [func_grad.cc:1708] BackPropagate] Begin calculate op: GraphRoot-9 gradients!
[DEBUG] PYNATIVE(1): [func_grad.cc:1708] BackPropagate] Begin calculate op: BiasAdd-8 gradients!
[DEBUG] PYNATIVE(1): [func_grad.cc:933] CallBackward] Begin CallBackward: BiasAdd
[DEBUG] PYNATIVE(1): [func_builder.cc:255] EmitOp] Emit op BiasAddGrad
[DEBUG] PYNATIVE(1): [op_backend.cc:168] RunInnerDynamic] RunOp name BiasAddGrad device CPU id 0 with dynamic shape
[DEBUG] PYNATIVE(1): [func_grad.cc:949] CallBackward] End CallBackward: BiasAdd
[DEBUG] PYNATIVE(1): [native.cc:3] Add] Begin execute native func Add
[DEBUG] PYNATIVE(1): [native.cc:4] Add] End execute native func Add
[DEBUG] PYNATIVE(1): [func_grad.cc:933] CallBackward] Begin CallBackward: Mul
[DEBUG] PYNATIVE(1): [func_builder.cc:255] EmitOp] Emit op BatchMatMul
[DEBUG] PYNATIVE(1): [functions.cc:9] batch_mat_mul] In batch_mat_mul function
[DEBUG] PYNATIVE(1): [functions.cc:10] batch_mat_mul] Out batch_mat_mul function
[DEBUG] PYNATIVE(1): [op_backend.cc:229] RunInner] RunOp name Tile device CPU id 0 with static shape
[DEBUG] PYNATIVE(1): [func_grad.cc:949] CallBackward] End CallBackward: Mul
[DEBUG] PYNATIVE(1): [func_grad.cc:1708] BackPropagate] Begin calculate op: input_3-0 gradients!
""".splitlines()


def test_every_kind_of_dispatch_counts_once():
    line = "ms_latte/models/layers.py"
    assert parse(LOG) == {
        Dispatch("Mul", f"{line}:10"): 1,  # the copy inside belongs to the kernel
        Dispatch("BiasAdd", f"{line}:11"): 2,
        Dispatch("SelectView", f"{line}:11", view=True): 1,
        Dispatch("Ones", "harness"): 1,
        Dispatch("BiasAddGrad", "gradient of BiasAdd"): 1,
        Dispatch("Add", "sums of gradients"): 1,
        Dispatch("BatchMatMul", "gradient of Mul"): 1,
        Dispatch("Tile", "gradient of Mul"): 1,
    }


def test_a_log_that_is_not_understood_is_refused():
    with pytest.raises(ValueError, match=r"names no operator.*MS_SUBMODULE_LOG_v=\{PYNATIVE:0\}"):
        parse(["[DEBUG] something else"])
    renamed = [
        line.replace("RunOpFrontend] RunOp name: BiasAdd", "Front] Dispatching BiasAdd") for line in LOG
    ]
    renamed = [line for line in renamed if "RunOp name BiasAdd " not in line]
    with pytest.raises(ValueError, match="differentiated BiasAdd, but its log shows no such dispatch"):
        parse(renamed)


# --- the documentation

SOURCES = {
    "ops/auto_generate/gen_ops_prim.py": '''
class Direct:
    """Text.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``
    """
class Refers:
    """Refer to :func:`mindspore.ops.refers` for more details."""
class Silent:
    """Text."""
class CpuOnly:
    """Refer to :func:`mindspore.ops.cpu_only` for more details."""
class Twice:
    """Supported Platforms:
        ``Ascend`` ``CPU``
    """
class Circle:
    """Refer to :class:`mindspore.ops.Circle` for more details."""
class SilentGrad:
    pass
''',
    "ops/function/math_func.py": '''
def refers(x):
    """Refer to :func:`mindspore.mint.refers_again` for more details."""
def cpu_only(x):
    """Supported Platforms:
        ``CPU`` ``GPU``
    """
def Twice(x):
    """Supported Platforms:
        ``CPU``
    """
''',
    "mint/__init__.py": '''
def refers_again(x):
    """Supported Platforms:
        ``Ascend``
    """
''',
}


@pytest.fixture
def docs(tmp_path):
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "lib/plugin").mkdir(parents=True)
    (tmp_path / audit.LIBRARIES[0]).write_bytes(b"\0_ZTVN9mindspore16SilentGradAscendE\0_ZN4ViewE\0")
    return Documentation(tmp_path)


@pytest.mark.parametrize(
    ("operator", "platforms"),
    [
        ("Direct", ("Ascend", "GPU", "CPU")),
        ("Refers", ("Ascend",)),
        ("CpuOnly", ("CPU", "GPU")),
        ("Twice", ("CPU",)),  # two definitions: the one without Ascend counts
        ("Silent", ()),
        ("Circle", ()),
        ("Unknown", ()),
    ],
)
def test_references_are_followed(docs, operator, platforms):
    assert docs.platforms(operator)[0] == platforms


def test_the_evidence_is_a_place(docs):
    assert docs.platforms("Refers")[1] == [
        "Refers (ops/auto_generate/gen_ops_prim.py:8)",
        "refers (ops/function/math_func.py:2)",
        "refers_again (mint/__init__.py:2)",
    ]


EXPLAINED = {
    "SilentGrad": Explanation("gradient of Direct", ("Direct",)),
    "Silent": Explanation("gradient of CpuOnly", ("CpuOnly",)),
    "Circle": Explanation("gradient of Direct", ("Direct",)),
    "View": Explanation("a view", view=True),
}


@pytest.mark.parametrize(
    ("dispatch", "verdict", "why"),
    [
        (Dispatch("Direct", "a"), "documented", "Direct (ops/auto_generate/gen_ops_prim.py:2)"),
        (Dispatch("CpuOnly", "a"), "NOT ON ASCEND", "documented for CPU, GPU only"),
        (Dispatch("Unknown", "a"), "UNRESOLVED", "no class or function of this name, and no explanation"),
        (Dispatch("SilentGrad", "a"), "explained", "libmindspore_ops_ascend.so has it"),
        (Dispatch("Silent", "a"), "UNRESOLVED", "CpuOnly is not documented for Ascend"),
        (Dispatch("Circle", "a"), "UNRESOLVED", "no Ascend library of this wheel has it"),
        (Dispatch("View", "a", True), "explained", "no kernel was asked"),
        (Dispatch("View", "a"), "UNRESOLVED", "but a kernel was asked"),
    ],
    ids=lambda value: value.operator if isinstance(value, Dispatch) else None,
)
def test_verdicts(docs, dispatch, verdict, why):
    (row,) = judge(Counter({dispatch: 2}), docs, EXPLAINED)
    assert (row.verdict, row.count, row.places) == (verdict, 2, ["a"])
    assert why in row.why and row.good is (verdict in ("documented", "explained"))


def test_a_folder_without_documentation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no documentation below"):
        Documentation(tmp_path)


# --- the nets


@pytest.fixture(scope="module")
def recorded():
    """One tiny net in the formulations of Ascend."""
    pytest.importorskip("mindspore")
    (case,) = (case for case in collect() if case.id == "latte_t2v.LatteT2V-mask2d")
    with command.recorder() as worker:
        return command.record(worker, case, "Ascend")


@pytest.fixture(scope="module")
def installed():
    pytest.importorskip("mindspore")
    return Documentation(audit.installed())


def test_a_net_is_recorded_with_its_places(recorded):
    places = {}
    for dispatch in recorded:
        places.setdefault(dispatch.operator, set()).add(dispatch.place.rpartition(":")[0] or dispatch.place)
    assert places["Dense"] == {"ms_latte/models/layers.py"}
    assert places["Softmax"] == {"ms_latte/models/attention.py"}
    assert places["LayerNormGrad"] == {"gradient of LayerNorm"}
    assert places["Conv2DBackpropFilter"] == {"gradient of Conv2D"}
    counts = Counter()
    for dispatch, count in recorded.items():
        counts[dispatch.operator] += count
    # two layers of spatial (self, cross) and temporal attention: 6 softmaxes, each run forward twice, back once
    assert (counts["Softmax"], counts["SoftmaxBackward"]) == (12, 6)
    assert {d.view for d in recorded if d.operator == "SelectView"} == {True}


def test_every_operator_of_a_net_is_resolved(recorded, installed):
    rows = judge(recorded, installed)
    assert len(rows) > 30 and [row.operator for row in rows if not row.good] == []
    assert {row.operator for row in rows if row.verdict == "explained"} <= set(audit.EXPLAINED)


def test_each_explanation_is_needed_by_the_documentation(installed):
    assert [name for name in audit.EXPLAINED if "Ascend" in installed.platforms(name)[0]] == []


def test_the_command_fails_for_one_unexplained_operator(recorded, installed, monkeypatch, capsys):
    @contextmanager
    def none():
        yield None

    monkeypatch.setattr(command, "recorder", none)
    monkeypatch.setattr(command, "record", lambda *_: recorded)
    monkeypatch.setattr(command.audit, "Documentation", lambda _: installed)
    assert command.main(["--form", "Ascend"]) == 0
    assert "FlashAttentionScore" in capsys.readouterr().out
    monkeypatch.delitem(audit.EXPLAINED, "SigmoidGrad")
    assert command.main(["--form", "Ascend", "-v"]) == 1
    out = capsys.readouterr().out
    assert "SigmoidGrad" in out and "UNRESOLVED" in out and "FAILED" in out


def test_a_missing_mindspore_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(audit.importlib.util, "find_spec", lambda _: None)
    assert command.main([]) == 2
    assert "pip install mindspore" in capsys.readouterr().err
