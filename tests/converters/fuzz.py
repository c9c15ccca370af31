# SPDX-License-Identifier: Apache-2.0
"""Damaged, odd and hostile inputs through the converters' commands; every case is judged by the same rules.

  python tests/converters/fuzz.py --cases 10000 --processes 200 --seed 0 --jobs 2 --report report.json
  python tests/converters/fuzz.py --replay 0:1234 --keep /tmp/case

A case is a small checkpoint of the Latte family, a VAE or T5 in some container, one mutation, one command with
options. It is a function of (seed, index), so that a number is enough to see it again. Most cases call `main` in
a guarded worker: limited memory, an alarm, an audit hook that notes whatever would be execution of code or a
write outside of the case's folder, and a watchdog in this process. `--processes` more run as users run them.
What a command wrote is compared with what torch, safetensors and protobuf read in the mutated input.
"""

import argparse
import contextlib
import gc
import hashlib
import importlib
import importlib.util
import io
import itertools
import json
import math
import os
import pickle
import re
import resource
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # our own folder is no place to import from
    sys.path[:] = [
        str(ROOT),
        *(place for place in sys.path if Path(place).resolve() != Path(__file__).parent),
    ]

CPU_LIMIT = 5.0  # seconds of processor time; inputs are below 2 MB, and the others sit on the same machine
HANG = 20  # seconds until the alarm; the watchdog kills ten seconds later
# Resident bytes above the worker's own: 16 parts of `stream.PART`. A cast holds about ten at once (float32
# words of 8 Mi bfloat16 numbers, their rounding, flags of infinity), a comparison two more.
MEMORY = 256 << 20
PER_BYTE = 200  # and so much for each byte of input: an empty dict of a pickle takes one byte there, 64 here
ADDRESSES = 3 << 30  # bytes of address space above the worker's own, so that a mistake stays harmless
MESSAGE = 20_100  # letters of an error: `errors.printable` stops there
PROCESSES = 1_000_000  # cases from this index on run as real processes

COMMANDS = {name: f"converters/{name}_converter.py" for name in ("latte", "vae", "t5")}
INSPECT = "converters/inspect_checkpoint.py"
ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", "")

# dtype word -> bytes of a number, torch's storage, MindSpore's name
WORDS = {
    "F64": (8, "DoubleStorage", "Float64"),
    "F32": (4, "FloatStorage", "Float32"),
    "F16": (2, "HalfStorage", "Float16"),
    "BF16": (2, "BFloat16Storage", "BFloat16"),
    "I64": (8, "LongStorage", "Int64"),
    "I32": (4, "IntStorage", "Int32"),
    "I16": (2, "ShortStorage", "Int16"),
    "I8": (1, "CharStorage", "Int8"),
    "U8": (1, "ByteStorage", "UInt8"),
    "BOOL": (1, "BoolStorage", "Bool"),
}
FLOATS = ("F64", "F32", "F16", "BF16")


class Tensor(NamedTuple):
    """What every library agrees upon."""

    word: str
    shape: tuple[int, ...]
    raw: bytes


Tensors = list[tuple[str, Tensor]]  # a list: hostile files name things twice


# ------------------------------------------------------------------------------- readers that are not ours


def view(path: Path) -> dict:
    """A file or index as torch, the safetensors library or protobuf read it: dicts with `Tensor` as leaves.

    Raises whatever they raise.
    """
    if path.name.endswith(".index.json"):
        places = json.loads(path.read_bytes())["weight_map"]
        shards = {shard: view(path.parent / shard) for shard in sorted(set(places.values()))}
        return {name: shards[shard][name] for name, shard in places.items()}
    with path.open("rb") as file:
        start = file.read(16)
    if start[:4] == b"PK\x03\x04" or start[2:4] == b"\x8a\x0a":
        import torch

        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols above 2
            return _leaves(torch.load(path, weights_only=True, map_location="cpu"))
    if start[:1] == b"\x0a" and start[8:9] != b"{":
        return _read_ckpt(path)
    import safetensors.torch

    return _leaves(safetensors.torch.load(path.read_bytes()))


def _leaves(thing: object, depth: int = 0) -> object:
    import torch

    if isinstance(thing, torch.Tensor):
        words = {getattr(torch, name): word for word, name in zip(WORDS, TORCH_DTYPES, strict=True)}
        if thing.layout is not torch.strided or thing.is_meta or thing.dtype not in words or thing.numel() > 1 << 26:
            return None
        raw = thing.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return Tensor(words[thing.dtype], tuple(thing.shape), raw)
    if isinstance(thing, dict) and depth < 4:
        return {key: _leaves(value, depth + 1) for key, value in thing.items()}
    return None


TORCH_DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
]


def _ckpt_message():
    """MindSpore's messages, given to the protobuf library from their description."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="fuzz.proto", package="fuzz", syntax="proto2")
    # name -> (field, number, label, type): 1 optional, 3 repeated; 3 int64, 9 string, 11 message, 12 bytes
    for name, fields in {
        "Proto": [("dims", 1, 3, 3), ("type", 2, 1, 9), ("content", 3, 1, 12)],
        "Value": [("tag", 1, 1, 9), ("tensor", 2, 1, 11)],
        "Checkpoint": [("value", 1, 3, 11)],
    }.items():
        message = file.message_type.add(name=name)
        for field_name, number, label, kind in fields:
            inner = {"tensor": ".fuzz.Proto", "value": ".fuzz.Value"}.get(field_name)
            message.field.add(name=field_name, number=number, label=label, type=kind, type_name=inner)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("fuzz.Checkpoint"))


def _read_ckpt(path: Path) -> dict[str, Tensor]:
    data = path.read_bytes()
    if data[-17:-10] == b"crc_num":
        data = data[:-17]
    words = {name: word for word, (_, _, name) in WORDS.items()}
    found: dict[str, Tensor] = {}
    for value in _ckpt_message().FromString(data).value:
        if (word := words.get(value.tensor.type)) is None:
            continue
        shape = tuple(value.tensor.dims)
        before = found[value.tag].raw if value.tag in found else b""
        found[value.tag] = Tensor(word, () if shape == (0,) else shape, before + value.tensor.content)
    return found


def weights_of(tree: object, which: str) -> dict[str, Tensor]:
    """The state dict that `which` asks for, without what training loops put before the names."""
    for _ in range(3):
        keys = [key for key in (which, "state_dict", "ema", "model") if isinstance(tree.get(key), dict)]
        if not keys:
            break
        tree = tree[keys[0]]
    found = {name: tensor for name, tensor in tree.items() if isinstance(tensor, Tensor)}
    averaged = {name[4:]: tensor for name, tensor in found.items() if name.startswith("ema.")}
    if averaged:
        raw = {name: t for name, t in found.items() if not name.startswith(("ema.", "swap."))}
        found = averaged if which == "ema" or not raw else raw
    while found:
        for prefix in ("module.", "_orig_mod.", "network."):
            if all(name.startswith(prefix) for name in found):
                found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
                break
        else:
            break
    return found


# ------------------------------------------------------------------------ writers that write anything at all


def word(text: str | bytes) -> bytes:
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw


def number(n: int) -> bytes:
    if -(1 << 31) <= n < 1 << 31:
        return pickle.BININT + struct.pack("<i", n)
    raw = pickle.encode_long(n)
    return (
        pickle.LONG1 + bytes([len(raw)]) + raw
        if len(raw) < 256
        else pickle.LONG4 + struct.pack("<i", len(raw)) + raw
    )


def tup(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def named(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode("utf-8", "surrogatepass")


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + tup(*arguments) + pickle.REDUCE


def entries(items: Sequence[tuple[bytes, bytes]]) -> bytes:
    return pickle.EMPTY_DICT + pickle.MARK + b"".join(key + value for key, value in items) + pickle.SETITEMS


def tensor_program(
    key: str, kind: str, shape: Sequence[int], stride: Sequence[int], count: int, offset: int = 0
) -> bytes:
    """A tensor as torch.save writes it, whatever the numbers are."""
    storage = tup(word("storage"), named("torch", kind), word(key), word("cpu"), number(count))
    return call(
        "torch._utils",
        "_rebuild_tensor_v2",
        storage + pickle.BINPERSID,
        number(offset),
        tup(*map(number, shape)),
        tup(*map(number, stride)),
        pickle.NEWFALSE,
        call("collections", "OrderedDict"),
    )


def strides(shape: Sequence[int]) -> list[int]:
    steps, step = [], 1
    for n in reversed(shape):
        steps.insert(0, step)
        step *= max(n, 1)
    return steps


def state_program(tensors: Tensors, first: int = 0) -> tuple[bytes, dict[str, tuple[int, bytes]]]:
    """The pickle of a state dict without its STOP, and its storages: key -> (count, bytes)."""
    items, storages = [], {}
    for key, (name, tensor) in enumerate(tensors, first):
        size, kind, _ = WORDS[tensor.word]
        count = len(tensor.raw) // size
        program = tensor_program(str(key), kind, tensor.shape, strides(tensor.shape), count)
        items.append((word(name), program))
        storages[str(key)] = count, tensor.raw
    return entries(items), storages


def zip_bytes(parts: Sequence[tuple[str | zipfile.ZipInfo, bytes]], compression: int = 0) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that occur twice
        for name, data in parts:
            archive.writestr(
                name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name), data, compression
            )
    return file.getvalue()


def torch_zip(program: bytes, storages: Mapping[str, tuple[int, bytes]]) -> bytes:
    parts = [
        ("archive/data.pkl", pickle.PROTO + b"\x02" + program + pickle.STOP),
        ("archive/byteorder", b"little"),
    ]
    parts += [(f"archive/data/{key}", raw) for key, (_, raw) in storages.items()]
    return zip_bytes([*parts, ("archive/version", b"3\n")])


def torch_legacy(program: bytes, storages: Mapping[str, tuple[int, bytes]]) -> bytes:
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, facts)]
    tail = [struct.pack("<q", count) + raw for count, raw in storages.values()]
    keys = pickle.dumps(list(storages), 2)
    return b"".join([*head, pickle.PROTO + b"\x02" + program + pickle.STOP, keys, *tail])


def safetensors_bytes(tensors: Tensors, metadata: object = None) -> bytes:
    words, end = [], 0
    for name, tensor in tensors:
        info = {
            "dtype": tensor.word,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + len(tensor.raw)],
        }
        words.append(f"{json.dumps(name)}:{json.dumps(info)}")
        end += len(tensor.raw)
    if metadata is not None:
        words.insert(0, f'"__metadata__":{json.dumps(metadata)}')
    return header_bytes("{" + ",".join(words) + "}") + b"".join(tensor.raw for _, tensor in tensors)


def header_bytes(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


def proto(field_number: int, data: bytes | int) -> bytes:
    """A field of a protobuf message."""
    if isinstance(data, int):
        return varint(field_number << 3) + varint(data & (1 << 64) - 1)
    return varint(field_number << 3 | 2) + varint(len(data)) + data


def value_bytes(name: str | bytes, tensor: Tensor) -> bytes:
    dims = b"".join(proto(1, n) for n in tensor.shape or (0,))
    inner = dims + proto(2, WORDS[tensor.word][2].encode()) + proto(3, tensor.raw)
    tag = name.encode("utf-8", "surrogatepass") if isinstance(name, str) else name
    return proto(1, proto(1, tag) + proto(2, inner))


def with_crc(data: bytes) -> bytes:
    return data + b"crc_num" + zlib.crc32(data).to_bytes(10, "big")


def ckpt_bytes(tensors: Tensors, crc: bool = True) -> bytes:
    data = b"".join(value_bytes(name, tensor) for name, tensor in tensors)
    return with_crc(data) if crc else data


def store(container: str, tensors: Tensors, wrapper: str | None = None, metadata: object = None) -> bytes:
    """A file in a container, with names and shapes that no library would write."""
    if container == "safetensors":
        return safetensors_bytes(tensors, metadata)
    if container == "ckpt":
        return ckpt_bytes(tensors)
    program, storages = state_program(tensors)
    if wrapper:
        program = entries([(word(wrapper), program)])
    return (torch_zip if container == "zip" else torch_legacy)(program, storages)


# --------------------------------------------------------------------------------------------------- seeds


@dataclass
class Seed:
    """A checkpoint as users have it; paths are relative to its folder.

    container  of the weights: zip, legacy, safetensors, ckpt or shards
    weights    the weight file, or the index of shards
    settings   what --set has to say, layout what --from has to say
    """

    name: str
    family: str
    container: str
    source: str
    weights: str
    settings: tuple[str, ...] = ()
    layout: str | None = None
    wrapper: str | None = None
    folder: Path = Path()
    _clean: dict = field(default_factory=dict)
    _spots: dict = field(default_factory=dict)

    def tensors(self, which: str = "ema") -> dict[str, Tensor]:
        if which not in self._clean:
            self._clean[which] = weights_of(view(self.folder / self.weights), which)
        return self._clean[which]

    def files(self) -> list[str]:
        return sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file())

    def spots(self, which: str) -> dict[str, tuple[str, int]]:
        """tensor -> (file, first byte): where its numbers lie."""
        if which not in self._spots:
            data = {
                name: (self.folder / name).read_bytes() for name in self.files() if not name.endswith(".json")
            }
            self._spots[which] = {
                name: (file, at)
                for name, tensor in self.tensors(which).items()
                for file, raw in data.items()
                if len(tensor.raw) and (at := raw.find(tensor.raw)) >= 0
            }
        return self._spots[which]

    def tensor_bytes(self, file: str) -> np.ndarray:
        """Which bytes of a file are numbers of tensors."""
        mask = np.zeros((self.folder / file).stat().st_size, bool)
        for which in ("ema", "model"):
            for name, (place, at) in self.spots(which).items():
                if place == file:
                    mask[at : at + len(self.tensors(which)[name].raw)] = True
        return mask


def load_seeds(folder: Path) -> list[Seed]:
    """The seeds in `folder`; made by a process of their own if they are not there (diffusers is a slow import)."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        subprocess.run([sys.executable, __file__, "--make-seeds", folder], check=True, env=_environment())
    listed = json.loads(manifest.read_text())
    return [
        Seed(**{**seed, "settings": tuple(seed["settings"]), "folder": folder / seed["name"]})
        for seed in listed
    ]


