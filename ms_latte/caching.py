# SPDX-License-Identifier: Apache-2.0
"""One run of `python -m ms_latte.cache`: clips through the VAE, captions through T5, into a folder of latents."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ms_latte import device
from ms_latte.caption_features import Captions
from ms_latte.config import ConfigError
from ms_latte.data import latent_records
from ms_latte.data.frames import ClipError, open_clip
from ms_latte.data.latent_store import FACTS, CacheFolder
from ms_latte.data.sources import clips_of, settings_of
from ms_latte.data.transforms import to_pixels
from ms_latte.parts import factor_of, load_vae
from ms_latte.progress import FrameProgress
from ms_latte.sample_config import latent_size
from ms_latte.sampling import keep_interrupts

READ = 64  # frames that are read at a time, while those before are being encoded
SHOWN = 5  # names in a message


def run(config, out=None):
    """Cache everything that `config` asks for; returns the exit status 0.

    Raises ValueError (ConfigError, CheckpointError ...) for what cannot be served, before anything is encoded;
    KeyboardInterrupt tells how to go on. Videos that cannot be read are named, counted and skipped, or end the run
    (bad_clips).
    """
    out = out or sys.stdout
    check_paths(config)
    clips, problems = clips_of(config)
    report = device.select(config.device_target, config.device_id)
    config = settle(config)
    print(f"{report.device}, MindSpore {report.mindspore}, {len(clips)} videos", file=out)
    vae = load_vae(config.vae_checkpoint)
    sides = latent_size(config.image_size, factor_of(vae))  # refuses others, which would lose pixels
    captions = Captions(config, lambda line: print(line, file=out)) if config.condition == "text" else None
    if config.cache_file_type == "mindrecord":
        _check_pages(config, clips, 2 * vae.latent_channels * sides[0] * sides[1])
    with CacheFolder(config.cache_folder, facts(config, vae, captions), config.verify_cache) as cache:
        check_set(cache, clips, problems)
        return _run(config, clips, problems, vae, captions, cache, out)


def _run(config, clips, problems, vae, captions, cache, out):
    if cache.damaged:
        print(f"{named(cache.damaged)} damaged, made again", file=out)
    for name, reason in problems.items():
        if name not in cache.finished:  # what was readable once stays
            _refuse_or_note(config, cache, name, reason)
    cache.set_order(clip.name for clip in clips)
    first = config.resume_cache_index or 0
    if first >= len(clips):
        raise ConfigError(
            f"--resume_cache_index {first}: expected 0 to {len(clips) - 1}, one of the {len(clips)} videos"
        )
    before = len(cache.finished)
    pending = [clip for clip in clips[first:] if clip.name not in cache.finished]
    attempts = 0
    keep_interrupts()
    try:
        with FrameProgress(len(pending), sum(clip.frames for clip in pending)) as progress:
            for clip in pending:
                progress.begin(clip.name, clip.frames)
                attempts += 1
                _one(config, clip, vae, captions, cache, progress)
        _pack(config, cache, 0)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{len(cache.finished)} of {len(clips)} videos are finished; repeat the command to continue"
        ) from None
    finally:
        saved = len(cache.finished) - before
        there = {*problems, *cache.order}
        failed = {name: reason for name, reason in cache.failed.items() if name in there}
        print(
            f"began at video {first} of {len(clips)}; tried {attempts}, saved {saved}, failed {len(failed)}; "
            f"{len(cache.finished)} videos in {cache.path}",
            file=out,
        )
        for name, reason in list(failed.items())[:SHOWN]:
            print(f"  failed {name}: {reason}", file=out)
    if not cache.finished:
        raise ConfigError(
            f"--cache_folder {cache.path}: not one video could be cached; see the reasons above"
        )
    return 0


def _one(config, clip, vae, captions, cache, progress):
    """Encode and save one video, or note why that is impossible."""
    try:
        record = {"label": clip.label, "caption": clip.caption, "kind": clip.kind}
        record |= {
            "device": config.device_target,
            "vae_chunk": config.vae_chunk,
        }  # what the last bits depend on
        text = None
        if captions:
            text, record["text_mask"] = captions(clip.caption)
        moments = encode_clip(config, clip, vae, progress.step)
        moments, text = (_narrow(array, config.save_data_type) for array in (moments, text))
    except ClipError as error:
        progress.say(f"failed {clip.name}: {error}")
        _refuse_or_note(config, cache, clip.name, str(error))
        return
    staged = config.cache_file_type == "mindrecord"
    if staged:
        size = moments.nbytes + (0 if text is None else text.nbytes)
        latent_records.check_record(clip.name, size, config.max_page_size)
        _pack(config, cache, size)
    cache.add(clip.name, moments, record, text, staged)


def _pack(config, cache, coming):
    """Put staged videos into a MindRecord file, if the coming one (bytes) is too many for it or there is none."""
    lines = latent_records.staged(cache)
    size = sum(latent_records.nbytes(line) for line in lines)
    if lines and (not coming or size + coming > config.max_file_size * 2**30):
        latent_records.pack(cache, lines, config.max_page_size, config.dump_every_n_lines)


def encode_clip(config, clip, vae, on_frames=lambda count: None):
    """Mean and logvar of every frame of a clip, (V, F, 2C, h, w) float32: V 2 with random_flip, the second mirrored.

    on_frames(count) is called as frames are finished. Raises ClipError for a clip that cannot be read, and for
    latents that are not finite.
    """
    import mindspore as ms

    reader = open_clip(clip.path, clip.kind)
    if not reader.frames:
        raise ClipError(f"{clip.path}: no frames")
    versions = (False, True) if config.random_flip else (False,)
    found = [[] for _ in versions]
    for frames in _ahead(reader, max(READ // config.vae_chunk, 1) * config.vae_chunk):
        for version, mirrored in enumerate(versions):
            try:
                pixels = to_pixels(frames, config.image_size, config.transform, [mirrored] * len(frames))
            except ValueError as error:
                raise ClipError(f"{clip.path}: {error}") from error
            for i in range(0, len(pixels), config.vae_chunk):
                mean, logvar = vae.encode(ms.Tensor(pixels[i : i + config.vae_chunk]))
                found[version].append(np.concatenate([mean.asnumpy(), logvar.asnumpy()], axis=1))
        on_frames(len(frames))
    moments = np.stack([np.concatenate(chunks) for chunks in found])
    if not np.isfinite(moments).all():
        raise ClipError(
            f"{clip.path}: the VAE's latents hold NaN or infinity; remedy: another vae_checkpoint"
        )
    return moments


def _ahead(reader, size):
    """Frames of a clip, `size` at a time; the next ones are read while the caller works."""
    groups = [range(i, min(i + size, reader.frames)) for i in range(0, reader.frames, size)]
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(reader.read, list(groups[0]))
        for group in groups[1:]:
            frames = coming.result()
            coming = pool.submit(reader.read, list(group))
            yield frames
        yield coming.result()


def _narrow(array, kind):
    if array is None:
        return None
    narrow = array.astype(kind)
    if not np.isfinite(narrow).all():
        raise ClipError(
            f"values up to {np.abs(array).max():g} do not fit {kind}; remedy: --save_data_type float32"
        )
    return narrow


def facts(config, vae, captions):
    """What a cache is made from, and in which form."""
    from ms_latte import checkpoint

    return {
        "vae": {
            "model": type(vae).__name__,
            "sha256": checkpoint.weights_hash(vae),
            "scaling_factor": vae.scaling_factor,
            "latent_channels": vae.latent_channels,
        },
        "image_size": config.image_size,
        "transform": config.transform,
        "random_flip": config.random_flip,
        "cache_file_type": config.cache_file_type,
        "save_data_type": config.save_data_type,
        "text": captions.facts if captions else None,
    }


def check_set(cache, clips, problems):
    """Raise ConfigError if the cache holds videos of another data set: other names, lengths, classes or captions.

    New videos may have joined the set.
    """
    now, different = {clip.name: clip for clip in clips}, []
    for name, line in cache.finished.items():
        if name in now:
            clip = now[name]
            told = {"kind": clip.kind, "label": clip.label, "caption": clip.caption}
            told |= (
                {"frames": clip.frames} if clip.kind == "frames" else {}
            )  # a video's header may promise more
            different += [
                f"{key} of {name}: {line.get(key)!r} there, {value!r} now" for key, value in told.items()
                if line.get(key) != value
            ]  # fmt: skip
        elif name not in problems:
            different.append(f"{name} is not in the data now")
    if different:
        more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        raise ConfigError(
            f"--cache_folder {cache.path} holds videos of another data set: {'; '.join(different[:SHOWN])}{more}; "
            "name another --cache_folder, or the old --data_folder"
        )


def _refuse_or_note(config, cache, name, reason):
    cache.fail(name, reason)
    if config.bad_clips == "fail":
        raise ConfigError(f"video {name} cannot be cached: {reason}; remedy: correct it, or --bad_clips skip")


def _check_pages(config, clips, numbers):
    """The page limit, before hours of encoding; numbers: of mean and logvar of a frame."""
    for clip in clips:
        frames = clip.frames * (2 if config.random_flip else 1)
        size = frames * numbers * np.dtype(config.save_data_type).itemsize
        latent_records.check_record(f"{clip.name} ({clip.frames} frames)", size, config.max_page_size)


def check_paths(config):
    """Raise ConfigError for a path of the configuration that does not exist, or is another thing."""
    remedy = {"vae_checkpoint": "a VAE such as sd-vae-ft-mse", "text_encoder": "a T5 encoder"}
    if config.vae_checkpoint is None:
        raise ConfigError(f"--vae_checkpoint is missing; remedy: {remedy['vae_checkpoint']}")
    for name in ("vae_checkpoint", "text_encoder", "tokenizer", "embeddings", "csv_path", "data_folder"):
        path = getattr(config, name)
        if path and not Path(path).exists():
            hint = f"; remedy: {remedy[name]}" if name in remedy else ""
            raise ConfigError(f"--{name} {path} does not exist (from {Path.cwd()}){hint}")
    if (Path(config.data_folder) / FACTS).exists():
        raise ConfigError(
            f"--data_folder {config.data_folder} is a cache of latents itself; expected the clips that it is made from"
        )


def settle(config):
    """The configuration with what device and data set decide filled in. Raises ConfigError for what the device has
    not."""
    on_cpu = config.device_target == "CPU"
    if on_cpu and config.max_device_memory:
        raise ConfigError("--max_device_memory limits an Ascend card; leave it out on the CPU")
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
    if config.max_device_memory:  # not yet run on the device
        ms.runtime.set_memory(max_size=config.max_device_memory)
    found = settings_of(config)
    return config.model_copy(
        update={
            "dtype": config.dtype or ("fp32" if on_cpu else "bf16"),
            "transform": found["transform"],
            "random_flip": found["flip"],
        }
    )


def named(names):
    """ "2 videos (a, b)"."""
    names = list(names)
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} video{'s' * (len(names) != 1)} ({', '.join(names[:SHOWN])}{more})"
