# SPDX-License-Identifier: Apache-2.0
"""What a user can do to the converters that the tables' own tests do not: states, edits, accidents, lies."""

import json
import os
import re
import shlex
import shutil

import diffusers
import mindspore as ms
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from diffusers.training_utils import EMAModel
from mindspore import nn
from mindspore.mint.optim import AdamW

from converters import ConversionError, load
from converters import convert as engine
from converters.containers.safetensors_file import read_safetensors
from converters.containers.target import save_file
from converters.convert import convert
from converters.inspect_checkpoint import inspect, show
from converters.inspect_checkpoint import main as inspect_main
from converters.latte_converter import main
from converters.stream import TensorEntry
from ms_latte import checkpoint
from ms_latte.models.latte import Latte
from ms_latte.models.latte_t2v import LatteT2V
from tests.converters.test_latte_layouts import (
    LAYOUTS,
    TINY_LATTE,
    TINY_T2V,
    Y_EMBEDDING,
    contents,
    quietly,
    settings,
    tiny_file,
)
from tests.helpers import normal, relative_l2


def entry(array) -> TensorEntry:
    array = np.ascontiguousarray(array, np.float32)
    return TensorEntry("F32", array.shape, lambda: array)


def words(settings: dict) -> list[str]:
    """Settings as --set takes them."""
    return ["--set", *(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in settings.items())]


# ------------------------------------------------------------------------------- training states of MindSpore


class Loss(nn.Cell):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def construct(self, x):
        return x


OPTIMISERS = {
    "AdamWeightDecay": nn.AdamWeightDecay,
    "Adam": nn.Adam,
    "SGD": lambda parameters: nn.SGD(parameters, 0.1, 0.9),
    "Momentum": lambda parameters: nn.Momentum(parameters, 0.1, 0.9),
    "mint.AdamW": AdamW,
}
TABLES = dict(input_size=8, hidden_size=24, depth=2, num_heads=3, num_frames=3)


@pytest.fixture
def training_state(tmp_path):
    """Save a MindSpore training cell with the named optimiser; returns path, raw and averaged weights."""

    def save(optimiser: str, averaged: bool):
        net = Latte(**TABLES)
        rng = np.random.default_rng(1)
        for parameter in net.get_parameters():
            parameter.requires_grad = True  # as mindone's train.py does
            parameter.set_data(ms.Tensor(rng.standard_normal(parameter.shape), ms.float32))
        loss = Loss(net)
        step = nn.TrainOneStepCell(loss, OPTIMISERS[optimiser](loss.trainable_params()))
        weights = ms.ParameterTuple(loss.trainable_params())
        step.grads = weights.clone(prefix="grad_accumulated_", init="zeros")
        if averaged:
            step.ema, step.swap = weights.clone(prefix="ema"), weights.clone(prefix="swap", init="zeros")
            for parameter in step.ema:
                parameter.set_data(parameter + 1)
        path = tmp_path / "train_resume.ckpt"
        ms.save_checkpoint(step, str(path), append_dict={"epoch_num": 3, "loss_scale": 1.0, "why": "x"})
        raw = {name: parameter.asnumpy() for name, parameter in net.parameters_and_names()}
        return path, raw, {name: value + np.float32(1) for name, value in raw.items()}

    return save


@pytest.mark.parametrize("averaged", [True, False], ids=["ema", "no ema"])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_both_sets_of_a_training_state(training_state, optimiser, averaged):
    path, raw, ema = training_state(optimiser, averaged)
    for which, expected in (("ema", ema if averaged else raw), ("model", raw)):
        found = load(path, which, overrides={"num_heads": 3})
        assert {name: array.tobytes() for name, array in found.tensors.items()} == {
            name: array.tobytes() for name, array in expected.items()
        }
        left = next(note for note in found.notes if "of the training state" in note)
        assert "epoch_num" in left and "step" in left


def test_averages_are_not_passed_off_as_raw_weights(tmp_path):
    theirs = {f"ema.{name}": entry(normal(2, 3)) for name in ("a", "b")}
    save_file(tmp_path / "x.safetensors", theirs, {})
    with pytest.raises(ConversionError, match=r"no 'model' weights; got ema; remedy: --which ema"):
        load(tmp_path / "x.safetensors", "model")


