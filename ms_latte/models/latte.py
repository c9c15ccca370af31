# SPDX-License-Identifier: Apache-2.0
"""Latte: unconditional, class-conditional and text-conditional (pooled) video diffusion transformer,
adaLN-Zero.

Source: Vchitect/Latte `models/latte.py` and `models/latte_img.py` (arXiv 2401.03048).
"""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from ms_latte.models.blocks import FinalLayer, TransformerBlock
from ms_latte.models.constants import constant, sincos_1d, sincos_2d
from ms_latte.models.embeddings import LabelEmbedder, PatchProjection, TimestepEmbedder
from ms_latte.models.layers import (
    Linear,
    SiLU,
    TokenLayout,
    add,
    join_frames,
    place,
    regroup_pixels,
    split_frames,
    spread,
    unpatchify,
)
from ms_latte.models.precision import Precision
from ms_latte.pretrained import Pretrained

CONDITIONS = ("none", "class", "text")
PIXEL_ORDERS = ("blocks", "strided")
TEXT_TOKENS, TEXT_WIDTH = 77, 768  # CLIP ViT-L/14 output, flattened


class Latte(nn.Cell, Pretrained):
    """Denoiser on video latents with alternating spatial (even) and temporal (odd) blocks.

    input_size: int or (h, w), latent height and width; condition: "none", "class" or "text" (the originals'
    extras 1, 2 and 78); attention: "math" or "flash"; pixel_order: a patch is a block of pixels ("blocks"), or
    holds pixels input_size / patch_size apart ("strided"), which only weights of mindone's linear patch embedder
    need. pos_embed (1, T, D) and temp_embed (1, F, D) are saved with the weights and not trained. Defaults are
    those of the original. Raises ValueError for arguments that do not fit together.
    """

    def __init__(
        self,
        input_size=32,
        patch_size=2,
        in_channels=4,
        hidden_size=1152,
        depth=28,
        num_heads=16,
        mlp_ratio=4.0,
        num_frames=16,
        class_dropout_prob=0.1,
        num_classes=1000,
        learn_sigma=True,
        condition="none",
        attention="math",
        pixel_order="blocks",
        precision=Precision(),
    ):
        super().__init__()
        if condition not in CONDITIONS:
            raise ValueError(f"condition is {condition!r}; expected one of {', '.join(CONDITIONS)}")
        if pixel_order not in PIXEL_ORDERS:
            raise ValueError(f"pixel_order is {pixel_order!r}; expected one of {', '.join(PIXEL_ORDERS)}")
        if depth % 2:
            raise ValueError(f"depth must be even (spatial and temporal blocks alternate), got {depth}")
        self.input_size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
        if self.input_size[0] % patch_size or self.input_size[1] % patch_size:
            raise ValueError(f"input_size {self.input_size} is not divisible by patch_size {patch_size}")
        self.patch_size, self.in_channels, self.hidden_size = patch_size, in_channels, hidden_size
        self.num_frames, self.condition, self.precision = num_frames, condition, precision
        self.pixel_order = pixel_order
        self.out_channels = in_channels * 2 if learn_sigma else in_channels
        self.grid = (self.input_size[0] // patch_size, self.input_size[1] // patch_size)
        self.stored_sincos = None  # True or False once `check_stored_tables` has looked
        self.config = dict(  # constructor arguments as JSON can hold them; precision is the caller's choice
            input_size=list(self.input_size),
            patch_size=patch_size,
            in_channels=in_channels,
            hidden_size=hidden_size,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            num_frames=num_frames,
            class_dropout_prob=class_dropout_prob,
            num_classes=num_classes,
            learn_sigma=learn_sigma,
            condition=condition,
            attention=attention,
            pixel_order=pixel_order,
        )

        self.x_embedder = PatchProjection(patch_size, in_channels, hidden_size, precision=precision)
        self.t_embedder = TimestepEmbedder(hidden_size, precision=precision)
        if condition == "class":
            self.y_embedder = LabelEmbedder(num_classes, hidden_size, class_dropout_prob, precision=precision)
        if condition == "text":
            self.text_embedding_projection = nn.SequentialCell(
                SiLU(precision=precision), Linear(TEXT_TOKENS * TEXT_WIDTH, hidden_size, precision=precision)
            )
        self.pos_embed = ms.Parameter(
            self._sincos_2d(*self.grid).expand_dims(0).astype(precision.dtype), requires_grad=False
        )
        self.temp_embed = ms.Parameter(
            self._sincos_1d(num_frames).expand_dims(0).astype(precision.dtype), requires_grad=False
        )
        self.blocks = nn.CellList(
            [
                TransformerBlock(hidden_size, num_heads, mlp_ratio, attention, precision=precision)
                for _ in range(depth)
            ]
        )
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels, precision=precision)

    def construct(self, x, t, y=None, text_embedding=None, y_image=None, use_image_num=0, drop_ids=None):
        """Predict noise (and variance) for latents.

        x (N, F+I, C, H, W): F video frames, then I = use_image_num images. t (N,) timesteps. y (N,) labels
        and y_image (N, I) labels of the images, for condition "class"; drop_ids (N,) bool: labels to replace
        by the null label.
        text_embedding (N, 77, 768) for condition "text" -> (N, F+I, out_channels, H, W).
        Raises ValueError for a missing or unexpected argument, or sizes that the patch does not divide.
        """
        N, total, C, H, W = x.shape
        F, p = total - use_image_num, self.patch_size
        self._check_inputs(x.shape, F, y, text_embedding, y_image, use_image_num)
        h, w = H // p, W // p
        space, time = TokenLayout(N, total, h * w, "space"), TokenLayout(N, F, h * w, "time")

        x = x.astype(self.precision.dtype).reshape(N * total, C, H, W)
        if self.pixel_order == "strided":
            x = regroup_pixels(x, p)  # QUIRK(strided_patches)
        x = self.x_embedder(x).reshape(N * total * h * w, self.hidden_size)  # (N*(F+I)*T, D)
        x = add(x, place(self.positions(h, w), space), self.precision)
        c = c_frames = c_final = self.t_embedder(t)  # (N, D)
        if self.condition == "class":
            c = c_frames = c_final = add(c, self.y_embedder(y, drop_ids), self.precision)
            if use_image_num:
                c_frames = c_final = self._conditions_per_frame(t, y, y_image, F, drop_ids)  # (N*(F+I), D)
        if self.condition == "text":
            # QUIRK(text_not_final): the original adds the text to the blocks' condition, not to the final
            # layer's.
            c = c_frames = add(
                c, self.text_embedding_projection(text_embedding.reshape(N, -1)), self.precision
            )
        for i in range(0, len(self.blocks), 2):
            x = self.blocks[i](x, c_frames, space)
            video, images = (x, None) if use_image_num == 0 else split_frames(x, space, F)
            if i == 0:
                video = add(video, place(self.temporal_positions(F), time), self.precision)
            video = self.blocks[i + 1](video, c, time)
            x = video if images is None else join_frames(video, images, space)
        x = self.final_layer(x, c_final)  # (N*(F+I)*T, p*p*out_channels)
        x = unpatchify(x, N * total, h, w, p)
        return x.reshape(N, total, self.out_channels, H, W)

    def forward_with_cfg(self, x, t, y=None, cfg_scale=7.0, text_embedding=None, guided_channels=4):
        """Classifier-free guidance on a doubled batch: conditions are [conditional; null], both halves get
        one noise.

        The first half of x (2N, F, C, H, W) is used for both. guided_channels: 4 (the original: the noise of
        a 4-channel latent; variance stays unguided per half) or None for all channels -> (2N, F,
        out_channels, H, W). Raises ValueError for an odd batch.
        """
        if x.shape[0] % 2:
            raise ValueError(f"forward_with_cfg needs an even batch [conditional; null], got {x.shape[0]}")
        half = x[: x.shape[0] // 2]
        out = self(ops.cat([half, half], axis=0), t, y, text_embedding)
        k = self.out_channels if guided_channels is None else guided_channels
        guided, rest = out[:, :, :k], out[:, :, k:]
        cond, null = guided.chunk(2, axis=0)
        up, step = self.precision.up, self.precision.step
        guided = self.precision.round(up(null) + step(constant(cfg_scale, null) * step(up(cond) - up(null))))
        return ops.cat([ops.cat([guided, guided], axis=0), rest], axis=2)

    def positions(self, height, width):
        """Position table (h * w, D): the stored one at the constructor's size, else the sincos formula.

        Raises ValueError if another size is asked of a model whose stored table is not the sincos one.
        """
        if (height, width) == self.grid:
            return self.pos_embed[0]
        self._require_sincos(f"latent grid {height}x{width} (built for {self.grid[0]}x{self.grid[1]})")
        return self._sincos_2d(height, width)

    def temporal_positions(self, frames):
        """Temporal table (F, D): the first F stored rows, or the sincos formula beyond them; errors as
        `positions`."""
        if frames <= self.num_frames:
            return self.temp_embed[0, :frames]
        self._require_sincos(f"{frames} frames (built for {self.num_frames})")
        return self._sincos_1d(frames)

    def check_stored_tables(self):
        """Set `stored_sincos`: whether both stored tables equal the formula, up to bf16 rounding of a value
        <= 1."""
        stored = (
            (self.pos_embed, self._sincos_2d(*self.grid)),
            (self.temp_embed, self._sincos_1d(self.num_frames)),
        )
        errors = [
            float((table.astype(ms.float32)[0] - formula.astype(ms.float32)).abs().max())
            for table, formula in stored
        ]
        self.stored_sincos = max(errors) <= 2.0**-8
        return self.stored_sincos

    def _require_sincos(self, what):
        if self.stored_sincos is None:
            self.check_stored_tables()
        if self.stored_sincos is None:  # MS: a graph under compilation can neither look nor remember
            raise ValueError(f"{what}: call check_stored_tables() once before the model is compiled for it")
        if not self.stored_sincos:
            raise ValueError(
                f"{what}: the stored position tables are not the sine-cosine ones, so they cannot be extended; "
                "use the size that the model was built for"
            )

    def _sincos_2d(self, height, width):
        return sincos_2d(self.hidden_size, height, width, None, 1.0, self.precision.compute == "fp64")

    def _sincos_1d(self, frames):
        return sincos_1d(self.hidden_size, frames, 1.0, self.precision.compute == "fp64")

    def _conditions_per_frame(self, t, y, y_image, frames, drop_ids):
        """Joint training by class: every frame its own label, (N*(F+I), D)."""
        N, images = y_image.shape
        labels = ops.cat([ops.tile(y.expand_dims(1), (1, frames)), y_image], axis=1).reshape(-1)  # (N*(F+I),)
        if drop_ids is not None:
            drop_ids = ops.tile(drop_ids.expand_dims(1), (1, frames + images)).reshape(-1)
        c = spread(self.t_embedder(t), N * (frames + images))
        return add(c, self.y_embedder(labels, drop_ids), self.precision)

    def _check_inputs(self, shape, frames, y, text_embedding, y_image, use_image_num):
        _, _, C, H, W = shape
        p = self.patch_size
        if self.in_channels != C:
            raise ValueError(f"Latte takes x (N, F, C, H, W) with C = {self.in_channels}, got {tuple(shape)}")
        if frames < 1:
            raise ValueError(f"{use_image_num} images leave no video frame in x {tuple(shape)}")
        if H % p or W % p:
            raise ValueError(f"latent size {H}x{W} is not divisible by patch_size {p}")
        if (self.condition == "class") != (y is not None):
            raise ValueError(
                f"condition is {self.condition!r}, and y is {'missing' if y is None else 'unexpected'}"
            )
        if (self.condition == "text") != (text_embedding is not None):
            state = "missing" if text_embedding is None else "unexpected"
            raise ValueError(f"condition is {self.condition!r}, and text_embedding is {state}")
        if self.condition == "class" and use_image_num and y_image is None:
            raise ValueError("joint images of a class model need y_image (N, use_image_num)")


def init_weights(model, rng):
    """Fill a Latte as the original does: Xavier-uniform linears, zero biases, N(0, 0.02) label table and
    timestep MLP, zeros for every modulation and the final layer (so a fresh model outputs exactly 0).

    rng: numpy Generator. Parameters are drawn in the order of their sorted names, the same in both
    frameworks.
    """
    for name, parameter in sorted(model.parameters_and_names()):
        if name in ("pos_embed", "temp_embed"):
            continue
        shape = tuple(parameter.shape)
        if name.endswith("bias") or "adaLN_modulation" in name or name.startswith("final_layer."):
            value = np.zeros(shape)
        elif name.startswith(("t_embedder.", "y_embedder.")):
            value = rng.normal(0.0, 0.02, shape)
        else:
            fan_out, fan_in = shape[0], int(np.prod(shape[1:]))
            bound = (6.0 / (fan_in + fan_out)) ** 0.5
            value = rng.uniform(-bound, bound, shape)
        parameter.set_data(ms.Tensor(value, parameter.dtype))


SIZES = {
    "XL": (28, 1152, 16),
    "L": (24, 1024, 16),
    "B": (12, 768, 12),
    "S": (12, 384, 6),
}  # depth, width, heads


def _preset(size, patch):
    depth, hidden_size, num_heads = SIZES[size]

    def build(**kwargs):
        preset = dict(depth=depth, hidden_size=hidden_size, num_heads=num_heads, patch_size=patch)
        return Latte(**{**preset, **kwargs})

    build.__name__ = f"Latte_{size}_{patch}"
    return build


Latte_models = {f"Latte-{size}/{patch}": _preset(size, patch) for size in SIZES for patch in (2, 4, 8)}
