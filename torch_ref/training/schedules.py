# SPDX-License-Identifier: Apache-2.0
"""Learning rate and EMA decay of a step, in Python numbers: both enter the training step as arguments.

A step counts optimiser steps from 0, attempts that an overflow dropped included. Sources: the published recipes
of Vchitect/Latte (constant rate, decay 0.9999) and of mindone's Latte (warm-up, linear and cosine decay, EMA
warm-up).
"""

import math

SCHEDULES = ("constant", "linear_decay", "cosine_decay")
EMA_WARMUP = 2000  # updates in which a warmed-up decay comes to 63 % of its value


def learning_rate(step, schedule, start, end=0.0, warmup_steps=0, decay_steps=0):
    """Rate of a step: a linear rise to `start`, reached by the last of `warmup_steps`, then the schedule.

    "constant" stays at `start`; "linear_decay" and "cosine_decay" fall to `end` in `decay_steps` and stay there.
    Raises ValueError for another schedule, a negative number of steps, or a decay in no steps.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; expected one of {', '.join(SCHEDULES)}")
    if min(step, warmup_steps, decay_steps) < 0:
        raise ValueError(
            f"step {step}, warmup_steps {warmup_steps} and decay_steps {decay_steps} must not be negative"
        )
    if schedule != "constant" and decay_steps == 0:
        raise ValueError(f"schedule {schedule!r} needs decay_steps above 0: the steps from start to end")
    if step < warmup_steps:
        return start * (step + 1) / warmup_steps
    if schedule == "constant":
        return start
    done = min((step - warmup_steps) / decay_steps, 1.0)
    left = 1.0 - done if schedule == "linear_decay" else 0.5 * (1.0 + math.cos(math.pi * done))
    return end + (start - end) * left


def ema_decay(step, decay=0.9999, warmup=False):
    """Decay of the EMA after a step; warmup (mindone's): decay (1 - exp(-n / 2000)), n = step + 1 updates.

    Raises ValueError for a decay outside [0, 1].
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay is {decay}; expected a number from 0 (no memory) to 1 (no change)")
    return decay * (1.0 - math.exp(-(step + 1) / EMA_WARMUP)) if warmup else decay
