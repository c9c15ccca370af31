# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear under their name when they are complete, and not before.

A writer fills an `Output` from front to back; what passes is hashed beside the writing. Blocks go to the disk
directly where the system can do that: what is converted does not push the page cache out, nor wait for it.
"""

import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import mmap
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from converters.stream import TensorEntry

BLOCK = 1 << 22  # bytes that are written at once
BLOCKS = 4  # being filled, hashed and written side by side
DIRECT = getattr(os, "O_DIRECT", 0)  # past the page cache
Progress = Callable[[int], None]  # bytes taken since the last call


def silent(count: int) -> None:
    """Progress that nobody watches."""


class Output:
    """A file that is being written: plain bytes by `write`, tensors by `tensor`, both into blocks.

    Three threads hash, sum and write these blocks; an error of theirs is raised by a later call. `close` it in any
    case.
    """

    def __init__(self, handle: int, progress: Progress = silent):
        self.handle, self.progress = handle, progress
        self.blocks: list[np.ndarray] = []  # as many as it takes, up to BLOCKS
        self.busy: list[list[Future]] = []  # who still reads a block
        self.done, self.filled = 0, 0  # bytes in blocks that are full, and in the present one
        self.direct = DIRECT != 0
        self.patches: list[tuple[int, Callable[[], bytes]]] = []
        self.hashes: dict[str, Future] = {}
        self.crc: list[int] | None = None  # the one that is being summed
        self.hasher, self.summer, self.writer = (ThreadPoolExecutor(1) for _ in range(3))

    @property
    def position(self) -> int:
        """Bytes taken so far."""
        return self.done + self.filled

    @property
    def digests(self) -> dict[str, bytes]:
        """name -> sha256 of the bytes of each tensor so far."""
        return {name: one.result() for name, one in self.hashes.items()}

    def write(self, data: bytes | memoryview) -> None:
        """Plain bytes."""
        self._take(data, [])

    def tensor(
        self,
        name: str,
        entry: TensorEntry,
        every: int | None = None,
        header: Callable[[int], bytes] = lambda count: b"",
    ) -> None:
        """The tensor's bytes, hashed. Before every `every` of them goes header(how many follow before the next)."""
        digest, left, room = hashlib.sha256(), entry.nbytes, 0
        for part in entry.parts():
            while len(part):
                assert left, f"{name}: more than {entry.nbytes} bytes"
                if not room:
                    room = min(left, every or left)
                    self.write(header(room))
                now, part = part[:room], part[room:]
                self._take(now, [digest.update])
                left, room = left - len(now), room - len(now)
            if entry.release:
                entry.release()
        if not entry.nbytes:
            self.write(header(0))
        assert left == 0, f"{name}: {left} of {entry.nbytes} bytes are missing"
        self.hashes[name] = self.hasher.submit(digest.digest)

    def start_crc(self) -> None:
        """From here on, what is written is summed."""
        self.crc = [0]

    def end_crc(self) -> Future:
        """The CRC-32 of what was written since `start_crc`."""
        crc, self.crc = self.crc, None
        return self.summer.submit(crc.__getitem__, 0)

    def patch(self, position: int, data: Callable[[], bytes]) -> None:
        """Bytes that take the place of others at the end, when they are known."""
        self.patches.append((position, data))

    def finish(self) -> None:
        """Hand everything to the system: what is left in the last block, and the patches."""
        if self.filled:
            self._hand_over()
        for busy in self.busy:
            _wait(busy)
        self._go_direct(False)
        for position, data in self.patches:
            self._store(memoryview(data()), position)

    def close(self) -> None:
        """End the threads."""
        for one in (self.hasher, self.summer, self.writer):
            one.shutdown()

    def _take(self, data: bytes | memoryview, watchers: Sequence[Callable]) -> None:
        """Copy into blocks: the source's pages can be given back, whoever may still be hashing."""
        source = np.frombuffer(data, np.uint8)
        while source.size:
            block = self._block()
            piece = block[self.filled : self.filled + source.size]
            now, source = source[: piece.size], source[piece.size :]
            np.copyto(piece, now)
            busy = self.busy[self._turn]
            busy += [self.hasher.submit(watcher, piece) for watcher in watchers]
            if self.crc is not None:
                busy.append(self.summer.submit(_sum, self.crc, piece))
            self.filled += piece.size
            self.progress(piece.size)
            if self.filled == BLOCK:
                self._hand_over()

    @property
    def _turn(self) -> int:
        return self.done // BLOCK % BLOCKS

    def _block(self) -> np.ndarray:
        """The present block, free to be filled."""
        if self._turn == len(self.blocks):
            private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # and at the begin of a page, as `DIRECT` asks
            self.blocks.append(np.frombuffer(mmap.mmap(-1, BLOCK, private), np.uint8))
            self.busy.append([])
        if not self.filled:
            _wait(self.busy[self._turn])
        return self.blocks[self._turn]

    def _hand_over(self) -> None:
        data = memoryview(self.blocks[self._turn][: self.filled])
        self.busy[self._turn].append(self.writer.submit(self._store, data, self.done))
        self.done, self.filled = self.position, 0

    def _store(self, data: memoryview, position: int) -> None:
        """Write at a place; directly where data and file system allow it."""
        while len(data):
            direct = self.direct and len(data) == BLOCK
            try:
                self._go_direct(direct)
                count = os.pwrite(self.handle, data, position)
            except OSError as error:
                if not (direct and error.errno == errno.EINVAL):
                    raise
                self.direct = False  # not on this file system, or not in such blocks
                continue
            data, position = data[count:], position + count

    def _go_direct(self, yes: bool) -> None:
        flags = fcntl.fcntl(self.handle, fcntl.F_GETFL)
        if bool(flags & DIRECT) != yes:
            fcntl.fcntl(self.handle, fcntl.F_SETFL, flags ^ DIRECT)


