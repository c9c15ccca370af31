# SPDX-License-Identifier: Apache-2.0
"""Watch a small Latte learn, in half an hour on a CPU and without a download: moving shapes, from frames to new videos.

Clips are drawn, a small VAE is fitted to them, and the commands of this package do the rest, as they would with videos
of your own: ms_latte.cache, ms_latte.train, ms_latte.sample.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: find the package from any folder, and keep our folder off the path
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(place for place in sys.path if Path(place).resolve() != folder)]

from ms_latte.config import build, find_config, parse
from ms_latte.demo_config import DemoConfig
from ms_latte.sample import guarded

EXAMPLES = """\
examples:
  everything, into demo_run
    python -m ms_latte.demo
  half as long
    python -m ms_latte.demo --train_steps 1000 --vae_steps 500 --output_path short_run

The folder holds videos/ (the clips, <kind>/<number>/<frame>.png), vae.safetensors, latents/ (the cache), train/ (log
and checkpoints), samples/, and at the end loss_curve.png and real_and_generated.png. An interrupted run goes on where
it was when the command is repeated.
"""


def main(arguments=None):
    """The command line: exit status 0; 2 with one line on stderr for a mistake; 130 when interrupted."""
    return guarded(lambda: work(sys.argv[1:] if arguments is None else arguments))


def work(arguments):
    """Parse, check, run all stages."""
    path, overrides = parse(DemoConfig, arguments, "python -m ms_latte.demo", __doc__, EXAMPLES)
    config = build(DemoConfig, find_config(path) if path else None, overrides)
    from ms_latte.demo_stages import run  # after the cheap checks

    return run(config)


if __name__ == "__main__":
    sys.exit(main())
