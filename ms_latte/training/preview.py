# SPDX-License-Identifier: Apache-2.0
"""Sample pictures while a model is trained: a few DDIM steps with the averaged weights, on one contact sheet."""

from pathlib import Path

import numpy as np

from ms_latte.files import write_whole

SEED = 0  # the same noise every time, so that pictures of different steps can be compared


class Preview:
    """Draws `count` samples of a model in training.

    averages: name -> parameter of the averaged weights, or None for the raw ones; vae: decodes; texts: (text
    (count, L, D), mask (count, L)) of a LatteT2V, else None; frames, size: of the latents.
    """

    def __init__(self, model, averages, vae, steps, count, frames, size, scaling_factor=None, texts=None):
        self.model, self.averages, self.vae = model, averages, vae
        self.steps, self.count, self.frames, self.size = steps, count, frames, size
        self.scaling_factor, self.texts = scaling_factor, texts

    def draw(self, path):
        """Write the contact sheet; the model's weights are afterwards what they were, bit for bit."""
        from ms_latte import checkpoint, video_io
        from ms_latte.pipelines.denoising import decode

        raw = None
        if self.averages is not None:
            raw = {name: value.asnumpy().copy() for name, value in self.model.parameters_and_names()}
            average = {name: value.asnumpy().copy() for name, value in self.averages.items()}
            checkpoint.load_arrays(self.model, {**raw, **average})
        try:
            latents = self._sample()
        finally:
            if raw is not None:
                checkpoint.load_arrays(self.model, raw)
        if not np.isfinite(latents).all():
            return None
        frames = decode(self.vae, latents, self.scaling_factor)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, video_io.png_bytes(video_io.sheet([video_io.strip(one) for one in frames])))
        return path

    def _sample(self):
        from ms_latte.diffusion.samplers import make_sampler
        from ms_latte.models.latte import Latte
        from ms_latte.pipelines.class_to_video import ClassToVideoPipeline
        from ms_latte.pipelines.text_to_video import TextToVideoPipeline
        from ms_latte.training.initial import learns_sigma

        model, seeds = self.model, [SEED + k for k in range(self.count)]
        named = {"num_frames": self.frames, "latent_size": self.size}
        family = isinstance(model, Latte)
        sampler = make_sampler(
            "ddim", self.steps, channel_axis=2 if family else 1, learn_sigma=learns_sigma(model)
        )
        if not family:
            return TextToVideoPipeline(model, sampler).sample(seeds, *self.texts, guidance_scale=1.0, **named)
        if model.condition == "class":
            named["class_ids"] = [k % model.config["num_classes"] for k in range(self.count)]
        if model.condition == "text":
            named["text_embedding"] = self.texts[0]
        return ClassToVideoPipeline(model, sampler).sample(seeds, **named)
