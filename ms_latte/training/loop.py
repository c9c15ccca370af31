# SPDX-License-Identifier: Apache-2.0
"""The loop of a training run: batches through the step, records out, checkpoints and pictures at their times."""

import math
import time
from dataclasses import asdict, dataclass, replace

import numpy as np

from ms_latte.config import ConfigError
from ms_latte.training.build import scaler_type
from ms_latte.training.schedules import ema_decay, learning_rate

TERMS = ("loss", "mse", "vb", "grad_norm", "scale", "finite")


class TrainingFailed(ValueError):
    """The loss is no number any more; the message names step and clips."""


@dataclass(frozen=True)
class Position:
    """Where a run stands: the next step is number `step` of `epoch`; `total` steps are done.

    overflows: dropped updates in a row at the smallest scale.
    """

    epoch: int = 0
    step: int = 0
    total: int = 0
    overflows: int = 0

    def after(self, steps_per_epoch):
        """The position one step later."""
        last = self.step + 1 == steps_per_epoch
        return replace(self, epoch=self.epoch + last, step=0 if last else self.step + 1, total=self.total + 1)


class Plan:
    """What is to happen after which step.

    config: TrainConfig; steps_per_epoch: of the loader. A step is one batch on every card; `update(total)` is the
    number of the optimiser's step that it belongs to, which rate, EMA and clipping count by.
    """

    def __init__(self, config, steps_per_epoch):
        self.config, self.steps_per_epoch = config, steps_per_epoch
        whole = config.epochs * steps_per_epoch
        self.steps = min(whole, config.max_train_steps or whole)
        updates = math.ceil(self.steps / config.gradient_accumulation_steps)
        self.decay_steps = config.decay_steps or max(updates - config.warmup_steps, 1)
        self.reading = max(config.sink_size, 1) if config.dataset_sink_mode else 1
        if config.dataset_sink_mode and config.sink_size == -1:
            self.reading = steps_per_epoch

    def update(self, total):
        """Number of the optimiser's step that comes next after `total` steps."""
        return total // self.config.gradient_accumulation_steps

    def scalars(self, total):
        """What the step is told beside its batch: "lr", "ema_decay" and "clip", numpy scalars."""
        config, update = self.config, self.update(total)
        decays = {} if config.scheduler == "constant" else {"decay_steps": self.decay_steps}
        rate = learning_rate(
            update,
            config.scheduler,
            config.start_learning_rate,
            config.end_learning_rate,
            config.warmup_steps,
            **decays,
        )
        return {
            "lr": np.float32(rate),
            "ema_decay": np.float32(ema_decay(update, config.ema_decay, config.ema_warmup)),
            "clip": np.bool_(config.clips and update >= (config.start_clip_iter or 0)),
        }

    def completes(self, total):
        """Whether the last of `total` steps completes a step of the optimiser."""
        return total % self.config.gradient_accumulation_steps == 0

    def saves(self, position):
        """The name of the checkpoint that is due at a position, or None."""
        config, total = self.config, position.total
        steps = config.ckpt_every or (config.ckpt_save_interval if config.step_mode else None)
        if steps is not None:
            return f"s{total}" if total % steps == 0 or total == self.steps else None
        if position.step == 0 and (position.epoch % config.ckpt_save_interval == 0 or total == self.steps):
            return f"e{position.epoch}"
        return f"s{total}" if total == self.steps else None

    def draws(self, position):
        """Whether sample pictures are due at a position."""
        return bool(self.config.sample_every) and position.total % self.config.sample_every == 0

    def reads(self, position, pending):
        """Whether the numbers of the pending steps are read back now."""
        return (
            len(pending) >= self.reading
            or position.total >= self.steps
            or self.saves(position) is not None
            or self.draws(position)
        )

    def facts(self):
        """What a resumed run must find as it was, beside its configuration."""
        return {} if self.config.scheduler == "constant" else {"decay_steps": self.decay_steps}


