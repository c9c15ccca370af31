# SPDX-License-Identifier: Apache-2.0
"""Captions in a cache: encoded by T5 as for sampling, those without features reported."""

import numpy as np
import pytest
from PIL import Image

from ms_latte import cache, checkpoint
from ms_latte.data.latent_store import read_facts
from ms_latte.data.latents import LatentDataset
from ms_latte.encoders.t5 import T5EncoderModel
from ms_latte.encoders.text_cache import TextCache, save_text_cache
from ms_latte.encoders.tokenizer import T5Tokenizer
from ms_latte.encoders.vae import AutoencoderKL
from ms_latte.pipelines.prompts import encode
from parity.encoders.t5 import CONFIG
from tests.helpers import normal
from tests.ms_latte.test_cache import VAE
from tests.ms_latte.test_tokenizer import train
from tests.ms_latte.tiny import fill

CAPTIONS = {"sea": "The waves of the sea  break", "snow": "snow falls", "moon": "snow falls"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for name in CAPTIONS:
        (folder / "clips" / name).mkdir(parents=True)
        Image.new("RGB", (12, 8), (len(name), 90, 200)).save(folder / "clips" / name / "0.png")
    rows = [f'{name},"{caption}"' for name, caption in CAPTIONS.items()]
    (folder / "clips.csv").write_text("\n".join(["video,caption", *rows]))
    checkpoint.save(fill(AutoencoderKL(**VAE)), folder / "vae.safetensors")
    checkpoint.save(fill(T5EncoderModel(**CONFIG | {"vocab_size": 64})), folder / "t5.safetensors")
    train(folder / "spiece.model")
    return folder


def call(home, out, *more):
    told = {
        "data_folder": home / "clips",
        "csv_path": home / "clips.csv",
        "cache_folder": out,
        "condition": "text",
    }
    told |= {"vae_checkpoint": home / "vae.safetensors", "image_size": "8,12", "device_target": "CPU"}
    return cache.main(
        [str(word) for key, value in told.items() for word in (f"--{key}", value)] + [*map(str, more)]
    )


def test_captions_are_encoded_as_prompts_are(home, tmp_path):
    more = ("--text_encoder", home / "t5.safetensors", "--text_length", "12")
    assert call(home, tmp_path, *more, "--tokenizer", home / "spiece.model") == 0
    encoder, tokenizer = checkpoint.load(home / "t5.safetensors"), T5Tokenizer(home / "spiece.model")
    texts = encode(list(CAPTIONS.values()), None, tokenizer, encoder, 12, True)
    text, mask, _ = texts.rows(range(3))
    latents = LatentDataset(tmp_path, 1, with_text=True)
    for i, name in enumerate(CAPTIONS):
        sample = latents.get(i, np.random.default_rng(0))
        assert latents.name(i) == name and sample["caption"] == CAPTIONS[name]
        np.testing.assert_array_equal(sample["text"], text[i])
        np.testing.assert_array_equal(sample["text_mask"], mask[i])
    told = read_facts(tmp_path)["text"]
    assert (told["sha256"], told["length"]) == (checkpoint.weights_hash(encoder), 12)
    assert call(home, tmp_path, *more) == 0  # the tokenizer beside the encoder is the same one


def test_a_caption_without_features_is_a_failed_video(home, tmp_path, capsys):
    features = TextCache(("snow falls",), normal(1, 4, 5), np.ones((1, 4), int), "tiny")
    save_text_cache(tmp_path / "some.safetensors", features)
    assert call(home, tmp_path / "out", "--embeddings", tmp_path / "some.safetensors") == 0
    shown = capsys.readouterr().out
    assert (
        "tried 3, saved 2, failed 1" in shown
        and "failed sea: the prompt 'the waves of the sea break'" in shown
    )
