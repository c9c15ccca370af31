# SPDX-License-Identifier: Apache-2.0
"""Leaf layers and the few free functions of the networks.

Each states every default that differs between frameworks, prints it (`extra_repr`; the parity lint compares
these lines) and rounds its result once (`Precision.round`). Constructors draw nothing: parameters start as
zeros.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from torch_ref.models.precision import Precision


class TokenLayout(NamedTuple):
    """How the rows of a (batch * frames * tokens, D) stream are grouped into attention sequences.

    attend: "space" groups by (sample, frame), sequence = tokens; "time" groups by (sample, token), sequence = frames;
    "sample" groups by sample, sequence = frames * tokens (text attention, where all frames share one text).
    """

    batch: int
    frames: int
    tokens: int
    attend: str = "space"


class Linear(nn.Module):
    """y = x weight^T + bias. x (..., in_features) -> (..., out_features); weight (out_features,
    in_features)."""

    def __init__(self, in_features, out_features, bias=True, precision=Precision()):
        super().__init__()
        self.in_features, self.out_features, self.precision = in_features, out_features, precision
        self.weight = nn.Parameter(torch.zeros(out_features, in_features, dtype=precision.dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=precision.dtype)) if bias else None

    def forward(self, x):
        return self.precision.round(F.linear(x, self.weight, self.bias))

    def extra_repr(self):
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis. x (..., dim) -> (..., dim); statistics in the island type.

    eps has no default that could differ between frameworks: it is stated. elementwise_affine adds weight and
    bias (dim).
    """

    def __init__(self, dim, eps, elementwise_affine=False, precision=Precision()):
        super().__init__()
        self.dim, self.eps, self.elementwise_affine, self.precision = dim, eps, elementwise_affine, precision
        self.weight = nn.Parameter(torch.ones(dim, dtype=precision.dtype)) if elementwise_affine else None
        self.bias = nn.Parameter(torch.zeros(dim, dtype=precision.dtype)) if elementwise_affine else None

    def forward(self, x):
        p = self.precision
        weight = p.up(self.weight) if self.elementwise_affine else None
        bias = p.up(self.bias) if self.elementwise_affine else None
        return p.round(F.layer_norm(p.up(x), (self.dim,), weight, bias, self.eps))

    def extra_repr(self):
        return f"dim={self.dim}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class PatchConv(nn.Module):
    """Convolution whose kernel and stride are the patch: x (B, C, H, W) -> (B, h*w, embed_dim), row-major.

    No padding ("valid"): rows and columns that do not fill a patch are dropped, so 9x9 with patch 2 gives 4x4.
    weight (embed_dim, C, p, p). Source: `Conv2d(kernel_size=p, stride=p)` and `flatten(2).transpose(1, 2)`.
    """

    def __init__(self, in_channels, embed_dim, patch_size, bias=True, precision=Precision()):
        super().__init__()
        self.in_channels, self.embed_dim, self.patch_size = in_channels, embed_dim, patch_size
        self.pad_mode, self.precision = "valid", precision
        self.weight = nn.Parameter(
            torch.zeros(embed_dim, in_channels, patch_size, patch_size, dtype=precision.dtype)
        )
        self.bias = nn.Parameter(torch.zeros(embed_dim, dtype=precision.dtype)) if bias else None

    def forward(self, x):
        x = F.conv2d(x, self.weight, self.bias, stride=self.patch_size)  # (B, D, h, w)
        return self.precision.round(x.flatten(2).transpose(1, 2))  # (B, h*w, D)

    def extra_repr(self):
        return (
            f"in_channels={self.in_channels}, embed_dim={self.embed_dim}, patch_size={self.patch_size}, "
            f"pad_mode={self.pad_mode}, bias={self.bias is not None}"
        )


