# SPDX-License-Identifier: Apache-2.0
"""The cases of the fuzzer: one command on one small checkpoint that one kind of mutation has changed.

A case is a function of (seed, index). A mutation prepares the case's folder and options and says in words what it
did; where only one outcome is right, or others cannot be asked about the result, it says that in the case.
"""

import argparse
import contextlib
import io
import json
import math
import os
import pickle
import re
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from tests.converters.fuzz_files import (
    FLOATS,
    ROOT,
    WORDS,
    Seed,
    Tensor,
    Tensors,
    call,
    entries,
    header_bytes,
    leaves,
    named,
    number,
    proto,
    safetensors_bytes,
    state_program,
    store,
    tensor_program,
    torch_dtypes,
    torch_legacy,
    torch_zip,
    tup,
    value_bytes,
    varint,
    with_crc,
    word,
    zip_bytes,
)

PROCESSES = 1_000_000  # cases from this index on run as real processes
COMMANDS = {name: f"converters/{name}_converter.py" for name in ("latte", "vae", "t5")}
INSPECT = "converters/inspect_checkpoint.py"
ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", "")
SINGLE = ("zip", "legacy", "safetensors", "ckpt")  # containers of one file
LARGE = ("latte-golden", "vae-wide", "vae-ldm", "vae-temporal")  # seeds to be taken less often
BOTH = ("latte-zip", "latte-legacy", "latte-ckpt", "t2v-official")  # seeds with ema and raw weights


@dataclass
class Case:
    """One command on one input; `folder` is where it runs: in/ holds the source, out/ is for the target.

    what     the mutation in words
    must     "refuse" or "convert", where only that is right
    readable whether `weights` still is what the command is asked to read
    placed   whether every tensor still lies where it lay in the seed's files
    wrote    what the mutation put into the weights, for where no other library reads them
    asks     whether to ask them: torch itself takes forever over some pickles
    given    a configuration that has to arrive
    file_limit  bytes that a file may grow to: a disk that fills up
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
    wrote: dict | None = None
    asks: bool = True
    given: dict | None = None
    file_limit: int | None = None
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

    def begin(self, *containers: str) -> Random:
        """Choose a seed among these containers, put it into in/, and choose command and options."""
        rng = self.rng
        fitting = [seed for seed in self.seeds if not containers or seed.container in containers]
        self.base = base = rng.choices(fitting, [0.15 if seed.name in LARGE else 1 for seed in fitting])[0]
        shutil.copytree(base.folder, self.folder / "in")
        self.source = str(Path("in") / base.source)
        self.settings, self.layout = list(base.settings), base.layout
        self.which = rng.choice(("ema", "ema", "ema", "ema", "ema", "ema", "model"))
        if rng.random() < 0.2:
            self.script = INSPECT
            self.options = [option for option in ("--json", "--all", "--hash") if rng.random() < 0.4]
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

    def converting(self, *options: str) -> None:
        """Make a case that looks one that converts."""
        self.script, self.options = COMMANDS[self.base.family], list(options)
        self.target = self.target or "out/x.safetensors"


def layouts(family: str) -> tuple[str, ...]:
    """Names of a family's layouts."""
    from converters.layouts import FAMILIES

    return tuple(FAMILIES[family].layouts)


def arguments_of(family: str) -> list[str]:
    """Constructor arguments of a family's models."""
    from converters.layouts import FAMILIES

    return sorted({key for layout in FAMILIES[family].ours.values() for key in layout.model.keys})


Mutation = Callable[[Case], str]
KINDS: dict[str, tuple[float, Mutation]] = {}


def kind(weight: float) -> Callable[[Mutation], Mutation]:
    """A kind of mutation; `weight`: how often."""

    def register(mutation: Mutation) -> Mutation:
        KINDS[mutation.__name__] = weight, mutation
        return mutation

    return register


def kind_of(rng: Random) -> str:
    return rng.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]


def make_case(seed: int, index: int, yard: Path, seeds: list[Seed]) -> Case:
    """The case of this number, in a fresh folder of `yard`."""
    folder = yard / "case"
    clear(folder)
    (folder / "out").mkdir(parents=True)
    case = Case(seed, index, folder, yard / "canary", seeds)
    case.kind = kind_of(case.rng)
    case.what = KINDS[case.kind][1](case)
    return case


def clear(folder: Path) -> None:
    """Remove a folder, whatever its rights."""
    if folder.is_dir():
        folder.chmod(0o700)
        for place, folders, _ in os.walk(folder):
            for name in folders:
                if not os.path.islink(inner := os.path.join(place, name)):
                    os.chmod(inner, 0o700)
        shutil.rmtree(folder)


# ------------------------------------------------------------------------------------------- blind mutations


def some_file(case: Case) -> tuple[str, Path]:
    """A file of the seed: mostly one with weights."""
    files = case.base.files()
    heavy = [name for name in files if not name.endswith(".json")]
    name = case.rng.choice(heavy if case.rng.random() < 0.85 else files)
    return name, case.folder / "in" / name


def somewhere(case: Case, file: str, length: int) -> int:
    """A place in a file: mostly one that is not the inside of a tensor."""
    if case.rng.random() < 0.7:
        structure = np.flatnonzero(~case.base.tensor_bytes(file))
        if len(structure):
            return int(structure[case.rng.randrange(len(structure))])
    return case.rng.randrange(max(length, 1))


@kind(14)
def bits(case: Case) -> str:
    """Flipped bits."""
    rng = case.begin()
    file, path = some_file(case)
    data = bytearray(path.read_bytes())
    case.placed, flips = True, []
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at, bit = somewhere(case, file, len(data)), rng.randrange(8)
        data[at] ^= 1 << bit
        flips.append(f"{at}.{bit}")
    path.write_bytes(data)
    return f"flipped {' '.join(flips)} of {file}"


@kind(9)
def lengths(case: Case) -> str:
    """An extreme number of 1 to 8 bytes over whatever stands there."""
    rng = case.begin()
    file, path = some_file(case)
    data = bytearray(path.read_bytes())
    case.placed, done, length = True, [], len(data)
    for _ in range(rng.choice((1, 1, 2))):
        size = rng.choice((1, 2, 4, 8))
        at, top = somewhere(case, file, length), 1 << 8 * size
        middle = top // 2
        n = rng.choice((0, 1, middle - 1, middle, top - 1, top - 2, length, length - 1, length + 1, at)) % top
        data[at : at + size] = n.to_bytes(size, rng.choice(("little", "little", "big")))[: length - at]
        done.append(f"{n:#x} in {size} bytes at {at}")
    path.write_bytes(data)
    return f"{' and '.join(done)} of {file}"


@kind(8)
def splices(case: Case) -> str:
    """Blocks moved, doubled, lost, or of another file."""
    rng = case.begin()
    file, path = some_file(case)
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
        seed = rng.choice(case.seeds)
        other = (seed.folder / seed.weights).read_bytes()
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
    """The end is missing."""
    rng = case.begin()
    file, path = some_file(case)
    size = path.stat().st_size
    few = rng.randrange(min(size, 64))
    length = rng.choice((rng.randrange(size), few, size - 1 - few))
    starts = [at for place, at in case.base.spots("ema").values() if place == file]
    if starts and rng.random() < 0.4:
        length = rng.choice(starts)
    os.truncate(path, length)
    return f"cut {file} to {length} of {size} bytes"


@kind(4)
def growth(case: Case) -> str:
    """Something before or after."""
    rng = case.begin()
    file, path = some_file(case)
    data, count = path.read_bytes(), rng.choice((1, 7, 8, 17, 22, 100, 70_000))
    more = {
        "zeros": bytes(count),
        "noise": rng.randbytes(count),
        "itself": data,
        "its end": data[-count:],
        "a seed": (case.seeds[0].folder / case.seeds[0].weights).read_bytes(),
    }
    how, before = rng.choice(list(more)), rng.random() < 0.25
    path.write_bytes(more[how] + data if before else data + more[how])
    return f"{how} ({len(more[how])} bytes) {'before' if before else 'after'} {file}"


@kind(4)
def nothing(case: Case) -> str:
    """The seeds as they are: the way to success is walked as well."""
    rng = case.begin()
    plain = case.to == "ours" and case.layout == case.base.layout and case.dtype in ("keep", "fp32", "bf16")
    free = "--force" in case.options or not any((case.folder / "out").iterdir())
    if plain and (free or case.inspects) and (case.which == "ema" or case.base.name in BOTH):
        case.must = "convert"
    elif case.base.wrapper and rng.random() < 0.5:
        case.which = rng.choice(("state_dict", "model"))
    return "no mutation"


@kind(2)
def full_disks(case: Case) -> str:
    """No file can grow beyond a few bytes: every write may be the one that fails."""
    rng = case.begin()
    if case.inspects:
        case.converting("--verify")
    case.file_limit = int(2 ** rng.uniform(6, 18))
    return f"files end at {case.file_limit} bytes"


