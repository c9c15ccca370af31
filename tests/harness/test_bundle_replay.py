# SPDX-License-Identifier: Apache-2.0
"""Two machines: what one records the other judges as if torch were there, and either may lack the other's framework."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from parity import compare, record
from parity.harness import report
from parity.harness.backends import Worker, WorkerError
from parity.harness.bundle import ANSWERS, MANIFEST, Bundle, BundleError, hash_of
from parity.harness.case import collect
from parity.harness.replay import ReplayPool, Sampler, weights_hash
from parity.harness.runner import Session, run_case
from tests.harness.test_bundle import edit

ROOT = Path(__file__).parents[2]
CASES = {case.id: case for case in collect()}
NET = "latte.Latte-class"
GOLDEN = str(ROOT / "tests/data/golden/latte_class.pt")
LATTE = CASES[NET]
STAGES = replace(LATTE, taps="stages")


def recorded(folder, *words):
    """A bundle, made by the command in this process."""
    assert record.main(["--output", str(folder), *words]) == 0
    return Bundle(folder)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A small net, all layers, every value, with its gradients in float32."""
    return recorded(
        tmp_path_factory.mktemp("b") / "bundle", "--case", NET, "--dtype", "fp64,fp32", "--gradients"
    )


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """The same net by stages, sampled, one block open."""
    words = ["--case", NET, "--dtype", "fp32", "--taps", "stages", "--inside", "blocks.0", "--sample", "500"]
    return recorded(tmp_path_factory.mktemp("s") / "sampled", *words)


@pytest.fixture(scope="module")
def live():
    session = Session()
    yield session
    session.pool.stop()


@pytest.fixture(scope="module")
def replayed(bundle):
    session = Session(pool=ReplayPool(bundle))
    yield session
    session.pool.stop()


@pytest.fixture(scope="module")
def thinned(sampled):
    session = Session(pool=ReplayPool(sampled))
    yield session
    session.pool.stop()


def numbers(result):
    """Everything a verdict rests on."""
    return [(tap.tap, tap.verdict, asdict(tap.local), asdict(tap.prop)) for tap in result.taps]


@pytest.mark.parametrize(
    ("dtype", "mutant"), [("fp64", ""), ("fp32", ""), ("fp32", "softmax_half"), ("fp64", "gelu_erf")]
)
def test_a_replay_says_what_the_living_torch_says(live, replayed, dtype, mutant):
    """Same layers, same verdicts, same numbers to the last bit, same worst elements."""
    here, there = (run_case(session, LATTE, dtype, mutant=mutant) for session in (live, replayed))
    assert len(there.taps) == 72 and there.passed is not bool(mutant), report.failure(there)
    assert numbers(here) == numbers(there)
    assert (here.worst, here.sources, here.notes) == (there.worst, there.sources, there.notes)
    assert [(c.name, c.passed, c.detail) for c in here.contract] == [
        (c.name, c.passed, c.detail) for c in there.contract
    ]


@pytest.mark.parametrize("mutant", ["", "stopped_gradient"])
def test_gradients_are_judged_as_with_a_living_torch(live, replayed, mutant):
    here, there = (
        compare.run_gradients(session, LATTE, "fp32", mutant=mutant) for session in (live, replayed)
    )
    assert there.taps and numbers(here) == numbers(there)
    assert there.passed is not bool(mutant)


def test_a_sampled_bundle_names_the_layer_that_the_living_torch_names(live, thinned):
    here = run_case(live, LATTE, "fp32", mutant="softmax_half")
    there = run_case(thinned, STAGES, "fp32", mutant="softmax_half")
    assert here.failures[0].tap == there.failures[0].tap == "blocks.0.attn.core#0"
    assert here.failures[0].shape == there.failures[0].shape
    assert there.failures[0].local.e_c == pytest.approx(here.failures[0].local.e_c, rel=0.5)
    assert there.worst and there.worst[0].count(",") == 2  # an index of the whole array, of three axes
    assert any("the layers inside blocks.1 were not recorded" in note for note in there.notes)


def test_a_sampled_bundle_passes_the_correct_port(thinned):
    result = run_case(thinned, STAGES, "fp32")
    assert result.passed and len(result.taps) == 9, report.failure(result)
    assert {tap.shape for tap in result.taps} >= {(144, 48), (2, 48), (2, 3, 8, 8, 12)}


def test_a_sampled_bundle_is_smaller(bundle, sampled):
    assert sampled.bytes < bundle.bytes / 4


