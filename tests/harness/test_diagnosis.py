# SPDX-License-Identifier: Apache-2.0
"""Gate G4 on itself: names the bug, names two, keeps silent on noise and on strangers; the predicted error."""

import re

import numpy as np
import pytest

from parity.harness import diagnosis, gates
from parity.harness.case import collect
from parity.harness.gates import Metrics, TapResult
from parity.harness.runner import Session, run_case

CASES = {case.id: case for case in collect()}
RNG = np.random.default_rng(7)
A, B, C = (RNG.standard_normal(500) for _ in range(3))
NOISE = 0.05 * RNG.standard_normal(500)
BUGS = {"a": A, "b": B, "twice_a": 2 * A}


@pytest.fixture(scope="module")
def session():
    session = Session(diagnosis_left=1e9)
    yield session
    session.pool.stop()


def named(residual, signatures=BUGS):
    return [(fit.name, alike) for fit, alike in diagnosis.name_bugs(residual, signatures)]


def test_a_bug_of_the_right_size_is_named():
    assert named(A + NOISE) == [("a", [])]
    assert named(2 * A + NOISE) == [("twice_a", [])]


def test_two_bugs_at_once_are_named():
    assert sorted(name for name, _ in named(A + 0.5 * B + NOISE, {"a": A, "half_b": 0.5 * B})) == [
        "a",
        "half_b",
    ]


@pytest.mark.parametrize("residual", [NOISE, C, 0.5 * A + NOISE, -A + NOISE, C + 0.05 * A])
def test_noise_strangers_and_other_sizes_are_not_named(residual):
    assert named(residual) == []


def test_what_cannot_be_told_apart_is_said():
    assert named(A + NOISE, {"a": A, "same": A * (1 + 1e-5)})[0][1] in (["same"], ["a"])


def test_a_chance_alpha_of_a_bug_that_explains_little_names_nothing():
    """A bug that shares a direction with the true one has an alpha near 1 by chance; the true one is not registered."""
    related = 0.25 * A + B
    chance = related * (A @ A) / (A @ related)  # its projection on A is A's own size
    wanted = A * (chance @ chance) / (A @ chance)
    assert diagnosis.fit("chance", wanted, chance).alpha == pytest.approx(1)
    assert named(wanted, {"chance": chance, "wrong_size": A}) == []


def test_the_standard_deviation_is_that_of_repeated_noise():
    scale = np.where(np.arange(500) < 50, 5.0, 0.1)  # unequal variances, where the textbook formula is wrong
    many = [diagnosis.fit("a", A + scale * RNG.standard_normal(500), A) for _ in range(400)]
    assert np.std([fit.alpha for fit in many]) == pytest.approx(
        np.mean([fit.sigma for fit in many]), rel=0.15
    )


def lines(port, control, **signatures):
    values = {name: np.asarray(value) for name, value in signatures.items()}
    found = diagnosis.Signatures(values, {"odd": [np.zeros((3, 3))]})
    return diagnosis.explain(port, control, found, lambda name: f"bug {name}", 2.0**-24)


def test_the_message():
    assert lines([C + A], [C], a=A, b=B)[0].startswith("looks like bug a (a), alpha = 1.000")
    assert (
        lines([C + 0.5 * A], [C], a=A)[0]
        == "no registered bug fits (1 registered bugs tried, 1 reach this result)"
    )
    assert lines([C + 0.5 * A], [C], a=A)[1].startswith("nearest: a, alpha = 0.500")
    assert (
        lines([np.zeros((3, 3))], [np.zeros((2, 2))])[0]
        == "looks like bug odd (odd): it gives results of this shape"
    )
    assert lines([np.zeros(9)], [np.zeros(4)])[0].startswith("no registered bug gives results of this shape")
    assert lines([np.full(500, np.nan)], [C], a=A)[0].startswith("nothing finite")


