# SPDX-License-Identifier: Apache-2.0
"""Clips found on disk and read back frame by frame: folders, video files, class folders, tables."""

import sys
from pathlib import Path

import numpy as np
import pytest

from ms_latte import video_io
from ms_latte.data import frames as reading
from ms_latte.data.frames import ClipError, count_frames, natural, open_clip
from ms_latte.data.videos import DATASETS, find_clips, recipe
from tests.ms_latte.tiny_clips import (
    frame,
    moving,
    number_of,
    write_folder,
    write_folders,
    write_jpg,
    write_video,
)


def names(root, **settings):
    return [clip.name for clip in find_clips(root, **settings)[0]]


# ------------------------------------------------------------------------------------------------- folders


def test_numbers_in_names_count_as_numbers():
    assert sorted(["f10", "f2", "f1", "g1", "f01"], key=natural) == ["f01", "f1", "f2", "f10", "g1"]
    assert sorted(["10", "a", "9"], key=natural) == ["9", "10", "a"]


def test_frames_of_a_folder_come_in_natural_order(tmp_path):
    reader = open_clip(write_folder(tmp_path / "clip", 7, 12), "frames")
    assert reader.frames == 12
    got = reader.read([11, 2, 10, 2])
    assert [picture[0, 0, 1] for picture in got] == [11, 2, 10, 2]
    assert np.array_equal(got[0], frame(7, 11))


def test_clips_are_folders_with_pictures_at_any_depth(tmp_path):
    write_folder(tmp_path / "b" / "v10", 1, 2)
    write_folder(tmp_path / "b" / "v9", 1, 3)
    write_folder(tmp_path / "a", 1, 4)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "a" / ".hidden.png").write_bytes(b"no picture")
    write_folder(tmp_path / ".trash" / "old", 1, 2)
    clips, problems = find_clips(tmp_path)
    assert [(clip.name, clip.frames, clip.kind) for clip in clips] == [
        ("a", 4, "frames"), ("b/v9", 3, "frames"), ("b/v10", 2, "frames"),
    ]  # fmt: skip
    assert problems == {}


def test_a_linked_folder_is_followed_once(tmp_path):
    write_folder(tmp_path / "data" / "v", 1, 2)
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    write_folder(tmp_path / "elsewhere", 1, 3)
    (tmp_path / "data" / "w").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "data") == ["v", "w"]


def test_pictures_beside_videos_are_no_clip_and_are_reported(tmp_path):
    write_video(tmp_path / "v.mp4", 6)
    write_jpg(tmp_path / "poster.jpg", frame(1, 1))
    clips, problems = find_clips(tmp_path)
    assert [clip.name for clip in clips] == ["v"]
    assert "pictures beside video files" in next(iter(problems.values()))


def test_classes_are_the_sorted_folders(tmp_path):
    for name in ("b10", "b9", "a"):
        write_folder(tmp_path / name / "clip1", 1, 2)
    (tmp_path / "aa_without_clips").mkdir()
    write_folder(tmp_path / "b9" / "clip2", 1, 2)
    clips, problems = find_clips(tmp_path, class_folders=True)
    # Sorted as text, as the published labels are: b10 before b9.
    assert {clip.name: clip.label for clip in clips} == {
        "a/clip1": 0, "b10/clip1": 2, "b9/clip1": 3, "b9/clip2": 3,
    }  # fmt: skip
    write_folder(tmp_path / "z", 1, 2)
    assert "stands in no class folder" in find_clips(tmp_path, class_folders=True)[1]["z"]
    assert problems == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "absent", "does not exist"),
        (lambda root: write_jpg(root / "x.jpg", frame(1, 1)), "not a folder"),
        (lambda root: root, "holds no clip: expected folders of pictures"),
    ],
)
def test_a_useless_folder_is_one_clear_error(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        find_clips(make(tmp_path))


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    write_folder(tmp_path / "open", 1, 2)
    (tmp_path / "shut").mkdir()
    list_folder = Path.iterdir

    def refuse(path):
        if path.name == "shut":
            raise PermissionError(13, "Permission denied")
        return list_folder(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    clips, problems = find_clips(tmp_path)
    assert [clip.name for clip in clips] == ["open"] and "Permission denied" in problems["shut"]
    with pytest.raises(ValueError, match="shut: Permission denied"):
        find_clips(tmp_path / "shut")


def test_published_names():
    assert recipe("sky_img") == recipe("sky") == DATASETS["sky"]
    with pytest.raises(ValueError, match="'skyy': expected one of sky, ffs, taichi, ucf101"):
        recipe("skyy")


# ------------------------------------------------------------------------------------------------- video files


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".mov", ".avi"])
def test_every_frame_of_a_video_is_found_by_its_number(tmp_path, ending):
    path = write_video(tmp_path / f"v{ending}", 23)
    reader = open_clip(path, "video")
    assert reader.frames == count_frames(path, "video") == 23
    for i in range(23):  # each by a seek of its own: key frames, frames that refer to later ones, the last
        assert number_of(reader.read([i])[0]) == i
    assert [number_of(picture) for picture in reader.read([20, 3, 3, 11])] == [20, 3, 3, 11]


