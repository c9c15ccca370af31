# SPDX-License-Identifier: Apache-2.0
"""The folder of a training run, held by one process at a time, and what `--resume` leads to.

config.yaml     the resolved configuration, every key stated
log.jsonl       one line for every step
ckpt/           the newest checkpoints; samples/ pictures; tensorboard/ curves
"""

import fcntl
import os
from pathlib import Path

import yaml

from ms_latte.config import ConfigError
from ms_latte.files import write_whole
from ms_latte.run_folder import new_path
from ms_latte.training import run_state
from ms_latte.training.log import FILE

RUNS = Path("output")
CONFIG = "config.yaml"


def find_run(config):
    """(folder of the run, checkpoint or folder to resume from or None) of a configuration, without reading either.

    resume True continues the run of output_path, or the newest one below output/; a path names a run's folder or one
    of its checkpoints. Another output_path beside it begins a new run there from that checkpoint.
    """
    told = Path(config.output_path) if config.output_path else None
    if config.resume is False:
        return told or new_path(RUNS), None
    if config.resume is True:
        place = told or _newest()
        return place, place if place.is_dir() and any(place.glob(f"{run_state.FOLDER}/*-*")) else None
    place = Path(config.resume)
    if not place.is_dir():
        raise ConfigError(
            f"--resume {place}: no such folder; expected True, a run's folder or one of its checkpoints"
        )
    return told or run_of(place), place


def run_of(place):
    """The folder of the run that a path of --resume belongs to."""
    place = Path(place)
    inside = next((p for p in (place, *place.absolute().parents) if p.name == run_state.FOLDER), None)
    return inside.parent if inside is not None else place


class RunFolder:
    """Holds the folder of a run; a context manager.

    resumed: whether it may hold a run already. Raises ConfigError if it is in use, cannot be written, or holds other
    things or a run that is not asked for.
    """

    def __init__(self, path, resumed=False):
        self.path, self.resumed, self.handle, self.created = Path(path), resumed, None, False

    def __enter__(self):
        try:
            self.created = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            held = sorted(p.name for p in self.path.iterdir())
            if held and not self.resumed:
                remedy = "--resume True continues it, or" if CONFIG in held else ""
                raise ConfigError(
                    f"--output_path {self.path} holds {'a run' if CONFIG in held else held[0]} already; nothing is "
                    f"overwritten; {remedy} name another folder".replace("  ", " ")
                )
            self.handle = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"--output_path {self.path}: another process trains into it") from error
        except OSError as error:
            raise ConfigError(
                f"--output_path {self.path}: cannot write there ({error.strerror or error}); name another folder"
            ) from error
        return self

    def __exit__(self, *_):
        if self.handle is not None:
            os.close(self.handle)
        if self.created and not any(self.path.iterdir()):
            self.path.rmdir()  # a run that failed before it began leaves nothing behind

    def write_config(self, text):
        """The resolved configuration, whole or not at all."""
        write_whole(self.path / CONFIG, text.encode())


def held_config(place):
    """The configuration file of the run that --resume names. Raises ConfigError if there is none."""
    path = run_of(place) / CONFIG
    try:
        yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"--resume {place}: {path} cannot be read ({error}); name it with -c") from error
    return path


def _newest():
    runs = [path.parent for path in RUNS.glob(f"*/{CONFIG}")]
    logs = {run: max(p.stat().st_mtime_ns for p in (run / CONFIG, run / FILE) if p.exists()) for run in runs}
    return max(logs, key=logs.get) if logs else new_path(RUNS)
