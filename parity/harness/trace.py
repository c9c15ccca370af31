# SPDX-License-Identifier: Apache-2.0
"""Taps, traces and how their values travel between processes: as numpy arrays, large ones through files.

A tap is `<dotted name>#<call index>` ("" is the net itself); a trace is an ordered map tap -> Record.
"""

import os
import pickle
import tempfile
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

SPILL_BYTES = 1 << 22  # arrays above 4 MiB go through files when a spill folder is given


@dataclass
class Record:
    """Arguments and results of one call. dtypes: of the results, as the framework names them, without its prefix."""

    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    outputs: list[Any] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Spilled:
    """An array in a `.npy` file."""

    path: str

    def load(self) -> np.ndarray:
        """The array, mapped."""
        return np.load(self.path, mmap_mode="r")


def first_line(message: str) -> str:
    """The first line of a message that says something: MindSpore begins some with an empty line and a ruler."""
    lines = [line.strip("- ") for line in message.splitlines()]
    return next((line for line in lines if any(map(str.isalpha, line))), "no reason given")


def is_stage(name: str) -> bool:
    """Whether a module is a top-level stage of a net: a direct child, or a member of a direct child list."""
    parts = name.split(".")
    return bool(name) and (len(parts) == 1 or (len(parts) == 2 and parts[1].isdigit()))


def stow(array: np.ndarray, folder: str | None) -> Any:
    """The array itself, or its file if it is large and a folder is given."""
    if folder is None or array.nbytes < SPILL_BYTES:
        return array
    handle, path = tempfile.mkstemp(suffix=".npy", dir=folder)
    with os.fdopen(handle, "wb") as file:
        np.save(file, array)
    return Spilled(path)


def fetch(value: Any) -> Any:
    """Undo `stow`."""
    return value.load() if isinstance(value, Spilled) else value


def discard(*values: Any) -> None:
    """Delete the files behind values that are no longer needed."""
    for value in values:
        if isinstance(value, Spilled) and os.path.exists(value.path):
            os.unlink(value.path)


def send(stream: BinaryIO, message: Any) -> None:
    """One pickled message, length first."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(len(data).to_bytes(8, "little"))
    stream.write(data)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """The next message. Raises EOFError if the other side is gone."""
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError("the other process ended")
    size, chunks = int.from_bytes(head, "little"), []
    while size:
        chunk = stream.read(size)
        if not chunk:
            raise EOFError("the other process ended in the middle of a message")
        chunks.append(chunk)
        size -= len(chunk)
    return pickle.loads(b"".join(chunks))
