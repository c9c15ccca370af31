# SPDX-License-Identifier: Apache-2.0
"""Cases of `training/schedules.py`: Python numbers in both twins, so they are judged by G1 alone."""

from parity.harness.case import Case


def rate(name, step, **rest):
    """Rate of one step."""
    inputs = dict(step=step, start=1e-4, **rest)
    return Case("learning_rate", inputs=inputs, name=name, dtypes=("fp64",))


def decay(name, **inputs):
    """Decay of one step."""
    return Case("ema_decay", inputs=inputs, name=name, dtypes=("fp64",))


CASES = [
    rate("constant", 70, schedule="constant"),
    rate("warmup", 6, schedule="constant", warmup_steps=10),
    rate("warmed", 10, schedule="cosine_decay", end=1e-6, warmup_steps=10, decay_steps=50),
    rate("linear", 33, schedule="linear_decay", end=1e-6, warmup_steps=10, decay_steps=50),
    rate("cosine", 33, schedule="cosine_decay", end=1e-6, warmup_steps=10, decay_steps=50),
    rate("after", 99, schedule="cosine_decay", end=1e-6, warmup_steps=10, decay_steps=50),
    decay("constant", step=41),
    decay("warmup", step=41, decay=0.99, warmup=True),
]
