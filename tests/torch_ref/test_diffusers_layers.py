# SPDX-License-Identifier: Apache-2.0
"""The reference layers against those of diffusers, in float32 and, where theirs can, in float64.

Theirs computes sinusoids in float32 always and keeps position tables in float32: those are compared in float32, and
in float64 with their table or sinusoid fed to both.
"""

import numpy as np
import pytest
import torch
from diffusers.models import attention as their_attention
from diffusers.models import embeddings as their_embeddings
from diffusers.models import normalization as their_normalization
from diffusers.models.attention_processor import Attention as TheirAttention

from parity.harness.weights import random_state
from tests.helpers import normal, relative_l2
from torch_ref.models import attention, blocks, embeddings, mlp, norms, positional
from torch_ref.models.layers import TokenLayout
from torch_ref.models.precision import Precision

TOLERANCE = {"fp32": 1e-6, "fp64": 1e-12}  # a few units in the last place, several sums deep
GRADIENTS = {"fp32": 1e-5, "fp64": 1e-11}  # the same through the backward pass
DTYPE = {"fp32": torch.float32, "fp64": torch.float64}
D, HEADS, L = 48, 3, 7

both = pytest.mark.parametrize("precision", ["fp32", "fp64"])


def same_weights(ours, theirs, precision):
    """Seeded weights under equal names into both, strict both ways."""
    state = random_state({name: tuple(p.shape) for name, p in theirs.named_parameters()}, seed=3)
    state = {name: torch.from_numpy(value) for name, value in state.items()}
    ours.load_state_dict(state, strict=True)
    theirs.load_state_dict(state, strict=True)
    return ours.eval(), theirs.to(DTYPE[precision]).eval()


def tensor(*shape, precision, seed=0, scale=1.0):
    return torch.from_numpy(normal(*shape, seed=seed, scale=scale)).to(DTYPE[precision])


# --- attention


@both
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("masked", [False, True], ids=["open", "masked"])
@torch.no_grad()
def test_self_attention(precision, bias, masked):
    ours = attention.MultiHeadAttention(
        D, heads=HEADS, dim_head=16, bias=bias, precision=Precision(precision)
    )
    theirs = TheirAttention(D, heads=HEADS, dim_head=16, bias=bias)
    ours, theirs = same_weights(ours, theirs, precision)
    x = tensor(2, 5, D, precision=precision)
    mask = tensor(2, 1, 5, precision=precision, seed=1, scale=2.0) if masked else None
    expected = theirs(x, attention_mask=mask)
    assert relative_l2(ours(x, attention_mask=mask), expected) <= TOLERANCE[precision]


@both
@pytest.mark.parametrize("masked", [False, True], ids=["open", "masked"])
@pytest.mark.parametrize("flash", [False, True], ids=["math", "flash"])
@torch.no_grad()
def test_cross_attention(precision, masked, flash):
    ours = attention.MultiHeadAttention(
        D, 20, HEADS, 24, bias=True, enable_flash_attention=flash, precision=Precision(precision)
    )
    theirs = TheirAttention(D, cross_attention_dim=20, heads=HEADS, dim_head=24, bias=True)
    ours, theirs = same_weights(ours, theirs, precision)
    x, text = tensor(2, 5, D, precision=precision), tensor(2, L, 20, precision=precision, seed=1)
    mask = tensor(2, 1, L, precision=precision, seed=2, scale=2.0) if masked else None
    expected = theirs(x, text, attention_mask=mask)
    assert relative_l2(ours(x, text, mask), expected) <= TOLERANCE[precision]


