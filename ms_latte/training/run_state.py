# SPDX-License-Identifier: Apache-2.0
"""The full state of a training run on disk: what a resumed run needs to go on as if it had never stopped.

A checkpoint is a folder, `Latte-e50` after an epoch or `Latte-s1000` after a step:

diffusion_pytorch_model.safetensors   weights, and averaged weights as ema.*: sampled from as they are
config.json                           constructor arguments of the model
state.safetensors                     masters, moments, scaler, accumulated gradients; in its metadata the facts:
                                      position, configuration, identity of the data, hash of the weights

It appears under its name when it is complete. Data order, crops, noise and timesteps are drawn from (seed, epoch,
index), so that the position is all that has to be kept of any generator.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from ms_latte.config import ConfigError
from ms_latte.files import synchronise

STATE = "state.safetensors"
FOLDER = "ckpt"  # inside the folder of a run
NAME = re.compile(r"(.+)-([es])(\d+)")
UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class Found:
    """A checkpoint that was read: its folder, name -> array of weights and of state, and its facts."""

    path: Path
    weights: dict
    state: dict
    facts: dict


def save(folder, name, model, state, facts, keep):
    """Write the checkpoint `name` into `folder`, then remove all but the newest `keep`; returns its path.

    state: name -> Parameter of the training step, "ema.*" among them; facts: what JSON can hold, with
    facts["position"]["total"]. Raises ConfigError if the disk is full or cannot be written: older ones stay.
    """
    from ms_latte import checkpoint

    folder = Path(folder)
    target, unfinished = folder / name, folder / f".{name}{UNFINISHED}"
    averages = {key.removeprefix("ema."): value for key, value in state.items() if key.startswith("ema.")}
    rest = {key: value for key, value in state.items() if not key.startswith("ema.")}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f".*{UNFINISHED}"):  # of a killed process
            shutil.rmtree(stale)
        digest = checkpoint.save(model, unfinished, folder=True, ema=averages)
        words = {"facts": json.dumps({**facts, "weights": digest})}
        checkpoint.save_tensors(rest, unfinished / STATE, words)
        if target.exists():  # of a run that went on from an earlier one
            shutil.rmtree(target)
        os.rename(unfinished, target)
        synchronise(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise ConfigError(
            f"checkpoint {target} cannot be written ({error.strerror or error}); older ones in {folder} are intact; "
            "remedy: free space or lower ckpt_max_keep, then repeat the command with --resume True"
        ) from error
    for old in _by_age(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest(place, say=print):
    """The newest whole checkpoint of a run's folder, of its `ckpt`, or the checkpoint that `place` itself is.

    A damaged one is left with a message by `say` for the one before it. Raises ConfigError if there is none.
    """
    place = Path(place)
    if not place.is_dir():
        raise ConfigError(
            f"--resume {place}: no such folder; expected a run's folder or one of its checkpoints"
        )
    if (place / STATE).exists() or NAME.fullmatch(place.name):
        return read(place)
    inside = place / FOLDER if (place / FOLDER).is_dir() else place
    problems = []
    for path in _by_age(inside):
        try:
            found = read(path)
        except ConfigError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            say(f"{problem}; taking {path.name} instead")
        return found
    raise ConfigError(" | ".join([f"--resume {place}: no whole checkpoint in {inside}", *problems]))


def read(path):
    """A checkpoint, checked byte for byte. Raises ConfigError, one line, for a damaged one."""
    from ms_latte import checkpoint

    path = Path(path)
    try:
        state, words = checkpoint.read_tensors(path / STATE)
        facts = json.loads(words["facts"])
        files = [file for file in sorted(path.glob("*.safetensors")) if file.name != STATE]
        if len(files) != 1:
            raise ValueError(f"{len(files)} files of weights")
        weights, words = checkpoint.read_tensors(files[0])
        if words["sha256"] != facts["weights"]:
            raise ValueError("weights and state belong to different checkpoints")
        return Found(path, weights, state, facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"checkpoint {path} is damaged or incomplete ({reason})") from error


def restore(found, model, state):
    """Give a model and the state of its training step the numbers of a checkpoint, bit for bit.

    Raises ConfigError that lists the names that only one side has; nothing is changed then.
    """
    import mindspore as ms
    import numpy as np

    from ms_latte import checkpoint

    raw = {name: found.weights[name] for name in found.weights if not name.startswith("ema.")}
    held = {name: found.state[name] for name in found.state}
    held |= {name: found.weights[name] for name in found.weights if name.startswith("ema.")}
    wrong = {
        "missing": sorted(set(state) - set(held)),
        "unknown": sorted(set(held) - set(state)),
        "mis-shaped": sorted(
            name for name in set(held) & set(state) if tuple(held[name].shape) != tuple(state[name].shape)
        ),
    }
    if any(wrong.values()):
        lines = [f"{kind} {', '.join(names[:5])} ({len(names)})" for kind, names in wrong.items() if names]
        raise ConfigError(f"{found.path} is the state of another training step: {'; '.join(lines)}")
    # Copies: the file may be removed while the run goes on.
    checkpoint.load_arrays(model, {name: np.array(value) for name, value in raw.items()})
    for name, parameter in state.items():
        parameter.set_data(ms.Tensor(np.array(held[name]), parameter.dtype))


def differences(then, now, free=(), host=()):
    """(what forbids to resume, what is worth a note): lines that name every difference of two facts.

    then, now: facts with "config", "data", "model"; keys of the configuration in `free` are not compared, those in
    `host` only noted. Cards and batch may change together, as long as a step takes as many samples.
    """
    refused, noted, now = [], [], json.loads(json.dumps(now))  # as a file holds them
    held, asked = dict(then["config"]), dict(now["config"])
    samples = [then["cards"] * held.pop("train_batch_size"), now["cards"] * asked.pop("train_batch_size")]
    if samples[0] != samples[1]:
        refused.append(f"cards times train_batch_size {samples[0]} there, {samples[1]} now")
    for key in {**held, **asked}:
        if key not in free and held.get(key) != asked.get(key):
            (noted if key in host else refused).append(
                f"{key} {held.get(key)!r} there, {asked.get(key)!r} now"
            )
    for part in ("model", "data", "schedule", "vae"):
        refused += [f"{part} {line}" for line in _compare(then.get(part), now.get(part))]
    return refused, noted


def later(run, found):
    """Whether a run's folder holds a checkpoint beyond the one that was found."""
    newest_there = next(iter(_by_age(Path(run) / FOLDER)), found.path)
    steps = _total(newest_there)
    return steps is not None and steps > found.facts["position"]["total"]


