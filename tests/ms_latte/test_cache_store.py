# SPDX-License-Identifier: Apache-2.0
"""The folder of a latent cache: killed at every system call, full disks, two writers, damage, other facts."""

import hashlib
import json
import os
import resource
import shutil
import signal
from contextlib import contextmanager

import numpy as np
import pytest

from ms_latte.config import ConfigError
from ms_latte.data import latent_records
from ms_latte.data.latent_files import check_hash, hash_of, read_array, write_array
from ms_latte.data.latent_store import CacheFolder, places_of, read_manifest
from tests.helpers import normal

FACTS = {"vae": {"sha256": "ab", "scaling_factor": 0.5}, "image_size": [16, 24]}
VIDEOS = [(f"walk/{i}", 2 + i) for i in range(4)]  # name, frames


def moments(i, frames):
    """(V, F, 2C, h, w)."""
    return normal(1, frames, 8, 3, 2, seed=i)


def fill(path, staged=False):
    """Add all videos that are missing, and pack them if they are staged."""
    with CacheFolder(path, FACTS) as cache:
        cache.set_order(name for name, _ in VIDEOS)
        for i, (name, frames) in enumerate(VIDEOS):
            if name not in cache.finished:
                record = {"label": i, "caption": f'"{name}" é', "text_mask": "110"}
                cache.add(name, moments(i, frames), record, normal(3, 5, seed=9 + i), staged)
        if staged and latent_records.staged(cache):
            latent_records.pack(cache, latent_records.staged(cache), 1)


def content(path):
    """File -> hash of every file; the manifest's lines in any order."""
    found = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.suffix != ".jsonl":
            found[file.relative_to(path).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    found["lines"] = sorted(read_manifest(path)[0].items())
    return found


def killed_at(path, count, staged=False):
    """Fill the folder in a child process that kills itself before its count-th change; True if it came to that."""
    child = os.fork()
    if not child:
        left = count

        def counted(call):
            def counting(*arguments, **named):
                nonlocal left
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **named)

            return counting

        for name in ("fsync", "replace", "unlink", "open", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        fill(path, staged)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_a_process_killed_at_any_change_loses_and_repeats_nothing(tmp_path):
    fill(tmp_path / "whole")
    expected = content(tmp_path / "whole")
    count = 1
    while killed_at(tmp_path / f"{count}", count):
        path = tmp_path / f"{count}"
        kept = read_manifest(path)[0] if (path / "videos.jsonl").exists() else {}
        times = {name: (path / line["moments"]["file"]).stat().st_ino for name, line in kept.items()}
        for name, line in kept.items():  # what a line tells about is whole
            for place in places_of(line):
                check_hash(path, place)
            assert line == dict(expected["lines"])[name]
        fill(path)
        assert content(path) == expected
        assert all(
            (path / kept[name]["moments"]["file"]).stat().st_ino == time for name, time in times.items()
        )
        names = [json.loads(line).get("name") for line in (path / "videos.jsonl").read_text().splitlines()]
        assert sorted(filter(None, names)) == [name for name, _ in VIDEOS]  # each finished once
        count += 1
    assert count > 40  # system calls of four videos


def test_a_process_killed_while_packing_loses_and_repeats_nothing(tmp_path, monkeypatch):
    fill(tmp_path / "whole", staged=True)
    expected = content(tmp_path / "whole")

    def link(folder, path, *_):  # the writer itself works aside, in a process of its own
        for ending in ("", ".db"):
            os.link(f"{tmp_path}/whole/records/{path.name}{ending}", f"{path}{ending}")

    monkeypatch.setattr(latent_records, "_write", link)
    monkeypatch.setattr(latent_records, "pack", _keeping(tmp_path / "staged", latent_records.pack))
    fill(tmp_path / "scratch", staged=True)  # leaves the folder as it is before packing in tmp_path/staged
    count = 1
    while True:
        path = tmp_path / f"{count}"
        shutil.copytree(tmp_path / "staged", path)
        if not killed_at(path, count, staged=True):
            break
        fill(path, staged=True)
        assert content(path) == expected
        count += 1
    assert count > 15


def _keeping(place, pack):
    def packing(cache, *arguments):
        if not place.exists():
            shutil.copytree(cache.path, place)
        return pack(cache, *arguments)

    return packing


def test_half_a_line_is_dropped(tmp_path):
    fill(tmp_path / "whole")
    manifest = tmp_path / "cache" / "videos.jsonl"
    fill(tmp_path / "cache")
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:3]) + lines[3][:40])  # two videos, and a part of the third's line
    fill(tmp_path / "cache")
    assert content(tmp_path / "cache") == content(tmp_path / "whole")
    assert len(manifest.read_bytes().splitlines()) == len(lines)


