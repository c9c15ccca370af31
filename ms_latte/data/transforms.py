# SPDX-License-Identifier: Apache-2.0
"""From a clip's frames to a sample's pixels: which frames, which part of each, at which size."""

import numpy as np

SAMPLING = ("exact", "linspace")


def window(num_frames, stride, sampling="exact"):
    """How many frames a clip must have. Raises ValueError for a number below 1 or an unknown sampling."""
    wrong = [f"{name} {n}" for name, n in (("num_frames", num_frames), ("stride", stride)) if n < 1]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: expected at least 1")
    if sampling not in SAMPLING:
        raise ValueError(f"sampling {sampling!r}: expected one of {', '.join(SAMPLING)}")
    return (num_frames - 1) * stride + 1 if sampling == "exact" else num_frames * stride


def temporal_crop(total, num_frames, stride, rng, sampling="exact"):
    """Indices (num_frames,) of frames of a clip that has `total`, from a uniformly drawn start.

    "exact": every stride-th frame. QUIRK(linspace_sampling): the originals' sets of video files spread num_frames
    evenly over num_frames * stride frames, so the step is about stride * num_frames / (num_frames - 1), rounded down
    per frame; "linspace" does the same (datasets/ffs_datasets.py), except that a clip shorter than that is refused
    instead of silently compressed. Raises ValueError if the clip is too short.
    """
    size = window(num_frames, stride, sampling)
    if total < size:
        raise ValueError(f"{total} frames, expected at least {size} ({num_frames} with a stride of {stride})")
    start = int(rng.integers(total - size + 1))
    if sampling == "exact":
        return start + stride * np.arange(num_frames)
    return np.linspace(start, start + size - 1, num_frames).astype(np.int64)


def resize_crop(picture, height, width):
    """Resize (bilinear) to the smallest size that covers height x width, then cut out the centre (UCF101, ffs)."""
    # A rounded side may fall one pixel short of what it has to cover.
    scale = max(height / picture.height, width / picture.width)
    size = (max(round(picture.width * scale), width), max(round(picture.height * scale), height))
    picture = _resize(picture, size)
    return picture.crop(_centre(picture, height, width))


def crop_resize(picture, height, width):
    """Cut out the largest centre part of the shape height x width, a square for a square, then resize (sky)."""
    scale = min(picture.height / height, picture.width / width)
    box = _centre(picture, max(round(height * scale), 1), max(round(width * scale), 1))
    return _resize(picture.crop(box), (width, height))


def unchanged(picture, height, width):
    """The picture itself, which must have the size (Taichi-HD, prepared sets). Raises ValueError otherwise."""
    if (picture.height, picture.width) != (height, width):
        raise ValueError(
            f"frame of {picture.height}x{picture.width}, expected {height}x{width} (height x width) because transform "
            'is "none"; remedy: transform resize_crop or crop_resize, or frames of one size'
        )
    return picture


# The published sets differ in how a frame becomes square.
TRANSFORMS = {"resize_crop": resize_crop, "crop_resize": crop_resize, "none": unchanged}


def to_pixels(frames, image_size, transform="resize_crop", flips=None, out=None):
    """Pixels float32 (F, 3, H, W) in [-1, 1] of frames (each (h, w, 3) uint8, of any size).

    image_size: (H, W); flips: (F,) bool, which frames to mirror left to right, or None; out: array to fill.
    Raises ValueError for an unknown transform and for what the transform refuses.
    """
    from PIL import Image

    if transform not in TRANSFORMS:
        raise ValueError(f"transform {transform!r}: expected one of {', '.join(TRANSFORMS)}")
    height, width = image_size
    out = np.empty((len(frames), 3, height, width), np.float32) if out is None else out
    for i, frame in enumerate(frames):
        frame = np.asarray(TRANSFORMS[transform](Image.fromarray(frame), height, width))  # (H, W, 3)
        frame = frame[:, ::-1] if flips is not None and flips[i] else frame
        # Told, because NumPy would divide bytes by a scalar in half precision.
        np.divide(frame.transpose(2, 0, 1), 127.5, out=out[i], dtype=np.float32)
        out[i] -= np.float32(1)
    return out


def _resize(picture, size):
    from PIL import Image

    return picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)


def _centre(picture, height, width):
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return left, top, left + width, top + height
