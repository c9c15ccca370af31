# SPDX-License-Identifier: Apache-2.0
"""Bugs of `encoders/t5.py`: positions, scale, norm, gate, mask, range.

Places are below `ms_latte.encoders` ("t5.T5Attention.construct").
"""

from parity.mutants import NUMBERS, PROBE, gates, mutant

MODEL = "t5.T5EncoderModel"

MUTANTS = [
    mutant(
        "t5_buckets_one_direction",
        "keys before and behind the query share their buckets",
        (MODEL, "t5.relative_position_buckets"),
        NUMBERS,
        ("t5.relative_position_buckets", "np.int32(half) * (relative > 0)", "np.int32(0) * (relative > 0)"),
    ),
    mutant(
        "t5_buckets_swapped",
        "query - key instead of key - query",
        (MODEL, "t5.relative_position_buckets"),
        NUMBERS,
        ("t5.relative_position_buckets", "(relative > 0)", "(relative < 0)"),
    ),
    mutant(
        "t5_max_distance",
        "the maximum distance of the default instead of the file's",
        (MODEL, "t5.T5Attention-table"),
        gates("G0 G1 G2", "G0 G2"),
        (
            "t5.T5Attention.__init__",
            'self.max_distance = config["relative_attention_max_distance"]',
            "self.max_distance = 128",
        ),
    ),
    mutant(
        "t5_bucket_edges",
        "a distance on the edge of two buckets given to the lower one, as a logarithm just below the integer does",
        "t5.relative_position_buckets",
        gates("G1", "-"),
        (
            "t5.relative_position_buckets",
            "exact ** (step + 1) >= max_distance",
            "exact ** (step + 1) > max_distance",
        ),
        note="integers, judged once",
    ),
    mutant(
        "t5_attention_scaled",
        "logits divided by the square root of the head width, as everywhere but in T5",
        ("t5.T5Attention", MODEL),
        NUMBERS,
        (
            "t5.T5Attention.construct",
            "batch_matmul_t(q, k)",
            "batch_matmul_t(q * (q.shape[-1] ** -0.5), k)",
        ),
    ),
    mutant(
        "t5_norm_with_mean",
        "a LayerNorm that subtracts the mean",
        ("t5.T5LayerNorm-probe_mean", "t5.T5LayerNorm"),
        gates("G1 G2 G3", "G2 G3"),
        (
            "t5.T5LayerNorm.construct",
            "x = p.up(hidden_states)",
            "x = p.up(hidden_states)\n    x = x - reduce_mean_keep(x, -1)",
        ),
    ),
    mutant(
        "t5_gelu_erf",
        '"gated-gelu" taken as the erf form',
        ("t5.T5DenseGatedActDense", "t5.T5DenseGatedActDense-probe_tail"),
        gates("G0 G1 G2 G3", "G0"),
        ("t5.T5DenseGatedActDense.__init__", 'GELU("tanh"', 'GELU("none"'),
    ),
    mutant(
        "t5_norm_eps_inside",
        "the norm divides by the root of the mean square plus 1e-5, whatever its eps says",
        "t5.T5LayerNorm-probe_small",
        PROBE,
        ("t5.T5LayerNorm.construct", "constant(self.eps, x)", "constant(1e-5, x)"),
    ),
    mutant(
        "t5_gate_on_the_other",
        "the activation on wi_1 instead of wi_0",
        "t5.T5DenseGatedActDense",
        gates("G0 G1 G2", "G0 G2"),
        (
            "t5.T5DenseGatedActDense.construct",
            "self.act(self.wi_0(hidden_states))",
            "self.wi_0(hidden_states)",
        ),
        (
            "t5.T5DenseGatedActDense.construct",
            "self.wide.up(self.wi_1(hidden_states))",
            "self.wide.up(self.act(self.wi_1(hidden_states)))",
        ),
    ),
    mutant(
        "t5_gate_half",
        "gate and wo in float16: products beyond 65504 are infinite",
        "t5.T5DenseGatedActDense-probe_range",
        gates("-", "G3", "-"),
        ("t5._wide", 'Precision("fp32") if', "precision if"),
        note="the other types have the range",
    ),
    mutant(
        "t5_bias_in_first_block_only",
        "positions added in the block that has their table, and not in the others",
        MODEL,
        NUMBERS,
        (
            "t5.T5Stack.construct",
            "x = block(x, bias, TokenLayout(B, 1, L))",
            "x = block(x, bias, TokenLayout(B, 1, L))\n        bias = ops.zeros_like(bias)",
        ),
    ),
    mutant(
        "t5_bias_in_every_block",
        "a table of positions in every block (umT5)",
        MODEL,
        gates("G0", "G0"),
        ("t5.T5Stack.__init__", "has_relative_attention_bias=i == 0", "has_relative_attention_bias=True"),
    ),
    mutant(
        "t5_mask_ignored",
        "padding is attended",
        (MODEL, "t5.attention_bias"),
        NUMBERS,
        ("t5.attention_bias", "precision.step(bias + dropped)", "precision.step(bias)"),
    ),
    mutant(
        "t5_mask_tiled",
        "mask rows given to (caption, head) sequences in turn instead of in runs",
        "t5.attention_bias",
        NUMBERS,
        ("t5.attention_bias", "spread(dropped, batch * A)", "ops.tile(dropped, (A, 1))"),
    ),
]
