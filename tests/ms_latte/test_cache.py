# SPDX-License-Identifier: Apache-2.0
"""The command: videos in, `LatentDataset` out, bit for bit as encoded directly; refusals; killed and continued."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import yaml
from PIL import Image

from ms_latte import cache, checkpoint
from ms_latte.cache_config import CacheConfig
from ms_latte.config import ConfigError, build
from ms_latte.data.clips import ClipDataset
from ms_latte.data.latent_files import hash_of, read_array
from ms_latte.data.latent_store import places_of, read_facts, read_manifest
from ms_latte.data.latents import LatentDataset
from ms_latte.encoders.text_cache import TextCache, save_text_cache
from ms_latte.encoders.vae import AutoencoderKL
from tests.helpers import normal
from tests.ms_latte.tiny import fill

ROOT = Path(__file__).parents[2]
FRAMES = {"day/1": 7, "day/2": 3, "night/1": 9, "night/10": 6}  # clip -> frames
SIZE = (8, 12)
VAE = dict(block_out_channels=[8, 8, 16], layers_per_block=1, norm_num_groups=4)  # a factor of 4


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Frame folders, a table with captions, its text features, a VAE and another one."""
    folder = tmp_path_factory.mktemp("cache")
    rng = np.random.default_rng(3)
    for name, count in FRAMES.items():
        (folder / "clips" / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (10, 15, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "clips" / name / f"{i}.png")
    rows = [f"{name},{'dawn' if name < 'e' else 'dusk'},{i}" for i, name in enumerate(FRAMES)]
    (folder / "clips.csv").write_text("\n".join(["video,caption,class", *rows]))
    masks = np.array([[1, 1, 0, 0], [1, 1, 1, 0]])
    save_text_cache(
        folder / "text.safetensors", TextCache(("dawn", "dusk"), normal(2, 4, 5), masks, "tiny", "ef")
    )
    for seed, name in ((1, "vae"), (2, "other")):
        checkpoint.save(fill(AutoencoderKL(**VAE), seed), folder / f"{name}.safetensors")
    return folder


def words(home, out, *more):
    values = {"data_folder": home / "clips", "vae_checkpoint": home / "vae.safetensors", "cache_folder": out}
    values |= {"image_size": "8,12", "device_target": "CPU"}
    return [str(word) for key, value in values.items() for word in (f"--{key}", value)] + [
        str(w) for w in more
    ]


def call(home, out, *more):
    """Exit status of the command in this process."""
    return cache.main(words(home, out, *more))


def hashes(out):
    """name -> hash of the numbers of every array, read again."""
    finished = read_manifest(out)[0]
    return {name: [hash_of(read_array(out, p)) for p in places_of(line)] for name, line in finished.items()}


@pytest.fixture(scope="module")
def mirrored(home, tmp_path_factory):
    """A cache with both versions of every frame."""
    out = tmp_path_factory.mktemp("mirrored")
    assert call(home, out, "--random_flip", "True", "--vae_chunk", "4") == 0
    return out


def test_latents_are_those_of_the_frames_encoded_directly(home, mirrored):
    vae, latents = checkpoint.load(home / "vae.safetensors"), LatentDataset(mirrored, 3, verify=True)
    clips = ClipDataset.from_folder(home / "clips", 3, SIZE)
    for i, (name, count) in enumerate(FRAMES.items()):
        assert latents.name(i) == name
        frames = clips.pixels(i, range(count))
        for version, x in enumerate((frames, frames[..., ::-1])):
            found = latents.moments(i, range(count), version)
            direct = [vae.encode(ms.Tensor(np.ascontiguousarray(x[k : k + 4]))) for k in range(0, count, 4)]
            for got, parts in zip(found, zip(*direct, strict=True), strict=True):
                np.testing.assert_array_equal(got, np.concatenate([part.asnumpy() for part in parts]))


def test_mindrecord_gives_the_same_samples(home, mirrored, tmp_path, capsys):
    more = ("--cache_file_type", "mindrecord", "--dump_every_n_lines", "3")
    assert call(home, tmp_path, *more, "--random_flip", "True", "--vae_chunk", "4") == 0
    shown = capsys.readouterr()
    assert "tried 4, saved 4, failed 0; 4 videos" in shown.out
    assert "video 4/4 night/10" in shown.err and "25/25 frames" in shown.err and "frames/s" in shown.err
    assert hashes(tmp_path) == hashes(mirrored)
    settings = dict(flip=True, use_image_num=1)
    packed, plain = LatentDataset(tmp_path, 3, **settings), LatentDataset(mirrored, 3, **settings)
    for i in range(4):
        a, b = (latents.get(i, np.random.default_rng(i)) for latents in (packed, plain))
        assert a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
    assert packed.identity() == plain.identity()


@pytest.mark.parametrize("own", [False, True], ids=["images_of_others", "images_of_it"])
@pytest.mark.parametrize("sampling", ["exact", "linspace"])
def test_a_generator_draws_the_same_clip_with_and_without_a_cache(home, mirrored, own, sampling):
    settings = dict(stride=2, flip=True, use_image_num=2, use_img_from_vid=own, sampling=sampling)
    latents = LatentDataset(mirrored, 3, image_size=SIZE, **settings)
    clips = ClipDataset.from_folder(home / "clips", 3, SIZE, **settings)
    vae = checkpoint.load(home / "vae.safetensors")
    assert len(latents) == len(clips) == 3  # day/2 is too short for this stride
    assert "1 clip skipped\n  day/2:" in latents.report.summary()
    assert latents.latent_shape == (5, 4, 2, 3) and latents.scaling_factor == vae.scaling_factor
    for seed in range(4):
        found = latents.get(seed % 3, np.random.default_rng(seed))
        sample = clips.get(seed % 3, np.random.default_rng(seed))
        for key, direct in zip(("mean", "logvar"), vae.encode(ms.Tensor(sample["pixels"])), strict=True):
            # Float32 sums of some hundred terms in another order (5 pictures at once, not 4): a few times 1e-7.
            np.testing.assert_allclose(found[key], direct.asnumpy(), rtol=0, atol=1e-5)
            assert found[key].dtype == np.float32
        np.testing.assert_array_equal(found["image_labels"], sample["image_labels"])
    assert latents.identity() == LatentDataset(mirrored, 3, **settings).identity()
    assert latents.identity() != LatentDataset(mirrored, 2, **settings).identity()


def test_captions_classes_and_half_precision(home, tmp_path):
    more = (
        "--csv_path",
        home / "clips.csv",
        "--condition",
        "text",
        "--embeddings",
        home / "text.safetensors",
    )
    assert call(home, tmp_path, *more, "--save_data_type", "float16") == 0
    latents = LatentDataset(tmp_path, 3, with_text=True)
    sample = latents.get(3, np.random.default_rng(0))
    assert (int(sample["label"]), sample["caption"]) == (3, "dusk")
    np.testing.assert_array_equal(sample["text"], normal(2, 4, 5)[1].astype(np.float16).astype(np.float32))
    assert sample["text_mask"].tolist() == [1, 1, 1, 0]
    whole = LatentDataset(_other(home, tmp_path), 3).get(3, np.random.default_rng(0))
    assert sample["mean"].dtype == np.float32
    np.testing.assert_array_equal(sample["mean"], whole["mean"].astype(np.float16).astype(np.float32))


def _other(home, tmp_path):
    assert call(home, tmp_path / "float32", "--csv_path", home / "clips.csv") == 0
    return tmp_path / "float32"


def test_a_training_configuration_serves(home, tmp_path):
    told = dict(image_size=[8, 12], data_path=str(home / "clips"), vae=str(home / "vae.safetensors"))
    told |= dict(num_frames=3, learning_rate=1e-4, use_ema=True, sample_stride=2, train_batch_size=2)
    (tmp_path / "sky.yaml").write_text(yaml.safe_dump(told))
    arguments = ["-c", tmp_path / "sky.yaml", "--cache_folder", tmp_path / "out", "--device_target", "CPU"]
    assert cache.main([str(word) for word in arguments]) == 0
    assert read_facts(tmp_path / "out")["image_size"] == [8, 12]
    (tmp_path / "typo.yaml").write_text("lerning_rate: 1\n")
    with pytest.raises(ConfigError, match=r"typo.yaml:1: unknown key lerning_rate"):
        build(CacheConfig, tmp_path / "typo.yaml", {"cache_folder": "x"})


def test_shipped_training_configurations_are_taken():
    shipped = sorted((ROOT / "ms_latte" / "configs" / "training").glob("*.yaml"))
    assert len(shipped) > 4
    for path in shipped:
        told = {"cache_folder": "x", "data_folder": "y", "embeddings": "z", "device_target": "CPU"}
        assert build(CacheConfig, path, told).data_folder == "y"


def test_what_is_there_is_not_made_again(home, tmp_path, capsys):
    assert call(home, tmp_path, "--resume_cache_index", "2") == 0
    assert "began at video 2 of 4; tried 2, saved 2, failed 0" in capsys.readouterr().out
    assert list(read_manifest(tmp_path)[0]) == ["night/1", "night/10"]
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "latents").iterdir()}
    latents = LatentDataset(tmp_path, 3)
    assert "day/1: not cached yet; remedy: repeat python -m ms_latte.cache" in latents.report.summary()
    assert call(home, tmp_path) == 0
    assert "tried 2, saved 2, failed 0; 4 videos" in capsys.readouterr().out
    assert [clip.name for clip in LatentDataset(tmp_path, 3).clips] == list(FRAMES)  # in the order of the set
    assert all(file.stat().st_mtime_ns == at for file, at in before.items())
    assert call(home, tmp_path) == 0 and "tried 0" in capsys.readouterr().out
    assert call(home, tmp_path, "--resume_cache_index", "4") == 2
    assert "expected 0 to 3" in capsys.readouterr().err