def test_mindrecord_holds_the_same_numbers_and_survives_an_unfinished_file(tmp_path):
    fill(tmp_path / "numpy")
    with CacheFolder(tmp_path / "packed", FACTS) as cache:
        cache.add(VIDEOS[0][0], moments(0, 2), {"label": 0, "caption": '"walk/0" é', "text_mask": "110"},
                  normal(3, 5, seed=9), staged=True)  # fmt: skip
    records = tmp_path / "packed" / "records"
    (records / ".unfinished.tmp").mkdir()
    (records / "part-00000.mindrecord").write_bytes(b"cut")  # in place, but no line knows it
    fill(tmp_path / "packed", staged=True)
    assert sorted(file.name for file in records.iterdir()) == [
        "part-00000.mindrecord",
        "part-00000.mindrecord.db",
    ]
    assert not list((tmp_path / "packed" / "staged").iterdir())
    held, packed = read_manifest(tmp_path / "numpy")[0], read_manifest(tmp_path / "packed")[0]
    for name, line in held.items():
        for key in ("moments", "text"):
            assert packed[name][key]["sha256"] == line[key]["sha256"]
            assert hash_of(read_array(tmp_path / "packed", packed[name][key])) == line[key]["sha256"]
    fill(tmp_path / "whole", staged=True)
    assert content(tmp_path / "packed") == content(tmp_path / "whole")


def test_mindspore_reads_the_records(tmp_path):
    import mindspore.dataset as ds

    fill(tmp_path, staged=True)
    files = [str(file) for file in tmp_path.glob("records/*.mindrecord")]
    rows = ds.MindDataset(files, shuffle=False).create_dict_iterator(num_epochs=1, output_numpy=True)
    for i, row in enumerate(rows):
        name, frames = VIDEOS[int(row["number"])]
        assert (str(row["video"]), int(row["class"]), str(row["caption"])) == (name, i, f'"{name}" é')
        np.testing.assert_array_equal(row["moments"], moments(i, frames)[0])
        assert row["text_mask"].tolist() == [1, 1, 0] and row["text_emb"].shape == (3, 5)
    assert i == len(VIDEOS) - 1


def test_a_record_larger_than_a_page(tmp_path):
    message = (
        r"video a makes a record of 70000000 bytes, .* 67108864 .*remedy: --max_page_size 128, or --cache"
    )
    with pytest.raises(ConfigError, match=message):
        latent_records.check_record("a", 70_000_000, 64)
    with pytest.raises(ConfigError, match="remedy: --cache_file_type numpy"):
        latent_records.check_record("a", 2**28, 256)
    latent_records.check_record("a", 2**26 - latent_records.SPARE, 64)


