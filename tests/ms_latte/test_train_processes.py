# SPDX-License-Identifier: Apache-2.0
"""Training as processes: killed at any step and resumed to the bit, ended by signals, and two of them by msrun.

Slow: every process starts MindSpore anew, and graph mode compiles the step in each.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import relative_l2
from tests.ms_latte.test_train import assert_same_state, files, records, tensors  # noqa: F401 (a fixture)

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "ms_latte" / "train.py"
TIMEOUT = 600  # seconds for a process, on a machine that is busy
# Two processes add half-batch means where one process adds a whole batch: another order of float32 sums, eight steps
# deep. AdamW divides by the root of v, so that a gradient near 0 carries its rounding into the weights undivided.
REORDERED = 1e-4


def start(files, out, *words, launcher=()):  # noqa: F811
    """The command as a process of its own, in a group of its own."""
    command = [*launcher] if launcher else [sys.executable]
    command += [str(SCRIPT), "-c", str(files / "tiny.yaml"), "--output_path", str(out), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "3"}
    return subprocess.Popen(
        command,
        cwd=out.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process):
    """(exit status, stdout, stderr) of a process."""
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err


def wait_for_step(process, out, step):
    """Until a run has recorded a step on the disk."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        log = out / "log.jsonl"
        if log.exists() and log.read_text().count("\n") >= step:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError(f"no step {step} within {TIMEOUT} s")


