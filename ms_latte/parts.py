# SPDX-License-Identifier: Apache-2.0
"""The parts of a run: where their files are, what is settled by the device, and models out of files."""

import json
from dataclasses import dataclass
from pathlib import Path

from ms_latte.config import ConfigError
from ms_latte.run_folder import new_path
from ms_latte.sample_config import VAE_FACTOR

DEMO = "checkpoints"  # folder of the demo's own checkpoints, inside that of the run


@dataclass(frozen=True)
class Parts:
    """Paths of the files of a run; None for what it does not need."""

    checkpoint: Path | None = None
    vae_checkpoint: Path | None = None
    text_encoder: Path | None = None
    tokenizer: Path | None = None
    demo: bool = False

    def denoiser(self, folder):
        """Path of the denoiser; the demo's is made where it is missing."""
        return self._demo(folder)[0] if self.demo else self.checkpoint

    def vae(self, folder):
        """Path of the VAE; the demo's is made where it is missing."""
        return self._demo(folder)[1] if self.demo else self.vae_checkpoint

    def _demo(self, folder):
        from ms_latte.random_models import make

        return make(Path(folder) / DEMO)


def find_parts(config):
    """Where the files are, without opening one. Raises ConfigError for what is missing."""
    if config.make_demo:
        return Parts(demo=True)
    given = {name: getattr(config, name) for name in ("vae_checkpoint", "text_encoder", "tokenizer")}
    home = Path(config.checkpoint) if config.checkpoint else None
    denoiser = home
    if home is not None and home.is_dir():  # a pipeline's folder brings the other parts
        denoiser = home / "transformer" if (home / "transformer").is_dir() else home
        inside = {"vae_checkpoint": "vae", "text_encoder": "text_encoder", "tokenizer": "tokenizer"}
        for name, folder in inside.items():
            if given[name] is None and (home / folder).exists():
                given[name] = home / folder
    if given["tokenizer"] is None and given["text_encoder"]:
        given["tokenizer"] = tokenizer_beside(Path(given["text_encoder"]))
    paths = {name: Path(path) if path is not None else None for name, path in given.items()}
    texts = bool(config.prompts or config.prompt_file) and not config.embeddings
    needed = {
        "checkpoint": (
            denoiser,
            not config.latents_path,
            "the denoiser, any published or converted checkpoint",
        ),
        "vae_checkpoint": (
            paths["vae_checkpoint"],
            set(config.output_format) != {"latents"},
            "a VAE such as sd-vae-ft-mse, or --output_format latents",
        ),
        "text_encoder": (
            paths["text_encoder"],
            texts and not config.latents_path,
            "a T5 encoder, or --embeddings with features made elsewhere",
        ),
        "tokenizer": (paths["tokenizer"], texts and not config.latents_path, "T5's spiece.model"),
    }
    for name, (path, wanted, remedy) in needed.items():
        if wanted and path is None:
            raise ConfigError(f"--{name} is missing; remedy: {remedy}")
        if wanted and not path.exists():
            raise ConfigError(f"--{name} {path} does not exist (from {Path.cwd()}); remedy: {remedy}")
    for name in ("embeddings", "prompt_file", "latents_path", "noise_path"):
        path = getattr(config, name)
        if path and not Path(path).is_file():
            raise ConfigError(f"--{name} {path} does not exist (from {Path.cwd()})")
    found = {"checkpoint": denoiser, **paths}
    return Parts(**{name: found[name] if needed[name][1] else None for name in needed})


def tokenizer_beside(text_encoder):
    """spiece.model in the encoder's folder, or the folder `tokenizer` beside it."""
    folder = text_encoder if text_encoder.is_dir() else text_encoder.parent
    places = (folder / "spiece.model", folder.parent / "tokenizer", folder / "tokenizer")
    return next((place for place in places if place.exists()), places[0])


def sizes_of(config, paths):
    """name -> path of every file that the result depends on."""
    files = {
        name: getattr(paths, name) for name in ("checkpoint", "vae_checkpoint", "text_encoder", "tokenizer")
    }
    files |= {
        name: getattr(config, name) for name in ("embeddings", "prompt_file", "latents_path", "noise_path")
    }
    return {name: path for name, path in files.items() if path}


