# SPDX-License-Identifier: Apache-2.0
"""The bundles that come with the package: whole, small, of the reference as it is now, and sharp."""

import numpy as np
import pytest

from parity import compare, record
from parity.harness.bundle import ANSWERS, Bundle
from parity.harness.trace import Record

NAMES = ("thin", "tiny")
# Another processor or build of torch may sum in another order (1 and 2 threads of one build do not: no bit differs).
# float64: rounding is 2e-15 to 6e-13 on whole nets, the smallest catalogued bug 1.9e-6 (gates.SEMANTIC). float32 holds
# the control, in bf16 too: two controls that are 6.3e-3 from the truth each are at most twice that apart.
CLOSE = {"float64": 1e-11, "float32": 2e-2}


@pytest.fixture(scope="module", params=NAMES)
def shipped(request):
    return Bundle(compare.find(request.param))


def arrays(value):
    """Every floating point array of an answer, in order."""
    if isinstance(value, np.ndarray):
        return [value] if value.dtype.kind == "f" else []
    if isinstance(value, Record):
        value = [value.args, value.kwargs, value.outputs]
    if isinstance(value, dict):
        value = list(value.values())
    return [found for item in value for found in arrays(item)] if isinstance(value, (list, tuple)) else []


def far(ours, theirs):
    """Pairs of arrays of two answers that differ by more than the order of summation explains."""
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64), a.dtype.name)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return [name for a, b, name in pairs if not np.linalg.norm(a - b) <= CLOSE[name] * np.linalg.norm(b)]


def recorded_again(bundle, folder):
    """The same choice, recorded by the code as it is now."""
    manifest = bundle.manifest
    words = ["--output", str(folder), "--case", *manifest["cases"], "--taps", "stages"]
    words += ["--dtype", ",".join(dict.fromkeys(run["dtype"] for run in manifest["runs"]))]
    words += ["--sample", str(manifest["sample"])] + (
        ["--inside", *manifest["inside"]] if manifest["inside"] else []
    )
    assert record.main(words) == 0
    return Bundle(folder)


def test_it_is_small_and_knows_no_machine(shipped):
    assert shipped.bytes < 4e6
    text = (shipped.path / ANSWERS).read_text()
    assert "site-packages" not in text and ".py:" in text
    assert not any(mark in text for mark in ("/home/", "/root/", "/work/", "/opt/", "../"))


def test_it_is_of_the_reference_as_it_is_now(shipped, tmp_path, capsys):
    """If this fails, the reference, a case or the weights' rule has changed: record the bundle again, as its manifest
    says, with OMP_NUM_THREADS=1. Where only a comment has, answers and tensors keep their bytes."""
    fresh = recorded_again(shipped, tmp_path / "again")
    capsys.readouterr()
    assert (
        fresh.manifest["cases"] == shipped.manifest["cases"]
        and fresh.manifest["runs"] == shipped.manifest["runs"]
    )
    both = [key for key in fresh.answers if key in shipped.answers]
    assert len(both) > 8 * len(
        shipped.manifest["runs"]
    )  # questions about single layers hold float32 results: they vary
    compared = 0
    for key in both:
        ours, theirs = arrays(fresh.recall(key)), arrays(shipped.recall(key))
        assert far(ours, theirs) == []
        compared += len(ours)
    assert compared > 20 * len(shipped.manifest["runs"])


def test_a_changed_reference_would_be_seen(shipped):
    answers = [shipped.recall(key) for key in shipped.answers]
    whole = [
        value for answer in answers for value in arrays(answer) if value.dtype == np.float64 and value.any()
    ]
    assert len(whole) > 50 and far(whole, whole) == []
    assert far([value * (1 + 1e-9) for value in whole], whole) == ["float64"] * len(whole)


def test_the_port_passes_it(shipped, tmp_path, capsys):
    assert compare.main([shipped.path.name, "--report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "0 FAIL" in said and f"{shipped.path.name}@{shipped.manifest['sha256'][:12]}" in said
    assert "has changed since the recording" not in said


@pytest.mark.parametrize(
    ("bundle", "mutant", "words", "culprit"),
    [
        ("thin", "softmax_half", ["--case", "latte.*"], "blocks.0.attn.core"),
        ("tiny", "gelu_erf", ["--case", "latte.*", "--dtype", "fp64"], "blocks.0"),
        ("tiny", "bf16_weights", ["--case", "latte.*", "--dtype", "fp16"], "weight bits"),
    ],
)
def test_a_port_bug_fails_it_and_is_named(bundle, mutant, words, culprit, tmp_path, capsys):
    assert compare.main([bundle, *words, "--mutant", mutant, "--report", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert f"first culprit: {culprit} " in said or f"G0 {culprit}: " in said, said
