# SPDX-License-Identifier: Apache-2.0
"""Bisecting: a bad stage, bad code between stages, stages bad only together; and the command."""

import pytest

from parity.bisection import Trial, bench, find_case, main, search
from parity.harness.runner import Session


@pytest.fixture(scope="module")
def session():
    session = Session()
    yield session
    session.pool.stop()


def run(count, wrong):
    """Search with a rule: wrong(set of stages in the port)."""
    return search(count, lambda start, stop: Trial(start, stop, float(wrong(set(range(start, stop)))), 0.5))


@pytest.mark.parametrize("bad", range(9))
def test_one_bad_stage_is_found(bad):
    found = run(9, lambda port: bad in port)
    assert found.alone and found.culprit == bad and (found.passing, found.failing) == (bad, bad + 1)


def test_two_stages_that_fail_only_together():
    """No stage fails alone, so teacher forcing passes every one of them."""
    found = run(60, lambda port: {17, 41} <= port)
    assert not found.alone and (found.first, found.culprit) == (17, 41)
    assert len(found.trials) <= 14


def test_many_small_errors_that_add_up():
    found = run(28, lambda port: len(port) > 20)
    assert (found.first, found.culprit) == (0, 20)


def test_a_port_that_passes_and_one_that_gives_nan():
    assert run(5, lambda port: False) is None
    assert search(1, lambda start, stop: Trial(start, stop, float("nan"), 1.0)).alone


@pytest.mark.parametrize(
    ("case", "dtype", "mutant", "answer"),
    [
        ("latte.Latte-class", "fp32", "", ""),
        ("latte.Latte-class", "fp64", "gelu_erf", "blocks.0.mlp.act itself is wrong"),
        ("latte.Latte-class", "fp32", "gate_omitted", "the code of blocks.0 behind blocks.0.attn"),
        (
            "latte.Latte-class",
            "bf16",
            "no_temporal_embedding",
            "the code of the net behind blocks.0 that feeds it",
        ),
        ("mlp.Mlp", "fp64", "gelu_erf", "act itself is wrong"),
    ],
)
def test_real_bugs_are_cornered(session, case, dtype, mutant, answer):
    log = []
    found = bench(session, find_case(case), dtype, mutant=mutant).bisect(write=log.append)
    assert answer in found and bool(answer) == bool(found), "\n".join([*log, found])


def test_what_cannot_be_spliced_is_no_verdict(session):
    """Neither "nothing to bisect" nor a fault: a layer without parts, parameters that do not agree."""
    with pytest.raises(ValueError, match="has no parts to splice"):
        bench(session, find_case("layers.GELU"), "fp32", mutant="gelu_erf").bisect(write=str)
    with pytest.raises(ValueError, match="G0 parameters: not equal on both sides"):
        bench(session, find_case("latte_t2v.LatteT2V-affine"), "fp32", mutant="attention_bias_ignored")


def test_mistakes_cost_one_line(capsys):
    assert main(["latte.Late-class"]) == 2
    assert "near it: latte.Latte-class" in capsys.readouterr().err
    assert main(["latte.Latte-class", "--mutant", "gelu_err"]) == 2
    error = capsys.readouterr().err
    assert "gelu_erf" in error and len(error.splitlines()) == 1
