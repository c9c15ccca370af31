# SPDX-License-Identifier: Apache-2.0
"""What is to be sampled: one job for every sample, and the pipeline that samples a batch of them."""

from pathlib import Path

from ms_latte.config import ConfigError
from ms_latte.diffusion.samplers import make_sampler
from ms_latte.models.latte import Latte
from ms_latte.pipelines.class_to_video import ClassToVideoPipeline, check_class_ids
from ms_latte.pipelines.text_to_video import TextToVideoPipeline
from ms_latte.run_folder import read_array
from ms_latte.sample_config import VAE_FACTOR, latent_size


def make_jobs(config, model, texts=None):
    """One dictionary for every sample, in order: its seed, and its class or prompt; all samples of a condition follow
    each other. Raises ConfigError for a condition that the model does not have."""
    conditions = _conditions(config, model, texts)
    rows = [condition for condition in conditions for _ in range(config.num_samples)]
    return [{"seed": config.seed + k, **row} for k, row in enumerate(rows)]


def _conditions(config, model, texts):
    kind = model.condition if isinstance(model, Latte) else "prompts"
    asked = {"class": bool(config.class_ids), "prompts": bool(texts), "text": bool(texts)}
    takes = {"none": "is unconditional", "class": "takes classes", "text": "takes pooled text embeddings"}
    for word, flag in (("class", "class_ids"), ("prompts", "prompts or embeddings")):
        if asked[word] and kind not in (word, "text" if word == "prompts" else word):
            what = takes.get(kind, "takes text")
            raise ConfigError(
                f"--{flag} given, but the checkpoint {what}; leave it out or choose another one"
            )
    if kind == "none":
        return [{}]
    if kind == "class":
        classes = model.config["num_classes"]
        if not config.class_ids:
            raise ConfigError(
                f"the checkpoint has {classes} classes; say which: --class_ids 0 to {classes - 1}"
            )
        try:
            check_class_ids(config.class_ids, classes)
        except ValueError as error:
            raise ConfigError(f"--class_ids: {error}") from error
        return [{"class_id": k} for k in config.class_ids]
    if not texts:
        remedy = "--prompts TEXT, or --embeddings FILE" if kind == "prompts" else "--embeddings FILE (CLIP)"
        raise ConfigError(f"the checkpoint samples from text; remedy: {remedy}")
    return [{"prompt": prompt} for prompt in texts.prompts]


def make_pipeline(config, model, jobs, texts=None, factor=VAE_FACTOR):
    """sample(batch, on_step) -> latents (N, F, C, h, w) of the jobs in the range `batch`; factor: of the VAE."""
    patch, (h, w) = model.patch_size, latent_size(config.image_size, factor)
    if h % patch or w % patch:
        height, width = config.image_size
        raise ConfigError(
            f"--image_size {height}x{width}: latents of {h}x{w} are not divisible by the checkpoint's patch of "
            f"{patch}; expected multiples of {factor * patch}"
        )
    noise = read_array(config.noise_path, "--noise_path") if config.noise_path else None
    expected = (len(jobs), config.num_frames, model.in_channels, h, w)
    if noise is not None and noise.shape != expected:
        raise ConfigError(f"--noise_path {config.noise_path}: got {noise.shape}, expected {expected}")
    text_family = not isinstance(model, Latte)
    sampler = sampler_of(config, model, text_family)
    shape = dict(num_frames=config.num_frames, latent_size=(h, w))
    if text_family:
        pipeline = TextToVideoPipeline(model, sampler)
    else:
        pipeline = ClassToVideoPipeline(model, sampler)

    def sample(batch, on_step):
        rows = [jobs[k] for k in batch]
        named = dict(shape, guidance_scale=config.guidance_scale, batch_size=len(batch), on_step=on_step)
        named["noise"] = noise[batch.start : batch.stop] if noise is not None else None
        seeds = [row["seed"] for row in rows]
        of_prompt = [k // config.num_samples for k in batch]
        if text_family:
            named |= dict(
                mask_feature=config.mask_feature, enable_temporal_attentions=config.enable_temporal_attentions
            )
            return pipeline.sample(seeds, *texts.rows(of_prompt), **named)
        if model.condition == "class":
            named["class_ids"] = [row["class_id"] for row in rows]
        if model.condition == "text":
            text, _, negative = texts.rows(of_prompt)
            named |= dict(text_embedding=text, null_embedding=None if negative is None else negative[0])
        return pipeline.sample(seeds, **named)

    return sample


def sampler_of(config, model, text_family):
    """The sampler of a configuration: OpenAI's timesteps for the class family, diffusers' for the text family."""
    options = {"spacing": "leading"} if text_family and config.method in ("ddpm", "ddim") else {}
    learned = model.out_channels == 2 * model.in_channels
    axis = 1 if text_family else 2
    return make_sampler(
        config.method,
        config.sampling_steps,
        channel_axis=axis,
        eta=config.eta,
        learn_sigma=learned,
        **options,
    )


def read_prompts(path):
    """The lines of a text file that are not empty. Raises ConfigError without one."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompt_file {path}: cannot be read as UTF-8 text ({error})") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"--prompt_file {path}: no prompt in it; expected one a line")
    return prompts


def text_features(config, paths, say):
    """Texts of the run: read from --embeddings, or encoded by T5, which is let go before the denoiser is loaded."""
    from ms_latte.pipelines.prompts import check_free, encode, from_file

    prompts = read_prompts(config.prompt_file) if config.prompt_file else list(config.prompts)
    negative = config.negative_prompt if config.guidance_scale != 1.0 else None
    if config.embeddings:
        return from_file(config.embeddings, prompts, negative, config.clean_caption)
    from ms_latte.encoders.tokenizer import T5Tokenizer
    from ms_latte.parts import load_text_encoder

    if config.save_embeddings:
        check_free(config.save_embeddings)
    tokenizer = T5Tokenizer(paths.tokenizer)
    encoder = load_text_encoder(paths.text_encoder, config)
    return encode(
        prompts,
        negative,
        tokenizer,
        encoder,
        config.text_length,
        config.clean_caption,
        name=str(config.text_encoder or config.checkpoint),
        say=say,
        save=config.save_embeddings,
    )
