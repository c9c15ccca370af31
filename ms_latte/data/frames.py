# SPDX-License-Identifier: Apache-2.0
"""Reads chosen frames of one clip: a folder of pictures, a video file, an animated gif.

`open_clip` gives a reader that knows how many frames there are and reads some of them by index, in any order, without
decoding the others where the file allows it. A frame is a uint8 array (H, W, 3).
"""

import os
import re
from pathlib import Path

import numpy as np

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
VIDEOS = (".mp4", ".avi", ".webm", ".mov", ".mkv", ".gif")


class ClipError(ValueError):
    """A clip that cannot be used: unreadable, damaged or too short. The message is the reason, and names the file."""


def natural(name):
    """Sorting key of names in which numbers count as numbers: frame 2 comes before frame 10."""
    parts = re.split(r"([0-9]+)", name)
    # Names that differ in leading zeros alone keep one order.
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)], name


def open_clip(path, kind):
    """The reader of a clip; kind: "frames" (folder of pictures) or "video" (file).

    It has `path`, `frames` (count) and `read(indices) -> list of (H, W, 3) uint8`. Raises ClipError.
    """
    path = Path(path)
    if kind == "frames":
        return FrameFolder(path)
    if kind != "video":
        raise ValueError(f"clip kind {kind!r}: expected frames or video")
    if path.suffix.lower() == ".gif":
        return Animation(path)
    try:
        import av  # noqa: F401 (whether it is there)
    except ImportError:
        return MindSporeVideo(path)
    return Video(path)


def count_frames(path, kind):
    """How many frames a clip says it has; a video's header is believed if it tells. Raises ClipError."""
    path = Path(path)
    if kind == "video" and path.suffix.lower() != ".gif":
        try:
            import av
        except ImportError:
            return MindSporeVideo(path).frames
        with _reading(path), av.open(str(path)) as container:
            if _stream(container, path).frames > 0:
                return _stream(container, path).frames
    return open_clip(path, kind).frames


def frame_size(path, kind):
    """(H, W) that the first frame of a clip says it has. Raises ClipError."""
    path = Path(path)
    if kind == "frames":
        path = next(iter(FrameFolder(path).files), path)
    elif path.suffix.lower() != ".gif":
        try:
            import av
        except ImportError:
            return open_clip(path, kind).read([0])[0].shape[:2]
        with _reading(path), av.open(str(path)) as container:
            stream = _stream(container, path)
            return stream.height, stream.width
    from PIL import Image

    with _reading(path), Image.open(path) as picture:
        return picture.height, picture.width


class FrameFolder:
    """Pictures of one folder in the natural order of their names."""

    def __init__(self, path):
        self.path = path
        try:
            found = [name for name in os.listdir(path) if is_picture(name)]
        except OSError as error:
            raise ClipError(f"{path}: {error.strerror or error}") from error
        self.files = [path / name for name in sorted(found, key=natural)]
        self.frames = len(self.files)

    def read(self, indices):
        """Frames by index. Raises ClipError that names the picture."""
        return [self._picture(self.files[i]) for i in indices]

    def _picture(self, file):
        from PIL import Image

        with _reading(file), Image.open(file) as picture:
            return np.asarray(picture.convert("RGB"))


class Animation:
    """Frames of an animated gif, read by Pillow."""

    def __init__(self, path):
        from PIL import Image

        self.path = path
        with _reading(path), Image.open(path) as picture:
            self.frames = getattr(picture, "n_frames", 1)

    def read(self, indices):
        """Frames by index. Raises ClipError."""
        from PIL import Image

        found = {}
        with _reading(self.path), Image.open(self.path) as picture:
            for i in sorted(set(indices)):
                picture.seek(i)
                found[i] = np.asarray(picture.convert("RGB"))
        return [found[i] for i in indices]


