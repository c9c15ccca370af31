# SPDX-License-Identifier: Apache-2.0
"""MindSpore's `.ckpt`: one protobuf message, read and written without MindSpore and without protobuf.

    Checkpoint   { repeated Value value = 1 }
    Value        { string tag = 1;  oneof { TensorProto tensor = 2;  MapTensorProto maptensor = 3 } }
    TensorProto  { repeated int64 dims = 1;  string tensor_type = 2;  bytes tensor_content = 3 }

What `mindspore/train/serialization.py` (2.10) adds to that, and this module follows:

- A parameter above 512 MiB lies in several values with the same tag, one after the other, each with the dims
  of the whole. `save_checkpoint` cuts every 512 MiB, its asynchronous mode at rows.
- dims [0] mean a scalar. An array of shape (0,) can therefore not be stored; (0, 3) can.
- With `crc_check` the file ends in b"crc_num" and ten bytes, big-endian: the CRC-32 of all before. MindSpore
  2.3 and later take it off whether or not they are asked to check it.
- Encrypted files are not protobuf; they begin with a number of their own.
- Entries of `append_dict` are ordinary values: numbers become scalar tensors, words the tensor type "str".
- Where one value ends the file may end: a file cut exactly there is a smaller valid file. Only the checksum
  at its end tells, so `write_ckpt` always writes it.
"""

import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from math import prod
from pathlib import Path

import numpy as np

from converters.errors import ConversionError
from converters.output import Output
from converters.stream import AGAIN, DTYPES, PART, Entries, TensorEntry, map_file, names_of, releaser

# MindSpore's name of a type -> dtype word
TYPES = {
    "Float64": "F64",
    "Float32": "F32",
    "Float16": "F16",
    "BFloat16": "BF16",
    "Int64": "I64",
    "Int32": "I32",
    "Int16": "I16",
    "Int8": "I8",
    "UInt8": "U8",
    "Bool": "BOOL",
}
TEXT = "str"
SLICE = 1 << 29  # bytes of a parameter in one value: SLICE_SIZE of MindSpore
START = 2048  # bytes that `is_ckpt` wants to see
# AES-GCM, AES-CBC, SM4-CBC
ENCRYPTED = tuple(number.to_bytes(4, "little") for number in (0x7F3A5ED8, 0x7F3A5ED9, 0x7F3A5EDA))
CRC_MARK, CRC_SIZE = b"crc_num", 10
# Far above any model; so that a hostile file cannot take long.
MAX_VALUES, MAX_NAME, MAX_RANK, MAX_COUNT = 1 << 16, 1024, 32, 1 << 48

NUMBER, BYTES = 0, 2  # wire types of protobuf


def is_ckpt(start: bytes) -> bool:
    """Whether a file with these first bytes (`START` of them) is MindSpore's, encrypted ones included."""
    if start[:4] in ENCRYPTED:
        return True
    value, at = _varint(start, 1)
    size, name = _varint(start, at + 1)
    if start[:1] != b"\x0a" or start[at : at + 1] != b"\x0a" or not 0 < size <= min(MAX_NAME, value - 4):
        return False
    try:
        printable = start[name : name + size].decode().isprintable()
    except UnicodeDecodeError:
        return False
    return printable and start[name + size : name + size + 1] in (b"\x12", b"\x1a")


def read_ckpt(path: Path) -> dict[str, TensorEntry]:
    """Entries of a `.ckpt`, in file order; every length is checked, no data is read.

    Numbers of `append_dict` (epoch_num, lr) are scalar entries like any other; its words are not tensors: they
    are left out, `read_texts` has them. A parameter in several values takes its size in memory when read.
    Raises ConversionError for a damaged or encrypted file and for what is no plain tensor.
    """
    data = map_file(path)
    entries: dict[str, TensorEntry] = {}
    seen, strange = set(), []
    for name, group in groupby(_values(path, data), lambda value: value.name):
        values = list(group)
        first = values[0]
        if name in seen:
            raise ConversionError(
                f"{path} holds {name} twice", expected="slices that follow one another", remedy=AGAIN
            )
        seen.add(name)
        if any((value.type, value.dims) != (first.type, first.dims) for value in values):
            raise ConversionError(
                f"{path}: the slices of {name} disagree",
                got=" and ".join(sorted({f"{value.type} {list(value.dims)}" for value in values})),
                expected="one type and one shape",
                remedy=AGAIN,
            )
        if first.type in TYPES:
            entries[name] = _entry(path, data, values)
        elif first.type != TEXT:
            strange.append(f"{name} ({first.type})")
    if strange:
        raise ConversionError(
            f"{path} holds things that are not plain tensors",
            got=names_of(strange),
            expected=", ".join(TYPES),
            remedy="with MindSpore: load_checkpoint, remove or cast them, save_checkpoint",
        )
    return entries


