# SPDX-License-Identifier: Apache-2.0
"""LatteT2V: text-to-video diffusion transformer on T5 features, adaLN-single (Latte-1, Open-Sora-Plan v1.0).

Sources: Vchitect/Latte `models/latte_t2v.py`; diffusers `models/transformers/latte_transformer_3d.py`;
PKU-YuanGroup/Open-Sora-Plan v1.0 `latte/modeling_latte.py`.
"""

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.common.initializer import initializer

from ms_latte.models.attention import text_bias, text_rows
from ms_latte.models.blocks import (
    BasicTransformerBlock,
    TemporalTransformerBlock,
    latte_t2v_block,
)
from ms_latte.models.constants import sincos_1d
from ms_latte.models.embeddings import AdaLayerNormSingle, CaptionProjection, PatchEmbed
from ms_latte.models.layers import LayerNorm, Linear, TokenLayout, modulate, unpatchify
from ms_latte.models.norms import table_modulation
from ms_latte.models.precision import Precision
from ms_latte.pretrained import Pretrained


class LatteT2V(nn.Cell, Pretrained):
    """Denoiser on video latents, `num_layers` pairs of a spatial and a temporal block.

    sample_size: int or (h, w), latent size that the position table spans. temporal_interpolation_scale:
    divisor of the temporal positions; None takes the rule of Open-Sora-Plan v1.0 and the tutorial,
    max(video_length // 5, 1); diffusers and official checkpoints need 1.0. per_axis_base_size: rescale rows
    and columns each by its own base instead of both by the height's. norm_type, activation_fn and
    num_embeds_ada_norm: see `BasicTransformerBlock`. use_additional_conditions: the net is told the size of the
    frames. Defaults are those of the published classes and describe no released weights: build from a
    configuration. Raises ValueError, by name, for what does not fit or is not built.
    """

    def __init__(
        self,
        num_attention_heads=16,
        attention_head_dim=72,
        in_channels=None,
        out_channels=None,
        num_layers=1,
        dropout=0.0,
        cross_attention_dim=None,
        attention_bias=False,
        sample_size=64,
        patch_size=None,
        activation_fn="geglu",
        num_embeds_ada_norm=None,
        norm_type="ada_norm_single",
        norm_elementwise_affine=True,
        norm_eps=1e-5,
        caption_channels=None,
        video_length=16,
        temporal_interpolation_scale=None,
        per_axis_base_size=False,
        enable_flash_attention=False,
        use_recompute=False,
        use_additional_conditions=False,
        precision=Precision(),
    ):
        super().__init__()
        required = dict(
            in_channels=in_channels,
            patch_size=patch_size,
            caption_channels=caption_channels,
            cross_attention_dim=cross_attention_dim,
        )
        missing = [name for name, value in required.items() if value is None]
        if missing:
            raise ValueError(
                f"LatteT2V needs {', '.join(missing)}: build it from the checkpoint's configuration"
            )
        inner_dim = num_attention_heads * attention_head_dim
        if cross_attention_dim != inner_dim:
            raise ValueError(
                f"cross_attention_dim {cross_attention_dim} differs from num_attention_heads * attention_head_dim = "
                f"{inner_dim}: captions are projected to the width of the net"
            )
        height, width = (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)
        if temporal_interpolation_scale is None:
            temporal_interpolation_scale = max(video_length // 5, 1)
        self.inner_dim, self.patch_size, self.in_channels = inner_dim, patch_size, in_channels
        self.num_attention_heads = num_attention_heads
        self.out_channels = in_channels if out_channels is None else out_channels
        self.video_length, self.temporal_interpolation_scale = (
            video_length,
            float(temporal_interpolation_scale),
        )
        self.norm_type, self.use_additional_conditions = norm_type, use_additional_conditions
        self.use_recompute, self.precision = use_recompute, precision
        self.config = dict(  # constructor arguments as JSON can hold them; precision is the caller's choice
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=self.out_channels,
            num_layers=num_layers,
            dropout=dropout,
            cross_attention_dim=cross_attention_dim,
            attention_bias=attention_bias,
            sample_size=[height, width],
            patch_size=patch_size,
            activation_fn=activation_fn,
            num_embeds_ada_norm=num_embeds_ada_norm,
            norm_type=norm_type,
            norm_elementwise_affine=norm_elementwise_affine,
            norm_eps=norm_eps,
            caption_channels=caption_channels,
            video_length=video_length,
            temporal_interpolation_scale=self.temporal_interpolation_scale,
            per_axis_base_size=per_axis_base_size,
            enable_flash_attention=enable_flash_attention,
            use_recompute=use_recompute,
            use_additional_conditions=use_additional_conditions,
        )

        self.pos_embed = PatchEmbed(
            height,
            width,
            patch_size,
            in_channels,
            inner_dim,
            # QUIRK(height_interpolation): the originals take the scale of both axes from the height.
            interpolation_scale=max(height // 64, 1),
            base_size=(height // patch_size, width // patch_size) if per_axis_base_size else None,
            precision=precision,
        )
        block = dict(
            dropout=dropout,
            activation_fn=activation_fn,
            attention_bias=attention_bias,
            norm_type=norm_type,
            norm_elementwise_affine=norm_elementwise_affine,
            norm_eps=norm_eps,
            enable_flash_attention=enable_flash_attention,
            num_embeds_ada_norm=num_embeds_ada_norm,
            precision=precision,
        )
        heads = (inner_dim, num_attention_heads, attention_head_dim)
        self.transformer_blocks = nn.CellList(
            [
                BasicTransformerBlock(*heads, cross_attention_dim=cross_attention_dim, **block)
                for _ in range(num_layers)
            ]
        )
        self.temporal_transformer_blocks = nn.CellList(
            [TemporalTransformerBlock(*heads, **block) for _ in range(num_layers)]
        )
        self.norm_out = LayerNorm(inner_dim, eps=1e-6, precision=precision)
        self.scale_shift_table = ms.Parameter(initializer("zeros", (2, inner_dim), precision.dtype))
        self.proj_out = Linear(inner_dim, patch_size * patch_size * self.out_channels, precision=precision)
        self.adaln_single = AdaLayerNormSingle(inner_dim, use_additional_conditions, precision=precision)
        self.caption_projection = CaptionProjection(caption_channels, inner_dim, precision=precision)
        if use_recompute:
            for block in list(self.transformer_blocks) + list(self.temporal_transformer_blocks):
                block.recompute()  # MS: a flag of the cell; torch wraps the call

    def construct(
        self,
        hidden_states,
        timestep,
        encoder_hidden_states,
        added_cond_kwargs=None,
        attention_mask=None,
        encoder_attention_mask=None,
        encoder_attention_bias=None,
        use_image_num=0,
        enable_temporal_attentions=True,
        class_labels=None,
    ):
        """Predict noise (and variance) for latents.

        hidden_states (B, C, F+I, H, W): F video frames, then I = use_image_num images; timestep (B,);
        encoder_hidden_states (B, L, caption_channels), or (B, 1+I, L, caption_channels) with images: the
        video's text first; or what `prepare_text` made of it and its mask. encoder_attention_mask: 1 keep / 0
        drop, (B, L), or (B, 1+I, L) with images. encoder_attention_bias: ready-made and added to the logits
        instead, (B, 1, L) or (B*(F+I), 1, L). added_cond_kwargs: resolution and aspect_ratio as
        `CombinedTimestepSizeEmbeddings` takes them; class_labels (B,): for norm_type "ada_norm_zero". ->
        (B, out_channels, F+I, H, W). Raises ValueError for shapes that fit none of these and for attention_mask
        on the latents.
        """
        B, C, total, H, W = hidden_states.shape
        p, precision = self.patch_size, self.precision
        if attention_mask is not None:
            raise ValueError(
                "attention_mask on the latents is refused: the originals never repeat it per frame, so it is wrong for "
                "more than one frame; mask text with encoder_attention_mask"
            )
        if self.in_channels != C or H % p or W % p:
            raise ValueError(
                f"LatteT2V takes hidden_states (B, C, F, H, W) with C = {self.in_channels} and H, W divisible by "
                f"{p}, got {tuple(hidden_states.shape)}"
            )
        if not 0 <= use_image_num < total:
            raise ValueError(f"use_image_num {use_image_num} leaves no video frame of {total}")
        h, w = H // p, W // p
        layout = TokenLayout(B, total, h * w, "space")
        text = encoder_hidden_states
        if not isinstance(text, (tuple, list)):
            masks = (encoder_attention_mask, encoder_attention_bias)
            text = self.prepare_text(text, *masks, use_image_num, total)
        elif encoder_attention_mask is not None or encoder_attention_bias is not None:
            raise ValueError("prepared text holds its mask: give the mask to prepare_text")
        bias = text[-1] if len(text) > len(self.transformer_blocks) else None
        rows = text[0].shape[1] // self.num_attention_heads
        if rows not in (B, B * (1 + use_image_num)):
            raise ValueError(
                f"encoder_hidden_states has {rows} rows of text for {B} samples and {use_image_num} images; expected "
                f"({B}, L, C) or ({B}, {1 + use_image_num}, L, C)"
            )

        x = hidden_states.astype(precision.dtype).permute(0, 2, 1, 3, 4).reshape(B * total, C, H, W)
        x = self.pos_embed(x).reshape(B * total * h * w, self.inner_dim)  # (B*(F+I)*T, D)
        modulation, embedded = self.adaln_single(timestep, added_cond_kwargs, B)  # (B, 6*D), (B, D)
        condition = modulation if self.norm_type == "ada_norm_single" else timestep
        temp_pos_embed = self.temporal_positions(total - use_image_num)  # (F, D)
        for i, spatial_block in enumerate(self.transformer_blocks):
            temp_block = self.temporal_transformer_blocks[i]
            table = temp_pos_embed if i == 0 else None
            flags = (layout, use_image_num, enable_temporal_attentions, class_labels)
            x = latte_t2v_block(spatial_block, temp_block, table, x, text[i], bias, condition, *flags)
        shift, scale = table_modulation(
            self.scale_shift_table, ops.cat([embedded, embedded], axis=1), precision
        )
        x = modulate(self.norm_out(x), shift, scale, precision)
        x = self.proj_out(x)  # (B*(F+I)*T, p*p*out_channels)
        x = unpatchify(x, B * total, h, w, p)
        return x.reshape(B, total, self.out_channels, H, W).permute(0, 2, 1, 3, 4)

    def prepare_text(
        self,
        encoder_hidden_states,
        encoder_attention_mask=None,
        encoder_attention_bias=None,
        use_image_num=0,
        frames=1,
    ):
        """What the net makes of a text, which no timestep changes: the call takes it instead of the text and its mask,
        and returns the same bits.

        Arguments as in the call; frames: F+I, of a bias per frame alone. Returns a tuple: keys and values
        (2, rows * heads, L, head width) of every spatial block in order and, if there is a mask or bias, the bias
        (rows, L). Raises ValueError as the call.
        """
        layout, precision = TokenLayout(encoder_hidden_states.shape[0], frames, 1), self.precision
        bias = text_bias(encoder_attention_mask, encoder_attention_bias, layout, use_image_num, precision)
        text = text_rows(encoder_hidden_states, layout, use_image_num).astype(precision.dtype)
        text = self.caption_projection(text)  # (B*(1+I), L, D)
        prepared = ()
        for spatial_block in self.transformer_blocks:
            prepared = prepared + (spatial_block.attn2.project_text(text),)
        return prepared if bias is None else prepared + (bias,)

    def temporal_positions(self, frames):
        """Temporal table (frames, D): positions divided by `temporal_interpolation_scale`; any number of
        frames."""
        double = self.precision.compute == "fp64"
        return sincos_1d(self.inner_dim, frames, self.temporal_interpolation_scale, double)


def init_weights(model, rng):
    """Fill a LatteT2V as the published classes do: U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights and biases
    (the default of torch), N(0, 1) / sqrt(D) for the modulation tables, N(0, 1) for embeddings, ones and zeros
    for affine norms.

    rng: numpy Generator. Parameters are drawn in the order of their sorted names, the same in both
    frameworks.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in model.parameters_and_names()}
    for name, parameter in sorted(model.parameters_and_names()):
        shape = shapes[name]
        if name.endswith("scale_shift_table"):
            value = rng.normal(0.0, 1.0, shape) / shape[1] ** 0.5
        elif name.endswith(("emb.weight", "embedding_table.weight")):
            value = rng.normal(0.0, 1.0, shape)
        elif name.split(".")[-2].startswith("norm"):
            value = np.ones(shape) if name.endswith("weight") else np.zeros(shape)
        else:
            bound = int(np.prod(shapes[name.rsplit(".", 1)[0] + ".weight"][1:])) ** -0.5
            value = rng.uniform(-bound, bound, shape)
        parameter.set_data(ms.Tensor(value, parameter.dtype))


def LatteT2V_XL_122(**kwargs):
    """LatteT2V of Latte-1 and Open-Sora-Plan: 28 layers, 16 heads of 72, patch 2, T5-XXL captions."""
    preset = dict(
        num_layers=28,
        num_attention_heads=16,
        attention_head_dim=72,
        in_channels=4,
        out_channels=8,
        patch_size=2,
        attention_bias=True,
        cross_attention_dim=1152,
        caption_channels=4096,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        num_embeds_ada_norm=1000,
    )
    return LatteT2V(**{**preset, **kwargs})
