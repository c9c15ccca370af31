# SPDX-License-Identifier: Apache-2.0
"""Runs judged ahead of their turn, on another core: the suite in less time, its order and its results unchanged."""

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from parity.harness.backends import Pool, WorkerError
from parity.harness.runner import Kept, Session

LEAST = 20  # runs from which on the start of further workers pays
Job = Callable[[Any], Any]


def cores() -> list[int]:
    """Cores that this process may use; none where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def companions(session: Session, jobs: int) -> list[Session]:
    """Sessions beside one, so that `jobs` of them run at the same time, each with a core for its port.

    MindSpore's idle threads yield in a loop, which takes 40 % of two cores; on one core they yield to its work.
    """
    own = cores()
    if jobs < 2 or len(own) < 2:
        return []
    first = os.getpid() % len(own)  # two suites on one host need not meet on the same cores
    session.pool.pin(own[first])
    session.diagnosis_left /= jobs
    return [
        replace(
            session, pool=Pool(core=own[(first + i) % len(own)]), kept=Kept(), fingerprints={}, signatures={}
        )
        for i in range(1, jobs)
    ]


class Ahead:
    """Runs, taken from the front by whoever asks, and meanwhile from the end by threads with workers of their own.

    jobs: key -> what a run does with a session, in the order in which they will be asked for. sessions: one for each
    thread, a `Session` or what holds one, with methods `close` and `stop`. A run is made once, whoever comes first, and
    must not depend on others. A thread whose run raises an error ends: the rest is left to the others.
    """

    def __init__(self, jobs: dict[Hashable, Job], sessions: list[Any]):
        self._jobs, self._left = dict(jobs), OrderedDict(jobs)
        self._begun: dict[Hashable, Future] = {}
        self._lock = threading.Lock()
        self._sessions = sessions
        self._threads = [
            threading.Thread(target=self._serve, args=(session,), daemon=True) for session in sessions
        ]
        for thread in self._threads:
            thread.start()

    def take(self, key: Hashable, session: Any) -> Any:
        """The result of a run: waited for if it has begun, else made here. Raises what the run raised."""
        with self._lock:
            begun = self._begun.pop(key, None)
            self._left.pop(key, None)
        if begun is not None:
            with contextlib.suppress(WorkerError):  # the other session's workers are gone: ours may be well
                return begun.result()
        return self._jobs[key](session)

    def stop(self) -> None:
        """Begin no further run; the workers end at once, and with them the runs that are under way."""
        with self._lock:
            self._left.clear()
        for session in self._sessions:
            session.close()
        for thread in self._threads:
            thread.join()
        for session in self._sessions:
            session.stop()

    def _serve(self, session: Any) -> None:
        while True:
            with self._lock:
                if not self._left:
                    return
                key, job = self._left.popitem()
                future = self._begun[key] = Future()
            try:
                future.set_result(job(session))
            except BaseException as error:
                future.set_exception(error)
                return
