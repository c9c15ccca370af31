# SPDX-License-Identifier: Apache-2.0
"""The VAEs: AutoencoderKL in the names of diffusers (ours), old diffusers, CompVis ldm and mindone's ldm, and
AutoencoderKLTemporalDecoder in those of diffusers. mindone.diffusers has the names and shapes of diffusers.

Symbols: C and O channels of the image in and out, Z latent channels, M channels in the middle.
Encoder: i block of E{i} channels, j resnet of I{i}_{j} input channels. Decoder: u block of D{u}, v resnet of
J{u}_{v}, counted from the middle as in diffusers; ldm counts them from the image: {~u}. k temporal mid resnet.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from converters.errors import ConversionError
from converters.layouts.base import (
    CONV_1X1,
    MAX_ROWS,
    Config,
    Dims,
    Layout,
    Model,
    Rule,
    Shapes,
    rename,
    same,
)

SPATIAL, TEMPORAL = ("3", "3"), ("3", "1", "1")  # kernels
GROUPS = 32  # of every GroupNorm in ldm, in the temporal decoder, and by default in diffusers
PREFIX = "first_stage_model."  # of the VAE within a checkpoint of a whole latent diffusion model
Exists = Callable[[Mapping[str, int], Dims], bool]


def _norm(name: str, channels: str) -> list[Rule]:
    return [same(f"{name}.weight", channels), same(f"{name}.bias", channels)]


def _conv(name: str, out: str, into: str, kernel: tuple[str, ...] = SPATIAL) -> list[Rule]:
    return [same(f"{name}.weight", out, into, *kernel), same(f"{name}.bias", out)]


def _only(exists: Exists, rules: list[Rule]) -> list[Rule]:
    return [replace(rule, only=exists) for rule in rules]


def _changes(into: str, out: str) -> Exists:
    """Whether a resnet changes the number of channels: "I{i}_{j}" against "E{i}"."""
    return lambda at, dims: dims.get(into.format(**at)) != dims.get(out.format(**at))


def _before_last(index: str) -> Exists:
    return lambda at, dims: at[index] < dims[index] - 1


def _resnet(name: str, out: str, into: str, kernel: tuple[str, ...] = SPATIAL) -> list[Rule]:
    return [
        *_norm(f"{name}.norm1", into),
        *_conv(f"{name}.conv1", out, into, kernel),
        *_norm(f"{name}.norm2", out),
        *_conv(f"{name}.conv2", out, out, kernel),
    ]


def _attention(name: str) -> list[Rule]:
    rows = _norm(f"{name}.group_norm", "M")
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        rows += [same(f"{name}.{part}.weight", "M", "M"), same(f"{name}.{part}.bias", "M")]
    return rows


def _shortcut(name: str, out: str, into: str) -> list[Rule]:
    return _only(_changes(into, out), _conv(f"{name}.conv_shortcut", out, into, ("1", "1")))


ENCODER = (
    *_conv("encoder.conv_in", "E0", "C"),
    *_resnet("encoder.down_blocks.{i}.resnets.{j}", "E{i}", "I{i}_{j}"),
    *_shortcut("encoder.down_blocks.{i}.resnets.{j}", "E{i}", "I{i}_{j}"),
    *_only(_before_last("i"), _conv("encoder.down_blocks.{i}.downsamplers.0.conv", "E{i}", "E{i}")),
    *_resnet("encoder.mid_block.resnets.0", "M", "M"),
    *_attention("encoder.mid_block.attentions.0"),
    *_resnet("encoder.mid_block.resnets.1", "M", "M"),
    *_norm("encoder.conv_norm_out", "M"),
    *_conv("encoder.conv_out", "2*Z", "M"),
)
DECODER = (
    *_conv("decoder.conv_in", "M", "Z"),
    *_resnet("decoder.mid_block.resnets.0", "M", "M"),
    *_attention("decoder.mid_block.attentions.0"),
    *_resnet("decoder.mid_block.resnets.1", "M", "M"),
    *_resnet("decoder.up_blocks.{u}.resnets.{v}", "D{u}", "J{u}_{v}"),
    *_shortcut("decoder.up_blocks.{u}.resnets.{v}", "D{u}", "J{u}_{v}"),
    *_only(_before_last("u"), _conv("decoder.up_blocks.{u}.upsamplers.0.conv", "D{u}", "D{u}")),
    *_norm("decoder.conv_norm_out", "E0"),
    *_conv("decoder.conv_out", "O", "E0"),
)
QUANT = _conv("quant_conv", "2*Z", "2*Z", ("1", "1"))
POST_QUANT = _conv("post_quant_conv", "Z", "Z", ("1", "1"))


def _when(rules: list[Rule], **condition: object) -> list[Rule]:
    return [replace(rule, when=condition) for rule in rules]


KL_RULES = (
    *(
        replace(rule, when={"mid_block_add_attention": True}) if ".attentions." in rule.ours else rule
        for rule in (*ENCODER, *DECODER)
    ),
    *_when(QUANT, use_quant_conv=True),
    *_when(POST_QUANT, use_post_quant_conv=True),
)


def _mixed_resnet(name: str, out: str, into: str) -> list[Rule]:
    """A resnet over the pixels of a frame, one over the frames, and the number that mixes both."""
    return [
        *_resnet(f"{name}.spatial_res_block", out, into),
        *_resnet(f"{name}.temporal_res_block", out, out, TEMPORAL),
        same(f"{name}.time_mixer.mix_factor", "1"),
    ]


TEMPORAL_RULES = (
    *ENCODER,
    *_conv("decoder.conv_in", "M", "Z"),
    *_mixed_resnet("decoder.mid_block.resnets.{k}", "M", "M"),
    *_attention("decoder.mid_block.attentions.0"),
    *_mixed_resnet("decoder.up_blocks.{u}.resnets.{v}", "D{u}", "J{u}_{v}"),
    *_shortcut("decoder.up_blocks.{u}.resnets.{v}.spatial_res_block", "D{u}", "J{u}_{v}"),
    *_only(_before_last("u"), _conv("decoder.up_blocks.{u}.upsamplers.0.conv", "D{u}", "D{u}")),
    *_norm("decoder.conv_norm_out", "E0"),
    *_conv("decoder.conv_out", "O", "E0"),
    *_conv("decoder.time_conv_out", "O", "O", TEMPORAL),
    *QUANT,
)

OLD_RULES = rename(
    KL_RULES,
    (r"\.to_q\.", ".query."),
    (r"\.to_k\.", ".key."),
    (r"\.to_v\.", ".value."),
    (r"\.to_out\.0\.", ".proj_attn."),
)

LDM_RULES = tuple(
    replace(rule, their_shape=("M", "M", "1", "1"), change=CONV_1X1)
    if re.search(r"\.attn_1\.(q|k|v|proj_out)\.weight$", rule.theirs)
    else rule
    for rule in rename(
        KL_RULES,
        (r"\.down_blocks\.", ".down."),
        (r"\.up_blocks\.\{u\}\.", ".up.{~u}."),
        (r"\.(down|up)samplers\.0\.", r".\1sample."),
        (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
        (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
        (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
        (r"\.resnets\.", ".block."),
        (r"\.conv_shortcut\.", ".nin_shortcut."),
        (r"\.conv_norm_out\.", ".norm_out."),
        (r"\.group_norm\.", ".norm."),
        (r"\.to_([qkv])\.", r".\1."),
        (r"\.to_out\.0\.", ".proj_out."),
    )
)
GAMMA_RULES = rename(LDM_RULES, (r"\.(norm\w*)\.weight$", r".\1.gamma"), (r"\.(norm\w*)\.bias$", r".\1.beta"))

# What ldm and mindone save beside the VAE. Whatever else is in a file is an error.
SURPLUS = {
    "loss.{*}": "the loss of its training",
    f"{PREFIX}loss.{{*}}": "the loss of its training",
    "model_ema.{*}": "averages over the training, the weights themselves are taken",
    "model.diffusion_model.{*}": "the denoiser",
    "denoiser.{*}": "the denoiser",
    "cond_stage_model.{*}": "the text encoder",
    "conditioner.{*}": "the text encoders",
    "betas": "the noise schedule",
    "alphas_cumprod": "the noise schedule",
    "alphas_cumprod_prev": "the noise schedule",
    "sqrt_{*}": "the noise schedule",
    "log_one_minus_alphas_cumprod": "the noise schedule",
    "posterior_{*}": "the noise schedule",
    "logvar": "the loss of the denoiser's training",
}


def _in_ldm(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rows of a file of the VAE alone, or of the VAE within a whole latent diffusion model (only read)."""
    within = (replace(rule, theirs=PREFIX + rule.theirs, tied=True) for rule in rules)
    return (*rules, *within, *(Rule(name, None, drop=True, why=why) for name, why in SURPLUS.items()))