@both
@pytest.mark.parametrize("rows", ["sample", "image"])
@pytest.mark.parametrize("bias_rows", ["none", "text", "frame"])
@torch.no_grad()
def test_cross_attention_repeats_text_in_runs(precision, rows, bias_rows):
    """Two samples of four frames; text per sample, or one for two video frames and one for each of two images."""
    ours = attention.MultiHeadAttention(D, 20, HEADS, 16, bias=True, precision=Precision(precision))
    theirs = TheirAttention(D, cross_attention_dim=20, heads=HEADS, dim_head=16, bias=True)
    ours, theirs = same_weights(ours, theirs, precision)
    # row of the text that each frame of each sample attends to
    index = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1] if rows == "sample" else [0, 0, 1, 2, 3, 3, 4, 5])
    text = tensor(int(index[-1]) + 1, L, 20, precision=precision, seed=1)
    x = tensor(8 * 5, D, precision=precision)
    bias = their_bias = None
    if bias_rows == "text":
        bias = tensor(text.shape[0], 1, L, precision=precision, seed=2, scale=2.0)
        their_bias = bias[index]
    if bias_rows == "frame":
        bias = their_bias = tensor(8, 1, L, precision=precision, seed=2, scale=2.0)
    expected = theirs(x.reshape(8, 5, D), text[index], attention_mask=their_bias).reshape(40, D)
    got = ours(x, text, bias, layout=TokenLayout(2, 4, 5))
    assert relative_l2(got, expected) <= TOLERANCE[precision]


# --- feed-forward, blocks


@both
@pytest.mark.parametrize("activation", ["gelu-approximate", "gelu", "geglu"])
@torch.no_grad()
def test_feed_forward(precision, activation):
    ours = mlp.FeedForward(D, mult=3, activation_fn=activation, precision=Precision(precision))
    theirs = their_attention.FeedForward(D, mult=3, activation_fn=activation)
    ours, theirs = same_weights(ours, theirs, precision)
    x = tensor(2, 5, D, precision=precision, scale=2.0)
    assert relative_l2(ours(x), theirs(x)) <= TOLERANCE[precision]


@both
@pytest.mark.parametrize("affine", [False, True], ids=["bare", "affine"])
@pytest.mark.parametrize("kind", ["spatial", "temporal"])
def test_block(precision, affine, kind):
    """Values, and gradients of every parameter and input."""
    shared = dict(
        activation_fn="gelu-approximate",
        attention_bias=True,
        norm_type="ada_norm_single",
        norm_elementwise_affine=affine,
        norm_eps=1e-6,
    )
    if kind == "spatial":
        ours = blocks.BasicTransformerBlock(
            D, HEADS, 16, cross_attention_dim=20, **shared, precision=Precision(precision)
        )
    else:
        ours = blocks.BasicTransformerBlock_(D, HEADS, 16, **shared, precision=Precision(precision))
    theirs = their_attention.BasicTransformerBlock(
        D, HEADS, 16, cross_attention_dim=20 if kind == "spatial" else None, **shared
    )
    ours, theirs = same_weights(ours, theirs, precision)
    x, text = tensor(4, 5, D, precision=precision), tensor(4, L, 20, precision=precision, seed=1)
    t = tensor(4, 6 * D, precision=precision, seed=2)
    bias = tensor(4, 1, L, precision=precision, seed=3, scale=2.0)
    weight = tensor(4, 5, D, precision=precision, seed=4)
    found = []
    for block in (ours, theirs):
        leaves = {"x": x.clone().requires_grad_(), "timestep": t.clone().requires_grad_()}
        cross = {}
        if kind == "spatial":
            leaves["text"] = text.clone().requires_grad_()
            cross = dict(encoder_hidden_states=leaves["text"], encoder_attention_mask=bias)
        out = block(leaves["x"], timestep=leaves["timestep"], **cross)
        (out * weight).sum().backward()
        gradients = {name: leaf.grad for name, leaf in (dict(block.named_parameters()) | leaves).items()}
        found.append((out.detach(), gradients))
    (got, got_gradients), (expected, expected_gradients) = found
    assert relative_l2(got, expected) <= TOLERANCE[precision]
    assert got_gradients.keys() == expected_gradients.keys()
    for name, value in expected_gradients.items():
        # A key bias moves all logits of a query alike: its gradient is zero but for rounding, so the error is
        # measured against the query bias of the same attention.
        scale = expected_gradients[name.replace("to_k.bias", "to_q.bias")].norm()
        assert (got_gradients[name] - value).norm() <= GRADIENTS[precision] * scale, name


