# SPDX-License-Identifier: Apache-2.0
"""`python -m parity generate`: the videos of `python -m ms_latte.sample` against those of the torch twins.

The port runs as a user runs it and leaves latents and frames. The torch twins then start from the same checkpoint files
and the same noise. Each side has a process of its own; what they leave is compared.
"""

import argparse
import json
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

from parity.harness.memory import PeakMemory

ROOT = Path(__file__).resolve().parents[1]
# Latents differ by about 1e-6 of their size, pixels by about 1e-4 of a byte: a byte differs by one where
# a value lies that near the border between two bytes, and never by more.
BYTES = 1
TWIN = "from parity.harness.generation_torch_side import main; main()"
PREPARE = "from parity.harness.generation_mindspore_side import main; main()"
OPTIONS, TEXTS = "options.json", "texts.safetensors"  # in the scratch folder


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
        texts, theirs = Path(scratch) / TEXTS, Path(scratch) / "torch"
        theirs.mkdir()
        rest += ["--output_path", str(folder), "--output_format", "latents,png"]
        added = prepared(rest, Path(scratch), options.random_weights)
        if added is None:
            return 2
        port = ["-m", "ms_latte.sample", *rest, *added]
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


def prepared(options: list[str], scratch: Path, random_weights: bool) -> list[str] | None:
    """Options that the port needs besides the user's own: weights made for the run, a place for its text features.

    None if that did not succeed; what the reason is has been said.
    """
    words = [str(scratch), "random" if random_weights else "given", *options]
    if not run("random weights" if random_weights else "", ["-c", PREPARE, *words]):
        return None
    return json.loads((scratch / OPTIONS).read_text(encoding="utf-8"))


def run(side: str, command: list[str]) -> bool:
    """Run one side; its messages go where ours go, and its time is printed if it has a name. Returns whether it
    succeeded."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], env={**os.environ, "PYTHONPATH": paths})
    memory = PeakMemory([process.pid])
    status = process.wait()
    peak, seconds = memory.stop() / 2**30, time.perf_counter() - began
    said = "" if status == 0 else f", exit status {status}"
    if side:
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
