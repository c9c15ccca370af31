# SPDX-License-Identifier: Apache-2.0
"""What a run tells: lines on the screen, one JSON line for every step, curves for TensorBoard, the table at the end."""

import json
import os
import resource
import sys
from pathlib import Path

from ms_latte.config import ConfigError
from ms_latte.files import write_whole
from ms_latte.progress import clock, timing_table

FILE = "log.jsonl"
CURVES = ("loss", "mse", "vb", "grad_norm", "lr", "scale", "images_per_second")
COLUMNS = (  # of the published table
    *("model name", "cards", "image size", "graph compile", "batch size", "num frames", "recompute"),
    *("dataset sink mode", "embedding cache", "jit level", "per step time", "train imgs/s"),
)


class TrainingLog:
    """Writes the records of a run into `folder`; a context manager. Of other processes than the first it is silent.

    start: steps that were done before; records beyond it, of a run that was killed after its last checkpoint, are
    removed, so that every step stands in the file once. total: steps that there will be. interval: steps between
    lines. Raises ConfigError if curves are asked for and tensorboardX is absent.
    """

    def __init__(
        self, folder, start=0, total=0, interval=1, quiet=False, tensorboard=False, writes=True, out=None
    ):
        self.folder, self.start, self.total, self.interval = Path(folder), start, total, interval
        self.quiet, self.writes, self.out = quiet, writes, out or sys.stdout
        self.file = self.curves = None
        self.writer = _curve_writer() if tensorboard and writes else None
        self.times, self.compile_time, self.waited, self.skipped = [], None, 0.0, 0

    def __enter__(self):
        if self.writes:
            self._cut()
            self.file = open(self.folder / FILE, "a", encoding="utf-8")
        if self.writer:
            self.curves = self.writer(str(self.folder / "tensorboard"), purge_step=self.start + 1)
        return self

    def __exit__(self, *_):
        for one in (self.file, self.curves):
            if one is not None:
                one.close()

    def say(self, line):
        """A line of its own."""
        if self.writes:
            print(line, file=self.out, flush=True)

    def step(self, record):
        """A step's record: step, epoch, loss, mse, vb, grad_norm, lr, scale, skipped, seconds, images_per_second,
        waited."""
        if self.compile_time is None:
            self.compile_time = record["seconds"]
        else:
            self.times.append(record["seconds"])
        self.waited += record["waited"]
        self.skipped += record["skipped"]
        if not self.writes:
            return
        self.file.write(json.dumps(record) + "\n")
        if self.curves:
            for name in CURVES:
                self.curves.add_scalar(f"train/{name}", record[name], record["step"])
        if not self.quiet and (
            record["step"] % self.interval == 0 or record["step"] in (self.start + 1, self.total)
        ):
            self.say(self._line(record))

    def flush(self):
        """What was recorded is on the disk."""
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())

    @property
    def step_time(self):
        """Median seconds of a step; the first, which compiles, does not count if there are others."""
        times = sorted(self.times)
        return times[len(times) // 2] if times else self.compile_time or 0.0

    def table(self, row):
        """The published table's row, from what the configuration says of it, with the times of this run."""
        step = self.step_time
        images = row["cards"] * row["batch size"] * row["num frames"] / step if step else 0.0
        compiled = max((self.compile_time or step) - step, 0.0)
        row = {
            **row,
            "graph compile": f"{compiled:.1f} s" if row["graph compile"] else "-",
            "per step time": f"{step:.3f} s",
            "train imgs/s": f"{images:.2f}",
        }
        return timing_table({name: _word(row[name]) for name in COLUMNS})

    def summary(self):
        """Idle time, dropped updates and peak memory, one line."""
        spent = sum(self.times) + (self.compile_time or 0.0)
        share = 100 * self.waited / spent if spent else 0.0
        return (
            f"waited {self.waited:.1f} s for data ({share:.1f} %), {self.skipped} updates dropped by overflow, "
            f"peak memory {peak_memory()}"
        )

    def _line(self, record):
        left = clock(self.step_time * (self.total - record["step"]))
        scale = "" if record["scale"] == 1 else f"  scale {record['scale']:g}"
        skipped = "  overflow, dropped" if record["skipped"] else ""
        return (
            f"epoch {record['epoch']} step {record['step']}/{self.total}  loss {record['loss']:.5f} "
            f"(mse {record['mse']:.5f} vb {record['vb']:.2e})  grad norm {record['grad_norm']:.4f}  "
            f"lr {record['lr']:.3g}{scale}  {record['seconds']:.3f} s  {record['images_per_second']:.2f} imgs/s  "
            f"waited {record['waited']:.3f} s  {left} left{skipped}"
        )

    def _cut(self):
        """Remove records beyond `start`, and half a line of a killed process."""
        path = self.folder / FILE
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                if line.endswith("\n") and json.loads(line)["step"] <= self.start:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue
        write_whole(path, "".join(kept).encode())


def peak_memory():
    """The most memory that the process has held: of the host, and of an accelerator where MindSpore tells it."""
    host = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB of the host"
    import mindspore as ms

    device = ms.runtime.max_memory_allocated()  # 0 on the CPU
    return f"{host}, {device / 2**30:.2f} GiB of the device" if device else host


def _word(value):
    return {True: "ON", False: "OFF"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _curve_writer():
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"--tensorboard True needs tensorboardX, which cannot be imported ({error}); remedy: pip install "
            '"ms-latte[train]" or "tensorboardX>=2.6.2", or leave it out: log.jsonl holds the same numbers'
        ) from error
    return SummaryWriter
