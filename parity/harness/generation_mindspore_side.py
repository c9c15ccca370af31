# SPDX-License-Identifier: Apache-2.0
"""What `python -m parity generate` must know or make before the port samples, in a process of its own.

`main` with SCRATCH random|given OPTION ... reads the options as the port's command does and writes those to add to
SCRATCH/options.json. With "random" it first makes a Latte and Stable Diffusion's VAE in the official formats.
"""

import json
import sys
from pathlib import Path

import numpy as np

from ms_latte.config import ConfigError, build, find_config, parse
from ms_latte.sample_config import SampleConfig, latent_size
from parity.generation import OPTIONS, TEXTS

SEED, NET, VAE = 1, "latte.pt", "vae.safetensors"  # of random weights


def configuration(options: list[str]) -> SampleConfig | None:
    """The port's configuration; None if the options are wrong, which the port says better."""
    try:
        path, overrides = parse(SampleConfig, options, "python -m parity generate", None, None)
        return build(SampleConfig, find_config(path) if path else None, overrides)
    except (ConfigError, SystemExit):
        return None


def encodes(config: SampleConfig) -> bool:
    """Whether the port will encode texts, by T5."""
    return bool(config.prompts or config.prompt_file) and not config.embeddings


def make_weights(config: SampleConfig, folder: Path) -> list[str]:
    """Write a random Latte and a random VAE; returns the options that lead to them. Raises ConfigError for a model
    that is no Latte."""
    from ms_latte import checkpoint, device
    from ms_latte.encoders.vae import AutoencoderKL
    from ms_latte.models.latte import Latte_models
    from ms_latte.random_models import fill

    if config.model_name not in Latte_models:
        raise ConfigError(
            f"--random-weights makes a Latte by its name; got model_name {config.model_name}; expected one of "
            f"{', '.join(Latte_models)}"
        )
    device.select("CPU")
    named = dict(input_size=latent_size(config.image_size), num_frames=config.num_frames)
    named["condition"] = config.condition or "none"
    if config.num_classes:
        named["num_classes"] = config.num_classes
    rng = np.random.default_rng(SEED)
    checkpoint.save(fill(Latte_models[config.model_name](**named), rng), folder / NET)
    checkpoint.save(fill(AutoencoderKL(), rng), folder / VAE)
    return ["--checkpoint", str(folder / NET), "--vae_checkpoint", str(folder / VAE)]


def main() -> None:
    """The arguments of the process: SCRATCH random|given OPTION ..."""
    folder, weights, *options = sys.argv[1:]
    folder, config, added = Path(folder), configuration(options), []
    if config is not None and weights == "random":
        try:
            added += make_weights(config, folder)
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
    if config is not None and encodes(config):
        added += ["--save_embeddings", str(folder / TEXTS)]
    (folder / OPTIONS).write_text(json.dumps(added), encoding="utf-8")
