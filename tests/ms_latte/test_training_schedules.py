# SPDX-License-Identifier: Apache-2.0
"""Rates and decays at the steps where something changes."""

import math

import pytest

from ms_latte.training.schedules import ema_decay, learning_rate

WARM = dict(start=1.0, end=0.2, warmup_steps=4, decay_steps=10)


def test_constant():
    assert [learning_rate(step, "constant", 0.3) for step in (0, 5, 10**6)] == [0.3] * 3
    assert [learning_rate(k, "constant", 1.0, warmup_steps=4) for k in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


@pytest.mark.parametrize(("schedule", "half"), [("linear_decay", 0.6), ("cosine_decay", 0.6)])
def test_decay_begins_after_the_warmup_and_ends(schedule, half):
    rates = {step: learning_rate(step, schedule, **WARM) for step in (3, 4, 9, 14, 99)}
    assert rates == pytest.approx({3: 1.0, 4: 1.0, 9: half, 14: 0.2, 99: 0.2})


def test_cosine_is_flat_where_linear_is_not():
    quarter = [learning_rate(4 + 2.5, schedule, **WARM) for schedule in ("linear_decay", "cosine_decay")]
    assert quarter == pytest.approx([0.8, 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4))])


def test_average():
    assert ema_decay(0) == ema_decay(10**6) == 0.9999
    assert ema_decay(0, warmup=True) == pytest.approx(0.9999 / 2000, rel=1e-3)  # 1 - exp(-x) is x for small x
    assert ema_decay(1999, 0.5, warmup=True) == pytest.approx(0.5 * (1 - math.exp(-1)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(step=0, schedule="cosine", start=1.0), "expected one of constant, linear_decay, cosine_decay"),
        (dict(step=-1, schedule="constant", start=1.0), "must not be negative"),
        (dict(step=0, schedule="linear_decay", start=1.0), "needs decay_steps above 0"),
    ],
)
def test_mistakes_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        learning_rate(**arguments)


def test_a_decay_above_one_is_named():
    with pytest.raises(ValueError, match=r"decay is 1\.5; expected a number from 0"):
        ema_decay(0, 1.5)
