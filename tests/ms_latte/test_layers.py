# SPDX-License-Identifier: Apache-2.0
"""Behaviour of the layers of `ms_latte.models` that is ours; their values are judged by the parity cases."""

import inspect
import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops

from ms_latte import device
from ms_latte.models import attention, blocks, constants, embeddings, layers, mlp, norms, positional
from ms_latte.models.precision import Precision
from tests.helpers import normal, relative_l2
from tests.ms_latte.tiny import SAME, fill, parameters, run, tensor

# --- exp and sigmoid

RANGE = np.concatenate([np.linspace(-79, 79, 4001), [-20.0, -1e-3, -1e-8, -0.0, 0.0, 1e-8, 1e-3, 20.0]])


@pytest.mark.parametrize("name", ["exp", "sigmoid"])
def test_every_number_of_the_range_is_exact(name):
    """Each by itself, not in the mean: 4 units in the last place; MindSpore's own exp and sigmoid miss by 60 to 115."""
    x = RANGE.astype(np.float32)
    exact = {"exp": np.exp, "sigmoid": lambda x: 1 / (1 + np.exp(-x))}[name](x.astype(np.float64))
    found = run(getattr(layers, name), x)
    assert np.max(np.abs(found / exact - 1)) <= 4 * 2.0**-24
    native = run({"exp": ops.exp, "sigmoid": ops.sigmoid}[name], x)
    assert np.max(np.abs(native / exact - 1)) > 30 * 2.0**-24  # else the operator could be taken as it is


def test_gradient_of_exp():
    """Finite over the range, and 1 at 0: of the two branches, the one not taken must not spoil it."""
    x = RANGE[RANGE > -40].astype(
        np.float32
    )  # below, the square of e^-x is no float32, and the gradient is 0
    gradient = ms.grad(lambda x: layers.exp(x).sum())(tensor(x)).asnumpy()
    assert (
        np.max(np.abs(gradient / np.exp(x.astype(np.float64)) - 1)) <= 1e-5
    )  # MindSpore derives expm1 by its exp
    assert np.array_equal(ms.grad(lambda x: layers.exp(x).sum())(tensor(np.float32([-79]))).asnumpy(), [0.0])


# --- patches


@pytest.mark.parametrize("device_name", device.DEVICES)
def test_patch_conv_is_valid(device_name):
    """9x9 with patch 2 gives 4x4 tokens: no padding, in every formulation; the last row and column do not matter."""
    layer = fill(layers.PatchConv(4, 48, 2))
    x = normal(3, 4, 9, 9)
    with device.formulations(device_name):
        out = run(layer, x)
        assert out.shape == (3, 16, 48)
        assert np.array_equal(run(layer, x[:, :, :8, :8]), out)
    assert "pad_mode=valid" in repr(layer)


def test_patch_conv_is_a_product_of_patches():
    """Tokens row-major; a patch is read channel, row, column, as the weight is stored."""
    layer = fill(layers.PatchConv(4, 48, 2))
    x = normal(3, 4, 6, 8)
    weight = parameters(layer)["weight"].asnumpy().reshape(48, 16)
    patches = [x[:, :, i : i + 2, j : j + 2].reshape(3, 16) for i in range(0, 6, 2) for j in range(0, 8, 2)]
    expected = np.stack(patches, axis=1) @ weight.T + parameters(layer)["bias"].asnumpy()
    for device_name in device.DEVICES:
        with device.formulations(device_name):
            assert relative_l2(run(layer, x), expected) <= SAME


def test_patch_embed_odd_size_and_own_table():
    layer = fill(embeddings.PatchEmbed(8, 8, 2, 4, 48))
    assert run(layer, normal(2, 4, 9, 13)).shape == (2, 24, 48)
    assert list(parameters(layer)) == ["proj.weight", "proj.bias"]  # the table is neither saved nor trained
    with pytest.raises(ValueError, match="flatten=False"):
        embeddings.PatchEmbed(flatten=False)


