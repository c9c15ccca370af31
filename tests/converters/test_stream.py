# SPDX-License-Identifier: Apache-2.0
"""Readers and writers against torch and safetensors themselves, and against damaged or hostile files."""

import argparse
import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from converters.containers.safetensors_file import read_safetensors
from converters.containers.source import open_source
from converters.containers.target import save_file
from converters.containers.torch_zip import check_crc, read_torch_zip
from converters.errors import ConversionError
from converters.stream import TensorEntry, cast, content_hash, writing_folder

ROOT = Path(__file__).parents[2]
BF16_BITS = np.array([0x0000, 0x8000, 0x3F80, 0xC049, 0x0001, 0x7F7F, 0x7F80, 0xFF80, 0x7FC0], np.uint16)


def entry(array: np.ndarray, dtype: str = "F32") -> TensorEntry:
    return TensorEntry(dtype, array.shape, lambda: array)


def assert_equals_torch(found: TensorEntry, tensor: torch.Tensor) -> None:
    expected = tensor.detach().float() if tensor.dtype == torch.bfloat16 else tensor.detach()
    values = found.read()
    assert found.shape == tuple(tensor.shape) == values.shape
    assert values.dtype == expected.numpy().dtype and values.dtype.isnative
    assert np.array_equal(values.tobytes(), expected.contiguous().numpy().tobytes())


@pytest.fixture
def variety() -> dict[str, torch.Tensor]:
    """Every dtype and every way in which a tensor can lie in its storage."""
    generator = torch.Generator().manual_seed(7)
    base = torch.randn(5, 6, 7, generator=generator)
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
    return {
        "base": base,
        "shared.slice": base[1:4, :, 2],  # shares base's storage, with an offset and gaps
        "transposed": torch.randn(3, 4, generator=generator).T,
        "broadcast": torch.randn(4, 1, generator=generator).expand(4, 3),  # stride 0
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, 3, generator=generator)),
        "bool": torch.tensor([True, False, True]),
        "uint8": torch.arange(250, 256, dtype=torch.uint8),
        **{str(dtype): (torch.randn(3, 5, generator=generator) * 50).to(dtype) for dtype in dtypes},
    }


# -------------------------------------------------------------------------------------------------- torch


def test_torch_zip_reads_every_kind_of_tensor(save, variety):
    found = read_torch_zip(save(variety))
    assert list(found) == list(variety)
    for name, tensor in variety.items():
        assert_equals_torch(found[name], tensor)
    assert found["torch.bfloat16"].dtype == "BF16"
    assert found["torch.bfloat16"].bits().dtype == np.uint16


def test_torch_zip_is_mapped_not_copied(save):
    path = save({"w": torch.arange(6.0)})
    before, found = path.read_bytes(), read_torch_zip(path)["w"]
    assert np.shares_memory(found.read(), found.read())
    found.read()[:] = 0  # private to this process
    assert path.read_bytes() == before


def test_torch_zip_big_endian(save, tmp_path):
    path, swapped = save({"w": torch.tensor([1.5, -2.0, 3e7])}), tmp_path / "big.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(swapped, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data/0"):
                data = np.frombuffer(data, "<f4").astype(">f4").tobytes()
            new.writestr(name, b"big" if name.endswith("byteorder") else data)
    values = read_torch_zip(swapped)["w"].read()
    assert values.dtype.isnative and values.tolist() == [1.5, -2.0, 3e7]


def test_options_beside_the_weights_are_inert(save):
    found = read_torch_zip(save({"ema": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=1e-4)}))
    assert found["args"].lr == 1e-4 and not isinstance(found["args"], argparse.Namespace)


@pytest.mark.parametrize("keep", [0, 3, 100, 0.3, 0.9, -1])
def test_truncated_zip(golden, tmp_path, keep):
    data = (golden / "latte_uncond.pt").read_bytes()
    cut = tmp_path / "cut.pt"
    cut.write_bytes(data[: int(keep * len(data))] if isinstance(keep, float) else data[:keep])
    with pytest.raises(ConversionError, match=r"truncated|empty|neither"):
        open_source(cut)


