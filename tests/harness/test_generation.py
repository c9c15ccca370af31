# SPDX-License-Identifier: Apache-2.0
"""`python -m parity generate`: both sides make the same video, another video is found, mistakes cost one line."""

import numpy as np
import pytest
from PIL import Image

from ms_latte import checkpoint
from ms_latte.encoders.text_cache import TextCache, save_text_cache
from ms_latte.encoders.vae import AutoencoderKL
from ms_latte.models.latte_t2v import LatteT2V
from ms_latte.random_models import VAE, fill
from parity import generation
from parity.harness import generation_mindspore_side as side

DEMO = ["-c", "configs/inference/demo.yaml", "--num_samples", "1", "--num_frames", "8"]


def test_the_demo_is_the_same_video_in_both_frameworks(tmp_path, capfd):
    kept = tmp_path / "kept"
    steps = ["--sampling_steps", "2", "--ddim_sampling", "False"]  # ancestral: the noise of the steps counts
    assert generation.main([*DEMO, *steps, "--keep", str(kept)]) == 0
    said = capfd.readouterr().out
    assert "ok: 1 samples" in said and "peak memory" in said
    assert len(list((kept / "0000").glob("*.png"))) == 8 and (kept / "0000.npy").is_file()


def test_a_video_from_text_features_is_the_same_in_both_frameworks(tmp_path, capfd):
    pipeline = text_pipeline(tmp_path / "pipeline")
    options = ["--checkpoint", pipeline, "--embeddings", pipeline / "text.safetensors", "--prompts", "a dog"]
    sizes = ["--image_size", "32", "--num_frames", "2", "--sampling_steps", "3", "--device_target", "CPU"]
    words = [*map(str, options), *sizes]
    assert generation.main(["-c", "configs/inference/t2v.yaml", *words]) == 0
    assert "ok: 1 samples" in capfd.readouterr().out


def test_texts_are_kept_for_torch_where_the_port_encodes_them():
    base = ["-c", "configs/inference/t2v.yaml"]  # which has a prompt
    encodes = lambda *words: side.encodes(side.configuration([*base, *words]))  # noqa: E731
    assert encodes() and encodes("--prompt_file", "prompts.txt")
    assert not encodes("--embeddings", "text.safetensors") and not side.encodes(side.configuration(DEMO))
    assert side.configuration(["--no_such_key", "1"]) is None


def test_random_weights_serve_a_published_recipe(tmp_path):
    words = ["-c", "configs/inference/ucf101.yaml", "--model_name", "Latte-S/8", "--image_size", "64"]
    added = generation.prepared(words, tmp_path, random_weights=True)
    assert added[::2] == ["--checkpoint", "--vae_checkpoint"]
    net = checkpoint.load(added[1])
    assert (net.config["num_classes"], net.config["input_size"]) == (101, [8, 8])


def test_random_weights_of_another_model_are_refused(tmp_path, capfd):
    assert generation.main(["-c", "configs/inference/t2v.yaml", "--random-weights"]) == 2
    said = capfd.readouterr().err
    assert "got model_name LatteT2V; expected one of Latte-XL/2" in said and "Traceback" not in said


def text_pipeline(folder):
    """A small LatteT2V, the demo's VAE and features of two prompts, in a pipeline's folder."""
    rng = np.random.default_rng(7)
    net = LatteT2V(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=24,
        sample_size=4,
        patch_size=2,
        activation_fn="gelu-approximate",
        caption_channels=16,
        video_length=2,
    )
    folder.mkdir()
    checkpoint.save(fill(net, rng), folder / "transformer", folder=True)
    checkpoint.save(fill(AutoencoderKL(**VAE), rng), folder / "vae", folder=True)
    features = rng.standard_normal((2, 6, 16)).astype(np.float32)
    masks = np.array([[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    save_text_cache(folder / "text.safetensors", TextCache(("a dog", ""), features, masks, "random"))
    return folder


@pytest.fixture
def videos(tmp_path):
    """A video of two frames in the files of both sides."""
    rng = np.random.default_rng(5)
    frames = rng.integers(1, 254, (2, 4, 6, 3), dtype=np.uint8)
    latents = rng.standard_normal((2, 4, 1, 1)).astype(np.float32)
    ours, theirs = tmp_path / "port", tmp_path / "torch"
    (ours / "0000").mkdir(parents=True)
    theirs.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(ours / "0000" / f"{i:03d}.png")
    np.save(ours / "0000.npy", latents)

    def compare(**changes):
        np.savez(theirs / "0000.npz", **{"latents": latents, "frames": frames, **changes})
        (sample,) = generation.compare(ours, theirs)
        return sample

    return compare, latents, frames


def test_one_byte_step_is_rounding_and_two_are_not(videos):
    compare, latents, frames = videos
    same = compare()
    assert (same.worst, same.share, same.difference, same.passed) == (0, 0.0, 0.0, True)
    near, far = frames.copy(), frames.copy()
    near[0, 0, 0, 0] += 1
    far[1, 3, 5, 2] -= 2
    assert compare(frames=near).passed and compare(frames=near).worst == 1
    assert not compare(frames=far).passed and compare(frames=far).worst == 2
    assert not compare(frames=frames[::-1]).passed
    assert not compare(latents=latents * np.nan).passed


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "expected options of ms_latte.sample"), (["--output_path", "x"], "--keep DIR keeps")],
)
def test_mistakes_cost_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        generation.main(words)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_port_that_does_not_run_is_no_verdict(tmp_path, capfd):
    missing = ["--checkpoint", str(tmp_path / "absent.pt"), "--device_target", "CPU"]
    assert generation.main(["-c", "configs/inference/sky.yaml", *missing]) == 2
    said = capfd.readouterr()
    assert "port: " in said.out and "exit status 2" in said.out
    assert said.err.startswith("error: ") and "Traceback" not in said.err
