# SPDX-License-Identifier: Apache-2.0
"""`load` on everything users have: golden files, wrappers, folders, shards, side files, our own files."""

import json
import re
import shutil
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch

from converters import Checkpoint, ConversionError, load
from converters.convert import convert

LATTE_FILES = {
    "latte_uncond": "latte_uncond",
    "latte_class": "latte_class",
    "latte_img_joint": "latte_img_joint",
}
T2V_FILES = {"osp_t2v": "osp_t2v_mask2d", "osp_t2v_long": "osp_t2v_long"}
Y_EMBEDDING = "caption_projection.y_embedding"


def assert_bit_equal(tensors, expected: dict[str, torch.Tensor]) -> None:
    assert list(tensors) == list(expected)
    for name, tensor in expected.items():
        array = tensors[name]
        assert array.dtype == tensor.numpy().dtype and array.shape == tuple(tensor.shape), name
        assert array.tobytes() == tensor.contiguous().numpy().tobytes(), name


@pytest.fixture(scope="module")
def tiny_config() -> dict:
    return {
        "num_attention_heads": 3,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 2,
        "cross_attention_dim": 40,
        "attention_bias": True,
        "sample_size": 8,
        "patch_size": 2,
        "activation_fn": "gelu-approximate",
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "caption_channels": 32,
        "video_length": 11,
        "num_embeds_ada_norm": 1000,
    }


@pytest.fixture(scope="module")
def tiny(tiny_config):
    """Builds diffusers' own model; keyword arguments change the tiny configuration."""
    diffusers = pytest.importorskip("diffusers")

    def build(**changes):
        torch.manual_seed(0)
        return diffusers.LatteTransformer3DModel(**{**tiny_config, **changes})

    return build


# ------------------------------------------------------------------------------------------- official Latte


@pytest.mark.parametrize(("name", "io"), LATTE_FILES.items())
def test_golden_latte(golden, weights, io_config, name, io):
    recorded = io_config(f"{io}.io.safetensors")
    loaded = load(golden / f"{name}.pt", overrides={"num_heads": recorded["num_heads"]})
    tensors, config = loaded
    assert_bit_equal(tensors, weights(f"{name}.pt"))
    assert isinstance(loaded, Checkpoint) and (loaded.model, loaded.layout) == ("Latte", "official-latte")
    assert set(loaded.dtypes.values()) == {"F32"} and set(loaded.dtypes) == set(tensors)
    recorded["condition"] = {1: "none", 2: "class"}[recorded.pop("extras")]
    assert {key: config[key] for key in recorded} == recorded
    assert config["mlp_ratio"] == 4.0 and config["in_channels"] == 4 and config["learn_sigma"] is True


def test_unknown_width_needs_heads(golden):
    with pytest.raises(ConversionError, match="--set num_heads=N"):
        load(golden / "latte_class.pt")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"ema": s},
        lambda s: {"model": s},
        lambda s: {"state_dict": s},
        lambda s: {"state_dict": {"ema": s}},
        lambda s: {"ema": {f"module.{name}": tensor for name, tensor in s.items()}},
        lambda s: {f"module._orig_mod.{name}": tensor for name, tensor in s.items()},
        lambda s: OrderedDict(s),
    ],
)
def test_wrappers(save, weights, wrap):
    state = weights("latte_class.pt")
    assert_bit_equal(load(save(wrap(state)), overrides={"num_heads": 2}).tensors, state)


def test_ema_is_preferred_and_model_can_be_asked_for(save, weights):
    ema = weights("latte_class.pt")
    model = {name: tensor + 1 for name, tensor in ema.items()}
    path = save({"model": model, "ema": ema, "opt": {"state": {}, "lr": 1e-4}, "step": 5})
    by_default, by_request = (load(path, overrides={"num_heads": 2}, **kw) for kw in ({}, {"which": "model"}))
    assert_bit_equal(by_default.tensors, ema)
    assert_bit_equal(by_request.tensors, model)
    assert "took 'ema', left model, opt, step" in by_default.notes


def test_missing_weights_are_never_swapped_silently(save, weights):
    state = weights("latte_class.pt")
    with pytest.raises(ConversionError, match="no 'model' weights; got ema"):
        load(save({"ema": state}), which="model")
    assert (
        "the file has no ema weights: took 'model'"
        in load(save({"model": state}), overrides={"num_heads": 2}).notes
    )
    with pytest.raises(ConversionError, match="not tensors; got step"):
        load(save({**state, "step": 3}))
    with pytest.raises(ConversionError, match="holds no weights"):
        load(save([1, 2]))
    endless: dict = {}
    endless["ema"] = endless
    with pytest.raises(ConversionError, match="not tensors; got ema"):
        load(save(endless))


@pytest.mark.parametrize("name", ["config.json", "side.json"])
def test_side_file_and_its_rank_below_overrides(save, tmp_path, weights, name):
    path = save({"ema": weights("latte_class.pt")}, "side.pt")
    (tmp_path / name).write_text(
        json.dumps({"num_heads": 4, "extras": 2, "class_dropout_prob": 0.2, "_note": "x"})
    )
    config = load(path).config
    assert (config["num_heads"], config["condition"], config["class_dropout_prob"]) == (4, "class", 0.2)
    assert load(path, overrides={"num_heads": 5}).config["num_heads"] == 5


def test_the_nearest_side_file_is_taken(save, tmp_path, weights):
    path = save(weights("latte_class.pt"), "side.pt")
    for heads, name in ((5, "config.json"), (4, "side.json"), (2, "side.pt.json")):
        (tmp_path / name).write_text(f'{{"num_heads": {heads}}}')
        assert load(path).config["num_heads"] == heads


def test_faults_of_a_side_file_are_named(save, tmp_path, weights):
    path = save(weights("latte_class.pt"))
    (tmp_path / "config.json").write_text('{"num_head": 4}')
    with pytest.raises(
        ConversionError, match=r"config.json: Latte has no argument 'num_head'; expected 'num_heads'"
    ):
        load(path)
    (tmp_path / "config.json").write_text('{"num_heads": 2, "hidden_size": 64}')
    with pytest.raises(ConversionError, match=r"hidden_size: 64 by .*config.json, 40 in the file"):
        load(path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConversionError, match=r"config.json is not valid JSON"):
        load(path)


def test_load_lists_all_faults(save, weights):
    state = dict(weights("latte_uncond.pt"))
    del state["blocks.1.mlp.fc2.bias"]
    state["surplus"] = torch.ones(3)
    state["final_layer.lienar.bias"] = state.pop("final_layer.linear.bias")
    state["temp_embed"] = torch.zeros(1, 4, 47)
    with pytest.raises(ConversionError) as caught:
        load(save(state))
    for part in (
        "missing (2)",
        "blocks.1.mlp.fc2.bias (48)",
        "unknown (2)",
        "surplus (3)",
        "did you mean final_layer.linear.bias?",
        "temp_embed: got (1, 4, 47), expected (1, 4, 48)",
    ):
        assert part in str(caught.value)


# ------------------------------------------------------------------------------------------------- LatteT2V


@pytest.mark.parametrize(
    ("layout", "scales"),
    [
        ("open-sora-plan-v1.0", {"osp_t2v": 1.0, "osp_t2v_long": 2.0}),
        ("official-t2v", dict.fromkeys(T2V_FILES, 1.0)),
    ],
)
@pytest.mark.parametrize(("name", "io"), T2V_FILES.items())
def test_golden_t2v(golden, tmp_path, weights, io_config, layout, scales, name, io):
    recorded = io_config(f"{io}.io.safetensors")
    shutil.copy(golden / f"{name}.pt", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "LatteT2V", **recorded}))
    path = tmp_path / f"{name}.pt"
    if recorded["video_length"] >= 10:  # below, all rules of the temporal positions agree
        with pytest.raises(ConversionError, match=r"--from official-t2v or --from open-sora-plan-v1.0"):
            load(path)
    else:
        assert load(path).config["temporal_interpolation_scale"] == 1.0

    loaded = load(path, layout=layout)
    expected = dict(weights(f"{name}.pt"))
    y_embedding = expected.pop(Y_EMBEDDING)
    assert_bit_equal(loaded.tensors, expected)
    assert (loaded.model, loaded.layout) == ("LatteT2V", layout)
    assert loaded.config["temporal_interpolation_scale"] == scales[name]
    del recorded["attention_mode"]
    assert {key: loaded.config[key] for key in recorded} == recorded
    assert_bit_equal({Y_EMBEDDING: loaded.extras[Y_EMBEDDING].read()}, {Y_EMBEDDING: y_embedding})
    assert f"kept {Y_EMBEDDING}: no part of the network" in loaded.notes
    assert any("without effect here: attention_mode='xformers'" in note for note in loaded.notes)