def test_random_damage_never_gives_anything_but_our_error(golden, tmp_path):
    """Change bytes of the pickle, the headers and the directory: an answer or ConversionError."""
    data = (golden / "latte_class.pt").read_bytes()
    start, rng, refused = data.index(b"PK\x01\x02"), np.random.default_rng(3), 0
    for _ in range(150):
        damaged = bytearray(data)
        for at in (rng.integers(0, 8500), rng.integers(start, len(data))):
            damaged[at] = rng.integers(0, 256)
        path = tmp_path / "damaged.pt"
        path.write_bytes(damaged)
        try:
            read_torch_zip(path)
        except ConversionError:
            refused += 1
    assert refused > 50


def test_damaged_data_fails_the_checksum(golden, tmp_path):
    check_crc(golden / "latte_class.pt")
    data = bytearray((golden / "latte_class.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.pt").write_bytes(data)
    with pytest.raises(ConversionError, match=r"checksum of .*data/"):
        check_crc(tmp_path / "bad.pt")


def pickled_zip(path: Path, payload: bytes, data: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", payload)
        for name, content in (data or {}).items():
            archive.writestr(f"x/data/{name}", content)
    return path


class Evil:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize(
    ("call", "name"), [(os.system, r"\w+\.system"), (eval, r"\w+\.eval"), (os.mkdir, r"\w+\.mkdir")]
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_hostile_pickle_is_refused_by_name_and_not_run(tmp_path, call, name, protocol):
    proof = tmp_path / "ran"
    argument = {"system": f"touch {proof}", "eval": f"open({str(proof)!r}, 'w')"}.get(
        call.__name__, str(proof)
    )
    path = pickled_zip(tmp_path / "evil.pt", pickle.dumps({"ema": Evil(call, argument)}, protocol))
    with pytest.raises(ConversionError, match=rf"wants to call {name}: refused, nothing was run"):
        open_source(path)
    assert not proof.exists()


def test_hostile_pickle_cannot_change_how_the_next_file_is_read(tmp_path, save):
    # FloatStorage, {"dtype": "F64"}, BUILD: sets an attribute on the object that stands for FloatStorage.
    payload = b"\x80\x02ctorch\nFloatStorage\n}X\x05\x00\x00\x00dtypeX\x03\x00\x00\x00F64sb."
    with pytest.raises(ConversionError, match="attributes for a Global"):
        read_torch_zip(pickled_zip(tmp_path / "evil.pt", payload))
    assert_equals_torch(read_torch_zip(save({"w": torch.ones(4)}))["w"], torch.ones(4))


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (3, (2,), (1,)), (0, (2,), (9,)), (-1, (2,), (1,)), (3, (2,), (-1,))],
)
def test_tensor_outside_its_storage_is_refused(tmp_path, offset, size, stride):
    stream, marker = io.BytesIO(), object()

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if thing is marker else None

    Pickler(stream, 2).dump(
        {"w": Evil(torch._utils._rebuild_tensor_v2, marker, offset, size, stride, False, OrderedDict())}
    )
    path = pickled_zip(tmp_path / "outside.pt", stream.getvalue(), {"0": bytes(16)})
    with pytest.raises(ConversionError, match="outside its storage"):
        read_torch_zip(path)


@pytest.mark.parametrize("code", [b"r\xff\xff\xff\x7f", b"\x96" + b"\xff" * 5 + b"\0\0\0", b"p99999999999\n"])
def test_pickle_cannot_claim_memory_it_does_not_fill(tmp_path, code):
    path = pickled_zip(tmp_path / "bomb.pt", b"\x80\x05}" + code + b".")
    with pytest.raises(ConversionError, match=r"data.pkl is damaged; got ValueError"):
        read_torch_zip(path)


def test_compressed_zip_names_the_remedy(save, tmp_path):
    path, packed = save({"w": torch.ones(2)}), tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ConversionError, match="compressed"):
        open_source(packed)


