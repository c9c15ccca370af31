# SPDX-License-Identifier: Apache-2.0
"""The training set of pixels: clips, with joint images behind the frames where asked for."""

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ms_latte.data.frames import ClipError, frame_size, natural, open_clip
from ms_latte.data.transforms import TRANSFORMS, temporal_crop, to_pixels, window
from ms_latte.data.videos import SCANNERS, find_clips

POLICIES = ("skip", "fail")
SHOWN = 10  # clips named in a summary


class Report:
    """The clips that could not be used, by name, each with its reason and how often it was met; thread-safe."""

    def __init__(self, problems=None):
        self.reasons, self.counts, self._new = {}, {}, []
        self._lock = threading.Lock()
        for name, reason in (problems or {}).items():
            self.add(name, reason)

    def __len__(self):
        return len(self.reasons)

    def add(self, name, reason):
        """A clip could not be used."""
        with self._lock:
            if name not in self.reasons:
                self.reasons[name] = reason
                self._new.append(f"skipped {name}: {reason}")
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self):
        """Lines about clips that have become known since the last call."""
        with self._lock:
            lines, self._new = self._new, []
        return lines

    def summary(self, limit=SHOWN):
        """The count and the first names with their reasons, as one text."""
        with self._lock:
            named = sorted(self.reasons.items(), key=lambda item: natural(item[0]))
        lines = [f"{len(named)} clip{'s' * (len(named) != 1)} skipped"]
        lines += [f"  {name}: {reason}" for name, reason in named[:limit]]
        return "\n".join(lines + [f"  and {len(named) - limit} more"] * (len(named) > limit))


