# SPDX-License-Identifier: Apache-2.0
"""Bugs of `models/layers.py`: constants, orders of axes, what is added to what."""

from parity.mutants import NUMBERS, PROBE, assign, cells, gates, mutant

MODULATE = ("layers.modulate",)


def _pad_same(model):
    for cell in cells(model, "PatchConv"):
        if cell.precision.compute != "fp64":  # im2col, the formulation of float64, refuses any padding
            cell.pad_mode = "same"


MUTANTS = [
    # --- activations
    mutant(
        "gelu_erf",
        "every GELU built in the erf form instead of tanh",
        ("layers.GELU-probe_tail", "mlp.Mlp"),
        gates("G0 G1 G3", "G0 G3"),
        change=assign("GELU", "approximate", "none"),
    ),
    mutant(
        "gelu_erf_inside",
        "a GELU that says tanh and computes erf (torch's and mint's default)",
        ("layers.GELU-probe_tail", "layers.GELU"),
        PROBE,
        ("layers.GELU.construct", 'self.approximate == "tanh"', 'self.approximate == "sigmoid"'),
    ),
    mutant(
        "gelu_quick",
        "x sigmoid(1.702 x) instead of tanh GELU",
        ("layers.GELU-probe_tail", "layers.GELU"),
        gates("G1 G2 G3", "G2 G3", "G3"),
        ("layers._gelu_tanh_sigmoid", "x * x * constant(0.07135481627260025, x)", "0 * x"),
        ("layers._gelu_tanh_sigmoid", "1.5957691216057308", "1.702"),
    ),
    mutant(
        "gelu_short_constant",
        "the constant of the cube cut to 0.0713548",
        "layers.GELU-probe_tail",
        gates("G1", "-"),
        ("layers._gelu_tanh_sigmoid", "0.07135481627260025", "0.0713548"),
        note="2e-7 of the cubic term: below the unit of half precision",
    ),
    mutant(
        "silu_is_gelu",
        "SiLU replaced by GELU",
        "layers.SiLU",
        NUMBERS,
        ("layers.SiLU.construct", "x * ops.sigmoid(x)", "x * ops.sigmoid(1.702 * x)"),
    ),
    mutant(
        "silu_ratio",
        "SiLU as x exp(x) / (1 + exp(x))",
        ("layers.SiLU-probe_large", "layers.SiLU"),
        gates("G3", "G3"),
        ("layers.SiLU.construct", "x * ops.sigmoid(x)", "x * ops.exp(x) / (1 + ops.exp(x))"),
        note="float64 holds exp(300)",
    ),
    mutant(
        "exp_of_the_size",
        "e^|x|: numbers below 0 not inverted",
        ("layers.exp", "vae.sample_posterior"),
        NUMBERS,
        ("layers.exp", "ops.where(below, 1 / size, size)", "size"),
    ),
    mutant(
        "sigmoid_turned",
        "1 / (1 + e^x), the sigmoid of -x",
        ("layers.sigmoid", "vae_blocks.AlphaBlender"),
        NUMBERS,
        ("layers.sigmoid", "exp(-x)", "exp(x)"),
    ),
    # --- LayerNorm
    mutant(
        "layer_norm_eps",
        "every LayerNorm built with eps 1e-5 instead of 1e-6",
        ("layers.LayerNorm-probe_small", "blocks.FinalLayer"),
        gates("G0 G1 G3", "G0 G3"),
        change=assign("LayerNorm", "eps", 1e-5),
    ),
    mutant(
        "layer_norm_eps_inside",
        "LayerNorm states its eps and computes with MindSpore's default 1e-7",
        ("layers.LayerNorm-probe_small", "layers.LayerNorm"),
        PROBE,
        ("layers.LayerNorm.construct", "self.eps", "1e-7"),
    ),
    mutant(
        "layer_norm_eps_outside",
        "eps added to the deviation instead of the variance",
        ("layers.LayerNorm-probe_small", "layers.LayerNorm"),
        PROBE,
        (
            "layers._layer_norm_composed",
            "ops.rsqrt(reduce_mean_keep(ops.square(d), -1) + constant(eps, x))",
            "1 / (ops.sqrt(reduce_mean_keep(ops.square(d), -1)) + constant(eps, x))",
        ),
    ),
    mutant(
        "layer_norm_unbiased",
        "variance with n - 1 in the denominator",
        ("layers.LayerNorm-probe_narrow", "layers.LayerNorm"),
        PROBE,
        (
            "layers._layer_norm_composed",
            "reduce_mean_keep(ops.square(d), -1)",
            "ops.ReduceSum(True)(ops.square(d), -1) / constant(x.shape[-1] - 1.0, x)",
        ),
    ),
    mutant(
        "layer_norm_one_pass",
        "variance as E[x^2] - E[x]^2",
        ("layers.LayerNorm-probe_mean", "layers.LayerNorm-probe_offset"),
        gates("G3", "G3"),
        (
            "layers._layer_norm_composed",
            "reduce_mean_keep(ops.square(d), -1)",
            "(reduce_mean_keep(ops.square(x), -1) - ops.square(reduce_mean_keep(x, -1)))",
        ),
        note="exact in float64: a matter of cancellation alone",
    ),
    mutant(
        "layer_norm_weight_plus_one",
        "affine LayerNorm with 1 + weight",
        "layers.LayerNorm-affine",
        NUMBERS,
        ("layers._layer_norm_composed", "y * weight + bias", "y * (1 + weight) + bias"),
    ),
    mutant(
        "layer_norm_no_bias",
        "affine LayerNorm without its bias",
        "layers.LayerNorm-affine",
        NUMBERS,
        ("layers._layer_norm_composed", "y * weight + bias", "y * weight"),
    ),
    # --- patches and pixels
    mutant(
        "pad_same",
        'patch convolution with pad_mode "same", MindSpore\'s default, instead of "valid"',
        "layers.PatchConv-probe_odd",
        gates("G0 G3", "G0 G3"),
        change=_pad_same,
        form="Ascend",
        note="visible only where the patch does not divide the size: see pad_same_divisible",
    ),
    mutant(
        "pad_same_inside",
        'a convolution that says "valid" and pads "same"',
        "layers.PatchConv-probe_odd",
        gates("G3", "G3"),
        ("layers._patch_conv_native", "pad_mode=pad_mode", 'pad_mode="same"'),
        form="Ascend",
        note="float64 has no native convolution on the CPU",
    ),
    mutant(
        "pad_same_divisible",
        'padding "same" where kernel = stride = patch divides the size',
        ("layers.PatchConv", "embeddings.PatchEmbed"),
        gates("-", "-"),
        ("layers._patch_conv_native", "pad_mode=pad_mode", 'pad_mode="same"'),
        form="Ascend",
        equivalent="same pads max((ceil(n/s) - 1) s + k - n, 0) = 0 where k = s divides n",
    ),
    mutant(
        "patch_channels_last",
        "columns of a patch in the order (row, column, channel), as a linear embedder has them",
        "layers.PatchConv",
        NUMBERS,
        ("layers._patch_conv_unfold", "permute(0, 2, 4, 1, 3, 5)", "permute(0, 2, 4, 3, 5, 1)"),
    ),
    mutant(
        "patch_strided",
        "pixels of a patch taken h and w apart (mindone's linear embedder)",
        "layers.PatchConv",
        NUMBERS,
        ("layers._patch_conv_unfold", "reshape(B, C, h, p, w, p)", "reshape(B, C, p, h, p, w)"),
        ("layers._patch_conv_unfold", "permute(0, 2, 4, 1, 3, 5)", "permute(0, 3, 5, 1, 2, 4)"),
    ),
    mutant(
        "patch_column_major",
        "tokens of a frame column by column",
        "layers.PatchConv",
        NUMBERS,
        ("layers._patch_conv_unfold", "permute(0, 2, 4, 1, 3, 5)", "permute(0, 4, 2, 1, 3, 5)"),
    ),
    mutant(
        "patch_no_bias",
        "patch convolution without its bias (nn.Conv2d's default has_bias=False)",
        "layers.PatchConv",
        NUMBERS,
        ("layers._patch_conv_unfold", "weight.reshape(D, -1), bias)", "weight.reshape(D, -1), None)"),
    ),
    mutant(
        "regroup_ignored",
        'pixel_order "strided" without effect',
        "layers.regroup_pixels",
        NUMBERS,
        ("layers.regroup_pixels", "return x.permute(0, 1, 3, 2, 5, 4)", "return x"),
    ),
    mutant(
        "unpatchify_channels_first",
        "token content read as (channel, row, column)",
        "layers.unpatchify",
        NUMBERS,
        ("layers.unpatchify", "reshape(frames, h, w, p, p, -1)", "reshape(frames, h, w, -1, p, p)"),
        ("layers.unpatchify", "permute(0, 5, 1, 3, 2, 4)", "permute(0, 3, 1, 4, 2, 5)"),
    ),
    mutant(
        "unpatchify_columns_first",
        "rows and columns inside a patch exchanged",
        "layers.unpatchify",
        NUMBERS,
        ("layers.unpatchify", "permute(0, 5, 1, 3, 2, 4)", "permute(0, 5, 1, 4, 2, 3)"),
    ),
    mutant(
        "unpatchify_square",
        "height and width taken as the square root of the tokens (tutorial, official Latte)",
        "layers.unpatchify-probe_wide",
        PROBE,
        (
            "layers.unpatchify",
            "h, w, p = height, width, patch_size",
            "h = w = int((height * width) ** 0.5); p = patch_size",
        ),
    ),
    # --- products
    mutant(
        "linear_no_bias",
        "Linear without its bias",
        "layers.Linear",
        NUMBERS,
        ("layers._linear_matmul_bias_add", "y if bias is None else bias_add(y, bias)", "y"),
    ),
    mutant(
        "linear_untransposed",
        "square weights multiplied as (in, out)",
        "layers.Linear-probe_square",
        PROBE,
        (
            "layers._linear_matmul_bias_add",
            "matmul_t(x, weight)",
            "ops.MatMul(transpose_b=weight.shape[0] != weight.shape[1])(x, weight)",
        ),
    ),
    mutant(
        "linear_hf32",
        "float32 products with 12 bits of the inputs (HF32, the default of Ascend convolutions)",
        "layers.Linear",
        gates("G2", "-"),
        (
            "layers._linear_matmul_bias_add",
            "y = matmul_t(x, weight)",
            "cut = lambda v: (v * 4097.0) - (v * 4097.0 - v)\n"
            "    x, weight = (cut(x), cut(weight)) if x.dtype == ms.float32 else (x, weight)\n"
            "    y = matmul_t(x, weight)",
        ),
        note="half-precision inputs have 11 or 8 bits: nothing is cut",
    ),
    mutant(
        "linear_half_sum",
        "a product that sums in float16",
        ("layers.Linear-probe_wide", "layers.Linear"),
        gates("G1 G3", "G3", "-"),
        (
            "layers._linear_matmul_bias_add",
            "y = matmul_t(x, weight)",
            "y = 0 * x[:, :1] * weight[:1, :1]\n"
            "    for i in range(0, x.shape[1], 8):\n"
            "        part = matmul_t(x[:, i : i + 8], weight[:, i : i + 8])\n"
            "        y = (y + part).astype(ms.float16).astype(part.dtype)",
        ),
        note="what a float16 sum of 4096 terms loses is below the 8 bits of a bf16 result",
    ),
    mutant(
        "embedding_next_row",
        "labels counted from one",
        "layers.Embedding",
        NUMBERS,
        ("layers.Embedding.construct", "ids, 0", "(ids + 1) % self.num_embeddings, 0"),
    ),
    # --- conditions and positions
    mutant(
        "spread_tiled",
        "condition rows tiled instead of repeated in runs: right for one sample only",
        "layers.spread",
        NUMBERS,
        (
            "layers._cached_run_index",
            "np.repeat(np.arange(rows, dtype=np.int32), times)",
            "np.tile(np.arange(rows, dtype=np.int32), times)",
        ),
    ),
    mutant(
        "place_time_tiled",
        "temporal positions given to tokens in turn instead of to frames",
        "layers.place-time",
        NUMBERS,
        (
            "layers.place",
            "spread(table, layout.frames * layout.tokens)",
            "ops.tile(table, (layout.tokens, 1))",
        ),
    ),
    mutant(
        "place_space_repeated",
        "spatial positions repeated in runs instead of tiled",
        "layers.place-space",
        NUMBERS,
        (
            "layers.place",
            "ops.tile(table, (layout.batch * layout.frames, 1))",
            "spread(table, table.shape[0] * layout.batch * layout.frames)",
        ),
    ),
    mutant(
        "chunk_order",
        "shift and scale exchanged in every modulation",
        MODULATE,
        NUMBERS,
        (
            "layers.modulate",
            "shift, scale = precision.up(shift)",
            "shift, scale = scale, shift\n    shift, scale = precision.up(shift)",
        ),
    ),
    mutant(
        "modulate_no_one",
        "x scale + shift: the 1 of 1 + scale forgotten",
        MODULATE,
        NUMBERS,
        ("layers.modulate", "precision.step(1 + precision.up(scale))", "precision.up(scale)"),
    ),
    mutant(
        "modulate_shift_first",
        "(x + shift) (1 + scale)",
        MODULATE,
        NUMBERS,
        (
            "layers.modulate",
            "precision.round(precision.step(precision.up(x) * scale) + shift)",
            "precision.round((precision.up(x) + shift) * scale)",
        ),
    ),
    mutant(
        "modulate_half_islands",
        "modulation rounded to half precision after every step, although the islands are float32",
        ("layers.modulate-probe_cancel", "layers.modulate"),
        gates("-", "G3"),
        (
            "layers.modulate",
            "precision.step(precision.up(x) * scale)",
            "precision._grid(precision.up(x) * scale)",
        ),
        note="float32 has no islands",
    ),
    mutant(
        "gate_omitted",
        "residual branches without their gate",
        "layers.residual",
        NUMBERS,
        ("layers.residual", "precision.step(gate * precision.up(h))", "precision.up(h)"),
    ),
    mutant(
        "gate_on_stream",
        "gate x + h, as the formula alpha h + AdaLN(h, c) is printed",
        "layers.residual",
        NUMBERS,
        (
            "layers.residual",
            "precision.up(x) + precision.step(gate * precision.up(h))",
            "gate * precision.up(x) + precision.up(h)",
        ),
    ),
    # --- heads and sequences
    mutant(
        "heads_innermost",
        "width split as (channel, head) instead of (head, channel)",
        ("layers.split_heads-space", "layers.split_heads-time"),
        NUMBERS,
        (
            "layers._split_heads_gather",
            "B, F, T, attend = layout",
            "B, F, T, attend = layout\n"
            "    x = x.reshape(x.shape[0], parts, -1, heads).permute(0, 1, 3, 2).reshape(x.shape)",
        ),
    ),
    mutant(
        "qkv_per_head",
        "the fused product read as (head, 3, channel) instead of (3, head, channel)",
        "layers.split_heads-space",
        NUMBERS,
        (
            "layers._cached_split_index",
            "rows.reshape(batch, frames, tokens, parts, heads)",
            "rows.reshape(batch, frames, tokens, heads, parts).swapaxes(3, 4)",
        ),
    ),
    mutant(
        "heads_not_merged",
        "no transpose back before the heads are joined (the flash branch of official Latte)",
        ("layers.merge_heads-space", "layers.merge_heads-time"),
        NUMBERS,
        (
            "layers._merge_heads_gather",
            "x = ops.gather(x.reshape(-1, x.shape[-1]), _merge_index(B, F, T, attend, heads), 0)",
            "pass",
        ),
    ),
    mutant(
        "wrong_axis",
        "temporal blocks attend over space",
        ("attention.Attention-time", "layers.split_heads-time"),
        NUMBERS,
        ("layers._cached_split_index", '"time": (3, 0, 2, 4, 1)', '"time": (3, 0, 1, 4, 2)'),
        ("layers._cached_split_index", '"time": frames', '"time": tokens'),
    ),
    mutant(
        "frames_mixed_with_batch",
        "temporal sequences cut from (frame, sample) instead of (sample, frame)",
        ("layers.split_heads-time", "attention.Attention-time"),
        NUMBERS,
        (
            "layers._cached_split_index",
            "rows.reshape(batch, frames, tokens, parts, heads)",
            "rows.reshape(frames, batch, tokens, parts, heads).swapaxes(0, 1)",
        ),
    ),
    mutant(
        "images_first",
        "joint training: the first frames taken for images",
        "layers.split_frames",
        NUMBERS,
        (
            "layers.split_frames",
            "x[:, :frames].reshape(B * frames * T, -1), x[:, frames:]",
            "x[:, total - frames :].reshape(B * frames * T, -1), x[:, : total - frames]",
        ),
    ),
    mutant(
        "join_without_batch",
        "joint training: all videos, then all images; right for one sample only",
        "layers.join_frames",
        NUMBERS,
        (
            "layers.join_frames",
            "x = ops.cat([video.reshape(B, -1, T, D), images.reshape(B, -1, T, D)], axis=1)",
            "x = ops.cat([video, images], axis=0)",
        ),
    ),
    # --- types
    mutant(
        "heads_half",
        "a float16 copy between two layers (a cast that mixed precision left behind)",
        "layers.split_heads-sample",
        gates("G1 G2", "-", "-"),
        (
            "layers._split_heads_gather",
            "return tuple([x[i] for i in range(parts)])",
            "return tuple([x[i].astype(ms.float16).astype(x.dtype) for i in range(parts)])",
        ),
        note="half-precision values of ordinary size survive a float16 copy",
    ),
]
