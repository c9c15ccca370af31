# SPDX-License-Identifier: Apache-2.0
"""Blocks of the VAEs, in diffusers' names.

Sources: diffusers `models/resnet.py`, `models/unets/unet_2d_blocks.py`, `models/unets/unet_3d_blocks.py` and
`models/attention_processor.py`, as its `Encoder`, `Decoder` and `TemporalDecoder` use them (CompVis ldm `model.py`).
"""

import torch
from torch import nn

from torch_ref.encoders.vae_layers import Conv2d, FrameConv3d, GroupNorm, pad_end, upsample_nearest
from torch_ref.models.attention import DotProductAttention
from torch_ref.models.layers import Linear, SiLU, residual, sigmoid
from torch_ref.models.precision import Precision

GROUPS = 32  # of every normalisation of the temporal decoder, which has no argument for it
EPS, TEMPORAL_EPS = 1e-6, 1e-5


class ResnetBlock2D(nn.Module):
    """Twice normalisation, SiLU, 3x3 convolution, beside a shortcut: x (N, I, H, W) -> (N, O, H, W).

    The shortcut is a 1x1 convolution where the number of channels changes.
    """

    def __init__(self, in_channels, out_channels, norm_num_groups=GROUPS, precision=Precision()):
        super().__init__()
        self.precision = precision
        self.norm1 = GroupNorm(norm_num_groups, in_channels, eps=EPS, precision=precision)
        self.conv1 = Conv2d(in_channels, out_channels, 3, stride=1, padding=1, precision=precision)
        self.norm2 = GroupNorm(norm_num_groups, out_channels, eps=EPS, precision=precision)
        self.conv2 = Conv2d(out_channels, out_channels, 3, stride=1, padding=1, precision=precision)
        self.nonlinearity = SiLU(precision=precision)
        self.conv_shortcut = None
        if in_channels != out_channels:
            self.conv_shortcut = Conv2d(
                in_channels, out_channels, 1, stride=1, padding=0, precision=precision
            )

    def forward(self, x):
        h = self.conv1(self.nonlinearity(self.norm1(x)))
        h = self.conv2(self.nonlinearity(self.norm2(h)))  # (N, O, H, W)
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return residual(x, h, self.precision)


class TemporalResnetBlock(nn.Module):
    """The same over the frames: x (N, C, H, W) -> (N, C, H, W), statistics over num_frames pictures."""

    def __init__(self, channels, precision=Precision()):
        super().__init__()
        self.precision = precision
        self.norm1 = GroupNorm(GROUPS, channels, eps=TEMPORAL_EPS, precision=precision)
        self.conv1 = FrameConv3d(channels, channels, 3, precision=precision)
        self.norm2 = GroupNorm(GROUPS, channels, eps=TEMPORAL_EPS, precision=precision)
        self.conv2 = FrameConv3d(channels, channels, 3, precision=precision)
        self.nonlinearity = SiLU(precision=precision)

    def forward(self, x, num_frames):
        h = self.conv1(self.nonlinearity(self.norm1(x, num_frames)), num_frames)
        h = self.conv2(self.nonlinearity(self.norm2(h, num_frames)), num_frames)
        return residual(x, h, self.precision)


class AlphaBlender(nn.Module):
    """(1 - a) x_spatial + a x_temporal, a = sigmoid(mix_factor): two tensors of one shape -> that shape.

    mix_factor (1). In diffusers' words: merge strategy "learned", switched from spatial to temporal.
    """

    def __init__(self, precision=Precision()):
        super().__init__()
        self.precision = precision
        self.mix_factor = nn.Parameter(torch.zeros(1, dtype=precision.dtype))

    def forward(self, x_spatial, x_temporal):
        p = self.precision
        alpha = p.step(sigmoid(p.up(self.mix_factor)))
        return p.round(p.step(p.step(1 - alpha) * p.up(x_spatial)) + p.step(alpha * p.up(x_temporal)))


class SpatioTemporalResBlock(nn.Module):
    """A resnet in the pictures, one over the frames, and the mixture of both: (N, I, H, W) -> (N, O, H, W)."""

    def __init__(self, in_channels, out_channels, precision=Precision()):
        super().__init__()
        self.spatial_res_block = ResnetBlock2D(in_channels, out_channels, precision=precision)
        self.temporal_res_block = TemporalResnetBlock(out_channels, precision=precision)
        self.time_mixer = AlphaBlender(precision=precision)

    def forward(self, x, num_frames):
        x = self.spatial_res_block(x)
        return self.time_mixer(x, self.temporal_res_block(x, num_frames))


