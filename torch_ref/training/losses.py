# SPDX-License-Identifier: Apache-2.0
"""From a batch to the terms of the loss: latents, conditions, prediction.

A batch is a dict of tensors with N first: latents (N, F+I, C, H, W) as "latents", or "mean" and "logvar" of the
VAE's posterior with a standard normal "posterior"; "t" (N,) and "noise"; conditions as `predict` reads them.
Sources: Vchitect/Latte `train.py`, `train_with_img.py`; Open-Sora-Plan v1.0 `train_t2v.py` (captions).
"""

import torch

from torch_ref.diffusion.gaussian import to_state
from torch_ref.models.latte import Latte
from torch_ref.models.latte_t2v import LatteT2V
from torch_ref.models.layers import exp
from torch_ref.models.precision import Precision


def posterior_sample(mean, logvar, noise, scaling_factor, precision=Precision()):
    """Latents as the model sees them: (mean + exp(logvar / 2) noise) scaling_factor, all of one shape."""
    mean, logvar, noise = (to_state(x, precision) for x in (mean, logvar, noise))
    return (mean + exp(logvar * 0.5) * noise) * scaling_factor


def drop_text(text, drop, null_text):
    """Text of which some samples lost theirs: rows of text (N, ...) where drop (N,) is true become null_text (...)."""
    drop = drop.reshape((-1,) + (1,) * (text.ndim - 1))
    return torch.where(drop, null_text[None].to(text.dtype), text)


def condition_kind(model):
    """What a model is conditioned on: "none", "class", "text" (pooled) or "caption" (LatteT2V).

    Raises ValueError for another model.
    """
    if isinstance(model, LatteT2V):
        return "caption"
    if isinstance(model, Latte):
        return model.condition
    raise ValueError(f"a {type(model).__name__} cannot be trained here; expected Latte or LatteT2V")


def predict(model, x_t, t, batch, use_image_num=0):
    """The model's output for noisy latents x_t (N, F+I, C, H, W) at t (N,): (N, F+I, out_channels, H, W).

    batch: for "class" label (N,), drop (N,) bool and, with images, image_labels (N, I); for "text" text
    (N, 77, 768), drop, null_text; for "caption" text (N, L, D) or (N, 1+I, L, D), text_mask as text without D, drop,
    null_text and null_text_mask. A dropped label becomes the null label; a dropped text becomes null_text.
    """
    kind, precision = condition_kind(model), model.precision
    x_t = precision.round(x_t)
    if kind == "caption":
        text, mask = precision.round(batch["text"]), batch.get("text_mask")
        if "drop" in batch:
            text = drop_text(text, batch["drop"], batch["null_text"])
            mask = mask if mask is None else drop_text(mask, batch["drop"], batch["null_text_mask"])
        x_t = x_t.permute(0, 2, 1, 3, 4)  # (N, C, F+I, H, W)
        out = model(x_t, t, text, encoder_attention_mask=mask, use_image_num=use_image_num)
        return out.permute(0, 2, 1, 3, 4)
    if kind == "class":
        images = batch["image_labels"] if use_image_num else None
        return model(
            x_t, t, batch["label"], None, images, use_image_num=use_image_num, drop_ids=batch.get("drop")
        )
    if kind == "text":
        text = precision.round(batch["text"])
        if "drop" in batch:
            text = drop_text(text, batch["drop"], batch["null_text"])
        return model(x_t, t, text_embedding=text, use_image_num=use_image_num)
    return model(x_t, t, use_image_num=use_image_num)
