# SPDX-License-Identifier: Apache-2.0
"""Leaf layers and the few free functions of the networks.

Each states every default that differs between frameworks, prints it (`extend_repr`; the parity lint compares
these lines) and rounds its result once (`Precision.round`). Constructors draw nothing: parameters start as
zeros.

An operation that devices want written differently has its formulations in the table FORMULATIONS below; all
of them are the same mathematics, and `ms_latte.device` selects one per device.
"""

from functools import lru_cache
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.common.initializer import initializer

from ms_latte.device import formulation, require_selected
from ms_latte.models.constants import constant
from ms_latte.models.precision import HALF_GRID, Precision
from ms_latte.models.primitives import bias_add, matmul_t, reduce_mean_keep


class TokenLayout(NamedTuple):
    """How the rows of a (batch * frames * tokens, D) stream are grouped into attention sequences.

    attend: "space" groups by (sample, frame), sequence = tokens; "time" groups by (sample, token), sequence = frames;
    "sample" groups by sample, sequence = frames * tokens (text attention, where all frames share one text).
    """

    batch: int
    frames: int
    tokens: int
    attend: str = "space"


class Linear(nn.Cell):
    """y = x weight^T + bias. x (..., in_features) -> (..., out_features); weight (out_features,
    in_features)."""

    def __init__(self, in_features, out_features, bias=True, precision=Precision()):
        super().__init__()
        self.in_features, self.out_features, self.precision = in_features, out_features, precision
        self.weight = _zeros((out_features, in_features), precision)
        self.bias = _zeros((out_features,), precision) if bias else None

    def construct(self, x):
        if x.ndim == 2:
            return self.precision.round(
                FORMULATIONS["linear"][formulation("linear")](x, self.weight, self.bias)
            )
        shape = x.shape
        x = x.reshape(-1, shape[-1])  # MS: the CPU matmul is fast on two axes only
        x = self.precision.round(FORMULATIONS["linear"][formulation("linear")](x, self.weight, self.bias))
        return x.reshape(shape[:-1] + (self.out_features,))

    def extend_repr(self):
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


class LayerNorm(nn.Cell):
    """Layer normalisation over the last axis. x (..., dim) -> (..., dim); statistics in the island type.

    eps has no default that could differ between frameworks: it is stated. elementwise_affine adds weight and
    bias (dim).
    """

    def __init__(self, dim, eps, elementwise_affine=False, precision=Precision()):
        super().__init__()
        self.dim, self.eps, self.elementwise_affine, self.precision = dim, eps, elementwise_affine, precision
        self.weight = (
            ms.Parameter(initializer("ones", (dim,), precision.dtype)) if elementwise_affine else None
        )
        self.bias = _zeros((dim,), precision) if elementwise_affine else None

    def construct(self, x):
        p = self.precision
        weight = p.up(self.weight) if self.elementwise_affine else None
        bias = p.up(self.bias) if self.elementwise_affine else None
        return p.round(FORMULATIONS["layer_norm"][formulation("layer_norm")](p.up(x), weight, bias, self.eps))

    def extend_repr(self):
        return f"dim={self.dim}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class PatchConv(nn.Cell):
    """Convolution whose kernel and stride are the patch: x (B, C, H, W) -> (B, h*w, embed_dim), row-major.

    No padding ("valid"): rows and columns that do not fill a patch are dropped, so 9x9 with patch 2 gives 4x4.
    weight (embed_dim, C, p, p). Source: `Conv2d(kernel_size=p, stride=p)` and `flatten(2).transpose(1, 2)`.
    """

    def __init__(self, in_channels, embed_dim, patch_size, bias=True, precision=Precision()):
        super().__init__()
        self.in_channels, self.embed_dim, self.patch_size = in_channels, embed_dim, patch_size
        self.pad_mode, self.precision = "valid", precision
        self.weight = _zeros((embed_dim, in_channels, patch_size, patch_size), precision)
        self.bias = _zeros((embed_dim,), precision) if bias else None

    def construct(self, x):
        form = formulation("patch_conv")
        if self.precision.compute == "fp64":
            form = "unfold"  # MS: the native convolution has no float64 kernel
        return self.precision.round(
            FORMULATIONS["patch_conv"][form](x, self.weight, self.bias, self.pad_mode)
        )

    def extend_repr(self):
        return (
            f"in_channels={self.in_channels}, embed_dim={self.embed_dim}, patch_size={self.patch_size}, "
            f"pad_mode={self.pad_mode}, bias={self.bias is not None}"
        )


