# SPDX-License-Identifier: Apache-2.0
"""The command: files of a run, resuming, refusals in one line, from another folder, as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from ms_latte import checkpoint, jobs, random_models, sample, video_io
from ms_latte.config import ConfigError, build, dump
from ms_latte.encoders.text_cache import TextCache, save_text_cache
from ms_latte.parts import check_told, find_parts, settings
from ms_latte.run_folder import RunFolder
from ms_latte.sample_config import SampleConfig
from tests.helpers import normal
from tests.ms_latte.tiny import tiny_latte, tiny_t2v

ROOT = Path(__file__).parents[2]
TINY = ("--device_target", "CPU", "--image_size", "64", "--num_frames", "3", "--sampling_steps", "2")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A class model and a VAE, as files."""
    folder = tmp_path_factory.mktemp("models")
    from ms_latte.encoders.vae import AutoencoderKL

    checkpoint.save(tiny_latte(condition="class", depth=2), folder / "class.safetensors")
    checkpoint.save(tiny_t2v(num_layers=1), folder / "text.safetensors")
    checkpoint.save(
        random_models.fill(AutoencoderKL(**random_models.VAE), np.random.default_rng(1)),
        folder / "vae.safetensors",
    )
    return folder


def call(*words):
    """Exit status of the command in this process (whose device is the CPU already)."""
    return sample.main([str(word) for word in words])


def by_class(files, out, *more):
    parts = ("--checkpoint", files / "class.safetensors", "--vae_checkpoint", files / "vae.safetensors")
    return call(*parts, *TINY, "--class_ids", "5,0", "--num_samples", "1", "--output_path", out, *more)


def lines(out):
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def content(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".gif", ".npy", ".png")}


def test_files_of_a_run_and_its_table(files, tmp_path, capsys):
    out = tmp_path / "new" / "run"
    assert by_class(files, out, "--output_format", "gif,latents", "--guidance_scale", "2") == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        *("0000.gif", "0000.npy", "0001.gif", "0001.npy"),
        *("config.yaml", "contact_sheet.png", "samples.jsonl"),
    ]
    header, first, second = lines(out)
    assert set(header["inputs"]) == {"checkpoint", "vae_checkpoint"}
    assert (first["index"], first["seed"], first["class_id"], first["files"]) == (
        0,
        4,
        5,
        ["0000.gif", "0000.npy"],
    )
    assert (second["seed"], second["class_id"]) == (5, 0)
    held = yaml.safe_load((out / "config.yaml").read_text())
    assert (held["dtype"], held["mode"], held["guidance_scale"]) == ("fp32", 1, 2.0)
    shown = capsys.readouterr()
    heads = "model name | cards | image size | method | steps | jit level | ckpt loading time | compile time"
    table = [line for line in shown.out.splitlines() if line.startswith("|")]
    assert [part.strip() for part in table[0].strip("| ").split("|")][:8] == heads.split(" | ")
    assert "64x64" in table[2] and "DDIM" in table[2]
    assert "sample 2/2  step 2/2" in shown.err and "s/step" in shown.err


