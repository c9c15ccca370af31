# SPDX-License-Identifier: Apache-2.0
"""The mutation score of this suite as last measured, and whether it still belongs to the code as it is."""

import hashlib
import json
from pathlib import Path

from parity.harness.case import FOLDERS
from parity.harness.words import EN

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "parity" / "mutants" / "score.json"
# What decides which bug is caught: the bugs, the cases, the judge, and the code that bugs are injected into.
DECIDING = (
    "parity/mutants",
    "parity/harness",
    *(f"{package}/{folder}" for package in ("parity", "ms_latte", "torch_ref") for folder in FOLDERS),
)
# The margin that a kill needs, and code outside of the folders that bugs are injected into.
FILES = ("parity/mutation.py", "ms_latte/checkpoint.py", "ms_latte/device.py")
# Modules of the harness that only tell, record or replay what the judge found.
TELLING = {
    "report",
    "html",
    "words",
    "figures",
    "score",
    "bundle",
    "replay",
    "packing",
    "repro_side",
    "memory",
}
TELLING |= {"audit", "fingerprint", "fingerprint_devices", "diagnosis", "full", "__init__"}


def state(root: Path = ROOT) -> str:
    """sha256 over the names and contents of all files that decide the score."""
    total = hashlib.sha256()
    paths = [path for folder in DECIDING for path in sorted((root / folder).glob("*.py"))]
    for path in [*filter(lambda path: _decides(path, root), paths), *(root / name for name in FILES)]:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return total.hexdigest()


def _decides(path, root):
    """Whether a file of DECIDING does: not a module that tells, nor one of the port's jobs that no twin answers to."""
    name = path.relative_to(root)
    if name.parts[:2] == ("parity", "harness"):
        return not (path.stem in TELLING or path.stem.startswith("other"))
    shared = name.parts[0] != "ms_latte" or name.parts[1] == "models"
    return shared or (root / "torch_ref" / Path(*name.parts[1:])).exists()


def line(stored: Path = STORED, root: Path = ROOT) -> str:
    """The score for the header of a run; that it is unknown if it was never measured or the code has changed since."""
    try:
        found = json.loads(stored.read_text(encoding="utf-8"))
        if found["state"] != state(root):
            return EN("header.score_old")
        return EN(
            "header.score", **{key: found[key] for key in ("killed", "detectable", "bugs", "runs", "seeds")}
        )
    except (OSError, ValueError, KeyError, TypeError):
        return EN("header.score_old")