# --------------------------------------------------------------------------------- configurations as published

# Beside the arguments of v1.0: what config.json of Open-Sora-Plan v1.1 says.
V1_1 = {
    "_name_or_path": "/home/checkpoints/",
    "compress_kv_factor": 1,
    "model_max_length": 300,
    "norm_num_groups": 32,
    "num_vector_embeds": None,
    "patch_size_t": 1,
    "rope_scaling_type": "linear",
    "use_rope": False,
}


@pytest.mark.parametrize(
    ("said", "scale"),
    [
        ({}, 2.0),  # the rule: 33 // 16
        ({"interpolation_scale_1d": None}, 2.0),
        ({"interpolation_scale_1d": 3}, 3.0),
        ({"interpolation_scale_1d": 0.5}, 1.0),  # the original takes 1 at least
    ],
)
def test_configuration_of_open_sora_plan_v1_1(tmp_path, said, scale):
    name = "open-sora-plan-v1.1"
    tiny_file(tmp_path, name).rename(tmp_path / "diffusion_pytorch_model.safetensors")
    config = {"_class_name": "LatteT2V", **TINY_T2V, **V1_1, "video_length": 33, **said}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(tmp_path, layout=name).config["temporal_interpolation_scale"] == scale
    config["use_rope"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match="use_rope changes the network"):
        load(tmp_path, layout=name)


def test_a_folder_of_averaged_weights(tmp_path):
    kind = diffusers.LatteTransformer3DModel
    known = {key: value for key, value in TINY_T2V.items() if key != "use_additional_conditions"}
    model = kind(**{**known, "sample_size": 8})
    EMAModel(model.parameters(), model_cls=kind, model_config=model.config).save_pretrained(tmp_path / "ema")
    assert "optimization_step" in json.loads((tmp_path / "ema" / "config.json").read_text())
    assert load(tmp_path / "ema").layout == "diffusers"


@pytest.mark.parametrize("wrong", ["17", [17], {"a": 1}, None, 2.5, True])
def test_a_wrong_value_is_named_even_where_the_layout_hangs_on_it(tmp_path, wrong):
    source = tiny_file(tmp_path, "official-t2v")
    (tmp_path / "config.json").write_text(json.dumps({**TINY_T2V, "video_length": wrong}))
    with pytest.raises(ConversionError, match=r"config.json: video_length has a wrong value"):
        load(source)


def test_numbers_that_no_network_has(tmp_path):
    latte, t2v = tiny_file(tmp_path, "official-latte"), tiny_file(tmp_path, "diffusers")
    with pytest.raises(ConversionError, match="mlp_ratio is too large"):
        load(latte, overrides={**TINY_LATTE, "mlp_ratio": 1e308})
    with pytest.raises(ConversionError, match="divided by temporal_interpolation_scale"):
        load(t2v, overrides={**TINY_T2V, "temporal_interpolation_scale": 0})


def test_weights_of_whole_numbers_are_refused(tmp_path):
    """A quantised file has the names and shapes of the network, and its numbers mean something else."""
    source = tiny_file(tmp_path, "official-latte")
    entries = dict(read_safetensors(source)[0])
    bits = np.ones(entries["blocks.0.mlp.fc1.weight"].shape, np.int8)
    entries["blocks.0.mlp.fc1.weight"] = TensorEntry("I8", bits.shape, lambda: bits)
    save_file(tmp_path / "x.safetensors", entries, {})
    with pytest.raises(ConversionError, match=r"whole numbers; got blocks.0.mlp.fc1.weight \(I8\)"):
        load(tmp_path / "x.safetensors", overrides=TINY_LATTE)


def test_the_source_has_a_name_from_within_its_folder(tmp_path, monkeypatch):
    quietly(tiny_file(tmp_path, "official-latte"), tmp_path / "net", overrides=TINY_LATTE)
    monkeypatch.chdir(tmp_path / "net")
    quietly(".", tmp_path / "x.safetensors")
    assert read_safetensors(tmp_path / "x.safetensors")[1]["source"] == "net (ours)"


# ------------------------------------------------------------------------------------------- a map has a judge


