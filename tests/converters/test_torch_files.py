# SPDX-License-Identifier: Apache-2.0
"""Both file formats of torch, judged by torch itself, and what damaged and hostile files may do: nothing."""

import argparse
import collections
import contextlib
import copyreg
import datetime
import io
import os
import pathlib
import pickle
import struct
import tarfile
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from converters.containers import torch_pickle, torch_zip
from converters.containers.torch_legacy import MAGIC, PROTOCOL, is_torch_legacy, read_torch_legacy
from converters.containers.torch_pickle import Global, Placeholder
from converters.containers.torch_zip import check_crc, read_torch_zip, write_torch_zip
from converters.errors import ConversionError
from converters.output import Output, writing
from converters.stream import TensorEntry, cast, combine, content_hash

WORDS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
READ = {"zip": read_torch_zip, "legacy": read_torch_legacy}
FORMATS = pytest.mark.parametrize("form", list(READ))


def saved(path: Path, thing: object, form: str = "zip", protocol: int = 2) -> Path:
    torch.save(thing, path, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "zip")
    return path


def written(path: Path, entries: dict[str, TensorEntry], wrapper: str | None = None) -> Output:
    with writing(path) as output:
        write_torch_zip(output, entries, {"ignored": "yes"}, wrapper)
    return output


def pickled(path: Path, program: bytes, data: dict[str, np.ndarray] | None = None, form: str = "zip") -> Path:
    """A torch file around a pickle made by hand."""
    data = data or {}
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", program)
            archive.writestr("x/version", "3\n")
            for key, numbers in data.items():
                archive.writestr(f"x/data/{key}", numbers.tobytes())
        return path
    head = [pickle.dumps(part, 2) for part in (MAGIC, PROTOCOL, {"little_endian": True})]
    tail = [len(numbers).to_bytes(8, "little") + numbers.tobytes() for numbers in data.values()]
    path.write_bytes(b"".join([*head, program, pickle.dumps(list(data), 2), *tail]))
    return path


def leaves(thing: object) -> list:
    """Everything in a tree that is small enough to walk."""
    if type(thing) is dict:
        return [leaf for item in thing.items() for part in item for leaf in leaves(part)]
    if type(thing) in (list, tuple):
        return [leaf for part in thing for leaf in leaves(part)]
    if type(thing) is Placeholder:
        return [thing, *leaves(dict(vars(thing)))]
    return [thing]


def assert_same(found: TensorEntry, tensor: torch.Tensor) -> None:
    tensor = tensor.detach()
    word = {torch.bfloat16: torch.int16}.get(tensor.dtype, tensor.dtype)
    expected = tensor.contiguous().view(word).numpy()
    bits = found.bits()
    assert found.shape == tuple(tensor.shape) == bits.shape and bits.dtype.isnative
    assert WORDS[found.dtype] == tensor.dtype
    assert bits.tobytes() == expected.tobytes()


@contextlib.contextmanager
def modest(seconds: float = 20, megabytes: float = 30):
    """What happens inside takes little time and memory."""
    tracemalloc.start()
    start = time.monotonic()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
    assert peak < megabytes and time.monotonic() - start < seconds, (peak, time.monotonic() - start)


@pytest.fixture
def variety() -> dict[str, torch.Tensor]:
    """Every dtype and every way in which a tensor can lie in its storage."""
    generator = torch.Generator().manual_seed(7)
    base = torch.randn(5, 6, 7, generator=generator)
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
    attributed, attributed_parameter = torch.ones(2), torch.nn.Parameter(torch.zeros(4))
    attributed.note = attributed_parameter.note = "kept by torch, dropped here"
    return {
        "base": base,
        "shared.slice": base[1:4, :, 2],  # shares base's storage, with an offset and gaps
        "shared.whole": base.view(-1),
        "transposed": torch.randn(3, 4, generator=generator).T,
        "broadcast": torch.randn(4, 1, generator=generator).expand(4, 3),  # stride 0
        "overlapping": torch.arange(6.0).as_strided((4, 3), (1, 1)),
        "scalar": torch.tensor(2.5),
        "scalar.inside": base[2, 3, 4],
        "empty": torch.zeros(0, 3),
        "empty.last": torch.zeros(3, 0, dtype=torch.int16),
        "parameter": torch.nn.Parameter(torch.randn(2, 3, generator=generator)),
        "buffer": torch.nn.Buffer(torch.arange(3)),
        "attributed": attributed,
        "attributed.parameter": attributed_parameter,
        "bool": torch.tensor([True, False, True]),
        "uint8": torch.arange(250, 256, dtype=torch.uint8),
        "many axes": torch.arange(24.0).reshape(2, 1, 3, 1, 1, 4),
        "Größe 尺寸": torch.ones(3),
        **{str(dtype): (torch.randn(3, 5, generator=generator) * 50).to(dtype) for dtype in dtypes},
    }


# ------------------------------------------------------------------------------------------------- reading


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_kind_of_tensor(tmp_path, variety, form, protocol):
    path = saved(tmp_path / "a.pt", {"ema": variety, "steps": 7}, form, protocol)
    assert is_torch_legacy(path.read_bytes()[:32]) == (form == "legacy")
    tree = READ[form](path)
    assert tree["steps"] == 7 and list(tree["ema"]) == list(variety)
    for name, tensor in variety.items():
        assert_same(tree["ema"][name], tensor)