@pytest.mark.parametrize("mode", [1, 0], ids=["pynative", "graph"])
def test_killed_at_a_random_step_it_resumes_to_the_bit(files, tmp_path, mode):  # noqa: F811
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = ("--mode", mode, "--ckpt_every", "2", "--epochs", "3")
    code, _, err = finish(start(files, whole, *words))
    assert code == 0, err
    step = random.randint(2, 7)
    process = start(files, killed, *words)
    wait_for_step(process, killed, step)
    time.sleep(random.random() * 0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    code, shown, err = finish(start(files, killed, *words, "--resume", "True"))
    assert code == 0, f"killed at step {step}: {err}"
    assert "resumed from" in shown or "nothing to resume" in shown, f"killed at step {step}"
    assert records(killed) == records(whole), f"killed at step {step}"
    assert_same_state(killed / "ckpt" / "Latte-s8", whole / "ckpt" / "Latte-s8")
    assert_same_state(killed / "ckpt" / "Latte-s9", whole / "ckpt" / "Latte-s9")


@pytest.mark.parametrize(("one", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_process_with_a_checkpoint(files, tmp_path, one, status):  # noqa: F811
    out = tmp_path / "run"
    process = start(files, out, "--epochs", "1000")
    wait_for_step(process, out, 2)
    process.send_signal(one)
    code, _, err = finish(process)
    assert code == status, err
    assert f"--output_path {out} --resume True" in err
    done = len(records(out))
    assert (out / "ckpt" / f"Latte-s{done}").is_dir() or (out / "ckpt" / f"Latte-e{done // 3}").is_dir()


# ------------------------------------------------------------------------------------------------- msrun


def launcher(folder, workers=2):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return (
        shutil.which("msrun") or str(Path(sys.executable).parent / "msrun"),
        f"--worker_num={workers}",
        f"--local_worker_num={workers}",
        f"--master_port={port}",
        f"--log_dir={folder}",
        "--join=True",
        "--cluster_time_out=300",
    )


def logs(folder):
    return "\n".join(
        f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(folder.glob("worker_*.log"))
    )


@pytest.mark.parametrize("mode", [1, 0], ids=["pynative", "graph"])
def test_two_processes_equal_one_with_the_doubled_batch(files, tmp_path, mode):  # noqa: F811
    one, two, msl = tmp_path / "one", tmp_path / "two", tmp_path / "log"
    # clipping, a dropout of labels and accumulation: everything that could count by processes
    words = ("--clip_grad", "True", "--max_grad_norm", "0.5", "--condition", "class", "--num_classes", "3")
    words = (*words, "--epochs", "3", "--max_train_steps", "8", "--mode", mode)
    if mode == 1:  # accumulation takes the graph compiler minutes
        words = (*words, "--gradient_accumulation_steps", "2")
    code, _, err = finish(start(files, one, *words))
    assert code == 0, err
    split = ("--train_batch_size", "1", "--use_parallel", "True")
    code, _, err = finish(start(files, two, *words, *split, launcher=launcher(msl)))
    assert code == 0, err + logs(msl)
    a, b = records(one), records(two)
    assert [line["step"] for line in b] == list(range(1, 9))  # written once, by one process
    for x, y in zip(a, b, strict=True):
        assert y["loss"] == pytest.approx(x["loss"], rel=REORDERED)
        assert y["grad_norm"] == pytest.approx(x["grad_norm"], rel=REORDERED)
    a, b = tensors(one / "ckpt" / "Latte-s8"), tensors(two / "ckpt" / "Latte-s8")
    assert list(a) == list(b)
    moved = [name for name in a if a[name].ndim and np.abs(a[name]).max() > 0]
    assert len(moved) > 100
    apart = {name: relative_l2(b[name], a[name]) for name in moved}
    assert {name: value for name, value in apart.items() if value > REORDERED} == {}


def test_a_killed_worker_ends_the_job_which_resumes(files, tmp_path):  # noqa: F811
    one, two, msl = tmp_path / "one", tmp_path / "two", tmp_path / "log"
    split = ("--train_batch_size", "1", "--use_parallel", "True", "--ckpt_every", "2", "--epochs", "4")
    process = start(files, two, *split, launcher=launcher(msl))
    wait_for_step(process, two, 3)
    workers = subprocess.run(
        ["pgrep", "-f", f"{SCRIPT}.*{two}"], capture_output=True, text=True, check=False
    ).stdout.split()
    ranks = {rank_of(pid): int(pid) for pid in workers}
    os.kill(ranks["1"], signal.SIGKILL)
    code, _, err = finish(process)
    assert code not in (0, None), err + logs(msl)
    assert len(records(two)) < 12
    code, _, err = finish(start(files, two, *split, "--resume", "True", launcher=launcher(msl)))
    assert code == 0, err + logs(msl)
    assert [line["step"] for line in records(two)] == list(range(1, 13))
    assert finish(start(files, one, *split, launcher=launcher(msl)))[0] == 0
    assert records(one) == records(two)
    assert_same_state(one / "ckpt" / "Latte-s12", two / "ckpt" / "Latte-s12")


def rank_of(pid):
    """What msrun has told a worker about itself."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((w.split(b"=")[1].decode() for w in words if w.startswith(b"RANK_ID=")), None)


def test_a_signal_to_the_launch_script_reaches_the_workers(files, tmp_path):  # noqa: F811
    """msrun alone would die and leave its workers running."""
    out, script = tmp_path / "run", ROOT / "ms_latte" / "scripts" / "run_msrun.sh"
    place = launcher(tmp_path / "log")
    port = next(word for word in place if word.startswith("--master_port=")).split("=")[1]
    told = {"CARDS": "2", "PORT": port, "LOGS": str(tmp_path / "log"), "PYTHONPATH": str(ROOT), "GLOG_v": "3"}
    words = ("--output_path", str(out), "--train_batch_size", "1", "--epochs", "1000")
    process = subprocess.Popen(
        ["bash", str(script), str(files / "tiny.yaml"), *words],
        cwd=tmp_path,
        env={**os.environ, **told, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_step(process, out, 2)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 143, err + logs(tmp_path / "log")
    done = len(records(out))
    assert (out / "ckpt" / f"Latte-s{done}").is_dir() or (out / "ckpt" / f"Latte-e{done // 3}").is_dir()
    left = subprocess.run(["pgrep", "-f", f"output_path {out}"], capture_output=True, text=True, check=False)
    assert left.stdout.split() == []