def read_texts(path: Path) -> dict[str, str]:
    """The words that `append_dict` put beside the parameters."""
    data = map_file(path)
    try:
        return {
            value.name: data[value.first : value.last].tobytes().decode("utf-32-le").rstrip("\0")
            for value in _values(path, data)
            if value.type == TEXT
        }
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path} holds a damaged word", got=error, remedy=AGAIN) from None


def check_crc(path: Path) -> bool:
    """Read the whole file and compare it with the checksum at its end; False if it has none."""
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size - len(CRC_MARK) - CRC_SIZE
        file.seek(max(left, 0))
        tail = file.read()
        if left < 0 or not tail.startswith(CRC_MARK):
            return False
        file.seek(0)
        crc, part = 0, memoryview(bytearray(min(PART, left)))
        while left and (count := file.readinto(part[:left])):
            crc, left = zlib.crc32(part[:count], crc), left - count
    expected = int.from_bytes(tail[len(CRC_MARK) :], "big")
    if crc != expected:
        raise ConversionError(
            f"{path}: its checksum is wrong", got=f"{crc:08x}", expected=f"{expected:08x}", remedy=AGAIN
        )
    return True


def write_ckpt(output: Output, entries: Entries, metadata: Mapping[str, str]) -> None:
    """Tensor by tensor, byte for byte what `mindspore.save_checkpoint(crc_check=True)` writes.

    One thing more: empty tensors, which MindSpore leaves out when it saves and takes when it loads.
    The format has no place for `metadata`: it is not written.
    """
    types = {word: name for name, word in TYPES.items()}
    if not entries:
        raise ConversionError("nothing to write", got="no tensors", expected="at least one in a .ckpt")
    output.start_crc()
    for name, entry in entries.items():
        if entry.shape == (0,):
            raise ConversionError(
                f"a .ckpt cannot hold {name}",
                got="shape (0,), which MindSpore takes for a scalar",
                remedy="write safetensors",
            )
        tag = name.encode(errors="replace")
        if not 0 < len(tag) <= MAX_NAME or tag.decode() != name:
            raise ConversionError(
                f"a .ckpt cannot hold a tensor named {name[:40]!r}", expected=f"text of 1 to {MAX_NAME} bytes"
            )
        output.tensor(name, entry, SLICE, partial(_header, tag, types[entry.dtype], entry.shape))
    crc = output.end_crc().result()
    output.write(CRC_MARK + crc.to_bytes(CRC_SIZE, "big"))


def _header(tag: bytes, type_: str, shape: tuple[int, ...], count: int) -> bytes:
    """What stands before `count` bytes of a tensor: it has such a header before every `SLICE` of them."""
    tensor = b"".join(b"\x08" + _number(n) for n in shape) + _field(2, type_.encode())
    tensor += b"\x1a" + _number(count)
    value = _field(1, tag) + b"\x12" + _number(len(tensor) + count) + tensor
    return b"\x0a" + _number(len(value) + count) + value


