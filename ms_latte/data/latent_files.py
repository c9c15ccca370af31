# SPDX-License-Identifier: Apache-2.0
"""Arrays of a latent cache on the disk: written whole, mapped when they are read, known by their hash.

The place of an array is a dict: file (inside the cache), offset of the numbers, size of the file, dtype, shape, and
the sha256 of the numbers alone, so that an array has one hash in every container.
"""

import hashlib
from pathlib import Path

import numpy as np

from ms_latte.config import ConfigError
from ms_latte.files import replacing

REPAIR = (
    "remedy: copy the cache again, or repeat python -m ms_latte.cache with its folder, which makes it again"
)


def write_array(folder, name, array):
    """Write folder/name (.npy) whole, down to the disk; returns its place: file, offset, shape, dtype, size, sha256.

    The hash is that of the numbers alone, the same in every container.
    """
    array = np.ascontiguousarray(array)
    path = Path(folder) / name
    digest = hash_of(array)
    with replacing(path) as file:
        # Not numpy's own writer: on a full disk its error does not say why.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.reshape(-1).view(np.uint8))
        size = file.tell()
    place = {"file": name, "offset": size - array.nbytes, "size": size}
    return {**place, "dtype": array.dtype.name, "shape": list(array.shape), "sha256": digest}


def hash_of(array):
    """sha256 of an array's numbers."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).hexdigest()


def read_array(folder, place):
    """The array at a place of the manifest, mapped and not read. Raises ConfigError for a file that is missing or has
    another size than when it was written."""
    check_file(folder, place)
    return np.memmap(
        Path(folder) / place["file"], place["dtype"], "r", place["offset"], tuple(place["shape"])
    )


def check_file(folder, place):
    """Raise ConfigError for a file that is missing or has another size than when it was written."""
    path = Path(folder) / place["file"]
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; {REPAIR}") from error
    if size != place["size"]:
        raise ConfigError(f"{path} has {size} bytes, {place['size']} were written; {REPAIR}")


def check_hash(folder, place):
    """Raise ConfigError if the numbers at a place are not those that were written."""
    if hash_of(read_array(folder, place)) != place["sha256"]:
        raise ConfigError(f"{Path(folder) / place['file']}: other numbers than were written; {REPAIR}")