def _sum(crc: list[int], piece: np.ndarray) -> None:
    crc[0] = zlib.crc32(piece, crc[0])


def _wait(futures: list[Future]) -> None:
    """Wait for all, raise what one of them raised, forget them."""
    while futures:
        futures.pop().result()


@contextlib.contextmanager
def writing(path: Path, progress: Progress = silent, sync: bool = True) -> Iterator[Output]:
    """Open an `Output` that takes the place of `path` on success, and leaves nothing behind on failure.

    The file has no name while it grows (where the file system can do that), so that not even a killed process
    leaves a part of it; until the last step an existing `path` is untouched. sync: False in a folder that is
    itself unfinished, and synchronised as a whole.
    """
    temporary = Path(tempfile.mktemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        handle, named = os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o666), False
    except (OSError, AttributeError):
        handle, named = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666), True
    try:
        try:
            output = Output(handle, progress)
            try:
                yield output
                output.finish()
            finally:
                output.close()
            if sync:
                os.fsync(handle)
            if not named:
                # With a folder to start from, linkat follows the link; the path is absolute, so any will do.
                os.link(f"/proc/self/fd/{handle}", temporary, src_dir_fd=handle, follow_symlinks=True)
        finally:
            os.close(handle)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        synchronise(path.parent)


def write_whole(path: Path, content: str | bytes) -> None:
    """A small file, text in UTF-8; as `writing`, whole or not at all."""
    with writing(path) as output:
        output.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the name `path` on success; nothing is left behind on failure.

    An older folder of that name stays whole until then. What a killed process left beside `path` is removed by
    the next call.
    """
    prefix = f".{path.name}.unfinished-"
    for stale in path.parent.glob(f"{glob.escape(prefix)}*.tmp"):
        if re.fullmatch(r"[a-z0-9_]{8}", stale.name[len(prefix) : -len(".tmp")]):
            with contextlib.suppress(OSError):
                _remove_unless_locked(stale)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=path.parent))
    lock = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes folders private
        yield temporary
        for file in temporary.iterdir():  # at the end, so that the disk works while further files are written
            synchronise(file)
        synchronise(temporary)
        if path.is_dir():
            _exchange(temporary, path)
        else:
            os.rename(temporary, path)
    finally:
        if temporary.is_symlink():  # `path` was a link to a folder, which stays as it is
            temporary.unlink()
        shutil.rmtree(temporary, ignore_errors=True)  # the unfinished or the older folder
        os.close(lock)
    synchronise(path.parent)


def _exchange(a: Path, b: Path) -> None:
    """Swap two folders, in one step where the system can do that, so that `b` always exists."""
    at_here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of Linux
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename and rename(at_here, os.fsencode(a), at_here, os.fsencode(b), exchange) == 0:
        return
    aside = a.with_name(f"{a.name}.old")
    os.rename(b, aside)
    os.rename(a, b)
    os.rename(aside, a)


def _remove_unless_locked(folder: Path) -> None:
    """Remove a leftover folder, unless a living process is filling it."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(lock)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def synchronise(path: Path) -> None:
    """Make the contents of a file, or the renames in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