def test_an_interrupted_batch_resumes_at_the_next_sample(files, tmp_path, monkeypatch, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert by_class(files, whole) == 0
    save = video_io.save

    def stop(folder, name, *rest):
        if name == "0001":
            raise KeyboardInterrupt
        return save(folder, name, *rest)

    monkeypatch.setattr(video_io, "save", stop)
    assert by_class(files, broken) == 130
    assert f"--output_path {broken}" in capsys.readouterr().err
    assert [line["index"] for line in lines(broken)[1:]] == [0]
    before = (broken / "0000.gif").stat().st_mtime_ns
    with open(broken / "samples.jsonl", "a") as file:  # killed in the middle of a line
        file.write('{"index": 1, "se')
    monkeypatch.setattr(video_io, "save", save)
    assert by_class(files, broken) == 0
    assert (broken / "0000.gif").stat().st_mtime_ns == before
    assert content(broken) == content(whole)
    assert [line["index"] for line in lines(broken)[1:]] == [0, 1]
    assert by_class(files, broken) == 0 and "already" in capsys.readouterr().out
    assert content(broken) == content(whole)


def test_another_configuration_is_not_mixed_in(files, tmp_path, capsys):
    out = tmp_path / "run"
    assert by_class(files, out, "--output_format", "latents") == 0
    before = content(out)
    assert by_class(files, out, "--output_format", "latents", "--seed", "5") == 2
    assert "seed 4 there, 5 now" in capsys.readouterr().err
    assert content(out) == before


def test_a_sample_is_the_same_alone(files, tmp_path):
    both, alone = tmp_path / "both", tmp_path / "alone"
    form = ("--output_format", "latents")
    assert by_class(files, both, *form) == 0
    assert by_class(files, alone, *form, "--class_ids", "0", "--seed", "5") == 0
    assert (both / "0001.npy").read_bytes() == (alone / "0000.npy").read_bytes()


def test_latents_of_one_run_are_decoded_by_another(files, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert by_class(files, first, "--output_format", "gif,latents", "--class_ids", "5") == 0
    given = ("--vae_checkpoint", files / "vae.safetensors", "--latents_path", first / "0000.npy")
    assert call(*given, "--device_target", "CPU", "--output_path", second) == 0
    assert (second / "0000.gif").read_bytes() == (first / "0000.gif").read_bytes()


def test_text_features_from_a_file(files, tmp_path):
    features, mask = normal(3, 7, 20, seed=2), np.array([[1] * 7, [1, 1, 1, 0, 0, 0, 0], [1] + [0] * 6])
    save_text_cache(tmp_path / "t.safetensors", TextCache(("a dog", "a cat", ""), features, mask, "test"))
    out = tmp_path / "run"
    given = ("--checkpoint", files / "text.safetensors", "--embeddings", tmp_path / "t.safetensors", *TINY)
    more = ("--output_format", "latents", "--guidance_scale", "3", "--clean_caption", "False")
    assert call(*given, *more, "--num_samples", "2", "--output_path", out) == 0
    assert [line["prompt"] for line in lines(out)[1:]] == ["a dog", "a dog", "a cat", "a cat"]
    assert np.load(out / "0003.npy").shape == (3, 4, 8, 8)
    alone = tmp_path / "alone"
    one = ("--prompts", "A CAT", "--num_samples", "1", "--seed", "7", "--output_path", alone)
    assert call(*given, *more, *one) == 0  # lowered, as the tokenizer gets it
    assert (alone / "0000.npy").read_bytes() == (out / "0003.npy").read_bytes()


# ---------------------------------------------------------------------------------------------- mistakes


def refused(capsys, code, *words):
    assert code == 2
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert shown.startswith("error: ") and all(word in shown for word in words), shown


def test_mistakes_are_one_line_and_leave_nothing_behind(files, tmp_path, capsys):
    out = tmp_path / "run"
    mistakes = (
        (("--class_ids", "7"), "class 7 is out of range; expected 0 to 6"),
        (
            ("--class_ids", "5", "--model_name", "Latte-XL/2"),
            "--model_name Latte-XL/2, but the checkpoint holds",
        ),
        (("--image_size", "72"), "multiples of 16"),
        (("--image_size", "60"), "expected multiples of 8 (the VAE's factor); nearest 64x64"),
        (("--checkpoint", tmp_path / "none.pt"), "does not exist"),
        (("--vae_checkpoint", files / "class.safetensors"), "expected a VAE"),
        (("--checkpoint", files / "vae.safetensors"), "expected a Latte"),
        (("--device_target", "Ascend"), "Ascend is not available"),
        (("--device_target", "GPU"), "no GPU formulations"),
        (("--enable_flash_attention", "True"), "Ascend alone"),
        (("--noise_path", files / "class.safetensors"), "cannot be read as .npy"),
        (("--sampling_stps", "3"), "did you mean sampling_steps?"),
    )
    for more, words in mistakes:
        refused(capsys, by_class(files, out, *more), words)
        assert not out.exists(), more


def test_a_folder_that_cannot_be_used(files, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0000.gif").write_bytes(b"mine")
    refused(capsys, by_class(files, tmp_path / "photos"), "nothing is overwritten")
    (tmp_path / "file").write_text("x")
    refused(capsys, by_class(files, tmp_path / "file" / "run"), "cannot write there")
    (tmp_path / "locked").mkdir(mode=0o500)
    if not os.access(tmp_path / "locked", os.W_OK):  # root may write everywhere
        refused(capsys, by_class(files, tmp_path / "locked" / "run"), "cannot write there")


def test_a_folder_belongs_to_one_process(tmp_path):
    config = dump(SampleConfig())
    with RunFolder(tmp_path / "run", config, {}), pytest.raises(ConfigError, match="another process"):
        RunFolder(tmp_path / "run", config, {}).__enter__()


def test_a_changed_checkpoint_is_another_configuration(tmp_path):
    config, facts = dump(SampleConfig()), {"checkpoint": {"bytes": 3, "changed": 5}}
    with RunFolder(tmp_path / "run", config, facts) as folder:
        folder.add(0, {"seed": 4})
    with pytest.raises(ConfigError, match="checkpoint was another file"):
        RunFolder(tmp_path / "run", config, {"checkpoint": {"bytes": 4, "changed": 5}}).__enter__()


def test_a_pipeline_folder_brings_its_parts(tmp_path):
    for name in ("transformer", "vae", "text_encoder", "tokenizer"):
        (tmp_path / "Latte-1" / name).mkdir(parents=True)
    config = build(SampleConfig, None, dict(checkpoint=str(tmp_path / "Latte-1"), prompts="a dog"))
    parts = find_parts(config)
    home = tmp_path / "Latte-1"
    assert (parts.checkpoint, parts.vae_checkpoint) == (home / "transformer", home / "vae")
    assert (parts.text_encoder, parts.tokenizer) == (home / "text_encoder", home / "tokenizer")
    latents = config.model_copy(update={"output_format": ("latents",), "prompts": ()})
    assert find_parts(latents).vae_checkpoint is None and find_parts(latents).text_encoder is None


def test_what_is_told_must_be_what_the_checkpoint_holds():
    model = tiny_latte(condition="class")
    for key, value in (("condition", "none"), ("num_classes", "101"), ("patch_embedder", "linear")):
        with pytest.raises(ConfigError, match=f"--{key} {value}"):
            check_told(build(SampleConfig, None, {key: value}), model)
    told = dict(condition="class", num_classes="7", patch_embedder="conv", model_name="Latte")
    assert check_told(build(SampleConfig, None, told), model) == "Latte"


def test_conditions_of_the_wrong_family_are_refused():
    with pytest.raises(ConfigError, match="is unconditional"):
        jobs.make_jobs(build(SampleConfig, None, dict(class_ids="1")), tiny_latte())
    with pytest.raises(ConfigError, match="say which: --class_ids 0 to 6"):
        jobs.make_jobs(SampleConfig(), tiny_latte(condition="class"))
    with pytest.raises(ConfigError, match="samples from text"):
        jobs.make_jobs(SampleConfig(), tiny_t2v())


def test_constructor_arguments_from_the_command_line():
    found = settings(("num_heads=8", "input_size=32,40", "condition=class", "learn_sigma=False"))
    assert found == {"num_heads": 8, "input_size": [32, 40], "condition": "class", "learn_sigma": False}
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        settings(("num_heads",))


# ---------------------------------------------------------------------------------------------- as a user types it


def test_demo_from_another_folder(tmp_path):
    command = [
        sys.executable,
        "-m",
        "ms_latte.sample",
        "-c",
        "configs/inference/demo.yaml",
        "--sampling_steps",
        "3",
    ]
    done = subprocess.run(
        [*command, "--num_samples", "1", "--output_path", "run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "3"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "0000.gif").stat().st_size > 1000 and (
        tmp_path / "run/contact_sheet.png"
    ).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "run"
    ]  # MindSpore likes to leave folders behind
    assert "Traceback" not in done.stderr
