# SPDX-License-Identifier: Apache-2.0
"""Convert the VAE of a latent diffusion model: Stable Diffusion's AutoencoderKL or the temporal-decoder VAE.

Neither torch nor MindSpore is needed, and memory stays at about one tensor.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: find the package from any folder, and keep our folder off the path
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(place for place in sys.path if Path(place).resolve() != folder)]

from converters.command import run

EXAMPLES = """\
examples:
  sd-vae-ft-mse as diffusers publishes it, to one file:
    python converters/vae_converter.py --source sd-vae-ft-mse --target sd-vae-ft-mse.ckpt
  the original CompVis names, as mindone's examples read them:
    python converters/vae_converter.py --source sd-vae-ft-mse --to mindone-compvis-vae --target sd-vae-ft-mse.ckpt
  from a CompVis file to a folder for diffusers:
    python converters/vae_converter.py --source vae-ft-mse-840000-ema-pruned.ckpt --to diffusers-vae --target vae
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: exit code 0, or 2 with one line on stderr."""
    return run("vae", __doc__, EXAMPLES, arguments)


if __name__ == "__main__":
    sys.exit(main())
