# SPDX-License-Identifier: Apache-2.0
"""VAEs and the T5 encoder through `ms_latte.checkpoint`: published layouts in, our files and folders out."""

import diffusers
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from converters import ConversionError
from converters.convert import convert
from ms_latte.checkpoint import MODELS, CheckpointError, load, save
from ms_latte.encoders.vae import AutoencoderKL, AutoencoderKLTemporalDecoder
from ms_latte.models.precision import Precision
from parity.harness.weights import random_state
from tests.helpers import normal, relative_l2
from tests.ms_latte.tiny import fill, parameters, run, shapes, tiny_latte, tiny_t2v

# The layers of CompVis ldm leave 32 groups no choice.
KL = dict(block_out_channels=[32, 64], layers_per_block=1, sample_size=16)
TEMPORAL = dict(block_out_channels=[32, 64], layers_per_block=1)
T5 = dict(vocab_size=24, d_model=16, d_kv=4, d_ff=20, num_layers=2, num_heads=3)
LATENTS = normal(1, 2, 4, 3, 5, scale=0.2)
TOLERANCE = 2e-6  # float32 on both sides, other summation orders


def bits(model):
    return {name: parameter.asnumpy().tobytes() for name, parameter in parameters(model).items()}


def tiny(name):
    if name == "T5EncoderModel":
        t5 = pytest.importorskip("ms_latte.encoders.t5")
        return fill(t5.T5EncoderModel(**T5)).set_train(False)
    kinds = {
        "Latte": tiny_latte,
        "LatteT2V": tiny_t2v,
        "AutoencoderKL": lambda: fill(AutoencoderKL(**KL)),
        "AutoencoderKLTemporalDecoder": lambda: fill(AutoencoderKLTemporalDecoder(**TEMPORAL)),
    }
    return kinds[name]().set_train(False)


FAMILY = {"AutoencoderKL": "vae", "AutoencoderKLTemporalDecoder": "vae", "T5EncoderModel": "t5"}
ENCODERS = list(FAMILY)


@pytest.mark.parametrize(
    "ending", [".safetensors", ".pt", ".ckpt", ""], ids=["safetensors", "pt", "ckpt", "folder"]
)
@pytest.mark.parametrize("name", ENCODERS)
def test_round_trip_is_bit_exact(name, ending, tmp_path):
    model = tiny(name)
    digest = save(model, tmp_path / f"model{ending}")
    again = load(tmp_path / f"model{ending}")
    assert type(again) is type(model) and not again.training
    assert again.config == model.config
    assert bits(again) == bits(model)
    assert save(again, tmp_path / "again.safetensors") == digest
    stem = {"t5": "model", "vae": "diffusion_pytorch_model"}[FAMILY[name]]
    if not ending:
        assert (tmp_path / "model" / f"{stem}.safetensors").is_file()


