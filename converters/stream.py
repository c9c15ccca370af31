# SPDX-License-Identifier: Apache-2.0
"""What flows from a published file to a target: tensors that are not read yet, in parts, hashed as they pass.

A reader returns name -> `TensorEntry`; nothing but headers is read until an entry is asked for its data.
dtype words are those of the safetensors format (F32, BF16 ...).
"""

import hashlib
import json
import mmap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
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
PART = 1 << 24  # bytes that are in flight at once
BLOCK = 1 << 18  # elements that are converted at once: what fits a processor's cache is twice as fast
AROUND = 1 << 21  # bytes that a page fault maps at most: a large page
MAX_JSON = 1 << 25  # bytes of a configuration or an index; one of 200,000 tensors takes as much
AGAIN = "the file is damaged or not completely downloaded: fetch it again"


@dataclass(frozen=True)
class TensorEntry:
    """One tensor, not read yet.

    bits     gives the stored bits, mapped where possible
    convert  applied to the flat bits, part by part, where they are stored in another dtype
    release  gives the pages of the mapped file back; only for entries that own their mapping
    """

    dtype: str
    shape: tuple[int, ...]
    bits: Callable[[], np.ndarray]
    convert: Callable[[np.ndarray], np.ndarray] | None = None
    release: Callable[[], None] | None = None

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * DTYPES[self.dtype].itemsize

    def stored(self) -> np.ndarray:
        """The bits in `dtype`, whole."""
        return self.bits() if self.convert is None else self.convert(self.bits())

    def read(self) -> np.ndarray:
        """The values: memory-mapped without a copy where possible, bfloat16 widened (exactly) to float32."""
        return widen_bf16(self.stored()) if self.dtype == "BF16" else self.stored()

    def parts(self, limit: int = PART) -> Iterator[memoryview]:
        """The bytes as they stand in a file, contiguous and little-endian, in parts of at most about `limit`."""
        bits = np.ascontiguousarray(self.bits())
        assert bits.shape == (self.shape or (1,)), (bits.shape, self.shape)  # a scalar becomes (1,)
        flat, step = bits.reshape(-1), max(limit // bits.itemsize, 1)
        if self.convert is not None:
            step = min(step, BLOCK)
        for first in range(0, flat.size, step):
            part = flat[first : first + step]
            part = part if self.convert is None else self.convert(part)
            yield memoryview(np.ascontiguousarray(part, DTYPES[self.dtype]).view(np.uint8))


Entries = Mapping[str, TensorEntry]


def map_file(path: Path) -> np.ndarray:
    """The file as bytes, mapped copy-on-write: writable arrays (torch wants that), an unchanging file."""
    if path.stat().st_size == 0:
        raise ConversionError(f"{path} is empty", remedy="download it again")
    return np.memmap(path, np.uint8, mode="c").view(np.ndarray)


def releaser(data: np.ndarray) -> Callable[[], None]:
    """A function that gives the pages of a slice of `map_file` back to the system.

    They come from the file again when touched, so this may only be used by whoever maps a file to copy it:
    changes made in memory are lost.
    """

    def release() -> None:
        base = data
        while isinstance(base, np.ndarray):
            base = base.base
        if not isinstance(base, mmap.mmap) or not data.size:
            return
        start = data.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
        # A page fault maps what lies around it, too: what lies before may have come back with our first page.
        first = max(start - start % mmap.PAGESIZE - AROUND, 0)
        base.madvise(mmap.MADV_DONTNEED, first, start + data.nbytes - first)

    return release


def parse_json(text: bytes, what: str) -> dict:
    """A JSON object without duplicate keys; `what` names the file in errors."""

    def unique(pairs: list[tuple[str, object]]) -> dict:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = sorted(name for name, count in counts.items() if count > 1)
            raise ConversionError(f"{what} names something twice", got=names_of(twice))
        return found

    try:
        parsed = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f"{what} is not valid JSON", got=error, remedy="fetch the file again") from None
    if not isinstance(parsed, dict):
        raise ConversionError(f"{what} is wrong", got=type(parsed).__name__, expected="a JSON object")
    return parsed


