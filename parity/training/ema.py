# SPDX-License-Identifier: Apache-2.0
"""Cases of `training/ema.py`; the class is judged over steps by those of `step.py`."""

from parity.harness.case import Case
from parity.harness.inputs import array, normal

PAIR = dict(shadow=normal(5, 7), parameter=normal(5, 7))
FLOATS = ("fp64", "fp32")  # float32 under every policy of half precision

CASES = [
    Case("ema", inputs=dict(**PAIR, decay=array(0.97), updated=array(True)), name="updated", dtypes=FLOATS),
    Case("ema", inputs=dict(**PAIR, decay=array(0.97), updated=array(False)), name="skipped", dtypes=FLOATS),
]
