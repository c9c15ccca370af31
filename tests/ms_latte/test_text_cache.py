# SPDX-License-Identifier: Apache-2.0
"""Text features in a file, and what becomes of padding."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import LattePipeline
from safetensors.numpy import save_file

from ms_latte.encoders.text_cache import TextCache, apply_mask, load_text_cache, save_text_cache
from tests.helpers import normal

PROMPTS = ("a dog on a beach", "a cat", "")
MASKS = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])


def cache(**changes):
    return TextCache(
        **{**dict(prompts=PROMPTS, embeddings=normal(3, 5, 6), masks=MASKS, encoder="T5"), **changes}
    )


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_round_trip(tmp_path, kind):
    """Bit for bit, in the order asked for; nothing else is left in the folder."""
    written = cache(embeddings=normal(3, 5, 6).astype(kind), weights="ab12")
    path = tmp_path / "text.safetensors"
    for _ in range(2):  # the second replaces the first
        save_text_cache(path, written)
    read = load_text_cache(path, width=6)
    assert (read.prompts, read.encoder, read.weights, read.max_length) == (PROMPTS, "T5", "ab12", 5)
    embeddings, masks = read.find(["", "a cat", ""])
    assert embeddings.dtype == kind
    assert np.array_equal(embeddings, written.embeddings[[2, 1, 2]]) and np.array_equal(
        masks, MASKS[[2, 1, 2]]
    )
    assert [file.name for file in tmp_path.iterdir()] == ["text.safetensors"]


def test_a_prompt_that_is_missing():
    with pytest.raises(
        ValueError, match=r"'a dog on the beach' is not among the 3 .* nearest is 'a dog on a beach'"
    ):
        cache().find(["a cat", "a dog on the beach"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(prompts=PROMPTS[:2]), r"got 2 prompts, embeddings \(3, 5, 6\)"),
        (dict(masks=MASKS[:, :4]), r"masks \(3, 4\)"),
        (dict(embeddings=normal(3, 5, 6).astype(np.float64)), "float64; expected float32 or float16"),
        (dict(prompts=("a", "b", "a")), "'a' is given 2 times"),
        (
            dict(embeddings=np.full((3, 5, 6), np.inf, np.float32)),
            "'a dog on a beach' have NaN",
        ),
        (dict(masks=MASKS * 2), "must be 1 for tokens"),
        (dict(masks=MASKS * 0), "with a token at least"),
    ],
)
def test_contents_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        cache(**changes)


def test_files_are_checked(tmp_path):
    path = tmp_path / "text.safetensors"
    with pytest.raises(ValueError, match="does not exist; expected a file of text features"):
        load_text_cache(path)
    with pytest.raises(ValueError, match="mkdir -p"):
        save_text_cache(tmp_path / "none" / "text.safetensors", cache())
    save_text_cache(path, cache())
    with pytest.raises(ValueError, match="width 6 by 'T5', the model reads 768"):
        load_text_cache(path, width=768)
    whole = path.read_bytes()
    for size in (len(whole) - 1, 20, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"\({size} bytes\) is cut short"):
            load_text_cache(path)
    path.write_bytes(whole.replace(b'"version":"1"', b'"version":"7"'))
    with pytest.raises(ValueError, match="version 7 of the format, this program reads 1"):
        load_text_cache(path)
    save_file({"weight": MASKS}, path)
    with pytest.raises(ValueError, match="holds no text features: got format None and tensors weight"):
        load_text_cache(path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "text.safetensors"
    save_text_cache(path, cache())
    before = path.read_bytes()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        save_text_cache(path, cache(encoder="another"))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


# --- padding


def test_masked_does_not_depend_on_the_batch():
    text, negative = normal(3, 5, 6), normal(3, 5, 6, seed=1)
    together = apply_mask(text, MASKS, negative)
    for i in range(3):
        alone = apply_mask(text[i : i + 1], MASKS[i : i + 1], negative[i : i + 1])
        for a, b in zip(alone, together, strict=True):
            assert np.array_equal(a[0], b[i])


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("mask_feature", "theirs"), [("batch_dependent", True), ("none", False)])
def test_the_published_pipeline(count, mask_feature, theirs):
    """diffusers' own encode_prompt, with a tokenizer and an encoder that return given arrays."""
    text, negative, mask = normal(count, 5, 6), normal(count, 5, 6, seed=1), MASKS[:count]
    answers = iter([text, negative])

    def tokenizer(*_, **__):
        return SimpleNamespace(input_ids=torch.zeros(count, 5), attention_mask=torch.from_numpy(mask))

    def encoder(*_, **__):
        return (torch.from_numpy(next(answers)),)

    encoder.dtype = torch.float32
    pipeline = SimpleNamespace(tokenizer=tokenizer, text_encoder=encoder, transformer=None)
    pipeline._text_preprocessing = lambda text, clean_caption: text
    pipeline.mask_text_embeddings = lambda *given: LattePipeline.mask_text_embeddings(pipeline, *given)
    expected = LattePipeline.encode_prompt(
        pipeline, ["x"] * count, negative_prompt="", device="cpu", mask_feature=theirs
    )
    got = apply_mask(text, mask, negative, mask_feature)
    assert got.mask is None
    assert np.array_equal(got.text, expected[0].numpy())
    assert np.array_equal(got.negative_text, expected[1].numpy())


def test_wrong_words_and_shapes():
    text = normal(3, 5, 6)
    for arguments, message in (
        ((text, MASKS, None, "yes"), "'yes'; expected one of masked, batch_dependent, none"),
        ((text, MASKS[:2]), "its mask (2, 5)"),
        ((text, MASKS, text[:2]), "negative_text is (2, 5, 6)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            apply_mask(*arguments)
