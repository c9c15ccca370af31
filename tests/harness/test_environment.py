# SPDX-License-Identifier: Apache-2.0
"""The start-up guard: NumPy 2 breaks MindSpore 2.10 inside operators, so it is refused before the first one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from ms_latte import device

ROOT = Path(__file__).parents[2]


def test_numpy_2_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(numpy, "__version__", "2.2.6")
    with pytest.raises(device.DeviceError, match=r'numpy 2\.2\.6 .*pip install "numpy>=1\.26,<2"'):
        device.check_environment()
    with pytest.raises(device.DeviceError, match="NumPy 1"):
        device.select("CPU")


def test_numpy_1_passes():
    device.check_environment()


@pytest.mark.parametrize(("name", "reason"), [("GPU", "no GPU formulations"), ("TPU", "unknown device")])
def test_other_devices_are_refused(name, reason):
    with pytest.raises(device.DeviceError, match=f"{reason}; expected one of CPU, Ascend"):
        device.select(name)


CORES_OF_THREADS = """
import os
import time
from pathlib import Path

cores = set(map(int, {cores!r}.split()))
os.sched_setaffinity(0, cores)
from ms_latte import device

words = device.select("CPU").settings["compute threads"]
time.sleep(0.5)  # a thread gives itself its name when it first runs
tasks = [task for task in Path("/proc/self/task").iterdir() if "Thread_" in (task / "comm").read_text()]
placed = [os.sched_getaffinity(int(task.name)) for task in tasks]
assert placed, "MindSpore names its compute threads otherwise"
assert os.sched_getaffinity(0) == cores  # not the thread that asks for operators
if len(placed) > 1 and len(placed) == len(cores):
    assert words == "one a core" and sorted(map(tuple, placed)) == [(core,) for core in sorted(cores)], placed
else:
    assert words == "placed by the system" and all(found == cores for found in placed), placed
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux: cores are given to threads")
@pytest.mark.parametrize("count", [1, 2])
def test_compute_threads_share_no_core(count):
    """With as many cores as threads; with fewer the system places them."""
    mine = sorted(os.sched_getaffinity(0))[:count]
    if len(mine) < count:
        pytest.skip(f"needs {count} cores, found {len(mine)}")
    code = CORES_OF_THREADS.format(cores=" ".join(map(str, mine)))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
