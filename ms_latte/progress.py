# SPDX-License-Identifier: Apache-2.0
"""Progress of a run: a bar on a terminal, plain lines elsewhere; and the times that the table at the end shows."""

import sys
import time

SECONDS = 10.0  # between two plain lines of one batch


class Progress:
    """Counts the steps of all batches; a context manager.

    batches, steps: how many there will be; stream: where to write, stderr by default. `times` holds the seconds of
    every step, batch by batch. On a device that runs ahead of the host these are launch times; their sum is right.
    """

    def __init__(self, batches, steps, stream=None):
        self.batches, self.steps = batches, steps
        self.stream = stream or sys.stderr
        self.times, self.batch, self.bar = [], 0, None
        self.last = self.shown = time.perf_counter()

    def __enter__(self):
        if self.stream.isatty():
            self.bar = _bar(self.stream, self.batches * self.steps)
        return self

    def __exit__(self, *_):
        if self.bar:
            self.bar.stop()

    def begin(self, label):
        """A batch begins; label: what it is, for people."""
        self.batch += 1
        self.times.append([])
        self.label = label
        self.last = time.perf_counter()
        self._show()

    def step(self, _):
        """A step has ended."""
        now = time.perf_counter()
        self.times[-1].append(now - self.last)
        self.last = now
        self._show()

    def say(self, line):
        """A line of its own, above the bar."""
        print(line, file=self.stream, flush=True) if not self.bar else self.bar.console.print(
            line, markup=False
        )

    @property
    def step_time(self):
        """Median seconds of a step, the first of the run left out if there are others: it compiles."""
        later = sorted([t for times in self.times for t in times][1:])
        return (
            later[len(later) // 2] if later else (self.times[0][0] if self.times and self.times[0] else 0.0)
        )

    @property
    def compile_time(self):
        """Seconds that the very first step took longer than the median."""
        return max(self.times[0][0] - self.step_time, 0.0) if self.times and self.times[0] else 0.0

    @property
    def remaining(self):
        """Seconds that the steps still to come will take."""
        return self.step_time * (
            self.batches * self.steps - (self.batch - 1) * self.steps - len(self.times[-1])
        )

    def _show(self):
        done = len(self.times[-1])
        pace = f"{self.step_time:.2f} s/step, {clock(self.remaining)} left" if done else ""
        if self.bar:
            completed = (self.batch - 1) * self.steps + done
            text = f"{self.label}  step {done}/{self.steps}"
            self.bar.update(self.bar.task_ids[0], completed=completed, description=text, pace=pace)
        elif done and (done == self.steps or self.last - self.shown >= SECONDS):
            self.shown = self.last
            self.say(f"{self.label}  step {done}/{self.steps}  {pace}")


class FrameProgress:
    """Progress over the frames of many videos; a context manager. videos, frames: how many there will be; stream:
    where to write, stderr by default. Shows frames per second and the time that the rest will take.
    """

    def __init__(self, videos, frames, stream=None):
        self.videos, self.frames = videos, frames
        self.stream = stream or sys.stderr
        self.video, self.bar = 0, None
        self.done = self.expected = 0
        self.start = self.shown = time.perf_counter()

    def __enter__(self):
        if self.stream.isatty():
            self.bar = _bar(self.stream, self.frames)
        return self

    def __exit__(self, *_):
        if self.bar:
            self.bar.stop()

    def begin(self, label, frames):
        """A video begins; frames: how many it should have. One that ended early has still been dealt with."""
        self.done = self.expected
        self.expected += frames
        self.video += 1
        self.label = label
        self._show()

    def step(self, count):
        """So many further frames are finished."""
        self.done += count
        self._show()

    def say(self, line):
        """A line of its own, above the bar."""
        print(line, file=self.stream, flush=True) if not self.bar else self.bar.console.print(
            line, markup=False
        )

    def _show(self):
        now = time.perf_counter()
        rate = self.done / max(now - self.start, 1e-9)
        left = clock((self.frames - self.done) / rate) if self.done else "?"
        text, pace = f"video {self.video}/{self.videos} {self.label}", f"{rate:.1f} frames/s, {left} left"
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=self.done, description=text, pace=pace)
        elif now - self.shown >= SECONDS or self.done == self.frames:
            self.shown = now
            self.say(f"{text}  {self.done}/{self.frames} frames  {pace}")


def clock(seconds):
    """Seconds as 1:02 or 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _bar(stream, total):
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[pace]}"),
    )
    bar = Bar(*columns, console=Console(file=stream))
    bar.add_task("", total=total, pace="")
    bar.start()
    return bar


def timing_table(row):
    """The table of the published README, in Markdown; row: heading -> text."""
    widths = {name: max(len(name), len(value)) for name, value in row.items()}
    line = lambda cells: "| " + " | ".join(cells) + " |"  # noqa: E731 (three uses, one line)
    return "\n".join(
        [
            line(name.ljust(width) for name, width in widths.items()),
            line("-" * width for width in widths.values()),
            line(row[name].ljust(width) for name, width in widths.items()),
        ]
    )
