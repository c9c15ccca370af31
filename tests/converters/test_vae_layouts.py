# SPDX-License-Identifier: Apache-2.0
"""VAE layouts: the listings of the real models, both ways, without weights; diffusers as the judge of names,
shapes and numbers; inference of the configuration and what has to be asked for.
"""

import itertools
import json
import re

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from converters.errors import ConversionError
from converters.layouts import candidates, choose
from converters.layouts.vae import LAYOUTS, MODEL, OURS, PREFIX, TEMPORAL_MODEL
from tests.converters.listings import arrays_of, entries_of, listing, same_bits, shapes_of, unread

BY_NAME = {layout.name: layout for layout in LAYOUTS}
KL = [name for name, layout in BY_NAME.items() if layout.model is MODEL]
TEMPORAL = "diffusers-temporal-vae"
HOME = {layout.model.name: layout for layout in OURS}
SD = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 256,
    "scaling_factor": 0.18215,
    "force_upcast": True,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
SVD = {key: SD[key] for key in TEMPORAL_MODEL.keys} | {"sample_size": 768}
TINY = SD | {"block_out_channels": [32, 64], "layers_per_block": 1, "sample_size": 16}
TINY_TEMPORAL = {key: TINY[key] for key in TEMPORAL_MODEL.keys}
SURPLUS = {
    "loss.logvar": (),
    "loss.perceptual_loss.net.slice1.0.weight": (64, 3, 3, 3),
    "model_ema.decay": (),
    "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": (1, 77),
    "alphas_cumprod": (1000,),
    "sqrt_recipm1_alphas_cumprod": (1000,),
    "posterior_mean_coef1": (1000,),
}


def random_tensors(home, config):
    """Our tensors of a configuration, no two numbers alike."""
    rng = np.random.default_rng(0)
    rows = home.rows(config, home.model.dims(config))
    return entries_of({row.ours: rng.standard_normal(row.shape["ours"], np.float32) for row in rows})


def read(layout, entries, given=None):
    """Detected, resolved and renamed: (our entries, configuration)."""
    config = layout.resolve(shapes_of(entries), given or {}, "config.json")
    return layout.to_ours(entries, config)[0], config


def build(config):
    """diffusers' model of one of our configurations."""
    from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder

    count = len(config["block_out_channels"])
    types = {"down_block_types": ["DownEncoderBlock2D"] * count}
    if config.keys() == TEMPORAL_MODEL.keys.keys():
        return AutoencoderKLTemporalDecoder(**config, **types).eval()
    return AutoencoderKL(**config, **types, up_block_types=["UpDecoderBlock2D"] * count).eval()


def build_on_meta(config):
    with torch.device("meta"):
        return build(config)


