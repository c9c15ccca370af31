# SPDX-License-Identifier: Apache-2.0
"""Gate G5: gradients of the inputs and of every parameter of the nets, float64 first, then by the ratio rule.

Drift over many steps against a noise twin; graph mode against PyNative.
"""

import shlex

import pytest

from parity.conftest import CASES, RESULTS, SESSION
from parity.harness import report
from parity.harness.behaviour import run_drift, run_gradients, run_graph

# A net's own arguments for the state and the time of an iteration. Eight times from late to early, none of them
# those of the case itself.
TIMES = [977, 811, 640, 475, 310, 160, 50, 3]
DRIFT = {
    "latte.Latte-class": dict(state="x", time="t", times=TIMES),
    "latte_t2v.LatteT2V-mask2d": dict(state="hidden_states", time="timestep", times=TIMES),
}
# Compiling takes seconds: all of these in fp32, the first in half precision too.
GRAPH = ("latte.Latte-class", "latte.Latte-guidance", "latte_t2v.LatteT2V-mask2d")


def pytest_generate_tests(metafunc):
    """Drift and graph mode: few cases, those of them that the options select."""
    if "chosen" not in metafunc.fixturenames:
        return
    option = metafunc.config.option
    cases = {case.id: case for case in metafunc.config.stash.get(CASES, [])}
    drift = metafunc.function.__name__ == "test_drift"
    runs = [
        pytest.param(cases[name], dtype, id=f"{dtype}-{name}")
        for dtype in option.dtype.split(",")
        for name in (DRIFT if drift else GRAPH)
        if name in cases and (drift or dtype == "fp32" or name == GRAPH[0])
    ]
    metafunc.parametrize("chosen, chosen_dtype", runs)


@pytest.fixture
def keep(request):
    """Enter a result into the report, fail with its message."""

    def run(result):
        result.reproduce = shlex.join(
            ["pytest", request.node.nodeid, "--device", request.config.option.device]
        )
        request.config.stash[RESULTS].append(result)
        if not result.passed:
            pytest.fail("\n".join(report.failure(result)), pytrace=False)

    return run


def test_gradients(judge, parity_case, dtype, form):
    judge(run_gradients)


def test_drift(keep, request, chosen, chosen_dtype):
    keep(run_drift(request.config.stash[SESSION], chosen, chosen_dtype, **DRIFT[chosen.id]))


def test_graph_mode(keep, request, chosen, chosen_dtype):
    keep(run_graph(request.config.stash[SESSION], chosen, chosen_dtype))
