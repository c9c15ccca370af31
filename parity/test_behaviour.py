# SPDX-License-Identifier: Apache-2.0
"""Gate G5: gradients of the inputs and of every parameter of the nets, float64 first, then by the ratio rule.

Drift over many steps, and of samplers, against a noise twin; graph mode against PyNative.
"""

from dataclasses import replace

import pytest

from parity.conftest import CASES, judged_case, left_out
from parity.harness.behaviour import run_drift, run_gradients, run_graph

# A net's own arguments for the state and the time of an iteration. Eight times from late to early, none of them
# those of the case itself.
TIMES = [977, 811, 640, 475, 310, 160, 50, 3]
LATTE, T2V = "latte.Latte-class", "latte_t2v.LatteT2V-mask2d"
NAMES = {LATTE: dict(state="x", time="t"), T2V: dict(state="hidden_states", time="timestep")}
DRIFT = {name: dict(**names, times=TIMES) for name, names in NAMES.items()}
SEED = 7  # of the fresh noise of ancestral steps
# Samplers with a net as the denoiser: (case, arguments of make_sampler).
SAMPLERS = {
    "ddpm": (LATTE, dict(name="ddpm", steps="8", channel_axis=2)),
    "ddim": (LATTE, dict(name="ddim", steps="ddim8", channel_axis=2)),
    "ddim_eta": (T2V, dict(name="ddim", steps=8, channel_axis=1, eta=0.5, spacing="leading", steps_offset=1)),
    "euler": (T2V, dict(name="euler", steps=8, channel_axis=1)),
    "dpm++2m": (T2V, dict(name="dpm++2m", steps=8, channel_axis=1)),
}
# Compiling takes seconds: all of these in fp32, the first in half precision too.
GRAPH = ("latte.Latte-class", "latte.Latte-guidance", "latte_t2v.LatteT2V-mask2d")


def pytest_generate_tests(metafunc):
    """Drift, samplers and graph mode: few cases, those of them that the options select."""
    if "chosen" not in metafunc.fixturenames:
        return
    option = metafunc.config.option
    cases = {case.id: case for case in metafunc.config.stash.get(CASES, [])}
    dtypes, function = option.dtype.split(","), metafunc.function.__name__
    if function == "test_samplers":
        runs = [
            pytest.param(name, cases[case], dtype, id=f"{dtype}-{name}")
            for dtype in ("fp64", *dtypes)
            for name, (case, _) in SAMPLERS.items()
            if case in cases and not left_out(metafunc.config, _plain(cases[case]), dtype)
        ]
        metafunc.parametrize("sampler, chosen, chosen_dtype", runs)
        return
    drift = function == "test_drift"
    runs = [
        pytest.param(cases[name], dtype, id=f"{dtype}-{name}")
        for dtype in dtypes
        for name in (DRIFT if drift else GRAPH)
        if name in cases and (drift or dtype == "fp32" or name == GRAPH[0])
        if not left_out(metafunc.config, _plain(cases[name]), dtype)
    ]
    metafunc.parametrize("chosen, chosen_dtype", runs)


def _plain(case):
    """A case as no registered bug names it: those die by layers and gradients, not by what it does here."""
    return replace(case, name=f"{case.name} over time")


def job(test, session, **params):
    """What a test of this file judges, a CaseResult."""
    if test == "test_gradients":
        return judged_case(test, session, runner=run_gradients, **params)
    case, dtype = params["chosen"], params["chosen_dtype"]
    if test == "test_drift":
        return run_drift(session, case, dtype, **DRIFT[case.id])
    if test == "test_samplers":
        name, names = params["sampler"], NAMES[case.id]
        options = dict(verb="sample", sampler=SAMPLERS[name][1], noise=SEED, label=name)
        return run_drift(session, case, dtype, **names, **options)
    return run_graph(session, case, dtype)


def test_gradients(judge, parity_case, dtype, form):
    judge()


def test_drift(judge, chosen, chosen_dtype):
    judge()


def test_samplers(judge, sampler, chosen, chosen_dtype):
    judge()


def test_graph_mode(judge, chosen, chosen_dtype):
    judge()