def _environment(**more: str) -> dict[str, str]:
    offline = {
        "HF_HUB_OFFLINE": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    return {**os.environ, **offline, **more}


def make_seeds(folder: Path) -> None:
    """Tiny models of torch, diffusers and transformers in every container, no two tensors alike."""
    import torch

    torch.set_num_threads(1)
    from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, LatteTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    from converters.convert import convert
    from torch_ref.models.latte import Latte

    manifest: list[dict] = []
    numbers = torch.Generator().manual_seed(0)

    def state_of(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            tensor.data = torch.randn(tensor.shape, generator=numbers).to(dtype)
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def shifted(state: dict) -> dict:
        return {
            name: torch.randn(tensor.shape, generator=numbers).to(tensor.dtype)
            for name, tensor in state.items()
        }

    def raw(state: dict) -> Tensors:
        return list(_leaves(state).items())

    def add(name: str, family: str, container: str, source: str, weights: str = "", **more) -> Path:
        (folder / name).mkdir(parents=True)
        facts = {"settings": (), "weights": weights or source, **more}
        manifest.append({"name": name, "family": family, "container": container, "source": source, **facts})
        return folder / name

    def ours(
        name: str, family: str, container: str, source: Path, target: str, weights: str = "", **options
    ) -> None:
        place = add(name, family, container, target, weights)
        convert(source, place / target, family=family, say=lambda line: None, **options)

    # Latte
    sizes = dict(
        input_size=4, patch_size=2, in_channels=4, hidden_size=24, depth=2, num_heads=3, num_frames=3
    )
    latte = state_of(Latte(**sizes, num_classes=5, condition="class"))
    heads = {"settings": ["num_heads=3"]}
    training = {
        "model": shifted(latte),
        "ema": latte,
        "opt": {"state": {}, "lr": 1e-4},
        "args": argparse.Namespace(a=1),
    }
    place = add("latte-zip", "latte", "zip", "training.pt", wrapper="ema", **heads)
    torch.save(training, place / "training.pt")
    place = add("latte-legacy", "latte", "legacy", "old.pth", wrapper="ema", **heads)
    torch.save(training, place / "old.pth", _use_new_zipfile_serialization=False)
    place = add("latte-half", "latte", "zip", "half.pt", **heads)
    torch.save({f"module.{name}": tensor.bfloat16() for name, tensor in latte.items()}, place / "half.pt")
    place = add("latte-safetensors", "latte", "safetensors", "a.safetensors")
    (place / "a.safetensors").write_bytes(safetensors_bytes(raw(latte), {"format": "pt"}))
    (place / "a.json").write_text(
        json.dumps({"num_heads": 3, "extras": 2, "num_classes": 5, "attention_mode": "math"})
    )
    place = add("latte-shards", "latte", "shards", ".", "diffusion_pytorch_model.safetensors.index.json")
    _shards(place, raw(latte), 3)
    (place / "config.json").write_text(json.dumps({"num_heads": 3, "class_dropout_prob": 0.2}))
    place = add("latte-ckpt", "latte", "ckpt", "plain.ckpt", **heads)
    both = raw({**shifted(latte), **{f"ema.{name}": tensor for name, tensor in latte.items()}})
    (place / "plain.ckpt").write_bytes(ckpt_bytes(both, crc=False))
    place = add("latte-ckpt-crc", "latte", "ckpt", "crc.ckpt", **heads)
    (place / "crc.ckpt").write_bytes(ckpt_bytes(raw({name: tensor.half() for name, tensor in latte.items()})))
    place = add("latte-linear", "latte", "safetensors", "b.safetensors", layout="latte-linear", **heads)
    patch = "x_embedder.proj.weight"
    flat = {**latte, patch: latte[patch].permute(0, 2, 3, 1).reshape(24, -1)}
    (place / "b.safetensors").write_bytes(safetensors_bytes(raw(flat)))
    place = add("dit", "latte", "zip", "DiT.pt", **heads)
    torch.save({name: tensor for name, tensor in latte.items() if name != "temp_embed"}, place / "DiT.pt")
    place = add("latte-golden", "latte", "zip", "latte_class.pt", wrapper="ema", settings=["num_heads=2"])
    shutil.copy(ROOT / "tests/data/golden/latte_class.pt", place)
    ours("latte-ours", "latte", "safetensors", folder / "latte-safetensors/a.safetensors", "ours.safetensors")
    ours(
        "latte-ours-ckpt", "latte", "ckpt", folder / "latte-ours/ours.safetensors", "ours.ckpt", dtype="bf16"
    )

    # LatteT2V
    t2v = LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=4,
        cross_attention_dim=16, attention_bias=True, patch_size=2, activation_fn="gelu-approximate",
        norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=12,
        video_length=5, num_embeds_ada_norm=1000,
    )  # fmt: skip
    state_of(t2v)
    name = "diffusion_pytorch_model"
    t2v.save_pretrained(add("t2v-folder", "latte", "safetensors", ".", f"{name}.safetensors"))
    t2v.save_pretrained(add("t2v-bin", "latte", "zip", ".", f"{name}.bin"), safe_serialization=False)
    place = add("t2v-shards", "latte", "shards", ".", f"{name}.safetensors.index.json")
    t2v.save_pretrained(place, max_shard_size="20KB")
    pipeline = add("t2v-pipeline", "latte", "safetensors", ".", f"transformer/{name}.safetensors")
    t2v.save_pretrained(pipeline / "transformer")
    (pipeline / "model_index.json").write_text('{"_class_name": "LattePipeline"}')
    with_y = {**t2v.state_dict(), "caption_projection.y_embedding": torch.randn(120, 12, generator=numbers)}
    place = add("t2v-official", "latte", "zip", "t2v.pt", wrapper="ema")
    torch.save({"ema": with_y, "model": shifted(with_y)}, place / "t2v.pt")
    config = {key: value for key, value in t2v.config.items() if not key.startswith("_")}
    (place / "config.json").write_text(json.dumps({"_class_name": "LatteT2V", **config}))
    ours("t2v-ours", "latte", "safetensors", place / "t2v.pt", "ours", f"ours/{name}.safetensors")
    shards = f"ours/{name}.safetensors.index.json"
    ours("t2v-ours-shards", "latte", "shards", place / "t2v.pt", "ours", shards, shard_size=30_000)
    ours("t2v-extras", "latte", "safetensors", place / "t2v.pt", "t.safetensors", to="diffusers")
    ours("t2v-pku", "latte", "ckpt", place / "t2v.pt", "pku.ckpt", to="mindone-opensora-pku")

    # VAE
    small = dict(in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, sample_size=16)
    plain = dict(down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
    vae = AutoencoderKL(**small, **plain, block_out_channels=[4, 8], norm_num_groups=4, scaling_factor=0.2)
    state_of(vae)
    vae.save_pretrained(add("vae-folder", "vae", "safetensors", ".", f"{name}.safetensors"))
    vae.save_pretrained(add("vae-bin", "vae", "zip", ".", f"{name}.bin"), safe_serialization=False)
    ours("vae-ours", "vae", "zip", folder / "vae-folder", "ours.pt")
    wide = AutoencoderKL(**small, block_out_channels=[32])
    state_of(wide)
    wide.save_pretrained(add("vae-wide", "vae", "safetensors", ".", f"{name}.safetensors"))
    ours("vae-ldm", "vae", "zip", folder / "vae-wide", "ldm.pt", to="compvis-vae")
    temporal = AutoencoderKLTemporalDecoder(
        3, 3, ["DownEncoderBlock2D"], [32], layers_per_block=1, latent_channels=4, sample_size=16
    )
    state_of(temporal)
    temporal.save_pretrained(add("vae-temporal", "vae", "safetensors", ".", f"{name}.safetensors"))

    # T5
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=40,
            d_model=16,
            d_kv=4,
            num_heads=3,
            d_ff=20,
            num_layers=2,
            feed_forward_proj="gated-gelu",
        )
    )
    state_of(t5, torch.float16)
    t5.save_pretrained(add("t5-folder", "t5", "safetensors", ".", "model.safetensors"))
    t5.save_pretrained(add("t5-bin", "t5", "zip", ".", "pytorch_model.bin"), safe_serialization=False)
    t5.save_pretrained(
        add("t5-shards", "t5", "shards", ".", "model.safetensors.index.json"), max_shard_size="2KB"
    )
    ours("t5-mindone", "t5", "ckpt", folder / "t5-folder", "t5.ckpt", to="mindone-t5")
    ours("t5-ours", "t5", "safetensors", folder / "t5-folder", "ours.safetensors")
    for seed in manifest:  # what the package wrote is not always where `--source` finds it
        assert (folder / seed["name"] / seed["weights"]).is_file(), seed
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _shards(place: Path, tensors: Tensors, count: int) -> None:
    places = {}
    for n in range(count):
        part, file = tensors[n::count], f"diffusion_pytorch_model-{n + 1:05d}-of-{count:05d}.safetensors"
        (place / file).write_bytes(safetensors_bytes(part, {"format": "pt"}))
        places |= {name: file for name, _ in part}
    index = {"metadata": {"total_size": sum(len(t.raw) for _, t in tensors)}, "weight_map": places}
    (place / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


# --------------------------------------------------------------------------------------------------- cases


@dataclass
class Case:
    """One command on one input; `folder` is where it runs: in/ holds the source, out/ is for the target.

    must     "refuse" or "convert", where only that is right
    readable whether `weights` still is what the command is asked to read, so that others can read it too
    placed   whether every tensor still lies where it lay in the seed's files
    given    a configuration that has to arrive
    wrote    what the mutation put into the weights, for where no other library reads them
    roots    where the command may write
    """

    seed: int
    index: int
    folder: Path
    canary: Path
    seeds: list[Seed]
    kind: str = ""
    what: str = ""
    base: Seed | None = None
    script: str = ""
    source: str = ""
    target: str | None = None
    to: str = "ours"
    layout: str | None = None
    dtype: str = "keep"
    which: str = "ema"
    settings: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    spelt: list[str] | None = None
    must: str = ""
    readable: bool = True
    placed: bool = False
    given: dict | None = None
    wrote: dict | None = None
    roots: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = Random(f"{self.seed}:{self.index}")
        self.roots.append(self.folder)

    @property
    def process(self) -> bool:
        return self.index >= PROCESSES

    @property
    def inspects(self) -> bool:
        return self.script == INSPECT

    @property
    def arguments(self) -> list[str]:
        if self.spelt is not None:
            return self.spelt
        words = [f"--source={self.source}", f"--which={self.which}", *self.options]
        if self.layout:
            words.append(f"--from={self.layout}")
        if not self.inspects:
            words += [f"--target={self.target}", f"--to={self.to}", f"--dtype={self.dtype}"]
        return words + (["--set", *self.settings] if self.settings else [])

    @property
    def weights(self) -> Path:
        return self.folder / "in" / self.base.weights

    def begin(self, *containers: str, pool: Callable[[Seed], bool] = lambda seed: True) -> Random:
        """Choose a seed among these containers, put it into in/, and choose command and options."""
        rng = self.rng
        fitting = [s for s in self.seeds if (not containers or s.container in containers) and pool(s)]
        large = {"latte-golden", "vae-wide", "vae-ldm", "vae-temporal"}
        self.base = base = rng.choices(fitting, [0.15 if s.name in large else 1 for s in fitting])[0]
        shutil.copytree(base.folder, self.folder / "in")
        self.source = str(Path("in") / base.source)
        self.settings, self.layout = list(base.settings), base.layout
        self.which = rng.choice(("ema", "ema", "ema", "ema", "ema", "ema", "model"))
        if rng.random() < 0.2:
            self.script = INSPECT
            self.options = [word for word in ("--json", "--all", "--hash") if rng.random() < 0.4]
            return rng
        self.script = COMMANDS[base.family]
        self.target = f"out/x{rng.choice(ENDINGS)}"
        self.to = "ours" if rng.random() < 0.6 else rng.choice(layouts(base.family))
        self.dtype = rng.choices(("keep", "fp16", "bf16", "fp32"), (6, 1, 1, 1))[0]
        self.options = ["--verify"] * (rng.random() < 0.6)
        if self.target == "out/x" and rng.random() < 0.4:
            self.options.append(f"--shard-size={rng.choice((1, 3000, '20KB', '1GB'))}")
        if rng.random() < 0.05:
            self.layout = rng.choice((*layouts(base.family), "ours"))
        if rng.random() < 0.2:
            self.old_target()
            self.options += ["--force"] * (rng.random() < 0.85)
        return rng

    def old_target(self) -> None:
        """Something that stood there before; it may disappear only for something complete."""
        place = self.folder / self.target
        stem = "model" if self.base.family == "t5" else "diffusion_pytorch_model"
        if place.suffix:
            place.write_bytes(b"old")
            for beside in (".json", ".extras.safetensors"):
                if self.rng.random() < 0.5:
                    place.with_name(place.name + beside).write_bytes(b"{}")
        else:
            place.mkdir()
            (place / "config.json").write_text("{}")
            (place / f"{stem}.safetensors").write_bytes(b"old")


def layouts(family: str) -> tuple[str, ...]:
    from converters.layouts import FAMILIES

    return tuple(FAMILIES[family].layouts)


def arguments_of(family: str) -> list[str]:
    """Constructor arguments of a family's models."""
    from converters.layouts import FAMILIES

    return sorted({key for layout in FAMILIES[family].ours.values() for key in layout.model.keys})


Mutation = Callable[[Case], str]
KINDS: dict[str, tuple[float, Mutation]] = {}


def kind(weight: float) -> Callable[[Mutation], Mutation]:
    """A kind of mutation: prepares the case and returns what it did, in words; `weight`: how often."""

    def register(mutation: Mutation) -> Mutation:
        KINDS[mutation.__name__] = weight, mutation
        return mutation

    return register


def make_case(seed: int, index: int, yard: Path, seeds: list[Seed]) -> Case:
    """The case of this number, in a fresh folder of `yard`."""
    folder = yard / "case"
    clear(folder)
    (folder / "out").mkdir(parents=True)
    case = Case(seed, index, folder, yard / "canary", seeds)
    case.kind = kind_of(case.rng)
    case.what = KINDS[case.kind][1](case)
    return case


def kind_of(rng: Random) -> str:
    return rng.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]


def clear(folder: Path) -> None:
    if folder.is_dir():
        for place, folders, _ in os.walk(folder):
            for name in folders:
                if not os.path.islink(inner := os.path.join(place, name)):
                    os.chmod(inner, 0o700)
        shutil.rmtree(folder)


# ------------------------------------------------------------------------------------------- blind mutations


def some_file(case: Case) -> str:
    """A file of the seed: mostly one with weights."""
    files = case.base.files()
    heavy = [name for name in files if not name.endswith(".json")]
    return case.rng.choice(heavy if case.rng.random() < 0.85 else files)


def somewhere(case: Case, file: str, length: int) -> int:
    """A place in a file: mostly one that is not the inside of a tensor."""
    if case.rng.random() < 0.7:
        structure = np.flatnonzero(~case.base.tensor_bytes(file))
        if len(structure):
            return int(structure[case.rng.randrange(len(structure))])
    return case.rng.randrange(max(length, 1))


@kind(14)
def bits(case: Case) -> str:
    rng = case.begin()
    file = some_file(case)
    data = bytearray((case.folder / "in" / file).read_bytes())
    case.placed, flips = True, []
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at, bit = somewhere(case, file, len(data)), rng.randrange(8)
        data[at] ^= 1 << bit
        flips.append(f"{at}.{bit}")
    (case.folder / "in" / file).write_bytes(data)
    return f"flipped {' '.join(flips)} of {file}"


@kind(9)
def lengths(case: Case) -> str:
    """An extreme number of 1 to 8 bytes over whatever stands there."""
    rng = case.begin()
    file = some_file(case)
    data = bytearray((case.folder / "in" / file).read_bytes())
    case.placed, done = True, []
    for _ in range(rng.choice((1, 1, 2))):
        size = rng.choice((1, 2, 4, 8))
        at, top = somewhere(case, file, len(data)), 1 << 8 * size
        numbers = (
            0,
            1,
            top // 2 - 1,
            top // 2,
            top - 1,
            top - 2,
            len(data),
            len(data) - 1,
            len(data) + 1,
            at,
        )
        n = rng.choice(numbers) % top
        data[at : at + size] = n.to_bytes(size, rng.choice(("little", "little", "big")))[: len(data) - at]
        done.append(f"{n:#x} in {size} bytes at {at}")
    (case.folder / "in" / file).write_bytes(data)
    return f"{' and '.join(done)} of {file}"


@kind(8)
def splices(case: Case) -> str:
    rng = case.begin()
    file = some_file(case)
    path = case.folder / "in" / file
    data = path.read_bytes()

    def block() -> tuple[int, int]:
        first = somewhere(case, file, len(data))
        return first, min(first + rng.choice((1, 2, 4, 8, 16, 64, 512, 4096)), len(data))

    (a, b), (c, d) = sorted((block(), block()))
    b = min(b, c)
    how = rng.choice(("swap", "delete", "repeat", "copy over", "insert", "of another", "shuffle"))
    if how == "swap":
        new = data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]
    elif how == "delete":
        new = data[:a] + data[b:]
    elif how == "repeat":
        new = data[:b] + data[a:b] * rng.choice((1, 2, 50)) + data[b:]
    elif how == "copy over":
        new = data[:c] + data[a:b] + data[c + b - a :]
    elif how == "insert":
        new = data[:a] + rng.randbytes(b - a) + data[a:]
    elif how == "of another":
        other = rng.choice(case.seeds)
        other = (other.folder / other.weights).read_bytes()
        first = rng.randrange(len(other))
        new = data[:a] + other[first : first + b - a] + data[b:]
    else:
        pieces = [data[:a], data[a:b], data[b:c], data[c:d], data[d:]]
        rng.shuffle(pieces)
        new = b"".join(pieces)
    path.write_bytes(new)
    return f"{how} {a}:{b} and {c}:{d} of {file}"


@kind(5)
def cuts(case: Case) -> str:
    rng = case.begin()
    file = some_file(case)
    path = case.folder / "in" / file
    size = path.stat().st_size
    ends = [at for name, (place, at) in case.base.spots("ema").items() if place == file]
    length = rng.choice(
        (rng.randrange(size), rng.randrange(min(size, 64)), size - 1 - rng.randrange(min(size, 64)))
    )
    if ends and rng.random() < 0.4:
        length = rng.choice(ends)
    os.truncate(path, length)
    return f"cut {file} to {length} of {size} bytes"


@kind(4)
def growth(case: Case) -> str:
    rng = case.begin()
    file = some_file(case)
    path = case.folder / "in" / file
    data, count = path.read_bytes(), rng.choice((1, 7, 8, 17, 22, 100, 70_000))
    more = {
        "zeros": bytes(count),
        "noise": rng.randbytes(count),
        "itself": data,
        "its end": data[-count:],
        "a seed": (case.seeds[0].folder / case.seeds[0].weights).read_bytes(),
    }
    how = rng.choice(list(more))
    before = rng.random() < 0.25
    path.write_bytes(more[how] + data if before else data + more[how])
    return f"{'put' if before else 'appended'} {how} ({len(more[how])} bytes) {'before' if before else 'to'} {file}"


