# SPDX-License-Identifier: Apache-2.0
"""Bugs of `models/precision.py` and of constants beside tensors: what is rounded where."""

from parity.mutants import gates, mutant

ROUND = "precision.Precision.round"
GRID = "precision.Precision._grid"
CALL = 'HALF_GRID[formulation("half_grid")](x, DTYPES[self.compute])'

MUTANTS = [
    mutant(
        "rounding_missing",
        "results left in float32 in a half-precision model",
        ("layers.Linear", "layers.GELU"),
        gates("-", "G2"),
        (ROUND, "return self._grid(x)", "return x"),
        note="float32 has nothing to round",
    ),
    mutant(
        "rounding_truncates",
        "half precision by cutting bits instead of rounding to nearest",
        ("precision.Precision-bf16", "precision.Precision-fp16", "attention.DotProductAttention-probe_ties"),
        gates("G2", "G3"),
        (
            GRID,
            f"return {CALL} if self.emulated else x",
            "if not self.emulated: return x\n"
            f"    y = {CALL}\n"
            "    below = y * (1 - 2.0 ** (-8 if self.compute == 'bf16' else -11))\n"
            '    below = HALF_GRID["cast"](below, DTYPES[self.compute])\n'
            "    return ops.select(ops.abs(y) > ops.abs(x), below, y)",
        ),
    ),
    mutant(
        "half_is_bf16",
        "a float16 model that rounds to bf16",
        "layers.Linear",
        gates("-", "G2", "-"),
        (GRID, "DTYPES[self.compute]", 'DTYPES["bf16"]'),
        note="the float32 and bf16 policies do not change",
    ),
    mutant(
        "rounding_by_float16",
        "bf16 rounded by way of float16: what float16 cannot hold is lost",
        ("precision.Precision-probe_bf16_range", "layers.Linear-probe_large"),
        gates("G3", "-", "G3"),
        (
            GRID,
            "(x, DTYPES[self.compute])",
            '(HALF_GRID["cast"](x, ms.float16), DTYPES[self.compute])',
        ),
        note="float16 is rounded as before",
    ),
    mutant(
        "island_of_norm_lost",
        "mean and variance of LayerNorm rounded to half precision",
        ("layers.LayerNorm-probe_offset", "layers.LayerNorm"),
        gates("-", "G3"),
        (
            "layers.LayerNorm.construct",
            'return p.round(FORMULATIONS["layer_norm"][formulation("layer_norm")](p.up(x), weight, bias, self.eps))',
            "d = p.up(x) - p._grid(reduce_mean_keep(p.up(x), -1))\n"
            "    v = p._grid(reduce_mean_keep(ops.square(d), -1))\n"
            "    return p.round(d * ops.rsqrt(v + constant(self.eps, x)))",
        ),
        note="float32 has no islands",
    ),
    mutant(
        "constants_float32",
        "Python numbers beside float64 tensors (MindSpore rounds them to float32)",
        ("layers.GELU", "layers.LayerNorm"),
        gates("G1", "-"),
        ("constants.constant", "_float64(value) if like.dtype == ms.float64 else value", "value"),
        note="a float32 constant is exact enough for every type but float64",
    ),
    mutant(
        "tables_half",
        "position and timestep tables made in float16",
        "embeddings.timestep_embedding",
        gates("G1 G2", "G2"),
        (
            "constants._tensor",
            "table.astype(np.float64 if double else np.float32)",
            "table.astype(np.float16).astype(np.float64 if double else np.float32)",
        ),
    ),
]
