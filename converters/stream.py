# SPDX-License-Identifier: Apache-2.0
"""Readers and writers: tensors pass one by one, memory-mapped, from a published file to a safetensors file.

A reader returns name -> `TensorEntry`; nothing but headers is read until `entry.read()` is called.
dtype words are those of the safetensors format (F32, BF16 ...).
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from converters.errors import ConversionError

# dtype word -> numpy dtype of the stored bits. numpy has no bfloat16: its bits travel as uint16.
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
FLOATING = ("F64", "F32", "F16", "BF16")
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file, not read yet: `bits()` gives the stored bits, `read()` a native numpy array."""

    dtype: str
    shape: tuple[int, ...]
    bits: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * DTYPES[self.dtype].itemsize

    def read(self) -> np.ndarray:
        """The values: memory-mapped without a copy where possible, bfloat16 widened (exactly) to float32."""
        bits = self.bits()
        return widen_bf16(bits) if self.dtype == "BF16" else bits


Entries = Mapping[str, TensorEntry]


def map_file(path: Path) -> np.ndarray:
    """The file as bytes, mapped copy-on-write: writable arrays (torch wants that), an unchanging file."""
    if path.stat().st_size == 0:
        raise ConversionError(f"{path} is empty", remedy="download it again")
    return np.memmap(path, np.uint8, mode="c").view(np.ndarray)


# ------------------------------------------------------------------------------------------------- reading


