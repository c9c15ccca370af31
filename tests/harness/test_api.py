# SPDX-License-Identifier: Apache-2.0
"""The interface for other people's ports: right ones pass every gate, wrong ones die, mistakes are one clear line."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parity import api, other
from parity.harness.inputs import normal
from parity.harness.other import locate

HERE = Path(__file__).parent
MODELS = HERE / "other_models.py"
NET = api.Comparison(
    name="net",
    reference=f"{MODELS}:reference",
    port=f"{MODELS}:port",
    config=dict(bug=""),
    inputs=dict(x=normal(7, 6)),
    gradients=True,
)


@pytest.fixture(scope="module")
def pool():
    pool = api.OtherPool()
    yield pool
    pool.stop()


def broken(bug, **changes):
    return replace(NET, config=dict(bug=bug), **changes)


def gates_of(outcome):
    """Gates that say something against the port."""
    found = {result.gate for result in outcome.results if result.failures}
    return found | {f"G0 {check.name}" for result in outcome.results for check in result.broken}


def test_a_correct_port_passes_every_gate(pool):
    outcome = api.run(NET, pool=pool)
    assert outcome.passed, "\n".join(outcome.lines)
    assert {(r.gate, r.dtype) for r in outcome.results} == {
        (g, d) for g in ("G2", "G5") for d in ("fp32",)
    } | {
        ("G1", "fp64"),
        ("G5", "fp64"),
    }
    assert not outcome.not_run
    links = {link.theirs: link for link in outcome.pairing.links}
    assert {name: link.ours for name, link in links.items()} == {
        **{
            "up.weight": "first.weight",
            "up.bias": "first.bias",
            "norm.weight": "ln.gamma",
            "norm.bias": "ln.beta",
        },
        **{"mix.weight": "inner.kernel", "mix.bias": "inner.offset", "head.weight": "out.weight"},
        "head.bias": "out.bias",
    }
    assert links["mix.weight"].transposed and links["mix.weight"].by == "probe"
    assert dict(outcome.pairing.layers) == {
        **{"": "", "up": "first", "act": "gelu", "norm": "ln", "mix": "inner", "head": "out"}
    }
    assert {tap.tap for tap in outcome.results[-2].taps} == {
        "up#0",
        "act#0",
        "norm#0",
        "mix#0",
        "head#0",
        "#0",
    }


@pytest.mark.parametrize(
    ("bug", "gates"),
    [
        ("gelu", {"G0 lint", "G1", "G2", "G5"}),
        ("eps", {"G0 lint", "G1"}),
        ("wiring", {"G1", "G2", "G5"}),
        ("gradient", {"G5"}),
    ],
)
def test_a_wrong_port_is_caught_by(pool, bug, gates):
    outcome = api.run(broken(bug), pool=pool)
    assert not outcome.passed
    assert gates <= gates_of(outcome), "\n".join(outcome.lines)
    if bug == "gradient":
        assert gates_of(outcome) == {"G5"}


def test_the_culprit_is_named_with_both_places(pool):
    outcome = api.run(broken("gelu", gradients=False, dtypes=()), pool=pool, command="repeat me")
    (result,) = outcome.results
    assert result.failures[0].tap == "act#0" and result.failures[0].verdict == "FAIL local"
    text = "\n".join(outcome.lines)
    assert "reproduce: repeat me" in text and "GELU(approximate=tanh)" in text and "torch :" in text


def test_half_precision_runs_natively(pool):
    outcome = api.run(replace(NET, semantics=False, dtypes=("fp16",), gradients=False), pool=pool)
    (result,) = outcome.results
    # MindSpore's CPU kernels round a Dense twice, torch once: the ratio limit of a device is not asked here.
    assert not result.broken and all(tap.prop.e_c < 4 * 2**-11 for tap in result.taps), "\n".join(
        outcome.lines
    )
    assert any("natively in half precision" in line for line in outcome.header)
    assert result.taps[0].prop.e_r > 1e-5  # the control computed in half precision, not in float32


def test_absent_kernels_are_reported_not_counted(pool):
    example = other.definition("example")
    outcome = api.run(replace(example, gradients=False), pool=pool)
    assert outcome.passed and [r.gate for r in outcome.results] == ["G2"]
    assert "G1, float64" in outcome.not_run[0] and any(
        "not judged in this run" in line and "G1" in line for line in outcome.lines
    )
    assert {link.transform for link in outcome.pairing.links} == {"", "reshaped"}
    demanded = api.run(replace(example, gradients=False, semantics=True), pool=pool)
    assert not demanded.passed and gates_of(demanded) == {"G0 runs"}


def test_gates_that_were_not_asked_for_are_named(pool, tmp_path):
    outcome = api.run(replace(NET, gradients=False, semantics=False), folder=str(tmp_path), pool=pool)
    said = ["G1, float64 (semantics=False)", "G5, gradients (gradients=True or --gradients judges them)"]
    assert outcome.not_run == said == json.loads((tmp_path / "parity.json").read_text())["not_run"]
    assert any("not judged in this run" in line and "G5" in line for line in outcome.lines)
    assert api.run(replace(NET, gradients=False, dtypes=()), pool=pool).not_run == ["G2 (no dtypes)", said[1]]


def test_files_are_written_whole(pool, tmp_path):
    api.run(replace(NET, gradients=False, semantics=False), folder=str(tmp_path / "out"), pool=pool)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert {"parity.csv", "parity.json", "parity.md"} <= set(names) and not any(
        n.startswith(".") for n in names
    )
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["results"][0]["case"] == "net-other"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(port=f"{MODELS}:absent"), "port .*other_models.py:absent: ImportError: .* has no 'absent'"),
        (
            dict(reference="nowhere.at_all:make"),
            "reference nowhere.at_all:make: ModuleNotFoundError: No module",
        ),
        (dict(port=f"{MODELS}:no_module"), "returned a int, expected a mindspore.nn.Cell"),
        (dict(config=dict(bug="crash")), r"port .* does not run: ValueError: no such frame$"),
        (dict(config=dict(bug="surplus")), r"1 of the port \(scale \(3,\)\)"),
        (dict(inputs=dict(y=normal(7, 6))), "reference .* does not run: TypeError: .*'y'"),
        (dict(inputs={}), "inputs: none given"),
        (dict(reference="no colon"), "expected 'package.module:function'"),
        (dict(reference=lambda: None), "a function at the top level of a file"),
        (dict(dtypes=("fp8",)), "fp8 unknown; expected some of fp32, fp16, bf16"),
        (dict(weights="names"), "names do not agree"),
        (dict(weights="guess"), 'expected "names", "auto" or a map'),
        (dict(layers={"act": "glu"}), "no layer glu; closest: gelu"),
        (dict(keep=("up.w",)), "keep: up.w is no paired parameter"),
        (dict(keep="up.w"), "keep: up.w is no paired parameter"),
        (dict(dtypes="fp8"), "dtypes: fp8 unknown; expected some of fp32"),
        (dict(dtypes=32), r"dtypes=32: expected names, e\.g\. \(\"fp32\",\)"),
        (dict(seed=-1), "seed=-1: expected a whole number, zero or more"),
        (dict(seed=0.5), "seed=0.5: expected a whole number"),
        (dict(inputs=5), r"inputs: got int, expected descriptors, e\.g\. dict"),
        (dict(inputs={0: np.zeros((40, 40))}), "inputs=.*…: expected a map from names"),
        (dict(inputs={0: normal(7, 6)}), "inputs=.*: expected a map from names"),
        (dict(inputs=[normal(-7, 6)]), "inputs cannot be drawn: negative dimensions"),
        (dict(config=3), "config=3: expected a map from names"),
        (dict(weights={"up": 0}), "weights: 'up' goes to 0; expected names, e.g."),
        (dict(weights={"up.weight": ("first.weight", "turn")}), "weights: 'up.weight' goes to .*turn"),
        (dict(layers=["act"]), r"layers=\['act'\]: expected a map from names, e\.g\."),
        (dict(layers={"act": 1}), "layers: 'act' goes to 1; expected names"),
        (dict(method=print), "method=.*: expected a name"),
    ],
)
def test_mistakes_are_one_line(pool, changes, words):
    with pytest.raises(api.ComparisonError, match=words) as caught:
        api.run(replace(NET, **changes), pool=pool)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_told_apart_is_refused(pool):
    twins = replace(NET, config={}, reference=f"{MODELS}:twins_reference", port=f"{MODELS}:twins_port")
    twins = replace(twins, inputs=[normal(7, 5)], gradients=False)
    with pytest.raises(
        api.ComparisonError, match=r"4 parameters cannot be paired for sure .*p\.weight.*Give a map"
    ):
        api.run(twins, pool=pool)
    outcome = api.run(replace(twins, weights={"a": "q", "b": "p"}), pool=pool)
    assert outcome.passed and dict(outcome.pairing.layers) == {"": "", "a": "q", "b": "p"}


TABLES = replace(
    NET,
    reference=f"{MODELS}:table_reference",
    port=f"{MODELS}:table_port",
    inputs=[normal(7, 5, 6)],
)


@pytest.mark.parametrize("keep", [(), ("pos",)])
def test_a_wrong_table_of_no_checkpoint_is_not_overwritten(pool, keep):
    outcome = api.run(replace(TABLES, config=dict(bug="table"), gradients=False, keep=keep), pool=pool)
    assert {"G0 tables", "G1", "G2"} == gates_of(outcome), "\n".join(outcome.lines)
    assert any("pos is in no checkpoint" in line and "mask" not in line for line in outcome.lines)


def test_a_right_table_may_differ_by_rounding_and_say_minus_infinity_in_its_own_way(pool):
    outcome = api.run(TABLES, pool=pool)
    assert outcome.passed, "\n".join(outcome.lines)
    assert "tables" in {check.name for check in outcome.results[0].contract}
    assert "fixed tables, each side keeps its own: pos, mask" in outcome.header


def test_a_table_of_another_meaning_is_left_to_the_taps(pool):
    outcome = api.run(replace(TABLES, config=dict(bug="stranger"), semantics=False), pool=pool)
    assert outcome.passed, "\n".join(outcome.lines)
    assert any(line.startswith("pos and grid of the port have one shape") for line in outcome.header)


def test_a_table_that_the_port_would_train_is_named(pool):
    trained = replace(TABLES, config=dict(bug="trained"))
    assert "G0 tables" in gates_of(api.run(trained, pool=pool))
    assert api.run(replace(trained, gradients=False), pool=pool).passed


def test_a_buffer_of_a_checkpoint_is_loaded(pool):
    outcome = api.run(replace(TABLES, config=dict(bug="table", persistent=True)), pool=pool)
    assert outcome.passed, "\n".join(outcome.lines)


@pytest.mark.parametrize(
    ("bug", "line", "names"),
    [
        ("exchanged", "w1.weight -> w3.weight (by probe)", ("w1.weight", "w3.weight")),
        ("orientation", "mix.weight -> mix.weight (by probe, transposed)", ("mix.weight",)),
        ("", "", ()),
    ],
)
def test_a_pairing_against_equal_names_is_a_warning_with_the_remedy(pool, bug, line, names):
    gated = replace(NET, reference=f"{MODELS}:gated_reference", port=f"{MODELS}:gated_port", gradients=False)
    gated = replace(gated, config=dict(bug=bug))
    outcome = api.run(gated, pool=pool)
    assert outcome.passed and "  head.weight -> out.weight (by shape)" in outcome.header
    last = [text for text in outcome.lines if text.startswith("WARNING: ")][len(names) + bool(names) :]
    assert outcome.lines[len(outcome.lines) - len(last) :] == last  # in the header, and again at the end
    if not names:
        assert not last
        return
    assert f"WARNING: {line} against equal names and shapes" in last and len(last) == len(names) + 1
    remedy = {name: name for name in names}
    assert str(remedy).replace("'", '"') in last[-1]
    assert {"G1", "G2"} <= gates_of(api.run(replace(gated, weights=remedy), pool=pool))


ATTENDING = replace(
    NET, reference=f"{MODELS}:attending_reference", port=f"{MODELS}:attending_port", gradients=False
)


@pytest.mark.parametrize("given", ["auto", {"blocks": "layers"}, {"blocks.0": "layers.0"}])
def test_blocks_of_one_kind_are_told_apart_and_idle_layers_are_said(pool, given):
    outcome = api.run(replace(ATTENDING, weights=given), pool=pool)
    assert outcome.passed, "\n".join(outcome.lines)
    assert outcome.pairing.layers["blocks.1.q_proj"] == "layers.1.to_q"
    assert outcome.lines[-1] == "WARNING: never called with these inputs, so not judged: idle"


def test_an_exchange_that_probing_undoes_is_a_warning(pool):
    outcome = api.run(replace(ATTENDING, config=dict(bug="exchanged")), pool=pool)
    said = [line for line in outcome.lines if line.startswith("WARNING: ")]
    line = (
        "blocks.0.q_proj.weight -> layers.0.to_k.weight (by probe) although its name fits another one better"
    )
    assert outcome.passed and f"WARNING: {line}" in said and "exchanges these" in said[-1]
    q, k = ({f"blocks.{i}.{a}": f"layers.{i}.to_{a[0]}" for i in (0, 1)} for a in ("q_proj", "k_proj"))
    mapped = replace(ATTENDING, config=dict(bug="exchanged"), weights={**q, **k})
    assert {"G1", "G2"} <= gates_of(api.run(mapped, pool=pool))


def test_of_several_results_the_wrong_one_is_shown(pool):
    wrong = replace(ATTENDING, config=dict(bug="second"), weights={"blocks": "layers"}, dtypes=())
    outcome = api.run(wrong, pool=pool)
    (result,) = outcome.results
    assert result.failures[0].reason.endswith("; of its 2 results number 2 is the worst")
    assert (
        all(len(line.partition("]")[0].split(",")) == 1 for line in result.worst) and len(result.worst) == 3
    )


def test_a_port_that_returns_nothing_is_a_failure_not_a_crash(pool):
    wrong = replace(ATTENDING, config=dict(bug="nothing"), weights={"blocks": "layers"})
    with pytest.raises(api.ComparisonError, match=r"port .* returns nothing; expected a tensor"):
        api.run(wrong, pool=pool)


def test_a_worker_that_died_does_not_spoil_the_next_comparison(pool):
    worker = pool.get("mindspore", "CPU", "fp32")
    worker.kill()
    worker._process.wait()
    assert api.run(replace(NET, gradients=False, semantics=False), pool=pool).passed


def test_a_pair_of_layers_whose_results_differ_is_refused(pool):
    with pytest.raises(
        api.ComparisonError, match=r"layers: up goes to out, whose results are 7x4 instead of 7x8"
    ):
        api.run(replace(NET, layers={"up": "out"}), pool=pool)


@pytest.mark.parametrize(
    ("bug", "gates"),
    [("", set()), ("tuple", set()), ("exchanged", {"G1", "G2", "G5"}), ("renamed", {"G0 keys"})],
)
def test_results_in_mappings_are_compared_by_their_keys(pool, bug, gates):
    net = replace(NET, reference=f"{MODELS}:mapping_reference", port=f"{MODELS}:mapping_port")
    outcome = api.run(replace(net, config=dict(bug=bug)), pool=pool)
    assert gates_of(outcome) == gates, "\n".join(outcome.lines)
    assert [bool(result.taps) for result in outcome.results] == [True] * 4
    if bug == "renamed":
        line = "the net[aux]: the port returns gates, logvar, the reference logvar, gate"
        assert any(text.endswith(line) for text in outcome.lines)


@pytest.mark.parametrize(
    "spelling",
    [
        "from mindspore import float32 as single",
        "from mindspore import dtype as types",
        "import mindspore.common.dtype as types",
        "from mindspore.common.dtype import float32 as single",
        "from mindspore.common import dtype as types",
        "from mindspore.common import float32 as single",
    ],
)
def test_casts_to_float32_are_lifted_however_the_port_names_the_type(pool, spelling):
    net = replace(NET, reference=f"{MODELS}:cast_reference", port=f"{MODELS}:cast_port")
    net = replace(net, config=dict(spelling=spelling), dtypes=(), gradients=False)
    outcome = api.run(net, pool=pool)
    assert outcome.passed, "\n".join(outcome.lines)


def test_a_layer_can_be_left_out(pool):
    outcome = api.run(replace(NET, layers={"act": None}, gradients=False, semantics=False), pool=pool)
    assert outcome.passed and "act" not in outcome.pairing.layers
    assert any("without a partner" in line and "act" in line for line in outcome.header)


def test_compare_refuses_unknown_words():
    with pytest.raises(api.ComparisonError, match="unknown: input; expected reference, port, inputs"):
        api.compare(reference="a:b", port="c:d", input={})


def test_functions_become_paths():
    assert api._path(locate, "reference").endswith("other.py:locate")


def test_a_call_at_the_top_level_of_a_script_is_refused_at_once(tmp_path):
    """Its workers execute the script; each execution leaves a mark, the third one ends the growth of this test."""
    file, marks = tmp_path / "script.py", tmp_path / "marks"
    head = (
        f"from pathlib import Path\nmarks = Path({str(marks)!r})\nmarks.open('a').write('x')\n"
        "if marks.stat().st_size > 2: raise SystemExit('grows')\n"
        "from parity import api\nfrom parity.harness.inputs import normal\n"
        "def reference():\n    from torch import nn\n    return nn.Linear(6, 4)\n"
        "def port():\n    from mindspore import nn\n    return nn.Dense(6, 4)\n"
    )
    call = "outcome = api.compare(reference=reference, port=port, inputs=[normal(7, 6)], semantics=False)\n"

    def run(text):
        marks.write_text("")
        file.write_text(text)
        environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
        return subprocess.run([sys.executable, file], capture_output=True, text=True, env=environment)

    done = run(head + call)
    assert done.returncode == 1 and len(marks.read_text()) == 2
    assert 'put the call below `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
    guarded = head + 'if __name__ == "__main__":\n    ' + call + "    assert outcome.passed\n"
    marks.write_text("")
    done = run(guarded.replace("> 2", "> 9"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", ["def reference(): pass\n", "reference = len\n"])
def test_a_function_of_no_file_is_one_line_with_the_remedy(text):
    """From standard input, as from a notebook; and a compiled one."""
    text += (
        "from parity import api\n"
        "try: api.compare(reference=reference, port='a:b', inputs=[1])\n"
        "except api.ComparisonError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable], input=text, capture_output=True, text=True, cwd=HERE.parents[1], check=True
    )
    assert "no Python file defines it" in done.stdout and "path/file.py:" in done.stdout


# ---------------------------------------------------------------------------------------------- command line


def command(*words):
    done = subprocess.run(
        [sys.executable, "-m", "parity", "other", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_fails_with_the_status_of_the_judge(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from parity import api\nfrom parity.harness.inputs import normal\n"
        f"COMPARISON = api.Comparison(reference='{MODELS}:reference', port='{MODELS}:port', config=dict(bug='eps'),\n"
        "    inputs=dict(x=normal(7, 6)), dtypes=())\n"
    )
    code, out, err = command(file, "--report", tmp_path / "r")
    assert code == 1 and "LayerNorm(eps=1e-07)" in out and "reproduce: python -m parity other" in out, (
        out + err
    )


def test_a_report_that_cannot_be_written_is_said_before_judging(tmp_path):
    (tmp_path / "file").write_text("")
    absent = replace(NET, reference="nowhere.at_all:make")
    for folder in ("/proc/x", str(tmp_path / "file"), str(tmp_path / "file" / "x")):
        with pytest.raises(api.ComparisonError, match=r"report: .* cannot be written .*expected a folder"):
            api.run(absent, folder=folder)
    with pytest.raises(api.ComparisonError, match="nowhere"):
        api.run(absent, folder=str(tmp_path / "a" / "b"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_one_name_may_stand_for_a_list_of_one():
    assert (replace(NET, dtypes="fp32").dtypes, replace(NET, keep="up.weight").keep) == (
        ("fp32",),
        ("up.weight",),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("from parity import api\napi.Comparison(seed=-1)\n", "mine.py: seed=-1: expected a whole number"),
        (None, "no such file, nor one of the examples dit_mindone, example, latte_mindone"),
        ("x = 1\n", "expected COMPARISON = api.Comparison(...), found NoneType"),
        ("1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_a_wrong_file_is_one_line_and_leaves_nothing(tmp_path, text, words):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    code, out, err = command(file, "--report", tmp_path / "r")
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_the_judge_reads_a_definition_without_a_framework():
    code = (
        "import sys; from parity import other; [other.definition(name) for name in other.examples()]; "
        "sys.exit(bool({'torch', 'mindspore', 'mindone', 'diffusers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=HERE.parents[1]).returncode == 0


# ---------------------------------------------------------------------------------------------- a port of others


def test_mindones_latte_against_diffusers():
    """The harness on a model of others, one layer of each kind. What it finds: the frequencies of the timestep."""
    pytest.importorskip("mindone", reason="optional extra: pip install mindone==0.5.0")
    comparison = other.definition("latte_mindone")
    config = {**comparison.config, "config": {**comparison.config["config"], "num_layers": 1}}
    outcome = api.run(replace(comparison, config=config))
    semantics, numerics = outcome.results
    assert semantics.passed and len(semantics.taps) > 40
    assert not numerics.broken and [tap.tap for tap in numerics.failures] == ["adaln_single.emb.time_proj#0"]


def test_mindone_is_an_optional_extra(monkeypatch):
    from parity.others import mindone_side

    monkeypatch.setattr(mindone_side.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"mindone is not installed; .* pip install mindone==0\.5\.0"):
        mindone_side.mindone_model("LatteTransformer3DModel", {})