@FORMATS
def test_tensors_are_mapped_and_share_their_storage(tmp_path, form):
    base = torch.arange(100.0)
    path = saved(tmp_path / "a.pt", {"base": base, "part": base[10:20]}, form)
    before, found = path.read_bytes(), READ[form](path)
    assert np.shares_memory(found["base"].read(), found["part"].read())
    found["base"].read()[:] = 0  # private to this process
    assert found["part"].read().tolist() == [0] * 10 and path.read_bytes() == before


@FORMATS
def test_release_gives_pages_back_and_they_return_from_the_file(tmp_path, form):
    base = torch.arange(20000.0)
    found = READ[form](saved(tmp_path / "a.pt", {"b": base, "gaps": base[8000::7], "none": base[:0]}, form))
    for entry in found.values():
        found["b"].bits()[8000:] = -1
        entry.release()
        changed = int((found["b"].bits() == -1).sum())
        assert changed == 12000 if entry.size == 0 else changed < 2100  # at most the pages at the ends
        found["b"].release()
        assert np.array_equal(found["b"].bits(), base.numpy())


def test_big_endian_zip(tmp_path):
    values = torch.tensor([1.5, -2.0, 3e7])
    path, swapped = saved(tmp_path / "a.pt", {"w": values, "i": torch.tensor([1, 2])}), tmp_path / "big.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(swapped, "w") as new:
        for name in old.namelist():
            data = {"a/data/0": values.numpy().astype(">f4").tobytes(), "a/byteorder": b"big"}.get(name)
            data = np.array([1, 2], ">i8").tobytes() if name == "a/data/1" else data
            new.writestr(name, old.read(name) if data is None else data)
    judge, found = torch.load(swapped, weights_only=True), read_torch_zip(swapped)
    assert torch.equal(judge["w"], values)
    assert_same(found["w"], judge["w"])
    assert_same(found["i"], judge["i"])


def test_legacy_numbers_are_little_endian_whatever_the_machine_was(tmp_path):
    """torch swaps when it writes on a big-endian machine, and does not look at this word when it reads."""
    path = saved(tmp_path / "a.pt", {"w": torch.tensor([1.5, -2.0])}, "legacy")
    data = path.read_bytes()
    swapped = data.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89")
    assert swapped != data
    path.write_bytes(swapped)
    judge = torch.load(path, weights_only=True)["w"]
    assert judge.tolist() == [1.5, -2.0]
    assert_same(read_torch_legacy(path)["w"], judge)


ORDERED = b"ccollections\nOrderedDict\n"
V2 = b"ctorch._utils\n_rebuild_tensor_v2\n"


def storage_id(
    key: bytes = b"7", count: bytes = b"K\x06", view: bytes = b"N", kind: bytes = b"Float"
) -> bytes:
    """A persistent id as Python 2 wrote it, with words in bytes."""
    word = b"U" + bytes([len(key)]) + key
    return b"(U\7storagectorch\n" + kind + b"Storage\n" + word + b"U\6cuda:0" + count + view + b"tQ"


def tensor(storage: bytes, offset: bytes = b"K\0", shape: bytes = b"K\2", stride: bytes = b"K\1") -> bytes:
    return V2 + b"(" + storage + offset + shape + b"\x85" + stride + b"\x85" + b"\x89" + ORDERED + b")RtR"


NUMBERS = np.arange(6, dtype=np.float32) * 1.5


def test_legacy_storage_views_of_old_torch(tmp_path):
    view = b"(U\x019K\2K\3t"  # key 9: 3 numbers from number 2 on
    program = (
        b"\x80\x02}(U\1a" + tensor(storage_id()) + b"U\1b" + tensor(storage_id(view=view), b"K\1") + b"u."
    )
    path = pickled(tmp_path / "old.pt", program, {"7": NUMBERS}, "legacy")
    judge = torch.load(path, weights_only=True, map_location="cpu")
    assert judge["b"].tolist() == [4.5, 6.0]
    found = read_torch_legacy(path)
    assert {name: entry.read().tolist() for name, entry in found.items()} == {"a": [0, 1.5], "b": [4.5, 6.0]}


@FORMATS
def test_python_2_wrote_ordered_dicts_as_lists(tmp_path, form):
    storage = storage_id() if form == "legacy" else storage_id(view=b"")
    program = b"\x80\x02" + ORDERED + b"](]U\1ba" + tensor(storage) + b"aU\1\xffK\1\x86e\x85R."
    found = READ[form](pickled(tmp_path / "old.pt", program, {"7": NUMBERS}, form))
    assert list(found) == ["b", b"\xff"] and found["b"].read().tolist() == [0, 1.5]


def test_tar_format_is_one_clear_error(tmp_path):
    with tarfile.open(tmp_path / "a.pt", "w:", format=tarfile.PAX_FORMAT) as tar:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert is_torch_legacy((tmp_path / "a.pt").read_bytes()[:32])
    with pytest.raises(ConversionError, match=r"tar archive of torch 0.1.*remedy: with torch"):
        read_torch_legacy(tmp_path / "a.pt")