def test_sampling_is_part_of_an_answer():
    value = np.arange(200.0)
    sampler = Sampler(50, ("blocks.*.attn",))
    request = dict(requests=[("blocks.3.attn", (), {}), ("blocks.3.mlp", (), {})])
    whole, part = sampler("local", request, [[value], [value]])
    assert whole[0] is value and part[0].size == 50
    assert sampler("state", {}, {"w": value})["w"] is value


# --- what is refused, before anything is judged


def said(capsys, *words):
    """(exit status, what went to stderr) of the command, in this process."""
    capsys.readouterr()
    status = compare.main([str(word) for word in words])
    return status, capsys.readouterr().err


def altered(bundle, folder, change):
    """A copy of a bundle whose manifest somebody changed consistently."""
    folder.mkdir()
    for path in bundle.path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    manifest["sha256"] = hash_of(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def other_inputs(manifest):
    manifest["cases"][NET]["inputs"]["x"] = "0" * 32


def other_case(manifest):
    fields = manifest["cases"][NET]["case"]["case"]["map"]
    next(field for field in fields if field[0] == "init")[1]["map"][0][1] = 5


def gone(manifest):
    manifest["cases"]["latte.Latte-gone"] = manifest["cases"].pop(NET)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_inputs, "the inputs drawn here are not those of the recording: x"),
        (other_case, "latte.Latte-class has changed since"),
        (gone, "parity/models has no such case"),
    ],
)
def test_another_case_is_refused(bundle, change, words, tmp_path, capsys):
    folder = altered(bundle, tmp_path / "altered", change)
    status, text = said(capsys, folder, "--report", tmp_path / "report")
    assert status == 2 and words in text and "record the bundle again" in text
    assert text.count("\n") == 1 and not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere is no bundle"),
        (["BUNDLE", "--dtype", "bf16"], "got bf16; expected fp64 or fp32"),
        (["BUNDLE", "--case", "mlp.*"], "fits no case"),
        (["BUNDLE", "--mutant", "typo"], "--mutant typo; expected "),
        (
            ["BUNDLE", "--case", NET, "layers.Typo", "blocks.*"],
            "--case layers.Typo blocks.* fits no case of ",
        ),
        (["BUNDLE", "--checkpoint", "nowhere.pt"], "no such file"),
        (["BUNDLE", "--checkpoint", GOLDEN, "--set", "num_heads=2"], "--checkpoint --set: "),
        (["BUNDLE", "--checkpoint", GOLDEN], "was recorded with weights drawn from seeds"),
        (
            ["BUNDLE", "--set", "foo=3", "--layout", "bar"],
            "remedy: python -m parity record --checkpoint FILE",
        ),
        (["BUNDLE", "--layout", "bar"], "--layout: "),
        (["BUNDLE", "--report", "/proc/report"], "--report /proc/report: /proc cannot be written"),
        (["BUNDLE", "--report", GOLDEN], "cannot be written (Not a directory)"),
        (["BUNDLE", "--device", "GPU"], "invalid choice"),
        (["BUNDLE", "--device", "Ascend"], "emedy: install CANN"),
    ],
)
def test_a_wrong_use_is_one_line(bundle, words, message, capsys):
    status, text = said(capsys, *(bundle.path if word == "BUNDLE" else word for word in words))
    assert status == 2 and message in text
    assert text.count("\n") == 1 and text.startswith("error: ")


def test_a_case_that_was_not_recorded_in_a_dtype_is_no_verdict(tmp_path, capsys):
    """Nothing judged is neither agreement nor disagreement."""
    folder = recorded(tmp_path / "two", "--case", "layers.Linear", "scaler.*", "--dtype", "fp32,fp16").path
    status, text = said(capsys, folder, "--case", "scaler.*", "--dtype", "fp16", "--report", tmp_path / "r")
    assert status == 2 and "none of the chosen cases was recorded in fp16; remedy: choose another" in text
    assert text.count("\n") == 1 and not (tmp_path / "r").exists()


def test_a_bundle_of_a_file_asks_for_that_file(tmp_path, capsys):
    file = ["--checkpoint", GOLDEN, "--set", "num_heads=2"]
    folder = recorded(tmp_path / "file", *file, "--dtype", "fp32").path
    status, text = said(capsys, folder, "--report", tmp_path / "report")
    assert status == 2 and "was recorded with the weights of a file; remedy: --checkpoint FILE" in text
    assert said(capsys, folder, *file, "--report", tmp_path / "report") == (0, "")
    assert (tmp_path / "report/parity.csv").exists()


