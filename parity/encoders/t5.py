# SPDX-License-Identifier: Apache-2.0
"""Cases of `encoders/t5.py`."""

from parity.harness.case import Case
from parity.harness.inputs import Layout, integers, lengths, normal

CONFIG = dict(
    vocab_size=50,
    d_model=24,
    d_kv=6,
    d_ff=40,
    num_layers=3,
    num_heads=4,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=20,
    dropout_rate=0.1,
    layer_norm_epsilon=1e-6,
    feed_forward_proj="gated-gelu",
)
# Heads together wider than the model, as in T5 v1.0's 11B.
RELU = {**CONFIG, "d_kv": 9, "feed_forward_proj": "relu"}
TABLE = dict(has_relative_attention_bias=True)
BIASED = dict(position_bias=normal(8, 7, 7, scale=2.0), layout=Layout(2, 1, 7))
MASK = lengths(7, [3, 7])
EXACT = dict(dtypes=("fp64",))  # integers: judged once

CASES = [
    Case("relative_position_buckets", inputs=dict(length=150, num_buckets=32, max_distance=128), **EXACT),
    Case(
        "relative_position_buckets",
        inputs=dict(length=40, num_buckets=12, max_distance=20),
        name="other",
        **EXACT,
    ),
    Case(
        "attention_bias",
        inputs=dict(position_bias=normal(4, 7, 7), attention_mask=None, batch=2),
        name="open",
    ),
    Case("attention_bias", inputs=dict(position_bias=normal(4, 7, 7), attention_mask=MASK, batch=2)),
    Case(
        "attention_bias",
        inputs=dict(position_bias=normal(4, 7, 7), attention_mask=MASK, batch=2),
        name="all_half",
        islands="compute",
        dtypes=("fp16", "bf16"),
    ),
    Case("T5LayerNorm", dict(dim=24, eps=1e-6), dict(hidden_states=normal(30, 24))),
    Case("T5LayerNorm", dict(dim=24, eps=1e-6), dict(hidden_states=normal(2, 15, 24)), name="3d"),
    # The mean square is near eps: ten times the eps changes the result by a factor.
    Case(
        "T5LayerNorm",
        dict(dim=24, eps=1e-6),
        dict(hidden_states=normal(64, 24, scale=2.0**-10)),
        name="probe_small",
        probe="norm eps",
    ),
    # The mean is the whole of the rows: subtracting it leaves another direction and 20 times the length.
    Case(
        "T5LayerNorm",
        dict(dim=24, eps=1e-6),
        dict(hidden_states=normal(64, 24, mean=20.0)),
        name="probe_mean",
        probe="norm without mean",
    ),
    Case("T5DenseActDense", dict(config=RELU), dict(hidden_states=normal(30, 24))),
    Case("T5DenseGatedActDense", dict(config=CONFIG), dict(hidden_states=normal(30, 24))),
    # GELU's two forms differ most, relative to their size, in the tail.
    Case(
        "T5DenseGatedActDense",
        dict(config=CONFIG),
        dict(hidden_states=normal(64, 24, scale=3.0)),
        name="probe_tail",
        probe="GELU form",
    ),
    # Products of gate and input beyond 65504, results of wo below it (t5_gate_half).
    Case(
        "T5DenseGatedActDense",
        dict(config=CONFIG),
        dict(hidden_states=normal(30, 24, scale=110.0)),
        name="probe_range",
        probe="range of the gate",
    ),
    Case("T5LayerFF", dict(config=CONFIG), dict(hidden_states=normal(30, 24))),
    Case("T5LayerFF", dict(config=RELU), dict(hidden_states=normal(30, 24)), name="relu"),
    Case("T5Attention", dict(config=CONFIG), dict(hidden_states=normal(14, 24), **BIASED)),
    Case("T5Attention", dict(config=RELU), dict(hidden_states=normal(14, 24), **BIASED), name="wide"),
    Case(
        "T5Attention",
        dict(config=CONFIG),
        dict(hidden_states=normal(14, 24), **BIASED),
        name="all_half",
        islands="compute",
        dtypes=("fp16", "bf16"),
    ),
    # 25 tokens reach the last bucket in both directions.
    Case("T5Attention", dict(config=CONFIG, **TABLE), dict(length=25), name="table", method="compute_bias"),
    Case("T5LayerSelfAttention", dict(config=CONFIG), dict(hidden_states=normal(14, 24), **BIASED)),
    Case("T5Block", dict(config=CONFIG), dict(hidden_states=normal(14, 24), **BIASED)),
    Case("T5Block", dict(config=RELU), dict(hidden_states=normal(14, 24), **BIASED), name="relu"),
    Case("T5Stack", dict(config=CONFIG), dict(inputs_embeds=normal(2, 7, 24), attention_mask=MASK)),
    Case(
        "T5EncoderModel",
        CONFIG,
        dict(input_ids=integers(2, 25, high=50), attention_mask=lengths(25, [9, 25])),
    ),
    Case("T5EncoderModel", RELU, dict(input_ids=integers(2, 7, high=50)), name="relu"),
    Case(
        "T5EncoderModel",
        CONFIG,
        dict(input_ids=integers(2, 25, high=50), attention_mask=lengths(25, [9, 25])),
        name="all_half",
        islands="compute",
        dtypes=("fp16", "bf16"),
    ),
]