class Loop:
    """Runs steps from a position on.

    plan: Plan; loader: of `ms_latte.data`; feeding: Feeding or SunkFeeding; cluster: Cluster; log: TrainingLog;
    save(position, name): writes a checkpoint; draw(position): writes sample pictures; stop(): whether the run is asked
    to end; images: of one step on all cards.
    """

    def __init__(self, plan, loader, feeding, cluster, log, save, draw, stop, images):
        self.plan, self.loader, self.feeding, self.cluster, self.log = plan, loader, feeding, cluster, log
        self.save, self.draw, self.stop, self.images = save, draw, stop, images
        self.pending, self.saved = [], None

    def run(self, position):
        """All steps that are left; returns (position, whether it was stopped). Raises TrainingFailed."""
        plan = self.plan
        self._start_clock()
        while position.total < plan.steps:
            batches = self.feeding.batches(self.loader, position, plan)
            for batch in batches:
                self.pending.append((position, self.feeding(batch)))
                position = position.after(plan.steps_per_epoch)
                if plan.reads(position, self.pending):
                    position = replace(position, overflows=self._read(position.overflows))
                    if self._pause(position):
                        batches.close()
                        return position, True
                if position.total == plan.steps:
                    break
            batches.close()
        return position, False

    def _pause(self, position):
        """What is due between two steps; True if the run is to end here."""
        name = self.plan.saves(position)
        stopped = self.cluster.any(self.stop())
        if stopped and name is None:
            name = f"s{position.total}"
        if name is not None:
            self.log.flush()
            self.save(position, name)
        if self.plan.draws(position) and not stopped:
            self.draw(position)
        if name is not None or self.plan.draws(position):
            self._start_clock()
        if stopped:
            self.cluster.any(
                False
            )  # the first process that ends takes all others with it: the writing one last
        return stopped

    def _start_clock(self):
        self.clock, self.idle = time.perf_counter(), self.loader.waited

    def _read(self, overflows):
        """Read the numbers of the pending steps back, record them; returns the overflows in a row."""
        pending, self.pending = self.pending, []
        values = np.array(
            [[float(metrics[name].asnumpy()) for name in TERMS] for _, metrics in pending], np.float32
        )
        now, waited = time.perf_counter(), self.loader.waited
        seconds, waited = (now - self.clock) / len(pending), (waited - self.idle) / len(pending)
        self._start_clock()
        for (position, _), row in zip(pending, values.tolist(), strict=True):
            metrics = dict(zip(TERMS, row, strict=True))
            finite = bool(metrics.pop("finite")) and math.isfinite(metrics["loss"])
            total = position.total + 1
            skipped = not finite and self.plan.completes(total)
            record = {
                "step": total,
                "epoch": position.epoch,
                **metrics,
                "lr": float(self.plan.scalars(position.total)["lr"]),
                "skipped": skipped,
                "seconds": round(seconds, 6),
                "images_per_second": round(self.images / seconds, 3),
                "waited": round(waited, 6),
            }
            self.log.step(record)
            if not finite:
                overflows = self._overflow(position, metrics, overflows, skipped)
            elif self.plan.completes(total):
                overflows = 0
        return overflows

    def _overflow(self, position, metrics, overflows, skipped):
        """Count a step that is not finite; raises TrainingFailed where no smaller scale can help."""
        config = self.plan.config
        kind = scaler_type(config)
        if kind != "none":
            at_end = kind == "static" or metrics["scale"] <= 1
            overflows = overflows + (skipped and at_end)
            if overflows < config.max_overflows:
                return overflows
        self.log.flush()
        names = self.loader.names(position.epoch, position.step)
        held = f"the last checkpoint is {self.saved}" if self.saved else "no checkpoint was written yet"
        raise TrainingFailed(
            f"loss {metrics['loss']} and gradient norm {metrics['grad_norm']} at step {position.total + 1} (epoch "
            f"{position.epoch}, step {position.step} of it), whose clips are {', '.join(map(repr, names))}; the update "
            f"was not made; {held}; remedy: a lower start_learning_rate, clip_grad True, dtype fp32 or bf16, or "
            "without these clips"
        )


def position_of(facts):
    """The position that a checkpoint's facts tell. Raises ConfigError for another format."""
    try:
        return Position(**facts["position"])
    except TypeError as error:
        raise ConfigError(f"the checkpoint's position {facts['position']} is of another version") from error


def position_facts(position):
    """A position as JSON can hold it."""
    return asdict(position)