@pytest.mark.parametrize("start", [b"", b"PK\3\4", pickle.dumps({"a": 1}), b"\x80\x02\x8a", b"sys_info"])
def test_what_is_not_legacy(start):
    assert not is_torch_legacy(start)


# ----------------------------------------------------------------------------------- beside the weights


class Tagged(torch.Tensor):
    """A subclass that only its own program knows."""


def training_options() -> dict:
    """What people save with their weights, none of it able to do anything once read."""
    generator = np.random.RandomState(3)
    return {
        "args": argparse.Namespace(lr=1e-4, out=pathlib.Path("a/b"), device=torch.device("cuda", 1)),
        "numpy": [np.float32(0.5), np.bool_(True), np.arange(3), np.array(["a"]), np.dtype("f4"), np.float64],
        "random": [generator.get_state(), generator, np.random.default_rng(2), torch.get_rng_state()],
        "torch": [
            torch.float32,
            torch.bfloat16,
            torch.Size([1, 2]),
            torch.strided,
            torch.ones(2).untyped_storage(),
        ],
        "when": [
            datetime.datetime.now(datetime.timezone.utc),
            datetime.timedelta(1),
            datetime.date(2020, 1, 1),
        ],
        "python": [
            {1, 2},
            frozenset(),
            frozenset("a"),
            bytearray(b"x"),
            b"\xff",
            1j,
            range(3),
            slice(2),
            1 << 99,
        ],
        "collections": [
            collections.defaultdict(dict, a=1),
            collections.deque([1]),
            collections.Counter("aa"),
        ],
        "keys": {(1, 2): "pair", 3: "number", None: "none", 1 << 70: "long", 2.5: "float", b"b": "bytes"},
        "opt": torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(),
    }


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_options_beside_the_weights_are_inert(tmp_path, form, protocol):
    options = training_options()
    path = saved(tmp_path / "a.pt", {**options, "ema": {"w": torch.ones(2)}}, form, protocol)
    found = READ[form](path)
    assert_same(found["ema"]["w"], torch.ones(2))
    assert list(found) == [*options, "ema"]
    assert found["args"].lr == 1e-4 and repr(found["args"]) == "<argparse.Namespace: not rebuilt>"
    assert found["collections"][0] == {"a": 1} and found["torch"][2] == (1, 2)
    assert found["python"][4] == b"\xff" and found["python"][8] == 1 << 99
    keys = [key for key in found["keys"] if type(key) is not Placeholder]
    assert keys == [3, None, 2.5, b"b"] and len(found["keys"]) == 6
    plain = (str, bytes, int, float, bool, type(None))
    inert = (TensorEntry, Placeholder, Global, torch_pickle.Storage)
    assert {type(leaf) for leaf in leaves(found)} <= {*plain, *inert}
    assert not any(callable(leaf) for leaf in leaves(found))


@FORMATS
@pytest.mark.filterwarnings("ignore:.*quantize")
@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (lambda: torch.ones(2, dtype=torch.complex64), r"torch.ComplexFloatStorage: refused"),
        (lambda: torch.ones(2).to_sparse(), r"_rebuild_sparse_tensor: refused"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), r"_rebuild_qtensor: refused"),
        (lambda: torch.ones(2, dtype=torch.uint16), r"dtype of a tensor is not supported; got torch.uint16"),
        (
            lambda: torch.ones(2).to(torch.float8_e4m3fn),
            r"not supported; got torch.float8_e4m3fn; expected F64, F32",
        ),
        (lambda: torch._neg_view(torch.ones(2)), r"flags .*conjugate, negative"),
        (lambda: torch.ones(1).expand(1 << 40), r"much larger than its storage"),
        (lambda: torch.nn.Linear(2, 2), r"torch.nn.modules.linear.Linear: refused"),
        (lambda: pickle.PicklingError("x"), r"PicklingError: refused"),
    ],
)
def test_tensors_and_things_that_are_refused(tmp_path, form, thing, message):
    path = saved(tmp_path / "a.pt", {"w": thing()}, form)
    with pytest.raises(ConversionError, match=message):
        READ[form](path)


class DictConfig(dict):
    """Stands for OmegaConf's class, which official training states keep under "args"."""


@FORMATS
def test_options_of_omegaconf_are_inert(tmp_path, form, monkeypatch):
    monkeypatch.setitem(
        __import__("sys").modules, "omegaconf.dictconfig", argparse.Namespace(DictConfig=DictConfig)
    )
    DictConfig.__module__ = "omegaconf.dictconfig"
    options = DictConfig()
    options.model = "Latte-XL/2"
    path = saved(tmp_path / "a.pt", {"ema": {"w": torch.ones(2)}, "args": options}, form)
    found = READ[form](path)
    assert type(found["args"]) is Placeholder and found["args"].model == "Latte-XL/2"
    assert_same(found["ema"]["w"], torch.ones(2))


@FORMATS
def test_subclass_of_another_program_is_refused(tmp_path, form, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "their_program", argparse.Namespace(Tagged=Tagged))
    Tagged.__module__ = "their_program"
    path = saved(tmp_path / "a.pt", {"w": torch.ones(2).as_subclass(Tagged)}, form)
    with pytest.raises(ConversionError, match=r"their_program.Tagged: refused"):
        READ[form](path)


