# SPDX-License-Identifier: Apache-2.0
"""Cases of `models/latte_t2v.py`. Tiny nets have every dimension different; the thin net has the full depth."""

from parity.harness.case import Case
from parity.harness.inputs import Seed, array, lengths, normal

TINY = dict(
    num_attention_heads=3,
    attention_head_dim=16,
    in_channels=4,
    out_channels=8,
    num_layers=2,
    cross_attention_dim=48,
    attention_bias=True,
    sample_size=8,
    patch_size=2,
    activation_fn="gelu-approximate",
    norm_elementwise_affine=False,
    norm_eps=1e-6,
    caption_channels=20,
    video_length=3,
)
INPUTS = dict(
    hidden_states=normal(2, 4, 3, 8, 12), timestep=array([3, 977]), encoder_hidden_states=normal(2, 7, 20)
)
JOINT = dict(
    hidden_states=normal(2, 4, 5, 8, 12),
    encoder_hidden_states=normal(2, 3, 7, 20),
    use_image_num=2,
    encoder_attention_mask=lengths(7, [[1, 7, 4], [6, 2, 5]]),
)
OTHER = dict(activation_fn="geglu", norm_elementwise_affine=True, num_embeds_ada_norm=9, num_layers=1)
SIZES = dict(resolution=array([[64.0, 96.0]]), aspect_ratio=array([[0.6666666]]))
TEXT = dict(encoder_hidden_states=normal(2, 7, 20), encoder_attention_mask=lengths(7, [1, 7]))
TEXT_OF_IMAGES = {name: JOINT[name] for name in JOINT if name != "hidden_states"}


def net(name, init=None, inputs=None, **rest):
    """A tiny whole net."""
    return Case(
        "LatteT2V", {**TINY, **(init or {})}, {**INPUTS, **(inputs or {})}, name, net="LatteT2V", **rest
    )


CASES = [
    net("nomask"),
    # One sample keeps a single token, the other all: a wrong sign or a wrong broadcast is of order one.
    net("mask2d", inputs=dict(encoder_attention_mask=lengths(7, [1, 7]))),
    net("bias", inputs=dict(encoder_attention_bias=normal(6, 1, 7, scale=3.0))),
    net("joint", inputs=JOINT),
    net("long", dict(video_length=11), dict(hidden_states=normal(2, 4, 11, 4, 6))),
    # A faint video of many frames: what the net sees are its positions (temporal_scale_*).
    net(
        "probe_frames",
        dict(video_length=31),
        dict(hidden_states=normal(2, 4, 31, 4, 6, scale=2.0**-6)),
        probe="scale of the temporal positions",
    ),
    net(
        "unscaled",
        dict(temporal_interpolation_scale=1.0, video_length=11),
        dict(hidden_states=normal(2, 4, 4, 4, 6)),
    ),
    net("one_frame", inputs=dict(hidden_states=normal(2, 4, 1, 8, 12))),
    net("spatial_only", inputs=dict(enable_temporal_attentions=False)),
    net("interpolated", dict(sample_size=(128, 64), per_axis_base_size=True)),
    net(
        "affine",
        dict(norm_elementwise_affine=True, norm_eps=1e-5, attention_bias=False, activation_fn="gelu"),
    ),
    net("layer_norm", OTHER | dict(norm_type="layer_norm"), dict(encoder_attention_mask=lengths(7, [1, 7]))),
    net("ada_norm", OTHER | dict(norm_type="ada_norm"), dict(timestep=array([3, 8]))),
    net("ada_norm_zero", OTHER | dict(norm_type="ada_norm_zero"), dict(class_labels=array([9, 4]))),
    net("sizes", dict(use_additional_conditions=True), dict(added_cond_kwargs=SIZES)),
    net("recompute", dict(use_recompute=True)),
    # One text prepared for a whole sampling run; the nets above take theirs through the same function.
    Case("LatteT2V", TINY, TEXT, "text", "prepare_text"),
    Case("LatteT2V", TINY, TEXT_OF_IMAGES, "text_joint", "prepare_text"),
    net("all_half", islands="compute", dtypes=("fp16", "bf16")),
    Case(
        "init_weights",
        inputs=dict(rng=Seed(11)),
        parts=dict(model=("LatteT2V", {**TINY, "norm_elementwise_affine": True})),
    ),
    Case(
        "LatteT2V_XL_122",
        dict(
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=24,
            cross_attention_dim=48,
            caption_channels=20,
        ),
        dict(
            hidden_states=normal(1, 4, 3, 4, 6), timestep=array([37]), encoder_hidden_states=normal(1, 7, 20)
        ),
        net="LatteT2V",
    ),
    Case(
        "LatteT2V",
        {
            **TINY,
            "num_layers": 28,
            "num_attention_heads": 4,
            "attention_head_dim": 18,
            "cross_attention_dim": 72,
        },
        dict(
            hidden_states=normal(2, 4, 3, 6, 8),
            timestep=array([3, 977]),
            encoder_hidden_states=normal(2, 7, 20),
            encoder_attention_mask=lengths(7, [2, 7]),
        ),
        "thin",
        size="thin",
        net="LatteT2V",
    ),
]