def test_signatures_stop_in_time_and_drop_what_does_not_reach():
    outputs = {"": [C], "a": [C + A], "elsewhere": [C], "crash": None, "shape": [C[:9]], "nan": [C * np.nan]}
    found = diagnosis.collect_signatures(outputs.get, list(outputs)[1:])
    assert list(found.reaching) == ["a"] and list(found.outputs) == ["shape"] and found.complete
    short = diagnosis.collect_signatures(outputs.get, list(outputs)[1:], seconds=-1)
    assert list(short.values) == ["a"] and not short.complete


@pytest.mark.parametrize(
    ("case", "dtype", "bug"),
    [
        ("layers.GELU-probe_tail", "fp32", "gelu_erf"),
        ("layers.GELU-probe_tail", "bf16", "gelu_erf"),
        ("layers.LayerNorm-probe_small", "fp16", "layer_norm_eps"),
        ("layers.modulate", "fp64", "chunk_order"),
    ],
)
def test_the_injected_bug_is_named(session, monkeypatch, case, dtype, bug):
    monkeypatch.setattr(diagnosis, "SECONDS", 3.0)
    result = run_case(session, CASES[case], dtype, mutant=bug, diagnose=True)
    assert result.failures and result.diagnosis[0].startswith("looks like"), result.diagnosis
    name = re.search(r"\((\w+)\), alpha", result.diagnosis[0])[1]
    assert bug in [name, *result.diagnosis[0].partition("here the same as ")[2].split(", ")]
    assert result.repro == f"python -m parity repro {case}: --dtype {dtype} --mutant {bug}"
    assert "no second culprit" in result.downstream


def test_no_failure_no_diagnosis_and_none_for_a_known_mutant(session):
    case = CASES["layers.GELU-probe_tail"]
    assert run_case(session, case, "fp32").diagnosis == []
    assert run_case(session, case, "fp32", mutant="gelu_erf").diagnosis == []


def test_a_session_spends_its_time_once(session):
    poor = Session(pool=session.pool, diagnosis_left=0.0)
    result = run_case(poor, CASES["layers.GELU-probe_tail"], "fp32", mutant="gelu_erf", diagnose=True)
    assert result.diagnosis[0].startswith("not looked for")


def metrics(e_c, e_r, norm=1.0, size=60):
    return Metrics(e_c, e_r, 0, 0, 0, 1, 0, 0, 1, size, norm=norm)


def test_the_predicted_error_adds_local_errors_in_squares():
    taps = [TapResult("x_embedder#0", (), "op", metrics(3e-7, 0), metrics(3e-7, 0))]
    taps.append(
        TapResult("t_embedder#0", (), "block", metrics(1e-6, 1e-6, size=4), metrics(1e-6, 1e-6, size=4))
    )
    taps.append(TapResult("blocks.0#0", (), "block", metrics(4e-7, 0), metrics(9e-7, 0)))
    taps.append(TapResult("blocks.1#0", (), "block", metrics(0, 0, 2.0), metrics(9e-7, 0, 2.0)))
    gates.predict(taps)
    assert [tap.predicted for tap in taps] == pytest.approx([3e-7, 0, 5e-7, 2.5e-7])
    taps[2].prop = metrics(9e-7, 1.2e-6)  # the control's own excess, that of the conditioning, is common
    gates.predict(taps)
    assert taps[2].predicted == pytest.approx(1.3e-6)


def test_the_prediction_holds_on_a_correct_net(session):
    """Tiny net of 4 blocks: within a factor of 1.5 (measured on Latte-thin, 28 blocks: 0.99 to 1.02)."""
    result = run_case(session, CASES["latte.Latte-class"], "fp32")
    rows = [tap for tap in result.taps if tap.predicted]
    assert [tap.tap for tap in rows] == ["x_embedder#0", *(f"blocks.{i}#0" for i in range(4))]
    assert all(1 / 1.5 < tap.prop.e_c / tap.predicted < 1.5 for tap in rows)
