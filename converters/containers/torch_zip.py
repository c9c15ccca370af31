# SPDX-License-Identifier: Apache-2.0
"""torch files since 1.6: a zip archive with one pickle and one entry for each storage, uncompressed.

    <root>/data.pkl   the saved object; tensors refer to storages by key
    <root>/byteorder  "little" or "big"; files before torch 2.1 have none and are little-endian
    <root>/data/<key> the numbers of a storage, at a multiple of 64 bytes
    <root>/version    "3"

Written here without torch: one storage for each tensor, nothing that needs more than weights_only=True.
"""

import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.containers.torch_pickle import RESAVE, STORAGES, Reference, Storage, load_pickle
from converters.errors import ConversionError
from converters.output import Output
from converters.stream import AGAIN, DTYPES, PART, Entries, TensorEntry, map_file, releaser

ROOT = "archive/"
ALIGNMENT = 64
ZIP64 = 0xFFFFFFFF  # sizes and offsets from here on stand in 64-bit fields ...
ELSEWHERE = 0xFFFFFFFF  # ... and this in the 32-bit fields
DESCRIPTORS = (16, 24)  # bytes of signature, checksum and sizes behind an entry with flag 8
DATE = 1 << 5 | 1  # 1 January 1980: the same tensors give the same file


def read_torch_zip(path: Path) -> object:
    """The saved object with `TensorEntry` in place of tensors; usually a dict.

    Raises ConversionError for a damaged file, a refused global, a quantised or otherwise unknown tensor.
    """
    data, infos = map_file(path), _directory(path)
    roots = [
        name.removesuffix("data.pkl") for name in infos if name.count("/") == 1 and name.endswith("/data.pkl")
    ]
    if len(roots) != 1:
        raise ConversionError(
            f"{path} is not a torch checkpoint", got=f"{len(roots)} entries named */data.pkl", expected="one"
        )
    members = _Members(path, data, infos, roots[0])
    order = members.order()

    def locate(wanted: Reference) -> Storage:
        raw, name = members.read(f"data/{wanted.key}"), f"entry data/{wanted.key}"
        expected = wanted.count * DTYPES[wanted.dtype].itemsize
        if len(raw) != expected:
            raise ConversionError(
                f"{path}: {name} is too {'short' if len(raw) < expected else 'long'}",
                got=f"{len(raw)} bytes",
                expected=f"{expected} for {wanted.count} numbers",
                remedy=AGAIN,
            )
        return Storage(wanted.dtype, wanted.count, lambda: raw, order)

    return load_pickle(path, members.read("data.pkl"), locate, 0, "its data.pkl")[0]


def check_crc(path: Path) -> None:
    """Read the whole archive and compare every entry with its checksum."""
    data = map_file(path)
    for info, after in _directory(path).values():
        crc, raw = 0, _slice(path, data, info, after)
        for first in range(0, len(raw), PART):
            part = raw[first : first + PART]
            crc = zlib.crc32(part, crc)
            releaser(part)()
        if crc != info.CRC:
            raise ConversionError(
                f"{path}: the checksum of {info.filename} is wrong",
                got=f"{crc:08x}",
                expected=f"{info.CRC:08x}",
                remedy="fetch the file again; if it was saved with "
                "torch.serialization.set_crc32_options(False), convert without --verify",
            )


