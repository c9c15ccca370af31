# SPDX-License-Identifier: Apache-2.0
"""Behaviour of `ms_latte.models.latte_t2v` that is ours: what the originals get wrong, leave open or disagree about."""

import inspect

import mindspore as ms
import numpy as np
import pytest

from ms_latte.models.attention import text_bias, text_rows
from ms_latte.models.blocks import BasicTransformerBlock, BasicTransformerBlock_, LatteT2VBlock
from ms_latte.models.latte_t2v import LatteT2V, init_weights
from ms_latte.models.layers import TokenLayout
from ms_latte.models.mlp import FeedForward
from ms_latte.models.positional import get_1d_sincos_pos_embed, get_2d_sincos_pos_embed
from ms_latte.models.precision import Precision
from tests.helpers import normal, relative_l2
from tests.ms_latte.tiny import (
    LATTE_T2V,
    SAME,
    TEXT,
    fill,
    parameters,
    run,
    t2v_inputs,
    tensor,
    tiny_t2v,
)

MASK = np.array([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]])
JOINT_MASK = np.stack(
    [MASK, MASK[::-1], 1 - (np.arange(2 * TEXT).reshape(2, TEXT) % 3 == 2)], axis=1
)  # (2, 3, 7)


@pytest.fixture(scope="module")
def model():
    return tiny_t2v()


def without_own_terms(model):
    """Zero what every block adds to the stream, so that only embedding, positions and the final layer are left."""
    for name, parameter in parameters(model).items():
        if "to_out" in name or "ff.net.2" in name:
            parameter.set_data(ms.Tensor(np.zeros(parameter.shape, np.float32)))
    return model


# --- axes, frames, sizes


def test_axes_are_channels_before_frames(model):
    x, t, text = t2v_inputs(height=8, width=12)
    assert run(model, x, t, text).shape == (2, 8, 3, 8, 12)  # (B, C_out, F, H, W)
    with pytest.raises(ValueError, match=r"C = 4 .* got \(2, 3, 4, 8, 12\)"):
        run(model, x.transpose(0, 2, 1, 3, 4), t, text)
    assert run(tiny_t2v(out_channels=None), x, t, text).shape == (2, 4, 3, 8, 12)


@pytest.mark.parametrize(("height", "width"), [(8, 12), (14, 6)])
def test_not_square_output_is_in_place(height, width):
    """unpatchify takes the true (h, w). Without attention and feed-forward a patch of the output depends on that patch
    of the input alone."""
    model = without_own_terms(tiny_t2v(num_layers=1))
    x, t, text = t2v_inputs(height=height, width=width)
    changed = x.copy()
    changed[1, :, 2, 4:6, 2:4] += 1.0
    touched = np.abs(run(model, changed, t, text) - run(model, x, t, text)).max(axis=1) > 1e-5  # (B, F, H, W)
    expected = np.zeros((2, 3, height, width), bool)
    expected[1, 2, 4:6, 2:4] = True
    assert np.array_equal(touched, expected)


def test_size_that_the_patch_does_not_divide_is_refused(model):
    x, t, text = t2v_inputs(height=9)
    with pytest.raises(ValueError, match="divisible by 2"):
        run(model, x, t, text)


def test_one_frame_adds_no_temporal_position(model):
    x, t, text = t2v_inputs(frames=1)
    out = run(model, x, t, text)
    shifted = tiny_t2v()
    shifted.temporal_positions = lambda frames: ms.Tensor(np.full((frames, 48), 3.0, np.float32))
    assert np.array_equal(run(shifted, x, t, text), out)
    x, t, text = t2v_inputs(frames=2)
    assert relative_l2(run(shifted, x, t, text), run(model, x, t, text)) > 1e-3


def test_nothing_is_squeezed_at_one_token_or_one_frame(model):
    for frames, size in ((3, 2), (1, 2), (1, 8)):
        x, t, text = t2v_inputs(frames=frames, height=size, width=size)
        out = run(model, x, t, text)
        assert out.shape == (2, 8, frames, size, size)
        assert relative_l2(run(model, x[1:], t[1:], text[1:]), out[1:]) <= SAME


