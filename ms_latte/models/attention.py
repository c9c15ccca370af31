# SPDX-License-Identifier: Apache-2.0
"""Attention: the core, the fused form of official Latte, and the split form of LatteT2V.

Sources: Vchitect/Latte `models/latte.py` Attention (mode "math"; its flash and xformers branches are wrong);
diffusers `models/attention_processor.py` Attention.
"""

import mindspore as ms
from mindspore import nn, ops

from ms_latte.device import formulation
from ms_latte.models.constants import constant
from ms_latte.models.layers import (
    FORMULATIONS,
    Linear,
    TokenLayout,
    merge_heads,
    split_heads,
    spread,
)
from ms_latte.models.precision import Precision
from ms_latte.models.primitives import batch_matmul, batch_matmul_t, softmax

ATTENTION_FORMS = ("math", "flash")
MASKED = -10000.0  # bias of a dropped key, as in the originals; fits float16


class DotProductAttention(nn.Cell):
    """softmax(q k^T / sqrt(d) + bias) v for sequences of one head each.

    q (G*A, n, d), k and v (G*A, m, d), bias (G, m) added to the logits of every query and head, or None
    -> (G*A, n, d). Softmax and bias in the island type; the query is scaled before the product, so that
    half-precision logits stay in range. form: "math" or "flash" (the framework's fused kernel). Raises
    ValueError for another word.

    The fused kernel exists on Ascend alone (not yet run on the device), for float16 and bfloat16, without a bias or
    with a mask: bias (G, m) of bool, True for the keys to keep, at least one in a row. Everything else - float32, an
    additive bias, sizes beyond the kernel's documented limits - takes the composed form, the same mathematics.
    """

    def __init__(self, head_dim, form="math", precision=Precision()):
        super().__init__()
        if form not in ATTENTION_FORMS:
            raise ValueError(f"attention is {form!r}; expected one of {', '.join(ATTENTION_FORMS)}")
        self.head_dim, self.form, self.precision = head_dim, form, precision
        self.scale = head_dim**-0.5
        # MS: the fused kernel rounds its result alone; emulated half precision composes it of float32
        self.inside = Precision() if form == "flash" and precision.emulated else precision

    def construct(self, q, k, v, bias=None):
        p = self.inside
        if self.form == "flash" and formulation("attention") == "kernel":  # MS: torch has it on every device
            takes, kernel = FORMULATIONS["attention"]["kernel"]
            if takes(q, bias):
                return self.precision.round(kernel(q, k, v, bias, self.scale))
        if bias is not None and bias.dtype == ms.bool_:  # MS: the composed form of a mask
            bias = (1 - bias.astype(p.island_dtype)) * MASKED
        if bias is not None:
            bias = spread(bias, q.shape[0]).expand_dims(1)  # (G*A, 1, m)
            bias = ops.tile(
                bias, (1, q.shape[1], 1)
            )  # MS: tiled, since the CPU adds a broadcast operand slowly
        q = p.round(q * constant(self.scale, q))
        logits = p.up(p.round(batch_matmul_t(q, k)))  # (G*A, n, m)
        if bias is not None:
            logits = p.step(logits + p.up(bias))
        weights = p.round(softmax(logits))
        return self.precision.round(batch_matmul(weights, v))

    def extend_repr(self):
        return f"head_dim={self.head_dim}, scale={self.scale}"