class AttentionBlock(nn.Module):
    """Every pixel attends to all pixels of its picture, with one head: x (N, C, H, W) -> the same shape."""

    def __init__(self, channels, norm_num_groups=GROUPS, precision=Precision()):
        super().__init__()
        self.precision = precision
        self.group_norm = GroupNorm(norm_num_groups, channels, eps=EPS, precision=precision)
        self.to_q = Linear(channels, channels, precision=precision)
        self.to_k = Linear(channels, channels, precision=precision)
        self.to_v = Linear(channels, channels, precision=precision)
        self.core = DotProductAttention(channels, precision=precision)
        self.to_out = nn.ModuleList([Linear(channels, channels, precision=precision)])

    def forward(self, x):
        N, C, H, W = x.shape
        h = self.group_norm(x).reshape(N, C, H * W).permute(0, 2, 1).reshape(N * H * W, C)  # one row a pixel
        q, k, v = self.to_q(h), self.to_k(h), self.to_v(h)
        h = self.core(q.reshape(N, -1, C), k.reshape(N, -1, C), v.reshape(N, -1, C))  # (N, H*W, C)
        h = self.to_out[0](h.reshape(-1, C))
        h = h.reshape(N, H * W, C).permute(0, 2, 1).reshape(N, C, H, W)
        return residual(x, h, self.precision)


class Downsample2D(nn.Module):
    """Half the size: (N, C, H, W) -> (N, C, H // 2, W // 2), zeros below and on the right only."""

    def __init__(self, channels, precision=Precision()):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=0, precision=precision)

    def forward(self, x):
        return self.conv(pad_end(x))


class Upsample2D(nn.Module):
    """Twice the size by repeated pixels and a convolution: (N, C, H, W) -> (N, C, 2H, 2W)."""

    def __init__(self, channels, precision=Precision()):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=1, padding=1, precision=precision)

    def forward(self, x):
        return self.conv(upsample_nearest(x))


class DownEncoderBlock2D(nn.Module):
    """num_layers resnets, then half the size if add_downsample: (N, I, H, W) -> (N, O, h, w)."""

    def __init__(
        self,
        in_channels,
        out_channels,
        num_layers,
        add_downsample,
        norm_num_groups=GROUPS,
        precision=Precision(),
    ):
        super().__init__()
        inputs = [in_channels] + [out_channels] * (num_layers - 1)
        self.resnets = nn.ModuleList(
            [ResnetBlock2D(size, out_channels, norm_num_groups, precision=precision) for size in inputs]
        )
        self.downsamplers = None
        if add_downsample:
            self.downsamplers = nn.ModuleList([Downsample2D(out_channels, precision=precision)])

    def forward(self, x):
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.downsamplers is None else self.downsamplers[0](x)


class UpDecoderBlock2D(nn.Module):
    """num_layers resnets, then twice the size if add_upsample: (N, I, H, W) -> (N, O, h, w)."""

    def __init__(
        self,
        in_channels,
        out_channels,
        num_layers,
        add_upsample,
        norm_num_groups=GROUPS,
        precision=Precision(),
    ):
        super().__init__()
        inputs = [in_channels] + [out_channels] * (num_layers - 1)
        self.resnets = nn.ModuleList(
            [ResnetBlock2D(size, out_channels, norm_num_groups, precision=precision) for size in inputs]
        )
        self.upsamplers = None
        if add_upsample:
            self.upsamplers = nn.ModuleList([Upsample2D(out_channels, precision=precision)])

    def forward(self, x):
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.upsamplers is None else self.upsamplers[0](x)


class UNetMidBlock2D(nn.Module):
    """Resnet, attention (unless add_attention is False), resnet: x (N, C, H, W) -> the same shape."""

    def __init__(self, channels, norm_num_groups=GROUPS, add_attention=True, precision=Precision()):
        super().__init__()
        self.attentions = None
        if add_attention:
            self.attentions = nn.ModuleList([AttentionBlock(channels, norm_num_groups, precision=precision)])
        self.resnets = nn.ModuleList(
            [ResnetBlock2D(channels, channels, norm_num_groups, precision=precision) for _ in range(2)]
        )

    def forward(self, x):
        x = self.resnets[0](x)
        if self.attentions is not None:
            x = self.attentions[0](x)
        return self.resnets[1](x)


class MidBlockTemporalDecoder(nn.Module):
    """num_layers mixed resnets, of which the first two run, with attention between them: (N, C, H, W).

    A single resnet runs without the attention, and any after the second never runs, as in diffusers; published nets
    have two.
    """

    def __init__(self, channels, num_layers, precision=Precision()):
        super().__init__()
        self.attentions = nn.ModuleList([AttentionBlock(channels, precision=precision)])
        self.resnets = nn.ModuleList(
            [SpatioTemporalResBlock(channels, channels, precision=precision) for _ in range(num_layers)]
        )

    def forward(self, x, num_frames):
        x = self.resnets[0](x, num_frames)
        if len(self.resnets) > 1:
            x = self.resnets[1](self.attentions[0](x), num_frames)
        return x


class UpBlockTemporalDecoder(nn.Module):
    """num_layers mixed resnets, then twice the size if add_upsample: (N, I, H, W) -> (N, O, h, w)."""

    def __init__(self, in_channels, out_channels, num_layers, add_upsample, precision=Precision()):
        super().__init__()
        inputs = [in_channels] + [out_channels] * (num_layers - 1)
        self.resnets = nn.ModuleList(
            [SpatioTemporalResBlock(size, out_channels, precision=precision) for size in inputs]
        )
        self.upsamplers = None
        if add_upsample:
            self.upsamplers = nn.ModuleList([Upsample2D(out_channels, precision=precision)])

    def forward(self, x, num_frames):
        for resnet in self.resnets:
            x = resnet(x, num_frames)
        return x if self.upsamplers is None else self.upsamplers[0](x)
