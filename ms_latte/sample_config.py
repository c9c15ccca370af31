# SPDX-License-Identifier: Apache-2.0
"""The schema of `python -m ms_latte.sample`: every key with its default, its explanation and its checks.

The keys are the flag names of the published MindSpore recipes; ALIASES lists the spellings of other publications.
"""

from typing import ClassVar, Literal

from pydantic import field_validator, model_validator

from ms_latte.config import ConfigError, ListOf
from ms_latte.settings import Settings, setting

VAE_FACTOR = 8  # pixels per latent and side of every published VAE

Sampler = Literal["ddpm", "ddim", "euler", "dpm++2m"]
Format = Literal["gif", "mp4", "png", "latents"]

# Other publications' names of a key: the official repository, diffusers, older releases of mindone.
ALIASES = {
    "ckpt": "checkpoint",
    "pretrained_model_path": "checkpoint",
    "vae": "vae_checkpoint",
    "num_sampling_steps": "sampling_steps",
    "num_inference_steps": "sampling_steps",
    "cfg_scale": "guidance_scale",
    "sample_method": "sampler",
    "global_seed": "seed",
    "video_length": "num_frames",
    "num_images_per_prompt": "num_samples",
    "num_videos_per_prompt": "num_samples",
    "prompt": "prompts",
    "text_prompt": "prompts",
    "class_labels": "class_ids",
    "save_video_path": "output_path",
    "save_img_path": "output_path",
    "model": "model_name",
    "use_fp16": "dtype",
    "from": "layout",
    "set": "overrides",
}


def latent_size(image_size, factor=VAE_FACTOR):
    """Height and width of the latents of pictures (height, width); factor: of the VAE, pixels per latent and side.

    Raises ConfigError for sides that the factor does not divide.
    """
    if any(side < factor or side % factor for side in image_size):
        height, width = image_size
        near = "x".join(str(max(factor, round(side / factor) * factor)) for side in image_size)
        raise ConfigError(
            f"--image_size {height}x{width}: expected multiples of {factor} (the VAE's factor); nearest {near}"
        )
    return image_size[0] // factor, image_size[1] // factor


