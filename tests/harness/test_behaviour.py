# SPDX-License-Identifier: Apache-2.0
"""Gate G5 on itself: bugs that only a gradient shows, gradients that vanish, the limit on literal numbers."""

import numpy as np
import pytest

from parity.harness.behaviour import judge, run_gradients
from parity.harness.case import collect
from parity.harness.runner import Session, run_case


@pytest.fixture(scope="module")
def session():
    session = Session()
    yield session
    session.pool.stop()


def case(name):
    return next(case for case in collect() if case.id == name)


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16"])
def test_a_bug_of_the_backward_pass_alone_is_caught(session, dtype):
    """The port stops the gradient of every shift: no forward differs, so no other gate can see it."""
    net = case("latte.Latte-class")
    assert run_case(session, net, dtype, mutant="stopped_gradient").passed
    result = run_gradients(session, net, dtype, mutant="stopped_gradient")
    failed = {tap.tap.removesuffix("#0") for tap in result.failures}
    assert "blocks.3.adaLN_modulation.1.bias" in failed and "final_layer.linear.bias" not in failed
    assert run_gradients(session, net, dtype).passed


@pytest.mark.parametrize("dtype", ["fp64", "fp32"])
def test_a_bug_of_the_forward_pass_shows_in_gradients_too(session, dtype):
    assert not run_gradients(session, case("latte_t2v.LatteT2V-mask2d"), dtype, mutant="gelu_erf").passed


def arrays(**changes):
    rng = np.random.default_rng(0)
    exact = {f"w{i}": rng.standard_normal(50) for i in range(5)}
    theirs = {name: g + 1e-7 * rng.standard_normal(50) for name, g in exact.items()}
    ours = {name: g + 1e-7 * rng.standard_normal(50) for name, g in exact.items()}
    return {**ours, **changes}, theirs, exact


def test_the_limit_is_a_multiple_of_the_control_and_of_the_depth():
    for error, passes in ((2e-7, True), (3e-6, False)):
        ours, theirs, exact = arrays()
        ours["w3"] = exact["w3"] * (1 + error)
        taps = {tap.tap: tap for tap in judge(ours, theirs, exact, "fp32", "CPU", 1)}
        # three times the control's 1e-7, or a random walk of 2 blocks at 4 units: 3 * sqrt(2) * 2^-22 = 1.0e-6
        assert taps["w3#0"].failed != passes and not taps["w1#0"].failed


def test_a_vanished_gradient_is_compared_with_those_that_are_not():
    rng = np.random.default_rng(1)
    ours, theirs, exact = arrays()
    exact["bias"] = 1e-17 * rng.standard_normal(50)
    theirs["bias"], ours["bias"] = (1e-7 * rng.standard_normal(50) for _ in range(2))
    assert not any(tap.failed for tap in judge(ours, theirs, exact, "fp32", "CPU", 1))
    ours["bias"] = 1e-5 * rng.standard_normal(50)  # noise a hundred times that of the control
    assert [tap.tap for tap in judge(ours, theirs, exact, "fp32", "CPU", 1) if tap.failed] == ["bias#0"]


def test_nan_and_other_shapes_fail():
    for wrong in (np.full(50, np.nan), np.zeros(49)):
        ours, theirs, exact = arrays(w2=wrong)
        assert [tap.tap for tap in judge(ours, theirs, exact, "fp32", "CPU", 1) if tap.failed] == ["w2#0"]
