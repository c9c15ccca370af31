# SPDX-License-Identifier: Apache-2.0
"""Embeddings of latents, timesteps, labels and captions.

Sources: Vchitect/Latte `models/latte.py` (TimestepEmbedder, LabelEmbedder, x_embedder) and diffusers
`models/embeddings.py` (PatchEmbed, PixArtAlphaCombinedTimestepSizeEmbeddings, PixArtAlphaTextProjection),
`models/normalization.py` (AdaLayerNormSingle).
"""

from mindspore import nn, ops

from ms_latte.models.constants import frequencies, sincos_2d
from ms_latte.models.layers import (
    GELU,
    Embedding,
    LayerNorm,
    Linear,
    PatchConv,
    SiLU,
    TokenLayout,
    add,
    place,
)
from ms_latte.models.precision import Precision


def timestep_embedding(timesteps, dim, precision=Precision(), downscale_freq_shift=0):
    """Sinusoid of the timesteps: (B,) integers or floats -> (B, dim), [cos | sin], one zero appended if dim
    is odd.

    Angles, cosine and sine are float32 (float64 under the fp64 policy); the result is rounded once. Source:
    OpenAI GLIDE `timestep_embedding`; equal to diffusers `get_timestep_embedding(flip_sin_to_cos=True)` with the
    same downscale_freq_shift.
    """
    omega = frequencies(dim, precision.compute == "fp64", downscale_freq_shift)  # (dim//2,)
    angles = ops.cast(timesteps, precision.table_dtype).expand_dims(1) * omega.expand_dims(0)  # (B, dim//2)
    x = ops.cat([ops.cos(angles), ops.sin(angles)], axis=1)
    if dim % 2:
        x = ops.cat([x, ops.zeros_like(x[:, :1])], axis=1)
    return precision.round(x)


class PatchProjection(nn.Cell):
    """Latents to tokens without positions: (B, C, H, W) -> (B, T, D). `Latte.x_embedder`; positions are the
    model's."""

    def __init__(self, patch_size, in_channels, embed_dim, precision=Precision()):
        super().__init__()
        self.proj = PatchConv(in_channels, embed_dim, patch_size, precision=precision)

    def construct(self, latent):
        return self.proj(latent)


class PatchEmbed(nn.Cell):
    """Latents to tokens with sine-cosine positions: (B, C, H, W) -> (B, T, D).

    height, width: latent size that the table spans; another size is rescaled into the same span, non-square
    included. base_size: patches that the table spans on each axis; None takes both from the height, as the
    originals do. The table is computed, never saved. Raises ValueError for flatten=False, which has no use
    with positions.
    """

    def __init__(
        self,
        height=224,
        width=224,
        patch_size=16,
        in_channels=3,
        embed_dim=768,
        layer_norm=False,
        flatten=True,
        bias=True,
        interpolation_scale=1,
        base_size=None,
        precision=Precision(),
    ):
        super().__init__()
        if not flatten:
            raise ValueError(
                "PatchEmbed(flatten=False) is not supported: positions are added to flat tokens (B, T, D)"
            )
        self.height, self.width, self.patch_size, self.embed_dim = height, width, patch_size, embed_dim
        # QUIRK(height_base): the originals take the base of both axes from the height; released weights were
        # trained so.
        self.base_size = height // patch_size if base_size is None else base_size
        self.interpolation_scale, self.precision = interpolation_scale, precision
        self.proj = PatchConv(in_channels, embed_dim, patch_size, bias=bias, precision=precision)
        self.norm = LayerNorm(embed_dim, eps=1e-6, precision=precision) if layer_norm else None

    def construct(self, latent):
        B, _, H, W = latent.shape
        h, w = H // self.patch_size, W // self.patch_size
        x = self.proj(latent)  # (B, T, D)
        if self.norm is not None:
            x = self.norm(x)
        x = x.reshape(B * h * w, self.embed_dim)
        table = self.positions(h, w)  # (T, D)
        x = add(x, place(table, TokenLayout(B, 1, h * w, "space")), self.precision)
        return x.reshape(B, h * w, self.embed_dim)

    def positions(self, height, width):
        """Position table (h * w, D) of a grid of h x w patches."""
        double = self.precision.compute == "fp64"
        return sincos_2d(self.embed_dim, height, width, self.base_size, self.interpolation_scale, double)

    def extend_repr(self):
        return f"base_size={self.base_size}, interpolation_scale={self.interpolation_scale}"


