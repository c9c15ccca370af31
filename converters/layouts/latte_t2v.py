# SPDX-License-Identifier: Apache-2.0
"""LatteT2V of diffusers (whose names are ours), Vchitect/Latte, Open-Sora-Plan v1.0 and v1.1, and mindone.

Symbols: D width, C and O channels in and out, p patch, X cross-attention width, E caption width, P first MLP
width, V embeddings of a norm, K one more, M width of its modulation, i block pair. Several layouts differ only in
what no tensor shows: the step of the temporal positions. Published nets are all of norm_type ada_norm_single, and
their layouts hold no other; ours holds every norm_type of the block.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from converters.errors import ConversionError
from converters.layouts.base import Change, Config, Layout, Model, Rule, Shapes, linear, rename, same
from converters.layouts.tables import sincos_1d, sincos_2d

Y_EMBEDDING = "caption_projection.y_embedding"
CAPTION_TOKENS = 120  # rows of the published y_embedding
SCALE = "temporal_interpolation_scale"
SIZES = "use_additional_conditions"
HEADS = ("num_attention_heads", "attention_head_dim")
SINGLE = "ada_norm_single"
NORM_TYPES = (SINGLE, "layer_norm", "ada_norm", "ada_norm_zero")
EMBEDDED = ("ada_norm", "ada_norm_zero")  # those with num_embeds_ada_norm embeddings in a block


def _attention(name: str, keys: str) -> list[Rule]:
    """to_q, to_k, to_v (bias by `attention_bias`), to_out (always bias); `keys`: input width of k and v."""
    rows = []
    for part, into in {"to_q": "D", "to_k": keys, "to_v": keys}.items():
        rows += [
            same(f"{name}.{part}.weight", "D", into),
            same(f"{name}.{part}.bias", "D", attention_bias=True),
        ]
    return [*rows, *linear(f"{name}.to_out.0", "D", "D")]


def _size_embedder(name: str) -> list[Rule]:
    """One of the two that tell the net the size of its frames; S is a third of the width."""
    return [
        *linear(f"adaln_single.emb.{name}.linear_1", "S", "256", **{SIZES: True}),
        *linear(f"adaln_single.emb.{name}.linear_2", "S", "S", **{SIZES: True}),
    ]


def _norms(name: str, cross_attention: bool) -> list[Rule]:
    """What tells the norm_types of a block apart: the modulation, and which norms have weights of their own."""
    first, zero = f"{name}.norm1", {"norm_type": "ada_norm_zero"}
    rows = [
        same(f"{name}.scale_shift_table", "6", "D", norm_type=SINGLE),
        same(f"{first}.emb.weight", "V", "D", norm_type="ada_norm"),
        *linear(f"{first}.emb.timestep_embedder.linear_1", "D", "256", **zero),
        *linear(f"{first}.emb.timestep_embedder.linear_2", "D", "D", **zero),
        same(f"{first}.emb.class_embedder.embedding_table.weight", "K", "D", **zero),
        *linear(f"{first}.linear", "M", "D", norm_type=EMBEDDED),
    ]
    if cross_attention:  # before it stands norm2; SINGLE has its norm2 before the feed-forward
        rows += [
            same(f"{name}.norm2.emb.weight", "V", "D", norm_type="ada_norm"),
            *linear(f"{name}.norm2.linear", "2*D", "D", norm_type="ada_norm"),
        ]
    affine = {
        "norm1": (SINGLE, "layer_norm"),
        "norm2": (SINGLE, "layer_norm", "ada_norm_zero") if cross_attention else SINGLE,
        "norm3": ("layer_norm", "ada_norm", "ada_norm_zero"),
    }
    return rows + [
        same(f"{name}.{norm}.{part}", "D", norm_type=types, norm_elementwise_affine=True)
        for norm, types in affine.items()
        for part in ("weight", "bias")
    ]


def _block(name: str, cross_attention: bool) -> list[Rule]:
    return [
        *_norms(name, cross_attention),
        *_attention(f"{name}.attn1", "D"),
        *(_attention(f"{name}.attn2", "X") if cross_attention else []),
        *linear(f"{name}.ff.net.0.proj", "P", "D"),
        *linear(f"{name}.ff.net.2", "D", "4*D"),
    ]


OUR_RULES = (
    same("scale_shift_table", "2", "D"),
    same("pos_embed.proj.weight", "D", "C", "p", "p"),
    same("pos_embed.proj.bias", "D"),
    *_block("transformer_blocks.{i}", cross_attention=True),
    *_block("temporal_transformer_blocks.{i}", cross_attention=False),
    *linear("adaln_single.emb.timestep_embedder.linear_1", "D", "256"),
    *linear("adaln_single.emb.timestep_embedder.linear_2", "D", "D"),
    *_size_embedder("resolution_embedder"),
    *_size_embedder("aspect_ratio_embedder"),
    *linear("adaln_single.linear", "6*D", "D"),
    *linear("caption_projection.linear_1", "D", "E"),
    *linear("caption_projection.linear_2", "D", "D"),
    *linear("proj_out", "p*p*O", "D"),
)


def _no_caption(config: Config) -> np.ndarray:
    return np.zeros((CAPTION_TOKENS, config["caption_channels"]), np.float32)


def _pair(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _width(config: Config) -> int:
    return config["num_attention_heads"] * config["attention_head_dim"]


def _patch_positions(config: Config) -> np.ndarray:
    """(1, T, D); the originals take the base and the scale of both axes from the height."""
    height, width = _pair(config["sample_size"])
    h, w = height // config["patch_size"], width // config["patch_size"]
    scale = max(height // 64, 1)
    return sincos_2d(_width(config), np.arange(h) / scale, np.arange(w) / (w / h) / scale)[None]


def _frame_positions(config: Config) -> np.ndarray:
    return sincos_1d(_width(config), np.arange(config["video_length"]) / config[SCALE])[None]


# A buffer of older code, drawn at random and unused in its forward.
Y_RULE = Rule(
    Y_EMBEDDING,
    Y_EMBEDDING,
    ("L", "E"),
    extra=True,
    fill=_no_caption,
    why="zeros, the network does not use it",
)
TABLE_RULES = (
    Rule(
        "pos_embed.pos_embed",
        "pos_embed.pos_embed",
        ("1", "T", "D"),
        extra=True,
        fill=_patch_positions,
        exact=True,
        why="the computed position table",
    ),
    Rule(
        "temp_pos_embed",
        "temp_pos_embed",
        ("1", "F", "D"),
        extra=True,
        optional=True,
        fill=_frame_positions,
        exact=True,
    ),
)
WITH_Y = (*OUR_RULES, Y_RULE)
PKU_RULES = (
    *rename(
        OUR_RULES,
        (r"^transformer_blocks\.\{i\}", "blocks.{i}.spatial_block"),
        (r"^temporal_transformer_blocks\.\{i\}", "blocks.{i}.temp_block"),
    ),
    Y_RULE,
    *TABLE_RULES,
)
FRAMES = "temp_pos_embed"
NEW_PKU_RULES = tuple(
    replace(
        rule,
        their_shape=("F", "D"),
        change=Change(lambda bits, dims: bits[None], lambda bits, dims: bits[0]),
        optional=False,
        why="the computed table of temporal positions",
    )
    if rule.theirs == FRAMES
    else rule
    for rule in PKU_RULES
)


def _aliases(given: Config) -> Config:
    """out_channels null means in_channels, as in diffusers; no word on size conditions means none. Open-Sora-Plan v1.1
    calls the scale interpolation_scale_1d: at least 1, and null for its rule.
    """
    if given.get("out_channels", 0) is None and "in_channels" in given:
        given["out_channels"] = given["in_channels"]
    if given.get(SIZES, 0) is None:
        given[SIZES] = False
    scale = given.get("interpolation_scale_1d", 0)
    if scale is None:
        del given["interpolation_scale_1d"]
    elif type(scale) in (int, float) and scale and SCALE not in given:
        given[SCALE] = max(given.pop("interpolation_scale_1d"), 1)
    return given


def _norm_type(names: Collection[str]) -> str:
    """By what only the blocks of one norm_type have; a block without any of it has plain norms."""
    if any(name.endswith(".scale_shift_table") for name in names):
        return SINGLE
    if any(".norm1.emb.class_embedder." in name for name in names):
        return "ada_norm_zero"
    return "ada_norm" if any(name.endswith(".norm1.emb.weight") for name in names) else "layer_norm"


def _infer(dims: Mapping[str, int], names: Collection[str]) -> Config:
    # Never visible in the tensors and without effect on the forward of a trained net: dropout, and the number of
    # embeddings where no norm has any.
    config: Config = {"dropout": 0.0, "num_embeds_ada_norm": None, "norm_type": _norm_type(names)}
    if config["norm_type"] == "ada_norm" and "V" in dims:
        config["num_embeds_ada_norm"] = dims["V"]
    if config["norm_type"] == "ada_norm_zero" and "K" in dims:
        config["num_embeds_ada_norm"] = dims["K"] - 1  # the last row stands for no class
    simple = {"num_layers": "i", "patch_size": "p", "in_channels": "C", "out_channels": "O"}
    simple |= {"cross_attention_dim": "X", "caption_channels": "E"}
    config |= {key: dims[symbol] for key, symbol in simple.items() if symbol in dims}
    config["attention_bias"] = any(name.endswith("attn1.to_q.bias") for name in names)
    config[SIZES] = any(".resolution_embedder." in name for name in names)
    config["norm_elementwise_affine"] = any(
        name.endswith((".norm1.weight", ".norm3.weight")) for name in names
    )
    if "D" in dims and dims.get("P") == 8 * dims["D"]:
        config["activation_fn"] = "geglu"
    return config


def _infer_published(dims: Mapping[str, int], names: Collection[str]) -> Config:
    """Another norm_type is no guess for a published file: its names are then listed as not fitting."""
    return {**_infer(dims, names), "norm_type": SINGLE, "num_embeds_ada_norm": None}


def _assume(dims: Mapping[str, int], names: Collection[str]) -> Config:
    """Heads, the form of GELU and eps. Open-Sora-Plan v1.1 has nets of 16 and of 18 heads: its layouts ask."""
    if (dims.get("D"), dims.get("E"), dims.get("P")) != (1152, 4096, 4 * 1152):
        return {}
    return {
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "activation_fn": "gelu-approximate",
        "norm_eps": 1e-6,
    }


def _dims(config: Config) -> dict[str, int]:
    simple = {"i": "num_layers", "p": "patch_size", "C": "in_channels", "O": "out_channels"}
    simple |= {"X": "cross_attention_dim", "E": "caption_channels"}
    dims = {symbol: config[key] for symbol, key in simple.items() if key in config}
    if config.get("num_embeds_ada_norm") is not None:
        dims["V"] = config["num_embeds_ada_norm"]
        dims["K"] = dims["V"] + 1
    if {"num_attention_heads", "attention_head_dim"} <= config.keys():
        dims["D"] = _width(config)
        dims["S"] = dims["D"] // 3
        if config.get("norm_type") in EMBEDDED:  # ada_norm_zero: shift, scale and gate, each twice
            dims["M"] = dims["D"] * (2 if config["norm_type"] == "ada_norm" else 6)
        if "activation_fn" in config:  # geglu computes gate and value with one linear
            dims["P"] = dims["D"] * (8 if config["activation_fn"] == "geglu" else 4)
    if {"sample_size", "patch_size"} <= config.keys():
        height, width = _pair(config["sample_size"])
        dims["T"] = (height // config["patch_size"]) * (width // config["patch_size"])
    if "video_length" in config:
        dims["F"] = config["video_length"]
    return dims


def _validate(config: Config) -> None:
    size = config["sample_size"]
    if any(side % config["patch_size"] for side in _pair(size)):
        raise ConversionError(f"sample_size is not a multiple of patch_size {config['patch_size']}", got=size)
    if not config[SCALE]:
        raise ConversionError(f"positions are divided by {SCALE}", got=config[SCALE], expected="more than 0")
    if config["norm_type"] in EMBEDDED and config["num_embeds_ada_norm"] is None:
        raise ConversionError(
            f"norm_type {config['norm_type']} has embeddings in every block",
            got="num_embeds_ada_norm=None",
            expected="how many",
            remedy="correct the configuration with --set num_embeds_ada_norm=...",
        )


MODEL = Model(
    name="LatteT2V",
    keys={
        "num_attention_heads": "count",
        "attention_head_dim": "count",
        "in_channels": "count",
        "out_channels": "count",
        "num_layers": "count",
        "dropout": "fraction",
        "cross_attention_dim": "count",
        "attention_bias": "flag",
        "sample_size": "size",
        "patch_size": "count",
        "activation_fn": "geglu|gelu|gelu-approximate",
        "num_embeds_ada_norm": "count?",
        "norm_type": SINGLE,
        "norm_elementwise_affine": "flag",
        "norm_eps": "fraction",
        "caption_channels": "count",
        "video_length": "count",
        "temporal_interpolation_scale": "fraction",
        "per_axis_base_size": "flag",
        SIZES: "flag",
    },
    ignored={
        "attention_mode": (),  # kernel choice
        "enable_flash_attention": (),
        "use_recompute": (),
        "num_no_recompute": (),
        "model_max_length": (),  # the tokenizer's business
        "norm_num_groups": (),  # read by branches for unpatched input only
        "use_linear_projection": (),
        "attention_type": ("default",),
        "only_cross_attention": (False, None),
        "double_self_attention": (False, None),
        "upcast_attention": (False, None),
        "num_vector_embeds": (None,),
        "use_rope": (False, None),
        "rope_scaling_type": (),  # of use_rope alone
        "patch_size_t": (1, None),
        "compress_kv_factor": (1, None),
        "downsampler": (None,),
        # what diffusers' EMAModel adds to the configuration of the averaged weights
        "decay": (),
        "min_decay": (),
        "optimization_step": (),
        "update_after_step": (),
        "use_ema_warmup": (),
        "inv_gamma": (),
        "power": (),
    },
    aliases=_aliases,
    infer=_infer_published,
    dims=_dims,
    symbols={
        "i": "num_layers",
        "p": "patch_size",
        "C": "in_channels",
        "O": "out_channels",
        "X": "cross_attention_dim",
        "E": "caption_channels",
        "D": "width (num_attention_heads * attention_head_dim)",
        "S": "width of a size embedding (a third of the width)",
        "P": "MLP width (of activation_fn)",
        "M": "modulation width (of norm_type)",
        "V": "num_embeds_ada_norm",
        "K": "rows of a class embedding (num_embeds_ada_norm + 1)",
        "T": "patches (of sample_size and patch_size)",
        "F": "video_length",
    },
    remedies=lambda key, dims: "",
    validate=_validate,
    assume=_assume,
    derived=(SCALE,),
)
OUR_MODEL = replace(MODEL, keys={**MODEL.keys, "norm_type": "|".join(NORM_TYPES)}, infer=_infer)
PUBLISHED = {"per_axis_base_size": False, "norm_type": SINGLE}  # as all published nets


def _is_t2v(shapes: Shapes) -> bool:
    return any(name.startswith(("transformer_blocks.", "temporal_transformer_blocks.")) for name in shapes)


def _with_y(shapes: Shapes) -> bool:
    return _is_t2v(shapes) and Y_EMBEDDING in shapes


def _is_pku(shapes: Shapes) -> bool:
    return any(".spatial_block." in name or ".temp_block." in name for name in shapes)


def _is_old_pku(shapes: Shapes) -> bool:
    return _is_pku(shapes) and len(shapes.get(FRAMES, (1, 1, 1))) == 3


def _is_new_pku(shapes: Shapes) -> bool:
    return _is_pku(shapes) and len(shapes.get(FRAMES, (1, 1))) == 2


def _plain(config: Config) -> Config:
    """What config.json of ours leaves out for diffusers' sake."""
    return {SCALE: 1.0, "per_axis_base_size": False}