def test_any_number_of_frames(model):
    """The temporal table is sliced or continued, never of fixed length."""
    for frames in (1, 2, 3, 7):
        expected = get_1d_sincos_pos_embed(48, 7)[:frames].astype(np.float32)
        assert np.array_equal(model.temporal_positions(frames).asnumpy(), expected)
    x, t, text = t2v_inputs(frames=7)
    assert relative_l2(run(model, x, t, text), run(tiny_t2v(video_length=9), x, t, text)) <= SAME


@pytest.mark.parametrize(
    ("video_length", "given", "scale"),
    [(3, None, 1), (11, None, 2), (16, None, 3), (17, None, 3), (16, 1.0, 1)],
)
def test_temporal_scale_rule(video_length, given, scale):
    """None is max(video_length // 5, 1), the rule of Open-Sora-Plan v1.0; diffusers checkpoints state 1.0."""
    model = LatteT2V(
        **{**LATTE_T2V, "video_length": video_length, "num_layers": 1}, temporal_interpolation_scale=given
    )
    expected = get_1d_sincos_pos_embed(48, 4, float(scale)).astype(np.float32)
    assert np.array_equal(model.temporal_positions(4).asnumpy(), expected)


def test_temporal_position_is_added_once():
    """In the first layer only: blocks that add nothing of their own leave one table, however many they are."""
    x, t, text = t2v_inputs()
    one, three, none = (without_own_terms(tiny_t2v(num_layers=layers)) for layers in (1, 3, 1))
    none.temporal_positions = lambda frames: ms.Tensor(np.zeros((frames, 48), np.float32))
    out = run(one, x, t, text)
    assert relative_l2(run(three, x, t, text), out) <= SAME
    assert relative_l2(run(none, x, t, text), out) > 1e-3


@pytest.mark.parametrize(
    ("sample_size", "per_axis", "base", "scale"),
    [
        ((8, 16), False, (4, 4), 1),  # QUIRK(height_base): both axes span the height
        ((8, 16), True, (4, 8), 1),
        (
            (128, 64),
            False,
            (64, 64),
            2,
        ),  # QUIRK(height_interpolation): the scale of both axes is the height's
        ((64, 128), False, (32, 32), 1),
        ((128, 64), True, (64, 32), 2),
        (8, True, (4, 4), 1),
    ],
)
def test_base_size_and_scale_of_each_axis(sample_size, per_axis, base, scale):
    model = LatteT2V(
        **{**LATTE_T2V, "sample_size": sample_size, "num_layers": 1}, per_axis_base_size=per_axis
    )
    got = model.pos_embed.positions(3, 5).asnumpy()
    rows, columns = np.arange(3) * base[0] / 3 / scale, np.arange(5) * base[1] / 5 / scale
    omega = 10000.0 ** (-np.arange(12) / 12)
    row, column = np.repeat(rows, 5)[:, None] * omega, np.tile(columns, 3)[:, None] * omega
    # QUIRK(column_first)
    expected = np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=1)
    assert np.abs(got - expected).max() <= 1e-7  # one rounding to float32 of values up to 1


def test_constructor_size_gives_its_own_table():
    """16x64 latents have as many patches as 32x32 ones: the table is still that of 8x32 patches."""
    model = LatteT2V(**{**LATTE_T2V, "sample_size": (16, 64), "num_layers": 1}, per_axis_base_size=True)
    got = model.pos_embed.positions(8, 32).asnumpy()
    assert np.array_equal(got, get_2d_sincos_pos_embed(48, (8, 32)).astype(np.float32))


# --- text, masks


def test_every_sample_has_its_own_text_and_timestep(model):
    x, t, text = t2v_inputs()
    out = run(model, x, t, text, encoder_attention_mask=MASK)
    for i in range(2):
        one = slice(i, i + 1)
        alone = run(model, x[one], t[one], text[one], encoder_attention_mask=MASK[one])
        assert relative_l2(out[one], alone) <= SAME
    assert relative_l2(run(model, x, t, text[::-1].copy(), encoder_attention_mask=MASK), out) > 1e-3
    assert relative_l2(run(model, x, t[::-1].copy(), text, encoder_attention_mask=MASK), out) > 1e-3