class TimestepEmbedder(nn.Cell):
    """Sinusoid, Linear, SiLU, Linear: (N,) -> (N, hidden_size). `Latte.t_embedder`."""

    def __init__(self, hidden_size, frequency_embedding_size=256, precision=Precision()):
        super().__init__()
        self.frequency_embedding_size, self.precision = frequency_embedding_size, precision
        self.mlp = nn.SequentialCell(
            Linear(frequency_embedding_size, hidden_size, precision=precision),
            SiLU(precision=precision),
            Linear(hidden_size, hidden_size, precision=precision),
        )

    def construct(self, t):
        return self.mlp(timestep_embedding(t, self.frequency_embedding_size, self.precision))


class LabelEmbedder(nn.Cell):
    """Class labels to vectors: (N,) -> (N, hidden_size); the last row, `num_classes`, is the null label.

    drop_ids (N,) bool or None: True replaces the label by the null label (label drop of classifier-free
    guidance); the caller draws it. The null row exists only if dropout_prob > 0. Raises ValueError for
    drop_ids without one.
    """

    def __init__(self, num_classes, hidden_size, dropout_prob, precision=Precision()):
        super().__init__()
        self.num_classes, self.dropout_prob = num_classes, dropout_prob
        self.embedding_table = Embedding(num_classes + (dropout_prob > 0), hidden_size, precision=precision)

    def construct(self, labels, drop_ids=None):
        if drop_ids is not None:
            if not self.dropout_prob > 0:
                raise ValueError("drop_ids needs a null label: build the model with class_dropout_prob > 0")
            labels = ops.select(drop_ids, ops.full_like(labels, self.num_classes), labels)
        return self.embedding_table(labels)

    def extend_repr(self):
        return f"num_classes={self.num_classes}, dropout_prob={self.dropout_prob}"


class TimestepEmbedding(nn.Cell):
    """Linear, SiLU, Linear: sinusoid (B, in_channels) -> (B, time_embed_dim)."""

    def __init__(self, in_channels, time_embed_dim, precision=Precision()):
        super().__init__()
        self.linear_1 = Linear(in_channels, time_embed_dim, precision=precision)
        self.act = SiLU(precision=precision)
        self.linear_2 = Linear(time_embed_dim, time_embed_dim, precision=precision)

    def construct(self, sample):
        return self.linear_2(self.act(self.linear_1(sample)))