class Attention(nn.Cell):
    """Self-attention with one qkv product, official Latte: x (tokens, D) -> (tokens, D).

    layout groups the rows; without one, x is (B, N, D) and attends over N.
    Raises ValueError if num_heads does not divide dim.
    """

    def __init__(self, dim, num_heads, attention="math", precision=Precision()):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"hidden size {dim} is not divisible by {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, precision=precision)
        self.core = DotProductAttention(dim // num_heads, attention, precision=precision)
        self.proj = Linear(dim, dim, precision=precision)

    def construct(self, x, layout=None):
        shape = x.shape
        if layout is None:
            layout = TokenLayout(shape[0], 1, shape[1], "space")
            x = x.reshape(-1, shape[-1])
        q, k, v = split_heads(self.qkv(x), layout, self.num_heads, parts=3)  # (G*A, n, d) each
        x = merge_heads(self.core(q, k, v), layout, self.num_heads)  # (tokens, D)
        return self.proj(x).reshape(shape)

    def extend_repr(self):
        return f"num_heads={self.num_heads}"


class MultiHeadAttention(nn.Cell):
    """Self- or cross-attention with separate projections, diffusers names (to_q, to_k, to_v, to_out.0).

    hidden_states (tokens, D) with a layout, or (B, N, D). encoder_hidden_states (R, L, cross_attention_dim),
    what `project_text` made of it, or None for self-attention. R text rows serve B samples: R = B (all frames
    of a sample share its text; without a layout, one text per row) or R = B * (1 + I) (row 0 for the video
    frames, then one row for each of the last I frames). attention_mask: bias added to the logits, float,
    (G, 1, m) or (G, m): one row per attention group of a self-attention, per text row (R) or per frame (B*F) of
    a cross-attention. -> shape of hidden_states. Keys and values are projected once per text row, not once per
    frame. Raises ValueError for a number of text rows or bias rows that fits no case.
    """

    def __init__(
        self,
        query_dim,
        cross_attention_dim=None,
        heads=8,
        dim_head=64,
        bias=False,
        enable_flash_attention=False,
        precision=Precision(),
    ):
        super().__init__()
        inner_dim, kv_dim = heads * dim_head, cross_attention_dim or query_dim
        self.heads, self.precision = heads, precision
        self.to_q = Linear(query_dim, inner_dim, bias=bias, precision=precision)
        self.to_k = Linear(kv_dim, inner_dim, bias=bias, precision=precision)
        self.to_v = Linear(kv_dim, inner_dim, bias=bias, precision=precision)
        self.core = DotProductAttention(
            dim_head, "flash" if enable_flash_attention else "math", precision=precision
        )
        self.to_out = nn.CellList([Linear(inner_dim, query_dim, precision=precision)])

    def project_text(self, encoder_hidden_states):
        """Keys and values of a text: (R, L, cross_attention_dim) -> (2, R*A, L, d), keys first."""
        R, L, _ = encoder_hidden_states.shape
        text, layout = encoder_hidden_states.reshape(R * L, -1), TokenLayout(R, 1, L, "space")
        k = split_heads(self.to_k(text), layout, self.heads)[0]
        v = split_heads(self.to_v(text), layout, self.heads)[0]
        return ops.cat([k, v], axis=0).reshape(2, R * self.heads, L, -1)

    def construct(self, hidden_states, encoder_hidden_states=None, attention_mask=None, layout=None):
        x, bias = hidden_states, attention_mask
        if layout is None:
            layout = TokenLayout(x.shape[0], 1, x.shape[1], "space")
            x = x.reshape(-1, x.shape[-1])
        if bias is not None:
            bias = bias.reshape(-1, bias.shape[-1])  # (rows, m)
        if encoder_hidden_states is None:
            k = split_heads(self.to_k(x), layout, self.heads)[0]  # (G*A, n, d)
            v = split_heads(self.to_v(x), layout, self.heads)[0]
        else:
            text = encoder_hidden_states
            text = text if text.ndim == 4 else self.project_text(text)
            k, v, R = text[0], text[1], text.shape[1] // self.heads  # (R*A, L, d) each
            if layout.batch == R and (bias is None or bias.shape[0] == R):
                layout = TokenLayout(layout.batch, layout.frames, layout.tokens, "sample")
            else:
                layout = TokenLayout(layout.batch, layout.frames, layout.tokens, "space")
                k, v = text_per_frame(k, layout, R), text_per_frame(v, layout, R)  # (B*F*A, L, d)
                if bias is not None and bias.shape[0] != layout.batch * layout.frames:
                    bias = text_per_frame(bias, layout, bias.shape[0])  # (B*F, L)
        q = split_heads(self.to_q(x), layout, self.heads)[0]  # (G*A, n, d)
        if bias is not None and bias.shape[0] * self.heads != q.shape[0]:
            raise ValueError(
                f"attention bias has {bias.shape[0]} rows, the attention {q.shape[0] // self.heads} groups"
            )
        x = merge_heads(self.core(q, k, v, bias), layout, self.heads)  # (tokens, A*d)
        return self.to_out[0](x).reshape(hidden_states.shape)

    def extend_repr(self):
        return f"heads={self.heads}"


def text_per_frame(x, layout, rows):
    """Give every frame its text row: x (rows * k, ...) -> (batch * frames * k, ...), layout.frames counting
    images too.

    rows = batch: all frames of a sample take its row. rows = batch * (1 + I): the video frames take row 0 of
    the sample, the last I frames the rows behind it, in order. Raises ValueError for another number of rows.
    """
    B, frames, _, _ = layout
    if rows % B or rows // B > frames + 1:
        raise ValueError(
            f"text has {rows} rows for {B} samples of {frames} frames; expected one row a sample, or one for the video "
            "and one for each image: encoder_hidden_states (B, L, C) or (B, 1 + use_image_num, L, C)"
        )
    S = rows // B
    video = frames - (S - 1)
    shape = x.shape
    x = x.reshape((B, S, shape[0] // rows) + shape[1:])  # (B, S, k, ...)
    x = ops.cat([ops.tile(x[:, :1], (1, video) + (1,) * (x.ndim - 2)), x[:, 1:]], axis=1)  # (B, F, k, ...)
    return x.reshape((-1,) + shape[1:])


def text_rows(encoder_hidden_states, layout, use_image_num):
    """Text as rows: (B, L, C) -> (B, L, C), or with images (B, 1+I, L, C) -> (B*(1+I), L, C).

    (B, L, C) with images gives every frame and image the same text. Raises ValueError for another shape.
    """
    shape, B, S = tuple(encoder_hidden_states.shape), layout.batch, 1 + use_image_num
    if len(shape) == 3 and shape[0] == B:
        return encoder_hidden_states
    if len(shape) == 4 and shape[:2] == (B, S):
        return encoder_hidden_states.reshape((B * S,) + shape[2:])
    raise ValueError(
        f"encoder_hidden_states {shape} for {B} samples and {use_image_num} images; "
        f"expected ({B}, L, C) or ({B}, {S}, L, C)"
    )


def text_bias(mask, bias, layout, use_image_num, precision):
    """The one place where a text mask becomes a bias: (rows, L) in the island type, or None.

    mask 1 keep / 0 drop, (B, L) or (B, 1+I, L); bias ready-made, (B, 1, L) or (B*(F+I), 1, L), first axis
    free of the middle one too. Raises ValueError for both at once or for other shapes.
    """
    if mask is None and bias is None:
        return None
    B, frames, S = layout.batch, layout.frames, 1 + use_image_num
    if mask is not None and bias is not None:
        raise ValueError("encoder_attention_mask and encoder_attention_bias exclude each other")
    if mask is not None:
        shape = tuple(mask.shape)
        if shape[:-1] not in ((B,), (B, S)):
            raise ValueError(
                f"encoder_attention_mask {shape}; expected ({B}, L) or ({B}, {S}, L) of 1 keep / 0 drop; "
                "a ready-made bias goes into encoder_attention_bias"
            )
        return (1 - mask.astype(precision.island_dtype).reshape(-1, shape[-1])) * MASKED
    shape = tuple(bias.shape)
    if len(shape) != 3 or shape[1] != 1 or shape[0] not in (B, B * frames):
        raise ValueError(f"encoder_attention_bias {shape}; expected ({B}, 1, L) or ({B * frames}, 1, L)")
    return bias.astype(precision.island_dtype).reshape(shape[0], shape[-1])