def test_mask_forms_agree(model):
    """2-D of 1/0 in any number type, bias per sample, bias per frame: one meaning."""
    x, t, text = t2v_inputs()
    bias = ((1 - MASK) * -10000.0).astype(np.float32)[:, None, :]  # (B, 1, L)
    out = run(model, x, t, text, encoder_attention_mask=MASK)
    for mask in (MASK.astype(bool), MASK.astype(np.float32), MASK.astype(np.int64)):
        assert np.array_equal(run(model, x, t, text, encoder_attention_mask=mask), out)
    assert np.array_equal(run(model, x, t, text, encoder_attention_bias=bias), out)
    per_frame = np.repeat(bias, 3, axis=0)  # (B*F, 1, L), each sample's row in a run
    assert relative_l2(run(model, x, t, text, encoder_attention_bias=per_frame), out) <= SAME
    assert relative_l2(run(model, x, t, text), out) > 1e-3


def test_masked_token_is_as_good_as_absent(model):
    x, t, text = t2v_inputs(batch=1)
    mask = np.array([[1, 1, 1, 1, 0, 0, 0]])
    out = run(model, x, t, text, encoder_attention_mask=mask)
    assert relative_l2(run(model, x, t, text[:, :4]), out) <= SAME


def test_mask_becomes_a_bias_in_one_place():
    layout = TokenLayout(2, 5, 6)
    bias = text_bias(tensor(JOINT_MASK), None, layout, 2, Precision())
    assert np.array_equal(bias.asnumpy(), (1 - JOINT_MASK.reshape(6, TEXT)) * -10000.0)
    assert text_bias(None, None, layout, 2, Precision()) is None


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (dict(encoder_attention_mask=MASK[:1]), r"encoder_attention_mask \(1, 7\); expected \(2, L\)"),
        (dict(encoder_attention_mask=MASK[:, None, None, :]), r"\(2, 1, 1, 7\).*encoder_attention_bias"),
        (
            dict(encoder_attention_mask=np.repeat(MASK[:, None], 3, axis=1)),
            r"expected \(2, L\) or \(2, 1, L\)",
        ),
        (dict(encoder_attention_bias=normal(2, 7)), r"encoder_attention_bias \(2, 7\); expected \(2, 1, L\)"),
        (dict(encoder_attention_bias=normal(3, 1, 7)), r"\(3, 1, 7\); expected \(2, 1, L\) or \(6, 1, L\)"),
        (dict(encoder_attention_mask=MASK, encoder_attention_bias=normal(2, 1, 7)), "exclude each other"),
        (dict(attention_mask=np.ones((2, 16))), "attention_mask on the latents is refused"),
        (dict(use_image_num=3), "leaves no video frame"),
        (dict(use_image_num=-1), "leaves no video frame"),
        (
            dict(added_cond_kwargs={"resolution": tensor(normal(2, 2)), "aspect_ratio": None}),
            "use_additional_conditions is False",
        ),
    ],
)
def test_wrong_arguments_are_named(model, named, message):
    x, t, text = t2v_inputs()
    with pytest.raises(ValueError, match=message):
        run(model, x, t, text, **named)


def test_added_cond_kwargs_of_the_originals_are_taken(model):
    x, t, text = t2v_inputs()
    conditions = {"resolution": None, "aspect_ratio": None}
    assert np.array_equal(run(model, x, t, text, added_cond_kwargs=conditions), run(model, x, t, text))


@pytest.mark.parametrize(
    ("shape", "images"), [((3, 7, 20), 0), ((2, 3, 7, 20), 0), ((2, 2, 7, 20), 2), ((7, 20), 0)]
)
def test_wrong_text_shape_is_named(shape, images):
    with pytest.raises(ValueError, match=r"encoder_hidden_states .* expected \(2, L, C\)"):
        text_rows(tensor(normal(*shape)), TokenLayout(2, 5, 6), images)


@pytest.mark.parametrize("length", [1, 5, 11])
def test_text_of_any_length(model, length):
    x, t, _ = t2v_inputs()
    assert run(model, x, t, normal(2, length, 20)).shape == (2, 8, 3, 8, 8)