def _aliases(given: Config) -> Config:
    """Block types say nothing as long as all are the plain ones."""
    for key, plain in {
        "down_block_types": "DownEncoderBlock2D",
        "up_block_types": "UpDecoderBlock2D",
    }.items():
        types = given.get(key)
        if isinstance(types, (list, tuple)) and list(types) == [plain] * len(types):
            del given[key]
    return given


def _read_off(dims: Mapping[str, int], names: Collection[str]) -> Config:
    """What the tensors of either VAE show, and what diffusers' constructor assumes where nobody says otherwise.

    Assumed: scaling_factor for 4 latent channels (it multiplies the latents outside of the network; any other
    number of channels, and SDXL by its two text encoders, has to be told) and force_upcast (a hint about half
    precision).
    """
    config: Config = {"force_upcast": True}
    simple = {"in_channels": "C", "out_channels": "O", "latent_channels": "Z", "layers_per_block": "j"}
    config |= {key: dims[symbol] for key, symbol in simple.items() if symbol in dims}
    channels = [dims.get(f"E{i}") for i in range(dims.get("i", 0))]
    if channels and None not in channels:
        config["block_out_channels"] = channels
    if dims.get("Z") == 4 and not any(name.startswith("conditioner.") for name in names):
        config["scaling_factor"] = 0.18215
    return config


