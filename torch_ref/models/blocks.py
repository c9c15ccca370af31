# SPDX-License-Identifier: Apache-2.0
"""Transformer blocks and the final layer.

Sources: Vchitect/Latte `models/latte.py` TransformerBlock and FinalLayer (adaLN-Zero); diffusers
`models/attention.py` BasicTransformerBlock and `models/transformers/latte_transformer_3d.py`.
"""

import torch
from torch import nn

from torch_ref.models.attention import Attention, MultiHeadAttention
from torch_ref.models.layers import (
    LayerNorm,
    Linear,
    SiLU,
    TokenLayout,
    add,
    join_frames,
    modulate,
    place,
    residual,
    split_frames,
)
from torch_ref.models.mlp import FeedForward, Mlp
from torch_ref.models.norms import AdaLayerNorm, AdaLayerNormZero, table_modulation
from torch_ref.models.precision import Precision

NORM_TYPES = ("ada_norm_single", "layer_norm", "ada_norm", "ada_norm_zero")


class TransformerBlock(nn.Module):
    """adaLN-Zero block of official Latte; spatial or temporal by the layout it is called with.

    x (tokens, D) with a layout, or (B, N, D); c (R, D): one condition row per sample or per frame -> shape of
    x.
    """

    def __init__(self, hidden_size, num_heads, mlp_ratio=4.0, attention="math", precision=Precision()):
        super().__init__()
        self.precision = precision
        self.norm1 = LayerNorm(hidden_size, eps=1e-6, precision=precision)
        self.attn = Attention(hidden_size, num_heads, attention, precision=precision)
        self.norm2 = LayerNorm(hidden_size, eps=1e-6, precision=precision)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio), precision=precision)
        self.adaLN_modulation = nn.Sequential(
            SiLU(precision=precision), Linear(hidden_size, 6 * hidden_size, precision=precision)
        )

    def forward(self, x, c, layout=None):
        p, shape = self.precision, x.shape
        if layout is None:
            return self.forward(x.reshape(-1, shape[-1]), c, _rows_layout(shape)).reshape(shape)
        modulation = self.adaLN_modulation(c)  # (R, 6*D)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(
            6, dim=1
        )  # (R, D) each
        h = self.attn(modulate(self.norm1(x), shift_msa, scale_msa, p), layout)
        x = residual(x, h, p, gate_msa)
        h = self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp, p))
        return residual(x, h, p, gate_mlp)


class FinalLayer(nn.Module):
    """Last modulation and projection of official Latte: x (tokens, D), c (R, D) -> (tokens, p * p *
    out_channels)."""

    def __init__(self, hidden_size, patch_size, out_channels, precision=Precision()):
        super().__init__()
        self.precision = precision
        self.norm_final = LayerNorm(hidden_size, eps=1e-6, precision=precision)
        self.linear = Linear(hidden_size, patch_size * patch_size * out_channels, precision=precision)
        self.adaLN_modulation = nn.Sequential(
            SiLU(precision=precision), Linear(hidden_size, 2 * hidden_size, precision=precision)
        )

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)  # (R, D) each
        return self.linear(modulate(self.norm_final(x), shift, scale, self.precision))


