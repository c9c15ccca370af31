# SPDX-License-Identifier: Apache-2.0
"""Files become models strictly, and models become files bit for bit."""

import inspect
import json

import mindspore as ms
import numpy as np
import pytest
from safetensors import safe_open

import converters
from ms_latte import checkpoint
from ms_latte.checkpoint import CheckpointError, load, load_arrays, save
from ms_latte.models.latte import Latte
from ms_latte.models.latte_t2v import LatteT2V
from ms_latte.models.precision import Precision
from tests.helpers import GOLDEN, GOLDEN_CASES, relative_l2
from tests.ms_latte.tiny import tiny_t2v

# float32 on both sides, other summation orders: 5e-7 measured, 1.2e-6 behind a guidance of 7, which amplifies it.
TOLERANCE = 2e-6
FILES = {"Latte": GOLDEN / "latte_class.pt", "LatteT2V": GOLDEN / "osp_t2v.pt"}


def recorded(name):
    """(overrides, layout, checkpoint, call, out) from the metadata of a golden vector; nothing is hand-written."""
    with safe_open(GOLDEN / f"{name}.io.safetensors", "np") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    config, call = json.loads(metadata["config"]), json.loads(metadata.get("forward_kwargs", "{}"))
    call |= {key: config.pop(key) for key in ("cfg_scale", "use_image_num") if key in config}
    config.pop("attention_mode", None)  # a kernel, not a number
    call |= {key.removeprefix("in."): tensor(value) for key, value in tensors.items() if key != "out"}
    layout = "open-sora-plan-v1.0" if name.startswith("osp_") else None
    return config, layout, GOLDEN / metadata["checkpoint"], call, tensors["out"]


def tensor(value):
    return ms.Tensor(value.astype(np.int32) if value.dtype == np.int64 else value)


def opened(family, **options):
    """The small published checkpoint of a family as a model."""
    config, layout, path, _, _ = recorded({"Latte": "latte_class", "LatteT2V": "osp_t2v_mask2d"}[family])
    return load(path, overrides=config, layout=layout, **options)


def arrays(model):
    """name -> float32 array, a copy."""
    return {name: np.array(p.astype(ms.float32).asnumpy()) for name, p in model.parameters_and_names()}


def bits(model):
    return {name: np.ascontiguousarray(p.asnumpy()).tobytes() for name, p in model.parameters_and_names()}


# ---------------------------------------------------------------------------------------------- published files


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden_checkpoint_loads_and_computes(name):
    config, layout, path, call, expected = recorded(name)
    model = load(path, overrides=config, layout=layout)
    assert isinstance(model, {"Latte": Latte, "LatteT2V": LatteT2V}[GOLDEN_CASES[name]])
    assert not model.training
    out = (model.forward_with_cfg if "cfg_scale" in call else model)(**call)
    assert relative_l2(out.asnumpy(), expected) <= TOLERANCE


@pytest.mark.parametrize("family", FILES)
def test_given_model_is_filled_and_returned(family):
    built = opened(family)
    other = type(built)(**built.config)
    _, layout, path, _, _ = recorded({"Latte": "latte_class", "LatteT2V": "osp_t2v_mask2d"}[family])
    # Nothing but the model tells the configuration here: the files hold weights alone.
    assert load(path, other, layout=layout) is other
    assert bits(other) == bits(built)
    if family == "Latte":
        assert other.stored_sincos is not None


def test_which_chooses_the_weights(tmp_path):
    import torch

    ema = torch.load(FILES["Latte"], weights_only=True)["ema"]
    torch.save({"ema": ema, "model": {key: value + 1 for key, value in ema.items()}}, tmp_path / "both.pt")
    overrides = {"num_heads": 2}
    name = "blocks.1.attn.proj.bias"
    for which, shift in (("ema", 0), ("model", 1)):
        got = arrays(load(tmp_path / "both.pt", which=which, overrides=overrides))[name]
        assert np.array_equal(got, ema[name].numpy() + np.float32(shift))


# ---------------------------------------------------------------------------------------------- errors


def test_one_error_lists_every_problem_and_changes_nothing():
    model = opened("Latte")
    state, before = arrays(model), bits(model)
    state["blocks.0.attn.qvk.weight"] = state.pop("blocks.0.attn.qkv.weight")
    state["something.else"] = np.zeros(3, np.float32)
    del state["temp_embed"]
    state["t_embedder.mlp.0.weight"] = state["t_embedder.mlp.0.weight"].T
    state["pos_embed"] = state["pos_embed"][0]
    with pytest.raises(CheckpointError) as caught:
        load_arrays(model, state)
    text = str(caught.value)
    for part in (
        "missing (2):",
        "temp_embed (1, 5, 40)",
        "unknown (2):",
        "blocks.0.attn.qvk.weight (120, 40), did you mean blocks.0.attn.qkv.weight?",
        "something.else (3,)",
        "mis-shaped (2):",
        "t_embedder.mlp.0.weight: got (256, 40), expected (40, 256)",
        "pos_embed: got (16, 40), expected (1, 16, 40)",
        "remedy:",
    ):
        assert part in text, part
    assert bits(model) == before


