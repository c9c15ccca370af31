# SPDX-License-Identifier: Apache-2.0
"""The reference T5 encoder against transformers', in float32 and float64, with masks, both activations, long texts."""

import numpy as np
import pytest
import torch
from transformers import T5Config
from transformers import T5EncoderModel as TheirEncoder
from transformers.models.t5 import modeling_t5

from parity.encoders.t5 import CONFIG, RELU
from parity.harness.weights import random_state
from tests.helpers import relative_l2
from torch_ref.encoders.t5 import T5EncoderModel, relative_position_buckets
from torch_ref.models.precision import Precision

TOLERANCE = {"fp32": 2e-6, "fp64": 1e-12}  # some units in the last place, three blocks deep
DTYPE = {"fp32": torch.float32, "fp64": torch.float64}
L = 25  # reaches the last bucket of CONFIG (distance 20) in both directions


def pair(config, precision):
    """Our encoder and theirs with equal seeded weights under equal names, strict both ways."""
    ours = T5EncoderModel(**config, precision=Precision(precision)).eval()
    theirs = TheirEncoder(T5Config(**config)).to(DTYPE[precision]).eval()
    state = random_state({name: tuple(p.shape) for name, p in ours.named_parameters()}, seed=3)
    state["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] *= 4  # logits of order one
    state = {name: torch.from_numpy(value) for name, value in state.items()}
    ours.load_state_dict(state, strict=True)
    theirs.load_state_dict({**state, "encoder.embed_tokens.weight": state["shared.weight"]}, strict=True)
    return ours, theirs


def inputs():
    ids = torch.from_numpy(np.random.default_rng(5).integers(0, 50, (2, L)))
    return ids, torch.tensor([[1] * 9 + [0] * (L - 9), [1] * L])


def widen(monkeypatch):
    """Their norm and softmax are float32 in every model; make them float64."""

    class Wide:
        float32 = torch.float64

        def __getattr__(self, name):
            return getattr(torch, name)

    monkeypatch.setattr(modeling_t5, "torch", Wide())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("config", [CONFIG, RELU], ids=["gated", "relu"])
@pytest.mark.parametrize("masked", [False, True], ids=["open", "masked"])
@torch.no_grad()
def test_encoder(config, precision, masked, monkeypatch):
    ours, theirs = pair(config, precision)
    if precision == "fp64":
        widen(monkeypatch)
    ids, mask = inputs()
    mask = mask if masked else None
    expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    assert relative_l2(ours(ids, mask), expected) <= TOLERANCE[precision]


@pytest.mark.parametrize("kind", [torch.bool, torch.float32], ids=str)
@torch.no_grad()
def test_masks_of_any_type(kind):
    """Their masks are of integers; ours may also be of truth values or floats."""
    ours, _ = pair(CONFIG, "fp32")
    ids, mask = inputs()
    assert torch.equal(ours(ids, mask.to(kind)), ours(ids, mask))


@torch.no_grad()
def test_half_precision_keeps_the_range():
    """transformers keeps `wo` and the stream behind it in float32 under float16; its results there are finite too."""
    ours, theirs = pair(CONFIG, "fp32")
    for model in (ours, theirs):
        for block in model.encoder.block:
            block.layer[1].DenseReluDense.wo.weight.mul_(1e5)  # a stream of 1e5 and more
    half = T5EncoderModel(**CONFIG, precision=Precision("fp16", rounding="emulated"))
    half.load_state_dict(
        {name: value if ".wo." in name else value.half().float() for name, value in ours.state_dict().items()}
    )
    ids, mask = inputs()
    expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    assert relative_l2(half(ids, mask), expected) <= 5e-3  # float16 rounding: 5e-4, ten operations deep


@pytest.mark.parametrize(
    ("num_buckets", "max_distance"), [(32, 128), (8, 20), (12, 20), (4, 2), (9, 17), (64, 1000), (32, 9)]
)
def test_buckets(num_buckets, max_distance):
    """Integers against their float32 logarithms, to distances far beyond the last bucket."""
    length = 1100
    positions = torch.arange(length)
    expected = modeling_t5.T5Attention._relative_position_bucket(
        positions[None, :] - positions[:, None], True, num_buckets, max_distance
    )
    assert np.array_equal(relative_position_buckets(length, num_buckets, max_distance), expected.numpy())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(feed_forward_proj="gelu"), "'gelu'; expected one of relu, gated-gelu"),
        (dict(relative_attention_num_buckets=3), "num_buckets 3 and"),
        (dict(relative_attention_max_distance=2), "max_distance 2 do not fit"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        T5EncoderModel(**{**CONFIG, **changes})


def test_shapes_are_checked():
    model = T5EncoderModel(**CONFIG)
    with pytest.raises(ValueError, match=r"input_ids \(2, 7\) and attention_mask \(2, 6\)"):
        model(torch.zeros(2, 7, dtype=torch.long), torch.ones(2, 6))
    with pytest.raises(ValueError, match=r"input_ids \(7,\)"):
        model(torch.zeros(7, dtype=torch.long))
