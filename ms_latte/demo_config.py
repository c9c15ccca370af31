# SPDX-License-Identifier: Apache-2.0
"""The schema of `python -m ms_latte.demo`: how much of everything is made."""

from pydantic import field_validator

from ms_latte.settings import Settings, setting
from ms_latte.shapes import KINDS


class DemoConfig(Settings):
    """Everything that `python -m ms_latte.demo` can be told; the descriptions are its help page."""

    output_path: str = setting("output", "demo_run", "folder of all results; repeat the command to continue")
    clips: int = setting("amounts", 480, f"clips that are made, in turn {', '.join(KINDS)}")
    clip_frames: int = setting("amounts", 12, "frames of a clip, from which training takes 8")
    vae_steps: int = setting("amounts", 1000, "steps that fit the VAE")
    train_steps: int = setting("amounts", 2000, "training steps of the Latte")
    num_samples: int = setting("amounts", 3, "videos that are sampled of each kind")
    sampling_steps: int = setting("amounts", 50, "denoising steps")
    seed: int = setting("amounts", 0, "of clips, VAE, training and samples")

    @field_validator("clips", "vae_steps", "train_steps", "num_samples", "sampling_steps")
    @classmethod
    def _positive(cls, value):
        if value < 1:
            raise ValueError("expected 1 or more")
        return value

    @field_validator("clip_frames")
    @classmethod
    def _frames(cls, value):
        if value < 8:
            raise ValueError("expected 8 or more, the frames of a training clip")
        return value

    @field_validator("seed")
    @classmethod
    def _seed(cls, value):
        if not 0 <= value < 2**32:
            raise ValueError("expected a whole number from 0 to 2**32 - 1")
        return value
