# SPDX-License-Identifier: Apache-2.0
"""Behaviour of `ms_latte.models.latte` that is ours: what the originals get wrong, leave open or disagree about."""

import mindspore as ms
import numpy as np
import pytest

from ms_latte.models.latte import Latte, Latte_models, init_weights
from ms_latte.models.positional import get_1d_sincos_pos_embed, get_2d_sincos_pos_embed
from tests.helpers import normal, relative_l2
from tests.ms_latte.tiny import LATTE, SAME, fill, latte_inputs, parameters, run, shapes, tensor, tiny_latte


@pytest.fixture(scope="module")
def plain():
    return tiny_latte()


@pytest.fixture(scope="module")
def by_class():
    return tiny_latte(condition="class")


# --- axes, frames, sizes


def test_axes_are_frames_before_channels(plain):
    x, t = latte_inputs(height=8, width=8)
    assert run(plain, x, t).shape == (2, 3, 8, 8, 8)  # (N, F, 2C, H, W)
    assert tiny_latte(learn_sigma=False, in_channels=5)(
        tensor(normal(1, 3, 5, 8, 8)), tensor(t[:1])
    ).shape == (
        1,
        3,
        5,
        8,
        8,
    )
    with pytest.raises(ValueError, match=r"C = 4, got \(2, 4, 3, 8, 8\)"):
        run(plain, x.transpose(0, 2, 1, 3, 4), t)


def test_each_frame_keeps_its_place(plain):
    """Frames permuted at the input come out permuted only if nothing but the temporal table tells them apart."""
    x, t = latte_inputs()
    out, swapped = run(plain, x, t), run(plain, x[:, [1, 0, 2]], t)
    assert relative_l2(swapped[:, [1, 0, 2]], out) > 1e-3
    untimed = tiny_latte()
    parameters(untimed)["temp_embed"].set_data(ms.Tensor(np.zeros((1, 3, 48), np.float32)))
    assert relative_l2(run(untimed, x[:, [1, 0, 2]], t)[:, [1, 0, 2]], run(untimed, x, t)) <= SAME


def test_one_frame_keeps_its_temporal_position(plain):
    """Latte adds row 0 of its temporal table at one frame too; nothing is squeezed away."""
    x, t = latte_inputs(frames=1)
    out = run(plain, x, t)
    assert out.shape == (2, 1, 8, 8, 8)
    untimed = tiny_latte()
    parameters(untimed)["temp_embed"].set_data(ms.Tensor(np.zeros((1, 3, 48), np.float32)))
    assert relative_l2(run(untimed, x, t), out) > 1e-3


def test_one_token(plain):
    x, t = latte_inputs(height=2, width=2)
    assert run(plain, x, t).shape == (2, 3, 8, 2, 2)
    x, t = latte_inputs(frames=1, height=2, width=2)
    assert run(plain, x, t).shape == (2, 1, 8, 2, 2)


def test_fewer_frames_use_the_first_rows(plain):
    x, t = latte_inputs(frames=2)
    short = tiny_latte(num_frames=2)
    assert relative_l2(run(plain, x, t), run(short, x, t)) <= SAME


def test_more_frames_extend_the_formula(plain):
    x, t = latte_inputs(frames=5)
    long = tiny_latte(num_frames=5)
    assert relative_l2(run(plain, x, t), run(long, x, t)) <= SAME


@pytest.mark.parametrize(("height", "width"), [(8, 12), (6, 4), (10, 10)])
def test_another_size_extends_the_formula(plain, height, width):
    x, t = latte_inputs(height=height, width=width)
    built = tiny_latte(input_size=(height, width))
    assert relative_l2(run(plain, x, t), run(built, x, t)) <= SAME


def test_not_square_table_encodes_row_and_column():
    """(h, w) of its own: the column in the first half of the width, the row in the second."""
    table = parameters(tiny_latte(input_size=(4, 6)))["pos_embed"].asnumpy()[0]
    rows, columns = np.repeat(np.arange(2), 3), np.tile(np.arange(3), 2)
    one = get_1d_sincos_pos_embed(24, 3)
    expected = np.concatenate([one[columns], one[rows]], axis=1)
    assert np.abs(table - expected).max() <= 6e-8  # one rounding to float32 of values up to 1