@pytest.mark.parametrize("name", ["latte-linear", "mindone-latte-linear"])
def test_linear_patches_compute_what_the_original_computes(tmp_path, name):
    """mindone's LinearPatchEmbed, and the same with blocks of pixels, against our convolution."""
    source = tiny_file(tmp_path, name)
    theirs = np.frombuffer(contents(source)["x_embedder.proj.weight"][2], np.float32).reshape(24, -1)
    model = checkpoint.load(source, layout=name, overrides=settings(name))
    B, C, p, h, w = 2, 4, 2, 2, 3
    x = normal(B, C, h * p, w * p)
    if name == "mindone-latte-linear":
        patches = x.reshape(B, C, p, h, p, w).transpose(0, 3, 5, 2, 4, 1)  # (B, h, w, p, p, C)
    else:
        patches = x.reshape(B, C, h, p, w, p).transpose(0, 2, 4, 3, 5, 1)
    expected = patches.reshape(B, h * w, -1) @ theirs.T
    seen = []
    x_embedder, model.x_embedder.construct = (
        model.x_embedder.construct,
        lambda x: seen.append(x_embedder(x)) or seen[0],
    )
    model(ms.Tensor(x[:, None].repeat(3, 1)), ms.Tensor([1, 2]), ms.Tensor([0, 1]))
    bias = model.x_embedder.proj.bias.asnumpy()
    found = seen[0].asnumpy().reshape(B, 3, h * w, 24)[:, 0] - bias
    assert relative_l2(found, expected) < 1e-6


@pytest.mark.parametrize(("height", "scale"), [(8, 1), (64, 1), (128, 2), (200, 3)])
def test_the_position_table_of_large_pictures_is_that_of_diffusers(tmp_path, height, scale):
    source = tiny_file(tmp_path, "diffusers")
    said = {**TINY_T2V, "sample_size": [height, height]}
    quietly(source, tmp_path / "pku.ckpt", layout="diffusers", to="mindone-opensora-pku", overrides=said)
    patches = height // 2
    table = get_2d_sincos_pos_embed(
        16, patches, base_size=patches, interpolation_scale=scale, output_type="pt"
    )
    found = load(tmp_path / "pku.ckpt").extras["pos_embed.pos_embed"].read()[0]
    assert np.abs(found - table.numpy()).max() < 1e-5


# ------------------------------------------------------------------------------------------- layouts and notes


def test_ours_can_be_asked_for_where_the_container_has_no_metadata(tmp_path):
    source = tiny_file(tmp_path, "official-latte")
    for target in ("a.ckpt", "a.pt"):
        quietly(source, tmp_path / target, overrides=TINY_LATTE)
        assert load(tmp_path / target, layout="ours").layout == "ours"
    quietly(source, tmp_path / "b.safetensors", overrides=TINY_LATTE, to="official-latte")
    with pytest.raises(ConversionError, match=r"is in layout 'official-latte'; remedy: leave --from out"):
        load(tmp_path / "b.safetensors", layout="ours")


def test_the_layouts_to_choose_from_can_be_written(tmp_path):
    source = tiny_file(tmp_path, "official-latte")
    with pytest.raises(ConversionError) as caught:
        quietly(source, tmp_path / "x.pt", to="diffusers", overrides=TINY_LATTE)
    names = caught.value.remedy.removeprefix("choose another --to: ").split(" or ")
    assert "ours" in names and "dit-imagenet" not in names
    for name in set(names) - {"mindone-latte-linear"}:  # whose pixel order is another
        quietly(source, tmp_path / f"{name}.pt", to=name, overrides=TINY_LATTE)


def test_a_configuration_edited_by_hand_is_used_or_said_to_be_overruled(tmp_path):
    source = tiny_file(tmp_path, "official-latte")
    for target, beside, heads, note in (
        ("net", "net/config.json", 6, "configuration from .*config.json"),
        ("a.ckpt", "a.ckpt.json", 6, "configuration from .*a.ckpt.json"),
        ("a.safetensors", "a.safetensors.json", 3, "a.safetensors.json says something else"),
    ):
        quietly(source, tmp_path / target, overrides=TINY_LATTE)
        assert not [n for n in load(tmp_path / target).notes if "something else" in n]
        said = json.loads((tmp_path / beside).read_text())
        (tmp_path / beside).write_text(json.dumps({**said, "num_heads": 6}))
        found = load(tmp_path / target)
        assert found.config["num_heads"] == heads
        assert any(re.match(note, n) for n in found.notes), found.notes


