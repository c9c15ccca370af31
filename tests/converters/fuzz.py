# SPDX-License-Identifier: Apache-2.0
"""Damaged, odd and hostile inputs through the converters' commands; every case is judged by the same rules.

  python tests/converters/fuzz.py --cases 10000 --processes 200 --seed 0 --jobs 2 --report report.json
  python tests/converters/fuzz.py --replay 0:1234 --keep /tmp/case

A case is a small checkpoint of the Latte family, a VAE or T5 in some container, one mutation, one command with
options. It is a function of (seed, index), so that two numbers are enough to see it again. Most cases call `main`
in a guarded worker: limited memory, an alarm, an audit hook that notes whatever would be execution of code or a
write outside of the case's folder, and a watchdog in this process. `--processes` more run as users run them.
What a command wrote is compared with what torch, safetensors and protobuf read in the mutated input.
"""

import argparse
import contextlib
import dataclasses
import faulthandler
import gc
import hashlib
import importlib
import importlib.util
import io
import itertools
import json
import os
import re
import resource
import select
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

if __name__ == "__main__":  # find the repository, and keep our folder off the path
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parents[1]), *(place for place in sys.path if Path(place).resolve() != here)]

from tests.converters.fuzz_cases import COMMANDS, INSPECT, KINDS, PROCESSES, Case, clear, kind_of, make_case
from tests.converters.fuzz_files import (
    FLOATS,
    ROOT,
    WORDS,
    Seed,
    Tensor,
    environment,
    load_seeds,
    make_seeds,
    torch_dtypes,
    view,
    weights_of,
)

CPU_LIMIT = 10.0  # seconds of processor time; the slowest input, 70,000 values of a ckpt, takes 2 to 3
HANG = 30  # seconds until the alarm; the watchdog kills as much later
# Resident bytes above the worker's own: 16 parts of `stream.PART`. A cast holds a part in two dtypes and flags of
# infinity, a comparison two parts; a header of 100 MB, the most that safetensors allows, is held twice.
MEMORY = 256 << 20
PER_BYTE = 200  # and so much for each byte of input: an empty dict of a pickle takes one byte there, 64 here
PER_WRITTEN = 6  # and for each byte of output: tables that a configuration asks for are computed in float64
ADDRESSES = 3 << 30  # bytes of address space above the worker's own, so that a mistake stays harmless
MESSAGE = 20_100  # letters of an error: `errors.printable` stops there


# -------------------------------------------------------------------------------------------- the guarded worker
# fmt: off
LAUNCHES = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn", "os.putenv",
            "subprocess.Popen", "socket.", "pickle.find_class", "webbrowser.open", "urllib.Request", "ftplib.")
CHANGES = {  # audit event -> how many of its arguments are paths that it changes
    "os.mkdir": 1, "os.rmdir": 1, "os.remove": 1, "os.rename": 2, "os.symlink": 2, "os.truncate": 1, "os.chmod": 1,
    "os.chown": 1, "os.link": 2, "os.utime": 1, "shutil.rmtree": 1, "shutil.move": 2, "shutil.copyfile": 2,
    "tempfile.mkdtemp": 1,
}
# fmt: on
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Hang(BaseException):
    """The alarm of a case; no `except Exception` catches it."""


class Watch:
    """The audit hook: while it is on, it notes executed code and changes outside of `roots`."""

    def __init__(self):
        self.on, self.roots, self.events = False, (), []
        # The code of Python, numpy and this repository may run; whatever else is compiled or executed may not.
        libraries = os.path.dirname(os.__file__), os.path.dirname(np.__file__)
        self.known = (str(ROOT / "converters"), *libraries, "<frozen")

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event.startswith(LAUNCHES):
            self.events.append(f"executed: {event} {ascii(arguments)[:100]}")
        elif event == "import":
            name = arguments[0].partition(".")[0]
            if name not in sys.stdlib_module_names and name not in ("converters", "numpy"):
                self.events.append(f"executed: import {arguments[0]}")
        elif event in ("exec", "compile"):
            file = arguments[0].co_filename if event == "exec" else arguments[1]
            if not str(os.fsdecode(file) if isinstance(file, bytes) else file).startswith(self.known):
                self.events.append(f"executed: {event} of {ascii(file)[:100]}")
        elif event == "ctypes.dlopen" and arguments[0] is not None:
            self.events.append(f"executed: dlopen {arguments[0]!r}")
        elif event == "open":
            path, mode, flags = arguments
            writes = flags & WRITES if isinstance(flags, int) else set(mode or "") & set("wax+")
            if writes and not isinstance(path, int) and not self.inside(os.path.realpath(path)):
                self.events.append(f"outside: open {ascii(path)[:200]}")
        elif event in CHANGES:
            for path in arguments[1:2] if event == "os.link" else arguments[: CHANGES[event]]:
                if isinstance(path, (str, bytes, os.PathLike)) and not self.inside(place_of(path)):
                    self.events.append(f"outside: {event} {ascii(path)[:200]}")

    def inside(self, path: str | bytes) -> bool:
        path = os.fsdecode(path)
        return any(path == root or path.startswith(root.rstrip("/") + "/") for root in self.roots)