class Embedding(nn.Module):
    """Table look-up: integer ids (...) -> (..., embedding_dim); weight (num_embeddings, embedding_dim)."""

    def __init__(self, num_embeddings, embedding_dim, precision=Precision()):
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = nn.Parameter(torch.zeros(num_embeddings, embedding_dim, dtype=precision.dtype))

    def forward(self, ids):
        return F.embedding(ids, self.weight)

    def extra_repr(self):
        return f"num_embeddings={self.num_embeddings}, embedding_dim={self.embedding_dim}"


class SiLU(nn.Module):
    """x * sigmoid(x), any shape."""

    def __init__(self, precision=Precision()):
        super().__init__()
        self.precision = precision

    def forward(self, x):
        return self.precision.round(F.silu(x))


class GELU(nn.Module):
    """Gaussian error linear unit, any shape. approximate: "tanh" (all Latte models) or "none" (the erf
    form)."""

    def __init__(self, approximate, precision=Precision()):
        super().__init__()
        if approximate not in ("tanh", "none"):
            raise ValueError(f"GELU approximate is {approximate!r}; expected 'tanh' or 'none'")
        self.approximate, self.precision = approximate, precision

    def forward(self, x):
        return self.precision.round(F.gelu(x, approximate=self.approximate))

    def extra_repr(self):
        return f"approximate={self.approximate}"


def exp(x):
    """e^x, elementwise, for variances and their like: any shape, |x| below 80."""
    return torch.exp(x)


def sigmoid(x):
    """1 / (1 + e^-x), elementwise, for the few numbers that weigh many: any shape, |x| below 80."""
    return torch.sigmoid(x)


def spread(rows, count):
    """Repeat condition rows in runs: (R, D) -> (count, D), each row count // R times in succession.

    The stream is sample-major, so this gives every token the row of its sample (R = B) or of its frame (R =
    B*F). Raises ValueError if count is not a multiple of R.
    """
    R = rows.shape[0]
    if count % R:
        raise ValueError(f"cannot spread {R} condition rows over {count} tokens: not a multiple")
    return rows.repeat_interleave(count // R, dim=0)


def place(table, layout):
    """Give every token its row of a position table.

    table (tokens, D) with layout.attend "space", or (frames, D) with "time" -> (batch * frames * tokens, D).
    """
    if layout.attend == "time":
        table = table.repeat_interleave(layout.tokens, dim=0)  # (F*T, D)
        return table.repeat(layout.batch, 1)
    return table.repeat(layout.batch * layout.frames, 1)


def split_heads(x, layout, heads, parts=1):
    """Split the width into heads and group the rows into sequences, in one step.

    x (batch * frames * tokens, parts * heads * d) -> tuple of `parts` tensors (groups * heads, sequence, d),
    group-major.
    """
    B, F_, T, attend = layout
    x = x.reshape(B, F_, T, parts, heads, -1)
    d = x.shape[-1]
    if attend == "space":
        x = x.permute(3, 0, 1, 4, 2, 5).reshape(parts, B * F_ * heads, T, d)  # (parts, B*F*A, T, d)
    elif attend == "time":
        x = x.permute(3, 0, 2, 4, 1, 5).reshape(parts, B * T * heads, F_, d)  # (parts, B*T*A, F, d)
    else:
        x = x.permute(3, 0, 4, 1, 2, 5).reshape(parts, B * heads, F_ * T, d)  # (parts, B*A, F*T, d)
    return tuple(x[i] for i in range(parts))


def merge_heads(x, layout, heads):
    """Inverse of `split_heads` for one part: (groups * heads, sequence, d) -> (batch * frames * tokens, heads
    * d)."""
    B, F_, T, attend = layout
    d = x.shape[-1]
    if attend == "space":
        x = x.reshape(B, F_, heads, T, d).permute(0, 1, 3, 2, 4)
    elif attend == "time":
        x = x.reshape(B, T, heads, F_, d).permute(0, 3, 1, 2, 4)
    else:
        x = x.reshape(B, heads, F_, T, d).permute(0, 2, 3, 1, 4)
    return x.reshape(B * F_ * T, heads * d)


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
    x = torch.cat([video.reshape(B, -1, T, D), images.reshape(B, -1, T, D)], dim=1)
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