def read_json(path: Path) -> dict:
    """A configuration or an index; nothing of the kind is large."""
    if (size := path.stat().st_size) > MAX_JSON:
        raise ConversionError(
            f"{path} is no configuration and no index",
            got=f"{size} bytes",
            expected=f"at most {MAX_JSON}",
            remedy="remove or rename it",
        )
    return parse_json(path.read_bytes(), str(path))


def names_of(entries: Iterable[str], limit: int = 5) -> str:
    """A few names for an error message."""
    names = list(entries)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + more


# ------------------------------------------------------------------------------------------------- casting


def widen_bf16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits (uint16) -> float32, exact: bfloat16 is the upper half of a float32."""
    return (np.atleast_1d(bits).astype(np.uint32) << 16).view(np.float32).reshape(bits.shape)


def cast(name: str, entry: TensorEntry, dtype: str) -> TensorEntry:
    """The entry in another floating dtype, converted when read; integer and bool tensors stay as they are.

    Reading raises ConversionError when a finite value would become infinite.
    """
    if entry.dtype == dtype or entry.dtype not in FLOATING:
        return entry

    def convert(bits: np.ndarray) -> np.ndarray:
        bits = bits if entry.convert is None else entry.convert(bits)
        values = widen_bf16(bits) if entry.dtype == "BF16" else bits
        with np.errstate(over="ignore", invalid="ignore"):
            stored = _round_to_bf16(values) if dtype == "BF16" else values.astype(DTYPES[dtype])
        infinite = (stored & 0x7FFF) == 0x7F80 if dtype == "BF16" else np.isinf(stored)
        if infinite.any() and np.isfinite(values[infinite]).any():
            raise ConversionError(
                f"{name} does not fit {dtype}",
                got=f"a value of {np.abs(values[np.isfinite(values)]).max():g}",
                remedy="choose --dtype bf16, fp32 or keep",
            )
        return stored

    return TensorEntry(dtype, entry.shape, entry.bits, convert, entry.release)


def _round_to_bf16(values: np.ndarray) -> np.ndarray:
    """Round to the nearest bfloat16, ties to even; returns uint16 bits. A NaN stays a (quiet) NaN."""
    single = np.ascontiguousarray(values, np.float32)
    bits = single.view(np.uint32)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    result = rounded.astype(np.uint16)
    nan = np.isnan(single)
    if nan.any():
        result[nan] = (bits[nan] >> np.uint32(16)) | np.uint32(0x0040)
    return result.reshape(np.shape(values))


# ------------------------------------------------------------------------------------------------- hashing


def content_hash(entries: Entries) -> str:
    """sha256 over names, dtypes, shapes and bytes; order and container do not matter."""
    digests = {}
    for name, entry in entries.items():
        digest = hashlib.sha256()
        for part in entry.parts():
            digest.update(part)
            if entry.release:
                entry.release()
        digests[name] = digest.digest()
    return combine(entries, digests)


def same_bits(a: TensorEntry, b: TensorEntry, watch: Callable[[memoryview], None] | None = None) -> bool:
    """Equality of dtype, shape and bytes: NaNs equal themselves and -0 differs from 0. `watch` sees every part of b."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    for x, y in zip(a.parts(), b.parts(), strict=True):
        if watch:
            watch(y)
        if not np.array_equal(np.frombuffer(x, np.uint8), np.frombuffer(y, np.uint8)):
            return False
        for entry in (a, b):
            if entry.release:
                entry.release()
    return True


def combine(entries: Entries, digests: Mapping[str, bytes]) -> str:
    """The content hash from the hash of each tensor's bytes."""
    total = hashlib.sha256()
    for name in sorted(entries):
        line = json.dumps([name, entries[name].dtype, list(entries[name].shape), digests[name].hex()])
        total.update(line.encode() + b"\n")
    return total.hexdigest()
