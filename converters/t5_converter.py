# SPDX-License-Identifier: Apache-2.0
"""Convert a T5 encoder (v1.1-XXL is the text encoder of LatteT2V); a decoder in the file is left out.

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
  the text encoder of a pipeline's folder, in half precision:
    python converters/t5_converter.py --source Latte-1/text_encoder --target t5.safetensors --dtype bf16
  to mindone's names:
    python converters/t5_converter.py --source t5-v1_1-xxl --to mindone-t5 --target t5-v1_1-xxl.ckpt
  to a folder for transformers, in shards:
    python converters/t5_converter.py --source t5.safetensors --to transformers-t5 --target text_encoder \\
        --shard-size 5GB
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: exit code 0, or 2 with one line on stderr."""
    return run("t5", __doc__, EXAMPLES, arguments)


if __name__ == "__main__":
    sys.exit(main())
