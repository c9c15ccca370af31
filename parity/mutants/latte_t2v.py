# SPDX-License-Identifier: Apache-2.0
"""Bugs of `models/latte_t2v.py`: masks, axes, scales of positions, the final modulation."""

from parity.mutants import NUMBERS, STATED, gates, mutant

PLAIN, LONG = "latte_t2v.LatteT2V-nomask", "latte_t2v.LatteT2V-long"
FORWARD, PREPARE = "latte_t2v.LatteT2V.construct", "latte_t2v.LatteT2V.prepare_text"

MUTANTS = [
    mutant(
        "channels_as_frames",
        "latents (B, C, F, H, W) reshaped without the transpose",
        PLAIN,
        NUMBERS,
        (FORWARD, "permute(0, 2, 1, 3, 4).reshape(B * total, C, H, W)", "reshape(B * total, C, H, W)"),
    ),
    mutant(
        "output_frames_as_channels",
        "result reshaped to (B, C, F, H, W) without the transpose",
        PLAIN,
        NUMBERS,
        (
            FORWARD,
            "x.reshape(B, total, self.out_channels, H, W).permute(0, 2, 1, 3, 4)",
            "x.reshape(B, self.out_channels, total, H, W)",
        ),
    ),
    mutant(
        "height_and_width",
        "grid of the result with height and width exchanged",
        PLAIN,
        NUMBERS,
        (FORWARD, "unpatchify(x, B * total, h, w, p)", "unpatchify(x, B * total, w, h, p)"),
    ),
    mutant(
        "t2v_no_temporal_embedding",
        "temporal positions left out",
        PLAIN,
        NUMBERS,
        (FORWARD, "temp_pos_embed if i == 0 else None", "None"),
    ),
    mutant(
        "t2v_temporal_embedding_every_block",
        "temporal positions added before every temporal block",
        PLAIN,
        NUMBERS,
        (FORWARD, "temp_pos_embed if i == 0 else None", "temp_pos_embed"),
    ),
    mutant(
        "temporal_scale_ignored",
        "temporal positions without their scale (diffusers' rule on Open-Sora-Plan weights)",
        (LONG, "latte_t2v.LatteT2V-probe_frames"),
        gates("G1 G2 G3", "G2 G3"),
        ("latte_t2v.LatteT2V.temporal_positions", "self.temporal_interpolation_scale", "1.0"),
    ),
    mutant(
        "temporal_scale_of_v11",
        "the temporal scale of Open-Sora-Plan 1.1, video_length // 16",
        (LONG, "latte_t2v.LatteT2V-probe_frames"),
        gates("G1 G2 G3", "G2 G3"),
        ("latte_t2v.LatteT2V.__init__", "max(video_length // 5, 1)", "max(video_length // 16, 1)"),
    ),
    mutant(
        "interpolation_from_width",
        "scale of the spatial positions taken from the width",
        "latte_t2v.LatteT2V-interpolated",
        gates("G0 G1 G2", "G0 G2"),
        ("latte_t2v.LatteT2V.__init__", "max(height // 64, 1)", "max(width // 64, 1)"),
    ),
    mutant(
        "modulation_at_the_end",
        "the final modulation from the six vectors of the blocks",
        PLAIN,
        NUMBERS,
        (FORWARD, "ops.cat([embedded, embedded], axis=1)", "modulation[:, : 2 * self.inner_dim]"),
    ),
    mutant(
        "final_table_scale_first",
        "the final table read as (scale, shift)",
        PLAIN,
        NUMBERS,
        (FORWARD, "shift, scale = table_modulation", "scale, shift = table_modulation"),
    ),
    mutant(
        "final_norm_eps_of_blocks",
        "the last norm built with the eps of the configuration instead of 1e-6",
        "latte_t2v.LatteT2V-affine",
        gates("G0 G1", "G0"),
        ("latte_t2v.LatteT2V.__init__", "LayerNorm(inner_dim, eps=1e-6", "LayerNorm(inner_dim, eps=norm_eps"),
    ),
    mutant(
        "final_norm_missing",
        "the last modulation without its norm",
        PLAIN,
        STATED,
        (FORWARD, "modulate(self.norm_out(x), ", "modulate(x, "),
    ),
    mutant(
        "temporal_blocks_shared",
        "the first temporal block used in every layer",
        PLAIN,
        STATED,
        (FORWARD, "self.temporal_transformer_blocks[i]", "self.temporal_transformer_blocks[0]"),
    ),
    mutant(
        "affine_norms_ignored",
        "norm_elementwise_affine without effect",
        "latte_t2v.LatteT2V-affine",
        STATED,
        (
            "latte_t2v.LatteT2V.__init__",
            "super().__init__()",
            "super().__init__(); norm_elementwise_affine = False",
        ),
    ),
    mutant(
        "attention_bias_ignored",
        "attention_bias=False without effect",
        "latte_t2v.LatteT2V-affine",
        STATED,
        ("latte_t2v.LatteT2V.__init__", "super().__init__()", "super().__init__(); attention_bias = True"),
    ),
    mutant(
        "temporal_switch_ignored",
        "temporal blocks run although they are switched off",
        "latte_t2v.LatteT2V-spatial_only",
        STATED,
        (FORWARD, "use_image_num, enable_temporal_attentions,", "use_image_num, True,"),
    ),
    mutant(
        "text_of_first_layer",
        "keys and values of the first layer read by all layers",
        PLAIN,
        NUMBERS,
        (FORWARD, "x, text[i], bias", "x, text[0], bias"),
    ),
    mutant(
        "text_projected_once",
        "text prepared with the weights of the first layer for all layers",
        "latte_t2v.LatteT2V-text",
        STATED,
        (PREPARE, "spatial_block.attn2.project", "self.transformer_blocks[0].attn2.project"),
    ),
    mutant(
        "prepared_without_mask",
        "prepared text without its mask",
        "latte_t2v.LatteT2V-mask2d",
        NUMBERS,
        (PREPARE, "return prepared if bias is None else prepared + (bias,)", "return prepared"),
    ),
]