def _compare(held, asked, where=""):
    if isinstance(held, dict) and isinstance(asked, dict):
        return [
            line
            for key in {**held, **asked}
            for line in _compare(held.get(key), asked.get(key), f"{where}{key}.")
        ]
    if held == asked:
        return []
    shown = [text if len(text) <= 60 else f"{text[:57]}..." for text in (repr(held), repr(asked))]
    return [f"{where.rstrip('.')} {shown[0]} there, {shown[1]} now".strip()]


def _by_age(folder):
    """Checkpoints of a folder, newest first; those that cannot tell their step stand where their file time says."""
    paths = [path for path in Path(folder).glob("*-*") if path.is_dir() and NAME.fullmatch(path.name)]
    told = {path: _total(path) for path in paths}
    known = sorted(
        (path for path in paths if told[path] is not None), key=lambda path: told[path], reverse=True
    )
    unknown = [path for path in paths if told[path] is None]
    return sorted(unknown, key=lambda path: path.stat().st_mtime_ns, reverse=True) + known


def _total(path):
    """Steps that a checkpoint's facts tell, None if they cannot be read."""
    from ms_latte import checkpoint

    try:
        return int(
            json.loads(checkpoint.read_tensors(path / STATE, check=False)[1]["facts"])["position"]["total"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