NORM_CASES = {  # norm type -> what both blocks are told, precisions that their sinusoid has
    "layer_norm": (dict(), ["fp32", "fp64"]),
    "ada_norm": (dict(timestep=torch.tensor(4)), ["fp32", "fp64"]),
    "ada_norm_zero": (
        dict(timestep=torch.tensor([0, 7, 4, 90]), class_labels=torch.tensor([3, 9, 0, 10])),
        ["fp32"],
    ),
}


@pytest.mark.parametrize("kind", ["spatial", "temporal"])
@pytest.mark.parametrize(
    ("norm_type", "precision"), [(name, kind) for name, (_, kinds) in NORM_CASES.items() for kind in kinds]
)
@torch.no_grad()
def test_block_of_other_norm_types(norm_type, precision, kind):
    told, _ = NORM_CASES[norm_type]
    cross = 20 if kind == "spatial" else None
    shared = dict(activation_fn="geglu", attention_bias=True, norm_type=norm_type, norm_eps=1e-4)
    shared |= dict(num_embeds_ada_norm=10)
    if kind == "spatial":
        ours = blocks.BasicTransformerBlock(
            D, HEADS, 16, cross_attention_dim=cross, **shared, precision=Precision(precision)
        )
    else:
        ours = blocks.TemporalTransformerBlock(D, HEADS, 16, **shared, precision=Precision(precision))
    theirs = their_attention.BasicTransformerBlock(D, HEADS, 16, cross_attention_dim=cross, **shared)
    ours, theirs = same_weights(ours, theirs, precision)
    x, text = tensor(4, 5, D, precision=precision), tensor(4, L, 20, precision=precision, seed=1)
    named = dict(encoder_hidden_states=text) if cross else {}
    expected = theirs(x, **named, **told)
    assert relative_l2(ours(x, **named, **told), expected) <= TOLERANCE[precision]
    if norm_type == "ada_norm":  # theirs knows one timestep for all samples; ours also one for each
        t = torch.tensor([4, 0, 9, 4])
        each = [
            theirs(x[i : i + 1], timestep=t[i], **{n: v[i : i + 1] for n, v in named.items()})
            for i in range(4)
        ]
        assert relative_l2(ours(x, timestep=t, **named), torch.cat(each)) <= TOLERANCE[precision]


# --- embeddings


PATCH_CASES = {
    "built": (dict(height=8, width=8), (8, 8)),
    "wide": (dict(height=8, width=8), (8, 12)),
    "tall": (dict(height=8, width=8), (10, 6)),
    "interpolated": (dict(height=8, width=8, interpolation_scale=2), (12, 6)),
    "layer_norm": (dict(height=8, width=8, layer_norm=True), (8, 12)),
    "no_bias": (dict(height=8, width=8, bias=False), (8, 8)),
    "odd_latent": (dict(height=8, width=8), (9, 11)),
    "not_square": (dict(height=8, width=12), (12, 8)),
}


