# SPDX-License-Identifier: Apache-2.0
"""The VAEs between pixels and latents: Stable Diffusion's, and the one whose decoder also looks along the frames.

Sources: diffusers `AutoencoderKL` (CompVis ldm; sd-vae-ft-mse and -ema) and `AutoencoderKLTemporalDecoder` (Stable
Video Diffusion; Latte-1's `vae_temporal_decoder`). Pixels are in [-1, 1], both sizes of a latent are 8 times smaller.
"""

import torch
from torch import nn

from torch_ref.encoders.vae_blocks import GROUPS
from torch_ref.encoders.vae_coders import Decoder, Encoder, TemporalDecoder
from torch_ref.encoders.vae_layers import Conv2d
from torch_ref.models.layers import exp
from torch_ref.models.precision import Precision

LOGVAR_RANGE = (-30.0, 20.0)
PUBLISHED = (128, 256, 512, 512)  # block_out_channels of every VAE that Latte was published with


class AutoencoderKL(nn.Module):
    """Stable Diffusion's VAE, a picture at a time; arguments and parameter names are those of diffusers.

    Defaults are the published nets' (diffusers' own build a smaller net). scaling_factor: latents of a denoiser are
    latents of this net times it; `decode_video` divides by it, `encode` and `decode` know nothing of it. sample_size
    is only kept. force_upcast: a float16 net computes in float32, since activations of these decoders may exceed
    65504 (SDXL's do); bfloat16 has the range of float32 and stays. False where a fine-tuned net fits float16.
    Raises ValueError for arguments that do not fit together.
    """

    def __init__(
        self,
        in_channels=3,
        out_channels=3,
        block_out_channels=PUBLISHED,
        layers_per_block=2,
        act_fn="silu",
        latent_channels=4,
        norm_num_groups=GROUPS,
        sample_size=256,
        scaling_factor=0.18215,
        force_upcast=True,
        use_quant_conv=True,
        use_post_quant_conv=True,
        mid_block_add_attention=True,
        precision=Precision(),
    ):
        super().__init__()
        if act_fn != "silu":
            raise ValueError(f"act_fn is {act_fn!r}; expected 'silu', which every published VAE has")
        self.precision = precision = _precision(precision, force_upcast)
        self.scaling_factor = _positive(scaling_factor)
        self.in_channels, self.latent_channels = in_channels, latent_channels
        self.config = dict(  # constructor arguments as JSON can hold them; precision is the caller's choice
            in_channels=in_channels,
            out_channels=out_channels,
            block_out_channels=list(block_out_channels),
            layers_per_block=layers_per_block,
            act_fn=act_fn,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            force_upcast=force_upcast,
            use_quant_conv=use_quant_conv,
            use_post_quant_conv=use_post_quant_conv,
            mid_block_add_attention=mid_block_add_attention,
        )

        inside = (block_out_channels, layers_per_block, norm_num_groups, mid_block_add_attention)
        self.encoder = Encoder(in_channels, 2 * latent_channels, *inside, precision=precision)
        self.decoder = Decoder(latent_channels, out_channels, *inside, precision=precision)
        self.quant_conv = self.post_quant_conv = None
        if use_quant_conv:
            self.quant_conv = Conv2d(
                2 * latent_channels, 2 * latent_channels, 1, stride=1, padding=0, precision=precision
            )
        if use_post_quant_conv:
            self.post_quant_conv = Conv2d(
                latent_channels, latent_channels, 1, stride=1, padding=0, precision=precision
            )

    def forward(self, x, noise=None):
        """Pixels, encoded and decoded: x (N, 3, H, W), noise as in `sample_posterior` or None for the mean."""
        mean, logvar = self.encode(x)
        return self.decode(mean if noise is None else sample_posterior(mean, logvar, noise, self.precision))

    def encode(self, x):
        """The posterior of pictures: x (N, 3, H, W) in [-1, 1] -> mean and logvar, (N, latent_channels, h, w) each.

        A side that 8 does not divide loses its last pixels. Raises ValueError for another shape.
        """
        _check_pixels(x, self.in_channels, len(self.config["block_out_channels"]))
        x = self.encoder(x.to(self.precision.dtype))
        return moments(x if self.quant_conv is None else self.quant_conv(x))

    def decode(self, z):
        """Pixels of latents: z (N, latent_channels, h, w), unscaled -> (N, 3, H, W). Raises ValueError for another
        shape."""
        _check_latents(z, self.latent_channels, 4)
        z = z.to(self.precision.dtype)
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))

    def decode_video(self, latents, chunk=1):
        """Pixels of a denoiser's latents: (B, F, C, h, w), scaled by scaling_factor -> (B, F, 3, H, W).

        chunk: pictures decoded at a time. It costs memory and changes no number. Raises ValueError for another shape
        or a chunk below 1.
        """
        _check_latents(latents, self.latent_channels, 5, chunk)
        z = self.precision.up(latents)
        z = self.precision.round(z / self.scaling_factor)
        z = z.reshape(-1, *z.shape[2:])  # (B*F, C, h, w)
        x = torch.cat([self.decode(z[i : i + chunk]) for i in range(0, z.shape[0], chunk)])
        return x.reshape(*latents.shape[:2], *x.shape[1:])


