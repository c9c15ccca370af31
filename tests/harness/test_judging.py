# SPDX-License-Identifier: Apache-2.0
"""The whole harness on real models: every gate fails on a broken port, names the culprit, and loses nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parity.harness import report
from parity.harness.backends import Worker
from parity.harness.case import Case, collect
from parity.harness.inputs import normal
from parity.harness.runner import Session, run_case
from parity.mutants import DTYPES

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CASES = {case.id: case for case in collect()}
LATTE = CASES["latte.Latte-class"]


@pytest.fixture(scope="module")
def session():
    session = Session()
    yield session
    session.pool.stop()


def test_the_effective_precision_is_measured(session):
    assert session.pool.get("mindspore", "CPU", "fp32").environment["effective float32 matmul"] == "24 bits"


def test_a_result_on_another_device_is_caught():
    from ms_latte.device import DeviceError
    from parity.harness.mindspore_side import require_device

    require_device("Ascend:0", "Ascend")
    with pytest.raises(DeviceError, match="fell back silently"):
        require_device("CPU", "Ascend")


def test_what_was_handed_in_lies_on_no_device_yet():
    """A function may return its input as it is: MindSpore says "CPU" of it, whatever the device."""
    from ms_latte.device import DeviceError
    from parity.harness import mindspore_side

    side = mindspore_side.MindSporeSide.__new__(mindspore_side.MindSporeSide)
    import mindspore

    side.ms, side.device, side.dtype, side.native_half = mindspore, "Ascend", "fp32", False
    given = side.tensor(np.ones(3, np.float32))
    assert side.array(given).tolist() == [1.0] * 3
    with pytest.raises(DeviceError, match="fell back silently"):
        side.array(given + given)


@pytest.mark.parametrize("dtype", ["fp64", *DTYPES])
def test_the_correct_port_raises_no_alarm(session, dtype):
    result = run_case(session, LATTE, dtype)
    assert result.passed, report.failure(result)
    assert len(result.taps) == 72


def test_truth_and_control_answer_once_for_all_formulations(monkeypatch):
    """And again as soon as one of them was used for anything else."""
    asked = []
    right = Worker.__call__

    def listen(self, verb, **arguments):
        asked.append((self.name, verb))
        return right(self, verb, **arguments)

    monkeypatch.setattr(Worker, "__call__", listen)
    session = Session()
    torch = ("torch/CPU/fp64", "torch/CPU/fp32")

    def questions(case, form):
        asked.clear()
        result = run_case(session, case, "fp32", form)
        assert result.passed, report.failure(result)
        found = [who for who, verb in asked if verb in ("build", "load", "trace", "local")]
        return result, [found.count(who) for who in torch]

    try:
        first, heard = questions(LATTE, "CPU")
        assert heard == [4, 3]  # the control is not asked for single layers: its own trace has them
        second, heard = questions(LATTE, "Ascend")
        assert heard == [0, 0]
        assert [tap.local.e_r for tap in first.taps] == [tap.local.e_r for tap in second.taps]
        assert questions(replace(LATTE, seed=5), "Ascend")[1] == [4, 3]
        assert questions(LATTE, "Ascend")[1] == [4, 3]
        assert run_case(session, LATTE, "fp64").passed  # takes the truth for another case
        again, heard = questions(LATTE, "CPU")
        assert heard == [4, 3]
        assert [tap.local.e_c for tap in again.taps] == [tap.local.e_c for tap in first.taps]
    finally:
        session.pool.stop()


def test_a_case_that_cannot_run_stays_in_the_report(session):
    case = Case("Linear", dict(in_features=3, out_features=4), dict(x=normal(5, 7)), file="models.layers")
    result = run_case(session, case, "fp32")
    assert not result.passed and [check.name for check in result.broken] == ["runs"]
    assert "runs" in report.contract_line([result]) and report.verdict_line([result]).startswith("1 FAIL")
    assert len(report.failure(result)) <= 15
    assert run_case(session, LATTE, "fp32").passed  # on fresh workers


def test_a_streamed_net_descends_into_the_failing_block(session):
    result = run_case(session, replace(LATTE, taps="stages"), "fp32", mutant="softmax_half")
    assert result.failures[0].tap == "blocks.0.attn.core#0"
    assert result.failures[0].verdict == "FAIL local"
    assert len(result.worst) == 3 and result.worst[0].startswith("[")
    assert any(tap.tap == "blocks.0#0" and tap.verdict == "inherited" for tap in result.taps)


def test_wrong_wiring_names_the_first_layer_that_shows_it(session):
    result = run_case(session, LATTE, "fp32", mutant="no_temporal_embedding")
    (culprit,) = result.failures
    assert (culprit.tap, culprit.verdict) == ("#0", "FAIL end")
    assert "blocks.1." in culprit.reason  # the temporal positions enter before block 1
    assert len(report.failure(result)) <= 15


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16"])
def test_weights_of_a_file_are_rounded_alike_on_all_sides(session, dtype):
    """The truth must start from the bits that control and port have, or its distance hides theirs."""
    config = dict(
        input_size=8, hidden_size=40, depth=4, num_heads=2, num_frames=5, num_classes=7, condition="class"
    )
    case = replace(LATTE, init=config, weights=str(GOLDEN / "latte_class.pt"))
    case = replace(case, inputs={**case.inputs, "x": normal(2, 5, 4, 8, 8)})
    session.overrides = {"num_heads": 2}
    result = run_case(session, case, dtype)
    session.overrides = {}
    assert result.passed, report.failure(result)
    if dtype == "bf16":
        source = session.pool.get("torch", "CPU", "bf16")("state")
        truth = session.pool.get("torch", "CPU", "fp64")("state")
        assert all((truth[name] == source[name].astype("float64")).all() for name in source)


@pytest.mark.parametrize(
    "name",
    [
        "layers.Linear",
        "layers.LayerNorm",
        "attention.MultiHeadAttention-cross",
        "blocks.TransformerBlock-space",
        # `wo` of T5 is float32 in float16, and what ReLU gives it lies on the half grid
        "t5.T5DenseActDense",
        "t5.T5Block-relu",
    ],
)
def test_a_device_with_native_half_meets_the_emulated_control(session, name):
    """What a device does: half-precision tensors in the port, teacher-forced by the control's float32 ones.

    MindSpore's CPU float16 kernels round more often than an accelerator, so their numbers are not judged here.
    """
    native = Session(pool=session.pool)
    native.rounding = lambda side: "native" if side == "mindspore" else "emulated"
    result = run_case(native, CASES[name], "fp16", "Ascend")
    assert result.taps and not result.broken, report.failure(result)
    assert all(tap.local.e_c < 0.1 for tap in result.taps)