@kind(3)
def nothing(case: Case) -> str:
    """The seeds as they are: the way to success is walked as well."""
    rng = case.begin()
    plain = case.to == "ours" and case.layout == case.base.layout and case.dtype in ("keep", "fp32", "bf16")
    free = "--force" in case.options or not any((case.folder / "out").iterdir())
    has_which = case.which == "ema" or case.base.name in (
        "latte-zip",
        "latte-legacy",
        "t2v-official",
        "latte-ckpt",
    )
    if plain and (free or case.inspects) and has_which:
        case.must = "convert"
    elif case.base.wrapper and rng.random() < 0.5:
        case.which = rng.choice(("state_dict", "model"))
    return "no mutation"


# -------------------------------------------------------------------------------------- tensors and their names

SINGLE = ("zip", "legacy", "safetensors", "ckpt")


def restore(case: Case, tensors: Tensors, container: str | None = None) -> str:
    """Put these tensors in the place of the seed's; returns the container."""
    base, rng = case.base, case.rng
    container = container or (base.container if rng.random() < 0.8 else rng.choice(SINGLE))
    metadata = None
    if base.container == container == "safetensors":
        raw = (base.folder / base.weights).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        metadata = json.loads(raw[8 : 8 + length]).get("__metadata__")
        metadata = metadata and {key: text for key, text in metadata.items() if key != "sha256"}
    wrapper = base.wrapper and rng.choice((base.wrapper, case.which))
    case.wrote = dict(tensors)
    case.weights.write_bytes(store(container, tensors, wrapper, metadata))
    return container


def odd_name(rng: Random, name: str) -> str:
    numbers = [
        "99999999999",
        "9" * 400,
        "007",
        "-1",
        "1e3",
        "٣",
        "²",
        "{i}",
        "1_0",
        "+1",
        " 1",
        "999999",
        "200",
    ]
    other = [re.sub(r"(?<=\.)\d+(?=\.)", rng.choice(numbers), name, count=1)] * 6
    texts = [
        "\0",
        "\x1b[2J\x1b[31m",
        "\n",
        "\r",
        "\u2028",
        "\u202e",
        "{i}",
        "{0.__class__}",
        "%s%n",
        "\ud800",
        "é",
        "\ufeff",
    ]
    text = rng.choice(texts)
    other += [name + text, text + name, name.replace(".", text, 1), text]
    other += ["", ".", "..", "../" + name, "/etc/passwd", "..\\x", name + "/", " " + name, name + " "]
    other += [
        "__metadata__",
        "__class__",
        "ema",
        "model",
        "state_dict",
        "ema." + name,
        "swap." + name,
        "adam_m." + name,
    ]
    other += ["module." + name, "module.", "_orig_mod." * 500 + name, name * 3, name.upper(), "x" * 100_000]
    other += [name + ".weight", name.rpartition(".")[0], "\x1b" * 30_000, "😀" * 30_000, name + "\u0301"]
    return rng.choice(other)


@kind(8)
def names(case: Case) -> str:
    rng = case.begin(*SINGLE)
    tensors = list(case.base.tensors(case.which).items())
    what = []
    for _ in range(rng.choice((1, 1, 2, 20))):
        n = rng.randrange(len(tensors))
        name, tensor = tensors[n]
        new = odd_name(rng, name)
        if rng.random() < 0.3:
            tensors.insert(n, (new, tensor))
        else:
            tensors[n] = new, tensor
        what.append(f"{name} -> {ascii(new)[:60]}")
    if rng.random() < 0.1:
        prefix = rng.choice(
            ("module.", "module.module.", "ema.", "network.", "model.", "\x1b[2J", "x" * 1000)
        )
        tensors = [(prefix + name, tensor) for name, tensor in tensors]
    container = restore(case, tensors)
    return f"names in {container}: {', '.join(what[:3])}"


