# SPDX-License-Identifier: Apache-2.0
"""Devices are recognised from the numbers of the probes alone, and a change of the numbers is a change that is told."""

import itertools
import json
import os
from dataclasses import dataclass, replace

import numpy as np
import pytest

from parity import fingerprint as command
from parity.harness.backends import Worker, WorkerError
from parity.harness.emulate import to_grid
from parity.harness.fingerprint import (
    DTYPES,
    changes,
    choose_control,
    control_policy,
    error_ratios,
    facts_of,
    on_own_grid,
    probes,
    read,
)
from parity.harness.fingerprint_devices import DEVICES, GRIDS, EmulatedDevice, round_to
from parity.harness.runner import Session


@pytest.fixture(scope="module")
def seen():
    """name -> fingerprint of every emulated device."""
    return {name: read(device) for name, device in DEVICES.items()}


# --- recognition

# device -> policy of fp32, fp16, bf16 and what sets it apart
EXPECTED = {
    "fp32": (("fp32", "fp16", "bf16"), {}),
    "hf32": (("hf32", "fp16", "bf16"), {"fp32 matmul left bits": 12, "fp32 conv right bits": 12}),
    "hf32-conv": (
        ("fp32 matmul, hf32 conv", "fp16", "bf16"),
        {"fp32 matmul left bits": 24, "fp32 conv left bits": 12},
    ),
    "tf32": (("tf32", "fp16", "bf16"), {"fp32 matmul left bits": 11, "fp32 matmul exponent bits": 8}),
    "fp16-cube": (("fp16", "fp16", "bf16"), {"fp32 matmul left bits": 11, "fp32 matmul exponent bits": 5}),
    "bf16": (("bf16", "fp16", "bf16"), {"fp32 matmul left bits": 8, "fp32 matmul exponent bits": 8}),
    "fp16-accumulator": (
        ("fp32", "none", "none"),
        {"fp16 matmul accumulator bits": 11, "fp16 sum of 8192 ones": 2048},
    ),
    "bf16-truncating": (("fp32", "fp16", "none"), {"bf16 rounding": "truncation"}),
    "hf32-truncating": (("none", "fp16", "bf16"), {"fp32 matmul input rounding": "truncation"}),
    "flush-to-zero": (
        ("fp32", "fp16", "bf16"),
        {"fp32 subnormals": "flushed to zero"},
    ),
}


def test_every_emulated_device_is_expected():
    assert EXPECTED.keys() == DEVICES.keys()


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_is_recognised_from_its_numbers(seen, name):
    policies, facts = EXPECTED[name]
    assert tuple(control_policy(seen[name], dtype).name for dtype in DTYPES) == policies
    assert {fact: seen[name].facts[fact] for fact in facts} == facts
    assert seen[name].missing == {}
    assert control_policy(seen[name]).flush is (name == "flush-to-zero")


@pytest.mark.parametrize("pair", itertools.combinations(DEVICES, 2), ids="-".join)
def test_no_two_devices_look_the_same(seen, pair):
    assert changes(facts_of(seen[pair[0]]), seen[pair[1]]) != []


def test_plain_float32_shows_what_ieee_says(seen):
    facts = seen["fp32"].facts
    assert facts["fp32 matmul accumulator bits"] == facts["fp32 sum accumulator bits"] == 24
    assert facts["fp32 subnormals"] == facts["fp32 negative zero"] == "kept"
    assert facts["fp16 rounding"] == facts["bf16 rounding"] == "to nearest even"
    assert facts["fp32 matmul order of sums"] == "one after the other"
    for name in ("exp", "tanh", "erf", "rsqrt", "sigmoid"):  # one correct rounding of the float64 value
        assert 0.49 < facts[f"fp32 {name} worst ulp"] <= 0.5


def test_numpy_on_this_machine_is_float32():
    """The probes on arithmetic that this project did not write."""

    def answer(op, dtype, arrays):
        if dtype != "fp32" or op not in ("matmul", "multiply", "sum", "exp"):
            raise LookupError("not asked")
        functions = {"matmul": np.matmul, "multiply": np.multiply, "exp": np.exp, "sum": lambda x: x.sum(-1)}
        return functions[op](*arrays)

    found = read(answer)
    assert found.format("matmul") == "fp32" and found.facts["fp32 matmul accumulator bits"] >= 24
    assert found.facts["fp32 subnormals"] == "kept" and found.facts["fp32 exp worst ulp"] < 4
    assert found.missing["fp32 conv left bits"] == "not asked"
    assert found.format("conv") == "unknown (0 bits, exponent ? bits)"


# --- devices that lack something, or take a short way


class Shortcut(EmulatedDevice):
    """Multiplies where a product has a single term, as libraries do: exactly, whatever the unit for products does."""

    def _product(self, op, dtype, left, right):
        if op == "conv":
            left, right = left.reshape(len(left), -1), right.reshape(len(right), -1).T
        if left.shape[1] == 1 or len(left) == 1 or right.shape[1] == 1:
            return (left.astype(np.float64) @ right).astype(np.float32)
        return super()._product(
            "matmul" if op == "matmul" else "conv", dtype, left, right.T if op == "conv" else right
        )


