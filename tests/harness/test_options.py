# SPDX-License-Identifier: Apache-2.0
"""What a user types: wrong options end at once with the remedy, a run leaves its report behind."""

import csv
import json
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden"


def parity(*words, cwd=ROOT):
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(ROOT / "parity"),
        "-q",
        "-p",
        "no:cacheprovider",
        *map(str, words),
    ]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "Ascend"], "Remedy: install CANN"),
        (["--device", "GPU"], "no GPU formulations"),
        (["--device", "Foo"], "expected CPU or Ascend"),
        (["--dtype", "fp8"], "--dtype fp8; got fp8; expected fp32 or fp16 or bf16"),
        (["--size", "huge"], "expected one of tiny, thin, full"),
        (["--model", "Foo"], "expected Latte or LatteT2V"),
        (["--size", "full", "--model", "Latte-Q/2"], "expected Latte-XL/2"),
        (["--checkpoint", "nowhere.pt"], "no such file"),
        (["--checkpoint", GOLDEN / "latte_class.pt"], "--set num_heads="),
        (["--quick", "--size", "full"], "exclude each other"),
        (["--set", "num_heads=2"], "--set describes a --checkpoint; none is given"),
        (["--layout", "ours"], "--layout describes a --checkpoint; none is given"),
        (["--lang", "de"], "expected en or zh"),
        (["--collect-only", "--device", "nosuch"], "expected CPU or Ascend"),
        (["--collect-only", "--dtype", "nosuch"], "--dtype nosuch; got nosuch; expected fp32"),
        (["--collect-only", "--checkpoint", "nowhere.pt"], "no such file"),
        (["--frames", "3"], "--frames needs --size full"),
        (["--frames", "0", "--size", "full"], "expected 1 or more"),
    ],
    ids=lambda value: " ".join(map(str, value))[-40:] if isinstance(value, list) else "",
)
def test_wrong_options_end_at_once(words, message, tmp_path):
    done = parity(*words, "--report", tmp_path / "report")
    said = done.stdout + done.stderr
    assert done.returncode == 4, said  # pytest's code for a wrong use
    assert message in said and "Traceback" not in said
    assert not (tmp_path / "report" / "parity.csv").exists()


@pytest.mark.parametrize("place", [ROOT / "README.md", ROOT / "README.md" / "x", "/proc/x"], ids=str)
def test_a_report_that_cannot_be_written_ends_at_once(place):
    done = parity("--quick", "-k", "LayerNorm", "--report", place)
    said = done.stdout + done.stderr
    assert done.returncode == 4 and f"ERROR: --report {place}: " in said, said
    assert "INTERNALERROR" not in said and "expected a folder that can be written" in said


