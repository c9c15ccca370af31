# SPDX-License-Identifier: Apache-2.0
"""`python -m parity benchmark converters`: conversions against `cp`, in time and in memory.

Checkpoints with the names and shapes of the published ones, filled with seeded noise, are written to disk and
converted, each time in a fresh process, with the file in the page cache before and an fsync at the end. Every
run is followed by a `cp` (and fsync) of what it wrote: throughput is that of the conversion over that of this
cp, so that a disk whose speed drifts does not decide. A row that is a cp itself tells how far ratios can be
trusted. Before every run, free memory is touched: a virtual machine may have given it back to its host, and
writing to the page cache then takes up to four times as long. Memory is what a process takes above its state
after imports. Never a test.
"""

import argparse
import contextlib
import importlib.metadata
import json
import mmap
import os
import platform
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from converters.containers.ckpt_file import write_ckpt
from converters.containers.safetensors_file import write_safetensors
from converters.containers.target import config_beside, parse_size
from converters.containers.torch_zip import write_torch_zip
from converters.convert import convert
from converters.errors import ConversionError
from converters.layouts import FAMILIES
from converters.layouts.base import Config, Layout
from converters.output import synchronise, writing
from converters.stream import Entries, TensorEntry
from parity.harness.full import full_case

ROOT = Path(__file__).resolve().parents[1]
TARGET = 0.7  # throughput of a conversion over that of cp
ALLOWANCE = 100e6  # bytes of memory that a conversion may take besides its largest tensor
SMALL = 100_000_000
HEADS, WIDTHS = 16, (1152, 576, 288, 144, 48)  # published, and for smaller files
SEED = 2024
MAP_POPULATE = getattr(mmap, "MAP_POPULATE", 0)
WORKER = "from parity.converter_benchmark import serve; serve()"

LATTE, T2V = "Latte-XL/2", "LatteT2V"
# The tensors of LatteT2V fit several layouts. Only this one's positions are those of mindone-opensora-pku.
LAYOUTS = {LATTE: "official-latte", T2V: "open-sora-plan-v1.0"}


WRITERS = {
    ".pt": partial(write_torch_zip, wrapper="ema"),
    ".safetensors": write_safetensors,
    ".ckpt": write_ckpt,
}


@dataclass(frozen=True)
class Job:
    """One row: what is made of which file, and how ("ours", "naive" or "cp")."""

    net: str
    name: str
    way: str
    source: str
    target: str
    options: Mapping[str, object] = field(default_factory=dict, hash=False)

    @property
    def title(self) -> str:
        """The name that --only looks at."""
        return f"{self.net} {self.name}"


JOBS = (
    Job(LATTE, "cp", "cp", "source.pt", "copy.pt"),
    Job(LATTE, ".pt -> .safetensors", "ours", "source.pt", "target.safetensors"),
    Job(LATTE, ".pt -> .ckpt", "ours", "source.pt", "target.ckpt"),
    Job(LATTE, ".safetensors -> .pt", "ours", "source.safetensors", "target.pt", {"to": LAYOUTS[LATTE]}),
    Job(LATTE, ".safetensors -> 5 shards", "ours", "source.safetensors", "target", {"shards": 5}),
    Job(LATTE, ".safetensors -> bf16", "ours", "source.safetensors", "bf16.safetensors", {"dtype": "bf16"}),
    Job(LATTE, ".ckpt -> .safetensors", "ours", "source.ckpt", "target.safetensors"),
    Job(LATTE, ".pt -> .safetensors, naive", "naive", "source.pt", "target.safetensors"),
    Job(LATTE, ".pt -> .ckpt, naive", "naive", "source.pt", "target.ckpt"),
    Job(LATTE, ".safetensors -> .pt, naive", "naive", "source.safetensors", "target.pt"),
    Job(T2V, "cp", "cp", "source.safetensors", "copy.safetensors"),
    Job(
        T2V,
        ".safetensors -> pku .ckpt",
        "ours",
        "source.safetensors",
        "target.ckpt",
        {"layout": LAYOUTS[T2V], "to": "mindone-opensora-pku"},
    ),
    Job(T2V, ".safetensors -> pku .ckpt, naive", "naive", "source.safetensors", "target.ckpt"),
)


