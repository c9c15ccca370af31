# SPDX-License-Identifier: Apache-2.0
"""What a file of `python -m parity repro` holds besides sources: a description as JSON, its arrays as .npz."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.inputs import Layout, Seed

DATA, ARRAYS = "repro.json", "repro.npz"


def encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A value of a call or a case as JSON; its arrays go into `arrays`. Raises TypeError for another kind."""
    if isinstance(value, (np.ndarray, np.generic)):
        name = f"a{len(arrays)}"
        arrays[name] = np.asarray(value)
        return {"array": name}
    if isinstance(value, (Layout, Seed)):
        kind = type(value).__name__
        return {"kind": kind, "value": encode(vars(value), arrays)}
    if isinstance(value, dict):
        return {"dict": {name: encode(item, arrays) for name, item in value.items()}}
    if isinstance(value, tuple):
        return {"tuple": [encode(item, arrays) for item in value]}
    if isinstance(value, list):
        return [encode(item, arrays) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be packed")


def decode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Undo `encode`."""
    if isinstance(value, list):
        return [decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "tuple" in value:
        return tuple(decode(item, arrays) for item in value["tuple"])
    if "kind" in value:
        return {"Layout": Layout, "Seed": Seed}[value["kind"]](**decode(value["value"], arrays))
    return {name: decode(item, arrays) for name, item in value["dict"].items()}


def read(place: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(description, arrays) of a repro file or of the folder it was unpacked to."""
    if place.is_dir():
        text, data = (place / DATA).read_bytes(), (place / ARRAYS).read_bytes()
    else:
        with zipfile.ZipFile(place) as file:
            text, data = file.read(DATA), file.read(ARRAYS)
    with np.load(io.BytesIO(data)) as stored:  # never unpickles
        arrays = {name: stored[name] for name in stored.files}
    return decode(json.loads(text), arrays), arrays
