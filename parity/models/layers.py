# SPDX-License-Identifier: Apache-2.0
"""Cases of `models/layers.py`: leaf layers and free functions."""

from parity.harness.case import Case
from parity.harness.inputs import Layout, integers, linspace, normal

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
    # Square: a transposed product has the right shape (linear_untransposed).
    Case(
        "Linear",
        dict(in_features=24, out_features=24),
        dict(x=linspace(-1.0, 1.0, 30, 24)),
        name="probe_square",
        probe="orientation of weights",
    ),
    # Results beyond 65504, which bf16 and float32 hold (rounding_by_float16).
    Case(
        "Linear",
        dict(in_features=24, out_features=40),
        dict(x=normal(30, 24, scale=1e6)),
        name="probe_large",
        dtypes=("fp64", "fp32", "bf16"),
        probe="range of the type",
    ),
    # 4096 terms: what a float16 accumulator loses grows with their number (linear_half_sum).
    Case(
        "Linear",
        dict(in_features=4096, out_features=5),
        dict(x=normal(6, 4096)),
        name="probe_wide",
        probe="accumulation of products",
    ),
    # The variance is near eps: an eps ten times too large changes the result by a factor, not by a rounding.
    # Kills layer_norm_eps_*: half precision sees none of them on inputs of variance 1.
    Case(
        "LayerNorm",
        dict(dim=48, eps=1e-6),
        dict(x=normal(64, 48, scale=2.0**-10)),
        name="probe_small",
        probe="LayerNorm eps",
    ),
    # E[x^2] - E[x]^2 cancels 2 to 3 digits in float32 (layer_norm_one_pass); float64 has enough of them.
    Case(
        "LayerNorm",
        dict(dim=48, eps=1e-6),
        dict(x=normal(64, 48, mean=20.0)),
        name="probe_mean",
        probe="LayerNorm cancellation",
    ),
    # The same for half precision, whose limits are wider: 6 digits cancel. In float32 already the rounding of the mean
    # is 1e-5 of the result, so that the control would judge nothing.
    Case(
        "LayerNorm",
        dict(dim=48, eps=1e-6),
        dict(x=normal(64, 48, mean=2000.0, scale=2.0)),
        name="probe_offset",
        dtypes=("fp16", "bf16"),
        probe="LayerNorm cancellation",
    ),
    # n - 1 instead of n (layer_norm_unbiased) is 1 % at width 48 and 15 % at width 4.
    Case(
        "LayerNorm",
        dict(dim=4, eps=1e-6),
        dict(x=normal(64, 4)),
        name="probe_narrow",
        probe="LayerNorm denominator",
    ),
    Case("PatchConv", dict(in_channels=4, embed_dim=24, patch_size=2), dict(x=normal(3, 4, 6, 8))),
    # 9 x 7 is not divisible by 2: "same" padding gives other shapes.
    Case(
        "PatchConv",
        dict(in_channels=4, embed_dim=24, patch_size=2),
        dict(x=normal(3, 4, 9, 7)),
        name="probe_odd",
        probe="padding",
    ),
    Case("Embedding", dict(num_embeddings=9, embedding_dim=24), dict(ids=integers(5, high=9))),
    Case("SiLU", {}, dict(x=normal(30, 24, scale=3.0))),
    # exp(300) is no float32: a sigmoid written as a ratio of exponentials gives NaN (silu_ratio).
    Case("SiLU", {}, dict(x=linspace(-300.0, 300.0, 30, 24)), name="probe_large", probe="large activations"),
    Case("GELU", dict(approximate="tanh"), dict(x=normal(30, 24, scale=2.0))),
    Case("GELU", dict(approximate="none"), dict(x=normal(30, 24, scale=2.0)), name="erf"),
    # The two forms differ most, relative to their size, in the tail.
    # Kills gelu_erf_*: on ordinary inputs half precision cannot tell them.
    Case(
        "GELU",
        dict(approximate="tanh"),
        dict(x=linspace(-4.5, -2.0, 40, 24)),
        name="probe_tail",
        probe="GELU form",
    ),
    Case("exp", inputs=dict(x=linspace(-18.0, 18.0, 4, 30)), dtypes=("fp64", "fp32")),
    Case("exp", inputs=dict(x=linspace(-60.0, -40.0, 4, 30)), dtypes=("fp64", "fp32"), name="small"),
    Case("sigmoid", inputs=dict(x=linspace(-18.0, 18.0, 4, 30)), dtypes=("fp64", "fp32")),
    Case("sigmoid", inputs=dict(x=linspace(-60.0, -40.0, 4, 30)), dtypes=("fp64", "fp32"), name="small"),
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
    # x (1 + scale) and shift cancel: a product rounded to half precision before the sum shows (modulate_half_islands).
    Case(
        "modulate",
        inputs=dict(
            x=normal(30, 24, mean=64.0), shift=normal(2, 24, mean=-64.0), scale=normal(2, 24, scale=0.01)
        ),
        name="probe_cancel",
        probe="islands of the modulation",
    ),
    Case("regroup_pixels", inputs=dict(x=normal(3, 4, 6, 8), patch_size=2)),
    Case("unpatchify", inputs=dict(x=normal(72, 12), frames=6, height=3, width=4, patch_size=2)),
    # 2 x 8 = 16 tokens: a square root of the tokens is whole and wrong (unpatchify_square).
    Case(
        "unpatchify",
        inputs=dict(x=normal(96, 12), frames=6, height=2, width=8, patch_size=2),
        name="probe_wide",
        probe="height and width",
    ),
]
