# SPDX-License-Identifier: Apache-2.0
"""Gate G5 on itself: bugs that only a gradient, only a second step or only the compiled port shows; the limits on
literal numbers."""

import numpy as np
import pytest

from parity.harness import gates
from parity.harness.behaviour import (
    depth,
    judge,
    judge_drift,
    judge_graph,
    one_ulp_away,
    run_drift,
    run_gradients,
    run_graph,
)
from parity.harness.case import collect
from parity.harness.runner import Session, run_case
from parity.harness.training import judge_training

STEPS = dict(state="x", time="t", times=[977, 500, 3])


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
    assert len(result.worst) == 3 and result.worst[0].startswith("[")
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


@pytest.mark.parametrize(
    ("form", "blocks", "error", "failed"),
    [
        ("CPU", 4, 1.1e-10, True),
        ("Ascend", 4, 5.0e-7, False),  # 3 sqrt(8) 2^-24 = 5.06e-7
        ("Ascend", 4, 5.1e-7, True),
        ("Ascend", 0, 2.5e-7, False),  # 3 sqrt(2) 2^-24 = 2.53e-7
        ("native norms", 0, 2.6e-7, True),
    ],
)
def test_float64_through_native_layer_norm_may_walk_as_float32_roundings_do(form, blocks, error, failed):
    exact = {"w": np.arange(1.0, 9.0)}
    ours = {"w": exact["w"] * (1 + error)}
    assert judge(ours, exact, exact, "fp64", form, blocks)[0].failed == failed


def test_depth_is_read_from_names_or_from_the_number_of_matrices():
    named = {f"blocks.{i}.attn.qkv.weight": (9, 3) for i in range(3)} | {"head.weight": (3, 3)}
    assert depth(named) == 3
    others = {f"layers.{i}.weight": (4, 4) for i in range(9)} | {"layers.0.bias": (4,), "input x": (5, 4)}
    assert depth(others) == 2 and depth({"fc.bias": (4,)}) == 0


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


# --------------------------------------------------------------------------------------------- drift and graph mode

# Python imports this file when a worker starts: two bugs that no single forward in PyNative shows.
REGISTERED = '''
import parity.mutants


def stale_time():
    """The embedding of the first timestep is kept for all later ones, as a careless cache does."""
    from ms_latte.models import embeddings

    right, kept = embeddings.TimestepEmbedder.construct, {}

    def construct(self, *args):
        if id(self) not in kept:
            kept[id(self)] = right(self, *args)
        return kept[id(self)]

    return [(embeddings.TimestepEmbedder, "construct", construct)]


def compiled_otherwise():
    """A residual that is wrong in the compiled port alone."""
    import mindspore as ms
    from ms_latte.models import blocks

    right = blocks.residual

    def residual(x, h, precision, gate=None):
        return right(x, h, precision, gate) + 1e-4 * x

    return [(blocks, "residual", residual)] if ms.get_context("mode") == ms.GRAPH_MODE else []


for function in (stale_time, compiled_otherwise):
    parity.mutants.MUTANTS[function.__name__] = parity.mutants.Mutant(
        function.__name__, function.__doc__, (), {}, replace=function
    )
'''


@pytest.fixture(scope="module")
def infected(tmp_path_factory):
    """A session whose workers know two more bugs."""
    folder = tmp_path_factory.mktemp("registered")
    (folder / "sitecustomize.py").write_text(REGISTERED)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        session = Session()
        yield session
        session.pool.stop()


def test_a_bug_of_the_second_step_is_caught_by_drift_alone(infected):
    """A cache that keeps the first timestep: every single forward is right, and repeatable."""
    net = case("latte.Latte-class")
    assert run_case(infected, net, "fp32", mutant="stale_time").passed
    result = run_drift(infected, net, "fp32", mutant="stale_time", **STEPS)
    (first,) = result.failures
    assert first.tap == "step 2#0" and "allowed 2 times the larger" in first.reason and not result.broken
    assert result.taps[-1].verdict == "inherited"
    healthy = run_drift(infected, net, "fp32", **STEPS)
    assert healthy.passed and [tap.tap for tap in healthy.taps] == ["step 1#0", "step 2#0", "#0"]


def test_a_bug_of_the_compiled_port_is_caught_by_graph_mode_alone(infected):
    net = case("latte.Latte-class")
    assert run_case(infected, net, "fp32", mutant="compiled_otherwise").passed
    result = run_graph(infected, net, "fp32", mutant="compiled_otherwise")
    assert [tap.verdict for tap in result.taps] == ["FAIL end"] and not result.broken
    healthy = run_graph(infected, net, "fp32")
    assert healthy.passed and healthy.taps[0].reason.endswith("PyNative")


def test_drift_in_float64_has_the_limit_of_g1(infected):
    net = case("latte.Latte-class")
    healthy = run_drift(infected, net, "fp64", label="three steps", **STEPS)
    assert healthy.passed and healthy.case == "latte.Latte-class three steps"
    assert {tap.allowed for tap in healthy.taps} == {1e-10}
    result = run_drift(infected, net, "fp64", mutant="stale_time", **STEPS)
    assert result.failures[0].tap == "step 2#0" and "(G5 fp64 drift)" in result.failures[0].reason


