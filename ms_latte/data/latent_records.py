# SPDX-License-Identifier: Apache-2.0
"""MindRecord files of a latent cache: one record a video, finished files alone, each array found again by its place.

A MindRecord file is valid only once it is closed, so videos are staged as arrays and packed into a file when there are
enough of them. The file is written aside, every array is looked up in it and compared, and only then does it get its
place and its line in the manifest. `LatentDataset` maps the arrays inside; `mindspore.dataset.MindDataset` reads the
files too (columns number, video, class, caption, moments (V*F, 2C, h, w), and text_emb, text_mask where there are any).
"""

import contextlib
import json
import mmap
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np

from ms_latte.config import ConfigError
from ms_latte.data.latent_files import read_array
from ms_latte.data.latent_store import places_of
from ms_latte.files import synchronise

PAGE_SIZES = (64, 128, 256)  # MB; the format allows no more
SPARE = 4096  # bytes of a record beside its arrays: lengths, names, numbers


def check_record(name, nbytes, page_size):
    """Raise ConfigError for a video whose record does not fit a page of page_size MB."""
    if nbytes + SPARE > page_size << 20:
        larger = [size for size in PAGE_SIZES if nbytes + SPARE <= size << 20]
        remedy = f"--max_page_size {larger[0]}, or " if larger else ""
        raise ConfigError(
            f"video {name} makes a record of {nbytes} bytes, a MindRecord page holds {page_size << 20} "
            f"(--max_page_size {page_size}); remedy: {remedy}--cache_file_type numpy, which has no limit, or cut the "
            "video into shorter ones"
        )


def staged(cache):
    """Lines of finished videos that are not in a MindRecord file yet, in the order they were finished."""
    waiting = [line for line in cache.finished.values() if line["moments"]["file"].startswith("staged/")]
    return sorted(waiting, key=lambda line: line["number"])


def nbytes(line):
    """Bytes of a video's arrays."""
    return sum(place["size"] - place["offset"] for place in places_of(line))


def pack(cache, lines, page_size, every=1):
    """Put staged videos, given by their lines, into one new MindRecord file.

    page_size: MB; every: records handed to the writer at once.
    Raises ConfigError if the file cannot be written; the staged videos then stay.
    """
    name = f"part-{len(cache.shards):05d}.mindrecord"
    # A name of its own: the writer of a killed process may go on for a while.
    aside = cache.path / "records" / f".unfinished-{secrets.token_hex(4)}.tmp"
    try:
        with cache.guarded(name):
            aside.mkdir()
            _write(cache.path, aside / name, lines, page_size, every)
            places = _locate(cache.path, aside / name, f"records/{name}", lines)
            for file in (aside / name, aside / f"{name}.db"):
                os.chmod(file, 0o666 & ~_umask())  # the writer makes files private
                synchronise(file)
                os.replace(file, cache.path / "records" / file.name)
            synchronise(cache.path / "records")
            cache.append({"shard": f"records/{name}", "places": places})
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    cache.shards.append({"shard": f"records/{name}", "places": places})
    for line in lines:
        old = [place["file"] for place in places_of(line)]
        line.update(places[line["name"]])
        for file in old:
            (cache.path / file).unlink(missing_ok=True)


def _write(folder, path, lines, page_size, every):
    """Write the file in a process of its own: on a full disk MindSpore's writer does not fail, it crashes."""
    job = {"folder": str(folder), "path": str(path), "lines": lines, "page_size": page_size, "every": every}
    home = str(Path(__file__).resolve().parents[2])
    places = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", "from ms_latte.data.latent_records import write_file; write_file()"],
        input=json.dumps(job),
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": places},
    )
    if done.returncode:
        told = [line.split("[ERROR]")[-1].strip() for line in done.stderr.splitlines() if "[ERROR]" in line]
        ended = f"its writer ended with {done.returncode}"  # a signal is negative
        raise ConfigError(
            f"{path.parent.parent / path.name} cannot be written ({ended}{f': {told[-1]}' if told else ''}; "
            f"{shutil.disk_usage(folder).free} bytes are free); the videos stay staged; free some space and repeat the "
            "command to continue"
        )


def write_file():
    """The process of its own: a job of `_write` on stdin, one MindRecord file out."""
    from mindspore.mindrecord import FileWriter

    job = json.load(sys.stdin)
    folder, lines, every = Path(job["folder"]), job["lines"], job["every"]
    writer = FileWriter(job["path"], shard_num=1)
    writer.set_page_size(job["page_size"] << 20)
    writer.add_schema(_schema(lines[0]), "mean and logvar of the frames of a video")
    writer.add_index(["number"])
    for i in range(0, len(lines), every):
        writer.write_raw_data([_record(folder, line) for line in lines[i : i + every]])
    writer.commit()


def _schema(line):
    schema = {
        "number": {"type": "int32"},
        "video": {"type": "string"},
        "class": {"type": "int32"},
        "caption": {"type": "string"},
        "moments": {"type": "float32", "shape": [-1, *line["moments"]["shape"][2:]]},
    }
    if "text" in line:
        schema["text_emb"] = {"type": "float32", "shape": line["text"]["shape"]}
        schema["text_mask"] = {"type": "int32", "shape": [-1]}
    return schema


def _record(folder, line):
    moments = np.array(read_array(folder, line["moments"]))
    record = {
        "number": line["number"],
        "video": line["name"],
        "class": line.get("label", -1),
        "caption": line.get("caption", ""),
        "moments": moments.reshape(-1, *moments.shape[2:]),  # (V*F, 2C, h, w)
    }
    if "text" in line:
        record["text_emb"] = np.array(read_array(folder, line["text"]))
        record["text_mask"] = np.array([int(bit) for bit in line["text_mask"]], np.int32)
    return record


def _locate(folder, path, name, lines):
    """name -> places inside the file. The index beside the file tells where a record's arrays are, in some order
    and padding; that they are found there bit for bit is also the proof that the file holds them."""
    size = path.stat().st_size
    with contextlib.closing(sqlite3.connect(f"{path}.db")) as table:
        columns = "PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END"
        rows = {row[0]: row[1:] for row in table.execute(f"SELECT number_0, {columns} FROM INDEXES")}
    places = {}
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header, page_size = _sizes(data)
        for line in lines:
            page, start, end = rows[line["number"]]
            base = header + page * page_size
            for key in ("moments", "text"):
                if key not in line:
                    continue
                offset = data.find(read_array(folder, line[key]).tobytes(), base + start, base + end)
                if offset < 0:
                    raise ConfigError(
                        f"{path.parent.parent / path.name} does not hold what was written for video {line['name']}; "
                        "the videos stay staged; check the disk and repeat the command"
                    )
                place = {**line[key], "file": name, "offset": offset, "size": size}
                places.setdefault(line["name"], {})[key] = place
    return places


def _sizes(data):
    """Bytes of the header and of a page, which the file's first block tells as JSON."""
    length = int.from_bytes(data[:8], "little")
    told = json.loads(data[8 : 8 + length])
    return told["header_size"], told["page_size"]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