class AutoencoderKLTemporalDecoder(nn.Module):
    """The VAE of Stable Video Diffusion: encodes pictures, decodes whole videos; names are those of diffusers.

    Arguments as of `AutoencoderKL`, as far as they exist; all normalisations have 32 groups.
    """

    def __init__(
        self,
        in_channels=3,
        out_channels=3,
        block_out_channels=PUBLISHED,
        layers_per_block=2,
        latent_channels=4,
        sample_size=768,
        scaling_factor=0.18215,
        force_upcast=True,
        precision=Precision(),
    ):
        super().__init__()
        self.precision = precision = _precision(precision, force_upcast)
        self.scaling_factor = _positive(scaling_factor)
        self.in_channels, self.latent_channels = in_channels, latent_channels
        self.config = dict(
            in_channels=in_channels,
            out_channels=out_channels,
            block_out_channels=list(block_out_channels),
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            force_upcast=force_upcast,
        )

        inside = (block_out_channels, layers_per_block)
        self.encoder = Encoder(in_channels, 2 * latent_channels, *inside, precision=precision)
        self.decoder = TemporalDecoder(latent_channels, out_channels, *inside, precision=precision)
        self.quant_conv = Conv2d(
            2 * latent_channels, 2 * latent_channels, 1, stride=1, padding=0, precision=precision
        )

    def forward(self, x, noise=None, num_frames=1):
        """Pixels, encoded and decoded: x (B*F, 3, H, W), noise as in `sample_posterior` or None for the mean."""
        mean, logvar = self.encode(x)
        z = mean if noise is None else sample_posterior(mean, logvar, noise, self.precision)
        return self.decode(z, num_frames)

    def encode(self, x):
        """As `AutoencoderKL.encode`: every picture by itself."""
        _check_pixels(x, self.in_channels, len(self.config["block_out_channels"]))
        return moments(self.quant_conv(self.encoder(x.to(self.precision.dtype))))

    def decode(self, z, num_frames):
        """Pixels of latents: z (B*F, latent_channels, h, w), unscaled -> (B*F, 3, H, W), num_frames = F.

        Raises ValueError for another shape.
        """
        _check_latents(z, self.latent_channels, 4, num_frames=num_frames)
        return self.decoder(z.to(self.precision.dtype), num_frames)

    def decode_video(self, latents, chunk=14):
        """Pixels of a denoiser's latents: (B, F, C, h, w), scaled by scaling_factor -> (B, F, 3, H, W).

        chunk: frames of one video decoded together; the last chunk of a video may be shorter. Frames of different
        chunks do not see each other, so it is part of the result: the original's is 14. Chunks never join two videos
        (diffusers' pipeline cuts the frames of all videos as one row, the same for one video). Raises ValueError for
        another shape or a chunk below 1.
        """
        _check_latents(latents, self.latent_channels, 5, chunk)
        B, num_frames = latents.shape[:2]
        z = self.precision.up(latents)
        z = self.precision.round(z / self.scaling_factor)
        x = []
        for b in range(B):
            for i in range(0, num_frames, chunk):
                part = z[b, i : i + chunk]  # (frames, C, h, w)
                x.append(self.decode(part, part.shape[0]))
        x = torch.cat(x)  # (B*F, 3, H, W)
        return x.reshape(B, num_frames, *x.shape[1:])


def moments(x):
    """Split the encoder's result: x (N, 2C, h, w) -> mean and logvar, (N, C, h, w) each, logvar in [-30, 20]."""
    mean, logvar = x.chunk(2, dim=1)
    return mean, logvar.clamp(*LOGVAR_RANGE)


def sample_posterior(mean, logvar, noise, precision=Precision()):
    """A latent of the posterior: mean + exp(logvar / 2) noise; all of one shape, noise standard normal."""
    p = precision
    std = p.step(exp(0.5 * p.up(logvar)))
    return p.round(p.up(mean) + p.step(std * p.up(noise)))


def _precision(precision, force_upcast):
    """float32 instead of float16 where the net asks for it."""
    return Precision("fp32") if force_upcast and precision.compute == "fp16" else precision


def _positive(scaling_factor):
    if not scaling_factor > 0:
        raise ValueError(
            f"scaling_factor is {scaling_factor}; expected a positive number, 0.18215 for Latte's VAEs"
        )
    return scaling_factor


def _check_pixels(x, channels, blocks):
    shape, least = tuple(x.shape), 2 ** (blocks - 1)
    if len(shape) != 4 or shape[1] != channels or min(shape[2:]) < least:
        raise ValueError(
            f"encode takes pixels (N, {channels}, H, W) with sides of at least {least}, got {shape}; remedy: flatten "
            "the frames of a video into N"
        )


def _check_latents(z, channels, ndim, chunk=1, num_frames=1):
    shape = tuple(z.shape)
    axes = f"(B, F, {channels}, h, w)" if ndim == 5 else f"(N, {channels}, h, w)"
    if len(shape) != ndim or shape[-3] != channels or 0 in shape:
        other = "decode" if ndim == 5 else "decode_video"
        raise ValueError(
            f"latents must be {axes}, got {shape}; remedy: {other} takes the other number of axes"
        )
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected a number of frames, 1 or more")
    if num_frames < 1 or shape[0] % num_frames:
        raise ValueError(
            f"{shape[0]} latents are no whole number of videos of num_frames {num_frames}; remedy: pass (B * F, C, h, "
            "w) with num_frames F"
        )