def test_bad_clips_are_named_and_counted(home, tmp_path, capsys):
    clips = tmp_path / "clips"
    for name in ("a", "b"):
        (clips / name).mkdir(parents=True)
        Image.new("RGB", (12, 8)).save(clips / name / "0.png")
        Image.new("RGB", (12, 8)).save(clips / name / "1.png")
    whole = (clips / "a" / "1.png").read_bytes()
    (clips / "a" / "1.png").write_bytes(whole[:40])
    out = tmp_path / "out"
    assert call(home, out, "--data_folder", clips) == 0
    shown = capsys.readouterr()
    assert "tried 2, saved 1, failed 1" in shown.out and f"failed a: {clips / 'a' / '1.png'}" in shown.out
    assert [clip.name for clip in LatentDataset(out, 1).clips] == ["b"]
    with pytest.raises(ValueError, match=r"a clip cannot be used: 1 clip skipped\n  a: .*1\.png"):
        LatentDataset(out, 1, policy="fail")
    assert call(home, tmp_path / "strict", "--data_folder", clips, "--bad_clips", "fail") == 2
    assert "error: video a cannot be cached" in capsys.readouterr().err
    (clips / "a" / "1.png").write_bytes(whole)
    assert call(home, out, "--data_folder", clips) == 0
    assert "tried 1, saved 1, failed 0; 2 videos" in capsys.readouterr().out


