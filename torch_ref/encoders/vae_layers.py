# SPDX-License-Identifier: Apache-2.0
"""Leaf layers of the VAEs: convolutions, group normalisation, changes of the resolution.

Each states every default that differs between frameworks, prints it and rounds its result once. Pictures are
(N, C, H, W); a video is its frames in order, N = B * F, and `num_frames` says how many successive pictures belong
together.
"""

import torch
import torch.nn.functional as F
from torch import nn

from torch_ref.models.precision import Precision


class Conv2d(nn.Module):
    """Convolution of pictures: x (N, I, H, W) -> (N, O, h, w); weight (O, I, k, k), bias (O).

    padding: rows and columns of zeros on each side; h = (H + 2 padding - k) // stride + 1. Nothing has a default:
    MindSpore's would be "same" padding and no bias. Raises ValueError for another number of channels.
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride, padding, precision=Precision()):
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride, self.padding, self.precision = stride, padding, precision
        self.weight = nn.Parameter(
            torch.zeros(out_channels, in_channels, kernel_size, kernel_size, dtype=precision.dtype)
        )
        self.bias = nn.Parameter(torch.zeros(out_channels, dtype=precision.dtype))

    def forward(self, x):
        if x.shape[1] != self.in_channels:
            raise ValueError(
                f"Conv2d takes {self.in_channels} channels, got x (N, C, H, W) = {tuple(x.shape)}; remedy: pass "
                "pictures with the channels on the second axis"
            )
        return self.precision.round(
            F.conv2d(x, self.weight, self.bias, stride=self.stride, padding=self.padding)
        )

    def extra_repr(self):
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, bias=True"
        )


class FrameConv3d(nn.Module):
    """Convolution over the frames, each pixel by itself: x (N, I, H, W) -> (N, O, H, W).

    weight (O, I, k, 1, 1), bias (O); k // 2 frames of zeros before the first and behind the last frame of every
    video. Raises ValueError if num_frames does not divide N. Source: `Conv3d(kernel_size=(3, 1, 1))` of diffusers'
    temporal decoder.
    """

    def __init__(self, in_channels, out_channels, kernel_size, precision=Precision()):
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.padding, self.precision = kernel_size // 2, precision
        self.weight = nn.Parameter(
            torch.zeros(out_channels, in_channels, kernel_size, 1, 1, dtype=precision.dtype)
        )
        self.bias = nn.Parameter(torch.zeros(out_channels, dtype=precision.dtype))

    def forward(self, x, num_frames):
        N, _, H, W = x.shape
        B = _count_videos(N, num_frames)
        x = x.reshape(B, num_frames, -1, H, W).transpose(1, 2)  # (B, I, F, H, W)
        x = F.conv3d(x, self.weight, self.bias, padding=(self.padding, 0, 0))
        return self.precision.round(x.transpose(1, 2).reshape(N, -1, H, W))

    def extra_repr(self):
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, "
            f"kernel_size=({self.kernel_size}, 1, 1), padding=({self.padding}, 0, 0), bias=True"
        )


class GroupNorm(nn.Module):
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
        self.weight = nn.Parameter(torch.ones(num_channels, dtype=precision.dtype))
        self.bias = nn.Parameter(torch.zeros(num_channels, dtype=precision.dtype))

    def forward(self, x, num_frames=1):
        p = self.precision
        N, C, H, W = x.shape
        B = _count_videos(N, num_frames)
        x = p.up(x).reshape(B, num_frames, C, H, W).transpose(1, 2)  # (B, C, F, H, W)
        x = F.group_norm(x, self.num_groups, p.up(self.weight), p.up(self.bias), self.eps)
        return p.round(x.transpose(1, 2).reshape(N, C, H, W))

    def extra_repr(self):
        return f"num_groups={self.num_groups}, num_channels={self.num_channels}, eps={self.eps}"


def upsample_nearest(x):
    """Every pixel becomes four: (N, C, H, W) -> (N, C, 2H, 2W). Nothing is rounded."""
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def pad_end(x):
    """One row of zeros below and one column of zeros on the right: (N, C, H, W) -> (N, C, H + 1, W + 1).

    What the encoder's convolutions of stride 2 see: their padding is (0, 1, 0, 1), not one on each side.
    """
    return F.pad(x, (0, 1, 0, 1))


def _count_videos(pictures, num_frames):
    """Number of videos among pictures: N // F. Raises ValueError if num_frames does not divide them."""
    if num_frames < 1 or pictures % num_frames:
        raise ValueError(
            f"{pictures} pictures are no whole number of videos of num_frames {num_frames}; remedy: pass (B * F, C, "
            "H, W) with num_frames F"
        )
    return pictures // num_frames