def settle(config):
    """The configuration with what the device and the clock decide filled in; selects mode and memory.

    Raises ConfigError for settings that the device does not have.
    """
    on_cpu = config.device_target == "CPU"
    if on_cpu and config.enable_flash_attention:
        raise ConfigError(
            "--enable_flash_attention True: the fused kernel exists on Ascend alone; leave it out on the CPU"
        )
    if on_cpu and config.max_device_memory:
        raise ConfigError("--max_device_memory limits an Ascend card; leave it out on the CPU")
    settled = config.model_copy(
        update={
            "dtype": config.dtype or ("fp32" if on_cpu else "fp16"),
            "mode": config.mode if config.mode is not None else int(on_cpu),
            "output_path": config.output_path or str(new_path()),
        }
    )
    import mindspore as ms

    if settled.mode == 0:
        ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": settled.jit_level})
    else:
        ms.set_context(mode=ms.PYNATIVE_MODE)
    if settled.max_device_memory:  # not yet run on the device
        ms.runtime.set_memory(max_size=settled.max_device_memory)
    return settled


def load_denoiser(path, config):
    """A Latte or LatteT2V from any file, in the run's precision, with its attention kernel."""
    from ms_latte import checkpoint
    from ms_latte.models.latte import Latte
    from ms_latte.models.latte_t2v import LatteT2V

    model = checkpoint.load(
        path,
        which=config.which,
        precision=precision_of(config),
        overrides=settings(config.overrides),
        layout=config.layout,
    )
    if not isinstance(model, (Latte, LatteT2V)):
        raise ConfigError(f"--checkpoint {path} holds a {type(model).__name__}, expected a Latte or LatteT2V")
    choose_attention(model, config)
    return model


def choose_attention(model, config):
    """Make a model attend with the fused kernel where that is asked for."""
    from ms_latte.models.attention import DotProductAttention

    for _, cell in model.cells_and_names():
        if config.enable_flash_attention and isinstance(cell, DotProductAttention):
            cell.form = "flash"


def precision_of(config):
    """The compute type of a run; half types are emulated on the CPU, which has no kernels for them."""
    from ms_latte.models.precision import Precision

    return Precision(config.dtype, rounding="emulated" if config.device_target == "CPU" else "native")


def load_text_encoder(path, config):
    """A T5 encoder from any file."""
    from ms_latte import checkpoint

    return checkpoint.load(path, precision=precision_of(config), expected="T5EncoderModel")


def load_vae(path):
    """An AutoencoderKL or AutoencoderKLTemporalDecoder from any file, in float32."""
    from ms_latte import checkpoint
    from ms_latte.encoders.vae import AutoencoderKL, AutoencoderKLTemporalDecoder

    vae = checkpoint.load(path)
    if not isinstance(vae, (AutoencoderKL, AutoencoderKLTemporalDecoder)):
        raise ConfigError(f"--vae_checkpoint {path} holds a {type(vae).__name__}, expected a VAE")
    return vae


def factor_of(vae):
    """Pixels per latent and side of a VAE: every level but the last halves them. Without a VAE, VAE_FACTOR."""
    return VAE_FACTOR if vae is None else 2 ** (len(vae.config["block_out_channels"]) - 1)


def settings(pairs):
    """("num_heads=8", ...) -> {"num_heads": 8}; values are JSON or words."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise ConfigError(f"--set: got {pair!r}; expected KEY=VALUE")
        value = f"[{value}]" if "," in value and not value.startswith("[") else value
        try:
            found[key] = json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
        except ValueError:
            found[key] = value
    return found


def check_told(config, model):
    """The model's published name. Raises ConfigError where configuration and checkpoint say different things."""
    from ms_latte.models.latte import SIZES, Latte

    kind = type(model).__name__
    held = {"model_name": kind}
    if isinstance(model, Latte):
        shape = (model.config["depth"], model.hidden_size, model.config["num_heads"])
        size = next((f"-{name}/{model.patch_size}" for name, sizes in SIZES.items() if sizes == shape), "")
        held["model_name"] = f"Latte{size}"
        held["condition"] = model.condition
        held["patch_embedder"] = "linear" if model.pixel_order == "strided" else "conv"
        if model.condition == "class":
            held["num_classes"] = model.config["num_classes"]
    for name, value in held.items():
        told = getattr(config, name)
        if told is not None and told != value:
            raise ConfigError(
                f"--{name} {told}, but the checkpoint holds {value}; correct the configuration or the checkpoint"
            )
    if config.condition is not None and kind == "LatteT2V" and config.condition != "text":
        raise ConfigError(f"--condition {config.condition}, but the checkpoint is a LatteT2V; expected text")
    return held["model_name"]
