# SPDX-License-Identifier: Apache-2.0
"""The tokenizer against transformers' T5Tokenizer, on a tiny sentencepiece model trained here."""

import sys

import numpy as np
import pytest
import sentencepiece
from transformers import T5Tokenizer as TheirTokenizer

from ms_latte.encoders.tokenizer import T5Tokenizer

SENTENCES = """a dog runs on a beach
two cats and one dog sleep on a sofa
the waves of the sea break on the beach at sunset
yellow and black tropical fish dart through the sea
snow falls on mountains while the sun goes down
people walk in a crowded city, slowly; others run!
an astronaut in a white suit, on the moon
""".splitlines()
TEXTS = [
    "",
    "a dog",
    "  two   cats\ton a beach \n",
    "The Moon, slowly!",
    "unseen 漢字 🐶 words",
    "ﬁsh ½ \u00a0 e\u0301",
    "▁a▁dog",
    "people walk in a crowded city, slowly; others run! an astronaut in a white suit on the moon",
]


def train(path, **options):
    options = dict(vocab_size=60, pad_id=0, eos_id=1, unk_id=2, bos_id=-1) | options
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 20), model_writer=file, minloglevel=2, **options
        )
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train(tmp_path_factory.mktemp("t5") / "spiece.model")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("max_length", [2, 7, 24, 120])
def test_ids_of_transformers(model, max_length, legacy):
    theirs = TheirTokenizer(str(model), legacy=legacy)
    expected = theirs(
        TEXTS, padding="max_length", max_length=max_length, truncation=True, return_tensors="np"
    )
    got = T5Tokenizer(model)(TEXTS, max_length)
    assert np.array_equal(got.ids, expected.input_ids)
    assert np.array_equal(got.mask, expected.attention_mask)
    assert got.ids.dtype == got.mask.dtype == np.int32


def test_what_is_cut_off(model):
    """Whole words of the text as it was written; the last token stays the end of the text."""
    tokenizer = T5Tokenizer(model)
    text = "A Dog runs  on a beach"
    words = text.split()
    for max_length in range(1, 30):
        tokens = tokenizer([text, "a"], max_length)
        rest = tokens.cut[0]
        assert rest.split() == words[len(words) - len(rest.split()) :] and text.endswith(rest)
        kept = text[: len(text) - len(rest)].rstrip()
        assert tokenizer(kept, max_length).cut == [""]  # what is not listed fits
        assert tokens.ids[0, tokens.mask[0].sum() - 1] == 1
    assert tokens.cut == ["", ""]
    assert tokenizer(text, 1).cut == [text]


def test_one_text_or_several(model):
    tokenizer = T5Tokenizer(str(model))
    assert tokenizer("a dog", 9).ids.tolist() == tokenizer(["a dog"], 9).ids.tolist()
    assert tokenizer([], 9).ids.shape == (0, 9)
    assert tokenizer.vocab_size == 60


def test_folders(model, tmp_path):
    """The tokenizer's folder, and that of a pipeline."""
    assert T5Tokenizer(model.parent).path == model
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "spiece.model").write_bytes(model.read_bytes())
    assert T5Tokenizer(tmp_path).path == tmp_path / "tokenizer" / "spiece.model"


def test_files_that_do_not_do(model, tmp_path):
    with pytest.raises(ValueError, match=r"spiece\.model and .* do not exist; expected T5's"):
        T5Tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"none\.model does not exist"):
        T5Tokenizer(tmp_path / "none.model")
    pointer = tmp_path / "spiece.model"
    for content in (b"version https://git-lfs.github.com/spec/v1\n", b""):
        pointer.write_bytes(content)
        with pytest.raises(ValueError, match=rf"\({len(content)} bytes\) is not a sentencepiece model"):
            T5Tokenizer(tmp_path)
    other = train(tmp_path / "llama.model", pad_id=-1, eos_id=2, unk_id=0, bos_id=1)
    with pytest.raises(ValueError, match="padding -1 and end 2, expected 0 and 1"):
        T5Tokenizer(other)


def test_a_missing_package(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ValueError, match=r'pip install "ms-latte\[text\]"'):
        T5Tokenizer(model)


def test_texts_that_do_not_do(model):
    tokenizer = T5Tokenizer(model)
    with pytest.raises(ValueError, match="text 1 is a NoneType, expected a string"):
        tokenizer(["a", None], 9)
    with pytest.raises(ValueError, match="text 0 is not valid Unicode at character 2"):
        tokenizer("a \ud800 b", 9)
    with pytest.raises(ValueError, match="max_length is 0"):
        tokenizer("a", 0)
