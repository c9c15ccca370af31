# SPDX-License-Identifier: Apache-2.0
"""Cache latents: every frame of every video through the VAE once, captions through T5, for training without either.

Mean and logvar of each frame are kept, so that training draws a new posterior sample, crop and stride every time. An
interrupted run, killed ones too, is continued by the same command.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: find the package from any folder, and keep our folder off the path
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(place for place in sys.path if Path(place).resolve() != folder)]

from ms_latte.cache_config import CacheConfig
from ms_latte.config import ConfigError, build, find_config, parse
from ms_latte.sample import guarded

EXAMPLES = """\
examples:
  Sky Timelapse, as the training configuration says
    python -m ms_latte.cache --config configs/training/sky_video.yaml --cache_folder sky_latents
  the same in MindRecord files
    python -m ms_latte.cache -c configs/training/sky_video.yaml --cache_folder sky_records --cache_file_type mindrecord
  continue at video 120, whatever is missing before it
    python -m ms_latte.cache -c configs/training/sky_video.yaml --cache_folder sky_latents --resume_cache_index 120
  captions of a table too, in float16
    python -m ms_latte.cache --csv_path videos.csv --data_folder videos --vae_checkpoint Latte-1/vae
      --condition text --text_encoder Latte-1/text_encoder --cache_folder latents --save_data_type float16
then
    python -m ms_latte.train -c configs/training/sky_numpy_video.yaml --data_folder sky_latents

The folder holds cache.json (what it was made from: VAE, sizes, text encoder), videos.jsonl (a line for each video, with
the hash of its arrays) and the arrays. Keys of the training alone are passed over in a configuration file.
"""


def main(arguments=None):
    """The command line: exit status 0; 2 with one line on stderr for a mistake; 130 when interrupted."""
    return guarded(lambda: work(arguments))


def work(arguments):
    """Parse, check, cache."""
    path, overrides = parse(CacheConfig, arguments, "python -m ms_latte.cache", __doc__, EXAMPLES)
    if path is None and not overrides:
        raise ConfigError("nothing to do: -c CONFIG is missing; --help lists the shipped ones and all keys")
    config = build(CacheConfig, find_config(path) if path else None, overrides)
    from ms_latte.caching import run  # after the cheap checks

    return run(config)


if __name__ == "__main__":
    sys.exit(main())