class Embedding(nn.Cell):
    """Table look-up: integer ids (...) -> (..., embedding_dim); weight (num_embeddings, embedding_dim)."""

    def __init__(self, num_embeddings, embedding_dim, precision=Precision()):
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = _zeros((num_embeddings, embedding_dim), precision)

    def construct(self, ids):
        return ops.gather(self.weight, ids, 0)

    def extend_repr(self):
        return f"num_embeddings={self.num_embeddings}, embedding_dim={self.embedding_dim}"


class SiLU(nn.Cell):
    """x * sigmoid(x), any shape."""

    def __init__(self, precision=Precision()):
        super().__init__()
        self.precision = precision

    def construct(self, x):
        return self.precision.round(x * ops.sigmoid(x))


class GELU(nn.Cell):
    """Gaussian error linear unit, any shape. approximate: "tanh" (all Latte models) or "none" (the erf
    form)."""

    def __init__(self, approximate, precision=Precision()):
        super().__init__()
        if approximate not in ("tanh", "none"):
            raise ValueError(f"GELU approximate is {approximate!r}; expected 'tanh' or 'none'")
        self.approximate, self.precision = approximate, precision

    def construct(self, x):
        if self.approximate == "tanh":
            return self.precision.round(FORMULATIONS["gelu_tanh"][formulation("gelu_tanh")](x))
        return self.precision.round(x * 0.5 * (1 + ops.erf(x * constant(0.7071067811865476, x))))

    def extend_repr(self):
        return f"approximate={self.approximate}"


def exp(x):
    """e^x, elementwise, for variances and their like: any shape, |x| below 80."""
    # MS: the CPU's exp is 40 to 115 units in the last place off, to one side; its expm1 is half a unit off. Only ever
    # of numbers above 0: what is not chosen must be finite too, or its gradient, times 0, is NaN.
    below = x < 0
    size = ops.expm1(ops.where(below, -x, x)) + 1
    return ops.where(below, 1 / size, size)


def sigmoid(x):
    """1 / (1 + e^-x), elementwise, for the few numbers that weigh many: any shape, |x| below 80."""
    return 1 / (1 + exp(-x))  # MS: the CPU's sigmoid is as far off as its exp


