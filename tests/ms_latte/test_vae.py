# SPDX-License-Identifier: Apache-2.0
"""Behaviour of the VAEs that is ours; their values are judged by the parity cases."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import ops

from ms_latte.encoders import vae, vae_layers
from ms_latte.models.precision import Precision
from tests.helpers import normal, relative_l2
from tests.ms_latte.tiny import SAME, fill, parameters, run, shapes, tensor
from torch_ref.encoders import vae as twin

KL = dict(block_out_channels=[16, 24], layers_per_block=1, norm_num_groups=8)
TEMPORAL = dict(block_out_channels=[32, 64], layers_per_block=2)
NETS = {"AutoencoderKL": KL, "AutoencoderKLTemporalDecoder": TEMPORAL}


def net(name, **changes):
    return fill(getattr(vae, name)(**{**NETS[name], **changes})).set_train(False)


# --- names


@pytest.mark.parametrize(("name", "count"), [("AutoencoderKL", 248), ("AutoencoderKLTemporalDecoder", 374)])
def test_names_are_published(name, count):
    """Equal to the twin's, which tests/torch_ref compares with diffusers; `p.name` is the attribute path."""
    with ms.nn.utils.no_init_parameters():
        model = getattr(vae, name)()
    with torch.device("meta"):
        expected = getattr(twin, name)().state_dict()
    assert shapes(model) == {key: tuple(value.shape) for key, value in expected.items()}
    assert len(shapes(model)) == count
    assert all(parameter.name == key for key, parameter in parameters(model).items())


@pytest.mark.parametrize("name", NETS)
def test_config_rebuilds_the_net(name):
    model = net(name)
    assert getattr(vae, name)(**model.config).config == model.config
    assert getattr(twin, name)(**model.config).config == model.config


# --- layers


@pytest.mark.parametrize(("k", "stride", "padding"), [(3, 1, 1), (3, 2, 0), (1, 1, 0)])
@pytest.mark.parametrize("unfolded", [1, 800, 1 << 26], ids=["rows", "bands", "whole"])
def test_bands_of_rows_are_the_whole_picture(k, stride, padding, unfolded, monkeypatch):
    """However few rows are unfolded at a time: against torch, and equal to the native operator."""
    monkeypatch.setattr(vae_layers, "UNFOLDED", unfolded)
    x, weight, bias = normal(2, 5, 9, 7), normal(6, 5, k, k), normal(6)
    expected = torch.nn.functional.conv2d(*map(torch.from_numpy, (x, weight, bias)), stride, padding).numpy()
    for name, form in vae_layers.FORMULATIONS["conv2d"].items():
        out = form(tensor(x), tensor(weight), tensor(bias), stride, padding).asnumpy()
        assert relative_l2(out, expected) <= SAME, name


@pytest.mark.parametrize("size", [(1, 1), (4, 5), (3, 2)])
def test_formulations_of_an_upsampled_picture_agree(size):
    """Against torch: edges, both parities of rows and columns, every picture."""
    x = normal(2, 5, *size).repeat(2, 2).repeat(2, 3)
    weight, bias = normal(6, 5, 3, 3), normal(6)
    expected = torch.nn.functional.conv2d(*map(torch.from_numpy, (x, weight, bias)), 1, 1).numpy()
    for name, form in vae_layers.FORMULATIONS["conv2d_upsampled"].items():
        out = form(tensor(x), tensor(weight), tensor(bias), 1, 1).asnumpy()
        assert relative_l2(out, expected) <= SAME, name


def test_gradients_of_an_upsampled_picture():
    """Of the picture before and of both parameters: the phases pass back what the whole convolution does."""

    def gradients(form):
        def loss(x, weight, bias):
            return (form(vae_layers.upsample_nearest(x), weight, bias, 1, 1) * projection).sum()

        values = normal(2, 5, 4, 3), normal(6, 5, 3, 3, seed=1), normal(6, seed=2)
        return [g.asnumpy() for g in ms.grad(loss, (0, 1, 2))(*map(tensor, values))]

    projection, forms = tensor(normal(2, 6, 8, 6, seed=3)), vae_layers.FORMULATIONS["conv2d_upsampled"]
    for a, b in zip(gradients(forms["phases"]), gradients(forms["im2col"]), strict=True):
        assert relative_l2(a, b) <= SAME