# ------------------------------------------------------------------------------------------- hostile files


class Evil:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@FORMATS
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (os.system, r"\w+\.system"),
        (eval, r"\w+\.eval"),
        (os.mkdir, r"\w+\.mkdir"),
        (getattr, r"\w+\.getattr"),
        (copyreg._reconstructor, r"cop\w+\._reconstructor"),
        (torch.load, r"torch.serialization.load"),
        (pickle.loads, r"_?pickle.loads"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_are_refused_by_name_and_not_run(tmp_path, form, call, name, protocol):
    proof = tmp_path / "ran"
    argument = {"system": f"touch {proof}", "eval": f"open({str(proof)!r}, 'w')"}.get(
        call.__name__, str(proof)
    )
    program = pickle.dumps({"ema": Evil(call, argument)}, protocol)
    with pytest.raises(ConversionError, match=rf"wants to call {name}: refused, nothing was run"):
        READ[form](pickled(tmp_path / "evil.pt", program, form=form))
    assert not proof.exists()


def word(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


FLOAT = b"ctorch\nFloatStorage\n"
NAMESPACE = b"cargparse\nNamespace\n"


@FORMATS
@pytest.mark.parametrize(
    ("program", "message"),
    [
        # Names
        (word("os") + word("system") + b"\x93", r"call os.system: refused"),
        (word("collections") + word("OrderedDict.__init__") + b"\x93", r"OrderedDict.__init__: refused"),
        (word("torch") + word("os.system") + b"\x93", r"call torch.os.system: refused"),
        (b"c\x1b[2J\nx\n", r"call '\\x1b\[2J.x': refused"),
        (word("os") + b"K\1\x93", r"global without a name"),
        (b"](e\x8c\1x\x93", r"global without a name"),
        (b"c" + b"a" * 300 + b"\nb\n", r"a name at byte \d+ has no end"),
        # Instructions that torch.save never uses
        (b"\x82\1", r"instruction b'\\x82'"),
        (b"\x83\1\0", r"instruction b'\\x83'"),
        (b"\x84\1\0\0\0", r"instruction b'\\x84'"),
        (b"(ios\nsystem\n", r"instruction b'i'"),
        (b"(]o", r"instruction b'o'"),
        (b"Pabc\n", r"instruction b'P'"),
        (b"\x97", r"instruction b'\\x97'"),
        (b"]2", r"instruction b'2'"),
        (b"}p99999999999\n", r"instruction b'p'"),
        # Calls, attributes and items of the wrong things
        (b"])R", r"call of a list with a tuple"),
        (ORDERED + b"]R", r"call of a Global with a list"),
        (NAMESPACE + b")\x81)R", r"call of a Placeholder"),
        (FLOAT + b"}X\5\0\0\0dtypeX\3\0\0\0F64sb", r"attributes for a Global"),
        (b"]}b", r"attributes for a list"),
        (b")]b", r"attributes for a tuple"),
        (NAMESPACE + b")\x81K\1K\2s", r"entries for a Placeholder"),
        (b"]K\1K\2s", r"entries for a list"),
        (b"}K\1a", r"items for a dict"),
        (b")K\1a", r"items for a tuple"),
        (b"}(K\1u", r"ValueError: zip"),
        (ORDERED + b"}\x85R", r"OrderedDict of a dict"),
        (ORDERED + b"]Na\x85R", r"OrderedDict without pairs"),
        (ORDERED + b"]]a\x85R", r"OrderedDict without pairs"),
        (ORDERED + b"]]\x86R", r"ValueError"),
        (b"ctorch\nSize\nK\1\x85R", r"torch.Size without a shape"),
        (b"ctorch\nSize\n](" + b"N" * 40 + b"e\x85R", r"torch.Size without a shape"),
        (b"ctorch\nSize\n)R", r"ValueError"),
        (b"c_codecs\nencode\n" + word("a") + word("utf-8") + b"\x86R", r"unknown encoding"),
        (b"c_codecs\nencode\n" + word("a") + b")\x86R", r"unknown encoding"),
        # Stack and memo
        (b"", r"nothing to take"),
        (b"]N(a", r"nothing to take"),
        (b"a", r"nothing to take"),
        (b"t", r"IndexError"),
        (b"h\1", r"KeyError: 1"),
        (b"}r\xff\xff\xff\x7f", r"memo number 2147483647"),
        # Lengths that the file does not have
        (b"X\xff\xff\xff\xff", r"4294967295 bytes are claimed"),
        (b"\x8d" + b"\xff" * 8, r"bytes are claimed"),
        (b"\x8e" + b"\xff" * 8, r"bytes are claimed"),
        (b"\x96" + b"\xff" * 8, r"bytes are claimed"),
        (b"T\xff\xff\xff\xff", r"bytes are claimed"),
        (b"\x8b\0\0\1\0" + bytes(1 << 16), r"an integer of 65536 bytes"),
        (b"X\1\0\0\0\xff", r"UnicodeDecodeError"),
        # Storages
        (b"NQ", r"unknown kind of storage; got a NoneType"),
        (b"K\1Q", r"unknown kind of storage"),
        (word("storage") + b"Q", r"unknown kind of storage; got a str"),
        (b"(" + word("module") + ORDERED + word("7") + word("cpu") + b"K\6tQ", r"unknown kind of storage"),
        (b"(" + word("storage") + ORDERED + word("7") + word("cpu") + b"K\6tQ", r"unknown kind of storage"),
        (b"(" + word("module") + FLOAT + word("7") + word("cpu") + b"K\6tQ", r"unknown kind of storage"),
        (b"(" + word("storage") + FLOAT + b"K\7" + word("cpu") + b"K\6tQ", r"unknown kind of storage"),
        (b"(" + word("storage") + FLOAT + word("7" * 65) + b"NK\6tQ", r"unknown kind of storage"),
        (b"(" + word("storage") + FLOAT + word("7") + b"N\x88tQ", r"unknown kind of storage"),
        (b"(" + word("storage") + FLOAT + b"tQ", r"unknown kind of storage"),
        (b"(]" + FLOAT + word("7") + word("cpu") + b"K\6tQ", r"unknown kind of storage"),
        (storage_id(count=b"J\xff\xff\xff\xff"), r"unknown kind of storage"),
        (storage_id(count=b"\x8a\7\0\0\0\0\0\0\1"), r"unknown kind of storage"),
        (storage_id(view=b"NN"), r"unknown kind of storage"),
        (storage_id(view=b"K\1"), r"unknown kind of storage"),
        (storage_id(view=b")"), r"unknown kind of storage"),
        (storage_id(view=b"(NNNt"), r"unknown kind of storage"),
        (storage_id(view=b"(NK\4K\3t"), r"a view reaches outside storage 7; got 3 numbers from 4 on; .* 6"),
        # Tensors
        (tensor(b"N"), r"a tensor of 6 arguments"),
        (V2 + b")R", r"a tensor of 0 arguments"),
        (
            tensor(storage_id(), offset=b"K\5"),
            r"outside its storage; got offset 5, shape \(2,\), stride \(1,\)",
        ),
        (tensor(storage_id(), shape=b"K\7"), r"outside its storage"),
        (tensor(storage_id(), stride=b"K\6"), r"outside its storage"),
        (tensor(storage_id(), offset=b"J\xff\xff\xff\xff"), r"outside its storage.*negative"),
        (tensor(storage_id(), b"K\3", stride=b"J\xff\xff\xff\xff"), r"outside its storage.*negative"),
        (tensor(storage_id(), shape=b"\x88"), r"outside its storage.*not integers"),
        (tensor(storage_id(), shape=b"\x8a\x65" + b"\1" * 101), r"outside its storage.*huge"),
        (tensor(storage_id(), shape=b"NN\x86"), r"outside its storage.*not integers"),
        (tensor(storage_id(), shape=b"J\0\0\0\1", stride=b"K\0"), r"much larger than its storage"),
        (V2 + b"(" + storage_id() + b"K\0K\1K\1\x89NtR", r"without shape and stride"),
        (V2 + b"(" + storage_id() + b"K\0)K\1\x85\x89NtR", r"without shape and stride"),
        (V2 + b"(" + storage_id() + b"K\0(" + b"K\1" * 33 + b"tq\1h\1\x89NtR", r"33 axes"),
        (b"ctorch._utils\n_rebuild_parameter\nN\x88N\x87R", r"parameter without a tensor"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n(" + ORDERED + b"N))tR", r"not made from a tensor"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\nq\1(h\1N))tR", r"not made from a tensor"),
    ],
)
def test_hostile_programs(tmp_path, form, program, message):
    """Each is complete otherwise: a file that does nothing but this."""
    copyreg.add_extension("os", "system", 1)  # what EXT1 1 would call in this process
    try:
        path = pickled(tmp_path / "evil.pt", b"\x80\x04" + program + b".", {"7": NUMBERS}, form)
        with modest(), pytest.raises(ConversionError, match=message):
            READ[form](path)
    finally:
        copyreg.remove_extension("os", "system", 1)


@FORMATS
@pytest.mark.parametrize("what", ["dtype", "shape", "bits"])
def test_a_pickle_cannot_change_a_tensor_after_its_check(tmp_path, form, what):
    change = b"}" + word(what) + b"Nsb"
    path = pickled(
        tmp_path / "evil.pt", b"\x80\x02" + tensor(storage_id()) + change + b".", {"7": NUMBERS}, form
    )
    with pytest.raises(ConversionError, match="attributes for a TensorEntry"):
        READ[form](path)


def test_attributes_cannot_pose_as_something_else(tmp_path):
    program = NAMESPACE + b")\x81}" + word("__class__") + b"Ns" + word("what") + b"Ns" + b"K\1Nsb"
    found = read_torch_zip(pickled(tmp_path / "a.pt", b"\x80\x04" + program + b"."))
    assert type(found) is found.__class__ is Placeholder and found.what == "argparse.Namespace"


@pytest.mark.parametrize("program", [b"})\x85Ns", ORDERED + b"])\x85N\x86a\x85R"])
def test_keys_are_hashed_only_when_plain(tmp_path, program):
    """The check behind two of the bombs, which would run forever without it."""
    found = read_torch_zip(pickled(tmp_path / "a.pt", b"\x80\x02" + program + b"."))
    assert [type(key) for key in found] == [Placeholder]


BOMBS = {
    "nested twice each, 2**200 leaves": (b")" + b"q\1h\1\x86" * 200, tuple),
    "the same as a key": (b"})" + b"q\1h\1\x86" * 200 + b"Ns", dict),
    "the same as an early key": (ORDERED + b"])" + b"q\1h\1\x86" * 200 + b"N\x86a\x85R", dict),
    "the same as a storage key": (
        b"(" + word("storage") + FLOAT + b")" + b"q\1h\1\x86" * 200 + b"NK\6tQ",
        None,
    ),
    "the same as an argument": (tensor(b")" + b"q\1h\1\x86" * 200), None),
    "the same as a shape": (tensor(storage_id(), shape=b")" + b"q\1h\1\x86" * 200), None),
    "50000 deep list": (b"]" * 50_000 + b"a" * 49_999, list),
    "50000 deep tuple": (b")" + b"\x85" * 50_000, tuple),
    "20000 deep attributes": (
        NAMESPACE + b"q\1" + (b"h\1)\x81}" + word("a")) * 20_000 + b"N" + b"sb" * 20_000,
        None,
    ),
    "a dict in itself": (b"}q\1" + word("ema") + b"h\1s", dict),
    "a list in itself": (b"]q\1h\1a", list),
    "one list copied often": (ORDERED + b"q\1](" + b"NN\x86" * 5000 + b"e\x85q\2" + b"h\1h\2R" * 5000, None),
    "one text copied often": (
        b"c_codecs\nencode\nq\1X\x50\xc3\0\0"
        + b"a" * 50_000
        + word("latin1")
        + b"\x86q\2"
        + b"h\1h\2R" * 9999,
        None,
    ),
    "attributes copied often": (
        NAMESPACE
        + b"q\1}("
        + b"".join(word(str(n)) + b"N" for n in range(5000))
        + b"uq\2"
        + b"h\1)\x81h\2b" * 5000,
        None,
    ),
    "long arguments often": (V2 + b"q\1](" + b"N" * 50_000 + b"e\x85q\2" + b"h\1h\2R" * 9999, None),
    "long identity often": (b"(" + b"N" * 50_000 + b"tq\2" + b"h\2Q" * 9999, None),
    "a claimed terabyte": (tensor(storage_id(count=b"\x8a\6\0\0\0\0\0\1")), None),
}


@FORMATS
@pytest.mark.parametrize("name", list(BOMBS))
def test_bombs_stay_small(tmp_path, form, name):
    """Read or refused: what counts is that neither time nor memory explode. (Tracing takes most of the time.)"""
    program, kind = BOMBS[name]
    data = {"7": NUMBERS} if b"Storage" in program else {}
    path = pickled(tmp_path / "bomb.pt", b"\x80\x04" + program + b".", data, form)
    with modest(megabytes=60):
        try:
            found = READ[form](path)
        except ConversionError:
            found = None
    assert kind is None or type(found) is kind


def test_objects_made_with_keywords(tmp_path):
    program = NAMESPACE + b")}" + word("lr") + b"K\1s\x92"
    assert type(read_torch_zip(pickled(tmp_path / "a.pt", b"\x80\x04" + program + b"."))) is Placeholder


def test_endless_programs_are_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "MAX_STEPS", 1000)
    path = pickled(tmp_path / "a.pt", b"\x80\x02" + b"]" * 999 + b".")
    with pytest.raises(ConversionError, match="more than 1000 instructions"):
        read_torch_zip(path)
    assert read_torch_zip(pickled(tmp_path / "a.pt", b"\x80\x02" + b"]" * 998 + b".")) == []


