# SPDX-License-Identifier: Apache-2.0
"""The format of a bundle: what goes in comes out bit for bit, and nothing but what was recorded is accepted."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from parity.harness import gates, sample
from parity.harness.bundle import (
    ANSWERS,
    MANIFEST,
    Bundle,
    BundleError,
    Writer,
    canonical,
    described,
    digest,
    hash_of,
    key_of,
    narrow,
    pack,
    unpack,
)
from parity.harness.case import Case, collect
from parity.harness.emulate import to_grid
from parity.harness.inputs import Layout, Seed, normal
from parity.harness.trace import Record

RNG = np.random.default_rng(3)
ODD = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 65504, 65520, 3.4e38], np.float32)
ARRAYS = {
    "float64": RNG.standard_normal((3, 5)),
    "float64 of float32": RNG.standard_normal((3, 5)).astype(np.float32).astype(np.float64),
    "float32": RNG.standard_normal((2, 7)).astype(np.float32),
    "on the grid of fp16": to_grid(RNG.standard_normal((4, 5)), "fp16"),
    "on the grid of bf16": to_grid(RNG.standard_normal((4, 5)) * 1e30, "bf16"),
    "float64 on the grid of bf16": to_grid(RNG.standard_normal((4, 5)), "bf16").astype(np.float64),
    "odd values": ODD,
    "a NaN with a payload": np.array([0x7FC12345], np.uint32).view(np.float32),
    "int64": np.arange(6).reshape(2, 3),
    "bool": np.array([True, False]),
    "no axis": np.array(1.5),
    "no element": np.zeros((0, 3), np.float32),
    "not contiguous": RNG.standard_normal((4, 6)).astype(np.float32).T,
}


def write(folder, answers, **facts):
    """A bundle of some answers."""
    writer = Writer(folder)
    for key, value in answers.items():
        writer.answer(key, value)
    return writer.finish({"sample": 0, "full": [], "cases": {}, "runs": [], **facts})


def same(a, b):
    """Equality of type, shape and bits."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_bit_for_bit(name, tmp_path):
    write(tmp_path, {"k": ARRAYS[name]})
    assert same(Bundle(tmp_path).recall("k"), ARRAYS[name])


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("float64", "F64"),
        ("float64 of float32", "F32"),
        ("float32", "F32"),
        ("on the grid of fp16", "F16"),
        ("on the grid of bf16", "BF16"),
        ("float64 on the grid of bf16", "BF16"),
        ("odd values", "F32"),
        ("a NaN with a payload", "F32"),
        ("int64", "I64"),
    ],
)
def test_arrays_are_stored_as_narrow_as_is_exact(name, word):
    assert narrow(ARRAYS[name])[0] == word


def test_an_array_is_stored_once(tmp_path):
    value = RNG.standard_normal((64, 64))
    trace = {
        "a#0": Record((), {}, [value], ["float64"]),
        "b#0": Record((value,), {"x": value.copy()}, [-value], []),
    }
    manifest = write(tmp_path, {"k": trace, "again": trace})
    assert manifest["arrays"] == 2
    assert len(Bundle(tmp_path).contents) == 1  # equal answers too
    found = Bundle(tmp_path).recall("k")
    assert same(found["b#0"].args[0], value) and same(found["b#0"].outputs[0], -value)


def test_every_kind_of_value_comes_back(tmp_path):
    value = {
        "case": replace(Case("Linear", dict(n=3), dict(x=normal(2, 3))), file="models.layers"),
        "layout": Layout(2, 3, 4, "time"),
        "seed": Seed(5),
        "plain": [None, True, 3, 2.5, "word", ("a", 1), {"deep": (1, [2])}],
    }
    write(tmp_path, {"k": value})
    assert Bundle(tmp_path).recall("k") == value
    with pytest.raises(TypeError, match="a set cannot be recorded"):
        pack({1, 2}, digest)
    with pytest.raises(ValueError, match="unknown kind 'call'"):
        unpack({"call": ["os.system", "true"]}, None)


def test_every_case_of_the_project_comes_back():
    arrays = {}

    def keep(array):
        arrays[digest(array)] = array
        return digest(array)

    for case in collect():
        text = canonical(pack(case, keep))
        back = unpack(json.loads(text), arrays.__getitem__)
        assert canonical(pack(back, digest)) == text, case.id
        assert described(back).keys() == described(case).keys()


def test_a_question_depends_on_every_bit():
    x = ARRAYS["float32"]
    changed = x.copy()
    changed[0, 0] = np.nextafter(changed[0, 0], np.float32(9))
    keys = [key_of(a) for a in (x, changed, x.astype(np.float64), x.reshape(7, 2), [x], (x,), {"x": x})]
    assert len(set(keys)) == len(keys)
    assert key_of(x) == key_of(x.copy())


def test_a_large_recording_is_written_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("parity.harness.bundle.SHARD", 1000)
    values = {str(i): RNG.standard_normal(50) for i in range(9)}
    manifest = write(tmp_path, values)
    assert sum(name.startswith("tensors") for name in manifest["files"]) == 3
    assert all(same(Bundle(tmp_path).recall(key), value) for key, value in values.items())


# --- what is refused


