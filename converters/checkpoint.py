# SPDX-License-Identifier: Apache-2.0
"""From a path to our names and constructor arguments: container, wrapper, layout, configuration."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from converters.containers.safetensors_file import read_safetensors
from converters.containers.source import EXTRAS, Source, open_source, unwrap
from converters.containers.target import config_beside
from converters.errors import ConversionError
from converters.layouts import FAMILIES, choose
from converters.layouts.base import Layout
from converters.stream import FLOATING, Entries, names_of, parse_json, read_json


class Tensors(Mapping[str, np.ndarray]):
    """Our name -> array, read from the mapped file at each access; bfloat16 arrives as float32 (exact)."""

    def __init__(self, entries: Entries):
        self.entries = entries

    def __getitem__(self, name: str) -> np.ndarray:
        return self.entries[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"Tensors({len(self)} tensors: {names_of(self)})"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Our name -> shape, without reading data."""
        return {name: entry.shape for name, entry in self.entries.items()}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in our names; unpacks as `tensors, config = load(path)`.

    tensors  our name -> array, lazily read
    config   exactly the constructor arguments of `model`
    model    class name: "Latte", "LatteT2V", "AutoencoderKL", ...
    layout   name of the layout the file was in
    dtypes   our name -> dtype word in the file (F32, BF16 ...)
    notes    what a user should know: dropped names, ignored keys, fallbacks
    files    every file it was read from
    extras   tensors of the file that are no part of the network, kept for the way back
    metadata words that the file itself carries (safetensors)
    sha256   content hash that this package wrote into the file or beside it
    """

    tensors: Tensors
    config: dict[str, object]
    model: str
    layout: str
    dtypes: dict[str, str]
    notes: list[str] = field(default_factory=list)
    files: tuple[Path, ...] = ()
    extras: Entries = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    sha256: str | None = None

    def __iter__(self) -> Iterator:
        return iter((self.tensors, self.config))


def load(
    path: str | Path,
    which: str = "ema",
    layout: str | None = None,
    overrides: Mapping[str, object] | None = None,
    family: str = "latte",
) -> Checkpoint:
    """Open a published checkpoint (or one of ours) under our names.

    path       file (.pt .pth .bin .safetensors .ckpt), sharded index, diffusers or transformers folder
    which      "ema" (falls back to what there is, with a note), "model" or "state_dict"
    layout     name of a layout when detection is ambiguous: see `converters.layouts`, or "ours"
    overrides  constructor arguments that win over everything found
    family     "latte" (Latte, LatteT2V), "vae" or "t5": what kind of model is expected
    Raises ConversionError; names and shapes that do not fit are listed in one error.
    """
    source = open_source(Path(path), family)
    entries, notes = unwrap(source.tree, which, source.path)
    notes = [*source.notes, *notes]
    shapes = {name: entry.shape for name, entry in entries.items()}
    side, origin = find_config(source)
    found = _layout_of(source, shapes, layout, {**side, **(overrides or {})}, family)

    config, more = found.model.arguments(side, origin)
    wins, _ = found.model.arguments(overrides or {}, "--set", foreign=False)
    notes += more
    origin_of_all = " and ".join(filter(None, (origin, wins and "--set")))
    if guessed := found.assumed(shapes, {**config, **wins}):
        words = ", ".join(f"{key}={value!r}" for key, value in guessed.items())
        notes.append(f"assumed {words}, as in published nets of this size: no tensor shows it, --set does")
    config = found.resolve(shapes, {**config, **wins}, origin=origin_of_all)
    tensors, extras, more = found.to_ours(entries, config)
    if whole := [f"{name} ({entry.dtype})" for name, entry in tensors.items() if entry.dtype not in FLOATING]:
        raise ConversionError(
            f"{found.model.name} has no weights of whole numbers",
            got=names_of(whole),
            expected=" or ".join(FLOATING),
            remedy="use the file as it was before it was quantised",
        )
    notes += more
    stored = hash_of(source)
    beside, files = _extras_beside(source, FAMILIES[family].ours[found.model.name], config, stored)
    extras, files = {**beside, **extras}, (*source.files, *files)
    if extras:
        notes.append(f"kept {names_of(extras)}: no part of the network")
    if origin and origin != _inside(source):
        notes.insert(0, f"configuration from {origin}")
    elif origin and not source.is_folder:
        notes += _overruled(source, side)
    return Checkpoint(
        tensors=Tensors(tensors),
        config=config,
        model=found.model.name,
        layout=found.name,
        dtypes={name: entry.dtype for name, entry in tensors.items()},
        notes=notes,
        files=files,
        extras=extras,
        metadata=source.metadata,
        sha256=stored,
    )


def _layout_of(source: Source, shapes: dict, wanted: str | None, side: dict, family: str) -> Layout:
    """The layout: what the file's metadata say, the wanted one, or what names and shapes tell."""
    metadata = source.metadata
    if not _written_by_us(metadata):
        if wanted == "ours" and side.get("_layout") != "ours":
            raise ConversionError(
                f"{source.path} was not written by this package",
                got=f"metadata keys {sorted(metadata)}",
                expected="model, config and layout",
                remedy="leave --from out",
            )
        return choose(shapes, None if wanted == "ours" else wanted, side, family)
    model, written = metadata["model"], metadata["layout"]
    mine = FAMILIES[family]
    if model not in {layout.model.name for layout in [*mine.layouts.values(), *mine.ours.values()]}:
        other = next((f for f in FAMILIES.values() if model in f.ours), None)
        raise ConversionError(
            f"metadata of {source.path.name}: unknown model"
            if other is None
            else f"{source.path} holds a {model}",
            got=model,
            expected=" or ".join(mine.ours),
            remedy=other and f"converters/{other.command}",
        )
    if wanted == "ours" != written:
        raise ConversionError(f"{source.path} is in layout {written!r}", remedy="leave --from out")
    if wanted not in (None, written):
        return choose(shapes, wanted, side, family)
    found = mine.named(written, model)
    if found.initial:
        raise ConversionError(
            f"metadata of {source.path.name}: this package writes no {written}",
            remedy="name the layout that it is in with --from",
        )
    return found