@pytest.mark.parametrize("format", ["HF32", "bf16"])
def test_the_unit_is_probed_that_nets_of_usual_size_use(format):
    found = read(Shortcut("short", matmul=format, conv=format))
    assert found.format("matmul") == found.format("conv") == format


def lacking(*what):
    """A device of true float32 without kernels of some operations or types."""

    def answer(op, dtype, arrays):
        if op in what or dtype in what:
            raise LookupError("no such kernel")
        return DEVICES["fp32"](op, dtype, arrays)

    return read(answer)


@pytest.mark.parametrize("unit", ["matmul", "conv"])
def test_a_device_that_cannot_multiply_in_float32_has_no_control_and_says_why(unit):
    policy = control_policy(lacking(unit))
    assert policy.name == "none" and "no such kernel" in policy.reason
    assert choose_control(lacking(unit), "fp32").kind == "strict"


def test_a_type_that_the_device_does_not_compute_in_is_refused_with_the_remedy():
    found = lacking("bf16")
    assert [choose_control(found, dtype).kind for dtype in DTYPES] == ["plain", "plain", "absent"]
    session = Session(device="Ascend", fingerprints=dict.fromkeys(DTYPES, found))
    assert session.control("fp16").kind == "plain"
    with pytest.raises(
        WorkerError, match=r"Ascend does not compute in bf16 \(no such kernel\); remedy: leave bf16 out"
    ):
        session.control("bf16")


# --- readings that the devices above do not reach


@dataclass(frozen=True)
class Ordered(EmulatedDevice):
    """Adds in another order. order: "pairs", "lanes" (8 running sums) or "backwards"."""

    order: str = "pairs"

    def _add_up(self, terms, dtype):
        if self.order == "backwards":
            return super()._add_up(terms[..., ::-1], dtype)
        if self.order == "lanes":
            terms = np.concatenate([terms, np.zeros((*terms.shape[:-1], -terms.shape[-1] % 8))], axis=-1)
            lanes = terms.reshape(*terms.shape[:-1], -1, 8)
            return super()._add_up(super()._add_up(np.moveaxis(lanes, -2, -1), dtype), dtype)
        while terms.shape[-1] > 1:
            if terms.shape[-1] % 2:
                terms = np.concatenate([terms, np.zeros((*terms.shape[:-1], 1))], axis=-1)
            terms = round_to(terms[..., ::2] + terms[..., 1::2], self.accumulate)
        return terms[..., 0]


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("pairs", "pairwise"),
        ("lanes", "in parts: partial sums that hold the first term have 2, 3, 4, 5, 6, 7 ... terms"),
        ("backwards", "in parts: partial sums that hold the first term have 64 terms"),
    ],
)
def test_order_of_sums(order, words):
    facts = read(Ordered(order, order=order), ("fp32",), "matmul").facts
    assert facts["fp32 matmul accumulator bits"] == 24  # whatever the order
    assert facts["fp32 matmul order of sums"] == words


def test_sums_that_lose_nothing():
    facts = read(replace(DEVICES["fp32"], accumulate="fp64"), ("fp32",), "matmul").facts
    assert facts["fp32 matmul order of sums"] == "exact: nothing is absorbed"


def test_an_answer_that_varies_is_told():
    turn = itertools.cycle(["fp32", "flush-to-zero", "fp32"])
    found = read(lambda *probe: DEVICES[next(turn)](*probe), ("fp32",), "subnormal")
    assert found.facts["fp32 subnormals"] == "flushed to zero or kept, from call to call"
    assert control_policy(found).flush is False


@pytest.mark.parametrize("accumulate", ["bf16", "fp16", "HF32", "fp64"])
def test_width_of_the_accumulator(accumulate):
    device = replace(DEVICES["fp32"], accumulate=accumulate)
    facts = read(device, ("fp32",), "matmul").facts
    assert facts["fp32 matmul accumulator bits"] == min(GRIDS[accumulate][0], 30)


def test_unknown_arithmetic_is_no_policy():
    found = read(lambda op, dtype, arrays: DEVICES["fp32"](op, dtype, arrays) * np.float32(1 + 2.0**-20))
    assert control_policy(found).name == "none"
    found = read(DEVICES["fp32"])
    found.facts["fp32 matmul left bits"] = 17
    assert control_policy(found).reason == "no emulation of matmul unknown (17 bits, exponent 8 bits)"


@pytest.mark.parametrize(
    ("half", "words"), [(0, "inputs flushed to zero, results kept"), (1, "inputs kept, results wrong")]
)
def test_inputs_and_results_are_told_apart(half, words):
    def answer(op, dtype, arrays):
        out = DEVICES["fp32"](op, dtype, arrays)
        np.split(out, 2)[half][...] = half
        return out

    assert read(answer, ("fp32",), "subnormals").facts == {"fp32 subnormals": words}


