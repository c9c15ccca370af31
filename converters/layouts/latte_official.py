# SPDX-License-Identifier: Apache-2.0
"""Latte: the official `.pt` (Vchitect/Latte), whose names are ours, mindone's spellings, and DiT as a start.

Symbols: D width, C latent channels, p patch, T tokens per frame, F frames, M MLP width, K label rows,
O output channels (2C with learned sigma), i block. Even blocks are spatial, odd ones temporal.
"""

import math
import re
from collections.abc import Collection, Mapping

import numpy as np

from converters.errors import ConversionError
from converters.layouts.base import Change, Config, Layout, Model, Rule, Shapes, linear, rename, same
from converters.layouts.tables import sincos_1d

CLIP_TEXT = 77 * 768  # the flattened CLIP output, input of text_embedding_projection
PUBLISHED_HEADS = {1152: 16, 1024: 16, 768: 12, 384: 6}  # XL, L, B, S
FRAMES, PATCH = "temp_embed", "x_embedder.proj.weight"
LABELS, OLD_LABELS = (f"y_embedder.embedding_table.{name}" for name in ("weight", "embedding_table"))
IMAGENET = 1001  # label rows of DiT: 1000 classes and the null label
EXTRAS = {1: "none", 2: "class", 78: "text"}  # the originals' numbers for `condition`

RULES = (
    same("pos_embed", "1", "T", "D"),
    same("temp_embed", "1", "F", "D"),
    same("x_embedder.proj.weight", "D", "C", "p", "p"),
    same("x_embedder.proj.bias", "D"),
    *linear("t_embedder.mlp.0", "D", "256"),
    *linear("t_embedder.mlp.2", "D", "D"),
    same("y_embedder.embedding_table.weight", "K", "D", condition="class"),
    *linear("text_embedding_projection.1", "D", str(CLIP_TEXT), condition="text"),
    *linear("blocks.{i}.attn.qkv", "3*D", "D"),
    *linear("blocks.{i}.attn.proj", "D", "D"),
    *linear("blocks.{i}.mlp.fc1", "M", "D"),
    *linear("blocks.{i}.mlp.fc2", "D", "M"),
    *linear("blocks.{i}.adaLN_modulation.1", "6*D", "D"),
    *linear("final_layer.linear", "p*p*O", "D"),
    *linear("final_layer.adaLN_modulation.1", "2*D", "D"),
)


def _aliases(given: Config) -> Config:
    """The originals' `extras` number becomes the word `condition`."""
    if "extras" in given:
        extras = given.pop("extras")
        if (
            type(extras) is not int
            or extras not in EXTRAS
            or given.get("condition", EXTRAS[extras]) != EXTRAS[extras]
        ):
            raise ConversionError("extras has a wrong value", got=extras, expected=f"one of {EXTRAS}")
        given["condition"] = EXTRAS[extras]
    size = given.get("input_size")
    if isinstance(size, (list, tuple)) and len(size) == 2 and size[0] == size[1]:
        given["input_size"] = size[0]
    return given


def _infer(dims: Mapping[str, int], names: Collection[str]) -> Config:
    # Never visible in the tensors, and used in training alone: the originals' defaults.
    config: Config = {"class_dropout_prob": 0.1, "num_classes": 1000, "condition": "none"}
    simple = {"patch_size": "p", "in_channels": "C", "hidden_size": "D", "depth": "i", "num_frames": "F"}
    config |= {key: dims[symbol] for key, symbol in simple.items() if symbol in dims}
    if any(name.startswith("y_embedder.") for name in names):
        config["condition"] = "class"
    elif any(name.startswith("text_embedding_projection.") for name in names):
        config["condition"] = "text"
    if "K" in dims:
        config["num_classes"] = dims["K"] - 1  # the last row is the null label
    if {"O", "C"} <= dims.keys():
        config["learn_sigma"] = dims["O"] != dims["C"]
    if {"M", "D"} <= dims.keys():
        ratio = dims["M"] / dims["D"]
        config["mlp_ratio"] = (
            ratio if int(dims["D"] * ratio) == dims["M"] else math.nextafter(ratio, math.inf)
        )
    if {"T", "p"} <= dims.keys() and math.isqrt(dims["T"]) ** 2 == dims["T"]:
        config["input_size"] = math.isqrt(dims["T"]) * dims["p"]
    return config


