# SPDX-License-Identifier: Apache-2.0
"""Frames to files: .gif, .mp4, folders of .png, one contact sheet. A file appears whole or not at all, and no file
is ever replaced.

Frames are uint8 arrays (F, H, W, 3). Bytes as the originals make them: clamp((x * 0.5 + 0.5) * 255 + 0.5, 0, 255).
"""

import contextlib
import io
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

MARGIN = 2  # pixels between the pictures of a contact sheet
SHEET_FRAMES = 8  # of a video, on the contact sheet
ENDINGS = {"gif": ".gif", "mp4": ".mp4", "png": "", "latents": ".npy"}
SAME_LIMIT = 64 << 20  # bytes of a file that are compared with an older one


class VideoError(ValueError):
    """Frames that cannot be written; the message names the remedy."""


def to_uint8(video):
    """Decoded pixels (..., 3, H, W) in about [-1, 1] -> bytes (..., H, W, 3). Raises VideoError for NaN."""
    video = np.asarray(video, np.float32)
    if np.isnan(video).any():
        raise VideoError(
            "decoded frames hold NaN; remedy: a wider type (--dtype fp32 or bf16), or a checkpoint that fits"
        )
    levels = np.clip((video * np.float32(0.5) + np.float32(0.5)) * np.float32(255) + np.float32(0.5), 0, 255)
    return np.moveaxis(levels.astype(np.uint8), -3, -1)


def check_writers(formats):
    """Raise VideoError, before anything is computed, if a format needs a package that is absent."""
    if "mp4" in formats:
        _import_av()


def _import_av():
    try:
        import av
    except ImportError as error:
        raise VideoError(
            f'.mp4 needs PyAV, which cannot be imported ({error}). Remedy: pip install "ms-latte[video]" or '
            '"av>=14", or --output_format gif'
        ) from error
    return av


def gif_bytes(frames, fps=8):
    """An animated .gif that repeats for ever; every frame has its own palette."""
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    # A gif counts hundredths of a second.
    duration = max(round(100 / fps), 1) * 10
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0)
    return buffer.getvalue()


def mp4_bytes(frames, fps=8):
    """An .mp4 in H.264; an odd height or width is padded by its last row or column, which yuv420p asks for."""
    av = _import_av()
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.options = {"crf": "17"}
        for frame in frames:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
            )
        container.mux(stream.encode())
    return buffer.getvalue()


def png_bytes(picture):
    """One picture (H, W, 3) as .png."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def npy_bytes(array):
    """An array as .npy."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def save(folder, name, form, frames=None, latents=None, fps=8):
    """Write one sample in one form; returns the file or folder. Raises VideoError if another one stands there.

    form: "gif", "mp4", "png" (a folder of frames, or one file for one frame) or "latents" (.npy, float32).
    """
    folder = Path(folder)
    if form == "png" and len(frames) > 1:
        return _write_frames(folder / name, frames)
    content = {
        "gif": lambda: gif_bytes(frames, fps),
        "mp4": lambda: mp4_bytes(frames, fps),
        "png": lambda: png_bytes(frames[0]),
        "latents": lambda: npy_bytes(latents),
    }[form]()
    ending = ".png" if form == "png" else ENDINGS[form]
    return write_new(folder / f"{name}{ending}", content)


def write_new(path, content):
    """Write bytes under a name that is free; a file that holds just these bytes already is left as it is.

    Raises VideoError if the name belongs to other content.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files private
        try:
            os.link(temporary, path)  # fails where a name is taken, which a rename does not
        except FileExistsError:
            if path.stat().st_size != len(content) or path.read_bytes() != content:
                raise _taken(path) from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return path


def _write_frames(path, frames):
    contents = {f"{i:03d}.png": png_bytes(frame) for i, frame in enumerate(frames)}
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        for name, content in contents.items():
            (temporary / name).write_bytes(content)
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            found = {file.name: file.read_bytes() for file in path.iterdir()} if path.is_dir() else None
            if found != contents:
                raise _taken(path)
        else:
            os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def _taken(path):
    return VideoError(
        f"{path} exists and holds something else; nothing is overwritten; remedy: another --output_path, or move it"
    )


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def strip(frames, count=SHEET_FRAMES):
    """A sample's row on the contact sheet: up to `count` frames, evenly spaced, first and last included."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int))
    return np.concatenate([_framed(frames[i]) for i in chosen], axis=1)


def sheet(strips):
    """The contact sheet (H, W, 3) of several rows; shorter rows are filled with white."""
    width = max(row.shape[1] for row in strips)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in strips]
    return np.concatenate(rows)


def _framed(picture):
    return np.pad(picture, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), constant_values=255)


def read_png(path):
    """Pixels (H, W, 3) of a .png."""
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
