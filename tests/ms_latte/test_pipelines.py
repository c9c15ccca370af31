# SPDX-License-Identifier: Apache-2.0
"""Pipelines: seeds, independence of the batch, guidance, text masks, and the originals' recorded trajectories."""

import mindspore as ms
import numpy as np
import pytest
from safetensors.numpy import load_file

import ms_latte.pipelines.class_to_video as class_module
from ms_latte.checkpoint import load
from ms_latte.diffusion.samplers import make_sampler
from ms_latte.encoders.tokenizer import Tokens
from ms_latte.pipelines.class_to_video import ClassToVideoPipeline
from ms_latte.pipelines.denoising import Noise, decode
from ms_latte.pipelines.prompts import encode, from_file
from ms_latte.pipelines.text_to_video import TextToVideoPipeline
from tests.helpers import GOLDEN, normal, relative_l2
from tests.ms_latte.tiny import SAME, TEXT, run, tensor, tiny_latte, tiny_t2v

SEEDS = [7, 8, 9]
MASK = np.array([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0]])


def class_pipeline(name="ddim", steps=3, condition="class", **changes):
    return ClassToVideoPipeline(tiny_latte(condition=condition, **changes), make_sampler(name, steps))


def text_pipeline(name="ddim", steps=3, **options):
    return TextToVideoPipeline(tiny_t2v(), make_sampler(name, steps, channel_axis=1, **options))


def text(rows=3):
    return normal(rows, TEXT, 20, seed=2), np.broadcast_to(normal(TEXT, 20, seed=3), (rows, TEXT, 20))


# ---------------------------------------------------------------------------------------------- seeds and batches


def test_noise_of_a_sample_depends_on_its_seed_alone():
    batch, alone = Noise(SEEDS, (2, 3)), Noise(SEEDS[1:2], (2, 3))
    for _ in range(3):
        drawn = batch.draw()
        assert np.array_equal(drawn[1:2], alone.draw()) and not np.array_equal(drawn[0], drawn[1])


def test_noise_is_numpys_own():
    expected = np.random.default_rng(7).standard_normal((2, 3), dtype=np.float32)
    assert np.array_equal(Noise([7], (2, 3)).draw()[0], expected)


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_class_sample_is_the_same_alone_and_in_a_batch(name, scale):
    pipeline, classes = class_pipeline(name), [1, 6, 3]
    together = pipeline.sample(SEEDS, classes, guidance_scale=scale)
    alone = [pipeline.sample([s], [c], guidance_scale=scale)[0] for s, c in zip(SEEDS, classes, strict=True)]
    assert np.array_equal(together, np.stack(alone))
    assert together.shape == (3, 3, 4, 8, 8) and together.dtype == np.float32
    # One call of the model for all samples differs in rounding only.
    joint = pipeline.sample(SEEDS, classes, guidance_scale=scale, batch_size=3)
    assert relative_l2(joint, together) <= 3 * SAME


@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler", "dpm++2m"])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_text_sample_is_the_same_alone_and_in_a_batch(name, scale):
    pipeline, (words, negative) = text_pipeline(name), text()
    together = pipeline.sample(SEEDS, words, MASK, negative, scale)
    alone = [
        pipeline.sample([SEEDS[i]], words[i : i + 1], MASK[i : i + 1], negative[:1], scale)[0]
        for i in range(3)
    ]
    assert np.array_equal(together, np.stack(alone))
    assert together.shape == (3, 3, 4, 8, 8)
    joint = pipeline.sample(SEEDS, words, MASK, negative, scale, batch_size=2)
    assert relative_l2(joint, together) <= 3 * SAME


def test_samples_of_different_seeds_differ():
    found = class_pipeline(condition="none").sample(SEEDS)
    assert relative_l2(found[0], found[1]) > 0.1


def test_noise_of_the_caller():
    pipeline, noise = class_pipeline(condition="none"), normal(2, 3, 4, 8, 8, seed=4)
    first = pipeline.sample([1, 2], noise=noise)
    assert np.array_equal(first, pipeline.sample([3, 4], noise=noise))
    drawn = np.stack(
        [np.random.default_rng(s).standard_normal((3, 4, 8, 8), dtype=np.float32) for s in (1, 2)]
    )
    assert np.array_equal(pipeline.sample([1, 2]), pipeline.sample([5, 6], noise=drawn))
    with pytest.raises(ValueError, match="noise is"):
        pipeline.sample([1, 2], noise=noise[:1])