def test_a_video_without_time_stamps_is_decoded_from_its_start(tmp_path):
    reader = open_clip(write_video(tmp_path / "v.mp4", 12), "video")
    reader.stamps = None
    assert [number_of(picture) for picture in reader.read([9, 0, 4])] == [9, 0, 4]


def test_an_animated_gif_is_read_frame_by_frame(tmp_path):
    path = tmp_path / "v.gif"
    path.write_bytes(video_io.gif_bytes(moving(7)))
    reader = open_clip(path, "video")
    assert reader.frames == count_frames(path, "video") == 7
    assert [number_of(picture) for picture in reader.read([6, 1, 2])] == [6, 1, 2]


def test_without_pyav_mindspore_reads_the_same_frames(tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.mp4", 23)
    with_av = open_clip(path, "video").read([17, 4, 9])
    monkeypatch.setitem(sys.modules, "av", None)
    reader = open_clip(path, "video")
    assert isinstance(reader, reading.MindSporeVideo)
    assert reader.frames == count_frames(path, "video") == 23
    got = reader.read([17, 4, 9])
    assert [number_of(picture) for picture in got] == [17, 4, 9]
    # Both use FFmpeg but not its colour conversion alike: up to two levels apart.
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(got, with_av, strict=True)) <= 2


def test_names_of_videos_stay_apart(tmp_path):
    for name in ("a.mp4", "b.mp4", "b.mkv", "d.mp4"):
        write_video(tmp_path / name, 5)
    write_folder(tmp_path / "d", 1, 2)
    assert names(tmp_path) == ["a", "b.mkv", "b.mp4", "d", "d.mp4"]


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_a_file_that_is_no_video_is_reported(tmp_path, content):
    write_video(tmp_path / "good.mp4", 6)
    (tmp_path / "bad.mp4").write_bytes(content)
    clips, problems = find_clips(tmp_path)
    assert [clip.name for clip in clips] == ["good"]
    assert str(tmp_path / "bad.mp4") in problems["bad"]
    (tmp_path / "good.mp4").unlink()
    with pytest.raises(ValueError, match=r"none of its 1 clips can be read: .*bad\.mp4"):
        find_clips(tmp_path)


def test_a_truncated_video_is_never_read_as_if_it_were_whole(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", 25).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # its table stood at the end
    with pytest.raises(ClipError, match=r"cut\.mp4"):
        count_frames(tmp_path / "cut.mp4", "video")
    early = write_video(tmp_path / "early.mp4", 25, movflags="faststart").read_bytes()
    for part in (0.8, 0.99):  # its table is there and promises 25 frames
        (tmp_path / "late.mp4").write_bytes(early[: int(len(early) * part)])
        assert count_frames(tmp_path / "late.mp4", "video") == 25
        with pytest.raises(ClipError, match=r"late\.mp4: damaged or cut off: \d+ of 25 frames"):
            open_clip(tmp_path / "late.mp4", "video")


@pytest.mark.parametrize("still", [False, True])  # True: later frames refer to the damaged one
@pytest.mark.parametrize("name", ["v.mp4", "v.avi"])
def test_frames_damaged_inside_a_video_are_refused(tmp_path, name, still):
    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), np.uint8)
    path = write_video(
        tmp_path / name, 20, pictures=np.roll(noise[:1].repeat(20, 0), 1, 2) if still else noise
    )
    whole = open_clip(path, "video").read(range(20))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 50] = bytes(range(100, 150))
    path.write_bytes(content)
    reader, refused = open_clip(path, "video"), []
    for i in range(20):
        try:
            assert np.array_equal(reader.read([i])[0], whole[i]), f"frame {i} is not the one that was written"
        except ClipError as error:
            assert f"{path}: frame {i} of 20 cannot be decoded" in str(error)
            refused.append(i)
    assert refused and len(refused) <= 10, refused  # two groups of pictures at most


