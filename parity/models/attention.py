# SPDX-License-Identifier: Apache-2.0
"""Cases of `models/attention.py`."""

from parity.harness.case import Case
from parity.harness.inputs import Layout, array, diagonal, lengths, normal

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
    # The fused form. On the CPU the port composes it. In native half precision the device's kernel computes it, unless
    # there is an additive bias, which it does not take: heads of 72 are filled up to 80, a mask is turned round.
    Case(
        "DotProductAttention",
        dict(head_dim=16, form="flash"),
        dict(q=normal(6, 5, 16), k=normal(6, 7, 16), v=normal(6, 7, 16), bias=BIAS),
        name="flash",
        dtypes=("fp64", "fp32"),
    ),
    Case(
        "DotProductAttention",
        dict(head_dim=72, form="flash"),
        dict(q=normal(6, 5, 72), k=normal(6, 7, 72), v=normal(6, 7, 72)),
        name="flash_wide",
    ),
    Case(
        "DotProductAttention",
        dict(head_dim=16, form="flash"),
        dict(
            q=normal(6, 5, 16),
            k=normal(6, 7, 16),
            v=normal(6, 7, 16),
            bias=array([[True] * 3 + [False] * 4, [True] * 7]),
        ),
        name="flash_mask",
    ),
    # Logits of hundreds, whose rounding to half precision would move weights by tens of percent: fused, they are not
    # rounded (flash_rounded_inside).
    Case(
        "DotProductAttention",
        dict(head_dim=72, form="flash"),
        dict(q=normal(6, 50, 72, scale=6.0), k=normal(6, 70, 72, scale=6.0), v=normal(6, 70, 72)),
        name="probe_fused",
        dtypes=("fp16", "bf16"),
        probe="roundings inside the fused kernel",
    ),
    # 4096 equal logits: a float16 running sum stalls at 2048 and doubles every weight.
    Case(
        "DotProductAttention",
        dict(head_dim=16),
        dict(
            q=normal(2, 3, 16, scale=1e-3), k=normal(2, 4096, 16, scale=1e-3), v=normal(2, 4096, 16, mean=1.0)
        ),
        name="probe_long",
        probe="accumulation of the softmax",
    ),
    # Logits of +-200: exp overflows even float32 unless the maximum is subtracted first (softmax_no_maximum). Most rows
    # have one weight of 1 and are exact; the few with two large logits near each other make the whole error. Of 30
    # rows it was one or two, and the errors of two correct sides differed by up to 15; of 7680 they are alike.
    Case(
        "DotProductAttention",
        dict(head_dim=16),
        dict(q=normal(48, 160, 16, scale=8.0), k=normal(48, 7, 16, scale=8.0), v=normal(48, 7, 16)),
        name="probe_range",
        probe="range of the softmax",
    ),
    # Activations of 300: q k exceeds 65504 unless the query is scaled first (scale_after_product). Every query meets
    # one key, so that the result is exact.
    Case(
        "DotProductAttention",
        dict(head_dim=16),
        dict(q=diagonal(300.0, 6, 5, 16), k=diagonal(300.0, 6, 5, 16), v=normal(6, 5, 16)),
        name="probe_overflow",
        probe="range of the logits",
    ),
    # Logits of 4096 less or more by 2^-10: to nearest they are equal, cut they differ by a whole unit, which softmax
    # makes a factor of e^2 or e^16 (rounding_truncates). In float32 the rounding of such logits would fail the control.
    Case(
        "DotProductAttention",
        dict(head_dim=16),
        dict(
            q=array([[[64.0, 2.0**-8] + [0.0] * 14] * 3] * 2),
            k=array([[[256.0, sign] + [0.0] * 14 for sign in (-1.0, 1.0, 1.0, -1.0, 1.0)]] * 2),
            v=normal(2, 5, 16),
        ),
        name="probe_ties",
        dtypes=("fp16", "bf16"),
        probe="direction of rounding",
    ),
    # A hard mask hides a wrong factor: -2500 drops a token as -10000 does (bias_before_scale).
    Case(
        "DotProductAttention",
        dict(head_dim=16),
        dict(q=normal(6, 5, 16), k=normal(6, 7, 16), v=normal(6, 7, 16), bias=normal(2, 7, scale=3.0)),
        name="probe_soft_bias",
        probe="scale of the mask",
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
    Case("MultiHeadAttention", CROSS, dict(encoder_hidden_states=normal(4, 7, 20)), "text", "project_text"),
    Case("text_per_frame", inputs=dict(x=normal(12, 5, 6), layout=Layout(2, 4, 5), rows=4)),
    Case(
        "text_rows",
        inputs=dict(encoder_hidden_states=normal(2, 3, 7, 20), layout=Layout(2, 5, 6), use_image_num=2),
    ),
    Case(
        "text_bias",
        inputs=dict(mask=lengths(7, [1, 7]), bias=None, layout=Layout(2, 3, 6), use_image_num=0),
    ),
]
