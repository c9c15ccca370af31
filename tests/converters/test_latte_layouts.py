# SPDX-License-Identifier: Apache-2.0
"""Every layout of Latte and LatteT2V: listings of the real models, pairs of layouts, what is refused."""

import itertools
import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from converters import load
from converters.containers.source import open_source, unwrap
from converters.containers.target import save_file
from converters.convert import convert
from converters.errors import ConversionError
from converters.layouts import FAMILIES, OURS, candidates, choose
from converters.stream import TensorEntry
from tests.converters.listings import listing, shapes_of, unread
from torch_ref.models.latte_t2v import LatteT2V
from torch_ref.models.positional import get_1d_sincos_pos_embed, get_2d_sincos_pos_embed

LAYOUTS = FAMILIES["latte"].layouts
# Layouts whose names and shapes are another's.
SAME_AS = {
    "mindone-latte": "official-latte",
    "mindone-latte-linear": "latte-linear",
    "mindone-diffusers": "diffusers",
    "diffusers-0.24": "official-t2v",
    "open-sora-plan-v1.0": "official-t2v",
    "open-sora-plan-v1.1": "official-t2v",
}
COUNTS = {
    "official-latte": 293,
    "mindone-latte-old": 293,
    "latte-linear": 293,
    "dit-imagenet": 292,
    "diffusers": 967,
    "official-t2v": 968,
    "mindone-opensora-pku": 969,
    "mindone-opensora-pku-v1.1": 970,
}
OF_LATTE = [name for name, layout in LAYOUTS.items() if layout.model.name == "Latte"]
OF_T2V = [name for name, layout in LAYOUTS.items() if layout.model.name == "LatteT2V"]
# What no tensor shows; the heads are only asked for where published nets differ.
LATTE_1 = {"sample_size": 64, "video_length": 16, "num_attention_heads": 16, "attention_head_dim": 72}
Y_EMBEDDING, TABLE = "caption_projection.y_embedding", "pos_embed.pos_embed"
FRAMES = "temp_pos_embed"


