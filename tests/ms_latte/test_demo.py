# SPDX-License-Identifier: Apache-2.0
"""`python -m ms_latte.demo`: its stages as a user runs them, tiny; resuming; folders that it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ms_latte import demo, demo_stages, shapes
from ms_latte.config import ConfigError, build, find_config
from ms_latte.demo_config import DemoConfig
from ms_latte.sample_config import SampleConfig
from ms_latte.train_config import TrainConfig
from ms_latte.video_io import png_bytes, read_png

ROOT = Path(__file__).parents[2]
TINY = dict(clips=18, clip_frames=8, vae_steps=2, train_steps=2, num_samples=1, sampling_steps=2)


def tiny(folder, **changes):
    return build(DemoConfig, None, {**TINY, "output_path": str(folder), **changes})


def command(folder):
    words = [sys.executable, "-m", "ms_latte.demo", "--output_path", "run"]
    words += [part for key, value in TINY.items() for part in (f"--{key}", str(value))]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "3"}
    return subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, timeout=1200)


def test_everything_from_another_folder_and_again(tmp_path):
    done = command(tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        *("demo.yaml", "latents", "loss_curve.png", "real_and_generated.png"),
        *("samples", "train", "vae.safetensors", "vae.safetensors.json", "videos"),
    ]
    steps = [json.loads(line)["step"] for line in (run / "train" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
    sheet = read_png(run / "real_and_generated.png")
    real = demo_stages.enlarged(shapes.clip(0, 8, demo_stages.SIZE))[0]
    corner = demo_stages.HEAD + 2, 2  # margin of the sheet
    side = len(real)
    np.testing.assert_array_equal(sheet[corner[0] : corner[0] + side, corner[1] : corner[1] + side], real)
    made = read_png(run / "samples" / "0000" / "000.png").repeat(3, 0).repeat(3, 1)
    left = sheet.shape[1] // 2 + demo_stages.GAP // 2 + 2
    np.testing.assert_array_equal(sheet[corner[0] : corner[0] + side, left : left + side], made)
    kept = {
        path: path.stat().st_mtime_ns for path in run.rglob("*") if path.suffix in (".safetensors", ".gif")
    }
    assert command(tmp_path).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # nothing is made twice


def test_a_failing_command_ends_the_run(tmp_path, monkeypatch):
    asked = []

    class Failed:
        returncode = 2

    monkeypatch.setattr(demo_stages, "fit_vae", lambda config, path: 30.0)
    monkeypatch.setattr(subprocess, "run", lambda words, **_: asked.append(words) or Failed)
    assert demo_stages.run(tiny(tmp_path / "run")) == 2
    assert len(asked) == 1 and asked[0][1:3] == ["-m", "ms_latte.cache"]
    assert len(list((tmp_path / "run" / "videos").glob("*/*/*.png"))) == 18 * 8


def test_an_interrupted_clip_is_drawn_again(tmp_path):
    config = tiny(tmp_path)
    demo_stages.write_clips(config, tmp_path / "videos")
    place = tmp_path / "videos" / "square" / "0001"
    for frame in place.iterdir():
        frame.unlink()
    place.rmdir()
    demo_stages.write_clips(config, tmp_path / "videos")
    assert (place / "007.png").read_bytes() == png_bytes(shapes.clip(1, 8, demo_stages.SIZE)[7])


def test_folders_that_are_not_its_own_are_refused(tmp_path, capsys):
    folder = tmp_path / "run"
    demo_stages.keep_config(tiny(folder), folder)
    demo_stages.keep_config(tiny(folder), folder)
    with pytest.raises(ConfigError, match="train_steps 2 there, 3 now; name a new folder"):
        demo_stages.keep_config(tiny(folder, train_steps=3), folder)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"mine")
    assert demo.main(["--output_path", str(tmp_path / "photos")]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert demo.main(["--clip_frames", "7"]) == 2
    assert "expected 8 or more" in capsys.readouterr().err


def test_its_configurations_fit_each_other():
    config = tiny("run")
    training = build(TrainConfig, find_config("configs/training/shapes.yaml"), {"data_folder": "videos"})
    sampling = build(SampleConfig, find_config("configs/inference/shapes.yaml"), {})
    assert training.image_size == sampling.image_size == (demo_stages.SIZE, demo_stages.SIZE)
    assert training.num_frames == sampling.num_frames <= DemoConfig().clip_frames
    assert sampling.num_classes == len(shapes.KINDS) and sampling.class_ids == (0, 1, 2)
    cache, train, sample = demo_stages.commands(
        config, *(Path(p) for p in ("run", "videos", "vae", "latents"))
    )
    assert (cache[0], train[0], sample[0]) == ("ms_latte.cache", "ms_latte.train", "ms_latte.sample")
