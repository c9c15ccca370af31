# SPDX-License-Identifier: Apache-2.0
"""The torch twins repeat a run of `python -m ms_latte.sample`, in a process of their own.

`main` with FOLDER TEXTS OUT reads config.yaml and samples.jsonl of FOLDER, and the text features in TEXTS if there are
any; it writes latents (F, C, h, w) and frames (F, H, W, 3) of sample NAME to OUT/NAME.npz.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import converters
from torch_ref.diffusion.samplers import guide, make_sampler
from torch_ref.models.latte import Latte


class Reference:
    """The twins in torch, float32, with the files and settings of a run of the port."""

    def __init__(self, config: dict[str, Any], folder: Path, texts: Path):
        self.config = config
        checkpoint, vae = config["checkpoint"], config["vae_checkpoint"]
        if config["make_demo"]:
            checkpoint, vae = demo_files(folder)
        elif Path(checkpoint).is_dir() and (Path(checkpoint) / "transformer").is_dir():
            checkpoint, vae = Path(checkpoint) / "transformer", vae or Path(checkpoint) / "vae"
        self.net, self.vae = load(checkpoint, config), load(vae)
        self.by_frames = isinstance(self.net, Latte)  # axes (N, F, C, h, w), else (N, C, F, h, w)
        method = config["sampler"] or ("ddim" if config["ddim_sampling"] else "ddpm")
        spacing = {"spacing": "leading"} if not self.by_frames and method in ("ddpm", "ddim") else {}
        learned = self.net.out_channels == 2 * self.net.in_channels
        axis = 2 if self.by_frames else 1
        self.sampler = make_sampler(
            method,
            config["sampling_steps"],
            channel_axis=axis,
            eta=config["eta"],
            learn_sigma=learned,
            **spacing,
        )
        path = config["embeddings"] or texts
        self.texts = None
        if Path(path).is_file():
            from ms_latte.pipelines.prompts import from_file

            negative = config["negative_prompt"] if config["guidance_scale"] != 1 else None
            self.texts = from_file(path, config["prompts"], negative, config["clean_caption"])

    def sample(self, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Latents (F, C, h, w) and frames, uint8 (F, H, W, 3), of one row of samples.jsonl."""
        config = self.config
        factor = 2 ** (len(self.vae.config["block_out_channels"]) - 1)  # pixels per latent and side
        height, width = (side // factor for side in config["image_size"])
        shape = (config["num_frames"], self.net.in_channels, height, width)
        rng = np.random.default_rng(row["seed"])

        def draw():
            noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)[None])
            return noise if self.by_frames else noise.transpose(1, 2)

        with torch.no_grad():
            x, history = draw() * self.sampler.init_scale, ()
            for i, t in enumerate(self.sampler.timesteps):
                output = self.predict(self.sampler.scale_input(x, i), torch.tensor([t]), row)
                fresh = draw() if self.sampler.needs_noise else None
                x, history = self.sampler.step(i, x, output, noise=fresh, history=history)
            x = x if self.by_frames else x.transpose(1, 2)
            chunk = {} if config["vae_chunk"] is None else {"chunk": config["vae_chunk"]}
            scale = config["sd_scale_factor"] or self.vae.scaling_factor
            pixels = self.vae.decode_video(x * (self.vae.scaling_factor / scale), **chunk)[0]
        frames = torch.clamp((pixels * 0.5 + 0.5) * 255 + 0.5, 0, 255).to(torch.uint8)
        return x[0].numpy(), frames.permute(0, 2, 3, 1).numpy()

    def predict(self, x, t, row):
        """The net's answer, guided as the originals guide."""
        scale = self.config["guidance_scale"]
        if self.by_frames:
            y = torch.tensor([row["class_id"]]) if "class_id" in row else None
            if scale == 1:
                return self.net(x, t, y)
            y = torch.cat([y, torch.full_like(y, self.net.config["num_classes"])])
            return self.net.forward_with_cfg(torch.cat([x, x]), torch.cat([t, t]), y, scale)[:1]
        text, mask, negative = self._text(row["prompt"])
        temporal = dict(enable_temporal_attentions=self.config["enable_temporal_attentions"])
        if scale == 1:
            return self.net(x, t, text, encoder_attention_mask=mask, **temporal)
        both, masks = torch.cat([negative, text]), None if mask is None else torch.cat([mask, mask])
        output = self.net(
            torch.cat([x, x]), torch.cat([t, t]), both, encoder_attention_mask=masks, **temporal
        )
        return guide(output, scale, None, 1, "uncond_first")

    def _text(self, prompt):
        """Features, mask and negative features of a prompt, (1, L, D), (1, L) or None, (1, L, D) or None."""
        from ms_latte.encoders.text_cache import apply_mask

        text, mask, negative = self.texts.rows([self.texts.prompts.index(prompt)])
        found = apply_mask(text, mask, negative, self.config["mask_feature"])
        tensors = [None if part is None else torch.from_numpy(np.array(part, np.float32)) for part in found]
        return tensors[0], tensors[2], tensors[1]


def load(path: Path | str, config: dict[str, Any] | None = None):
    """A torch twin with the weights of a checkpoint, in evaluation mode. config: for the denoiser, else the VAE."""
    options = dict(family="vae")
    if config is not None:
        pairs = [pair.partition("=")[::2] for pair in config["overrides"]]
        options = dict(which=config["which"], layout=config["layout"])
        options["overrides"] = {key: json.loads(value) for key, value in pairs}
    checkpoint = converters.load(path, **options)
    files = {"Latte": "models.latte", "LatteT2V": "models.latte_t2v"}
    module = importlib.import_module(f"torch_ref.{files.get(checkpoint.model, 'encoders.vae')}")
    model = getattr(module, checkpoint.model)(**checkpoint.config)
    model.load_state_dict(
        {name: torch.from_numpy(np.array(value)) for name, value in checkpoint.tensors.items()}
    )
    return model.eval()


def demo_files(folder: Path) -> tuple[Path, Path]:
    """Denoiser and VAE of the demo, which the port made beside its samples."""
    from ms_latte.parts import DEMO

    return folder / DEMO / "latte-demo.pt", folder / DEMO / "vae-demo.safetensors"


def main() -> None:
    """The arguments of the process: FOLDER TEXTS OUT."""
    folder, texts, out = map(Path, sys.argv[1:])
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    reference = Reference(config, folder, texts)
    for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "seed" in row:
            latents, frames = reference.sample(row)
            np.savez(out / f"{Path(row['files'][0]).stem}.npz", latents=latents, frames=frames)