def test_another_vae_size_or_set_is_refused_and_named(home, tmp_path, capsys):
    assert call(home, tmp_path) == 0
    before, made = hashes(tmp_path), read_facts(tmp_path)["vae"]["sha256"]
    other = checkpoint.weights_hash(checkpoint.load(home / "other.safetensors"))
    refusals = [
        (("--vae_checkpoint", home / "other.safetensors"), f"vae.sha256 '{made}' there, '{other}' now"),
        (("--image_size", "12,8"), "image_size [8, 12] there, [12, 8] now"),
        (("--cache_file_type", "mindrecord"), "cache_file_type 'numpy' there, 'mindrecord' now"),
        (("--data_folder", home / "clips" / "day"), "another data set: day/1 is not in the data now"),
        (("--csv_path", home / "clips.csv"), "caption of day/1: '' there, 'dawn' now"),
    ]
    for more, message in refusals:
        assert call(home, tmp_path, *more) == 2
        assert message in capsys.readouterr().err
    assert hashes(tmp_path) == before
    with pytest.raises(
        ConfigError, match=f"by another VAE: AutoencoderKL with the hash .*, the run's has {other}"
    ):
        LatentDataset(tmp_path, 3, vae_hash=other)
    LatentDataset(tmp_path, 3, vae_hash=checkpoint.weights_hash(checkpoint.load(home / "vae.safetensors")))
    with pytest.raises(ConfigError, match=r"for image_size \(8, 12\), the run has \(256, 256\)"):
        LatentDataset(tmp_path, 3, image_size=(256, 256))
    assert call(home, tmp_path / "again", "--data_folder", tmp_path) == 2
    assert f"--data_folder {tmp_path} is a cache of latents itself" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="without mirrored frames"):
        LatentDataset(tmp_path, 3, flip=True)
    with pytest.raises(ConfigError, match="without features of the captions"):
        LatentDataset(tmp_path, 3, with_text=True)