def test_inputs_are_exact_in_the_type_they_are_asked_in():
    assert len(probes()) >= 28
    assert [probe.fact for probe in probes() if not on_own_grid(probe)] == []


@pytest.mark.parametrize("grid", ["fp32", "fp16", "bf16"])
def test_the_emulation_rounds_as_the_frameworks_do(grid):
    rng = np.random.default_rng(3)
    x = (rng.standard_normal(20000) * 10.0 ** rng.uniform(-12, 6, 20000)).astype(np.float32)
    assert np.array_equal(round_to(x, grid), to_grid(x, grid).astype(np.float64))
    assert np.array_equal(
        round_to(np.float32([np.inf, -np.inf, 0.0, -0.0]), grid), [np.inf, -np.inf, 0, -0.0]
    )


# --- the device that is here


@pytest.fixture(scope="module")
def cpu():
    pytest.importorskip("mindspore")
    worker = Worker("mindspore", "CPU", "fp32")
    yield worker
    worker.stop()


def test_mindspore_on_the_cpu(cpu):
    found = cpu("fingerprint")
    assert control_policy(found).name == "fp32"
    assert found.facts["fp32 matmul accumulator bits"] == 24 and found.missing == {}
    assert cpu.environment["effective float32 matmul"] == "24 bits"
    assert cpu.environment["effective float32 convolution"] == "24 bits"
    assert all(0 < ratio < 20 for ratio in error_ratios(found).values())  # softmax 9.3: the CPU's exp
    # Some of MindSpore's threads flush; a single thread leaves nothing to try.
    assert found.facts["fp32 subnormals"] in ("flushed to zero or kept, from call to call", "kept")
    platform = cpu("platform")
    assert platform["soc"].startswith("cpu-") and platform["cann"] == "none"


# --- the command

PLATFORM = {"soc": "Ascend 910/B3", "cann": "8.5", "mindspore": "2.10.0"}


@pytest.fixture
def device(monkeypatch, seen):
    """Makes the command measure an emulated device."""

    def pretend(name):
        monkeypatch.setattr(command, "measure", lambda _: (PLATFORM, seen[name]))

    pretend("fp32")
    return pretend


@pytest.mark.parametrize("words", [[], ["--store"]])
@pytest.mark.parametrize("name", ["notes.txt", "notes.txt/inside"])
def test_a_folder_that_is_a_file_is_a_wrong_use(device, tmp_path, capsys, name, words):
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(SystemExit) as caught:
        command.main(["--folder", str(tmp_path / name), *words])
    assert caught.value.code == 2 and "notes.txt is no folder; expected one" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_a_calibration_is_stored_and_compared(device, tmp_path, capsys):
    arguments = ["--folder", str(tmp_path / "new")]
    assert command.main(arguments) == 3 and "none stored for this platform" in capsys.readouterr().out
    assert command.main([*arguments, "--store"]) == 0
    (path,) = (tmp_path / "new").iterdir()
    assert path.name == "Ascend_910_B3-8.5-2.10.0.json"
    stored = json.loads(path.read_text())
    assert stored["platform"] == PLATFORM and stored["policies"]["fp32"] == "fp32"
    assert stored["error ratios"].keys() == {"matmul", "softmax", "layer_norm", "gelu"}
    capsys.readouterr()
    assert command.main(arguments) == 0 and "facts equal" in capsys.readouterr().out
    device("hf32-conv")
    assert command.main(arguments) == 1
    out = capsys.readouterr().out
    assert "facts CHANGED" in out and "fp32 conv left bits: stored 24, measured 12" in out
    assert "fp32 matmul left bits" not in out


@pytest.mark.parametrize("content", ["{", "[]", '{"facts": 3}', "{}"])
def test_a_broken_calibration_is_named(device, tmp_path, capsys, content):
    command.calibration_file(tmp_path, PLATFORM).write_text(content)
    assert command.main(["--folder", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "--store" in error and error.count("\n") == 1


def test_nothing_half_written_stays(device, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    assert command.main(["--folder", str(tmp_path), "--store"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_an_absent_device_is_one_line(capsys):
    pytest.importorskip("mindspore")
    assert command.main(["--device", "TPU"]) == 2
    error = capsys.readouterr().err
    assert "unknown device" in error and error.count("\n") == 1


@pytest.mark.parametrize("verbose", [False, True])
def test_an_emulated_device_is_shown(capsys, verbose):
    assert command.main(["--emulated", "hf32-conv", *(["-v"] if verbose else [])]) == 0
    out = capsys.readouterr().out
    assert "matmul fp32 (24 bits) · conv HF32 (12 bits)" in out
    assert "control for fp32: fp32 matmul, hf32 conv" in out
    assert ("fp32 conv input rounding" in out) is verbose
    with pytest.raises(SystemExit) as caught:
        command.main(["--emulated", "hf32", "--store"])
    assert caught.value.code == 2
