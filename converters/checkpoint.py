# SPDX-License-Identifier: Apache-2.0
"""From a path to our names and constructor arguments: container, wrapper, layout, configuration."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from converters import layouts
from converters.errors import ConversionError
from converters.stream import Entries, TensorEntry, map_file, names_of, parse_json, read_safetensors
from converters.torch_zip import read_torch_zip

# What diffusers writes into a folder, best first.
FOLDER_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
)
WRAPPERS = ("ema", "model", "state_dict")  # keys under which training scripts save the weights, best first
PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


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
    model    "Latte" or "LatteT2V"
    layout   name of the layout the file was in
    dtypes   our name -> dtype word in the file (F32, BF16 ...)
    notes    what a user should know: dropped names, ignored keys, fallbacks
    """

    tensors: Tensors
    config: dict[str, object]
    model: str
    layout: str
    dtypes: dict[str, str]
    notes: list[str] = field(default_factory=list)
    files: tuple[Path, ...] = ()

    def __iter__(self) -> Iterator:
        return iter((self.tensors, self.config))


def load(
    path: str | Path,
    which: str = "ema",
    layout: str | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Checkpoint:
    """Open a published checkpoint (or one of ours) under our names.

    path       file (.pt .pth .bin .safetensors), sharded index, diffusers folder
    which      "ema" (falls back to what there is, with a note), "model" or "state_dict"
    layout     name of a layout when detection is ambiguous: a key of `converters.layouts.LAYOUTS`, or "ours"
    overrides  constructor arguments that win over everything found
    Raises ConversionError; names and shapes that do not fit are listed in one error.
    """
    source = open_source(Path(path))
    entries, notes = unwrap(source.tree, which, source.path)
    shapes = {name: entry.shape for name, entry in entries.items()}

    is_ours = "model" in source.metadata and "config" in source.metadata
    if layout == "ours" and not is_ours:
        raise ConversionError(
            f"{source.path} was not written by this package",
            got=f"metadata keys {sorted(source.metadata)}",
            expected="model and config",
            remedy="leave --from out",
        )
    side, origin = _find_config(source) if not is_ours else _our_config(source)
    given = {**side, **(overrides or {})}
    if is_ours and layout in (None, "ours"):
        found = layouts.OURS[source.metadata["model"]]
    else:
        scale_is_given = "temporal_interpolation_scale" in given
        found = layouts.choose(shapes, layout, side.get("_class_name"), scale_is_given)

    config, more = found.model.arguments(side, origin)
    wins, _ = found.model.arguments(overrides or {}, "--set", foreign=False)
    notes += more
    config = found.resolve(
        shapes, {**config, **wins}, origin=" and ".join(filter(None, (origin, wins and "--set")))
    )
    renamed, dropped = found.translate(entries, config)
    notes += [f"dropped {name}: nothing in {found.model.name} uses it" for name in dropped]
    if origin and not is_ours:
        notes.insert(0, f"configuration from {origin}")
    return Checkpoint(
        tensors=Tensors(renamed),
        config=config,
        model=found.model.name,
        layout=found.name,
        dtypes={name: entry.dtype for name, entry in renamed.items()},
        notes=notes,
        files=source.files,
    )


# ---------------------------------------------------------------------------------------------- containers


@dataclass(frozen=True)
class Source:
    """What a path led to: the saved object with entries for tensors, metadata, and the files it lies in."""

    path: Path
    tree: object
    metadata: dict[str, str]
    files: tuple[Path, ...]


def open_source(path: Path) -> Source:
    """Open a file, a sharded index or a diffusers folder; the content decides, not the ending."""
    if path.is_dir():
        return open_source(_weights_in(path))
    if not path.is_file():
        raise ConversionError(f"{path} does not exist", remedy="check the path")
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    start = map_file(path)[:16].tobytes()
    if start[:4] == b"PK\x03\x04":
        return Source(path, read_torch_zip(path), {}, (path,))
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        entries, metadata = read_safetensors(path)
        return Source(path, entries, metadata, (path,))
    if start[:1] == b"\x80":
        raise ConversionError(
            f"{path} is in torch's old format (before torch 1.6), which is not read here",
            remedy="re-save it with torch: torch.save(torch.load(PATH, weights_only=True), NEW_PATH)",
        )
    raise ConversionError(
        f"{path} is neither a torch zip file nor a safetensors file",
        got=f"a file that begins with {start!r}",
        expected=".pt, .pth, .bin, .safetensors, .safetensors.index.json or a diffusers folder",
        remedy="if it should be one, the download was cut or is an error page: fetch it again",
    )


def _weights_in(folder: Path) -> Path:
    for place in (folder, folder / "transformer"):
        for name in FOLDER_FILES:
            if (place / name).is_file():
                return place / name
    raise ConversionError(
        f"no weights in folder {folder}",
        got=names_of(sorted(p.name for p in folder.iterdir())) or "an empty folder",
        expected=f"{FOLDER_FILES[0]} (or .index.json, .bin), there or in transformer/",
        remedy="pass the weight file itself as --source",
    )


def _open_shards(index: Path) -> Source:
    """All tensors of an index; each must lie in exactly the shard that the index names, beside the index."""
    weight_map = parse_json(index.read_bytes(), str(index)).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ConversionError(f"{index} has no usable weight_map", expected="tensor name -> shard file name")
    entries, files = {}, [index]
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or shard.endswith(".index.json"):
            raise ConversionError(
                f"{index} names a shard outside its folder", got=shard, expected="a file name"
            )
        part = open_source(index.parent / shard)
        files += part.files
        found, _ = unwrap(part.tree, "state_dict", part.path)
        listed = {name for name, place in weight_map.items() if place == shard}
        if listed != set(found):
            raise ConversionError(
                f"{index} and {shard} disagree",
                got=f"{names_of(sorted(set(found) - listed)) or 'nothing'} only in the shard, "
                f"{names_of(sorted(listed - set(found))) or 'nothing'} only in the index",
                remedy="fetch index and shards again, from the same revision",
            )
        entries |= found
    return Source(index, {name: entries[name] for name in weight_map}, {}, tuple(files))


def unwrap(tree: object, which: str, path: Path) -> tuple[dict[str, TensorEntry], list[str]]:
    """The state dict in what a training script saved, without wrapper keys and prefixes; plus notes."""
    if which not in WRAPPERS:
        raise ConversionError(f"unknown weights {which!r}", expected=" or ".join(WRAPPERS))
    notes: list[str] = []
    for _ in range(3):  # "state_dict" may hold {"ema": ..., "model": ...} in turn
        inner = [key for key in WRAPPERS if isinstance(tree, dict) and isinstance(tree.get(key), dict)]
        if not inner:
            break
        if which in inner or inner == ["state_dict"]:
            key = which if which in inner else "state_dict"
        elif which == "ema":
            key = inner[0]
            notes.append(f"the file has no ema weights: took {key!r}")
        else:
            raise ConversionError(
                f"{path} has no {which!r} weights", got=" and ".join(inner), remedy=f"--which {inner[0]}"
            )
        others = [str(name) for name in tree if name != key]
        notes += [f"took {key!r}, left {', '.join(others)}"] if others else []
        tree = tree[key]

    if not isinstance(tree, dict) or not tree:
        raise ConversionError(
            f"{path} holds no weights", got=type(tree).__name__, expected="a dict of tensors"
        )
    strange = [
        name for name, value in tree.items() if not (isinstance(value, TensorEntry) and isinstance(name, str))
    ]
    if strange:
        raise ConversionError(
            f"{path} holds things that are not tensors",
            got=names_of(strange),
            expected=f"a dict of tensors, possibly under {' or '.join(WRAPPERS)}",
        )
    entries = dict(tree)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in entries)), None):
        entries = {name.removeprefix(prefix): entry for name, entry in entries.items()}
    return entries, notes


# ------------------------------------------------------------------------------------------- configuration


def _our_config(source: Source) -> tuple[dict, str]:
    origin = f"metadata of {source.path.name}"
    if source.metadata["model"] not in layouts.OURS:
        raise ConversionError(
            f"{origin}: unknown model", got=source.metadata["model"], expected=" or ".join(layouts.OURS)
        )
    return parse_json(source.metadata["config"].encode(), origin), origin


def _find_config(source: Source) -> tuple[dict, str]:
    """config.json beside the weights, else <file stem>.json, else nothing."""
    for place in (source.path.with_name("config.json"), source.path.with_suffix(".json")):
        if place.is_file() and place != source.path:
            return parse_json(place.read_bytes(), str(place)), str(place)
    return {}, ""


def describe(config: Mapping[str, object]) -> str:
    """The configuration as one line of JSON."""
    return json.dumps(config)
