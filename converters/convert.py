# SPDX-License-Identifier: Apache-2.0
"""Conversion from end to end: open, name, cast, write, verify. The commands are thin shells around `convert`."""

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from converters.checkpoint import Checkpoint, load
from converters.containers.ckpt_file import check_crc as check_ckpt_crc
from converters.containers.safetensors_file import read_safetensors
from converters.containers.source import EXTRAS, open_source, unwrap
from converters.containers.target import (
    FILES,
    check_replaceable,
    check_shards,
    config_beside,
    is_folder,
    write_target,
)
from converters.containers.torch_zip import check_crc as check_zip_crc
from converters.errors import ConversionError, printable
from converters.layouts import FAMILIES, NO_MAP, Family
from converters.layouts.base import Layout
from converters.output import Progress
from converters.stream import Entries, cast, combine, content_hash, names_of, same_bits

DTYPE_WORDS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


def convert(
    source: str | Path,
    target: str | Path,
    which: str = "ema",
    layout: str | None = None,
    to: str = "ours",
    overrides: Mapping[str, object] | None = None,
    dtype: str = "keep",
    verify: bool = False,
    force: bool = False,
    shard_size: int | None = None,
    family: str = "latte",
    say: Callable[[str], None] = print,
) -> str:
    """Write the weights of `source` in layout `to` to `target`; returns the sha256 content hash.

    target      .safetensors, .pt, .pth, .bin or .ckpt file, or (without an ending) a folder with config.json
    dtype       "keep", "fp32", "fp16" or "bf16"; floating-point tensors only, overflow is an error
    verify      check the source's checksums, read the target again and prove every tensor bit-equal
    force       replace an existing target (never the source)
    shard_size  bytes per file, for a folder
    Raises ConversionError; then an existing target is unchanged and nothing new is left behind.
    """
    source, target = Path(source), Path(target)
    if dtype not in ("keep", *DTYPE_WORDS):
        raise ConversionError(f"unknown dtype {dtype!r}", expected=", ".join(["keep", *DTYPE_WORDS]))
    if not is_folder(target) and target.suffix not in FILES:
        raise ConversionError(
            f"cannot write {target.name}",
            got=f"ending {target.suffix!r}",
            expected=f"{', '.join(FILES)}, or no ending for a folder",
            remedy=f"--target {target}.safetensors",
        )
    check_shards(target, shard_size)
    kin = FAMILIES[family]
    checkpoint = load(source, which, layout, overrides, family)
    wanted = _target_layout(kin, to, checkpoint)
    _check_target(target, checkpoint, force, kin)
    if wanted.name == "ours":
        entries, left, notes = checkpoint.tensors.entries | dict(checkpoint.extras), {}, []
    else:
        entries, left, notes = wanted.to_theirs(
            checkpoint.tensors.entries, checkpoint.extras, checkpoint.config
        )
    if left:
        notes.append(f"put {names_of(left)} into *{EXTRAS}: layout {wanted.name} has no place for it")
    _describe(source, checkpoint, wanted, notes, say)
    large = sum(entry.nbytes for entry in entries.values()) > 1e9
    if verify:
        if large:
            say(f"checking  {source} against the checksums that it carries")
        check_source(checkpoint, say)

    if dtype != "keep":
        entries = {name: cast(name, entry, DTYPE_WORDS[dtype]) for name, entry in entries.items()}
    _check_space(target, entries)
    metadata = {
        "model": checkpoint.model,
        "config": json.dumps(checkpoint.config),
        "layout": wanted.name,
        "source": f"{printable(source.absolute().name)} ({checkpoint.layout})",  # a name may be no text at all
    }
    config = wanted.card(checkpoint.config)
    digest = write_target(
        target,
        entries,
        metadata,
        config,
        left,
        stem=kin.stem,
        wrapper=wanted.wrapper,
        shard_size=shard_size,
        progress=_progress(entries, say),
    )
    say(f"written   {target} ({_size_of(target):,} bytes, layout {wanted.name}, dtype {dtype})")
    say(f"sha256    {digest} (content)")
    if verify:
        if large:
            say(f"checking  {target} against the source, bit for bit")
        try:
            verify_target(target, entries, digest, family, left)
        except (OSError, MemoryError) as error:
            raise ConversionError(
                f"{target} is written, but could not be read again", got=error, remedy="check the disk"
            ) from error
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{target} is written, but not verified") from None
        how = "bit-equal to the source" if dtype == "keep" else f"bit-equal to the source cast to {dtype}"
        say(f"verified  {len(entries)} tensors read back, {how}")
    return digest


def _target_layout(kin: Family, to: str, checkpoint: Checkpoint) -> Layout:
    wanted = kin.named(to, checkpoint.model)
    if wanted.model.name != checkpoint.model:
        raise ConversionError(
            f"the file holds a {checkpoint.model}, {to!r} is for {wanted.model.name}"
            + (f": {NO_MAP}" if kin.name == "latte" else ""),
            remedy="choose another --to: "
            + " or ".join(
                name
                for name, other in (*kin.layouts.items(), ("ours", kin.ours[checkpoint.model]))
                if other.model.name == checkpoint.model and not other.initial
            ),
        )
    return wanted


