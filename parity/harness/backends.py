# SPDX-License-Identifier: Apache-2.0
"""Worker processes as seen by the judge."""

import contextlib
import os
import select
import subprocess
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from parity.harness import trace

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 1800  # seconds that one request may take: the float64 truth of XL/2 takes about 60
KEPT = 4  # workers alive at a time: each holds a framework (0.4 to 0.7 GB)
INSIDE = "PARITY_WORKER"  # set in the environment of a worker and of whatever it starts


class WorkerError(RuntimeError):
    """A worker answered with an error; `kind` is the name of its exception, `detail` its traceback."""

    def __init__(self, kind: str, message: str, detail: str = ""):
        super().__init__(message)
        self.kind, self.detail = kind, detail

    @property
    def line(self) -> str:
        """What it says, in one line."""
        return f"{self.kind}: {trace.first_line(str(self))}"


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Results of questions to different workers, asked at the same time. Raises the first error, after all answered."""
    with ThreadPoolExecutor(len(calls)) as threads:
        asked = [threads.submit(call) for call in calls]
    return [call.result() for call in asked]


class Worker:
    """One process: framework "torch" or "mindspore" on a device in a dtype. Verbs are the methods of `worker.Side`.

    core: the only one that the process may use; None: all.

    holds: what the process has built and loaded, in the words of whoever asked for it; None after any further build.
    """

    def __init__(self, framework: str, device: str, dtype: str, core: int | None = None):
        self.name = f"{framework}/{device}/{dtype}"
        self.holds: Any = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        # Idle threads of one framework must not spin on the cores that the other one needs.
        environment = {
            "GLOG_v": "3",
            "OMP_WAIT_POLICY": "PASSIVE",
            "KMP_BLOCKTIME": "0",
            **os.environ,
            INSIDE: self.name,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "parity.harness.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        try:
            trace.send(self._process.stdin, (framework, device, dtype, core))
            self.environment: dict[str, Any] = self._answer()
        except BrokenPipeError:
            error = self._death()
            self.stop()
            raise error from None
        except WorkerError:
            self.stop()
            raise

    def __call__(self, verb: str, **arguments: Any) -> Any:
        """Ask and wait. Raises WorkerError for an error in the worker or its death."""
        if verb in ("build", "load"):
            self.holds = None
        try:
            trace.send(self._process.stdin, (verb, arguments))
        except BrokenPipeError:
            raise self._death() from None
        return self._answer()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def dead(self) -> bool:
        """Whether the process has ended by itself."""
        return self._process.poll() is not None

    def pin(self, core: int) -> None:
        """Give all threads of the process one core."""
        for task in os.listdir(f"/proc/{self.pid}/task"):
            with contextlib.suppress(ProcessLookupError):  # a thread that has just ended
                os.sched_setaffinity(int(task), {core})

    def kill(self) -> None:
        """End the process at once; who waits for its answer gets a WorkerError. `stop` then cleans up."""
        self._process.kill()

    def stop(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):  # a dead worker's unsent message
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _answer(self) -> Any:
        if not select.select([self._process.stdout], [], [], LIMIT)[0]:
            self._process.kill()
            raise WorkerError("WorkerHangs", f"worker {self.name} did not answer in {LIMIT} s and was ended")
        try:
            status, *rest = trace.receive(self._process.stdout)
        except EOFError:
            raise self._death() from None
        if status == "error":
            raise WorkerError(*rest)
        return rest[0]

    def _death(self) -> WorkerError:
        code = self._process.wait()
        self._log.seek(0)
        tail = self._log.read()[-2000:].decode(errors="replace").strip()
        return WorkerError(
            "WorkerDied", f"worker {self.name} died with status {code}; its last words:\n{tail}", tail
        )


class Pool:
    """Workers by (framework, device, dtype), the least recently used ended when more than KEPT are alive.

    live: whether they are processes, which may be asked at the same time and need not be asked twice. core: the only
    one that workers of MindSpore may use; None: all.
    """

    live = True

    def __init__(self, core: int | None = None):
        self.core, self._closed = core, False
        self._workers: OrderedDict[tuple, Worker] = OrderedDict()

    def key(self, framework: str, device: str, dtype: str) -> tuple[str, str, str]:
        """The worker that answers for a framework: other pools have others."""
        return framework, device, dtype

    def get(self, framework: str, device: str, dtype: str) -> Worker:
        """The worker, started if need be. Raises WorkerError if it cannot start."""
        self.begin((framework, device, dtype))
        return self._workers[self.key(framework, device, dtype)]

    def begin(self, *asked: tuple[str, str, str]) -> None:
        """Start those of several workers that are not alive, at the same time. Raises WorkerError if one cannot, or
        if the pool is closed."""
        keys = dict.fromkeys(self.key(*each) for each in asked)
        for key in keys:
            if key in self._workers and self._workers[key].dead:
                self._workers.pop(key).stop()
        absent = [key for key in keys if key not in self._workers]
        for key in keys:
            if key not in absent:
                self._workers.move_to_end(key)
        while self._workers and len(self._workers) + len(absent) > KEPT:
            self._workers.popitem(last=False)[1].stop()
        if absent:
            together(*(partial(self._start, key) for key in absent))
        if self._closed:
            raise WorkerError("Closed", "the workers were ended")

    def pin(self, core: int) -> None:
        """Give workers of MindSpore one core, those alive and those to come."""
        self.core = core
        for key, worker in self._workers.items():
            if "mindspore" in key[0]:
                worker.pin(core)

    def close(self) -> None:
        """End all workers at once, whatever they do, and start no other; from any thread. `stop` then cleans up."""
        self._closed = True
        for worker in list(self._workers.values()):
            worker.kill()

    def _start(self, key: tuple[str, str, str]) -> None:
        if self._closed:
            return
        worker = self._workers[key] = Worker(*key, core=self.core if "mindspore" in key[0] else None)
        if self._closed:  # meanwhile: `close` has not seen it
            worker.kill()

    def drop(self, worker: Worker) -> None:
        """End one worker, for example after an error that may have poisoned it."""
        self._workers = OrderedDict(
            (key, value) for key, value in self._workers.items() if value is not worker
        )
        worker.stop()

    def pids(self) -> list[int]:
        """Process ids of the workers alive."""
        return [worker.pid for worker in self._workers.values()]

    def stop(self) -> None:
        """End all workers."""
        while self._workers:
            self._workers.popitem()[1].stop()