def test_every_step_is_told():
    seen = []
    class_pipeline(condition="none").sample([1, 2], on_step=seen.append)
    assert seen == [0, 1, 2, 0, 1, 2]


# ---------------------------------------------------------------------------------------------- the originals


@pytest.mark.parametrize(("name", "steps"), [("ddpm", 16), ("ddim", 8)])
def test_recorded_trajectory_of_the_original(name, steps, monkeypatch):
    tensors = load_file(GOLDEN / f"diffusion_{name}.io.safetensors")
    # step 0 draws the initial noise, which is given instead
    recorded = iter([tensors["x_T"], *tensors.get("noise", ())])

    class Recorded(Noise):
        def draw(self):
            return next(recorded)

    monkeypatch.setattr(class_module, "Noise", Recorded)
    model = load(GOLDEN / "diffusion_model.pt", overrides=dict(num_heads=3))
    pipeline = ClassToVideoPipeline(model, make_sampler(name, steps))
    found = pipeline.sample([0], num_frames=4, latent_size=(12, 12))
    # float32, each step amplifies the rounding of those before: 1.2e-7 measured for ddim; 2 heads instead of 3: 2e-4.
    assert relative_l2(found, tensors["out"]) <= 2e-6


def test_guidance_by_class_is_the_originals_batch():
    """One step by hand: the doubled batch [conditional; null] of the original, guided on 4 of 8 channels."""
    pipeline, noise = class_pipeline(steps=1), normal(2, 3, 4, 8, 8, seed=4)
    found = pipeline.sample([1, 2], [5, 0], guidance_scale=4.0, noise=noise)
    model, sampler = pipeline.model, pipeline.sampler
    t = np.full(2, sampler.timesteps[0])
    cond, null = run(model, noise, t, np.array([5, 0])), run(model, noise, t, np.array([7, 7]))
    guided = np.concatenate(
        [null[:, :, :4] + 4.0 * (cond[:, :, :4] - null[:, :, :4]), cond[:, :, 4:]], axis=2
    )
    expected, _ = sampler.step(0, tensor(noise), tensor(guided.astype(np.float32)))
    assert relative_l2(found, expected.asnumpy()) <= 4 * SAME


def test_guidance_by_text_is_the_pipelines_batch():
    """One step by hand: all channels guided; both texts at the length of the positive one, as for a prompt alone."""
    pipeline, noise = text_pipeline(steps=1), normal(1, 3, 4, 8, 8, seed=4)
    words, negative = text(1)
    found = pipeline.sample([1], words, MASK[:1], negative, 4.0, noise=noise)
    x, t = noise.transpose(0, 2, 1, 3, 4), np.full(1, pipeline.sampler.timesteps[0])
    cond, null = (run(pipeline.model, x, t, rows[:, :3].copy()) for rows in (words, negative))
    guided = (null + 4.0 * (cond - null)).astype(np.float32)
    expected, _ = pipeline.sampler.step(0, tensor(x.copy()), tensor(guided))
    assert relative_l2(found, expected.asnumpy().transpose(0, 2, 1, 3, 4)) <= 4 * SAME


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_text_is_projected_once_for_all_steps(scale):
    """Caption projection, keys and values of every block: one call in three steps, the bits of three."""
    pipeline, (words, negative), calls = text_pipeline(), text(1), []
    model, projections = pipeline.model, [pipeline.model.caption_projection]
    for block in model.transformer_blocks:
        projections += [block.attn2.to_k, block.attn2.to_v]
    hooks = [
        cell.register_forward_hook(lambda *_, i=i: calls.append(i)) for i, cell in enumerate(projections)
    ]
    found = pipeline.sample([1], words, MASK[:1], negative, scale)
    assert sorted(calls) == list(range(len(projections))) and len(pipeline.sampler.timesteps) == 3
    pipeline.sample([2], words.copy(), MASK[:1].copy(), negative, scale)  # another video of the same text
    assert len(calls) == len(projections)
    pipeline.sample([1], words + 1, MASK[:1], negative, scale)
    assert len(calls) == 2 * len(projections)
    for hook in hooks:
        hook.remove()
    rows = np.concatenate([negative, words]) if scale != 1.0 else words
    mask = np.repeat(MASK[:1], len(rows), axis=0)

    class Raw:
        """The model, fed with the text itself in every step."""

        def __getattr__(self, name):
            return getattr(model, name)

        def prepare_text(self, *_):
            return (tensor(rows),)

        def __call__(self, x, t, prepared, **flag):
            return model(x, t, prepared[0], encoder_attention_mask=tensor(mask), **flag)

    pipeline.model = Raw()
    assert np.array_equal(pipeline.sample([1], words, MASK[:1], negative, scale), found)


