# SPDX-License-Identifier: Apache-2.0
"""Captions to the token ids that T5 was trained with, by its sentencepiece model (`spiece.model`).

tokens = T5Tokenizer("Latte-1/tokenizer")(["a dog on a beach"], max_length=120)
"""

import re
from bisect import bisect_right
from pathlib import Path
from typing import NamedTuple

import numpy as np

MODEL_FILE = "spiece.model"
PAD, EOS = 0, 1  # ids of <pad> and </s> in every T5


class Tokens(NamedTuple):
    """What T5 reads, and what it cannot: ids (B, L) int32, mask (B, L) int32, 1 for tokens and 0 for padding; cut: for
    every text the part that was cut off, from the first word that is not whole, "" if everything fits."""

    ids: np.ndarray
    mask: np.ndarray
    cut: list[str]


class T5Tokenizer:
    """Texts to ids: pieces of the text, then </s>, then padding.

    path: `spiece.model`, or a folder that holds it, itself or in `tokenizer/` (a pipeline's folder). vocab_size: number
    of pieces; the encoder's table may be larger. Names of special tokens in a text ("</s>") are read as plain text.
    Raises ValueError for a missing file or package, and for a file that is no T5 model.
    """

    def __init__(self, path):
        self.path = _find(Path(path))
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise ValueError(
                f"reading {self.path} needs the package sentencepiece ({error}); "
                'remedy: pip install "ms-latte[text]"'
            ) from error
        try:
            self.model = SentencePieceProcessor(model_file=str(self.path))
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{self.path} ({self.path.stat().st_size} bytes) is not a sentencepiece model; expected the "
                f"{MODEL_FILE} of a T5, about 0.8 MB; remedy: download it again (a file of about 130 bytes is a "
                "pointer of git-lfs)"
            ) from error
        ids = self.model.pad_id(), self.model.eos_id()
        if ids != (PAD, EOS):
            raise ValueError(
                f"{self.path} has padding {ids[0]} and end {ids[1]}, expected {PAD} and {EOS}: it is not a "
                "tokenizer of T5; remedy: take the one beside the text encoder"
            )
        self.vocab_size = self.model.get_piece_size()

    def __call__(self, texts, max_length):
        """Tokens of one text or of a list, every row max_length long; the last token of a text is always </s>.

        120 is the length of Latte-1, 300 that of Open-Sora-Plan. Raises ValueError for a text that is no string or no
        valid Unicode, and for a length below 1.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if max_length < 1:
            raise ValueError(f"max_length is {max_length}; expected 1 or more, since </s> always stays")
        ids = np.full((len(texts), max_length), PAD, np.int32)
        mask = np.zeros((len(texts), max_length), np.int32)
        cut = []
        for i, text in enumerate(texts):
            _check(text, i)
            pieces = self.model.encode(text)
            kept = [*pieces[: max_length - 1], EOS]
            ids[i, : len(kept)], mask[i, : len(kept)] = kept, 1
            cut.append(self._rest(text, max_length - 1) if len(pieces) >= max_length else "")
        return Tokens(ids, mask, cut)

    def _rest(self, text, room):
        """The text from the first word on that `room` pieces do not hold whole."""
        words = list(re.finditer(r"\S+", text))
        fitting = bisect_right(words, room, key=lambda word: len(self.model.encode(text[: word.end()])))
        return text[words[fitting].start() :].rstrip() if fitting < len(words) else ""


def _check(text, index):
    if not isinstance(text, str):
        raise ValueError(f"text {index} is a {type(text).__name__}, expected a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text {index} is not valid Unicode at character {error.start}: {text[error.start]!r}; "
            "remedy: read it as UTF-8"
        ) from error


def _find(path):
    places = [path] if not path.is_dir() else [path / MODEL_FILE, path / "tokenizer" / MODEL_FILE]
    for place in places:
        if place.is_file():
            return place
    raise ValueError(
        f"{' and '.join(map(str, places))} {'does' if len(places) == 1 else 'do'} not exist; expected T5's "
        f"{MODEL_FILE} or a folder with it (a tokenizer.json alone does not do); remedy: copy it from the tokenizer "
        "folder of the published pipeline"
    )
