# SPDX-License-Identifier: Apache-2.0
"""The reference VAEs against those of diffusers: names and shapes of the published nets, numbers of small ones."""

import diffusers
import numpy as np
import pytest
import torch

from parity.harness.weights import random_state
from tests.helpers import normal, relative_l2
from torch_ref.encoders import vae, vae_blocks
from torch_ref.models.precision import Precision

# A few units in the last place, 60 layers deep, amplified by groups of a single channel: 8e-15 and 2.1e-6 measured.
TOLERANCE = {"fp32": 5e-6, "fp64": 1e-13}
DTYPE = {"fp32": torch.float32, "fp64": torch.float64}
PUBLISHED = {"AutoencoderKL": 248, "AutoencoderKLTemporalDecoder": 374}  # tensors

both = pytest.mark.parametrize("precision", ["fp32", "fp64"])


def their_net(name, **config):
    """diffusers' net of our arguments."""
    count = len(config["block_out_channels"])
    types = {"down_block_types": ["DownEncoderBlock2D"] * count}
    if name == "AutoencoderKL":
        types["up_block_types"] = ["UpDecoderBlock2D"] * count
    return getattr(diffusers, name)(**config, **types)


def pair(name, precision, **changes):
    """(ours, theirs) with equal seeded weights, strictly by name."""
    config = {"block_out_channels": [32, 64], "layers_per_block": 2, **changes}
    ours = getattr(vae, name)(**config, precision=Precision(precision))
    theirs = their_net(name, **config)
    state = random_state({key: tuple(p.shape) for key, p in theirs.named_parameters()}, seed=3)
    state = {key: torch.from_numpy(value) for key, value in state.items()}
    ours.load_state_dict(state, strict=True)
    theirs.load_state_dict(state, strict=True)
    return ours.eval(), theirs.to(DTYPE[precision]).eval()


def tensor(*shape, precision, scale=1.0):
    return torch.from_numpy(normal(*shape, scale=scale)).to(DTYPE[precision])


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_of_the_published_nets(name):
    with torch.device("meta"):
        ours = getattr(vae, name)()  # the defaults are the published configuration
        theirs = their_net(name, block_out_channels=vae.PUBLISHED, layers_per_block=2)
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    assert len(shapes) == PUBLISHED[name]


@both
@pytest.mark.parametrize("size", [(16, 24), (17, 13)], ids=["even", "odd"])
@pytest.mark.parametrize(
    "changes",
    [
        {"norm_num_groups": 8},
        {"block_out_channels": [32, 64, 96], "layers_per_block": 1, "latent_channels": 5},
        {"use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False},
    ],
    ids=["eight_groups", "three_levels", "bare"],
)
@torch.no_grad()
def test_image_vae(precision, size, changes):
    ours, theirs = pair("AutoencoderKL", precision, **changes)
    x = tensor(2, 3, *size, precision=precision)
    mean, logvar = ours.encode(x)
    expected = theirs.encode(x).latent_dist
    assert relative_l2(mean, expected.mean) <= TOLERANCE[precision]
    assert relative_l2(logvar, expected.logvar) <= TOLERANCE[precision]
    z = expected.mean
    assert relative_l2(ours.decode(z), theirs.decode(z).sample) <= TOLERANCE[precision]


@both
@pytest.mark.parametrize("num_frames", [1, 2, 6])
@torch.no_grad()
def test_temporal_decoder(precision, num_frames):
    ours, theirs = pair("AutoencoderKLTemporalDecoder", precision)
    x, z = tensor(2, 3, 10, 14, precision=precision), tensor(6, 4, 5, 7, precision=precision)
    expected = theirs.encode(x).latent_dist
    for got, want in zip(ours.encode(x), (expected.mean, expected.logvar), strict=True):
        assert relative_l2(got, want) <= TOLERANCE[precision]
    expected = theirs.decode(z, num_frames=num_frames).sample
    assert relative_l2(ours.decode(z, num_frames), expected) <= TOLERANCE[precision]


@pytest.mark.parametrize("layers", [1, 3])
@torch.no_grad()
def test_temporal_decoder_of_unusual_depth(layers):
    """One resnet runs without the attention, a third one never."""
    ours, theirs = pair("AutoencoderKLTemporalDecoder", "fp64", layers_per_block=layers)
    z = tensor(2, 4, 3, 5, precision="fp64")
    assert relative_l2(ours.decode(z, 2), theirs.decode(z, num_frames=2).sample) <= TOLERANCE["fp64"]


@pytest.mark.parametrize("frames", [3, 6, 5])
@torch.no_grad()
def test_video_in_chunks_as_the_pipeline_decodes_it(frames):
    """diffusers' LattePipeline: divided by the scaling factor, `decode_chunk_size` frames at a time."""
    pipeline = diffusers.LattePipeline
    for name in ("AutoencoderKL", "AutoencoderKLTemporalDecoder"):
        ours, theirs = pair(name, "fp64")
        latents = tensor(1, 4, frames, 3, 5, precision="fp64", scale=0.2)  # theirs are (B, C, F, h, w)
        owner = type("Owner", (), {"vae": theirs})()
        expected = pipeline.decode_latents(
            owner, latents, frames, decode_chunk_size=3
        )  # (B, C, F, H, W), float32
        got = ours.decode_video(latents.permute(0, 2, 1, 3, 4), chunk=3).permute(0, 2, 1, 3, 4)
        # theirs ends in a cast to float32
        assert relative_l2(got, expected) <= 1e-7, name


@torch.no_grad()
def test_posterior_as_diffusers_has_it():
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    x, noise = torch.linspace(60, -60, 144).reshape(2, 6, 3, 4).double(), tensor(2, 3, 3, 4, precision="fp64")
    theirs = DiagonalGaussianDistribution(x)
    mean, logvar = vae.moments(x)
    assert torch.equal(mean, theirs.mean) and torch.equal(logvar, theirs.logvar)
    assert (logvar.min(), logvar.max()) == (-30, 20)
    expected = theirs.mean + theirs.std * noise
    assert relative_l2(vae.sample_posterior(mean, logvar, noise, Precision("fp64")), expected) <= 1e-15


@torch.no_grad()
def test_attention_has_one_head():
    """diffusers' attention of the middle block by itself: one head as wide as the net."""
    from diffusers.models.attention_processor import Attention

    theirs = Attention(
        64, heads=1, dim_head=64, norm_num_groups=8, eps=1e-6, bias=True, residual_connection=True
    ).double()
    ours = vae_blocks.AttentionBlock(64, 8, precision=Precision("fp64"))
    state = random_state({key: tuple(p.shape) for key, p in theirs.named_parameters()}, seed=3)
    state = {key: torch.from_numpy(value) for key, value in state.items()}
    ours.load_state_dict(state, strict=True)
    theirs.load_state_dict(state, strict=True)
    x = tensor(2, 64, 3, 5, precision="fp64")
    assert relative_l2(ours(x), theirs(x)) <= TOLERANCE["fp64"]


def test_float16_is_computed_in_float32_where_the_net_asks_for_it():
    small = dict(block_out_channels=[32, 64], layers_per_block=1)
    for name in PUBLISHED:
        kind = getattr(vae, name)
        assert kind(**small, precision=Precision("fp16")).precision == Precision("fp32")
        assert kind(**small, precision=Precision("bf16")).precision == Precision("bf16")
        assert kind(**small, force_upcast=False, precision=Precision("fp16")).precision == Precision("fp16")
    assert np.float16(65520.0) == np.inf  # what such a net would meet