def _unscaled(config: Config) -> Config:
    return {SCALE: 1.0, **PUBLISHED}


def _of_diffusers(config: Config) -> Config:
    """Its class builds no size embedders."""
    return {**_unscaled(config), SIZES: False}


def _every_fifth(config: Config) -> Config:
    """Open-Sora-Plan v1.0: positions are frame / max(video_length // 5, 1)."""
    length = config.get("video_length")
    scale = {} if length is None else {SCALE: float(max(length // 5, 1))}
    return {**scale, **PUBLISHED}


def _every_sixteenth(config: Config) -> Config:
    """Open-Sora-Plan v1.1: positions are frame / max(n // 16, 1); an odd last frame makes no difference."""
    length = config.get("video_length")
    scale = {} if length is None else {SCALE: float(max(length // 16, 1))}
    return {**scale, **PUBLISHED}


def describe(config: Config, class_name: str) -> dict:
    """config.json in diffusers' spelling; what diffusers does not know stands there only if it matters."""
    plain = {SCALE: 1.0, "per_axis_base_size": False, SIZES: False}
    known = {key: value for key, value in config.items() if key not in plain or value != plain[key]}
    return {"_class_name": class_name, **known}


def _describe_diffusers(config: Config) -> dict:
    """diffusers takes one number for the size; its positions follow the height alone, as ours do."""
    height, _ = _pair(config["sample_size"])
    return describe({**config, "sample_size": height}, "LatteTransformer3DModel")


def _describe_published(config: Config) -> dict:
    """The class of the originals fixes the scale itself, so that it does not stand in their files."""
    return describe({**config, SCALE: 1.0}, "LatteT2V")


def _describe_ours(config: Config) -> dict:
    if {key: config[key] for key in _of_diffusers(config)} == _of_diffusers(config):
        return _describe_diffusers(config)  # diffusers computes the same function
    return {"_class_name": "LatteT2V", **config}


LAYOUTS = (
    Layout(
        "diffusers",
        MODEL,
        OUR_RULES,
        lambda shapes: _is_t2v(shapes) and Y_EMBEDDING not in shapes,
        evidence=f"transformer_blocks.*, no {Y_EMBEDDING}; positions 0, 1, 2 ...",
        defaults=_of_diffusers,
        describe=_describe_diffusers,
    ),
    Layout(
        "diffusers-0.24",
        MODEL,
        WITH_Y,
        _with_y,
        evidence=f"{Y_EMBEDDING} and _class_name LatteTransformer3DModel in config.json; positions 0, 1, 2 ...",
        defaults=_of_diffusers,
        describe=_describe_diffusers,
    ),
    Layout(
        "official-t2v",
        MODEL,
        WITH_Y,
        _with_y,
        evidence=f"{Y_EMBEDDING}; positions 0, 1, 2 ...",
        defaults=_unscaled,
        describe=_describe_published,
    ),
    Layout(
        "open-sora-plan-v1.0",
        MODEL,
        WITH_Y,
        _with_y,
        evidence=f"{Y_EMBEDDING}; positions in steps of 1 / max(frames // 5, 1)",
        defaults=_every_fifth,
        describe=_describe_published,
        wrapper="model",
    ),
    Layout(
        "open-sora-plan-v1.1",
        MODEL,
        WITH_Y,
        _with_y,
        evidence=f"{Y_EMBEDDING}; positions in steps of 1 / max(frames // 16, 1)",
        defaults=_every_sixteenth,
        describe=_describe_published,
        unsure=HEADS,
    ),
    Layout(
        "mindone-diffusers",
        MODEL,
        OUR_RULES,
        lambda shapes: False,
        evidence="never detected: the names are those of diffusers",
        defaults=_of_diffusers,
        describe=_describe_diffusers,
    ),
    Layout(
        "mindone-opensora-pku",
        MODEL,
        PKU_RULES,
        _is_old_pku,
        evidence="blocks.*.spatial_block; positions in steps of 1 / max(frames // 5, 1)",
        defaults=_every_fifth,
        describe=_describe_published,
    ),
    Layout(
        "mindone-opensora-pku-v1.1",
        MODEL,
        NEW_PKU_RULES,
        _is_new_pku,
        evidence=f"blocks.*.spatial_block, {FRAMES} of 2 axes; positions in steps of 1 / max(frames // 16, 1)",
        defaults=_every_sixteenth,
        describe=_describe_published,
        unsure=HEADS,
    ),
)
# Layouts of the class LatteT2V: their weights alone are those of diffusers.
ORIGINALS = ("official-t2v", "open-sora-plan-v1.0", "open-sora-plan-v1.1")
OURS = (
    Layout(
        "ours",
        OUR_MODEL,
        (*OUR_RULES, *(replace(rule, fill=None, exact=False) for rule in (Y_RULE, *TABLE_RULES))),
        lambda shapes: False,
        defaults=_plain,
        describe=_describe_ours,
    ),
)