def test_error_is_capped_with_counts():
    model = opened("LatteT2V")
    state = {f"net.{name}": value for name, value in arrays(model).items()}
    with pytest.raises(CheckpointError) as caught:
        load_arrays(model, state)
    text = str(caught.value)
    assert f"missing ({len(state)}):" in text and f"unknown ({len(state)}):" in text
    assert text.count(f"... and {len(state) - checkpoint.REPORT_LIMIT} more") == 2
    assert len(text.splitlines()) < 2 * checkpoint.REPORT_LIMIT + 10


def test_configuration_that_no_shape_shows_is_compared(tmp_path):
    model = opened("LatteT2V")
    save(model, tmp_path / "a.safetensors")
    wrong = LatteT2V(**{**model.config, "norm_eps": 1e-3, "temporal_interpolation_scale": 2.0})
    with pytest.raises(CheckpointError, match=r"(?s)configuration \(2\).*norm_eps.*temporal_interpolation"):
        load(tmp_path / "a.safetensors", wrong)
    # What changes no number of a forward pass may differ.
    kin = LatteT2V(**{**model.config, "num_embeds_ada_norm": 1000, "use_recompute": True})
    assert bits(load(tmp_path / "a.safetensors", kin)) == bits(model)


def test_mismatches_of_a_given_model_are_listed(tmp_path):
    model = opened("Latte")
    save(model, tmp_path / "a.safetensors")
    narrow = Latte(**{**model.config, "mlp_ratio": 2.0, "depth": 2})
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "a.safetensors", narrow)
    for part in (
        "depth: got 4",
        "mlp_ratio",
        "unknown (20):",
        "blocks.0.mlp.fc1.weight: got (160, 40), expected (80, 40)",
    ):
        assert part in str(caught.value), part


def test_other_family_other_class_other_precision():
    with pytest.raises(ValueError, match="LatteT2V"):
        load(FILES["LatteT2V"], opened("Latte"), layout="open-sora-plan-v1.0")
    with pytest.raises(CheckpointError, match="got a Dense"):
        load(FILES["Latte"], ms.nn.Dense(2, 2))
    model = opened("Latte")
    with pytest.raises(CheckpointError, match="remedy: pass precision only when"):
        load(FILES["Latte"], model, precision=Precision("bf16"))
    assert load(FILES["Latte"], model, precision=Precision()) is model


def test_unreadable_file_names_the_remedy(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"<html>not found</html>")
    with pytest.raises(converters.ConversionError, match="fetch it again"):
        load(tmp_path / "a.pt")


# ---------------------------------------------------------------------------------------------- precision and memory


@pytest.mark.parametrize("rounding", ["native", "emulated"])
@pytest.mark.parametrize("compute", ["fp16", "bf16"])
@pytest.mark.parametrize("family", FILES)
def test_half_precision_rounds_to_the_grid(family, compute, rounding):
    import torch  # an independent rounding to both grids

    full, half = opened(family), opened(family, precision=Precision(compute, rounding=rounding))
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[compute]
    dtypes = {parameter.dtype for parameter in half.get_parameters()}
    assert dtypes == {ms.float32} if rounding == "emulated" else {ms.float16, ms.bfloat16} >= dtypes
    got, changed = arrays(half), 0
    for name, value in arrays(full).items():
        expected = torch.from_numpy(value).to(kind).float().numpy()
        assert np.array_equal(got[name], expected), name
        changed += not np.array_equal(expected, value)
    assert changed > 10  # the weights are not on the grid by themselves


def test_float64_keeps_the_bits():
    exact = opened("Latte", precision=Precision("fp64"))
    assert {parameter.dtype for parameter in exact.get_parameters()} == {ms.float64}
    single = arrays(opened("Latte"))
    assert all(np.array_equal(p.asnumpy(), single[name]) for name, p in exact.parameters_and_names())


def test_float16_overflow_is_an_error():
    model = opened("Latte", precision=Precision("fp16", rounding="emulated"))
    state = arrays(model)
    state["blocks.0.mlp.fc1.bias"][3] = -65520.0  # the first number that rounds to -Inf
    with pytest.raises(CheckpointError, match=r"(?s)blocks\.0\.mlp\.fc1\.bias.*65520.*remedy"):
        load_arrays(model, state)
    state["blocks.0.mlp.fc1.bias"][3] = -65519.0
    load_arrays(model, state)
    assert arrays(model)["blocks.0.mlp.fc1.bias"][3] == -65504.0