# ------------------------------------------------------------------------------------------------- damage


def read_all(path: Path, form: str) -> bool:
    """Whether the file can be read, headers and numbers; anything but ConversionError is for pytest to show."""
    try:
        for leaf in leaves(READ[form](path)):
            if isinstance(leaf, TensorEntry):
                for _ in leaf.parts():
                    pass
    except ConversionError:
        return False
    return True


@FORMATS
def test_truncated_anywhere(tmp_path, variety, form):
    data = saved(tmp_path / "a.pt", {"ema": variety, "args": argparse.Namespace(lr=1)}, form).read_bytes()
    cut = tmp_path / "cut.pt"
    for length in [*range(0, len(data), 61), *range(len(data) - 40, len(data))]:
        cut.write_bytes(data[:length])
        with pytest.raises(ConversionError, match=r"truncated|damaged|empty"):
            READ[form](cut)


@FORMATS
@pytest.mark.parametrize("seed", range(3))
def test_random_damage_gives_an_answer_or_our_error(tmp_path, variety, form, seed):
    """Bytes of headers, pickles and directories, since damaged numbers are still numbers."""
    things = {"ema": variety, "args": argparse.Namespace(lr=1), "numpy": np.float64(2)}
    data = saved(tmp_path / "a.pt", things, form).read_bytes()
    directory = data.index(b"PK\1\2") if form == "zip" else data.rindex(b"]q\x00(X")
    places = [*range(data.index(b"}q"), data.index(b"}q") + 2500), *range(directory, len(data))]
    rng, refused = np.random.default_rng(seed), 0
    damaged_path = tmp_path / "damaged.pt"
    for _ in range(120):
        damaged = bytearray(data)
        for at in rng.choice(places, rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        damaged_path.write_bytes(damaged)
        start = time.monotonic()
        refused += not read_all(damaged_path, form)
        if form == "zip":
            with contextlib.suppress(ConversionError):
                check_crc(damaged_path)
        assert time.monotonic() - start < 20
    assert 30 < refused < 120


def legacy_with(path: Path, old: bytes, new: bytes) -> Path:
    data = saved(path, OrderedDict(w=torch.arange(4.0)), "legacy").read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"\x8a\nl\xfc", b"\x8a\nl\xfd", r"not a torch checkpoint; expected torch's magic number"),
        (b"\x80\x02M\xe9\x03.", b"\x80\x02M\xe9\x04.", r"not a torch checkpoint"),
        (b"protocol_version", b"protocol\xffversion", r"description of the machine is damaged"),
        (
            b"\4\0\0\0\0\0\0\0\0\0\0\0",
            b"\3\0\0\0\0\0\0\0\0\0\0\0",
            r"another size than its tensors say; got 3 .* 4",
        ),
        (b"\4\0\0\0\0\0\0\0\0\0\0\0", b"\xff" * 8 + bytes(4), r"another size than its tensors say; got -1"),
        (
            b"\4\0\0\0\0\0\0\0\0\0\0\0",
            b"\4\0\0\0\0\0\0\0",
            r"is truncated; got \d+ bytes; expected at least \d+",
        ),
        (b"]q\x00X", b")q\x00X", r"list of storages is damaged"),
    ],
)
def test_damaged_legacy_files(tmp_path, old, new, message):
    with pytest.raises(ConversionError, match=message):
        read_torch_legacy(legacy_with(tmp_path / "a.pt", old, new))