def _infer(dims: Mapping[str, int], names: Collection[str]) -> Config:
    """Assumed besides: SiLU and 32 groups, as all published ones have (the groups have to be told where 32 do
    not divide the channels), and sample_size 256, as ldm and sd-vae-ft-* say, which sets the size of tiles only.
    """
    bare = {name.removeprefix(PREFIX) for name in names}
    config = {
        "act_fn": "silu",
        "sample_size": 256,
        "use_quant_conv": any(name.startswith("quant_conv.") for name in bare),
        "use_post_quant_conv": any(name.startswith("post_quant_conv.") for name in bare),
        "mid_block_add_attention": any(".attentions." in name or ".attn_1." in name for name in bare),
        **_read_off(dims, names),
    }
    if all(channels % GROUPS == 0 for channels in config.get("block_out_channels", ())):
        config["norm_num_groups"] = GROUPS
    return config


def _infer_temporal(dims: Mapping[str, int], names: Collection[str]) -> Config:
    """Assumed besides: sample_size 768, as Latte-1 and Stable Video Diffusion say, which nothing reads."""
    return {"sample_size": 768, **_read_off(dims, names)}


def _dims(config: Config) -> dict[str, int]:
    simple = {"C": "in_channels", "O": "out_channels", "Z": "latent_channels"}
    dims = {symbol: config[key] for symbol, key in simple.items() if key in config}
    layers = config.get("layers_per_block")
    if layers is not None:
        dims |= {"j": layers, "v": layers + 1, "k": layers}
    if "block_out_channels" not in config:
        return dims
    channels = config["block_out_channels"]
    count = len(channels)
    dims |= {"i": count, "u": count, "M": channels[-1]}
    up = channels[::-1]
    dims |= {f"E{i}": size for i, size in enumerate(channels)} | {f"D{u}": size for u, size in enumerate(up)}
    if layers is not None and count * layers <= MAX_ROWS:  # more is refused with the rows
        for i in range(count):
            dims |= {f"I{i}_{j}": channels[i] for j in range(layers)}
            dims |= {f"J{i}_{v}": up[i] for v in range(layers + 1)}
            if i:
                dims |= {f"I{i}_0": channels[i - 1], f"J{i}_0": up[i - 1]}
        dims["I0_0"] = channels[0]
    return dims


def _remedies(key: str, dims: Mapping[str, int]) -> str:
    if key == "scaling_factor":
        return (
            "scaling_factor multiplies the latents outside of the network, so no tensor shows it: pass --set "
            "scaling_factor=0.18215 (Stable Diffusion, Latte) or =0.13025 (SDXL)"
        )
    if key == "norm_num_groups":
        return f"{GROUPS} groups do not divide the channels: pass --set norm_num_groups=N"
    return f"pass --set {key}=..."


def _validate(config: Config) -> None:
    groups, channels = config.get("norm_num_groups", GROUPS), config["block_out_channels"]
    if any(size % groups for size in channels):
        raise ConversionError(
            f"block_out_channels are not multiples of the {groups} groups of the normalisation", got=channels
        )