def test_explicit_temporal_scale_wins_and_settles_the_question(golden, io_config):
    settings = io_config("osp_t2v_long.io.safetensors")
    del settings["attention_mode"]
    path = golden / "osp_t2v_long.pt"
    for layout in (None, "open-sora-plan-v1.0"):
        loaded = load(path, layout=layout, overrides={**settings, "temporal_interpolation_scale": 3})
        assert loaded.config["temporal_interpolation_scale"] == 3.0


@pytest.mark.parametrize(("length", "scale"), [(1, 1.0), (5, 1.0), (9, 1.0), (10, 2.0), (17, 3.0)])
def test_temporal_scale_of_open_sora_plan(golden, io_config, length, scale):
    settings = {**io_config("osp_t2v_mask2d.io.safetensors"), "video_length": length}
    del settings["attention_mode"]
    loaded = load(golden / "osp_t2v.pt", layout="open-sora-plan-v1.0", overrides=settings)
    assert loaded.config["temporal_interpolation_scale"] == scale


def test_t2v_without_configuration_lists_what_it_needs(golden, io_config):
    with pytest.raises(ConversionError) as caught:
        load(golden / "osp_t2v.pt", layout="official-t2v")
    # Heads, eps and the form of GELU show in no tensor, nor do sizes and frames; everything else does.
    needed = {"num_attention_heads", "attention_head_dim", "activation_fn", "norm_eps"}
    needed |= {"sample_size", "video_length"}
    assert set(re.findall(r"(\w+)=\.\.\.", caught.value.remedy)) == needed
    found = load(
        golden / "osp_t2v.pt",
        layout="official-t2v",
        overrides={
            key: value for key, value in io_config("osp_t2v_mask2d.io.safetensors").items() if key in needed
        },
    )
    recorded = io_config("osp_t2v_mask2d.io.safetensors")
    assert {key: found.config[key] for key in recorded if key != "attention_mode"} == {
        key: value for key, value in recorded.items() if key != "attention_mode"
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 3}, r"num_layers: 3 by .*config.json, 2 in the file"),
        ({"attention_head_dim": 20}, r"width .*: 60 by .*config.json, 48 in the file"),
        ({"caption_channels": 64}, r"caption_channels: 64 by .*config.json, 32 in the file"),
        ({"activation_fn": "geglu"}, r"ff.net.0.proj.weight: got \(192, 48\), expected \(384, 48\)"),
        ({"attention_bias": False}, r"to_q.bias \(48\), belongs to attention_bias=True"),
        (
            {"norm_type": "layer_norm"},
            "norm_type has a wrong value; got 'layer_norm'; expected ada_norm_single",
        ),
        ({"use_rope": True}, "use_rope changes the network"),
        ({"colour": 1}, "no argument 'colour'"),
        ({"patch_size": 3}, "patch_size: 3 by"),
    ],
)
def test_t2v_configuration_against_the_file(tiny, tmp_path, changes, message):
    tiny().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ConversionError, match=message):
        load(tmp_path)