class CombinedTimestepSizeEmbeddings(nn.Cell):
    """Timestep, and with `use_additional_conditions` the size of the frames: (B,) -> (B, embedding_dim).

    resolution (R, 2), height and width in pixels, and aspect_ratio (R, 1), height over width, integers or floats:
    R rows serve B samples, repeated as a whole, as guidance stacks its halves. size_emb_dim: a third of
    embedding_dim. batch_size and hidden_dtype keep the call of the originals: the timesteps tell the first, the
    result is always in the type of `precision`. Raises ValueError for conditions without embedders, embedders
    without conditions, and widths or rows that do not fit.
    """

    def __init__(self, embedding_dim, size_emb_dim, use_additional_conditions=False, precision=Precision()):
        super().__init__()
        if use_additional_conditions and 3 * size_emb_dim != embedding_dim:
            raise ValueError(
                f"size_emb_dim {size_emb_dim} must be a third of embedding_dim {embedding_dim}: height, width and "
                "aspect ratio fill it side by side"
            )
        self.use_additional_conditions, self.precision = use_additional_conditions, precision
        self.timestep_embedder = TimestepEmbedding(256, embedding_dim, precision=precision)
        if use_additional_conditions:
            self.resolution_embedder = TimestepEmbedding(256, size_emb_dim, precision=precision)
            self.aspect_ratio_embedder = TimestepEmbedding(256, size_emb_dim, precision=precision)

    def construct(self, timestep, resolution=None, aspect_ratio=None, batch_size=None, hidden_dtype=None):
        embedded = self.timestep_embedder(timestep_embedding(timestep, 256, self.precision))
        if not self.use_additional_conditions:
            if resolution is not None or aspect_ratio is not None:
                raise ValueError(
                    "resolution and aspect_ratio were given, but use_additional_conditions is False"
                )
            return embedded
        if resolution is None or aspect_ratio is None:
            raise ValueError(
                "use_additional_conditions needs added_cond_kwargs with resolution (B, 2) and aspect_ratio (B, 1)"
            )
        B = timestep.shape[0]
        of_resolution = self._sizes(self.resolution_embedder, resolution, 2, B)  # (B, 2*size_emb_dim)
        of_ratio = self._sizes(self.aspect_ratio_embedder, aspect_ratio, 1, B)  # (B, size_emb_dim)
        return add(embedded, ops.cat([of_resolution, of_ratio], axis=1), self.precision)

    def _sizes(self, embedder, size, count, B):
        R = size.shape[0]
        if size.ndim != 2 or size.shape[1] != count or B % R:
            raise ValueError(
                f"size conditions of shape {tuple(size.shape)} for {B} samples; expected resolution ({B}, 2) and "
                f"aspect_ratio ({B}, 1), or fewer rows that divide {B}"
            )
        embedded = embedder(timestep_embedding(size.reshape(-1), 256, self.precision)).reshape(R, -1)
        return ops.tile(embedded, (B // R, 1))


class CombinedTimestepLabelEmbeddings(nn.Cell):
    """Timestep plus class: timestep (B,), class_labels (B,) -> (B, embedding_dim); num_classes is the null label."""

    def __init__(self, num_classes, embedding_dim, class_dropout_prob=0.1, precision=Precision()):
        super().__init__()
        self.precision = precision
        self.timestep_embedder = TimestepEmbedding(256, embedding_dim, precision=precision)
        self.class_embedder = LabelEmbedder(
            num_classes, embedding_dim, class_dropout_prob, precision=precision
        )

    def construct(self, timestep, class_labels):
        # QUIRK(label_sinusoid): diffusers stretches the frequencies of this sinusoid by 128/127, of no other.
        sinusoid = timestep_embedding(timestep, 256, self.precision, downscale_freq_shift=1)
        return add(self.timestep_embedder(sinusoid), self.class_embedder(class_labels), self.precision)


class AdaLayerNormSingle(nn.Cell):
    """adaLN-single: timestep (B,) -> modulation of all blocks (B, 6 * embedding_dim), embedded timestep (B,
    D).

    Source: PixArt-alpha section 2.3; diffusers `AdaLayerNormSingle`.
    """

    def __init__(self, embedding_dim, use_additional_conditions=False, precision=Precision()):
        super().__init__()
        self.emb = CombinedTimestepSizeEmbeddings(
            embedding_dim, embedding_dim // 3, use_additional_conditions, precision=precision
        )
        self.silu = SiLU(precision=precision)
        self.linear = Linear(embedding_dim, 6 * embedding_dim, precision=precision)

    def construct(self, timestep, added_cond_kwargs=None, batch_size=None, hidden_dtype=None):
        conditions = added_cond_kwargs or {"resolution": None, "aspect_ratio": None}
        embedded = self.emb(
            timestep, conditions["resolution"], conditions["aspect_ratio"], batch_size, hidden_dtype
        )
        return self.linear(self.silu(embedded)), embedded


class CaptionProjection(nn.Cell):
    """Text features to the width of the net: (..., in_features) -> (..., hidden_size); Linear, tanh GELU,
    Linear.

    No token dropout: replacing captions by the empty one belongs to the data side.
    """

    def __init__(self, in_features, hidden_size, precision=Precision()):
        super().__init__()
        self.linear_1 = Linear(in_features, hidden_size, precision=precision)
        self.act_1 = GELU("tanh", precision=precision)
        self.linear_2 = Linear(hidden_size, hidden_size, precision=precision)

    def construct(self, caption):
        return self.linear_2(self.act_1(self.linear_1(caption)))
