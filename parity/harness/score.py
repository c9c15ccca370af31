# SPDX-License-Identifier: Apache-2.0
"""The mutation score of this suite as last measured, and whether it still belongs to the code as it is."""

import hashlib
import json
from pathlib import Path

from parity.harness.words import EN

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "parity" / "mutants" / "score.json"
# What decides which bug is caught: the bugs, the cases, the judge, and the code that bugs are injected into.
DECIDING = ("parity/mutants", "parity/models", "parity/harness", "ms_latte/models", "torch_ref/models")
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
    for folder in DECIDING:
        for path in sorted((root / folder).glob("*.py")):
            if not (folder == "parity/harness" and (path.stem in TELLING or path.stem.startswith("other"))):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                total.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return total.hexdigest()


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
