# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files for the fuzzer: readers that are not ours, writers that write anything, tiny seeds.

Nothing here imports the converters, but for the seeds in our own layouts.
"""

import argparse
import io
import itertools
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]

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

        if start[:2] == b"PK":
            with zipfile.ZipFile(
                path
            ) as archive:  # torch takes entries with the flag of a folder for empty ones
                assert not any(info.external_attr & 0x10 for info in archive.infolist())

        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols above 2
            return leaves(torch.load(path, weights_only=True, map_location="cpu"))
    if start[:1] == b"\x0a" and start[8:9] != b"{":
        return _read_ckpt(path)
    import safetensors.torch

    return leaves(safetensors.torch.load(path.read_bytes()))


def leaves(thing: object, depth: int = 0) -> object:
    import torch

    if isinstance(thing, torch.Tensor):
        words = {dtype: word for word, dtype in torch_dtypes().items()}
        if (
            thing.layout is not torch.strided
            or thing.is_meta
            or thing.dtype not in words
            or thing.numel() > 1 << 26
        ):
            return None
        raw = thing.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return Tensor(words[thing.dtype], tuple(thing.shape), raw)
    if isinstance(thing, dict) and depth < 4:
        return {key: leaves(value, depth + 1) for key, value in thing.items()}
    return None


def torch_dtypes() -> dict:
    """dtype word -> torch's dtype"""
    import torch

    return {word: getattr(torch, name) for word, name in zip(WORDS, TORCH_DTYPES, strict=True)}


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
        found = {**raw, **averaged} if which == "ema" else raw  # frozen weights have no average
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
    key: str,
    kind: str,
    shape: Sequence[int],
    stride: Sequence[int],
    count: int,
    offset: int = 0,
    legacy: bool = False,
) -> bytes:
    """A tensor as torch.save writes it, whatever the numbers are. Before 1.6, a storage could be a view."""
    view = [pickle.NONE] if legacy else []
    storage = tup(word("storage"), named("torch", kind), word(key), word("cpu"), number(count), *view)
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


def state_program(
    tensors: Tensors, first: int = 0, legacy: bool = False
) -> tuple[bytes, dict[str, tuple[int, bytes]]]:
    """The pickle of a state dict without its STOP, and its storages: key -> (count, bytes)."""
    items, storages = [], {}
    for key, (name, tensor) in enumerate(tensors, first):
        size, kind, _ = WORDS[tensor.word]
        count = len(tensor.raw) // size
        steps = strides(tensor.shape)
        program = tensor_program(str(key), kind, tensor.shape, steps, count, legacy=legacy)
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
    program, storages = state_program(tensors, legacy=container == "legacy")
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
        subprocess.run(
            [sys.executable, str(Path(__file__).with_name("fuzz.py")), "--make-seeds", folder],
            check=True,
            env=environment(PYTHONWARNINGS="ignore"),
        )
    listed = json.loads(manifest.read_text())
    return [
        Seed(**{**seed, "settings": tuple(seed["settings"]), "folder": folder / seed["name"]})
        for seed in listed
    ]


def environment(**more: str) -> dict[str, str]:
    offline = {
        "HF_HUB_OFFLINE": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
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
        return list(leaves(state).items())

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
    model, storages = state_program(raw(training["model"]), legacy=True)  # torch's own keys are addresses
    ema, more = state_program(raw(latte), len(storages), legacy=True)
    both = entries([(word("model"), model), (word("ema"), ema), (word("epoch"), number(3))])
    (place / "old.pth").write_bytes(torch_legacy(both, storages | more))
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
    place = add("dit", "latte", "zip", "DiT.pt", layout="dit-imagenet", **heads)
    dit = {**latte, "y_embedder.embedding_table.weight": torch.randn(1001, 24, generator=numbers)}
    torch.save({name: tensor for name, tensor in dit.items() if name != "temp_embed"}, place / "DiT.pt")
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