class BasicTransformerBlock(nn.Module):
    """Block of LatteT2V: self-attention, cross-attention if cross_attention_dim is given, feed-forward.

    norm_type tells what the timestep modulates and how:
      "ada_norm_single"  shift, scale and gate of self-attention and feed-forward: timestep (R, 6 * D), the modulation
        that all blocks share and to which each adds its own table. Cross-attention has no norm before it and no
        gate (PixArt-alpha). All released weights.
      "layer_norm"  nothing.
      "ada_norm"  the norms before both attentions (`AdaLayerNorm`): timestep (R,), num_embeds_ada_norm of them.
      "ada_norm_zero"  as the first, by timestep (R,) and class_labels (R,), num_embeds_ada_norm classes
        (`AdaLayerNormZero`); a plain norm before cross-attention.
    R: one row per sample or per frame. hidden_states (tokens, D) with a layout, or (B, N, D); encoder_hidden_states
    (R', L, cross_attention_dim); attention_mask and encoder_attention_mask: biases as `MultiHeadAttention` takes
    them -> shape of hidden_states.
    Raises ValueError for another norm_type, for one without what it needs, and for what is not built (dropout).
    """

    def __init__(
        self,
        inner_dim,
        num_attention_heads,
        attention_head_dim,
        dropout=0.0,
        cross_attention_dim=None,
        activation_fn="geglu",
        attention_bias=False,
        norm_type="ada_norm_single",
        norm_elementwise_affine=True,
        norm_eps=1e-5,
        enable_flash_attention=False,
        num_embeds_ada_norm=None,
        precision=Precision(),
    ):
        super().__init__()
        if norm_type not in NORM_TYPES:
            raise ValueError(f"norm_type is {norm_type!r}; expected one of {', '.join(NORM_TYPES)}")
        if norm_type in ("ada_norm", "ada_norm_zero") and num_embeds_ada_norm is None:
            raise ValueError(f"norm_type {norm_type!r} needs num_embeds_ada_norm, the size of its embedding")
        self.inner_dim, self.norm_type, self.precision = inner_dim, norm_type, precision
        heads = dict(
            heads=num_attention_heads,
            dim_head=attention_head_dim,
            bias=attention_bias,
            enable_flash_attention=enable_flash_attention,
            precision=precision,
        )
        norm = (inner_dim, norm_eps, norm_elementwise_affine, precision)
        if norm_type == "ada_norm":
            self.norm1 = AdaLayerNorm(inner_dim, num_embeds_ada_norm, precision=precision)
        elif norm_type == "ada_norm_zero":
            self.norm1 = AdaLayerNormZero(inner_dim, num_embeds_ada_norm, precision=precision)
        else:
            self.norm1 = LayerNorm(*norm)
        self.attn1 = MultiHeadAttention(inner_dim, **heads)
        self.attn2 = self.norm2 = self.norm3 = None
        if cross_attention_dim is not None:
            self.attn2 = MultiHeadAttention(inner_dim, cross_attention_dim, **heads)
            if norm_type == "ada_norm":
                self.norm2 = AdaLayerNorm(inner_dim, num_embeds_ada_norm, precision=precision)
            elif norm_type != "ada_norm_single":
                self.norm2 = LayerNorm(*norm)
        if norm_type == "ada_norm_single":
            self.norm2 = LayerNorm(*norm)  # before the feed-forward: the published name
            self.scale_shift_table = nn.Parameter(torch.zeros(6, inner_dim, dtype=precision.dtype))
        else:
            self.norm3 = LayerNorm(*norm)
        self.ff = FeedForward(inner_dim, dropout=dropout, activation_fn=activation_fn, precision=precision)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        encoder_hidden_states=None,
        encoder_attention_mask=None,
        timestep=None,
        layout=None,
        class_labels=None,
    ):
        p, x, single = self.precision, hidden_states, self.norm_type == "ada_norm_single"
        if timestep is None and self.norm_type != "layer_norm":
            raise ValueError(
                "timestep is required: (R, 6 * D) from AdaLayerNormSingle, (R,) for other norm types"
            )
        if class_labels is None and self.norm_type == "ada_norm_zero":
            raise ValueError("norm_type 'ada_norm_zero' needs class_labels (R,)")
        if layout is None:
            shape = x.shape
            layout, x = _rows_layout(shape), x.reshape(-1, shape[-1])
            text = (encoder_hidden_states, encoder_attention_mask)
            return self.forward(x, attention_mask, *text, timestep, layout, class_labels).reshape(shape)
        gate_msa, shift_mlp, scale_mlp, gate_mlp = None, None, None, None
        if single:
            modulation = table_modulation(self.scale_shift_table, timestep, p)
            shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation  # (R, D) each
            h = modulate(self.norm1(x), shift_msa, scale_msa, p)
        elif self.norm_type == "ada_norm_zero":
            h, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.norm1(x, timestep, class_labels)
        else:
            h = self.norm1(x, timestep) if self.norm_type == "ada_norm" else self.norm1(x)
        x = residual(x, self.attn1(h, attention_mask=attention_mask, layout=layout), p, gate_msa)
        if self.attn2 is not None:
            h = x
            if self.norm_type == "ada_norm":
                h = self.norm2(x, timestep)
            elif not single:
                h = self.norm2(x)
            x = residual(x, self.attn2(h, encoder_hidden_states, encoder_attention_mask, layout=layout), p)
        h = self.norm2(x) if single else self.norm3(x)
        if gate_mlp is not None:
            h = modulate(h, shift_mlp, scale_mlp, p)
        return residual(x, self.ff(h), p, gate_mlp)