@pytest.mark.parametrize(
    ("name", "sizes", "reason"),
    [
        ("pos_embed", dict(width=12), "latent grid 4x6"),
        ("temp_embed", dict(frames=5), "5 frames"),
    ],
)
def test_learned_table_is_not_extended(name, sizes, reason):
    """A stored table that is not the sine-cosine one serves its own size, and no other."""
    model = tiny_latte()
    before = parameters(model)[name].asnumpy()
    parameters(model)[name].set_data(ms.Tensor(before + 0.1 * normal(*before.shape, seed=9)))
    x, t = latte_inputs()
    assert relative_l2(run(model, x, t), run(tiny_latte(), x, t)) > 1e-4  # the stored table is used
    x, t = latte_inputs(**sizes)
    with pytest.raises(ValueError, match=f"{reason}.*not the sine-cosine"):
        run(model, x, t)
    assert model.check_stored_tables() is False and tiny_latte().check_stored_tables() is True


@pytest.mark.parametrize("compute", ["fp16", "bf16"])
def test_table_rounded_to_half_precision_is_still_sincos(compute):
    from ms_latte.models.precision import Precision

    assert Latte(**LATTE, precision=Precision(compute)).check_stored_tables()


def test_size_that_the_patch_does_not_divide_is_refused(plain):
    x, t = latte_inputs(height=9)
    with pytest.raises(ValueError, match="9x8 is not divisible by patch_size 2"):
        run(plain, x, t)
    with pytest.raises(ValueError, match=r"\(9, 8\) is not divisible"):
        Latte(input_size=(9, 8))


def test_stored_tables_are_not_trained(plain):
    frozen = {name for name, parameter in parameters(plain).items() if not parameter.requires_grad}
    assert frozen == {"pos_embed", "temp_embed"}
    assert not frozen & {parameter.name for parameter in plain.trainable_params()}


# --- conditions


def test_every_sample_has_its_own_condition(by_class):
    """A batch equals its samples alone: conditions are repeated in runs, sample by sample."""
    x, t = latte_inputs()
    y = np.array([5, 2])
    out = run(by_class, x, t, y)
    for i in range(2):
        alone = run(by_class, x[i : i + 1], t[i : i + 1], y[i : i + 1])
        assert relative_l2(out[i : i + 1], alone) <= SAME
    assert relative_l2(run(by_class, x, t, y[::-1].copy()), out) > 1e-3


def test_drop_ids_take_the_null_label(by_class):
    """The null label is num_classes; the caller says which labels are dropped, in training and evaluation alike."""
    x, t = latte_inputs()
    y, null = np.array([5, 2]), np.array([7, 2])
    expected = run(by_class, x, t, null)
    for train in (True, False):
        by_class.set_train(train)
        assert np.array_equal(run(by_class, x, t, y, drop_ids=np.array([True, False])), expected)
        assert np.array_equal(
            run(by_class, x, t, y), run(by_class, x, t, y, drop_ids=np.array([False, False]))
        )
    assert relative_l2(run(by_class, x, t, y), expected) > 1e-3


def test_drop_ids_need_a_null_label():
    model = tiny_latte(condition="class", class_dropout_prob=0.0)
    assert shapes(model)["y_embedder.embedding_table.weight"] == (7, 48)
    assert shapes(tiny_latte(condition="class"))["y_embedder.embedding_table.weight"] == (8, 48)
    x, t = latte_inputs()
    with pytest.raises(ValueError, match="class_dropout_prob > 0"):
        run(model, x, t, np.array([5, 2]), drop_ids=np.array([True, False]))