def test_timestep_is_required_and_integer_or_float(model):
    x, t, text = t2v_inputs()
    out = run(model, x, t, text)
    for dtype in (ms.int32, ms.int64, ms.float32):
        assert np.array_equal(model(tensor(x), ms.Tensor(t, dtype), tensor(text)).asnumpy(), out)
    assert relative_l2(run(model, x, (t + 0.5).astype(np.float32), text), out) > 1e-4
    assert inspect.signature(LatteT2V.construct).parameters["timestep"].default is inspect.Parameter.empty
    with pytest.raises(ValueError, match="timestep is required"):
        model.transformer_blocks[0](tensor(normal(2, 5, 48)))


# --- text prepared once


PREPARED = {
    "plain": (dict(), {}, {}),
    "masked": (dict(), dict(encoder_attention_mask=MASK), {}),
    "bias per frame": (dict(), dict(encoder_attention_bias=normal(6, 1, 7)), dict(frames=3)),
    "images": (dict(frames=5, rows=3), dict(encoder_attention_mask=JOINT_MASK), dict(use_image_num=2)),
}


@pytest.mark.parametrize("compute", ["fp64", "fp32", "emulated bf16", "fp16"])
@pytest.mark.parametrize("case", PREPARED)
def test_prepared_text_gives_the_same_bits(case, compute):
    """At every step and for every latent: the text, its mask and its projections go in once."""
    name = compute.rsplit(" ", 1)[-1]
    rounding = "emulated" if "emulated" in compute else "native"
    model = tiny_t2v(precision=Precision(name, rounding=rounding))
    sizes, masks, prepare_only = PREPARED[case]
    x, t, text = t2v_inputs(**sizes)
    images = {name: value for name, value in prepare_only.items() if name == "use_image_num"}
    given = {name: tensor(value) for name, value in masks.items()}
    prepared = model.prepare_text(tensor(text), **given, **prepare_only)
    assert len(prepared) == len(model.transformer_blocks) + bool(masks)
    for step in (t, t // 2):
        for latent in (x, x[::-1].copy()):
            expected = run(model, latent, step, text, **masks, **images)
            assert np.array_equal(run(model, latent, step, prepared, **images), expected)


def test_prepared_text_that_does_not_fit_is_named(model):
    x, t, text = t2v_inputs()
    prepared = model.prepare_text(tensor(text), tensor(MASK))
    with pytest.raises(ValueError, match="give the mask to prepare_text"):
        run(model, x, t, prepared, encoder_attention_mask=MASK)
    for rows in (text[:1], text[[0, 1, 0, 1]]):
        with pytest.raises(ValueError, match=f"{len(rows)} rows of text for 2 samples and 0 images"):
            run(model, x, t, model.prepare_text(tensor(rows)))


# --- norm types and size conditions


OTHER_NORMS = {
    "layer_norm": {},
    "ada_norm": dict(timestep=np.array([7, 3])),
    "ada_norm_zero": dict(class_labels=np.array([9, 4])),
}


@pytest.mark.parametrize("norm_type", OTHER_NORMS)
def test_norm_types_give_every_sample_its_own_condition(norm_type):
    """diffusers hands its blocks the modulation in place of the timestep and cannot run the last two."""
    model = tiny_t2v(norm_type=norm_type, num_embeds_ada_norm=9, norm_elementwise_affine=True)
    x, t, text = t2v_inputs()
    named = {"timestep": t, **OTHER_NORMS[norm_type]}
    out = run(model, x, encoder_hidden_states=text, **named)
    for i in range(2):
        one = slice(i, i + 1)
        alone = {name: value[one] for name, value in named.items()}
        assert relative_l2(out[one], run(model, x[one], encoder_hidden_states=text[one], **alone)) <= SAME
    changed = {name: value[::-1].copy() for name, value in named.items()}
    assert relative_l2(run(model, x, encoder_hidden_states=text, **changed), out) > 1e-3


def test_size_conditions_reach_the_net():
    model, (x, t, text) = tiny_t2v(use_additional_conditions=True), t2v_inputs()
    sizes = {
        "resolution": tensor(np.array([[64, 96]])),
        "aspect_ratio": tensor(np.array([[0.67]], np.float32)),
    }
    out = run(model, x, t, text, added_cond_kwargs=sizes)
    wider = {**sizes, "resolution": tensor(np.array([[64, 128]]))}
    assert relative_l2(run(model, x, t, text, added_cond_kwargs=wider), out) > 1e-3
    with pytest.raises(ValueError, match="needs added_cond_kwargs"):
        run(model, x, t, text)


# --- images behind the video


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_images_pass_the_temporal_blocks_by(model, train):
    """The number of images decides, never the training flag; the video gets its temporal positions all the same."""
    x, t, text = t2v_inputs(frames=5, rows=3)
    model.set_train(train)
    out = run(model, x, t, text, encoder_attention_mask=JOINT_MASK, use_image_num=2)
    video = run(model, x[:, :, :3], t, text[:, 0], encoder_attention_mask=JOINT_MASK[:, 0])
    assert relative_l2(out[:, :, :3], video) <= SAME
    for i in range(2):  # an image is a picture of its own: spatial blocks, its own text and mask
        image = run(
            model,
            x[:, :, 3 + i : 4 + i],
            t,
            text[:, 1 + i],
            encoder_attention_mask=JOINT_MASK[:, 1 + i],
            enable_temporal_attentions=False,
        )
        assert relative_l2(out[:, :, 3 + i : 4 + i], image) <= SAME
    model.set_train(False)


def test_images_may_share_the_text_of_the_video(model):
    x, t, text = t2v_inputs(frames=5)
    out = run(model, x, t, text, encoder_attention_mask=MASK, use_image_num=2)
    rows = np.repeat(text[:, None], 3, axis=1)
    masks = np.repeat(MASK[:, None], 3, axis=1)
    for mask in (MASK, masks):
        for caption in (text, rows):
            again = run(model, x, t, caption, encoder_attention_mask=mask, use_image_num=2)
            assert relative_l2(again, out) <= SAME


def test_joint_bias_per_frame(model):
    x, t, text = t2v_inputs(frames=5, rows=3)
    rows = [0, 0, 0, 1, 2]  # three video frames, two images
    bias = ((1 - JOINT_MASK[:, rows]) * -10000.0).astype(np.float32).reshape(10, 1, TEXT)
    out = run(model, x, t, text, encoder_attention_mask=JOINT_MASK, use_image_num=2)
    assert relative_l2(run(model, x, t, text, encoder_attention_bias=bias, use_image_num=2), out) <= SAME


def test_every_sample_has_its_own_images(model):
    x, t, text = t2v_inputs(frames=5, rows=3)
    out = run(model, x, t, text, encoder_attention_mask=JOINT_MASK, use_image_num=2)
    for i in range(2):
        one = slice(i, i + 1)
        alone = run(model, x[one], t[one], text[one], encoder_attention_mask=JOINT_MASK[one], use_image_num=2)
        assert relative_l2(out[one], alone) <= SAME


def test_without_temporal_attention_frames_are_pictures(model):
    x, t, text = t2v_inputs()
    out = run(model, x, t, text, enable_temporal_attentions=False)
    for f in range(3):
        alone = run(model, x[:, :, f : f + 1], t, text, enable_temporal_attentions=False)
        assert relative_l2(out[:, :, f : f + 1], alone) <= SAME
    assert relative_l2(run(model, x, t, text), out) > 1e-3


# --- training


def test_recompute_changes_nothing(monkeypatch):
    """Values and gradients are the same bits, and the forward of every block did run twice."""
    found, calls, construct = [], [], FeedForward.construct

    def counted(self, hidden_states):
        calls[-1] += 1
        return construct(self, hidden_states)

    monkeypatch.setattr(FeedForward, "construct", counted)
    x, t, text = t2v_inputs(frames=5, rows=3)
    weight = tensor(normal(2, 8, 5, 8, 8, seed=6))
    for use_recompute in (False, True):
        calls.append(0)
        model = tiny_t2v(use_recompute=use_recompute).set_train()

        def loss(latent, model=model):
            return (model(latent, tensor(t), tensor(text), use_image_num=2) * weight).sum()

        value, (to_x, to_weights) = ms.value_and_grad(loss, 0, model.trainable_params())(tensor(x))
        names = [parameter.name for parameter in model.trainable_params()]
        found.append((value, {"x": to_x} | dict(zip(names, to_weights, strict=True))))
        assert len(names) == len(parameters(model))
    assert calls == [4, 8]
    (value, gradients), (again, gradients_again) = found
    assert np.array_equal(value.asnumpy(), again.asnumpy())
    for name, gradient in gradients.items():
        assert np.array_equal(gradients_again[name].asnumpy(), gradient.asnumpy()), name
        assert np.abs(gradient.asnumpy()).max() > 0, name


# --- constructor, blocks


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            dict(activation_fn="relu"),
            "activation_fn is 'relu'; expected one of geglu, gelu, gelu-approximate",
        ),
        (
            dict(norm_type="layernorm"),
            "norm_type is 'layernorm'; expected one of ada_norm_single, layer_norm",
        ),
        (dict(norm_type="ada_norm_zero"), "'ada_norm_zero' needs num_embeds_ada_norm"),
        (
            dict(
                use_additional_conditions=True,
                attention_head_dim=10,
                cross_attention_dim=40,
                num_attention_heads=4,
            ),
            "size_emb_dim 13 must be a third of embedding_dim 40",
        ),
        (dict(dropout=0.1), "dropout 0.1 is not built yet"),
        (dict(cross_attention_dim=40), "cross_attention_dim 40 differs"),
        (dict(in_channels=None, patch_size=None), "needs in_channels, patch_size"),
        (dict(caption_channels=None), "needs caption_channels"),
    ],
)
def test_constructor_refuses_by_name(named, message):
    with pytest.raises(ValueError, match=message):
        LatteT2V(**{**LATTE_T2V, **named})


