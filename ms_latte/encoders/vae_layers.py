# SPDX-License-Identifier: Apache-2.0
"""Leaf layers of the VAEs: convolutions, group normalisation, changes of the resolution.

Each states every default that differs between frameworks, prints it and rounds its result once. Pictures are
(N, C, H, W); a video is its frames in order, N = B * F, and `num_frames` says how many successive pictures belong
together.

FORMULATIONS holds the formulations, as that of `ms_latte.models.layers` does for the denoisers.
"""

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.common.initializer import initializer

from ms_latte.device import formulation, require_selected
from ms_latte.models.constants import constant
from ms_latte.models.precision import Precision
from ms_latte.models.primitives import batch_matmul, bias_add, matmul, reduce_mean, reduce_mean_keep

UNFOLDED = 1 << 26  # numbers that a convolution may unfold at a time: 256 MiB in float32


class Conv2d(nn.Cell):
    """Convolution of pictures: x (N, I, H, W) -> (N, O, h, w); weight (O, I, k, k), bias (O).

    padding: rows and columns of zeros on each side; h = (H + 2 padding - k) // stride + 1. Nothing has a default:
    MindSpore's would be "same" padding and no bias. Raises ValueError for another number of channels.

    upsampled, set by who builds the layer: every x comes from `upsample_nearest` (k = 3, stride 1, padding 1), so that
    a formulation may compute from one pixel of four.
    """

    upsampled = False

    def __init__(self, in_channels, out_channels, kernel_size, stride, padding, precision=Precision()):
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride, self.padding, self.precision = stride, padding, precision
        self.weight = _filled("zeros", (out_channels, in_channels, kernel_size, kernel_size), precision)
        self.bias = _filled("zeros", (out_channels,), precision)

    def construct(self, x):
        if x.shape[1] != self.in_channels:
            raise ValueError(
                f"Conv2d takes {self.in_channels} channels, got x (N, C, H, W) = {tuple(x.shape)}; remedy: pass "
                "pictures with the channels on the second axis"
            )
        if self.upsampled:
            form = FORMULATIONS["conv2d_upsampled"][_form("conv2d_upsampled", "phases", self.precision)]
        else:
            form = FORMULATIONS["conv2d"][_form("conv2d", "im2col", self.precision)]
        return self.precision.round(form(x, self.weight, self.bias, self.stride, self.padding))

    def extend_repr(self):
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, bias=True"
        )


class FrameConv3d(nn.Cell):
    """Convolution over the frames, each pixel by itself: x (N, I, H, W) -> (N, O, H, W).

    weight (O, I, k, 1, 1), bias (O); k // 2 frames of zeros before the first and behind the last frame of every
    video. Raises ValueError if num_frames does not divide N. Source: `Conv3d(kernel_size=(3, 1, 1))` of diffusers'
    temporal decoder.
    """

    def __init__(self, in_channels, out_channels, kernel_size, precision=Precision()):
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.padding, self.precision = kernel_size // 2, precision
        self.weight = _filled("zeros", (out_channels, in_channels, kernel_size, 1, 1), precision)
        self.bias = _filled("zeros", (out_channels,), precision)

    def construct(self, x, num_frames):
        _count_videos(x.shape[0], num_frames)
        # MS: products of matrices, since the documented type of Conv3D on Ascend is float16 alone
        return self.precision.round(_conv_frames(x, self.weight, self.bias, num_frames, self.padding))

    def extend_repr(self):
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, "
            f"kernel_size=({self.kernel_size}, 1, 1), padding=({self.padding}, 0, 0), bias=True"
        )


class GroupNorm(nn.Cell):
    """Normalisation over groups of channels: x (N, C, H, W) -> the same shape; statistics in the island type.

    Mean and variance of a group are those of all its pixels in num_frames successive pictures. eps has no default:
    diffusers has 1e-6 in pictures and 1e-5 over frames. Raises ValueError if num_groups does not divide the channels
    or num_frames the pictures.
    """

    def __init__(self, num_groups, num_channels, eps, precision=Precision()):
        super().__init__()
        if num_channels % num_groups:
            raise ValueError(
                f"norm_num_groups {num_groups} does not divide {num_channels} channels; remedy: choose multiples of "
                f"{num_groups} as block_out_channels, or another norm_num_groups"
            )
        self.num_groups, self.num_channels, self.eps, self.precision = (
            num_groups,
            num_channels,
            eps,
            precision,
        )
        self.weight = _filled("ones", (num_channels,), precision)
        self.bias = _filled("zeros", (num_channels,), precision)

    def construct(self, x, num_frames=1):
        p = self.precision
        _count_videos(x.shape[0], num_frames)
        form = FORMULATIONS["group_norm"][_form("group_norm", "composed", p)]
        x = form(p.up(x), p.up(self.weight), p.up(self.bias), self.num_groups, self.eps, num_frames)
        return p.round(x)

    def extend_repr(self):
        return f"num_groups={self.num_groups}, num_channels={self.num_channels}, eps={self.eps}"