def _number(number: int) -> bytes:
    """A varint: seven bits a byte, the lowest first; the highest bit says that more follow."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(field: int, data: bytes) -> bytes:
    return _number(field << 3 | BYTES) + _number(len(data)) + data


# ------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Value:
    """One value of the file; its content lies from byte `first` to byte `last`."""

    name: str
    type: str
    dims: tuple[int, ...]
    first: int
    last: int


def _entry(path: Path, data: np.ndarray, values: list[_Value]) -> TensorEntry:
    word, dims = TYPES[values[0].type], values[0].dims
    shape = () if dims == (0,) else dims
    raws = [data[value.first : value.last] for value in values]
    got, expected = sum(raw.size for raw in raws), prod(shape) * DTYPES[word].itemsize
    if got != expected or prod(n or 1 for n in shape) > MAX_COUNT:
        raise ConversionError(
            f"{path}: {values[0].name} has the wrong size",
            got=f"{got} bytes",
            expected=f"{expected} for {values[0].type} {list(dims)}",
            remedy=AGAIN,
        )
    releases = [releaser(raw) for raw in raws]

    def bits() -> np.ndarray:
        whole = raws[0] if len(raws) == 1 else np.concatenate(raws)
        return whole.view(DTYPES[word]).reshape(shape)

    def release() -> None:
        for one in releases:
            one()

    return TensorEntry(word, shape, bits, release=release)


def _values(path: Path, data: np.ndarray) -> Iterator[_Value]:
    """The values of a mapped file, one after the other, each checked to lie within the file."""
    if data[:4].tobytes() in ENCRYPTED:
        raise ConversionError(
            f"{path} is encrypted",
            remedy="with MindSpore: load_checkpoint(PATH, dec_key=..., dec_mode=...), then save_checkpoint",
        )
    wire = _Wire(path, memoryview(data))
    end = len(data) - len(CRC_MARK) - CRC_SIZE
    if end < 0 or data[end : end + len(CRC_MARK)].tobytes() != CRC_MARK:
        end = len(data)
    release = releaser(data)
    for count, (_, _, first, last) in enumerate(wire.fields(0, end, {1: BYTES})):
        if count == MAX_VALUES:
            raise ConversionError(f"{path} holds too much", expected=f"at most {MAX_VALUES} values")
        if count % 16 == 15:
            release()  # the system maps up to `AROUND` bytes with each header
        yield wire.value(first, last)
    release()


@dataclass(frozen=True)
class _Wire:
    """Protobuf in a mapped file. Only what MindSpore writes is taken: no unknown fields, nothing twice."""

    path: Path
    data: memoryview

    def damaged(self, at: int, got: object, expected: object) -> ConversionError:
        return ConversionError(
            f"{self.path} is damaged at byte {at}", got=got, expected=expected, remedy=AGAIN
        )

    def number(self, at: int, end: int) -> tuple[int, int]:
        """The varint at `at` and the byte after it, which is at most `end`."""
        number, after = _varint(self.data[at : min(at + 10, end)], 0)
        if not after:
            cut = end == len(self.data) and at + 10 > end
            raise self.damaged(at, "the end of the file" if cut else "no number", "a number")
        return number, at + after

    def fields(self, first: int, end: int, known: dict[int, int]) -> Iterator[tuple[int, int, int, int]]:
        """(field, number, first byte, last byte) of a message; `known` is field -> wire type."""
        at = first
        while at < end:
            here, (key, at) = at, self.number(at, end)
            field, kind = key >> 3, key & 7
            if known.get(field) != kind:
                raise self.damaged(
                    here,
                    f"field {field} of wire type {kind}",
                    " or ".join(f"field {one} of wire type {its}" for one, its in known.items()),
                )
            number, at = self.number(at, end)
            if kind == NUMBER:
                yield field, number, at, at
                continue
            if number > end - at:
                if first == 0:
                    raise ConversionError(
                        f"{self.path} is truncated or damaged",
                        got=f"{len(self.data)} bytes",
                        expected=f"at least {at + number}",
                        remedy=AGAIN,
                    )
                raise self.damaged(here, f"a length of {number} bytes", f"at most {end - at}")
            yield field, number, at, at + number
            at += number

    def value(self, first: int, end: int) -> _Value:
        found = self.once(first, end, {1: BYTES, 2: BYTES, 3: BYTES}, "a parameter")
        if 1 not in found or (2 in found) == (3 in found):
            raise self.damaged(first, f"a parameter with fields {sorted(found)}", "1 and either 2 or 3")
        name = self.word(*found[1])
        if 3 in found:
            return _Value(name, "MapTensor", (), *found[3])
        dims: list[int] = []
        parts = self.once(*found[2], {1: NUMBER, 2: BYTES, 3: BYTES}, name, dims)
        if 2 not in parts or 3 not in parts:
            raise self.damaged(found[2][0], f"a tensor with fields {sorted(parts)}", "2 and 3")
        return _Value(name, self.word(*parts[2]), tuple(dims), *parts[3])

    def once(
        self, first: int, end: int, known: dict[int, int], what: str, numbers: list[int] | None = None
    ) -> dict[int, tuple[int, int]]:
        """field -> first and last byte, for fields that come at most once; numbers (dims) are collected."""
        found: dict[int, tuple[int, int]] = {}
        for field, number, start, last in self.fields(first, end, known):
            if known[field] == NUMBER:
                numbers.append(number)
                if number >> 63 or len(numbers) > MAX_RANK:
                    raise self.damaged(
                        start, f"dims {numbers[:3]}... of {what}", f"at most {MAX_RANK}, none negative"
                    )
            elif field in found:
                raise self.damaged(start, f"field {field} of {what} twice", "it once")
            else:
                found[field] = start, last
        return found

    def word(self, first: int, last: int) -> str:
        """A name: text of 1 to `MAX_NAME` bytes."""
        if not 0 < last - first <= MAX_NAME:
            raise self.damaged(first, f"a name of {last - first} bytes", f"1 to {MAX_NAME}")
        try:
            return bytes(self.data[first:last]).decode()
        except UnicodeDecodeError:
            raise self.damaged(first, bytes(self.data[first:last][:40]), "a name in UTF-8") from None


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """The number at `at` and the byte after it; (0, 0) where there is none in 64 bits."""
    number = 0
    for shift, byte in enumerate(data[at : at + 10]):
        number |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return (number, at + shift + 1) if number < 1 << 64 else (0, 0)
    return 0, 0
