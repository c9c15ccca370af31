# SPDX-License-Identifier: Apache-2.0
"""The training command in one process: files of a run, resuming to the bit, refusals in one line, initial weights."""

import contextlib
import errno
import json
import os
import signal

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors import safe_open

from ms_latte import checkpoint, random_models, train
from ms_latte.data.clips import Report
from ms_latte.models.latte import Latte
from ms_latte.training import build
from tests.helpers import normal
from tests.ms_latte.tiny import LATTE_T2V, fill

SIZE, FRAMES, BATCH = 16, 3, 2
CLIPS = 6  # three steps of an epoch
NET = ("depth=2", "hidden_size=48", "num_heads=3")
TIMES = ("seconds", "images_per_second", "waited")  # of a record: not the same in two runs


def make_clips(folder, count=CLIPS, frames=FRAMES + 1, seed=0):
    """Folders of random frames, one for each clip."""
    rng = np.random.default_rng(seed)
    for v in range(count):
        (folder / f"clip{v}").mkdir(parents=True)
        for f in range(frames):
            picture = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / f"clip{v}" / f"{f:03d}.png")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Clips, a VAE and a configuration, as files."""
    from ms_latte.encoders.vae import AutoencoderKL

    folder = tmp_path_factory.mktemp("train")
    make_clips(folder / "clips")
    vae = random_models.fill(AutoencoderKL(**random_models.VAE), np.random.default_rng(1))
    checkpoint.save(vae, folder / "vae.safetensors")
    config = dict(
        model_name="Latte-S/2",
        overrides=list(NET),
        data_folder=str(folder / "clips"),
        vae_checkpoint=str(folder / "vae.safetensors"),
        device_target="CPU",
        image_size=SIZE,
        num_frames=FRAMES,
        sample_stride=1,
        train_batch_size=BATCH,
        epochs=2,
        start_learning_rate=1e-3,
        ckpt_save_interval=1,
        num_parallel_workers=1,
    )
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return folder


def call(files, *words, config="tiny.yaml"):
    """Exit status of the command in this process (whose device is the CPU already)."""
    given = ("-c", files / config) if config else ()
    return train.main([str(word) for word in (*given, *words)])


def records(out):
    """The lines of log.jsonl without what a clock told."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def tensors(path):
    """name -> array of everything that a checkpoint holds."""
    found = {}
    for file in path.glob("*.safetensors"):
        with safe_open(file, "np") as opened:
            found |= {f"{file.name}:{name}": opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def assert_same_state(a, b):
    """Two checkpoints hold the same bits."""
    a, b = tensors(a), tensors(b)
    assert list(a) == list(b) and len(a) > 100
    assert [name for name in a if a[name].tobytes() != b[name].tobytes()] == []


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------- a run and its files


def test_files_of_a_run_and_its_table(files, tmp_path, capsys):
    out = tmp_path / "run"
    assert call(files, "--output_path", out, "--epochs", "3", "--ckpt_max_keep", "2") == 0
    assert names(out) == ["ckpt", "config.yaml", "log.jsonl"]
    assert names(out / "ckpt") == ["Latte-e2", "Latte-e3"]
    assert names(out / "ckpt" / "Latte-e3") == [
        "config.json", "diffusion_pytorch_model.safetensors", "state.safetensors"
    ]  # fmt: skip
    held = yaml.safe_load((out / "config.yaml").read_text())
    assert (held["dtype"], held["mode"], held["epochs"]) == ("fp32", 1, 3)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert [line["epoch"] for line in lines] == [0] * 3 + [1] * 3 + [2] * 3
    for line in lines:
        assert line["loss"] == pytest.approx(line["mse"] + line["vb"], rel=1e-6)  # one float32 rounding
        assert line["grad_norm"] > 0 and line["lr"] == pytest.approx(1e-3) and line["scale"] == 1
        assert line["images_per_second"] == pytest.approx(
            BATCH * FRAMES / line["seconds"], rel=1e-3
        )  # 3 decimals
        assert line["waited"] >= 0 and line["skipped"] is False
    shown = capsys.readouterr().out
    heads = (
        "model name | cards | image size | graph compile | batch size | num frames | recompute | dataset sink mode | "
        "embedding cache | jit level | per step time | train imgs/s"
    )
    table = [
        [part.strip() for part in line.strip("| ").split("|")]
        for line in shown.splitlines()
        if line[:1] == "|"
    ]
    assert " | ".join(table[0]) == heads
    assert table[2][:10] == ["Latte-S/2", "1", "16x16", "-", "2", "3", "OFF", "OFF", "OFF", "-"]
    assert "epoch 2 step 9/9" in shown and "peak memory" in shown and "waited" in shown


def test_a_checkpoint_is_sampled_from_as_it_is(files, tmp_path):
    from ms_latte import sample

    out = tmp_path / "run"
    assert call(files, "--output_path", out, "--max_train_steps", "2", "--ema_decay", "0.5") == 0
    path = out / "ckpt" / "Latte-s2"
    averaged, raw = (checkpoint.load(path, which=which) for which in ("ema", "model"))
    a, b = (model.final_layer.linear.weight.asnumpy() for model in (averaged, raw))
    assert np.abs(a).max() > 0 and np.abs(b).max() > 0 and not np.array_equal(a, b)
    assert averaged.config["depth"] == 2
    state = tensors(path)
    np.testing.assert_array_equal(
        a, state["diffusion_pytorch_model.safetensors:ema.final_layer.linear.weight"]
    )
    words = ("--checkpoint", path, "--vae_checkpoint", files / "vae.safetensors", "--device_target", "CPU")
    more = ("--image_size", SIZE, "--num_frames", FRAMES, "--sampling_steps", "2", "--num_samples", "1")
    assert sample.main([str(w) for w in (*words, *more, "--output_path", tmp_path / "samples")]) == 0
    assert (tmp_path / "samples" / "0000.gif").exists()


def test_sample_pictures_change_no_number(files, tmp_path):
    plain, drawn = tmp_path / "plain", tmp_path / "drawn"
    assert call(files, "--output_path", plain) == 0
    assert call(files, "--output_path", drawn, "--sample_every", "2", "--sample_steps", "2") == 0
    assert names(drawn / "samples") == [f"step-{n:07d}.png" for n in (2, 4, 6)]
    assert Image.open(drawn / "samples" / "step-0000006.png").size[0] > 3 * SIZE
    assert records(drawn) == records(plain)
    assert_same_state(drawn / "ckpt" / "Latte-e2", plain / "ckpt" / "Latte-e2")


def test_joint_images_and_classes(files, tmp_path):
    out = tmp_path / "run"
    words = (
        "--image_video_joint",
        "True",
        "--use_image_num",
        "2",
        "--condition",
        "class",
        "--num_classes",
        "3",
    )
    assert call(files, "--output_path", out, *words, "--max_train_steps", "2") == 0
    assert checkpoint.load(out / "ckpt" / "Latte-s2").config["num_classes"] == 3


def test_reading_numbers_less_often_loses_none(files, tmp_path):
    """Sink mode on a device without queues: the same steps, read together."""
    plain, sunk = tmp_path / "plain", tmp_path / "sunk"
    assert call(files, "--output_path", plain) == 0
    assert call(files, "--output_path", sunk, "--dataset_sink_mode", "True") == 0
    assert records(sunk) == records(plain)


def test_the_queue_of_a_device_gets_the_same_batches(files, tmp_path, monkeypatch):
    """`ms.data_sink` refuses the CPU; a stand-in takes batches off the dataset and calls the step, as it does."""
    import mindspore as ms

    from ms_latte.training import feeding

    def data_sink(fn, dataset, sink_size):
        rows = dataset.create_tuple_iterator(num_epochs=1)
        return lambda: fn(*next(rows))

    plain, queued = tmp_path / "plain", tmp_path / "queued"
    assert call(files, "--output_path", plain) == 0
    monkeypatch.setattr(ms, "data_sink", data_sink)
    monkeypatch.setattr(feeding, "Feeding", feeding.SunkFeeding)
    assert call(files, "--output_path", queued, "--dataset_sink_mode", "True") == 0
    assert records(queued) == records(plain)


# ------------------------------------------------------------------------------------------------- resuming

FULL = (
    "--dtype",
    "fp16",
    "--gradient_accumulation_steps",
    "2",
    "--init_loss_scale",
    "1024",
    "--scale_window",
    "2",
)


def test_a_resumed_run_equals_the_uninterrupted_one(files, tmp_path, capsys):
    """In half precision with a loss scale that grows, stopped between two micro steps of one update."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    schedule = ("--scheduler", "cosine_decay", "--decay_steps", "3", "--warmup_steps", "1")
    words = (*FULL, *schedule, "--epochs", "3", "--ckpt_every", "1")
    assert call(files, "--output_path", whole, *words) == 0
    assert {line["scale"] for line in records(whole)} == {1024, 2048, 4096}
    assert call(files, "--output_path", parts, *words, "--max_train_steps", "5") == 0
    assert records(parts) == records(whole)[:5]
    assert call(files, "--resume", parts, "--max_train_steps", "None", config=None) == 0
    assert "5 of 9 steps are done" in capsys.readouterr().out
    assert records(parts) == records(whole)
    assert_same_state(parts / "ckpt" / "Latte-s9", whole / "ckpt" / "Latte-s9")
    assert call(files, "--resume", "True", "--output_path", parts, *words) == 0
    assert "all 9 steps are done already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "damage"), [("state.safetensors", "cut"), ("diffusion_pytorch_model.safetensors", "altered")]
)
def test_a_damaged_checkpoint_is_left_for_the_one_before(files, tmp_path, capsys, name, damage):
    out, whole = tmp_path / "run", tmp_path / "whole"
    words = ("--ckpt_every", "2")
    assert call(files, "--output_path", whole, *words) == 0
    assert call(files, "--output_path", out, *words, "--max_train_steps", "4") == 0
    file = out / "ckpt" / "Latte-s4" / name
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data if damage == "altered" else data[: len(data) // 2])
    assert call(files, "--resume", out / "ckpt" / "Latte-s4") == 2
    assert "Latte-s4 is damaged" in capsys.readouterr().err
    assert call(files, "--output_path", out, *words, "--resume", "True") == 0
    shown = capsys.readouterr().out
    assert "Latte-s4 is damaged" in shown and "taking Latte-s2 instead" in shown
    assert records(out) == records(whole)
    assert_same_state(out / "ckpt" / "Latte-s6", whole / "ckpt" / "Latte-s6")


def test_another_run_is_not_resumed(files, tmp_path, capsys):
    out = tmp_path / "run"
    assert call(files, "--output_path", out, "--max_train_steps", "1") == 0
    before = tensors(out / "ckpt" / "Latte-s1")

    def refused(*words):
        assert call(files, "--output_path", out, "--resume", "True", *words) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        return line

    assert "optim_eps 1e-08 there, 1e-06 now" in refused("--optim_eps", "1e-6")
    assert "seed 3407 there, 5 now" in refused("--seed", "5")
    assert "overrides" in refused("--set", "depth=4", *NET[1:])
    more = make_clips(tmp_path / "more", CLIPS + 2)
    assert "data clips 6 there, 8 now" in refused("--data_folder", more)
    from ms_latte.encoders.vae import AutoencoderKL

    other = random_models.fill(AutoencoderKL(**random_models.VAE), np.random.default_rng(2))
    checkpoint.save(other, tmp_path / "other.safetensors")
    assert "vae " in refused("--vae_checkpoint", tmp_path / "other.safetensors")
    assert "train_batch_size 2 there, 3 now" in refused("--train_batch_size", "3")
    assert tensors(out / "ckpt" / "Latte-s1").keys() == before.keys()
    # what does not touch the numbers may change
    free = ("--epochs", "1", "--log_interval", "2", "--num_parallel_workers", "2", "--ckpt_max_keep", "1")
    assert call(files, "--output_path", out, "--resume", "True", *free) == 0
    assert names(out / "ckpt") == ["Latte-e1"]


def test_a_branch_begins_in_another_folder(files, tmp_path, capsys):
    out, branch = tmp_path / "run", tmp_path / "branch"
    assert call(files, "--output_path", out, "--ckpt_every", "2") == 0
    old = out / "ckpt" / "Latte-s2"
    assert call(files, "--resume", old, "--output_path", out) == 2
    assert "later checkpoints" in capsys.readouterr().err
    assert call(files, "--resume", old, "--output_path", branch, "--ckpt_every", "2") == 0
    assert [line["step"] for line in records(branch)] == [3, 4, 5, 6]
    assert_same_state(branch / "ckpt" / "Latte-s6", out / "ckpt" / "Latte-s6")


def test_resume_true_without_a_run_begins_one(files, tmp_path, capsys):
    words = ("--output_path", tmp_path / "run", "--resume", "True", "--max_train_steps", "1")
    assert call(files, *words) == 0
    assert "nothing to resume" in capsys.readouterr().out
    assert call(files, *words) == 0
    assert "done already" in capsys.readouterr().out


@pytest.mark.parametrize(("one", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_tells_how_to_resume(files, tmp_path, capsys, monkeypatch, one, status):
    from ms_latte.training.log import TrainingLog

    whole, out, step = tmp_path / "whole", tmp_path / "run", TrainingLog.step
    assert call(files, "--output_path", whole) == 0

    def step_and_signal(self, record):
        step(self, record)
        if record["step"] == 2:
            os.kill(os.getpid(), one)

    monkeypatch.setattr(TrainingLog, "step", step_and_signal)
    assert call(files, "--output_path", out) == status
    shown = capsys.readouterr()
    assert "2 of 6 steps are done" in shown.err and f"--output_path {out} --resume True" in shown.err
    assert names(out / "ckpt") == ["Latte-s2"]
    monkeypatch.setattr(TrainingLog, "step", step)
    assert call(files, "--output_path", out, "--resume", "True") == 0
    assert records(out) == records(whole)
    assert_same_state(out / "ckpt" / "Latte-e2", whole / "ckpt" / "Latte-e2")


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_a_loss_that_is_no_number_names_the_clips(files, tmp_path, capsys):
    out = tmp_path / "run"
    assert call(files, "--output_path", out, "--start_learning_rate", "1e30", "--ckpt_every", "1") == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "loss nan" in line and "remedy" in line
    last = records(out)[-1]
    assert not np.isfinite(last["loss"]) and f"step {last['step']} " in line
    assert f"Latte-s{last['step'] - 1}" in line  # the last good one
    asked = line.split("whose clips are ")[1].split(";")[0]
    assert len(asked.split(", ")) == BATCH and "'clip" in asked
    for value in tensors(out / "ckpt" / f"Latte-s{last['step'] - 1}").values():
        assert np.isfinite(value).all()


def test_overflows_are_dropped_and_counted(files, tmp_path, capsys):
    out = tmp_path / "run"
    # gradients scaled by 2**26 are infinite in float16, by 2**16 they are not
    words = ("--dtype", "fp16", "--init_loss_scale", 2**26, "--max_overflows", "3")
    assert call(files, "--output_path", out, *words, "--loss_scale_factor", "1024", "--epochs", "1") == 0
    held = records(out)
    assert [line["skipped"] for line in held] == [True, False, False]
    assert [line["scale"] for line in held] == [2**26, 2**16, 2**16]
    assert "overflow, dropped" in capsys.readouterr().out
    static = ("--loss_scaler_type", "static", "--output_path", tmp_path / "static")
    assert call(files, *words, *static) == 2
    assert [line["skipped"] for line in records(tmp_path / "static")] == [True] * 3
    assert "step 3 " in capsys.readouterr().err


def test_a_full_disk_leaves_older_checkpoints(files, tmp_path, capsys, monkeypatch):
    out, pwrite = tmp_path / "run", os.pwrite
    assert call(files, "--output_path", out, "--max_train_steps", "2", "--ckpt_every", "2") == 0
    before = tensors(out / "ckpt" / "Latte-s2")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    words = ("--output_path", out, "--resume", "True", "--ckpt_every", "2")
    assert call(files, *words) == 2
    line = capsys.readouterr().err
    assert "No space left on device" in line and "Latte-s4" in line and "intact" in line
    assert names(out / "ckpt") == ["Latte-s2"]
    assert {name: value.tobytes() for name, value in tensors(out / "ckpt" / "Latte-s2").items()} == {
        name: value.tobytes() for name, value in before.items()
    }
    monkeypatch.setattr(os, "pwrite", pwrite)
    assert call(files, *words) == 0
    assert [line["step"] for line in records(out)] == [1, 2, 3, 4, 5, 6]


def test_curves_for_tensorboard(files, tmp_path, capsys, monkeypatch):
    pytest.importorskip("tensorboardX")
    out = tmp_path / "run"
    assert call(files, "--output_path", out, "--max_train_steps", "1", "--tensorboard", "True") == 0
    assert b"train/grad_norm" in next((out / "tensorboard").iterdir()).read_bytes()
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    assert (
        call(files, "--output_path", tmp_path / "b", "--max_train_steps", "1", "--tensorboard", "True") == 2
    )
    assert "tensorboardX>=2.6.2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--data_folder", "absent"), "absent"),
        (("--vae_checkpoint", "absent"), "--vae_checkpoint absent does not exist"),
        (("--vae_checkpoint", "None"), "--vae_checkpoint is missing"),
        (("--model_name", "Latte-M/2"), "Latte-XL/2"),
        (("--set", "depht=2"), "depht"),
        (("--image_size", "20"), "multiples of 8"),
        (("--start_learning_rte", "1"), "did you mean start_learning_rate?"),
        (("--use_parallel", "True"), "msrun"),
        (("--resume", "absent"), "absent"),
        (("--pretrained_model_path", "absent"), "absent"),
        (("--train_batch_size", "7"), "6 samples"),
        (("--num_frames", "9"), "4 frames"),
        (("--enable_flash_attention", "True"), "Ascend"),
        (("--condition", "text"), "text"),
    ],
)
def test_mistakes_take_one_line(files, tmp_path, capsys, words, told):
    out = tmp_path / "run"
    assert call(files, "--output_path", out, *words) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and told in line
    assert not out.exists()


def test_nothing_is_overwritten(files, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert call(files, "--output_path", tmp_path) == 2
    assert "notes.txt" in capsys.readouterr().err
    from ms_latte.config import ConfigError
    from ms_latte.training.folder import RunFolder

    with RunFolder(tmp_path / "held"), pytest.raises(ConfigError, match="another process"):
        RunFolder(tmp_path / "held", resumed=True).__enter__()


# ------------------------------------------------------------------------------------------------- initial weights


def weights(path, which="ema"):
    return {
        name: value.asnumpy() for name, value in checkpoint.load(path, which=which).parameters_and_names()
    }


def test_it_starts_from_any_checkpoint(files, tmp_path, capsys):
    """An unconditional net, for a net by class of more frames: what is new begins anew, and is told."""
    old = fill(Latte(input_size=2, depth=2, hidden_size=48, num_heads=3, num_frames=2))
    checkpoint.save(old, tmp_path / "old.pt")
    out = tmp_path / "run"
    words = ("--pretrained_model_path", tmp_path / "old.pt", "--condition", "class", "--num_classes", "5")
    assert (
        call(files, "--output_path", out, *words, "--max_train_steps", "1", "--start_learning_rate", "1e-12")
        == 0
    )
    shown = capsys.readouterr().out
    assert (
        "begins anew with temp_embed, y_embedder.embedding_table.weight" in shown
        and "left temp_embed" in shown
    )
    got, held = weights(out / "ckpt" / "Latte-s1", "model"), dict(old.parameters_and_names())
    name = "blocks.1.mlp.fc1.weight"
    np.testing.assert_allclose(got[name], held[name].asnumpy(), atol=1e-10)  # one update at a rate of 1e-12
    assert got["temp_embed"].shape[1] == FRAMES
    other = tmp_path / "wide.pt"
    checkpoint.save(fill(Latte(input_size=2, depth=2, hidden_size=96, num_heads=3, num_frames=2)), other)
    words = ("--pretrained_model_path", other, "--output_path", tmp_path / "b", "--set", *NET)
    assert call(files, *words) == 2
    assert "another net" in capsys.readouterr().err


def test_it_starts_from_imagenet_weights(files, tmp_path, capsys):
    """DiT's names minus temp_embed plus 1001 labels: blocks are taken one to one, labels are not."""
    dit = Latte(input_size=2, depth=2, hidden_size=48, num_heads=3, num_frames=2, condition="class")
    checkpoint.save(fill(dit), tmp_path / "whole.safetensors")
    from safetensors.numpy import load_file, save_file

    held = load_file(tmp_path / "whole.safetensors")
    held.pop("temp_embed")
    assert held["y_embedder.embedding_table.weight"].shape == (1001, 48)
    save_file(held, tmp_path / "DiT.safetensors")
    out = tmp_path / "run"
    words = (
        "--pretrained_model_path",
        tmp_path / "DiT.safetensors",
        "--set",
        *NET,
        "--start_learning_rate",
        "1e-12",
    )
    assert call(files, "--output_path", out, *words, "--max_train_steps", "1") == 0
    shown = capsys.readouterr().out
    assert "dit-imagenet" in shown and "the labels of ImageNet" in shown and "temp_embed" in shown
    got = weights(out / "ckpt" / "Latte-s1", "model")
    np.testing.assert_allclose(got["blocks.1.attn.qkv.weight"], held["blocks.1.attn.qkv.weight"], atol=1e-10)
    assert got["temp_embed"].shape == (1, FRAMES, 48) and "y_embedder.embedding_table.weight" not in got


# ------------------------------------------------------------------------------------------------- cached latents


@pytest.mark.parametrize("kind", ["numpy", "mindrecord"])
def test_a_cache_gives_the_losses_of_the_frames(files, tmp_path, capsys, kind):
    """The same clips, crops, posterior samples, noise and timesteps, without the VAE in the loop."""
    from ms_latte import cache

    words = ("-c", files / "tiny.yaml", "--cache_folder", tmp_path / "cache", "--cache_file_type", kind)
    assert cache.main([str(word) for word in words]) == 0
    plain, cached = tmp_path / "plain", tmp_path / "cached"
    assert call(files, "--output_path", plain, "--epochs", "1") == 0
    words = ("--data_folder", tmp_path / "cache", "--train_data_type", kind, "--epochs", "1")
    assert call(files, "--output_path", cached, *words, "--vae_checkpoint", "None") == 0
    assert "| ON " in capsys.readouterr().out  # embedding cache
    for a, b in zip(records(plain), records(cached), strict=True):
        # the same float32 convolutions on other numbers of frames at a time
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5) and b["epoch"] == a["epoch"]
    from ms_latte.encoders.vae import AutoencoderKL

    other = random_models.fill(AutoencoderKL(**random_models.VAE), np.random.default_rng(2))
    checkpoint.save(other, tmp_path / "other.safetensors")
    words = (*words, "--vae_checkpoint", tmp_path / "other.safetensors")
    assert call(files, "--output_path", tmp_path / "c", *words) == 2
    assert "another VAE" in capsys.readouterr().err


