# SPDX-License-Identifier: Apache-2.0
"""Bugs of `models/embeddings.py`: timesteps, labels, patches with positions, captions."""

from parity.mutants import NUMBERS, PROBE, STATED, assign, gates, mutant

STEPS = "embeddings.timestep_embedding"
FRACTIONS = "embeddings.timestep_embedding-float_odd"
RESCALED = "embeddings.PatchEmbed-rescaled"
DROPPED = "embeddings.LabelEmbedder-dropped"
SIZES, LABELS = (
    "embeddings.CombinedTimestepSizeEmbeddings-sizes",
    "embeddings.CombinedTimestepLabelEmbeddings",
)
CONDITIONS = "embeddings.CombinedTimestepSizeEmbeddings.construct"
SIZES_OF = "embeddings.CombinedTimestepSizeEmbeddings._sizes"
ANGLES = ("embeddings.timestep_embedding", "ops.cast(timesteps, precision.table_dtype)")

MUTANTS = [
    mutant(
        "cos_sin_order",
        "timestep sinusoid as [sin | cos]",
        ("embeddings.timestep_embedding-probe_zero", STEPS),
        gates("G1 G2 G3", "G2 G3"),
        (
            "embeddings.timestep_embedding",
            "[ops.cos(angles), ops.sin(angles)]",
            "[ops.sin(angles), ops.cos(angles)]",
        ),
    ),
    mutant(
        "timestep_integer",
        "fractional timesteps cut to integers",
        "embeddings.timestep_embedding-probe_fraction",
        PROBE,
        (
            ANGLES[0],
            ANGLES[1],
            'ops.cast(ops.cast(timesteps, __import__("mindspore").int32), precision.table_dtype)',
        ),
    ),
    mutant(
        "timestep_bf16",
        "timesteps passed through bf16: 999 becomes 1000",
        STEPS,
        NUMBERS,
        (
            ANGLES[0],
            ANGLES[1],
            'ops.cast(ops.cast(timesteps, __import__("mindspore").bfloat16), precision.table_dtype)',
        ),
    ),
    mutant(
        "angles_half",
        "angles rounded to float16 before sine and cosine",
        STEPS,
        NUMBERS,
        (
            "embeddings.timestep_embedding",
            "omega.expand_dims(0)  # (B, dim//2)",
            "omega.expand_dims(0)\n"
            '    angles = ops.cast(ops.cast(angles, __import__("mindspore").float16), angles.dtype)',
        ),
    ),
    mutant(
        "timestep_of_thousand",
        "timesteps scaled to [0, 1)",
        STEPS,
        NUMBERS,
        (ANGLES[0], ANGLES[1], "(ops.cast(timesteps, precision.table_dtype) / 1000)"),
    ),
    mutant(
        "timestep_from_one",
        "timesteps counted from one",
        STEPS,
        NUMBERS,
        (ANGLES[0], ANGLES[1], "(ops.cast(timesteps, precision.table_dtype) + 1)"),
    ),
    mutant(
        "odd_column_in_front",
        "the zero of an odd width in front instead of behind",
        FRACTIONS,
        NUMBERS,
        ("embeddings.timestep_embedding", "[x, ops.zeros_like(x[:, :1])]", "[ops.zeros_like(x[:, :1]), x]"),
    ),
    mutant(
        "base_from_each_axis",
        "position grid rescaled by each axis' own base (released weights: the height's for both)",
        RESCALED,
        NUMBERS,
        (
            "embeddings.PatchEmbed.positions",
            "self.base_size",
            "(self.height // self.patch_size, self.width // self.patch_size)",
        ),
    ),
    mutant(
        "base_from_width",
        "position grid built with the base of the width",
        RESCALED,
        gates("G0 G1 G2", "G0 G2"),
        (
            "embeddings.PatchEmbed.__init__",
            "height // patch_size if base_size is None",
            "width // patch_size if base_size is None",
        ),
    ),
    mutant(
        "square_table",
        "the table of a square grid of as many tokens (tutorial)",
        "embeddings.PatchEmbed-probe_square",
        PROBE,
        (
            "embeddings.PatchEmbed.positions",
            "height, width, self.base_size",
            "int((height * width) ** 0.5), int((height * width) ** 0.5), self.base_size",
        ),
    ),
    mutant(
        "positions_bf16",
        "position table held in bf16",
        ("embeddings.PatchEmbed-probe_quiet", "embeddings.PatchEmbed"),
        gates("G1 G3", "G3", "-"),
        (
            "embeddings.PatchEmbed.construct",
            "place(table, ",
            'place(table.astype(__import__("mindspore").bfloat16).astype(table.dtype), ',
        ),
        note="one rounding more in bf16: within twice the control's error",
    ),
    mutant(
        "positions_before_norm",
        "positions added before the norm of the tokens",
        RESCALED,
        NUMBERS,
        ("embeddings.PatchEmbed.construct", "x = self.norm(x)", "pass"),
        (
            "embeddings.PatchEmbed.construct",
            "return x.reshape(B, h * w, self.embed_dim)",
            "return self.norm(x.reshape(B, h * w, self.embed_dim))",
        ),
    ),
    mutant(
        "positions_missing",
        "patches without positions",
        "embeddings.PatchEmbed",
        NUMBERS,
        (
            "embeddings.PatchEmbed.construct",
            'x = add(x, place(table, TokenLayout(B, 1, h * w, "space")), self.precision)',
            "pass",
        ),
    ),
    mutant(
        "null_label_first",
        "dropped labels become class 0 instead of the null row",
        DROPPED,
        NUMBERS,
        (
            "embeddings.LabelEmbedder.construct",
            "ops.full_like(labels, self.num_classes)",
            "ops.zeros_like(labels)",
        ),
    ),
    mutant(
        "null_label_last_class",
        "dropped labels become the last class",
        DROPPED,
        NUMBERS,
        ("embeddings.LabelEmbedder.construct", "self.num_classes)", "self.num_classes - 1)"),
    ),
    mutant(
        "drop_inverted",
        "labels dropped where they should be kept",
        DROPPED,
        NUMBERS,
        ("embeddings.LabelEmbedder.construct", "ops.select(drop_ids, ", "ops.select(~drop_ids, "),
    ),
    mutant(
        "drop_ignored",
        "label drop without effect",
        DROPPED,
        NUMBERS,
        ("embeddings.LabelEmbedder.construct", "labels = ops.select", "_ = ops.select"),
    ),
    mutant(
        "embedded_after_silu",
        "adaLN-single returns the activated embedding to the final modulation",
        "embeddings.AdaLayerNormSingle",
        NUMBERS,
        (
            "embeddings.AdaLayerNormSingle.construct",
            "return self.linear(self.silu(embedded)), embedded",
            "embedded = self.silu(embedded); return self.linear(embedded), embedded",
        ),
    ),
    mutant(
        "modulation_without_silu",
        "adaLN-single without the activation before its linear layer",
        "embeddings.AdaLayerNormSingle",
        gates("G0", "G0"),
        (
            "embeddings.AdaLayerNormSingle.construct",
            "self.linear(self.silu(embedded))",
            "self.linear(embedded)",
        ),
    ),
    mutant(
        "caption_erf",
        "caption projection in the erf form of GELU",
        "embeddings.CaptionProjection",
        gates("G0 G1 G2", "G0"),
        change=assign("GELU", "approximate", "none"),
    ),
    mutant(
        "caption_activation_last",
        "caption projection activated after its second layer",
        "embeddings.CaptionProjection",
        gates("G0 G1 G2", "G0 G2"),
        (
            "embeddings.CaptionProjection.construct",
            "self.linear_2(self.act_1(self.linear_1(caption)))",
            "self.act_1(self.linear_2(self.linear_1(caption)))",
        ),
    ),
    mutant(
        "sizes_exchanged",
        "resolution and aspect ratio behind the timestep in the other order",
        SIZES,
        NUMBERS,
        (CONDITIONS, "[of_resolution, of_ratio]", "[of_ratio, of_resolution]"),
    ),
    mutant(
        "sizes_width_first",
        "resolution read as width and height",
        SIZES,
        NUMBERS,
        (SIZES_OF, "timestep_embedding(size.reshape(-1)", "timestep_embedding(size[:, ::-1].reshape(-1)"),
    ),
    mutant(
        "sizes_flattened_by_column",
        "sizes of all samples flattened column by column",
        SIZES,
        NUMBERS,
        (
            SIZES_OF,
            "timestep_embedding(size.reshape(-1)",
            "timestep_embedding(size.swapaxes(0, 1).reshape(-1)",
        ),
    ),
    mutant(
        "sizes_repeated_in_runs",
        "size conditions of a doubled batch repeated row by row instead of as a whole",
        SIZES,
        NUMBERS,
        (SIZES_OF, "ops.tile(embedded, (B // R, 1))", "ops.repeat_interleave(embedded, B // R, 0)"),
    ),
    mutant(
        "sizes_truncated",
        "size conditions cut to integers: the aspect ratio becomes 0",
        SIZES,
        NUMBERS,
        (
            SIZES_OF,
            "timestep_embedding(size.reshape(-1)",
            'timestep_embedding(size.astype(__import__("mindspore").int32).reshape(-1)',
        ),
    ),
    mutant(
        "ratio_of_resolution_embedder",
        "one embedder for resolution and aspect ratio",
        SIZES,
        STATED,
        (CONDITIONS, "self._sizes(self.aspect_ratio_embedder", "self._sizes(self.resolution_embedder"),
    ),
    mutant(
        "label_sinusoid_unstretched",
        "timestep beside a class with the frequencies of all other sinusoids",
        LABELS,
        NUMBERS,
        (
            "embeddings.CombinedTimestepLabelEmbeddings.construct",
            "downscale_freq_shift=1",
            "downscale_freq_shift=0",
        ),
    ),
    mutant(
        "label_missing",
        "class embedded and not added",
        LABELS,
        NUMBERS,
        (
            "embeddings.CombinedTimestepLabelEmbeddings.construct",
            "self.class_embedder(class_labels)",
            "0 * self.class_embedder(class_labels)",
        ),
    ),
]
