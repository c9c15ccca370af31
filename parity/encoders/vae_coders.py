# SPDX-License-Identifier: Apache-2.0
"""Cases of `encoders/vae_coders.py`."""

from parity.harness.case import Case
from parity.harness.inputs import normal

INSIDE = dict(block_out_channels=[16, 24], layers_per_block=2, norm_num_groups=8)

CASES = [
    Case("Encoder", dict(in_channels=3, out_channels=10, **INSIDE), dict(x=normal(2, 3, 9, 14))),
    Case("Decoder", dict(in_channels=5, out_channels=3, **INSIDE), dict(z=normal(2, 5, 4, 7))),
    Case(
        "TemporalDecoder",
        dict(in_channels=5, out_channels=3, block_out_channels=[32, 64], layers_per_block=2),
        dict(z=normal(6, 5, 3, 4), num_frames=3),
    ),
]