class ClipDataset:
    """Clips as samples of num_frames frames, stride apart, and use_image_num joint images.

    clips: of find_clips; image_size: number or (H, W); sampling: "exact" or "linspace" (transforms.temporal_crop);
    transform: how a frame gets its size; flip: mirror half of the clips, each as a whole, and half of the images;
    use_img_from_vid: joint images are other frames of the same clip instead of one frame each of other clips;
    policy: "skip" reports a clip that is short or unreadable and takes the next one, "fail" raises; problems: what
    find_clips met. Raises ValueError for impossible settings, a set without one usable clip, mixed sizes under
    transform "none", and, under policy "fail", for the first problem.
    """

    def __init__(
        self,
        clips,
        num_frames,
        image_size,
        stride=1,
        transform="resize_crop",
        flip=False,
        use_image_num=0,
        use_img_from_vid=False,
        sampling="exact",
        policy="skip",
        problems=None,
    ):
        size = window(num_frames, stride, sampling)
        for key, value, known in (("transform", transform, TRANSFORMS), ("policy", policy, POLICIES)):
            if value not in known:
                raise ValueError(f"{key} {value!r}: expected one of {', '.join(known)}")
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(self.image_size) != 2 or min(self.image_size) < 1 or use_image_num < 0:
            raise ValueError(
                f"image_size {image_size}, use_image_num {use_image_num}: expected a positive size (or height and "
                "width) and a number of images of 0 or more"
            )
        self.num_frames, self.stride, self.sampling, self.window = num_frames, stride, sampling, size
        self.transform, self.flip, self.policy = transform, flip, policy
        self.use_image_num, self.use_img_from_vid = use_image_num, use_img_from_vid
        self.report = Report(problems)
        for clip in clips:
            if clip.frames < size:
                self.report.add(clip.name, str(self._too_short(clip, clip.frames)))
        self.clips = [clip for clip in clips if clip.frames >= size]
        if self.report and (policy == "fail" or not self.clips):
            head = "a clip cannot be used" if self.clips else "no clip can be used"
            raise ValueError(f"{head}: {self.report.summary(3)}")
        if not self.clips:
            raise ValueError("no clips; expected at least one")
        if use_image_num and not use_img_from_vid and len(self.clips) == 1:
            raise ValueError(
                f"use_image_num {use_image_num} takes images from other clips, but the set has one; remedy: "
                "use_img_from_vid True, or more clips"
            )
        if transform == "none":
            self._check_sizes()

    @classmethod
    def from_folder(cls, data_folder, num_frames, image_size, class_folders=False, csv_path=None,
                    video_column="video", caption_column=None, class_column=None, **settings):  # fmt: skip
        """The set of a folder or CSV file: find_clips and the constructor in one."""
        clips, problems = find_clips(
            data_folder, class_folders, csv_path, video_column, caption_column, class_column
        )
        return cls(clips, num_frames, image_size, problems=problems, **settings)

    def __len__(self):
        return len(self.clips)

    @property
    def num_classes(self):
        """One more than the largest label."""
        return max(clip.label for clip in self.clips) + 1

    def name(self, index):
        """The name of a clip, for messages."""
        return self.clips[index].name

    def get(self, index, rng):
        """One sample: "pixels" (F+I, 3, H, W) float32 in [-1, 1], "label" int32 (), "image_labels" int32 (I,) and
        "caption". A clip that turns out unreadable is reported, and the next one of the set stands in for it.

        Raises ClipError under policy "fail", or if no clip of the set can be read; ValueError for frames of a wrong
        size under transform "none".
        """
        return self._first_readable(self._from(index), lambda i: self._sample(i, rng))

    def pixels(self, index, indices):
        """Given frames (T, 3, H, W) of one clip, neither mirrored nor replaced by another clip's. Raises ClipError."""
        clip = self.clips[index]
        return self._pixels(clip, open_clip(clip.path, clip.kind).read(indices))

    def identity(self):
        """Facts by which a resumed run knows the set again: settings, number of clips, hash of their names, lengths,
        labels and captions."""
        listing = [[clip.name, clip.frames, clip.label, clip.caption] for clip in self.clips]
        keys = ("num_frames", "stride", "sampling", "transform", "flip", "use_image_num", "use_img_from_vid")
        return {
            "kind": "clips",
            "clips": len(self),
            "sha256": hashlib.sha256(json.dumps(listing).encode()).hexdigest(),
            "image_size": list(self.image_size),
            **{key: getattr(self, key) for key in keys},
        }

    def _first_readable(self, indices, read):
        for i in indices:
            try:
                return read(i)
            except ClipError as error:
                self.report.add(self.clips[i].name, str(error))
                if self.policy == "fail":
                    raise
        raise ClipError(f"no clip of the set can be read any more: {self.report.summary(3)}")

    def _from(self, index):
        """All indices of the set, beginning with one: the order in which clips stand in for each other."""
        return ((index + offset) % len(self) for offset in range(len(self)))

    def _sample(self, index, rng):
        clip = self.clips[index]
        reader = open_clip(clip.path, clip.kind)
        if reader.frames < self.window:  # the header promised more
            raise self._too_short(clip, reader.frames)
        chosen = temporal_crop(reader.frames, self.num_frames, self.stride, rng, self.sampling)
        mirrored = self.flip and rng.random() < 0.5
        out = np.empty((self.num_frames + self.use_image_num, 3, *self.image_size), np.float32)
        self._pixels(clip, reader.read(chosen.tolist()), [mirrored] * self.num_frames, out[: self.num_frames])
        fill = self._images_of_it if self.use_img_from_vid else self._images_of_others
        return {
            "pixels": out,
            "label": np.int32(clip.label),
            "image_labels": fill(index, reader, rng, out[self.num_frames :]),
            "caption": clip.caption,
        }

    def _images_of_it(self, index, reader, rng, out):
        """Fill in joint images (I, 3, H, W) from the clip itself; returns their labels (I,)."""
        places = rng.choice(reader.frames, len(out), replace=reader.frames < len(out))
        clip = self.clips[index]
        for n, place in enumerate(places.tolist()):
            mirrored = self.flip and rng.random() < 0.5
            self._pixels(clip, reader.read([place]), [mirrored], out[n : n + 1])
        return np.full(len(out), clip.label, np.int32)

    def _images_of_others(self, index, _, rng, out):
        """Fill in joint images (I, 3, H, W), one frame each of other clips, as far as there are enough, of
        different ones; returns the labels (I,) of the clips they are from."""
        labels = np.zeros(len(out), np.int32)
        others = len(self) - 1
        drawn = rng.choice(others, len(out), replace=others < len(out)).tolist() if len(out) else []
        for n, other in enumerate(drawn):
            place, mirrored = rng.random(), self.flip and rng.random() < 0.5

            def read(i, n=n, place=place, mirrored=mirrored):
                clip = self.clips[i]
                reader = open_clip(clip.path, clip.kind)
                frame = reader.read([int(place * reader.frames)])
                self._pixels(clip, frame, [mirrored], out[n : n + 1])
                return clip.label

            first = other + (other >= index)  # the sample's own clip is left out
            labels[n] = self._first_readable((i for i in self._from(first) if i != index), read)
        return labels

    def _pixels(self, clip, frames, flips=None, out=None):
        try:
            return to_pixels(frames, self.image_size, self.transform, flips, out)
        except ValueError as error:
            raise ValueError(f"{clip.path}: {error}") from error

    def _check_sizes(self):
        """Raise ValueError, before anything is trained, if clips have another size than the one they must have."""
        read = [clip for clip in self.clips if clip.kind in ("frames", "video")]
        with ThreadPoolExecutor(SCANNERS) as pool:
            sizes = list(pool.map(_size, read))
        wrong = [
            f"{clip.path} {size[0]}x{size[1]}"
            for clip, size in zip(read, sizes, strict=True)
            if size not in (None, self.image_size)
        ]
        if wrong:
            height, width = self.image_size
            raise ValueError(
                f'transform "none" expects frames of {height}x{width} (height x width), {len(wrong)} of {len(read)} '
                f"clips have others: {', '.join(wrong[:3])}; remedy: transform resize_crop or crop_resize, another "
                "image_size, or frames of one size"
            )

    def _too_short(self, clip, frames):
        return ClipError(
            f"{clip.path}: {frames} frames, expected at least {self.window} "
            f"({self.num_frames} with a stride of {self.stride})"
        )


def _size(clip):
    """(H, W) of a clip, or None for one that cannot be read, which is reported when it is due."""
    try:
        return frame_size(clip.path, clip.kind)
    except ClipError:
        return None
