# SPDX-License-Identifier: Apache-2.0
"""Features of captions for a cache: by T5, or out of a file of features made elsewhere."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from ms_latte.data.frames import ClipError


class Captions:
    """Features of captions, by T5 or out of a file: caption -> text (L, D) float32 and mask, one "0" or "1" a token.

    facts: what the features depend on. Raises ValueError for parts that cannot be read.
    """

    def __init__(self, config, say=print):
        self.config, self.say = config, say
        self.features = lru_cache(256)(self._features)  # many videos share a caption
        if config.embeddings:
            from ms_latte.encoders.text_cache import load_text_cache

            self.ready = load_text_cache(config.embeddings)
            self.facts = {"encoder": self.ready.encoder, "sha256": self.ready.weights}
            self.facts["length"] = self.ready.max_length
            return
        from ms_latte import checkpoint
        from ms_latte.encoders.tokenizer import T5Tokenizer
        from ms_latte.parts import load_text_encoder, tokenizer_beside

        self.tokenizer = T5Tokenizer(config.tokenizer or tokenizer_beside(Path(config.text_encoder)))
        self.encoder = load_text_encoder(config.text_encoder, config)
        self.facts = {
            "encoder": type(self.encoder).__name__,
            "sha256": checkpoint.weights_hash(self.encoder),
            "length": config.text_length,
            "clean_caption": config.clean_caption,
            "dtype": config.dtype,
        }

    def __call__(self, caption):
        """Raises ClipError for a caption that has no features."""
        try:
            return self.features(caption)
        except ValueError as error:
            raise ClipError(str(error)) from error

    def _features(self, caption):
        from ms_latte.pipelines.captions import prepare_captions
        from ms_latte.pipelines.prompts import encode

        config = self.config
        if config.embeddings:
            known = caption in self.ready.prompts
            text, mask = self.ready.find(
                [caption] if known else prepare_captions([caption], config.clean_caption)
            )
        else:
            parts = (self.tokenizer, self.encoder, config.text_length, config.clean_caption)
            text, mask, _ = encode((caption,), None, *parts, say=self.say).rows([0])
        return text[0].astype(np.float32), "".join(str(int(bit)) for bit in mask[0])
