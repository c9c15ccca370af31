# SPDX-License-Identifier: Apache-2.0
"""One run of `python -m ms_latte.sample`: parts from files, batches through a pipeline, results into a folder."""

import signal
import sys
import threading
import time
from dataclasses import dataclass

import numpy as np

from ms_latte import device, video_io
from ms_latte.config import ConfigError, dump
from ms_latte.parts import check_told, factor_of, find_parts, load_denoiser, load_vae, settle, sizes_of
from ms_latte.progress import Progress, clock, timing_table
from ms_latte.run_folder import RunFolder, facts, read_array
from ms_latte.sample_config import latent_size


@dataclass
class Times:
    """Seconds of a run."""

    load: float = 0.0  # of denoiser and VAE
    text: float = 0.0  # of text features, the encoder's loading included
    sample: float = 0.0  # of all steps, decoding and writing


def run(config, out=None):
    """Sample everything that `config` asks for; returns the exit status 0.

    Raises ValueError (ConfigError, CheckpointError ...) for what cannot be served and DeviceError for an absent device,
    before any file is written; KeyboardInterrupt tells how to resume.
    """
    out = out or sys.stdout
    video_io.check_writers(config.output_format)
    paths = find_parts(config)
    report = device.select(config.device_target, config.device_id)
    config = settle(config)
    inputs = {name: facts(path) for name, path in sizes_of(config, paths).items()}
    print(f"{report.device}, MindSpore {report.mindspore}, {config.dtype}, {words(config)}", file=out)
    with RunFolder(config.output_path, dump(config), inputs) as folder:
        try:
            return _run(config, paths, folder, out)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_resume_hint(config, folder)) from None


def words(config):
    """What the run does, in a few words."""
    height, width = config.image_size
    if config.latents_path:
        return f"decoding {config.latents_path}"
    method = f"{config.method.upper()} {config.sampling_steps} steps"
    return f"{config.num_frames} x {height} x {width}, {method}, guidance {config.guidance_scale:g}"


def _run(config, paths, folder, out):
    times, started = Times(), time.perf_counter()
    pixels = tuple(form for form in config.output_format if form != "latents")
    vae = load_vae(paths.vae(folder.path)) if pixels else None
    if config.latents_path:
        (jobs, sample), name = _stored(config, vae), type(vae).__name__
    else:
        from ms_latte.jobs import make_jobs, make_pipeline  # they load MindSpore

        latent_size(config.image_size, factor_of(vae))  # before texts are encoded
        texts = None
        if config.prompts or config.prompt_file or config.embeddings:
            from ms_latte.jobs import text_features

            began = time.perf_counter()
            texts = text_features(config, paths, lambda line: print(line, file=out))
            times.text = time.perf_counter() - began
        model = load_denoiser(paths.denoiser(folder.path), config)
        name = check_told(config, model)
        jobs = make_jobs(config, model, texts)
        sample = make_pipeline(config, model, jobs, texts, factor_of(vae))
    times.load = time.perf_counter() - started - times.text

    steps = 1 if config.latents_path else config.sampling_steps
    size = config.batch_size
    batches = [range(i, min(i + size, len(jobs))) for i in range(0, len(jobs), size)]
    # Whole batches are repeated, so that a resumed batch has the bits of an uninterrupted one.
    pending = [batch for batch in batches if any(k not in folder.finished for k in batch)]
    if not pending:
        print(f"all {len(jobs)} samples are in {folder.path} already", file=out)
    started = time.perf_counter()
    keep_interrupts()
    with Progress(len(pending), steps) as progress:
        for batch in pending:
            progress.begin(
                f"sample {batch[0] + 1}{f'-{batch[-1] + 1}' if len(batch) > 1 else ''}/{len(jobs)}"
            )
            began = time.perf_counter()
            latents = sample(batch, progress.step)
            for row, k in enumerate(batch):
                if k not in folder.finished:
                    _finish(config, folder, jobs[k], k, latents[row], vae, pixels, began)
    times.sample = time.perf_counter() - started
    if config.contact_sheet and pixels:
        folder.write_sheet()
    print(f"{len(jobs)} samples in {folder.path}", file=out)
    if pending:
        print(timing_table(_row(config, name, times, progress)), file=out)
    return 0


def keep_interrupts():
    """Ctrl-C raises KeyboardInterrupt again: MindSpore replaces Python's handler by one that ends the process."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _finish(config, folder, job, k, latents, vae, pixels, began):
    """Decode one sample, write its files, note it."""
    from ms_latte.pipelines.denoising import decode

    if not np.isfinite(latents).all():
        raise ConfigError(
            f"sample {k}: the latents hold NaN or infinity; remedy: a wider type (--dtype bf16 or fp32), or a "
            "checkpoint that fits the configuration"
        )
    frames = decode(vae, latents[None], config.sd_scale_factor, config.vae_chunk)[0] if pixels else None
    files = [
        video_io.save(folder.path, f"{k:04d}", form, frames, latents, config.fps)
        for form in config.output_format
    ]
    row = video_io.strip(frames) if pixels and config.contact_sheet else None
    seconds = round(time.perf_counter() - began, 3)
    folder.add(k, {**job, "files": [file.name for file in files], "seconds": seconds}, row)


def _stored(config, vae):
    """Latents of a file, to be decoded only."""
    latents = read_array(config.latents_path, "--latents_path")
    channels = vae.config["latent_channels"] if vae is not None else latents.shape[2]
    if latents.shape[2] != channels:
        raise ConfigError(
            f"--latents_path {config.latents_path}: got {latents.shape[2]} channels on axis 2, the VAE takes "
            f"{channels}; expected (N, F, C, h, w)"
        )

    def sample(batch, on_step):
        on_step(0)
        return latents[batch.start : batch.stop]

    return [{"latents": str(config.latents_path)}] * len(latents), sample


def _row(config, name, times, progress):
    height, width = config.image_size
    return {
        "model name": name,
        "cards": "1",
        "image size": "-" if config.latents_path else f"{height}x{width}",
        "method": "-" if config.latents_path else config.method.upper(),
        "steps": "-" if config.latents_path else str(config.sampling_steps),
        "jit level": config.jit_level if config.mode == 0 else "-",
        "ckpt loading time": f"{times.load:.2f} s",
        "compile time": f"{progress.compile_time:.2f} s" if config.mode == 0 else "-",
        "total sample time": f"{times.text + times.sample:.2f} s",
        "per step": f"{progress.step_time:.3f} s",
    }


def _resume_hint(config, folder):
    if not folder.finished:
        return "no sample was finished"
    seconds = clock(sum(row["seconds"] for row in folder.finished.values()))
    return (
        f"{len(folder.finished)} samples are finished (took {seconds}); "
        f"repeat the command with --output_path {config.output_path} to continue"
    )
