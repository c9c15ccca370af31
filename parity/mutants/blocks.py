# SPDX-License-Identifier: Apache-2.0
"""Bugs of `models/blocks.py`: wiring of a block, order of the modulation, images and positions in joint runs."""

from parity.mutants import NUMBERS, STATED, gates, mutant

ZERO = ("blocks.TransformerBlock-space",)
SINGLE = ("blocks.BasicTransformerBlock-cross",)
ORDER = gates("G1 G2 G3", "G2 G3")
CHUNKS = "shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation"


def _stopped_gradient():
    from mindspore import ops

    from ms_latte.models import blocks

    right = blocks.modulate

    def stopped(x, shift, scale, precision):
        return right(x, ops.stop_gradient(shift), scale, precision)

    return [(blocks, "modulate", stopped)]


MUTANTS = [
    mutant(
        "chunks_gate_before_scale",
        "adaLN-Zero read as (shift, gate, scale)",
        (*ZERO, "blocks.TransformerBlock-probe_chunks"),
        ORDER,
        (
            "blocks.TransformerBlock.construct",
            "shift_msa, scale_msa, gate_msa, shift_mlp",
            "shift_msa, gate_msa, scale_msa, shift_mlp",
        ),
    ),
    mutant(
        "chunks_scale_before_shift",
        "adaLN-Zero of the feed-forward read as (scale, shift, gate)",
        (*ZERO, "blocks.TransformerBlock-probe_chunks"),
        ORDER,
        (
            "blocks.TransformerBlock.construct",
            "gate_msa, shift_mlp, scale_mlp, gate_mlp = ",
            "gate_msa, scale_mlp, shift_mlp, gate_mlp = ",
        ),
    ),
    mutant(
        "chunks_feed_forward_first",
        "adaLN-single read with the feed-forward's triple first",
        (*SINGLE, "blocks.BasicTransformerBlock-probe_chunks"),
        ORDER,
        (
            "blocks.BasicTransformerBlock.construct",
            CHUNKS,
            "shift_mlp, scale_mlp, gate_mlp, shift_msa, scale_msa, gate_msa = modulation",
        ),
    ),
    mutant(
        "final_scale_before_shift",
        "the final layer reads (scale, shift)",
        "blocks.FinalLayer",
        NUMBERS,
        ("blocks.FinalLayer.construct", "shift, scale = self", "scale, shift = self"),
    ),
    mutant(
        "final_eps",
        "the final norm alone built with eps 1e-5",
        "blocks.FinalLayer-probe_small",
        gates("G0 G1 G3", "G0 G3"),
        ("blocks.FinalLayer.__init__", "eps=1e-6", "eps=1e-5"),
    ),
    mutant(
        "final_without_norm",
        "the final layer modulates the stream without its norm",
        "blocks.FinalLayer",
        STATED,
        ("blocks.FinalLayer.construct", "modulate(self.norm_final(x), ", "modulate(x, "),
    ),
    mutant(
        "block_eps",
        "the norms of a block built with torch's default eps 1e-5",
        "blocks.TransformerBlock-probe_small",
        gates("G0 G1 G3", "G0 G3"),
        (
            "blocks.TransformerBlock.__init__",
            "self.norm1 = LayerNorm(hidden_size, eps=1e-6",
            "self.norm1 = LayerNorm(hidden_size, eps=1e-5",
        ),
    ),
    mutant(
        "gate_of_attention_missing",
        "self-attention added without its gate",
        ZERO,
        NUMBERS,
        ("blocks.TransformerBlock.construct", "residual(x, h, p, gate_msa)", "residual(x, h, p)"),
    ),
    mutant(
        "gates_exchanged",
        "attention and feed-forward use each other's gate",
        SINGLE,
        NUMBERS,
        (
            "blocks.BasicTransformerBlock.construct",
            "layout=layout), p, gate_msa)",
            "layout=layout), p, gate_mlp)",
        ),
        (
            "blocks.BasicTransformerBlock.construct",
            "return residual(x, self.ff(h), p, gate_mlp)",
            "return residual(x, self.ff(h), p, gate_msa)",
        ),
    ),
    mutant(
        "residual_after_norm",
        "the residual branch starts behind the norm",
        ZERO,
        NUMBERS,
        (
            "blocks.TransformerBlock.construct",
            "h = self.attn(modulate(self.norm1(x), ",
            "x = self.norm1(x); h = self.attn(modulate(x, ",
        ),
    ),
    mutant(
        "residual_missing",
        "attention replaces the stream instead of adding to it",
        ZERO,
        NUMBERS,
        (
            "blocks.TransformerBlock.construct",
            "residual(x, h, p, gate_msa)",
            "residual(0 * x, h, p, gate_msa)",
        ),
    ),
    mutant(
        "parallel_branches",
        "the feed-forward reads the stream before the attention was added",
        ZERO,
        NUMBERS,
        (
            "blocks.TransformerBlock.construct",
            "p, shape = self.precision, x.shape",
            "p, shape, before = self.precision, x.shape, x",
        ),
        ("blocks.TransformerBlock.construct", "modulate(self.norm2(x), ", "modulate(self.norm2(before), "),
    ),
    mutant(
        "cross_attention_missing",
        "cross-attention run and not added",
        SINGLE,
        NUMBERS,
        (
            "blocks.BasicTransformerBlock.construct",
            "x = residual(x, self.attn2",
            "_ = residual(x, self.attn2",
        ),
    ),
    mutant(
        "cross_attention_gated",
        "cross-attention behind the gate of the self-attention",
        SINGLE,
        NUMBERS,
        (
            "blocks.BasicTransformerBlock.construct",
            "encoder_attention_mask, layout=layout), p)",
            "encoder_attention_mask, layout=layout), p, gate_msa)",
        ),
    ),
    mutant(
        "cross_attention_normed",
        "a norm before cross-attention, which adaLN-single has not",
        SINGLE,
        STATED,
        (
            "blocks.BasicTransformerBlock.construct",
            "elif not single:",
            "else:",
        ),
    ),
    mutant(
        "cross_attention_first",
        "cross-attention reads the stream before the self-attention was added",
        SINGLE,
        NUMBERS,
        (
            "blocks.BasicTransformerBlock.construct",
            "x = residual(x, self.attn1(",
            "before = x; x = residual(x, self.attn1(",
        ),
        ("blocks.BasicTransformerBlock.construct", "h = x\n", "h = before\n"),
    ),
    mutant(
        "text_mask_on_self_attention",
        "the text's mask left out of cross-attention",
        SINGLE,
        NUMBERS,
        (
            "blocks.BasicTransformerBlock.construct",
            "encoder_hidden_states, encoder_attention_mask, layout=layout)",
            "encoder_hidden_states, None, layout=layout)",
        ),
    ),
    mutant(
        "temporal_layout_forgotten",
        "the temporal block called with the spatial layout",
        "blocks.latte_t2v_block",
        NUMBERS,
        ("blocks.latte_t2v_block", 'layout.tokens, "time")', 'layout.tokens, "space")'),
    ),
    mutant(
        "images_over_time",
        "images take part in temporal attention (the evaluation branch of the originals)",
        "blocks.latte_t2v_block",
        NUMBERS,
        ("blocks.latte_t2v_block", "frames = layout.frames - use_image_num", "frames = layout.frames"),
        ("blocks.latte_t2v_block", "(x, None) if use_image_num == 0 else", "(x, None) if True else"),
    ),
    mutant(
        "joint_without_positions",
        "no temporal positions when images are present (the training branch of the originals)",
        "blocks.LatteT2VBlock",
        NUMBERS,
        (
            "blocks.latte_t2v_block",
            "temp_pos_embed is not None and frames > 1",
            "temp_pos_embed is not None and use_image_num == 0",
        ),
    ),
    mutant(
        "one_frame_with_positions",
        "temporal positions added to a single frame",
        "latte_t2v.LatteT2V-one_frame",
        NUMBERS,
        ("blocks.latte_t2v_block", "frames > 1", "frames > 0"),
    ),
    mutant(
        "positions_after_time",
        "temporal positions added behind the temporal block",
        "blocks.LatteT2VBlock",
        NUMBERS,
        ("blocks.latte_t2v_block", "video = add(video, place", "_ = add(video, place"),
        (
            "blocks.latte_t2v_block",
            "video = temp_block(video, timestep=timestep, layout=time, class_labels=class_labels)",
            "video = temp_block(video, timestep=timestep, layout=time, class_labels=class_labels)\n"
            "    video = add(video, place(temp_pos_embed, time), temp_block.precision)",
        ),
    ),
    mutant(
        "temporal_block_skipped",
        "temporal block run and not used",
        "blocks.latte_t2v_block",
        NUMBERS,
        ("blocks.latte_t2v_block", "video = temp_block(", "_ = temp_block("),
    ),
    mutant(
        "text_timestep_of_first_sample",
        "the first sample's timestep used for the whole batch",
        SINGLE,
        NUMBERS,
        (
            "blocks.BasicTransformerBlock.construct",
            "table_modulation(self.scale_shift_table, timestep, p)",
            "table_modulation(self.scale_shift_table, timestep[:1], p)",
        ),
    ),
    mutant(
        "stopped_gradient",
        "the gradient of every shift is stopped",
        "latte.Latte-class",
        gates("G5", "G5"),
        replace=_stopped_gradient,
        note="no forward differs",
    ),
    mutant(
        "layer_norm_modulated",
        "cross-attention of a block with plain norms reads the stream without its norm",
        "blocks.BasicTransformerBlock-layer_norm",
        STATED,
        ("blocks.BasicTransformerBlock.construct", "elif not single:", "elif False:"),
    ),
    mutant(
        "ada_norm_second_norm_of_first",
        "cross-attention behind the norm of the self-attention",
        "blocks.BasicTransformerBlock-ada_norm",
        STATED,
        ("blocks.BasicTransformerBlock.construct", "self.norm2(x, timestep)", "self.norm1(x, timestep)"),
    ),
    mutant(
        "ada_zero_feed_forward_unmodulated",
        "adaLN-Zero modulates the self-attention alone",
        "blocks.BasicTransformerBlock-ada_norm_zero",
        NUMBERS,
        ("blocks.BasicTransformerBlock.construct", "if gate_mlp is not None:", "if single:"),
    ),
    mutant(
        "ada_zero_shift_scale_exchanged",
        "adaLN-Zero's vectors of the feed-forward taken as (gate, scale, shift, gate)",
        "blocks.BasicTransformerBlock-ada_norm_zero",
        NUMBERS,
        (
            "blocks.BasicTransformerBlock.construct",
            "h, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.norm1",
            "h, gate_msa, scale_mlp, shift_mlp, gate_mlp = self.norm1",
        ),
    ),
]