@pytest.mark.parametrize(("dtype", "ulp"), [("fp32", 2.0**-23), ("fp16", 2.0**-10), ("bf16", 2.0**-7)])
def test_the_twin_starts_one_ulp_away(dtype, ulp):
    start = np.array([1.0, -1.5, 3.0])
    assert np.array_equal(np.abs(one_ulp_away(start, dtype)) - np.abs(start), [ulp, ulp, 2 * ulp])


def test_chaos_is_no_fault_and_a_fault_is_no_chaos():
    """The limit is twice the larger drift of control and twin, at every step."""
    rng = np.random.default_rng(3)
    exact = [rng.standard_normal(50) for _ in range(4)]

    def off(*errors):
        return [x * (1 + error) for x, error in zip(exact, errors, strict=True)]

    quiet, chaotic = off(1e-7, 1e-7, 1e-7, 1e-7), off(1e-7, 1e-6, 1e-5, 1e-4)
    assert not any(
        tap.failed for tap in judge_drift(off(1e-7, 1.9e-6, 1.9e-5, 1.9e-4), quiet, exact, chaotic, "fp32")
    )
    assert not any(
        tap.failed for tap in judge_drift(off(1e-7, 1.9e-6, 1.9e-5, 1.9e-4), chaotic, exact, quiet, "fp32")
    )
    taps = judge_drift(off(1e-7, 2.1e-6, 1.9e-5, 1e-4), quiet, exact, chaotic, "fp32")
    assert [tap.verdict for tap in taps] == ["ok", "FAIL end", "ok", "ok"]
    broken = [exact[0], exact[1] * np.nan, exact[2], exact[3][:9]]
    assert [tap.failed for tap in judge_drift(broken, quiet, exact, chaotic, "fp32")] == [
        False,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(("dtype", "floor"), [("fp32", 2.0**-22), ("fp16", 2.0**-13), ("bf16", 2.0**-10)])
def test_none_need_drift_less_than_the_floor(dtype, floor):
    """A control that a few numbers happen to hit exactly asks for no more than twice the floor."""
    exact, lucky = [np.array([1.5, 2.0])], [np.array([1.5, 2.0]) * (1 + floor / 100)]
    for error, failed in ((1.9, False), (2.1, True)):
        ours = [exact[0] * (1 + error * floor)]
        assert judge_drift(ours, lucky, exact, lucky, dtype)[0].failed == failed
        ours = [exact[0] * (1 + error * floor * gates.scatter(2))]
        sides = ({"weights after 1": side[0], "gradient w": exact[0]} for side in (ours, lucky, exact, lucky))
        assert judge_training(*sides, dtype, "CPU")[-1].failed == failed


def test_few_numbers_may_differ_by_chance():
    """The factor on top of a ratio: exp(2 / sqrt(n - 1)), of the numbers that are not 0 in the truth."""
    rng = np.random.default_rng(0)
    for n, rare in (
        (5, 2e-3),
        (20, 1e-4),
    ):  # errors of equal size: how often they seem to differ by twice the factor
        c, r = (np.linalg.norm(rng.standard_normal((50000, n)), axis=1) for _ in range(2))
        assert (c / r > 2 * gates.scatter(n)).mean() < rare
        assert np.log(c / r).std() == pytest.approx(np.log(gates.scatter(n)) / gates.DEVIATIONS, rel=0.03)
    assert gates.scatter(10**6) == pytest.approx(1.002, abs=1e-4) and gates.scatter(5) == pytest.approx(np.e)
    exact = {"w": np.array([3.0, 4.0, 0.0, 0.0, 1.0, 2.0, 5.0]), "v": np.arange(1.0, 8.0)}
    theirs = {name: value * (1 + 1e-3) for name, value in exact.items()}
    for error, failed in ((2 * np.e * 0.99e-3, False), (2 * np.e * 1.01e-3, True)):
        ours = {**theirs, "w": exact["w"] * (1 + error)}
        assert [tap.failed for tap in judge(ours, theirs, exact, "fp16", "CPU", 1)] == [failed, False]


def test_the_same_factor_for_curves_of_few_steps():
    exact = {"gradient w": np.array([3.0, 4.0]), "weights after 1": np.arange(1.0, 5.0)}
    exact["grad_norm curve"] = np.array([5.0, 2.0, 1.0, 4.0, 3.0])
    theirs = {name: value * (1 + 1e-3) for name, value in exact.items()}
    for error, failed in ((2 * np.e * 0.99e-3, False), (2 * np.e * 1.01e-3, True)):
        ours = {**theirs, "grad_norm curve": exact["grad_norm curve"] * (1 + error)}
        taps = {tap.tap: tap for tap in judge_training(ours, theirs, exact, theirs, "fp16", "CPU")}
        assert taps["grad_norm curve#0"].failed == failed and not taps["#0"].failed


def test_graph_mode_may_be_as_good_or_have_the_same_bits():
    rng = np.random.default_rng(4)
    exact = [rng.standard_normal(50)]
    theirs, wrong = [exact[0] * (1 + 1e-7)], [exact[0] * 1.01]

    def failed(ours, eager):
        return judge_graph(ours, eager, theirs, exact, "fp32", "CPU").failed

    assert not failed([exact[0] * (1 - 1e-7)], theirs) and not failed(
        wrong, wrong
    )  # other gates judge PyNative
    assert failed(wrong, theirs) and failed([exact[0][:9]], theirs) and failed([], theirs)