def test_a_damaged_picture_is_named(tmp_path):
    folder = write_folder(tmp_path / "clip", 1, 2)
    whole = write_jpg(folder / "frame5.jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    whole.write_bytes(whole.read_bytes()[:900])
    reader = open_clip(folder, "frames")
    reader.read([0, 1])
    with pytest.raises(ClipError, match=r"frame5\.jpg"):
        reader.read([2])


# ------------------------------------------------------------------------------------------------- tables


def table(path, text):
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_a_table_gives_captions_and_classes(tmp_path):
    write_folders(tmp_path / "data", [3, 4])
    write_video(tmp_path / "data" / "sub" / "v.mp4", 6)
    path = table(
        tmp_path / "t.csv", 'video,caption,class\nsub/v.mp4,"a, b",run\nc0,été,jump\nc0,again,jump\n'
    )
    clips, problems = find_clips(tmp_path / "data", csv_path=path)
    assert [(c.name, c.frames, c.label, c.caption, c.kind) for c in clips] == [
        ("sub/v", 6, 1, "a, b", "video"), ("c0", 3, 0, "été", "frames"), ("c0#2", 3, 0, "again", "frames"),
    ]  # fmt: skip
    assert problems == {}


def test_columns_have_other_names_and_numbers_are_labels(tmp_path):
    write_folders(tmp_path / "data", [3, 4])
    path = table(tmp_path / "t.csv", "path,text,id\nc1,one,12\nc0,two,7\n")
    settings = dict(csv_path=path, video_column="path", caption_column="text", class_column="id")
    clips, _ = find_clips(tmp_path / "data", **settings)
    assert [(c.name, c.caption, c.label) for c in clips] == [("c1", "one", 12), ("c0", "two", 7)]
    clips, _ = find_clips(tmp_path / "data", csv_path=path, video_column="path")
    assert [(c.caption, c.label) for c in clips] == [("", 0), ("", 0)]


def test_a_row_without_its_video_is_reported(tmp_path):
    write_folders(tmp_path / "data", [3])
    path = table(tmp_path / "t.csv", "video\nc0\ngone.mp4\n")
    clips, problems = find_clips(tmp_path / "data", csv_path=path)
    assert [clip.name for clip in clips] == ["c0"] and "gone.mp4" in problems["gone"]


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("video\nc0\n", dict(video_column="clip"), "no column 'clip' \\(video_column\\); its columns: video"),
        ("video\nc0\n", dict(caption_column="text"), "no column 'text' \\(caption_column\\)"),
        ("video\nc0\n", dict(class_column="id"), "no column 'id' \\(class_column\\)"),
        ("video,class\nc0,a\nc0,\n", {}, "t.csv:3: column 'class' is empty"),
        ("video,class\n,a\n", {}, "t.csv:2: column 'video' is empty"),
        ("", {}, "its columns: none"),
        ("video\n", {}, "holds no clip"),
        ("video\nc0\n", dict(class_folders=True), "give one"),
    ],
)
def test_a_wrong_table_is_one_clear_error(tmp_path, text, settings, message):
    write_folders(tmp_path / "data", [3])
    with pytest.raises(ValueError, match=message):
        find_clips(tmp_path / "data", csv_path=table(tmp_path / "t.csv", text), **settings)


def test_an_absent_or_binary_table_is_named(tmp_path):
    write_folders(tmp_path / "data", [3])
    with pytest.raises(ValueError, match=r"t\.csv: No such file"):
        find_clips(tmp_path / "data", csv_path=tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(b"video\n\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"csv_path .*t\.csv"):
        find_clips(tmp_path / "data", csv_path=tmp_path / "t.csv")