def test_the_size_of_the_frames_is_told_to_who_asks():
    model, (words, negative) = tiny_t2v(use_additional_conditions=True), text(1)
    pipeline = TextToVideoPipeline(model, make_sampler("ddim", 1, channel_axis=1))
    noise = normal(1, 3, 4, 8, 12, seed=4)
    found = pipeline.sample([1], words, MASK[:1], negative, 4.0, latent_size=(8, 12), noise=noise)
    x, t = noise.transpose(0, 2, 1, 3, 4).copy(), np.full(1, pipeline.sampler.timesteps[0])
    sizes = {
        "resolution": tensor(np.array([[64, 96]])),
        "aspect_ratio": tensor(np.array([[8 / 12]], np.float32)),
    }
    named = dict(encoder_attention_mask=MASK[:1], added_cond_kwargs=sizes)
    cond, null = (run(model, x, t, rows.copy(), **named) for rows in (words, negative))
    guided = (null + 4.0 * (cond - null)).astype(np.float32)
    expected, _ = pipeline.sampler.step(0, tensor(x), tensor(guided))
    assert relative_l2(found, expected.asnumpy().transpose(0, 2, 1, 3, 4)) <= 4 * SAME


def test_a_single_frame_is_an_image():
    words, negative = text(1)
    found = text_pipeline().sample([1], words, MASK[:1], negative, 4.0, num_frames=1)
    assert found.shape == (1, 1, 4, 8, 8) and np.isfinite(found).all()


def test_padding_is_never_attended():
    pipeline, (words, negative) = text_pipeline(), text(1)
    changed = words.copy()
    changed[:, 3:] += 5.0
    one, other = (pipeline.sample([1], rows, MASK[:1], negative, 4.0) for rows in (words, changed))
    assert np.array_equal(one, other)


def test_batch_dependent_text_is_a_word_of_the_user():
    pipeline, (words, negative) = text_pipeline(), text()
    quirk = dict(mask_feature="batch_dependent")
    first = pipeline.sample(SEEDS, words, MASK, negative, 4.0)
    # Alone both words mean the same; together only the default does.
    assert relative_l2(pipeline.sample(SEEDS, words, MASK, negative, 4.0, **quirk), first) <= 3 * SAME
    assert (
        relative_l2(pipeline.sample(SEEDS, words, MASK, negative, 4.0, batch_size=3, **quirk), first) > 1e-3
    )


class LetterTokenizer:
    """Stands for T5's: a token a letter."""

    def __call__(self, texts, max_length):
        (text,) = texts
        kept = [ord(c) for c in text[: max_length - 1]] + [1]
        ids, mask = np.zeros((2, 1, max_length), np.int32)
        ids[0, : len(kept)], mask[0, : len(kept)] = kept, 1
        return Tokens(ids, mask, [text[max_length - 1 :]])