# -------------------------------------------------------------------------------------- tensors and their names
# fmt: off
INDEX = ["99999999999", "9" * 400, "007", "-1", "1e3", "٣", "²", "{i}", "1_0", "+1", " 1", "999999", "200"]
LETTERS = ["\0", "\x1b[2J\x1b[31m", "\n", "\r", "\u2028", "\u202e", "{i}", "{0.__class__}", "%s%n", "\ud800", "é",
           "\ufeff"]
WHOLE = ["", ".", "..", "/etc/passwd", "__metadata__", "__class__", "ema", "model", "state_dict", "module.",
         "x" * 100_000, "\x1b" * 30_000, "😀" * 30_000]
PREFIX = ["../", " ", "ema.", "swap.", "adam_m.", "module.", "_orig_mod." * 500]
SUFFIX = ["/", " ", ".weight", "\u0301", ".0", "."]
# fmt: on


def odd_name(rng: Random, name: str) -> str:
    letter = rng.choice(LETTERS)
    how = rng.randrange(9)
    if how < 3:
        return re.sub(r"(?<=\.)\d+(?=\.)", rng.choice(INDEX), name, count=1)
    if how < 5:
        return rng.choice((name + letter, letter + name, name.replace(".", letter, 1), letter))
    if how == 5:
        return rng.choice(WHOLE)
    if how == 6:
        return rng.choice(PREFIX) + name
    if how == 7:
        return name + rng.choice(SUFFIX)
    return rng.choice((name.upper(), name * 3, name.rpartition(".")[0], name[:-1]))


def restore(case: Case, tensors: Tensors) -> str:
    """Put these tensors in the place of the seed's; returns the container."""
    base, rng = case.base, case.rng
    container = base.container if rng.random() < 0.8 else rng.choice(SINGLE)
    metadata = None
    if base.container == container == "safetensors":
        metadata = safetensors_parts(base.folder / base.weights)[0].get("__metadata__")
        metadata = metadata and {key: text for key, text in metadata.items() if key != "sha256"}
    wrapper = base.wrapper and rng.choice((base.wrapper, case.which))
    case.wrote = dict(tensors)
    case.weights.write_bytes(store(container, tensors, wrapper, metadata))
    return container


def safetensors_parts(path: Path) -> tuple[dict, bytes]:
    """Header and body of a safetensors file."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


@kind(8)
def names(case: Case) -> str:
    """Names that no model has."""
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
    return f"names in {restore(case, tensors)}: {', '.join(what[:3])}"


@kind(8)
def tensors(case: Case) -> str:
    """Dropped, doubled, exchanged, reshaped and retyped ones."""
    rng = case.begin(*SINGLE)
    found = list(case.base.tensors(case.which).items())
    what = []

    def retyped(tensor: Tensor, dtype: str) -> Tensor:
        return Tensor(dtype, tensor.shape, (tensor.raw * 8)[: math.prod(tensor.shape) * WORDS[dtype][0]])

    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        n = rng.randrange(len(found))
        name, tensor = found[n]
        dtype, shape, raw = tensor
        how = rng.choice(
            ("drop", "twice", "twice, once zeros", "exchange", "shape", "type", "order", "all types")
        )
        if how == "drop" and len(found) > 1:
            del found[n]
        elif how == "twice":
            found.insert(rng.randrange(len(found)), (name, tensor))
        elif how == "twice, once zeros":
            found.insert(rng.randrange(len(found)), (name, Tensor(dtype, shape, bytes(len(raw)))))
        elif how == "exchange":
            m = rng.randrange(len(found))
            found[n], found[m] = (name, found[m][1]), (found[m][0], found[n][1])
        elif how == "shape":
            size = math.prod(shape)
            new = rng.choice(
                [shape[::-1], (size,), (1, *shape), (*shape, 1), (), (0,), (*shape, 0), (1,) * 33 + shape]
                + [
                    shape[:-1],
                    shape[1:],
                    (2, *shape),
                    (size, 1),
                    (size + 1,),
                    (1 << 62, 4),
                    (1 << 32, 1 << 32),
                ]
                + [(1 << 63,), (0, 1 << 62), (0, 1 << 62, 1 << 62)]
            )
            honest = math.prod(new) * WORDS[dtype][0]
            if rng.random() < 0.7 and honest < 1 << 20:
                raw = (raw * (honest // max(len(raw), 1) + 1))[:honest]
            found[n] = name, Tensor(dtype, new, raw)
            how = f"shape {shape} -> {new}"
        elif how == "type":
            other = rng.choice(list(WORDS))
            found[n] = name, retyped(tensor, other) if rng.random() < 0.8 else Tensor(other, shape, raw)
            how = f"{dtype} -> {other}"
        elif how == "order":
            rng.shuffle(found)
        elif how == "all types":
            other = rng.choice(list(WORDS))
            found = [(each, retyped(its, other)) for each, its in found]
            how = f"all {other}"
        what.append(f"{how} {name}")
    return f"tensors in {restore(case, found)}: {', '.join(what)}"


# fmt: off
SPECIAL = {  # infinities, NaN, the largest and smallest numbers, what just fits half precision and what does not
    "F64": [0x7FF0 << 48, 0xFFF0 << 48, 0x7FF0000000000001, 0x7FEFFFFFFFFFFFFF, 1, 0x8000 << 48, 0x47EFFFFFF0000000],
    "F32": [0x7F800000, 0xFF800000, 0x7F800001, 0x7FC00000, 0x7F7FFFFF, 0x477FF000, 0x477FEFFF, 0x7F7F8000, 1, 1 << 31],
    "F16": [0x7C00, 0xFC00, 0x7C01, 0x7E00, 0x7BFF, 1, 0x8000],
    "BF16": [0x7F80, 0xFF80, 0x7F81, 0x7F7F, 1, 0x8000, 0x477F],
}
# fmt: on


@kind(4)
def values(case: Case) -> str:
    """Special numbers, where a cast follows."""
    rng = case.begin(*SINGLE)
    case.dtype = rng.choice(("fp16", "fp16", "bf16", "fp32", "keep"))
    found, what = dict(case.base.tensors(case.which)), []
    if rng.random() < 0.3:
        for n, (name, tensor) in enumerate(found.items()):
            if tensor.word in FLOATS:
                wide = np.random.default_rng(n).normal(size=tensor.shape)
                found[name] = Tensor("F64", tensor.shape, wide.tobytes())
    for name in rng.sample(sorted(found), min(len(found), 3)):
        dtype, shape, raw = found[name]
        if dtype not in FLOATS or not raw:
            continue
        size, special = WORDS[dtype][0], rng.choice(SPECIAL[dtype])
        data = bytearray(raw)
        for at in {0, rng.randrange(len(raw) // size), len(raw) // size - 1}:
            data[at * size : (at + 1) * size] = special.to_bytes(size, "little")
        found[name] = Tensor(dtype, shape, bytes(data))
        what.append(f"{special:#x} in {name} ({dtype})")
    return f"{', '.join(what)}, {restore(case, list(found.items()))}, --dtype {case.dtype}"


@kind(2)
def torch_things(case: Case) -> str:
    """What torch can save and we may not know: strided, shared, complex, quantised, sparse, subclassed."""
    import torch

    rng = case.begin("zip", "legacy")
    dtypes, found = torch_dtypes(), {}
    for name, (dtype, shape, raw) in case.base.tensors(case.which).items():
        found[name] = torch.frombuffer(bytearray(raw), dtype=dtypes[dtype]).reshape(shape)
    name = rng.choice(sorted(found))
    makers: dict[str, Callable] = {
        "transposed": lambda t: t.T.contiguous().T if t.dim() == 2 else t,
        "expanded": lambda t: t.flatten()[:1].expand(t.shape) if t.numel() else t,
        "much expanded": lambda t: torch.zeros(1).expand(1 << 40),
        "a slice": lambda t: torch.cat([t, t])[: len(t)] if t.dim() else t,
        "every second": lambda t: torch.stack([t, t], -1)[..., 0],
        "parameter": lambda t: torch.nn.Parameter(t) if t.is_floating_point() else t,
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
    found[name] = makers[how](found[name])
    case.wrote = leaves(found)
    saved = {case.base.wrapper: found} if case.base.wrapper else found
    if case.base.wrapper:
        beside = {
            "set": {1, 2},
            "namespace": argparse.Namespace(a=[1]),
            "dates": {1: (2.0, None)},
            "arrays": np.arange(3),
        }
        saved |= {key: beside[key] for key in rng.sample(sorted(beside), 2)}
    protocol = rng.choice((2, 2, 3, 4, 5))
    in_zip = case.base.container == "zip"
    torch.save(saved, case.weights, pickle_protocol=protocol, _use_new_zipfile_serialization=in_zip)
    return f"{how} {name}, protocol {protocol}, {case.base.container}"


# ------------------------------------------------------------------------------------------ JSON in its places
# fmt: off
DEEP = 100_000
NUMBERS = ["0", "1", "2", "3", "4", "5", "7", "8", "12", "16", "1000000", "1000000000", "2147483647", "2147483648",
           "1e18", "1e308", "1e-320", "0.5", "1e-30", "-1", "0.0"]
ODD_JSON = [
    "0", "-1", "1e999", "-0", "NaN", "Infinity", "1e-400", "true", "false", "null", '""', '"\\ud800"', '"\\u0000"',
    '"3"', "[]", "[[]]", "{}", "[1,2]", "[4,4]", "[0,0]", "[4,6]", "3.0", "3.5", "2147483648", "9223372036854775808",
    "1000000", "1000000000", "18446744073709551616", "1" + "0" * 400, "9" * 5000, "[" * DEEP + "]" * DEEP,
    '{"a":' * DEEP + "1" + "}" * DEEP, '"' + "a" * DEEP + '"', "[" + "1," * DEEP + "1]", '"../../x"', '"\\u001b[2J"',
    '"LatteT2V"', "{}{}", "'a'", "[[[[3]]]]", "1" * 4000, '["\\u001b"]', '{"\\u001b[2J": 1}', "0.1", "1e308",
]
WHOLE_JSON = [
    b"", b"null", b"[]", b"3", b'"x"', b"{", b"}", b"\xef\xbb\xbf{}", '{"num_heads": 3}'.encode("utf-16"),
    b'{"\xff": 1}', b"{}\0", b"{} {}", b"[" * DEEP, b'{"a":' * DEEP, b" " * DEEP, b'{"a":1,"a":2}', b"\0" * 100,
    b'{"a": "\\ud83d"}', b"<html>",
]
UNKNOWN_KEYS = ["nub_heads", "_x", "", "\x1b[2J", "x" * DEEP, "__class__", "num_heads ", "\ud800", "model_type",
                "shift_factor"]
MODELS = ("Latte", "LatteT2V", "AutoencoderKL", "AutoencoderKLTemporalDecoder", "T5EncoderModel", "x", "")
CLASSES = [*MODELS, "LatteTransformer3DModel", "ours", "diffusers", "official-t2v", "latte-linear", ["x"], 3, "\x1b[2J"]
# fmt: on


def configuration(case: Case) -> tuple[Path, dict]:
    """The seed's own configuration file, or a new one beside a file that has none."""
    for path in sorted((case.folder / "in").rglob("*.json")):
        if "index" not in path.name:
            return path, json.loads(path.read_text())
    path = case.weights
    name = case.rng.choice((f"{path.name}.json", f"{path.stem}.json", "config.json"))
    new = {pair.partition("=")[0]: json.loads(pair.partition("=")[2]) for pair in case.settings}
    case.settings = case.settings if case.rng.random() < 0.3 else []
    return path.with_name(name), new


