# SPDX-License-Identifier: Apache-2.0
"""Cases of `models/blocks.py`: both kinds of block, over space and over time."""

from parity.harness.case import Case
from parity.harness.inputs import Layout, array, linspace, normal

MASK = array([[0.0] * 4 + [-10000.0] * 3, [0.0] * 7])
HEADS = dict(
    inner_dim=48,
    num_attention_heads=3,
    attention_head_dim=16,
    activation_fn="gelu-approximate",
    attention_bias=True,
    norm_elementwise_affine=False,
    norm_eps=1e-6,
)
CROSS = {**HEADS, "cross_attention_dim": 48}
AFFINE = {**CROSS, "activation_fn": "geglu", "norm_elementwise_affine": True, "num_embeds_ada_norm": 9}
STREAM = dict(hidden_states=normal(30, 48), timestep=normal(2, 288, scale=0.5), layout=Layout(2, 3, 5))
TEXT = dict(encoder_hidden_states=normal(2, 7, 48), encoder_attention_mask=MASK)
PAIR = dict(spatial_block=("BasicTransformerBlock", CROSS), temp_block=("TemporalTransformerBlock", HEADS))
JOINT = dict(
    hidden_states=normal(50, 48),
    encoder_hidden_states=normal(6, 7, 48),
    encoder_attention_mask=None,
    timestep=normal(2, 288, scale=0.5),
    layout=Layout(2, 5, 5),
    use_image_num=2,
)

CASES = [
    Case(
        "TransformerBlock",
        dict(hidden_size=48, num_heads=3),
        dict(x=normal(30, 48), c=normal(2, 48), layout=Layout(2, 3, 5, "space")),
        name="space",
    ),
    Case(
        "TransformerBlock",
        dict(hidden_size=48, num_heads=3, mlp_ratio=3.0),
        dict(x=normal(30, 48), c=normal(2, 48), layout=Layout(2, 3, 5, "time")),
        name="time",
    ),
    Case(
        "TransformerBlock",
        dict(hidden_size=48, num_heads=3),
        dict(x=normal(6, 5, 48), c=normal(6, 48)),
        name="rows",
    ),
    Case(
        "FinalLayer",
        dict(hidden_size=48, patch_size=2, out_channels=8),
        dict(x=normal(30, 48), c=normal(2, 48)),
    ),
    # A stream whose variance is near eps: which eps each norm was built with (final_eps, block_eps).
    Case(
        "FinalLayer",
        dict(hidden_size=48, patch_size=2, out_channels=8),
        dict(x=normal(30, 48, scale=2.0**-10), c=normal(2, 48)),
        name="probe_small",
        probe="eps of the final norm",
    ),
    Case(
        "TransformerBlock",
        dict(hidden_size=48, num_heads=3),
        dict(x=normal(30, 48, scale=2.0**-10), c=normal(2, 48), layout=Layout(2, 3, 5, "space")),
        name="probe_small",
        probe="eps of a block's norms",
    ),
    # Modulation as large as the stream, different in every vector: a block that reads them in another order has
    # nothing in common with the reference (chunks_*). Not larger: it amplifies the rounding of the norms, too.
    Case(
        "TransformerBlock",
        dict(hidden_size=48, num_heads=3),
        dict(x=normal(30, 48), c=normal(2, 48, scale=4.0), layout=Layout(2, 3, 5, "space")),
        name="probe_chunks",
        probe="order of adaLN-Zero's vectors",
    ),
    Case(
        "BasicTransformerBlock",
        CROSS,
        {**STREAM, **TEXT, "timestep": linspace(-1.5, 1.5, 2, 288)},
        name="probe_chunks",
        probe="order of adaLN-single's vectors",
    ),
    Case("BasicTransformerBlock", CROSS, {**STREAM, **TEXT}, name="cross"),
    Case(
        "BasicTransformerBlock",
        {**CROSS, "norm_elementwise_affine": True, "norm_eps": 1e-5},
        dict(
            hidden_states=normal(6, 5, 48),
            encoder_hidden_states=normal(6, 7, 48),
            timestep=normal(6, 288, scale=0.5),
        ),
        name="rows_affine",
    ),
    Case(
        "BasicTransformerBlock", {**AFFINE, "norm_type": "layer_norm"}, {**STREAM, **TEXT}, name="layer_norm"
    ),
    Case(
        "BasicTransformerBlock",
        {**AFFINE, "norm_type": "ada_norm"},
        {**STREAM, **TEXT, "timestep": array([3, 8])},
        name="ada_norm",
    ),
    Case(
        "BasicTransformerBlock",
        {**AFFINE, "norm_type": "ada_norm_zero"},
        {**STREAM, **TEXT, "timestep": array([3, 977]), "class_labels": array([9, 4])},
        name="ada_norm_zero",
    ),
    Case("TemporalTransformerBlock", HEADS, {**STREAM, "layout": Layout(2, 3, 5, "time")}),
    Case(
        "LatteT2VBlock",
        dict(block_id=0, temp_pos_embed=linspace(-1.0, 1.0, 3, 48).draw(None)),
        JOINT,
        parts=PAIR,
    ),
    Case("latte_t2v_block", inputs={**JOINT, "temp_pos_embed": None}, parts=PAIR),
]