@contextmanager
def file_limit(size):
    """Files may not grow beyond so many bytes, as on a full disk. Nobody else may write meanwhile, pytest's report
    least of all."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [400, 700, 1000, 1500])  # the first array, then manifest or later ones
def test_a_full_disk_leaves_whole_videos(tmp_path, limit):
    fill(tmp_path / "whole")
    message = r"cannot be saved \(File too large\); \d videos .* free some space"
    with pytest.raises(ConfigError, match=message), file_limit(limit):
        fill(tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob(".*.tmp"))
    manifest = (tmp_path / "cache" / "videos.jsonl").read_bytes()
    assert manifest and manifest.endswith(b"\n")  # no part of a line, in the same process either
    fill(tmp_path / "cache")
    assert content(tmp_path / "cache") == content(tmp_path / "whole")


def test_an_array_larger_than_a_buffer_fails_with_its_reason(tmp_path):
    with (
        CacheFolder(tmp_path, FACTS) as cache,
        pytest.raises(ConfigError, match=r"cannot be saved \(File too large\)"),
        file_limit(8192),
    ):
        cache.add("long", moments(0, 99), {"label": 0, "caption": ""})
    assert not list((tmp_path / "latents").iterdir())


def test_a_full_disk_while_packing(tmp_path):
    message = r"part-00000\.mindrecord cannot be written .* stay staged; free some space"
    with pytest.raises(ConfigError, match=message), file_limit(1 << 20):  # below a MindRecord file's header
        fill(tmp_path / "cache", staged=True)
    assert len(list((tmp_path / "cache" / "staged").iterdir())) == 8
    fill(tmp_path / "cache", staged=True)
    fill(tmp_path / "whole", staged=True)
    assert content(tmp_path / "cache") == content(tmp_path / "whole")


def test_one_writer_at_a_time(tmp_path):
    with CacheFolder(tmp_path, FACTS), pytest.raises(ConfigError, match="another process writes into it"):
        fill(tmp_path)
    fill(tmp_path)


def test_other_facts_are_named(tmp_path):
    fill(tmp_path)
    other = {"vae": {"sha256": "cd", "scaling_factor": 0.5}, "image_size": [16, 32]}
    message = r"vae.sha256 'ab' there, 'cd' now; image_size \[16, 24\] there, \[16, 32\] now; name another"
    with pytest.raises(ConfigError, match=message):
        CacheFolder(tmp_path, other).__enter__()


def test_a_folder_of_other_things(tmp_path):
    (tmp_path / "holiday.txt").write_text("")
    with pytest.raises(ConfigError, match="no cache of this command; nothing is overwritten"):
        fill(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["holiday.txt"]


def test_damaged_videos_are_forgotten_and_their_numbers_are_safe(tmp_path):
    fill(tmp_path)
    expected = {name: line["moments"]["sha256"] for name, line in read_manifest(tmp_path)[0].items()}
    last = tmp_path / "latents" / "000003.npy"
    last.write_bytes(last.read_bytes()[:-1])
    with CacheFolder(tmp_path, FACTS) as cache:
        assert list(cache.damaged) == ["walk/3"]
        cache.add(
            "walk/new", moments(7, 5), {"label": 0, "caption": ""}
        )  # takes the number, as long as before
    with CacheFolder(tmp_path, FACTS) as cache:
        assert "walk/3" not in cache.finished and not cache.damaged
    fill(tmp_path)
    held = read_manifest(tmp_path)[0]
    assert {name: held[name]["moments"]["sha256"] for name in expected} == expected
    for line in held.values():
        check_hash(tmp_path, line["moments"])


def test_altered_numbers_are_found_by_their_hash(tmp_path):
    fill(tmp_path)
    file = tmp_path / "latents" / "000001.npy"
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    with CacheFolder(tmp_path, FACTS) as cache:
        assert not cache.damaged
    with CacheFolder(tmp_path, FACTS, verify=True) as cache:
        assert list(cache.damaged) == ["walk/1"]


def test_a_failure_is_noted_once_and_ends_with_success(tmp_path):
    with CacheFolder(tmp_path, FACTS) as cache:
        cache.fail("walk/0", "a broken frame")
        cache.fail("walk/0", "a broken frame")
    assert len((tmp_path / "videos.jsonl").read_text().splitlines()) == 1
    fill(tmp_path)
    finished, failed, _, order = read_manifest(tmp_path)
    assert (len(finished), failed, len(order)) == (4, {}, 4)


def test_arrays_keep_type_and_shape(tmp_path):
    for kind in ("float32", "float16"):
        array = normal(2, 3, seed=1).astype(kind)
        place = write_array(tmp_path, "a.npy", array.T)
        found = read_array(tmp_path, place)
        assert found.dtype == kind and place["sha256"] == hash_of(array.T)
        np.testing.assert_array_equal(found, array.T)
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), array.T)
