# SPDX-License-Identifier: Apache-2.0
"""Cases of `training/optim.py`: the first update, a late one, a skipped one; the class is judged over steps by
`step.py`."""

import numpy as np

from parity.harness.case import Case
from parity.harness.inputs import array, linspace, normal

FLOATS = dict(dtypes=("fp64", "fp32"))  # float32 under every policy of half precision
# shrink, keep1, mix1, keep2, mix2, correction2, rate, as after seven steps.
FACTORS = np.float32([0.99995, 0.9, 0.1, 0.999, 0.001, 0.0836, 0.00192])
SKIPPED = np.float32([1, 1, 0, 1, 0, 1, 0])
GRADIENTS = [
    np.linspace(-low, 2.0, size, dtype=np.float32) for low, size in ((1.0, 35), (0.3, 11), (5.0, 24))
]


def factors(name, corrections, updated=True, **rest):
    """Factors of a step."""
    inputs = dict(
        corrections=[np.array(np.float32(c)) for c in corrections],
        lr=array(3e-4),
        updated=array(updated),
        weight_decay=0.05,
        **rest,
    )
    return Case("adamw_factors", inputs=inputs, name=name, **FLOATS)


def update(name, numbers=FACTORS, **rest):
    """One update of a parameter. The second moments are small, so that eps counts."""
    inputs = dict(
        parameter=normal(5, 7),
        m=normal(5, 7, scale=1e-4),
        v=linspace(1e-15, 1e-9, 5, 7),
        gradient=normal(5, 7, scale=1e-4),
        factors=[np.array(number) for number in numbers],
        eps=1e-4,
        **rest,
    )
    return Case("adamw", inputs=inputs, name=name, **FLOATS)


CASES = [
    factors("first", (0.0, 0.0)),
    factors("late", (1.0, 0.97)),
    factors("betas", (0.986, 0.46), betas=(0.7, 0.95)),
    factors("skipped", (0.0, 0.0), updated=False),
    update("decayed"),
    update("not_decayed", decays=False),
    update("skipped", SKIPPED),
    Case("divide", inputs=dict(x=normal(5, 7), y=linspace(1e-6, 3.0, 5, 7)), **FLOATS),
    Case("global_norm", inputs=dict(gradients=GRADIENTS), **FLOATS),
    # A norm of the order of the 1e-6 that stands in the denominator.
    Case(
        "clip_coefficient",
        inputs=dict(norm=array(2e-6), max_norm=1e-6),
        name="probe_tiny",
        probe="1e-6 in the denominator",
        **FLOATS,
    ),
    Case("clip_coefficient", inputs=dict(norm=array(0.7), max_norm=1.0), name="below", **FLOATS),
]
