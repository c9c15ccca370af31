# SPDX-License-Identifier: Apache-2.0
"""Convert a Latte or LatteT2V checkpoint: any published layout in, any layout out.

Neither torch nor MindSpore is needed, and memory stays at about one tensor. The configuration is inferred from
the file and written beside the weights. Latte and LatteT2V never become each other.
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
  official Latte, EMA weights, shapes tell the configuration:
    python converters/latte_converter.py --source skytimelapse.pt --target skytimelapse.ckpt
  the raw (non-EMA) weights in half precision, checked after writing:
    python converters/latte_converter.py --source ucf101.pt --target ucf101.safetensors \\
        --which model --dtype fp16 --verify
  a latent that is not square, a width that is not published (sizes are those of the latent: pixels / 8):
    python converters/latte_converter.py --source my.pt --target my.safetensors \\
        --set input_size=32,40 num_heads=8
  DiT's ImageNet weights as a start for class-conditional training:
    python converters/latte_converter.py --source DiT-XL-2-256x256.pt --target start.safetensors \\
        --set condition=class num_classes=101 num_frames=16
  text to video, from a pipeline's folder to one file:
    python converters/latte_converter.py --source Latte-1 --target latte-1.safetensors
  Open-Sora-Plan v1.0 (its file looks like the official LatteT2V, only you can tell them apart),
  to what mindone's opensora_pku reads:
    python converters/latte_converter.py --source t2v.pt --from open-sora-plan-v1.0 \\
        --set sample_size=64,64 video_length=17 --to mindone-opensora-pku --target opensora_pku.ckpt
  a folder for diffusers, in shards:
    python converters/latte_converter.py --source latte-1.safetensors --to diffusers --target Latte-1/transformer \\
        --shard-size 2GB
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: exit code 0, or 2 with one line on stderr."""
    return run("latte", __doc__, EXAMPLES, arguments)


if __name__ == "__main__":
    sys.exit(main())
