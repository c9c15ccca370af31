# SPDX-License-Identifier: Apache-2.0
"""Open whatever a path leads to: a file in any container, a sharded index, a folder. The content decides."""

from dataclasses import dataclass, replace
from pathlib import Path

from converters.containers.ckpt_file import is_ckpt, read_ckpt, read_texts
from converters.containers.safetensors_file import read_safetensors
from converters.containers.torch_legacy import is_torch_legacy, read_torch_legacy
from converters.containers.torch_zip import read_torch_zip
from converters.errors import ConversionError
from converters.stream import TensorEntry, map_file, names_of, read_json

# What diffusers and transformers write into a folder, best first, and where it lies in a pipeline's folder.
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".ckpt")
SUBFOLDERS = {
    "latte": ("transformer",),
    "vae": ("vae", "vae_temporal_decoder"),
    "t5": ("text_encoder",),
}
WRAPPERS = ("ema", "model", "state_dict")  # keys under which training scripts save the weights, best first
# Of DistributedDataParallel, torch.compile, MindSpore's train cells.
PREFIXES = ("module.", "_orig_mod.", "network.")
# First words under which MindSpore's optimisers keep a second copy of every parameter's name.
MOMENTS = """
    adam_m adam_v moment moment1 moment2 moments exp_avg exp_avg_sq max_exp_avg_sq exp_inf vhat lamb_m lamb_v
    accum accum_update accu_grads mean_grad mean_square momentum_buf stat prev step_size vel grad_accumulated_
"""
EXTRAS = ".extras.safetensors"  # what the layout of a file has no place for lies in a file beside it


@dataclass(frozen=True)
class Source:
    """What a path led to: the saved object with entries for tensors, metadata, and the files it lies in."""

    path: Path
    tree: object
    metadata: dict[str, str]
    files: tuple[Path, ...]
    container: str
    is_folder: bool = False
    notes: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """The file's name without what tells the container."""
        return self.path.name.removesuffix(".index.json").rpartition(".")[0] or self.path.name

    def beside(self, name: str) -> Path:
        return self.path.with_name(name)


def open_source(path: Path, family: str | None = None) -> Source:
    """Open a file, a sharded index or a folder; `family` tells where to look in a pipeline's folder.

    Raises ConversionError for whatever is damaged, unknown or absent.
    """
    if path.is_dir():
        file, others = _weights_in(path, family)
        found = open_source(file)
        notes = (f"took {file.name}, left {names_of(others)}",) if others else ()
        return replace(found, is_folder=True, notes=(*found.notes, *notes))
    if not path.exists():
        raise ConversionError(f"{path} does not exist", remedy="check the path")
    if not path.is_file():
        raise ConversionError(f"{path} is no regular file", remedy="save the weights to a file first")
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    start = map_file(path)[:4096].tobytes()
    if start[:4] == b"PK\x03\x04":
        return Source(path, read_torch_zip(path), {}, (path,), "torch zip")
    if path.suffix == ".ckpt" and is_ckpt(start):  # first: its ninth byte may be anything
        return _open_ckpt(path)
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        entries, metadata = read_safetensors(path)
        return Source(path, entries, metadata, (path,), "safetensors")
    if is_torch_legacy(start):
        return Source(path, read_torch_legacy(path), {}, (path,), "torch legacy")
    if is_ckpt(start):
        return _open_ckpt(path)
    raise ConversionError(
        f"{path} is neither a torch file nor a safetensors file nor a MindSpore ckpt",
        got=f"a file that begins with {start[:16]!r}",
        expected=".pt, .pth, .bin, .safetensors, .safetensors.index.json, .ckpt or a folder",
        remedy="if it should be one, the download was cut or is an error page: fetch it again",
    )