@kind(9)
def configs(case: Case) -> str:
    """config.json: values, keys, syntax."""
    rng = case.begin()
    path, config = configuration(case)
    how = rng.choice(
        ("value", "value", "value", "unknown", "drop", "twice", "whole", "class", "number", "number")
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
        key = rng.choice(UNKNOWN_KEYS)
        pairs[key] = odd
    elif how == "drop":
        pairs.pop(key, None)
    elif how == "class":
        key = rng.choice(("_class_name", "_layout", "architectures"))
        pairs[key] = json.dumps(rng.choice(CLASSES))
    elif how == "number":
        key = rng.choice([each for each in keys if type(config.get(each)) in (int, float)] or [key])
        odd = pairs[key] = rng.choice(NUMBERS)
    text = ", ".join(f"{json.dumps(each)}: {value}" for each, value in pairs.items())
    if how == "twice":
        text += f", {json.dumps(key)}: {odd}"
    path.write_text("{" + text + "}")
    told = {pair.partition("=")[0] for pair in case.settings}
    outranked = case.base.name in ("latte-ours", "t5-ours", "t2v-extras")  # the weights' file says it itself
    if how in ("value", "number") and not outranked and key not in told:
        with contextlib.suppress(ValueError, RecursionError):
            case.given = json.loads("{" + text + "}")
    return f"{path.name}: {how} {key[:40]!r} {odd[:40]}"


# fmt: off
def shard_names(shard: str, path: Path) -> list:
    """What an index may say instead of a shard's name."""
    return [
        "../in", f"/{shard}", str(path.with_name(shard)), f"./{shard}", f"x/../{shard}", "..", ".", "", "\0",
        f"{shard}\0", path.name, "missing.safetensors", "/dev/zero", "/proc/self/mem", "a\\b", "~/x",
        "file:///etc/passwd", "$HOME", "x" * 300, "\x1b[2J", "\ud800", "link", "loop", "fifo", "folder", "config.json",
        f"{shard} ", shard.upper(), "x.index.json", 3, None, [], {}, True, [shard], 1.5,
    ]
# fmt: on


@kind(4)
def indices(case: Case) -> str:
    """The index of shards: where it leads, and whether it fits."""
    rng = case.begin("shards")
    path = case.weights
    index = json.loads(path.read_text())
    places: dict = index["weight_map"]
    shards = sorted(set(places.values()))
    shard, name = rng.choice(shards), rng.choice(sorted(places))
    path.with_name("link").symlink_to(rng.choice((shard, "/etc/passwd", "/dev/zero", "../..")))
    path.with_name("loop").symlink_to("loop")
    os.mkfifo(path.with_name("fifo"))
    shutil.copy(path, path.with_name("x.index.json"))
    path.with_name("folder").mkdir()
    how = rng.choice(("one", "all of a shard", "all", "map", "metadata", "text", "shard", "swap", "names"))
    trick = rng.choice(shard_names(shard, path))
    if how == "one":
        places[name] = trick
    elif how == "all of a shard":
        index["weight_map"] = {key: trick if place == shard else place for key, place in places.items()}
    elif how == "all":
        index["weight_map"] = dict.fromkeys(places, trick)
    elif how == "map":
        trick = index["weight_map"] = rng.choice((None, [], {}, 3, "x", {"a": {}}, [["a", shard]]))
    elif how == "metadata":
        lie = {"config": rng.choice(ODD_JSON[:30]), "model": rng.choice(MODELS), "layout": "ours"}
        trick = index["metadata"] = rng.choice(
            [None, [], 3, {"total_size": -1}, {"total_size": "x"}, {"format": "pt", "sha256": "0" * 64}, lie]
            + [
                {**(index.get("metadata") or {}), **lie},
                {**(index.get("metadata") or {}), "sha256": "0" * 64},
            ]
        )
    elif how == "swap":
        index["weight_map"] = {key: shards[shards.index(place) - 1] for key, place in places.items()}
    elif how == "names":
        index["weight_map"] = {
            odd_name(rng, key) if key == name else key: place for key, place in places.items()
        }
    elif how == "shard":
        trick = odd_shard(case, path.with_name(shard), [each for each in shards if each != shard])
    text = json.dumps(index)
    if how == "text":
        texts = {
            "twice": text[:-1] + ', "weight_map": {}}',
            "deep": '{"weight_map": ' + "[" * DEEP,
            "cut": text[: rng.randrange(len(text))],
            "nan": text[:-1] + ', "x": NaN, "y": ' + "9" * 5000 + "}",
        }
        trick = rng.choice(list(texts))
        text = texts[trick]
    path.write_text(text)
    if rng.random() < 0.4:
        case.source = str(Path("in") / case.base.weights)
    return f"{how} of {path.name}: {ascii(trick)[:60]}"


def odd_shard(case: Case, part: Path, others: list[str]) -> str:
    rng = case.rng
    what = rng.choice(("gone", "empty", "a folder", "a link", "another", "a seed", "a zip"))
    part.unlink()
    if what == "empty":
        part.touch()
    elif what == "a folder":
        part.mkdir()
    elif what == "a link":
        part.symlink_to(case.weights.name)
    elif what == "another":
        shutil.copy(part.with_name(rng.choice(others)), part)
    elif what == "a seed":
        seed = rng.choice(case.seeds)
        shutil.copy(seed.folder / seed.weights, part)
    elif what == "a zip":
        places = json.loads(case.weights.read_text())["weight_map"]
        part.write_bytes(
            store("zip", [(k, t) for k, t in case.base.tensors().items() if places.get(k) == part.name])
        )
    return what


# fmt: off
ODD_METADATA = [None, [], 3, "x", {"a": 1}, {"a": None}, {"a": {}}, {"\x1b[2J": "\x1b[2J"}, {"a": "x" * DEEP}, {"": ""}]
ODD_WORDS = ["np", "tf", "\x1b[31m\n", "\ud800", "x" * DEEP, "../x"]
# fmt: on


@kind(5)
def metadata(case: Case) -> str:
    """What a safetensors file says of itself, and lies."""
    rng = case.begin("safetensors")
    header, body = safetensors_parts(case.weights)
    words = {"format": "pt", "model": "Latte", "config": "{}", "layout": "ours", "source": "x"}
    words |= header.pop("__metadata__", {})
    if rng.random() < 0.7:
        words.pop("sha256", None)
    key = rng.choice(("model", "config", "layout", "sha256", "format", "source", "new", "drop", "whole"))
    if key == "model":
        words[key] = rng.choice((*MODELS, "\x1b[2J", "x" * DEEP))
    elif key == "layout":
        words[key] = rng.choice((*layouts(case.base.family), "ours", "", "x", "\x1b[2J", "x" * DEEP))
    elif key == "config":
        config = json.loads(words["config"]) or {"num_heads": 3}
        pairs = {each: json.dumps(value) for each, value in config.items()}
        pairs[rng.choice(sorted(config))] = rng.choice(ODD_JSON)
        whole = "{" + ", ".join(f"{json.dumps(each)}: {value}" for each, value in pairs.items()) + "}"
        odd = [text.decode("latin-1") for text in WHOLE_JSON] + ["\ud800", '{"a": "\ud800"}']
        words[key] = whole if rng.random() < 0.8 else rng.choice(odd)
    elif key == "sha256":
        words[key] = rng.choice(("0" * 64, "", "x", "é" * 64, words.get("sha256", "f" * 64).upper()))
    elif key == "drop":
        del words[rng.choice(sorted(words))]
    elif key == "whole":
        words = rng.choice(ODD_METADATA)
    else:
        words[rng.choice((key, "\x1b[2J", "config "))] = rng.choice(ODD_WORDS)
    case.weights.write_bytes(header_bytes(json.dumps({"__metadata__": words, **header})) + body)
    return f"metadata: {key} is {ascii(words if key == 'whole' else words.get(key))[:60]}"


# fmt: off
def odd_offsets(first: int, last: int, end: int, other: list[int]) -> list:
    return [
        [first, last + 4], [first + 4, last + 4], [last, first], other, [0, end], [-4, last], [first, end + 4],
        [first, 2**64], [first, 10**400], [True, last], [float(first), last], ["0", last], [first],
        [first, last, last], None, {}, "ab", [None, None], [[first], last], [end, end + last - first],
        [2**63, 2**63 + last - first],
    ]


def odd_shapes(shape: list[int]) -> list:
    size = math.prod(shape)
    return [
        [2**62, 4], [0], [size, 0, 2**70], [1] * 33 + [size], [1] * DEEP, [2**62] * DEEP, [-size], [-1, -size],
        [float(size)], [True] * size, None, "x", {}, {"1": 2}, [[size]], [10**4000], size, [], [size, 1], [1, size],
        shape[::-1], ["4"], [0, 10**30], [0, 2**62, 2**62], [2**64 + size],
    ]


ODD_DTYPES = ["F8_E4M3", "C64", "f32", "", None, 3, [], {}, "x" * DEEP, "\x1b[2J", "U16", "BOOL", "F32 "]
# fmt: on


@kind(6)
def headers(case: Case) -> str:
    """The header of a safetensors file: offsets, shapes, types, syntax."""
    rng = case.begin("safetensors")
    raw = case.weights.read_bytes()
    header, body = safetensors_parts(case.weights)
    length = len(raw) - len(body) - 8
    name, other = rng.sample([key for key in header if key != "__metadata__"], 2)
    info = header[name]
    first, last = info["data_offsets"]
    how = rng.choice(
        ("offsets", "offsets", "shape", "shape", "dtype", "entry", "text", "length", "body", "many")
    )
    what: object = ""
    if how == "offsets":
        what = info["data_offsets"] = rng.choice(
            odd_offsets(first, last, len(body), header[other]["data_offsets"])
        )
    elif how == "shape":
        what = info["shape"] = rng.choice(odd_shapes(info["shape"]))
        if not isinstance(what, list) or 0 in what:
            info["data_offsets"] = [first, rng.choice((first, last))]
    elif how == "dtype":
        what = info["dtype"] = rng.choice(ODD_DTYPES)
    elif how == "entry":
        what = rng.choice(
            (None, [], {}, 3, "x", {**info, "more": 1}, {"dtype": "F32"}, [info], {"shape": []})
        )
        header[name] = what
    elif how == "length":
        odd = [
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
        ]
        what = rng.choice(odd)
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
        texts = {
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
        }
        what = rng.choice(list(texts))
        text = texts[what]
    case.weights.write_bytes(header_bytes(text) + body)
    return f"header: {how} {ascii(what)[:60]} for {name}"


@kind(3)
def extras(case: Case) -> str:
    """The file of extras that stands beside weights: it is found by its name alone."""
    rng = case.begin(*SINGLE)
    name, tensor = rng.choice(sorted(case.base.tensors(case.which).items()))
    stem = rng.choice((case.weights.name, case.weights.stem))
    place = case.weights.with_name(f"{stem}.extras.safetensors")
    table = Tensor("F32", (120, 12), Random(1).randbytes(120 * 12 * 4))
    honest = safetensors_bytes([("caption_projection.y_embedding", table)])
    odd = odd_name(rng, name).encode("ascii", "replace").decode()
    contents = {
        "override": safetensors_bytes([(name, Tensor(tensor.word, tensor.shape, bytes(len(tensor.raw))))]),
        "honest": honest,
        "cut": honest[: rng.randrange(len(honest))],
        "surplus": safetensors_bytes(
            [("x", table), ("pos_embed.pos_embed", table), ("temp_pos_embed", table)]
        ),
        "odd name": safetensors_bytes([(odd, table)]),
        "junk": rng.randbytes(100),
        "no tensors": safetensors_bytes([]),
        "empty": b"",
    }
    links = {"link": "/dev/zero", "loop": place.name, "itself": case.weights.name}
    how = rng.choice((*contents, *links, "folder", "fifo"))
    place.unlink(missing_ok=True)
    if how in contents:
        place.write_bytes(contents[how])
    elif how in links:
        place.symlink_to(links[how])
    elif how == "folder":
        place.mkdir()
    else:
        os.mkfifo(place)
    return f"extras beside: {how}"


# ----------------------------------------------------------------------------------------- hostile containers
# fmt: off


def dangerous_programs(canary: Path) -> dict[str, bytes]:
    """Values whose unpickling would do something: each would leave a file in `canary`."""
    hit = str(canary / "hit")
    shell, code = f"touch {hit}", f"open({hit!r}, 'w').close()"
    calls = [
        ("os", "system", shell), ("posix", "system", shell), ("nt", "system", shell), ("os", "mkdir", hit),
        ("subprocess", "getoutput", shell), ("subprocess", "check_output", shell), ("os", "unlink", "../x"),
        ("builtins", "eval", code), ("builtins", "exec", code), ("__builtin__", "eval", code),
        ("os\0", "system", shell),
        ("builtins", "__import__", "this"), ("importlib", "import_module", "antigravity"), ("ctypes", "CDLL", "x.so"),
        ("runpy", "run_path", hit), ("pty", "spawn", "sh"), ("webbrowser", "open", "http://localhost"),
        ("shutil", "rmtree", "in"), ("pathlib.Path", "touch", hit), ("torch", "load", "in/x"),
        ("torch.hub", "load", "x"),
        ("torch.jit", "load", "in/x"), ("numpy", "load", "in/x"), ("pickle", "loads", "x"), ("code", "interact", ""),
        ("torch._utils", "os.system", shell), ("torch.serialization", "os.system", shell), ("os", "path.exists", hit),
        ("torch._dynamo.guards", "GuardBuilder.get", code), ("logging.config", "listen", ""), ("", "", ""),
        ("doctest", "debug_script", code), ("converters.containers.source", "open_source", "in"),
        ("operator", "attrgetter", "system"),
        ("builtins", "getattr", "x"), ("builtins", "eval.__call__", code), ("torch.storage", "_load_from_bytes", "x"),
        ("torch", "storage._load_from_bytes", "x"), ("numpy.f2py.crackfortran", "myeval", code),
        ("numpy.testing._private.utils", "runstring", code), ("collections", "namedtuple", "x"), ("\ud800", "x", ""),
        ("functools", "partial", "x"), ("torch\n", "x", ""), ("timeit", "timeit", code),
        ("torch.utils._config_module", "load_config", "x"), ("ssl", "get_server_certificate", "x"),
    ]
    popen = named("subprocess", "Popen")
    namespace, system = call("argparse", "Namespace"), named("os", "system")
    remembered = word("os") + b"q\x01" + word("system") + b"q\x020h\x01h\x02\x93"
    return {
        **{f"{module}.{name}": call(module, name, word(argument)) for module, name, argument in calls},
        "STACK_GLOBAL": word("os") + word("system") + pickle.STACK_GLOBAL + tup(word(shell)) + pickle.REDUCE,
        "STACK_GLOBAL of memo": remembered + tup(word(shell)) + b"R",
        "NEWOBJ": popen + tup(word(shell)) + pickle.NEWOBJ,
        "NEWOBJ_EX": popen + tup(word(shell)) + entries([(word("shell"), pickle.NEWTRUE)]) + pickle.NEWOBJ_EX,
        "INST": pickle.MARK + word(shell) + pickle.INST + b"os\nsystem\n",
        "OBJ": pickle.MARK + popen + word(shell) + pickle.OBJ,
        "protocol 0": f"cos\nsystem\n(S'{shell}'\ntR".encode(),
        "reduce of a reduce": call("builtins", "getattr", named("os", "system"), word("x")) + tup(word(shell)) + b"R",
        "EXT1": pickle.EXT1 + b"\x01" + tup() + b"R",
        "EXT2": pickle.EXT2 + b"\xff\xff" + tup() + b"R",
        "EXT4": pickle.EXT4 + b"\xff\xff\xff\x7f" + tup() + b"R",
        "setstate": namespace + entries([(word("__setstate__"), named("os", "system"))]) + b"b" + word(shell) + b"b",
        "state with slots": namespace + tup(pickle.NONE, entries([(word("a"), named("os", "system"))])) + b"b",
        "module of 1 MB": pickle.GLOBAL + b"o" * (1 << 20) + b"\nsystem\n",
        "name without end": pickle.GLOBAL + b"os\nsystem",
        "persistent": word("os.system") + pickle.BINPERSID,
        "PERSID": pickle.PERSID + b"os.system\n",
        "persistent of globals": tup(word("storage"), named("os", "system"), word("0"), word("cpu"), number(1)) + b"Q",
        "encode": call("_codecs", "encode", word("x"), word("rot13")),
        "encode zip": call("_codecs", "encode", word("x"), word("zip")),
        "parameter": call("torch._utils", "_rebuild_parameter", named("os", "system"), b"\x89", b"}"),
        "subclass": call("torch._tensor", "_rebuild_from_type_v2", system, system, tup(), b"}"),
        "NEXT_BUFFER": pickle.NEXT_BUFFER,
    }


def strange_programs(rng: Random) -> dict[str, bytes]:
    """Values that cost time or memory, or are of a kind that nobody expects; not dangerous in themselves."""
    n = rng.choice((100, 10_000, 100_000))
    many, long_, ones, floats = n * 4, 1 << 31, [1] * 40, "FloatStorage"
    doubled = pickle.EMPTY_TUPLE + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + pickle.TUPLE2 for i in range(60))
    nested = [b"]q" + bytes([i + 1]) + (b"h" + bytes([i]) + b"a") * 9 for i in range(20)]
    state = tup(number(1), tup(number(1 << 40)), named("numpy", "dtype"), b"\x89", word("x"))
    codes = b"()tlu}]asbRq\x01h\x01N\x88\x89K\x01\x85\x86\x87QcX\x94\x93\x81"
    array = call("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), tup(number(0)), word("b"))
    of_storage = [word("storage"), named("torch", floats), word("0"), word("cpu"), number(1)]
    hidden = [(word(name), b"N") for name in ("__class__", "__dict__", "what", "__repr__")]
    return {
        "billion tuples": doubled,
        "billion tuples as key": entries([(doubled, pickle.NONE)]),
        "billion tuples as persistent id": doubled + pickle.BINPERSID,
        "billion lists": b"]q\x00" + b"".join(nested),
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
        "many numbers": b"](" + b"K\x01" * many + b"e",
        "too many steps": b"](" + b"N" * (1 << 21) + b"e",
        "copied often": b"](" + b"N" * 1000 + b"eq\x010" + call("collections", "OrderedDict", b"h\x01") * 1000,
        "bytearray": call("builtins", "bytearray", number(1 << 40)),
        "range": call("builtins", "range", number(1 << 62)),
        "list of a range": call("builtins", "list", call("builtins", "range", number(1 << 40))),
        "slice": call("builtins", "slice", number(0), number(1 << 62)),
        "state of an array": array + state + b"b",
        "complex": call("builtins", "complex", number(1)),
        "date": call("datetime", "datetime", word("x" * 10)),
        "set": b"\x8f(" + b"]" * 10 + b"\x90",
        "frozenset": b"(" + b"]" * 10 + b"\x91",
        "unhashable": entries([(b"]", b"N"), (b"}", b"N")]),
        "nan as key": entries([(b"G" + struct.pack(">d", math.nan), b"N")] * 100),
        "surrogate": word(b"\xed\xa0\x80"),
        "not utf-8": word(b"\xff\xfe"),
        "attributes": call("argparse", "Namespace") + entries(hidden) + b"b",
        "state of a tensor": tensor_program("0", floats, (1,), (1,), 1) + b"}b",
        "stack is empty": b"t0",
        "pops": b"N0" * 10 + b"N",
        "dup": b"N2",
        "odd items": b"}(" + word("a") + b"u",
        "items of a tuple": b")(" + word("a") + b"Nu",
        "appends to a dict": b"}Na",
        "reduce of None": b"N)R",
        "reduce with a list": named("collections", "OrderedDict") + b"]R",
        "huge shape": tensor_program("0", floats, (1 << 40,), (0,), 1),
        "huge stride": tensor_program("0", floats, (2, 2), (1 << 62, 1), 1),
        "negative offset": tensor_program("0", floats, (1,), (1,), 1, -1),
        "negative stride": tensor_program("0", floats, (2,), (-1,), 4, 2),
        "huge offset": tensor_program("0", floats, (1,), (1,), 1, 1 << 62),
        "empty and huge": tensor_program("0", floats, (0, 1 << 62, 1 << 62), (0, 0, 0), 1),
        "40 axes": tensor_program("0", floats, ones, ones, 1),
        "huge count": tensor_program("0", floats, (1,), (1,), 1 << 62),
        "negative count": tensor_program("0", floats, (0,), (1,), -1),
        "other type": tensor_program("0", "DoubleStorage", (1,), (1,), 1),
        "unknown type": tensor_program("0", "ComplexFloatStorage", (1,), (1,), 1),
        "key ../": tensor_program("../data.pkl", "ByteStorage", (1,), (1,), 1),
        "key of 100 kB": tensor_program("k" * 100_000, floats, (1,), (1,), 1),
        "persistent tuple": tup(word("storage"), b"N", b"N", b"N", b"N") + b"Q",
        "persistent list": b"]Q",
        "persistent view": tup(*of_storage, tup(word("v"), number(0), number(long_))) + b"Q",
        "default": call("collections", "defaultdict", named("collections", "OrderedDict")),
        "counter": call("collections", "Counter", entries([(word("a"), number(1))])),
        "size": call("torch", "Size", tup(*[number(1 << 40)] * 40)),
        "device": call("torch", "device", word("cuda:0")),
        "int of Python 2": b"I01\n",
        "text of Python 2": b"S'a'\n",
        "noise": rng.randbytes(200),
        "opcodes": bytes(rng.choice(codes) for _ in range(300)),
    }
# fmt: on


@kind(9)
def pickles(case: Case) -> str:
    """A pickle made by hand in a torch file, with the seed's weights beside it or without."""
    rng = case.begin("zip", "legacy")
    danger = rng.random() < 0.5
    programs = dangerous_programs(case.canary) if danger else strange_programs(rng)
    name = rng.choice(list(programs))
    program = programs[name]
    clean = case.base.tensors(case.which)
    container = case.base.container if rng.random() < 0.8 else rng.choice(("zip", "legacy"))
    state, storages = state_program(list(clean.items()), legacy=container == "legacy")
    how = rng.choice(("whole", "beside", "before", "as a weight", "as a key", "wrapped"))
    program = {
        "whole": program,
        "beside": entries([(word("ema"), state), (word("opt"), program)]),
        "before": entries([(word("a"), program), (word("state_dict"), state)]),
        "as a weight": state[:-1] + word(rng.choice(sorted(clean))) + program + pickle.SETITEMS,
        "as a key": entries([(word("ema"), state), (program, pickle.NONE)]),
        "wrapped": entries([(word("ema"), program)]),
    }[how]
    case.weights.write_bytes((torch_zip if container == "zip" else torch_legacy)(program, storages))
    case.wrote, case.asks = clean, False
    if danger:
        case.must = "refuse"
    elif how in ("whole", "as a weight", "wrapped"):
        case.readable = False
    return f"pickle {name!a} {how}, {container}"


# Fields of a zip archive: name -> (first byte, bytes)
# fmt: off
CENTRAL = {"made by": (4, 2), "needs": (6, 2), "flags": (8, 2), "method": (10, 2), "time": (12, 2), "date": (14, 2),
           "crc": (16, 4), "packed": (20, 4), "size": (24, 4), "name": (28, 2), "extra": (30, 2), "comment": (32, 2),
           "disk": (34, 2), "inside": (36, 2), "outside": (38, 4), "place": (42, 4)}
LOCAL = {"needs": (4, 2), "flags": (6, 2), "method": (8, 2), "crc": (14, 4), "packed": (18, 4), "size": (22, 4),
         "name": (26, 2), "extra": (28, 2)}
END = {"disk": (4, 2), "start disk": (6, 2), "here": (8, 2), "count": (10, 2), "size": (12, 4), "place": (16, 4),
       "comment": (20, 2)}
ZIP_PARTS = ("compressed", "bomb", "escape", "absolute", "twice", "pickle twice", "many", "two roots", "big endian",
             "byte order", "no byte order", "missing", "short", "long", "symlink", "script", "folder entry", "names",
             "pickle as data", "deep root", "empty pickle")
ZIP_BYTES = ("encrypted", "descriptor", "overlap", "other local name", "central", "central", "central", "local", "end",
             "end", "comment", "junk before", "method", "version", "zip64", "zip in a comment", "two archives",
             "no directory")
# fmt: on


@kind(8)
def zips(case: Case) -> str:
    """The archive around a torch file: entries, directory, flags, sizes."""
    rng = case.begin("zip")
    with zipfile.ZipFile(case.weights) as archive:
        parts = [(info.filename, archive.read(info)) for info in archive.infolist()]
    key = rng.choice([name for name, _ in parts if "/data/" in name])
    how = rng.choice(ZIP_PARTS if rng.random() < 0.5 else ZIP_BYTES)
    if how in ZIP_PARTS:
        case.weights.write_bytes(odd_parts(case, how, parts, key))
        return f"zip: {how} of {key}"
    raw = bytearray(zip_bytes(parts))
    what = odd_archive(case, how, raw)
    case.weights.write_bytes(raw)
    return f"zip: {how} {what}"


def odd_parts(case: Case, how: str, parts: list, key: str) -> bytes:
    """An archive of other entries than torch writes."""
    rng, data = case.rng, dict(parts)
    root = key.partition("/")[0]
    program = f"{root}/data.pkl"
    replaced = {
        "short": (key, data[key][:-1]),
        "long": (key, data[key] + bytes(rng.choice((1, 4, 1000)))),
        "pickle as data": (key, data[program]),
        "empty pickle": (program, rng.choice((b"", b".", b"N.", b"\x80\x02", b"\x80\x02}."))),
        "bomb": (rng.choice((key, program)), bytes(100 << 20 if how == "bomb" else 0)),
    }
    added = {
        "escape": [(rng.choice(("../../x", "../canary/hit", "..\\x", f"{root}/../../x")), b"x")],
        "absolute": [(str(case.canary / "hit"), b"x")],
        "twice": [(key, bytes(len(data[key])))],
        "pickle twice": [(program, pickle.dumps({}, 2))],
        "many": [
            (f"{root}/more/{n}", b"") for n in range(rng.choice((1000, 20_000)) if how == "many" else 0)
        ],
        "two roots": [("other/data.pkl", data[program])],
        "script": [(f"{root}/constants.pkl", pickle.dumps((), 2)), (f"{root}/code/x.py", b"import os")],
        "folder entry": [(f"{root}/", b""), (f"{root}/data/", b"")],
        "names": [(ascii(odd_name(rng, key))[:60_000], b"x")],
        "big endian": [(f"{root}/byteorder", b"big")],
        "byte order": [
            (f"{root}/byteorder", rng.choice((b"", b"BIG", b"little\n", b"middle", b"x" * 10_000)))
        ],
    }
    if how == "compressed":
        return zip_bytes(parts, rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
    if "byte order" in how or "big endian" in how:
        parts = [(name, text) for name, text in parts if not name.endswith("byteorder")]
    if how in replaced:
        parts = list({**data, replaced[how][0]: replaced[how][1]}.items())
    elif how in added:
        at = rng.choice((0, len(parts)))
        parts = [*parts[:at], *added[how], *parts[at:]]
    elif how == "missing":
        parts = [(name, text) for name, text in parts if name != key]
    elif how == "symlink":
        info = zipfile.ZipInfo(key)
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        parts = [(info, b"/etc/passwd") if name == key else (name, text) for name, text in parts]
    elif how == "deep root":
        parts = [(f"a/{name}", text) for name, text in parts]
    return zip_bytes(parts, zipfile.ZIP_DEFLATED if how == "bomb" else zipfile.ZIP_STORED)


def odd_archive(case: Case, how: str, raw: bytearray) -> str:
    """Changes the bytes of an archive; returns which field, if it was one."""
    rng = case.rng
    first = zipfile.ZipFile(io.BytesIO(raw)).start_dir
    end, at, central = raw.rindex(b"PK\x05\x06"), first, []  # first bytes of the entries of the directory
    while raw[at : at + 4] == b"PK\x01\x02":
        central.append(at)
        at += 46 + sum(struct.unpack("<3H", raw[at + 28 : at + 34]))
    one, other = rng.choice(central), rng.choice(central)
    local = int.from_bytes(raw[one + 42 : one + 46], "little")
    odd = [0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, len(raw), first]
    extreme = rng.choice(odd)

    def put(place: int, fields: Mapping[str, tuple[int, int]], *names: str, value: int = extreme) -> str:
        name = rng.choice(names or list(fields))
        offset, size = fields[name]
        raw[place + offset : place + offset + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
        return f"{name} {value:#x} of the entry at {one}"

    if how == "encrypted":
        raw[one + 8] |= 1
        raw[local + 6] |= rng.choice((0, 1))
    elif how == "descriptor":
        raw[one + 8] |= 8
        raw[local + 6] |= 8
        raw[local + 14 : local + 26] = bytes(12)
    elif how == "overlap":
        raw[one + 42 : one + 46] = raw[other + 42 : other + 46]
    elif how == "other local name":
        raw[local + 30] ^= 1
    elif how == "method":
        return put(one, CENTRAL, "method", value=rng.choice((1, 6, 8, 9, 12, 14, 93, 95, 99)))
    elif how == "version":
        return put(one, CENTRAL, "made by", "needs")
    elif how == "central":
        return put(one, CENTRAL)
    elif how == "local":
        return put(local, LOCAL)
    elif how == "end":
        return put(end, END)
    elif how == "comment":
        raw[end + 20 : end + 22] = struct.pack("<H", 65_000)
        raw += rng.choice((b"c" * 65_000, b"c" * 10, b"PK\x05\x06" * 16_250))
    elif how in ("zip in a comment", "two archives"):
        inner = zip_bytes([("a/data.pkl", b"N.")])
        if how == "zip in a comment":
            raw[end + 20 : end + 22] = struct.pack("<H", len(inner))
        raw += inner
    elif how == "junk before":
        raw[:0] = rng.choice((b"x" * 100, b"\x89HDF", b"PK\x03\x04" + bytes(60)))
    elif how == "no directory":
        del raw[first:]
    elif how == "zip64":
        place = rng.choice((0, extreme, 2**63, 2**64 - 1))
        record = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, extreme, extreme, extreme, place)
        where, disks = rng.choice((end, extreme, 2**64 - 1)), rng.choice((0, 1, extreme))
        raw[end:end] = record + struct.pack("<4sIQI", b"PK\x06\x07", 0, where, disks)
    return ""


# fmt: off
def odd_values(rng: Random, name: str, tensor: Tensor, many: int = 0) -> dict[str, bytes]:
    """Values of a ckpt that MindSpore would not write."""
    tag, type_, raw = name.encode(), WORDS[tensor.word][2].encode(), tensor.raw
    dims = b"".join(proto(1, n) for n in tensor.shape)
    inner = dims + proto(2, type_) + proto(3, raw)
    half, huge = len(raw) // 2, b"\xff" * 9 + b"\x01"
    text = proto(1, 1) + proto(2, b"str") + proto(3, "sechs".encode("utf-32-le"))

    def value(tensor_bytes: bytes, before: bytes = b"", after: bytes = b"", label: bytes = tag) -> bytes:
        return proto(1, before + proto(1, label) + proto(2, tensor_bytes) + after)

    def piece(raw: bytes, these: bytes = dims, type_: bytes = type_, label: bytes = tag) -> bytes:
        return value(these + proto(2, type_) + proto(3, raw), label=label)

    words = value(text, label=b"words")
    odd_type = rng.choice((b"Complex64", b"float32", b"", b"Float32 ", b"Int4", b"\xff", b"x" * 10_000, b"\x1b[2J"))
    return {
        "huge length": b"\x0a" + huge + b"x",
        "length beyond": b"\x0a" + varint(1 << 40) + value(inner)[3:],
        "endless varint": b"\x0a" + b"\x80" * 100,
        "overlong varint": b"\x0a" + bytes([9 | 0x80, 0x80, 0]) + value(inner),
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
        "negative dims": piece(raw, proto(1, -1)),
        "two negative dims": piece(raw, proto(1, -1) + proto(1, -len(raw))),
        "huge dims": piece(raw, proto(1, 1 << 62) + proto(1, 4)),
        "overflowing dims": piece(raw, proto(1, (1 << 63) - 1) * 30),
        "zero dims": piece(b"", proto(1, 0) + proto(1, 1 << 62)),
        "many dims": piece(raw, proto(1, 1) * 100_000 + dims),
        "packed dims": piece(raw, proto(1, b"".join(varint(n) for n in tensor.shape))),
        "no dims": piece(raw, b""),
        "scalar": piece(raw[:4], proto(1, 0), b"Float32"),
        "no type": value(dims + proto(3, raw)),
        "type twice": value(inner + proto(2, b"Int8")),
        "unknown type": piece(raw, type_=odd_type),
        "content twice": value(inner + proto(3, raw)),
        "no content": value(dims + proto(2, type_)),
        "short content": piece(raw[:-1]),
        "long content": piece(raw + b"x"),
        "two slices": piece(raw[:half]) + piece(raw[half:]),
        "slices swapped": piece(raw[half:]) + piece(raw[:half]),
        "slice missing": piece(raw[:half]),
        "slice too many": piece(raw) * 2,
        "slices disagree": piece(raw[:half]) + piece(raw[half:], proto(1, 3)),
        "slices of two types": piece(raw[:half]) + piece(raw[half:], type_=b"Int8"),
        "slices apart": piece(raw[:half]) + words + piece(raw[half:]),
        "a thousand slices": b"".join(piece(raw[i : i + 4]) for i in range(0, min(len(raw), 4000), 4)),
        "empty slices": piece(b"") * 1000 + piece(raw),
        "words": words + value(inner),
        "bad words": value(inner) + words.replace(b"s\0\0\0", b"s\0\xff\xff", 1),
        "number": value(inner) + piece(bytes(8), proto(1, 0), b"Int64", b"epoch_num"),
        "moments": value(inner) + value(inner, label=b"adam_m." + tag),
        "many values": b"".join(piece(b"x", proto(1, 0), b"Int8", b"e%d" % i) for i in range(many)),
        "encrypted": (0x7F3A5ED8).to_bytes(4, "little") + value(inner),
    }
# fmt: on


@kind(7)
def protobufs(case: Case) -> str:
    """Values of a ckpt with lengths, fields and slices that MindSpore would not write."""
    rng = case.begin("ckpt")
    found = list(case.base.tensors(case.which).items())
    n = rng.randrange(len(found))
    name, tensor = found[n]
    programs = odd_values(rng, name, tensor)
    how = rng.choice(list(programs))
    if how == "many values":
        programs = odd_values(rng, name, tensor, 70_000)
    where = rng.choice(("instead", "instead", "first", "last", "alone"))
    parts = [value_bytes(*pair) for pair in found]
    if where == "instead":
        parts[n] = programs[how]
    else:
        parts = {"first": [programs[how], *parts], "last": [*parts, programs[how]], "alone": [programs[how]]}[
            where
        ]
    data = b"".join(parts)
    ends = {
        "no crc": data,
        "crc": with_crc(data),
        "its crc": with_crc(data),
        "wrong crc": data + b"crc_num" + bytes(10),
        "half a crc": with_crc(data)[:-5],
        "huge crc": data + b"crc_num" + b"\xff" * 10,
        "crc twice": with_crc(with_crc(data)),
    }
    end = rng.choice(list(ends))
    case.weights.write_bytes(ends[end])
    if end == "wrong crc" and "--verify" in case.options:
        case.must = "refuse"
    return f"protobuf: {how} {where} of {name}, {end}"


# --------------------------------------------------------------------------------- command lines and file systems
# fmt: off
SETTINGS = ["[" * 50_000, "1," * 5, "4,6", "a=b", "=", ",", "True", "None", "1e999,1"]
SHARD_SIZES = ["0", "1", "-1", "1e999", "1e3", "9" * 400, "9" * 5000, "٣", "5GB", "5 gb", "0.4", "0.0001KB", "1.5KiB",
               "GB", "", " ", "5TB", "1_000", "nan", "inf", "0x10", "1KB1", "+5", "²", "9" * 300 + "." + "9" * 50]
ARGUMENTS = ["", " ", "x", "\x1b[2J", "\n", "../x", "é", "\udcff", "-", "--", "--help", "0", "x" * 50_000, "ema,model",
             "EMA", "ours", "diffusers"]
ODD_FILES = ["**", "*", "a\nb", "\x1b[2J", "-x", "--help", "é", "\udcff", "~", " ", "%s{}", "a\u202e", "[x]", "?"]
ODD_ENDINGS = ["out/.safetensors", "out/x.", "out/.x", "out/x.safetensors.", "out/..pt", "out/x.npz", "out/x.PT",
               "out/x.pt "]
GLOBS = ["*", "?", "[y]", "**"]
HERE = [".", "", "..", "/", "out/..", "out/.", "./", "out/x/", "out//x", "out/x.pt/", "//"]
DEVICES = ["/dev/null", "/dev/full", "/dev/stdout", "/proc/x.pt", "/proc/self/x", "/sys/x.safetensors", "/dev/fd/1"]
SOURCE_DEVICES = ["/dev/null", "/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/self/environ", "/proc/self/maps"]
SOURCE_NAMES = ["a\nb.pt", "\x1b[2J.safetensors", "é.pt", "\udcff.safetensors", "-x.bin", " ", "x", "x.ckpt", "x.pt",
                "x.safetensors", "x.index.json", "x.json", ".pt", "x.safetensors.json"]


def odd_lines(source: str, target: str) -> list[list[str]]:
    """Whole command lines."""
    s, t = f"--source={source}", f"--target={target}"
    return [
        [], ["--help"], ["-h"], ["--version"], [s], [t], [s, t, "more"], [s, t, "--force=1"], ["--", s, t],
        [s, t, "--help"], [s, t, "--dtype=fp16", "--dtype=keep"],
        [f"@{source}"], [s, s, t, t], ["--sou", source, "--tar", target], [s, t, "--set"],
        ["--source", "--target", target],
        ["--source", source, "--target"], [s, t, "--which"], ["--s=in", t], [s, t, "--set", "a=1", "--set", "b=2"],
        [s, t, "--verify", "--verify"], ["-x"], ["--source=", "--target="], [s, t, "--to", "ours", "--to", "diffusers"],
        [s, t, "--nothing"], ["help"], [""], ["\ud800"], ["\x1b[2J"], ["x" * 100_000],
    ]
# fmt: on


@kind(6)
def lines(case: Case) -> str:
    """Odd words on the command line."""
    rng = case.begin()
    if case.inspects and rng.random() < 0.7:
        case.converting()
    how = rng.choice(("set", "set", "set", "set", "shards", "shards", "option", "line"))
    if how == "set":
        keys = arguments_of(case.base.family)
        odd = rng.choice([*(text for text in ODD_JSON if len(text) < DEEP), *SETTINGS, *NUMBERS])
        pair = f"{rng.choice(keys)}={odd}"
        case.settings.append(
            rng.choice((pair, pair, pair, odd, f"={odd}", f"_x={odd}", f"\x1b[2J={odd}", "a" * 50_000))
        )
        if rng.random() < 0.3:
            case.settings.append(f"{rng.choice(keys)}={rng.choice(NUMBERS)}")
            if case.base.name == "dit":  # a start for training: tables are filled in
                case.settings += ["condition=class"] * (rng.random() < 0.6)
            elif case.base.name.startswith("t2v") and not case.inspects:
                case.to = "mindone-opensora-pku"  # has tables that are computed
        return f"--set {ascii(case.settings[len(case.base.settings) :])[:80]}"
    if how == "shards":
        case.target = rng.choice(("out/x", "out/x", "out/x", "out/x.pt"))
        case.options = [option for option in case.options if not option.startswith("--shard")]
        case.options.append(f"--shard-size={rng.choice(SHARD_SIZES)}")
        return ascii(case.options[-1])[:60]
    if how == "option":
        value = rng.choice(ARGUMENTS)
        option = rng.choice(("which", "to", "layout", "dtype", "source", "script"))
        if option == "script":
            value = case.script = rng.choice([*COMMANDS.values(), INSPECT])
            if not case.inspects and not case.target:  # a command that only looked now writes
                case.target = "o.safetensors"
        else:
            setattr(case, option, value)
        case.readable = option != "source"
        return f"{option} {ascii(value)[:40]}"
    case.target, case.to, case.dtype, case.which = "out/x.pt", "ours", "keep", "ema"
    case.spelt = rng.choice(odd_lines(case.source, case.target))
    if "diffusers" in case.spelt:
        case.to = "diffusers"
    if "--help" in case.spelt or "-h" in case.spelt:
        case.target = None
    return f"arguments {ascii(case.spelt)[:80]}"


@kind(6)
def places(case: Case) -> str:
    """Sources and targets that are no plain files, or each other."""
    rng = case.begin()
    if rng.random() < 0.45:
        return odd_source(case)
    case.converting(*["--verify"] * (rng.random() < 0.5), *["--force"] * (rng.random() < 0.6))
    clear(case.folder / "out")
    (case.folder / "out").mkdir()
    targets = odd_targets(case, rng.choice(ENDINGS))
    how = rng.choice(list(targets))
    case.target = targets[how]()
    if case.target.startswith(("/dev/", "/proc/", "/sys/")):
        case.roots.append(Path(case.target).parent)
    return f"target is {how}: {ascii(case.target)[:60]}"


# fmt: off
def odd_targets(case: Case, ending: str) -> dict[str, Callable[[], str]]:
    """Each prepares its target and returns it."""
    rng, out, inside = case.rng, case.folder / "out", case.folder / "in"
    weights = os.path.relpath(case.weights, case.folder)
    neighbour = case.folder.parent / "neighbour.safetensors"
    plain = f"x{ending or '.pt'}"

    def link(name: str, to: str | Path) -> str:
        (out / name).symlink_to(to)
        return f"out/{name}"

    def beside(name: str, make: Callable[[Path], object]) -> str:
        """Something stands where x.pt needs place."""
        make(out / name)
        return "out/x.pt"

    def folder(*inner: str) -> str:
        for name in ("", *inner):
            (out / "x" / name).mkdir(exist_ok=True)
        return "out/x"

    def aside(more: str) -> str:
        """The weights under the name that a side file of the target has."""
        shutil.copy(case.weights, out / f"x.safetensors{more}")
        case.source, case.readable = f"out/x.safetensors{more}", False
        return "out/x.safetensors"

    return {
        "the source": lambda: case.source,
        "the weights": lambda: weights,
        "link to the weights": lambda: link("x.safetensors", case.weights),
        "hard link to the weights": lambda: os.link(case.weights, out / plain) or f"out/{plain}",
        "folder of the source": lambda: os.path.dirname(weights),
        "link to the source's folder": lambda: link("x", case.weights.parent),
        "link to a folder": lambda: (out / "y").mkdir() or link("x", out / "y"),
        "dangling link": lambda: link(f"x{ending}", out / "nothing"),
        "loop": lambda: link(f"x{ending}", out / f"x{ending}"),
        "link to a neighbour": lambda: link("x.safetensors", neighbour),
        "parent is a link": lambda: link("x", inside) + f"/new{ending}",
        "parent is a loop": lambda: link("x", out / "x") + f"/new{ending}",
        "parent is a file": lambda: f"{weights}/x{ending}",
        "parent is missing": lambda: f"out/no/x{ending}",
        "beside the source": lambda: f"{os.path.dirname(weights)}/new{ending}",
        "inside the source": lambda: f"{case.source}/x{ending}",
        "side files of the source": lambda: aside(rng.choice((".json", ".extras.safetensors"))),
        "fifo": lambda: os.mkfifo(out / f"x{ending}") or f"out/x{ending}",
        "folder with an ending": lambda: (out / "x.pt").mkdir() or "out/x.pt",
        "full folder": lambda: (folder() and (out / "x/diary.txt").touch()) or "out/x",
        "folder in the folder": lambda: folder("diffusion_pytorch_model"),
        "config is a folder": lambda: beside("x.pt.json", Path.mkdir),
        "config is a link": lambda: beside("x.pt.json", lambda place: place.symlink_to(neighbour)),
        "extras are there": lambda: beside("x.pt.extras.safetensors", lambda place: place.write_bytes(b"mine")),
        "extras are a folder": lambda: beside("x.pt.extras.safetensors", Path.mkdir),
        "extras are a link": lambda: beside("x.pt.extras.safetensors", lambda place: place.symlink_to(neighbour)),
        "a leftover": lambda: (out / ".x.unfinished-abcdefgh.tmp").mkdir() or "out/x",
        "a leftover file": lambda: (out / ".x.unfinished-abcdefgh.tmp").touch() or "out/x",
        "another's leftover": lambda: (out / ".y.unfinished-abcdefgh.tmp").mkdir() or f"out/{rng.choice(GLOBS)}",
        "read-only folder": lambda: out.chmod(0o500) or f"out/x{ending}",
        "odd ending": lambda: rng.choice(ODD_ENDINGS),
        "long name": lambda: f"out/{'n' * rng.choice((100, 230, 240, 250, 300))}{ending}",
        "long path": lambda: "out/" + "n/" * 5000 + f"x{ending}",
        "here": lambda: rng.choice(HERE),
        "odd name": lambda: f"out/{rng.choice(ODD_FILES)}{ending}",
        "device": lambda: rng.choice(DEVICES),
    }


def odd_source(case: Case) -> str:
    """Something else to read."""
    rng, inside, weights = case.rng, case.folder / "in", case.weights
    odd = inside / "odd"
    case.readable = False

    def file(content: bytes, name: str = "odd", size: int | None = None) -> str:
        (inside / name).write_bytes(content)
        os.truncate(inside / name, len(content) if size is None else size)
        return f"in/{name}"

    def sparse(start: bytes, name: str = "odd.pt") -> str:
        return file(start, name, 1 << 30)

    def link(to: str | Path) -> str:
        odd.symlink_to(to)
        return "in/odd"

    def folder(fill: Callable[[], object]) -> str:
        odd.mkdir()
        fill()
        return "in/odd"

    def renamed(name: str) -> str:
        weights.rename(weights.with_name(name))
        return os.path.relpath(weights.with_name(name), case.folder)

    def pipeline() -> str:
        shutil.copytree(inside, inside / "vae")
        shutil.copytree(inside / "vae", inside / "transformer", dirs_exist_ok=True)
        return "in"

    huge = json.dumps({"a": {"dtype": "F32", "shape": [1 << 27], "data_offsets": [0, 1 << 29]}})
    value = b"\x0a" + varint((1 << 30) - 6) + b"\x0a\x01x\x12" + varint((1 << 30) - 14)
    side = f"{Path(case.source).stem or 'x'}.json"
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64
    sources: dict[str, Callable[[], str]] = {
        "missing": lambda: "in/nothing.pt",
        "empty": lambda: file(b""),
        "empty folder": lambda: folder(lambda: None),
        "full folder": lambda: folder(lambda: [(odd / f"\x1b[{n}").touch() for n in range(1000)]),
        "weights are a folder": lambda: folder((odd / "model.safetensors").mkdir),
        "fifo": lambda: os.mkfifo(odd) or "in/odd",
        "fifo in a folder": lambda: folder(lambda: os.mkfifo(odd / "model.safetensors")),
        "socket": lambda: os.mknod(odd, stat.S_IFSOCK | 0o600) or "in/odd",
        "loop": lambda: link("odd"),
        "dangling": lambda: link("nothing"),
        "link to weights": lambda: link(os.path.relpath(weights, inside)),
        "link to /dev/zero": lambda: link("/dev/zero"),
        "link to itself": lambda: link("."),
        "device": lambda: rng.choice(SOURCE_DEVICES),
        "unreadable": lambda: weights.chmod(0) or case.source,
        "unreadable folder": lambda: inside.chmod(0) or case.source,
        "long name": lambda: "in/" + "n" * 300,
        "long path": lambda: "n/" * 5000 + "x",
        "a script": lambda: str(ROOT / case.script),
        "slash": lambda: case.source + "/",
        "round about": lambda: f"in/../in/./../{case.source}",
        "here": lambda: rng.choice(("", ".", "..", "/", "//", "~", "-", "*")),
        "odd name": lambda: renamed(rng.choice(SOURCE_NAMES)),
        "sparse zeros": lambda: sparse(b""),
        "sparse safetensors": lambda: sparse(header_bytes(huge)),
        "sparse header": lambda: sparse((99_000_000).to_bytes(8, "little") + b"{", "odd.safetensors"),
        "sparse zip": lambda: sparse(b"PK\x03\x04"),
        "sparse legacy": lambda: sparse(torch_legacy(b"}", {})),
        "sparse ckpt": lambda: sparse(proto(1, proto(1, b"x") + b"\x12") + bytes(10), "odd.ckpt"),
        "sparse ckpt value": lambda: sparse(value, "odd.ckpt"),
        "sparse index": lambda: file(b'{"weight_map": {}}', "odd.index.json", 1 << 28),
        "sparse config": lambda: file(b"{}", side, 1 << 28) and case.source,
        "html": lambda: file(b"<!DOCTYPE html><html>" + b" " * 5000),
        "git lfs": lambda: file(lfs, rng.choice(("odd.safetensors", "odd.pt", "odd.ckpt"))),
        "tar": lambda: file(b"sys_info\0" + bytes(10_000)),
        "pickle": lambda: file(pickle.dumps({"ema": {}}, rng.choice((0, 2, 4)))),
        "noise": lambda: file(rng.randbytes(5000)),
        "pipeline": pipeline,
    }
    how = rng.choice(list(sources))
    case.source = sources[how]()
    return f"source is {how}: {ascii(case.source)[:60]}"
# fmt: on