def spread(rows, count):
    """Repeat condition rows in runs: (R, D) -> (count, D), each row count // R times in succession.

    The stream is sample-major, so this gives every token the row of its sample (R = B) or of its frame (R =
    B*F). Raises ValueError if count is not a multiple of R.
    """
    R = rows.shape[0]
    if count % R:
        raise ValueError(f"cannot spread {R} condition rows over {count} tokens: not a multiple")
    return FORMULATIONS["spread"][formulation("spread")](rows, count // R)


def place(table, layout):
    """Give every token its row of a position table.

    table (tokens, D) with layout.attend "space", or (frames, D) with "time" -> (batch * frames * tokens, D).
    """
    if layout.attend == "time":
        table = spread(table, layout.frames * layout.tokens)  # (F*T, D)
        return ops.tile(table, (layout.batch, 1))
    return ops.tile(table, (layout.batch * layout.frames, 1))


def split_heads(x, layout, heads, parts=1):
    """Split the width into heads and group the rows into sequences, in one step.

    x (batch * frames * tokens, parts * heads * d) -> tuple of `parts` tensors (groups * heads, sequence, d),
    group-major.
    """
    return FORMULATIONS["heads"][formulation("heads")][0](x, layout, heads, parts)


def merge_heads(x, layout, heads):
    """Inverse of `split_heads` for one part: (groups * heads, sequence, d) -> (batch * frames * tokens, heads
    * d)."""
    return FORMULATIONS["heads"][formulation("heads")][1](x, layout, heads)


def split_frames(x, layout, frames):
    """Separate the first `frames` frames of every sample from the images behind them.

    x (B * (F+I) * T, D) -> video (B*F*T, D), images (B*I*T, D).
    """
    B, total, T, _ = layout
    x = x.reshape(B, total, T, -1)
    return x[:, :frames].reshape(B * frames * T, -1), x[:, frames:].reshape(B * (total - frames) * T, -1)


def join_frames(video, images, layout):
    """Inverse of `split_frames`; layout is the joint one: (B*F*T, D), (B*I*T, D) -> (B * (F+I) * T, D)."""
    B, total, T, _ = layout
    D = video.shape[-1]
    x = ops.cat([video.reshape(B, -1, T, D), images.reshape(B, -1, T, D)], axis=1)
    return x.reshape(B * total * T, D)


def add(x, y, precision):
    """x + y of equal shapes, in the island type, rounded once (conditions; tokens and their positions)."""
    return precision.round(precision.up(x) + precision.step(precision.up(y)))


def residual(x, h, precision, gate=None):
    """x + gate * h. x and h (tokens, D), gate (R, D) condition rows or None -> (tokens, D)."""
    if gate is None:
        return precision.round(precision.up(x) + precision.up(h))
    gate = spread(precision.up(gate), x.shape[0])
    return precision.round(precision.up(x) + precision.step(gate * precision.up(h)))


def modulate(x, shift, scale, precision):
    """x * (1 + scale) + shift. x (tokens, D); shift and scale (R, D) condition rows -> (tokens, D)."""
    shift, scale = precision.up(shift), precision.step(1 + precision.up(scale))
    shift, scale = spread(shift, x.shape[0]), spread(scale, x.shape[0])
    return precision.round(precision.step(precision.up(x) * scale) + shift)


def regroup_pixels(x, patch_size):
    """Pixels p rows and columns apart meet in one patch: (B, C, H, W) -> the same shape, pixel (a*h + i, b*w + j)
    at (i*p + a, j*p + b), h = H / p. Source: the grouping of mindone's linear patch embedder."""
    B, C, H, W = x.shape
    p = patch_size
    x = x.reshape(B, C, p, H // p, p, W // p)
    return x.permute(0, 1, 3, 2, 5, 4).reshape(B, C, H, W)


def unpatchify(x, frames, height, width, patch_size):
    """Tokens back to pixels: (frames * h * w, p * p * C) -> (frames, C, h*p, w*p); token content is (p_h,
    p_w, C)."""
    h, w, p = height, width, patch_size
    x = x.reshape(frames, h, w, p, p, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(frames, -1, h * p, w * p)


# --- formulations


def _linear_matmul_bias_add(x, weight, bias):
    y = matmul_t(x, weight)
    return y if bias is None else bias_add(y, bias)


def _linear_dense(x, weight, bias):
    return ops.dense(x, weight, bias)


def _layer_norm_composed(x, weight, bias, eps):
    # Means are tiled, not broadcast: a broadcast product costs the CPU ten times the memory traffic.
    width = (1,) * (x.ndim - 1) + (x.shape[-1],)
    d = x - ops.tile(reduce_mean_keep(x, -1), width)
    y = d * ops.tile(ops.rsqrt(reduce_mean_keep(ops.square(d), -1) + constant(eps, x)), width)
    return y if weight is None else y * weight + bias


def _layer_norm_native(x, weight, bias, eps):
    if weight is None:
        weight, bias = ops.ones(x.shape[-1:], x.dtype), ops.zeros(x.shape[-1:], x.dtype)
    return ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)(x, weight, bias)[0]


def _gelu_tanh_sigmoid(x):
    # 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3): exact, and MindSpore's CPU tanh
    # is not.
    return x * ops.sigmoid(x * (x * x * constant(0.07135481627260025, x) + constant(1.5957691216057308, x)))


def _gelu_tanh_native(x):
    return ops.gelu(x, approximate="tanh")


def _patch_conv_unfold(x, weight, bias, pad_mode):
    if pad_mode != "valid":
        raise ValueError(f"PatchConv pad_mode is {pad_mode!r}; expected 'valid'")
    B, C, H, W = x.shape
    D, p = weight.shape[0], weight.shape[-1]
    h, w = H // p, W // p
    x = x[:, :, : h * p, : w * p].reshape(B, C, h, p, w, p)
    x = x.permute(0, 2, 4, 1, 3, 5).reshape(B * h * w, C * p * p)
    return _linear_matmul_bias_add(x, weight.reshape(D, -1), bias).reshape(B, h * w, D)


def _patch_conv_native(x, weight, bias, pad_mode):
    x = ops.conv2d(x, weight, bias, stride=weight.shape[-1], pad_mode=pad_mode)  # (B, D, h, w)
    return x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)


def _split_heads_gather(x, layout, heads, parts):
    # One row gather does the head split and the regrouping; a transposing copy costs the CPU four times as
    # much.
    B, F, T, attend = layout
    x = ops.gather(
        x.reshape(-1, x.shape[-1] // (parts * heads)), _split_index(B, F, T, attend, heads, parts), 0
    )
    return tuple([x[i] for i in range(parts)])


def _merge_heads_gather(x, layout, heads):
    B, F, T, attend = layout
    x = ops.gather(x.reshape(-1, x.shape[-1]), _merge_index(B, F, T, attend, heads), 0)  # (tokens, heads, d)
    return x.reshape(B * F * T, -1)


def _split_heads_transpose(x, layout, heads, parts):
    B, F, T, attend = layout
    d = x.shape[-1] // (parts * heads)
    x = x.reshape(B, F, T, parts, heads, d)
    if attend == "space":
        x = x.permute(3, 0, 1, 4, 2, 5).reshape(parts, B * F * heads, T, d)  # (parts, B*F*A, T, d)
    elif attend == "time":
        x = x.permute(3, 0, 2, 4, 1, 5).reshape(parts, B * T * heads, F, d)  # (parts, B*T*A, F, d)
    else:
        x = x.permute(3, 0, 4, 1, 2, 5).reshape(parts, B * heads, F * T, d)  # (parts, B*A, F*T, d)
    return tuple([x[i] for i in range(parts)])


def _merge_heads_transpose(x, layout, heads):
    B, F, T, attend = layout
    d = x.shape[-1]
    if attend == "space":
        x = x.reshape(B, F, heads, T, d).permute(0, 1, 3, 2, 4)
    elif attend == "time":
        x = x.reshape(B, T, heads, F, d).permute(0, 3, 1, 2, 4)
    else:
        x = x.reshape(B, heads, F, T, d).permute(0, 2, 3, 1, 4)
    return x.reshape(B * F * T, heads * d)


def _spread_gather(rows, times):
    if rows.shape[0] == 1:
        return ops.tile(rows, (times, 1))
    return ops.gather(rows, _run_index(rows.shape[0], times), 0)


def _spread_broadcast(rows, times):
    R, D = rows.shape
    return ops.broadcast_to(rows.expand_dims(1), (R, times, D)).reshape(R * times, D)


# Limits of MindSpore's documentation of flash_attention_score (2.10): sizes of its batch, its heads and their width,
# which is a multiple of 16.
_KERNEL_BATCH, _KERNEL_HEADS, _KERNEL_WIDTH = 2048, 256, 512


def _kernel_layout(rows, groups, width):
    """(batch, heads) in which the fused attention kernel takes `rows` sequences of one head each, or None if its
    documented limits leave no way.

    groups: rows of a mask, each shared by rows / groups sequences, or 0 without a mask: then the sequences may be
    dealt to batch and heads at will.
    """
    heads = (
        [rows // groups] if groups else [n for n in range(min(rows, _KERNEL_HEADS), 0, -1) if rows % n == 0]
    )
    if width > _KERNEL_WIDTH or heads[0] > _KERNEL_HEADS or rows // heads[0] > _KERNEL_BATCH:
        return None
    return rows // heads[0], heads[0]


def _kernel_takes(q, bias):
    """Whether the documented rules of the fused attention kernel allow q (rows, n, d) and bias (G, m) or None."""
    if q.dtype not in (ms.float16, ms.bfloat16) or (bias is not None and bias.dtype != ms.bool_):
        return False
    d = q.shape[2]
    return _kernel_layout(q.shape[0], 0 if bias is None else bias.shape[0], d + -d % 16) is not None


def _attention_kernel(q, k, v, keep, scale):
    """softmax(scale q k^T) v by the fused kernel, float16 or bfloat16. Not yet run on the device.

    keep (G, m): True for the keys that a group of sequences may see, or None. Heads are padded with zeros to a
    multiple of 16 (72 -> 80), which changes no product. What a group without any key gets is not documented.
    """
    rows, n, d = q.shape
    m, pad = k.shape[1], -d % 16
    B, A = _kernel_layout(rows, 0 if keep is None else keep.shape[0], d + pad)
    if pad:
        q, k, v = [ops.cat([x, ops.zeros(x.shape[:-1] + (pad,), x.dtype)], axis=-1) for x in (q, k, v)]
    drop = None
    if keep is not None:  # the kernel's mask is the other way round: 1 drops
        drop = ops.broadcast_to(ops.logical_not(keep).reshape(B, 1, 1, m), (B, 1, n, m)).astype(ms.uint8)
    out = ops.flash_attention_score(
        q.reshape(B, A, n, d + pad),
        k.reshape(B, A, m, d + pad),
        v.reshape(B, A, m, d + pad),
        A,
        attn_mask=drop,
        scalar_value=scale,
        input_layout="BNSD",
    )
    return out.reshape(rows, n, d + pad)[..., :d]


FORMULATIONS = {
    "linear": {"matmul_bias_add": _linear_matmul_bias_add, "dense": _linear_dense},
    "layer_norm": {"composed": _layer_norm_composed, "native": _layer_norm_native},
    "gelu_tanh": {"sigmoid": _gelu_tanh_sigmoid, "native": _gelu_tanh_native},
    "patch_conv": {"unfold": _patch_conv_unfold, "native": _patch_conv_native},
    "heads": {
        "gather": (_split_heads_gather, _merge_heads_gather),
        "transpose": (_split_heads_transpose, _merge_heads_transpose),
    },
    "spread": {"gather": _spread_gather, "broadcast": _spread_broadcast},
    # "composed" stands in DotProductAttention itself. The kernel serves form "flash" where its rules allow.
    "attention": {"composed": None, "kernel": (_kernel_takes, _attention_kernel)},
    "half_grid": HALF_GRID,
}


@ops.constexpr
def _split_index(batch, frames, tokens, attend, heads, parts):
    return _cached_split_index(batch, frames, tokens, attend, heads, parts)


@ops.constexpr
def _merge_index(batch, frames, tokens, attend, heads):
    return _cached_merge_index(batch, frames, tokens, attend, heads)


@ops.constexpr
def _run_index(rows, times):
    return _cached_run_index(rows, times)


@lru_cache(maxsize=64)
def _cached_split_index(batch, frames, tokens, attend, heads, parts):
    """Rows of (tokens * parts * heads, d) for every place of (parts, groups * heads, sequence)."""
    order = {"space": (3, 0, 1, 4, 2), "time": (3, 0, 2, 4, 1), "sample": (3, 0, 4, 1, 2)}[attend]
    sequence = {"space": tokens, "time": frames, "sample": frames * tokens}[attend]
    rows = np.arange(batch * frames * tokens * parts * heads, dtype=np.int32)
    rows = rows.reshape(batch, frames, tokens, parts, heads).transpose(order)
    return ms.Tensor(np.ascontiguousarray(rows.reshape(parts, -1, sequence)))


@lru_cache(maxsize=64)
def _cached_merge_index(batch, frames, tokens, attend, heads):
    """Rows of (groups * heads * sequence, d) for every place of (batch * frames * tokens, heads)."""
    split = _cached_split_index(batch, frames, tokens, attend, heads, 1).asnumpy().reshape(-1)
    inverse = np.empty_like(split)
    inverse[split] = np.arange(split.size, dtype=np.int32)
    return ms.Tensor(inverse.reshape(-1, heads))


@lru_cache(maxsize=64)
def _cached_run_index(rows, times):
    return ms.Tensor(np.repeat(np.arange(rows, dtype=np.int32), times))


def _zeros(shape, precision):
    require_selected()
    return ms.Parameter(initializer("zeros", shape, precision.dtype))
