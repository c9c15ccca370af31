# SPDX-License-Identifier: Apache-2.0
"""Runs ahead of their turn: each once, in any order of taking, errors and results unchanged, ended at once."""

import csv
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from parity.harness.ahead import Ahead, companions, cores
from parity.harness.backends import WorkerError
from parity.harness.runner import Session

ROOT = Path(__file__).resolve().parents[2]
WAIT = 20  # seconds, on a busy machine


class Fake:
    """A session that knows only how it was ended."""

    def __init__(self):
        self.closed, self.stopped = threading.Event(), threading.Event()

    def close(self):
        self.closed.set()

    def stop(self):
        self.stopped.set()


def test_runs_are_made_once_each_and_from_both_ends():
    made, gate, here = [], threading.Event(), Fake()

    def job(key):
        def run(session):
            made.append((key, session is here))
            if key == 9:
                gate.wait(WAIT)
            return key * key

        return run

    ahead = Ahead({key: job(key) for key in range(10)}, [Fake()])
    try:
        assert [ahead.take(key, here) for key in range(9)] == [key * key for key in range(9)]
        gate.set()
        assert ahead.take(9, here) == 81
    finally:
        gate.set()
        ahead.stop()
    assert sorted(key for key, _ in made) == list(range(10))
    assert (9, False) in made  # the other end had begun it
    assert (0, True) in made


def test_all_runs_may_be_made_ahead_and_one_again():
    count, done = [], threading.Event()

    def last(session):
        count.append(session)
        done.set()
        return len(count)

    here, beside = Fake(), Fake()
    ahead = Ahead({"only": last}, [beside])
    assert done.wait(WAIT)
    assert ahead.take("only", here) == 1 and ahead.take("only", here) == 2  # as a rerun of a test asks
    ahead.stop()
    assert count == [beside, here] and beside.stopped.is_set()


def test_an_error_reaches_who_asks():
    ahead = Ahead({"bad": lambda session: 1 / 0, "good": lambda session: 5}, [Fake()])
    with pytest.raises(ZeroDivisionError):
        ahead.take("bad", Fake())
    assert ahead.take("good", Fake()) == 5
    ahead.stop()


def test_a_session_that_lost_its_workers_leaves_the_rest_to_the_others():
    beside, here, tried = Fake(), Fake(), []

    def job(session):
        tried.append(session)
        if session is beside:
            raise WorkerError("WorkerDied", "out of memory")
        return "well"

    ahead = Ahead({key: job for key in range(50)}, [beside])
    ahead._threads[0].join(WAIT)
    assert tried == [beside]  # not the whole queue
    assert [ahead.take(key, here) for key in range(50)] == ["well"] * 50
    ahead.stop()


def test_stop_ends_a_run_under_way_and_begins_no_other():
    begun, session = threading.Event(), Fake()
    made = []

    def job(session):
        begun.set()
        closed = session.closed.wait(WAIT)  # as a worker whose process is ended
        made.append((closed, session.stopped.is_set()))

    ahead = Ahead({key: job for key in range(5)}, [session])
    assert begun.wait(WAIT)
    ahead.stop()
    assert made == [(True, False)] and session.stopped.is_set()


def test_companions_have_workers_of_their_own(monkeypatch):
    session = Session(overrides=dict(num_heads=2), layout="ours")
    assert companions(session, 1) == []
    monkeypatch.setattr("parity.harness.ahead.cores", lambda: [3, 5])
    left = session.diagnosis_left
    (beside,) = companions(session, 2)
    assert beside.pool is not session.pool and beside.kept is not session.kept
    assert sorted((session.pool.core, beside.pool.core)) == [3, 5]
    assert session.diagnosis_left == beside.diagnosis_left == left / 2
    assert beside.overrides == session.overrides and beside.layout == "ours"
    monkeypatch.setattr("parity.harness.ahead.cores", lambda: [3])
    assert companions(session, 2) == []


@pytest.mark.skipif(len(cores()) < 2, reason="one core: nothing runs ahead")
def test_the_table_is_that_of_one_run_after_the_other(tmp_path):
    tables = []
    for jobs in ("1", "2"):
        words = [
            sys.executable,
            "-m",
            "pytest",
            "parity/",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "norms or mlp",
        ]
        words += ["--size", "tiny", "--jobs", jobs, "--report", str(tmp_path / jobs)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-2000:]
        with open(tmp_path / jobs / "parity.csv", newline="") as file:
            tables.append(list(csv.DictReader(file)))
    assert len(tables[0]) > 100
    assert tables[0] == tables[1]