def test_a_damaged_cache_is_found_when_it_is_loaded(home, tmp_path):
    assert call(home, tmp_path) == 0
    latents, file = LatentDataset(tmp_path, 3), tmp_path / "latents" / "000002.npy"
    data = file.read_bytes()
    file.write_bytes(data[:-4])
    message = r"000002\.npy has \d+ bytes, \d+ were written; remedy: copy the cache again, or repeat"
    with pytest.raises(ConfigError, match=message):
        LatentDataset(tmp_path, 3)
    with pytest.raises(ConfigError, match=message):  # also while training
        latents.get(2, np.random.default_rng(0))
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ConfigError, match="other numbers than were written"):
        LatentDataset(tmp_path, 3, verify=True)
    file.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        LatentDataset(tmp_path, 3)
    assert call(home, tmp_path) == 0  # made again
    assert file.name and hashes(tmp_path) and len(LatentDataset(tmp_path, 3, verify=True)) == 4
    with pytest.raises(ConfigError, match="holds no latent cache"):
        LatentDataset(home / "clips", 3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--cache_file_type", "mindrecord", "--save_data_type", "float16"),
            "float16 is no type of MindRecord",
        ),
        (("--max_page_size", "32"), "input should be 64, 128 or 256"),
        (("--condition", "text"), "text_encoder is missing"),
        (("--epochs", "3"), "--epochs: unknown key"),
        (("--image_size", "10"), "expected multiples of 4"),
        (("--cachefolder", "x"), "did you mean cache_folder?"),
        (("--vae_checkpoint", "nowhere"), "--vae_checkpoint nowhere does not exist"),
        (("--data_folder", "nowhere"), "--data_folder nowhere does not exist"),
        (("--device_target", "GPU"), "expected CPU or Ascend"),
    ],
)
def test_mistakes_are_one_line(home, tmp_path, capsys, more, message):
    assert call(home, tmp_path / "out", *more) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["numpy", "mindrecord"])
def test_the_command_killed_at_random_loses_and_repeats_nothing(home, tmp_path, kind):
    more = ("--cache_file_type", kind, "--max_file_size", 5e-6)  # a few videos a MindRecord file
    assert call(home, tmp_path / "whole", *more) == 0
    expected, out, rng = hashes(tmp_path / "whole"), tmp_path / "out", random.Random(5)
    command = [sys.executable, "-m", "ms_latte.cache", *words(home, out, *more)]
    for kills in range(2):
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "GLOG_v": "3"}, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and _lines(out) <= kills:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # and not finished before
        kept = hashes(out)
        assert kept and kept == {name: expected[name] for name in kept}
    assert call(home, out, *more) == 0
    assert hashes(out) == expected
    lines = [json.loads(line) for line in (out / "videos.jsonl").read_text().splitlines()]
    names = [line["name"] for line in lines if "name" in line]
    assert sorted(names) == sorted(FRAMES)  # each made once
    for file in (tmp_path / "whole").rglob("*.*"):
        if file.suffix in (".npy", ".mindrecord", ".json"):
            assert (out / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes()
    assert not list(out.rglob(".*"))


def _lines(out):
    place = out / "videos.jsonl"
    return place.read_bytes().count(b'"moments"') if place.exists() else 0