def edit(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def of_another_format(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["format"] = 99
    manifest["sha256"] = hash_of(manifest)  # somebody else's tool: consistent in itself
    (folder / MANIFEST).write_text(json.dumps(manifest))


def outside(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {"../" + folder.name + "/" + ANSWERS: manifest["files"][ANSWERS]}
    manifest["sha256"] = hash_of(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: flip(f / "tensors-00001.safetensors"), "tensors-00001.safetensors was edited or damaged"),
        (lambda f: edit(f / ANSWERS, b"float64", b"float32"), "answers.json was edited or damaged"),
        (lambda f: edit(f / MANIFEST, b'"sample": 0', b'"sample": 9'), "manifest.json was edited or damaged"),
        (lambda f: (f / "tensors-00001.safetensors").unlink(), "is missing"),
        (lambda f: (f / MANIFEST).unlink(), "is no bundle"),
        (lambda f: edit(f / MANIFEST, b"{", b""), "is not valid JSON"),
        (of_another_format, "has another format; got 99; expected 1; remedy: record the bundle again"),
        (outside, "is missing"),
        (
            lambda f: (f / "tensors-00001.safetensors").write_bytes(
                (f / "tensors-00001.safetensors").read_bytes()[:-8]
            ),
            "is truncated or too long",
        ),
    ],
)
def test_a_damaged_bundle_is_refused_with_the_reason(damage, words, tmp_path):
    write(tmp_path, {"k": ARRAYS["float64"]})
    Bundle(tmp_path)  # as written, it is accepted
    damage(tmp_path)
    with pytest.raises(ValueError, match=words.replace(".", r"\.")) as caught:
        Bundle(tmp_path)
    assert words.endswith("JSON") or isinstance(caught.value, BundleError)


# --- sampling


def triple(n=5000, error=1e-7, dtype=np.float32):
    t = RNG.standard_normal((n // 10, 10))
    return [(t * (1 + error * RNG.standard_normal(t.shape))).astype(dtype) for _ in range(2)] + [t]


def compared(c, r, t, count=256, dtype="fp32"):
    return sample.compare(*(sample.sample(x, count) for x in (c, r, t)), dtype)


def test_a_sample_measures_what_the_whole_array_measures():
    c, r, t = triple()
    whole, part = gates.compare(c, r, t, "fp32"), compared(c, r, t)
    assert part.e_c == pytest.approx(whole.e_c, rel=0.2) and part.e_r == pytest.approx(whole.e_r, rel=0.2)
    assert (part.size, part.norm) == (whole.size, pytest.approx(whole.norm)) and not part.problem


def test_small_arrays_and_integers_are_not_sampled():
    assert not isinstance(sample.sample(ARRAYS["float32"], 14), sample.Sampled)
    assert not isinstance(sample.sample(np.arange(99), 14), sample.Sampled)
    assert isinstance(sample.sample(ARRAYS["float32"], 13), sample.Sampled)


def test_a_sampled_array_survives_the_bundle(tmp_path):
    whole = RNG.standard_normal((40, 30)).astype(np.float32)
    taken = sample.sample(whole, 100)
    write(tmp_path, {"k": [taken]})
    (back,) = Bundle(tmp_path).recall("k")
    assert same(np.asarray(back), np.asarray(taken)) and back.statistics == taken.statistics
    assert sample.shape_of(back) == (40, 30)
    assert all(whole[sample.place(back, flat)] == back[flat] for flat in (0, 7, 99))


def unseen(t, count=256):
    """An index that is not in the sample."""
    return np.unravel_index(next(iter(set(range(t.size)) - set(sample.positions(t.shape, count)))), t.shape)


def test_what_the_sample_does_not_see_the_statistics_bound():
    c, r, t = triple()
    before = compared(c, r, t)
    place = unseen(t)
    spoiled = c.copy()
    spoiled[place] = 50
    after = compared(spoiled, r, t)
    assert after.e_c > 1e3 * before.e_c and after.m_c > 1e3 * before.m_c
    spoiled[place] = np.nan
    assert "NaN, +Inf, -Inf: 1 0 0 in the port, 0 0 0 in the reference" in compared(spoiled, r, t).problem
    spoiled[place] = -np.inf
    assert "0 0 1 in the port" in compared(spoiled, r, t).problem


@pytest.mark.parametrize("seed", range(20))
def test_the_bounds_never_exceed_the_true_errors(seed):
    rng = np.random.default_rng(seed)
    t = rng.standard_normal((60, 50)) * rng.choice([1e-3, 1, 1e3]) + rng.choice([0, 5])
    c, r = (t + 10.0 ** rng.integers(-9, 0) * rng.standard_normal(t.shape) for _ in range(2))
    whole = gates.compare(c, r, t, "fp64")
    nothing = replace(whole, e_c=0.0, e_r=0.0, m_c=0.0, m_r=0.0, max_abs=0.0)
    found = sample.bounded(nothing, *(sample.statistics(x) for x in (c, r, t)), t.size)
    for name in ("e_c", "e_r", "m_c", "m_r", "max_abs"):
        assert 0 < getattr(found, name) <= getattr(whole, name) * (1 + 1e-9) + 1e-15, name
    assert found.peak == pytest.approx(whole.peak) and found.norm == pytest.approx(whole.norm)


def test_another_shape_is_found_though_the_values_are_the_same():
    c, r, t = triple()
    problem = compared(c.reshape(250, 20), r, t).problem
    assert problem == "shape (250, 20) of the port, (500, 10) of the reference"
    assert compared(c[:100], r, t, count=2000).problem  # one side is not even sampled


def test_statistics_do_not_depend_on_the_chunks(monkeypatch):
    x = RNG.standard_normal(1000)
    x[[3, 500, 501, 999]] = [np.nan, np.inf, -np.inf, np.nan]
    whole = sample.statistics(x)
    monkeypatch.setattr(sample, "CHUNK", 64)
    parts = sample.statistics(x)
    assert whole.nonfinite == parts.nonfinite == (2, 1, 1)
    assert (parts.low, parts.high) == (np.nanmin(x[np.isfinite(x)]), np.nanmax(x[np.isfinite(x)]))
    assert math.isclose(parts.total, whole.total, rel_tol=1e-12) and math.isclose(
        parts.squares, whole.squares
    )
