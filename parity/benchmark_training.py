# SPDX-License-Identifier: Apache-2.0
"""The row of `python -m parity benchmark` about training: one step of the class family, and the memory that it takes.

A step is loss, gradients, clipping, AdamW and the average, on latents with their posterior. Width is the published one,
depth is cut. Memory is that of fresh processes: torch, MindSpore, and MindSpore with recomputed blocks.
"""

import importlib
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from parity.benchmark_generate import class_net
from parity.harness.backends import Worker
from parity.harness.case import Case
from parity.harness.inputs import array, normal, realize

GOAL = 1.5


@dataclass(frozen=True)
class TrainingJob:
    """One row, as `benchmark_generate.Job`. case: the net; batch: what a step takes."""

    case: Case
    batch: dict[str, Any]
    goal: float = GOAL
    original: None = None

    def seconds(self, worker: Worker, inputs: dict[str, Any], loops: int) -> float:
        """Ask one side for the seconds of a step."""
        return worker("clock_training", batch=realize(self.batch, self.case.seed), loops=loops)


def jobs(tiny: bool = False) -> list[TrainingJob]:
    """The rows. tiny: sizes that show that they run; their figures mean nothing."""
    case, shape = class_net(tiny, samples=1)
    drawn = dict(mean=normal(*shape), logvar=normal(*shape, mean=-2.0), posterior=normal(*shape))
    batch = dict(**drawn, noise=normal(*shape), t=array([500]), label=array([5]), drop=array([False]))
    return [
        TrainingJob(replace(case, name=f"training step, Latte {case.init['depth']} blocks, 1 clip"), batch)
    ]


def clock(side: Any, batch: dict[str, Any], loops: int, recompute: bool) -> float:
    """Seconds of one step of the net that a side holds, in its worker process: the median of `loops`, after one that
    warms the caches. recompute: of the blocks, in MindSpore."""
    names = ("training.optim", "training.ema", "training.step", "diffusion.gaussian")
    optim, ema, steps, gaussian = (importlib.import_module(f"{side.package}.{name}") for name in names)
    own = side.parameters()
    for name in side.trainable:
        own[name].requires_grad = True
    if recompute:
        for block in side.root.blocks:
            block.recompute()
    optimizer = optim.AdamW(optim.trainable_parameters(side.root), precision=side.policy)
    diffusion = gaussian.GaussianDiffusion(precision=side.policy)
    step = steps.TrainingStep(side.root, diffusion, optimizer, ema.EMA(optimizer.masters), max_grad_norm=1.0)
    batch = {name: v.astype(np.int32) if v.dtype.kind == "i" else v for name, v in batch.items()}
    scalars = dict(lr=np.float32(1e-4), ema_decay=np.float32(0.999), clip=np.bool_(True))
    tensors = {name: side.tensor(np.asarray(value)) for name, value in {**batch, **scalars}.items()}
    times = []
    for _ in range(loops + 1):
        began = time.perf_counter()
        loss = float(side.array(step(tensors)["loss"]))  # the step is complete when its loss is here
        times.append(time.perf_counter() - began)
    if not np.isfinite(loss):
        raise ValueError(f"the loss of the timed step is {loss}")
    return statistics.median(times[1:])