def test_other_weights_are_refused(bundle, monkeypatch):
    monkeypatch.setattr("parity.harness.weights.SMALL", 0.25)  # the rule that draws the weights has changed
    session = Session(pool=ReplayPool(bundle))
    try:
        with pytest.raises(
            BundleError, match=r"latte.Latte-class: the weights are not those of the recording"
        ):
            run_case(session, LATTE, "fp32")
    finally:
        session.pool.stop()


def test_other_inputs_are_refused_by_the_worker_too(replayed):
    control = replayed.pool.get("torch", "CPU", "fp32")
    run_case(replayed, LATTE, "fp32")
    with pytest.raises(BundleError, match="its inputs are not those of the recording"):
        control("trace", inputs={"x": np.zeros(3)}, method="", keep_inputs=True, stages=False)
    with pytest.raises(WorkerError, match=r"has no answer of layer 'blocks\.0'") as caught:
        control("local", requests=[("blocks.0", (np.zeros(3),), {})])
    assert caught.value.kind == "NotRecorded"


def test_weights_are_known_by_content_not_by_place(tmp_path):
    from converters import load
    from converters.convert import convert

    source = ROOT / "tests/data/golden/latte_class.pt"
    overrides = {"num_heads": 2}
    copy = tmp_path / "copy.safetensors"
    convert(source, copy, family="latte", overrides=overrides, say=lambda text: None)
    assert set(load(copy).tensors) == set(load(source, overrides=overrides).tensors)
    hashes = {weights_hash(None, str(path), None, overrides) for path in (source, copy)}
    assert len(hashes) == 1
    state = {"a": np.zeros(3, np.float32), "b": np.ones(2, np.float32)}
    assert weights_hash(state) == weights_hash(dict(reversed(state.items())))
    assert weights_hash(state) != weights_hash({**state, "b": np.zeros(2, np.float32)})


# --- one framework absent: real processes