# ------------------------------------------------------------------------------------------- nothing half-done


def test_shards_of_a_file_are_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConversionError, match="shards need a folder"):
        convert(tmp_path / "nothing.pt", tmp_path / "a.safetensors", shard_size=1000)


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "a.pt is written, but not verified"),
        (
            OSError(5, "Input/output error"),
            2,
            "a.pt is written, but could not be read again; got .*Input/output",
        ),
        (MemoryError("no"), 2, "a.pt is written, but could not be read again"),
    ],
)
def test_nobody_says_that_nothing_was_written_when_it_was(tmp_path, monkeypatch, capsys, fault, code, said):
    def fails(*arguments):
        raise fault

    monkeypatch.setattr(engine, "verify_target", fails)
    source, target = tiny_file(tmp_path, "official-latte"), tmp_path / "a.pt"
    assert main(["--source", str(source), "--target", str(target), "--verify", *words(TINY_LATTE)]) == code
    error = capsys.readouterr().err
    assert re.search(f"^error: .*{said}", error) and error.count("\n") == 1 and target.exists()


@pytest.mark.parametrize("target", ["a.safetensors", "net"])
def test_verify_reads_what_stands_beside_the_weights_too(tmp_path, monkeypatch, target):
    source, real = tiny_file(tmp_path, "official-t2v"), engine.write_target
    options = dict(layout="official-t2v", to="diffusers", overrides=TINY_T2V, verify=True)
    quietly(source, tmp_path / target, **options)

    def disk_that_flips_a_bit(*arguments, **named):
        digest = real(*arguments, **named)
        beside = next(tmp_path.rglob("*.extras.safetensors"))
        data = bytearray(beside.read_bytes())
        data[-1] ^= 1
        beside.write_bytes(data)
        return digest

    monkeypatch.setattr(engine, "write_target", disk_that_flips_a_bit)
    with pytest.raises(ConversionError, match=f"differs from what was written; got {Y_EMBEDDING}"):
        quietly(source, tmp_path / target, **options, force=True)


def test_the_content_decides_which_checksum_there_is(tmp_path):
    lines: list[str] = []
    source = tiny_file(tmp_path, "official-latte")
    options = dict(overrides=TINY_LATTE, verify=True)
    convert(source, tmp_path / "a.ckpt", **options, say=lines.append)
    assert [line for line in lines if "no checksum in official-latte.safetensors" in line]
    data = bytearray((tmp_path / "a.ckpt").read_bytes())
    data[-18] ^= 1
    (tmp_path / "b.bin").write_bytes(data)  # a .ckpt under another name
    shutil.copy(tmp_path / "a.ckpt.json", tmp_path / "b.bin.json")
    with pytest.raises(ConversionError, match="checksum is wrong"):
        quietly(tmp_path / "b.bin", tmp_path / "c.pt", verify=True)
    quietly(source, tmp_path / "d.safetensors", **options)
    lines.clear()
    convert(tmp_path / "d.safetensors", tmp_path / "e.safetensors", verify=True, say=lines.append)
    assert not [line for line in lines if "checksum" in line]  # its own hash was compared


@pytest.mark.parametrize("target", ["d.safetensors", "net"])
def test_a_source_of_ours_is_compared_with_the_hash_that_it_carries(tmp_path, target):
    source, ours = tiny_file(tmp_path, "official-latte"), tmp_path / target
    quietly(source, ours, overrides=TINY_LATTE, shard_size=None if ours.suffix else 4000)
    file = ours if ours.suffix else sorted(ours.glob("*-of-*"))[1]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ConversionError, match=r"is not what was written; got content hash"):
        quietly(ours, tmp_path / "e.pt", verify=True)
    assert not (tmp_path / "e.pt").exists()


