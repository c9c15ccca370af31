# SPDX-License-Identifier: Apache-2.0
"""Data parallel on MindSpore's own engine: who this process is, and what all of them agree on.

Every card has the whole model and its own share of each batch; gradients are averaged by one all-reduce. Run on two
processes of a CPU; on Ascend not yet run.
"""

import os
from dataclasses import dataclass

import numpy as np

from ms_latte.config import ConfigError

# What launchers leave in the environment of a worker: msrun, mpirun, a rank table.
LAUNCHERS = ("MS_ROLE", "OMPI_COMM_WORLD_RANK", "RANK_TABLE_FILE")


@dataclass(frozen=True)
class Cluster:
    """This process among all: rank 0 writes."""

    rank: int = 0
    size: int = 1

    @property
    def writes(self):
        """Whether this process writes files and lines."""
        return self.rank == 0

    def mean(self, values):
        """Mean over all processes of float32 numbers, numpy -> numpy of the same shape; called by all at once."""
        if self.size == 1:
            return np.asarray(values, np.float32)
        import mindspore as ms
        from mindspore import ops

        total = ops.AllReduce()(ms.Tensor(np.asarray(values, np.float32)))
        return total.asnumpy() / np.float32(self.size)

    def any(self, flag):
        """Whether the flag is set in one of the processes."""
        return bool(self.mean(np.array([float(flag)]))[0] > 0)

    def check_equal(self, what, text):
        """Raise ConfigError unless all processes were given the same text (what: its name)."""
        if self.size == 1:
            return
        import hashlib

        digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8).astype(np.float32)
        if not np.array_equal(self.mean(digest), digest):
            raise ConfigError(f"{what} differs between the processes; expected the same files on every host")


def gradient_mean(cluster):
    """list of tensors -> list of their means over all processes, for the training step; None for one process."""
    if cluster.size == 1:
        return None
    from mindspore import ops

    total, share = ops.AllReduce(), 1.0 / cluster.size

    def mean(tensors):
        return [total(tensor) * share for tensor in tensors]

    return mean


def start(use_parallel):
    """The cluster of this process; the device is selected already. Raises ConfigError without a launcher."""
    if not use_parallel:
        return Cluster()
    if not any(name in os.environ for name in LAUNCHERS):
        raise ConfigError(
            "--use_parallel True needs a launcher; expected msrun --worker_num=2 --local_worker_num=2 --join=True "
            "ms_latte/train.py -c CONFIG --use_parallel True; see ms_latte/scripts"
        )
    from mindspore.communication import get_group_size, get_rank, init

    try:
        init()
    except RuntimeError as error:
        line = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ConfigError(
            f"the processes did not find each other ({line}); see the scheduler's log"
        ) from error
    return Cluster(get_rank(), get_group_size())
