# SPDX-License-Identifier: Apache-2.0
"""Prompts to text features, each distinct one once: by T5, or from a file of another run or another encoder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ms_latte.encoders.text_cache import TextCache, load_text_cache, save_text_cache


@dataclass(frozen=True)
class Texts:
    """Features of prompts. prompts: as the user wrote them, in order; keys: as the encoder got them; negative_key: of
    the negative prompt, or None without guidance."""

    prompts: tuple[str, ...]
    keys: tuple[str, ...]
    negative_key: str | None
    cache: TextCache

    def rows(self, indices):
        """(text (N, L, D), mask (N, L), negative_text (N, L, D) or None) of prompts by their index, float32."""
        text, mask = self.cache.find([self.keys[i] for i in indices])
        negative = None
        if self.negative_key is not None:
            row, _ = self.cache.find([self.negative_key])
            negative = np.broadcast_to(row, text.shape).astype(np.float32)
        return text.astype(np.float32), mask, negative


def from_file(path, prompts=(), negative_prompt=None, clean=False):
    """Texts of a file of features. prompts: those to take, all but the negative one by default; a prompt is looked up
    as it is written, then as the tokenizer would get it. Raises ValueError for one that the file does not have."""
    cache = load_text_cache(path)
    negative = None if negative_prompt is None else _key(cache, negative_prompt, clean)
    chosen = tuple(prompts) or tuple(p for p in cache.prompts if p != negative) or cache.prompts
    texts = Texts(chosen, tuple(_key(cache, p, clean) for p in chosen), negative, cache)
    cache.find([*texts.keys, *([negative] if negative is not None else [])])
    return texts


def _key(cache, prompt, clean):
    if prompt in cache.prompts:
        return prompt
    from ms_latte.pipelines.captions import prepare_captions

    return prepare_captions([prompt], clean)[0]


def encode(
    prompts, negative_prompt, tokenizer, encoder, max_length=120, clean=True, name="T5", say=print, save=None
):
    """Texts by a tokenizer and an encoder: ids (1, L), mask (1, L) -> (1, L, D). What is cut of a prompt is said.

    One prompt is encoded at a time, so its features have the same bits alone and among others. save: file for later
    runs, which must not exist. Raises ValueError for what cannot be cleaned or tokenized.
    """
    import mindspore as ms

    from ms_latte.pipelines.captions import prepare_captions

    if save is not None:
        check_free(save)
    keys = prepare_captions(prompts, clean)
    negative = None if negative_prompt is None else prepare_captions([negative_prompt], clean)[0]
    distinct = list(dict.fromkeys([*keys, *([negative] if negative is not None else [])]))
    features, masks = [], []
    for text in distinct:
        tokens = tokenizer([text], max_length)
        if tokens.cut[0]:
            say(f"longer than {max_length} tokens, cut from {tokens.cut[0]!r} on: {text!r}")
        output = encoder(ms.Tensor(tokens.ids), ms.Tensor(tokens.mask))
        features.append(output.astype(ms.float32).asnumpy()[0])
        masks.append(tokens.mask[0])
    cache = TextCache(tuple(distinct), np.stack(features), np.stack(masks), name)
    if save is not None:
        save_text_cache(save, cache)
    return Texts(tuple(prompts), tuple(keys), negative, cache)


def check_free(path):
    """Raise ValueError if a file of features would replace another one."""
    if Path(path).exists():
        raise ValueError(f"--save_embeddings {path} exists; nothing is overwritten; remedy: another name")
