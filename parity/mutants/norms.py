# SPDX-License-Identifier: Apache-2.0
"""Bugs of `models/norms.py`: order of what a timestep modulates, whose timestep, and the eps of its norms."""

from parity.mutants import NUMBERS, gates, mutant

ADA, ZERO = "norms.AdaLayerNorm.construct", "norms.AdaLayerNormZero.construct"
SMALL = gates("G0 G1 G3", "G0 G3")

MUTANTS = [
    mutant(
        "adaln_scale_shift",
        "AdaLayerNorm reads (shift, scale) where the source has (scale, shift)",
        "norms.AdaLayerNorm",
        NUMBERS,
        (ADA, "scale, shift = modulation", "shift, scale = modulation"),
    ),
    mutant(
        "adaln_timestep_of_first_sample",
        "the first sample's timestep used for the whole batch",
        "norms.AdaLayerNorm-rows",
        NUMBERS,
        (ADA, "self.emb(timestep.reshape(-1))", "self.emb(timestep.reshape(-1)[:1])"),
    ),
    mutant(
        "ada_norm_eps",
        "AdaLayerNorm built with eps 1e-6",
        "norms.AdaLayerNorm-probe_small",
        SMALL,
        ("norms.AdaLayerNorm.__init__", "eps=norm_eps", "eps=1e-6"),
    ),
    mutant(
        "ada_zero_eps",
        "AdaLayerNormZero built with torch's default eps 1e-5",
        "norms.AdaLayerNormZero-probe_small",
        SMALL,
        ("norms.AdaLayerNormZero.__init__", "eps=1e-6", "eps=1e-5"),
    ),
    mutant(
        "ada_zero_chunks",
        "AdaLayerNormZero reads (scale, shift) of the attention",
        "norms.AdaLayerNormZero",
        NUMBERS,
        (ZERO, "shift_msa, scale_msa, gate_msa, shift_mlp", "scale_msa, shift_msa, gate_msa, shift_mlp"),
    ),
    mutant(
        "ada_zero_class_ignored",
        "AdaLayerNormZero with the null label for every class",
        "norms.AdaLayerNormZero",
        NUMBERS,
        (ZERO, "class_labels)))", "0 * class_labels + self.emb.class_embedder.num_classes)))"),
    ),
    mutant(
        "chunks_interleaved",
        "six values per channel instead of six vectors",
        "norms.table_modulation",
        NUMBERS,
        (
            "norms.table_modulation",
            "+ precision.up(timestep)  # (R, k*D)",
            "+ precision.up(timestep).reshape(-1, D, k).swapaxes(1, 2).reshape(-1, k * D)",
        ),
    ),
    mutant(
        "table_ignored",
        "adaLN-single without the block's own table",
        "norms.table_modulation",
        NUMBERS,
        (
            "norms.table_modulation",
            "precision.up(table).reshape(1, k * D)",
            "0 * precision.up(table).reshape(1, k * D)",
        ),
    ),
]
