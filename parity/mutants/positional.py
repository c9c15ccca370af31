# SPDX-License-Identifier: Apache-2.0
"""Bugs of `models/positional.py`. The tables are float64 in both twins (G1 alone); half precision meets them in the
layers that use them."""

from parity.mutants import NUMBERS, mutant

STEPS = ("positional.timestep_frequencies", "embeddings.timestep_embedding")
TIME = ("positional.get_1d_sincos_pos_embed-scaled", "latte_t2v.LatteT2V-long")

MUTANTS = [
    mutant(
        "rows_before_columns",
        "first half of the width encodes the row (meshgrid with h first)",
        ("positional.get_2d_sincos_pos_embed", "embeddings.PatchEmbed"),
        NUMBERS,
        (
            "positional.get_2d_sincos_pos_embed",
            "_sincos(embed_dim // 2, columns), _sincos(embed_dim // 2, rows)",
            "_sincos(embed_dim // 2, rows), _sincos(embed_dim // 2, columns)",
        ),
    ),
    mutant(
        "grid_column_major",
        "positions of the grid listed column by column",
        ("positional.get_2d_sincos_pos_embed", "embeddings.PatchEmbed-rescaled"),
        NUMBERS,
        (
            "positional.get_2d_sincos_pos_embed",
            "np.repeat(rows, w), np.tile(columns, h)",
            "np.tile(rows, w), np.repeat(columns, h)",
        ),
    ),
    mutant(
        "table_cos_first",
        "position tables as [cos | sin]",
        ("positional.get_2d_sincos_pos_embed", "embeddings.PatchEmbed"),
        NUMBERS,
        ("positional._sincos", "[np.sin(angles), np.cos(angles)]", "[np.cos(angles), np.sin(angles)]"),
    ),
    mutant(
        "table_interleaved",
        "sine and cosine in turn instead of in halves",
        ("positional.get_2d_sincos_pos_embed", "embeddings.PatchEmbed"),
        NUMBERS,
        (
            "positional._sincos",
            "np.concatenate([np.sin(angles), np.cos(angles)], axis=1)",
            "np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(len(angles), -1)",
        ),
    ),
    mutant(
        "table_frequencies_shifted",
        "denominator d/2 - 1 in the frequencies of the tables",
        ("positional.get_2d_sincos_pos_embed", "embeddings.PatchEmbed"),
        NUMBERS,
        ("positional._sincos", "/ (embed_dim / 2)", "/ (embed_dim / 2 - 1)"),
    ),
    mutant(
        "table_base_100",
        "frequencies on base 100 (the rotary base of Open-Sora-Plan 1.1)",
        ("positional.get_2d_sincos_pos_embed", "embeddings.PatchEmbed"),
        NUMBERS,
        ("positional._sincos", "10000.0 **", "100.0 **"),
    ),
    mutant(
        "table_from_one",
        "positions counted from one",
        ("positional.get_1d_sincos_pos_embed", "latte_t2v.LatteT2V-nomask"),
        NUMBERS,
        (
            "positional.get_1d_sincos_pos_embed",
            "np.arange(length, dtype=np.float64)",
            "np.arange(1, length + 1, dtype=np.float64)",
        ),
    ),
    mutant(
        "temporal_scale_multiplied",
        "temporal positions multiplied by their scale",
        TIME,
        NUMBERS,
        ("positional.get_1d_sincos_pos_embed", "/ interpolation_scale", "* interpolation_scale"),
    ),
    mutant(
        "span_ignored",
        "another latent size without rescaling to the span of the table",
        ("positional.get_2d_sincos_pos_embed-rescaled", "embeddings.PatchEmbed-rescaled"),
        NUMBERS,
        ("positional.get_2d_sincos_pos_embed", "(h, w) if base_size is None else _pair(base_size)", "(h, w)"),
    ),
    mutant(
        "span_to_the_last",
        "the grid spans [0, base] with both ends instead of [0, base)",
        ("positional.get_2d_sincos_pos_embed-rescaled", "embeddings.PatchEmbed-rescaled"),
        NUMBERS,
        ("positional.get_2d_sincos_pos_embed", "/ (w / base_w)", "/ ((w - 1) / base_w)"),
    ),
    mutant(
        "interpolation_scale_ignored",
        "positions not divided by interpolation_scale",
        ("positional.get_2d_sincos_pos_embed-rescaled", "embeddings.PatchEmbed-rescaled"),
        NUMBERS,
        ("positional.get_2d_sincos_pos_embed", "/ (h / base_h) / interpolation_scale", "/ (h / base_h)"),
        ("positional.get_2d_sincos_pos_embed", "/ (w / base_w) / interpolation_scale", "/ (w / base_w)"),
    ),
    mutant(
        "timestep_frequencies_shifted",
        "denominator d/2 - 1 in the frequencies of the timestep (downscale_freq_shift 1)",
        STEPS,
        NUMBERS,
        ("positional.timestep_frequencies", "dtype=np.float64) / span)", "dtype=np.float64) / (half - 1))"),
        ("positional.timestep_frequencies", "/ np.float32(span)", "/ np.float32(half - 1)"),
    ),
    mutant(
        "max_period_1000",
        "timestep frequencies down to 1/1000",
        STEPS,
        NUMBERS,
        ("positional.timestep_frequencies", "half, span = ", "max_period = 1000.0; half, span = "),
    ),
    mutant(
        "frequency_shift_ignored",
        "downscale_freq_shift without effect",
        ("positional.timestep_frequencies-shifted", "embeddings.timestep_embedding-shifted"),
        NUMBERS,
        ("positional.timestep_frequencies", ", dim // 2 - downscale_freq_shift", ", dim // 2"),
    ),
]