def read_safetensors(path: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Entries and metadata of a `.safetensors` file; every offset is checked against the file's size."""
    data = map_file(path)
    again = "the file is damaged or not completely downloaded: fetch it again"
    length = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or length > min(MAX_HEADER, len(data) - 8):
        raise ConversionError(
            f"{path} is truncated",
            got=f"{len(data)} bytes",
            expected=f"a header of {length} bytes",
            remedy=again,
        )
    header = parse_json(data[8 : 8 + length].tobytes(), f"the header of {path}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ConversionError(
            f"{path}: bad metadata", got=metadata, expected="a map of words to words", remedy=again
        )
    body = data[8 + length :]

    entries, end = {}, 0
    for name, (dtype, shape, first, last) in sorted(
        _spans(header, path).items(), key=lambda item: item[1][2:]
    ):
        expected = prod(shape) * DTYPES[dtype].itemsize
        if first != end or last - first != expected:
            raise ConversionError(
                f"{path}: tensor {name} has wrong offsets",
                got=f"bytes {first} to {last}",
                expected=f"{end} to {end + expected}",
                remedy=again,
            )
        end = last
        entries[name] = TensorEntry(dtype, shape, _viewer(body, dtype, shape, first, last))
    if end != len(body):
        problem = "is truncated" if end > len(body) else "has bytes that belong to no tensor"
        raise ConversionError(
            f"{path} {problem}", got=f"{len(body)} bytes of data", expected=f"{end} bytes", remedy=again
        )
    return {name: entries[name] for name in header}, metadata


def _spans(header: dict, path: Path) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """name -> (dtype, shape, first byte, last byte), from a header that nobody has checked yet."""
    spans = {}
    for name, info in header.items():
        try:
            dtype, shape, (first, last) = info["dtype"], tuple(info["shape"]), info["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise ConversionError(
                f"{path}: bad header entry for {name}", got=info, expected="dtype, shape and data_offsets"
            ) from None
        if not all(type(n) is int and n >= 0 for n in (*shape, first, last)):
            raise ConversionError(
                f"{path}: bad numbers for {name}", got=info, expected="non-negative integers"
            )
        if dtype not in DTYPES:
            raise ConversionError(
                f"{path}: dtype of {name} is not supported", got=dtype, expected=", ".join(DTYPES)
            )
        spans[name] = dtype, shape, first, last
    return spans


def _viewer(body: np.ndarray, dtype: str, shape: tuple[int, ...], first: int, last: int) -> Callable:
    return lambda: body[first:last].view(DTYPES[dtype]).reshape(shape)


def parse_json(text: bytes, what: str) -> dict:
    """A JSON object without duplicate keys; `what` names the file in errors."""

    def unique(pairs: list[tuple[str, object]]) -> dict:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ConversionError(f"{what} names something twice", got=", ".join(twice))
        return found

    try:
        parsed = json.loads(text, object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ConversionError(f"{what} is not valid JSON", got=error, remedy="fetch the file again") from None
    if not isinstance(parsed, dict):
        raise ConversionError(f"{what} is wrong", got=type(parsed).__name__, expected="a JSON object")
    return parsed


def widen_bf16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits (uint16) -> float32, exact: bfloat16 is the upper half of a float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


# ------------------------------------------------------------------------------------------------- casting


def cast(name: str, entry: TensorEntry, dtype: str) -> TensorEntry:
    """The entry in another floating dtype, converted when read; integer and bool tensors stay as they are.

    Reading raises ConversionError when a finite value would become infinite.
    """
    if entry.dtype == dtype or entry.dtype not in FLOATING:
        return entry

    def bits() -> np.ndarray:
        values = entry.read()
        with np.errstate(over="ignore", invalid="ignore"):
            stored = _round_to_bf16(values) if dtype == "BF16" else values.astype(DTYPES[dtype])
        result = widen_bf16(stored) if dtype == "BF16" else stored
        if np.any(np.isinf(result) & np.isfinite(values)):
            raise ConversionError(
                f"{name} does not fit {dtype}",
                got=f"a largest absolute value of {np.abs(values[np.isfinite(values)]).max():g}",
                remedy="choose --dtype bf16, fp32 or keep",
            )
        return stored

    return TensorEntry(dtype, entry.shape, bits)


def _round_to_bf16(values: np.ndarray) -> np.ndarray:
    """Round to the nearest bfloat16, ties to even; returns uint16 bits. A NaN stays a (quiet) NaN."""
    single = np.ascontiguousarray(values, np.float32)
    bits = single.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(single), (bits >> 16) | 0x0040, rounded).astype(np.uint16)


# ------------------------------------------------------------------------------------------------- writing


def write_safetensors(
    path: Path,
    entries: Entries,
    metadata: Mapping[str, str],
    progress: Callable[[int], None] = lambda done: None,
) -> str:
    """Write tensor by tensor to a temporary file beside `path`, then rename it; returns the content hash.

    Until the last step an existing `path` is untouched, and after a failure no temporary file is left.
    The metadata always says {"format": "pt"}: the other libraries refuse anything else.
    """
    # Widest dtype first keeps every tensor aligned, as the safetensors library does.
    order = sorted(entries, key=lambda name: -DTYPES[entries[name].dtype].itemsize)
    header, end = {"__metadata__": {"format": "pt", **metadata}}, 0
    for name in order:
        entry = entries[name]
        span = [end, end + entry.nbytes]
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": span}
        end = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    digests = {}
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            done = 0
            for name in order:
                stored = _stored(entries[name])
                file.write(stored)
                digests[name] = hashlib.sha256(stored).digest()
                done += len(stored)
                progress(done)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())  # mkstemp makes files private
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return _combine(entries, digests)


def content_hash(entries: Entries) -> str:
    """sha256 over names, dtypes, shapes and bytes; order and container do not matter."""
    return _combine(
        entries, {name: hashlib.sha256(_stored(entry)).digest() for name, entry in entries.items()}
    )


def _combine(entries: Entries, digests: Mapping[str, bytes]) -> str:
    total = hashlib.sha256()
    for name in sorted(entries):
        line = json.dumps([name, entries[name].dtype, list(entries[name].shape), digests[name].hex()])
        total.update(line.encode() + b"\n")
    return total.hexdigest()


def _stored(entry: TensorEntry) -> memoryview:
    """The tensor's bytes as they stand in a safetensors file: contiguous, little-endian."""
    bits = np.ascontiguousarray(entry.bits(), DTYPES[entry.dtype])
    assert bits.shape == (entry.shape or (1,)), (bits.shape, entry.shape)  # a scalar becomes (1,)
    return memoryview(bits.reshape(-1).view(np.uint8))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def names_of(entries: Iterable[str], limit: int = 5) -> str:
    """A few names for an error message."""
    names = list(entries)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + more