def upsample_nearest(x):
    """Every pixel becomes four: (N, C, H, W) -> (N, C, 2H, 2W). Nothing is rounded."""
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def pad_end(x):
    """One row of zeros below and one column of zeros on the right: (N, C, H, W) -> (N, C, H + 1, W + 1).

    What the encoder's convolutions of stride 2 see: their padding is (0, 1, 0, 1), not one on each side.
    """
    return ops.pad(x, (0, 1, 0, 1))


def _count_videos(pictures, num_frames):
    """Number of videos among pictures: N // F. Raises ValueError if num_frames does not divide them."""
    if num_frames < 1 or pictures % num_frames:
        raise ValueError(
            f"{pictures} pictures are no whole number of videos of num_frames {num_frames}; remedy: pass (B * F, C, "
            "H, W) with num_frames F"
        )
    return pictures // num_frames


# --- formulations


def _filled(word, shape, precision):
    require_selected()
    return ms.Parameter(initializer(word, shape, precision.dtype))


def _form(operation, composed, precision):
    """The selected formulation; float64 takes the composed one, since native kernels have none."""
    return composed if precision.compute == "fp64" else formulation(operation)


def _conv2d_im2col(x, weight, bias, stride, padding):
    # MindSpore's CPU convolution is a reference kernel, 50 times as slow as this product. Rows of the result are
    # computed in bands, so that the unfolded picture, k * k times the picture, needs no more than UNFOLDED numbers.
    N, C, H, W = x.shape
    out_channels, k = weight.shape[0], weight.shape[2]
    h, w = (H + 2 * padding - k) // stride + 1, (W + 2 * padding - k) // stride + 1
    weight = weight.reshape(out_channels, -1)
    band = min(max(UNFOLDED // (C * k * k * w), 1), h)
    band = -(-h // -(-h // band))  # as many bands, of equal height
    pictures = []
    for n in range(N):
        bands = []
        for top in range(0, h, band):
            rows = min(band, h - top)
            columns = _unfold(x[n : n + 1], k, stride, padding, top, rows)
            bands.append(matmul(weight, columns.reshape(C * k * k, rows * w)))  # (O, rows * w)
        pictures.append(bands[0] if len(bands) == 1 else ops.cat(bands, 1))
    y = pictures[0] if N == 1 else ops.cat(pictures, 0)
    return bias_add(y.reshape(N, out_channels, h, w), bias)


def _conv2d_im2col_batch(x, weight, bias, stride, padding):
    # All pictures at once: few launches where pictures are many and small, as in training on small frames. Memory is
    # k * k times that of all pictures.
    N, C, H, W = x.shape
    out_channels, k = weight.shape[0], weight.shape[2]
    h, w = (H + 2 * padding - k) // stride + 1, (W + 2 * padding - k) // stride + 1
    columns = (
        x if k == 1 and stride == 1 and padding == 0 else ops.unfold(x, k, stride=stride, padding=padding)
    )
    weights = ops.tile(weight.reshape(1, out_channels, C * k * k), (N, 1, 1))
    y = batch_matmul(weights, columns.reshape(N, C * k * k, h * w))
    return bias_add(y.reshape(N, out_channels, h, w), bias)


def _unfold(x, k, stride, padding, top, rows):
    """Windows of `rows` rows of the result from `top` on: x (1, C, H, W) -> (1, C * k * k, rows * w)."""
    C, H, W = x.shape[1:]
    if k == 1 and stride == 1 and padding == 0:
        return x[:, :, top : top + rows]
    first, last = top * stride - padding, (top + rows - 1) * stride - padding + k
    if first <= 0 and last >= H:
        return ops.unfold(x, k, stride=stride, padding=padding)
    parts = [x[:, :, max(first, 0) : min(last, H)]]
    if first < 0:
        parts = [ops.zeros((1, C, -first, W), x.dtype)] + parts
    if last > H:
        parts = parts + [ops.zeros((1, C, last - H, W), x.dtype)]
    x = parts[0] if len(parts) == 1 else ops.cat(parts, 2)
    return ops.unfold(x, k, stride=stride, padding=(0, padding))


def _conv2d_phases(x, weight, bias, stride, padding):
    # The 3 x 3 pixels around one of an upsampled picture are 2 x 2 different ones; which of the nine weights meet
    # which of the four depends on whether row and column are even. So these are four 2 x 2 convolutions of the picture
    # before, with 4/9 of the work, and weights that meet the same pixel are added up first.
    N, C, H, W = x.shape
    out_channels, h, w = weight.shape[0], H // 2, W // 2
    pixels = _pixels_of_weights(weight.dtype == ms.float64)
    if weight.dtype != pixels.dtype:
        pixels = pixels.astype(weight.dtype)
    weight = matmul(weight.reshape(out_channels * C, 9), pixels).reshape(out_channels, C, 4, 4)
    weight = weight.permute(2, 0, 1, 3).reshape(4 * out_channels, 4 * C)
    x = x.reshape(N, C, h, 2, w, 2)[:, :, :, 0, :, 0]  # the CPU has no right gradient of ::2
    pictures = []
    for n in range(N):
        columns = ops.unfold(x[n : n + 1], 2, padding=1).reshape(4 * C, (h + 1) * (w + 1))
        y = matmul(weight, columns).reshape(4, out_channels, h + 1, w + 1)
        even = _in_turn(y[0, :, :h, :w], y[1, :, :h, 1:], 2).reshape(out_channels, h, W)
        odd = _in_turn(y[2, :, 1:, :w], y[3, :, 1:, 1:], 2).reshape(out_channels, h, W)
        pictures.append(_in_turn(even, odd, 1).reshape(1, out_channels, H, W))
    return bias_add(pictures[0] if N == 1 else ops.cat(pictures, 0), bias)


def _in_turn(a, b, axis):
    """Stacked behind `axis`. MindSpore stacks views element by element, so they are copied first."""
    return ops.stack([a.contiguous(), b.contiguous()], axis + 1)


@ops.constexpr
def _pixels_of_weights(double):
    """(9, 16): 1 where weight (dy, dx) of 3 x 3 meets pixel (i, j) of 2 x 2 in outputs of parity (a, b)."""
    met = np.zeros((2, 3, 2), np.float64 if double else np.float32)  # parity, weight, pixel
    met[0, 0, 0] = met[0, 1, 1] = met[0, 2, 1] = 1
    met[1, 0, 0] = met[1, 1, 0] = met[1, 2, 1] = 1
    return ms.Tensor(np.einsum("ayi,bxj->yxabij", met, met).reshape(9, 16))


def _conv2d_native(x, weight, bias, stride, padding):
    return ops.conv2d(x, weight, bias, stride=stride, pad_mode="pad", padding=padding)


def _conv_frames(x, weight, bias, num_frames, padding):
    # A frame and its neighbours stand behind each other in memory, stacked along the channels: one product a frame,
    # and no copy. Where a neighbour is missing, so are its weights.
    N, C, H, W = x.shape
    out_channels, k = weight.shape[0], weight.shape[2]
    weight = weight.reshape(out_channels, C, k).permute(0, 2, 1).reshape(out_channels, k * C)
    x = x.reshape(N * C, H * W)
    frames = []
    for n in range(N):
        start, first = (
            n - n % num_frames,
            n % num_frames - padding,
        )  # the video, the first frame that the kernel meets
        low, high = max(first, 0), min(first + k, num_frames)
        near = x[(start + low) * C : (start + high) * C]
        frames.append(matmul(weight[:, (low - first) * C : (high - first) * C], near))  # (O, H * W)
    y = frames[0] if N == 1 else ops.cat(frames, 0)
    return bias_add(y.reshape(N, out_channels, H, W), bias)


def _group_norm_composed(x, weight, bias, num_groups, eps, num_frames):
    # Numbers of a channel are tiled, not broadcast, and sums run in stages: one float32 sum of a million numbers,
    # as a group of a large picture has, is wrong by 2e-5.
    N, C, H, W = x.shape
    size = C // num_groups
    d = x.reshape(N * num_groups, size * H * W)
    d = d - ops.tile(_group_mean(d, num_frames, num_groups, W), (1, size * H * W))
    variance = _group_mean(ops.square(d), num_frames, num_groups, W)  # (N * G, 1)
    scale = ops.tile(ops.rsqrt(variance + constant(eps, x)), (1, size)).reshape(N, C)
    scale = (scale * ops.tile(weight.reshape(1, C), (N, 1))).reshape(N * C, 1)
    y = d.reshape(N * C, H * W) * ops.tile(scale, (1, H * W))
    return bias_add(y.reshape(N, C, H, W), bias)


def _group_mean(x, num_frames, num_groups, width):
    """Mean of every group over its rows, columns and frames: x (B * F * G, c * H * W) -> (B * F * G, 1)."""
    rows = x.shape[0]
    mean = reduce_mean(x.reshape(-1, width), -1)
    mean = reduce_mean_keep(mean.reshape(rows, -1), -1)
    if num_frames == 1:
        return mean
    mean = reduce_mean_keep(mean.reshape(-1, num_frames, num_groups), 1)  # (B, 1, G)
    return ops.tile(mean, (1, num_frames, 1)).reshape(rows, 1)


def _group_norm_native(x, weight, bias, num_groups, eps, num_frames):
    N, C, H, W = x.shape
    if num_frames == 1:
        return ops.group_norm(x, num_groups, weight, bias, eps)
    x = x.reshape(N // num_frames, num_frames, C, H, W).permute(0, 2, 1, 3, 4)  # (B, C, F, H, W)
    x = ops.group_norm(x, num_groups, weight, bias, eps)
    return x.permute(0, 2, 1, 3, 4).reshape(N, C, H, W)


# The native forms have run on the CPU, small and in float32; not yet on the device.
FORMULATIONS = {
    "conv2d": {"im2col": _conv2d_im2col, "im2col_batch": _conv2d_im2col_batch, "native": _conv2d_native},
    "conv2d_upsampled": {
        "phases": _conv2d_phases,
        "im2col": _conv2d_im2col,
        "im2col_batch": _conv2d_im2col_batch,
        "native": _conv2d_native,
    },
    "group_norm": {"composed": _group_norm_composed, "native": _group_norm_native},
}
