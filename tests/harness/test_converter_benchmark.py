# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the converters: its arithmetic and verdicts, and that it measures real conversions and cleans up."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from converters.containers.source import open_source, unwrap
from converters.stream import cast, content_hash
from parity import benchmark, converter_benchmark
from parity.converter_benchmark import JOBS, LATTE, T2V, TARGET, WAYS, Job, Run, make, net, noise, summary

ROOT = Path(__file__).parents[2]
LISTINGS = ROOT / "tests" / "data" / "listings"
TINY = 4_000_000
HONEST = "Latte-XL/2 .ckpt -> .safetensors"

# A worker whose conversions take more memory than they should.
HOG = """
import numpy as np
from parity import converter_benchmark as benchmark

def hog(source, target, **options):
    convert = benchmark.ours(source, target, **options)
    def work():
        data = {take}
        convert()
        return data
    return work

benchmark.WAYS["ours"] = hog
benchmark.serve()
"""


@pytest.fixture
def measured(tmp_path):
    """Run the command in this process: (exit status, rows of the report, what the folder holds afterwards)."""
    (tmp_path / "disk").mkdir()

    def measure(*words, size=TINY, repeats=1):
        report = tmp_path / "report.json"
        status = benchmark.main(
            ["converters", f"--size={size}", f"--repeats={repeats}", "--folder", str(tmp_path / "disk")]
            + ["--report", str(report), *(word for only in words for word in ("--only", only))]
        )
        rows = json.loads(report.read_text())["rows"] if report.exists() else []
        return status, {f"{row['net']} {row['name']}": row for row in rows}, os.listdir(tmp_path / "disk")

    return measure


def assert_holds(job: Job, target: Path) -> None:
    """Every bit of the source (cast if need be) is in the target, under the names of its layout."""
    expected = net(job.net, TINY).entries
    if job.options.get("dtype") == "bf16":
        expected = {name: cast(name, entry, "BF16") for name, entry in expected.items()}
    if "pku" in job.name:
        expected = {converter_benchmark._renamed(name): entry for name, entry in expected.items()}
    found = unwrap(open_source(target).tree, "ema", target)[0]
    # mindone's own layout has a table that the naive way forgets.
    assert set(expected) <= set(found) and set(found) - set(expected) <= {"pos_embed.pos_embed"}
    assert content_hash({name: found[name] for name in expected}) == content_hash(expected)


# ------------------------------------------------------------------------------------------------- arithmetic


def result(ratio=1.0, seconds=2.0, written=1000, rss=0, anon=0):
    return Run(seconds, written, rss, anon, cp_seconds=ratio * seconds, cp_written=written)


def test_ratio_is_that_of_throughputs():
    assert Run(2.0, 100, 0, 0, 1.0, 100).ratio == 0.5  # as many bytes, twice the time
    assert Run(1.0, 50, 0, 0, 1.0, 100).ratio == 0.5  # half the bytes in the same time
    assert Run(1.0, 100, 0, 0, 3.0, 150).ratio == 2.0


def test_a_row_holds_medians_ranges_and_the_worst_memory():
    runs = [
        result(0.6, seconds=4.0, rss=30, anon=1),
        result(0.9, seconds=2.0, rss=10, anon=2),
        result(0.8, seconds=1.0, rss=20, anon=3),
    ]
    row = summary(JOBS[1], runs, net(LATTE, TINY), {})
    assert (row["seconds"], row["seconds_range"]) == (2.0, [1.0, 4.0])
    assert row["ratio"] == pytest.approx(0.8) and row["ratio_range"] == pytest.approx([0.6, 0.9])
    assert row["bytes_per_second"] == 500 and (row["rss"], row["anon"]) == (30, 3)
    assert len(row["runs"]) == 3 and row["runs"][0]["ratio"] == pytest.approx(0.6)


@pytest.mark.parametrize(("ratio", "verdict"), [(TARGET, "ok"), (TARGET - 0.01, "slow")])
def test_verdict_on_speed_is_for_our_rows(ratio, verdict):
    rows = {job.way: summary(job, [result(ratio, seconds=1.0)], net(LATTE, TINY), {}) for job in JOBS[:8]}
    assert rows["ours"]["speed"] == verdict
    assert rows["naive"]["speed"] is None and rows["cp"]["speed"] is None


