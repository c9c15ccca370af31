# SPDX-License-Identifier: Apache-2.0
"""The command line: both ways to start it, what it prints, how it fails, what it leaves behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from converters import ConversionError, stream
from converters import convert as engine
from converters.command import parse_setting
from converters.convert import convert
from converters.latte_converter import main

ROOT = Path(__file__).parents[2]
SCRIPT = [sys.executable, str(ROOT / "converters" / "latte_converter.py")]
MODULE = [sys.executable, "-m", "converters.latte_converter"]


def run(command: list, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("start", [SCRIPT, MODULE], ids=["script", "module"])
def test_both_ways_to_start_from_elsewhere(golden, tmp_path, start):
    variables = {"PYTHONPATH": str(ROOT)} if start is MODULE else {"PYTHONPATH": ""}
    done = run(
        [
            *start,
            "--source",
            golden / "latte_class.pt",
            "--target",
            "out.safetensors",
            "--set",
            "num_heads=2",
            "--verify",
        ],
        tmp_path,
        **variables,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for line in (
        "layout    official-latte of Latte",
        "tensors   53 (F32 53), 135,952 parameters",
        '"num_heads": 2',
        "verified  53 tensors read back, bit-equal to the source",
    ):
        assert line in done.stdout
    assert re.search(r"^sha256    [0-9a-f]{64}", done.stdout, re.M)
    assert sorted(os.listdir(tmp_path)) == ["out.safetensors", "out.safetensors.json"]
    wrong = run([*start, "--source", "nothing.pt", "--target", "x.safetensors"], tmp_path, **variables)
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "error: nothing.pt does not exist; remedy: check the path\n",
    )


def test_help_teaches_and_needs_no_framework(tmp_path):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['latte_converter.py', '--help']; sys.path.insert(0, 'x')\n"
        f"try: runpy.run_path({SCRIPT[1]!r}, run_name='__main__')\n"
        "except SystemExit as done: assert done.code == 0\n"
        "heavy = {'torch', 'mindspore', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = run([sys.executable, "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--from open-sora-plan-v1.0" in done.stdout and "examples:" in done.stdout


def test_a_conversion_needs_no_framework(golden, tmp_path):
    code = (
        "import sys\nfor name in ('torch', 'mindspore', 'diffusers'): sys.modules[name] = None\n"
        "from converters.latte_converter import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    arguments = [
        "--source",
        golden / "latte_uncond.pt",
        "--target",
        tmp_path / "a.safetensors",
        "--set",
        "num_heads=3",
    ]
    assert run([sys.executable, "-c", code, *arguments], ROOT).returncode == 0


def test_import_is_cheap():
    done = run([sys.executable, "-c", "import sys, converters; sys.exit('numpy' in sys.modules)"], ROOT)
    assert done.returncode == 0
    with pytest.raises(AttributeError, match="nothing"):
        __import__("converters").nothing  # noqa: B018


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_casts_on_the_way(golden, tmp_path, weights, dtype):
    target = tmp_path / "a.safetensors"
    convert(golden / "latte_class.pt", target, overrides={"num_heads": 2}, dtype=dtype, verify=True)
    word = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    written = safetensors.torch.load_file(target)
    for name, tensor in weights("latte_class.pt").items():
        assert torch.equal(written[name], tensor.to(word)) and written[name].dtype == word


def test_overflow_is_refused_and_nothing_is_left(save, weights, tmp_path, capsys):
    state = dict(weights("latte_class.pt"))
    state["blocks.2.mlp.fc1.bias"] = torch.full_like(state["blocks.2.mlp.fc1.bias"], 1e5)
    source, target = save(state), tmp_path / "a.safetensors"
    arguments = ["--source", str(source), "--target", str(target), "--set", "num_heads=2", "--dtype", "fp16"]
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: blocks.2.mlp.fc1.bias does not fit F16; got")
    assert os.listdir(tmp_path) == ["some.pt"]


def test_target_rules(golden, tmp_path, capsys):
    source, target = golden / "latte_uncond.pt", tmp_path / "a.safetensors"
    heads = {"num_heads": 3}
    target.write_bytes(b"old")
    with pytest.raises(ConversionError, match=r"exists already.*--force"):
        convert(source, target, overrides=heads)
    assert target.read_bytes() == b"old"
    convert(source, target, overrides=heads, force=True)
    (tmp_path / "link.safetensors").symlink_to(target)
    for itself in (target, tmp_path / "link.safetensors"):
        with pytest.raises(ConversionError, match="is the source itself"):
            convert(target, itself, force=True)
    with pytest.raises(ConversionError, match="mkdir -p"):
        convert(source, tmp_path / "no" / "a.safetensors", overrides=heads)
    with pytest.raises(ConversionError, match=r"ending '.npz'; expected .safetensors"):
        convert(source, tmp_path / "a.npz", overrides=heads)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "diary.txt").touch()
    with pytest.raises(ConversionError, match=r"holds other things.*diary.txt"):
        convert(source, tmp_path / "folder", overrides=heads, force=True)
    assert (tmp_path / "folder" / "diary.txt").exists()
    (tmp_path / "b.pt.json").write_text("mine")
    with pytest.raises(ConversionError, match=r"b.pt.json, the place of the configuration, exists already"):
        convert(source, tmp_path / "b.pt", overrides=heads)
    with pytest.raises(ConversionError, match=r"shards need a folder.*remedy: --target .*/c"):
        convert(source, tmp_path / "c.safetensors", overrides=heads, shard_size=1000)
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(ConversionError, match="no regular file"):
        convert(source, tmp_path / "pipe.pt", overrides=heads, force=True)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.ckpt", "a"])
def test_write_failure_halfway_keeps_the_old_target(golden, tmp_path, monkeypatch, capsys, name):
    target, written, real = tmp_path / name, [], stream.TensorEntry.parts
    arguments = ["--source", str(golden / "latte_uncond.pt"), "--target", str(target), "--set", "num_heads=3"]
    assert main(arguments) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()

    def fails_at_the_tenth(entry, *limit):
        written.append(entry)
        if len(written) == 10:
            raise OSError(28, "No space left on device")
        return real(entry, *limit)

    monkeypatch.setattr(stream.TensorEntry, "parts", fails_at_the_tenth)
    assert main([*arguments, "--force"]) == 2
    assert capsys.readouterr().err == "error: No space left on device; nothing was written\n"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_too_little_space_is_said_before_writing(golden, tmp_path, monkeypatch):
    monkeypatch.setattr(
        engine.shutil, "disk_usage", lambda place: engine.shutil._ntuple_diskusage(9, 9, 1000)
    )
    with pytest.raises(ConversionError, match=r"not enough space.*got 1,000 bytes free"):
        convert(golden / "latte_uncond.pt", tmp_path / "a.pt", overrides={"num_heads": 3})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.ckpt"])
def test_verify_notices_a_changed_bit(golden, tmp_path, monkeypatch, name):
    real = engine.write_target

    def disk_that_flips_a_bit(path, entries, *arguments, **options):
        digest = real(path, entries, *arguments, **options)
        data = bytearray(path.read_bytes())
        last = entries["final_layer.linear.weight"].stored().tobytes()
        data[data.index(last) + 5] ^= 1
        path.write_bytes(data)
        return digest

    monkeypatch.setattr(engine, "write_target", disk_that_flips_a_bit)
    with pytest.raises(
        ConversionError, match=r"differs from what was written; got final_layer.linear.weight"
    ):
        convert(golden / "latte_uncond.pt", tmp_path / name, overrides={"num_heads": 3}, verify=True)


def test_verify_notices_a_damaged_source(golden, tmp_path):
    data = bytearray((golden / "latte_uncond.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.pt").write_bytes(data)
    with pytest.raises(ConversionError, match="checksum"):
        convert(tmp_path / "bad.pt", tmp_path / "a.safetensors", overrides={"num_heads": 3}, verify=True)
    assert os.listdir(tmp_path) == ["bad.pt"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--source", "a.pt"],
        ["--source", "a.pt", "--target", "b.safetensors", "--dtype", "fp8"],
        ["--source", "a.pt", "--target", "b.safetensors", "--set", "num_heads"],
    ],
)
def test_usage_errors_are_one_line(arguments, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and re.fullmatch(r"error: [^\n]+\n", printed.err)


def test_a_report_becomes_one_line(save, weights, tmp_path, capsys):
    state = {name: tensor for name, tensor in weights("latte_uncond.pt").items() if "fc1" not in name}
    assert main(["--source", str(save(state)), "--target", str(tmp_path / "a.safetensors")]) == 2
    assert re.fullmatch(r"error: [^\n]+missing \(8\)[^\n]+\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("num_heads=8", ("num_heads", 8)),
        ("input_size=32,40", ("input_size", [32, 40])),
        ("input_size=[32, 40]", ("input_size", [32, 40])),
        ("condition=text", ("condition", "text")),
        ("learn_sigma=False", ("learn_sigma", False)),
        ("attention_bias=true", ("attention_bias", True)),
        ("num_embeds_ada_norm=None", ("num_embeds_ada_norm", None)),
        ("norm_eps=1e-6", ("norm_eps", 1e-6)),
    ],
)
def test_settings(text, setting):
    assert parse_setting(text) == setting


def test_progress_speaks_up_after_a_while():
    lines: list[str] = []
    entries = {"w": stream.TensorEntry("F32", (10,), lambda: np.zeros(10, np.float32))}
    often, seldom = (engine._progress(entries, lines.append, every=every) for every in (0.0, 60.0))
    for tell in (often, seldom, often):
        tell(20)
    assert lines == ["writing    50 % of 0.00 GB, 0 s left", "writing   100 % of 0.00 GB, 0 s left"]
