# SPDX-License-Identifier: Apache-2.0
"""Cases of `models/mlp.py`."""

from parity.harness.case import Case
from parity.harness.inputs import normal

CASES = [
    Case("Mlp", dict(in_features=24, hidden_features=40), dict(x=normal(30, 24))),
    Case("GELUProjection", dict(dim_in=24, dim_out=40, approximate="tanh"), dict(x=normal(30, 24))),
    Case("FeedForward", dict(dim=24), dict(hidden_states=normal(2, 5, 24))),
    Case(
        "FeedForward",
        dict(dim=24, mult=3, activation_fn="gelu"),
        dict(hidden_states=normal(30, 24)),
        name="erf",
    ),
    Case("GEGLU", dict(dim_in=24, dim_out=40), dict(x=normal(30, 24))),
    Case(
        "FeedForward", dict(dim=24, activation_fn="geglu"), dict(hidden_states=normal(2, 5, 24)), name="geglu"
    ),
]
