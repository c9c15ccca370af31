# SPDX-License-Identifier: Apache-2.0
"""Samples of the training set: which frames, which part of a frame, joint images, labels, and clips that fail."""

import json

import numpy as np
import pytest
from PIL import Image

from ms_latte import video_io
from ms_latte.data.clips import ClipDataset
from ms_latte.data.frames import ClipError
from ms_latte.data.transforms import temporal_crop, to_pixels, window
from ms_latte.data.videos import find_clips
from tests.ms_latte.tiny_clips import (
    HEIGHT,
    WIDTH,
    clip_numbers,
    frame,
    write_folder,
    write_folders,
    write_jpg,
    write_video,
)

SIZE = (HEIGHT, WIDTH)


def rng(seed=0):
    return np.random.default_rng(seed)


def clip_set(root, num_frames=3, image_size=SIZE, transform="none", **settings):
    return ClipDataset.from_folder(root, num_frames, image_size, transform=transform, **settings)


# ------------------------------------------------------------------------------------------------- frames


def test_every_start_is_drawn_and_none_beyond_the_end():
    firsts = set()
    for seed in range(200):
        chosen = temporal_crop(12, 4, 3, rng(seed))
        assert np.array_equal(np.diff(chosen), [3, 3, 3]) and chosen[-1] < 12
        firsts.add(int(chosen[0]))
    assert firsts == {0, 1, 2}
    assert list(temporal_crop(10, 4, 3, rng())) == [0, 3, 6, 9]


def test_the_published_sampling_of_video_files():
    # 16 frames with an interval of 3 are spread over 48: 47/15 = 3.13 apart, rounded down.
    chosen = temporal_crop(48, 16, 3, rng(), "linspace")
    assert list(chosen) == [0, 3, 6, 9, 12, 15, 18, 21, 25, 28, 31, 34, 37, 40, 43, 47]
    assert (window(16, 3), window(16, 3, "linspace")) == (46, 48)
    with pytest.raises(ValueError, match="47 frames, expected at least 48"):
        temporal_crop(47, 16, 3, rng(), "linspace")


