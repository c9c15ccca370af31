# SPDX-License-Identifier: Apache-2.0
"""Train a Latte or LatteT2V: from frames or from a cache of latents, on one device or many, resumable to the bit.

A configuration file says everything; `--key value` wins over it.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: find the package from any folder, and keep our folder off the path
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(place for place in sys.path if Path(place).resolve() != folder)]

from ms_latte.config import ConfigError, build, find_config, parse
from ms_latte.sample import guarded
from ms_latte.train_config import TrainConfig

EXAMPLES = """\
examples:
  Sky Timelapse from folders of frames, sky_train/<video>/<frame>.jpg
    python -m ms_latte.train -c configs/training/sky_video.yaml --data_folder sky_timelapse/sky_train
  128 frames, from latents that `python -m ms_latte.cache` made
    python -m ms_latte.train -c configs/training/sky_numpy_video.yaml --data_folder CACHE
  continue a run after a crash, Ctrl-C or SIGTERM: its folder alone is enough
    python -m ms_latte.train --resume output/2026-01-31T12-00-00
  two processes of one host; several hosts, Slurm and Kubernetes: ms_latte/scripts
    msrun --worker_num=2 --local_worker_num=2 --join=True ms_latte/train.py -c CONFIG --use_parallel True
  any other net: constructor arguments by --set
    python -m ms_latte.train -c CONFIG --model_name Latte-S/2 --set depth=4 hidden_size=96 num_heads=3
  sample from what was trained
    python -m ms_latte.sample --checkpoint output/.../ckpt/Latte-e50 --vae_checkpoint VAE

The folder of a run holds config.yaml, log.jsonl (one line for every step), ckpt/ (weights, averaged weights and the
full state), samples/ and tensorboard/. The official repository's spellings of a key are taken too (learning_rate,
local_batch_size, global_seed, ckpt_every, gradient_checkpointing, results_dir ...).
"""


def main(arguments=None):
    """The command line: exit status 0; 2 with one line on stderr for a mistake or a loss that is no number; 130 and 143
    after Ctrl-C and SIGTERM, with a checkpoint."""
    return guarded(lambda: work(arguments))


def work(arguments):
    """Parse, check, train."""
    path, overrides = parse(TrainConfig, arguments, "python -m ms_latte.train", __doc__, EXAMPLES)
    if path is None and not overrides:
        raise ConfigError("nothing to do: -c CONFIG is missing; --help lists the shipped ones and all keys")
    place = overrides.get("resume", overrides.get("resume_from_checkpoint"))
    if path is None and place and Path(place).is_dir():  # a run's own configuration
        from ms_latte.training.folder import held_config, run_of

        path = held_config(place)
        overrides.setdefault("output_path", str(run_of(place)))
    else:
        path = find_config(path) if path else None
    config = build(TrainConfig, path, overrides)
    from ms_latte.training.run import run  # after the cheap checks
    from ms_latte.training.stopping import Stopped

    try:
        return run(config)
    except Stopped as stopped:
        print(f"stopped; {stopped}", file=sys.stderr)
        return stopped.status


if __name__ == "__main__":
    sys.exit(main())