def _check_target(target: Path, checkpoint: Checkpoint, force: bool, kin: Family) -> None:
    if not target.parent.is_dir():
        raise ConversionError(f"folder {target.parent} does not exist", remedy=f"mkdir -p {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise ConversionError(f"folder {target.parent} is not writable", remedy="choose another --target")
    places = {target: ""}
    if not is_folder(target):
        places[config_beside(target)] = ", the place of the configuration,"
        places[target.with_name(target.name + EXTRAS)] = ", the place of tensors beside the network,"
    for place, role in places.items():
        if not os.path.lexists(place):
            continue
        if any(_is_part(file, place) for file in checkpoint.files):
            raise ConversionError(f"{place} is the source itself", remedy="choose another --target")
        if not force:
            raise ConversionError(
                f"{place}{role} exists already", remedy="choose another --target or pass --force"
            )
        if place == target:
            check_replaceable(target, kin.stem)
        elif place.exists() and not place.is_file():
            raise ConversionError(f"{place} is no regular file", remedy="choose another --target")


def _is_part(file: Path, place: Path) -> bool:
    """Whether replacing `place` would take this file away, whatever names lead to them."""
    real, there = Path(os.path.realpath(file)), Path(os.path.realpath(place))
    return there == real or there in real.parents or (place.exists() and os.path.samefile(place, file))


def _check_space(target: Path, entries: Entries) -> None:
    need, free = sum(entry.nbytes for entry in entries.values()), shutil.disk_usage(target.parent).free
    if need > free:
        raise ConversionError(
            f"not enough space on the disk of {target.parent}",
            got=f"{free:,} bytes free",
            expected=f"{need:,} bytes",
            remedy="choose another --target or --dtype fp16",
        )


def _describe(
    source: Path, checkpoint: Checkpoint, wanted: Layout, notes: list[str], say: Callable[[str], None]
) -> None:
    entries = checkpoint.tensors.entries
    dtypes = ", ".join(f"{word} {count}" for word, count in Counter(checkpoint.dtypes.values()).items())
    say(f"source    {source}")
    say(
        f"layout    {checkpoint.layout} of {checkpoint.model}"
        + f", to {wanted.name}" * (wanted.name != "ours")
    )
    say(f"tensors   {len(entries)} ({dtypes}), {sum(entry.size for entry in entries.values()):,} parameters")
    say(f"config    {json.dumps(checkpoint.config)}")
    for note in [*checkpoint.notes, *notes]:
        say(f"note      {note}")


def _progress(entries: Entries, say: Callable[[str], None], every: float = 5.0) -> Progress:
    """Tells at most every few seconds how far writing has come; short work stays silent."""
    total, start = sum(entry.nbytes for entry in entries.values()), time.monotonic()
    done, last = 0, start

    def progress(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= every:
            last = now
            rest = (now - start) * (total - done) / max(done, 1)
            say(f"writing   {100 * done // max(total, 1):3d} % of {total / 1e9:.2f} GB, {rest:.0f} s left")

    return progress


def _size_of(target: Path) -> int:
    files = [target] if target.is_file() else list(target.iterdir())
    return sum(file.stat().st_size for file in files)


def check_source(checkpoint: Checkpoint, say: Callable[[str], None] = print) -> None:
    """Compare the files with the checksums that they carry, each container its own; says which carry none."""
    bare = []
    for file in checkpoint.files:
        container = open_source(file).container
        if container == "torch zip":
            check_zip_crc(file)
        elif container in ("torch legacy", "safetensors") or (
            container == "MindSpore ckpt" and not check_ckpt_crc(file)
        ):
            bare.append(file.name)
    stored = checkpoint.sha256
    if stored is None and bare:
        say(f"note      no checksum in {names_of(bare)}")
    if stored is not None:
        entries, _ = unwrap(open_source(checkpoint.files[0]).tree, "state_dict", checkpoint.files[0])
        if (found := content_hash(entries)) != stored:
            raise ConversionError(
                f"{checkpoint.files[0]} is not what was written",
                got=f"content hash {found}",
                expected=stored,
                remedy="fetch or convert it again",
            )


def verify_target(
    target: Path, entries: Entries, digest: str, family: str, extras: Entries | None = None
) -> None:
    """Read the target again: same names, dtypes, shapes, and every bit as in the (cast) source; extras too."""
    written, _ = unwrap(open_source(target, family).tree, "ema", target)
    different, found = _compare(entries, written)
    if extras:
        name = f"{FAMILIES[family].stem}{EXTRAS}"
        place = target / name if target.is_dir() else target.with_name(f"{target.name}{EXTRAS}")
        different += _compare(extras, read_safetensors(place)[0])[0]
    if different or found != digest:
        raise ConversionError(
            f"{target} differs from what was written",
            got=names_of(different) or "another content hash",
            remedy="do not use the file: check the disk and convert again",
        )


def _compare(wanted: Entries, found: Entries) -> tuple[list[str], str | None]:
    """Names that only one side has, or whose tensors are not the same bits, and the content hash if there are none."""
    different, digests = [], {}
    for name in {**wanted, **found}:
        digest = hashlib.sha256()
        if name in wanted and name in found and same_bits(wanted[name], found[name], digest.update):
            digests[name] = digest.digest()
        else:
            different.append(name)
    return different, None if different else combine(found, digests)
