# SPDX-License-Identifier: Apache-2.0
"""`python -m parity generate`: both sides make the same video, another video is found, mistakes cost one line."""

import numpy as np
import pytest
from PIL import Image

from parity import generation

DEMO = ["-c", "configs/inference/demo.yaml", "--num_samples", "1", "--num_frames", "8"]


def test_the_demo_is_the_same_video_in_both_frameworks(tmp_path, capfd):
    kept = tmp_path / "kept"
    steps = ["--sampling_steps", "2", "--ddim_sampling", "False"]  # ancestral: the noise of the steps counts
    assert generation.main([*DEMO, *steps, "--keep", str(kept)]) == 0
    said = capfd.readouterr().out
    assert "ok: 1 samples" in said and "peak memory" in said
    assert len(list((kept / "0000").glob("*.png"))) == 8 and (kept / "0000.npy").is_file()


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
