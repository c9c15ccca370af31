# SPDX-License-Identifier: Apache-2.0
"""Cases of `models/norms.py`."""

from parity.harness.case import Case
from parity.harness.inputs import array, normal

ADA = dict(embedding_dim=24, num_embeddings=9)

CASES = [
    Case("AdaLayerNorm", ADA, dict(x=normal(2, 5, 24), timestep=array([7], ()))),
    Case("AdaLayerNorm", ADA, dict(x=normal(30, 24), timestep=array([7, 0])), name="rows"),
    # Not 977: the error of its float32 angles comes to 3.1e-5 of the modulation, where the control judges nothing.
    Case(
        "AdaLayerNormZero",
        ADA,
        dict(x=normal(2, 5, 24), timestep=array([0, 477]), class_labels=array([9, 2])),
    ),
    # Norms with a fixed eps and a stream whose variance is near it (ada_norm_eps, ada_zero_eps).
    Case(
        "AdaLayerNorm",
        ADA,
        dict(x=normal(30, 24, scale=2.0**-8), timestep=array([7, 0])),
        name="probe_small",
        probe="eps of AdaLayerNorm",
    ),
    Case(
        "AdaLayerNormZero",
        ADA,
        dict(x=normal(30, 24, scale=2.0**-10), timestep=array([0, 477]), class_labels=array([9, 2])),
        name="probe_small",
        probe="eps of AdaLayerNormZero",
    ),
    Case("table_modulation", inputs=dict(table=normal(6, 24), timestep=normal(2, 144))),
]
