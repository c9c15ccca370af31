# SPDX-License-Identifier: Apache-2.0
"""Write whatever a target's name asks for: one file in any container, or a folder, sharded or not.

A target appears when it is complete. Beside the weights stand their configuration and, where the layout has
no place for some tensor, that tensor in a file of its own.
"""

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from converters.containers.ckpt_file import write_ckpt
from converters.containers.safetensors_file import write_safetensors
from converters.containers.source import EXTRAS
from converters.containers.torch_zip import write_torch_zip
from converters.errors import ConversionError
from converters.output import Progress, silent, writing, writing_folder
from converters.stream import Entries, combine, names_of

FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def save_file(path: Path, entries: Entries, metadata: Mapping[str, str]) -> str:
    """One safetensors file, complete or not at all; returns the content hash."""
    with writing(path) as output:
        write_safetensors(output, entries, metadata)
    return combine(entries, output.digests)


def config_beside(target: Path) -> Path:
    """Where the configuration of a single file stands."""
    return target.with_name(f"{target.name}.json")


def is_folder(target: Path) -> bool:
    """A name without an ending asks for a folder."""
    return target.suffix == "" or target.is_dir()


def check_shards(target: Path, shard_size: int | None) -> None:
    """Raise ConversionError if shards are asked for where a single file is meant."""
    if shard_size is not None and not is_folder(target):
        raise ConversionError(
            "shards need a folder", got=f"--target {target}", remedy=f"--target {target.with_suffix('')}"
        )


def check_replaceable(target: Path, stem: str, folder: bool = False) -> None:
    """Raise ConversionError if writing `target` would delete anything that is no such target.

    folder  whatever the ending, a folder is meant
    """
    if target.is_dir():
        ours = re.compile(
            rf"config\.json|{re.escape(stem)}"
            r"(-[0-9]{5}-of-[0-9]{5})?(\.safetensors|\.bin)(\.index\.json)?|" + re.escape(stem + EXTRAS)
        )
        strange = [p.name for p in target.iterdir() if not (ours.fullmatch(p.name) and p.is_file())]
        if strange:
            raise ConversionError(
                f"folder {target} holds other things, which writing it anew would delete",
                got=names_of(sorted(strange)),
                expected=f"config.json and {stem}.safetensors, .bin or their shards",
                remedy="choose another folder",
            )
    elif target.exists() and (folder or is_folder(target)):
        raise ConversionError(f"{target} is a file, not a folder", remedy="choose another target")
    elif target.exists() and not target.is_file():
        raise ConversionError(f"{target} is no regular file", remedy="choose another target")


def write_target(
    target: Path,
    entries: Entries,
    metadata: Mapping[str, str],
    config: Mapping[str, object],
    extras: Entries,
    *,
    stem: str,
    wrapper: str | None = None,
    shard_size: int | None = None,
    folder: bool = False,
    progress: Progress = silent,
) -> str:
    """Write weights, configuration and extras; returns the content hash of the weights.

    target      file (the ending tells the container) or folder
    folder      whatever the ending, a folder is meant
    metadata    model, config and layout at least; a single file's <file name>.json repeats them
    config      what config.json in a folder says
    stem        what the weight files in a folder are called
    wrapper     key under which a torch file holds the weights
    shard_size  bytes of tensors per file, in a folder
    """
    if folder or is_folder(target):
        with writing_folder(target) as place:
            if shard_size is None:
                digest = _write_files(
                    place / f"{stem}.safetensors",
                    entries,
                    metadata,
                    config,
                    extras,
                    alone=False,
                    progress=progress,
                )
            else:
                digest = _write_shards(place, stem, entries, metadata, shard_size, progress)
                _write_small(place / "config.json", config)
                if extras:
                    with writing(place / f"{stem}{EXTRAS}", sync=False) as output:
                        write_safetensors(output, extras, {"of": digest})
        return digest
    check_shards(target, shard_size)
    return _write_files(
        target,
        entries,
        metadata,
        config,
        extras,
        wrapper=wrapper,
        progress=progress,
    )


def _write_files(
    path: Path,
    entries: Entries,
    metadata: Mapping[str, str],
    config: Mapping[str, object],
    extras: Entries,
    wrapper: str | None = None,
    alone: bool = True,
    progress: Progress = silent,
) -> str:
    """Weights with what belongs beside them. All are complete before the weights take their name, first.

    alone  not in an unfinished folder. What stands beside a single file says to which weights it belongs: a process
           may be killed between two renames.
    """
    config_path = config_beside(path) if alone else path.with_name("config.json")
    beside = path.with_name((path.name if alone else path.stem) + EXTRAS)
    if alone:  # for us; not every container has a place for metadata
        config = {
            "_class_name": metadata["model"],
            **json.loads(metadata["config"]),
            "_layout": metadata["layout"],
        }
    with contextlib.ExitStack() as stack:  # renamed in reverse order
        small = stack.enter_context(writing(config_path, sync=alone))
        surplus = stack.enter_context(writing(beside, sync=alone)) if extras else None
        output = stack.enter_context(writing(path, progress, sync=alone))
        if path.suffix == ".safetensors":
            write_safetensors(output, entries, metadata)
        elif path.suffix == ".ckpt":
            write_ckpt(output, entries, metadata)
        else:
            write_torch_zip(output, entries, metadata, wrapper)
        digest = combine(entries, output.digests)
        if surplus:
            write_safetensors(surplus, extras, {"of": digest})
        if alone:
            config["_weights"] = {"bytes": output.position, "sha256": digest}
        small.write(_text(config))
    if not extras:
        beside.unlink(missing_ok=True)
    return digest


def _write_shards(
    folder: Path, stem: str, entries: Entries, metadata: Mapping[str, str], size: int, progress: Progress
) -> str:
    """Shards of at most `size` bytes of tensors (one tensor at least) and the index that names them."""
    shards: list[dict] = [{}]
    filled = 0
    for name, entry in entries.items():
        if shards[-1] and filled + entry.nbytes > size:
            shards.append({})
            filled = 0
        shards[-1][name] = entry
        filled += entry.nbytes
    digests, places = {}, {}
    for number, shard in enumerate(shards, 1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        with writing(folder / file, progress, sync=False) as output:
            write_safetensors(output, shard, {})
        digests |= output.digests
        places |= dict.fromkeys(shard, file)
    digest = combine(entries, digests)
    total = sum(entry.nbytes for entry in entries.values())
    index = {"metadata": {"total_size": total, **metadata, "sha256": digest}, "weight_map": places}
    _write_small(folder / f"{stem}.safetensors.index.json", index)
    return digest


def _write_small(path: Path, content: Mapping[str, object]) -> None:
    """JSON in an unfinished folder."""
    with writing(path, sync=False) as output:
        output.write(_text(content))


def _text(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def parse_size(text: str) -> int:
    """ "5GB", "500MB", "2GiB" or a number -> bytes."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]I?B)?", text.strip().upper())
    size = float(found[1]) * UNITS[found[2] or ""] if found else 0
    if not 1 <= size < 1 << 63:
        raise ConversionError(
            "--shard-size is malformed", got=repr(text), expected="5GB, 500MB or a number of bytes"
        )
    return int(size)