def test_recomputation_changes_no_loss(files, tmp_path):
    plain, again = tmp_path / "plain", tmp_path / "again"
    assert call(files, "--output_path", plain, "--epochs", "1") == 0
    assert call(files, "--output_path", again, "--epochs", "1", "--use_recompute", "True") == 0
    assert records(again) == records(plain)


class Captioned:
    """Eight clips of cached latents with T5 features."""

    scaling_factor, latent_shape, report = 0.2, (FRAMES, 4, 2, 2), Report()

    def __len__(self):
        return 8

    def name(self, index):
        return f"clip{index}"

    def identity(self):
        return {"kind": "captioned"}

    def get(self, index, rng):
        shape = self.latent_shape
        return {
            "mean": normal(*shape, seed=index),
            "logvar": normal(*shape, seed=index + 50) - 3,
            "label": np.int32(0),
            "caption": f"caption {index}",
            "text": normal(7, 20, seed=index + 100),
            "text_mask": np.array([1] * (1 + index % 7) + [0] * (6 - index % 7), np.int32),
        }


def test_text_to_video_from_cached_features(files, tmp_path, capsys, monkeypatch):
    """LatteT2V with dropped captions, and without the features that they become."""
    from ms_latte.encoders.text_cache import TextCache, save_text_cache

    monkeypatch.setattr(build, "make_dataset", lambda config, vae=None: Captioned())
    empty = TextCache(("",), normal(1, 7, 20, seed=9), np.array([[1] + [0] * 6]), "test")
    save_text_cache(tmp_path / "empty.safetensors", empty)
    sizes = {**LATTE_T2V, "num_layers": 1}
    net = [f"{k}={v}" for k, v in sizes.items() if k not in ("sample_size", "video_length")]
    words = ("--model_name", "LatteT2V", "--condition", "text", "--set", *net, "--class_dropout_prob", "0.5")
    words = (*words, "--train_data_type", "numpy", "--max_train_steps", "2", "--sample_every", "2")
    assert call(files, "--output_path", tmp_path / "a", *words) == 2
    assert "--embeddings" in capsys.readouterr().err
    words = (*words, "--embeddings", tmp_path / "empty.safetensors", "--sample_steps", "1")
    assert call(files, "--output_path", tmp_path / "b", *words) == 0
    assert len(records(tmp_path / "b")) == 2 and names(tmp_path / "b" / "samples")
    assert names(tmp_path / "b" / "ckpt") == ["LatteT2V-s2"]
    with contextlib.suppress(KeyError):
        assert checkpoint.load(tmp_path / "b" / "ckpt" / "LatteT2V-s2").config["caption_channels"] == 20
