# SPDX-License-Identifier: Apache-2.0
"""A recording of what the judge asked torch and what torch answered, as a folder that travels.

    manifest.json              readable: versions, cases with the hashes of their inputs, runs, sha256 of every file
    answers.json               question -> answer; arrays by the hash of their content
    tensors-00001.safetensors  the arrays, each once, in the narrowest type that holds them exactly

A question is known by the hash of everything that it depends on: the case as it was built, the weights that were
loaded, the request with its arrays. Nothing in a bundle is executed when it is read.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import MISSING, astuple, fields
from pathlib import Path
from typing import Any

import numpy as np

from converters.containers.safetensors_file import read_safetensors, write_safetensors
from converters.errors import ConversionError
from converters.output import writing
from converters.stream import DTYPES, TensorEntry, parse_json
from parity.harness.backends import ROOT
from parity.harness.case import Case
from parity.harness.inputs import Input, Layout, Seed
from parity.harness.sample import Sampled, Statistics, restore
from parity.harness.trace import Record, fetch

FORMAT = 1
MANIFEST, ANSWERS = "manifest.json", "answers.json"
SHARD = 1 << 28  # bytes of arrays that wait in memory before they are written
WORDS = {dtype: word for word, dtype in DTYPES.items() if word != "BF16"}
DATA = {
    "input": Input,
    "layout": Layout,
    "seed": Seed,
}  # descriptors that travel as the tuple of their fields
RENEW = "record the bundle again: python -m parity record --help"
FETCH = "copy the bundle again, or " + RENEW


class BundleError(ConversionError):
    """A bundle that cannot be used, or a request that it cannot answer; the message says what to do."""


# --- values as JSON


def pack(value: Any, keep: Callable[[np.ndarray], Any]) -> Any:
    """A value of the protocol between judge and workers as JSON; `keep` turns an array into its reference."""
    value = fetch(value)
    if isinstance(value, Sampled):
        parts = [keep(np.asarray(value)), list(value.whole), list(astuple(value.statistics))]
        return {"sampled": parts}
    if isinstance(value, np.ndarray):
        return {"array": keep(value)}
    if isinstance(value, Record):
        return {
            "record": [pack(item, keep) for item in (value.args, value.kwargs, value.outputs, value.dtypes)]
        }
    if isinstance(value, Case):
        return {"case": pack(described(value), keep)}
    for word, kind in DATA.items():
        if isinstance(value, kind):
            return {word: pack(astuple(value), keep)}
    if isinstance(value, dict):
        return {"map": [[key, pack(item, keep)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [pack(item, keep) for item in value]}
    if isinstance(value, list):
        return [pack(item, keep) for item in value]
    if isinstance(value, str):
        return str(value)  # torch's version is a kind of str
    if value is None or type(value) in (bool, int, float):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be recorded")


def unpack(value: Any, array: Callable[[Any], np.ndarray]) -> Any:
    """Undo `pack`; `array` finds an array by its reference. Raises ValueError for what `pack` does not write."""
    if isinstance(value, list):
        return [unpack(item, array) for item in value]
    if not isinstance(value, dict):
        return value
    ((word, content),) = value.items()
    if word == "array":
        return array(content)
    if word == "sampled":
        reference, whole, numbers = content
        return restore(array(reference), whole, Statistics(*numbers))
    if word == "record":
        return Record(*(unpack(item, array) for item in content))
    if word == "map":
        return {key: unpack(item, array) for key, item in content}
    if word == "tuple":
        return tuple(unpack(item, array) for item in content)
    if word == "case":
        return Case(**unpack(content, array))
    if word in DATA:
        return DATA[word](*unpack(content, array))
    raise ValueError(f"unknown kind {word!r}")


def described(case: Case) -> dict[str, Any]:
    """The fields of a case that are not the default: a new field of `Case` changes no old description.

    The path of a checkpoint is left out: its content counts, not its place.
    """
    found = {}
    for field in fields(case):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(case, field.name)
        if field.name != "weights" and value != default:
            found[field.name] = value
    return found


def canonical(value: Any) -> bytes:
    """One spelling of a JSON value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def key_of(*parts: Any) -> str:
    """Hash of any values of the protocol; arrays count by their bits."""
    return hashlib.sha256(canonical(pack(list(parts), digest))).hexdigest()[:32]


def digest(array: np.ndarray) -> str:
    """Hash of an array: type, shape and bits."""
    array = np.asarray(array)
    found = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()[:32]


def narrow(array: np.ndarray) -> tuple[str, np.ndarray]:
    """(dtype word, bits) of the narrowest type that gives the array back bit for bit."""
    array = np.ascontiguousarray(array).reshape(np.shape(array))
    if array.dtype.newbyteorder("<") not in WORDS:
        raise TypeError(f"arrays of {array.dtype} cannot be recorded")
    if array.dtype == np.float64:
        with np.errstate(over="ignore", invalid="ignore"):
            array = _same(array, array.astype(np.float32))
    if array.dtype == np.float32:
        bits = array.view(np.uint32)
        if array.shape and not np.any(bits & np.uint32(0xFFFF)):
            return "BF16", (bits >> np.uint32(16)).astype(np.uint16)
        with np.errstate(over="ignore", invalid="ignore"):
            array = _same(array, array.astype(np.float16))
    return WORDS[array.dtype.newbyteorder("<")], array