def test_prompts_are_encoded_once_and_what_is_cut_is_said(tmp_path):
    seen, said = [], []

    def encoder(ids, mask):
        seen.append(ids.shape)
        return ids.expand_dims(2).astype(ms.float32) * mask.expand_dims(2)

    file = tmp_path / "t.safetensors"
    prompts = ["A dog", " a dog ", "a very long one"]
    named = dict(max_length=7, clean=False, say=said.append, save=file)
    texts = encode(prompts, "", LetterTokenizer(), encoder, **named)
    assert seen == [(1, 7)] * 3 and texts.prompts == tuple(prompts)
    assert len(said) == 1 and "' long one'" in said[0] and "7 tokens" in said[0]
    words, mask, negative = texts.rows([0, 1, 2])
    assert np.array_equal(words[0], words[1]) and words[0, :6, 0].tolist() == [*map(ord, "a dog"), 1]
    assert mask.sum(1).tolist() == [6, 6, 7] and negative[2, :2, 0].tolist() == [1, 0]
    again = from_file(file, prompts, "", clean=False).rows([0, 1, 2])
    assert all(np.array_equal(a, b) for a, b in zip(again, (words, mask, negative), strict=True))
    with pytest.raises(ValueError, match="nothing is overwritten"):
        encode(prompts, None, LetterTokenizer(), encoder, **named)
    with pytest.raises(ValueError, match="nearest is 'a dog'"):
        from_file(file, ["a dot"])


# ---------------------------------------------------------------------------------------------- decoding


class ScalingVae:
    """Stands for a VAE: pixels are the first three channels over the scaling factor, each eight times as wide."""

    scaling_factor = 0.25

    def decode_video(self, latents, chunk=1):
        self.chunk = chunk
        pixels = (latents / self.scaling_factor).asnumpy()[:, :, :3]
        return tensor(pixels.repeat(8, 3).repeat(8, 4))


def test_decoding_scales_once_and_keeps_samples_apart():
    latents = np.linspace(-0.25, 0.25, 2 * 3 * 4 * 2 * 2, dtype=np.float32).reshape(2, 3, 4, 2, 2)
    vae = ScalingVae()
    frames = decode(vae, latents)
    assert frames.shape == (2, 3, 16, 16, 3) and frames.dtype == np.uint8 and vae.chunk == 1
    level = np.floor(((latents[1, 2, 0, 1, 1] * 4) * 0.5 + 0.5) * 255 + 0.5)
    assert frames[1, 2, 8, 8, 0] == level and frames[1, 2, 15, 15, 0] == level
    assert np.array_equal(decode(vae, latents * 2, scaling_factor=0.5, chunk=2), frames) and vae.chunk == 2


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(class_ids=None), "needs class_ids"),
        (dict(class_ids=[1, 7]), "class 7 is out of range; expected 0 to 6"),
        (dict(class_ids=[1]), "1 class_ids for 2 seeds"),
        (dict(text_embedding=np.zeros((2, 77, 768))), "takes no text"),
        (dict(latent_size=(8, 7)), "multiples of 16"),
    ],
)
def test_mistakes_by_class_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        class_pipeline().sample([1, 2], **{"class_ids": [1, 2], **changes})


def test_mistakes_without_condition_are_named():
    pipeline = class_pipeline(condition="none")
    with pytest.raises(ValueError, match="takes no class_ids"):
        pipeline.sample([1], [1])
    with pytest.raises(ValueError, match="no meaning for an unconditional model"):
        pipeline.sample([1], guidance_scale=2.0)
    with pytest.raises(ValueError, match="lacks"):
        class_pipeline(class_dropout_prob=0.0).sample([1], [1], guidance_scale=2.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(text=np.zeros((2, TEXT, 21))), "of the width"),
        (dict(text=np.zeros((1, TEXT, 20))), "one row a sample"),
        (dict(mask=np.ones((2, TEXT + 1))), "text mask is"),
        (dict(mask=np.zeros((2, TEXT))), "single token"),
        (dict(negative_text=None), "needs negative_text"),
        (dict(negative_text=np.zeros((2, 3, 20))), "negative text features are"),
        (dict(mask_feature="no"), "masked, batch_dependent"),
        (dict(latent_size=(8, 7)), "multiples of 16"),
    ],
)
def test_mistakes_by_text_are_named(changes, words):
    named = dict(text=text(2)[0], mask=MASK[:2], negative_text=text(2)[1], guidance_scale=4.0)
    with pytest.raises(ValueError, match=words):
        text_pipeline().sample([1, 2], **{**named, **changes})
