# SPDX-License-Identifier: Apache-2.0
"""The parts of a training run out of its configuration: data, VAE, step."""

from pathlib import Path

from ms_latte.config import ConfigError
from ms_latte.parts import factor_of, load_vae
from ms_latte.sample_config import latent_size
from ms_latte.training.initial import learns_sigma


def make_dataset(config, vae=None):
    """The set of clips or of cached latents, checked against the VAE. Raises ValueError for one that cannot be used."""
    from ms_latte.data.clips import ClipDataset
    from ms_latte.data.sources import clips_of, settings_of

    if config.train_data_type != "video_file":
        return _cached(config, vae, settings_of(config)["flip"])
    clips, problems = clips_of(config)
    told = settings_of(config)
    return ClipDataset(
        clips,
        config.num_frames,
        config.image_size,
        stride=config.sample_stride,
        transform=told["transform"],
        flip=told["flip"],
        use_image_num=config.images,
        use_img_from_vid=config.use_img_from_vid,
        sampling=config.frame_sampling,
        policy=config.bad_clips,
        problems=problems,
    )


def _cached(config, vae, flip):
    from ms_latte import checkpoint
    from ms_latte.data.latents import LatentDataset

    return LatentDataset(
        config.data_folder,
        config.num_frames,
        stride=config.sample_stride,
        flip=flip,
        use_image_num=config.images,
        use_img_from_vid=config.use_img_from_vid,
        sampling=config.frame_sampling,
        policy=config.bad_clips,
        with_text=config.condition == "text",
        vae_hash=checkpoint.weights_hash(vae) if vae is not None else None,
        image_size=config.image_size,
    )


def make_step(config, model, scaling_factor, reduce=None):
    """The training step of a model: loss, gradients, AdamW, EMA, loss scale."""
    from ms_latte.diffusion.gaussian import GaussianDiffusion
    from ms_latte.training.ema import EMA
    from ms_latte.training.optim import AdamW, decayed_names, trainable_parameters
    from ms_latte.training.scaler import LossScaler
    from ms_latte.training.step import TrainingStep

    parameters = trainable_parameters(model)
    optimizer = AdamW(
        parameters,
        betas=config.betas,
        eps=config.optim_eps,
        weight_decay=config.weight_decay,
        decayed=decayed_names(parameters, config.group_strategy),
        precision=model.precision,
    )
    scaler = None
    if scaler_type(config) != "none":
        scaler = LossScaler(
            config.init_loss_scale,
            config.loss_scale_factor,
            config.scale_window,
            dynamic=scaler_type(config) == "dynamic",
        )
    diffusion = GaussianDiffusion(learn_sigma=learns_sigma(model), precision=model.precision)
    return TrainingStep(
        model,
        diffusion,
        optimizer,
        ema=EMA(optimizer.masters) if config.use_ema else None,
        scaler=scaler,
        accumulation_steps=config.gradient_accumulation_steps,
        max_grad_norm=config.max_grad_norm if config.clips else None,
        reduce=reduce,
        use_image_num=config.images,
        scaling_factor=scaling_factor,
    )


def scaler_type(config):
    """ "dynamic", "static" or "none"."""
    return config.loss_scaler_type or ("dynamic" if config.dtype == "fp16" else "none")


def find_vae(config):
    """Path of the VAE, or None: as told, or inside the pipeline's folder to start from."""
    inside = Path(config.pretrained_model_path or "", "vae")
    path = config.vae_checkpoint or (inside if config.pretrained_model_path and inside.is_dir() else None)
    if path is not None and not Path(path).exists():
        raise ConfigError(f"--vae_checkpoint {path} does not exist (from {Path.cwd()})")
    return path


def make_vae(config):
    """The VAE of a run, or None where latents are cached and none is told. Raises ConfigError where it is needed."""
    path = find_vae(config)
    if path is None and config.train_data_type == "video_file":
        raise ConfigError(
            "--vae_checkpoint is missing: frames are trained on as latents; expected a VAE such as sd-vae-ft-mse, or "
            "a cache of latents (--train_data_type numpy)"
        )
    return load_vae(path) if path is not None else None


def latent_size_of(config, dataset, vae):
    """Height and width of the latents: as cached, else what the VAE makes of image_size."""
    if vae is None:
        return tuple(dataset.latent_shape[2:])
    return latent_size(config.image_size, factor_of(vae))