def test_patch_embed_base_size_of_each_axis():
    latent = normal(2, 4, 8, 12)
    own = fill(embeddings.PatchEmbed(8, 12, 2, 4, 48, base_size=(4, 6)))
    expected = positional.get_2d_sincos_pos_embed(48, (4, 6))
    assert (
        np.abs(run(own, latent) - run(own.proj, latent) - expected).max() <= 1e-6
    )  # float32 sums of values ~3
    by_height = fill(embeddings.PatchEmbed(8, 12, 2, 4, 48))
    expected = positional.get_2d_sincos_pos_embed(48, (4, 6), (4, 4))
    assert np.abs(run(by_height, latent) - run(by_height.proj, latent) - expected).max() <= 1e-6


def test_tables_are_made_once():
    table = constants._sincos_2d(48, 3, 5, 4, 1.0, False)
    assert constants._sincos_2d(48, 3, 5, 4, 1.0, False) is table
    assert constants._sincos_1d(48, 3, 1.0, False) is constants._sincos_1d(48, 3, 1.0, False)


def test_position_functions_take_the_arguments_they_use():
    def names(function):
        return list(inspect.signature(function).parameters)

    assert names(positional.get_1d_sincos_pos_embed) == ["embed_dim", "length", "interpolation_scale"]
    assert names(positional.get_2d_sincos_pos_embed) == [
        "embed_dim",
        "grid_size",
        "base_size",
        "interpolation_scale",
    ]
    assert names(embeddings.CaptionProjection) == ["in_features", "hidden_size", "precision"]  # no num_tokens
    for wrong in (
        lambda: positional.get_1d_sincos_pos_embed(7, 3),
        lambda: positional.get_2d_sincos_pos_embed(6, 3),
    ):
        with pytest.raises(ValueError, match="must be"):
            wrong()


def test_strided_pixels_meet_in_one_patch():
    """The example of the original: patch 0 of a 4x4 picture holds pixels 0, 2, 8 and 10."""
    picture = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    out = layers.regroup_pixels(ms.Tensor(picture), 2).asnumpy()[0, 0]
    assert out[:2, :2].reshape(-1).tolist() == [0, 2, 8, 10]
    assert out[2:, 2:].reshape(-1).tolist() == [5, 7, 13, 15]
    # The original: rows as (p, h), columns as (p, w), patches (h, w) of (p, p) pixels; a rectangle, two channels.
    x = np.arange(2 * 6 * 8, dtype=np.float32).reshape(1, 2, 6, 8)
    patches = x.reshape(2, 2, 3, 2, 4).transpose(2, 4, 1, 3, 0)  # (h, w, p, p, C)
    blocks = layers.regroup_pixels(ms.Tensor(x), 2).asnumpy().reshape(2, 3, 2, 4, 2).transpose(1, 3, 2, 4, 0)
    assert np.array_equal(patches, blocks)