WRAPPERS = {"official-latte": "ema", "open-sora-plan-v1.0": "model"}  # other layouts of the two are flat


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if not layout.initial])
def test_torch_files_are_wrapped_as_their_publishers_wrap_them(tmp_path, name):
    source = tiny_file(tmp_path, name)
    quietly(source, tmp_path / "x.pt", layout=name, to=name, overrides=settings(name))
    saved = torch.load(tmp_path / "x.pt", weights_only=True)
    assert set(saved) == ({WRAPPERS[name]} if name in WRAPPERS else set(contents(source)))


def test_extras_of_an_older_target_do_not_stay_beside_the_new_one(tmp_path):
    old, new = tiny_file(tmp_path, "official-t2v"), tiny_file(tmp_path, "diffusers")
    for target, beside in (
        ("a.ckpt", "a.ckpt.extras.safetensors"),
        ("net", "net/diffusion_pytorch_model.extras.safetensors"),
    ):
        options = dict(to="diffusers", overrides=TINY_T2V)
        quietly(old, tmp_path / target, layout="official-t2v", **options)
        assert (tmp_path / beside).exists()
        quietly(new, tmp_path / target, layout="diffusers", force=True, **options)
        assert not (tmp_path / beside).exists() and not load(tmp_path / target).extras


@pytest.mark.parametrize("target", ["a.safetensors", "a.pt", "a.ckpt", "net"])
def test_what_takes_its_name_has_reached_the_disk(tmp_path, monkeypatch, target):
    """Data before the name, then the folder that holds the name; with the permissions of anything new."""
    synced, named, sync, replace, rename = [], [], os.fsync, os.replace, os.rename
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino) or sync(handle))
    for function, real in (("replace", replace), ("rename", rename)):

        def watched(a, b, real=real):
            within = [os.path.join(a, file) for file in os.listdir(a)] if os.path.isdir(a) else []
            if os.path.dirname(b) == str(tmp_path):  # what lies in an unfinished folder has no name yet
                named.append(({os.stat(path).st_ino for path in [a, *within]}, set(synced)))
            real(a, b)

        monkeypatch.setattr(os, function, watched)
    quietly(tiny_file(tmp_path, "official-latte"), tmp_path / target, overrides=TINY_LATTE)
    assert named and all(inodes <= before for inodes, before in named)
    assert synced[-1] == tmp_path.stat().st_ino
    (tmp_path / "plain").mkdir() if target == "net" else (tmp_path / "plain").touch()
    assert (tmp_path / target).stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "precious",
    [
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model_old",
        "diffusion_pytorch_model.onnx",
    ],
)
def test_force_replaces_what_we_write_and_nothing_that_is_called_like_it(tmp_path, precious):
    source, target = tiny_file(tmp_path, "official-latte"), tmp_path / "net"
    for shard_size in (None, 4000, None):  # each replaces the other
        quietly(source, target, overrides=TINY_LATTE, shard_size=shard_size, force=True)
    (target / precious).mkdir() if "." not in precious else (target / precious).touch()
    with pytest.raises(ConversionError, match=f"holds other things.*{precious}"):
        quietly(source, target, overrides=TINY_LATTE, force=True)
    assert (target / precious).exists()


def test_a_file_in_the_place_of_a_folder_is_kept(tmp_path):
    source, target = tiny_file(tmp_path, "official-latte"), tmp_path / "net"
    target.write_text("mine")
    with pytest.raises(ConversionError, match="net is a file, not a folder"):
        quietly(source, target, overrides=TINY_LATTE, force=True)
    (tmp_path / "net.ckpt").write_text("mine")
    model = checkpoint.load(source, overrides=TINY_LATTE)
    with pytest.raises(ConversionError, match=r"net\.ckpt is a file, not a folder"):
        model.save_pretrained(tmp_path / "net.ckpt")
    assert {p.read_text() for p in (target, tmp_path / "net.ckpt")} == {"mine"}
    assert len(os.listdir(tmp_path)) == 3


# ----------------------------------------------------------------------------------------------------- inspect


@pytest.mark.parametrize("beside", ["{", '{"d_model": 4}', '{"num_layers": 100000000}'])
def test_inspect_shows_the_file_whatever_stands_beside_it(tmp_path, beside, capsys):
    source = tiny_file(tmp_path, "diffusers")
    (tmp_path / "config.json").write_text(beside)
    assert inspect_main(["--source", str(source)]) == 1
    printed = capsys.readouterr()
    assert "problem" in printed.out and "transformer_blocks.{0..1}.attn1.to_q.weight" in printed.out
    assert printed.err == ""


