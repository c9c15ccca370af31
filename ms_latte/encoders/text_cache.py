# SPDX-License-Identifier: Apache-2.0
"""Text features in a file, and what becomes of padding: for hosts without room for T5-XXL, and for other encoders.

A file is safetensors: `embeddings` (P, L, D) and `masks` (P, L) for P prompts; the metadata tell prompts, encoder, the
hash of its weights, the length of its texts, and the version of this format.
"""

import difflib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

FORMAT, VERSION = "ms_latte text features", 1
MASK_FEATURES = ("masked", "batch_dependent", "none")


class TextFeatures(NamedTuple):
    """What a denoiser reads: text and negative_text (N, L, D), the latter or None; mask (N, L) of both, or None where
    every token is attended."""

    text: np.ndarray
    negative_text: np.ndarray | None
    mask: np.ndarray | None


@dataclass(frozen=True)
class TextCache:
    """Features of prompts. prompts: P different texts, as the tokenizer got them; embeddings (P, L, D) float32 or
    float16; masks (P, L), 1 for tokens and 0 for padding; encoder: its name; weights: their content hash, "" if it is
    not known. Raises ValueError for contents that contradict each other or are not finite.
    """

    prompts: tuple[str, ...]
    embeddings: np.ndarray
    masks: np.ndarray
    encoder: str
    weights: str = ""

    def __post_init__(self):
        object.__setattr__(self, "prompts", tuple(self.prompts))
        P, shape = len(self.prompts), np.shape(self.embeddings)
        if len(shape) != 3 or shape[0] != P or np.shape(self.masks) != shape[:2]:
            raise ValueError(
                f"got {P} prompts, embeddings {shape} and masks {np.shape(self.masks)}; expected (P, L, D) and (P, L)"
            )
        if self.embeddings.dtype not in (np.float32, np.float16):
            raise ValueError(f"embeddings are {self.embeddings.dtype}; expected float32 or float16")
        twice = sorted({prompt for prompt in self.prompts if self.prompts.count(prompt) > 1})
        if twice:
            raise ValueError(
                f"the prompt {twice[0]!r} is given {self.prompts.count(twice[0])} times; expected once"
            )
        for prompt, features, mask in zip(self.prompts, self.embeddings, self.masks, strict=True):
            if not np.isfinite(features).all():
                raise ValueError(
                    f"the features of {prompt!r} have NaN or infinite values; remedy: run the encoder in "
                    "float32 or bfloat16 (T5 overflows in float16)"
                )
            if not np.isin(mask, (0, 1)).all() or not np.any(mask):
                raise ValueError(
                    f"the mask of {prompt!r} must be 1 for tokens, 0 for padding, with a token at least"
                )

    @property
    def max_length(self):
        """Tokens of a row, padding included."""
        return self.embeddings.shape[1]

    def find(self, prompts):
        """Features of prompts, in their order: embeddings (N, L, D), masks (N, L).

        Raises ValueError for a prompt that the file does not have, naming the most similar one.
        """
        rows = []
        for prompt in prompts:
            if prompt not in self.prompts:
                near = difflib.get_close_matches(prompt, self.prompts, 1, cutoff=0.0) or [self.prompts[0]]
                raise ValueError(
                    f"the prompt {prompt!r} is not among the {len(self.prompts)} of the file; the nearest is "
                    f"{near[0]!r}; remedy: add it to the file (guidance needs the negative prompt too, often '')"
                )
            rows.append(self.prompts.index(prompt))
        return self.embeddings[rows], self.masks[rows]


def save_text_cache(path, cache):
    """Write a `TextCache`; an older file of that name is replaced when the new one is complete.

    Raises ValueError for a folder that does not exist.
    """
    from safetensors.numpy import save_file

    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"folder {path.parent} does not exist; remedy: mkdir -p {path.parent}")
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "prompts": json.dumps(cache.prompts),
        "encoder": cache.encoder,
        "weights": cache.weights,
        "max_length": str(cache.max_length),
    }
    tensors = {
        "embeddings": np.ascontiguousarray(cache.embeddings),
        "masks": np.ascontiguousarray(cache.masks, dtype=np.uint8),
    }
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        save_file(tensors, partial, metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_text_cache(path, width=None):
    """The `TextCache` of a file. width: D that the denoiser reads (`caption_channels`), or None for any.

    Raises ValueError for a missing or damaged file, one of another format or version, and another width.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; expected a file of text features (save_text_cache writes them)"
        )
    try:
        with safe_open(path, "np") as file:
            told, names = file.metadata() or {}, set(file.keys())
            if told.get("format") != FORMAT or names != {"embeddings", "masks"}:
                raise ValueError(
                    f"{path} holds no text features: got format {told.get('format')!r} and tensors "
                    f"{', '.join(sorted(names)[:4])}; expected {FORMAT!r} with embeddings and masks"
                )
            if told.get("version") != str(VERSION):
                raise ValueError(
                    f"{path} has version {told.get('version')} of the format, this program reads {VERSION}; "
                    "remedy: install a newer ms-latte, or write the file again"
                )
            kind = file.get_slice("embeddings").get_dtype()
            if kind not in ("F32", "F16"):
                raise ValueError(
                    f"the embeddings of {path} are {kind}; remedy: store them as float32 or float16"
                )
            prompts = json.loads(told["prompts"])
            embeddings, masks = file.get_tensor("embeddings"), file.get_tensor("masks")
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is cut short or no safetensors file ({error}); "
            "remedy: copy it again, or write it anew"
        ) from error
    if width not in (None, embeddings.shape[-1]):
        raise ValueError(
            f"{path} holds features of width {embeddings.shape[-1]} by {told['encoder']!r}, the model reads {width}; "
            "remedy: write a file with the text encoder that the model was trained with"
        )
    return TextCache(prompts, embeddings, masks, told["encoder"], told["weights"])


def apply_mask(text, mask, negative_text=None, mask_feature="masked"):
    """Features and masks as the denoiser gets them: `TextFeatures`. text, negative_text (N, L, D), mask (N, L).

    mask_feature says what becomes of padding:
      "masked"  attention leaves it out, for the negative text at the length of the positive one. A prompt gives the
        same video alone and in a batch: the one that the published pipelines give it alone.
      "batch_dependent"  as they do it to the letter (mask_feature=True of diffusers' `LattePipeline`): a single prompt
        is cut to its own tokens, and the negative one to as many; of several prompts padding is set to zero but
        attended, and the negative ones stay whole. A prompt then gives different videos alone and in a batch.
      "none"  everything is attended (mask_feature=False).
    Raises ValueError for another word and for shapes that do not fit.
    """
    if mask_feature not in MASK_FEATURES:
        raise ValueError(f"mask_feature is {mask_feature!r}; expected one of {', '.join(MASK_FEATURES)}")
    if text.ndim != 3 or mask.shape != text.shape[:2]:
        raise ValueError(f"text is {text.shape}, its mask {mask.shape}; expected (N, L, D) and (N, L)")
    if negative_text is not None and negative_text.shape != text.shape:
        raise ValueError(f"negative_text is {negative_text.shape}, expected {text.shape} as text")
    if mask_feature == "masked":
        return TextFeatures(text, negative_text, mask)
    # To the letter: diffusers `pipeline_latte.py`, encode_prompt and mask_text_embeddings.
    if mask_feature == "batch_dependent" and len(text) == 1:
        kept = int(mask.sum())
        return TextFeatures(text[:, :kept], None if negative_text is None else negative_text[:, :kept], None)
    if mask_feature == "batch_dependent":
        text = text * mask[:, :, None].astype(text.dtype)
    return TextFeatures(text, negative_text, None)
