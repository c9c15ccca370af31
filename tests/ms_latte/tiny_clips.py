# SPDX-License-Identifier: Apache-2.0
"""Small clips on disk whose pixels tell where they come from: red is the clip, green the frame, blue the column."""

import numpy as np
from PIL import Image

from ms_latte import video_io

HEIGHT, WIDTH = 10, 14


def frame(clip, number, height=HEIGHT, width=WIDTH):
    """One frame (H, W, 3) uint8."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[..., 0], picture[..., 1] = clip, number
    picture[..., 2] = np.arange(width) * 3
    return picture


def write_folder(folder, clip, count, height=HEIGHT, width=WIDTH, first=0):
    """A folder of .png frames, numbered without leading zeros."""
    folder.mkdir(parents=True)
    for number in range(first, first + count):
        (folder / f"frame{number}.png").write_bytes(video_io.png_bytes(frame(clip, number, height, width)))
    return folder


def write_folders(root, counts, **size):
    """Folders c0, c1 ... of so many frames; the clip's number is 20, 21 ..."""
    for i, count in enumerate(counts):
        write_folder(root / f"c{i}", 20 + i, count, **size)
    return root


def moving(count, height=32, width=48):
    """Frames (F, H, W, 3) whose brightness alone tells their number, which survives lossy coding."""
    levels = (np.arange(count) * 8 + 8).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def number_of(picture):
    """The frame's number, read back from a frame of `moving`."""
    return round((float(np.mean(picture)) - 8) / 8)


def write_video(path, count, rate=10, gop=5, codec="libx264", pictures=None, **options):
    """A video file of `moving` frames, or of given ones, written by PyAV."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        frames = moving(count) if pictures is None else pictures
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.gop_size = gop
        stream.options = {"bf": "2", "crf": "10", "g": str(gop)} if codec == "libx264" else {}
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_jpg(path, picture):
    """One picture as .jpg."""
    Image.fromarray(picture).save(path, "JPEG")
    return path


def clip_numbers(pixels):
    """Clip and frame numbers (F,), (F,) of pixels (F, 3, H, W) from `frame`."""
    levels = np.rint((pixels[:, :2].mean((2, 3)) + 1) * 127.5).astype(int)
    return levels[:, 0], levels[:, 1]
