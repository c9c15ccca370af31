# SPDX-License-Identifier: Apache-2.0
"""Bugs of the VAEs (`encoders/vae*.py`)."""

from parity.mutants import NUMBERS, PROBE, STATED, gates, mutant

NORM = "self.num_groups, self.eps, num_frames"
DIVIDE = "z / constant(self.scaling_factor, z)"
MIX = "p.round(p.step(p.step(1 - alpha) * p.up(x_spatial)) + p.step(alpha * p.up(x_temporal)))"
KL, TEMPORAL = "vae.AutoencoderKL.decode_video", "vae.AutoencoderKLTemporalDecoder.decode_video"


def _constant(name, value):
    def change():
        from ms_latte.encoders import vae_blocks, vae_coders

        return [(module, name, value) for module in (vae_blocks, vae_coders) if hasattr(module, name)]

    return change


MUTANTS = [
    mutant(
        "vae_scaling_missing",
        "latents decoded without dividing by the scaling factor",
        "vae.AutoencoderKL-decode_video",
        NUMBERS,
        (KL, DIVIDE, "z"),
    ),
    mutant(
        "vae_scaling_inverted",
        "latents multiplied by the scaling factor before decoding",
        "vae.AutoencoderKLTemporalDecoder-decode_video",
        NUMBERS,
        (TEMPORAL, DIVIDE, "z * constant(self.scaling_factor, z)"),
    ),
    mutant(
        "group_norm_eps",
        "group normalisation with the frameworks' default eps of 1e-5",
        ("vae_blocks.ResnetBlock2D", "vae_coders.Encoder"),
        STATED,
        replace=_constant("EPS", 1e-5),
    ),
    mutant(
        "temporal_norm_eps",
        "eps of the pictures, 1e-6, over the frames too",
        "vae_blocks.TemporalResnetBlock",
        STATED,
        replace=_constant("TEMPORAL_EPS", 1e-6),
    ),
    mutant(
        "group_norm_groups",
        "half as many groups as the layer says",
        ("vae_layers.GroupNorm-even", "vae_blocks.ResnetBlock2D"),
        NUMBERS,
        ("vae_layers.GroupNorm.construct", NORM, "self.num_groups // 2, self.eps, num_frames"),
    ),
    mutant(
        "group_norm_of_single_frames",
        "statistics of every frame instead of the video's",
        ("vae_layers.GroupNorm-frames", "vae_blocks.TemporalResnetBlock"),
        NUMBERS,
        ("vae_layers.GroupNorm.construct", NORM, "self.num_groups, self.eps, 1"),
    ),
    mutant(
        "downsampler_symmetric",
        "one row and column of zeros on every side before the convolution of stride 2",
        "vae_blocks.Downsample2D",
        STATED,
        ("vae_blocks.Downsample2D.__init__", "padding=0", "padding=1"),
        ("vae_blocks.Downsample2D.construct", "pad_end(x)", "x"),
    ),
    mutant(
        "downsampler_pads_the_start",
        "the zeros above and on the left instead of below and on the right",
        ("vae_layers.pad_end", "vae_blocks.Downsample2D"),
        NUMBERS,
        ("vae_layers.pad_end", "x, (0, 1, 0, 1)", "x, (1, 0, 1, 0)"),
    ),
    mutant(
        "logvar_not_clamped",
        "the logarithm of the variance not held in [-30, 20]",
        "vae.moments",
        NUMBERS,
        ("vae.moments", "logvar.clamp(*LOGVAR_RANGE)", "logvar"),
    ),
    mutant(
        "logvar_halved_twice",
        "the deviation as exp(logvar / 4)",
        "vae.sample_posterior",
        NUMBERS,
        ("vae.sample_posterior", "0.5 * p.up(logvar)", "0.25 * p.up(logvar)"),
    ),
    mutant(
        "moments_exchanged",
        "mean and logarithm of the variance in the wrong order",
        "vae.moments",
        NUMBERS,
        ("vae.moments", "mean, logvar = x", "logvar, mean = x"),
    ),
    mutant(
        "upsample_tiled",
        "the picture four times instead of every pixel four times",
        ("vae_layers.upsample_nearest", "vae_blocks.Upsample2D"),
        NUMBERS,
        (
            "vae_layers.upsample_nearest",
            "x.repeat_interleave(2, 2).repeat_interleave(2, 3)",
            "ops.tile(x, (1, 1, 2, 2))",
        ),
    ),
    mutant(
        "phases_exchanged",
        "odd and even rows of an upsampled picture exchanged",
        "vae_blocks.Upsample2D",
        NUMBERS,
        ("vae_layers._conv2d_phases", "_in_turn(even, odd, 1)", "_in_turn(odd, even, 1)"),
    ),
    mutant(
        "phases_of_a_transposed_kernel",
        "weights of rows meet the pixels of columns",
        "vae_blocks.Upsample2D",
        NUMBERS,
        (
            "vae_layers._conv2d_phases",
            "weight.reshape(out_channels * C, 9)",
            "weight.permute(0, 1, 3, 2).reshape(out_channels * C, 9)",
        ),
    ),
    mutant(
        "vae_attention_unscaled",
        "the attention of the middle block without its scale",
        "vae_blocks.AttentionBlock",
        STATED,
        ("vae_blocks.AttentionBlock.__init__", "DotProductAttention(channels,", "DotProductAttention(1,"),
    ),
    mutant(
        "vae_attention_without_skip",
        "the attention of the middle block without its residual connection",
        "vae_blocks.AttentionBlock",
        NUMBERS,
        ("vae_blocks.AttentionBlock.construct", "residual(x, h, self.precision)", "h"),
    ),
    mutant(
        "mix_factor_inverted",
        "the mixture of pictures and frames the wrong way round (diffusers switches it for the VAE)",
        ("vae_blocks.AlphaBlender", "vae_blocks.SpatioTemporalResBlock"),
        NUMBERS,
        (
            "vae_blocks.AlphaBlender.construct",
            "(x_spatial)) + p.step(alpha * p.up(x_temporal))",
            "(x_temporal)) + p.step(alpha * p.up(x_spatial))",
        ),
    ),
    mutant(
        "mix_factor_raw",
        "the stored mix factor taken as the weight itself, without the sigmoid",
        "vae_blocks.AlphaBlender",
        NUMBERS,
        ("vae_blocks.AlphaBlender.construct", "sigmoid(p.up(self.mix_factor))", "p.up(self.mix_factor)"),
    ),
    mutant(
        "frames_decoded_alone",
        "the temporal decoder told that every frame is a video of its own",
        "vae.AutoencoderKLTemporalDecoder-decode_video",
        NUMBERS,
        (TEMPORAL, "self.decode(part, part.shape[0])", "self.decode(part, 1)"),
    ),
    mutant(
        "chunks_start_early",
        "every chunk but the first starts one frame early (an overlap taken for a boundary)",
        "vae.AutoencoderKLTemporalDecoder-decode_video",
        NUMBERS,
        (TEMPORAL, "z[b, i : i + chunk]", "z[b, max(i - 1, 0) : max(i - 1, 0) + min(chunk, num_frames - i)]"),
    ),
    mutant(
        "frame_kernel_reversed",
        "the kernel over the frames applied from the last frame to the first",
        "vae_layers.FrameConv3d",
        NUMBERS,
        (
            "vae_layers._conv_frames",
            "weight.reshape(out_channels, C, k)",
            "ops.flip(weight.reshape(out_channels, C, k), (2,))",
        ),
    ),
    mutant(
        "group_statistics_in_one_sum",
        "one float32 sum over a whole group: harmless in small pictures, wrong in large ones",
        "vae_layers.GroupNorm-probe_large",
        gates("G3", "-"),
        (
            "vae_layers._group_mean",
            "mean = reduce_mean(x.reshape(-1, width), -1)\n"
            "    mean = reduce_mean_keep(mean.reshape(rows, -1), -1)",
            "mean = reduce_mean_keep(x, -1)",
        ),
        note="the error, 1e-5, is below a unit of half precision",
    ),
    mutant(
        "group_norm_eps_inside",
        "the group norm adds 1e-5 to its variance, whatever its eps says",
        "vae_layers.GroupNorm-probe_eps",
        PROBE,
        ("vae_layers._group_norm_composed", "constant(eps, x)", "constant(1e-5, x)"),
    ),
    mutant(
        "group_norm_of_squares",
        "variance of a group as the mean square less the squared mean, which cancels far from zero",
        "vae_layers.GroupNorm-probe_mean",
        gates("G3", "-"),
        (
            "vae_layers._group_norm_composed",
            "variance = _group_mean(ops.square(d), num_frames, num_groups, W)",
            "mean = _group_mean(x.reshape(d.shape), num_frames, num_groups, W); variance = _group_mean("
            "ops.square(x.reshape(d.shape)), num_frames, num_groups, W) - ops.square(mean)",
        ),
        note="the error, about 1e-4, is below a unit of half precision",
    ),
]
