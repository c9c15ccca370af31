# SPDX-License-Identifier: Apache-2.0
"""Bugs of `models/attention.py`: scale, softmax, masks, which text a frame reads."""

from parity.mutants import NUMBERS, PROBE, STATED, assign, cells, gates, mutant

CORE = "attention.DotProductAttention"
CROSS = "attention.MultiHeadAttention-cross"
TEXT = "attention.MultiHeadAttention.project_text"
BIAS = "attention.text_bias"


def _softmax_half():
    import mindspore as ms
    from mindspore import ops

    from ms_latte.models import attention

    def softmax(x):
        # exp and running sum in float16, as a kernel without a float32 accumulator would
        kind, x = x.dtype, ops.cast(x, ms.float16)
        x = ops.cast(ops.exp(ops.cast(x - x.max(axis=-1, keepdims=True), ms.float32)), ms.float16)
        return ops.cast(x / _running_sum_half(x), kind)

    return [(attention, "softmax", softmax)]


def _running_sum_half(x):
    import mindspore as ms
    import numpy as np

    values = x.asnumpy()
    total = np.zeros(values.shape[:-1], np.float16)
    for i in range(values.shape[-1]):
        total = (total + values[..., i]).astype(np.float16)
    return ms.Tensor(total[..., None])


def _padded_scale(model):
    """As if every head were 8 wider, which is what a kernel of multiples of 16 makes of 72."""
    for cell in cells(model, "DotProductAttention"):
        cell.scale = (cell.head_dim + 8) ** -0.5


