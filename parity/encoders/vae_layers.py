# SPDX-License-Identifier: Apache-2.0
"""Cases of `encoders/vae_layers.py`."""

from parity.harness.case import Case
from parity.harness.inputs import normal

CASES = [
    Case(
        "Conv2d",
        dict(in_channels=5, out_channels=7, kernel_size=3, stride=1, padding=1),
        dict(x=normal(2, 5, 6, 9)),
    ),
    Case(
        "Conv2d",
        dict(in_channels=5, out_channels=7, kernel_size=3, stride=2, padding=0),
        dict(x=normal(2, 5, 9, 12)),
        name="stride",
    ),
    Case(
        "Conv2d",
        dict(in_channels=5, out_channels=7, kernel_size=1, stride=1, padding=0),
        dict(x=normal(2, 5, 6, 9)),
        name="pixelwise",
    ),
    Case(
        "FrameConv3d",
        dict(in_channels=5, out_channels=7, kernel_size=3),
        dict(x=normal(8, 5, 3, 6), num_frames=4),
    ),
    # The first frame is the last one too.
    Case(
        "FrameConv3d",
        dict(in_channels=5, out_channels=7, kernel_size=3),
        dict(x=normal(2, 5, 3, 6), num_frames=1),
        name="single",
    ),
    Case("GroupNorm", dict(num_groups=3, num_channels=12, eps=1e-6), dict(x=normal(2, 12, 5, 7))),
    Case(
        "GroupNorm", dict(num_groups=4, num_channels=12, eps=1e-6), dict(x=normal(2, 12, 5, 7)), name="even"
    ),
    Case(
        "GroupNorm",
        dict(num_groups=3, num_channels=12, eps=1e-5),
        dict(x=normal(6, 12, 5, 7), num_frames=3),
        name="frames",
    ),
    # A variance of 1e-6: eps of 1e-5 instead of 1e-6 makes the result half as large.
    Case(
        "GroupNorm",
        dict(num_groups=3, num_channels=12, eps=1e-6),
        dict(x=normal(2, 12, 5, 7, scale=1e-3)),
        name="probe_eps",
        probe="eps of the group normalisation",
    ),
    # A mean of 50 standard deviations: E[x^2] - E[x]^2 loses it.
    Case(
        "GroupNorm",
        dict(num_groups=3, num_channels=12, eps=1e-6),
        dict(x=normal(2, 12, 5, 7, mean=50.0)),
        name="probe_mean",
        probe="variance about the mean",
    ),
    # 2^20 numbers in a group: one running float32 sum of them is wrong by 100 units (group_statistics_in_one_sum).
    Case(
        "GroupNorm",
        dict(num_groups=1, num_channels=2, eps=1e-6),
        dict(x=normal(1, 2, 512, 1024, mean=1.0)),
        name="probe_large",
        probe="accumulation of the statistics",
    ),
    Case("upsample_nearest", inputs=dict(x=normal(2, 5, 3, 4))),
    Case("pad_end", inputs=dict(x=normal(2, 5, 3, 4))),
]
