# SPDX-License-Identifier: Apache-2.0
"""A parity case, as data, and where the cases come from.

`parity/models/attention.py` lists CASES for the classes and functions of `torch_ref/models/attention.py` and
`ms_latte/models/attention.py`, and so on in the other FOLDERS: the twin files are found from the path of the case file.
"""

import importlib
import pkgutil
from dataclasses import dataclass, field, replace
from typing import Any

SIZES = ("tiny", "thin", "full")
FOLDERS = ("models", "diffusion", "encoders", "training")


@dataclass(frozen=True)
class Case:
    """One class or function, built and fed identically in both frameworks.

    target: name in the twin file. init: constructor arguments. inputs: call arguments, `Input` descriptors or
    plain values.
    name: tells cases of one target apart. method: method to call instead of the object. size: "tiny", "thin" or "full".
    net: "Latte" or "LatteT2V" for whole networks, "" for parts. keep: parameters that stay as constructed.
    islands: policy of `Precision`. dtypes: where the case makes sense, () for everywhere. taps: "all", or "stages"
    (depth-one modules only, streamed: for nets of full size). weights: path of a checkpoint instead of seeded
    numbers. parts: constructor arguments that are themselves built, name -> (target, init). probe: the constant or
    convention that the inputs amplify (gate G3 instead of G2), "" for ordinary inputs. steps: arguments of
    `training.rehearse`: the part "model" is trained on batches drawn like `inputs` (gate G5 instead of G2).
    """

    target: str
    init: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    method: str = ""
    size: str = "tiny"
    net: str = ""
    keep: tuple[str, ...] = ()
    islands: str = "fp32"
    dtypes: tuple[str, ...] = ()
    taps: str = "all"
    seed: int = 0
    weights: str = ""
    parts: dict[str, tuple] = field(default_factory=dict)
    probe: str = ""
    steps: dict[str, Any] = field(default_factory=dict)
    file: str = ""

    @property
    def id(self) -> str:
        """Unique name, e.g. "attention.MultiHeadAttention-cross"."""
        return f"{self.file.rsplit('.', 1)[-1]}.{self.target}" + (f"-{self.name}" if self.name else "")


def collect() -> list[Case]:
    """All cases below `parity`, in the order of FOLDERS and of their files.

    Raises ValueError for two cases of one id.
    """
    cases: list[Case] = []
    for folder in FOLDERS:
        root = importlib.import_module(f"parity.{folder}")
        for module in sorted(pkgutil.iter_modules(root.__path__), key=lambda item: item.name):
            loaded = importlib.import_module(f"parity.{folder}.{module.name}")
            cases += [replace(case, file=f"{folder}.{module.name}") for case in loaded.CASES]
    ids = [case.id for case in cases]
    doubles = sorted({name for name in ids if ids.count(name) > 1})
    if doubles:
        raise ValueError(f"parity cases share an id: {', '.join(doubles)}; give each a `name`")
    return cases
