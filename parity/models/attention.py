# SPDX-License-Identifier: Apache-2.0
"""Cases of `models/attention.py`."""

from parity.harness.case import Case
from parity.harness.inputs import Layout, array, normal

BIAS = array([[0.0] * 4 + [-10000.0] * 3, [0.0] * 7])
CROSS = dict(query_dim=48, cross_attention_dim=20, heads=3, dim_head=16, bias=True)

CASES = [
    Case(
        "DotProductAttention",
        dict(head_dim=16),
        dict(q=normal(6, 5, 16), k=normal(6, 7, 16), v=normal(6, 7, 16)),
    ),
    Case(
        "DotProductAttention",
        dict(head_dim=16),
        dict(q=normal(6, 5, 16), k=normal(6, 7, 16), v=normal(6, 7, 16), bias=BIAS),
        name="bias",
    ),
    # 4096 equal logits: a float16 running sum stalls at 2048 and doubles every weight.
    Case(
        "DotProductAttention",
        dict(head_dim=16),
        dict(
            q=normal(2, 3, 16, scale=1e-3), k=normal(2, 4096, 16, scale=1e-3), v=normal(2, 4096, 16, mean=1.0)
        ),
        name="probe_long",
    ),
    # Logits of +-60: exp overflows in half precision unless the maximum is subtracted first.
    Case(
        "DotProductAttention",
        dict(head_dim=16),
        dict(q=normal(6, 5, 16, scale=8.0), k=normal(6, 7, 16, scale=8.0), v=normal(6, 7, 16)),
        name="probe_range",
    ),
    Case(
        "Attention",
        dict(dim=48, num_heads=3),
        dict(x=normal(30, 48), layout=Layout(2, 3, 5, "space")),
        name="space",
    ),
    Case(
        "Attention",
        dict(dim=48, num_heads=3),
        dict(x=normal(30, 48), layout=Layout(2, 3, 5, "time")),
        name="time",
    ),
    Case("Attention", dict(dim=48, num_heads=3), dict(x=normal(2, 5, 48)), name="rows"),
    Case(
        "Attention",
        dict(dim=48, num_heads=3),
        dict(x=normal(2, 5, 48)),
        name="all_half",
        islands="compute",
        dtypes=("fp16", "bf16"),
    ),
    Case(
        "MultiHeadAttention",
        dict(query_dim=48, heads=3, dim_head=16),
        dict(hidden_states=normal(2, 5, 48)),
        name="self",
    ),
    Case(
        "MultiHeadAttention",
        CROSS,
        dict(
            hidden_states=normal(30, 48),
            encoder_hidden_states=normal(2, 7, 20),
            attention_mask=BIAS,
            layout=Layout(2, 3, 5),
        ),
        name="cross",
    ),
    Case(
        "MultiHeadAttention",
        CROSS,
        dict(hidden_states=normal(30, 48), encoder_hidden_states=normal(4, 7, 20), layout=Layout(2, 3, 5)),
        name="cross_joint",
    ),
    Case(
        "MultiHeadAttention",
        CROSS,
        dict(
            hidden_states=normal(30, 48),
            encoder_hidden_states=normal(2, 7, 20),
            attention_mask=normal(6, 1, 7, scale=3.0),
            layout=Layout(2, 3, 5),
        ),
        name="cross_bias_per_frame",
    ),
    Case("text_per_frame", inputs=dict(x=normal(12, 5, 6), layout=Layout(2, 4, 5), rows=4)),
]