@kind(8)
def tensors(case: Case) -> str:
    """Dropped, doubled, exchanged, reshaped and retyped ones."""
    rng = case.begin(*SINGLE)
    found = list(case.base.tensors(case.which).items())
    what = []
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        n = rng.randrange(len(found))
        name, (dtype, shape, raw) = found[n]
        how = rng.choice(
            ("drop", "double", "twice with zeros", "exchange", "shape", "type", "order", "block")
        )
        if how == "drop" and len(found) > 1:
            del found[n]
        elif how in ("double", "twice with zeros"):
            found.insert(
                rng.randrange(len(found)),
                (name, Tensor(dtype, shape, raw if how == "double" else bytes(len(raw)))),
            )
        elif how == "exchange":
            m = rng.randrange(len(found))
            found[n], found[m] = (name, found[m][1]), (found[m][0], found[n][1])
        elif how == "shape":
            size = math.prod(shape)
            shapes = [
                shape[::-1],
                (size,),
                (1, *shape),
                (*shape, 1),
                (),
                (0,),
                (*shape, 0),
                (1,) * 33 + shape,
                shape[:-1],
            ]
            shapes += [
                (size + 1,),
                (1 << 62, 4),
                (1 << 32, 1 << 32),
                (2, *shape),
                shape[1:],
                (size, 1),
                (1 << 63,),
            ]
            new = rng.choice(shapes)
            honest = math.prod(new) * WORDS[dtype][0]
            if rng.random() < 0.7 and honest < 1 << 20:
                raw = (raw * (honest // max(len(raw), 1) + 1))[:honest]
            found[n] = name, Tensor(dtype, new, raw)
            how = f"shape {shape} -> {new}"
        elif how == "type":
            other = rng.choice(list(WORDS))
            size = math.prod(shape) * WORDS[other][0]
            found[n] = name, Tensor(other, shape, (raw * 8)[:size] if rng.random() < 0.8 else raw)
            how = f"{dtype} -> {other}"
        elif how == "order":
            rng.shuffle(found)
        else:  # a block more or less, or all of one type
            word_ = rng.choice(list(WORDS))
            found = [
                (other, Tensor(word_, t.shape, (t.raw * 8)[: math.prod(t.shape) * WORDS[word_][0]]))
                for other, t in found
            ]
            how = f"all {word_}"
        what.append(f"{how} {name}")
    container = restore(case, found)
    return f"tensors in {container}: {', '.join(what)}"


@kind(4)
def values(case: Case) -> str:
    """NaN, infinity, the largest and the smallest numbers, where a cast follows."""
    rng = case.begin(*SINGLE)
    case.dtype = rng.choice(("fp16", "fp16", "bf16", "fp32", "keep"))
    found = dict(case.base.tensors(case.which))
    wide = rng.random() < 0.3
    special = {
        "F64": [
            0x7FF0 << 48,
            0xFFF0 << 48,
            0x7FF0000000000001,
            0x7FEFFFFFFFFFFFFF,
            1,
            0x8000 << 48,
            0x47EFFFFFF0000000,
        ],
        "F32": [
            0x7F800000,
            0xFF800000,
            0x7F800001,
            0x7FC00000,
            0x7F7FFFFF,
            0x477FF000,
            0x477FEFFF,
            0x7F7F8000,
            1,
            0x80000000,
        ],
        "F16": [0x7C00, 0xFC00, 0x7C01, 0x7E00, 0x7BFF, 1, 0x8000],
        "BF16": [0x7F80, 0xFF80, 0x7F81, 0x7F7F, 1, 0x8000, 0x477F],
    }
    what = []
    if wide:
        found = {
            name: Tensor("F64", t.shape, np.random.default_rng(n).normal(size=t.shape).tobytes())
            if t.word in FLOATS
            else t
            for n, (name, t) in enumerate(found.items())
        }
    for name in rng.sample(sorted(found), min(len(found), 3)):
        dtype, shape, raw = found[name]
        if dtype not in FLOATS or not raw:
            continue
        size, bits_ = WORDS[dtype][0], rng.choice(special[dtype])
        data = bytearray(raw)
        for at in {0, rng.randrange(len(raw) // size), len(raw) // size - 1}:
            data[at * size : (at + 1) * size] = bits_.to_bytes(size, "little")
        found[name] = Tensor(dtype, shape, bytes(data))
        what.append(f"{bits_:#x} in {name} ({dtype})")
    container = restore(case, list(found.items()))
    return f"{', '.join(what)}, {container}, --dtype {case.dtype}"


@kind(2)
def torch_things(case: Case) -> str:
    """What torch can save and we may not know: strided, shared, complex, quantised, sparse, subclassed."""
    import torch

    rng = case.begin("zip", "legacy")
    found = {}
    for name, (dtype, shape, raw) in case.base.tensors(case.which).items():
        plain = getattr(torch, dict(zip(WORDS, TORCH_DTYPES, strict=True))[dtype])
        found[name] = (
            torch.frombuffer(bytearray(raw), dtype=plain).reshape(shape)
            if raw
            else torch.zeros(shape, dtype=plain)
        )
    name = rng.choice(sorted(found))
    tensor = found[name]
    makers: dict[str, Callable] = {
        "transposed": lambda t: t.T.contiguous().T if t.dim() == 2 else t,
        "expanded": lambda t: t.flatten()[:1].expand(t.shape) if t.numel() else t,
        "much expanded": lambda t: torch.zeros(1).expand(1 << 40),
        "a slice": lambda t: torch.cat([t, t])[: len(t)] if t.dim() else t,
        "every second": lambda t: torch.stack([t, t], -1)[..., 0],
        "parameter": torch.nn.Parameter,
        "complex": lambda t: t.to(torch.complex64),
        "float8": lambda t: t.to(torch.float8_e4m3fn),
        "sparse": lambda t: t.float().to_sparse(),
        "meta": lambda t: t.to("meta"),
        "uint16": lambda t: torch.zeros(t.shape, dtype=torch.uint16),
        "conjugate": lambda t: t.to(torch.complex64).conj(),
        "float64": lambda t: t.double(),
        "shared": lambda t: next((o for o in found.values() if o.shape == t.shape and o.dtype == t.dtype), t),
        "a number": lambda t: 3,
        "a list": lambda t: [t, t],
        "none": lambda t: None,
    }
    how = rng.choice(list(makers))
    found[name] = makers[how](tensor)
    case.wrote = _leaves(found)
    saved = {case.base.wrapper: found} if case.base.wrapper else found
    for beside in rng.sample(("set", "namespace", "dates", "arrays"), 2):
        if case.base.wrapper:
            extra = {
                "set": {1, 2},
                "namespace": argparse.Namespace(a=[1]),
                "dates": {1: (2.0, None)},
                "arrays": np.arange(3),
            }
            saved[beside] = extra[beside]
    protocol = rng.choice((2, 2, 3, 4, 5))
    torch.save(
        saved,
        case.weights,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=case.base.container == "zip",
    )
    return f"{how} {name}, protocol {protocol}, {case.base.container}"


# ------------------------------------------------------------------------------------------ JSON in its places

DEEP = 100_000
ODD_JSON = [
    "0", "-1", "1e999", "-0", "NaN", "Infinity", "1e-400", "true", "false", "null", '""', '"\\ud800"', '"\\u0000"', '"3"',
    "[]", "[[]]", "{}", "[1,2]", "[4,4]", "[0,0]", "[4,6]", "3.0", "3.5", "2147483648", "9223372036854775808", "1000000",
    "1000000000", "18446744073709551616", "1" + "0" * 400, "9" * 5000, "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP,
    '"' + "a" * DEEP + '"', "[" + "1," * DEEP + "1]", '"../../x"', '"\\u001b[2J"', '"LatteT2V"', "{}{}", "'a'", "[[[[3]]]]",
    "1" * 4000, '["\\u001b"]', '{"\\u001b[2J": 1}', "0.1", "1e308",
]  # fmt: skip
NUMBERS = "0 1 2 3 4 5 7 8 12 16 1000000 1000000000 2147483647 2147483648 1e18 1e308 1e-320 0.5 1e-30 -1 0.0".split()
WHOLE_JSON = [
    b"", b"null", b"[]", b"3", b'"x"', b"{", b"}", b"\xef\xbb\xbf{}", '{"num_heads": 3}'.encode("utf-16"), b'{"\xff": 1}',
    b"{}\0", b"{} {}", b"[" * DEEP, b'{"a":' * DEEP, b" " * DEEP, b'{"a":1,"a":2}', b"\0" * 100, b'{"a": "\\ud83d"}', b"<html>",
]  # fmt: skip


def configuration(case: Case) -> tuple[Path, dict]:
    """The seed's own configuration file, or a new one beside a file that has none."""
    inside = case.folder / "in"
    for path in sorted(inside.rglob("*.json")):
        if "index" not in path.name:
            return path, json.loads(path.read_text())
    path = case.weights
    name = case.rng.choice((f"{path.name}.json", f"{path.stem}.json", "config.json"))
    new = {pair.partition("=")[0]: json.loads(pair.partition("=")[2]) for pair in case.settings}
    case.settings = case.settings if case.rng.random() < 0.3 else []
    return path.with_name(name), new


@kind(9)
def configs(case: Case) -> str:
    rng = case.begin()
    path, config = configuration(case)
    how = rng.choice(
        ("value", "value", "value", "value", "unknown", "drop", "twice", "whole", "class", "number")
    )
    keys = sorted(config) or ["num_heads"]
    pairs = {key: json.dumps(value) for key, value in config.items()}
    key, odd = rng.choice(keys), rng.choice(ODD_JSON)
    if how == "whole":
        path.write_bytes(rng.choice(WHOLE_JSON))
        return f"{path.name} is {path.read_bytes()[:20]!r}"
    if how == "value":
        pairs[key] = odd
    elif how == "unknown":
        key = rng.choice(
            (
                "nub_heads",
                "_x",
                "",
                "\x1b[2J",
                "x" * DEEP,
                "__class__",
                "num_heads ",
                "\ud800",
                "model_type",
                "shift_factor",
            )
        )
        pairs[key] = odd
    elif how == "drop":
        pairs.pop(key, None)
    elif how == "class":
        key = rng.choice(("_class_name", "_layout", "architectures"))
        pairs[key] = json.dumps(rng.choice(["Latte", "LatteT2V", "LatteTransformer3DModel", "AutoencoderKL", "T5EncoderModel",
                                            "ours", "diffusers", "official-t2v", "latte-linear", "x", ["x"], 3, "\x1b[2J"]))  # fmt: skip
    elif how == "number":
        key = rng.choice([k for k in keys if type(config.get(k)) in (int, float)] or [key])
        odd = pairs[key] = rng.choice(NUMBERS)
    text = ", ".join(f"{json.dumps(k)}: {value}" for k, value in pairs.items())
    if how == "twice":
        text += f", {json.dumps(key)}: {odd}"
    path.write_text("{" + text + "}")
    outranked = case.base.name in (
        "latte-ours",
        "t5-ours",
        "t2v-extras",
    )  # by what the weights' file says itself
    if (
        how in ("value", "number")
        and not outranked
        and key not in {pair.partition("=")[0] for pair in case.settings}
    ):
        with contextlib.suppress(ValueError, RecursionError):
            case.given = json.loads("{" + text + "}")
    return f"{path.name}: {how} {key[:40]!r} {odd[:40]}"


@kind(4)
def indices(case: Case) -> str:
    """The index of shards: where it leads, and whether it fits."""
    rng = case.begin("shards")
    path = case.weights
    index = json.loads(path.read_text())
    places: dict = index["weight_map"]
    shards = sorted(set(places.values()))
    shard, name = rng.choice(shards), rng.choice(sorted(places))
    outside = path.parent / "elsewhere"
    tricks = [
        "../in", f"/{shard}", str(path.with_name(shard)), f"./{shard}", f"x/../{shard}", "..", ".", "", "\0", f"{shard}\0", path.name,
        "missing.safetensors", "/dev/zero", "/proc/self/mem", "a\\b", "~/x", "file:///etc/passwd", "$HOME", "x" * 300, "\x1b[2J", "\ud800",
        "link", "loop", "fifo", "folder", "config.json", f"{shard} ", shard.upper(), "x.index.json", 3, None, [], {}, True, [shard], 1.5,
    ]  # fmt: skip
    os.symlink(rng.choice((shard, "/etc/passwd", "/dev/zero", "../..")), path.with_name("link"))
    os.symlink("loop", path.with_name("loop"))
    os.mkfifo(path.with_name("fifo"))
    outside.mkdir()
    shutil.copy(path, path.with_name("x.index.json"))
    path.with_name("folder").mkdir()
    how = rng.choice(("one", "all of a shard", "all", "map", "metadata", "text", "shard", "swap", "names"))
    trick = rng.choice(tricks)
    if how == "one":
        places[name] = trick
    elif how == "all of a shard":
        index["weight_map"] = {k: trick if v == shard else v for k, v in places.items()}
    elif how == "all":
        index["weight_map"] = dict.fromkeys(places, trick)
    elif how == "map":
        trick = index["weight_map"] = rng.choice((None, [], {}, 3, "x", {"a": {}}, [["a", shard]]))
    elif how == "metadata":
        lies = [None, [], 3, {"total_size": -1}, {"total_size": "x"}, {"format": "pt", "sha256": "0" * 64}]
        lies += [
            {"model": "Latte", "config": "{}", "layout": "ours"},
            {"model": "Latte", "config": "{", "layout": "x"},
        ]
        lies += [
            {
                **index.get("metadata", {}),
                "config": rng.choice(ODD_JSON[:30]),
                "model": rng.choice(MODELS),
                "layout": "ours",
            }
        ]
        trick = index["metadata"] = rng.choice(lies)
    elif how == "swap":
        index["weight_map"] = {k: shards[shards.index(v) - 1] for k, v in places.items()}
    elif how == "names":
        index["weight_map"] = {odd_name(rng, k) if k == name else k: v for k, v in places.items()}
    elif how == "shard":
        other, part = rng.choice(case.seeds), path.with_name(shard)
        what = rng.choice(("gone", "empty", "a folder", "a link", "another", "a seed", "a zip"))
        part.unlink()
        if what == "empty":
            part.touch()
        elif what == "a folder":
            part.mkdir()
        elif what == "a link":
            part.symlink_to(path.name)
        elif what == "another":
            shutil.copy(path.with_name(rng.choice([s for s in shards if s != shard])), part)
        elif what == "a seed":
            shutil.copy(other.folder / other.weights, part)
        elif what == "a zip":
            mine = [(k, t) for k, t in case.base.tensors().items() if places.get(k) == shard]
            part.write_bytes(store("zip", mine))
        trick = what
    text = json.dumps(index)
    if how == "text":
        trick = rng.choice(("twice", "deep", "cut", "nan"))
        text = {
            "twice": text[:-1] + ', "weight_map": {}}',
            "deep": '{"weight_map": ' + "[" * DEEP,
            "cut": text[: rng.randrange(len(text))],
            "nan": text[:-1] + ', "x": NaN, "y": ' + "9" * 5000 + "}",
        }[trick]
    path.write_text(text)
    if rng.random() < 0.4:
        case.source = str(Path("in") / case.base.weights)
    return f"{how} of {path.name}: {ascii(trick)[:60]}"


MODELS = ("Latte", "LatteT2V", "AutoencoderKL", "AutoencoderKLTemporalDecoder", "T5EncoderModel", "x", "")


@kind(5)
def metadata(case: Case) -> str:
    """What a safetensors file says of itself, and lies."""
    rng = case.begin("safetensors")
    raw = (case.weights).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    words = header.get("__metadata__", {})
    words = {"format": "pt", "model": "Latte", "config": "{}", "layout": "ours", "source": "x", **words}
    if rng.random() < 0.7:
        words.pop("sha256", None)
    key = rng.choice(("model", "config", "layout", "sha256", "format", "source", "new", "drop", "whole"))
    odd = rng.choice(ODD_JSON)
    if key == "model":
        words[key] = rng.choice((*MODELS, "\x1b[2J", "x" * DEEP))
    elif key == "layout":
        words[key] = rng.choice((*layouts(case.base.family), "ours", "", "x", "\x1b[2J", "x" * DEEP))
    elif key == "config":
        config = json.loads(words["config"]) or {"num_heads": 3}
        name = rng.choice(sorted(config))
        pairs = {k: json.dumps(v) for k, v in config.items()} | {name: odd}
        words[key] = "{" + ", ".join(f"{json.dumps(k)}: {v}" for k, v in pairs.items()) + "}"
        if rng.random() < 0.2:
            words[key] = rng.choice(
                (*(text.decode("latin-1") for text in WHOLE_JSON), "\ud800", '{"a": "\ud800"}')
            )
    elif key == "sha256":
        words[key] = rng.choice(("0" * 64, "", "x", "é" * 64, words.get("sha256", "f" * 64).upper()))
    elif key == "drop":
        del words[rng.choice(sorted(words))]
    elif key == "whole":
        words = rng.choice(
            (
                None,
                [],
                3,
                "x",
                {"a": 1},
                {"a": None},
                {"a": {}},
                {"\x1b[2J": "\x1b[2J"},
                {"a": "x" * DEEP},
                {"": ""},
            )
        )
    else:
        words[rng.choice((key, "\x1b[2J", "config "))] = rng.choice(
            ("np", "tf", "\x1b[31m\n", "\ud800", "x" * DEEP, "../x")
        )
    header.pop("__metadata__", None)
    case.weights.write_bytes(header_bytes(json.dumps({"__metadata__": words, **header})) + raw[8 + length :])
    return f"metadata: {key} is {ascii(words if key == 'whole' else words.get(key))[:60]}"


@kind(6)
def headers(case: Case) -> str:
    """The header of a safetensors file: offsets, shapes, types, syntax."""
    rng = case.begin("safetensors")
    raw = case.weights.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    name, other = rng.sample([key for key in header if key != "__metadata__"], 2)
    info = header[name]
    first, last = info["data_offsets"]
    how = rng.choice(
        ("offsets", "offsets", "shape", "shape", "dtype", "entry", "text", "length", "body", "many")
    )
    if how == "offsets":
        end = len(body)
        info["data_offsets"] = rng.choice((
            [first, last + 4], [first + 4, last + 4], [last, first], header[other]["data_offsets"], [0, end], [-4, last], [first, end + 4],
            [first, 2**64], [first, 10**400], [True, last], [float(first), last], ["0", last], [first], [first, last, last], None, {}, "ab",
            [None, None], [[first], last], [end, end + last - first], [2**63, 2**63 + last - first],
        ))  # fmt: skip
        what = info["data_offsets"]
    elif how == "shape":
        size = math.prod(info["shape"])
        info["shape"] = rng.choice((
            [2**62, 4], [0], [size, 0, 2**70], [1] * 33 + [size], [1] * DEEP, [-size], [-1, -size], [float(size)], [True] * size, None, "x",
            {}, {"1": 2}, [[size]], [10**4000], size, [], [size, 1], [1, size], info["shape"][::-1], ["4"], [0, 10**30], [2**64 + size],
        ))  # fmt: skip
        if not isinstance(info["shape"], list) or 0 in info["shape"]:
            info["data_offsets"] = [first, rng.choice((first, last))]
        what = info["shape"]
    elif how == "dtype":
        what = info["dtype"] = rng.choice(
            ("F8_E4M3", "C64", "f32", "", None, 3, [], {}, "x" * DEEP, "\x1b[2J", "U16", "BOOL", "F32 ")
        )
    elif how == "entry":
        what = rng.choice(
            (None, [], {}, 3, "x", {**info, "more": 1}, {"dtype": "F32"}, [info], {"shape": []})
        )
        header[name] = what
    elif how == "length":
        what = rng.choice(
            (
                0,
                1,
                2,
                7,
                length - 1,
                length + 1,
                length + 8,
                2**63,
                2**64 - 1,
                10**8,
                10**8 + 1,
                len(raw) - 8,
                len(raw),
            )
        )
        case.weights.write_bytes(what.to_bytes(8, "little") + raw[8:])
        return f"header length {what} of {length}"
    elif how == "body":
        what = rng.choice(("short", "long", "gap", "none"))
        body = {"short": body[:-1], "long": body + bytes(4), "gap": bytes(8) + body, "none": b""}[what]
    elif how == "many":
        what = rng.choice(("20,000 empty tensors", "10,000 twice", "one 20,000 times"))
        modulus = {"20,000 empty tensors": 20_000, "10,000 twice": 10_000}.get(what, 1)
        span = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
        spans = ",".join(f'"e{n % modulus}":{span}' for n in range(20_000))
        case.weights.write_bytes(header_bytes("{" + spans + "}"))
        return what
    text = json.dumps(header)
    if how == "text":
        what = rng.choice(
            (
                "twice",
                "deep",
                "deep in entry",
                "tail",
                "bom",
                "list",
                "nul",
                "twice in entry",
                "spaces",
                "latin",
                "huge",
            )
        )
        text = {
            "twice": text[:-1] + f", {json.dumps(name)}: {json.dumps(info)}}}",
            "deep": "[" * DEEP,
            "deep in entry": text[:-1] + ', "x": ' + '{"a":' * DEEP + "1" + "}" * DEEP + "}",
            "tail": text + "x",
            "bom": "\ufeff" + text,
            "list": f"[{text}]",
            "nul": text + "\0" * 8,
            "twice in entry": text.replace('"shape"', '"shape": [1], "shape"', 1),
            "spaces": " " * 1000 + text + " " * DEEP,
            "latin": text.replace(name, name + "\udcff"),
            "huge": text[:-1] + f', "x": {"9" * 5000}}}',
        }[what]
    case.weights.write_bytes(header_bytes(text) + body)
    return f"header: {how} {ascii(what)[:60]} for {name}"


@kind(3)
def extras(case: Case) -> str:
    """The file of extras that stands beside weights: it is found by its name alone."""
    rng = case.begin(*SINGLE)
    mine = dict(case.base.tensors(case.which))
    name, tensor = rng.choice(sorted(mine.items()))
    place = case.weights.with_name(
        rng.choice((f"{case.weights.name}.extras.safetensors", f"{case.weights.stem}.extras.safetensors"))
    )
    table = Tensor("F32", (120, 12), Random(1).randbytes(120 * 12 * 4))
    how = rng.choice(
        (
            "override",
            "honest",
            "surplus",
            "odd name",
            "junk",
            "empty",
            "folder",
            "fifo",
            "link",
            "loop",
            "itself",
            "cut",
        )
    )
    honest = safetensors_bytes([("caption_projection.y_embedding", table)])
    place.unlink(missing_ok=True)
    if how == "override":
        place.write_bytes(
            safetensors_bytes([(name, Tensor(tensor.word, tensor.shape, bytes(len(tensor.raw))))])
        )
    elif how in ("honest", "cut"):
        place.write_bytes(honest if how == "honest" else honest[: rng.randrange(len(honest))])
    elif how == "surplus":
        place.write_bytes(
            safetensors_bytes([("x", table), ("pos_embed.pos_embed", table), ("temp_pos_embed", table)])
        )
    elif how == "odd name":
        place.write_bytes(
            safetensors_bytes([(odd_name(rng, name).encode("ascii", "replace").decode(), table)])
        )
    elif how == "junk":
        place.write_bytes(rng.randbytes(100))
    elif how == "empty":
        place.write_bytes(safetensors_bytes([]) if rng.random() < 0.5 else b"")
    elif how == "folder":
        place.mkdir()
    elif how == "fifo":
        os.mkfifo(place)
    else:
        place.symlink_to({"link": "/dev/zero", "loop": place.name, "itself": case.weights.name}[how])
    return f"extras beside: {how}"


# ----------------------------------------------------------------------------------------- hostile containers


def dangerous_programs(canary: Path) -> dict[str, bytes]:
    """Values whose unpickling would do something: each would leave a file in `canary`."""
    hit = str(canary / "hit")
    shell, code = f"touch {hit}", f"open({hit!r}, 'w').close()"
    found = {
        f"{module}.{name}": call(module, name, word(argument))
        for module, name, argument in [
            ("os", "system", shell), ("posix", "system", shell), ("nt", "system", shell), ("subprocess", "getoutput", shell),
            ("builtins", "eval", code), ("builtins", "exec", code), ("__builtin__", "eval", code), ("os", "mkdir", hit), ("os", "unlink", "../x"),
            ("builtins", "__import__", "this"), ("importlib", "import_module", "antigravity"), ("ctypes", "CDLL", "x.so"), ("runpy", "run_path", hit),
            ("pty", "spawn", "sh"), ("webbrowser", "open", "http://localhost"), ("shutil", "rmtree", "in"), ("pathlib.Path", "touch", hit),
            ("torch", "load", "in/x"), ("torch.hub", "load", "x"), ("numpy", "load", "in/x"), ("pickle", "loads", "x"), ("timeit", "timeit", code),
            ("torch._utils", "os.system", shell), ("torch.serialization", "os.system", shell), ("os", "path.exists", hit), ("code", "interact", ""),
            ("torch.jit", "load", "in/x"), ("torch._dynamo.guards", "GuardBuilder.get", code), ("logging.config", "listen", ""),
            ("converters.containers.source", "open_source", "in"), ("operator", "attrgetter", "system"), ("builtins", "getattr", "x"),
            ("torch.storage", "_load_from_bytes", "x"), ("torch", "storage._load_from_bytes", "x"), ("numpy.f2py.crackfortran", "myeval", code),
            ("numpy.testing._private.utils", "runstring", code), ("collections", "namedtuple", "x"), ("functools", "partial", "x"),
            ("torch\n", "x", ""), ("", "", ""), ("os\0", "system", shell), ("builtins", "eval.__call__", code), ("\ud800", "x", ""),
            ("torch.utils._config_module", "load_config", "x"), ("ssl", "get_server_certificate", "x"), ("doctest", "debug_script", code),
        ]
    }  # fmt: skip
    popen = named("subprocess", "Popen")
    more = {
        "STACK_GLOBAL": word("os") + word("system") + pickle.STACK_GLOBAL + tup(word(shell)) + pickle.REDUCE,
        "STACK_GLOBAL from memo": word("os") + b"q\x01" + word("system") + b"q\x020h\x01h\x02\x93" + tup(word(shell)) + b"R",
        "NEWOBJ": popen + tup(word(shell)) + pickle.NEWOBJ,
        "NEWOBJ_EX": popen + tup(word(shell)) + entries([(word("shell"), pickle.NEWTRUE)]) + pickle.NEWOBJ_EX,
        "INST": pickle.MARK + word(shell) + pickle.INST + b"os\nsystem\n",
        "OBJ": pickle.MARK + popen + word(shell) + pickle.OBJ,
        "protocol 0": f"cos\nsystem\n(S'{shell}'\ntR".encode(),
        "reduce of a reduce": call("builtins", "getattr", named("os", "system"), word("__call__")) + tup(word(shell)) + b"R",
        "EXT1": pickle.EXT1 + b"\x01" + tup() + b"R",
        "EXT2": pickle.EXT2 + b"\xff\xff" + tup() + b"R",
        "EXT4": pickle.EXT4 + b"\xff\xff\xff\x7f" + tup() + b"R",
        "setstate": call("argparse", "Namespace") + entries([(word("__setstate__"), named("os", "system"))]) + b"b" + word(shell) + b"b",
        "state with slots": call("argparse", "Namespace") + tup(pickle.NONE, entries([(word("a"), named("os", "system"))])) + b"b",
        "module of 1 MB": pickle.GLOBAL + b"o" * (1 << 20) + b"\nsystem\n",
        "name without end": pickle.GLOBAL + b"os\nsystem",
        "persistent": word("os.system") + pickle.BINPERSID,
        "PERSID": pickle.PERSID + b"os.system\n",
        "persistent of globals": tup(word("storage"), named("os", "system"), word("0"), word("cpu"), number(1)) + b"Q",
        "encode": call("_codecs", "encode", word("x"), word("rot13")),
        "encode zip": call("_codecs", "encode", word("x"), word("zip")),
        "parameter of a global": call("torch._utils", "_rebuild_parameter", named("os", "system"), b"\x89", b"}"),
        "subclass": call("torch._tensor", "_rebuild_from_type_v2", named("os", "system"), named("os", "system"), tup(word(shell)), b"}"),
        "NEXT_BUFFER": pickle.NEXT_BUFFER,
    }  # fmt: skip
    return {**found, **more}


def strange_programs(rng: Random) -> dict[str, bytes]:
    """Values that cost time or memory, or are of a kind that nobody expects; not dangerous in themselves."""
    n = rng.choice((100, 10_000, 100_000))
    many = n * 4
    doubled = pickle.EMPTY_TUPLE + b"".join(
        b"q" + bytes([i]) + b"h" + bytes([i]) + pickle.TUPLE2 for i in range(60)
    )
    lists = b"]q\x00" + b"".join(b"]q" + bytes([i + 1]) + (b"h" + bytes([i]) + b"a") * 9 for i in range(20))
    long_ = 1 << 31
    ones = [1] * 40
    return {
        "billion tuples": doubled,
        "billion tuples as key": entries([(doubled, pickle.NONE)]),
        "billion tuples as persistent id": doubled + pickle.BINPERSID,
        "billion lists": lists,
        "deep tuple": pickle.EMPTY_TUPLE + pickle.TUPLE1 * n,
        "deep list": b"]" * n + b"a" * (n - 1),
        "deep dict": (b"}" + word("a")) * n + b"N" + b"s" * n,
        "deep key": entries([(pickle.EMPTY_TUPLE + pickle.TUPLE1 * n, b"N")]),
        "marks": b"(" * n,
        "marks closed": b"(" * n + b"t" * n,
        "memo bomb": b"]" + b"r\xff\xff\xff\xff",
        "memo numbers": b"N" + b"".join(b"r" + struct.pack("<I", i * 1000) for i in range(1000)),
        "memo missing": b"j\xff\xff\xff\xff",
        "itself": b"}q\x00" + word("ema") + b"h\x00s",
        "itself in a list": b"]q\x00h\x00a",
        "BINBYTES8": pickle.BINBYTES8 + struct.pack("<Q", 1 << 62),
        "BINUNICODE8": pickle.BINUNICODE8 + struct.pack("<Q", (1 << 64) - 1),
        "BYTEARRAY8": pickle.BYTEARRAY8 + struct.pack("<Q", 1 << 40),
        "BINSTRING": pickle.BINSTRING + struct.pack("<i", -1),
        "LONG4": pickle.LONG4 + struct.pack("<i", -5),
        "LONG4 huge": pickle.LONG4 + struct.pack("<i", 100_000) + b"\x7f" * 100_000,
        "FRAME": pickle.FRAME + struct.pack("<Q", (1 << 64) - 1) + b"N",
        "protocol 255": pickle.PROTO + b"\xff" + b"N",
        "many empty dicts": b"(" + b"}" * many + b"t",
        "many numbers": b"(" + b"K\x01" * many + b"l" if rng.random() < 0.1 else b"](" + b"K\x01" * many + b"e",
        "too many steps": b"](" + b"N" * (1 << 21) + b"e",
        "copies": call("collections", "OrderedDict") + b"".join([b"b"] * 3),
        "copied often": b"](" + b"N" * 1000 + b"eq\x010" + b"".join(call("collections", "OrderedDict", b"h\x01") for _ in range(1000)),
        "bytearray": call("builtins", "bytearray", number(1 << 40)),
        "range": call("builtins", "range", number(1 << 62)),
        "list of a range": call("builtins", "list", call("builtins", "range", number(1 << 40))),
        "slice": call("builtins", "slice", number(0), number(1 << 62)),
        "numpy": call("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), tup(number(1 << 40)), word("b")),
        "array state": call("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), tup(number(0)), word("b"))
        + tup(number(1), tup(number(1 << 40)), named("numpy", "dtype"), b"\x89", word("x")) + b"b",
        "complex": call("builtins", "complex", number(1)),
        "date": call("datetime", "datetime", word("x" * 10)),
        "set": b"\x8f(" + b"]" * 10 + b"\x90",
        "frozenset": b"(" + b"]" * 10 + b"\x91",
        "unhashable": entries([(b"]", b"N"), (b"}", b"N")]),
        "nan as key": entries([(b"G" + struct.pack(">d", math.nan), b"N")] * 100),
        "surrogate": word(b"\xed\xa0\x80"),
        "not utf-8": word(b"\xff\xfe"),
        "attributes": call("argparse", "Namespace") + entries([(word(a), b"N") for a in ("__class__", "__dict__", "what", "__repr__")]) + b"b",
        "state of a tensor": tensor_program("0", "FloatStorage", (1,), (1,), 1) + b"}b",
        "stack is empty": b"t0",
        "pops": b"N0" * 10 + b"N",
        "dup": b"N2",
        "odd items": b"}(" + word("a") + b"u",
        "items of a tuple": b")(" + word("a") + b"Nu",
        "appends to a dict": b"}Na",
        "reduce of None": b"N)R",
        "reduce with a list": named("collections", "OrderedDict") + b"]R",
        "huge shape": tensor_program("0", "FloatStorage", (1 << 40,), (0,), 1),
        "huge stride": tensor_program("0", "FloatStorage", (2, 2), (1 << 62, 1), 1),
        "negative offset": tensor_program("0", "FloatStorage", (1,), (1,), 1, -1),
        "negative stride": tensor_program("0", "FloatStorage", (2,), (-1,), 4, 2),
        "huge offset": tensor_program("0", "FloatStorage", (1,), (1,), 1, 1 << 62),
        "40 axes": tensor_program("0", "FloatStorage", ones, ones, 1),
        "huge count": tensor_program("0", "FloatStorage", (1,), (1,), 1 << 62),
        "negative count": tensor_program("0", "FloatStorage", (0,), (1,), -1),
        "other type": tensor_program("0", "DoubleStorage", (1,), (1,), 1),
        "unknown type": tensor_program("0", "ComplexFloatStorage", (1,), (1,), 1),
        "key ../": tensor_program("../data.pkl", "ByteStorage", (1,), (1,), 1),
        "key of 100 kB": tensor_program("k" * 100_000, "FloatStorage", (1,), (1,), 1),
        "persistent tuple": tup(word("storage"), b"N", b"N", b"N", b"N") + b"Q",
        "persistent list": b"]Q",
        "persistent view": tup(word("storage"), named("torch", "FloatStorage"), word("0"), word("cpu"), number(1),
                               tup(word("v"), number(0), number(long_))) + b"Q",
        "default": call("collections", "defaultdict", named("collections", "OrderedDict")),
        "counter": call("collections", "Counter", entries([(word("a"), number(1))])),
        "size": call("torch", "Size", tup(*[number(1 << 40)] * 40)),
        "device": call("torch", "device", word("cuda:0")),
        "int of Python 2": b"I01\n",
        "text of Python 2": b"S'a'\n",
        "noise": rng.randbytes(200),
        "opcodes": bytes(rng.choice(b"()tlu}]asbRq\x01h\x01N\x88\x89K\x01\x85\x86\x87QcX\x94\x93\x81") for _ in range(300)),
    }  # fmt: skip


@kind(9)
def pickles(case: Case) -> str:
    """A pickle made by hand in a torch file, with the seed's weights beside it or without."""
    rng = case.begin("zip", "legacy")
    danger = rng.random() < 0.5
    programs = dangerous_programs(case.canary) if danger else strange_programs(rng)
    name = rng.choice(list(programs))
    program = programs[name]
    state, storages = state_program(list(case.base.tensors(case.which).items()))
    how = rng.choice(("whole", "beside", "before", "as a weight", "as a key", "wrapped"))
    program = {
        "whole": program,
        "beside": entries([(word("ema"), state), (word("opt"), program)]),
        "before": entries([(word("a"), program), (word("state_dict"), state)]),
        "as a weight": state[:-1] + word("x_embedder.proj.weight") + program + pickle.SETITEMS,
        "as a key": entries([(word("ema"), state), (program, pickle.NONE)]),
        "wrapped": entries([(word("ema"), program)]),
    }[how]
    container = case.base.container if rng.random() < 0.8 else rng.choice(("zip", "legacy"))
    data = (torch_zip if container == "zip" else torch_legacy)(program, storages)
    case.weights.write_bytes(data)
    if danger:
        case.must = "refuse"
    elif how in ("whole", "as a weight", "wrapped") and case.script != INSPECT:
        case.readable = False
    return f"pickle {ascii(name)} {how}, {container}"


@kind(8)
def zips(case: Case) -> str:
    """The archive around a torch file: directory, entries, flags, sizes."""
    rng = case.begin("zip")
    with zipfile.ZipFile(case.weights) as archive:
        parts = [(info.filename, archive.read(info)) for info in archive.infolist()]
    root = parts[0][0].partition("/")[0]
    data = dict(parts)
    tricks = (
        "compressed", "bomb", "escape", "absolute", "twice", "twice the pickle", "encrypted", "descriptor", "overlap", "other local name",
        "central field", "central field", "central field", "local field", "end field", "end field", "comment", "junk before", "many", "two roots",
        "big endian", "byte order", "no byte order", "missing", "short", "long", "method", "symlink", "script", "version", "zip64", "folder entry",
        "zip in a comment", "two archives", "no directory", "names", "pickle as data", "deep root", "empty pickle",
    )  # fmt: skip
    how = rng.choice(tricks)
    key = rng.choice([name for name in data if "/data/" in name] or list(data))
    raw = None
    if how == "compressed":
        raw = zip_bytes(parts, rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
    elif how == "bomb":
        data[rng.choice((key, f"{root}/data.pkl"))] = bytes(100 << 20)
        raw = zip_bytes(list(data.items()), zipfile.ZIP_DEFLATED)
    elif how in ("escape", "absolute"):
        name = (
            rng.choice(("../../x", "../canary/hit", "..\\x")) if how == "escape" else str(case.canary / "hit")
        )
        parts.append((name if rng.random() < 0.5 else f"{root}/{name}", b"x"))
    elif how == "twice":
        parts.append((key, bytes(len(data[key]))))
    elif how == "twice the pickle":
        parts.insert(rng.randrange(len(parts)), (f"{root}/data.pkl", pickle.dumps({}, 2)))
    elif how == "many":
        parts += [(f"{root}/more/{n}", b"") for n in range(rng.choice((1000, 20_000)))]
    elif how == "two roots":
        parts.append(("other/data.pkl", data[f"{root}/data.pkl"]))
    elif how in ("big endian", "byte order", "no byte order"):
        parts = [(name, text) for name, text in parts if not name.endswith("byteorder")]
        order = {
            "big endian": b"big",
            "byte order": rng.choice((b"", b"BIG", b"little\n", b"middle", b"x" * 10_000)),
        }.get(how)
        parts += [(f"{root}/byteorder", order)] if order is not None else []
    elif how == "missing":
        parts = [(name, text) for name, text in parts if name != key]
    elif how in ("short", "long"):
        data[key] = data[key][:-1] if how == "short" else data[key] + bytes(rng.choice((1, 4, 1000)))
        parts = list(data.items())
    elif how == "symlink":
        info = zipfile.ZipInfo(key)
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        parts = [(info, b"/etc/passwd") if name == key else (name, text) for name, text in parts]
    elif how == "script":
        parts += [(f"{root}/constants.pkl", pickle.dumps((), 2)), (f"{root}/code/x.py", b"import os")]
    elif how == "folder entry":
        parts += [(f"{root}/", b""), (f"{root}/data/", b"")]
    elif how == "names":
        parts.append((ascii(odd_name(rng, key))[:60_000], b"x"))
    elif how == "pickle as data":
        data[key] = data[f"{root}/data.pkl"]
        parts = list(data.items())
    elif how == "deep root":
        parts = [(f"a/{name}", text) for name, text in parts]
    elif how == "empty pickle":
        data[f"{root}/data.pkl"] = rng.choice((b"", b".", b"N.", b"\x80\x02", b"\x80\x02}."))
        parts = list(data.items())
    raw = bytearray(raw or zip_bytes(parts))
    file = zipfile.ZipFile(io.BytesIO(raw))
    end = raw.rindex(b"PK\x05\x06")
    central = []  # first bytes of the entries of the directory
    at = file.start_dir
    while raw[at : at + 4] == b"PK\x01\x02":
        central.append(at)
        at += 46 + sum(struct.unpack("<3H", raw[at + 28 : at + 34]))
    one = rng.choice(central)
    local = int.from_bytes(raw[one + 42 : one + 46], "little")
    extreme = rng.choice(
        (
            0,
            1,
            0x7FFF,
            0x8000,
            0xFFFF,
            0x7FFFFFFF,
            0x80000000,
            0xFFFFFFFE,
            0xFFFFFFFF,
            len(raw),
            file.start_dir,
        )
    )
    what = ""

    def put(place: int, fields: Mapping[str, tuple[int, int]], name: str = "") -> str:
        name = name or rng.choice(list(fields))
        offset, size = fields[name]
        raw[place + offset : place + offset + size] = (extreme % (1 << 8 * size)).to_bytes(size, "little")
        return f"{name} {extreme % (1 << 8 * size):#x}"

    if how == "encrypted":
        raw[one + 8] |= 1
        raw[local + 6] |= rng.choice((0, 1))
    elif how == "descriptor":
        raw[one + 8] |= 8
        raw[local + 6] |= 8
        raw[local + 14 : local + 26] = bytes(12)
    elif how == "overlap":
        raw[one + 42 : one + 46] = raw[(other := rng.choice(central)) + 42 : other + 46]
    elif how == "other local name":
        raw[local + 30] ^= 1
    elif how == "method":
        extreme = rng.choice((1, 6, 8, 9, 12, 14, 93, 95, 99))
        what = put(one, CENTRAL, "method")
    elif how == "version":
        what = put(one, CENTRAL, rng.choice(("made by", "needs")))
    elif how == "central field":
        what = put(one, CENTRAL)
    elif how == "local field":
        what = put(local, LOCAL)
    elif how == "end field":
        what = put(end, END)
    elif how == "comment":
        raw[end + 20 : end + 22] = struct.pack("<H", 65_000)
        raw += rng.choice((b"c" * 65_000, b"c" * 10, b"PK\x05\x06" * 16_250))
    elif how == "zip in a comment":
        inner = zip_bytes([("a/data.pkl", b"N.")])
        raw[end + 20 : end + 22] = struct.pack("<H", len(inner))
        raw += inner
    elif how == "two archives":
        raw += zip_bytes([("a/data.pkl", b"N.")])
    elif how == "junk before":
        raw = rng.choice((b"x" * 100, b"\x89HDF", b"PK\x03\x04" + bytes(60))) + raw
    elif how == "no directory":
        del raw[file.start_dir :]
    elif how == "zip64":
        record = struct.pack(
            "<4sQ2H2I4Q",
            b"PK\x06\x06",
            44,
            45,
            45,
            0,
            0,
            extreme,
            extreme,
            extreme,
            rng.choice((0, extreme, 2**63, 2**64 - 1)),
        )
        place = struct.pack(
            "<4sIQI", b"PK\x06\x07", 0, rng.choice((end, extreme, 2**64 - 1)), rng.choice((0, 1, extreme))
        )
        raw[end:end] = record + place
    case.weights.write_bytes(raw)
    return f"zip: {how} {what} of {key}"


CENTRAL = {"made by": (4, 2), "needs": (6, 2), "flags": (8, 2), "method": (10, 2), "time": (12, 2), "date": (14, 2), "crc": (16, 4), "packed": (20, 4),
           "size": (24, 4), "name": (28, 2), "extra": (30, 2), "comment": (32, 2), "disk": (34, 2), "inside": (36, 2), "outside": (38, 4), "place": (42, 4)}  # fmt: skip
LOCAL = {
    "needs": (4, 2),
    "flags": (6, 2),
    "method": (8, 2),
    "crc": (14, 4),
    "packed": (18, 4),
    "size": (22, 4),
    "name": (26, 2),
    "extra": (28, 2),
}
END = {
    "disk": (4, 2),
    "start disk": (6, 2),
    "here": (8, 2),
    "count": (10, 2),
    "size": (12, 4),
    "place": (16, 4),
    "comment": (20, 2),
}


@kind(7)
def protobufs(case: Case) -> str:
    """Values of a ckpt with lengths, fields and slices that MindSpore would not write."""
    rng = case.begin("ckpt")
    found = list(case.base.tensors(case.which).items())
    n = rng.randrange(len(found))
    name, tensor = found[n]
    tag, dims = name.encode(), b"".join(proto(1, k) for k in tensor.shape)
    type_ = WORDS[tensor.word][2].encode()
    inner = dims + proto(2, type_) + proto(3, tensor.raw)
    half = len(tensor.raw) // 2
    huge = b"\xff" * 9 + b"\x01"
    word_type = proto(
        1,
        proto(1, b"words") + proto(2, proto(1, 1) + proto(2, b"str") + proto(3, "sechs".encode("utf-32-le"))),
    )

    def value(tensor_bytes: bytes, before: bytes = b"", after: bytes = b"", label: bytes = tag) -> bytes:
        return proto(1, before + proto(1, label) + proto(2, tensor_bytes) + after)

    def piece(raw: bytes, these: bytes = dims, type_: bytes = type_) -> bytes:
        return value(these + proto(2, type_) + proto(3, raw))

    programs = {
        "huge length": b"\x0a" + huge + b"x",
        "length beyond": b"\x0a" + varint(1 << 40) + value(inner)[3:],
        "endless varint": b"\x0a" + b"\x80" * 100,
        "overlong varint": b"\x0a" + varint(len(value(inner)) - 3)[:-1] + bytes([varint(9)[0] | 0x80, 0x80, 0]),
        "group": b"\x0b" * 10_000,
        "group closed": b"\x0b" + value(inner) + b"\x0c",
        "nested": proto(1, proto(1, proto(1, proto(1, b"x")))),
        "wire type 1": b"\x09" + bytes(8),
        "wire type 5": b"\x0d" + bytes(4),
        "wire type 7": b"\x0f" + bytes(4),
        "field 0": b"\x02" + b"\x01x",
        "field 2^28": varint((1 << 29 | 1) << 3 | 2) + b"\x01x",
        "unknown field": value(inner, after=proto(9, b"x")),
        "unknown number": value(inner, after=proto(9, 3)),
        "tag twice": value(inner, before=proto(1, b"x")),
        "tensor twice": value(inner, after=proto(2, inner)),
        "tensor and map": value(inner, after=proto(3, b"")),
        "map tensor": proto(1, proto(1, tag) + proto(3, proto(1, b"x"))),
        "no tensor": proto(1, proto(1, tag)),
        "no tag": proto(1, proto(2, inner)),
        "empty": proto(1, b""),
        "empty tag": value(inner, label=b""),
        "long tag": value(inner, label=b"x" * 100_000),
        "odd tag": value(inner, label=odd_name(rng, name).encode("utf-8", "surrogatepass")),
        "tag is not utf-8": value(inner, label=b"\xff\xfe"),
        "negative dims": piece(tensor.raw, proto(1, -1)),
        "two negative dims": piece(tensor.raw, proto(1, -1) + proto(1, -len(tensor.raw))),
        "huge dims": piece(tensor.raw, proto(1, 1 << 62) + proto(1, 4)),
        "overflowing dims": piece(tensor.raw, proto(1, (1 << 63) - 1) * 30),
        "zero dims": piece(b"", proto(1, 0) + proto(1, 1 << 62)),
        "many dims": piece(tensor.raw, proto(1, 1) * 100_000 + dims),
        "packed dims": piece(tensor.raw, proto(1, b"".join(varint(k) for k in tensor.shape))),
        "no dims": piece(tensor.raw, b""),
        "scalar": piece(tensor.raw[:4], proto(1, 0), b"Float32"),
        "no type": value(dims + proto(3, tensor.raw)),
        "type twice": value(inner + proto(2, b"Int8")),
        "unknown type": piece(tensor.raw, type_=rng.choice((b"Complex64", b"float32", b"", b"Float32 ", b"Int4", b"\xff", b"x" * 10_000, b"\x1b[2J"))),
        "content twice": value(inner + proto(3, tensor.raw)),
        "no content": value(dims + proto(2, type_)),
        "short content": piece(tensor.raw[:-1]),
        "long content": piece(tensor.raw + b"x"),
        "two slices": piece(tensor.raw[:half]) + piece(tensor.raw[half:]),
        "slices swapped": piece(tensor.raw[half:]) + piece(tensor.raw[:half]),
        "slice missing": piece(tensor.raw[:half]),
        "slice too many": piece(tensor.raw) * 2,
        "slices disagree": piece(tensor.raw[:half]) + piece(tensor.raw[half:], proto(1, 3)),
        "slices of two types": piece(tensor.raw[:half]) + piece(tensor.raw[half:], type_=b"Int8"),
        "slices apart": piece(tensor.raw[:half]) + word_type + piece(tensor.raw[half:]),
        "a thousand slices": b"".join(piece(tensor.raw[i : i + 4]) for i in range(0, len(tensor.raw), 4)),
        "empty slices": piece(b"") * 1000 + piece(tensor.raw),
        "words": word_type + value(inner),
        "bad words": value(inner) + word_type.replace(b"s\0\0\0", b"s\0\xff\xff", 1),
        "number": value(inner) + proto(1, proto(1, b"epoch_num") + proto(2, proto(1, 0) + proto(2, b"Int64") + proto(3, bytes(8)))),
        "moments": value(inner) + proto(1, proto(1, b"adam_m." + tag) + proto(2, inner)),
        "many values": b"".join(proto(1, proto(1, b"e%d" % i) + proto(2, proto(1, 0) + proto(2, b"Int8") + proto(3, b"x"))) for i in range(70_000)),
        "encrypted": (0x7F3A5ED8).to_bytes(4, "little") + value(inner),
    }  # fmt: skip
    how = rng.choice(list(programs))
    parts = [value_bytes(*pair) for pair in found]
    where = rng.choice(("instead", "instead", "first", "last", "alone"))
    if where == "instead":
        parts[n] = programs[how]
    else:
        parts = {"first": [programs[how], *parts], "last": [*parts, programs[how]], "alone": [programs[how]]}[
            where
        ]
    data = b"".join(parts)
    end = rng.choice(("no crc", "crc", "crc", "wrong crc", "half a crc", "huge crc", "crc twice"))
    data = {
        "no crc": data,
        "crc": with_crc(data),
        "wrong crc": data + b"crc_num" + bytes(10),
        "half a crc": with_crc(data)[:-5],
        "huge crc": data + b"crc_num" + b"\xff" * 10,
        "crc twice": with_crc(with_crc(data)),
    }[end]
    case.weights.write_bytes(data)
    if end == "wrong crc" and "--verify" in case.options:
        case.must = "refuse"
    return f"protobuf: {how} {where} of {name}, {end}"


# --------------------------------------------------------------------------------- command lines and file systems


@kind(6)
def lines(case: Case) -> str:
    """Odd words on the command line."""
    rng = case.begin()
    if case.inspects and rng.random() < 0.7:
        case.script, case.target, case.options = COMMANDS[case.base.family], "out/x.safetensors", []
    keys = arguments_of(case.base.family)
    words = ["[" * 50_000, "1," * 5, "4,6", "a=b", "=", ",", "True", "None", "1e999,1"]
    odd = rng.choice([*(text for text in ODD_JSON if len(text) < DEEP), *words, *NUMBERS])
    how = rng.choice(("set", "set", "set", "set", "shards", "shards", "option", "line"))
    if how == "set":
        setting = rng.choice(
            (
                f"{rng.choice(keys)}={odd}",
                f"{rng.choice(keys)}={odd}",
                odd,
                f"={odd}",
                f"_x={odd}",
                f"\x1b[2J={odd}",
                "a" * 50_000,
            )
        )
        case.settings.append(setting)
        if rng.random() < 0.3:
            filling = [seed.name for seed in case.seeds if seed.name in ("dit", "t2v-official", "t2v-folder")]
            case.settings.append(f"{rng.choice(keys)}={rng.choice(NUMBERS)}")
            if case.base.name in filling and case.base.name != "dit":
                case.to = "mindone-opensora-pku"  # has tables that are computed
            case.settings += ["condition=class"] * (case.base.name == "dit" and rng.random() < 0.6)
        return f"--set {ascii(setting)[:60]}"
    if how == "shards":
        case.target = rng.choice(("out/x", "out/x", "out/x", "out/x.pt"))
        case.options = [word_ for word_ in case.options if not word_.startswith("--shard")]
        sizes = ("0", "1", "-1", "1e999", "1e3", "9" * 400, "9" * 5000, "٣", "5GB", "5 gb", "0.4", "0.0001KB", "1.5KiB", "GB", "", " ", "5TB", "1_000",
                 "nan", "inf", "0x10", "1KB1", "+5", "²", "9" * 300 + "." + "9" * 50)  # fmt: skip
        size = rng.choice(sizes)
        case.options.append(f"--shard-size={size}")
        return f"--shard-size {ascii(size)[:40]}"
    if how == "option":
        values_ = (
            "",
            " ",
            "x",
            "\x1b[2J",
            "\n",
            "../x",
            "é",
            "\udcff",
            "-",
            "--",
            "--help",
            "0",
            "x" * 50_000,
            "ema,model",
            "EMA",
            "ours",
            "diffusers",
        )
        value = rng.choice(values_)
        option = rng.choice(("which", "to", "from", "dtype", "source", "script"))
        if option in ("which", "dtype"):
            setattr(case, option, value)
        elif option == "to":
            case.to = value
        elif option == "from":
            case.layout = value
        elif option == "source":
            case.source, case.readable = value, False
        else:
            case.script = rng.choice([*COMMANDS.values(), INSPECT])
        return f"{option} {ascii(value)[:40]}"
    source, target = f"--source={case.source}", "--target=out/x.pt"
    case.target = "out/x.pt"
    spelt = rng.choice((
        [], ["--help"], ["-h"], ["--version"], [source], [target], [source, target, "more"], [source, target, "--force=1"], ["--", source, target],
        [f"@{case.source}"], [source, source, target, target], ["--sou", case.source, "--tar", "out/x.pt"], [source, target, "--set"],
        ["--source", "--target", "out/x.pt"], ["--source", case.source, "--target"], [source, target, "--which"], ["--s=in", target],
        [source, target, "--set", "a=1", "--set", "b=2"], [source, target, "--verify", "--verify"], ["-x"], ["--source=", "--target="],
        [source, target, "--to", "ours", "--to", "diffusers"], [source, "--target=out/x.pt", "--nothing"], ["help"], [""], ["\ud800"], ["\x1b[2J"],
        [source, target, "--help"], ["x" * 100_000],
    ))  # fmt: skip
    case.spelt, case.to, case.dtype, case.which = spelt, "diffusers" if "diffusers" in spelt else "ours", "keep", "ema"
    if "--help" in spelt or "-h" in spelt:
        case.target = None
    return f"arguments {ascii(spelt)[:80]}"


ODD_FILES = (
    "**",
    "*",
    "a\nb",
    "\x1b[2J",
    "-x",
    "--help",
    "é",
    "\udcff",
    "~",
    " ",
    "%s{}",
    "a\u202e",
    "[x]",
    "?",
)


@kind(6)
def places(case: Case) -> str:
    """Sources and targets that are no plain files, or each other."""
    rng = case.begin()
    source = case.folder / case.source
    if rng.random() < 0.45:
        return odd_source(case, source)
    if case.inspects:
        case.script, case.options = COMMANDS[case.base.family], []
    case.target = f"out/x{rng.choice(ENDINGS)}"
    case.options = [word_ for word_ in case.options if word_ == "--verify"] + ["--force"] * (
        rng.random() < 0.6
    )
    ending = rng.choice(ENDINGS)
    out, weights = case.folder / "out", os.path.relpath(case.weights, case.folder)
    clear(out)
    out.mkdir()
    neighbour = case.folder.parent / "neighbour.safetensors"
    targets: dict[str, Callable[[], str]] = {
        "the source": lambda: case.source,
        "the weights": lambda: weights,
        "link to the weights": lambda: linked(out / "x.safetensors", case.weights),
        "hard link to the weights": lambda: os.link(case.weights, out / f"x{ending or '.pt'}") or f"out/x{ending or '.pt'}",
        "folder of the source": lambda: os.path.dirname(weights),
        "link to the source's folder": lambda: linked(out / "x", case.weights.parent),
        "link to a folder": lambda: (out / "y").mkdir() or linked(out / "x", out / "y"),
        "dangling link": lambda: linked(out / f"x{ending}", out / "nothing"),
        "loop": lambda: linked(out / f"x{ending}", out / f"x{ending}"),
        "link to a neighbour": lambda: linked(out / "x.safetensors", neighbour),
        "parent is a link": lambda: linked(out / "x", case.folder / "in") + f"/new{ending}",
        "parent is a loop": lambda: linked(out / "x", out / "x") + f"/new{ending}",
        "parent is a file": lambda: f"{weights}/x{ending}",
        "parent is missing": lambda: f"out/no/x{ending}",
        "beside the source": lambda: f"{os.path.dirname(weights)}/new{ending}",
        "inside the source": lambda: f"{case.source}/x{ending}",
        "side files of the source": lambda: aside(case, rng.choice((".json", ".extras.safetensors"))),
        "fifo": lambda: os.mkfifo(out / f"x{ending}") or f"out/x{ending}",
        "folder with an ending": lambda: (out / "x.pt").mkdir() or "out/x.pt",
        "full folder": lambda: (out / "x").mkdir() or (out / "x/diary.txt").touch() or "out/x",
        "folder in the folder": lambda: (out / "x/diffusion_pytorch_model").mkdir(parents=True) or "out/x",
        "config is a folder": lambda: (out / "x.pt.json").mkdir() or "out/x.pt",
        "config is a link": lambda: linked(out / "x.pt.json", neighbour) and "out/x.pt",
        "extras are there": lambda: (out / "x.pt.extras.safetensors").write_bytes(b"mine") and "out/x.pt",
        "extras are a folder": lambda: (out / "x.pt.extras.safetensors").mkdir() or "out/x.pt",
        "extras are a link": lambda: linked(out / "x.pt.extras.safetensors", neighbour) and "out/x.pt",
        "a leftover": lambda: (out / ".x.abc.tmp").mkdir() or "out/x",
        "a leftover file": lambda: (out / ".x.abc.tmp").touch() or "out/x",
        "read-only folder": lambda: out.chmod(0o500) or f"out/x{ending}",
        "no ending": lambda: rng.choice(("out/.safetensors", "out/x.", "out/.x", "out/x.safetensors.", "out/..pt", "out/x.npz", "out/x.PT", "out/x.pt ")),
        "long name": lambda: f"out/{'n' * rng.choice((100, 230, 240, 250, 300))}{ending}",
        "long path": lambda: "out/" + "n/" * 5000 + f"x{ending}",
        "here": lambda: rng.choice((".", "", "..", "/", "out/..", "out/.", "./", "out/x/", "out//x", "out/x.pt/", "//")),
        "odd name": lambda: f"out/{rng.choice(ODD_FILES)}{ending}",
        "device": lambda: rng.choice(("/dev/null", "/dev/full", "/dev/stdout", "/proc/x.pt", "/proc/self/x", "/sys/x.safetensors", "/dev/fd/1")),
    }  # fmt: skip
    how = rng.choice(list(targets))
    case.target = targets[how]()
    if case.target.startswith(("/dev/", "/proc/", "/sys/")):
        case.roots.append(Path(case.target).parent)
    if how == "folder with an ending":
        case.to = "ours"
    return f"target is {how}: {ascii(case.target)[:60]}"


def linked(link: Path, to: Path) -> str:
    link.symlink_to(to)
    return f"out/{link.name}"


def aside(case: Case, ending: str) -> str:
    """The weights under the name that a side file of the target has."""
    shutil.copy(case.weights, case.folder / f"out/x.safetensors{ending}")
    case.source, case.readable = f"out/x.safetensors{ending}", False
    return "out/x.safetensors"


def odd_source(case: Case, source: Path) -> str:
    rng, inside = case.rng, case.folder / "in"
    case.readable = False
    weights, odd = case.weights, inside / "odd"

    def sparse(start: bytes, name: str = "odd.pt", size: int = 1 << 30) -> str:
        (inside / name).write_bytes(start)
        os.truncate(inside / name, size)
        return f"in/{name}"

    def full() -> str:
        odd.mkdir()
        for n in range(1000):
            (odd / f"\x1b[{n}").touch()
        return "in/odd"

    def to(place: str | Path) -> str:
        odd.symlink_to(place)
        return "in/odd"

    def renamed(name: str) -> str:
        weights.rename(weights.with_name(name))
        return os.path.relpath(weights.with_name(name), case.folder)

    huge = json.dumps({"a": {"dtype": "F32", "shape": [1 << 27], "data_offsets": [0, 1 << 29]}})
    sources: dict[str, Callable[[], str]] = {
        "missing": lambda: "in/nothing.pt",
        "empty": lambda: odd.touch() or "in/odd",
        "empty folder": lambda: odd.mkdir() or "in/odd",
        "full folder": full,
        "weights are a folder": lambda: (odd / "model.safetensors").mkdir(parents=True) or "in/odd",
        "fifo": lambda: os.mkfifo(odd) or "in/odd",
        "fifo in a folder": lambda: odd.mkdir() or os.mkfifo(odd / "model.safetensors") or "in/odd",
        "socket": lambda: os.mknod(odd, stat.S_IFSOCK | 0o600) or "in/odd",
        "loop": lambda: to("odd"),
        "dangling": lambda: to("nothing"),
        "link to weights": lambda: to(os.path.relpath(weights, inside)),
        "link to /dev/zero": lambda: to("/dev/zero"),
        "link to itself": lambda: to("."),
        "device": lambda: rng.choice(("/dev/null", "/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/self/environ", "/proc/self/maps", "/proc/1/mem")),
        "unreadable": lambda: weights.chmod(0) or case.source,
        "unreadable folder": lambda: inside.chmod(0) or case.source,
        "long name": lambda: "in/" + "n" * 300,
        "long path": lambda: "n/" * 5000 + "x",
        "a script": lambda: str(ROOT / case.script),
        "slash": lambda: case.source + "/",
        "round about": lambda: f"in/../in/./../{case.source}",
        "here": lambda: rng.choice(("", ".", "..", "/", "//", "~", "-", "*")),
        "odd name": lambda: renamed(rng.choice(("a\nb.pt", "\x1b[2J.safetensors", "é.pt", "\udcff.safetensors", "-x.bin", " ", "x", "x.ckpt", "x.safetensors", "x.pt",
                                                 "x.index.json", "x.json", ".pt", "x.safetensors.json"))),
        "sparse zeros": lambda: sparse(b""),
        "sparse safetensors": lambda: sparse(header_bytes(huge)),
        "sparse header": lambda: sparse((99_000_000).to_bytes(8, "little") + b"{", "odd.safetensors"),
        "sparse zip": lambda: sparse(b"PK\x03\x04"),
        "sparse legacy": lambda: sparse(torch_legacy(b"}", {})),
        "sparse ckpt": lambda: sparse(proto(1, proto(1, b"x") + b"\x12") + bytes(10), "odd.ckpt"),
        "sparse ckpt value": lambda: sparse(b"\x0a" + varint((1 << 30) - 6) + b"\x0a\x01x\x12" + varint((1 << 30) - 14), "odd.ckpt"),
        "sparse index": lambda: sparse(b'{"weight_map": {}}', "odd.index.json", 1 << 28),
        "sparse config": lambda: sparse(b"{}", f"{source.stem if source.is_file() else 'x'}.json", 1 << 28) and case.source,
        "html": lambda: odd.write_bytes(b"<!DOCTYPE html><html>" + b" " * 5000) and "in/odd",
        "git lfs": lambda: odd.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64) and "in/odd",
        "tar": lambda: odd.write_bytes(b"sys_info\0" + bytes(10_000)) and "in/odd",
        "pickle": lambda: odd.write_bytes(pickle.dumps({"ema": {}}, rng.choice((0, 2, 4)))) and "in/odd",
        "noise": lambda: odd.write_bytes(rng.randbytes(5000)) and "in/odd",
        "pipeline": lambda: shutil.copytree(inside, inside / "vae") and shutil.copytree(inside / "vae", inside / "transformer", dirs_exist_ok=True) and "in",
    }  # fmt: skip
    how = rng.choice(list(sources))
    case.source = sources[how]()
    return f"source is {how}: {ascii(case.source)[:60]}"


# -------------------------------------------------------------------------------------------- the guarded worker

LAUNCHES = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
    "subprocess.Popen",
)
LAUNCHES += (
    "socket.",
    "pickle.find_class",
    "webbrowser.open",
    "urllib.Request",
    "ftplib.",
    "smtplib.",
    "http.client",
    "os.putenv",
)
CHANGES = {
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.remove": 1,
    "os.rename": 2,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.chmod": 1,
    "os.chown": 1,
}
CHANGES |= {
    "os.link": 2,
    "os.utime": 1,
    "shutil.rmtree": 1,
    "shutil.move": 2,
    "shutil.copyfile": 2,
    "tempfile.mkdtemp": 1,
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Hang(BaseException):
    """The alarm of a case; no `except Exception` catches it."""


class Watch:
    """The audit hook: while it is on, it notes executed code and changes outside of `roots`."""

    def __init__(self):
        self.on, self.roots, self.events = False, (), []
        # The code of Python, numpy and this repository may run; whatever else is compiled or executed may not.
        self.known = (
            str(ROOT / "converters"),
            os.path.dirname(os.__file__),
            os.path.dirname(np.__file__),
            "<frozen",
        )

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event.startswith(LAUNCHES):
            self.events.append(f"executed: {event} {ascii(arguments)[:100]}")
        elif event == "import":
            name = arguments[0].partition(".")[0]
            if name not in sys.stdlib_module_names and name not in ("converters", "numpy"):
                self.events.append(f"executed: import {arguments[0]}")
        elif event in ("exec", "compile"):
            code = arguments[0] if event == "exec" else None
            file = getattr(code, "co_filename", None) if code is not None else arguments[1]
            if not str(os.fsdecode(file) if isinstance(file, bytes) else file).startswith(self.known):
                self.events.append(f"executed: {event} of {ascii(file)[:100]}")
        elif event == "ctypes.dlopen" and arguments[0] is not None:
            self.events.append(f"executed: dlopen {arguments[0]!r}")
        elif event == "open":
            path, mode, flags = arguments
            writes = flags & WRITES if isinstance(flags, int) else set(mode or "") & set("wax+")
            if writes and not isinstance(path, int) and not self.inside(os.path.realpath(path)):
                self.events.append(f"outside: open {ascii(path)[:200]} {mode or oct(flags)}")
        elif event in CHANGES:
            changed = arguments[1:2] if event == "os.link" else arguments[: CHANGES[event]]
            for path in changed:
                if isinstance(path, (str, bytes, os.PathLike)) and not self.inside(_place(path)):
                    self.events.append(f"outside: {event} {ascii(path)[:200]}")

    def inside(self, path: str | bytes) -> bool:
        path = os.fsdecode(path)
        return any(path == root or path.startswith(root.rstrip("/") + "/") for root in self.roots)


def _place(path: str | bytes | os.PathLike) -> str:
    """Where a name lies, itself not followed."""
    folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
    return os.path.join(os.path.realpath(folder), name)


def _command(script: str) -> Callable[[list[str]], int]:
    """`main` of a script: of this package, or of a file elsewhere (the tests of the fuzzer)."""
    path = Path(script)
    if not path.is_absolute():
        return importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
    found = importlib.util.spec_from_file_location(f"stub_{path.stem}", path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.main


def _status(*names: str) -> list[int]:
    """Numbers of /proc/self/status, in bytes."""
    text = Path("/proc/self/status").read_text()
    return [int(re.search(rf"^{name}:\s+(\d+) kB", text, re.M)[1]) << 10 for name in names]


def serve() -> None:
    """The worker: a request in JSON on each line of stdin, an answer on each line of stdout."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    printed = [os.memfd_create("out"), os.memfd_create("err")]
    for name in (*COMMANDS.values(), INSPECT):
        _command(name)
    import converters.checkpoint

    def ring(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, ring)
    watch = Watch()
    sys.addaudithook(watch)
    (size,) = _status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    for line in requests:
        request = json.loads(line)
        os.chdir(request["folder"])
        answer = {"raised": None, "hang": False, "code": None, "again": None, "leaks": []}
        for fd, file in zip((1, 2), printed, strict=True):
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
            os.dup2(file, fd)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", "strict", write_through=True)
        sys.stderr = io.TextIOWrapper(
            io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", write_through=True
        )
        command = _command(request["script"])
        handles, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        Path("/proc/self/clear_refs").write_text("5")
        (before,) = _status("VmRSS")
        start, cpu = time.monotonic(), time.process_time()
        watch.roots, watch.events, watch.on = tuple(request["roots"]), [], True
        signal.alarm(request["hang"])
        try:
            answer["code"] = command(request["arguments"])
        except SystemExit as done:
            answer["code"] = done.code if isinstance(done.code, int) else int(done.code is not None)
        except Hang:
            answer["hang"] = True
        except BaseException as error:
            watch.on = False  # traceback compiles what it shows
            traceback.print_exc()
            answer["raised"], answer["code"] = f"{type(error).__name__}: {str(error)[:200]}", 1
        signal.alarm(0)
        answer["cpu"], answer["wall"] = time.process_time() - cpu, time.monotonic() - start
        answer["memory"] = max(_status("VmHWM")[0] - before, 0)
        if answer["code"] == 0 and request["target"]:
            signal.alarm(request["hang"])
            try:
                found = converters.checkpoint.load(
                    request["target"], layout=request["layout"], family=request["family"]
                )
                answer["again"] = {
                    "config": found.config,
                    "layout": found.layout,
                    "names": list(found.tensors),
                }
                del found
            except (Exception, Hang) as error:
                answer["again"] = {"error": f"{type(error).__name__}: {error}"}
            signal.alarm(0)
        watch.on = False
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError):
                stream.flush()
        if len(os.listdir("/proc/self/fd")) > handles:
            gc.collect()
        if (now := len(os.listdir("/proc/self/fd"))) > handles:
            answer["leaks"].append(f"{now - handles} open files")
        if (now := threading.active_count()) > threads:
            answer["leaks"].append(f"{now - threads} threads")
        answer["out"], answer["err"] = (
            os.pread(file, 64 << 20, 0).decode("utf-8", "replace") for file in printed
        )
        answer["events"] = watch.events
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


@dataclass
class Outcome:
    """What became of a command. `died`: why it did not end by itself."""

    code: int | None = None
    out: str = ""
    err: str = ""
    cpu: float = 0.0
    wall: float = 0.0
    memory: int = 0
    raised: str | None = None
    hang: bool = False
    died: str | None = None
    again: dict | None = None
    events: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)


class Worker:
    """The guarded worker as seen from here; restarted when it dies."""

    def __init__(self, yard: Path, hang: int = HANG):
        self.yard, self.hang, self.process, self.restarts = yard, hang, None, -1

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    def start(self) -> None:
        self.restarts += 1
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            cwd=ROOT,
            env=_environment(TMPDIR=str(self.yard / "tmp")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.yard.parent / f"{self.yard.name}.worker.log").open("ab"),
        )

    def ask(self, case: Case) -> Outcome:
        if self.process is None or self.process.poll() is not None:
            self.start()
        request = {
            "script": case.script,
            "arguments": case.arguments,
            "folder": str(case.folder),
            "roots": [os.path.realpath(root) for root in case.roots],
            "hang": self.hang,
            "target": None if case.inspects else case.target,
            "layout": None if case.to == "ours" else case.to,
            "family": next((name for name, script in COMMANDS.items() if script == case.script), "latte"),
        }
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        line, deadline = b"", time.monotonic() + 2 * self.hang + 10
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                self.process.kill()
                self.process.wait()
                return Outcome(died="hang: the alarm went unheard, the watchdog killed it")
            piece = os.read(self.process.stdout.fileno(), 1 << 20)
            if not piece:
                return Outcome(died=f"crash: the worker ended with code {self.process.wait()}")
            line += piece
        return Outcome(**json.loads(line))


def run_process(case: Case, hang: int = HANG) -> Outcome:
    """The case as users run it, with limits; its memory is what it had above the same command's --help."""
    script = case.script if os.path.isabs(case.script) else str(ROOT / case.script)
    peak, start = 0, time.monotonic()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        resource.setrlimit(resource.RLIMIT_CPU, (hang, hang + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [sys.executable, script, *case.arguments],
            cwd=case.folder,
            env=_environment(TMPDIR=str(case.folder.parent / "tmp"), PYTHONDONTWRITEBYTECODE="1"),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            preexec_fn=limit,
        )
        died = None
        while (done := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            with contextlib.suppress(OSError, TypeError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                peak = int(re.search(r"^VmHWM:\s+(\d+) kB", status, re.M)[1]) << 10
            if time.monotonic() - start > 2 * hang:
                process.kill()
                died = "hang: it had to be killed"
            time.sleep(0.002)
        _, status, usage = done
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode < 0 and not died:
            died = f"crash: signal {-process.returncode}"
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    cpu = usage.ru_utime + usage.ru_stime
    memory = max(peak - (64 << 20), 0)  # Python and numpy take about 40 MiB
    raised = (
        texts[1].rstrip().rpartition("\n")[2] if "Traceback (most recent call last)" in texts[1] else None
    )
    return Outcome(process.returncode, *texts, cpu, time.monotonic() - start, memory, raised, died=died)


# --------------------------------------------------------------------------------------------------- verdicts


def snapshot(folder: Path) -> dict[str, tuple]:
    """Every name below a folder: what it is, its rights, its content."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = os.path.join(place, name)
            about = os.lstat(path)
            content: object = None
            if stat.S_ISLNK(about.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(about.st_mode):
                large = about.st_size > 64 << 20
                content = (
                    about.st_size,
                    about.st_mtime_ns if large else hashlib.sha1(Path(path).read_bytes()).digest(),
                )
            found[os.path.relpath(path, folder)] = about.st_mode, content
    return found


def changes(before: Mapping[str, tuple], after: Mapping[str, tuple]) -> list[str]:
    return sorted(name for name in {**before, **after} if before.get(name) != after.get(name))


@dataclass
class Trial:
    """A case, what became of it, and the folder before and after."""

    case: Case
    outcome: Outcome
    before: dict[str, tuple]
    after: dict[str, tuple]
    yard: list[str]  # what changed around the case's folder
    plans: "Plans"

    @property
    def converted(self) -> bool:
        return self.outcome.code == 0 and not self.case.inspects and self.case.target is not None

    @property
    def failed(self) -> bool:
        return not self.outcome.died and not self.outcome.hang and self.outcome.code not in (0, 1)

    @property
    def word(self) -> str:
        """The outcome, for the summary."""
        if self.outcome.died or self.outcome.hang:
            return "died"
        if self.case.inspects:
            return {0: "inspected", 1: "no layout"}.get(self.outcome.code, "refused")
        return "refused" if self.outcome.code else "converted" if self.case.target else "helped"


Rule = Callable[[Trial], "Iterator[str] | list[str]"]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """A rule gives a line for each way in which a trial breaks it."""
    RULES[function.__name__] = function
    return function


@rule
def ends(trial: Trial) -> Iterator[str]:
    """By itself, with a documented exit code, without a traceback."""
    outcome = trial.outcome
    if outcome.died or outcome.hang:
        yield outcome.died or f"hang: the alarm rang after {outcome.wall:.0f} s"
        return
    documented = (0, 1, 2) if trial.case.inspects else (0, 2)
    if outcome.raised:
        yield f"traceback: {outcome.raised}"
    elif outcome.code not in documented:
        yield f"exit code {outcome.code}, documented are {documented}"


@rule
def speaks(trial: Trial) -> Iterator[str]:
    """One line of error on failure, nothing on stderr otherwise, and never a letter that steers the terminal."""
    outcome = trial.outcome
    if outcome.died or outcome.hang or outcome.raised:
        return
    if outcome.code == 2:
        if not re.fullmatch(r"error: [^\n]+\n", outcome.err):
            yield f"stderr is not one line of error: {outcome.err[:300]!r}"
        if len(outcome.err) > MESSAGE:
            yield f"an error of {len(outcome.err)} letters"
    elif outcome.err:
        yield f"success, and on stderr: {outcome.err[:300]!r}"
    for name, text in (("stdout", outcome.out), ("stderr", outcome.err)):
        if strange := re.search(r"[^\n -~]", "".join(c for c in text if c == "\n" or not c.isprintable())):
            yield f"{name} holds {strange[0]!r}"


@rule
def cleans_up(trial: Trial) -> Iterator[str]:
    """A failure leaves everything as it was; success changes the target's files alone, older ones with --force."""
    case, changed = trial.case, changes(trial.before, trial.after)
    if case.target and not case.inspects:  # what a killed process left of this target is removed by the next
        leftover = re.compile(rf"(.*/)?\.{re.escape(os.path.basename(case.target))}\.[^/.]+\.tmp(/.*)?")
        changed = [name for name in changed if name in trial.after or not leftover.fullmatch(name)]
    if not changed or trial.outcome.died:
        return
    if not trial.converted:
        for name in changed:
            how = "left behind" if name not in trial.before else "changed or removed"
            yield f"{how} by a command that {'failed' if trial.outcome.code else 'only looks'}: {name}"
        return
    target = _place(case.folder / case.target)
    mine = os.path.relpath(target, case.folder)
    folder = os.path.isdir(target)
    for name in changed:
        belongs = name in (mine, f"{mine}.json", f"{mine}.extras.safetensors") or (
            folder and name.startswith(f"{mine}/")
        )
        if not belongs:
            yield f"success changed {name}, which is no part of the target {case.target}"
        elif name in trial.before and "--force" not in case.arguments:
            yield f"without --force, {name} was changed or removed"
    source = os.path.relpath(os.path.realpath(case.folder / case.source), case.folder)
    if any(name == source or name.startswith(f"{source}/") for name in changed if name in trial.before):
        yield "the source was changed"


@rule
def stays_inside(trial: Trial) -> Iterator[str]:
    yield from (event for event in trial.outcome.events if event.startswith("outside"))
    yield from (
        f"outside of the case's folder: {name}" for name in trial.yard if not name.startswith("canary/")
    )


@rule
def runs_nothing(trial: Trial) -> Iterator[str]:
    yield from (event for event in trial.outcome.events if event.startswith("executed"))
    yield from (f"the canary was hit: {name}" for name in trial.yard if name.startswith("canary/"))


@rule
def is_modest(trial: Trial) -> Iterator[str]:
    """Memory, time, open files and threads."""
    outcome = trial.outcome
    size = sum(
        about[1][0]
        for about in trial.before.values()
        if isinstance(about[1], tuple) and about[1][0] < 64 << 20
    )
    if outcome.memory > MEMORY + PER_BYTE * size:
        yield f"memory: {outcome.memory >> 20} MiB for {size:,} bytes of input"
    if "not enough memory" in outcome.err or "Cannot allocate" in outcome.err:
        yield f"memory: {outcome.err[:200]}"
    if outcome.cpu > CPU_LIMIT:
        yield f"slow: {outcome.cpu:.1f} s"
    yield from (f"leak: {leak}" for leak in outcome.leaks)


@rule
def is_right(trial: Trial) -> Iterator[str]:
    """What must be refused is refused, and what is whole is taken."""
    case, outcome = trial.case, trial.outcome
    if case.must == "refuse" and outcome.code in (0, 1):
        yield "accepted what has to be refused"
    if case.must == "convert" and outcome.code != 0:
        yield f"refused what is whole: {outcome.err[:300]}"


@rule
def writes_what_it_read(trial: Trial) -> Iterator[str]:
    """The target is complete, others read it, and it holds what others see in the source."""
    case, outcome = trial.case, trial.outcome
    if not trial.converted:
        return
    target = case.folder / case.target
    if not os.path.lexists(target):
        yield "success without a target"
        return
    if outcome.again and "error" in outcome.again:
        yield f"our own target cannot be opened: {outcome.again['error'][:300]}"
        return
    try:
        written = view(written_weights(target))
        extras = {}
        for path in extras_of(target):
            extras |= view(path)
    except Exception as error:
        yield f"others cannot read the target: {type(error).__name__}: {str(error)[:300]}"
        return
    if outcome.again:
        printed = re.search(r"^config    (.*)$", outcome.out, re.M)
        if printed and json.loads(printed[1]) != json.loads(json.dumps(outcome.again["config"])):
            yield f"the target says {outcome.again['config']}, the command said {printed[1]}"
        if case.given is not None:
            yield from disobeyed(case, outcome.again["config"])
    if case.readable:
        tree = weights_of(written, "ema")
        yield from itertools.islice(differences(trial, tree, extras), 3)


def written_weights(target: Path) -> Path:
    if not target.is_dir():
        return target
    (found,) = [path for path in target.iterdir() if path.name.endswith(".safetensors.index.json")] or [
        path
        for path in target.iterdir()
        if path.suffix == ".safetensors" and not path.name.endswith(".extras.safetensors")
    ]
    return found


def extras_of(target: Path) -> list[Path]:
    if target.is_dir():
        return [path for path in target.iterdir() if path.name.endswith(".extras.safetensors")]
    beside = target.with_name(f"{target.name}.extras.safetensors")
    return [beside] if beside.is_file() else []


def disobeyed(case: Case, config: Mapping[str, object]) -> Iterator[str]:
    """Arguments of a configuration file that did not arrive."""
    told = {pair.partition("=")[0] for pair in case.settings}

    def plain(value: object) -> object:
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            return plain(value[0])
        return float(value) if type(value) in (int, float) else value

    for key, value in case.given.items():
        if key in config and key not in told and plain(config[key]) != plain(value):
            yield f"{key} is {str(config[key])[:60]!r}, the configuration said {str(value)[:60]!r}"


class Plans:
    """Where each tensor of an unharmed seed goes: learned once from a clean conversion of it."""

    def __init__(self, folder: Path):
        self.folder, self.known = folder, {}

    def of(self, case: Case) -> dict[str, tuple[str | None, np.ndarray | None, Tensor]]:
        """target name -> (source name, permutation, what stood there); source None: filled in by the converter."""
        from converters.convert import convert
        from converters.errors import ConversionError

        base = case.base
        key = base.name, case.to, case.which
        if key not in self.known:
            path, plan = self.folder / "plan.safetensors", {}
            path.unlink(missing_ok=True)
            overrides = {k: json.loads(v) for k, _, v in (pair.partition("=") for pair in base.settings)}
            try:
                convert(
                    base.folder / base.source, path, case.which, base.layout, case.to, overrides, force=True,
                    family=base.family, say=lambda line: None,
                )  # fmt: skip
            except ConversionError:
                pass
            else:
                for name, tensor in view(path).items():
                    plan[name] = *_origin(tensor, base.tensors(case.which)), tensor
            self.known[key] = plan
        return self.known[key]


def _origin(tensor: Tensor, source: Mapping[str, Tensor]) -> tuple[str | None, np.ndarray | None]:
    size = WORDS[tensor.word][0]
    mine = np.frombuffer(tensor.raw, f"V{size}").view(f"u{size}")
    for name, other in source.items():
        if other.word == tensor.word and other.raw == tensor.raw:
            return name, None
    order = np.argsort(mine, kind="stable")
    for name, other in source.items():
        theirs = np.frombuffer(other.raw, f"u{WORDS[other.word][0]}")
        if other.word == tensor.word and len(theirs) == len(mine):
            there = np.argsort(theirs, kind="stable")
            if np.array_equal(theirs[there], mine[order]):
                permutation = np.empty(len(mine), np.int64)
                permutation[order] = there
                return name, permutation
    return None, None


def differences(trial: Trial, written: Mapping[str, Tensor], extras: Mapping[str, Tensor]) -> Iterator[str]:
    """Tensors of the target that are not those of the source, and tensors of the source that are gone."""
    case = trial.case
    plan, source = trial.plans.of(case), sources(case)
    beside = {}
    for path in (f"{case.weights.stem}.extras.safetensors", f"{case.weights.name}.extras.safetensors"):
        if case.weights.with_name(path).is_file():
            with contextlib.suppress(Exception):
                beside = view(case.weights.with_name(path))
    used = set()
    for name, tensor in {**extras, **written}.items():
        origin, permutation, clean = plan.get(name, (name, None, None))
        if origin is None and name in plan and name not in source and name not in beside:
            if clean.shape == tensor.shape and not alike(tensor, clean, case.dtype):
                yield f"{name} is filled with other numbers than usual"
            continue
        found = source.get(origin, source.get(name, beside.get(origin, beside.get(name))))
        if found is not None:
            used |= {origin, name}
            size = WORDS[found.word][0]
            if permutation is not None and len(found.raw) == len(permutation) * size:
                raw = np.frombuffer(found.raw, f"V{size}")[permutation].tobytes()
                found = Tensor(found.word, tensor.shape, raw)
            if alike(tensor, found, case.dtype) or (name in extras and alike(tensor, found, "keep")):
                continue
        others = [other for other, value in source.items() if alike(tensor, value, case.dtype)]
        if not others:
            yield f"{name} holds other bits than the source"
        used |= set(others)
    lost = [
        name
        for name, tensor in source.items()
        if name not in used and not any(alike(value, tensor, case.dtype) for value in written.values())
    ]
    if lost and not re.search(r"^note      (dropped|left) ", trial.outcome.out, re.M):
        yield f"lost without a word: {', '.join(map(ascii, lost[:3]))}"


def sources(case: Case) -> dict[str, Tensor]:
    """The weights that others see in the mutated source; where they see none, what we know to be there."""
    try:
        return weights_of(view(case.weights), case.which)
    except Exception:
        if case.wrote is not None:
            return weights_of(case.wrote, case.which)
        clean = case.base.tensors(case.which)
        if not case.placed:
            return clean
        found = {}
        for name, tensor in clean.items():
            file, at = case.base.spots(case.which).get(name, (None, 0))
            raw = (case.folder / "in" / file).read_bytes()[at : at + len(tensor.raw)] if file else b""
            found[name] = Tensor(tensor.word, tensor.shape, raw)
        return found


def alike(written: Tensor, read: Tensor, dtype: str) -> bool:
    """The same bits; after a cast, those that torch's cast gives."""
    target = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}.get(dtype, read.word)
    if read.word not in FLOATS or target == read.word:
        return (written.word, written.raw) == (read.word, read.raw)
    if written.word != target or len(written.raw) // WORDS[target][0] != len(read.raw) // WORDS[read.word][0]:
        return False
    if not read.raw:
        return True
    import torch

    types = {word_: getattr(torch, name) for word_, name in zip(WORDS, TORCH_DTYPES, strict=True)}
    before = torch.frombuffer(bytearray(read.raw), dtype=types[read.word])
    got = torch.frombuffer(bytearray(written.raw), dtype=types[target])
    if (got.isinf() & before.isfinite()).any():
        return False  # has to be refused
    same = bits_of(before.to(types[target])) == bits_of(got)
    if read.word == "F64" and target == "F16":  # torch rounds twice, by way of float32; numpy once
        with np.errstate(all="ignore"):
            same |= bits_of(torch.from_numpy(before.numpy().astype(np.float16))) == bits_of(got)
    return bool((same | (before.isnan() & got.isnan())).all())


def bits_of(tensor):
    """A torch tensor's bits as integers."""
    import torch

    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def judge(trial: Trial) -> list[str]:
    """Everything that is wrong with a trial, as "rule: what"."""
    return [f"{name}: {line}" for name, check in RULES.items() for line in check(trial)]


# --------------------------------------------------------------------------------------------------- campaign


class Campaign:
    """Cases one after the other in a yard of their own: the case's folder, a canary, a neighbour, a folder for
    temporary files. Whatever changes there is the command's doing.
    """

    def __init__(self, yard: Path, seeds: list[Seed], hang: int = HANG):
        self.yard, self.seeds, self.hang = yard, seeds, hang
        for name in ("canary", "tmp"):
            (yard / name).mkdir(parents=True, exist_ok=True)
        (yard / "neighbour.safetensors").write_bytes(b"not yours")
        self.worker = Worker(yard, hang)
        plans = yard.parent / f"{yard.name}.plans"
        plans.mkdir(exist_ok=True)
        self.plans = Plans(plans)

    def around(self) -> dict[str, tuple]:
        names = {}
        for name in ("canary", "tmp"):
            names |= {f"{name}/{inner}": about for inner, about in snapshot(self.yard / name).items()}
        for entry in os.scandir(self.yard):
            names[entry.name] = (entry.is_dir(), entry.stat().st_size if entry.is_file() else None)
        return names

    def run(self, case: Case) -> Trial:
        before, around = snapshot(case.folder), self.around()
        outcome = run_process(case, self.hang) if case.process else self.worker.ask(case)
        yard = changes(around, self.around())
        for name in yard:
            if name not in around:
                clear(path) if (path := self.yard / name).is_dir() else path.unlink(missing_ok=True)
        return Trial(case, outcome, before, snapshot(case.folder), yard, self.plans)

    def play(self, seed: int, index: int) -> tuple[Trial, list[str]]:
        trial = self.run(make_case(seed, index, self.yard, self.seeds))
        return trial, judge(trial)


def summary_of(seed: int, indices: Sequence[int], campaign: Campaign, say: Callable[[str], None]) -> dict:
    """Run these cases; the result can be added to others."""
    counts, violations, slowest, largest = Counter(), [], [], []
    start = time.monotonic()
    for done, index in enumerate(indices, 1):
        trial, wrong = campaign.play(seed, index)
        case, outcome = trial.case, trial.outcome
        counts[f"{case.kind}/{trial.word}"] += 1
        about = f"{seed}:{index} {case.base.name if case.base else ''} {case.what}"
        slowest.append((outcome.cpu, about))
        largest.append((outcome.memory, about))
        slowest, largest = sorted(slowest)[-3:], sorted(largest)[-3:]
        for line in wrong:
            violations.append(
                {"case": f"{seed}:{index}", "kind": case.kind, "what": case.what, "wrong": line}
            )
            say(f"VIOLATION {seed}:{index} {case.kind}: {line[:500]}\n          {case.what}")
        if done % 500 == 0:
            say(
                f"{done} of {len(indices)} cases, {len(violations)} violations, {time.monotonic() - start:.0f} s"
            )
    restarts = max(campaign.worker.restarts, 0)
    return {
        "counts": counts,
        "violations": violations,
        "slowest": slowest,
        "largest": largest,
        "restarts": restarts,
    }


def together(parts: Sequence[dict]) -> dict:
    counts = sum((Counter(part["counts"]) for part in parts), Counter())
    found = {
        key: [row for part in parts for row in part[key]] for key in ("violations", "slowest", "largest")
    }
    found["slowest"], found["largest"] = (
        sorted(map(tuple, found[key]))[-3:] for key in ("slowest", "largest")
    )
    return {"counts": counts, **found, "restarts": sum(part["restarts"] for part in parts)}


WORDS_OF_OUTCOMES = ("converted", "refused", "inspected", "no layout", "helped", "died")


def table(summary: Mapping) -> str:
    """Counts of kinds and outcomes, extremes, violations with the way to see them again."""
    rows = [f"{'':<14}" + "".join(f"{word_:>11}" for word_ in WORDS_OF_OUTCOMES) + f"{'all':>11}"]
    totals = Counter()
    for name in KINDS:
        numbers = [summary["counts"].get(f"{name}/{word_}", 0) for word_ in WORDS_OF_OUTCOMES]
        totals.update(dict(zip(WORDS_OF_OUTCOMES, numbers, strict=True)))
        rows.append(f"{name:<14}" + "".join(f"{n:>11}" for n in numbers) + f"{sum(numbers):>11}")
    rows.append(
        f"{'all':<14}"
        + "".join(f"{totals[w]:>11}" for w in WORDS_OF_OUTCOMES)
        + f"{sum(totals.values()):>11}"
    )
    for cpu, about in summary["slowest"][-1:]:
        rows.append(f"slowest     {cpu:.2f} s of processor time: {about[:150]}")
    for memory, about in summary["largest"][-1:]:
        rows.append(f"largest     {memory / (1 << 20):.0f} MiB above the worker's own: {about[:150]}")
    rows.append(f"violations  {len(summary['violations'])}, worker restarted {summary['restarts']} times")
    for found in summary["violations"]:
        rows.append(
            f"  {found['kind']}: {found['wrong'][:200]}\n    python tests/converters/fuzz.py --replay {found['case']}"
        )
    return "\n".join(rows)


def replay(case_number: str, campaign: Campaign, keep: Path | None) -> int:
    seed, index = map(int, case_number.split(":"))
    trial, wrong = campaign.play(seed, index)
    case, outcome = trial.case, trial.outcome
    print(f"seed      {case.base.name}\nkind      {case.kind}\nmutation  {case.what}")
    print(f"command   python {case.script} {' '.join(map(ascii, case.arguments))[:2000]}")
    print(
        f"outcome   {trial.word}, exit code {outcome.code}, {outcome.cpu:.2f} s, {outcome.memory >> 20} MiB"
    )
    print("".join(f"          {line}\n" for line in ascii(outcome.out).split("\\n")[:40]), end="")
    print(outcome.err[:5000])
    print("changed  ", *changes(trial.before, trial.after)[:20])
    for line in wrong:
        print(f"VIOLATION {line}")
    if keep:
        shutil.copytree(case.folder, keep, symlinks=True)
        print(f"the case's folder is in {keep}")
    return bool(wrong)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 1 when any rule is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1000, help="in the guarded worker (default %(default)s)")
    parser.add_argument("--processes", type=int, default=20, help="as real processes (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the campaign (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="index of the first case")
    parser.add_argument("--kind", choices=KINDS, help="only cases of this kind")
    parser.add_argument("--jobs", type=int, default=1, help="at the same time (default %(default)s)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write all counts and violations as JSON")
    parser.add_argument("--replay", metavar="SEED:INDEX", help="show one case")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="with --replay: copy the case's folder there"
    )
    parser.add_argument(
        "--seeds", type=Path, metavar="FOLDER", help="where the small checkpoints are, or are made"
    )
    parser.add_argument(
        "--folder", type=Path, help="where to work (default: /dev/shm, else the temporary folder)"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--make-seeds", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)  # "1/4": every fourth case from the second on
    args = parser.parse_args(arguments)
    if args.worker:
        serve()
        return 0
    if args.make_seeds:
        make_seeds(args.make_seeds)
        return 0
    home = args.folder or (Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None)
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=home) as work:
        folder = Path(work).resolve()
        place = (args.seeds or folder / "seeds").resolve()
        seeds = load_seeds(place)
        if args.jobs > 1 and not args.replay:
            summary = together(_in_parts(args, place, folder))
        else:
            campaign = Campaign(folder / "yard", seeds)
            with campaign.worker:
                if args.replay:
                    return replay(args.replay, campaign, args.keep)
                part, of = map(int, (args.part or "0/1").split("/"))
                indices = numbers(args)
                summary = summary_of(
                    args.seed, indices[part::of], campaign, lambda line: print(line, flush=True)
                )
            clear(campaign.yard)
    if args.report:
        args.report.write_text(json.dumps(summary, indent=1))
    print(table(summary))
    return bool(summary["violations"])


def numbers(args: argparse.Namespace) -> list[int]:
    """The indices of the cases to run, those of real processes last."""
    found = []
    for first, count in ((args.first, args.cases), (PROCESSES + args.first, args.processes)):
        fitting = (
            i for i in itertools.count(first) if args.kind in (None, kind_of(Random(f"{args.seed}:{i}")))
        )
        found += itertools.islice(fitting, count)
    return found


def _in_parts(args: argparse.Namespace, seeds: Path, folder: Path) -> list[dict]:
    """Every job runs its share in a process of its own."""
    options = [
        f"--cases={args.cases}",
        f"--processes={args.processes}",
        f"--seed={args.seed}",
        f"--first={args.first}",
        f"--seeds={seeds}",
    ]
    options += [f"--kind={args.kind}"] if args.kind else []
    reports = [folder / f"part{n}.json" for n in range(args.jobs)]
    started = [
        subprocess.Popen(
            [
                sys.executable,
                __file__,
                *options,
                f"--part={n}/{args.jobs}",
                f"--report={report}",
                f"--folder={folder}",
            ]
        )
        for n, report in enumerate(reports)
    ]
    for process in started:
        process.wait()
    return [json.loads(report.read_text()) for report in reports]


if __name__ == "__main__":
    sys.exit(main())