@pytest.mark.parametrize(
    ("transform", "size", "part"),
    [
        ("resize_crop", (6, 12, 20, 30), (slice(0, 20), slice(10, 50))),  # 20x60 covers 20x30; its centre
        ("crop_resize", (6, 12, 20, 20), None),
    ],
)
def test_the_centre_is_kept(transform, size, part):
    height, width, H, W = size
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[:, width // 2 :] = 200
    got = to_pixels([ramp], (H, W), transform)
    assert got.shape == (1, 3, H, W) and got.dtype == np.float32
    # The edge in the middle of the picture stays in the middle, dark to the left.
    assert np.allclose(got[0, :, :, : W // 4], -1) and np.allclose(got[0, :, :, -W // 4 :], 200 / 127.5 - 1)
    assert np.abs(got[0, 0, 0] + got[0, 0, 0, ::-1] - (200 / 127.5 - 2)).max() <= 2 / 127.5  # whole levels


@pytest.mark.parametrize("size", [(9, 16), (16, 9), (37, 61), (256, 341), (11, 11)])
@pytest.mark.parametrize("transform", ["resize_crop", "crop_resize"])
def test_any_picture_gets_the_size(transform, size):
    picture = np.full((*size, 3), 90, np.uint8)
    for wanted in [(8, 8), (16, 12), (40, 64)]:
        got = to_pixels([picture], wanted, transform)
        assert got.shape == (1, 3, *wanted)
        assert np.array_equal(got, np.full_like(got, np.float32(90) / np.float32(127.5) - np.float32(1)))


def test_both_orders_of_cropping_and_resizing_differ_as_named():
    picture = np.random.default_rng(0).integers(0, 255, (30, 50, 3), np.uint8)
    image = Image.fromarray(picture)
    cropped = image.crop((10, 0, 40, 30)).resize((12, 12), Image.Resampling.BILINEAR)
    resized = image.resize((20, 12), Image.Resampling.BILINEAR).crop((4, 0, 16, 12))
    for transform, wanted in (("crop_resize", cropped), ("resize_crop", resized)):
        got = to_pixels([picture], (12, 12), transform)[0].transpose(1, 2, 0)
        assert np.array_equal(np.rint((got + 1) * 127.5), np.asarray(wanted))


def test_the_ends_of_the_range_are_exact():
    pixels = to_pixels([np.array([[[0, 255, 51]]], np.uint8)], (1, 1), "none")
    assert pixels.tolist() == [[[[-1.0]], [[1.0]], [[float(np.float32(0.4) - np.float32(1))]]]]


def test_a_clip_is_mirrored_as_a_whole_or_not_at_all(tmp_path):
    data = clip_set(write_folders(tmp_path, [5]), flip=True)
    seen = set()
    for seed in range(20):
        pixels = data.get(0, rng(seed))["pixels"]
        falling = np.diff(pixels[:, 2, 0], axis=1) < 0  # (F, W - 1): blue rises from left to right
        assert falling.all() or not falling.any()
        seen.add(bool(falling.all()))
    assert seen == {True, False}
    assert not (np.diff(clip_set(tmp_path).get(0, rng(3))["pixels"][:, 2, 0], axis=1) < 0).any()


# ------------------------------------------------------------------------------------------------- samples


def test_a_sample_is_consecutive_frames_of_its_clip(tmp_path):
    data = clip_set(write_folders(tmp_path, [12, 9]), stride=3)
    assert len(data) == 2 and data.name(1) == "c1"
    sample = data.get(1, rng(1))
    clips, numbers = clip_numbers(sample["pixels"])
    assert set(clips) == {21} and list(np.diff(numbers)) == [3, 3]
    assert sample["pixels"].dtype == np.float32 and sample["image_labels"].shape == (0,)
    assert (sample["label"], sample["caption"]) == (0, "")
    assert np.array_equal(data.pixels(1, [4, 0]), to_pixels([frame(21, 4), frame(21, 0)], SIZE, "none"))


def test_labels_and_captions_belong_to_the_clip(tmp_path):
    for i, name in enumerate(("a/x", "b/y", "b/z")):
        write_folder(tmp_path / "set" / name, i, 4)
    data = clip_set(tmp_path / "set", class_folders=True)
    assert [int(data.get(i, rng())["label"]) for i in range(3)] == [0, 1, 1] and data.num_classes == 2
    (tmp_path / "t.csv").write_text("video,caption\nb/z,last\na/x,first\n")
    data = clip_set(tmp_path / "set", csv_path=tmp_path / "t.csv")
    assert [data.get(i, rng())["caption"] for i in range(2)] == ["last", "first"]


def test_joint_images_are_of_other_clips_with_their_labels(tmp_path):
    for i in range(6):
        write_folder(tmp_path / f"class{i % 3}" / f"v{i}", 20 + i, 4)
    data = clip_set(tmp_path, class_folders=True, use_image_num=4)
    label_of = {20 + i: i % 3 for i in range(6)}
    seen, frames = set(), set()
    for seed in range(40):
        index = seed % 6
        sample = data.get(index, rng(seed))
        clips, numbers = clip_numbers(sample["pixels"])
        assert len(set(clips[:3])) == 1
        assert len(set(clips[3:]) - {clips[0]}) == 4  # four different others
        frames |= set(numbers[3:])
        assert sample["label"] == label_of[clips[0]]
        assert list(sample["image_labels"]) == [label_of[clip] for clip in clips[3:]]
        seen |= set(clips[3:])
    assert seen == set(label_of) and frames == set(range(4))


def test_more_joint_images_than_other_clips(tmp_path):
    data = clip_set(write_folders(tmp_path, [4, 4]), use_image_num=5)
    clips, _ = clip_numbers(data.get(0, rng())["pixels"])
    assert list(clips) == [20] * 3 + [21] * 5


def test_joint_images_of_the_clip_itself(tmp_path):
    data = clip_set(write_folders(tmp_path, [8]), use_image_num=4, use_img_from_vid=True)
    drawn = set()
    for seed in range(20):
        clips, numbers = clip_numbers(data.get(0, rng(seed))["pixels"])
        assert set(clips) == {20} and len(set(numbers[3:])) == 4
        drawn |= set(numbers[3:])
    assert drawn == set(range(8))


def test_one_clip_has_no_others(tmp_path):
    with pytest.raises(ValueError, match=r"the set has one; remedy: use_img_from_vid"):
        clip_set(write_folders(tmp_path, [8]), use_image_num=1)


def test_a_set_is_known_by_its_identity(tmp_path):
    write_folders(tmp_path, [5, 6])
    identity = clip_set(tmp_path).identity()
    assert json.loads(json.dumps(identity)) == identity == clip_set(tmp_path).identity()
    assert clip_set(tmp_path, stride=2).identity() != identity
    write_folder(tmp_path / "c2", 1, 5)
    assert clip_set(tmp_path).identity()["sha256"] != identity["sha256"]


# ------------------------------------------------------------------------------------------------- clips that fail


def damaged(root, counts=(5, 5, 5), bad=(1,)):
    """Folders of which some hold pictures that cannot be read."""
    write_folders(root, counts)
    for i in bad:
        for file in (root / f"c{i}").iterdir():
            file.write_bytes(file.read_bytes()[:60])
    return root


def test_the_next_clip_stands_in_for_an_unreadable_one(tmp_path):
    data = clip_set(damaged(tmp_path, [5] * 4, bad=(1, 3)))
    clips, _ = clip_numbers(data.get(1, rng())["pixels"])
    assert set(clips) == {22}
    clips, _ = clip_numbers(data.get(3, rng())["pixels"])
    assert set(clips) == {20}  # the first follows the last
    assert data.report.counts == {"c1": 1, "c3": 1}
    lines = data.report.take()
    assert lines[0].startswith("skipped c1: ") and str(tmp_path / "c1" / "frame") in lines[0]
    assert data.report.take() == []
    data.get(1, rng())
    assert data.report.take() == [] and data.report.counts["c1"] == 2
    assert data.report.summary(1).splitlines()[0::2] == ["2 clips skipped", "  and 1 more"]


def test_policy_fail_stops_at_the_first_problem(tmp_path):
    damaged(tmp_path)
    data = clip_set(tmp_path, policy="fail")
    data.get(0, rng())
    with pytest.raises(ClipError, match="c1"):
        data.get(1, rng())
    write_folder(tmp_path / "short", 1, 2)
    with pytest.raises(ValueError, match=r"a clip cannot be used: 1 clip skipped\n  short: .*2 frames"):
        clip_set(tmp_path, policy="fail")


def test_short_clips_are_reported_and_left_out(tmp_path):
    data = clip_set(write_folders(tmp_path, [9, 6, 7]), stride=3)
    assert [clip.name for clip in data.clips] == ["c0", "c2"]
    assert data.report.reasons == {
        "c1": f"{tmp_path}/c1: 6 frames, expected at least 7 (3 with a stride of 3)"
    }
    with pytest.raises(ValueError, match=r"no clip can be used: 3 clips skipped"):
        clip_set(tmp_path, stride=30)


def test_problems_of_the_search_are_in_the_report(tmp_path):
    write_video(tmp_path / "good.mp4", 8)
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    data = clip_set(tmp_path, image_size=16, transform="resize_crop")
    assert list(data.report.reasons) == ["bad"]


def test_a_video_cut_off_after_its_table_is_replaced_while_loading(tmp_path):
    write_video(tmp_path / "a.mp4", 12, movflags="faststart")
    (tmp_path / "a.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:-8])
    write_video(tmp_path / "b.mp4", 12)
    data = clip_set(tmp_path, image_size=(32, 48))
    assert np.array_equal(data.get(0, rng())["pixels"], data.get(1, rng())["pixels"])
    assert "11 of 12 frames" in data.report.reasons["a"] or "damaged or cut off" in data.report.reasons["a"]


def test_a_clip_that_has_lost_frames_since_it_was_found_is_replaced(tmp_path):
    data = clip_set(write_folders(tmp_path, [5, 5]))
    for number in range(3):
        (tmp_path / "c0" / f"frame{number}.png").unlink()
    clips, _ = clip_numbers(data.get(0, rng())["pixels"])
    assert set(clips) == {21} and "c0: 2 frames, expected at least 3" in data.report.reasons["c0"]


def test_a_joint_image_that_cannot_be_read_is_replaced_but_never_by_the_own_clip(tmp_path):
    data = clip_set(damaged(tmp_path, [5] * 3, bad=(1,)), use_image_num=2)
    for seed in range(8):
        for own, other in (
            (0, 2),
            (2, 0),
        ):  # the one behind the damaged clip is once another, once the own one
            clips, _ = clip_numbers(data.get(own, rng(seed))["pixels"])
            assert set(clips[:3]) == {20 + own} and list(clips[3:]) == [20 + other] * 2
    assert set(data.report.reasons) == {"c1"}


def test_a_set_of_which_nothing_can_be_read_ends(tmp_path):
    data = clip_set(damaged(tmp_path, bad=(0, 1, 2)))
    with pytest.raises(ClipError, match=r"no clip of the set can be read any more: 3 clips skipped"):
        data.get(0, rng())


def test_mixed_sizes_without_a_resize_are_an_error_before_anything_is_loaded(tmp_path):
    write_folder(tmp_path / "a", 1, 4)
    write_folder(tmp_path / "b", 1, 4, height=HEIGHT + 2)
    write_video(tmp_path / "c.mp4", 5)
    with pytest.raises(
        ValueError, match=r"10x14 \(height x width\), 2 of 3 clips .*b 12x14, .*c.mp4 32x48; remedy"
    ):
        clip_set(tmp_path)
    assert clip_set(tmp_path, transform="resize_crop").get(1, rng())["pixels"].shape == (3, 3, *SIZE)


def test_a_clip_of_mixed_sizes_is_an_error_under_any_policy(tmp_path):
    write_folder(tmp_path / "a", 1, 2)
    (tmp_path / "a" / "frame2.png").write_bytes(video_io.png_bytes(frame(1, 2, HEIGHT, WIDTH - 1)))
    with pytest.raises(
        ValueError, match=r"a: frame of 10x13, expected 10x14 .*remedy: transform resize_crop"
    ):
        clip_set(tmp_path).get(0, rng())


def test_pictures_of_any_kind_become_three_colours(tmp_path):
    grey = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(SIZE)
    (tmp_path / "v").mkdir()
    Image.fromarray(grey).save(tmp_path / "v" / "1.png")
    Image.fromarray(np.dstack([grey, grey, grey, grey])).save(tmp_path / "v" / "2.png")
    write_jpg(tmp_path / "v" / "3.JPG", np.dstack([grey] * 3))
    (tmp_path / "v" / "4.png").write_bytes(video_io.png_bytes(np.dstack([grey] * 3)))
    pixels = clip_set(tmp_path, num_frames=4).get(0, rng())["pixels"]
    assert np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[0], pixels[3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(num_frames=0), "num_frames 0: expected at least 1"),
        (dict(stride=0), "stride 0: expected at least 1"),
        (dict(sampling="random"), "sampling 'random': expected one of exact, linspace"),
        (dict(transform="pad"), "transform 'pad': expected one of resize_crop, crop_resize, none"),
        (dict(policy="ignore"), "policy 'ignore': expected one of skip, fail"),
        (dict(image_size=0), "image_size 0"),
        (dict(use_image_num=-1), "use_image_num -1"),
    ],
)
def test_impossible_settings_are_one_clear_error(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        clip_set(write_folders(tmp_path, [5]), **settings)


def test_no_clips_at_all():
    with pytest.raises(ValueError, match="no clips"):
        ClipDataset([], 3, SIZE)


def test_found_clips_make_a_set(tmp_path):
    clips, problems = find_clips(write_folders(tmp_path, [5]))
    assert len(ClipDataset(clips, 3, SIZE, transform="none", problems=problems)) == 1
