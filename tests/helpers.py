# SPDX-License-Identifier: Apache-2.0
"""What the model tests of both frameworks share: the golden vectors, seeded arrays and one distance."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

GOLDEN = Path(__file__).parent / "data" / "golden"
CONDITION = {1: "none", 2: "class", 78: "text"}  # the originals' `extras`

# name -> constructor family; the checkpoint stands in the metadata of NAME.io.safetensors
GOLDEN_CASES = {
    "latte_uncond": "Latte",
    "latte_class": "Latte",
    "latte_class_cfg": "Latte",
    "latte_img_joint": "Latte",
    "osp_t2v_mask2d": "LatteT2V",
    "osp_t2v_joint": "LatteT2V",
    "osp_t2v_long": "LatteT2V",
}


def golden_case(name):
    """One golden vector: (constructor arguments, state dict, method, call arguments, expected output), all numpy."""
    with safe_open(GOLDEN / f"{name}.io.safetensors", "np") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    config, call = json.loads(metadata["config"]), json.loads(metadata.get("forward_kwargs", "{}"))
    call.update({key: config.pop(key) for key in ("cfg_scale", "use_image_num") if key in config})
    if "extras" in config:
        config["condition"] = CONDITION[config.pop("extras")]
    config.pop("attention_mode", None)  # chooses a kernel, not a number
    saved = torch.load(GOLDEN / metadata["checkpoint"], weights_only=True)
    state = {key: value.numpy() for key, value in saved.get("ema", saved).items()}
    # Open-Sora-Plan files carry a buffer that no forward reads; it has no counterpart here.
    assert ("caption_projection.y_embedding" in state) == name.startswith("osp_")
    state.pop("caption_projection.y_embedding", None)
    call.update({key.removeprefix("in."): value for key, value in tensors.items() if key.startswith("in.")})
    method = "forward_with_cfg" if "cfg_scale" in call else "__call__"
    return config, state, method, call, tensors["out"]


def normal(*shape, seed=0, scale=1.0):
    """Seeded normal numbers, float32."""
    rng = np.random.default_rng([seed, *shape])
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def relative_l2(got, expected):
    """||got - expected|| / ||expected|| in float64; infinite for a shape or a number that is wrong outright."""
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape:
        raise AssertionError(f"shape {got.shape}, expected {expected.shape}")
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    if not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return np.inf
    norm = np.linalg.norm(expected)
    if norm == 0:
        raise AssertionError("the expected value is zero everywhere: the comparison would be empty")
    return np.linalg.norm(got - expected) / norm
