# SPDX-License-Identifier: Apache-2.0
"""What the default suite leaves out repeats something, no registered bug needs it, and it is counted and said."""

import re

import pytest

from parity.harness.case import collect
from parity.harness.suite import composed, named, repeats
from parity.mutants import DTYPES, MUTANTS
from parity.mutation import runs_of
from tests.harness.test_options import parity

CASES = {case.id: case for case in collect()}


@pytest.mark.parametrize("dtypes", [DTYPES, ("bf16",)], ids=",".join)
def test_every_run_by_which_a_bug_dies_is_a_run_of_the_suite(dtypes):
    lost = [
        (mutant.name, name, run)
        for mutant in MUTANTS.values()
        for dtype in DTYPES
        for name in mutant.cases
        for run in runs_of(dtype)
        if repeats(CASES[name], run, mutant.form, "CPU", dtypes)
    ]
    assert lost == []


def test_every_case_is_judged_in_its_own_formulation():
    for case in CASES.values():
        for dtype in ("fp64", "fp32", "fp16"):
            assert repeats(case, dtype, "CPU", "CPU", DTYPES) == ""
        assert (
            repeats(case, "bf16", "CPU", "CPU", ("fp32", "bf16")) == ""
        )  # the only half type that was asked for


def test_on_a_device_both_half_types_are_judged():
    assert [
        case.id
        for case in CASES.values()
        for dtype in ("fp64", *DTYPES)
        if repeats(case, dtype, "Ascend", "Ascend", DTYPES)
    ] == []


def test_parts_that_are_judged_nowhere_else_are_never_left_out():
    parts = [case for case in CASES.values() if not composed(case)]
    assert len(parts) > 200 and {"layers", "attention", "vae_layers", "t5"} <= {
        case.id.partition(".")[0] for case in parts
    }
    for case in parts:
        for form in ("CPU", "Ascend"):
            assert not any(repeats(case, dtype, form, "CPU", DTYPES) for dtype in ("fp64", *DTYPES))


@pytest.mark.parametrize(
    ("name", "dtype", "form", "reason"),
    [
        ("latte.Latte-thin", "fp64", "Ascend", "not_run.other_form"),
        ("latte.Latte-thin", "bf16", "CPU", "not_run.other_half"),
        ("latte.Latte-class", "fp32", "Ascend", "not_run.other_form"),
        ("latte.Latte-class", "fp64", "Ascend", ""),
        ("latte.Latte-class", "bf16", "CPU", ""),
        ("vae.AutoencoderKL", "bf16", "CPU", "not_run.other_half"),
        ("vae_coders.TemporalDecoder", "fp16", "Ascend", "not_run.other_form"),
    ],
)
def test_what_is_left_out(name, dtype, form, reason):
    assert repeats(CASES[name], dtype, form, "CPU", DTYPES) == reason
    assert (name in named()) is (name == "latte.Latte-class")


def test_it_is_said_and_can_be_asked_for(tmp_path):
    words = ("--size", "tiny", "-k", "AlphaBlender or TemporalDecoder-encode", "--report", tmp_path)
    done = parity(*words)
    assert done.returncode == 0, done.stdout
    counts = re.findall(r"(\d+) runs of composed parts and nets", done.stdout)
    assert len(counts) >= 2 and all(int(count) > 20 for count in counts)
    runs = int(re.search(r"(\d+) passed", done.stdout)[1])
    done = parity(*words, "--every")
    assert done.returncode == 0 and "runs of composed parts" not in done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > runs
