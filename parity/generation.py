# SPDX-License-Identifier: Apache-2.0
"""`python -m parity generate`: the videos of `python -m ms_latte.sample` against those of the torch twins.

The port runs as a user runs it, in a process of its own, and leaves latents and frames. Torch starts from the same
checkpoint files and the same noise, and its latents and frames are compared with the files.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.memory import PeakMemory

# Both sides round differently by about 1e-5 of a byte's range, so a byte differs by one where a value lies at a border
# between two bytes, and never by more.
BYTES = 1


@dataclass
class Sample:
    """One video of both sides. difference: of latents, relative L2; worst: of bytes; share: of bytes that differ."""

    name: str
    difference: float
    worst: int
    share: float


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0: no byte differs by more than BYTES; 1: one does, or there is nothing; 2: the port did not run."""
    parser = argparse.ArgumentParser(
        prog="python -m parity generate",
        description="Sample videos with `python -m ms_latte.sample` and again with the torch twins, from the same "
        "checkpoints and noise, and compare latents and frames.",
        epilog="All other options are those of ms_latte.sample. Text is encoded once, by the port. Example: "
        "python -m parity generate -c configs/inference/demo.yaml --sampling_steps 10",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="new folder for the port's files; else they go"
    )
    options, rest = parser.parse_known_args(arguments)
    if not rest:
        parser.error("expected options of ms_latte.sample, for example -c configs/inference/demo.yaml")
    with tempfile.TemporaryDirectory(prefix="parity-") as scratch:
        folder = options.keep or Path(scratch) / "port"
        texts = Path(scratch) / "texts.safetensors"
        seconds, peak = run_port(rest, folder, texts)
        if not seconds:
            return 2
        print(
            f"port: {seconds:.0f} s, peak memory {peak / 2**30:.2f} GiB (PSS), files in {folder}", flush=True
        )
        memory = PeakMemory([])
        began = time.perf_counter()
        samples = list(compare(folder, texts))
        print(
            f"torch: {time.perf_counter() - began:.0f} s, peak memory {memory.stop() / 2**30:.2f} GiB (PSS)\n"
            f"{'sample':<8} {'latents, rel. L2':>16} {'largest byte difference':>24} {'bytes that differ':>18}"
        )
    for sample in samples:
        print(f"{sample.name:<8} {sample.difference:>16.1e} {sample.worst:>24} {sample.share:>18.2%}")
    good = bool(samples) and all(
        sample.worst <= BYTES and math.isfinite(sample.difference) for sample in samples
    )
    print(
        f"{'ok' if good else 'FAIL'}: at most {BYTES} of 255 allowed, since a value may lie between two bytes"
    )
    return 0 if good else 1


def run_port(arguments: list[str], folder: Path, texts: Path) -> tuple[float, int]:
    """Run the user's command into a new folder. Returns (seconds, peak bytes), (0, 0) if it failed: it said why.

    texts: where the text features go, if the run has prompts.
    """
    command = [sys.executable, "-m", "ms_latte.sample", *arguments]
    command += ["--output_path", str(folder), "--output_format", "latents,png"]
    if any(word in ("--prompts", "--prompt", "--prompt_file") for word in arguments):
        command += ["--save_embeddings", str(texts)]
    root = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    began = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})
    memory = PeakMemory([process.pid])
    status = process.wait()
    peak = memory.stop()
    return (time.perf_counter() - began, peak) if status == 0 else (0.0, 0)


def compare(folder: Path, texts: Path):
    """Yield a `Sample` for every video in a folder of the port."""
    import yaml

    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    reference = Reference(config, folder, texts)
    for row in (row for row in rows if "seed" in row):
        latents, frames = reference.sample(row)
        name = Path(row["files"][0]).stem
        ours = np.load(folder / f"{name}.npy")
        pixels = np.stack([read_png(path) for path in pictures(folder, name)])
        apart = np.abs(pixels.astype(np.int16) - frames.astype(np.int16))
        error = np.linalg.norm((ours - latents).astype(np.float64)) / np.linalg.norm(
            latents.astype(np.float64)
        )
        yield Sample(name, float(error), int(apart.max()), float((apart > 0).mean()))


def pictures(folder: Path, name: str) -> list[Path]:
    """Frames of a sample, in order."""
    single = folder / f"{name}.png"
    return [single] if single.is_file() else sorted((folder / name).glob("*.png"))


def read_png(path: Path) -> np.ndarray:
    """Pixels (H, W, 3)."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


class Reference:
    """The twins in torch, float32, with the files and settings of a run of the port."""

    def __init__(self, config: dict[str, Any], folder: Path, texts: Path):
        from torch_ref.diffusion.samplers import make_sampler
        from torch_ref.models.latte import Latte

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
        import torch

        config = self.config
        height, width = config["image_size"]
        shape = (config["num_frames"], self.net.in_channels, height // 8, width // 8)
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
        import torch

        from torch_ref.diffusion.samplers import guide

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
        import torch

        from ms_latte.encoders.text_cache import apply_mask

        text, mask, negative = self.texts.rows([self.texts.prompts.index(prompt)])
        found = apply_mask(text, mask, negative, self.config["mask_feature"])
        tensors = [None if part is None else torch.from_numpy(np.array(part, np.float32)) for part in found]
        return tensors[0], tensors[2], tensors[1]


def load(path: Path | str, config: dict[str, Any] | None = None):
    """A torch twin with the weights of a checkpoint, in evaluation mode."""
    import importlib

    import torch

    import converters

    options = {}
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

    return tuple(next((folder / DEMO).glob(f"{name}-demo.*")) for name in ("latte", "vae"))
