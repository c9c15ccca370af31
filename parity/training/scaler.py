# SPDX-License-Identifier: Apache-2.0
"""Cases of `training/scaler.py`: growth, an overflow, the floor at 1; the class is judged over steps by `step.py`."""

from parity.harness.case import Case
from parity.harness.inputs import array


def step(name, scale, good, finite):
    """One decision, with a window of 4 steps and a factor of 4."""
    inputs = dict(scale=array(scale), good=array(good), finite=array(finite), factor=4.0, window=4)
    return Case("next_scale", inputs=inputs, name=name, dtypes=("fp64", "fp32"))


CASES = [
    step("waits", 512.0, 2, True),
    step("grows", 512.0, 3, True),
    step("overflow", 512.0, 3, False),
    step("least", 2.0, 1, False),
    step("largest", 2.0**126, 3, True),
]