def place_of(path: str | bytes | os.PathLike) -> str:
    """Where a name lies, itself not followed."""
    folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
    return os.path.join(os.path.realpath(folder), name)


def main_of(script: str) -> Callable[[list[str]], int]:
    """`main` of a script: of this package, or of a file elsewhere (the tests of the fuzzer)."""
    path = Path(script)
    if not path.is_absolute():
        return importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
    found = importlib.util.spec_from_file_location(f"stub_{path.stem}", path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.main


def status_of(process: str, name: str) -> int:
    """A number of /proc/PROCESS/status, in bytes."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(re.search(rf"^{name}:\s+(\d+) kB", text, re.M)[1]) << 10


@contextlib.contextmanager
def alarm(seconds: int) -> Iterator[None]:
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def serve() -> None:
    """The worker: a request in JSON on each line of stdin, an answer on each line of stdout."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for script in (*COMMANDS.values(), INSPECT):
        main_of(script)

    def ring(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, ring)
    watch = Watch()
    sys.addaudithook(watch)
    resource.setrlimit(resource.RLIMIT_AS, (status_of("self", "VmSize") + ADDRESSES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    below = os.memfd_create("below")  # what is printed without Python
    os.dup2(below, 1)
    os.dup2(below, 2)
    for category in (UserWarning, RuntimeWarning):  # which users see as well, but once
        warnings.simplefilter("always", category)
    answers.write("{}\n")
    answers.flush()
    for line in requests:
        os.ftruncate(below, 0)
        os.lseek(below, 0, os.SEEK_SET)
        answer = serve_one(json.loads(line), watch)
        answer["err"] += os.pread(below, 1 << 20, 0).decode("utf-8", "replace")
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def serve_one(request: Mapping, watch: Watch) -> dict:
    """Run one command; the fields of `Outcome`."""
    from converters.checkpoint import load

    os.chdir(request["folder"])
    answer = {"raised": None, "hang": False, "code": None, "again": None, "leaks": []}
    out, err = io.BytesIO(), io.BytesIO()
    sys.stdout = io.TextIOWrapper(out, "utf-8", "strict", write_through=True)
    sys.stderr = io.TextIOWrapper(err, "utf-8", "backslashreplace", write_through=True)
    command = main_of(request["script"])
    handles, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status_of("self", "VmRSS")
    start, cpu = time.monotonic(), time.process_time()
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    if request["file_limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"], usual[1]))
    watch.roots, watch.events, watch.on = tuple(request["roots"]), [], True
    try:
        with alarm(request["hang"]):
            answer["code"] = command(request["arguments"])
    except SystemExit as done:
        answer["code"] = done.code if isinstance(done.code, int) else int(done.code is not None)
    except Hang:
        answer["hang"] = True
    except BaseException as error:
        watch.on = False  # traceback compiles what it shows
        traceback.print_exc()
        answer["raised"], answer["code"] = f"{type(error).__name__}: {str(error)[:200]}", 1
    resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    answer["cpu"], answer["wall"] = time.process_time() - cpu, time.monotonic() - start
    answer["memory"] = max(status_of("self", "VmHWM") - before, 0)
    if answer["code"] == 0 and request["target"]:
        try:
            with alarm(request["hang"]):
                found = load(request["target"], layout=request["layout"], family=request["family"])
                answer["again"] = {"config": found.config, "names": list(found.tensors)}
                del found
        except (Exception, Hang) as error:
            answer["again"] = {"error": f"{type(error).__name__}: {error}"}
    watch.on = False
    answer["events"] = watch.events
    if len(os.listdir("/proc/self/fd")) > handles:
        gc.collect()
    if (now := len(os.listdir("/proc/self/fd"))) > handles:
        answer["leaks"].append(f"{now - handles} open files")
    if (now := threading.active_count()) > threads:
        answer["leaks"].append(f"{now - threads} threads")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):
            stream.flush()
    answer["out"], answer["err"] = (file.getvalue().decode("utf-8", "replace") for file in (out, err))
    return answer


@dataclass
class Outcome:
    """What became of a command.

    raised  what it raised; died  why it did not end by itself; hang  the alarm stopped it
    again   what `load` found in the target; leaks  open files and threads that it left
    """

    code: int | None = None
    out: str = ""
    err: str = ""
    cpu: float = 0.0
    wall: float = 0.0
    memory: int = 0
    raised: str | None = None
    hang: bool = False
    died: str | None = None
    again: dict | None = None
    events: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)