def test_inspect_lists_every_fault(tmp_path, capsys):
    entries = dict(read_safetensors(tiny_file(tmp_path, "official-latte"))[0])
    entries["surplus"], entries["temp_embed"] = entries.pop("blocks.1.mlp.fc1.bias"), entry(normal(1, 3, 23))
    save_file(tmp_path / "x.safetensors", entries, {})
    assert inspect_main(["--source", str(tmp_path / "x.safetensors"), "--all", *words(TINY_LATTE)]) == 1
    printed = capsys.readouterr().out
    for line in (
        r"missing +blocks\.1\.mlp\.fc1\.bias \(96\)",
        r"unknown +surplus \(96\)",
        r"mis-shaped +temp_embed: got \(1, 3, 23\), expected \(1, 3, 24\)",
    ):
        assert re.search(rf"^{line}", printed, re.M), line


def test_the_command_that_inspect_proposes_works(tmp_path):
    folder = tmp_path / "a b"
    folder.mkdir()
    source = tiny_file(folder, "official-t2v")
    given = {**TINY_T2V, "video_length": 33}
    result = inspect(source, layout="open-sora-plan-v1.0", overrides=given)
    line = next(line for line in show(result, False) if line.startswith("convert"))
    _, _, script, *arguments = shlex.split(line)
    assert script == "converters/latte_converter.py" and arguments[-1] == "..."
    assert main([*arguments[:-1], str(tmp_path / "out.safetensors")]) == 0
    assert load(tmp_path / "out.safetensors").config["temporal_interpolation_scale"] == 6.0


# --------------------------------------------------------------------------------- a file and a model in hand


def test_a_given_model_does_not_silence_the_configuration_beside_the_file(tmp_path):
    """The layout has to be asked for, which the model can tell; the heads stand beside the file."""
    tiny_file(tmp_path, "official-t2v").rename(tmp_path / "diffusion_pytorch_model.safetensors")
    said = {**TINY_T2V, "video_length": 17, "num_attention_heads": 4, "attention_head_dim": 4}
    model = LatteT2V(**{**TINY_T2V, "video_length": 17, "temporal_interpolation_scale": 1.0})
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(
        checkpoint.CheckpointError, match=r"(?s)num_attention_heads: got 4 in the file, expected 2"
    ):
        checkpoint.load(tmp_path, model)
    (tmp_path / "config.json").write_text(json.dumps({**TINY_T2V, "video_length": 17}))
    assert checkpoint.load(tmp_path, model) is model


def test_a_given_model_of_the_other_kind_is_said_to_be_so(tmp_path):
    source = tiny_file(tmp_path, "official-latte")  # which does not tell its heads
    with pytest.raises(checkpoint.CheckpointError, match="holds a Latte, the model is a LatteT2V"):
        checkpoint.load(source, LatteT2V(**TINY_T2V))


# ------------------------------------------------------------------------- what belongs together, and what not


def test_a_folder_of_the_users_that_looks_like_ours_stays(tmp_path):
    for name in (".net.backup.tmp", ".net.unfinished-mine.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").touch()
    quietly(tiny_file(tmp_path, "official-latte"), tmp_path / "net", overrides=settings("official-latte"))
    assert (tmp_path / ".net.backup.tmp" / "precious").exists()
    assert (tmp_path / ".net.unfinished-mine.tmp" / "precious").exists()


def test_an_original_without_its_buffer_is_not_taken_for_diffusers(tmp_path):
    source = tiny_file(tmp_path, "diffusers")
    card = {**TINY_T2V, "_class_name": "LatteT2V", "video_length": 17}
    (tmp_path / "config.json").write_text(json.dumps(card))
    with pytest.raises(
        ConversionError, match=r"--from diffusers or --from official-t2v or --from open-sora-plan"
    ):
        load(source)
    assert load(source, layout="open-sora-plan-v1.0").config["temporal_interpolation_scale"] == 3.0