def _assume(dims: Mapping[str, int], names: Collection[str]) -> Config:
    return {"num_heads": PUBLISHED_HEADS[dims["D"]]} if dims.get("D") in PUBLISHED_HEADS else {}


def _dims(config: Config) -> dict[str, int]:
    simple = {"p": "patch_size", "C": "in_channels", "D": "hidden_size", "i": "depth", "F": "num_frames"}
    dims = {symbol: config[key] for symbol, key in simple.items() if key in config}
    if {"hidden_size", "mlp_ratio"} <= config.keys():
        dims["M"] = _mlp_width(config)
    if {"in_channels", "learn_sigma"} <= config.keys():
        dims["O"] = config["in_channels"] * (2 if config["learn_sigma"] else 1)
    if config["condition"] == "class":
        dims["K"] = config["num_classes"] + 1
    if {"input_size", "patch_size"} <= config.keys():
        size = config["input_size"]
        height, width = (size, size) if isinstance(size, int) else size
        dims["T"] = (height // config["patch_size"]) * (width // config["patch_size"])
    return dims


def _remedies(key: str, dims: Mapping[str, int]) -> str:
    if key == "num_heads":
        return (
            f"width {dims.get('D')} is none of the published ones {sorted(PUBLISHED_HEADS)}, so the number "
            "of heads is unknown: pass --set num_heads=N"
        )
    if key == "input_size":
        return (
            f"{dims.get('T')} tokens per frame are not a square: pass --set input_size=HEIGHT,WIDTH "
            "(of the latent, pixels / 8)"
        )
    return f"pass --set {key}=..."


def _mlp_width(config: Config) -> int:
    width = config["hidden_size"] * config["mlp_ratio"]
    if width >= 1 << 31:
        raise ConversionError("mlp_ratio is too large", got=config["mlp_ratio"], expected="about 4")
    return int(width)


def _validate(config: Config) -> None:
    if config["hidden_size"] % config["num_heads"]:
        raise ConversionError(
            f"hidden_size {config['hidden_size']} is not a multiple of num_heads",
            got=config["num_heads"],
            remedy="correct num_heads with --set num_heads=N",
        )
    if config["depth"] % 2:
        raise ConversionError(
            "spatial and temporal blocks alternate, so their number is even",
            got=f"{config['depth']} blocks",
            remedy="the file lost a block: fetch it again",
        )
    size, patch = config["input_size"], config["patch_size"]
    if any(side % patch for side in ([size] if isinstance(size, int) else size)):
        raise ConversionError(f"input_size is not a multiple of patch_size {patch}", got=size)


MODEL = Model(
    name="Latte",
    keys={
        "input_size": "size",
        "patch_size": "count",
        "in_channels": "count",
        "hidden_size": "count",
        "depth": "count",
        "num_heads": "count",
        "mlp_ratio": "fraction",
        "num_frames": "count",
        "class_dropout_prob": "fraction",
        "num_classes": "count",
        "learn_sigma": "flag",
        "condition": "none|class|text",
        "pixel_order": "blocks|strided",
    },
    ignored={"attention_mode": ()},
    aliases=_aliases,
    infer=_infer,
    dims=_dims,
    symbols={
        "p": "patch_size",
        "C": "in_channels",
        "D": "hidden_size",
        "i": "depth",
        "F": "num_frames",
        "M": "MLP width (hidden_size * mlp_ratio)",
        "O": "output channels (in_channels, twice with learn_sigma)",
        "K": "label rows (num_classes + 1)",
        "T": "tokens per frame (of input_size and patch_size)",
    },
    remedies=_remedies,
    validate=_validate,
    assume=_assume,
)


def _is_latte(shapes: Shapes) -> bool:
    return any(name.startswith(("x_embedder.", "blocks.0.attn.qkv.")) for name in shapes)


def _is_dit(shapes: Shapes) -> bool:
    return _is_latte(shapes) and FRAMES not in shapes and shapes.get(LABELS, ())[:1] == (IMAGENET,)


def _is_linear(shapes: Shapes) -> bool:
    return _is_latte(shapes) and len(shapes.get(PATCH, ())) == 2


def _labels(config: Config) -> np.ndarray:
    """A fresh label table, as the original's constructor draws it: normal, 0.02."""
    shape = (config["num_classes"] + 1, config["hidden_size"])
    return np.random.default_rng(0).normal(0.0, 0.02, shape)


def _frames(config: Config) -> np.ndarray:
    return sincos_1d(config["hidden_size"], np.arange(config["num_frames"]))[None]


def _in_blocks(config: Config) -> Config:
    return {"pixel_order": "blocks"}


def _strided(config: Config) -> Config:
    return {"pixel_order": "strided"}


# Columns of a linear patch embedder run over (row, column, channel) of a patch.
LINEAR_PATCH = Change(
    lambda bits, dims: bits.reshape(len(bits), dims["p"], dims["p"], -1).transpose(0, 3, 1, 2),
    lambda bits, dims: bits.transpose(0, 2, 3, 1).reshape(len(bits), -1),
)
LINEAR_RULES = tuple(
    Rule(PATCH, PATCH, ("D", "C", "p", "p"), their_shape=("D", "p*p*C"), change=LINEAR_PATCH)
    if rule.theirs == PATCH
    else rule
    for rule in (*RULES, Rule(OLD_LABELS, LABELS, ("K", "D"), {"condition": "class"}, tied=True))
)
DIT_RULES = (
    *(rule for rule in RULES if rule.theirs not in (FRAMES, LABELS)),
    Rule(
        FRAMES,
        FRAMES,
        ("1", "F", "D"),
        fill=_frames,
        why="DiT knows no frames, the sine-cosine table of num_frames takes its place",
    ),
    Rule(LABELS, None, (str(IMAGENET), "D"), drop=True, why="the labels of ImageNet"),
    Rule(
        "",
        LABELS,
        ("K", "D"),
        {"condition": "class"},
        fill=_labels,
        why="fresh labels, normal with deviation 0.02 and seed 0",
    ),
)

LAYOUTS = (
    Layout(
        "official-latte",
        MODEL,
        RULES,
        lambda shapes: (
            _is_latte(shapes) and not _is_dit(shapes) and not _is_linear(shapes) and OLD_LABELS not in shapes
        ),
        evidence=f"{PATCH} of 4 axes",
        defaults=_in_blocks,
        wrapper="ema",
    ),
    Layout(
        "mindone-latte",
        MODEL,
        RULES,
        lambda shapes: False,
        evidence="never detected: the names are those of official-latte",
        defaults=_in_blocks,
    ),
    Layout(
        "mindone-latte-old",
        MODEL,
        rename(RULES, (re.escape(LABELS), OLD_LABELS)),
        lambda shapes: _is_latte(shapes) and OLD_LABELS in shapes and not _is_linear(shapes),
        evidence=OLD_LABELS,
        defaults=_in_blocks,
    ),
    Layout(
        "latte-linear",
        MODEL,
        LINEAR_RULES,
        _is_linear,
        evidence=f"{PATCH} of 2 axes; a patch is a block of pixels",
        defaults=_in_blocks,
        sizes={"C": 4},
    ),
    Layout(
        "mindone-latte-linear",
        MODEL,
        LINEAR_RULES,
        _is_linear,
        evidence=f"{PATCH} of 2 axes; a patch holds every (H / p)-th row and (W / p)-th column of pixels",
        defaults=_strided,
        sizes={"C": 4},
    ),
    Layout(
        "dit-imagenet",
        MODEL,
        DIT_RULES,
        _is_dit,
        evidence=f"no {FRAMES}, {LABELS} of {IMAGENET} rows: weights to start training from",
        defaults=_in_blocks,
        presumes={"condition": "none", "num_classes": 1000, "num_frames": 16},
        initial=True,
    ),
)
OURS = (Layout("ours", MODEL, RULES, lambda shapes: False, defaults=_in_blocks),)
