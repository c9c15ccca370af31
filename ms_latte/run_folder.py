# SPDX-License-Identifier: Apache-2.0
"""The folder of one batch of samples: its configuration, a manifest of what is finished, resuming.

config.yaml      the resolved configuration, every key stated
samples.jsonl    first the files that the run reads (size, time of change), then one line for each finished sample
0000.gif ...     the samples; contact_sheet.png when all are there
"""

import fcntl
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import yaml

from ms_latte.config import ConfigError
from ms_latte.video_io import png_bytes, read_png, sheet, write_new

NOT_COMPARED = ("output_path",)  # a folder may be moved
STRIPS = ".contact_sheet"  # rows of the sheet, until all are there


class RunFolder:
    """A context manager that holds the folder alone.

    path: created, or the folder of an interrupted run; config: text of the resolved configuration; inputs: name ->
    facts of the files that the run reads. `finished` maps the index of a sample to its line. Raises ConfigError if
    the folder is in use, cannot be written, holds other things, or samples of another configuration.
    """

    def __init__(self, path, config, inputs):
        self.path, self.config, self.inputs = Path(path), config, inputs
        self.manifest, self.file = self.path / "samples.jsonl", None
        self.finished, self.created = {}, False

    def __enter__(self):
        try:
            self.created = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_content()
            self.file = open(self.manifest, "a+", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"--output_path {self.path}: cannot write there ({error.strerror or error}); name another folder"
            ) from error
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.file.close()
            raise ConfigError(f"--output_path {self.path}: another process samples into it") from error
        try:
            self._resume()
        except BaseException:
            self.file.close()
            raise
        return self

    def __exit__(self, kind, *_):
        self.file.close()
        mine = {self.manifest, self.path / "config.yaml"}
        if kind and self.created and not self.finished and set(self.path.iterdir()) <= mine:
            shutil.rmtree(self.path)  # a run that failed before its first sample leaves nothing behind

    def add(self, index, record, strip=None):
        """A sample is finished and its files are in place."""
        if strip is not None:
            (self.path / STRIPS).mkdir(exist_ok=True)
            row = self.path / STRIPS / f"{index:04d}.png"
            row.write_bytes(png_bytes(strip))
        record = {"index": index, **record}
        self._append(record)
        self.finished[index] = record

    def write_sheet(self):
        """The contact sheet of all samples, once all are finished; returns its path, or None without rows."""
        rows = sorted((self.path / STRIPS).glob("*.png"))
        path = self.path / "contact_sheet.png"
        if rows and not path.exists():
            write_new(path, png_bytes(sheet([read_png(row) for row in rows])))
        shutil.rmtree(self.path / STRIPS, ignore_errors=True)
        return path if path.exists() else None

    def _check_content(self):
        if self.manifest.exists() or not any(self.path.iterdir()):
            return
        raise ConfigError(
            f"--output_path {self.path}: the folder holds files that are no samples of this command; nothing is "
            "overwritten; name a new folder"
        )

    def _resume(self):
        self.file.seek(0)
        text = self.file.read()
        whole = text[: text.rfind("\n") + 1]
        if len(whole) < len(text):  # a killed process may leave half a line
            self.file.truncate(len(whole.encode()))
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            self.finished = {line["index"]: line for line in lines if "index" in line}
            header = next((line["inputs"] for line in lines if "inputs" in line), None)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.manifest} is damaged ({error}); name a new folder") from error
        place = self.path / "config.yaml"
        if place.exists():
            self._compare(yaml.safe_load(place.read_text(encoding="utf-8")), header)
        else:
            write_new(place, self.config.encode())
        if header is None:
            self._append({"inputs": self.inputs})

    def _compare(self, held, inputs):
        asked = yaml.safe_load(self.config)
        held = held if isinstance(held, dict) else {}
        different = [
            f"{key} {held.get(key)!r} there, {asked.get(key)!r} now"
            for key in {**held, **asked}
            if key not in NOT_COMPARED and held.get(key) != asked.get(key)
        ]
        if inputs is not None:
            different += [
                f"{name} was another file" for name in self.inputs if self.inputs[name] != inputs.get(name)
            ]
        if different:
            raise ConfigError(
                f"--output_path {self.path} holds samples of another configuration: {'; '.join(different)}; name a "
                "new folder, or repeat the old configuration to resume"
            )

    def _append(self, record):
        self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())


def new_path(root="samples"):
    """<root>/<time>, a name that is free."""
    path = Path(root, time.strftime("%Y-%m-%dT%H-%M-%S"))
    return next(p for p in (path, *(Path(f"{path}-{i}") for i in range(2, 1000))) if not p.exists())


def facts(path):
    """What tells a file from another one of the same name, without reading it: sizes and times of change."""
    path = Path(path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats = [file.stat() for file in files]
    return {"bytes": sum(s.st_size for s in stats), "changed": max((s.st_mtime_ns for s in stats), default=0)}


def read_array(path, what):
    """Latents or noise of a .npy file, (N, F, C, h, w) float32; (F, C, h, w) is one sample. Raises ConfigError for
    what is none."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{what} {path}: cannot be read as .npy ({error})") from error
    numbers = isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating)
    if not numbers or array.ndim not in (4, 5) or not array.size:
        raise ConfigError(
            f"{what} {path}: expected a float array (N, F, C, h, w), got {getattr(array, 'shape', type(array))}"
        )
    return (array if array.ndim == 5 else array[None]).astype(np.float32)
