# SPDX-License-Identifier: Apache-2.0
"""One run of `python -m ms_latte.train`: parts from files, steps, checkpoints into a folder."""

import sys
from contextlib import ExitStack
from pathlib import Path

from ms_latte import device
from ms_latte.config import ConfigError, dump
from ms_latte.parts import settle
from ms_latte.training import parallel, run_state
from ms_latte.training.folder import RunFolder, find_run
from ms_latte.training.session import Session


def run(config, out=None):
    """Train as `config` says; returns the exit status 0.

    Raises ValueError (ConfigError, TrainingFailed ...) for what cannot be served or learned, DeviceError for an absent
    device, and Stopped, which tells how to resume.
    """
    out = out or sys.stdout
    if config.use_parallel and config.resume is True and not config.output_path:
        raise ConfigError(
            "--resume True with use_parallel needs --output_path: all processes must mean one folder"
        )
    path, place = find_run(config)
    report = device.select(config.device_target, config.device_id)
    config = settle(config.model_copy(update={"output_path": str(path)}))
    cluster = parallel.start(config.use_parallel)

    def say(line):
        if cluster.writes:
            print(line, file=out, flush=True)

    say(f"{report.device}, MindSpore {report.mindspore}, {cluster.size} card(s), {_words(config)}")
    with ExitStack() as stack:
        folder = (
            stack.enter_context(RunFolder(path, resumed=config.resume is not False))
            if cluster.writes
            else None
        )
        found = run_state.newest(place, say) if place is not None else None
        if found is not None and found.path == Path(place) and run_state.later(path, found):
            raise ConfigError(
                f"--resume {found.path}: {path} holds later checkpoints; name another --output_path to branch off, or "
                "resume the newest one"
            )
        if config.resume is True and found is None:
            say(f"nothing to resume in {path}: a new run")
        session = Session(config, cluster, path, found, say)
        if folder is not None:
            folder.write_config(dump(config))
        return session.run(stack, out)


def _words(config):
    height, width = config.image_size
    images = f"+{config.images}" if config.images else ""
    way = "graph" if config.mode == 0 else "pynative"
    return (
        f"{config.dtype}, {way}, {config.num_frames}{images} x {height} x {width}, batch {config.train_batch_size} x "
        f"{config.gradient_accumulation_steps}, lr {config.start_learning_rate:g} {config.scheduler}"
    )
