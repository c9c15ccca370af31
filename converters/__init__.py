# SPDX-License-Identifier: Apache-2.0
"""Published Latte checkpoints in, our names and our constructor arguments out. Needs numpy only, never torch.

from converters import load
tensors, config = load("skytimelapse.pt")        # lazily read, memory-mapped arrays; arguments of `Latte`
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converters.checkpoint import Checkpoint, load
    from converters.errors import ConversionError

__all__ = ["Checkpoint", "ConversionError", "load"]

_HOME = {"Checkpoint": "checkpoint", "load": "checkpoint", "ConversionError": "errors"}


def __getattr__(name: str):
    """Import a public name on first use, so that `import converters` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'converters' has no attribute {name!r}, it exports {__all__}")
    return getattr(import_module(f"converters.{_HOME[name]}"), name)
