# SPDX-License-Identifier: Apache-2.0
"""The training set of cached latents: the samples of `ClipDataset`, with mean and logvar instead of pixels.

Frames, mirroring and joint images are drawn just as from the clips themselves, so that a sample's generator gives the
same clip with and without a cache.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from ms_latte.config import ConfigError
from ms_latte.data.clips import ClipDataset
from ms_latte.data.latent_files import check_file, check_hash, read_array
from ms_latte.data.latent_store import places_of, read_facts, read_manifest
from ms_latte.data.transforms import temporal_crop
from ms_latte.data.videos import Clip

UNFINISHED = "not cached yet; remedy: repeat python -m ms_latte.cache with its folder"


class LatentDataset(ClipDataset):
    """Cached clips as samples of num_frames frames, stride apart, and use_image_num joint images.

    folder: of `python -m ms_latte.cache`, numpy or mindrecord; stride to policy: as of `ClipDataset`; with_text: give
    the captions' features too; vae_hash: content hash of the VAE that the run decodes with (checkpoint.weights_hash),
    or None; image_size: (H, W) that the run expects, or None; verify: compare all hashes, not only sizes. Videos that
    are not in the cache are reported as the policy says. `scaling_factor` is that of the VAE, `latent_shape` that of a
    sample's mean. Raises ConfigError for a folder that is no cache, damaged, or does not fit the run.
    """

    def __init__(
        self,
        folder,
        num_frames,
        stride=1,
        flip=False,
        use_image_num=0,
        use_img_from_vid=False,
        sampling="exact",
        policy="skip",
        with_text=False,
        vae_hash=None,
        image_size=None,
        verify=False,
    ):
        self.folder, self.with_text = Path(folder), with_text
        self.facts = read_facts(folder)
        finished, failed, _, order = read_manifest(folder)
        self._check_facts(flip, vae_hash, image_size)
        if not finished:
            raise ConfigError(f"{folder} holds no finished video; remedy: repeat python -m ms_latte.cache")
        for line in finished.values():
            for place in places_of(line):
                (check_hash if verify else check_file)(folder, place)
        self.lines = {name: finished[name] for name in (*order, *finished) if name in finished}
        missing = {name: failed.get(name, UNFINISHED) for name in order if name not in finished}
        clips = [
            Clip(self.folder, name, line["frames"], line["label"], line["caption"], "latents")
            for name, line in self.lines.items()
        ]
        super().__init__(
            clips,
            num_frames,
            tuple(self.facts["image_size"]),
            stride,
            self.facts["transform"],
            flip,
            use_image_num,
            use_img_from_vid,
            sampling,
            policy,
            {**failed, **missing},
        )
        self.scaling_factor = self.facts["vae"]["scaling_factor"]
        C2, h, w = self.lines[self.clips[0].name]["moments"]["shape"][2:]
        self.latent_shape = (num_frames + use_image_num, C2 // 2, h, w)

    def get(self, index, rng):
        """One sample: "mean" and "logvar" (F+I, C, h, w) float32, "label" int32 (), "image_labels" int32 (I,),
        "caption", and with_text "text" (L, D) float32 and "text_mask" int32 (L,). Raises ConfigError for a file that
        has changed since."""
        clip = self.clips[index]
        line, moments = self.lines[clip.name], self._moments(clip)
        out = np.empty((self.latent_shape[0], *moments.shape[2:]), np.float32)
        chosen = temporal_crop(clip.frames, self.num_frames, self.stride, rng, self.sampling)
        mirrored = self.flip and rng.random() < 0.5
        out[: self.num_frames] = moments[int(mirrored), chosen]
        labels = np.full(self.use_image_num, clip.label, np.int32)
        for n, (other, frame, mirrored) in enumerate(self._draw_images(index, rng)):
            out[self.num_frames + n] = self._moments(other)[int(mirrored), frame]
            labels[n] = other.label
        mean, logvar = np.split(out, 2, axis=1)
        sample = {"mean": mean, "logvar": logvar, "label": np.int32(clip.label), "image_labels": labels}
        sample["caption"] = clip.caption
        if self.with_text:
            sample["text"] = read_array(self.folder, line["text"]).astype(np.float32)
            sample["text_mask"] = np.array([int(bit) for bit in line["text_mask"]], np.int32)
        return sample

    def moments(self, index, indices, mirrored=False):
        """Mean and logvar (T, C, h, w) float32 of given frames of one clip."""
        found = self._moments(self.clips[index])[int(mirrored), np.asarray(indices)]
        return tuple(np.split(found.astype(np.float32), 2, axis=1))

    def pixels(self, index, indices):
        """Not in a cache."""
        raise ConfigError(
            f"{self.folder} holds latents, no pixels; remedy: decode them, or read the clips themselves"
        )

    def identity(self):
        """Facts by which a resumed run knows the set again: as of `ClipDataset`, with the hashes of the latents and
        what they were made from."""
        listing = [
            [
                clip.name,
                clip.frames,
                clip.label,
                clip.caption,
                *(p["sha256"] for p in places_of(self.lines[clip.name])),
            ]
            for clip in self.clips
        ]
        facts = {key: self.facts[key] for key in ("vae", "text") if self.facts[key]}
        sha256 = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
        return {
            **super().identity(),
            **facts,
            "kind": "latents",
            "sha256": sha256,
            "with_text": self.with_text,
        }

    def _draw_images(self, index, rng):
        """(clip, frame, whether mirrored) of every joint image; the generator is asked as `ClipDataset` asks it."""
        count, clip, found = self.use_image_num, self.clips[index], []
        if not count:
            return found
        total = clip.frames if self.use_img_from_vid else len(self) - 1
        for drawn in rng.choice(total, count, replace=total < count).tolist():
            if self.use_img_from_vid:
                other, frame = clip, drawn
            else:
                other = self.clips[drawn + (drawn >= index)]  # the sample's own clip is left out
                frame = int(rng.random() * other.frames)
            found.append((other, frame, self.flip and rng.random() < 0.5))
        return found

    def _moments(self, clip):
        """The mapped array of a clip, (V, F, 2C, h, w)."""
        return read_array(self.folder, self.lines[clip.name]["moments"])

    def _check_facts(self, flip, vae_hash, image_size):
        made, vae = f"cache {self.folder} was made", self.facts["vae"]
        if vae_hash not in (None, vae["sha256"]):
            raise ConfigError(
                f"{made} by another VAE: {vae['model']} with the hash {vae['sha256']}, the run's has {vae_hash}; "
                "remedy: that VAE, or a cache made by this one"
            )
        if image_size is not None and tuple(image_size) != tuple(self.facts["image_size"]):
            raise ConfigError(
                f"{made} for image_size {tuple(self.facts['image_size'])}, the run has {tuple(image_size)}; remedy: "
                "the same image_size, or another cache"
            )
        if flip and not self.facts["random_flip"]:
            raise ConfigError(
                f"{made} without mirrored frames, which latents cannot give afterwards; remedy: random_flip False, or "
                "a cache made with --random_flip True"
            )
        if self.with_text and not self.facts["text"]:
            raise ConfigError(
                f"{made} without features of the captions; remedy: python -m ms_latte.cache --condition text"
            )
