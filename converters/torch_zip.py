# SPDX-License-Identifier: Apache-2.0
"""Read a torch checkpoint (zip format, torch >= 1.6) without torch and without running what it contains.

The pickle inside may call only what `_Unpickler.allowed` lists; anything else is refused by its name.
Tensor data is mapped from the file: torch stores its zip entries uncompressed.
"""

import collections
import io
import pickle
import pickletools
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.errors import ConversionError
from converters.stream import DTYPES, TensorEntry, map_file

STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
RESAVE = 'with torch: torch.save({"ema": torch.load(PATH, weights_only=True)["ema"]}, NEW_PATH)'


@dataclass(frozen=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True)
class _Storage:
    """A flat run of numbers in the file; several tensors may share it."""

    dtype: str
    data: np.ndarray  # (numel,), file byte order


def read_torch_zip(path: Path) -> object:
    """The saved object with `TensorEntry` in place of tensors; usually a dict.

    Raises ConversionError for a damaged file, a refused global, a quantised or otherwise unknown tensor.
    """
    again = "the file is damaged or not completely downloaded: fetch it again"
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        raise ConversionError(f"{path} is a truncated or damaged zip file", got=error, remedy=again) from None
    roots = [
        name.removesuffix("data.pkl") for name in infos if name.count("/") == 1 and name.endswith("/data.pkl")
    ]
    if len(roots) != 1:
        raise ConversionError(
            f"{path} is not a torch checkpoint", got=f"{len(roots)} entries named */data.pkl", expected="one"
        )
    members = _Members(path, map_file(path), infos, roots[0], again)
    try:
        return _Unpickler(members).load()
    except ConversionError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way; nothing foreign ever runs
        raise ConversionError(
            f"{path}: its data.pkl is damaged", got=f"{type(error).__name__}: {error}", remedy=again
        ) from error


def check_crc(path: Path) -> None:
    """Read the whole archive and compare every entry with its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except zipfile.BadZipFile as error:
        bad = error
    if bad is not None:
        raise ConversionError(
            f"{path}: the checksum of {bad} is wrong",
            remedy="fetch the file again; if it was saved with torch.serialization.set_crc32_options(False), "
            "convert without --verify",
        )


@dataclass(frozen=True)
class _Members:
    """The entries of the archive as slices of the mapped file."""

    path: Path
    data: np.ndarray
    infos: dict[str, zipfile.ZipInfo]
    root: str
    again: str

    def read(self, name: str) -> np.ndarray:
        """Bytes of `<root>/<name>`. The local header may be padded, so its lengths count."""
        info = self.infos.get(self.root + name)
        if info is None:
            raise ConversionError(f"{self.path} has no entry {self.root + name}", remedy=self.again)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ConversionError(
                f"{self.path}: {info.filename} is compressed or encrypted",
                expected="the plain entries that torch.save writes",
                remedy=RESAVE,
            )
        head = self.data[info.header_offset : info.header_offset + 30].tobytes()
        first = (
            info.header_offset
            + 30
            + int.from_bytes(head[26:28], "little")
            + int.from_bytes(head[28:30], "little")
        )
        if head[:4] != b"PK\x03\x04" or first + info.file_size > len(self.data):
            raise ConversionError(f"{self.path}: {info.filename} lies outside the file", remedy=self.again)
        return self.data[first : first + info.file_size]

    def is_big_endian(self) -> bool:
        return self.root + "byteorder" in self.infos and self.read("byteorder").tobytes() == b"big"


class _Unpickler(pickle.Unpickler):
    """Builds dicts, numbers and tensor entries; every other global is refused and never imported."""

    def __init__(self, members: _Members):
        program = members.read("data.pkl").tobytes()
        _check_sizes(program)
        super().__init__(io.BytesIO(program), encoding="utf-8")
        self.members = members
        self.order = ">" if members.is_big_endian() else "<"
        # Made anew for each file: a pickle may set attributes on what it is given.
        self.allowed = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *args: _rebuild_tensor(*args),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, requires_grad, hooks: tensor,
            ("torch", "Size"): tuple,
            # Training options saved beside the weights: attributes, no behaviour.
            ("argparse", "Namespace"): type("Options", (), {}),
            **{("torch", name): _StorageType(dtype) for name, dtype in STORAGES.items()},
        }

    def find_class(self, module: str, name: str) -> object:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise ConversionError(
                f"{self.members.path} wants to call {module}.{name}: refused, nothing was run",
                expected="a plain dict of tensors",
                remedy=f"if you trust the file, keep only its weights, {RESAVE}",
            ) from None

    def persistent_load(self, pid: tuple) -> _Storage:
        """("storage", type, key, location, numel) -> the numbers of entry data/<key>."""
        kind, storage, key, _, numel = pid
        if kind != "storage" or not isinstance(storage, _StorageType) or type(numel) is not int or numel < 0:
            raise ConversionError(f"{self.members.path} holds an unknown kind of storage", got=pid)
        dtype = DTYPES[storage.dtype].newbyteorder(self.order)
        raw = self.members.read(f"data/{key}")
        if len(raw) < numel * dtype.itemsize:
            raise ConversionError(
                f"{self.members.path}: entry data/{key} is too short",
                got=f"{len(raw)} bytes",
                expected=f"{numel * dtype.itemsize}",
                remedy=self.members.again,
            )
        return _Storage(storage.dtype, raw[: numel * dtype.itemsize].view(dtype))


def _check_sizes(program: bytes) -> None:
    """Raise ValueError for a pickle whose lengths or memo numbers exceed it: loading it would eat all memory."""
    for code, argument, at in pickletools.genops(program):  # checks the lengths itself
        if "PUT" in code.name and argument > len(program):
            raise ValueError(f"memo number {argument} at byte {at}")


def _rebuild_tensor(
    storage, offset, shape, stride, requires_grad=False, hooks=None, metadata=None
) -> TensorEntry:
    """A view of a storage: `shape` elements, `stride` elements apart, from element `offset` on."""
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    numbers = [offset, *shape, *stride]
    if not all(type(n) is int and n >= 0 for n in numbers) or (0 not in shape and last >= len(storage.data)):
        raise ConversionError(
            "a tensor reaches outside its storage",
            got=f"offset {offset}, shape {tuple(shape)}, stride {tuple(stride)}",
            expected=f"at most {len(storage.data)} elements",
        )
    if metadata:
        raise ConversionError("a tensor carries flags this reader does not know", got=metadata, remedy=RESAVE)

    def bits() -> np.ndarray:
        data = storage.data
        if 0 in shape:
            view = np.empty(shape, data.dtype)
        else:
            steps = [step * data.itemsize for step in stride]
            view = np.lib.stride_tricks.as_strided(data[offset:], shape, steps)
        return view.astype(DTYPES[storage.dtype], copy=False)

    return TensorEntry(storage.dtype, tuple(shape), bits)