def _directory(path: Path) -> dict[str, tuple[zipfile.ZipInfo, int]]:
    """The entries of an archive by name, each with the byte at which the next begins; what the zipfile module says
    about a damaged one becomes our error.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            listed, end = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        raise ConversionError(f"{path} is a truncated or damaged zip file", got=error, remedy=AGAIN) from None
    listed.sort(key=lambda info: info.header_offset)
    starts = [info.header_offset for info in listed]
    infos = {info.filename: (info, after) for info, after in zip(listed, [*starts[1:], end], strict=False)}
    if len(infos) != len(listed):
        raise ConversionError(f"{path} names an entry of its archive twice", remedy=AGAIN)
    if starts and starts[0] != 0:  # two archives, one after the other
        raise ConversionError(
            f"{path} is a damaged zip file", got="something before its first entry", remedy=AGAIN
        )
    return infos


def _slice(path: Path, data: np.ndarray, info: zipfile.ZipInfo, after: int) -> np.ndarray:
    """Bytes of an entry. Its local header may be padded, so the lengths there count; no checksum guards them, but
    entries follow one another without a gap.
    """
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ConversionError(
            f"{path}: {info.filename} is compressed or encrypted",
            expected="the plain entries that torch.save writes",
            remedy=RESAVE,
        )
    start = max(info.header_offset, 0)
    head = data[start : start + 30].tobytes()
    first = start + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    end = first + info.file_size
    if start != info.header_offset or head[:4] != b"PK\x03\x04" or end > len(data):
        raise ConversionError(
            f"{path}: {info.filename} lies outside the file",
            got=f"{info.file_size} bytes at {info.header_offset}",
            expected=f"an entry within {len(data)} bytes",
            remedy=AGAIN,
        )
    behind = data[end : end + 4].tobytes()
    described = info.flag_bits & 8 and after - end in DESCRIPTORS and behind == b"PK\x07\x08"
    if after != end and not described:
        raise ConversionError(
            f"{path} is a damaged zip file",
            got=f"{info.filename} up to byte {end}",
            expected=f"it to end where the next entry begins, at {after}",
            remedy=AGAIN,
        )
    return data[first:end]


@dataclass(frozen=True)
class _Members:
    """The entries of a checkpoint, without the folder that they are in."""

    path: Path
    data: np.ndarray
    infos: dict[str, tuple[zipfile.ZipInfo, int]]
    root: str

    def read(self, name: str) -> np.ndarray:
        found = self.infos.get(self.root + name)
        if found is None:
            raise ConversionError(f"{self.path} has no entry {self.root + name}", remedy=AGAIN)
        return _slice(self.path, self.data, *found)

    def order(self) -> str:
        """ "<" or ">" """
        if self.root + "byteorder" not in self.infos:
            return "<"
        word = self.read("byteorder")[:8].tobytes()
        if word not in (b"little", b"big"):
            raise ConversionError(
                f"{self.path}: unknown byte order", got=word, expected="little or big", remedy=AGAIN
            )
        return "<" if word == b"little" else ">"


# ------------------------------------------------------------------------------------------------- writing


def write_torch_zip(
    output: Output, entries: Entries, metadata: Mapping[str, str], wrapper: str | None = None
) -> None:
    """A file that torch.load(weights_only=True) reads, with mmap=True as well: a flat OrderedDict.

    wrapper   the key of a dict around it, as training scripts save it
    metadata  has no place in this format
    """
    archive = _Archive(output)
    archive.add("data.pkl", _pickled(entries, wrapper))
    archive.add("byteorder", b"little")
    for number, (name, entry) in enumerate(entries.items()):
        archive.add_tensor(f"data/{number}", name, entry)
    archive.add("version", b"3\n")
    archive.close()


class _Archive:
    """A zip archive that grows entry by entry; checksums go into the headers in the end.

    torch puts checksum and size behind the data instead. It says so by an entry .format_version, from which it
    then computes where storages begin; without that entry it looks them up, which serves any zip file.
    """

    def __init__(self, output: Output):
        self.output = output
        self.directory: list[Callable[[], bytes]] = []

    def add(self, name: str, data: bytes) -> None:
        self._add(name, len(data), lambda: self.output.write(data))

    def add_tensor(self, name: str, tensor: str, entry: TensorEntry) -> None:
        self._add(name, entry.nbytes, lambda: self.output.tensor(tensor, entry))

    def _add(self, name: str, size: int, fill: Callable[[], None]) -> None:
        output, label = self.output, (ROOT + name).encode()
        start = output.position
        shown = ELSEWHERE if size >= ZIP64 else size
        extra = struct.pack("<HHQQ", 1, 16, size, size) if size >= ZIP64 else b""
        padding = -(start + 30 + len(label) + len(extra) + 4) % ALIGNMENT
        extra += struct.pack("<2sH", b"FB", padding) + bytes(padding)  # the field that torch pads with
        # version, flags, method, time, date, crc, size, size, lengths of name and extra
        fields = [45, 0, 0, 0, DATE, 0, shown, shown, len(label), len(extra)]
        output.write(struct.pack("<4s5H3I2H", b"PK\x03\x04", *fields) + label + extra)
        first = output.position
        output.start_crc()
        fill()
        crc = output.end_crc()
        assert output.position - first == size, (name, output.position - first, size)
        output.patch(start + 14, lambda: struct.pack("<I", crc.result()))

        def listed() -> bytes:
            """The entry of the directory."""
            wide = b"".join(struct.pack("<Q", number) for number in (size, size, start) if number >= ZIP64)
            extra = struct.pack("<HH", 1, len(wide)) + wide if wide else b""
            place = ELSEWHERE if start >= ZIP64 else start
            numbers = [*fields[:5], crc.result(), *fields[6:-1], len(extra)]
            # made by, (the fields above), lengths of comment, disk, attributes, place
            packed = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 45, *numbers, 0, 0, 0, 0, place)
            return packed + label + extra

        self.directory.append(listed)

    def close(self) -> None:
        """The directory, and where it lies: always in 64 bits, as torch does, and in 32 bits where that fits."""
        start, count = self.output.position, len(self.directory)
        directory = b"".join(listed() for listed in self.directory)
        size, end = len(directory), start + len(directory)
        few, short = min(count, 0xFFFF), ELSEWHERE if max(size, start) >= ZIP64 else size
        place = ELSEWHERE if max(size, start) >= ZIP64 else start
        self.output.write(
            directory
            + struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
            + struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
            + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, few, few, short, place, 0)
        )


def _pickled(entries: Entries, wrapper: str | None) -> bytes:
    """data.pkl in protocol 2, the only one that weights_only=True accepts without a warning."""
    empty = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    tensors = [pickle.PROTO, b"\x02"]
    if wrapper is not None:
        tensors += [pickle.EMPTY_DICT, _word(wrapper)]
    tensors += [empty, pickle.MARK]
    for number, (name, entry) in enumerate(entries.items()):
        steps, step = [], 1
        for n in reversed(entry.shape):
            steps.insert(0, step)
            step *= max(n, 1)
        storage = _tuple(
            _word("storage"),
            _global("torch", STORAGES[entry.dtype]),
            _word(str(number)),
            _word("cpu"),
            _number(entry.size),
        )
        shape, stride = _tuple(*map(_number, entry.shape)), _tuple(*map(_number, steps))
        no_hooks = empty
        tensors += [
            _word(name),
            _global("torch._utils", "_rebuild_tensor_v2"),
            _tuple(storage + pickle.BINPERSID, _number(0), shape, stride, pickle.NEWFALSE, no_hooks),
            pickle.REDUCE,
        ]
    tensors += [pickle.SETITEMS, pickle.STOP if wrapper is None else pickle.SETITEM + pickle.STOP]
    return b"".join(tensors)


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _word(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw


def _number(number: int) -> bytes:
    if number < 1 << 8:
        return pickle.BININT1 + bytes([number])
    if number < 1 << 31:
        return pickle.BININT + struct.pack("<i", number)
    return pickle.LONG1 + bytes([8]) + struct.pack("<q", number)


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE
