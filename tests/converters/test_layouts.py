# SPDX-License-Identifier: Apache-2.0
"""The tables: official names, inference from shapes, one error for all faults, both directions."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converters.containers.torch_zip import read_torch_zip
from converters.errors import ConversionError
from converters.layouts import FAMILIES, OURS, choose
from converters.layouts.base import Change, Layout, Rule
from converters.stream import TensorEntry
from tests.converters.listings import listing

LAYOUTS = {name: layout for family in FAMILIES.values() for name, layout in family.layouts.items()}
LATTE, T2V = LAYOUTS["official-latte"], LAYOUTS["diffusers"]
SIZES = {"XL": (1152, 28, 16), "L": (1024, 24, 16), "B": (768, 12, 12), "S": (384, 12, 6)}
OFFICIAL = [f"Latte-{size}/{p} extras={extras}" for size in SIZES for p in (2, 4, 8) for extras in (1, 2)]


@pytest.fixture(scope="module")
def tables(golden) -> dict[str, dict[str, tuple[int, ...]]]:
    listing = json.loads((golden / "official_latte_names.json").read_text())
    return {key: {name: tuple(shape) for name, shape in table.items()} for key, table in listing.items()}


@pytest.fixture(scope="module")
def t2v_shapes(golden) -> dict[str, tuple[int, ...]]:
    return {name: entry.shape for name, entry in read_torch_zip(golden / "osp_t2v.pt").items()}


@pytest.mark.parametrize("key", OFFICIAL)
def test_official_sizes_are_accepted_exactly(tables, key):
    size, patch, extras = re.fullmatch(r"Latte-(\w+)/(\d) extras=(\d)", key).groups()
    width, depth, heads = SIZES[size]
    assert LATTE.resolve(tables[key], {}, "") == {
        "input_size": 32,
        "patch_size": int(patch),
        "in_channels": 4,
        "hidden_size": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": 4.0,
        "num_frames": 16,
        "class_dropout_prob": 0.1,
        "num_classes": 101 if extras == "2" else 1000,
        "learn_sigma": True,
        "condition": "class" if extras == "2" else "none",
        "pixel_order": "blocks",
    }


def test_all_official_tables_are_tested(tables):
    assert set(tables) == set(OFFICIAL)


def test_every_single_missing_name_is_noticed(tables):
    table = tables["Latte-S/2 extras=2"]
    config = LATTE.resolve(table, {}, "")
    for name in table:
        rest = {other: shape for other, shape in table.items() if other != name}
        with pytest.raises(ConversionError, match=re.escape(name)):
            LATTE.check(rest, config, {}, "")


def test_one_error_lists_every_fault_without_a_configuration(tables):
    table = dict(tables["Latte-S/2 extras=1"])
    del table["pos_embed"], table["blocks.7.mlp.fc1.bias"]
    table["blocks.3.attn.qvk.weight"] = table.pop("blocks.3.attn.qkv.weight")
    table["lora.down"] = (4, 384)
    table["x_embedder.proj.weight"] = (384, 4, 2, 3)
    table["blocks.0.attn.proj.weight"] = (384, 385)
    table["blocks.1.attn.proj.bias"] = (384, 1)
    with pytest.raises(ConversionError) as caught:
        LATTE.resolve(table, {}, "")
    text = str(caught.value)
    missing, unknown, misshaped = re.search(
        r"missing \(3\):(.*)unknown \(2\):(.*)mis-shaped \(3\):(.*)", text, re.S
    ).groups()
    assert all(
        name in missing for name in ("pos_embed", "blocks.7.mlp.fc1.bias (1536)", "blocks.3.attn.qkv.weight")
    )
    assert "blocks.3.attn.qvk.weight (1152, 384), did you mean blocks.3.attn.qkv.weight?" in unknown
    assert "lora.down (4, 384)\n" in unknown
    assert "x_embedder.proj.weight: got (384, 4, 2, 3), expected (384, 4, 2, 2)" in misshaped
    assert "blocks.0.attn.proj.weight: got (384, 385), expected (384, 384)" in misshaped
    assert "blocks.1.attn.proj.bias: got (384, 1), expected (384)" in misshaped
    assert caught.value.one_line().count("\n") == 0


def test_long_groups_are_capped_and_counted(tables):
    table = {**tables["Latte-S/2 extras=1"], **{f"blocks.{i}.lora": (1,) for i in range(31)}}
    with pytest.raises(ConversionError, match=r"unknown \(31\)") as caught:
        LATTE.resolve(table, {}, "")
    assert str(caught.value).count(".lora") == 20 and "... and 11 more" in str(caught.value)


def test_a_gap_in_the_blocks_is_noticed(tables):
    table = {name: shape for name, shape in tables["Latte-S/2 extras=1"].items() if ".5." not in name}
    with pytest.raises(ConversionError, match=r"missing \(10\):\s+blocks.5.attn.qkv.weight"):
        LATTE.resolve(table, {}, "")


def test_odd_number_of_blocks(tables):
    table = {name: shape for name, shape in tables["Latte-S/2 extras=1"].items() if "blocks.11." not in name}
    with pytest.raises(ConversionError, match="number is even; got 11 blocks"):
        LATTE.resolve(table, {}, "")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"patch_size": 4}, "patch_size: 4 by side.json, 2 in the file"),
        ({"depth": 10}, "depth: 10 by side.json, 12 in the file"),
        ({"num_frames": 17}, "num_frames: 17 by side.json, 16 in the file"),
        ({"learn_sigma": False}, "output channels .*: 4 by side.json, 8 in the file"),
        ({"condition": "class"}, "y_embedder.embedding_table.weight \\(1001, 384\\)"),
        ({"input_size": [32, 30]}, "tokens per frame .*: 240 by side.json, 256 in the file"),
    ],
)
def test_configuration_against_shapes_names_both(tables, given, line):
    with pytest.raises(ConversionError, match=line):
        LATTE.resolve(tables["Latte-S/2 extras=1"], given, "side.json")


def test_surplus_label_table_says_what_it_belongs_to(tables):
    with pytest.raises(ConversionError, match=r"y_embedder.* belongs to condition='class'"):
        LATTE.resolve(tables["Latte-S/2 extras=2"], {"condition": "none"}, "--set")


def test_inference_of_rarer_latte_models(tables):
    table = dict(tables["Latte-S/2 extras=1"])
    table |= {"text_embedding_projection.1.weight": (384, 59136), "text_embedding_projection.1.bias": (384,)}
    table |= {"final_layer.linear.weight": (16, 384), "final_layer.linear.bias": (16,)}
    config = LATTE.resolve(table, {}, "")
    assert config["condition"] == "text" and config["learn_sigma"] is False


def test_rectangles_need_their_size(tables):
    table = {**tables["Latte-S/2 extras=1"], "pos_embed": (1, 320, 384)}
    with pytest.raises(
        ConversionError, match="320 tokens per frame are not a square: pass --set input_size=HEIGHT"
    ):
        LATTE.resolve(table, {}, "")
    assert LATTE.resolve(table, {"input_size": [32, 40]}, "--set")["input_size"] == [32, 40]


def test_model_arguments_are_checked():
    arguments = LATTE.model.arguments
    assert arguments({"extras": 78, "mlp_ratio": 4, "_class_name": "x"}, "s")[0] == {
        "condition": "text",
        "mlp_ratio": 4.0,
    }
    assert arguments({"input_size": [32, 32]}, "s")[0] == {"input_size": 32}
    for wrong in ({"extras": 3}, {"depth": 0}, {"depth": True}, {"learn_sigma": 1}, {"condition": "label"}):
        with pytest.raises(ConversionError, match="wrong value"):
            arguments(wrong, "s")
    with pytest.raises(ConversionError, match="no argument 'num_head'; expected 'num_heads'"):
        arguments({"num_head": 4}, "s")
    t2v = T2V.model.arguments
    config, notes = t2v({"attention_mode": "xformers", "use_rope": False}, "config.json")
    assert config == {}
    assert notes == ["config.json: without effect here: attention_mode='xformers', use_rope=False"]
    with pytest.raises(ConversionError, match="use_rope changes the network"):
        t2v({"use_rope": True}, "config.json")
    with pytest.raises(ConversionError, match="no argument 'attention_mode'"):
        t2v({"attention_mode": "math"}, "--set", foreign=False)


@pytest.mark.parametrize(
    ("side", "wanted", "found"),
    [
        ({"_class_name": "LatteTransformer3DModel"}, None, "diffusers-0.24"),
        ({"temporal_interpolation_scale": 2.0}, None, "official-t2v"),
        ({"video_length": 9}, None, "official-t2v"),  # all rules give 1.0: nothing is left to ask
        ({"_layout": "open-sora-plan-v1.1"}, None, "open-sora-plan-v1.1"),
        ({}, "open-sora-plan-v1.0", "open-sora-plan-v1.0"),
    ],
)
def test_choice_between_the_t2v_layouts(t2v_shapes, side, wanted, found):
    assert choose(t2v_shapes, wanted, side, "latte").name == found


def test_choice_refuses_what_it_cannot_know(t2v_shapes, tables):
    with pytest.raises(ConversionError, match=r"--from official-t2v or --from open-sora-plan-v1.0"):
        choose(t2v_shapes, None, {"_class_name": "LatteT2V", "video_length": 17}, "latte")
    with pytest.raises(ConversionError, match="no lossless map"):
        choose(t2v_shapes, "official-latte", {}, "latte")
    with pytest.raises(ConversionError, match="no lossless map"):
        choose(tables["Latte-S/2 extras=1"], "diffusers", {}, "latte")
    with pytest.raises(ConversionError, match="no known layout"):
        choose({"head.weight": (128, 3)}, None, {}, "latte")
    with pytest.raises(ConversionError, match="unknown layout 'pku'"):
        choose(t2v_shapes, "pku", {}, "latte")
    with pytest.raises(ConversionError, match=r"not for this command.*converters/latte_converter.py"):
        choose(t2v_shapes, None, {}, "vae")


def test_no_layout_claims_another_models_file(t2v_shapes, tables):
    for layout in LAYOUTS.values():
        if layout.detect(t2v_shapes):
            assert layout.model.name == "LatteT2V"
        if layout.detect(tables["Latte-B/2 extras=2"]):
            assert layout.model.name == "Latte"


# A layout is rows: this one renames, transposes and drops, and needs no code of its own.
TOY = replace(
    LATTE,
    name="toy",
    rules=(
        Rule(
            "embed.table",
            "temp_embed",
            ("1", "F", "D"),
            their_shape=("F", "D"),
            change=Change(lambda x, dims: x[None], lambda x, dims: x[0]),
        ),
        Rule(
            "layer_{i}.kernel",
            "blocks.{i}.mlp.fc1.weight",
            ("M", "D"),
            their_shape=("D", "M"),
            change=Change(lambda x, dims: x.T, lambda x, dims: x.T),
        ),
        Rule("step", None, drop=True),
    ),
)
TOY_CONFIG = {
    "pixel_order": "blocks",
    "depth": 3,
    "hidden_size": 4,
    "mlp_ratio": 1.5,
    "num_frames": 5,
    "condition": "none",
}


def toy_entries() -> dict[str, TensorEntry]:
    rng = np.random.default_rng(0)
    shapes = {
        "embed.table": (5, 4),
        "layer_0.kernel": (4, 6),
        "layer_1.kernel": (4, 6),
        "layer_2.kernel": (4, 6),
    }
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["step"] = np.zeros(1, np.float32)
    return {name: TensorEntry("F32", array.shape, lambda a=array: a) for name, array in arrays.items()}


def test_a_table_is_read_in_both_directions():
    theirs = toy_entries()
    ours, extras, notes = TOY.to_ours(theirs, TOY_CONFIG)
    assert not extras and notes == ["dropped step: nothing in Latte uses it"]
    assert {name: entry.shape for name, entry in ours.items()} == {
        "temp_embed": (1, 5, 4),
        "blocks.0.mlp.fc1.weight": (6, 4),
        "blocks.1.mlp.fc1.weight": (6, 4),
        "blocks.2.mlp.fc1.weight": (6, 4),
    }
    assert np.array_equal(ours["blocks.1.mlp.fc1.weight"].read(), theirs["layer_1.kernel"].read().T)
    back, left, _ = TOY.to_theirs(ours, {"other": theirs["step"]}, TOY_CONFIG)
    assert list(left) == ["other"]
    assert set(back) == set(theirs) - {"step"}
    for name, entry in back.items():
        assert entry.shape == theirs[name].shape and np.array_equal(entry.read(), theirs[name].read())
    assert {k: TOY.solve({n: e.shape for n, e in theirs.items()})[k] for k in "iDMF"} == {
        "i": 3,
        "D": 4,
        "M": 6,
        "F": 5,
    }


def test_both_directions_are_strict():
    theirs = toy_entries()
    ours, _, _ = TOY.to_ours(theirs, TOY_CONFIG)
    theirs["layer_03.kernel"] = theirs.pop("layer_2.kernel")  # 03 is no block number
    with pytest.raises(
        ConversionError, match=r"missing \(1\):\s+layer_2.kernel \(4, 6\)\s+unknown \(1\):\s+layer_03"
    ):
        TOY.to_ours(theirs, TOY_CONFIG)
    del ours["temp_embed"]
    with pytest.raises(ConversionError, match=r"missing \(1\):\s+temp_embed \(1, 5, 4\)"):
        TOY.to_theirs(ours, {}, TOY_CONFIG)


@pytest.mark.parametrize("layout", [*LAYOUTS.values(), OURS["LatteT2V"]], ids=[*LAYOUTS, "ours"])
def test_no_name_is_claimed_twice(layout: Layout):
    theirs = [rule.theirs for rule in layout.rules]
    ours = [rule.ours for rule in layout.rules if rule.ours and not rule.tied]
    assert len(theirs) == len(set(theirs))
    twice = {name for name in ours if ours.count(name) > 1}
    # One embedding under two names is what these two layouts are.
    assert twice == (
        {"shared.weight"} if {"shared.weight"} & twice and layout.model.name == "T5EncoderModel" else set()
    )


def test_readme_lists_every_layout_with_its_evidence():
    readme = (Path(__file__).parents[2] / "README.md").read_text().replace("\\*", "*")
    rows = [f"| `{name}` | {layout.model.name} | {layout.evidence} |" for name, layout in LAYOUTS.items()]
    assert [row for row in rows if row not in readme.splitlines()] == []


@pytest.mark.parametrize(
    ("name", "layout", "given"),
    [  # the options that the README states for the published files
        ("official-latte", "official-latte", {}),
        ("dit-imagenet", "dit-imagenet", {"num_frames": 16}),
        ("dit-imagenet", "dit-imagenet", {"condition": "class", "num_classes": 101}),
        ("official-t2v", "open-sora-plan-v1.0", {"sample_size": [64, 64], "video_length": 17}),
        ("diffusers-vae", "diffusers-vae", {}),
        ("compvis-vae", "compvis-vae", {}),
        ("diffusers-temporal-vae", "diffusers-temporal-vae", {}),
        ("transformers-t5", "transformers-t5", {}),
    ],
)
def test_published_files_need_no_more_than_the_readme_says(name, layout, given):
    LAYOUTS[layout].resolve(listing(name), given, "--set")