class Worker:
    """The guarded worker as seen from here; started anew when it has died."""

    def __init__(self, yard: Path, hang: int = HANG):
        self.yard, self.hang, self.process, self.starts = yard, hang, None, 0

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()

    def start(self) -> None:
        self.starts += 1
        path = self.yard.parent / f"{self.yard.name}.worker.log"
        with path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--worker"],
                cwd=ROOT,
                env=environment(TMPDIR=str(self.yard / "tmp")),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        if not self.process.stdout.readline():
            raise RuntimeError(f"the worker does not start: {path.read_text()[-2000:]}")

    def ask(self, case: Case) -> Outcome:
        if self.process is None or self.process.poll() is not None:
            self.start()
        request = {
            "script": case.script,
            "arguments": case.arguments,
            "folder": str(case.folder),
            "roots": [os.path.realpath(root) for root in case.roots],
            "hang": self.hang,
            "file_limit": case.file_limit,
            "target": None if case.inspects else case.target,
            "layout": None if case.to == "ours" else case.to,
            "family": next((name for name, script in COMMANDS.items() if script == case.script), "latte"),
        }
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        line, deadline = b"", time.monotonic() + 2 * self.hang
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                self.process.kill()
                self.process.communicate()
                return Outcome(died="hang: the alarm went unheard, the watchdog killed it")
            piece = os.read(self.process.stdout.fileno(), 1 << 20)
            if not piece:
                return Outcome(died=f"crash: the worker ended with code {self.process.wait()}")
            line += piece
        return Outcome(**json.loads(line))