# -------------------------------------------------------------------------------------------- safetensors


def test_safetensors_reads_what_the_library_wrote(tmp_path, variety):
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in variety.items()}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", {"key": "word"})
    found, metadata = read_safetensors(tmp_path / "a.safetensors")
    assert metadata == {"key": "word"} and set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert_equals_torch(found[name], tensor)


def test_the_library_reads_what_we_write(save, tmp_path, variety):
    entries = read_torch_zip(save(variety))
    save_file(tmp_path / "b.safetensors", entries, {"model": "Latte"})
    found = safetensors.torch.load_file(tmp_path / "b.safetensors")
    assert set(found) == set(variety)
    for name, tensor in variety.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor.detach())
    with safetensors.safe_open(tmp_path / "b.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt", "model": "Latte", "sha256": content_hash(entries)}


def raw_safetensors(path: Path, header: object, data: bytes, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


W = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"w": W}, bytes(4), "truncated"),
        ({"w": W}, bytes(12), "belong to no tensor"),
        ({"w": W, "v": W}, bytes(8), "wrong offsets"),
        ({"w": {**W, "data_offsets": [4, 12]}}, bytes(12), "wrong offsets"),
        ({"w": {**W, "shape": [3]}}, bytes(8), "wrong offsets"),
        ({"w": {**W, "shape": [-2]}}, bytes(8), "non-negative"),
        ({"w": {**W, "dtype": "F8_E4M3"}}, bytes(8), "F8_E4M3"),
        ({"w": [1, 2]}, bytes(8), "bad header entry"),
        ({"w": W, "__metadata__": {"a": 1}}, bytes(8), "bad metadata"),
        (b'{"w": ' + json.dumps(W).encode() + b', "w": 1}', bytes(8), "twice"),
        (b'{"w": ', bytes(8), "not valid JSON"),
    ],
)
def test_damaged_safetensors(tmp_path, header, data, message):
    with pytest.raises(ConversionError, match=message):
        read_safetensors(raw_safetensors(tmp_path / "x.safetensors", header, data))


@pytest.mark.parametrize("size", [0, 5, 8, 60])
def test_truncated_safetensors_header(tmp_path, size):
    whole = raw_safetensors(tmp_path / "x.safetensors", {"w": W}, bytes(8)).read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:size])
    with pytest.raises(ConversionError, match=r"truncated|empty"):
        open_source(tmp_path / "x.safetensors")


def test_web_page_instead_of_a_checkpoint(tmp_path):
    (tmp_path / "x.pt").write_text("<html>not found</html>")
    with pytest.raises(ConversionError, match="error page"):
        open_source(tmp_path / "x.pt")


# ------------------------------------------------------------------------------------------------- casting