@both
@pytest.mark.parametrize("case", PATCH_CASES)
@torch.no_grad()
def test_patch_embed(precision, case):
    arguments, (height, width) = PATCH_CASES[case]
    arguments = dict(patch_size=2, in_channels=4, embed_dim=D) | arguments
    ours = embeddings.PatchEmbed(**arguments, precision=Precision(precision))
    theirs = their_embeddings.PatchEmbed(**arguments)
    ours, theirs = same_weights(ours, theirs, precision)
    if precision == "fp64":  # their table is float32: both sides take it
        their_table = their_embeddings.get_2d_sincos_pos_embed(
            D,
            (height // 2, width // 2),
            base_size=theirs.base_size,
            interpolation_scale=theirs.interpolation_scale,
            output_type="pt",
        )
        ours.positions = lambda h, w: their_table.float().double()
    latent = tensor(3, 4, height, width, precision=precision)
    assert relative_l2(ours(latent), theirs(latent)) <= TOLERANCE[precision]


@pytest.mark.parametrize("dim", [256, 21])
@pytest.mark.parametrize("t", [[0, 1, 500, 999], [0.0, 0.25, 497.75, 999.5]], ids=["int", "float"])
def test_timestep_embedding(dim, t):
    """float32 only: theirs has no other."""
    t = torch.tensor(t)
    expected = their_embeddings.get_timestep_embedding(t, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    got = embeddings.timestep_embedding(t, dim)
    assert got.dtype == torch.float32
    # torch's float32 exp misses the correctly rounded frequency by one unit in the last place (<= 6e-8) for 2 of
    # 128; the angle carries that times t, cosine and sine add one rounding of their own.
    assert ((got - expected).abs() <= 6e-8 * t[:, None] + 2e-7).all()


def test_timestep_embedding_in_float64_is_the_formula():
    t = np.array([0.0, 3.0, 999.0])
    omega = np.exp(-np.log(10000.0) * np.arange(128) / 128)
    expected = np.concatenate([np.cos(t[:, None] * omega), np.sin(t[:, None] * omega)], axis=1)
    got = embeddings.timestep_embedding(torch.from_numpy(t), 256, Precision("fp64"))
    assert relative_l2(got, expected) <= 1e-12  # float64, angles up to 999


@pytest.mark.parametrize("length", [1, 3, 16])
def test_1d_table(length):
    expected = their_embeddings.get_1d_sincos_pos_embed_from_grid(
        D, torch.arange(length).unsqueeze(1), output_type="pt"
    )
    got = positional.get_1d_sincos_pos_embed(D, length)
    assert relative_l2(got, expected) <= 1e-12  # float64 on both sides: integer positions are exact


def test_1d_table_with_a_scale():
    expected = their_embeddings.get_1d_sincos_pos_embed_from_grid(
        D, torch.arange(11, dtype=torch.float64) / 3, output_type="pt"
    )
    assert relative_l2(positional.get_1d_sincos_pos_embed(D, 11, 3.0), expected) <= 1e-12  # float64


@pytest.mark.parametrize(
    ("grid", "base", "scale", "tolerance"),
    [
        ((4, 4), 4, 1.0, 1e-12),  # float64 on both sides: integer positions are exact
        ((8, 4), 4, 2.0, 1e-12),  # exact powers of two
        ((6, 5), 4, 1.0, 1e-6),  # theirs divides the positions in float32
        ((5, 7), 4, 3.0, 1e-6),
    ],
)
def test_2d_table(grid, base, scale, tolerance):
    expected = their_embeddings.get_2d_sincos_pos_embed(
        D, grid, base_size=base, interpolation_scale=scale, output_type="pt"
    )
    assert relative_l2(positional.get_2d_sincos_pos_embed(D, grid, base, scale), expected) <= tolerance


@both
@torch.no_grad()
def test_caption_projection(precision):
    ours = embeddings.CaptionProjection(20, D, precision=Precision(precision))
    theirs = their_embeddings.PixArtAlphaTextProjection(20, D)
    ours, theirs = same_weights(ours, theirs, precision)
    caption = tensor(2, L, 20, precision=precision, scale=2.0)
    assert relative_l2(ours(caption), theirs(caption)) <= TOLERANCE[precision]


@torch.no_grad()
def test_combined_timestep_size_embeddings():
    """float32 only: their sinusoid has no other type. t is small, see `test_timestep_embedding` for t = 999."""
    ours = embeddings.CombinedTimestepSizeEmbeddings(D, D // 3)
    theirs = their_embeddings.PixArtAlphaCombinedTimestepSizeEmbeddings(D, D // 3)
    ours, theirs = same_weights(ours, theirs, "fp32")
    t = torch.tensor([0, 7, 99])
    expected = theirs(t, None, None, batch_size=3, hidden_dtype=torch.float32)
    assert relative_l2(ours(t), expected) <= TOLERANCE["fp32"]


SIZES = dict(  # small numbers, see `test_timestep_embedding`
    resolution=torch.tensor([[64.0, 96.0], [3.0, 90.0], [17.5, 8.0]]),
    aspect_ratio=torch.tensor([[0.67], [0.033], [2.19]]),
)


@torch.no_grad()
def test_size_conditions():
    """Alone and through adaLN-single; float32 only."""
    t = torch.tensor([0, 7, 99])
    ours = embeddings.CombinedTimestepSizeEmbeddings(D, D // 3, use_additional_conditions=True)
    theirs = their_embeddings.PixArtAlphaCombinedTimestepSizeEmbeddings(
        D, D // 3, use_additional_conditions=True
    )
    ours, theirs = same_weights(ours, theirs, "fp32")
    expected = theirs(t, **SIZES, batch_size=3, hidden_dtype=torch.float32)
    assert relative_l2(ours(t, **SIZES), expected) <= TOLERANCE["fp32"]
    ours = embeddings.AdaLayerNormSingle(D, use_additional_conditions=True)
    theirs = their_normalization.AdaLayerNormSingle(D, use_additional_conditions=True)
    ours, theirs = same_weights(ours, theirs, "fp32")
    expected = theirs(t, SIZES, batch_size=3, hidden_dtype=torch.float32)
    for got, value in zip(ours(t, SIZES), expected, strict=True):
        assert relative_l2(got, value) <= TOLERANCE["fp32"]


@torch.no_grad()
def test_combined_timestep_label_embeddings():
    """float32 only; the frequencies of this sinusoid are those of downscale_freq_shift 1."""
    ours = embeddings.CombinedTimestepLabelEmbeddings(7, D)
    theirs = their_embeddings.CombinedTimestepLabelEmbeddings(7, D)
    ours, theirs = same_weights(ours, theirs, "fp32")
    t, labels = torch.tensor([0, 7, 99]), torch.tensor([0, 7, 3])
    expected = theirs(t, labels, hidden_dtype=torch.float32)
    assert relative_l2(ours(t, labels), expected) <= TOLERANCE["fp32"]


@both
@torch.no_grad()
def test_timestep_embedding_mlp(precision):
    """The part of the above behind the sinusoid, which runs in float64 on both sides."""
    ours = embeddings.TimestepEmbedding(256, D, precision=Precision(precision))
    theirs = their_embeddings.TimestepEmbedding(256, D)
    ours, theirs = same_weights(ours, theirs, precision)
    sample = tensor(3, 256, precision=precision)
    assert relative_l2(ours(sample), theirs(sample)) <= TOLERANCE[precision]


@torch.no_grad()
def test_ada_layer_norm_single():
    """float32 only: their sinusoid has no other type. t is small, see `test_timestep_embedding` for t = 999."""
    ours = embeddings.AdaLayerNormSingle(D)
    theirs = their_normalization.AdaLayerNormSingle(D)
    ours, theirs = same_weights(ours, theirs, "fp32")
    t = torch.tensor([0, 7, 99])
    expected = theirs(t, batch_size=3, hidden_dtype=torch.float32)
    for got, value in zip(ours(t), expected, strict=True):
        assert relative_l2(got, value) <= TOLERANCE["fp32"]


@torch.no_grad()
def test_ada_layer_norm_zero():
    """float32 only, as their sinusoid. Its three vectors of the feed-forward come out beside the normed tokens."""
    ours, theirs = norms.AdaLayerNormZero(D, 10), their_normalization.AdaLayerNormZero(D, 10)
    ours, theirs = same_weights(ours, theirs, "fp32")
    x, t, labels = tensor(2, 5, D, precision="fp32"), torch.tensor([3, 90]), torch.tensor([10, 2])
    expected = theirs(x, t, labels, hidden_dtype=torch.float32)
    for got, value in zip(ours(x, t, labels), expected, strict=True):
        assert relative_l2(got, value) <= TOLERANCE["fp32"]


@both
@torch.no_grad()
def test_ada_layer_norm(precision):
    ours = norms.AdaLayerNorm(D, 10, norm_eps=1e-3, precision=Precision(precision))
    theirs = their_normalization.AdaLayerNorm(D, 10, norm_eps=1e-3)
    ours, theirs = same_weights(ours, theirs, precision)
    x, t = tensor(2, 5, D, precision=precision), torch.tensor(4)
    assert relative_l2(ours(x, t), theirs(x, t)) <= TOLERANCE[precision]
