# SPDX-License-Identifier: Apache-2.0
"""Launch scripts: their syntax, and what they ask of launchers that are not here, by stand-ins."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from ms_latte.config import build, find_config
from ms_latte.train_config import TrainConfig

SCRIPTS = Path(__file__).parents[2] / "ms_latte" / "scripts"
SHELL = sorted(p for p in SCRIPTS.iterdir() if p.suffix in (".sh", ".sbatch") and p.name != "launch.sh")
TOLD = ("MS_NODE_ID", "RANK_ID", "RANK_SIZE", "DEVICE_ID", "RANK_TABLE_FILE")


@pytest.fixture
def bench(tmp_path):
    """run(script, *words, **variables) -> (exit status, lines that the stand-ins were called with, stderr)."""
    calls, place = tmp_path / "calls", tmp_path / "bin"
    place.mkdir()
    show = " ".join(f"{name}=${{{name}:-}}" for name in TOLD)
    for name in ("msrun", "mpirun", "python", "kubectl"):
        stub = place / name
        stub.write_text(f'#!/bin/bash\necho "{name} $* | {show}" >> {calls}\nexit ${{STATUS:-0}}\n')
        stub.chmod(0o755)
    (place / "srun").write_text('#!/bin/bash\n[ "$1" = --kill-on-bad-exit=1 ] && shift\nexec "$@"\n')
    (place / "scontrol").write_text("#!/bin/bash\nprintf 'host-a\\nhost-b\\n'\n")
    for name in ("srun", "scontrol"):
        (place / name).chmod(0o755)

    def run(script, *words, **variables):
        calls.unlink(missing_ok=True)
        path = f"{place}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(SCRIPTS / script), *words],
            cwd=tmp_path,
            env={"PATH": path, "HOME": str(tmp_path), **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, calls.read_text().splitlines() if calls.exists() else [], done.stderr

    return run


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_syntax_and_usage(path, bench):
    subprocess.run(["bash", "-n", str(path)], check=True)
    subprocess.run(["bash", "-n", str(SCRIPTS / "launch.sh")], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", str(path)], check=True)
    lines = path.read_text().splitlines()
    assert "SPDX-License-Identifier: Apache-2.0" in lines[1] and "set -euo pipefail" in lines
    assert any(word in path.read_text() for word in ("Not run", "not run"))
    code, calls, err = bench(path.name)
    assert (code, calls) == (2, []) and err.startswith("usage: ")


def test_one_host(bench):
    code, calls, _ = bench("run_msrun.sh", "C", "--epochs", "2", CARDS="4", PORT="9000")
    assert code == 0 and len(calls) == 1
    for word in ("--worker_num=4", "--local_worker_num=4", "--master_port=9000", "--join=True"):
        assert word in calls[0]
    assert f"{SCRIPTS}/../train.py -c C --use_parallel True --epochs 2 |" in calls[0]


def test_the_status_of_msrun_is_handed_on(bench):
    assert bench("run_msrun.sh", "C", STATUS="7")[0] == 7


def test_several_hosts(bench):
    told = {"NODE": "1", "HOSTS": "2", "MASTER": "10.0.0.1"}
    code, calls, _ = bench("run_msrun_hosts.sh", "C", **told)
    assert code == 0
    for word in ("--worker_num=16", "--local_worker_num=8", "--node_rank=1", "--master_addr=10.0.0.1"):
        assert word in calls[0]
    assert bench("run_msrun_hosts.sh", "C", NODE="1")[0] == 2


def test_mpirun(bench):
    code, calls, _ = bench("run_mpirun.sh", "C", CARDS="2", HOSTFILE="hosts")
    assert code == 0 and "-n 2" in calls[0] and "--hostfile hosts" in calls[0]
    assert "train.py -c C --use_parallel True" in calls[0]


@pytest.mark.parametrize("script", ["run_rank_table.sh", "run_pod.sh"])
def test_a_process_for_every_card(bench, script, tmp_path):
    (tmp_path / "table.json").write_text("{}")
    told = {
        "run_rank_table.sh": dict(RANK_TABLE_FILE="table.json", CARDS="3", FIRST="3", SIZE="6"),
        "run_pod.sh": dict(MS_ROLE="MS_WORKER", MS_LOCAL_WORKER="3", MS_NODE_RANK="1"),
    }[script]
    code, calls, _ = bench(script, "C", **told)
    assert code == 0 and len(calls) == 3
    rank = "RANK_ID" if script == "run_rank_table.sh" else "MS_NODE_ID"
    assert sorted(f"{rank}={k}" for k in (3, 4, 5)) == sorted(
        word for line in calls for word in line.split() if word.startswith(f"{rank}=")
    )
    assert sorted(word for line in calls for word in line.split() if word.startswith("DEVICE_ID")) == [
        "DEVICE_ID=0", "DEVICE_ID=1", "DEVICE_ID=2"
    ]  # fmt: skip
    assert bench(script, "C", **told, STATUS="3")[0] == 3  # a worker that fails ends the job with its status


def test_slurm(bench, tmp_path):
    told = dict(SLURM_JOB_NODELIST="x", SLURM_JOB_NUM_NODES="2", SLURM_NODEID="1", SLURM_JOB_ID="7")
    (tmp_path / "ms_latte").symlink_to(SCRIPTS.parent)  # submitted from the folder of the repository
    code, calls, err = bench("train.sbatch", "C", "--output_path", "out", **told)
    assert code == 0, err
    for word in (
        "--worker_num=16",
        "--node_rank=1",
        "--master_addr=host-a",
        "--resume True --output_path out",
    ):
        assert word in calls[0]


def test_kubernetes():
    job = yaml.safe_load((SCRIPTS / "train_acjob.yaml").read_text())
    assert (job["kind"], job["spec"]["schedulerName"]) == ("AscendJob", "volcano")
    roles = job["spec"]["replicaSpecs"]
    pods = sum(role["replicas"] for role in roles.values())
    assert job["spec"]["runPolicy"]["schedulingPolicy"]["minAvailable"] == pods == 3
    containers = {name: role["template"]["spec"]["containers"][0] for name, role in roles.items()}
    assert {one["name"] for one in containers.values()} == {"ascend"}
    command = containers["Worker"]["command"]
    assert (SCRIPTS.parents[1] / command[1]).is_file()
    keys = dict(zip([word.removeprefix("--") for word in command[3::2]], command[4::2], strict=True))
    assert build(TrainConfig, find_config(command[2]), keys).resume is True


def test_the_sizing_note_is_computed():
    from ms_latte.training.sizing import published

    (parameters, trained), table = published()
    text = (SCRIPTS / "README.md").read_text()
    assert table in text
    assert f"{parameters:,}" in text and f"{trained:,}" in text


def test_sizes_of_a_small_net():
    from ms_latte.training.sizing import counts, sizing
    from tests.ms_latte.tiny import parameters, tiny_latte

    model = tiny_latte()
    total, trained = counts(model)
    tables = sum(parameters(model)[name].size for name in ("pos_embed", "temp_embed"))
    assert total - trained == tables > 0
    one = sizing(total, trained, "fp16", cards=4, accumulation=True)
    assert one["weights"] == 2 * total and one["masters"] == one["m"] == one["v"] == one["EMA"] == 4 * trained
    assert one["card"] == 2 * total + 4 * trained * 4 + 6 * trained + 4 * trained
    assert one["sent"] == 2 * 3 * 4 * trained // 4  # a ring of four: each sends 2 * 3/4 of 4 bytes a number
    assert sizing(total, trained)["sent"] == 0 and sizing(total, trained)["masters"] == 0