def test_arrays_of_the_right_type_are_not_copied():
    model = opened("Latte")
    state = arrays(model)
    load_arrays(model, state)
    state["final_layer.linear.bias"][0] = 77.0
    assert model.final_layer.linear.bias.asnumpy()[0] == 77.0
    # A read-only array is copied: training would write into it.
    state["final_layer.linear.bias"].flags.writeable = False
    load_arrays(model, state)
    model.final_layer.linear.bias[0] = 5.0
    assert state["final_layer.linear.bias"][0] == 77.0


def test_changing_a_loaded_model_leaves_the_file_alone(tmp_path):
    path = tmp_path / "a.safetensors"
    save(opened("Latte"), path)
    content = path.read_bytes()
    model = load(path)
    model.final_layer.linear.bias.set_data(model.final_layer.linear.bias + 1)
    model.temp_embed[0, 0, 0] = 9.0
    assert path.read_bytes() == content


def test_stored_tables_are_looked_at():
    model = opened("Latte")
    state = arrays(model)
    for name, rows in (("pos_embed", model._sincos_2d(*model.grid)), ("temp_embed", model._sincos_1d(5))):
        state[name] = rows.asnumpy()[None].copy()
    assert load_arrays(model, state).stored_sincos is True
    state["pos_embed"] = state["pos_embed"] + np.float32(0.1)
    assert load_arrays(model, state).stored_sincos is False


# ---------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize("precision", [Precision(), Precision("fp64"), Precision("fp16"), Precision("bf16")])
@pytest.mark.parametrize("family", FILES)
def test_round_trip_is_bit_exact(family, precision, tmp_path):
    model = opened(family, precision=precision)
    digest = save(model, tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors", precision=precision)
    assert again.config == model.config
    assert bits(again) == bits(model)
    assert save(again, tmp_path / "b.safetensors") == digest
    with safe_open(tmp_path / "a.safetensors", "np") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt" and metadata["model"] == family
    assert set(json.loads(metadata["config"])) <= set(inspect.signature(type(model)).parameters) - {
        "precision"
    }


def test_saving_over_the_file_that_the_model_is_mapped_from(tmp_path):
    path = tmp_path / "a.safetensors"
    save(opened("Latte"), path)
    model = load(path)
    before = bits(model)
    save(model, path)
    assert bits(model) == before == bits(load(path))


def test_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    model = opened("Latte")
    save(model, path)
    content = path.read_bytes()

    def broken(parameter):
        raise OSError("disk full")

    monkeypatch.setattr(type(model.pos_embed), "asnumpy", broken)
    with pytest.raises(OSError, match="disk full"):
        save(model, path)
    assert path.read_bytes() == content
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.safetensors", "a.safetensors.json"]


def test_what_the_format_cannot_hold_is_refused(tmp_path):
    model = opened("LatteT2V")
    with pytest.raises(CheckpointError, match=r"remedy: a\.safetensors"):
        save(model, tmp_path / "a.npz")
    with pytest.raises(CheckpointError, match="mkdir -p"):
        save(model, tmp_path / "no" / "a.safetensors")


def test_arguments_that_no_shape_shows_survive(tmp_path):
    model = opened("LatteT2V")
    other = LatteT2V(**{**model.config, "per_axis_base_size": True, "temporal_interpolation_scale": 3.0})
    save(other, tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors").config == other.config


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("norm_type", ["ada_norm_single", "layer_norm", "ada_norm", "ada_norm_zero"])
def test_every_norm_type_is_saved(norm_type, affine, tmp_path):
    named = dict(norm_type=norm_type, norm_elementwise_affine=affine, num_embeds_ada_norm=9)
    model = tiny_t2v(num_layers=1, **named)
    for name in ("a.safetensors", "b.pt"):
        digest = save(model, tmp_path / name)
        again = load(tmp_path / name)
        assert again.config == model.config and bits(again) == bits(model)
        assert checkpoint.weights_hash(again) == digest
    empty = LatteT2V(**model.config)
    assert bits(empty) != bits(model)
    assert bits(load(tmp_path / "a.safetensors", empty)) == bits(model)


@pytest.mark.parametrize("norm_type", ["ada_norm", "ada_norm_zero"])
def test_number_of_embeddings_must_fit(norm_type, tmp_path):
    named = dict(num_layers=1, norm_type=norm_type)
    save(tiny_t2v(**named, num_embeds_ada_norm=9), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)num_embeds_ada_norm: got 9 .* expected 8.*mis-shaped"):
        load(tmp_path / "a.safetensors", tiny_t2v(**named, num_embeds_ada_norm=8))


@pytest.mark.parametrize("family", FILES)
def test_config_rebuilds_the_model(family):
    model = opened(family)
    again = type(model)(**json.loads(json.dumps(model.config)))
    assert again.config == model.config
    assert list(model.config) == [
        name for name in inspect.signature(type(model)).parameters if name != "precision"
    ]
