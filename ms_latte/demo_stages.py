# SPDX-License-Identifier: Apache-2.0
"""The stages of `python -m ms_latte.demo`: each makes its file or folder, and is passed over where it is finished."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml

from ms_latte import device, loss_curve, shapes, video_io
from ms_latte.config import ConfigError, dump
from ms_latte.files import write_whole
from ms_latte.progress import Progress, clock

SIZE = 32  # pixels of a frame, as in configs/training/shapes.yaml
EVERY = 3  # the VAE is fitted to every third frame: neighbours are nearly the same
TEST_SEED = 1 << 32  # added to the seed: clips that nothing was fitted to
ZOOM = 3  # pixels of the contact sheet for one of a frame
GAP = 24  # white pixels between real and generated clips
HEAD = 24  # rows of the headings
CONFIG = "demo.yaml"


def run(config, out=None):
    """Make everything that is not there yet; returns the exit status, 0 or that of the command that failed."""
    out = out or sys.stdout
    folder = Path(config.output_path)
    keep_config(config, folder)
    started = time.perf_counter()

    def say(line):
        print(f"[{clock(time.perf_counter() - started)}] {line}", file=out, flush=True)

    videos, vae, latents = folder / "videos", folder / "vae.safetensors", folder / "latents"
    say(f"{config.clips} clips of {config.clip_frames} frames in {videos}")
    write_clips(config, videos)
    if not vae.exists():
        say(f"fitting a VAE, {config.vae_steps} steps")
        quality = fit_vae(config, vae)
        say(f"{vae}: new frames come back with a signal-to-noise ratio of {quality:.1f} dB")
    for words in commands(config, folder, videos, vae, latents):
        say(" ".join(["python -m", *words]))
        status = subprocess.run([sys.executable, "-m", *words], env=environment(), check=False).returncode
        if status:
            return status
    for picture in (write_curve(folder), write_sheet(config, folder)):
        say(picture)
    return 0


def keep_config(config, folder):
    """Note the configuration in the folder. Raises ConfigError for a folder that holds another run or other things."""
    place, text = folder / CONFIG, dump(config.model_copy(update={"output_path": "."}))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not place.exists() and any(folder.iterdir()):
            raise ConfigError(
                f"--output_path {folder} holds other files than this command's; name a new folder"
            )
        video_io.write_new(place, text.encode())
    except video_io.VideoError:
        held, asked = yaml.safe_load(place.read_text(encoding="utf-8")), yaml.safe_load(text)
        different = [
            f"{key} {held.get(key)} there, {asked[key]} now" for key in asked if held.get(key) != asked[key]
        ]
        raise ConfigError(
            f"--output_path {folder} holds a run with {'; '.join(different)}; name a new folder, or repeat the old "
            "command to continue"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"--output_path {folder}: cannot write there ({error.strerror or error})"
        ) from error


def write_clips(config, videos):
    """Draw the clips into <videos>/<kind>/<number>/<frame>.png; those that are there stay."""
    for index in range(config.clips):
        folder, name = videos / shapes.KINDS[index % len(shapes.KINDS)], f"{index:04d}"
        if not (folder / name).exists():  # a clip's folder appears when it is complete
            folder.mkdir(parents=True, exist_ok=True)
            video_io.save(folder, name, "png", shapes.clip(index, config.clip_frames, SIZE, config.seed))


def fit_vae(config, path):
    """Fit a small VAE to the frames of the clips and save it; returns its PSNR on frames of other clips, in dB."""
    device.select("CPU")  # before MindSpore is loaded
    from ms_latte import checkpoint, small_vae

    frames = np.concatenate(
        [shapes.clip(i, config.clip_frames, SIZE, config.seed)[::EVERY] for i in range(config.clips)]
    )
    vae = small_vae.fresh(np.random.default_rng(config.seed), sample_size=SIZE)
    with Progress(1, config.vae_steps) as progress:
        progress.begin("VAE")
        vae = small_vae.fit(
            vae, frames, config.vae_steps, seed=config.seed, on_step=lambda i, _: progress.step(i)
        )
    checkpoint.save(vae, path)
    others = [shapes.clip(i, 8, SIZE, config.seed + TEST_SEED) for i in range(4 * len(shapes.KINDS))]
    return small_vae.psnr(vae, np.concatenate(others))


def commands(config, folder, videos, vae, latents):
    """The commands of this package that do the rest, as words behind `python -m`."""
    training = ["-c", "configs/training/shapes.yaml"]
    sampling = ["-c", "configs/inference/shapes.yaml"]
    trained = folder / "train" / "ckpt" / f"Latte-s{config.train_steps}"
    yield [
        *("ms_latte.cache", *training, "--data_folder", str(videos)),
        *("--vae_checkpoint", str(vae), "--cache_folder", str(latents)),
    ]
    yield [
        *("ms_latte.train", *training, "--data_folder", str(latents), "--train_data_type", "numpy"),
        *("--max_train_steps", str(config.train_steps), "--seed", str(config.seed)),
        *("--output_path", str(folder / "train"), "--resume", "True"),
    ]
    yield [
        *("ms_latte.sample", *sampling, "--checkpoint", str(trained), "--vae_checkpoint", str(vae)),
        *("--num_samples", str(config.num_samples), "--sampling_steps", str(config.sampling_steps)),
        *("--seed", str(config.seed), "--output_path", str(folder / "samples")),
    ]


def environment():
    """Variables of a command of this package, wherever it is run from."""
    package = str(Path(__file__).resolve().parents[1])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
    }


def write_curve(folder):
    """The loss curve of the run; returns its path."""
    path = folder / "loss_curve.png"
    steps, values = loss_curve.read_losses(folder / "train" / "log.jsonl")
    write_whole(
        path, video_io.png_bytes(loss_curve.draw(steps, values, "error of the predicted noise (mse)"))
    )
    return path


def write_sheet(config, folder):
    """Real clips on the left, generated ones of the same kind on the right, in the order of their numbers; returns the
    path of the picture."""
    rows = []
    for k in range(len(shapes.KINDS) * config.num_samples):
        kind, number = divmod(k, config.num_samples)
        index = number * len(shapes.KINDS) + kind
        real = shapes.clip(index, config.clip_frames, SIZE, config.seed)[: video_io.SHEET_FRAMES]
        frames = sorted((folder / "samples" / f"{k:04d}").glob("*.png"))
        made = np.stack([video_io.read_png(frame) for frame in frames])
        rows.append([video_io.strip(enlarged(clip)) for clip in (real, made)])
    left, right = (video_io.sheet(column) for column in zip(*rows, strict=True))
    gap = np.full((len(left), GAP, 3), 255, np.uint8)
    path = folder / "real_and_generated.png"
    head = heading(("clips of the set", 0), ("generated", left.shape[1] + GAP), width=2 * left.shape[1] + GAP)
    write_whole(path, video_io.png_bytes(np.concatenate([head, np.concatenate([left, gap, right], axis=1)])))
    return path


def heading(*labels, width):
    """White rows with words at given columns, (HEAD, width, 3)."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, HEAD), "white")
    for text, column in labels:
        ImageDraw.Draw(image).text((column + video_io.MARGIN, HEAD // 2), text, (60, 60, 60), anchor="lm")
    return np.asarray(image)


def enlarged(frames):
    """Every pixel becomes ZOOM x ZOOM."""
    return frames.repeat(ZOOM, axis=1).repeat(ZOOM, axis=2)
