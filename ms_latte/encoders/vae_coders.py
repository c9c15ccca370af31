# SPDX-License-Identifier: Apache-2.0
"""Encoder and decoders of the VAEs: what lies between the two 1x1 convolutions.

Sources: diffusers `models/autoencoders/vae.py` and `autoencoder_kl_temporal_decoder.py` (CompVis ldm `model.py`).
"""

from mindspore import nn

from ms_latte.encoders.vae_blocks import (
    EPS,
    GROUPS,
    DownEncoderBlock2D,
    MidBlockTemporalDecoder,
    UNetMidBlock2D,
    UpBlockTemporalDecoder,
    UpDecoderBlock2D,
)
from ms_latte.encoders.vae_layers import Conv2d, FrameConv3d, GroupNorm
from ms_latte.models.layers import SiLU
from ms_latte.models.precision import Precision


class Encoder(nn.Cell):
    """Pixels to features: x (N, in_channels, H, W) -> (N, out_channels, h, w), h = H // 2 for every block but the
    last."""

    def __init__(
        self,
        in_channels,
        out_channels,
        block_out_channels,
        layers_per_block,
        norm_num_groups=GROUPS,
        mid_block_add_attention=True,
        precision=Precision(),
    ):
        super().__init__()
        first, last = block_out_channels[0], block_out_channels[-1]
        self.conv_in = Conv2d(in_channels, first, 3, stride=1, padding=1, precision=precision)
        self.down_blocks = nn.CellList(
            [
                DownEncoderBlock2D(
                    block_out_channels[max(i - 1, 0)],
                    block_out_channels[i],
                    layers_per_block,
                    i < len(block_out_channels) - 1,
                    norm_num_groups,
                    precision=precision,
                )
                for i in range(len(block_out_channels))
            ]
        )
        self.mid_block = UNetMidBlock2D(last, norm_num_groups, mid_block_add_attention, precision=precision)
        self.conv_norm_out = GroupNorm(norm_num_groups, last, eps=EPS, precision=precision)
        self.conv_act = SiLU(precision=precision)
        self.conv_out = Conv2d(last, out_channels, 3, stride=1, padding=1, precision=precision)

    def construct(self, x):
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))


class Decoder(nn.Cell):
    """Latents to pixels: z (N, in_channels, h, w) -> (N, out_channels, H, W), H = 2h for every block but the last."""

    def __init__(
        self,
        in_channels,
        out_channels,
        block_out_channels,
        layers_per_block,
        norm_num_groups=GROUPS,
        mid_block_add_attention=True,
        precision=Precision(),
    ):
        super().__init__()
        sizes = list(block_out_channels)[::-1]
        self.conv_in = Conv2d(in_channels, sizes[0], 3, stride=1, padding=1, precision=precision)
        self.mid_block = UNetMidBlock2D(
            sizes[0], norm_num_groups, mid_block_add_attention, precision=precision
        )
        self.up_blocks = nn.CellList(
            [
                UpDecoderBlock2D(
                    sizes[max(i - 1, 0)],
                    sizes[i],
                    layers_per_block + 1,
                    i < len(sizes) - 1,
                    norm_num_groups,
                    precision=precision,
                )
                for i in range(len(sizes))
            ]
        )
        self.conv_norm_out = GroupNorm(norm_num_groups, sizes[-1], eps=EPS, precision=precision)
        self.conv_act = SiLU(precision=precision)
        self.conv_out = Conv2d(sizes[-1], out_channels, 3, stride=1, padding=1, precision=precision)

    def construct(self, z):
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))


class TemporalDecoder(nn.Cell):
    """Latents of whole videos to pixels: z (B*F, in_channels, h, w) -> (B*F, out_channels, H, W), num_frames = F."""

    def __init__(
        self, in_channels, out_channels, block_out_channels, layers_per_block, precision=Precision()
    ):
        super().__init__()
        sizes = list(block_out_channels)[::-1]
        self.conv_in = Conv2d(in_channels, sizes[0], 3, stride=1, padding=1, precision=precision)
        self.mid_block = MidBlockTemporalDecoder(sizes[0], layers_per_block, precision=precision)
        self.up_blocks = nn.CellList(
            [
                UpBlockTemporalDecoder(
                    sizes[max(i - 1, 0)],
                    sizes[i],
                    layers_per_block + 1,
                    i < len(sizes) - 1,
                    precision=precision,
                )
                for i in range(len(sizes))
            ]
        )
        self.conv_norm_out = GroupNorm(GROUPS, sizes[-1], eps=EPS, precision=precision)
        self.conv_act = SiLU(precision=precision)
        self.conv_out = Conv2d(sizes[-1], out_channels, 3, stride=1, padding=1, precision=precision)
        self.time_conv_out = FrameConv3d(out_channels, out_channels, 3, precision=precision)

    def construct(self, z, num_frames):
        x = self.mid_block(self.conv_in(z), num_frames)
        for block in self.up_blocks:
            x = block(x, num_frames)
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))  # statistics of single pictures
        return self.time_conv_out(x, num_frames)
