# SPDX-License-Identifier: Apache-2.0
"""Workers that cannot start or that die say so, with the remedy or their last words. Real processes."""

import contextlib
import functools
import os
import signal
import threading
import time

import pytest

from parity.api import OtherPool
from parity.harness import backends
from parity.harness.backends import Pool, Worker, WorkerError, together
from parity.harness.runner import Session, workers_of


@pytest.mark.parametrize(
    ("framework", "device", "kind", "words"),
    [
        ("mindspore", "GPU", "DeviceError", ("no GPU formulations", "expected one of CPU, Ascend")),
        ("mindspore", "TPU", "DeviceError", ("unknown device", "expected one of CPU, Ascend")),
        ("mindspore", "Ascend", "DeviceError", ("Remedy: install CANN and run on an Ascend host",)),
    ],
)
def test_a_device_that_is_absent_is_named_with_a_remedy(framework, device, kind, words):
    pytest.importorskip("mindspore")
    with pytest.raises(WorkerError) as caught:
        Worker(framework, device, "fp32").stop()
    if device == "Ascend" and caught.value.kind != kind:
        pytest.fail(f"{caught.value.kind}: {caught.value}")
    assert caught.value.kind == kind
    for word in words:
        assert word in str(caught.value)
    assert "Traceback" in caught.value.detail


@pytest.fixture
def worker():
    pytest.importorskip("torch")
    started = Worker("torch", "CPU", "fp32")
    yield started
    started._process.kill()
    with contextlib.suppress(BrokenPipeError):  # what was not sent to a dead process is lost
        started.stop()


def test_an_error_in_a_verb_leaves_the_worker_alive(worker):
    with pytest.raises(WorkerError) as caught:
        worker("no_such_verb")
    assert caught.value.kind == "AttributeError" and "no_such_verb" in str(caught.value)
    assert "torch" in worker("environment")


def test_a_dead_worker_is_reported(worker):
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="worker torch/CPU/fp32 died with status -9") as caught:
        worker("environment")
    assert caught.value.kind == "WorkerDied"
    time.sleep(0.1)
    with pytest.raises(WorkerError, match="died with status -9"):  # asking again says the same
        worker("environment")


def test_the_last_words_of_a_worker_are_passed_on(worker):
    """The process becomes a shell that complains and exits: what a crash in a kernel looks like."""
    crash = functools.partial(os.execv, "/bin/sh", ["sh", "-c", "echo kernel exploded >&2; exit 3"])
    with pytest.raises(
        WorkerError, match=r"(?s)died with status 3; its last words:.*kernel exploded"
    ) as caught:
        worker("call", module=crash, method="", kwargs={})
    assert caught.value.detail.endswith("kernel exploded")


def test_what_a_worker_prints_does_not_disturb_the_protocol(worker):
    assert (
        worker("call", module=functools.partial(os.write, 1, b"noise on stdout"), method="", kwargs={}) == 15
    )
    assert "torch" in worker("environment")


# ------------------------------------------------------------------------------------------------- the pool


class FakeWorker:
    """Counts its lives instead of starting a process."""

    alive: list = []  # noqa: RUF012 (shared on purpose, emptied by the fixture)
    dead = False

    def __init__(self, *key, core):
        self.key, self.core, self.killed = key, core, False
        self.alive.append(key)

    def stop(self):
        self.alive.remove(self.key)

    def kill(self):
        self.killed = True

    def pin(self, core):
        self.core = core


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setattr(FakeWorker, "alive", [])
    monkeypatch.setattr(backends, "Worker", FakeWorker)
    return Pool()


def test_the_pool_keeps_workers_and_ends_the_least_recently_used(pool):
    keys = [("torch", "CPU", f"fp{i}") for i in range(backends.KEPT + 1)]
    first = pool.get(*keys[0])
    for key in keys[1 : backends.KEPT]:
        pool.get(*key)
    assert pool.get(*keys[0]) is first  # now the second one is the oldest
    pool.get(*keys[-1])
    assert sorted(FakeWorker.alive) == sorted(key for key in keys if key != keys[1])
    pool.drop(first)
    assert keys[0] not in FakeWorker.alive
    pool.stop()
    assert FakeWorker.alive == []


# --------------------------------------------------------------------------------------- several at the same time


def test_different_workers_are_asked_at_the_same_time():
    """Each call waits for the other one to begin: one after the other they would not end."""
    meeting = threading.Barrier(2, timeout=20)
    assert together(lambda: meeting.wait() >= 0, lambda: meeting.wait() >= 0) == [True, True]


def test_an_error_of_one_worker_waits_for_the_answers_of_the_others():
    """Else the answer of another one would be taken for that to its next question."""
    answered = []

    def fail():
        raise WorkerError("Fault", "broken")

    def slow():
        time.sleep(0.2)
        answered.append("slow")

    with pytest.raises(WorkerError, match="broken"):
        together(fail, slow)
    assert answered == ["slow"]


def test_a_worker_forgets_what_it_holds_when_it_builds(worker):
    worker.holds = "a case"
    worker("environment")
    assert worker.holds == "a case"
    with pytest.raises(WorkerError):
        worker("load", tensors={})
    assert worker.holds is None


@pytest.mark.parametrize(
    "kind, own", [(Pool, ("torch", "mindspore")), (OtherPool, ("other-torch", "other-mindspore"))]
)
def test_a_case_takes_three_workers_however_often_it_is_asked(pool, kind, own):
    session = Session(pool=kind())
    for _ in range(3):
        workers = workers_of(session, "fp32")
    assert sorted(FakeWorker.alive) == sorted(
        (framework, "CPU", dtype)
        for framework, dtype in ((own[0], "fp64"), (own[0], "fp32"), (own[1], "fp32"))
    )
    assert [worker.key[0] for worker in workers] == [own[0], own[0], own[1]]


def test_a_worker_that_died_is_started_anew(pool):
    first, other = pool.get("torch", "CPU", "fp32"), pool.get("torch", "CPU", "fp64")
    first.dead = True
    assert pool.get("torch", "CPU", "fp32") is not first and pool.get("torch", "CPU", "fp64") is other
    assert pool.get("torch", "CPU", "fp32") is pool.get("torch", "CPU", "fp32")


def test_only_ports_are_pinned(pool):
    keys = [("torch", "CPU", "fp32"), ("mindspore", "CPU", "fp32")]
    pool.begin(*keys)
    pool.pin(1)
    pool.begin(("mindspore", "CPU", "fp16"))
    assert [pool.get(*key).core for key in (*keys, ("mindspore", "CPU", "fp16"))] == [None, 1, 1]


def test_a_closed_pool_starts_no_worker_and_ends_one_that_is_starting(pool, monkeypatch):
    here = pool.get("torch", "CPU", "fp32")

    class Slow(FakeWorker):
        def __init__(self, *key, core):
            super().__init__(*key, core=core)
            pool.close()  # from another thread, while this one starts

    monkeypatch.setattr(backends, "Worker", Slow)
    with pytest.raises(WorkerError, match="were ended"):
        pool.get("mindspore", "CPU", "fp32")
    assert here.killed and all(worker.killed for worker in pool._workers.values())
    with pytest.raises(WorkerError, match="were ended"):
        pool.get("mindspore", "CPU", "fp16")
    assert ("mindspore", "CPU", "fp16") not in FakeWorker.alive
    pool.stop()
    assert FakeWorker.alive == []
