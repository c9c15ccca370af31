# SPDX-License-Identifier: Apache-2.0
"""Golden files and small helpers shared by the converter tests."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def weights():
    """File name -> the flat state dict that torch reads from a golden checkpoint."""

    def read(name: str) -> dict[str, torch.Tensor]:
        saved = torch.load(GOLDEN / name, weights_only=True)
        return saved.get("ema", saved)

    return read


@pytest.fixture(scope="session")
def io_config():
    """Name of an .io.safetensors file -> the constructor arguments it records, in the originals' spelling."""

    def read(name: str) -> dict:
        with safe_open(GOLDEN / name, "np") as file:
            config = json.loads(file.metadata()["config"])
        return {key: value for key, value in config.items() if key not in ("cfg_scale", "use_image_num")}

    return read


@pytest.fixture
def save(tmp_path):
    """Save an object with torch.save under tmp_path; returns the path."""

    def write(thing: object, name: str = "some.pt") -> Path:
        torch.save(thing, tmp_path / name)
        return tmp_path / name

    return write