@pytest.mark.parametrize("frames", [1, 2, 6])
def test_products_and_formulations_over_frames_agree(frames):
    """The convolution over frames against MindSpore's own, which on Ascend takes float16 alone."""
    x = normal(6, 8, 3, 5)
    weight, bias = normal(4, 8, 3, 1, 1), normal(4)
    a = vae_layers._conv_frames(tensor(x), tensor(weight), tensor(bias), frames, 1).asnumpy()
    videos = tensor(x.reshape(6 // frames, frames, 8, 3, 5).transpose(0, 2, 1, 3, 4))
    b = ops.conv3d(videos, tensor(weight), tensor(bias), pad_mode="pad", padding=(1, 0, 0)).asnumpy()
    assert relative_l2(a, b.transpose(0, 2, 1, 3, 4).reshape(a.shape)) <= SAME
    weight, bias = normal(8), normal(8, seed=1)
    a, b = (
        form(tensor(x), tensor(weight), tensor(bias), 2, 1e-6, frames).asnumpy()
        for form in vae_layers.FORMULATIONS["group_norm"].values()
    )
    assert relative_l2(a, b) <= SAME


def test_frames_do_not_reach_other_videos():
    """The second video does not move the first, nor its statistics."""
    conv, norm = fill(vae_layers.FrameConv3d(4, 4, 3)), fill(vae_layers.GroupNorm(2, 4, eps=1e-5))
    x = normal(6, 4, 3, 5)
    other = np.concatenate([x[:3], normal(3, 4, 3, 5, seed=1, scale=9.0)])
    for layer in (conv, norm):
        a, b = run(layer, x, num_frames=3), run(layer, other, num_frames=3)
        assert np.array_equal(a[:3], b[:3])
        assert relative_l2(a[3:], b[3:]) > 0.1
        assert relative_l2(run(layer, x, num_frames=1), a) > 0.05


def test_statistics_of_a_large_group():
    """2^20 numbers of mean 8: one running float32 sum is off by 2e-5 of their variance."""
    x = 8 + normal(1, 2, 1024, 1024)
    out = run(vae_layers.GroupNorm(1, 2, eps=1e-6), x).astype(np.float64)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-6)
    assert relative_l2(out, exact) <= 1e-6  # 2.4e-7 measured


def test_resolution():
    """Repeated pixels upwards; downwards the window starts at the pixel itself and zeros stand at the end."""
    x = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    assert np.array_equal(vae_layers.upsample_nearest(tensor(x)).asnumpy(), x.repeat(2, 2).repeat(2, 3))
    padded = vae_layers.pad_end(tensor(x)).asnumpy()
    assert padded.shape == (1, 1, 4, 5)
    assert np.array_equal(padded[:, :, :3, :4], x) and not padded[:, :, 3].any() and not padded[..., 4].any()


# --- nets


def test_chunk_changes_no_picture():
    model = net("AutoencoderKL")
    latents = normal(2, 3, 4, 2, 3, scale=0.2)
    whole = run(model.decode_video, latents, chunk=6)
    assert whole.shape == (2, 3, 3, 4, 6)
    for chunk in (1, 2, 4, 100):
        assert relative_l2(run(model.decode_video, latents, chunk=chunk), whole) <= SAME
    one = run(model.decode, latents[1, 2:] / np.float32(0.18215))
    assert relative_l2(whole[1, 2], one[0]) <= SAME


def test_temporal_chunks_are_videos_of_their_own():
    model = net("AutoencoderKLTemporalDecoder")
    latents = normal(2, 5, 4, 2, 3, scale=0.2)
    got = run(model.decode_video, latents, chunk=3)
    for b in range(2):
        for part in (slice(0, 3), slice(3, 5)):
            z = latents[b, part] / np.float32(0.18215)
            assert relative_l2(got[b, part], run(model.decode, z, num_frames=len(z))) <= SAME
    assert relative_l2(run(model.decode_video, latents, chunk=5), got) > 1e-3  # frames see each other


def test_scaling_factor_divides():
    latents = normal(1, 2, 4, 2, 3)
    for name in NETS:
        model, other = net(name), net(name, scaling_factor=0.5)
        a, b = run(model.decode_video, latents), run(other.decode_video, latents * np.float32(0.5 / 0.18215))
        assert relative_l2(a, b) <= 1e-5, name  # two roundings of the latents, through the whole net


def test_posterior():
    """exp(logvar / 2) times the noise; logvar is held in [-30, 20]."""
    mean, logvar = vae.moments(tensor(np.array([1.0, -90.0, 2.0, 90.0], np.float32).reshape(2, 2, 1, 1)))
    assert logvar.asnumpy().reshape(-1).tolist() == [-30.0, 20.0]
    out = run(
        vae.sample_posterior, mean.asnumpy(), np.full((2, 1, 1, 1), 2.0, np.float32), normal(2, 1, 1, 1)
    )
    expected = np.array([1.0, 2.0]).reshape(2, 1, 1, 1) + np.e * normal(2, 1, 1, 1)
    assert relative_l2(out, expected) <= SAME


@pytest.mark.parametrize("name", NETS)
def test_float16_is_computed_in_float32_where_the_net_asks_for_it(name):
    """Activations beyond 65504 are infinite in float16; the upcast net gives the float32 result."""
    latents = normal(1, 1, 4, 2, 3, scale=0.2)
    exact, upcast = net(name), net(name, precision=Precision("fp16"))
    assert upcast.precision == Precision("fp32")
    half = net(name, force_upcast=False, precision=Precision("fp16", rounding="emulated"))
    for model in (exact, upcast, half):
        conv = model.decoder.conv_in.weight
        conv.set_data(model.precision.round(conv * 1e5))
    expected = run(exact.decode_video, latents)
    assert np.isfinite(expected).all()
    assert np.array_equal(run(upcast.decode_video, latents), expected)
    assert not np.isfinite(run(half.decode_video, latents)).all()
    assert net(name, precision=Precision("bf16")).precision == Precision("bf16")


# --- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: net("AutoencoderKL", norm_num_groups=5), "norm_num_groups 5 does not divide"),
        (lambda: vae.AutoencoderKL(**KL, act_fn="gelu"), "act_fn is 'gelu'"),
        (lambda: net("AutoencoderKL", scaling_factor=0.0), "scaling_factor is 0.0"),
        (lambda: run(net("AutoencoderKL").encode, normal(2, 4, 8, 8)), r"pixels \(N, 3, H, W\)"),
        (lambda: run(net("AutoencoderKL").encode, normal(2, 3, 1, 8)), "sides of at least 2"),
        (lambda: run(net("AutoencoderKL").decode, normal(1, 2, 4, 2, 3)), "remedy: decode_video"),
        (lambda: run(net("AutoencoderKL").decode_video, normal(2, 4, 2, 3)), "remedy: decode takes"),
        (lambda: run(net("AutoencoderKL").decode_video, normal(1, 2, 4, 2, 3), chunk=0), "chunk is 0"),
        (
            lambda: run(net("AutoencoderKLTemporalDecoder").decode, normal(4, 4, 2, 3), num_frames=3),
            "4 latents are no whole number of videos",
        ),
        (lambda: run(vae_layers.Conv2d(4, 2, 3, 1, 1), normal(1, 3, 5, 5)), "takes 4 channels"),
        (lambda: run(vae_layers.GroupNorm(2, 4, 1e-6), normal(3, 4, 5, 5), num_frames=2), "3 pictures"),
    ],
)
def test_errors_name_the_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()
