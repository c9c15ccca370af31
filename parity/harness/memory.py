# SPDX-License-Identifier: Apache-2.0
"""Peak memory of several processes that map the same file."""

import os
import threading


class PeakMemory:
    """Samples the proportional set size (shared pages counted once over all) of this process and
    others, twice a second.
    """

    def __init__(self, pids: list[int], period: float = 0.5):
        self.peak = 0
        self._pids, self._period, self._ended = [os.getpid(), *pids], period, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Bytes at the worst moment; 0 where the system does not tell."""
        self._ended.set()
        self._thread.join()
        return self.peak

    def _sample(self) -> None:
        while not self._ended.wait(self._period):
            self.peak = max(self.peak, sum(map(proportional_set_size, self._pids)))


def proportional_set_size(pid: int) -> int:
    """Bytes, from /proc; 0 if the process is gone or the system has no such file."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:")), 0)
    except OSError:
        return 0
