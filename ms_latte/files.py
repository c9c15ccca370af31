# SPDX-License-Identifier: Apache-2.0
"""Files that appear under their name when they are complete: killed at any moment, there is the old one or none.

`video_io.write_new` is for names that nothing may be written to twice.
"""

import contextlib
import errno
import os
from pathlib import Path


@contextlib.contextmanager
def replacing(path):
    """A binary file to write to, which takes the place of `path` when the block ends without an error, down to the
    disk. One writer at a time. Raises OSError; nothing is left behind then."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.tmp")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    synchronise(path.parent)


def write_whole(path, content):
    """Write bytes under a name, whole or not at all, down to the disk. Raises OSError."""
    with replacing(path) as file:
        file.write(content)


def synchronise(path):
    """Make the contents of a file, or the names in a folder, survive a power cut; some file systems do so for files
    alone."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
