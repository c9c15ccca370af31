# SPDX-License-Identifier: Apache-2.0
"""The registry of port bugs: sound as data, applied and undone cleanly, killed as declared, equivalents proven."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from parity import mutation
from parity.harness import suite
from parity.harness.case import collect
from parity.harness.gates import CaseResult, Check, TapResult
from parity.harness.inputs import diagonal, normal
from parity.harness.suite import TESTS, runs
from parity.mutants import DTYPES, MUTANTS, Edit, Mutant, MutantError
from parity.mutation import QUICK, THIN, Bench, Cell, Kill, main, run_mutant, verdict

CASES = {case.id: case for case in collect()}
GATES = {"G0", "G1", "G2", "G3", "G5"}
EXAMPLE = MUTANTS["gelu_erf_inside"]


@pytest.fixture(scope="module")
def bench():
    bench = Bench()
    yield bench
    bench.session.pool.stop()


# ------------------------------------------------------------------------------------------------- the registry


def registry_problems(mutants, cases):
    """Entries that are no sound data."""
    problems = []
    for entry in mutants:
        name, declared = entry.name, entry.expected
        if not entry.description or not entry.cases:
            problems.append(f"{name} lacks a description or a case")
        problems += [
            f"{name} names {case}, which does not exist" for case in entry.cases if case not in cases
        ]
        if sum(map(bool, (entry.edits, entry.replace, entry.change))) == 0:
            problems.append(f"{name} changes nothing")
        if set(declared) != set(DTYPES):
            problems.append(f"{name} declares {sorted(declared)}")
        problems += [
            f"{name} declares unknown gates {gates!r}"
            for gates in declared.values()
            if (gates != "-" and not set(gates.split()) <= GATES) or not gates
        ]
        silent = [dtype for dtype, gates in declared.items() if gates == "-"]
        if silent and not (entry.note or entry.equivalent):
            problems.append(f"{name} is not detectable in {silent} without a reason")
        if entry.equivalent and len(silent) < len(declared):
            problems.append(f"{name} is equivalent and declares a gate")
        if len(silent) == len(declared) and not (entry.equivalent or "tested in tests/" in entry.note):
            problems.append(f"{name} is detectable nowhere: it needs a probe, a proof or another test")
    return problems


def test_every_entry_is_sound():
    assert registry_problems(MUTANTS.values(), CASES) == []
    assert len([entry for entry in MUTANTS.values() if not entry.equivalent]) >= 60


@pytest.mark.parametrize(
    "broken, word",
    [
        (dict(description=""), "lacks a description"),
        (dict(cases=("layers.Nothing",)), "does not exist"),
        (dict(edits=()), "changes nothing"),
        (dict(expected=dict(fp32="G1")), "declares ['fp32']"),
        (dict(expected=dict(fp32="G1", fp16="G9", bf16="G3")), "unknown gates 'G9'"),
        (dict(expected=dict(fp32="G1", fp16="-", bf16="G3")), "without a reason"),
        (dict(equivalent="because"), "declares a gate"),
        (dict(expected=dict.fromkeys(DTYPES, "-"), note="no"), "detectable nowhere"),
    ],
)
def test_an_unsound_entry_is_noticed(broken, word):
    (problem,) = registry_problems([replace(EXAMPLE, **broken)], CASES)
    assert word in problem


def test_every_file_with_cases_has_entries():
    reached = {name.partition(".")[0] for entry in MUTANTS.values() for name in entry.cases}
    assert {case.file.partition(".")[2] for case in CASES.values()} <= reached
    assert "loading" in {entry.file for entry in MUTANTS.values()}


def unproven_probes(mutants, cases):
    """Probes that no mutant needs."""
    used = {name for m in mutants for name in m.cases if any("G3" in g.split() for g in m.expected.values())}
    return [case.id for case in cases if case.probe and case.id not in used]


def test_every_probe_kills_a_mutant():
    assert unproven_probes(MUTANTS.values(), CASES.values()) == []
    assert unproven_probes([], CASES.values()) == [case.id for case in CASES.values() if case.probe]
    assert all(case.probe for case in CASES.values() if case.name.startswith("probe_"))


def test_the_quick_subset_covers_files_and_gates():
    chosen = [MUTANTS[name] for name in QUICK]
    assert len(set(QUICK)) == len(QUICK)
    declared = {gate for entry in chosen for gates in entry.expected.values() for gate in gates.split()}
    assert declared >= GATES
    assert {entry.file for entry in chosen} >= {entry.file for entry in MUTANTS.values()} - {"latte"}
    assert any(entry.equivalent for entry in chosen)


# ------------------------------------------------------------------------------------------------- injection


@pytest.mark.parametrize("name", MUTANTS)
def test_every_edit_fits_the_port_and_is_undone(name):
    from parity.mutants import _function

    entry = MUTANTS[name]
    functions = {_function(entry, edit.place) for edit in entry.edits}
    before = {function: function.__code__ for function in functions}
    with entry.patched():
        for function in functions:
            assert function.__code__ is not before[function]
            assert function.__code__.co_filename == before[function].co_filename
            assert abs(function.__code__.co_firstlineno - before[function].co_firstlineno) <= 1
    assert all(function.__code__ is before[function] for function in functions)


@pytest.mark.parametrize(
    "edit, word",
    [
        (
            Edit("layers.GELU.construct", "no such text", "x"),
            "occurs 0 times in layers.GELU.construct, expected once",
        ),
        (Edit("layers.GELU.construct", "self", "x"), "expected once; remedy: adapt the entry"),
        (Edit("layers.NoLayer.construct", "a", "b"), "the port has no layers.NoLayer.construct"),
        (Edit("nofile.f", "a", "b"), "the port has no nofile.f"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(edit, word):
    from ms_latte.models import layers

    before = layers.GELU.construct.__code__
    entry = Mutant("broken", "", (), {}, edits=(EXAMPLE.edits[0], edit))
    with pytest.raises(MutantError, match=word), entry.patched():
        pass
    assert layers.GELU.construct.__code__ is before


def test_tables_are_computed_anew_with_and_without_the_bug():
    from ms_latte.models.constants import sincos_2d

    arguments = (8, 3, 5, None, 1.0, True)
    right = sincos_2d(*arguments).asnumpy()
    with MUTANTS["rows_before_columns"].patched():
        wrong = sincos_2d(*arguments).asnumpy()
    assert np.array_equal(wrong, np.roll(right, 4, axis=1)) and not np.array_equal(wrong, right)
    assert np.array_equal(sincos_2d(*arguments).asnumpy(), right)


def test_an_edited_constructor_still_finds_its_parent():
    from ms_latte.models.mlp import Mlp

    with MUTANTS["mlp_erf"].patched():
        assert Mlp(4, 8).act.approximate == "none"
    assert Mlp(4, 8).act.approximate == "tanh"


def test_a_change_that_meets_nothing_is_refused():
    from ms_latte.models.layers import SiLU

    with pytest.raises(MutantError, match="the model has no GELU"):
        MUTANTS["gelu_erf"].edit(SiLU())


def test_the_diagonal_lets_row_i_meet_row_i_alone():

    x = diagonal(300.0, 2, 3, 4).draw(np.random.default_rng(0))
    assert x.shape == (2, 3, 4) and np.array_equal(x[1] @ x[1].T, 9e4 * np.eye(3))


# ------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    "gates, declared, word, good",
    [
        ({}, "G2", "SURVIVED", False),
        ({"crash": Kill("x")}, "G2", "missed by G2, killed by crash", False),
        ({"G2": Kill("x", 50.0)}, "G2", "killed by G2", True),
        ({"G0": Kill("x"), "G2": Kill("x", 50.0)}, "G0", "killed by G0 G2", True),
        ({"G2": Kill("x", 0.99 * THIN)}, "G2", "thin in G2, killed by G2", False),
        ({"G2": Kill("x", 50.0)}, "G3", "missed by G3, killed by G2", False),
        ({}, "-", "not detectable here", True),
        ({"G2": Kill("x", 50.0)}, "-", "killed by G2, declared: not", False),
    ],
)
def test_verdict(gates, declared, word, good):
    entry = replace(EXAMPLE, expected=dict(fp16=declared))
    assert verdict(entry, "fp16", Cell(gates)) == (word, good)


def test_verdict_on_an_equivalent_mutant():
    entry = replace(EXAMPLE, expected=dict(fp16="-"), equivalent="proof")
    assert verdict(entry, "fp16", Cell()) == ("equivalent, bitwise", True)
    assert verdict(entry, "fp16", Cell(different="layer")) == ("equivalent, silent", True)
    assert verdict(entry, "fp16", Cell({"G2": Kill("x", 9.0)}))[1] is False


# ------------------------------------------------------------------------------------------------- real runs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", QUICK)
def test_the_quick_subset_is_killed_as_declared(bench, name, dtype):
    word, declared = verdict(MUTANTS[name], dtype, run_mutant(bench, MUTANTS[name], dtype))
    assert declared, word


# The grids that many tests are written for: there, a square root of the tokens is right.
SQUARE = [
    replace(
        CASES["layers.unpatchify"],
        name="square",
        inputs=dict(x=normal(54, 12), frames=6, height=3, width=3, patch_size=2),
    ),
    replace(
        CASES["embeddings.PatchEmbed-probe_square"],
        name="square",
        probe="",
        init=dict(height=8, width=8, patch_size=2, in_channels=4, embed_dim=24),
        inputs=dict(latent=normal(3, 4, 8, 8)),
    ),
]


@pytest.mark.parametrize(
    "name, ordinary, dtype",
    [
        ("gelu_erf_inside", "layers.GELU", "bf16"),
        ("layer_norm_eps_inside", "layers.LayerNorm", "fp16"),
        ("layer_norm_eps_inside", "layers.LayerNorm", "bf16"),
        ("pad_same_inside", "layers.PatchConv", "fp32"),
        ("unpatchify_square", "layers.unpatchify-square", "fp32"),
        ("softmax_half", "attention.DotProductAttention", "bf16"),
        ("softmax_no_maximum", "attention.DotProductAttention", "fp16"),
        ("bias_before_scale", "attention.DotProductAttention-bias", "fp32"),
        ("scale_after_product", "attention.DotProductAttention", "fp16"),
        ("timestep_integer", "embeddings.timestep_embedding", "fp32"),
        ("square_table", "embeddings.PatchEmbed-square", "fp32"),
        ("modulate_half_islands", "layers.modulate", "bf16"),
    ],
)
def test_the_probe_kills_what_the_ordinary_case_does_not_see(bench, name, ordinary, dtype):
    entry = MUTANTS[name]
    bench.cases.update((case.id, case) for case in SQUARE)
    assert not run_mutant(bench, replace(entry, cases=(ordinary,)), dtype).gates
    assert "G3" in run_mutant(bench, entry, dtype).gates


def test_a_kill_points_at_the_line_of_the_port(bench):
    from parity.harness.runner import run_case

    result = run_case(bench.session, CASES["mlp.Mlp"], "fp64", mutant="gelu_quick")
    assert [tap.tap for tap in result.failures] == ["act#0"]
    assert result.sources["act#0"][1].startswith("ms_latte/models/layers.py:")


@pytest.mark.parametrize("name", [entry.name for entry in MUTANTS.values() if entry.equivalent])
def test_equivalent_mutants_are_silent_in_float64(bench, name):
    cell = run_mutant(bench, MUTANTS[name], "fp32")
    assert verdict(MUTANTS[name], "fp32", cell)[1]
    if name.startswith("pad_"):
        assert not cell.different


def test_a_bug_declared_equivalent_is_noticed(bench):
    entry = replace(MUTANTS["chunk_order"], equivalent="a claim", expected=dict.fromkeys(DTYPES, "-"))
    cell = run_mutant(bench, entry, "fp32")
    assert cell.different and verdict(entry, "fp32", cell)[1] is False


def test_a_case_that_does_not_exist_is_refused(bench):
    with pytest.raises(ValueError, match=r"mutant x names cases that do not exist: layers\.Nothing"):
        bench.runs(Mutant("x", "", ("layers.Nothing",), {}), "fp32")


def test_same_padding_is_none_where_the_patch_divides_the_size():
    def padding(size, patch):  # TensorFlow's rule, which MindSpore's "same" follows
        return max((math.ceil(size / patch) - 1) * patch + patch - size, 0)

    for patch in (2, 4, 8):
        assert all(padding(size, patch) == 0 for size in range(patch, 65, patch))
        assert all(padding(size, patch) > 0 for size in range(1, 65) if size % patch)


def test_softmax_ignores_what_is_equal_for_all_keys():
    rng = np.random.default_rng(0)
    q, k, v, bias = (rng.standard_normal(shape) for shape in ((5, 16), (7, 16), (7, 16), (16,)))

    def attend(keys):
        logits = q @ keys.T / 4
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True) @ v

    assert np.abs(attend(k + bias) - attend(k)).max() < 1e-14
    assert np.abs(attend(k + rng.standard_normal(k.shape)) - attend(k)).max() > 0.1


# ------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def judged(monkeypatch):
    """The command on invented verdicts: name of a mutant, "" for the correct port -> the result of every run."""
    answers = {}

    def judge(session, case, run, form, name, gradients, diagnose=False):
        result = CaseResult(case.id, "G1" if run == "fp64" else "G3" if case.probe else "G2", run, form)
        result.taps = [TapResult("#0", (1,), "op")]
        answers.get(name, lambda result: None)(result)
        return [result]

    def port(run, session):
        return judge(session, run.case, run.dtype, run.form, "", False)[0]

    monkeypatch.setattr(mutation, "judge", judge)
    monkeypatch.setattr(mutation.Run, "__call__", port)
    monkeypatch.setattr(mutation, "workers_of", lambda session, run: ())
    return answers


def fail(margin):
    """A result that fails by `margin` times its limit."""

    def change(result):
        result.taps[0].verdict, result.taps[0].required, result.taps[0].allowed = "FAIL local", margin, 1.0

    return change


def test_the_command_on_killed_mutants(judged, capsys, tmp_path):
    judged.update(gelu_erf_inside=fail(9.0))
    report = tmp_path / "score.json"
    assert main(["gelu_erf_inside", "--report", str(report)]) == 0
    out, err = capsys.readouterr()
    assert "mutation score 3/3 of the detectable cells (1 mutants)" in out and "0 alarms in" in out
    assert "fp16 1/1 gelu_erf_inside" in err
    content = json.loads(report.read_text())
    assert content["passed"] is True and len(content["rows"]) == 3
    assert content["rows"][0]["gates"]["G1"]["margin"] == 9.0
    assert list(tmp_path.iterdir()) == [report]


@pytest.mark.parametrize("margin, word", [(None, "SURVIVED"), (1.5, "thin in G3"), (math.inf, "killed by")])
def test_the_command_on_other_ends(judged, capsys, margin, word):
    if margin:
        judged.update(gelu_erf_inside=fail(margin))
    assert main(["gelu_erf_inside", "--dtype", "bf16"]) == (margin != math.inf)
    out = capsys.readouterr().out
    assert word in out and ("NOT AS DECLARED" in out) == (margin != math.inf)


def test_a_false_alarm_is_a_failure(judged, capsys):
    def alarm(result):
        if result.case == "layers.GELU":
            result.contract.append(Check("lint", False, "invented"))

    judged.update({"gelu_erf_inside": fail(9.0), "": alarm})
    assert main(["gelu_erf_inside", "--dtype", "fp16", "--seeds", "3"]) == 1
    out = capsys.readouterr().out
    assert "FALSE ALARMS on the correct port" in out and "numerics fp16-CPU-layers.GELU seed 2: G0" in out
    assert "3 alarms in 6 runs, 3 seeds" in out


def test_the_correct_port_runs_once_per_case(judged):
    count = []
    judged.update({"": lambda result: count.append((result.case, result.dtype))})
    main(["gelu_erf_inside", "gelu_erf", "gelu_quick", "--dtype", "fp16"])
    assert sorted(count) == sorted(set(count)) and ("layers.GELU-probe_tail", "fp16") in count


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["gelu_erf_insid"], "got unknown mutant 'gelu_erf_insid'.*near: gelu_erf_inside"),
        (["--dtype", "fp8"], "--dtype fp8; got fp8; expected fp32 or fp16 or bf16"),
        (["--seeds", "0"], "got --seeds 0, expected 1 or more"),
        (["--report", "/no/such/folder/x.json"], "does not exist; remedy: mkdir -p /no/such/folder"),
        (["gelu_erf", "--report", "/proc/x.json"], "--report /proc/x.json: /proc cannot be written"),
        (["--file", "nofile"], "invalid choice: 'nofile'"),
        (["--list", "gelu_erf", "--file", "blocks"], "no mutant of those chosen stands in the file blocks"),
        (["gelu_erf", "--file", "blocks"], "no mutant of those chosen stands in the file blocks"),
    ],
)
def test_a_wrong_call_is_one_clear_line(capsys, arguments, words):
    import re

    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert re.search(words, capsys.readouterr().err)


def test_the_list_shows_the_registry(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--list"])
    out = capsys.readouterr().out
    assert caught.value.code == 0 and len(out.splitlines()) == len(MUTANTS)
    assert "fp32:G1+G3" in out


@pytest.mark.parametrize(
    "words, names",
    [
        (["--file", "norms"], [name for name, mutant in MUTANTS.items() if mutant.file == "norms"]),
        (["gelu_erf"], ["gelu_erf"]),
        (["--quick"], QUICK),
    ],
)
def test_the_list_shows_what_is_chosen(capsys, words, names):
    with pytest.raises(SystemExit) as caught:
        main(["--list", *words])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert caught.value.code == 0 and listed == list(names) != []


def test_many_draws_are_of_all_runs_that_the_suite_makes():
    """Each as often as there are seeds, none besides: not those in which the suite would repeat itself."""
    bench, options = Bench(), SimpleNamespace(seeds=2)
    drawn = [
        (key, run)
        for dtype in DTYPES
        for key, run in mutation._clean(bench, list(MUTANTS.values()), dtype, options).items()
    ]
    made = [run for test in TESTS for run in runs(test, bench.cases.values(), DTYPES, "CPU")]
    wanted = {(run.test, run.id) for run in made if not run.repeated}
    assert sorted(key for key, _ in drawn) == sorted((*key, seed) for key in wanted for seed in (0, 1))
    seeds = [(run.case.seed - bench.cases[run.case.id].seed, key[-1]) for key, run in drawn]
    assert all(ours == asked for ours, asked in seeds)
    kinds = {"drift", "samplers", "graph_mode", "gradients"}
    assert kinds < {key[0] for key, _ in drawn} and any(run.case.size == "thin" for _, run in drawn)


def test_draws_of_some_bugs_are_of_their_runs_alone():
    options = SimpleNamespace(seeds=2)
    made = mutation._clean(Bench(), [MUTANTS["stopped_gradient"]], "bf16", options)
    assert {key[0] for key in made} == {"numerics", "gradients"} and len(made) == 4


def test_another_seed_draws_other_noise_for_samplers(monkeypatch):
    asked = []
    monkeypatch.setattr(suite, "run_drift", lambda *args, **options: asked.append((args[1].seed, options)))
    first = runs("samplers", CASES.values(), ("fp32",), "CPU")[0]
    for seed in (0, 3):
        first.drawn(seed)(SimpleNamespace())
    (_, one), (seed, other) = asked
    assert seed == 3 and (one["noise"], other["noise"]) == (7, 10) and one["label"] == "ddpm"