@pytest.mark.parametrize("kind", ["rss", "anon"])
def test_verdict_on_memory_is_largest_tensor_and_100_mb(kind):
    tiny = net(LATTE, TINY)
    limit = max(entry.nbytes for entry in tiny.entries.values()) + 100_000_000
    for peak, verdict in ((limit, "ok"), (limit + 1, "over")):
        row = summary(JOBS[1], [result(**{kind: peak}), result()], tiny, {})
        assert (row["memory"], row["memory_limit"], row[kind]) == (verdict, limit, peak)
    assert summary(JOBS[0], [result(rss=None, anon=None)], tiny, {})["memory"] is None  # cp


# ------------------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize(
    ("name", "listing", "size"), [(LATTE, "official-latte", 2.7e9), (T2V, "official-t2v", 4.2e9)]
)
def test_full_size_is_the_published_net(name, listing, size):
    lines = (LISTINGS / f"{listing}.txt").read_text().splitlines()
    published = {key: tuple(map(int, shape.split(","))) for key, shape in map(str.split, lines)}
    published.pop("y_embedder.embedding_table.weight", None)  # ours has no classes, like FaceForensics
    full = net(name)
    assert {key: entry.shape for key, entry in full.entries.items()} == published
    assert full.nbytes == pytest.approx(size, rel=0.02)
    assert full.largest == 6 * 1152 * 1152 * 4


@pytest.mark.parametrize("name", [LATTE, T2V])
def test_smaller_nets_stay_below_the_limit(name):
    sizes = [net(name, limit).nbytes for limit in (TINY, 50_000_000, 100_000_000, 10**9, 10**10)]
    assert all(size <= limit for size, limit in zip(sizes, (TINY, 5e7, 1e8, 1e9, 1e10), strict=True))
    assert sizes == sorted(sizes) and sizes[-1] > 9e9


