# SPDX-License-Identifier: Apache-2.0
"""Bugs of `models/latte.py`: order of blocks, conditions, guidance, tables."""

from parity.mutants import NUMBERS, gates, mutant

NONE, CLASS, GUIDED = "latte.Latte-none", "latte.Latte-class", "latte.Latte-guidance"
FORWARD = "latte.Latte.construct"
GUIDANCE = "latte.Latte.forward_with_cfg"
FORMULA = "up(null) + step(constant(cfg_scale, null) * step(up(cond) - up(null)))"

MUTANTS = [
    mutant(
        "no_temporal_embedding",
        "temporal positions left out",
        NONE,
        NUMBERS,
        (FORWARD, "if i == 0:", "if i < 0:"),
    ),
    mutant(
        "temporal_embedding_every_block",
        "temporal positions added before every temporal block",
        NONE,
        NUMBERS,
        (FORWARD, "if i == 0:", "if True:"),
    ),
    mutant(
        "temporal_embedding_first",
        "temporal positions added before the first spatial block",
        NONE,
        NUMBERS,
        (FORWARD, "if i == 0:", "if i < 0:"),
        (
            FORWARD,
            "for i in range(0, len(self.blocks), 2):",
            "x = add(x, place(self.temporal_positions(F), time), self.precision)\n"
            "    for i in range(0, len(self.blocks), 2):",
        ),
    ),
    mutant(
        "blocks_over_wrong_axis",
        "even blocks attend over time, odd ones over space",
        NONE,
        NUMBERS,
        (FORWARD, "x = self.blocks[i](x, c_frames, space)", "x = self.blocks[i](x, c_frames, time)"),
        (FORWARD, "self.blocks[i + 1](video, c, time)", "self.blocks[i + 1](video, c, space)"),
    ),
    mutant(
        "last_rows_of_the_temporal_table",
        "fewer frames take the end of the temporal table",
        "latte.Latte-fewer_frames",
        NUMBERS,
        ("latte.Latte.temporal_positions", "self.temp_embed[0, :frames]", "self.temp_embed[0, -frames:]"),
    ),
    mutant(
        "stored_positions_ignored",
        "positions computed instead of read from the checkpoint",
        NONE,
        NUMBERS,
        ("latte.Latte.positions", "return self.pos_embed[0]", "pass"),
        ("latte.Latte.positions", "self._require_sincos(", "str("),
    ),
    mutant(
        "resized_positions_transposed",
        "another latent size takes the table with height and width exchanged",
        "latte.Latte-resized",
        NUMBERS,
        (
            "latte.Latte.positions",
            "return self._sincos_2d(height, width)",
            "return self._sincos_2d(width, height)",
        ),
    ),
    mutant(
        "frames_and_channels",
        "latents read as (N, C, F, H, W)",
        NONE,
        NUMBERS,
        (
            FORWARD,
            "x = x.astype(self.precision.dtype).reshape(N * total, C, H, W)",
            "x = x.astype(self.precision.dtype).reshape(N, C, total, H, W).swapaxes(1, 2).reshape(N * total, C, H, W)",
        ),
    ),
    mutant(
        "label_not_in_final_layer",
        "the final layer sees the timestep without the label",
        CLASS,
        NUMBERS,
        (FORWARD, "c = c_frames = c_final = add(c, ", "c = c_frames = add(c, "),
    ),
    mutant(
        "text_in_final_layer",
        "pooled text in the final layer too, where the original leaves it out",
        "latte.Latte-text",
        NUMBERS,
        (FORWARD, "c = c_frames = add(\n", "c = c_frames = c_final = add(\n"),
    ),
    mutant(
        "text_transposed",
        "text flattened channel by channel",
        "latte.Latte-text",
        NUMBERS,
        (FORWARD, "text_embedding.reshape(N, -1)", "text_embedding.swapaxes(1, 2).reshape(N, -1)"),
    ),
    mutant(
        "images_with_label_of_video",
        "joint training: images take the label of the video",
        "latte.Latte-joint_class",
        NUMBERS,
        (
            "latte.Latte._conditions_per_frame",
            "(1, frames)), y_image]",
            "(1, frames)), ops.tile(y.expand_dims(1), (1, images))]",
        ),
    ),
    mutant(
        "video_with_label_per_frame",
        "joint training: temporal blocks see the timestep of another sample",
        "latte.Latte-joint_class",
        NUMBERS,
        (
            "latte.Latte._conditions_per_frame",
            "spread(self.t_embedder(t), N * (frames + images))",
            "ops.tile(self.t_embedder(t), (frames + images, 1))",
        ),
    ),
    mutant(
        "guidance_from_conditional",
        "cond + s (cond - null)",
        GUIDED,
        NUMBERS,
        (GUIDANCE, "self.precision.round(up(null) + step", "self.precision.round(up(cond) + step"),
    ),
    mutant(
        "guidance_halves_exchanged",
        "batch read as [null; cond]",
        GUIDED,
        NUMBERS,
        (GUIDANCE, "cond, null = guided", "null, cond = guided"),
    ),
    mutant(
        "guidance_on_variance",
        "variance guided too",
        GUIDED,
        NUMBERS,
        (GUIDANCE, "self.out_channels if guided_channels is None else guided_channels", "self.out_channels"),
    ),
    mutant(
        "guidance_two_noises",
        "each half keeps its own noise",
        GUIDED,
        NUMBERS,
        (GUIDANCE, "ops.cat([half, half], axis=0)", "x"),
    ),
    mutant(
        "guidance_rest_of_conditional",
        "variance of the first half written to both",
        GUIDED,
        NUMBERS,
        (GUIDANCE, "out[:, :, k:]", "ops.cat([out[: len(half), :, k:]] * 2, axis=0)"),
    ),
    mutant(
        "tables_trained",
        "position tables open to training (mindone sets requires_grad on everything)",
        CLASS,
        gates("G5", "G5"),
        (
            "latte.Latte.__init__",
            "self._sincos_1d(num_frames).expand_dims(0).astype(precision.dtype), requires_grad=False",
            "self._sincos_1d(num_frames).expand_dims(0).astype(precision.dtype)",
        ),
        note="no forward differs",
    ),
]
