# SPDX-License-Identifier: Apache-2.0
"""Which sample stands where in an epoch, and which rank takes it.

An epoch has one global order, a function of (seed, epoch) alone. Step s of W ranks with batch B takes the positions
s*B*W to (s+1)*B*W of it, and rank r the r-th B of them: two ranks with batch B see just what one process with batch
2B sees, and any (epoch, step) can be entered without what came before.
"""

import numpy as np

# What a random number is for. A sample's generator is default_rng([seed, purpose, epoch, position]): counter based,
# so that nothing but (epoch, step) needs to be restored. The numbers belong to the results; never renumber.
PURPOSES = {"order": 0, "clip": 1, "timestep": 2, "noise": 3, "posterior": 4, "drop": 5}


def generator(seed, purpose, epoch, position):
    """The NumPy generator of one purpose at one place of one epoch."""
    if purpose not in PURPOSES:
        raise ValueError(f"random numbers for {purpose!r}: expected one of {', '.join(PURPOSES)}")
    return np.random.default_rng([seed, PURPOSES[purpose], epoch, position])


def epoch_order(length, seed, epoch, shuffle=True):
    """Indices (length,) of the samples in the order of one epoch."""
    if not shuffle:
        return np.arange(length)
    return generator(seed, "order", epoch, 0).permutation(length)


def steps_per_epoch(length, batch_size, world=1, drop_last=True):
    """Steps of an epoch. A tail shorter than one global batch is left out, or (drop_last False) filled up from the
    start of the order. Raises ValueError if that leaves no step."""
    wrong = [f"{name} {n}" for name, n in (("batch_size", batch_size), ("world", world)) if n < 1]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: expected at least 1")
    whole, tail = divmod(length, batch_size * world)
    steps = whole + bool(tail and not drop_last)
    if not steps:
        raise ValueError(
            f"{length} samples make no step of {world} x {batch_size} (ranks x batch); remedy: a smaller "
            "batch_size, more data, or drop_last False, which repeats samples to fill the batch"
        )
    return steps


def positions(step, batch_size, rank=0, world=1):
    """Positions (batch_size,) in the epoch's order that a rank takes in a step."""
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world}: expected 0 to {world - 1}")
    return np.arange(batch_size) + (step * world + rank) * batch_size