SYMBOLS = {
    "C": "in_channels",
    "O": "out_channels",
    "Z": "latent_channels",
    "i": "number of block_out_channels",
    "j": "layers_per_block",
    **{f"E{i}": f"block_out_channels[{i}]" for i in range(8)},
}
KEYS = {
    "in_channels": "count",
    "out_channels": "count",
    "block_out_channels": "counts",
    "layers_per_block": "count",
    "latent_channels": "count",
    "sample_size": "size",
    "scaling_factor": "fraction",
    "force_upcast": "flag",
}
MODEL = Model(
    name="AutoencoderKL",
    keys={
        **KEYS,
        "act_fn": "silu",
        "norm_num_groups": "count",
        "use_quant_conv": "flag",
        "use_post_quant_conv": "flag",
        "mid_block_add_attention": "flag",
    },
    ignored={
        "down_block_types": (["DownEncoderBlock2D"],),  # of the plain type only, see _aliases
        "up_block_types": (["UpDecoderBlock2D"],),
        "shift_factor": (None, 0),
        "latents_mean": (None,),
        "latents_std": (None,),
    },
    aliases=_aliases,
    infer=_infer,
    dims=_dims,
    symbols=SYMBOLS,
    remedies=_remedies,
    validate=_validate,
)
TEMPORAL_MODEL = Model(
    name="AutoencoderKLTemporalDecoder",
    keys=KEYS,
    ignored={"down_block_types": (["DownEncoderBlock2D"],)},
    aliases=_aliases,
    infer=_infer_temporal,
    dims=_dims,
    symbols=SYMBOLS,
    remedies=_remedies,
    validate=_validate,
)


def _is_temporal(shapes: Shapes) -> bool:
    return any(name.startswith("decoder.") and ".temporal_res_block." in name for name in shapes)


def _is_kl(shapes: Shapes) -> bool:
    blocks = ("encoder.down_blocks.", "decoder.up_blocks.")
    return any(name.startswith(blocks) for name in shapes) and not _is_temporal(shapes)


def _is_old(shapes: Shapes) -> bool:
    old = re.compile(r"\.mid_block\.attentions\.0\.(query|key|value|proj_attn)\.")
    return _is_kl(shapes) and any(old.search(name) for name in shapes)


def _is_ldm(shapes: Shapes) -> bool:
    return any(name.removeprefix(PREFIX).startswith(("encoder.down.", "decoder.up.")) for name in shapes)


def _has_gamma(shapes: Shapes) -> bool:
    parts = ("encoder.", "decoder.")
    return _is_ldm(shapes) and any(
        name.removeprefix(PREFIX).startswith(parts) and name.endswith((".gamma", ".beta")) for name in shapes
    )


def _in_code(config: Config) -> Config:
    """What ldm's code leaves no choice about."""
    return {"norm_num_groups": GROUPS, "act_fn": "silu", "mid_block_add_attention": True}


def _describe(config: Config) -> dict:
    """config.json in diffusers' spelling."""
    count = len(config["block_out_channels"])
    types = {
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
    }
    return {"_class_name": MODEL.name, **config, **types}


def _describe_temporal(config: Config) -> dict:
    types = ["DownEncoderBlock2D"] * len(config["block_out_channels"])
    return {"_class_name": TEMPORAL_MODEL.name, **config, "down_block_types": types}


LAYOUTS = (
    Layout(
        "diffusers-vae",
        MODEL,
        KL_RULES,
        lambda shapes: _is_kl(shapes) and not _is_old(shapes),
        evidence="encoder.down_blocks.*, attention with to_q; mindone.diffusers writes the same",
        describe=_describe,
    ),
    Layout(
        "diffusers-vae-old",
        MODEL,
        OLD_RULES,
        _is_old,
        evidence="encoder.down_blocks.*, attention with query and proj_attn",
        describe=_describe,
    ),
    Layout(
        "compvis-vae",
        MODEL,
        _in_ldm(LDM_RULES),
        lambda shapes: _is_ldm(shapes) and not _has_gamma(shapes),
        evidence=f"encoder.down.*, normalisations with weight and bias (newer mindone too); or all after {PREFIX}",
        defaults=_in_code,
        wrapper="state_dict",
        presumes={"mid_block_add_attention": True},
    ),
    Layout(
        "mindone-compvis-vae",
        MODEL,
        _in_ldm(GAMMA_RULES),
        _has_gamma,
        evidence="encoder.down.*, normalisations with gamma and beta",
        defaults=_in_code,
        presumes={"mid_block_add_attention": True},
    ),
    Layout(
        "diffusers-temporal-vae",
        TEMPORAL_MODEL,
        TEMPORAL_RULES,
        _is_temporal,
        evidence="decoder.*.temporal_res_block",
        describe=_describe_temporal,
    ),
)
OURS = (
    Layout("ours", MODEL, KL_RULES, lambda shapes: False, describe=_describe),
    Layout("ours", TEMPORAL_MODEL, TEMPORAL_RULES, lambda shapes: False, describe=_describe_temporal),
)