@pytest.mark.parametrize(
    "keys",
    [b"](U\0017U\0017e", b"]", b"]U\0018a", b"]K\7a", b"}", b"](U\0017U\0018e", b"U\0017", b"](U\0017K\7e"],
)
def test_legacy_storages_must_be_those_of_the_tensors(tmp_path, keys):
    path = pickled(tmp_path / "a.pt", b"\x80\x02" + tensor(storage_id()) + b".", {"7": NUMBERS}, "legacy")
    listed, data = pickle.dumps(["7"], 2), path.read_bytes()
    assert data.count(listed) == 1
    path.write_bytes(data.replace(listed, b"\x80\x02" + keys + b"."))
    with pytest.raises(ConversionError, match=r"list of storages does not fit .* expected 1 keys: 7"):
        read_torch_legacy(path)


def test_legacy_storage_described_in_two_ways(tmp_path):
    for other in (storage_id(count=b"K\5"), storage_id(kind=b"Int")):
        program = b"\x80\x02](" + tensor(storage_id()) + tensor(other) + b"e."
        path = pickled(tmp_path / "a.pt", program, {"7": NUMBERS}, "legacy")
        with pytest.raises(ConversionError, match="describes storage 7 in two ways"):
            read_torch_legacy(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("x/data/7", None), r"has no entry x/data/7"),
        (("x/data/7", bytes(23)), r"entry data/7 is too short; got 23 bytes; expected 24"),
        (("x/byteorder", b"middle"), r"unknown byte order; got b'middle'"),
        (("y/data.pkl", b""), r"2 entries named"),
        (("x/data.pkl", None), r"0 entries named"),
    ],
)
def test_damaged_zip_archives(tmp_path, change, message):
    parts = {"x/data.pkl": b"\x80\x02" + tensor(storage_id(view=b"")) + b".", "x/data/7": NUMBERS.tobytes()}
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name, data in {**parts, **dict([change])}.items():
            if data is not None:
                archive.writestr(name, data)
    with pytest.raises(ConversionError, match=message):
        read_torch_zip(tmp_path / "a.pt")