def as_diffusers_reads(name, state):
    """diffusers' own translation of a layout, for torch tensors; gamma and beta are unknown to it."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    if name == "diffusers-vae-old":
        return build_on_meta(TINY)._fix_state_dict_keys_on_load(dict(state))
    if name == "mindone-compvis-vae":
        state = {
            re.sub("gamma$", "weight", re.sub("beta$", "bias", name)): value for name, value in state.items()
        }
    if "compvis" in name:
        blocks = 1 + max(int(found[1]) for name in state if (found := re.search(r"\.up\.(\d+)\.", name)))
        return convert_ldm_vae_checkpoint(
            state, {"down_block_types": [""] * blocks, "up_block_types": [""] * blocks}
        )
    return state


def on_meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


# Listings of the real models


@pytest.mark.parametrize("name", BY_NAME)
def test_listing_goes_both_ways(name):
    layout, shapes = BY_NAME[name], listing(name)
    assert choose(shapes, None, {}, "vae") is layout
    config = layout.resolve(shapes, {}, "")
    assert config == (SVD if name == TEMPORAL else SD)
    ours, extras, notes = layout.to_ours(unread(shapes), config)
    assert shapes_of(ours) == listing(TEMPORAL if name == TEMPORAL else "diffusers-vae")
    assert (extras, notes) == ({}, [])
    theirs, left, notes = layout.to_theirs(ours, {}, config)
    assert shapes_of(theirs) == shapes and (left, notes) == ({}, [])


@pytest.mark.parametrize(("name", "count"), [*((name, 248) for name in KL), (TEMPORAL, 374)])
def test_listing_is_what_diffusers_has_or_reads(name, count):
    shapes = listing(name)
    assert len(shapes) == count
    model = build_on_meta(SVD if name == TEMPORAL else SD)
    assert shapes_of(as_diffusers_reads(name, on_meta(shapes))) == shapes_of(model.state_dict())


def test_mindone_listing_has_gamma_and_beta_where_mindspore_has():
    from mindspore import nn

    model = build_on_meta(SD)
    compvis = on_meta(listing("compvis-vae"))
    theirs = {id(tensor): name for name, tensor in compvis.items()}
    names = {
        ours: theirs.get(id(tensor)) for ours, tensor in as_diffusers_reads("compvis-vae", compvis).items()
    }
    expected = dict(listing("compvis-vae"))
    spelt = dict(zip(("weight", "bias"), nn.GroupNorm(2, 4).parameters_dict(), strict=True))
    for path, module in model.named_modules():
        for part in spelt if isinstance(module, torch.nn.GroupNorm) else ():
            name = names[f"{path}.{part}"]
            expected[name.removesuffix(part) + spelt[part]] = expected.pop(name)
    assert listing("mindone-compvis-vae") == expected


@pytest.mark.parametrize("name", BY_NAME)
def test_listing_is_detected_as_one_layout_of_all_families(name):
    shapes = listing(name)
    assert [(family.name, layout.name) for family, layout in candidates(shapes)] == [("vae", name)]
    for part in ("encoder.", "decoder."):
        half = {key: shape for key, shape in shapes.items() if key.startswith(part)}
        if name != TEMPORAL or part == "decoder.":  # the encoder has the same names in both models
            assert [layout.name for _, layout in candidates(half)] == [name]


# Tables against diffusers, for configurations beyond the published ones


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"block_out_channels": [64]},
        {"block_out_channels": [32, 96, 64], "layers_per_block": 3},
        {"block_out_channels": [64, 64, 32], "in_channels": 4, "out_channels": 5},
        {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
        {"use_quant_conv": False},
        {"use_post_quant_conv": False},
        {"mid_block_add_attention": False},
        {"block_out_channels": [12, 24], "norm_num_groups": 3},
    ],
    ids=str,
)
def test_table_is_that_of_diffusers(changes):
    config = TINY | changes
    shapes = shapes_of(build_on_meta(config).state_dict())
    told = {key: changes[key] for key in ("norm_num_groups",) if key in changes} | {"scaling_factor": 1.0}
    layout = BY_NAME["diffusers-vae"]
    assert layout.resolve(shapes, told, "--set") == config | {"scaling_factor": 1.0, "sample_size": 256}
    assert shapes_of(layout.to_ours(unread(shapes), config)[0]) == shapes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"block_out_channels": [64]},
        {"block_out_channels": [32, 96, 64], "layers_per_block": 3},
        {"in_channels": 4, "out_channels": 5, "latent_channels": 2},
    ],
    ids=str,
)
def test_temporal_table_is_that_of_diffusers(changes):
    config = TINY_TEMPORAL | changes
    shapes = shapes_of(build_on_meta(config).state_dict())
    layout = BY_NAME[TEMPORAL]
    expected = config | {"scaling_factor": 1.0, "sample_size": 768}
    assert layout.resolve(shapes, {"scaling_factor": 1.0}, "--set") == expected
    assert shapes_of(layout.to_ours(unread(shapes), config)[0]) == shapes


# Weights


@pytest.mark.parametrize(("first", "second"), [*itertools.product(KL, KL), (TEMPORAL, TEMPORAL)])
def test_random_weights_there_and_back(first, second):
    first, second = BY_NAME[first], BY_NAME[second]
    config = TINY if first.model is MODEL else TINY_TEMPORAL
    tensors = random_tensors(HOME[first.model.name], config)
    start, _, _ = first.to_theirs(tensors, {}, config)
    ours, found = read(first, start)
    assert found == config | {"sample_size": found["sample_size"]}
    assert same_bits(arrays_of(ours), arrays_of(tensors))
    assert same_bits(arrays_of(first.to_theirs(ours, {}, config)[0]), arrays_of(start))
    over, _ = read(second, second.to_theirs(ours, {}, config)[0])
    assert same_bits(arrays_of(first.to_theirs(over, {}, config)[0]), arrays_of(start))


@pytest.mark.parametrize("name", BY_NAME)
def test_every_single_missing_name_is_noticed(name):
    layout = BY_NAME[name]
    config = TINY if layout.model is MODEL else TINY_TEMPORAL
    tensors = random_tensors(HOME[layout.model.name], config)
    shapes = shapes_of(layout.to_theirs(tensors, {}, config)[0])
    assert len(shapes) > 80
    for missing in shapes:
        rest = {other: shape for other, shape in shapes.items() if other != missing}
        assert choose(rest, None, {}, "vae") is layout
        with pytest.raises(ConversionError, match=rf"missing \(1\):\s+{re.escape(missing)} "):
            layout.resolve(rest, {}, "")


@pytest.fixture(scope="module")
def tiny():
    """A diffusers model with weights that show every mistake."""

    def make(config):
        torch.manual_seed(0)
        model = build(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        return model

    return {MODEL.name: make(TINY), TEMPORAL_MODEL.name: make(TINY_TEMPORAL)}


@torch.no_grad()
def outputs(model):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 8, 12, generator=generator)
    latents = torch.randn(2, 4, 4, 6, generator=generator)
    frames = {"num_frames": 2} if type(model).__name__ == TEMPORAL_MODEL.name else {}
    return model.encode(images).latent_dist.parameters, model.decode(latents, **frames).sample


def assert_same_outputs(a, b):
    for got, expected in zip(outputs(a), outputs(b), strict=True):
        assert torch.isfinite(expected).all() and torch.equal(got, expected)


@pytest.mark.parametrize("name", BY_NAME)
def test_the_network_computes_the_same_numbers(tiny, name):
    layout = BY_NAME[name]
    model = tiny[layout.model.name]
    config = TINY if layout.model is MODEL else TINY_TEMPORAL
    theirs, _, _ = layout.to_theirs(entries_of(model.state_dict()), {}, config)

    state = {name: torch.from_numpy(array) for name, array in arrays_of(theirs).items()}
    by_diffusers = build(config)
    by_diffusers.load_state_dict(as_diffusers_reads(name, state))
    assert_same_outputs(by_diffusers, model)

    ours, _ = read(choose(shapes_of(theirs), None, {}, "vae"), entries_of(arrays_of(theirs)))
    by_us = build(config)
    by_us.load_state_dict({name: torch.from_numpy(array) for name, array in arrays_of(ours).items()})
    assert_same_outputs(by_us, model)


@pytest.mark.parametrize("layout", [*(BY_NAME[name] for name in BY_NAME if "compvis" not in name), *OURS])
def test_diffusers_loads_the_folder(tiny, tmp_path, layout):
    model = tiny[layout.model.name]
    config = TINY if layout.model is MODEL else TINY_TEMPORAL
    theirs, _, _ = layout.to_theirs(entries_of(model.state_dict()), {}, config)
    save_file(arrays_of(theirs), tmp_path / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(layout.describe(config)))
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert {key: value for key, value in model.config.items() if not key.startswith("_")}.items() <= {
        **loaded.config
    }.items()
    assert_same_outputs(loaded, model)
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    found, _ = layout.model.arguments(again, "config.json")
    assert layout.model.require(found, {}) == config


# Whole checkpoints of ldm


@pytest.mark.parametrize("name", [name for name in KL if "compvis" in name])
def test_vae_within_a_whole_checkpoint(name):
    layout, shapes = BY_NAME[name], listing(name)
    inside = {PREFIX + key: shape for key, shape in shapes.items()}
    assert [layout.name for _, layout in candidates(inside | SURPLUS)] == [name]
    config = layout.resolve(inside | SURPLUS, {}, "")
    assert config == SD
    ours, extras, notes = layout.to_ours(unread(inside | SURPLUS), config)
    assert shapes_of(ours) == listing("diffusers-vae") and extras == {}
    assert len(notes) == 5 and any("the denoiser" in note for note in notes)
    assert shapes_of(layout.to_theirs(ours, {}, config)[0]) == shapes  # written without the prefix

    for missing in itertools.islice(inside, 0, None, 25):
        rest = {key: shape for key, shape in inside.items() if key != missing}
        with pytest.raises(ConversionError, match=rf"missing \(1\):\s+{missing.removeprefix(PREFIX)} "):
            layout.resolve(rest | SURPLUS, {}, "")
    for strange in ("lora.down.weight", f"{PREFIX}encoder.temb.weight", "decoder.up.0.attn.0.q.weight"):
        with pytest.raises(ConversionError, match=rf"unknown \(1\):\s+{strange}"):
            layout.resolve(inside | SURPLUS | {strange: (3, 4)}, {}, "")


def test_gamma_and_beta_count_in_the_vae_only():
    """mindone's newest Stable Diffusion files have them in the denoiser, and weight and bias in the VAE."""
    inside = {PREFIX + key: shape for key, shape in listing("compvis-vae").items()}
    denoiser = {
        "model.diffusion_model.out.0.gamma": (320,),
        "cond_stage_model.transformer.ln_final.beta": (1024,),
    }
    assert [layout.name for _, layout in candidates(inside | denoiser)] == ["compvis-vae"]
    assert BY_NAME["compvis-vae"].resolve(inside | denoiser, {}, "") == SD
    assert candidates({"encoder.layer.0.norm.gamma": (8,), "decoder.layer.0.norm.beta": (8,)}) == []