@dataclass(frozen=True)
class Run:
    """One conversion and the cp of what it wrote. Bytes; rss and anon are peaks above the baseline."""

    seconds: float
    written: int
    rss: int | None
    anon: int | None
    cp_seconds: float
    cp_written: int

    @property
    def ratio(self) -> float:
        """Throughput over that of cp, both in bytes written."""
        return (self.written / self.seconds) / (self.cp_written / self.cp_seconds)


class Failed(RuntimeError):
    """A run that gave no result; its words are for people."""


class Absent(Failed):
    """A framework that is not installed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables. Exit status 0, 1 if a row failed, 2 if nothing could be measured, 130 if interrupted."""
    options = _parse(arguments)
    rows: list[dict] = []
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        run(options, rows)
        return 1 if any("failed" in row for row in rows) else 0
    except KeyboardInterrupt:
        print("error: interrupted; the files made for the benchmark are removed", file=sys.stderr)
        return 130
    except (Failed, ConversionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if options.report and rows:
            report = {"machine": machine(options.folder), "repeats": options.repeats, "rows": rows}
            options.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m parity benchmark converters",
        description="Convert checkpoints with the names and shapes of the published ones (seeded noise), each time "
        "in a fresh process, and compare throughput with a cp of what was written, and peak memory with the "
        f"largest tensor + {ALLOWANCE / 1e6:.0f} MB. fsync included for everybody. Keep the machine otherwise idle.",
        epilog="Columns: s and GB/s written (median), / cp: throughput over that of a cp of the same bytes right after "
        f"(median, target {TARGET}), RSS MB and anon MB: peak memory above the state after imports, with and "
        "without mapped pages of files. "
        "Example: python -m parity benchmark converters --size small --only safetensors --report converters.json",
    )
    parser.add_argument(
        "--size",
        default="full",
        help="full (Latte-XL/2 2.7 GB, LatteT2V 4.2 GB), small (100 MB each), or bytes at most (4MB, 2GB): narrower "
        "and shallower nets (default: %(default)s)",
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds over all rows (default: %(default)s)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where to work: the disk to measure; everything is removed at the end (default: %(default)s)",
    )
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        help="rows whose name contains NAME (Latte-XL/2, naive, ckpt, 'cp' ...); may be repeated",
    )
    parser.add_argument("--report", metavar="FILE", type=Path, help="write every run as JSON, too")
    options = parser.parse_args(arguments)
    try:
        limit = {"full": None, "small": SMALL}
        limit = limit[options.size] if options.size in limit else parse_size(options.size)
        options.nets = {name: net(name, limit) for name in LAYOUTS}
    except ConversionError as error:
        parser.error(str(error).replace("--shard-size", "--size"))
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: expected 1 or more")
    if not options.folder.is_dir():
        parser.error(f"--folder {options.folder} is no folder")
    if options.report and not options.report.absolute().parent.is_dir():
        parser.error(f"--report {options.report}: there is no such folder")
    options.jobs = [
        job for job in JOBS if any(word.lower() in job.title.lower() for word in options.only or [""])
    ]
    if not options.jobs:
        titles = "; ".join(job.title for job in JOBS)
        parser.error(f"--only {' '.join(options.only)}: expected a part of one of: {titles}")
    return options


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


# ------------------------------------------------------------------------------------------------- the files


@dataclass(frozen=True)
class Net:
    """A synthetic checkpoint: its layout, its configuration, and tensors that are drawn when they are read."""

    layout: Layout
    config: Config
    entries: Entries

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries.values())

    @property
    def largest(self) -> int:
        return max(entry.nbytes for entry in self.entries.values())