@pytest.mark.parametrize(
    "layout", ["diffusers-vae", "diffusers-vae-old", "compvis-vae", "mindone-compvis-vae"]
)
def test_every_published_layout_of_the_vae(layout, tmp_path):
    model = tiny("AutoencoderKL")
    save(model, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.pt", to=layout, family="vae", say=lambda line: None)
    (tmp_path / "b.pt.json").unlink()  # a published file has nothing beside it
    again = load(tmp_path / "b.pt", overrides={"sample_size": 16})
    assert again.config == model.config
    assert bits(again) == bits(model)


@pytest.mark.parametrize("layout", ["transformers-t5", "transformers-t5-both", "mindone-t5"])
def test_every_published_layout_of_t5(layout, tmp_path):
    model = tiny("T5EncoderModel")
    save(model, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.pt", to=layout, family="t5", say=lambda line: None)
    (tmp_path / "b.pt.json").unlink()
    again = load(tmp_path / "b.pt")
    assert again.config == model.config
    assert bits(again) == bits(model)


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderKLTemporalDecoder"])
def test_folders_of_diffusers_both_ways(name, tmp_path):
    """What diffusers saves computes the same here, and what we save there."""
    config = {"AutoencoderKL": KL, "AutoencoderKLTemporalDecoder": TEMPORAL}[name]
    types = {"down_block_types": ["DownEncoderBlock2D"] * 2}
    if name == "AutoencoderKL":
        types["up_block_types"] = ["UpDecoderBlock2D"] * 2
    theirs = getattr(diffusers, name)(**config, **types, scaling_factor=0.3).eval()
    state = random_state({key: tuple(p.shape) for key, p in theirs.named_parameters()}, seed=3)
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    theirs.save_pretrained(tmp_path / "pipeline" / "vae")
    # A pipeline's folder: `expected` says which part is meant.
    ours = load(tmp_path / "pipeline", expected=name)
    assert ours.scaling_factor == 0.3
    z = normal(2, 4, 3, 5)
    more = {"num_frames": 2} if name != "AutoencoderKL" else {}
    with torch.no_grad():
        expected = theirs.decode(torch.from_numpy(z), **more).sample.numpy()
    assert relative_l2(run(ours.decode, z, **more), expected) <= TOLERANCE
    ours.save_pretrained(tmp_path / "ours")
    again = getattr(diffusers, name).from_pretrained(tmp_path / "ours")
    assert all(np.array_equal(value.numpy(), state[key]) for key, value in again.state_dict().items())
    assert again.config.scaling_factor == 0.3
    loaded = type(ours).from_pretrained(tmp_path / "pipeline", subfolder="vae")
    assert bits(loaded) == bits(ours)


def test_whole_pipeline_folder(tmp_path):
    """Each part by its name; without one the denoiser."""
    for folder, name in (
        ("transformer", "LatteT2V"),
        ("vae", "AutoencoderKL"),
        ("text_encoder", "T5EncoderModel"),
    ):
        save(tiny(name), tmp_path / folder, folder=True)
    for name in ("LatteT2V", "AutoencoderKL", "T5EncoderModel"):
        assert type(load(tmp_path, expected=name)).__name__ == name
    assert type(load(tmp_path)).__name__ == "LatteT2V"


@pytest.mark.parametrize("name", MODELS)
def test_another_model_is_refused(name, tmp_path):
    """Every file says by itself what it holds, whatever was expected."""
    save(tiny(name), tmp_path / "a.safetensors")
    assert type(load(tmp_path / "a.safetensors")).__name__ == name
    other = "AutoencoderKL" if name != "AutoencoderKL" else "T5EncoderModel"
    with pytest.raises(CheckpointError, match=f"holds a {name}, expected a {other}"):
        load(tmp_path / "a.safetensors", expected=other)
    with pytest.raises(CheckpointError, match="holds a"):
        load(tmp_path / "a.safetensors", tiny(other))


def test_a_word_that_is_no_model(tmp_path):
    with pytest.raises(
        CheckpointError, match="expected='VAE' is no model; expected one of Latte, LatteT2V, Auto"
    ):
        load(tmp_path / "a.safetensors", expected="VAE")
    with pytest.raises(ConversionError, match="does not exist"):
        load(tmp_path / "absent.safetensors", expected="AutoencoderKL")


def test_given_vae(tmp_path):
    """The file's words are compared with the model's; what nobody said is the model's business."""
    model = tiny("AutoencoderKL")
    arrays = {name: np.array(parameter.asnumpy()) for name, parameter in parameters(model).items()}
    save_file(arrays, tmp_path / "bare.safetensors")
    save(model, tmp_path / "a.safetensors")
    kin = AutoencoderKL(**{**KL, "scaling_factor": 0.13, "norm_num_groups": 16, "force_upcast": False})
    assert bits(load(tmp_path / "bare.safetensors", kin)) == bits(model)
    with pytest.raises(CheckpointError, match=r"(?s)configuration \(2\).*norm_num_groups.*"):
        load(tmp_path / "a.safetensors", kin)
    deeper = AutoencoderKL(**{**KL, "layers_per_block": 2})
    before = shapes(deeper)
    with pytest.raises(CheckpointError, match=r"(?s)layers_per_block: got 1.*missing"):
        load(tmp_path / "bare.safetensors", deeper)
    assert shapes(deeper) == before
    # Two equal entries of a list are no square.
    save(fill(AutoencoderKL(**{**KL, "block_out_channels": [32, 32, 64]})), tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="block_out_channels"):
        load(tmp_path / "b.safetensors", AutoencoderKL(**{**KL, "block_out_channels": [32, 32, 96]}))


def test_float16_vae_keeps_its_weights(tmp_path):
    """An upcast net takes the file's float32 values; a float16 one rounds them."""
    model = tiny("AutoencoderKL")
    save(model, tmp_path / "a.safetensors")
    upcast = load(tmp_path / "a.safetensors", precision=Precision("fp16"))
    assert bits(upcast) == bits(model)
    half = load(tmp_path / "a.safetensors", precision=Precision("fp16"), overrides={"force_upcast": False})
    assert all(str(parameter.dtype) == "Float16" for parameter in half.get_parameters())
    assert relative_l2(run(upcast.decode_video, LATENTS), run(model.decode_video, LATENTS)) == 0