class Video:
    """Frames of a video file, read by PyAV: a seek to the key frame before the first one, then by time stamp.

    The packets' time stamps, read without decoding, give the exact count and the place of every frame. A file
    without them (as .avi often is) is decoded from its start.
    """

    def __init__(self, path):
        import av

        self.path = path
        with _reading(path), av.open(str(path)) as container:
            stream = _stream(container, path)
            packets = [packet for packet in container.demux(stream) if packet.size]
            # The header of an .mp4 or .mov counts exactly; a file cut off has fewer, or a last one that is not whole.
            promised = stream.frames if "mp4" in container.format.name else 0
        if len(packets) < promised or any(packet.is_corrupt for packet in packets):
            raise ClipError(
                f"{path}: damaged or cut off: {len(packets)} of {promised or 'its'} frames are there"
            )
        stamps = [packet.pts for packet in packets if not packet.is_discard]
        self.frames = len(stamps)
        unknown = None in stamps or len(set(stamps)) < len(stamps)
        self.stamps = None if unknown else sorted(stamps)
        if not stamps:
            raise ClipError(f"{path}: holds no video frames")

    def read(self, indices):
        """Frames by index. Raises ClipError where one cannot be decoded."""
        wanted = set(indices)
        found = {}
        if self.stamps:
            found = self._decode(wanted, seek=True)
        if len(found) < len(wanted):  # some files' indexes lead behind the frame
            found = self._decode(wanted, seek=False)
        if len(found) < len(wanted):
            missing = min(wanted - set(found))
            raise ClipError(f"{self.path}: frame {missing} of {self.frames} cannot be decoded")
        return [found[i] for i in indices]

    def _decode(self, wanted, seek):
        import av

        place = {self.stamps[i]: i for i in wanted} if self.stamps else None
        last = self.stamps[max(wanted)] if self.stamps else max(wanted)
        found = {}
        with _reading(self.path), av.open(str(self.path)) as container:
            stream = _stream(container, self.path)
            stream.codec_context.thread_count = 1  # the loader's workers are the parallelism
            if seek:
                container.seek(min(place), stream=stream)
            damaged = False
            for number, frame in enumerate(container.decode(stream)):
                at = frame.pts if place else number
                i = place.get(at) if place else number
                # What refers to a damaged frame is damaged too, though the decoder does not say so.
                damaged = frame.is_corrupt or (damaged and not frame.key_frame)
                if i in wanted and not damaged:
                    found[i] = frame.to_ndarray(format="rgb24")
                if at is not None and at >= last:
                    break
        return found


class MindSporeVideo:
    """Frames of a video file, read by `mindspore.dataset.vision.read_video`, for hosts without PyAV."""

    def __init__(self, path):
        from mindspore.dataset.vision import read_video_timestamps

        self.path = path
        with _reading(path):
            self.stamps = read_video_timestamps(str(path), pts_unit="pts")[0]
        self.frames = len(self.stamps)
        if not self.frames:
            raise ClipError(f"{path}: holds no video frames")

    def read(self, indices):
        """Frames by index. Raises ClipError where the file gives fewer than it announces."""
        from mindspore.dataset.vision import read_video

        first, last = min(indices), max(indices)
        with _reading(self.path):
            window = read_video(str(self.path), self.stamps[first], self.stamps[last], pts_unit="pts")[0]
        if len(window) != last - first + 1:
            raise ClipError(
                f"{self.path}: frames {first} to {last} of {self.frames} cannot all be decoded; "
                'a better reader: pip install "ms-latte[video]"'
            )
        return [window[i - first] for i in indices]


def is_picture(name):
    """Whether a file's name is that of a picture (hidden files are none)."""
    return name.lower().endswith(PICTURES) and not name.startswith(".")


def is_video(name):
    """Whether a file's name is that of a video (hidden files are none)."""
    return name.lower().endswith(VIDEOS) and not name.startswith(".")


def _stream(container, path):
    if not container.streams.video:
        raise ClipError(f"{path}: holds no video stream")
    return container.streams.video[0]


class _reading:
    """Turns what a reader raises about a file into a ClipError; libraries raise many kinds for damaged data."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if error is None or isinstance(error, ClipError) or not isinstance(error, Exception):
            return False
        if isinstance(error, MemoryError):
            return False
        text = str(error).replace(f"'{self.path}'", "")
        reason = next((line.strip(" :;") for line in text.splitlines() if line.strip(" :;")), kind.__name__)
        raise ClipError(f"{self.path}: {reason}") from error
