# SPDX-License-Identifier: Apache-2.0
"""safetensors: 8 bytes of length, a JSON header, raw little-endian tensors.

Read and written here rather than by the library, whose numpy interface knows no bfloat16 and which cannot
write tensor by tensor.
"""

import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import numpy as np

from converters.errors import ConversionError
from converters.output import Output
from converters.stream import AGAIN, DTYPES, Entries, TensorEntry, combine, map_file, parse_json, releaser

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
MAX_DIMS, MAX_COUNT = 32, 1 << 48  # numpy's limit; numbers in a tensor
UNKNOWN = "0" * 64  # in the place of a hash


def read_safetensors(path: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Entries and metadata of a `.safetensors` file; every offset is checked against the file's size."""
    data = map_file(path)
    length = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or length > min(MAX_HEADER, len(data) - 8):
        raise ConversionError(
            f"{path} is truncated",
            got=f"{len(data)} bytes",
            expected=f"a header of {length} bytes",
            remedy=AGAIN,
        )
    header = parse_json(data[8 : 8 + length].tobytes(), f"the header of {path}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ConversionError(
            f"{path}: bad metadata", got=metadata, expected="a map of words to words", remedy=AGAIN
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
                remedy=AGAIN,
            )
        end = last
        raw = body[first:last]
        entries[name] = TensorEntry(dtype, shape, _viewer(raw, dtype, shape), release=releaser(raw))
    if end != len(body):
        problem = "is truncated" if end > len(body) else "has bytes that belong to no tensor"
        raise ConversionError(
            f"{path} {problem}", got=f"{len(body)} bytes of data", expected=f"{end} bytes", remedy=AGAIN
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
        if len(shape) > MAX_DIMS or prod(n or 1 for n in shape) > MAX_COUNT:
            raise ConversionError(
                f"{path}: shape of {name} is impossible",
                got=f"{shape[:MAX_DIMS]}",
                expected=f"at most {MAX_DIMS} axes",
            )
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ConversionError(
                f"{path}: dtype of {name} is not supported", got=dtype, expected=", ".join(DTYPES)
            )
        spans[name] = dtype, shape, first, last
    return spans


def _viewer(raw: np.ndarray, dtype: str, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    return lambda: raw.view(DTYPES[dtype]).reshape(shape)


def write_safetensors(output: Output, entries: Entries, metadata: Mapping[str, str]) -> None:
    """Header first, then tensor by tensor.

    The metadata always says {"format": "pt"}: the other libraries refuse anything else. If there is any other,
    the content hash joins it as "sha256", filled in when it is known.
    """
    # Widest dtype first keeps every tensor aligned, as the safetensors library does.
    order = sorted(entries, key=lambda name: -DTYPES[entries[name].dtype].itemsize)
    words = {"format": "pt", **metadata, **({"sha256": UNKNOWN} if metadata else {})}
    header, end = {"__metadata__": words}, 0
    for name in order:
        entry = entries[name]
        span = [end, end + entry.nbytes]
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": span}
        end = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    output.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        output.tensor(name, entries[name])
    if metadata:
        place = 8 + text.index(f'"sha256":"{UNKNOWN}"'.encode()) + len('"sha256":"')
        output.patch(place, lambda: combine(entries, output.digests).encode())