def test_bf16_is_exact_both_ways():
    values = TensorEntry("BF16", (9,), lambda: BF16_BITS).read()
    assert values.dtype == np.float32
    assert np.array_equal(
        values, torch.from_numpy(BF16_BITS.view(np.int16)).view(torch.bfloat16).float(), equal_nan=True
    )
    again = cast("w", entry(values), "BF16").stored()
    assert np.array_equal(again, BF16_BITS)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_casts_round_as_torch_does(dtype):
    values = np.random.default_rng(1).standard_normal(20000).astype(np.float32) * np.float32(1e-3)
    values[:4] = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11]  # ties
    word = {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    expected = torch.from_numpy(values).to(word).view(torch.int16).numpy()
    assert np.array_equal(cast("w", entry(values), dtype).stored().view(np.int16), expected)


@pytest.mark.parametrize(("value", "dtype"), [(70000.0, "F16"), (-1e30, "F16"), (3.4e38, "BF16")])
def test_overflow_names_the_tensor(value, dtype):
    array = np.array([1.0, value], np.float32)
    with pytest.raises(ConversionError, match=f"blocks.0.w does not fit {dtype}"):
        cast("blocks.0.w", entry(array), dtype).stored()


def test_cast_keeps_infinities_and_integers():
    array = np.array([np.inf, -np.inf, np.nan, 2], np.float32)
    assert np.array_equal(cast("w", entry(array), "F16").read(), array.astype(np.float16), equal_nan=True)
    steps = entry(np.array([3]), "I64")
    assert cast("steps", steps, "F16") is steps


# ------------------------------------------------------------------------------------------------- writing


def test_content_hash_sees_everything_but_the_order(tmp_path):
    a, b = np.arange(6, dtype=np.float32), np.ones((2, 3), np.float32)
    first = content_hash({"a": entry(a), "b": entry(b)})
    assert first == content_hash({"b": entry(b), "a": entry(a)})
    assert first == save_file(tmp_path / "x.safetensors", {"a": entry(a), "b": entry(b)}, {})
    others = [
        {"a": entry(a), "c": entry(b)},
        {"a": entry(a.reshape(2, 3)), "b": entry(b)},
        {"a": entry(a.view(np.int32), "I32"), "b": entry(b)},
        {"a": entry(np.nextafter(a, np.float32(9))), "b": entry(b)},
    ]
    assert len({first, *map(content_hash, others)}) == 5


def test_failure_halfway_leaves_the_old_file_and_nothing_else(tmp_path):
    def full() -> np.ndarray:
        raise OSError(28, "No space left on device")

    target = tmp_path / "x.safetensors"
    target.write_bytes(b"old")
    entries = {"a": entry(np.ones(4, np.float32)), "b": TensorEntry("F32", (4,), full)}
    with pytest.raises(OSError, match="No space"):
        save_file(target, entries, {})
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["x.safetensors"]


def test_a_killed_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "x.safetensors"
    target.write_bytes(b"old")
    code = (
        "import os, sys; from pathlib import Path; import numpy as np\n"
        "from converters.containers.target import save_file\n"
        "from converters.stream import TensorEntry\n"
        "entries = {'a': TensorEntry('F32', (4,), lambda: np.ones(4, np.float32)),\n"
        "           'b': TensorEntry('F32', (4,), lambda: os.kill(os.getpid(), 9))}\n"
        "save_file(Path(sys.argv[1]), entries, {})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL and target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_a_file_system_without_nameless_files(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_TMPFILE")
    save_file(tmp_path / "x.safetensors", {"a": entry(np.ones(1, np.float32))}, {})
    assert set(read_safetensors(tmp_path / "x.safetensors")[0]) == {"a"}
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "net"
    for content in ("first", "second"):
        with writing_folder(target) as folder:
            (folder / "x").write_text(content)
            assert not target.exists() or (target / "x").read_text() == "first"
        assert (target / "x").read_text() == content and os.listdir(tmp_path) == ["net"]
    with pytest.raises(KeyError), writing_folder(target) as folder:
        (folder / "x").write_text("third")
        raise KeyError
    assert (target / "x").read_text() == "second" and os.listdir(tmp_path) == ["net"]


def test_what_a_killed_process_left_of_a_folder_is_removed_by_the_next(tmp_path):
    code = (
        "import os, sys; from pathlib import Path\n"
        "from converters.stream import writing_folder\n"
        "with writing_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'x').touch(); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "net")], cwd=ROOT, check=False)
    assert len(os.listdir(tmp_path)) == 1 and not (tmp_path / "net").exists()
    with writing_folder(tmp_path / "net"), writing_folder(tmp_path / "net") as second:
        assert (
            second.is_dir() and len(os.listdir(tmp_path)) == 2
        )  # the dead one's is gone, the living one's not
        (second / "y").touch()
    assert os.listdir(tmp_path) == ["net"]


def test_files_get_ordinary_permissions(tmp_path):
    (tmp_path / "plain").touch()
    save_file(tmp_path / "x.safetensors", {"a": entry(np.ones(1, np.float32))}, {})
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