def test_zip_that_names_an_entry_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(2):
            archive.writestr("x/data.pkl", b"\x80\x02}.")
    with pytest.raises(ConversionError, match="twice"):
        read_torch_zip(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("place", "offset", "change"),
    [
        ("PK\3\4", 0, 1),  # no local header
        ("PK\1\2", 24, 1000),  # the size of data.pkl
        ("PK\5\6", 16, 5),  # the directory: it puts data.pkl before the file
        ("PK\5\6", 16, 1 << 30),
    ],
)
def test_zip_entry_outside_the_file(tmp_path, place, offset, change):
    path = pickled(tmp_path / "a.pt", b"\x80\x02}.")
    data = bytearray(path.read_bytes())
    at = data.index(place.encode()) + offset
    data[at : at + 4] = (int.from_bytes(data[at : at + 4], "little") + change).to_bytes(4, "little")
    path.write_bytes(data)
    for read in (read_torch_zip, check_crc):
        with pytest.raises(ConversionError, match=r"lies outside the file|damaged zip file"):
            read(path)


def test_checksums(tmp_path, variety):
    path = saved(tmp_path / "a.pt", variety)
    check_crc(path)
    data = bytearray(path.read_bytes())
    data[data.index(variety["uint8"].numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConversionError, match=r"checksum of a/data/\d+ is wrong; got \w{8}; expected \w{8}"):
        check_crc(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_check_crc_unpacks_nothing(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", method) as archive:
        archive.writestr("x/data.pkl", np.random.default_rng(0).bytes(400))
    data = bytearray((tmp_path / "a.pt").read_bytes())
    for at in range(60, 400, 9):
        data[at] ^= 0x55
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(ConversionError, match=r"x/data.pkl is compressed"):
        check_crc(tmp_path / "a.pt")


# ------------------------------------------------------------------------------------------------- writing


def assert_torch_reads(path: Path, tensors: dict[str, torch.Tensor], wrapper: str | None = None) -> None:
    for mapped in (False, True):
        found = torch.load(path, weights_only=True, mmap=mapped)
        if wrapper:
            assert type(found) is dict and list(found) == [wrapper]
            found = found[wrapper]
        assert type(found) is OrderedDict and list(found) == list(tensors)
        for name, tensor in tensors.items():
            got = found[name]
            assert type(got) is torch.Tensor and not got.requires_grad
            assert got.dtype == tensor.dtype and got.shape == tensor.shape
            assert got.stride() == torch.empty(tensor.shape).stride() and got.storage_offset() == 0
            assert got.untyped_storage().nbytes() == tensor.nbytes and got.data_ptr() % 64 == 0
            bits = [part.detach().contiguous().flatten().view(torch.uint8) for part in (got, tensor)]
            assert torch.equal(*bits)


@pytest.mark.parametrize("wrapper", [None, "ema"])
@FORMATS
def test_torch_reads_what_we_write(tmp_path, variety, wrapper, form):
    entries = READ[form](saved(tmp_path / "a.pt", variety, form))
    output = written(tmp_path / "b.pt", entries, wrapper)
    assert_torch_reads(tmp_path / "b.pt", variety, wrapper)
    check_crc(tmp_path / "b.pt")
    again = read_torch_zip(tmp_path / "b.pt")
    again = again[wrapper] if wrapper else again
    assert combine(entries, output.digests) == content_hash(entries) == content_hash(again)


def test_written_files_do_not_depend_on_when_and_where(tmp_path, variety):
    entries = read_torch_zip(saved(tmp_path / "a.pt", variety))
    for name in ("b.pt", "c.pt"):
        written(tmp_path / name, entries)
    assert (tmp_path / "b.pt").read_bytes() == (tmp_path / "c.pt").read_bytes()


def test_no_tensors_and_casts(tmp_path, variety):
    written(tmp_path / "none.pt", {})
    assert_torch_reads(tmp_path / "none.pt", {})
    entries = read_torch_zip(saved(tmp_path / "a.pt", variety))
    written(tmp_path / "b.pt", {name: cast(name, entry, "BF16") for name, entry in entries.items()})
    assert_torch_reads(
        tmp_path / "b.pt", {n: t.bfloat16() if t.is_floating_point() else t for n, t in variety.items()}
    )


@pytest.mark.parametrize("limit", [1, 200, 2000, 1 << 32])
def test_archives_beyond_4_gb(tmp_path, variety, monkeypatch, limit):
    """Sizes and offsets from `limit` on are written as those from 4 GB on."""
    entries = read_torch_zip(saved(tmp_path / "a.pt", variety))
    monkeypatch.setattr(torch_zip, "ZIP64", limit)
    written(tmp_path / "b.pt", entries)
    monkeypatch.undo()
    data = (tmp_path / "b.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "b.pt") as archive:
        infos, at = archive.infolist(), archive.start_dir
        assert archive.testzip() is None

    def field(number: int) -> int:
        return 0xFFFFFFFF if number >= limit else number

    for info in infos:
        local = struct.unpack_from("<4s5H3I2H", data, info.header_offset)
        assert local[6:9] == (info.CRC, field(info.file_size), field(info.file_size))
        central = struct.unpack_from("<4s6H3I5H2I", data, at)
        assert central[7:10] == local[6:9] and central[16] == field(info.header_offset)
        assert bool(info.extra) == (0xFFFFFFFF in central[8:])
        at += 46 + sum(central[10:13])
    assert_torch_reads(tmp_path / "b.pt", variety)
    assert content_hash(read_torch_zip(tmp_path / "b.pt")) == content_hash(entries)


@pytest.mark.parametrize("number", [0, 255, 256, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 48) - 1])
def test_numbers_of_any_size(number):
    assert pickle.loads(b"\x80\x02" + torch_zip._number(number) + b".") == number


def test_an_entry_that_gives_other_bytes_than_it_says_is_not_written(tmp_path):
    short = TensorEntry("F32", (4,), lambda: np.ones(4, np.float32), convert=lambda part: part[:3])
    with pytest.raises(AssertionError, match="w: 4 of 16 bytes are missing"):
        written(tmp_path / "b.pt", {"w": short})
    long = TensorEntry(
        "F32", (4,), lambda: np.ones(4, np.float32), convert=lambda part: np.append(part, part)
    )
    with pytest.raises(AssertionError, match="w: more than 16 bytes"):
        written(tmp_path / "b.pt", {"w": long})
    assert not (tmp_path / "b.pt").exists()