def net(name: str, limit: int | None = None) -> Net:
    """The published net, or the widest one (then the deepest) that takes at most `limit` bytes."""
    depth = full_case(name).init.get("depth") or full_case(name).init["num_layers"]
    if limit is None:
        return _net(name, WIDTHS[0], depth)
    for width in WIDTHS:
        least = _net(name, width, 2).nbytes
        pair = _net(name, width, 4).nbytes - least  # two blocks more
        if least <= limit:
            return _net(name, width, 2 + (limit - least) // pair * 2)
    raise ConversionError(f"no {name} is so small", got=f"{limit} bytes", expected=f"at least {least}")


def _net(name: str, width: int, depth: int) -> Net:
    layout, init = FAMILIES["latte"].layouts[LAYOUTS[name]], full_case(name).init
    if name == T2V:
        sizes = dict(attention_head_dim=width // HEADS, cross_attention_dim=width, num_layers=depth)
        sizes["use_additional_conditions"] = False
    else:
        sizes = dict(hidden_size=width, num_heads=HEADS, depth=depth)
    config = {**init, **sizes}
    config |= layout.defaults(config)
    shapes = {
        row.theirs: row.rule.fill(config).shape if row.rule.extra else row.shape["theirs"]
        for row in layout.rows(config, layout.model.dims(config))
    }
    # Files hold their tensors block by block, tables row by row.
    names = sorted(shapes, key=lambda name: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", name)])
    return Net(layout, config, {name: noise(shapes[name], seed) for seed, name in enumerate(names)})


def noise(shape: tuple[int, ...], seed: int) -> TensorEntry:
    """A tensor that no file system can compress: numbers below 2, of either sign, with a random mantissa."""

    def draw() -> np.ndarray:
        bits = np.random.default_rng([SEED, seed]).integers(0, 1 << 32, prod(shape), np.uint32)
        bits &= np.uint32(0xBFFFFFFF)  # finite, and so in bfloat16
        bits |= np.uint32(0x20000000)  # not denormal
        return bits.view(np.float32).reshape(shape)

    return TensorEntry("F32", shape, draw)


def make(net: Net, path: Path) -> None:
    """Write the checkpoint as it is published, in whatever container the name asks for, config.json beside it."""
    with writing(path) as output:
        WRITERS[path.suffix](output, net.entries, {})
    config_beside(path).write_text(json.dumps(net.layout.card(net.config)))


@contextlib.contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """A new folder that is gone afterwards, whatever happens; a second Ctrl-C does not keep it."""
    place = Path(tempfile.mkdtemp(prefix="parity-converters-", dir=folder))
    try:
        yield place
    finally:
        before = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        shutil.rmtree(place)
        for number, handler in before.items():
            signal.signal(number, handler)


def check_space(folder: Path, net: Net, sources: int) -> None:
    """Raise Failed unless the sources, a target and a copy of it fit on the disk."""
    need, free = 1.02 * net.nbytes * (sources + 2), shutil.disk_usage(folder).free
    if need > free:
        raise Failed(
            f"not enough space in {folder}: got {_amount(free)}, expected {_amount(need)}; "
            "remedy: --folder DIR on another disk, or --size small"
        )


def warm(path: Path) -> None:
    """Read files once, so that whoever reads them next finds them in the page cache."""
    room = memoryview(bytearray(1 << 22))
    for part in _files(path):
        with part.open("rb", buffering=0) as file:
            while file.readinto(room):
                pass


def touch_memory(size: int) -> None:
    """Take that much free memory (or most of it) and let it go, so that the machine has it when a run needs it."""
    count = min(size, _meminfo("MemFree") - 500_000_000)
    if count > 0:
        mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_POPULATE).close()


def clear(path: Path) -> None:
    """Remove a former file or folder and wait for the disk, so that nobody pays for what was before."""
    if path.exists():
        shutil.rmtree(path)
    os.sync()


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in _files(path))


# ------------------------------------------------------------------------------------------------- measuring


def run(options: argparse.Namespace, rows: list[dict]) -> None:
    """Measure all chosen rows, net by net, and print their tables; `rows` receives what --report holds."""
    print(" · ".join(f"{key} {value}" for key, value in machine(options.folder).items()), flush=True)
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {text}", file=sys.stderr, flush=True)

    chosen = {name: [job for job in options.jobs if job.net == name] for name in options.nets}
    chosen = {name: jobs for name, jobs in chosen.items() if jobs}
    for name, jobs in chosen.items():
        check_space(options.folder, options.nets[name], len({job.source for job in jobs}))
    for name, jobs in chosen.items():
        with workplace(options.folder) as place:
            say(f"{place} will be removed at the end")
            measure(name, options.nets[name], jobs, options.repeats, place, say, rows)


def measure(
    name: str,
    net: Net,
    jobs: Sequence[Job],
    repeats: int,
    place: Path,
    say: Callable[[str], None],
    rows: list[dict],
) -> None:
    """All rounds over the rows of a net. Each round begins with another row: none always follows the same one."""
    for source in dict.fromkeys(job.source for job in jobs):
        say(f"making {name} {source}, {_amount(net.nbytes)}")
        make(net, place / source)
    if 3 * net.nbytes > (memory := _meminfo("MemAvailable")):
        print(
            f"note: {_amount(memory)} of free memory do not cache source, target and copy: reads count, too"
        )
    runs: dict[Job, list[Run]] = {job: [] for job in jobs}
    lost: dict[Job, dict[str, str]] = {}
    try:
        for turn in range(repeats):
            for job in [*jobs[turn % len(jobs) :], *jobs[: turn % len(jobs)]]:
                if job in lost:
                    continue
                try:
                    runs[job].append(one := _turn(job, net, place))
                    say(f"round {turn + 1} of {repeats}  {job.title}: {one.seconds:.2f} s")
                except Failed as error:
                    lost[job] = {"skipped" if isinstance(error, Absent) else "failed": str(error)}
                    say(f"round {turn + 1} of {repeats}  {job.title}: {error}")
    finally:  # what an interruption left, too
        found = [summary(job, runs[job], net, lost.get(job, {})) for job in jobs if runs[job] or job in lost]
        rows += found
        if found:
            show(name, net, found)


def _turn(job: Job, net: Net, place: Path) -> Run:
    """The conversion into a folder "out", then the cp of that folder. Both begin alike: the former of its kind
    removed, nothing left to write, the source in the page cache."""
    if job.way == "naive" and 3 * net.nbytes > _meminfo("MemAvailable"):
        raise Absent(
            f"takes about {_amount(3 * net.nbytes)} of memory, {_amount(_meminfo('MemAvailable'))} are free"
        )
    clear(place / "out")
    (place / "out").mkdir()
    seconds, rss, anon = _timed(job.way, place / job.source, place / "out" / job.target, job.options)
    clear(place / "copy")
    cp_seconds, _, _ = _timed("cp", place / "out", place / "copy", {})
    written, copied = _size(place / "out"), _size(place / "copy")
    return Run(seconds, written, rss, anon, cp_seconds, copied)


def _timed(
    way: str, source: Path, target: Path, options: Mapping[str, object]
) -> tuple[float, int | None, int | None]:
    """(seconds, peak of all resident memory, peak of anonymous memory) of one piece of work in a process of its own.

    The former peak is kept by the kernel, the latter is looked at every few milliseconds.
    """
    warm(source)
    job = dict(way=way, source=str(source), target=str(target), options=dict(options))
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={"GLOG_v": "3", **os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for us alone
        )
        try:
            with contextlib.suppress(BrokenPipeError):  # it died: _answer says how
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()
            ready = _answer(process, log, way)
            peak = base = _anonymous(process.pid)
            touch_memory(3 * _size(source))
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(b"go\n")
                process.stdin.flush()
            while not select.select([process.stdout], [], [], 0.005)[0]:
                peak = max(peak, _anonymous(process.pid))
            done = _answer(process, log, way)
        finally:  # it has nothing more to do; cp is its child
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
    if way == "cp":
        return done["seconds"], None, None
    return done["seconds"], max(done["peak"] - ready["resident"], 0), peak - base


def _answer(process: subprocess.Popen, log, way: str) -> dict:
    line = process.stdout.readline()
    if not line:
        code = process.wait()
        log.seek(0)
        words = log.read()[-2000:].decode(errors="replace").strip()
        raise Failed(f"{way} died with status {code}" + f"; its last words: {words}" * bool(words))
    answer = json.loads(line)
    if "absent" in answer:
        raise Absent(answer["absent"])
    if "error" in answer:
        raise Failed(answer["error"])
    return answer


def _anonymous(pid: int) -> int:
    """Anonymous memory of a process in bytes; 0 when it has ended."""
    try:
        return _status(pid)["RssAnon"]
    except (OSError, KeyError):
        return 0


def _status(pid: int | str = "self") -> dict[str, int]:
    """The sizes in /proc/PID/status, in bytes."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words[-1] == "kB"}


def _meminfo(name: str) -> int:
    """MemFree, MemAvailable ... in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return 1024 * int(found[1])


# ------------------------------------------------------------------------------------------------- the worker


def serve() -> None:
    """The life of a worker: one job from stdin, its imports, ready, the word to begin, the work, its figures."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # frameworks print

    def tell(**words: object) -> None:
        print(json.dumps(words), file=answers, flush=True)

    line = sys.stdin.readline()
    if not line:
        return  # an interruption came before the job
    job = json.loads(line)
    try:
        work = WAYS[job["way"]](Path(job["source"]), Path(job["target"]), **job["options"])
        with contextlib.suppress(OSError):  # else the peak is that of imports, if higher: never too good
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        tell(resident=_status()["VmRSS"])
        if not sys.stdin.readline():
            return  # nobody waits for us any more
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        tell(seconds=seconds, peak=_status()["VmHWM"])
    except ImportError as error:
        tell(absent=str(error))
    except Exception as error:
        traceback.print_exc()
        tell(error=f"{type(error).__name__}: {error}")


def ours(source: Path, target: Path, shards: int | None = None, **options: str) -> Callable[[], object]:
    """The converter, which syncs by itself."""
    size = {} if shards is None else {"shard_size": source.stat().st_size // shards}
    return partial(convert, source, target, say=lambda line: None, **size, **options)


def copied(source: Path, target: Path) -> Callable[[], object]:
    """cp of a file or a folder, then fsync of all that it wrote."""

    def work() -> None:
        subprocess.run(["cp", "-r", "--reflink=never", str(source), str(target)], check=True)
        settle(target)

    return work


def naive(source: Path, target: Path) -> Callable[[], object]:
    """What one writes by hand: everything in memory, names replaced, saved by the framework's function; then fsync."""
    import torch
    from safetensors.torch import load_file, save_file

    if target.suffix == ".ckpt":
        import mindspore

    def work() -> None:
        if source.suffix == ".safetensors":
            tensors = load_file(source)
        else:
            tensors = torch.load(source, map_location="cpu", weights_only=True)["ema"]
        tensors = {_renamed(name): tensor for name, tensor in tensors.items()}
        if target.suffix == ".ckpt":
            named = [dict(name=name, data=mindspore.Tensor(one.numpy())) for name, one in tensors.items()]
            mindspore.save_checkpoint(named, str(target))
        elif target.suffix == ".pt":
            torch.save({"ema": tensors}, target)
        else:
            save_file(tensors, target)
        settle(target)

    return work


def _renamed(name: str) -> str:
    """Names of LatteT2V as mindone's opensora_pku has them; Latte's stay."""
    name = re.sub(r"^transformer_blocks\.(\d+)", r"blocks.\1.spatial_block", name)
    return re.sub(r"^temporal_transformer_blocks\.(\d+)", r"blocks.\1.temp_block", name)


def settle(path: Path) -> None:
    """fsync of files and of the folders that they are in."""
    for file in _files(path):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    for folder in {path.parent, *(file.parent for file in _files(path))}:
        synchronise(folder)


WAYS: dict[str, Callable[..., Callable[[], object]]] = {"ours": ours, "naive": naive, "cp": copied}


# ------------------------------------------------------------------------------------------------- telling


def summary(job: Job, runs: Sequence[Run], net: Net, lost: Mapping[str, str]) -> dict:
    """A row: medians, ranges, the worst peaks, and both verdicts ("ok", "over" or "slow"; None: not judged)."""
    row = {"net": job.net, "name": job.name, "way": job.way, "largest": net.largest, **lost}
    if not runs:
        return row
    seconds, ratios = [run.seconds for run in runs], [run.ratio for run in runs]
    row |= {
        "seconds": statistics.median(seconds),
        "seconds_range": [min(seconds), max(seconds)],
        "written": runs[0].written,
        "bytes_per_second": statistics.median(run.written / run.seconds for run in runs),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "rss": max((run.rss for run in runs if run.rss is not None), default=None),
        "anon": max((run.anon for run in runs if run.anon is not None), default=None),
        "memory_limit": net.largest + int(ALLOWANCE),
        "runs": [asdict(run) | {"ratio": run.ratio} for run in runs],
    }
    peak = None if row["rss"] is None else max(row["rss"], row["anon"])
    row["memory"] = None if peak is None else "ok" if peak <= row["memory_limit"] else "over"
    row["speed"] = None if job.way != "ours" else "ok" if row["ratio"] >= TARGET else "slow"
    return row


def show(name: str, net: Net, rows: Sequence[dict]) -> None:
    """The table of a net."""
    print()
    print(
        f"{name} · {_amount(net.nbytes)} in {len(net.entries)} tensors · largest {net.largest / 1e6:.1f} MB, "
        f"memory limit {(net.largest + ALLOWANCE) / 1e6:.1f} MB · speed target {TARGET} of cp"
    )
    print(
        f"{'':<34} {'s':>7} {'range':<13} {'GB/s':>6} {'/ cp':>5} {'range':<11} {'RSS MB':>7} {'anon MB':>8}  "
        "memory speed"
    )
    for row in rows:
        if "seconds" not in row:
            why = row.get("skipped") or row.get("failed")
            print(f"{row['name']:<34} {'skipped' if 'skipped' in row else 'failed'}: {why}")
            continue
        spread = f"{row['seconds_range'][0]:.2f} - {row['seconds_range'][1]:.2f}"
        ratios = f"{row['ratio_range'][0]:.2f} - {row['ratio_range'][1]:.2f}"
        memory = ["-" if row[key] is None else f"{row[key] / 1e6:.1f}" for key in ("rss", "anon")]
        print(
            f"{row['name']:<34} {row['seconds']:>7.2f} {spread:<13} {row['bytes_per_second'] / 1e9:>6.2f} "
            f"{row['ratio']:>5.2f} {ratios:<11} {memory[0]:>7} {memory[1]:>8}  {row['memory'] or '-':<6} "
            f"{row['speed'] or '-'}" + f"  failed: {row.get('failed')}" * ("failed" in row),
            flush=True,
        )


def _amount(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def machine(folder: Path) -> dict[str, str]:
    """What the figures depend on."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    found = {
        "cores": f"{len(os.sched_getaffinity(0))} {model[1] if model else platform.machine()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.0f} GB",
        "system": platform.release(),
        "folder": f"{folder} ({_file_system(folder)})",
        "python": platform.python_version(),
    }
    for name in ("numpy", "torch", "safetensors", "mindspore"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _file_system(folder: Path) -> str:
    """Its type: on a tmpfs, neither fsync nor the page cache means anything."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [(place, kind) for place, kind in mounts if folder.resolve().is_relative_to(place)]
    return max(inside, key=lambda mount: len(mount[0]), default=("", "unknown"))[1]
