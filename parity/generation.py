# SPDX-License-Identifier: Apache-2.0
"""`python -m parity generate`: the videos of `python -m ms_latte.sample` against those of the torch twins.

The port runs as a user runs it and leaves latents and frames. The torch twins then start from the same checkpoint files
and the same noise. Each side has a process of its own; what they leave is compared.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ms_latte.config import ConfigError, build, find_config, parse
from ms_latte.sample_config import SampleConfig
from parity.harness.memory import PeakMemory

ROOT = Path(__file__).resolve().parents[1]
# Latents differ by about 1e-6 of their size, pixels by about 1e-4 of a byte: a byte differs by one where
# a value lies that near the border between two bytes, and never by more.
BYTES = 1
TWIN = "from parity.harness.generation_torch_side import main; main()"
MAKER = "import sys; from parity.generation import make_weights; make_weights(*sys.argv[1:])"
SEED, NET, VAE = 1, "latte.pt", "vae.safetensors"  # of random weights


@dataclass
class Sample:
    """One video of both sides. difference: of latents, relative L2; worst: of bytes; share: of bytes that differ."""

    name: str
    difference: float
    worst: int
    share: float

    @property
    def passed(self) -> bool:
        """Whether both sides wrote the same video."""
        return self.worst <= BYTES and math.isfinite(self.difference)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0: the videos are the same; 1: they are not; 2: one side did not run, and said why."""
    parser = argparse.ArgumentParser(
        prog="python -m parity generate",
        description="Sample videos with `python -m ms_latte.sample` and again with the torch twins, from the same "
        f"checkpoints and noise, and compare latents and frames. No byte may differ by more than {BYTES}.",
        epilog="All other options are those of ms_latte.sample; text is encoded once, by the port. Example: "
        "python -m parity generate -c configs/inference/demo.yaml --sampling_steps 10",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="new folder for the port's files; else they go"
    )
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="instead of downloaded checkpoints: random ones of the configuration's Latte and of Stable Diffusion's "
        "VAE, in the official formats (XL/2: 3 GB for the time of the run)",
    )
    options, rest = parser.parse_known_args(arguments)
    if not rest:
        parser.error("expected options of ms_latte.sample, for example -c configs/inference/demo.yaml")
    taken = [word for word in rest if word in ("--output_path", "--output_format", "--save_embeddings")]
    if taken:
        parser.error(f"{taken[0]} is set here; --keep DIR keeps the port's files")
    with tempfile.TemporaryDirectory(prefix="parity-") as scratch:
        folder = options.keep or Path(scratch) / "port"
        texts, theirs = Path(scratch) / "texts.safetensors", Path(scratch) / "torch"
        theirs.mkdir()
        rest += ["--output_path", str(folder), "--output_format", "latents,png"]
        if options.random_weights and not random_weights(rest, Path(scratch)):
            return 2
        if encodes(rest):
            rest += ["--save_embeddings", str(texts)]
        port = ["-m", "ms_latte.sample", *rest]
        twin = ["-c", TWIN, str(folder), str(texts), str(theirs)]
        if not run("port", port) or not run("torch", twin):
            return 2
        samples = list(compare(folder, theirs))
    print(f"{'sample':<8} {'latents, rel. L2':>16} {'largest byte difference':>24} {'bytes that differ':>18}")
    for sample in samples:
        print(f"{sample.name:<8} {sample.difference:>16.1e} {sample.worst:>24} {sample.share:>18.3%}")
    good = bool(samples) and all(sample.passed for sample in samples)
    print(
        f"{'ok' if good else 'FAIL'}: {len(samples)} samples, byte differences of at most {BYTES} are rounding"
    )
    return 0 if good else 1


def configuration(options: list[str]) -> SampleConfig | None:
    """The port's configuration under these options; None if they are wrong, which the port says better."""
    try:
        path, overrides = parse(SampleConfig, options, "python -m parity generate", None, None)
        return build(SampleConfig, find_config(path) if path else None, overrides)
    except (ConfigError, SystemExit):
        return None


def encodes(options: list[str]) -> bool:
    """Whether the port will encode texts, by T5."""
    config = configuration(options)
    return bool(config and (config.prompts or config.prompt_file) and not config.embeddings)


def random_weights(options: list[str], folder: Path) -> bool:
    """Make checkpoints for the run and point `options` to them. Returns whether that succeeded."""
    config = configuration(options)
    if config is None or config.model_name in (None, "LatteT2V"):
        got = "wrong options" if config is None else f"model_name {config.model_name}"
        message = f"error: --random-weights makes a Latte by its name; got {got}; expected Latte-XL/2 ..."
        print(message, file=sys.stderr)
        return False
    told = [config.model_name, config.condition or "none", str(config.num_classes or 0)]
    sizes = [str(n) for n in (config.num_frames, *config.latent_size)]
    if not run("random weights", ["-c", MAKER, str(folder), *told, *sizes]):
        return False
    options += ["--checkpoint", str(folder / NET), "--vae_checkpoint", str(folder / VAE)]
    return True


def make_weights(folder: str, model_name: str, condition: str, classes: str, *sizes: str) -> None:
    """Write a random Latte and a random VAE of Stable Diffusion to `folder`; in a process of its own.

    sizes: frames, height and width of the latents.
    """
    from ms_latte import checkpoint, device
    from ms_latte.demo import fill
    from ms_latte.encoders.vae import AutoencoderKL
    from ms_latte.models.latte import Latte_models

    device.select("CPU")
    rng, (frames, height, width) = np.random.default_rng(SEED), map(int, sizes)
    named = dict(input_size=(height, width), num_frames=frames, condition=condition)
    if condition == "class":
        named["num_classes"] = int(classes)
    checkpoint.save(fill(Latte_models[model_name](**named), rng), Path(folder) / NET)
    checkpoint.save(fill(AutoencoderKL(), rng), Path(folder) / VAE)


def run(side: str, command: list[str]) -> bool:
    """Run one side; its messages go where ours go. Returns whether it succeeded."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], env={**os.environ, "PYTHONPATH": paths})
    memory = PeakMemory([process.pid])
    status = process.wait()
    peak, seconds = memory.stop() / 2**30, time.perf_counter() - began
    said = "" if status == 0 else f", exit status {status}"
    print(f"{side}: {seconds:.0f} s, peak memory {peak:.2f} GiB (PSS){said}", flush=True)
    return status == 0


def compare(ours: Path, theirs: Path) -> Iterator[Sample]:
    """A `Sample` for every video of torch. ours: folder of a run of the port; theirs: NAME.npz for each."""
    for path in sorted(theirs.glob("*.npz")):
        with np.load(path) as twin:
            latents, frames = twin["latents"].astype(np.float64), twin["frames"].astype(np.int16)
        error = np.linalg.norm(np.load(ours / f"{path.stem}.npy") - latents) / np.linalg.norm(latents)
        apart = np.abs(pixels(ours, path.stem).astype(np.int16) - frames)
        yield Sample(path.stem, float(error), int(apart.max()), float((apart > 0).mean()))


def pixels(folder: Path, name: str) -> np.ndarray:
    """Frames (F, H, W, 3) of a sample: a folder of pictures, or one picture."""
    single = folder / f"{name}.png"
    paths = [single] if single.is_file() else sorted((folder / name).glob("*.png"))
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
