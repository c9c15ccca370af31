# SPDX-License-Identifier: Apache-2.0
"""Parameter names and shapes are those of the published originals, for every size (on the meta device: no memory)."""

import json

import pytest
import torch
from diffusers import LatteTransformer3DModel

from tests.helpers import CONDITION, GOLDEN
from torch_ref.models.latte import Latte_models
from torch_ref.models.latte_t2v import LatteT2V, LatteT2V_XL_122

LISTING = json.loads((GOLDEN / "official_latte_names.json").read_text())


def shapes(model):
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def test_every_size_is_listed():
    listed = {entry.split(" ")[0] for entry in LISTING}
    assert listed == set(Latte_models) and len(LISTING) == 2 * len(Latte_models) == 24


@pytest.mark.parametrize("entry", LISTING)
def test_latte_names(entry):
    name, extras = entry.split(" extras=")
    with torch.device("meta"):
        model = Latte_models[name](condition=CONDITION[int(extras)], num_classes=101)
    assert shapes(model) == LISTING[entry]


def test_latte_t2v_names():
    with torch.device("meta"):
        ours = LatteT2V_XL_122()
        theirs = LatteTransformer3DModel(
            num_layers=28,
            num_attention_heads=16,
            attention_head_dim=72,
            in_channels=4,
            out_channels=8,
            patch_size=2,
            attention_bias=True,
            cross_attention_dim=1152,
            caption_channels=4096,
            activation_fn="gelu-approximate",
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
        )
    assert shapes(ours) == shapes(theirs) and len(shapes(ours)) == 967
    assert sum(value.numel() for value in ours.parameters()) == 1_057_246_880  # measured on the originals


@pytest.mark.parametrize("norm_type", ["ada_norm_single", "layer_norm", "ada_norm", "ada_norm_zero"])
@pytest.mark.parametrize("activation_fn", ["gelu", "geglu"])
def test_names_of_every_norm_type_are_published(norm_type, activation_fn):
    arguments = dict(
        num_layers=2,
        num_attention_heads=3,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        cross_attention_dim=48,
        caption_channels=20,
        activation_fn=activation_fn,
        norm_type=norm_type,
        norm_elementwise_affine=True,
        num_embeds_ada_norm=10,
    )
    with torch.device("meta"):
        assert shapes(LatteT2V(**arguments)) == shapes(LatteTransformer3DModel(**arguments))