def test_only_ldm_files_may_hold_surplus():
    for name in ("diffusers-vae", "diffusers-vae-old", TEMPORAL):
        with pytest.raises(ConversionError, match=r"unknown \(8\)"):
            BY_NAME[name].resolve(listing(name) | SURPLUS, {}, "")


def test_two_vaes_in_one_file_are_refused():
    layout, tensors = BY_NAME["compvis-vae"], random_tensors(HOME[MODEL.name], TINY)
    entries, _, _ = layout.to_theirs(tensors, {}, TINY)
    twice = entries | {PREFIX + name: entry for name, entry in entries.items()}
    assert same_bits(arrays_of(read(layout, twice)[0]), arrays_of(tensors))
    other = arrays_of(entries)["decoder.conv_out.bias"] + 1
    twice |= entries_of({f"{PREFIX}decoder.conv_out.bias": other})
    with pytest.raises(ConversionError, match="holds two that differ"):
        read(layout, twice)


# The configuration


def test_published_config_files():
    """The keys of sd-vae-ft-mse, of a recent file, and of Latte-1's temporal VAE."""
    old = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.4.2",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 256,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    config, notes = MODEL.arguments(old, "config.json")
    assert notes == []
    assert BY_NAME["diffusers-vae"].resolve(listing("diffusers-vae"), config, "config.json") == SD
    none = {"shift_factor": None, "latents_mean": None, "latents_std": None, "scaling_factor": 0.13025}
    config, notes = MODEL.arguments(old | none | {"force_upcast": False}, "config.json")
    assert len(notes) == 1 and notes[0].count("=") == 3
    config = BY_NAME["diffusers-vae"].resolve(listing("diffusers-vae"), config, "config.json")
    assert config == SD | {"scaling_factor": 0.13025, "force_upcast": False}
    for changed in (
        {"shift_factor": 0.1159},
        {"latents_mean": [0.0] * 4},
        {"down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"]},
        {"up_block_types": "UpDecoderBlock2D"},
        {"down_block_types": [{}]},
    ):
        with pytest.raises(ConversionError, match=f"{next(iter(changed))} changes the network"):
            MODEL.arguments(old | changed, "config.json")
    for wrong in ([], [0], 64, [True], ["64"], None):
        with pytest.raises(ConversionError, match="expected a list of positive integers"):
            MODEL.arguments({"block_out_channels": wrong}, "config.json")

    temporal = {key: value for key, value in old.items() if key in TEMPORAL_MODEL.keys}
    temporal |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "sample_size": 768, "force_upcast": True}
    config, notes = TEMPORAL_MODEL.arguments(temporal, "config.json")
    assert notes == [] and BY_NAME[TEMPORAL].resolve(listing(TEMPORAL), config, "") == SVD