MUTANTS = [
    mutant(
        "no_attention_scale",
        "logits not divided by the square root of the head width",
        (CORE, "attention.Attention-space"),
        gates("G0 G1 G2", "G0 G2"),
        change=assign("DotProductAttention", "scale", 1.0),
    ),
    mutant(
        "scale_of_padded_heads",
        "scale taken from heads padded for a fused kernel (80 for 72)",
        (CORE, "attention.DotProductAttention-probe_range"),
        gates("G0 G1 G2", "G0 G2"),
        change=_padded_scale,
    ),
    mutant(
        "scale_twice",
        "query scaled before a product that scales again",
        CORE,
        NUMBERS,
        (
            "attention.DotProductAttention.construct",
            "p.up(p.round(batch_matmul_t(q, k)))",
            "p.up(p.round(self.scale * batch_matmul_t(q, k)))",
        ),
    ),
    mutant(
        "scale_after_product",
        "logits scaled after the product: they leave the range of float16",
        "attention.DotProductAttention-probe_overflow",
        gates("-", "G3", "-"),
        ("attention.DotProductAttention.construct", "q = p.round(q * constant(self.scale, q))", "pass"),
        (
            "attention.DotProductAttention.construct",
            "p.up(p.round(batch_matmul_t(q, k)))",
            "p.up(p.round(p.round(batch_matmul_t(q, k)) * constant(self.scale, q)))",
        ),
        note="the same mathematics, and float32 and bf16 have the range",
    ),
    mutant(
        "softmax_half",
        "softmax with exp and running sum in float16",
        ("attention.DotProductAttention-probe_long", CORE),
        gates("G1 G2 G3", "G3"),
        replace=_softmax_half,
    ),
    mutant(
        "softmax_no_maximum",
        "softmax without subtracting the maximum",
        "attention.DotProductAttention-probe_range",
        gates("G3", "G3"),
        (
            "attention.DotProductAttention.construct",
            "softmax(logits)",
            "ops.exp(logits) / ops.exp(logits).sum(-1, keepdims=True)",
        ),
        note="float64 holds exp(200)",
    ),
    mutant(
        "softmax_over_queries",
        "softmax over the queries instead of the keys",
        CORE,
        NUMBERS,
        ("attention.DotProductAttention.construct", "softmax(logits)", "ops.Softmax(-2)(logits)"),
    ),
    mutant(
        "logits_half",
        "logits passed through float16 in a float32 model",
        CORE,
        gates("G1 G2", "-", "-"),
        (
            "attention.DotProductAttention.construct",
            "logits = p.up(p.round(batch_matmul_t(q, k)))",
            "logits = p.up(p.round(batch_matmul_t(q, k)))\n"
            '    logits = logits.astype(__import__("mindspore").float16).astype(logits.dtype)',
        ),
        note="half-precision logits are on the grid already",
    ),
    mutant(
        "flash_rounded_inside",
        "the fused form rounds query, logits and weights, as the composed one does",
        "attention.DotProductAttention-probe_fused",
        gates("-", "G3"),
        (
            "attention.DotProductAttention.__init__",
            'self.inside = Precision() if form == "flash" and precision.emulated else precision',
            "self.inside = precision",
        ),
        note="float32 has nothing to round",
    ),
    mutant(
        "fused_mask_turned",
        "the mask of the fused form says which keys to drop, as the kernel's own does",
        "attention.DotProductAttention-flash_mask",
        NUMBERS,
        (
            "attention.DotProductAttention.construct",
            "(1 - bias.astype(p.island_dtype)) * MASKED",
            "bias.astype(p.island_dtype) * MASKED",
        ),
    ),
    mutant(
        "bias_before_scale",
        "the mask's bias scaled together with the logits",
        ("attention.DotProductAttention-probe_soft_bias", "attention.DotProductAttention-bias"),
        PROBE,
        (
            "attention.DotProductAttention.construct",
            "p.step(logits + p.up(bias))",
            "p.step(logits + self.scale * p.up(bias))",
        ),
        note="-2500 masks as well as -10000: only a soft bias shows it",
    ),
    mutant(
        "bias_tiled",
        "mask rows given to (sample, head) sequences in turn instead of in runs",
        "attention.DotProductAttention-bias",
        NUMBERS,
        (
            "attention.DotProductAttention.construct",
            "spread(bias, q.shape[0])",
            "ops.tile(bias, (q.shape[0] // bias.shape[0], 1))",
        ),
    ),
    mutant(
        "bias_of_first_sample",
        "the first sample's mask broadcast over the batch",
        "attention.DotProductAttention-bias",
        NUMBERS,
        (
            "attention.DotProductAttention.construct",
            "spread(bias, q.shape[0])",
            "spread(bias[:1], q.shape[0])",
        ),
    ),
    mutant(
        "mask_ignored",
        "attention without its mask (flash attention of Open-Sora-Plan)",
        "attention.DotProductAttention-bias",
        NUMBERS,
        ("attention.DotProductAttention.construct", "logits = p.step(logits + p.up(bias))", "pass"),
    ),
    mutant(
        "values_as_keys",
        "the fused product read as (q, v, k)",
        "attention.Attention-space",
        NUMBERS,
        ("attention.Attention.construct", "q, k, v = split_heads", "q, v, k = split_heads"),
    ),
    mutant(
        "attention_over_batch",
        "attention without a layout runs over the batch",
        "attention.Attention-rows",
        NUMBERS,
        (
            "attention.Attention.construct",
            'layout = TokenLayout(shape[0], 1, shape[1], "space")',
            'layout = TokenLayout(1, shape[0], shape[1], "time")',
        ),
    ),
    mutant(
        "values_from_keys",
        "cross-attention reads its keys as values",
        "attention.MultiHeadAttention-cross_joint",
        NUMBERS,
        (
            "attention.MultiHeadAttention.construct",
            "k, v = text_per_frame(k, layout, R), text_per_frame(v, layout, R)",
            "k = v = text_per_frame(k, layout, R)",
        ),
    ),
    mutant(
        "text_tiled",
        "text rows given to frames in turn instead of in runs",
        ("attention.text_per_frame", "attention.MultiHeadAttention-cross_bias_per_frame"),
        NUMBERS,
        (
            "attention.text_per_frame",
            "return x.reshape((-1,) + shape[1:])",
            "return x.reshape((B, frames, -1) + shape[1:]).swapaxes(0, 1).reshape((-1,) + shape[1:])",
        ),
    ),
    mutant(
        "text_of_video_for_images",
        "images read the text of the video",
        "attention.text_per_frame",
        NUMBERS,
        (
            "attention.text_per_frame",
            "ops.cat([ops.tile(x[:, :1], (1, video) + (1,) * (x.ndim - 2)), x[:, 1:]], axis=1)",
            "ops.tile(x[:, :1], (1, frames) + (1,) * (x.ndim - 2))",
        ),
    ),
    mutant(
        "key_bias_dropped",
        "keys without their bias",
        CROSS,
        gates("-", "-"),
        (
            TEXT,
            "k = split_heads(self.to_k(text), ",
            "k = split_heads(self.to_k(text) - self.to_k.bias, ",
        ),
        equivalent="q (k + b) = q k + q b adds one number to all logits of a row, which softmax ignores",
    ),
    mutant(
        "value_bias_dropped",
        "values without their bias",
        CROSS,
        NUMBERS,
        (
            TEXT,
            "v = split_heads(self.to_v(text), ",
            "v = split_heads(self.to_v(text) - self.to_v.bias, ",
        ),
    ),
    mutant(
        "text_of_last_image",
        "the video reads the text of the last image",
        CROSS + "_joint",
        NUMBERS,
        ("attention.text_per_frame", "x[:, :1], (1, video)", "x[:, -1:], (1, video)"),
    ),
    mutant(
        "mask_sign",
        "text mask read as 1 = drop",
        BIAS,
        NUMBERS,
        (
            BIAS,
            "(1 - mask.astype(precision.island_dtype).reshape(-1, shape[-1]))",
            "mask.astype(precision.island_dtype).reshape(-1, shape[-1])",
        ),
    ),
    mutant(
        "mask_flipped_twice",
        "a mask made into a bias and then flipped as if it were a mask (early mindone)",
        BIAS,
        NUMBERS,
        (BIAS, "reshape(-1, shape[-1])) * MASKED", "reshape(-1, shape[-1])) * MASKED * -1 + 1"),
    ),
    mutant(
        "mask_as_bias",
        "a mask of ones and zeros added to the logits as it is",
        BIAS,
        NUMBERS,
        (
            BIAS,
            "return (1 - mask.astype(precision.island_dtype).reshape(-1, shape[-1])) * MASKED",
            "return mask.astype(precision.island_dtype).reshape(-1, shape[-1])",
        ),
    ),
    mutant(
        "mask_infinite",
        "dropped tokens get -inf: an empty caption becomes NaN",
        BIAS,
        NUMBERS,
        (
            BIAS,
            "reshape(-1, shape[-1])) * MASKED",
            'reshape(-1, shape[-1])).masked_fill(mask.reshape(-1, shape[-1]) < 0.5, float("-inf"))',
        ),
    ),
    mutant(
        "mask_beyond_float16",
        "dropped tokens get -1e9, which float16 cannot hold",
        BIAS,
        NUMBERS,
        (BIAS, "* MASKED", "* -1e9"),
    ),
    mutant(
        "mask_of_video_for_images",
        "joint training: images take the text mask of the video",
        "latte_t2v.LatteT2V-joint",
        NUMBERS,
        (
            BIAS,
            "shape = tuple(mask.shape)",
            "mask = mask if mask.ndim == 2 else mask[:, :1] + 0 * mask; shape = tuple(mask.shape)",
        ),
    ),
    mutant(
        "text_rows_of_another_sample",
        "joint training: text read as (1 + I, B) rows",
        "attention.text_rows",
        NUMBERS,
        (
            "attention.text_rows",
            "return encoder_hidden_states.reshape((B * S,)",
            "return encoder_hidden_states.swapaxes(0, 1).reshape((B * S,)",
        ),
    ),
    mutant(
        "values_from_the_key_weights",
        "prepared text: values made with the weights of the keys",
        "attention.MultiHeadAttention-text",
        STATED,
        (TEXT, "self.to_v(text)", "self.to_k(text)"),
    ),
    mutant(
        "values_before_keys",
        "prepared text holds values, then keys",
        CROSS,
        NUMBERS,
        (TEXT, "[k, v]", "[v, k]"),
    ),
]