def collected(tmp_path, *words):
    """The tests that --collect-only lists; nothing is written."""
    done = parity("--collect-only", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_collecting_lists_what_a_run_judges(tmp_path):
    listed = collected(tmp_path)
    assert not any("NOTSET" in line for line in listed)
    for test in ("test_drift", "test_samplers", "test_graph_mode"):
        assert sum(f"::{test}[" in line for line in listed) > 1
    done = parity("-k", "no_such_test", "--report", tmp_path / "out")
    assert f"{len(listed)} deselected" in done.stdout


def test_a_dtype_that_is_given_twice_counts_once(tmp_path):
    once, twice = (collected(tmp_path, "--size", "tiny", "--dtype", d) for d in ("bf16", "bf16,bf16"))
    assert once == twice and any("::test_numerics[bf16-" in line for line in once)


def test_a_run_leaves_its_report(tmp_path):
    done = parity("--size", "tiny", "--dtype", "bf16", "-k", "LayerNorm", "--report", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "emulated" in done.stdout and "G0 contract" in done.stdout and "0 FAIL" in done.stdout
    rows = list(csv.DictReader((tmp_path / "out/parity.csv").open()))
    assert {row["dtype"] for row in rows} == {"fp64", "bf16"} and all(
        float(row["local_port"]) < 0.01 for row in rows
    )
    results = json.loads((tmp_path / "out/parity.json").read_text())["results"]
    assert len(results) == len({(r["case"], r["dtype"], r["form"]) for r in results}) > 0
    assert "| case |" in (tmp_path / "out/parity.md").read_text()
    page = (tmp_path / "out/parity.html").read_text()
    stored = page.partition('id="data">')[2].partition("</script>")[0]
    taps = sum(len(run["tap"]) for run in json.loads(stored)["runs"])
    assert '<html lang="en">' in page and taps == len(rows) > 0
    assert "not judged in this run" in done.stdout and "fp32, fp16 (--dtype)" in done.stdout
    names = [item.get("name") for item in xml.parse(tmp_path / "out/junit.xml").iter("property")]
    assert "worst_local" in names


def test_a_checkpoint_is_judged_from_its_own_weights(tmp_path):
    words = [
        "--checkpoint",
        GOLDEN / "latte_class.pt",
        "--set",
        "num_heads=2",
        "--dtype",
        "fp32",
        "--report",
        tmp_path,
    ]
    done = parity(*words)
    assert done.returncode == 0, done.stdout
    assert "latte.Latte-file, 72 taps" in done.stdout
    # The hash in the report is the one that the converter prints: it tells which weights were judged.
    from converters.convert import convert

    options = dict(overrides={"num_heads": 2}, say=lambda line: None)
    digest = convert(GOLDEN / "latte_class.pt", tmp_path / "ours.safetensors", **options)
    assert f"content sha256 {digest}" in " ".join(done.stdout.split())
    assert digest in (tmp_path / "parity.json").read_text() and digest in (tmp_path / "parity.md").read_text()


def test_weights_that_prove_nothing_are_said_or_refused(tmp_path):
    """A net before training: with every modulation 0 its blocks do nothing, with its last layer 0 all of it."""
    tensors = torch.load(GOLDEN / "latte_class.pt", weights_only=True)["ema"]
    silent = {n: torch.zeros_like(v) if "adaLN_modulation" in n else v for n, v in tensors.items()}
    fresh = {n: torch.zeros_like(v) if n.startswith("final_layer.linear") else v for n, v in silent.items()}
    words = ["--set", "num_heads=2", "--dtype", "fp32", "--report", tmp_path / "out"]
    note = "could hide a bug: blocks.0.adaLN_modulation.1.weight is constant"
    for state, code in ((silent, 0), (fresh, 1)):
        torch.save({"ema": state}, tmp_path / "net.pt")
        done = parity("--checkpoint", tmp_path / "net.pt", *words)
        said = " ".join(done.stdout.split())
        assert done.returncode == code and note in said, done.stdout
        assert ("the net gives 0 everywhere" in said) == bool(code), done.stdout


def test_a_run_speaks_chinese(tmp_path):
    words = ["--quick", "--model", "Latte", "-k", "LayerNorm", "--lang", "zh", "--report", "out"]
    done = parity(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    lines = [line for line in done.stdout.splitlines() if "LayerNorm" in line and line.startswith(" ")]
    assert lines and all(line.endswith("通过") for line in lines)
    assert "0 失败" in done.stdout and "设备 CPU" in done.stdout and "真值" in done.stdout
    assert "G2, G3 与 G5 (--quick)" in done.stdout and "本次未比对" in done.stdout
    assert not any(word in done.stdout for word in ("relative", "propagated", "formulation", "rows ok"))
    assert '<html lang="zh-CN">' in (tmp_path / "out/parity.html").read_text()
    stored = json.loads((tmp_path / "out/parity.json").read_text())
    assert stored["header"][0].startswith("device CPU")  # files keep the judge's English


def test_a_failure_is_short_and_repeatable(tmp_path, monkeypatch):
    """A checkpoint with one NaN: the message has at most 15 lines and ends in a command that fails the same way."""
    import numpy as np
    from safetensors.numpy import save_file

    from converters import load

    source = load(GOLDEN / "latte_class.pt", overrides={"num_heads": 2})
    tensors = {name: np.array(value) for name, value in source.tensors.items()}
    tensors["blocks.1.mlp.fc1.bias"][3] = np.inf
    metadata = {"format": "pt", "model": source.model, "config": json.dumps(source.config), "layout": "ours"}
    save_file(tensors, tmp_path / "broken.safetensors", metadata)
    words = ["--checkpoint", tmp_path / "broken.safetensors", "--dtype", "fp32", "--report", tmp_path / "out"]
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    done = parity(*words)
    assert done.returncode == 1, done.stdout
    places = {
        line.partition("#")[2]
        for line in done.stdout.splitlines()
        if "parity.html#run/G1" in line and "::" not in line
    }
    page = (tmp_path / "out/parity.html").read_text()
    assert len(places) == 2 and all(
        f'id="{place}"' in page for place in places
    )  # formulations of CPU and Ascend
    assert "::error " in done.stdout and "title=latte.Latte-file (G1 fp64" in done.stdout
    command = next(line for line in done.stdout.splitlines() if "reproduce: " in line).partition(
        "reproduce: "
    )[2]
    assert "--checkpoint" in command and "test_semantics[fp64-CPU-latte.Latte-file]" in command