def test_text_reaches_the_blocks_and_not_the_final_layer():
    """QUIRK(text_not_final): with its blocks' gates at zero the model does not see the text at all."""
    model = tiny_latte(condition="text", depth=2)
    x, t = latte_inputs()
    texts = [normal(2, 77, 768, seed=seed) for seed in (3, 4)]
    outs = [run(model, x, t, text_embedding=text) for text in texts]
    assert relative_l2(outs[0], outs[1]) > 1e-3
    for i in range(2):  # each sample its own text
        alone = run(model, x[i : i + 1], t[i : i + 1], text_embedding=texts[0][i : i + 1])
        assert relative_l2(outs[0][i : i + 1], alone) <= SAME
    for name, parameter in parameters(model).items():
        if name.startswith("blocks.") and "adaLN_modulation" in name:
            parameter.set_data(ms.Tensor(np.zeros(parameter.shape, np.float32)))
    outs = [run(model, x, t, text_embedding=text) for text in texts]
    assert np.array_equal(*outs)


@pytest.mark.parametrize(
    ("condition", "named", "message"),
    [
        ("none", dict(y=np.array([1, 2])), "'none', and y is unexpected"),
        ("class", dict(), "'class', and y is missing"),
        ("text", dict(), "text_embedding is missing"),
        ("class", dict(y=np.array([1, 2]), use_image_num=1), "y_image"),
        ("none", dict(use_image_num=3), "no video frame"),
    ],
)
def test_wrong_arguments_are_named(condition, named, message):
    model = Latte(**LATTE, condition=condition)
    x, t = latte_inputs()
    with pytest.raises(ValueError, match=message):
        run(model, x, t, **named)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (dict(condition="label"), "'label'; expected one of none, class, text"),
        (dict(depth=3), "even"),
        (dict(hidden_size=52), "52 is not divisible by 3 heads"),
        (dict(attention="xformers"), "'xformers'; expected one of math, flash"),
    ],
)
def test_wrong_constructor_arguments_are_named(named, message):
    with pytest.raises(ValueError, match=message):
        Latte(**{**LATTE, **named})


def test_timesteps_are_integers_or_floats(plain):
    x, t = latte_inputs()
    out = run(plain, x, t)
    for dtype in (ms.int32, ms.int64, ms.float32):
        assert np.array_equal(plain(tensor(x), ms.Tensor(t, dtype)).asnumpy(), out)
    assert relative_l2(run(plain, x, (t + 0.5).astype(np.float32)), out) > 1e-4


# --- images behind the video


def test_images_pass_the_temporal_blocks_by(plain):
    """The video does not see the images, an image sees nothing else: training and evaluation agree."""
    x, t = latte_inputs(frames=5)
    for train in (True, False):
        plain.set_train(train)
        out = run(plain, x, t, use_image_num=2)
        assert out.shape == (2, 5, 8, 8, 8)
        assert relative_l2(out[:, :3], run(plain, x[:, :3], t)) <= SAME
        other = x.copy()
        other[:, :4] = normal(2, 4, 4, 8, 8, seed=8)
        assert relative_l2(run(plain, other, t, use_image_num=2)[:, 4], out[:, 4]) <= SAME
    assert relative_l2(run(plain, x, t), out) > 1e-3  # five video frames are something else


def test_images_have_labels_of_their_own(by_class):
    """Each image takes its own label, the video its own, for every sample."""
    x, t = latte_inputs(frames=5)
    y, y_image = np.array([5, 2]), np.array([[1, 6], [3, 0]])
    out = run(by_class, x, t, y, y_image=y_image, use_image_num=2)
    assert relative_l2(out[:, :3], run(by_class, x[:, :3], t, y)) <= SAME
    for sample in range(2):
        changed = y_image.copy()
        changed[sample, 1] = 4
        again = run(by_class, x, t, y, y_image=changed, use_image_num=2)
        touched = np.abs(again - out).max(axis=(2, 3, 4)) > 1e-4  # (N, F+I)
        expected = np.zeros((2, 5), bool)
        expected[sample, 4] = True
        assert np.array_equal(touched, expected)
    dropped = run(by_class, x, t, y, y_image=y_image, use_image_num=2, drop_ids=np.array([True, False]))
    null = run(by_class, x, t, np.array([7, 2]), y_image=np.array([[7, 7], [3, 0]]), use_image_num=2)
    assert relative_l2(dropped, null) <= SAME


