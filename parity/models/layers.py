# SPDX-License-Identifier: Apache-2.0
"""Cases of `models/layers.py`: leaf layers and free functions."""

from parity.harness.case import Case
from parity.harness.inputs import Layout, array, integers, linspace, normal

SPACE, TIME, SAMPLE = Layout(2, 3, 5, "space"), Layout(2, 3, 5, "time"), Layout(2, 3, 5, "sample")

CASES = [
    Case("Linear", dict(in_features=24, out_features=40), dict(x=normal(30, 24))),
    Case(
        "Linear",
        dict(in_features=24, out_features=40, bias=False),
        dict(x=normal(2, 7, 24)),
        name="3d-nobias",
    ),
    Case("LayerNorm", dict(dim=48, eps=1e-6), dict(x=normal(30, 48))),
    Case(
        "LayerNorm", dict(dim=48, eps=1e-5, elementwise_affine=True), dict(x=normal(2, 5, 48)), name="affine"
    ),
    # The variance is near eps: an eps ten times too large changes the result by a factor, not by a rounding.
    Case("LayerNorm", dict(dim=48, eps=1e-6), dict(x=normal(64, 48, scale=2.0**-10)), name="probe_small"),
    Case("LayerNorm", dict(dim=48, eps=1e-6), dict(x=normal(64, 48, mean=20.0)), name="probe_mean"),
    Case("PatchConv", dict(in_channels=4, embed_dim=24, patch_size=2), dict(x=normal(3, 4, 6, 8))),
    # 9 x 7 is not divisible by 2: "same" padding gives other shapes.
    Case(
        "PatchConv",
        dict(in_channels=4, embed_dim=24, patch_size=2),
        dict(x=normal(3, 4, 9, 7)),
        name="probe_odd",
    ),
    Case("Embedding", dict(num_embeddings=9, embedding_dim=24), dict(ids=integers(5, high=9))),
    Case("SiLU", {}, dict(x=normal(30, 24, scale=3.0))),
    Case("GELU", dict(approximate="tanh"), dict(x=normal(30, 24, scale=2.0))),
    Case("GELU", dict(approximate="none"), dict(x=normal(30, 24, scale=2.0)), name="erf"),
    # The two forms differ most, relative to their size, in the tail.
    Case("GELU", dict(approximate="tanh"), dict(x=linspace(-4.5, -2.0, 40, 24)), name="probe_tail"),
    Case(
        "AdaLayerNorm",
        dict(embedding_dim=24, num_embeddings=9),
        dict(x=normal(2, 5, 24), timestep=array([7], ())),
    ),
    Case("spread", inputs=dict(rows=normal(2, 24), count=30)),
    Case("place", inputs=dict(table=normal(5, 24), layout=SPACE), name="space"),
    Case("place", inputs=dict(table=normal(3, 24), layout=TIME), name="time"),
    Case("split_heads", inputs=dict(x=normal(30, 72), layout=SPACE, heads=4, parts=3), name="space"),
    Case("split_heads", inputs=dict(x=normal(30, 72), layout=TIME, heads=4, parts=3), name="time"),
    Case("split_heads", inputs=dict(x=normal(30, 24), layout=SAMPLE, heads=4), name="sample"),
    Case("merge_heads", inputs=dict(x=normal(24, 5, 6), layout=SPACE, heads=4), name="space"),
    Case("merge_heads", inputs=dict(x=normal(40, 3, 6), layout=TIME, heads=4), name="time"),
    Case("merge_heads", inputs=dict(x=normal(8, 15, 6), layout=SAMPLE, heads=4), name="sample"),
    Case("split_frames", inputs=dict(x=normal(30, 24), layout=SPACE, frames=2)),
    Case("join_frames", inputs=dict(video=normal(20, 24), images=normal(10, 24), layout=SPACE)),
    Case("add", inputs=dict(x=normal(30, 24), y=normal(30, 24))),
    Case("residual", inputs=dict(x=normal(30, 24), h=normal(30, 24), gate=normal(2, 24))),
    Case("residual", inputs=dict(x=normal(30, 24), h=normal(30, 24)), name="nogate"),
    # Six distinct constants: a wrong chunk order or a missing 1 is exact, not statistical.
    Case("modulate", inputs=dict(x=normal(30, 24), shift=normal(6, 24, mean=3.0), scale=normal(6, 24))),
    Case(
        "modulate",
        inputs=dict(x=normal(30, 24), shift=normal(2, 24), scale=normal(2, 24)),
        name="all_half",
        islands="compute",
        dtypes=("fp16", "bf16"),
    ),
    Case("regroup_pixels", inputs=dict(x=normal(3, 4, 6, 8), patch_size=2)),
    Case("unpatchify", inputs=dict(x=normal(72, 12), frames=6, height=3, width=4, patch_size=2)),
]
