# SPDX-License-Identifier: Apache-2.0
"""Cases of `encoders/vae_blocks.py`."""

from parity.harness.case import Case
from parity.harness.inputs import normal

CASES = [
    Case(
        "ResnetBlock2D", dict(in_channels=12, out_channels=12, norm_num_groups=4), dict(x=normal(2, 12, 5, 7))
    ),
    Case(
        "ResnetBlock2D",
        dict(in_channels=12, out_channels=8, norm_num_groups=4),
        dict(x=normal(2, 12, 5, 7)),
        name="shortcut",
    ),
    Case("TemporalResnetBlock", dict(channels=64), dict(x=normal(6, 64, 4, 5), num_frames=3)),
    Case("AlphaBlender", inputs=dict(x_spatial=normal(6, 12, 4, 5), x_temporal=normal(6, 12, 4, 5))),
    Case(
        "AlphaBlender",
        inputs=dict(x_spatial=normal(6, 12, 4, 5), x_temporal=normal(6, 12, 4, 5)),
        name="all_half",
        islands="compute",
        dtypes=("fp16", "bf16"),
    ),
    Case(
        "SpatioTemporalResBlock",
        dict(in_channels=32, out_channels=64),
        dict(x=normal(6, 32, 4, 5), num_frames=3),
    ),
    Case("AttentionBlock", dict(channels=24, norm_num_groups=4), dict(x=normal(2, 24, 5, 7))),
    Case("Downsample2D", dict(channels=6), dict(x=normal(2, 6, 8, 10))),
    Case("Downsample2D", dict(channels=6), dict(x=normal(2, 6, 7, 9)), name="odd"),
    Case("Upsample2D", dict(channels=6), dict(x=normal(2, 6, 4, 5))),
    Case(
        "DownEncoderBlock2D",
        dict(in_channels=8, out_channels=12, num_layers=2, add_downsample=True, norm_num_groups=4),
        dict(x=normal(2, 8, 6, 10)),
    ),
    Case(
        "DownEncoderBlock2D",
        dict(in_channels=8, out_channels=12, num_layers=1, add_downsample=False, norm_num_groups=4),
        dict(x=normal(2, 8, 6, 10)),
        name="last",
    ),
    Case(
        "UpDecoderBlock2D",
        dict(in_channels=12, out_channels=8, num_layers=3, add_upsample=True, norm_num_groups=4),
        dict(x=normal(2, 12, 3, 5)),
    ),
    Case("UNetMidBlock2D", dict(channels=24, norm_num_groups=4), dict(x=normal(2, 24, 5, 7))),
    Case(
        "UNetMidBlock2D",
        dict(channels=24, norm_num_groups=4, add_attention=False),
        dict(x=normal(2, 24, 5, 7)),
        name="no_attention",
    ),
    Case(
        "MidBlockTemporalDecoder", dict(channels=32, num_layers=2), dict(x=normal(6, 32, 4, 5), num_frames=3)
    ),
    Case(
        "UpBlockTemporalDecoder",
        dict(in_channels=64, out_channels=32, num_layers=2, add_upsample=True),
        dict(x=normal(6, 64, 3, 5), num_frames=3),
    ),
]
