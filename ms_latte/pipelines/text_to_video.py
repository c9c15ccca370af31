# SPDX-License-Identifier: Apache-2.0
"""From text features to video or, with one frame, to images: a `LatteT2V` from noise to latents to frames.

Sources: Vchitect/Latte `sample/pipeline_latte.py` and diffusers `LattePipeline` (order of the guided batch, masking).
"""

import mindspore as ms
import numpy as np
from mindspore import ops

from ms_latte.diffusion.samplers import guide
from ms_latte.encoders.text_cache import apply_mask
from ms_latte.pipelines.denoising import Noise, check_noise, decode, denoise, in_batches

TO_MODEL = (0, 2, 1, 3, 4)  # (N, F, C, h, w) <-> (N, C, F, h, w)


class TextToVideoPipeline:
    """model: LatteT2V; sampler: of `ms_latte.diffusion.samplers` with channel_axis 1; vae: or None for latents only.

    Keys and values of a text are computed once for all steps, and once for successive samples of one text: give a
    model whose weights have changed a new pipeline.
    """

    def __init__(self, model, sampler, vae=None):
        self.model, self.sampler, self.vae = model, sampler, vae
        self.texts, self.prepared = None, None  # of the batch before

    def sample(
        self,
        seeds,
        text,
        mask,
        negative_text=None,
        guidance_scale=7.5,
        num_frames=None,
        latent_size=None,
        mask_feature="masked",
        enable_temporal_attentions=True,
        noise=None,
        batch_size=1,
        on_step=None,
    ):
        """Latents (N, F, C, h, w), float32 numpy, of one sample for each seed.

        text (N, L, caption_channels) and mask (N, L), 1 keep / 0 padding: one row a sample; negative_text
        (N, L, caption_channels) for guidance. guidance_scale 1 is none; it acts on all channels, the variance
        included. num_frames, latent_size: the model's by default. mask_feature: see `apply_mask`. noise
        (N, F, C, h, w): instead of drawn. batch_size: samples that the model sees at once; 1 gives every sample the
        same bits alone and among others, more is faster on an accelerator and differs in rounding.
        Raises ValueError for what does not fit.
        """
        model, N = self.model, len(seeds)
        size = latent_size or tuple(model.config["sample_size"])
        frames, (h, w) = num_frames or model.video_length, size
        if h % model.patch_size or w % model.patch_size:
            raise ValueError(
                f"latents of {h}x{w} are not divisible by the patch of {model.patch_size}; choose an image size in "
                f"multiples of {8 * model.patch_size}"
            )
        guided = guidance_scale != 1.0
        if guided and negative_text is None:
            raise ValueError(
                f"guidance_scale {guidance_scale} needs negative_text, the empty prompt at least"
            )
        check_text(text, mask, negative_text if guided else None, N, model.config["caption_channels"])
        shape = (frames, model.in_channels, h, w)
        check_noise(noise, (N, *shape))
        negative_text = negative_text if guided else None

        def some(rows):
            negative = None if negative_text is None else negative_text[rows]
            words, kept = guided_batch(apply_mask(text[rows], mask[rows], negative, mask_feature))
            predict = self._predict(words, kept, guidance_scale, enable_temporal_attentions, size)
            start = None if noise is None else noise[rows]
            return denoise(predict, self.sampler, Noise(seeds[rows], shape), start, TO_MODEL, on_step)

        return in_batches(some, N, batch_size).transpose(TO_MODEL)

    def decode(self, latents, scaling_factor=None, chunk=None):
        """Frames, uint8 (N, F, H, W, 3), of latents (N, F, C, h, w)."""
        return decode(self.vae, latents, scaling_factor, chunk)

    def _predict(self, text, mask, scale, enable_temporal_attentions, size):
        """The model on one text batch, whose keys and values are computed once for all steps."""
        prepared = self._prepare(text, mask)
        named = dict(enable_temporal_attentions=enable_temporal_attentions)
        if self.model.use_additional_conditions:
            named["added_cond_kwargs"] = size_conditions(size)

        def plain(x, t):
            return self.model(x, t, prepared, **named)

        def guided(x, t):
            output = self.model(ops.cat([x, x], axis=0), ops.cat([t, t], axis=0), prepared, **named)
            return guide(output, scale, None, 1, "uncond_first")

        return plain if scale == 1.0 else guided

    def _prepare(self, text, mask):
        """Keys and values of a batch of texts; where the batch before had the same texts, they serve again."""
        model, *texts = self.texts or (None, None, None)
        if model is not self.model or not all(map(np.array_equal, texts, (text, mask))):
            self.texts, self.prepared = (self.model, text, mask), self._project(text, mask)
        return self.prepared

    def _project(self, text, mask):
        prepare = self.model.prepare_text
        if ms.get_context("mode") == ms.GRAPH_MODE:  # one graph instead of one for every layer it calls
            prepare = ms.jit(prepare)
        text = ms.Tensor(np.ascontiguousarray(text, np.float32))
        mask = None if mask is None else ms.Tensor(np.ascontiguousarray(mask, np.float32))
        return ms.mutable(prepare(text, mask))  # an argument of compiled steps, not a constant of them


def size_conditions(latent_size):
    """What a model with `use_additional_conditions` is told of latents (h, w): height and width of the frames, eight
    times theirs, and height over width; one row for all samples, as diffusers' `PixArtAlphaPipeline` fills it."""
    h, w = latent_size
    told = {
        "resolution": ms.Tensor([[8.0 * h, 8.0 * w]], ms.float32),
        "aspect_ratio": ms.Tensor([[h / w]], ms.float32),
    }
    return ms.mutable(told)  # an argument of compiled steps, not a constant of them


def guided_batch(features):
    """(text, mask or None) of the model: [negative; positive] under guidance, both with the positive text's mask."""
    text, negative_text, mask = features
    if negative_text is None:
        return text, mask
    return np.concatenate([negative_text, text]), None if mask is None else np.concatenate([mask, mask])


def check_text(text, mask, negative_text, samples, width):
    """Raise ValueError for features of another width or number than the model and the seeds ask for."""
    shape = np.shape(text)
    if len(shape) != 3 or shape[0] != samples or shape[2] != width:
        raise ValueError(
            f"text features are {shape}, expected ({samples}, L, {width}): one row a sample, of the width that the "
            "checkpoint was trained with"
        )
    if np.shape(mask) != shape[:2]:
        raise ValueError(f"the text mask is {np.shape(mask)}, expected {shape[:2]}")
    if not np.asarray(mask).any(axis=1).all():
        raise ValueError("a text without a single token to keep; an empty prompt has its end token")
    if negative_text is not None and np.shape(negative_text) != shape:
        raise ValueError(f"negative text features are {np.shape(negative_text)}, expected {shape}")