# --- guidance


@pytest.mark.parametrize("guided", [4, None])
def test_guidance(by_class, guided):
    """First half used for both; null + s (cond - null) on the guided channels, the rest unguided per half."""
    x, t = latte_inputs(batch=4)
    x[2:] = 100.0  # must not matter
    t, y = np.array([500, 500, 500, 500]), np.array([5, 2, 7, 7])
    out = by_class.forward_with_cfg(
        tensor(x), tensor(t), tensor(y), cfg_scale=3.0, guided_channels=guided
    ).asnumpy()
    cond, null = run(by_class, x[:2], t[:2], y[:2]), run(by_class, x[:2], t[:2], y[2:])
    k = 8 if guided is None else guided
    expected = null[:, :, :k] + 3.0 * (cond[:, :, :k] - null[:, :, :k])
    # A guidance of 3 amplifies the float32 noise of the difference: 2 * 3 times.
    assert relative_l2(out[:2, :, :k], expected) <= 6 * SAME
    assert np.array_equal(out[:2, :, :k], out[2:, :, :k])
    if guided:
        assert relative_l2(out[:2, :, k:], cond[:, :, k:]) <= SAME
        assert relative_l2(out[2:, :, k:], null[:, :, k:]) <= SAME


def test_guidance_needs_an_even_batch(by_class):
    x, t = latte_inputs(batch=3)
    with pytest.raises(ValueError, match="even batch"):
        by_class.forward_with_cfg(tensor(x), tensor(t), tensor(np.array([1, 2, 7])))


# --- initialisation


def test_constructor_draws_nothing():
    """Zeros but for the tables: what a model is initialised with is the caller's generator."""
    for name, parameter in parameters(Latte(**LATTE)).items():
        if name not in ("pos_embed", "temp_embed"):
            assert not parameter.asnumpy().any(), name


def test_fresh_model_outputs_zero():
    model = Latte(**LATTE, condition="class")
    init_weights(model, np.random.default_rng(0))
    x, t = latte_inputs()
    assert not run(model, x, t, np.array([1, 2])).any()
    values = {name: parameter.asnumpy() for name, parameter in parameters(model).items()}
    still = {name for name, value in values.items() if not value.any()}
    assert {name for name in still if not name.endswith("bias")} == {
        name
        for name in values
        if not name.endswith("bias") and ("adaLN_modulation" in name or name.startswith("final_layer."))
    }


@pytest.mark.parametrize("condition", ["none", "class", "text"])
def test_init_weights_equals_the_twin(condition):
    import torch_ref.models.latte as twin

    ours, theirs = Latte(**LATTE, condition=condition), twin.Latte(**LATTE, condition=condition)
    init_weights(ours, np.random.default_rng(3))
    twin.init_weights(theirs, np.random.default_rng(3))
    expected = {name: parameter.detach().numpy() for name, parameter in theirs.named_parameters()}
    assert parameters(ours).keys() == expected.keys()
    for name, value in expected.items():
        assert np.array_equal(parameters(ours)[name].asnumpy(), value), name


def test_presets_take_overrides():
    model = Latte_models["Latte-S/8"](depth=2, num_frames=5, input_size=(16, 24))
    assert (model.patch_size, model.hidden_size, len(model.blocks), model.grid) == (8, 384, 2, (2, 3))


def test_default_table_is_the_plain_grid():
    """Official Latte: positions 0, 1, 2 ... per patch, no rescaling."""
    model = fill(Latte(**{**LATTE, "input_size": 12}))
    expected = get_2d_sincos_pos_embed(48, 6)
    assert np.array_equal(parameters(model)["pos_embed"].asnumpy()[0], expected.astype(np.float32))