class SampleConfig(Settings):
    """Everything that `python -m ms_latte.sample` can be told; the descriptions are its help page."""

    aliases: ClassVar[dict] = ALIASES
    choices: ClassVar[dict] = {
        "sampler": "ddim_sampling",
        "ddim_sampling": "sampler",
        "prompts": "prompt_file",
        "prompt_file": "prompts",
    }

    # --- model
    checkpoint: str | None = setting(
        "model",
        None,
        "denoiser: any published or converted file (.pt .safetensors .ckpt ...) or folder; a pipeline's folder "
        "(transformer/, vae/, text_encoder/, tokenizer/) gives the other parts too",
    )
    vae_checkpoint: str | None = setting(
        "model", None, "VAE that turns latents into pixels, file or folder, any layout"
    )
    text_encoder: str | None = setting("model", None, "T5 encoder, file or folder (text to video)")
    tokenizer: str | None = setting(
        "model", None, "folder or file of T5's sentencepiece model; default beside text_encoder"
    )
    model_name: str | None = setting(
        "model", None, "Latte-XL/2 ... Latte-S/8 or LatteT2V; checked against the checkpoint, which decides"
    )
    condition: Literal["none", "class", "text"] | None = setting(
        "model", None, "what the checkpoint is conditioned on; checked against it"
    )
    num_classes: int | None = setting("model", None, "number of classes; checked against the checkpoint")
    patch_embedder: Literal["conv", "linear"] | None = setting(
        "model", None, "checked against the checkpoint, which shows it"
    )
    which: Literal["ema", "model"] = setting(
        "model", "ema", "weights of a training checkpoint: EMA (or what there is) or raw"
    )
    layout: str | None = setting(
        "model", None, "published layout of the checkpoint where its names fit several"
    )
    overrides: tuple[str, ...] = setting(
        "model",
        (),
        "KEY=VALUE ...: constructor arguments that the checkpoint does not tell, such as num_heads=8",
    )
    make_demo: bool = setting(
        "model", False, "instead of a checkpoint: make a tiny random model and VAE in the output folder"
    )
    sd_scale_factor: float | None = setting("model", None, "latents are divided by it; default the VAE's own")

    # --- what to sample
    image_size: tuple[int, int] = setting(
        "samples",
        (256, 256),
        "pixels, N or HEIGHT,WIDTH; multiples of the VAE's factor, 8 of all published ones",
    )
    num_frames: int = setting("samples", 16, "frames of a video; 1 gives images")
    num_samples: int = setting(
        "samples", 3, "videos for every class or prompt; in all, if there is no condition"
    )
    class_ids: tuple[int, ...] = setting("samples", (), "classes to sample, such as 1,13,100")
    prompts: tuple[str, ...] = setting("samples", (), "one or more texts, each in quotes")
    prompt_file: str | None = setting("samples", None, "text file with one prompt a line")
    negative_prompt: str = setting("samples", "", "what guidance leads away from")
    seed: int = setting("samples", 4, "sample k draws all its noise from seed + k")
    noise_path: str | None = setting(
        "samples", None, "initial noise instead of drawn: .npy (N, F, C, h, w), one row a sample"
    )
    latents_path: str | None = setting(
        "samples",
        None,
        "decode these finished latents, .npy (N, F, C, h, w) or of one sample, without sampling",
    )

    # --- how
    sampling_steps: int = setting("method", 50, "denoising steps, 1 to 1000")
    ddim_sampling: bool = setting("method", True, "DDIM, or DDPM if False; `sampler` says more")
    sampler: Sampler | None = setting("method", None, "wins over ddim_sampling")
    eta: float = setting("method", 0.0, "noise of DDIM, 0 to 1")
    guidance_scale: float = setting("method", 1.0, "classifier-free guidance; 1 is none")
    batch_size: int = setting("method", 1, "samples at once; 1 makes every bit independent of the others")
    text_length: int = setting("method", 120, "T5 tokens of a prompt (Latte-1 120, Open-Sora-Plan 300)")
    clean_caption: bool = setting("method", True, "clean prompts as the original does")
    mask_feature: Literal["masked", "batch_dependent", "none"] = setting(
        "method",
        "masked",
        "padding of texts: masked; or batch_dependent, the original to the letter, which attends to zeroed padding as "
        "soon as two videos are sampled at once; or none, all attended",
    )
    enable_temporal_attentions: bool = setting("method", True, "False for images of Latte-0 (text only)")
    embeddings: str | None = setting("method", None, "ready text embeddings (.safetensors) instead of T5")
    save_embeddings: str | None = setting("method", None, "where to keep the text embeddings for later runs")

    # --- device
    device_target: str = setting("device", "Ascend", "Ascend or CPU")
    device_id: int | None = setting("device", None, "number of the Ascend card")
    dtype: Literal["fp32", "fp16", "bf16"] | None = setting(
        "device", None, "of the denoiser; default fp16 on Ascend, fp32 on CPU (where half types are emulated)"
    )
    mode: Literal[0, 1] | None = setting(
        "device", None, "0 graph, 1 pynative; default 0 on Ascend, 1 on CPU (a graph needs more memory there)"
    )
    jit_level: Literal["O0", "O1", "O2"] = setting("device", "O1", "optimisation of graph mode")
    enable_flash_attention: bool = setting("device", False, "fused attention kernel (Ascend, fp16 or bf16)")
    precision_mode: Literal["must_keep_origin_dtype"] | None = setting(
        "device", None, "this port always keeps the types it was given; no other word is served"
    )
    use_recompute: bool = setting("device", False, "of no effect here: nothing is differentiated")
    max_device_memory: str | None = setting("device", None, "limit of device memory, such as 30GB (Ascend)")
    vae_chunk: int | None = setting(
        "device",
        None,
        "frames that the VAE decodes at once; default 1, or 14 for a temporal decoder, where it is part of the result",
    )

    # --- output
    output_path: str | None = setting(
        "output", None, "folder of the results, default samples/<time>; name an old one to resume it"
    )
    output_format: tuple[Format, ...] = setting("output", ("gif",), "one or more of gif, mp4, png, latents")
    fps: int = setting("output", 8, "frames per second of videos")
    contact_sheet: bool = setting("output", True, "one PNG with frames of all samples")

    @staticmethod
    def translate(key, value):
        """The value of `key` where an alias counts differently."""
        if key == "use_fp16":
            return "fp16" if str(value).lower() in ("true", "1", "yes") else "fp32"
        return value

    @field_validator("class_ids", "output_format", mode="before")
    @classmethod
    def _commas(cls, value):
        value = value if isinstance(value, ListOf) else [value]
        return tuple(
            part for item in value for part in (item.split(",") if isinstance(item, str) else [item])
        )

    @field_validator("sampler", mode="before")
    @classmethod
    def _sampler(cls, value):
        return value.lower() if isinstance(value, str) else value

    @field_validator(
        "num_frames", "num_samples", "batch_size", "text_length", "vae_chunk", "fps", "sampling_steps"
    )
    @classmethod
    def _positive(cls, value):
        if value is not None and value < 1:
            raise ValueError("expected 1 or more")
        return value

    @field_validator("sampling_steps")
    @classmethod
    def _steps(cls, value):
        if value > 1000:
            raise ValueError("expected at most 1000, the steps of training")
        return value

    @field_validator("eta")
    @classmethod
    def _eta(cls, value):
        if not 0 <= value <= 1:
            raise ValueError("expected a number from 0 to 1")
        return value

    @field_validator("guidance_scale")
    @classmethod
    def _guidance(cls, value):
        if not 0 < value < float("inf"):
            raise ValueError("expected a finite number above 0; 1 is no guidance")
        return value

    @field_validator("seed")
    @classmethod
    def _seed(cls, value):
        if not 0 <= value < 2**63:
            raise ValueError("expected a whole number from 0 to 2**63 - 1")
        return value

    @field_validator("class_ids")
    @classmethod
    def _ids(cls, value):
        if value and min(value) < 0:
            raise ValueError("expected numbers from 0")
        return value

    @field_validator("output_format")
    @classmethod
    def _formats(cls, value):
        if not value or len(set(value)) < len(value):
            raise ValueError("expected one or more different formats")
        return value

    @model_validator(mode="after")
    def _together(self):
        told = self.model_fields_set
        if self.method != "ddim" and self.eta:
            raise ValueError(f"eta {self.eta} belongs to ddim, the sampler is {self.method}; leave eta out")
        if (
            {"sampler", "ddim_sampling"} <= told
            and self.sampler
            and self.ddim_sampling != (self.sampler == "ddim")
        ):
            raise ValueError(
                f"sampler {self.sampler} and ddim_sampling {self.ddim_sampling} say two things; leave one out"
            )
        if self.prompts and self.prompt_file:
            raise ValueError("prompts and prompt_file exclude each other")
        if self.prompts and self.class_ids:
            raise ValueError("prompts and class_ids exclude each other")
        if self.embeddings and self.save_embeddings:
            raise ValueError("embeddings are read and save_embeddings writes; leave one out")
        if self.make_demo and (self.checkpoint or self.vae_checkpoint):
            raise ValueError("make_demo makes its own checkpoints; leave checkpoint and vae_checkpoint out")
        if self.latents_path and self.noise_path:
            raise ValueError("latents_path is decoded without sampling; noise_path has no use beside it")
        return self

    @property
    def method(self):
        """The sampler's word."""
        return self.sampler or ("ddim" if self.ddim_sampling else "ddpm")
