# SPDX-License-Identifier: Apache-2.0
"""LatteT2V of diffusers (whose names are ours), of Vchitect/Latte and of Open-Sora-Plan v1.0.

Symbols: D width, C and O channels in and out, p patch, X cross-attention width, E caption width, P first MLP
width, i block pair. The three layouts differ in what no tensor shows: the step of the temporal positions.
"""

from collections.abc import Collection, Mapping

from converters.errors import ConversionError
from converters.layouts.base import Config, Layout, Model, Rule, linear, same

Y_EMBEDDING = "caption_projection.y_embedding"  # (tokens, E): a buffer of older code, unused in its forward


def _attention(name: str, keys: str) -> list[Rule]:
    """to_q, to_k, to_v (bias by `attention_bias`), to_out (always bias); `keys`: input width of k and v."""
    rows = []
    for part, into in {"to_q": "D", "to_k": keys, "to_v": keys}.items():
        rows += [
            same(f"{name}.{part}.weight", "D", into),
            same(f"{name}.{part}.bias", "D", attention_bias=True),
        ]
    return [*rows, *linear(f"{name}.to_out.0", "D", "D")]


def _block(name: str, cross_attention: bool) -> list[Rule]:
    norms = [f"{name}.{norm}.{part}" for norm in ("norm1", "norm2") for part in ("weight", "bias")]
    return [
        same(f"{name}.scale_shift_table", "6", "D"),
        *(same(norm, "D", norm_elementwise_affine=True) for norm in norms),
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
    *linear("adaln_single.linear", "6*D", "D"),
    *linear("caption_projection.linear_1", "D", "E"),
    *linear("caption_projection.linear_2", "D", "D"),
    *linear("proj_out", "p*p*O", "D"),
)
RULES = (*OUR_RULES, Rule(Y_EMBEDDING, None, drop=True))


def _aliases(given: Config) -> Config:
    """out_channels null means in_channels, as in diffusers."""
    if given.get("out_channels", 0) is None and "in_channels" in given:
        given["out_channels"] = given["in_channels"]
    return given


def _infer(dims: Mapping[str, int], names: Collection[str]) -> Config:
    # Only what does not change the forward: defaults differ between implementations, nothing is guessed.
    return {"dropout": 0.0, "num_embeds_ada_norm": None, "per_axis_base_size": False}


def _dims(config: Config) -> dict[str, int]:
    simple = {"i": "num_layers", "p": "patch_size", "C": "in_channels", "O": "out_channels"}
    simple |= {"X": "cross_attention_dim", "E": "caption_channels"}
    dims = {symbol: config[key] for symbol, key in simple.items() if key in config}
    if {"num_attention_heads", "attention_head_dim"} <= config.keys():
        dims["D"] = config["num_attention_heads"] * config["attention_head_dim"]
        if "activation_fn" in config:  # geglu computes gate and value with one linear
            dims["P"] = dims["D"] * (8 if config["activation_fn"] == "geglu" else 4)
    return dims


def _validate(config: Config) -> None:
    size = config["sample_size"]
    if any(side % config["patch_size"] for side in ([size] if isinstance(size, int) else size)):
        raise ConversionError(f"sample_size is not a multiple of patch_size {config['patch_size']}", got=size)


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
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": "flag",
        "norm_eps": "fraction",
        "caption_channels": "count",
        "video_length": "count",
        "temporal_interpolation_scale": "fraction",
        "per_axis_base_size": "flag",
    },
    ignored={
        "attention_mode": (),  # kernel choice
        "enable_flash_attention": (),
        "use_recompute": (),
        "model_max_length": (),  # the tokenizer's business
        "norm_num_groups": (),  # read by branches for unpatched input only
        "use_linear_projection": (),
        "attention_type": ("default",),
        "only_cross_attention": (False, None),
        "double_self_attention": (False, None),
        "upcast_attention": (False, None),
        "num_vector_embeds": (None,),
        "use_rope": (False, None),
        "use_additional_conditions": (False, None),
        "patch_size_t": (1, None),
        "compress_kv_factor": (1, None),
        "downsampler": (None,),
    },
    aliases=_aliases,
    infer=_infer,
    dims=_dims,
    symbols={
        "i": "num_layers",
        "p": "patch_size",
        "C": "in_channels",
        "O": "out_channels",
        "X": "cross_attention_dim",
        "E": "caption_channels",
        "D": "width (num_attention_heads * attention_head_dim)",
        "P": "MLP width (of activation_fn)",
    },
    remedies=lambda key, dims: "",
    validate=_validate,
)


def is_t2v(names: Collection[str]) -> bool:
    return any(name.startswith(("transformer_blocks.", "temporal_transformer_blocks.")) for name in names)


def _with_y_embedding(names: Collection[str]) -> bool:
    return is_t2v(names) and Y_EMBEDDING in names


def _unscaled(config: Config) -> Config:
    return {"temporal_interpolation_scale": 1.0}


def _scaled(config: Config) -> Config:
    """Open-Sora-Plan v1.0: positions are frame / max(video_length // 5, 1)."""
    length = config.get("video_length")
    return {} if length is None else {"temporal_interpolation_scale": float(max(length // 5, 1))}


LAYOUTS = (
    Layout(
        "diffusers",
        MODEL,
        RULES,
        lambda names: is_t2v(names) and Y_EMBEDDING not in names,
        defaults=_unscaled,
    ),
    Layout("official-t2v", MODEL, RULES, _with_y_embedding, defaults=_unscaled),
    Layout("open-sora-plan-v1.0", MODEL, RULES, _with_y_embedding, defaults=_scaled),
)
