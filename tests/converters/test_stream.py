# SPDX-License-Identifier: Apache-2.0
"""Readers and writers against torch and safetensors themselves, and against damaged or hostile files."""

import errno
import fcntl
import hashlib
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from converters import output
from converters.containers.safetensors_file import read_safetensors
from converters.containers.source import open_source
from converters.containers.target import save_file
from converters.containers.torch_zip import read_torch_zip
from converters.errors import ConversionError
from converters.output import writing, writing_folder
from converters.stream import TensorEntry, cast, content_hash

ROOT = Path(__file__).parents[2]
REAL_PWRITE = os.pwrite
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


@pytest.mark.parametrize("keep", [0, 3, 100, 0.3, 0.9, -1])
def test_truncated_zip(golden, tmp_path, keep):
    data = (golden / "latte_uncond.pt").read_bytes()
    cut = tmp_path / "cut.pt"
    cut.write_bytes(data[: int(keep * len(data))] if isinstance(keep, float) else data[:keep])
    with pytest.raises(ConversionError, match=r"truncated|empty|neither"):
        open_source(cut)


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


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_tensor_without_axes(tmp_path, dtype):
    """Cast, written, read: the value keeps its shape (), which numpy's functions like to lose."""
    scalar = cast("x", entry(np.array(1.5, np.float32)), dtype)
    assert scalar.read().shape == () and scalar.read() == 1.5
    save_file(tmp_path / "x.safetensors", {"x": scalar}, {})
    found = read_safetensors(tmp_path / "x.safetensors")[0]["x"]
    assert found.read().shape == () and cast("x", found, "F32").read().shape == () and found.read() == 1.5


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


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 5 * 4096, 9 * 4096 + 1])
@pytest.mark.parametrize("disk", ["usual", "refuses direct writing", "writes a little at a time"])
def test_blocks_of_a_file(tmp_path, monkeypatch, disk, size):
    """More bytes than all blocks together hold, with a patch; hashes, checksum and progress are those of the bytes."""
    monkeypatch.setattr(output, "BLOCK", 4096)
    pwrite, seen = os.pwrite, []

    def strange(handle: int, data: memoryview, position: int) -> int:
        direct = bool(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT)
        seen.append(direct)
        if direct and disk == "refuses direct writing":
            raise OSError(errno.EINVAL, "Invalid argument")
        return pwrite(handle, data if direct or disk == "usual" else data[:100], position)

    monkeypatch.setattr(os, "pwrite", strange)
    values = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    passed = []
    with writing(tmp_path / "x", passed.append) as out:
        out.write(b"head")
        out.start_crc()
        out.tensor("w", entry(values, "U8"))
        crc = out.end_crc()
        out.write(b"tail")
        assert out.position == size + 8
        out.patch(2, lambda: b"AD")
    assert (tmp_path / "x").read_bytes() == b"heAD" + values.tobytes() + b"tail"
    assert out.digests == {"w": hashlib.sha256(values).digest()} and crc.result() == zlib.crc32(values)
    assert sum(passed) == size + 8
    full = (size + 8) // 4096
    if takes_direct_blocks(tmp_path):
        assert sum(seen) == (full if disk != "refuses direct writing" else min(full, 1))


def takes_direct_blocks(folder: Path) -> bool:
    """Not every file system does, and not all in blocks of 4096 bytes."""
    try:
        handle = os.open(folder / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
        return REAL_PWRITE(handle, mmap.mmap(-1, 4096), 0) == 4096
    except OSError:
        return False


def test_an_error_of_the_disk_reaches_the_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "BLOCK", 4096)

    def full(handle: int, data: memoryview, position: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        save_file(tmp_path / "x.safetensors", {"a": entry(np.ones(1 << 16, np.float32))}, {})
    assert os.listdir(tmp_path) == []


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
        "from converters.output import writing_folder\n"
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