def test_unpatchify_takes_the_true_size():
    x = np.arange(2 * 3 * 5 * 4 * 7, dtype=np.float32).reshape(2 * 3 * 5, 4 * 7)
    out = layers.unpatchify(ms.Tensor(x), 2, 3, 5, 2).asnumpy()
    expected = np.zeros((2, 7, 6, 10), np.float32)
    for n in range(2):
        for i in range(6):
            for j in range(10):
                row = n * 15 + (i // 2) * 5 + j // 2
                content = (i % 2) * 2 + j % 2  # (p_h, p_w, C)
                expected[n, :, i, j] = x[row, content * 7 : content * 7 + 7]
    assert np.array_equal(out, expected)


# --- conditions


def test_spread_repeats_in_runs():
    """Sample-major: a, a, b, b and never a, b, a, b; in every formulation."""
    rows = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    for device_name in device.DEVICES:
        with device.formulations(device_name):
            out = layers.spread(ms.Tensor(rows), 6).asnumpy()
            assert np.array_equal(out[:, 0], [1, 1, 1, 3, 3, 3])
            assert np.array_equal(layers.spread(ms.Tensor(rows[:1]), 3).asnumpy()[:, 1], [2, 2, 2])
    with pytest.raises(ValueError, match="2 condition rows over 5 tokens"):
        layers.spread(ms.Tensor(rows), 5)


def test_place_follows_the_stream():
    """Rows are sample-major, then frame, then token."""
    space = layers.place(ms.Tensor(np.array([[0.0], [1.0]])), layers.TokenLayout(2, 3, 2, "space")).asnumpy()
    time = layers.place(
        ms.Tensor(np.array([[0.0], [1.0], [2.0]])), layers.TokenLayout(2, 3, 2, "time")
    ).asnumpy()
    assert np.array_equal(space[:, 0], [0, 1] * 6)
    assert np.array_equal(time[:, 0], [0, 0, 1, 1, 2, 2] * 2)


def test_text_per_frame_order():
    """Row 0 of a sample for its video frames, then one row for each image."""
    rows = ms.Tensor(np.arange(6, dtype=np.float32)[:, None])
    out = attention.text_per_frame(rows, layers.TokenLayout(2, 5, 4), 6).asnumpy()[:, 0]
    assert np.array_equal(out, [0, 0, 0, 1, 2, 3, 3, 3, 4, 5])
    out = attention.text_per_frame(rows[:2], layers.TokenLayout(2, 3, 4), 2).asnumpy()[:, 0]
    assert np.array_equal(out, [0, 0, 0, 1, 1, 1])
    for count in (5, 14):
        with pytest.raises(ValueError, match=f"text has {count} rows for 2 samples of 5 frames"):
            attention.text_per_frame(rows, layers.TokenLayout(2, 5, 4), count)


def test_attention_bias_rows_must_fit():
    layer = fill(attention.MultiHeadAttention(48, heads=3, dim_head=16))
    with pytest.raises(ValueError, match="bias has 3 rows, the attention 2 groups"):
        run(layer, normal(2, 5, 48), attention_mask=normal(3, 1, 5))


def test_timestep_sinusoid_is_float32_before_it_is_rounded():
    """The angle is float32 for integer and float timesteps; half precision rounds the cosine, never the angle."""
    t = np.array([1, 500, 999])
    frequency = np.exp(-math.log(10000) * np.arange(128) / 128)
    expected = np.concatenate([np.cos(t[:, None] * frequency), np.sin(t[:, None] * frequency)], axis=1)
    for dtype in (ms.int32, ms.int64, ms.float32):
        out = embeddings.timestep_embedding(ms.Tensor(t, dtype), 256)
        assert out.dtype == ms.float32
        assert np.abs(out.asnumpy() - expected).max() <= 1e-4  # an angle of 999 in float32: 6e-5
        half = embeddings.timestep_embedding(ms.Tensor(t, dtype), 256, Precision("fp16"))
        assert half.dtype == ms.float16
        assert np.array_equal(half.asnumpy(), out.asnumpy().astype(np.float16))
    odd = embeddings.timestep_embedding(ms.Tensor(t, ms.int32), 7).asnumpy()
    assert odd.shape == (3, 7) and not odd[:, -1].any()


def size_embedder(**options):
    return fill(embeddings.CombinedTimestepSizeEmbeddings(48, 16, use_additional_conditions=True, **options))


def test_size_conditions_reach_the_timestep():
    """Height, width and aspect ratio, each with a third of the width; rows of their own or as guidance stacks them."""
    layer, t = size_embedder(), tensor(np.array([1, 2, 1, 2]))
    resolution, ratio = np.array([[64, 96], [40, 32]]), np.array([[0.67], [1.25]], np.float32)
    out = layer(t, tensor(resolution), tensor(ratio)).asnumpy()
    plain = layer.timestep_embedder(embeddings.timestep_embedding(t, 256)).asnumpy()
    third = lambda cell, size: cell(embeddings.timestep_embedding(tensor(size), 256)).asnumpy()  # noqa: E731
    height, width = (third(layer.resolution_embedder, resolution[:, i].copy()) for i in (0, 1))
    sizes = np.concatenate([height, width, third(layer.aspect_ratio_embedder, ratio[:, 0].copy())], axis=1)
    assert relative_l2(out - plain, np.tile(sizes, (2, 1))) <= 1e-6  # float32
    whole = layer(t, tensor(np.tile(resolution, (2, 1))), tensor(np.tile(ratio, (2, 1)))).asnumpy()
    assert np.array_equal(whole, out)
    modulation, embedded = fill(embeddings.AdaLayerNormSingle(48, use_additional_conditions=True))(
        t, {"resolution": tensor(resolution), "aspect_ratio": tensor(ratio)}
    )
    assert modulation.shape == (4, 288) and embedded.shape == (4, 48)


def test_size_conditions_are_never_cut_to_integers():
    """An aspect ratio of 0.67 is not 0, whatever the type of the numbers beside it."""
    layer, t, resolution = size_embedder(), tensor(np.array([1])), tensor(np.array([[64, 96]]))
    outs = [layer(t, resolution, tensor(np.array([[r]], np.float32))).asnumpy() for r in (0.0, 0.67)]
    assert relative_l2(outs[0], outs[1]) > 1e-3
    assert np.array_equal(
        layer(t, resolution.astype(ms.float32), tensor(np.zeros((1, 1), np.float32))).asnumpy(), outs[0]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: embeddings.CombinedTimestepSizeEmbeddings(48, 15, True), "size_emb_dim 15 must be a third"),
        (
            lambda: size_embedder()(tensor(np.array([1, 2]))),
            r"needs added_cond_kwargs with resolution \(B, 2\)",
        ),
        (
            lambda: size_embedder()(tensor(np.array([1, 2])), tensor(normal(3, 2)), tensor(normal(2, 1))),
            r"shape \(3, 2\) for 2 samples; expected resolution \(2, 2\)",
        ),
        (
            lambda: size_embedder()(tensor(np.array([1, 2])), tensor(normal(2, 2)), tensor(normal(2, 2))),
            r"shape \(2, 2\) for 2 samples",
        ),
        (
            lambda: embeddings.AdaLayerNormSingle(48)(
                tensor(np.array([1])),
                {"resolution": tensor(normal(1, 2)), "aspect_ratio": tensor(normal(1, 1))},
            ),
            "resolution and aspect_ratio were given",
        ),
    ],
)
def test_size_conditions_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_adaln_single_takes_no_conditions():
    """None and a dict of None are one thing."""
    layer, t = fill(embeddings.AdaLayerNormSingle(48)), tensor(np.array([1, 2]))
    expected = layer(t)
    for conditions in (None, {"resolution": None, "aspect_ratio": None}):
        for got, value in zip(layer(t, conditions, batch_size=2), expected, strict=True):
            assert np.array_equal(got.asnumpy(), value.asnumpy())