def _open_ckpt(path: Path) -> Source:
    """Without what training states hold beside the weights: numbers, words, the optimiser's moments."""
    entries = read_ckpt(path)
    left = [
        name
        for name, entry in entries.items()
        if entry.shape == () or (entry.shape == (1,) and "." not in name)  # global_step is a list of one
    ]
    moments = set(MOMENTS.split())
    for name in entries:
        first, _, rest = name.partition(".")
        if first in moments and rest in entries:
            left.append(name)
    tree = {name: entry for name, entry in entries.items() if name not in set(left)}
    left += read_texts(path)
    notes = (f"left {names_of(left)} of the training state",) if left else ()
    return Source(path, tree, {}, (path,), "MindSpore ckpt", notes=notes)


def _weights_in(folder: Path, family: str | None) -> tuple[Path, list[str]]:
    """The weight file of a folder, and the names of other ones beside it."""
    inside = [name for key, names in SUBFOLDERS.items() if family in (None, key) for name in names]
    found = []
    for place in (folder, *(folder / name for name in inside)):
        here = [place / f"{stem}{ending}" for stem in STEMS for ending in ENDINGS]
        here = [file for file in here if file.is_file()]
        if here:
            found.append((here[0], [file.name for file in here[1:]]))
        if found and place == folder:
            break
    if len(found) == 1:
        return found[0]
    if found:
        raise ConversionError(
            f"folder {folder} holds several sets of weights",
            got=names_of(str(file.relative_to(folder)) for file, _ in found),
            remedy="pass one of them as --source",
        )
    raise ConversionError(
        f"no weights in folder {folder}",
        got=names_of(sorted(p.name for p in folder.iterdir())) or "an empty folder",
        expected=f"{' or '.join(STEMS)} with {' or '.join(ENDINGS)}, there or in {' or '.join(inside)}",
        remedy="pass the weight file itself as --source",
    )


def _open_shards(index: Path) -> Source:
    """All tensors of an index; each must lie in exactly the shard that the index names, beside the index."""
    content = read_json(index)
    weight_map, metadata = content.get("weight_map"), content.get("metadata", {})
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ConversionError(f"{index} has no usable weight_map", expected="tensor name -> shard file name")
    entries, files = {}, [index]
    for shard in sorted(set(weight_map.values())):
        if (
            shard in ("", ".", "..")
            or "/" in shard
            or "\\" in shard
            or "\0" in shard
            or shard.endswith(".json")
        ):
            raise ConversionError(
                f"{index} names a shard outside its folder", got=repr(shard), expected="a file name"
            )
        if (index.parent / shard).is_dir():
            raise ConversionError(f"{index}: shard {shard} is a folder", expected="a file")
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
    metadata = metadata if isinstance(metadata, dict) else {}
    words = {key: value for key, value in metadata.items() if isinstance(value, str)}
    return Source(
        index,
        {name: entries[name] for name in weight_map},
        words,
        tuple(files),
        f"sharded, {len(files) - 1} files",
    )


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
        others = [str(name)[:100] for name in tree if name != key]
        notes += [f"took {key!r}, left {names_of(others)}"] if others else []
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
            got=names_of(str(name)[:100] for name in strange),
            expected=f"a dict of tensors, possibly under {' or '.join(WRAPPERS)}",
        )
    entries = dict(tree)
    averaged = {name for name in entries if name.startswith("ema.")}
    if averaged:  # MindSpore's training states keep both sets in one flat file
        rest = {name for name in entries if not name.startswith(("ema.", "swap."))}
        if which != "ema" and not rest:
            raise ConversionError(f"{path} has no {which!r} weights", got="ema", remedy="--which ema")
        lone = {name for name in rest if f"ema.{name}" not in averaged}  # frozen: no average is kept of them
        taken = averaged | lone if which == "ema" else rest
        if rest:
            notes.append(f"took the {'ema' if which == 'ema' else 'raw'} weights, left the other set")
        if lone and which == "ema":
            notes.append(f"took {names_of(sorted(lone))} as they are: no average is kept of them")
        entries = {name.removeprefix("ema."): entries[name] for name in tree if name in taken}
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in entries)), None):
        entries = {name.removeprefix(prefix): entry for name, entry in entries.items()}
    return entries, notes