def test_noise_is_seeded_and_cannot_be_compressed():
    first, again, other = (noise((100, 300), seed).read() for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.any(first == other)
    assert len(zlib.compress(first.tobytes())) > 0.9 * first.nbytes
    assert np.all(np.abs(first) < 2) and np.all(np.abs(first) > 1e-30)


@pytest.mark.parametrize(
    "job",
    [job for job in JOBS if job.way == "ours" or (job.way == "naive" and job.target != "target.ckpt")],
    ids=lambda job: job.title,
)
def test_what_is_timed_is_the_whole_conversion(job, tmp_path):
    make(net(job.net, TINY), tmp_path / job.source)
    WAYS[job.way](tmp_path / job.source, tmp_path / job.target, **job.options)()
    assert_holds(job, tmp_path / job.target)
    shards = list(tmp_path.glob("target/*-of-*.safetensors"))
    assert len(shards) >= 5 if "shards" in job.options else not shards


# ------------------------------------------------------------------------------------------------- end to end


def test_from_the_command_to_the_report(measured, monkeypatch, capsys):
    def turn(job, made, place, really=converter_benchmark._turn):
        run = really(job, made, place)
        assert_holds(job, place / "out" / job.target)
        assert [file.name for file in (place / "copy").iterdir()]
        return run

    monkeypatch.setattr(converter_benchmark, "_turn", turn)
    status, rows, left = measured("LatteT2V")
    assert (status, left) == (0, [])
    assert list(rows) == [job.title for job in JOBS if job.net == T2V]
    for title, row in rows.items():
        assert row["written"] == row["runs"][0]["cp_written"] > 0.9 * net(row["net"], TINY).nbytes
        assert row["ratio"] == pytest.approx(row["runs"][0]["cp_seconds"] / row["seconds"])
        assert row["memory"] == (None if row["way"] == "cp" else "ok"), title
    assert rows["LatteT2V .safetensors -> pku .ckpt, naive"]["anon"] > TINY / 2  # it holds everything
    printed = capsys.readouterr()
    assert all(row["name"] in printed.out for row in rows.values()) and "memory limit 102." in printed.out
    assert "round 1 of 1  LatteT2V .safetensors -> pku .ckpt" in printed.err  # it takes minutes


@pytest.mark.parametrize("kind", ["anonymous", "mapped"])
def test_a_memory_hog_is_over_the_limit(measured, monkeypatch, tmp_path, kind):
    take = "np.ones(150_000_000, np.uint8)"
    if kind == "mapped":
        with (tmp_path / "big").open("wb") as file:
            file.truncate(150_000_000)
        take = f"[(data := np.memmap({str(tmp_path / 'big')!r}, np.uint8, 'r')), data[::4096].sum()]"
    monkeypatch.setattr(converter_benchmark, "WORKER", HOG.replace("{take}", take))
    status, rows, _ = measured(HONEST)
    row = rows[HONEST]
    assert (status, row["memory"]) == (0, "over") and row["rss"] > 150e6
    assert row["anon"] > 150e6 if kind == "anonymous" else row["anon"] < 50e6


def test_a_row_that_fails_costs_no_other(measured, monkeypatch, capsys):
    code = (
        "import sys; from parity import converter_benchmark as b\n"
        "b.WAYS['ours'] = lambda *a, **o: sys.exit('the disk is on fire'); b.serve()"
    )
    monkeypatch.setattr(converter_benchmark, "WORKER", code)
    status, rows, left = measured(HONEST, "Latte-XL/2 cp", repeats=2)
    assert (status, left) == (1, [])
    assert "died with status 1; its last words: the disk is on fire" in rows[HONEST]["failed"]
    assert len(rows["Latte-XL/2 cp"]["runs"]) == 2
    assert "failed: ours died" in capsys.readouterr().out


def test_errors_of_the_converter_are_told(measured, monkeypatch):
    monkeypatch.setattr(
        converter_benchmark, "JOBS", (Job(LATTE, "x", "ours", "source.pt", "a.pt", {"to": "no"}),)
    )
    status, rows, left = measured()
    assert (status, left) == (1, []) and "ConversionError: unknown layout 'no'" in rows["Latte-XL/2 x"][
        "failed"
    ]


def test_without_torch_the_naive_way_is_skipped(measured, monkeypatch):
    code = "import sys; sys.modules['torch'] = None\n" + converter_benchmark.WORKER
    monkeypatch.setattr(converter_benchmark, "WORKER", code)
    status, rows, _ = measured(".pt -> .ckpt, naive")
    assert status == 0 and "torch" in rows["Latte-XL/2 .pt -> .ckpt, naive"]["skipped"]


# ------------------------------------------------------------------------------------------------- leaving


def test_an_error_leaves_nothing_behind(measured, monkeypatch, tmp_path, capsys):
    def full(net, path):
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(converter_benchmark, "make", full)
    assert measured("shards") == (2, {}, [])
    assert "No space left" in capsys.readouterr().err
    monkeypatch.setattr(converter_benchmark, "make", lambda net, path: path.mkdir() or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measured("shards")
    assert os.listdir(tmp_path / "disk") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interruption_leaves_nothing_behind(tmp_path, number):
    command = ["-m", "parity", "benchmark", "converters", "--size", str(TINY), "--repeats", "1000"]
    process = subprocess.Popen(
        [sys.executable, *command, "--only", "shards", "--folder", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a script ignores SIGINT and hands that on; a user at a terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        for line in process.stderr:
            if "round 1" in line:
                break
        assert len(os.listdir(tmp_path)) == 1
        deadline, workers = time.monotonic() + 10, []
        while not workers and time.monotonic() < deadline:  # one of the next round
            workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert workers
        time.sleep(0.2)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 130
    assert os.listdir(tmp_path) == []
    deadline = time.monotonic() + 5  # one that was only being started ends by itself
    while (alive := [pid for pid in workers if Path("/proc", pid).exists()]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive
    assert ".safetensors -> 5 shards" in out  # what was measured until then
    assert "error: interrupted" in err and "Traceback" not in err


def test_too_small_a_disk_is_said_before_anything_is_made(measured, monkeypatch, capsys):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(20_000_000))
    status, rows, left = measured(size=20_000_000)
    assert (status, rows, left) == (2, {}, [])
    said = capsys.readouterr().err
    assert "not enough space in" in said and "got 20.0 MB, expected" in said and "remedy: --folder" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "big"], "--size is malformed; got 'big'"),
        (["--size", "1000"], "no Latte-XL/2 is so small; got 1000 bytes; expected at least"),
        (["--repeats", "0"], "--repeats 0: expected 1 or more"),
        (["--folder", "/nowhere"], "--folder /nowhere is no folder"),
        (["--report", "/nowhere/x.json"], "--report /nowhere/x.json: there is no such folder"),
        (["--only", "cpp"], "--only cpp: expected a part of one of: Latte-XL/2 cp;"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_options_end_at_once(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        benchmark.main(["converters", *words])
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_help_teaches_the_word(capsys):
    for arguments, words in (
        (["--help"], ["--parts PARTS", "benchmark converters"]),
        (["converters", "--help"], ["--report FILE", "largest tensor + 100 MB"]),
    ):
        with pytest.raises(SystemExit) as caught:
            benchmark.main(arguments)
        said = " ".join(capsys.readouterr().out.split())
        assert caught.value.code == 0 and all(word in said for word in words)