# --- activations


@pytest.mark.parametrize("device_name", device.DEVICES)
@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_gelu_form(approximate, device_name):
    x = np.linspace(-6, 6, 241)
    tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    erf = 0.5 * x * (1 + np.array([math.erf(value / math.sqrt(2)) for value in x]))
    expected, other = (tanh, erf) if approximate == "tanh" else (erf, tanh)
    with device.formulations(device_name):
        out = run(layers.GELU(approximate), x.astype(np.float32))
    assert (
        np.abs(out - expected).max() <= 2e-6
    )  # float32 (the framework's tanh kernel has a few units of error)
    assert np.abs(out - other).max() > 2e-4
    assert f"approximate={approximate}" in repr(layers.GELU(approximate))


def test_models_use_the_tanh_form():
    """Latte's Mlp, the caption projection and the feed-forward of released weights."""
    for layer in (
        mlp.Mlp(8, 16),
        mlp.FeedForward(8, activation_fn="gelu-approximate"),
        embeddings.CaptionProjection(8, 12),
    ):
        forms = [cell.approximate for _, cell in layer.cells_and_names() if isinstance(cell, layers.GELU)]
        assert forms == ["tanh"]
    layer = mlp.FeedForward(8, activation_fn="gelu")
    assert [cell.approximate for _, cell in layer.cells_and_names() if isinstance(cell, layers.GELU)] == [
        "none"
    ]
    with pytest.raises(ValueError, match="'tanh' or 'none'"):
        layers.GELU("erf")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mlp.FeedForward(8, dropout=0.1), "dropout 0.1"),
        (lambda: attention.DotProductAttention(16, "sdpa"), "'sdpa'; expected one of math, flash"),
        (
            lambda: blocks.BasicTransformerBlock(48, 3, 16, norm_type="ada_norm"),
            "'ada_norm' needs num_embeds_ada_norm",
        ),
        (
            lambda: blocks.BasicTransformerBlock(48, 3, 16, norm_type="rms_norm"),
            "'rms_norm'; expected one of ada_norm_single, layer_norm, ada_norm, ada_norm_zero",
        ),
        (
            lambda: blocks.BasicTransformerBlock(48, 3, 16, activation_fn="swiglu"),
            "'swiglu'; expected one of geglu, gelu, gelu-approximate",
        ),
        (lambda: Precision("fp8"), "Precision.compute is 'fp8'; expected one of fp64"),
        (lambda: Precision(islands="fp16"), "Precision.islands is 'fp16'"),
        (lambda: Precision(rounding="on"), "Precision.rounding is 'on'"),
    ],
)
def test_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_ada_layer_norm_takes_a_timestep_for_each_sample():
    """One for all or one a sample, whole numbers of its table."""
    layer, x = fill(norms.AdaLayerNorm(48, 10)), normal(2, 5, 48)
    each = run(layer, x, np.array([7, 2]))
    for i, t in enumerate((7, 2)):
        assert relative_l2(each[i : i + 1], run(layer, x[i : i + 1], np.array(t))) <= SAME
    assert np.array_equal(run(layer, x.reshape(10, 48), np.array([7, 2])), each.reshape(10, 48))
    with pytest.raises(ValueError, match="3 condition rows over 10 tokens"):
        run(layer, x, np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="expected whole numbers, got Float32"):
        run(layer, x, np.array([1.5, 2.0], np.float32))