class TemporalTransformerBlock(BasicTransformerBlock):
    """Block without cross-attention, used over time (`BasicTransformerBlock_` of the MindSpore
    tutorial)."""

    def __init__(
        self,
        inner_dim,
        num_attention_heads,
        attention_head_dim,
        dropout=0.0,
        activation_fn="geglu",
        attention_bias=False,
        norm_type="ada_norm_single",
        norm_elementwise_affine=True,
        norm_eps=1e-5,
        enable_flash_attention=False,
        num_embeds_ada_norm=None,
        precision=Precision(),
    ):
        super().__init__(
            inner_dim,
            num_attention_heads,
            attention_head_dim,
            dropout,
            None,
            activation_fn,
            attention_bias,
            norm_type,
            norm_elementwise_affine,
            norm_eps,
            enable_flash_attention,
            num_embeds_ada_norm,
            precision=precision,
        )


BasicTransformerBlock_ = TemporalTransformerBlock


class LatteT2VBlock(nn.Module):
    """One spatial and one temporal block; images pass the temporal block by.

    block_id: 0 adds temp_pos_embed. temp_pos_embed: array (F, D), positions of the video frames.
    For the call see `latte_t2v_block`. `LatteT2V` uses that function on its own blocks and stores no such
    pair, so that every parameter has one name.
    """

    def __init__(self, block_id, temp_pos_embed, spatial_block, temp_block):
        super().__init__()
        self.block_id, self.precision = block_id, spatial_block.precision
        self.temp_pos_embed = torch.as_tensor(temp_pos_embed).to(self.precision.table_dtype)
        self.spatial_block, self.temp_block = spatial_block, temp_block

    def forward(
        self,
        hidden_states,
        encoder_hidden_states=None,
        encoder_attention_mask=None,
        timestep=None,
        layout=None,
        use_image_num=0,
        enable_temporal_attentions=True,
        class_labels=None,
    ):
        return latte_t2v_block(
            self.spatial_block,
            self.temp_block,
            self.temp_pos_embed if self.block_id == 0 else None,
            hidden_states,
            encoder_hidden_states,
            encoder_attention_mask,
            timestep,
            layout,
            use_image_num,
            enable_temporal_attentions,
            class_labels,
        )


def latte_t2v_block(
    spatial_block,
    temp_block,
    temp_pos_embed,
    hidden_states,
    encoder_hidden_states,
    encoder_attention_mask,
    timestep,
    layout,
    use_image_num=0,
    enable_temporal_attentions=True,
    class_labels=None,
):
    """Attend over space, then the video frames over time.

    hidden_states (B * (F+I) * T, D), layout TokenLayout(B, F+I, T), timestep (B, 6*D), or as the norm type of the
    blocks wants it, and class_labels (B,) likewise, temp_pos_embed (F, D) or None: added to the video frames before
    the temporal block if F > 1 -> (B * (F+I) * T, D).
    The number of images decides, never the training flag: training, evaluation and recompute agree.
    """
    x = spatial_block(
        hidden_states,
        encoder_hidden_states=encoder_hidden_states,
        encoder_attention_mask=encoder_attention_mask,
        timestep=timestep,
        layout=layout,
        class_labels=class_labels,
    )
    if not enable_temporal_attentions:
        return x
    frames = layout.frames - use_image_num
    time = TokenLayout(layout.batch, frames, layout.tokens, "time")
    video, images = (x, None) if use_image_num == 0 else split_frames(x, layout, frames)
    if temp_pos_embed is not None and frames > 1:
        video = add(video, place(temp_pos_embed, time), temp_block.precision)
    video = temp_block(video, timestep=timestep, layout=time, class_labels=class_labels)
    return video if images is None else join_frames(video, images, layout)


def _rows_layout(shape):
    return TokenLayout(shape[0], 1, shape[1], "space")