def without(framework, tmp_path, module, *words):
    """The command in a process whose workers cannot import a framework."""
    message = f"No module named {framework!r} (hidden by a test)"
    (tmp_path / f"{framework}.py").write_text(f"raise ModuleNotFoundError({message!r})\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        f"from parity import {module}; sys.exit({module}.main(sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)


def test_recording_needs_no_mindspore_and_says_when_torch_is_absent(tmp_path):
    words = ["--output", tmp_path / "out", "--case", "layers.Linear", "--dtype", "fp32"]
    done = without("torch", tmp_path, "record", *words)
    assert done.returncode == 2 and "No module named" in done.stderr and "remedy: pip install" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()
    (tmp_path / "torch.py").unlink()
    done = without("mindspore", tmp_path, "record", *words)
    assert done.returncode == 0, done.stderr
    assert Bundle(tmp_path / "out").manifest["cases"].keys() == {"layers.Linear"}
    assert str(ROOT) not in (tmp_path / "out" / ANSWERS).read_text()  # nothing of this machine travels


def test_comparing_needs_no_torch_and_writes_every_report(tmp_path, sampled):
    words = [sampled.path, "--report", tmp_path / "report"]
    done = without("torch", tmp_path, "compare", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(recorded)" in done.stdout and "0 FAIL" in done.stdout and "500 fixed positions" in done.stdout
    (left,) = (line for line in done.stdout.splitlines() if line.startswith("not judged in this run"))
    for words_ in ("single layers, functions", "fp64, fp16, bf16 (not recorded", "--gradients", "graph mode"):
        assert words_ in left
    assert "those of blocks.0 if they fail" in left and "outside 500 fixed positions" in left
    page = (tmp_path / "report/parity.md").read_text()
    assert all(item in page for item in left.partition(": ")[2].split("; ")[:2])
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names >= {"parity.csv", "parity.json", "parity.md", "junit.xml"}
    done = without("torch", tmp_path, "compare", *words, "--mutant", "softmax_half")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "first culprit: blocks.0.attn.core" in done.stdout and "--mutant softmax_half" in done.stdout
    assert "<failure" in (tmp_path / "report/junit.xml").read_text()


def test_a_control_with_rounded_products_is_recorded_and_serves_such_a_device_alone(tmp_path, capsys):
    words = ["--case", "layers.Linear", "--dtype", "fp32"]
    coarse = recorded(tmp_path / "coarse", *words, "--products", "HF32")
    assert coarse.manifest["products"] == {"matmul": "HF32", "conv": "HF32"}
    assert recorded(tmp_path / "half", *words, "--products", "fp32,TF32").manifest["products"] == {
        "conv": "TF32"
    }
    plain = recorded(tmp_path / "plain", *words)
    assert "products" not in plain.manifest
    status, text = said(capsys, coarse.path, "--report", tmp_path / "report")
    assert status == 2 and "got products (matmul,conv) of HF32,HF32; expected fp32,fp32" in text
    errors = []
    for bundle_ in (coarse, plain):
        session = Session(pool=ReplayPool(bundle_), products=compare.made_with(bundle_))
        result = run_case(session, CASES["layers.Linear"], "fp32")
        session.pool.stop()
        assert result.passed, report.failure(result)
        errors.append(result.taps[-1].prop.e_r)
    assert errors[1] < 1e-6 < 1e-5 < errors[0]  # the control of the first is as coarse as such a device


# --- writing


def test_an_interrupted_recording_leaves_nothing_and_a_failed_one_the_old_bundle(
    tmp_path, monkeypatch, capsys
):
    words = ["--output", str(tmp_path / "out"), "--case", "layers.Linear", "--dtype", "fp32"]

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(record, "run_case", interrupted)
        assert record.main(words) == 130
        assert list(tmp_path.iterdir()) == []
    assert record.main(words) == 0
    before = Bundle(tmp_path / "out").manifest
    assert record.main(words) == 2 and "--force replaces it" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(record, "run_case", interrupted)
        assert record.main([*words, "--force"]) == 130
    assert Bundle(tmp_path / "out").manifest == before and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("precious")
    assert record.main([*words[2:], "--output", str(tmp_path / "mine"), "--force"]) == 2
    assert "exists and is no bundle" in capsys.readouterr().err and (tmp_path / "mine/notes.txt").exists()


def test_a_torch_that_does_not_repeat_itself_is_not_recorded(tmp_path, monkeypatch, capsys):
    count = itertools.count(1)
    ask = Worker.__call__

    def unsteady(self, verb, **arguments):
        answer = ask(self, verb, **arguments)
        return [value + next(count) for value in answer] if verb == "run" else answer

    monkeypatch.setattr(Worker, "__call__", unsteady)
    words = ["--output", str(tmp_path / "out"), "--case", "layers.Linear", "--dtype", "fp32"]
    assert record.main(words) == 2
    assert "torch does not agree with itself" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--case", "blocks.Typo", "layers.Linear", "x.*"],
            "--case blocks.Typo x.* fits no case of this package",
        ),
        (["--dtype", "fp8"], "got fp8; expected fp64 or fp32 or fp16 or bf16"),
        (["--model", "Latte-XL/2"], "add --size full"),
        (["--size", "full", "--model", "Latte-Q/9"], "expected Latte-XL/2"),
        (["--full", "blocks.0"], "--full a --sample"),
        (["--frames", "3"], "with --size full or --checkpoint"),
        (["--checkpoint", "nowhere.pt"], "no such file"),
        (
            ["--case", "layers.Linear", "--dtype", "fp32", "--inside", "blocks.9"],
            "--inside blocks.9 fits no stage",
        ),
        (
            ["--case", NET, "--dtype", "fp32", "--sample", "9", "--full", "blocks.0", "blocks.O.atn"],
            "--full blocks.O.atn fits no tap of the chosen cases; expected names or patterns of taps; near it: blocks.",
        ),
        (["--products", "HF23"], "--products HF23; got HF23; expected one or two of fp32, HF32, TF32"),
    ],
)
def test_a_wrong_choice_is_one_line_and_leaves_nothing(words, message, tmp_path, capsys):
    assert record.main(["--output", str(tmp_path / "out"), *words]) == 2
    text = capsys.readouterr().err
    assert message in text and text.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--inside", "blocks.9"], ["--sample", "9", "--full", "blocks.O.atn"]])
def test_names_that_fit_nothing_are_refused_before_anything_runs(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record, "_record_run", lambda *args: pytest.fail("hours of runs"))
    chosen = ["--output", str(tmp_path / "out"), "--case", "layers.Linear", "--dtype", "fp32"]
    assert record.main([*chosen, *words]) == 2
    assert f"{words[-2]} {words[-1]} fits no" in capsys.readouterr().err


def test_a_damaged_bundle_is_refused_by_the_command(bundle, tmp_path, capsys):
    folder = altered(bundle, tmp_path / "altered", lambda manifest: None)
    edit(folder / ANSWERS, b"float32", b"float64")
    status, text = said(capsys, folder)
    assert status == 2 and "answers.json was edited or damaged" in text