def listing_of(layout: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the published model in a layout: XL/2 with 101 classes, or Latte-1."""
    return listing(SAME_AS.get(layout, layout))


# ------------------------------------------------------------------------------------------ listings


@pytest.mark.parametrize("name", LAYOUTS)
def test_listing_in_both_directions_without_weights(name):
    theirs, layout = listing_of(name), LAYOUTS[name]
    assert len(theirs) == COUNTS[SAME_AS.get(name, name)]
    given = LATTE_1 if layout.model.name == "LatteT2V" else {}
    config = layout.resolve(theirs, given, "")
    entries = unread(theirs)
    if "pku" in name:  # its tables are compared with the computed ones when they are read
        table = get_2d_sincos_pos_embed(1152, 32, base_size=32).astype(np.float32)[None]
        entries[TABLE] = TensorEntry("F32", table.shape, lambda: table)
        times = get_1d_sincos_pos_embed(1152, 16).astype(np.float32)
        if FRAMES in entries:
            entries[FRAMES] = TensorEntry("F32", times.shape, lambda: times)
    tensors, extras, _ = layout.to_ours(entries, config)
    reference = listing_of("official-latte" if layout.model.name == "Latte" else "diffusers")
    if layout.initial:
        del reference["y_embedder.embedding_table.weight"]
    assert shapes_of(tensors) == reference
    if layout.initial:
        with pytest.raises(ConversionError, match="read only"):
            layout.to_theirs(tensors, extras, config)
        return
    back, left, notes = layout.to_theirs(tensors, extras, config)
    assert shapes_of(back) == theirs and not left and not notes


@pytest.mark.parametrize("name", LAYOUTS)
def test_listing_is_detected(name):
    """As itself where names and shapes tell, else among the candidates and never as another model."""
    found = [layout.name for _, layout in candidates(listing_of(name))]
    assert found and {LAYOUTS[other].model.name for other in found} == {LAYOUTS[name].model.name}
    if name == "mindone-opensora-pku":  # without its table of temporal positions both are possible
        assert found == [name, "mindone-opensora-pku-v1.1"]
        return
    if SAME_AS.get(name, name) not in ("official-t2v", "latte-linear"):
        assert found == [SAME_AS.get(name, name)]
    else:
        assert name in found


def test_listing_of_diffusers_is_diffusers_own():
    with torch.device("meta"):
        model = diffusers.LatteTransformer3DModel(
            num_attention_heads=16,
            attention_head_dim=72,
            in_channels=4,
            out_channels=8,
            num_layers=28,
            cross_attention_dim=1152,
            attention_bias=True,
            sample_size=64,
            patch_size=2,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            caption_channels=4096,
            video_length=16,
        )
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == listing_of(
        "diffusers"
    )
    assert {**listing_of("diffusers"), Y_EMBEDDING: (120, 4096)} == listing_of("official-t2v")


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_every_missing_name_is_noticed(name):
    layout, theirs = LAYOUTS[name], listing_of(name)
    given = LATTE_1 if layout.model.name == "LatteT2V" else {}
    config = layout.resolve(theirs, given, "")
    tolerated = set()
    for gone in list(theirs)[:: 1 if len(theirs) < 500 else 5] + [Y_EMBEDDING, TABLE, FRAMES]:
        rest = {other: shape for other, shape in theirs.items() if other != gone}
        if not layout.differences(rest, config, {}):
            tolerated.add(gone)
    extras = {Y_EMBEDDING, TABLE, FRAMES}  # no part of the network
    assert tolerated <= (extras | ({"y_embedder.embedding_table.weight"} if layout.initial else set()))


def test_configuration_of_the_published_models():
    config = LAYOUTS["official-latte"].resolve(listing_of("official-latte"), {}, "")
    assert (config["hidden_size"], config["num_heads"], config["depth"], config["num_classes"]) == (
        1152,
        16,
        28,
        101,
    )
    config = LAYOUTS["latte-linear"].resolve(listing_of("latte-linear"), {}, "")
    assert (config["patch_size"], config["in_channels"], config["pixel_order"]) == (2, 4, "blocks")
    sizes = {"sample_size": 64, "video_length": 16}
    config = LAYOUTS["diffusers"].resolve(listing_of("diffusers"), sizes, "")
    assert set(LAYOUTS["diffusers"].assumed(listing_of("diffusers"), sizes)) == {
        *("num_attention_heads", "attention_head_dim", "activation_fn", "norm_eps")
    }
    for name in ("open-sora-plan-v1.1", "mindone-opensora-pku-v1.1"):  # published with 16 and with 18 heads
        with pytest.raises(
            ConversionError, match=r"does not tell num_attention_heads, attention_head_dim of"
        ):
            LAYOUTS[name].resolve(listing_of(name), sizes, "")
    assert (config["num_attention_heads"], config["norm_eps"], config["activation_fn"]) == (
        16,
        1e-6,
        "gelu-approximate",
    )
    scales = {
        name: LAYOUTS[name].defaults({"video_length": 65})["temporal_interpolation_scale"] for name in OF_T2V
    }
    assert scales == {
        "diffusers": 1.0,
        "diffusers-0.24": 1.0,
        "official-t2v": 1.0,
        "open-sora-plan-v1.0": 13.0,  # max(65 // 5, 1)
        "open-sora-plan-v1.1": 4.0,  # max(64 // 16, 1)
        "mindone-diffusers": 1.0,
        "mindone-opensora-pku": 13.0,
        "mindone-opensora-pku-v1.1": 4.0,
    }


def test_both_pixel_orders_are_asked_for():
    with pytest.raises(
        ConversionError, match=r"pixel_order differs.*--from latte-linear or --from mindone-latte-linear"
    ):
        choose(listing_of("latte-linear"), None, {}, "latte")
    assert (
        choose(listing_of("latte-linear"), "mindone-latte-linear", {}, "latte").name == "mindone-latte-linear"
    )


# ------------------------------------------------------------------------------------------ small files

TINY_LATTE = dict(
    input_size=[4, 6],
    patch_size=2,
    in_channels=4,
    hidden_size=24,
    depth=4,
    num_heads=3,
    mlp_ratio=4.0,
    num_frames=3,
    class_dropout_prob=0.1,
    num_classes=5,
    learn_sigma=True,
    condition="class",
)
TINY_T2V = dict(
    num_attention_heads=2,
    attention_head_dim=8,
    in_channels=4,
    out_channels=8,
    num_layers=2,
    dropout=0.0,
    cross_attention_dim=16,
    attention_bias=True,
    sample_size=[8, 12],
    patch_size=2,
    activation_fn="gelu-approximate",
    num_embeds_ada_norm=1000,
    norm_type="ada_norm_single",
    norm_elementwise_affine=False,
    norm_eps=1e-6,
    caption_channels=12,
    video_length=9,  # all rules of the temporal positions give 1.0
    use_additional_conditions=False,
)
ENDINGS = itertools.cycle([".pt", ".safetensors", ".ckpt", ""])


def tiny_file(folder: Path, name: str, dtype=np.float32) -> Path:
    """Random weights in a layout, in a file that this package did not write metadata into."""
    rng = np.random.default_rng(5)
    layout = LAYOUTS[name]
    config = {**(TINY_LATTE if layout.model.name == "Latte" else TINY_T2V)}
    if layout.initial:
        config["num_classes"] = 1000
    config = {**layout.defaults(config), **config}
    entries = {}
    for row in layout.rows(config, layout.model.dims(config)):
        shape = (7, config["caption_channels"]) if row.theirs == Y_EMBEDDING else row.shape["theirs"]
        if row.theirs == TABLE:
            values = get_2d_sincos_pos_embed(16, (4, 6), base_size=(4, 4))[None].astype(np.float32)
        elif row.theirs == FRAMES:
            values = get_1d_sincos_pos_embed(16, 9).astype(np.float32).reshape(shape)
        elif row.rule.tied or (row.rule.fill and layout.initial):
            continue
        else:
            values = rng.standard_normal(shape)
        values = np.ascontiguousarray(values, dtype)
        entries[row.theirs] = TensorEntry(
            {"f4": "F32", "f2": "F16"}[values.dtype.str[1:]], values.shape, lambda v=values: v
        )
    save_file(folder / f"{name}.safetensors", entries, {})
    return folder / f"{name}.safetensors"


def settings(name: str) -> dict:
    layout = LAYOUTS[name]
    return dict(TINY_LATTE if layout.model.name == "Latte" else TINY_T2V)


def contents(path: Path) -> dict[str, tuple]:
    entries, _ = unwrap(open_source(path).tree, "ema", path)
    return {name: (entry.dtype, entry.shape, entry.stored().tobytes()) for name, entry in entries.items()}


def quietly(*arguments, **options) -> str:
    return convert(*arguments, **options, say=lambda line: None)


PAIRS = [
    (a, b)
    for names in (OF_LATTE, OF_T2V)
    for a, b in itertools.product(names, names)
    if not (LAYOUTS[a].initial or LAYOUTS[b].initial)
]
STRIDED = "mindone-latte-linear"


@pytest.mark.parametrize(("a", "b"), PAIRS, ids=lambda name: name)
def test_there_and_back_through_every_other_layout(tmp_path, a, b):
    """A -> ours -> B -> ours -> A, each step a file, in changing containers: bit-equal, extras included."""
    source = tiny_file(tmp_path, a, np.float16 if a == "official-t2v" else np.float32)
    ours, again = tmp_path / "ours.safetensors", tmp_path / f"again{next(ENDINGS)}"
    other, back = tmp_path / f"other{next(ENDINGS)}", tmp_path / f"back{next(ENDINGS)}"
    quietly(source, ours, layout=a, overrides=settings(a))
    if (a == STRIDED) != (b == STRIDED):
        with pytest.raises(ConversionError, match=r"cannot hold this Latte.*pixel_order"):
            quietly(ours, other, to=b)
        return
    quietly(ours, other, to=b, verify=True)
    quietly(other, again)
    quietly(again, back, to=a, verify=True)
    assert contents(back) == contents(source)
    found, expected = load(again).config, load(ours).config
    if isinstance(found.get("sample_size"), int):  # diffusers' config.json says the height alone
        expected["sample_size"] = expected["sample_size"][0]
    assert found == expected
    assert load(other).layout == b  # what we wrote tells its layout


def test_size_embedders_are_kept(tmp_path, monkeypatch):
    """The original builds them at sample_size 128; diffusers' class has none."""
    sized = dict(use_additional_conditions=True, num_attention_heads=3, cross_attention_dim=24)
    for key, value in sized.items():
        monkeypatch.setitem(TINY_T2V, key, value)
    name = "official-t2v"
    source, ours, back = (
        tiny_file(tmp_path, name),
        tmp_path / "ours.safetensors",
        tmp_path / "back.safetensors",
    )
    told = {key: value for key, value in settings(name).items() if key != "use_additional_conditions"}
    quietly(source, ours, layout=name, overrides=told)
    assert load(ours).config["use_additional_conditions"] is True
    assert "adaln_single.emb.aspect_ratio_embedder.linear_2.bias" in load(ours).tensors
    quietly(ours, back, to=name, verify=True)
    assert contents(back) == contents(source)
    with pytest.raises(ConversionError, match=r"cannot hold this LatteT2V.*use_additional_conditions=True"):
        quietly(ours, tmp_path / "theirs.safetensors", to="diffusers")


@pytest.mark.parametrize("name", [name for name in OF_T2V if name != "diffusers"])
def test_positions_that_a_layout_cannot_hold_are_refused(tmp_path, name):
    source = tiny_file(tmp_path, "diffusers")
    overrides = {**settings("diffusers"), "video_length": 65, "temporal_interpolation_scale": 7.0}
    quietly(source, tmp_path / "ours.safetensors", layout="diffusers", overrides=overrides)
    with pytest.raises(
        ConversionError, match=r"compute another function; got temporal_interpolation_scale=7.0"
    ):
        quietly(tmp_path / "ours.safetensors", tmp_path / "other.ckpt", to=name)
    assert not (tmp_path / "other.ckpt").exists()


# ------------------------------------------------------------------------------------------ norm types

NORM_TYPES = ("ada_norm_single", "layer_norm", "ada_norm", "ada_norm_zero")
OTHERS = NORM_TYPES[1:]
# What no tensor of our layout shows.
UNSEEN = (
    "num_attention_heads",
    "attention_head_dim",
    "sample_size",
    "activation_fn",
    "norm_eps",
    "video_length",
)


def our_net(norm_type: str, affine: bool = True) -> tuple[dict, dict]:
    """(configuration, entries) of the reference's own net: its names and shapes, random values."""
    other = dict(norm_type=norm_type, norm_elementwise_affine=affine, num_embeds_ada_norm=9)
    net = LatteT2V(**{**TINY_T2V, **other})
    rng, entries = np.random.default_rng(7), {}
    for name, parameter in net.named_parameters():
        values = rng.standard_normal(tuple(parameter.shape)).astype(np.float32)
        entries[name] = TensorEntry("F32", values.shape, lambda v=values: v)
    return {key: value for key, value in net.config.items() if key in OURS["LatteT2V"].model.keys}, entries


def our_file(path: Path, norm_type: str, affine: bool = True) -> dict:
    """Writes `our_net` as this package does; returns its configuration."""
    config, entries = our_net(norm_type, affine)
    save_file(path, entries, {"model": "LatteT2V", "config": json.dumps(config), "layout": "ours"})
    return config


def bare_file(path: Path, norm_type: str, affine: bool = True, **said) -> dict:
    """Writes `our_net` without a word in the file, and config.json beside it with what no tensor shows."""
    config, entries = our_net(norm_type, affine)
    save_file(path, entries, {})
    (path.parent / "config.json").write_text(json.dumps({key: config[key] for key in UNSEEN} | said))
    return config


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_ours_holds_every_norm_type(tmp_path, norm_type, affine):
    source, target = tmp_path / "ours.safetensors", tmp_path / f"again{next(ENDINGS)}"
    config = our_file(source, norm_type, affine)
    quietly(source, target, verify=True)
    found = load(target)
    assert contents(target) == contents(source) and found.config == config
    assert (found.model, found.layout) == ("LatteT2V", "ours")


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_norm_type_is_inferred(tmp_path, norm_type, affine):
    config = bare_file(tmp_path / "net.safetensors", norm_type, affine, _layout="ours")
    shown = 9 if norm_type in ("ada_norm", "ada_norm_zero") else None  # no tensor of the others tells it
    assert load(tmp_path / "net.safetensors").config == {**config, "num_embeds_ada_norm": shown}


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_every_missing_name_of_ours_is_noticed(norm_type):
    config, entries = our_net(norm_type)
    shapes, layout = shapes_of(entries), OURS["LatteT2V"]
    assert not layout.differences(shapes, config, {}, "ours")
    for gone in shapes:
        rest = {name: shape for name, shape in shapes.items() if name != gone}
        assert list(layout.differences(rest, config, {}, "ours")) == ["missing"], gone
    assert {*layout.differences(shapes, {**config, "norm_type": "none"}, {}, "ours")} == {"unknown"}


@pytest.mark.parametrize("name", OF_T2V)
@pytest.mark.parametrize("norm_type", OTHERS)
def test_no_published_layout_holds_another_norm_type(tmp_path, norm_type, name):
    ours, other = tmp_path / "ours.safetensors", tmp_path / "other.safetensors"
    our_file(ours, norm_type)
    refused = f"layout '{name}' cannot hold this LatteT2V.*got norm_type='{norm_type}'; expected norm_type="
    with pytest.raises(ConversionError, match=f"{refused}'ada_norm_single'"):
        quietly(ours, other, to=name)
    assert not other.exists()
    with pytest.raises(
        ConversionError, match=f"norm_type has a wrong value; got '{norm_type}'; expected ada_norm_single"
    ):
        load(ours, layout=name)


@pytest.mark.parametrize("norm_type", OTHERS)
def test_a_bare_file_of_another_norm_type_is_no_published_one(tmp_path, norm_type):
    bare_file(tmp_path / "net.safetensors", norm_type)
    surplus = {"layer_norm": "norm3.weight", "ada_norm": "norm1.emb.weight"}.get(
        norm_type, "norm1.emb.class_embedder"
    )
    expected = (
        rf"(?s)missing.*scale_shift_table.*unknown.*{surplus}\S* \(.*belongs to norm_type='{norm_type}'"
    )
    with pytest.raises(ConversionError, match=expected):
        load(tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    ("norm_type", "rows"),
    [
        ("ada_norm", r"num_embeds_ada_norm: 8 by .*, 9 in"),
        ("ada_norm_zero", r"class embedding .*: 9 by .*, 10 in"),
    ],
)
def test_number_of_embeddings_is_compared_with_the_file(tmp_path, norm_type, rows):
    path = tmp_path / "net.safetensors"
    bare_file(path, norm_type, _layout="ours", num_embeds_ada_norm=8)
    with pytest.raises(ConversionError, match=rf"(?s){rows} the file.*mis-shaped"):
        load(path)
    with pytest.raises(ConversionError, match=f"norm_type {norm_type} has embeddings in every block"):
        load(path, overrides={"num_embeds_ada_norm": None})


def test_a_missing_buffer_is_filled_and_said(tmp_path):
    lines: list[str] = []
    source = tiny_file(tmp_path, "diffusers")
    target = tmp_path / "pku.ckpt"
    convert(
        source,
        target,
        layout="diffusers",
        to="mindone-opensora-pku",
        overrides=settings("diffusers"),
        say=lines.append,
    )
    found = load(target)
    assert not found.extras[Y_EMBEDDING].read().any() and found.extras[Y_EMBEDDING].shape == (120, 12)
    expected = get_2d_sincos_pos_embed(16, (4, 6), base_size=(4, 4))[None].astype(np.float32)
    assert np.array_equal(found.extras[TABLE].read(), expected)
    assert sum("added" in line for line in lines) == 2


def test_a_table_that_our_network_does_not_compute_is_refused(tmp_path):
    source = tiny_file(tmp_path, "mindone-opensora-pku")
    load(source, layout="mindone-opensora-pku", overrides=settings("mindone-opensora-pku"))
    with pytest.raises(ConversionError, match=r"pos_embed.pos_embed is not the table that LatteT2V computes"):
        load(
            source,
            layout="mindone-opensora-pku",
            overrides={**settings("mindone-opensora-pku"), "sample_size": [12, 8]},
        )


def test_surplus_of_a_layout_lies_beside_the_weights_and_is_found_again(tmp_path):
    source = tiny_file(tmp_path, "official-t2v")
    lines: list[str] = []
    folder = tmp_path / "net"
    convert(
        source,
        folder,
        layout="official-t2v",
        to="diffusers",
        overrides=settings("official-t2v"),
        shard_size=4000,
        say=lines.append,
    )
    assert any(Y_EMBEDDING in line and "no place for it" in line for line in lines)
    assert Y_EMBEDDING not in contents(folder) and len(list(folder.glob("*-of-*.safetensors"))) > 3
    assert (folder / "diffusion_pytorch_model.extras.safetensors").exists()
    assert Y_EMBEDDING in load(folder).extras


def test_dit_is_a_start(tmp_path):
    source = tiny_file(tmp_path, "dit-imagenet")
    theirs = contents(source)
    start = {"num_heads": 3, "input_size": [4, 6], "num_frames": 6}
    loaded = load(source, overrides=start)
    assert loaded.layout == "dit-imagenet" and loaded.config["condition"] == "none"
    table = get_1d_sincos_pos_embed(24, 6)[None].astype(np.float32)
    assert np.array_equal(loaded.tensors["temp_embed"], table)
    assert loaded.tensors["blocks.1.attn.qkv.weight"].tobytes() == theirs["blocks.1.attn.qkv.weight"][2]
    assert "dropped y_embedder.embedding_table.weight: the labels of ImageNet" in loaded.notes
    by_class = load(source, overrides={**start, "condition": "class", "num_classes": 9})
    labels = by_class.tensors["y_embedder.embedding_table.weight"]
    assert labels.shape == (10, 24) and 0.015 < labels.std() < 0.025


def test_families_never_mix(tmp_path):
    latte, t2v = tiny_file(tmp_path, "official-latte"), tiny_file(tmp_path, "diffusers")
    for source, to in ((latte, "diffusers"), (t2v, "official-latte")):
        with pytest.raises(ConversionError, match="no lossless map"):
            quietly(
                source,
                tmp_path / "x.pt",
                to=to,
                overrides=settings("diffusers" if source == t2v else "official-latte"),
            )
    with pytest.raises(ConversionError, match=r"diffusers-vae is for converters/vae_converter.py"):
        quietly(latte, tmp_path / "x.pt", to="diffusers-vae", overrides=settings("official-latte"))
