# SPDX-License-Identifier: Apache-2.0
"""Frames to bytes and files: the originals' rounding, every form read back, nothing overwritten or half written."""

import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from ms_latte import video_io
from ms_latte.video_io import VideoError


def frames(count=5, height=16, width=24):
    """Flat areas that change from frame to frame, so that lossy forms keep them."""
    video = np.zeros((count, height, width, 3), np.uint8)
    for i in range(count):
        video[i, :, : width // 2] = (40 * i + 20, 200 - 30 * i, 90)
        video[i, :, width // 2 :] = (10, 40 * i, 250 - 40 * i)
    return video


def test_bytes_as_the_originals_make_them():
    # clamp((x * 0.5 + 0.5) * 255 + 0.5, 0, 255), truncated: by hand at ends, middle and two borders between bytes.
    x = np.array([-2.0, -1.0, 0.0, 1.0, 2.0, 1 / 255 - 1e-4, 1 / 255 + 1e-4], np.float32)
    video = np.broadcast_to(x, (2, 3, 4, len(x)))
    levels = video_io.to_uint8(video)
    assert levels.shape == (2, 4, len(x), 3) and levels.dtype == np.uint8
    assert levels[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 128, 128]
    assert video_io.to_uint8(np.full((3, 1, 1), 2 / 255 + 1e-4, np.float32))[0, 0, 0] == 129


def test_colours_move_to_the_last_axis():
    x = np.stack([np.full((2, 4), c, np.float32) for c in (-1.0, 0.0, 1.0)])
    assert video_io.to_uint8(x)[1, 3].tolist() == [0, 128, 255]


def test_nan_is_no_picture():
    with pytest.raises(VideoError, match="NaN"):
        video_io.to_uint8(np.full((3, 2, 2), np.nan))


def test_gif_keeps_frames_order_and_speed():
    video = frames()
    with Image.open(io.BytesIO(video_io.gif_bytes(video, fps=8))) as picture:
        read = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)])
        # 1/8 s; a gif counts hundredths.
        assert picture.info["duration"] == 120 and picture.info["loop"] == 0
    assert np.array_equal(read, video)  # two colours a frame fit its palette


def test_mp4_keeps_frames_order_and_speed(tmp_path):
    av = pytest.importorskip("av", reason="PyAV is an optional extra (video)")
    video = frames(height=15, width=25)  # yuv420p asks for even sizes
    path = video_io.save(tmp_path, "0000", "mp4", video, fps=8)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        read = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        assert stream.average_rate == 8 and stream.codec_context.pix_fmt == "yuv420p"
    assert read.shape == (5, 16, 26, 3)
    # Lossy: flat areas away from edges come back within a few levels.
    assert np.abs(read[:, 2:13, 2:9].astype(int) - video[:, 2:13, 2:9]).max() <= 6


def test_mp4_without_pyav_names_the_remedy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(VideoError, match=r"pip install .*--output_format gif"):
        video_io.check_writers(("gif", "mp4"))
    video_io.check_writers(("gif", "png", "latents"))


def test_frames_become_a_folder_and_one_frame_a_file(tmp_path):
    video = frames()
    folder = video_io.save(tmp_path, "0001", "png", video)
    names = sorted(file.name for file in folder.iterdir())
    assert names == [f"{i:03d}.png" for i in range(5)]
    assert np.array_equal(np.stack([video_io.read_png(folder / name) for name in names]), video)
    one = video_io.save(tmp_path, "0002", "png", video[:1])
    assert one.name == "0002.png" and np.array_equal(video_io.read_png(one), video[0])


def test_latents_keep_their_bits(tmp_path):
    latents = np.random.default_rng(1).standard_normal((3, 4, 2, 5)).astype(np.float32)
    assert np.array_equal(np.load(video_io.save(tmp_path, "0000", "latents", latents=latents)), latents)


@pytest.mark.parametrize("form", ["gif", "png", "latents"])
def test_nothing_is_overwritten(tmp_path, form):
    latents = np.zeros((5, 4, 2, 3), np.float32)
    path = video_io.save(tmp_path, "0000", form, frames(), latents)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    video_io.save(tmp_path, "0000", form, frames(), latents)  # the same content is no harm
    with pytest.raises(VideoError, match="nothing is overwritten"):
        video_io.save(tmp_path, "0000", form, frames()[::-1].copy(), latents + 1)
    assert path.exists() and {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(video_io.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        video_io.write_new(tmp_path / "a.gif", b"abc")
    assert list(tmp_path.iterdir()) == []


def test_contact_sheet():
    rows = [video_io.strip(frames(count)) for count in (20, 3)]
    assert rows[0].shape == (20, 8 * 28, 3) and rows[1].shape == (20, 3 * 28, 3)
    sheet = video_io.sheet(rows)
    assert sheet.shape == (40, 8 * 28, 3)
    assert np.array_equal(sheet[2:18, 2:26], frames(20)[0]) and np.array_equal(
        sheet[2:18, -26:-2], frames(20)[-1]
    )
    assert (sheet[20:, 3 * 28 :] == 255).all()