def run_process(case: Case, hang: int = HANG) -> Outcome:
    """The case as users run it, with limits."""
    script = case.script if os.path.isabs(case.script) else str(ROOT / case.script)
    file_limit = max(case.file_limit, 1 << 14) if case.file_limit else resource.RLIM_INFINITY
    peak, start, died = 0, time.monotonic(), None

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        resource.setrlimit(resource.RLIMIT_CPU, (hang, hang + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [sys.executable, script, *case.arguments],
            cwd=case.folder,
            env=environment(TMPDIR=str(case.folder.parent / "tmp"), PYTHONDONTWRITEBYTECODE="1"),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            preexec_fn=limit,
        )
        while (done := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            with contextlib.suppress(OSError, TypeError):
                peak = status_of(str(process.pid), "VmHWM")
            if time.monotonic() - start > 2 * hang:
                os.kill(process.pid, signal.SIGKILL)  # process.kill() would reap it before wait4 does
                died = "hang: it had to be killed"
            time.sleep(0.002)
        _, status, usage = done
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode < 0 and not died:
            died = f"crash: signal {-process.returncode}"
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    return Outcome(
        code=process.returncode,
        out=texts[0],
        err=texts[1],
        cpu=usage.ru_utime + usage.ru_stime,
        wall=time.monotonic() - start,
        memory=max(peak - (64 << 20), 0),  # Python and numpy take about 40 MiB
        raised=texts[1].rstrip().rpartition("\n")[2]
        if "Traceback (most recent call last)" in texts[1]
        else None,
        died=died,
    )


# --------------------------------------------------------------------------------------------------- verdicts


def snapshot(folder: Path) -> dict[str, tuple]:
    """Every name below a folder: what it is, its rights, its content."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = os.path.join(place, name)
            about, content = os.lstat(path), None
            if stat.S_ISLNK(about.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(about.st_mode) and about.st_size > 64 << 20:
                content = about.st_size, about.st_mtime_ns
            elif stat.S_ISREG(about.st_mode):
                content = about.st_size, None
                with contextlib.suppress(PermissionError):  # some cases take the right to read away
                    content = about.st_size, hashlib.sha1(Path(path).read_bytes()).digest()
            found[os.path.relpath(path, folder)] = about.st_mode, content
    return found


def changes(before: Mapping[str, tuple], after: Mapping[str, tuple]) -> list[str]:
    return sorted(name for name in {**before, **after} if before.get(name) != after.get(name))


@dataclass
class Trial:
    """A case, what became of it, and the folder before and after.

    yard     what changed around the case's folder
    promise  what the converter said to a file that fits, as the command that inspects told
    """

    case: Case
    outcome: Outcome
    before: dict[str, tuple]
    after: dict[str, tuple]
    yard: list[str]
    plans: "Plans"
    promise: Outcome | None = None

    @property
    def stopped(self) -> bool:
        return bool(self.outcome.died) or self.outcome.hang

    @property
    def converted(self) -> bool:
        return self.outcome.code == 0 and not self.case.inspects and self.case.target is not None

    @property
    def word(self) -> str:
        """The outcome, for the summary."""
        if self.stopped:
            return "died"
        if self.case.inspects:
            return {0: "inspected", 1: "no layout"}.get(self.outcome.code, "refused")
        return "refused" if self.outcome.code else "converted" if self.case.target else "helped"


OUTCOMES = ("converted", "refused", "inspected", "no layout", "helped", "died")
Rule = Callable[[Trial], Iterator[str]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """A rule gives a line for each way in which a trial breaks it."""
    RULES[function.__name__] = function
    return function


def judge(trial: Trial) -> list[str]:
    """Everything that is wrong with a trial, as "rule: what"."""
    return [f"{name}: {line}" for name, check in RULES.items() for line in check(trial)]


@rule
def ends(trial: Trial) -> Iterator[str]:
    """By itself, with a documented exit code, without a traceback."""
    outcome = trial.outcome
    documented = (0, 1, 2) if trial.case.inspects else (0, 2)
    if trial.stopped:
        yield outcome.died or f"hang: the alarm rang after {outcome.wall:.0f} s"
    elif outcome.raised:
        yield f"traceback: {outcome.raised}"
    elif outcome.code not in documented:
        yield f"exit code {outcome.code}, documented are {documented}"


@rule
def speaks(trial: Trial) -> Iterator[str]:
    """One line of error on failure, nothing on stderr otherwise, and never a letter that steers the terminal."""
    outcome = trial.outcome
    if trial.stopped or outcome.raised:
        return
    if outcome.code == 2:
        if not re.fullmatch(r"error: [^\n]+\n", outcome.err):
            yield f"stderr is not one line of error: {outcome.err[:300]!r}"
        if len(outcome.err) > MESSAGE:
            yield f"an error of {len(outcome.err)} letters"
    elif outcome.err:
        yield f"no failure, and on stderr: {outcome.err[:300]!r}"
    for name, text in (("stdout", outcome.out), ("stderr", outcome.err)):
        if not text.replace("\n", "").isprintable():
            yield f"{name} holds {next(c for c in text if c != chr(10) and not c.isprintable())!r}"


@rule
def cleans_up(trial: Trial) -> Iterator[str]:
    """A failure leaves everything as it was; success changes the target's files alone, older ones with --force."""
    case, changed = trial.case, changes(trial.before, trial.after)
    if case.target and not case.inspects:  # what a killed process left of this target is removed by the next
        leftover = re.compile(
            rf"(.*/)?\.{re.escape(os.path.basename(case.target))}\.unfinished-[^/.]+\.tmp(/.*)?"
        )
        changed = [name for name in changed if name in trial.after or not leftover.fullmatch(name)]
    if not changed or trial.outcome.died:
        return
    if not trial.converted:
        for name in changed:
            how = "left behind" if name not in trial.before else "changed or removed"
            yield f"{how} by a command that {'failed' if trial.outcome.code else 'only looks'}: {name}"
        return
    target = place_of(case.folder / case.target)
    mine = os.path.relpath(target, case.folder)
    for name in changed:
        belongs = name in (mine, f"{mine}.json", f"{mine}.extras.safetensors")
        if not belongs and not (os.path.isdir(target) and name.startswith(f"{mine}/")):
            yield f"success changed {name}, which is no part of the target {case.target}"
        elif name in trial.before and "--force" not in case.arguments:
            yield f"without --force, {name} was changed or removed"
    source = os.path.relpath(os.path.realpath(case.folder / case.source), case.folder)
    if any(name == source or name.startswith(f"{source}/") for name in changed if name in trial.before):
        yield "the source was changed"


@rule
def stays_inside(trial: Trial) -> Iterator[str]:
    """No write outside of the case's folder."""
    yield from (event for event in trial.outcome.events if event.startswith("outside"))
    yield from (
        f"outside of the case's folder: {name}" for name in trial.yard if not name.startswith("canary/")
    )


@rule
def runs_nothing(trial: Trial) -> Iterator[str]:
    """No code from the input, no process, no connection."""
    yield from (event for event in trial.outcome.events if event.startswith("executed"))
    yield from (f"the canary was hit: {name}" for name in trial.yard if name.startswith("canary/"))


@rule
def is_modest(trial: Trial) -> Iterator[str]:
    """Memory, time, open files and threads."""
    outcome = trial.outcome
    sizes = [content[0] for _, content in trial.before.values() if isinstance(content, tuple)]
    size = sum(size for size in sizes if size <= 64 << 20)
    new = [trial.after[name][1] for name in changes(trial.before, trial.after) if name in trial.after]
    written = sum(content[0] for content in new if isinstance(content, tuple))
    if outcome.memory > MEMORY + PER_BYTE * size + PER_WRITTEN * written:
        yield f"memory: {outcome.memory >> 20} MiB for {size:,} bytes of input"
    if re.search("not enough memory|Cannot allocate", outcome.err):
        yield f"memory: {outcome.err[:200]}"
    if outcome.cpu > CPU_LIMIT:
        yield f"slow: {outcome.cpu:.1f} s"
    yield from (f"leak: {leak}" for leak in outcome.leaks)


@rule
def is_right(trial: Trial) -> Iterator[str]:
    """What has to be refused is refused, what is whole is taken; what fits in one command's eyes, the other takes."""
    case, outcome = trial.case, trial.outcome
    if case.must == "refuse" and outcome.code in (0, 1):
        yield "accepted what has to be refused"
    if case.must == "convert" and outcome.code != 0:
        yield f"refused what is whole: {outcome.err[:300]}"
    if trial.promise and trial.promise.code != 0:
        yield f"inspect said that it fits, the converter said {trial.promise.err[:300] or trial.promise.died}"


@rule
def writes_what_it_read(trial: Trial) -> Iterator[str]:
    """The target is complete, others read it, and it holds what others see in the source."""
    case, again = trial.case, trial.outcome.again
    if not trial.converted:
        return
    target = case.folder / case.target
    if not os.path.lexists(target):
        yield "success without a target"
        return
    if again and "error" in again:
        yield f"our own target cannot be opened: {again['error'][:300]}"
        return
    try:
        written, extras = view(written_weights(target)), {}
        for path in extras_of(target):
            extras |= view(path)
    except Exception as error:
        yield f"others cannot read the target: {type(error).__name__}: {str(error)[:300]}"
        return
    if again:
        printed = re.search(r"^config    (.*)$", trial.outcome.out, re.M)
        if printed and json.loads(printed[1]) != json.loads(json.dumps(again["config"])):
            yield f"the target says {again['config']}, the command said {printed[1]}"
        if case.given is not None:
            yield from disobeyed(case, again["config"])
    if case.readable:
        yield from itertools.islice(differences(trial, weights_of(written, "ema"), extras), 3)


def written_weights(target: Path) -> Path:
    if not target.is_dir():
        return target
    inside = sorted(target.iterdir())
    indices = [path for path in inside if path.name.endswith(".safetensors.index.json")]
    single = [path for path in inside if path.suffix == ".safetensors" and ".extras." not in path.name]
    (found,) = indices or single
    return found


def extras_of(target: Path) -> list[Path]:
    if target.is_dir():
        return [path for path in target.iterdir() if path.name.endswith(".extras.safetensors")]
    beside = target.with_name(f"{target.name}.extras.safetensors")
    return [beside] if beside.is_file() else []


def disobeyed(case: Case, config: Mapping[str, object]) -> Iterator[str]:
    """Arguments of a configuration file that did not arrive."""
    told = {pair.partition("=")[0] for pair in case.settings}

    def plain(value: object) -> object:
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            return plain(value[0])
        return float(value) if type(value) in (int, float) else value

    for key, value in case.given.items():
        if key in config and key not in told and plain(config[key]) != plain(value):
            yield f"{key} is {str(config[key])[:60]!r}, the configuration said {str(value)[:60]!r}"


class Plans:
    """Where each tensor of an unharmed seed goes: learned once from a clean conversion of it."""

    def __init__(self, folder: Path):
        self.folder, self.known = folder, {}

    def of(self, case: Case) -> dict[str, tuple[str | None, np.ndarray | None, Tensor]]:
        """target name -> (source name, permutation, what stood there); source None: filled in by the converter."""
        from converters.convert import convert
        from converters.errors import ConversionError

        base = case.base
        key = base.name, case.to, case.which, case.layout
        if key in self.known:
            return self.known[key]
        path = self.folder / "plan.safetensors"
        pairs = (setting.partition("=") for setting in base.settings)
        wanted = {
            "which": case.which,
            "layout": case.layout,
            "to": case.to,
            "overrides": {name: json.loads(value) for name, _, value in pairs},
            "family": base.family,
        }
        plan = self.known[key] = {}
        with contextlib.suppress(ConversionError):
            convert(base.folder / base.source, path, **wanted, force=True, say=lambda line: None)
            for name, tensor in view(path).items():
                plan[name] = *origin_of(tensor, base.tensors(case.which)), tensor
        return plan


def origin_of(tensor: Tensor, source: Mapping[str, Tensor]) -> tuple[str | None, np.ndarray | None]:
    """The source tensor that holds the same numbers, and their new order where that is another."""
    for name, other in source.items():
        if other.word == tensor.word and other.raw == tensor.raw:
            return name, None
    mine = np.frombuffer(tensor.raw, f"u{WORDS[tensor.word][0]}")
    order = np.argsort(mine, kind="stable")
    for name, other in source.items():
        theirs = np.frombuffer(other.raw, f"u{WORDS[other.word][0]}")
        if other.word == tensor.word and len(theirs) == len(mine):
            there = np.argsort(theirs, kind="stable")
            if np.array_equal(theirs[there], mine[order]):
                permutation = np.empty(len(mine), np.int64)
                permutation[order] = there
                return name, permutation
    return None, None


def differences(trial: Trial, written: Mapping[str, Tensor], extras: Mapping[str, Tensor]) -> Iterator[str]:
    """Tensors of the target that are not those of the source, and tensors of the source that are gone."""
    case = trial.case
    plan, source, beside = trial.plans.of(case), sources(case), {}
    for stem in (case.weights.stem, case.weights.name):  # the second wins
        path = case.weights.with_name(f"{stem}.extras.safetensors")
        if path.is_file():
            with contextlib.suppress(Exception):
                beside = view(path)
    used = set()
    for name, tensor in {**extras, **written}.items():
        origin, permutation, clean = plan.get(name, (name, None, None))
        unknown = name not in source and name not in beside
        if origin is None and clean is not None and (unknown or name in case.base.tensors(case.which)):
            if clean.shape == tensor.shape and not alike(tensor, clean, case.dtype):
                yield f"{name} is filled with other numbers than usual"
            continue
        found = source.get(origin, source.get(name, beside.get(origin, beside.get(name))))
        if found is not None:
            used |= {origin, name}
            size = WORDS[found.word][0]
            if permutation is not None and len(found.raw) == len(permutation) * size:
                raw = np.frombuffer(found.raw, f"V{size}")[permutation].tobytes()
                found = Tensor(found.word, tensor.shape, raw)
            if alike(tensor, found, case.dtype) or (name in extras and alike(tensor, found, "keep")):
                continue
        others = [other for other, value in source.items() if alike(tensor, value, case.dtype)]
        used |= set(others)
        if not others:
            yield f"{name} holds other bits than the source"
    lost = [
        name
        for name, tensor in source.items()
        if name not in used and not any(alike(value, tensor, case.dtype) for value in written.values())
    ]
    if lost and not re.search(r"^note      (dropped|left) ", trial.outcome.out, re.M):
        yield f"lost without a word: {', '.join(map(ascii, lost[:3]))}"


def sources(case: Case) -> dict[str, Tensor]:
    """The weights that others see in the mutated source; where they see none, what we know to be there."""
    if case.asks:
        with contextlib.suppress(Exception):
            return weights_of(view(case.weights), case.which)
    if case.wrote is not None:
        return weights_of(case.wrote, case.which)
    clean = case.base.tensors(case.which)
    if not case.placed:
        return clean
    found = {}
    for name, tensor in clean.items():
        file, at = case.base.spots(case.which).get(name, (None, 0))
        raw = (case.folder / "in" / file).read_bytes()[at : at + len(tensor.raw)] if file else b""
        found[name] = Tensor(tensor.word, tensor.shape, raw)
    return found


def alike(written: Tensor, read: Tensor, dtype: str) -> bool:
    """The same bits; after a cast, those that torch's cast gives."""
    target = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}.get(dtype, read.word)
    if read.word not in FLOATS or target == read.word:
        return (written.word, written.raw) == (read.word, read.raw)
    if written.word != target or len(written.raw) // WORDS[target][0] != len(read.raw) // WORDS[read.word][0]:
        return False
    if not read.raw:
        return True
    import torch

    dtypes = torch_dtypes()
    before = torch.frombuffer(bytearray(read.raw), dtype=dtypes[read.word])
    got = torch.frombuffer(bytearray(written.raw), dtype=dtypes[target])
    if (got.isinf() & before.isfinite()).any():
        return False  # has to be refused
    whole = torch.int32 if target == "F32" else torch.int16
    same = before.to(dtypes[target]).view(whole) == got.view(whole)
    if read.word == "F64" and target == "F16":  # torch rounds twice, by way of float32; numpy once
        with np.errstate(all="ignore"):
            same |= torch.from_numpy(before.numpy().astype(np.float16)).view(whole) == got.view(whole)
    return bool((same | (before.isnan() & got.isnan())).all())


# --------------------------------------------------------------------------------------------------- campaign


class Campaign:
    """Cases one after the other in a yard of their own: the case's folder, a canary, a neighbour, a folder for
    temporary files. Whatever changes there is the command's doing.
    """

    def __init__(self, yard: Path, seeds: list[Seed], hang: int = HANG):
        self.yard, self.seeds, self.hang = yard, seeds, hang
        for name in ("canary", "tmp"):
            (yard / name).mkdir(parents=True, exist_ok=True)
        (yard / "neighbour.safetensors").write_bytes(b"not yours")
        self.worker = Worker(yard, hang)
        plans = yard.parent / f"{yard.name}.plans"
        plans.mkdir(exist_ok=True)
        self.plans = Plans(plans)

    def around(self) -> dict[str, tuple]:
        """The yard without the case's folder."""
        found = {}
        for name in ("canary", "tmp"):
            found |= {f"{name}/{inner}": about for inner, about in snapshot(self.yard / name).items()}
        for entry in os.scandir(self.yard):
            found[entry.name] = entry.is_dir(), Path(entry).read_bytes() if entry.is_file() else None
        return found

    def run(self, case: Case) -> Trial:
        before, around = snapshot(case.folder), self.around()
        outcome = run_process(case, self.hang) if case.process else self.worker.ask(case)
        yard = changes(around, self.around())
        for name in yard:
            path = self.yard / name
            if path.is_dir():
                clear(path)
            else:
                path.unlink(missing_ok=True)
        (self.yard / "neighbour.safetensors").write_bytes(b"not yours")
        trial = Trial(case, outcome, before, snapshot(case.folder), yard, self.plans)
        command = re.search(r"converters/(latte|vae|t5)_converter\.py", outcome.out)
        if case.inspects and outcome.code == 0 and command and case.spelt is None and not case.process:
            promise = dataclasses.replace(case, target="out/promise.pt", options=[], dtype="keep", to="ours")
            promise.script = COMMANDS[command[1]]
            trial.promise = self.worker.ask(promise)
        return trial

    def play(self, seed: int, index: int) -> tuple[Trial, list[str]]:
        trial = self.run(make_case(seed, index, self.yard, self.seeds))
        return trial, judge(trial)


def summary_of(seed: int, indices: Sequence[int], campaign: Campaign, say: Callable[[str], None]) -> dict:
    """Run these cases; the result can be added to others."""
    counts, violations, slowest, largest = Counter(), [], [], []
    start = time.monotonic()
    for done, index in enumerate(indices, 1):
        # A library that we ask may hang as well, and hear no alarm.
        faulthandler.dump_traceback_later(10 * campaign.hang, exit=True, file=sys.__stderr__)
        trial, wrong = campaign.play(seed, index)
        case, outcome = trial.case, trial.outcome
        counts[f"{case.kind}/{trial.word}"] += 1
        about = f"{seed}:{index} {case.base.name} {case.what}"
        slowest = sorted([*slowest, (outcome.cpu, about)])[-3:]
        largest = sorted([*largest, (outcome.memory, about)])[-3:]
        for line in wrong:
            violations.append(
                {"case": f"{seed}:{index}", "kind": case.kind, "what": case.what, "wrong": line}
            )
            say(f"VIOLATION {seed}:{index} {case.kind}: {line[:500]}\n          {case.what}")
        if done % 500 == 0:
            say(
                f"{done} of {len(indices)} cases, {len(violations)} violations, {time.monotonic() - start:.0f} s"
            )
    faulthandler.cancel_dump_traceback_later()
    starts = campaign.worker.starts
    return {
        "counts": counts,
        "violations": violations,
        "slowest": slowest,
        "largest": largest,
        "starts": starts,
    }


def together(parts: Sequence[Mapping]) -> dict:
    """The summaries of several jobs as one."""
    counts = sum((Counter(part["counts"]) for part in parts), Counter())
    found = {
        key: [row for part in parts for row in part[key]] for key in ("violations", "slowest", "largest")
    }
    found["slowest"], found["largest"] = (
        sorted(map(tuple, found[key]))[-3:] for key in ("slowest", "largest")
    )
    return {"counts": counts, **found, "starts": sum(part["starts"] for part in parts)}


def table(summary: Mapping) -> str:
    """Counts of kinds and outcomes, extremes, violations with the way to see them again."""
    rows, totals = [f"{'':<14}" + "".join(f"{word:>11}" for word in (*OUTCOMES, "all"))], Counter()
    for name in KINDS:
        numbers = [summary["counts"].get(f"{name}/{word}", 0) for word in OUTCOMES]
        totals.update(dict(zip(OUTCOMES, numbers, strict=True)))
        rows.append(f"{name:<14}" + "".join(f"{n:>11}" for n in (*numbers, sum(numbers))))
    rows.append(
        f"{'all':<14}" + "".join(f"{n:>11}" for n in (*(totals[w] for w in OUTCOMES), totals.total()))
    )
    cpu, about = summary["slowest"][-1]
    rows.append(f"slowest     {cpu:.2f} s of processor time: {about[:150]}")
    memory, about = summary["largest"][-1]
    rows.append(f"largest     {memory / (1 << 20):.0f} MiB above the command's own: {about[:150]}")
    rows.append(f"violations  {len(summary['violations'])}; workers started {summary['starts']}")
    for found in summary["violations"]:
        rows.append(f"  {found['kind']}: {found['wrong'][:200]}")
        rows.append(f"    python tests/converters/fuzz.py --replay {found['case']}")
    return "\n".join(rows)


def replay(seed: int, index: int, campaign: Campaign, keep: Path | None) -> int:
    """Show one case."""
    trial, wrong = campaign.play(seed, index)
    case, outcome = trial.case, trial.outcome
    print(f"seed      {case.base.name}\nkind      {case.kind}\nmutation  {case.what}")
    print(f"command   python {case.script} {' '.join(map(ascii, case.arguments))[:2000]}")
    print(
        f"outcome   {trial.word}, exit code {outcome.code}, {outcome.cpu:.2f} s, {outcome.memory >> 20} MiB"
    )
    for line in [*outcome.out.splitlines()[:40], *outcome.err.splitlines()]:
        print(f"          {ascii(line)[1:-1][:1000]}")
    print("changed  ", *map(ascii, changes(trial.before, trial.after)[:20]))
    for line in wrong:
        print(f"VIOLATION {line}")
    if keep:
        subprocess.run(["cp", "-a", case.folder, keep], check=True)
        print(f"the case's folder is in {keep}")
    return int(bool(wrong))


def indices_of(args: argparse.Namespace) -> list[int]:
    """The cases to run, those of real processes last."""
    found = []
    for first, count in ((args.first, args.cases), (PROCESSES + args.first, args.processes)):
        fitting = (
            i for i in itertools.count(first) if args.kind in (None, kind_of(Random(f"{args.seed}:{i}")))
        )
        found += itertools.islice(fitting, count)
    return found


def in_parts(args: argparse.Namespace, seeds: Path, folder: Path) -> dict:
    """Every job runs its share in a process of its own."""
    names = ("cases", "processes", "seed", "first", "kind")
    options = [f"--{name}={getattr(args, name)}" for name in names if getattr(args, name) is not None]
    options += [f"--seeds={seeds}", f"--folder={folder}"]
    reports = [folder / f"part{n}.json" for n in range(args.jobs)]
    shares = [[f"--share={n}/{args.jobs}", f"--report={report}"] for n, report in enumerate(reports)]
    started = [subprocess.Popen([sys.executable, __file__, *options, *share]) for share in shares]
    for process in started:
        process.wait()
    return together([json.loads(report.read_text()) for report in reports])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 1 when any rule is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1000, help="in the guarded worker (default %(default)s)")
    parser.add_argument("--processes", type=int, default=20, help="as real processes (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the campaign (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="index of the first case (default %(default)s)")
    parser.add_argument(
        "--kind", choices=KINDS, metavar="KIND", help=f"only cases of one: {', '.join(KINDS)}"
    )
    parser.add_argument("--jobs", type=int, default=1, help="at the same time (default %(default)s)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write all counts and violations as JSON")
    parser.add_argument("--replay", metavar="SEED:INDEX", help="show one case")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="with --replay: copy the case's folder there"
    )
    parser.add_argument(
        "--seeds", type=Path, metavar="FOLDER", help="where the small checkpoints are, or are made"
    )
    parser.add_argument(
        "--folder", type=Path, help="where to work (default /dev/shm, else the temporary folder)"
    )
    parser.add_argument("--share", default="0/1", metavar="N/M", help="every M-th case from the N-th on")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--make-seeds", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.worker:
        serve()
        return 0
    if args.make_seeds:
        make_seeds(args.make_seeds)
        return 0
    home = args.folder or (Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None)
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=home) as work:
        folder = Path(work).resolve()
        place = (args.seeds or folder / "seeds").resolve()
        seeds = load_seeds(place)
        if args.jobs > 1 and not args.replay:
            summary = in_parts(args, place, folder)
        else:
            campaign = Campaign(folder / "yard", seeds)
            with campaign.worker:
                if args.replay:
                    return replay(*map(int, args.replay.split(":")), campaign, args.keep)
                share, of = map(int, args.share.split("/"))
                indices = indices_of(args)[share::of]
                summary = summary_of(args.seed, indices, campaign, lambda line: print(line, flush=True))
            clear(campaign.yard)
    if args.report:
        args.report.write_text(json.dumps(summary, indent=1))
    print(table(summary))
    return int(bool(summary["violations"]))


if __name__ == "__main__":
    sys.exit(main())
