# SPDX-License-Identifier: Apache-2.0
"""save_pretrained and from_pretrained: folders that diffusers reads, folders that diffusers wrote."""

import json
import logging
import os

import diffusers
import mindspore as ms
import numpy as np
import pytest
import torch

from converters import ConversionError
from converters.convert import convert
from ms_latte.checkpoint import CheckpointError, load, save
from ms_latte.models.latte import Latte
from ms_latte.models.latte_t2v import LatteT2V
from ms_latte.models.precision import Precision
from tests.helpers import normal, relative_l2
from tests.ms_latte.tiny import fill, tiny_latte

CONFIG = dict(
    num_attention_heads=3,
    attention_head_dim=16,
    in_channels=4,
    out_channels=8,
    num_layers=2,
    cross_attention_dim=48,
    attention_bias=True,
    sample_size=8,
    patch_size=2,
    activation_fn="gelu-approximate",
    num_embeds_ada_norm=1000,
    norm_type="ada_norm_single",
    norm_elementwise_affine=False,
    norm_eps=1e-6,
    caption_channels=20,
    video_length=3,
)
# float32 on both sides, other summation orders: 8.2e-7 measured. Timesteps are small, because at t = 977 the
# float32 sinusoids of both sides are 5e-6 from exact.
TOLERANCE = 2e-6


def bits(model):
    return {name: p.asnumpy().tobytes() for name, p in model.parameters_and_names()}


def inputs():
    """hidden_states (B, C, F, H, W), timestep (B,), encoder_hidden_states (B, L, E)."""
    return normal(2, 4, 3, 8, 8), np.array([3, 40], np.int64), normal(2, 5, 20)


def run_torch(model):
    x, t, text = map(torch.from_numpy, inputs())
    with torch.no_grad():
        return model.eval()(x, timestep=t, encoder_hidden_states=text, return_dict=False)[0].numpy()


def run_ms(model):
    x, t, text = inputs()
    return model(ms.Tensor(x), ms.Tensor(t.astype(np.int32)), ms.Tensor(text)).asnumpy()


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(3)
    model = diffusers.LatteTransformer3DModel(**CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


@pytest.fixture
def complaints():
    """What diffusers warns about while it loads."""
    records, handler = [], logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("diffusers")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.mark.parametrize("shards", [None, "50KB"])
def test_diffusers_folder_in_and_out(theirs, tmp_path, complaints, shards):
    """diffusers writes, we load, compute, write; diffusers loads ours: same bits, same numbers, no warning."""
    theirs.save_pretrained(
        tmp_path / "theirs" / "transformer", **({"max_shard_size": shards} if shards else {})
    )
    ours = LatteT2V.from_pretrained(tmp_path / "theirs", subfolder="transformer")
    expected = run_torch(theirs)
    assert relative_l2(run_ms(ours), expected) <= TOLERANCE

    ours.save_pretrained(tmp_path / "ours", max_shard_size=shards)
    files = sorted(os.listdir(tmp_path / "ours"))
    assert ("diffusion_pytorch_model.safetensors.index.json" in files) == bool(shards)
    assert ("diffusion_pytorch_model.safetensors" in files) != bool(shards)
    again = diffusers.LatteTransformer3DModel.from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False)
    assert complaints == []
    state = theirs.state_dict()
    assert {n: p.numpy().tobytes() for n, p in again.state_dict().items()} == {
        n: p.numpy().tobytes() for n, p in state.items()
    }
    assert np.array_equal(run_torch(again), expected)
    assert {key: again.config[key] for key in CONFIG} == CONFIG


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("shards", [None, "30KB"])
def test_latte_comes_back_bit_for_bit(tmp_path, dtype, shards):
    model = fill(tiny_latte(condition="class", precision=Precision(dtype)))
    model.save_pretrained(tmp_path / "net", max_shard_size=shards)
    assert json.loads((tmp_path / "net" / "config.json").read_text())["_class_name"] == "Latte"
    again = Latte.from_pretrained(tmp_path / "net", precision=Precision(dtype))
    assert bits(again) == bits(model)
    assert again.config == model.config


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".ckpt"])
def test_files_of_every_container(tmp_path, ending):
    model = fill(tiny_latte(condition="class", pixel_order="strided"))
    digest = save(model, tmp_path / f"a{ending}")
    assert bits(load(tmp_path / f"a{ending}")) == bits(model)
    assert Latte.from_pretrained(tmp_path / f"a{ending}").config["pixel_order"] == "strided"
    assert convert(tmp_path / f"a{ending}", tmp_path / "b.safetensors", say=lambda line: None) == digest


def test_mindspore_loads_our_ckpt(tmp_path):
    model = fill(tiny_latte(condition="class"))
    save(model, tmp_path / "a.ckpt")
    found = ms.load_checkpoint(str(tmp_path / "a.ckpt"))
    assert {name: p.asnumpy().tobytes() for name, p in found.items()} == bits(model)
    other = tiny_latte(condition="class")
    assert ms.load_param_into_net(other, found) == ([], [])
    assert bits(other) == bits(model)


def test_a_folder_is_replaced_whole_and_strangers_are_kept(tmp_path):
    model = fill(tiny_latte())
    model.save_pretrained(tmp_path / "net", max_shard_size="30KB")
    model.save_pretrained(tmp_path / "net")
    assert sorted(os.listdir(tmp_path / "net")) == ["config.json", "diffusion_pytorch_model.safetensors"]
    (tmp_path / "net" / "diary.txt").touch()
    with pytest.raises(ConversionError, match=r"holds other things.*diary.txt"):
        model.save_pretrained(tmp_path / "net")


def test_the_other_class_is_refused_by_name(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"holds a LatteT2V, expected a Latte; remedy: LatteT2V.from_pretrained"
    ):
        Latte.from_pretrained(tmp_path)


def test_positions_that_diffusers_lacks_are_not_disguised(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "a")
    ours = LatteT2V.from_pretrained(tmp_path / "a", temporal_interpolation_scale=2.0)
    ours.save_pretrained(tmp_path / "b")
    card = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (card["_class_name"], card["temporal_interpolation_scale"]) == ("LatteT2V", 2.0)
    assert LatteT2V.from_pretrained(tmp_path / "b").config == ours.config