@pytest.mark.parametrize("norm_type", ["ada_norm", "ada_norm_zero"])
def test_block_needs_what_its_norms_read(norm_type):
    block = fill(blocks.BasicTransformerBlock(48, 3, 16, norm_type=norm_type, num_embeds_ada_norm=9))
    with pytest.raises(ValueError, match="timestep is required"):
        run(block, normal(2, 5, 48))
    if norm_type == "ada_norm_zero":
        with pytest.raises(ValueError, match="needs class_labels"):
            run(block, normal(2, 5, 48), timestep=np.array([1, 2]))


@pytest.mark.parametrize("attend", ["space", "time", "sample"])
def test_heads_are_split_the_same_way_in_every_formulation(attend):
    """Group-major: (groups, heads) of sequences; merging undoes it."""
    layout = layers.TokenLayout(2, 3, 5, attend)
    x = np.arange(2 * 3 * 5 * 2 * 4 * 6, dtype=np.float32).reshape(30, 48)  # 2 parts, 4 heads of 6
    axes = {"space": (3, 0, 1, 4, 2, 5), "time": (3, 0, 2, 4, 1, 5), "sample": (3, 0, 4, 1, 2, 5)}[attend]
    sequence = {"space": 5, "time": 3, "sample": 15}[attend]
    expected = x.reshape(2, 3, 5, 2, 4, 6).transpose(axes).reshape(2, -1, sequence, 6)
    for device_name in device.DEVICES:
        with device.formulations(device_name):
            parts = layers.split_heads(ms.Tensor(x), layout, 4, parts=2)
            assert np.array_equal(np.stack([part.asnumpy() for part in parts]), expected)
            merged = layers.merge_heads(parts[1], layout, 4).asnumpy()
            assert np.array_equal(merged, x.reshape(30, 2, 24)[:, 1])


def test_formulations_of_another_device_are_refused(monkeypatch):
    monkeypatch.setattr(device, "_device", "Ascend")
    with pytest.raises(device.DeviceError, match=r'Remedy: ms_latte\.device\.select\("CPU"\)'):
        layers.Linear(3, 4)
