# SPDX-License-Identifier: Apache-2.0
"""The folder of a latent cache: what it was made from, which videos are finished, and where their arrays are.

cache.json         the facts: VAE, picture size, data set, text encoder, types (`FACTS` names them)
videos.jsonl       one line for each finished or failed video, for each finished MindRecord file, and the videos' order
latents/000000.npy mean and logvar of every frame, (V, F, 2C, h, w): V 1, or 2 where the mirrored video is kept too
texts/000000.npy   text features (L, D)
staged/, records/  instead of both for MindRecord: arrays on their way, and finished files

One array a video, not a file a frame: a clip is read through one mapping of which only its frames come off the disk, a
128-frame clip opens one file instead of 128, and a video is either whole or absent. A line is written after the file
that it tells about is on the disk, so that a killed process leaves at most a file that no line knows.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

from ms_latte.config import ConfigError
from ms_latte.data.latent_files import check_file, check_hash, write_array
from ms_latte.files import write_whole

FORMAT, VERSION = "ms_latte latent cache", 1
FACTS, MANIFEST = "cache.json", "videos.jsonl"
FOLDERS = ("latents", "texts", "staged", "records")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ACTION = "name another --cache_folder, or repeat the old configuration to continue"


class CacheFolder:
    """A context manager that holds the folder alone and adds finished videos.

    path: created, or the folder of an interrupted run; facts: JSON-able, compared with those of an existing folder;
    verify: whether finished videos are read again and compared with their hashes, not only with their sizes.
    `finished` maps the name of a video to its line, `failed` to the reason, `damaged` those that were finished and
    are so no more to the reason; `order` lists the names of the whole set. Raises ConfigError if the folder is in
    use, cannot be written, holds other things or a cache made from something else, naming every difference.
    """

    def __init__(self, path, facts, verify=False):
        self.path, self.verify, self.damaged = Path(path), verify, {}
        self.facts = json.loads(json.dumps({"format": FORMAT, "version": VERSION, **facts}))
        self.finished, self.failed, self.shards, self.order, self.file = {}, {}, [], [], None

    def __enter__(self):
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_content()
            self.file = open(self.path / MANIFEST, "ab+", buffering=0)
        except OSError as error:
            raise ConfigError(
                f"--cache_folder {self.path}: cannot write there ({error.strerror or error}); name another folder"
            ) from error
        try:
            with self.guarded("its facts"):
                self._open()
        except BaseException:
            self.file.close()
            raise
        return self

    def __exit__(self, *_):
        self.file.close()

    def set_order(self, names):
        """Note the names of all videos of the set, finished or not: the order in which they are read."""
        names = list(names)
        if names != self.order:
            with self.guarded("the order of the videos"):
                self.append({"order": names})
            self.order = names

    def add(self, name, moments, record, text=None, staged=False):
        """A video is finished: moments (V, F, 2C, h, w), text (L, D) or None, record: further facts for its line.

        staged: the arrays are on their way into a MindRecord file. Raises ConfigError for a full disk; the folder is
        then as before.
        """
        arrays = {"moments": moments} if text is None else {"moments": moments, "text": text}
        number = 1 + max((line["number"] for line in self.finished.values()), default=-1)
        with self.guarded(f"video {name}"):
            places = {}
            for key, array in arrays.items():
                folder = "staged" if staged else {"moments": "latents", "text": "texts"}[key]
                ending = f"-{key}.npy" if staged else ".npy"
                places[key] = write_array(self.path, f"{folder}/{number:06d}{ending}", array)
            line = {"name": name, "number": number, "frames": int(moments.shape[1]), **record, **places}
            self.append(line)
        self.finished[name] = line
        self.failed.pop(name, None)
        return line

    def fail(self, name, reason):
        """A video could not be read or encoded. The same reason is noted once; the next run tries again."""
        if self.failed.get(name) != reason:
            with self.guarded(f"the failure of video {name}"):
                self.append({"name": name, "failed": reason})
        self.failed[name] = reason

    def append(self, line):
        """Add a line to the manifest, whole or not at all."""
        size = self.file.seek(0, os.SEEK_END)
        rest = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
            os.fsync(self.file.fileno())
        except OSError:
            self.file.truncate(size)
            raise

    @contextlib.contextmanager
    def guarded(self, what):
        """Turn an error of the disk while saving `what` into one line that says how to go on."""
        try:
            yield
        except OSError as error:
            remedy = "free some space" if error.errno in NO_ROOM else "correct it"
            raise ConfigError(
                f"--cache_folder {self.path}: {what} cannot be saved ({error.strerror or error}); "
                f"{len(self.finished)} videos are finished and stay; {remedy} and repeat the command to continue"
            ) from error

    def _check_content(self):
        ours = (MANIFEST, f".{FACTS}.tmp")  # all that a process killed at its start may leave
        if (self.path / FACTS).exists() or all(path.name in ours for path in self.path.iterdir()):
            return
        raise ConfigError(
            f"--cache_folder {self.path}: the folder holds files that are no cache of this command; nothing is "
            "overwritten; name a new folder"
        )

    def _open(self):
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"--cache_folder {self.path}: another process writes into it") from error
        if (self.path / FACTS).exists():
            different = differences(read_facts(self.path), self.facts)
            if different:
                raise ConfigError(
                    f"--cache_folder {self.path} was made otherwise: {'; '.join(different)}; {ACTION}"
                )
        else:
            write_whole(self.path / FACTS, json.dumps(self.facts, indent=2, ensure_ascii=False).encode())
        self.finished, self.failed, self.shards, self.order = read_lines(
            self._whole_lines(), self.path / MANIFEST
        )
        for folder in FOLDERS:
            (self.path / folder).mkdir(exist_ok=True)
        self._drop_damaged()
        self._clean()

    def _drop_damaged(self):
        """Forget videos whose files are missing or cut short; they are made again."""
        for name, line in list(self.finished.items()):
            try:
                for place in places_of(line):
                    (check_hash if self.verify else check_file)(self.path, place)
            except ConfigError as error:
                self.damaged[name] = str(error).split("; ")[0]
                del self.finished[name]
                self.fail(name, self.damaged[name])  # before its number can be another video's

    def _clean(self):
        """Remove what no line tells about: a killed process leaves it. Nobody else is writing, the lock is ours."""
        known = {place["file"] for line in self.finished.values() for place in places_of(line)}
        known |= {f"{file}.db" for file in known if file.startswith("records/")}
        for folder in FOLDERS:
            for path in (self.path / folder).iterdir():
                if f"{folder}/{path.name}" not in known:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _whole_lines(self):
        self.file.seek(0)
        text = self.file.read()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):  # a killed process may leave half a line
            self.file.truncate(len(whole))
        return whole.decode()


def read_facts(path):
    """The facts of a cache. Raises ConfigError for a folder that holds none, and for another version."""
    try:
        facts = json.loads((Path(path) / FACTS).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path} holds no latent cache: {FACTS} cannot be read ({error.strerror or error}); remedy: make one with "
            "python -m ms_latte.cache"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{Path(path) / FACTS} is damaged ({error}); remedy: make the cache anew"
        ) from error
    if not isinstance(facts, dict) or (facts.get("format"), facts.get("version")) != (FORMAT, VERSION):
        got = (facts.get("format"), facts.get("version")) if isinstance(facts, dict) else type(facts).__name__
        raise ConfigError(
            f"{Path(path) / FACTS} says {got}, expected {(FORMAT, VERSION)}; make the cache anew"
        )
    return facts


def read_manifest(path):
    """(finished, failed, shards, order) of a cache: name -> line, name -> reason, lines of MindRecord files, names."""
    place = Path(path) / MANIFEST
    try:
        text = place.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{place} cannot be read ({error.strerror or error}); make the cache anew"
        ) from error
    return read_lines(text[: text.rfind("\n") + 1], place)


def read_lines(text, place):
    """As `read_manifest`, of whole lines; a later line about a video replaces an earlier one."""
    finished, failed, shards, order = {}, {}, [], []
    try:
        for line in map(json.loads, text.splitlines()):
            if "shard" in line:
                shards.append(line)
                for name, places in line["places"].items():
                    finished[name].update(places)
            elif "order" in line:
                order = line["order"]
            elif "failed" in line:
                failed[line["name"]] = line["failed"]
                finished.pop(line["name"], None)
            else:
                finished[line["name"]] = line
                failed.pop(line["name"], None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{place} is damaged ({error!r}); remedy: make the cache anew") from error
    return finished, failed, shards, order


def differences(held, asked):
    """Words for every fact that differs: "vae.sha256 ab.. there, cd.. now"."""
    held, asked = flat(held), flat(asked)
    return [
        f"{key} {held.get(key)!r} there, {asked.get(key)!r} now"
        for key in {**held, **asked}
        if held.get(key) != asked.get(key)
    ]


def places_of(line):
    """Places of all arrays of a video."""
    return [line[key] for key in ("moments", "text") if key in line]


def flat(facts, prefix=""):
    """{"vae": {"sha256": 1}} -> {"vae.sha256": 1}."""
    found = {}
    for key, value in facts.items():
        nested = isinstance(value, dict)
        found |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found