def _same(wide: np.ndarray, small: np.ndarray) -> np.ndarray:
    return small if small.astype(wide.dtype).tobytes() == wide.tobytes() else wide


# --- writing


class Writer:
    """Fills a folder: arrays as they come, each once, in shards; answers and manifest at the end."""

    def __init__(self, folder: Path):
        self.folder, self.bytes = folder, 0
        self.answers: dict[str, str] = {}
        self.contents: dict[str, Any] = {}
        self._known: set[str] = set()
        self._waiting: dict[str, TensorEntry] = {}
        self._files: dict[str, dict[str, Any]] = {}

    def answer(self, key: str, value: Any) -> None:
        """Keep the answer to a question."""
        packed = pack(value, self._keep)
        content = hashlib.sha256(canonical(packed)).hexdigest()[:32]
        self.contents[content] = packed
        self.answers[key] = content

    def finish(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Write what waits, and the manifest with the given facts; returns it."""
        self._flush()
        content = {"answers": self.answers, "contents": self.contents}
        self._file(ANSWERS, canonical(content) + b"\n")
        manifest = {"format": FORMAT, **facts, "arrays": len(self._known), "files": self._files}
        manifest["sha256"] = hash_of(manifest)
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        (self.folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
        return manifest

    def _keep(self, array: np.ndarray) -> list[str]:
        word, bits = narrow(array)
        name = digest(bits) + ("b" if word == "BF16" else "")  # its bits look like other integers
        if name not in self._known:
            self._known.add(name)
            entry = TensorEntry(word, tuple(bits.shape), lambda: bits if bits.shape else bits.reshape(1))
            self._waiting[name] = entry
            self.bytes += entry.nbytes
            if sum(waiting.nbytes for waiting in self._waiting.values()) > SHARD:
                self._flush()
        return [name, array.dtype.name]

    def _flush(self) -> None:
        if not self._waiting:
            return
        path = self.folder / f"tensors-{len(self._files) + 1:05d}.safetensors"
        with writing(path, sync=False) as output:
            write_safetensors(output, self._waiting, {})
        self._waiting = {}
        self._note(path)

    def _file(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.write_bytes(content)
        self._note(path)

    def _note(self, path: Path) -> None:
        self._files[path.name] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}


def reference_hash() -> str:
    """Hash of the source of the reference, which tells whether it has changed since a recording."""
    found = hashlib.sha256()
    for path in sorted((ROOT / "torch_ref").rglob("*.py")):
        found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:32]


def hash_of(manifest: dict[str, Any]) -> str:
    """sha256 of a manifest in its canonical spelling, without the hash itself."""
    return hashlib.sha256(canonical({k: v for k, v in manifest.items() if k != "sha256"})).hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


# --- reading


class Bundle:
    """A recording, verified: every file by its hash. Raises BundleError for anything that is not as recorded."""

    def __init__(self, path: Path):
        self.path = path
        self.manifest = self._manifest()
        for name, facts in self.manifest["files"].items():
            self._verify(name, facts)
        content = parse_json((path / ANSWERS).read_bytes(), str(path / ANSWERS))
        self.answers, self.contents = content["answers"], content["contents"]
        self._entries: dict[str, TensorEntry] = {}
        for name in self.manifest["files"]:
            if name.endswith(".safetensors"):
                self._entries.update(read_safetensors(path / name)[0])

    @property
    def bytes(self) -> int:
        """Size of the bundle."""
        return sum(facts["bytes"] for facts in self.manifest["files"].values())

    def recall(self, key: str) -> Any:
        """The answer to a question. Raises KeyError for one that was not asked."""
        return unpack(self.contents[self.answers[key]], self._array)

    def _array(self, reference: list[str]) -> np.ndarray:
        name, dtype = reference
        entry = self._entries[name]
        return np.asarray(entry.read()).reshape(entry.shape).astype(dtype, copy=False)

    def _manifest(self) -> dict[str, Any]:
        path = self.path / MANIFEST
        if not path.is_file():
            raise BundleError(
                f"{self.path} is no bundle",
                expected=f"a folder with {MANIFEST}",
                remedy="python -m parity record",
            )
        manifest = parse_json(path.read_bytes(), str(path))
        if manifest.get("format") != FORMAT:
            raise BundleError(
                f"{self.path} has another format", got=manifest.get("format"), expected=FORMAT, remedy=RENEW
            )
        if manifest.get("sha256") != (actual := hash_of(manifest)):
            raise BundleError(
                f"{path} was edited or damaged",
                got=f"sha256 {actual}",
                expected=manifest.get("sha256"),
                remedy=FETCH,
            )
        return manifest

    def _verify(self, name: str, facts: dict[str, Any]) -> None:
        path = self.path / name
        if path.parent != self.path or not path.is_file():
            raise BundleError(f"{self.path} is incomplete: {name} is missing", remedy=FETCH)
        if path.stat().st_size != facts["bytes"]:
            raise BundleError(
                f"{path} is truncated or too long",
                got=f"{path.stat().st_size} bytes",
                expected=facts["bytes"],
                remedy=FETCH,
            )
        if (actual := file_hash(path)) != facts["sha256"]:
            raise BundleError(
                f"{path} was edited or damaged",
                got=f"sha256 {actual}",
                expected=facts["sha256"],
                remedy=FETCH,
            )
