# SPDX-License-Identifier: Apache-2.0
"""torch files before 1.6, and those saved with _use_new_zipfile_serialization=False.

    5 pickles   magic number, protocol version, facts about the machine, the object, the keys of its storages
    storages    for each key: the count of its numbers in 8 bytes, the numbers

Numbers and counts are little-endian on every machine: torch swaps them when it writes, and ignores what the
facts say when it reads (torch/csrc/serialization.cpp).
"""

from pathlib import Path

import numpy as np

from converters.containers.torch_pickle import RESAVE, Reference, Storage, load_pickle
from converters.errors import ConversionError
from converters.stream import AGAIN, DTYPES, map_file, names_of

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
MAGIC_PICKLED = b"\x8a\x0a" + MAGIC.to_bytes(10, "little")
ANCIENT = b"sys_info\0"  # a tar archive, torch < 0.2


def is_torch_legacy(start: bytes) -> bool:
    """Whether a file with this start is meant for `read_torch_legacy`; 32 bytes are enough."""
    return start.startswith(ANCIENT) or (start[:1] == b"\x80" and MAGIC_PICKLED in start[:32])


def read_torch_legacy(path: Path) -> object:
    """The saved object with `TensorEntry` in place of tensors; usually a dict.

    Raises ConversionError for a damaged file, a refused global, an unknown tensor, the tar format of torch 0.1.
    """
    data = map_file(path)
    if data[: len(ANCIENT)].tobytes() == ANCIENT:
        raise ConversionError(
            f"{path} is a tar archive of torch 0.1", expected="a file of torch 0.2 or later", remedy=RESAVE
        )
    roots: dict[str, Storage] = {}
    places: dict[str, np.ndarray] = {}  # known when everything has been unpickled

    def locate(wanted: Reference) -> Storage:
        new = Storage(wanted.dtype, wanted.count, lambda: places[wanted.key])
        found = roots.setdefault(wanted.key, new)
        if (found.dtype, found.count) != (wanted.dtype, wanted.count):
            raise ConversionError(
                f"{path} describes storage {wanted.key} in two ways",
                got=f"{wanted.count} numbers of {wanted.dtype}",
                expected=f"{found.count} of {found.dtype}",
                remedy=AGAIN,
            )
        return found

    magic, at = load_pickle(path, data, locate, 0, "its magic number")
    version, at = load_pickle(path, data, locate, at, "its version") if magic == MAGIC else (None, at)
    if version != PROTOCOL:
        raise ConversionError(
            f"{path} is not a torch checkpoint",
            expected=f"torch's magic number and protocol {PROTOCOL} at its start",
            remedy=AGAIN,
        )
    _, at = load_pickle(path, data, locate, at, "its description of the machine")
    tree, at = load_pickle(path, data, locate, at, "its saved object")
    keys, at = load_pickle(path, data, locate, at, "its list of storages")

    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(roots):
        raise ConversionError(
            f"{path}: its list of storages does not fit its tensors",
            got=f"{len(keys)} keys" if type(keys) is list else type(keys).__name__,
            expected=f"{len(roots)} keys: {names_of(sorted(roots))}",
            remedy=AGAIN,
        )
    for key in keys:
        storage = roots[key]
        first, size = at + 8, storage.count * DTYPES[storage.dtype].itemsize
        count = int.from_bytes(data[at:first].tobytes(), "little", signed=True)
        if first + size > len(data):
            raise ConversionError(
                f"{path} is truncated",
                got=f"{len(data)} bytes",
                expected=f"at least {first + size}, the end of storage {key}",
                remedy=AGAIN,
            )
        if count != storage.count:
            raise ConversionError(
                f"{path}: storage {key} has another size than its tensors say",
                got=f"{count} numbers",
                expected=f"{storage.count}",
                remedy=AGAIN,
            )
        places[key], at = data[first : first + size], first + size
    return tree