def _written_by_us(metadata: Mapping[str, str]) -> bool:
    return {"model", "config", "layout"} <= metadata.keys()


def _inside(source: Source) -> str:
    return f"metadata of {source.path.name}"


def _overruled(source: Source, inside: dict) -> list[str]:
    """A note if somebody changed the configuration beside a file that carries its own."""
    place = config_beside(source.path)
    with contextlib.suppress(ConversionError, OSError):
        told = {key: value for key, value in read_json(place).items() if not key.startswith("_")}
        if told != inside:
            return [
                f"{place.name} says something else than the file itself, which counts: change it with --set"
            ]
    return []


def find_config(source: Source) -> tuple[dict, str]:
    """The configuration that comes with the weights, and where it was found.

    A file's own metadata say it, else <file name>.json, <stem>.json or config.json beside it. In a folder
    config.json does, unless it is as we wrote it: then the metadata, which say more.
    """
    inside, card, origin = None, None, _inside(source)
    if _written_by_us(source.metadata):
        inside = parse_json(source.metadata["config"].encode("utf-8", "surrogatepass"), origin)
        family = next((f for f in FAMILIES.values() if source.metadata["model"] in f.ours), None)
        with contextlib.suppress(ConversionError, AttributeError, KeyError, TypeError, ValueError):
            card = family.named(source.metadata["layout"], source.metadata["model"]).card(inside)
    places = [source.beside("config.json")]
    if not source.is_folder:
        places[:0] = [source.beside(f"{source.path.name}.json"), source.beside(f"{source.stem}.json")]
    found = next((place for place in places if place.is_file() and place != source.path), None)
    beside = read_json(found) if found and (source.is_folder or not inside) else {}
    if inside is not None and (not beside or beside == card):
        return inside, origin
    # A process killed between two renames leaves the new weights with the old configuration.
    written = beside.get("_weights")
    size = written.get("bytes") if isinstance(written, dict) else None
    if size is not None and size != source.path.stat().st_size:
        raise ConversionError(
            f"{found} does not belong to {source.path}",
            got=f"weights of {source.path.stat().st_size} bytes",
            expected=f"{size} bytes",
            remedy="convert again with --force, or remove it and pass --set",
        )
    return beside, str(found) if found else ""


def _extras_beside(
    source: Source, home: Layout, config: dict, stored: str | None
) -> tuple[Entries, tuple[Path, ...]]:
    """What stands in a file of extras, and that file. It is found by its name alone, so what it holds is checked.

    stored  content hash of the weights, if they tell it
    """
    for place in (source.beside(source.path.name + EXTRAS), source.beside(source.stem + EXTRAS)):
        if place.is_file() and place != source.path:
            extras, words = read_safetensors(place)
            rest = replace(home, rules=tuple(rule for rule in home.rules if rule.extra))
            shapes = {name: entry.shape for name, entry in extras.items()}
            if wrong := rest.differences(shapes, config, {}, "ours"):
                raise ConversionError(
                    f"{place} does not belong to {source.path}",
                    got="; ".join(f"{kind}: {names_of(lines)}" for kind, lines in wrong.items()),
                    remedy="remove or rename it",
                )
            if stored is not None and words.get("of") not in (None, stored):
                raise ConversionError(
                    f"{place} does not belong to {source.path}",
                    got=f"tensors that stood beside weights with content hash {words['of']}",
                    expected=stored,
                    remedy="remove or rename it",
                )
            return extras, (place,)
    return {}, ()


def hash_of(source: Source) -> str | None:
    """The content hash that this package wrote into the file or beside it."""
    if _written_by_us(source.metadata):
        return source.metadata.get("sha256")
    beside = config_beside(source.path)
    written = read_json(beside).get("_weights") if not source.is_folder and beside.is_file() else None
    found = written.get("sha256") if isinstance(written, dict) else None
    return found if isinstance(found, str) else None