def test_latte_t2v_block_is_public():
    """One spatial and one temporal block; the first of them adds the temporal positions, any other does not."""
    block = dict(activation_fn="gelu-approximate", attention_bias=True, norm_elementwise_affine=False)
    spatial = fill(BasicTransformerBlock(48, 3, 16, cross_attention_dim=20, **block), seed=1)
    temporal = fill(BasicTransformerBlock_(48, 3, 16, **block), seed=2)
    x, text = normal(2 * 5 * 4, 48, seed=3), normal(6, TEXT, 20, seed=4)
    t, table = normal(2, 6 * 48, seed=5), get_1d_sincos_pos_embed(48, 3)
    arguments = dict(encoder_hidden_states=text, timestep=t, layout=TokenLayout(2, 5, 4), use_image_num=2)
    outs = [run(LatteT2VBlock(i, table, spatial, temporal), x, **arguments) for i in (0, 1)]
    assert outs[0].shape == (40, 48)
    frames = [out.reshape(2, 5, 4, 48) for out in outs]
    assert np.array_equal(frames[0][:, 3:], frames[1][:, 3:])  # images
    assert relative_l2(frames[0][:, :3], frames[1][:, :3]) > 1e-3
    still = run(LatteT2VBlock(0, np.zeros((3, 48)), spatial, temporal), x, **arguments)
    assert relative_l2(still, outs[1]) <= SAME


def test_init_weights_equals_the_twin():
    import torch_ref.models.latte_t2v as twin

    others = (dict(norm_type="ada_norm"), dict(norm_type="ada_norm_zero", use_additional_conditions=True))
    for changes in ({}, dict(norm_elementwise_affine=True), *others):
        config = {**LATTE_T2V, "num_embeds_ada_norm": 9, **changes}
        ours, theirs = LatteT2V(**config), twin.LatteT2V(**config)
        init_weights(ours, np.random.default_rng(3))
        twin.init_weights(theirs, np.random.default_rng(3))
        expected = {name: parameter.detach().numpy() for name, parameter in theirs.named_parameters()}
        assert parameters(ours).keys() == expected.keys()
        for name, value in expected.items():
            assert np.array_equal(parameters(ours)[name].asnumpy(), value), name
        again = LatteT2V(**config)
        init_weights(again, np.random.default_rng(4))
        table = "scale_shift_table"
        assert not np.array_equal(parameters(again)[table].asnumpy(), expected[table])