def test_what_no_tensor_tells_is_asked_for():
    layout = BY_NAME["diffusers-vae"]
    shapes = shapes_of(build_on_meta(TINY | {"latent_channels": 16}).state_dict())
    with pytest.raises(ConversionError, match=r"does not tell scaling_factor.*pass --set"):
        layout.resolve(shapes, {}, "")
    shapes = shapes_of(
        build_on_meta(TINY | {"block_out_channels": [24, 48], "norm_num_groups": 8}).state_dict()
    )
    with pytest.raises(ConversionError, match=r"does not tell norm_num_groups.*--set norm_num_groups=N"):
        layout.resolve(shapes, {}, "")
    with pytest.raises(ConversionError, match="not multiples of the 16 groups"):
        layout.resolve(shapes, {"norm_num_groups": 16}, "--set")
    sdxl = {PREFIX + name: shape for name, shape in listing("compvis-vae").items()}
    sdxl["conditioner.embedders.0.transformer.text_model.final_layer_norm.weight"] = (768,)
    with pytest.raises(ConversionError, match=r"does not tell scaling_factor.*0\.13025 \(SDXL\)"):
        BY_NAME["compvis-vae"].resolve(sdxl, {}, "")


def test_ldm_cannot_hold_every_autoencoder():
    for name, changes in itertools.product(
        ("compvis-vae", "mindone-compvis-vae"),
        ({"norm_num_groups": 16}, {"mid_block_add_attention": False}),
    ):
        config = TINY | changes
        with pytest.raises(ConversionError, match=f"cannot hold this AutoencoderKL.*{next(iter(changes))}"):
            BY_NAME[name].to_theirs(random_tensors(HOME[MODEL.name], config), {}, config)
    shapes = {name: shape for name, shape in listing("compvis-vae").items() if ".attn_1." not in name}
    with pytest.raises(ConversionError, match=r"missing \(20\)"):
        BY_NAME["compvis-vae"].resolve(shapes, {}, "")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"block_out_channels": [128, 256, 512]},
            "number of block_out_channels: 3 by side.json, 4 in the file",
        ),
        (
            {"block_out_channels": [128, 256, 384, 512]},
            r"block_out_channels\[2\]: 384 by side.json, 512 in the file",
        ),
        ({"layers_per_block": 3}, "layers_per_block: 3 by side.json, 2 in the file"),
        ({"latent_channels": 8}, "latent_channels: 8 by side.json, 4 in the file"),
        (
            {"use_quant_conv": False},
            r" quant_conv.weight \(8, 8, 1, 1\), belongs to use_quant_conv=True",
        ),
        ({"layers_per_block": 10**9}, "asks for .* tensors"),
    ],
)
def test_configuration_against_shapes_names_both(given, line):
    with pytest.raises(ConversionError, match=line):
        BY_NAME["diffusers-vae"].resolve(listing("diffusers-vae"), given, "side.json")


def test_faults_are_listed_in_their_names():
    shapes = listing("compvis-vae")
    shapes["decoder.up.3.block.1.conv1.weight"] = (512, 256, 3, 3)
    shapes["encoder.mid.attn_1.q.weight"] = (512, 512)
    shapes["encoder.down.3.downsample.conv.bias"] = (512,)
    del shapes["decoder.up.0.block.0.nin_shortcut.bias"]
    with pytest.raises(ConversionError) as caught:
        BY_NAME["compvis-vae"].resolve(shapes, {}, "")
    text = str(caught.value)
    assert "decoder.up.3.block.1.conv1.weight: got (512, 256, 3, 3), expected (512, 512, 3, 3)" in text
    assert "encoder.mid.attn_1.q.weight: got (512, 512), expected (512, 512, 1, 1)" in text
    assert re.search(r"missing \(1\):\s+decoder.up.0.block.0.nin_shortcut.bias \(128\)", text)
    assert re.search(r"unknown \(1\):\s+encoder.down.3.downsample.conv.bias \(512\)", text)
