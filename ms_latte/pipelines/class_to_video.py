# SPDX-License-Identifier: Apache-2.0
"""Unconditional, by class, and by pooled text: a `Latte` from noise to latents to frames.

Source: Vchitect/Latte `sample/sample.py` (the order of the guided batch and the guided channels).
"""

import mindspore as ms
import numpy as np
from mindspore import ops

from ms_latte.models.latte import TEXT_TOKENS, TEXT_WIDTH
from ms_latte.pipelines.denoising import Noise, check_noise, decode, denoise, in_batches

GUIDED_CHANNELS = 4  # the original guides the noise of a 4-channel latent and leaves the variance


class ClassToVideoPipeline:
    """model: Latte; sampler: of `ms_latte.diffusion.samplers` with channel_axis 2; vae: or None for latents only."""

    def __init__(self, model, sampler, vae=None):
        self.model, self.sampler, self.vae = model, sampler, vae

    def sample(
        self,
        seeds,
        class_ids=None,
        text_embedding=None,
        null_embedding=None,
        guidance_scale=1.0,
        num_frames=None,
        latent_size=None,
        noise=None,
        batch_size=1,
        on_step=None,
    ):
        """Latents (N, F, C, h, w), float32 numpy, of one sample for each seed.

        class_ids: N whole numbers for a model by class; text_embedding (N, 77, 768) and, for guidance,
        null_embedding (77, 768) for one by pooled text. guidance_scale 1 is none. num_frames, latent_size: the
        model's by default. noise (N, F, C, h, w): instead of drawn. batch_size: samples that the model sees at once;
        1 gives every sample the same bits alone and among others, more is faster on an accelerator and differs in
        rounding. Raises ValueError for what does not fit.
        """
        model, N = self.model, len(seeds)
        frames, (h, w) = num_frames or model.num_frames, latent_size or model.input_size
        self._check(N, class_ids, text_embedding, null_embedding, guidance_scale, (h, w))
        shape = (frames, model.in_channels, h, w)
        check_noise(noise, (N, *shape))

        def some(rows):
            y = None if class_ids is None else np.asarray(class_ids)[rows]
            text = None if text_embedding is None else np.asarray(text_embedding)[rows]
            start = None if noise is None else noise[rows]
            if guidance_scale != 1.0:
                predict = self._guided(y, text, null_embedding, guidance_scale)
            else:
                predict = self._plain(y, text)
            return denoise(predict, self.sampler, Noise(seeds[rows], shape), start, on_step=on_step)

        return in_batches(some, N, batch_size)

    def decode(self, latents, scaling_factor=None, chunk=None):
        """Frames, uint8 (N, F, H, W, 3), of latents (N, F, C, h, w)."""
        return decode(self.vae, latents, scaling_factor, chunk)

    def _plain(self, class_ids, text_embedding):
        y = None if class_ids is None else ms.Tensor(class_ids.astype(np.int32))
        text = None if text_embedding is None else ms.Tensor(text_embedding.astype(np.float32))
        return lambda x, t: self.model(x, t, y, text)

    def _guided(self, class_ids, text_embedding, null_embedding, scale):
        """The model on [conditional; null]. Both halves see one noise and only the first is stepped: the second half
        of the original's batch is thrown away unread."""
        model, y, text = self.model, None, None
        if class_ids is not None:
            null = np.full(len(class_ids), model.config["num_classes"])
            y = ms.Tensor(np.concatenate([class_ids, null]).astype(np.int32))
        if text_embedding is not None:
            null = np.broadcast_to(null_embedding, text_embedding.shape)
            text = ms.Tensor(np.concatenate([text_embedding, null]).astype(np.float32))

        def predict(x, t):
            both = model.forward_with_cfg(
                ops.cat([x, x], axis=0), ops.cat([t, t], axis=0), y, scale, text, GUIDED_CHANNELS
            )
            return both[: x.shape[0]]

        return predict

    def _check(self, N, class_ids, text_embedding, null_embedding, scale, latent_size):
        model, condition = self.model, self.model.condition
        if latent_size[0] % model.patch_size or latent_size[1] % model.patch_size:
            raise ValueError(
                f"latents of {latent_size[0]}x{latent_size[1]} are not divisible by the patch of "
                f"{model.patch_size}; choose an image size in multiples of {8 * model.patch_size}"
            )
        if (class_ids is not None) != (condition == "class"):
            state = "needs class_ids" if condition == "class" else "takes no class_ids"
            raise ValueError(f"a model with condition {condition!r} {state}")
        if (text_embedding is not None) != (condition == "text"):
            state = "needs text embeddings" if condition == "text" else "takes no text"
            raise ValueError(f"a model with condition {condition!r} {state}")
        if condition == "none" and scale != 1.0:
            raise ValueError(
                f"guidance_scale {scale} has no meaning for an unconditional model; leave it at 1"
            )
        if condition == "class":
            check_class_ids(class_ids, model.config["num_classes"])
            if len(class_ids) != N:
                raise ValueError(f"got {len(class_ids)} class_ids for {N} seeds; expected one for each")
            if scale != 1.0 and not model.config["class_dropout_prob"]:
                raise ValueError(
                    "guidance needs the null class, which a model with class_dropout_prob 0 lacks"
                )
        if condition == "text":
            expected = (N, TEXT_TOKENS, TEXT_WIDTH)
            if np.shape(text_embedding) != expected:
                raise ValueError(
                    f"text embeddings are {np.shape(text_embedding)}, expected {expected} (CLIP)"
                )
            if scale != 1.0 and np.shape(null_embedding) != expected[1:]:
                raise ValueError(
                    f"guidance by pooled text needs the embedding of the empty text {expected[1:]}, got "
                    f"{np.shape(null_embedding) or None}"
                )


def check_class_ids(class_ids, num_classes):
    """Raise ValueError for a class that the model does not have; the null class is no class to ask for."""
    wrong = sorted({int(i) for i in class_ids if not 0 <= i < num_classes})
    if wrong:
        raise ValueError(
            f"class {', '.join(map(str, wrong))} is out of range; expected 0 to {num_classes - 1} "
            f"({num_classes} classes in the checkpoint)"
        )