def test_averages_of_trainable_parameters_alone(tmp_path):
    source = tiny_file(tmp_path, "official-latte")
    raw, _ = read_safetensors(source)
    averaged = {
        f"ema.{name}": entry(np.ones(e.shape))
        for name, e in raw.items()
        if name not in ("pos_embed", "temp_embed")
    }
    assert len(averaged) == len(raw) - 2
    save_file(tmp_path / "state.safetensors", {**raw, **averaged}, {})
    found = load(tmp_path / "state.safetensors", overrides=settings("official-latte"))
    assert found.tensors["pos_embed"].tobytes() == raw["pos_embed"].read().tobytes()
    assert (found.tensors["blocks.0.attn.qkv.weight"] == 1).all()
    assert any("pos_embed, temp_embed as they are: no average" in note for note in found.notes)


def test_linear_embedder_and_labels_of_one_time(tmp_path):
    source = tiny_file(tmp_path, "latte-linear")
    entries, _ = read_safetensors(source)
    old = {
        name.replace("embedding_table.weight", "embedding_table.embedding_table"): e
        for name, e in entries.items()
    }
    assert old.keys() != entries.keys()
    save_file(tmp_path / "old.safetensors", old, {})
    options = dict(layout="latte-linear", overrides=settings("latte-linear"))
    one, other = load(source, **options), load(tmp_path / "old.safetensors", **options)
    assert {n: a.tobytes() for n, a in one.tensors.items()} == {
        n: a.tobytes() for n, a in other.tensors.items()
    }


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt"])
def test_the_hash_stands_beside_weights_that_have_no_place_for_it(tmp_path, name):
    source, target = tiny_file(tmp_path, "official-latte"), tmp_path / name
    digest = quietly(source, target, overrides=settings("official-latte"))
    beside = json.loads((tmp_path / f"{name}.json").read_text())
    assert beside["_weights"] == {"bytes": target.stat().st_size, "sha256": digest}
    assert load(target).sha256 == digest
    beside["_weights"]["sha256"] = "0" * 64
    (tmp_path / f"{name}.json").write_text(json.dumps(beside))
    with pytest.raises(ConversionError, match="is not what was written"):
        quietly(target, tmp_path / "b.safetensors", verify=True)


def test_weights_and_configuration_of_different_conversions_do_not_meet(tmp_path):
    """What a process killed between two renames leaves: the new weights, the old configuration."""
    source = tiny_file(tmp_path, "official-latte")
    quietly(source, tmp_path / "a.ckpt", overrides=settings("official-latte"))
    quietly(source, tmp_path / "b.ckpt", overrides=settings("official-latte"), dtype="fp16")
    os.replace(tmp_path / "b.ckpt", tmp_path / "a.ckpt")
    with pytest.raises(ConversionError, match=r"a.ckpt.json does not belong to .*a.ckpt; got weights of"):
        load(tmp_path / "a.ckpt")


def test_extras_of_other_weights_are_refused(tmp_path):
    source = tiny_file(tmp_path, "official-t2v")
    options = dict(layout="official-t2v", to="diffusers", overrides=settings("official-t2v"))
    quietly(source, tmp_path / "a.safetensors", **options)
    quietly(source, tmp_path / "b.safetensors", **options, dtype="fp16")
    extras = ".safetensors.extras.safetensors"
    os.replace(tmp_path / f"b{extras}", tmp_path / f"a{extras}")
    with pytest.raises(
        ConversionError, match=r"a.safetensors.extras.safetensors does not belong to .*content hash"
    ):
        load(tmp_path / "a.safetensors")


def test_what_is_assumed_is_said():
    from converters.layouts import FAMILIES
    from tests.converters.listings import listing

    layout = FAMILIES["latte"].layouts["official-latte"]
    assert layout.assumed(listing("official-latte"), {}) == {"num_heads": 16}
    assert layout.assumed(listing("official-latte"), {"num_heads": 8}) == {}


def test_a_table_of_impossible_size_is_not_computed(tmp_path):
    source = tiny_file(tmp_path, "official-t2v")
    options = dict(layout="official-t2v", overrides={**settings("official-t2v"), "sample_size": 2_000_000})
    with pytest.raises(ConversionError, match=r"pos_embed.pos_embed would be a table of [\d,]+ numbers"):
        quietly(source, tmp_path / "a.safetensors", to="mindone-opensora-pku", **options)
