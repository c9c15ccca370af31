# SPDX-License-Identifier: Apache-2.0
"""Whole nets of real size: presets, and inputs that fit any configuration."""

from math import prod
from pathlib import Path
from typing import Any

from converters import load
from parity.harness.case import Case
from parity.harness.inputs import array, lengths, normal

SIZES = {"XL": (28, 1152, 16), "L": (24, 1024, 16), "B": (12, 768, 12), "S": (12, 384, 6)}
LATTE = dict(
    input_size=32,
    in_channels=4,
    mlp_ratio=4.0,
    num_frames=16,
    class_dropout_prob=0.1,
    num_classes=1000,
    learn_sigma=True,
    condition="none",
)
T2V = dict(
    num_embeds_ada_norm=1000,
    norm_type="ada_norm_single",
    dropout=0.0,
    num_layers=28,
    num_attention_heads=16,
    attention_head_dim=72,
    in_channels=4,
    out_channels=8,
    patch_size=2,
    attention_bias=True,
    cross_attention_dim=1152,
    caption_channels=4096,
    activation_fn="gelu-approximate",
    norm_elementwise_affine=False,
    norm_eps=1e-6,
    sample_size=64,
    video_length=16,
    temporal_interpolation_scale=1.0,
)


def full_case(model: str, frames: int | None = None) -> Case:
    """A preset at its real width, depth and latent size, with seeded weights, compared at its stages.

    model: "Latte-XL/2" ... "Latte-S/8", or "LatteT2V". frames: fewer (or more) than the preset's, to save time and
    memory. Raises ValueError for another name.
    """
    if model == "LatteT2V":
        case = Case(
            "LatteT2V", T2V, inputs_for(model, T2V, frames), "full", net=model, size="full", taps="stages"
        )
        return _filed(case, "models.latte_t2v")
    name = model.removeprefix("Latte-")
    size, _, patch = name.partition("/")
    if size not in SIZES or patch not in ("2", "4", "8"):
        raise ValueError(
            f"--model {model}: expected Latte-XL/2 ... Latte-S/8 (XL, L, B, S by 2, 4, 8) or LatteT2V"
        )
    depth, hidden_size, num_heads = SIZES[size]
    init = {
        **LATTE,
        "depth": depth,
        "hidden_size": hidden_size,
        "num_heads": num_heads,
        "patch_size": int(patch),
    }
    case = Case(
        "Latte",
        init,
        inputs_for("Latte", init, frames),
        f"{size}-{patch}-full",
        net="Latte",
        size="full",
        taps="stages",
    )
    return _filed(case, "models.latte")


def inputs_for(model: str, config: dict[str, Any], frames: int | None = None) -> dict[str, Any]:
    """Inputs of one sample (small nets: two) that fit a configuration; frames: None for those of the configuration."""
    if model == "Latte":
        height, width = _pair(config.get("input_size", 32))
        N = 2 if config.get("hidden_size", 1152) < 256 else 1
        shape = (N, frames or config.get("num_frames", 16), config.get("in_channels", 4), height, width)
        inputs = dict(x=normal(*shape), t=array([977, 3][:N]))
        if config.get("condition") == "class":
            null = config["num_classes"] - (0 if config.get("class_dropout_prob", 0.1) > 0 else 1)
            inputs["y"] = array([null, 0][:N])
        if config.get("condition") == "text":
            inputs["text_embedding"] = normal(N, 77, 768)
        return inputs
    height, width = _pair(config["sample_size"])
    N = 2 if config["cross_attention_dim"] < 256 else 1
    return dict(
        hidden_states=normal(N, config["in_channels"], frames or config["video_length"], height, width),
        timestep=array([977, 3][:N]),
        encoder_hidden_states=normal(N, 120 if N == 1 else 7, config["caption_channels"]),
        encoder_attention_mask=lengths(120 if N == 1 else 7, [4, 7][:N]),
    )


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _filed(case: Case, file: str) -> Case:
    from dataclasses import replace

    return replace(case, file=file)


def file_case(
    path: str,
    layout: str | None = None,
    overrides: dict[str, Any] | None = None,
    frames: int | None = None,
) -> Case:
    """The whole net of a checkpoint, on inputs that fit its configuration; a large one is compared at its stages.

    frames: as in `inputs_for`. Raises ConversionError for a file that cannot be read as a net.
    """
    checkpoint = load(path, layout=layout, overrides=overrides)
    large = sum(map(prod, checkpoint.tensors.shapes.values())) > 100e6
    case = Case(
        checkpoint.model,
        checkpoint.config,
        inputs_for(checkpoint.model, checkpoint.config, frames),
        "file",
        net=checkpoint.model,
        size="full" if large else "tiny",
        taps="stages" if large else "all",
        weights=str(Path(path).resolve()),
    )
    return _filed(case, {"Latte": "models.latte", "LatteT2V": "models.latte_t2v"}[checkpoint.model])