# Each variant changes names or shapes: the table must follow diffusers in all of them.
VARIANTS = [
    {},
    {"attention_bias": False},
    {"norm_elementwise_affine": True},
    {"activation_fn": "geglu"},
    {"out_channels": None},
    {"sample_size": 16, "num_layers": 1},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_diffusers_folder(tiny, tiny_config, tmp_path, changes):
    model = tiny(**changes)
    model.save_pretrained(tmp_path / "latte" / "transformer")
    expected = model.state_dict()
    for folder in (tmp_path / "latte", tmp_path / "latte" / "transformer"):
        loaded = load(folder)
        assert {name: array.tobytes() for name, array in loaded.tensors.items()} == {
            name: tensor.contiguous().numpy().tobytes() for name, tensor in expected.items()
        }
        assert loaded.tensors.shapes == {name: tuple(tensor.shape) for name, tensor in expected.items()}
        assert loaded.layout == "diffusers" and loaded.config["temporal_interpolation_scale"] == 1.0
        wanted = {**tiny_config, **changes}
        wanted["out_channels"] = wanted["out_channels"] or wanted["in_channels"]
        assert {key: loaded.config[key] for key in wanted} == wanted


def test_old_diffusers_file_with_y_embedding(tiny, tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    safetensors.torch.save_file(
        {**model.state_dict(), Y_EMBEDDING: torch.ones(120, 32)},
        tmp_path / "diffusion_pytorch_model.safetensors",
    )
    loaded = load(tmp_path)  # config.json names diffusers' own class
    assert loaded.layout == "diffusers-0.24" and Y_EMBEDDING not in loaded.tensors


def test_diffusers_bin_folder(tiny, tmp_path):
    tiny().save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "diffusion_pytorch_model.bin").exists()
    assert_bit_equal(load(tmp_path).tensors, tiny().state_dict())


def test_sharded_folder_and_index(tiny, tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    for path in (tmp_path, index):
        loaded = load(path)
        assert dict(sorted(loaded.tensors.shapes.items())) == {
            name: tuple(tensor.shape) for name, tensor in sorted(model.state_dict().items())
        }
        for name, tensor in model.state_dict().items():
            assert np.array_equal(loaded.tensors[name], tensor.numpy())

    listing = json.loads(index.read_text())
    name = next(iter(listing["weight_map"]))
    surplus = {**listing, "weight_map": {k: v for k, v in listing["weight_map"].items() if k != name}}
    index.write_text(json.dumps(surplus))
    with pytest.raises(ConversionError, match=f"got {name} only in the shard"):
        load(tmp_path)
    listing["weight_map"][name] = "../elsewhere.safetensors"
    index.write_text(json.dumps(listing))
    with pytest.raises(ConversionError, match="outside its folder"):
        load(tmp_path)


def test_folder_without_weights(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConversionError, match=r"got notes.txt; expected diffusion_pytorch_model or model"):
        load(tmp_path)
    with pytest.raises(ConversionError, match="does not exist"):
        load(tmp_path / "nothing.pt")


# ------------------------------------------------------------------------------------- dtypes and our files


def test_bf16_files_are_exact(save, weights, tmp_path):
    state = {name: tensor.bfloat16() for name, tensor in weights("latte_class.pt").items()}
    source, target = save({"ema": state}), tmp_path / "ours.safetensors"
    loaded = load(source, overrides={"num_heads": 2})
    assert set(loaded.dtypes.values()) == {"BF16"}
    assert_bit_equal(loaded.tensors, {name: tensor.float() for name, tensor in state.items()})
    convert(source, target, overrides={"num_heads": 2}, verify=True, say=lambda line: None)
    written = safetensors.torch.load_file(target)
    assert all(
        written[name].dtype == torch.bfloat16 and torch.equal(written[name], state[name]) for name in state
    )


def test_ours_to_ours_is_the_identity(golden, tmp_path, weights):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    digest = convert(golden / "latte_uncond.pt", first, overrides={"num_heads": 3}, say=lambda line: None)
    (tmp_path / "config.json").write_text('{"num_heads": 6}')  # our metadata come first
    assert convert(first, second, say=lambda line: None) == digest
    loaded = load(second)
    assert loaded.layout == "ours" and loaded.config == load(first, layout="ours").config
    assert loaded.config["num_heads"] == 3
    assert {n: a.tobytes() for n, a in loaded.tensors.items()} == {
        n: t.numpy().tobytes() for n, t in weights("latte_uncond.pt").items()
    }


def test_our_t2v_file_keeps_its_temporal_scale(golden, tmp_path, io_config):
    settings = io_config("osp_t2v_long.io.safetensors")
    del settings["attention_mode"]
    target = tmp_path / "a.safetensors"
    convert(
        golden / "osp_t2v_long.pt",
        target,
        layout="open-sora-plan-v1.0",
        overrides=settings,
        say=lambda line: None,
    )
    loaded = load(target)
    assert loaded.config["temporal_interpolation_scale"] == 2.0 and loaded.model == "LatteT2V"
    assert loaded.config["sample_size"] == [12, 12]


def test_ours_must_be_ours(golden):
    with pytest.raises(ConversionError, match="not written by this package"):
        load(golden / "latte_uncond.pt", layout="ours")


def test_a_path_may_be_a_string(golden):
    assert len(load(str(golden / "latte_uncond.pt"), overrides={"num_heads": 3}).tensors) == 52
