# SPDX-License-Identifier: Apache-2.0
"""Parameter names, attribute paths and the published listings are one and the same."""

import json

import mindspore as ms
import pytest
import torch

import torch_ref.models.latte_t2v as twin
from ms_latte.models.latte import Latte, Latte_models
from ms_latte.models.latte_t2v import LatteT2V, LatteT2V_XL_122
from tests.helpers import CONDITION, GOLDEN
from tests.ms_latte.tiny import LATTE, LATTE_T2V, shapes

LISTING = json.loads((GOLDEN / "official_latte_names.json").read_text())


def paths(cell, prefix=""):
    """Attribute path -> parameter by walking the attributes, without MindSpore's own naming."""
    found = {
        f"{prefix}{name}": parameter for name, parameter in cell._params.items() if parameter is not None
    }
    for name, child in cell._cells.items():
        if child is not None:
            found |= paths(child, f"{prefix}{name}.")
    return found


def assert_one_name_each(model):
    """`p.name`, which checkpoints and optimisers use, is the attribute path; no parameter has two."""
    walked = paths(model)
    assert [path for path, parameter in walked.items() if parameter.name != path] == []
    assert [name for name, parameter in model.parameters_and_names() if parameter.name != name] == []
    assert {parameter.name for parameter in model.get_parameters()} == set(walked)
    assert len({id(parameter) for parameter in walked.values()}) == len(walked)
    assert sorted(shapes(model)) == sorted(walked)


@pytest.mark.parametrize("condition", ["none", "class", "text"])
def test_latte_has_one_name_each(condition):
    assert_one_name_each(Latte(**LATTE, condition=condition))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(use_recompute=True),
        dict(norm_elementwise_affine=True),
        dict(norm_type="layer_norm", activation_fn="geglu"),
        dict(norm_type="ada_norm", num_embeds_ada_norm=9),
        dict(norm_type="ada_norm_zero", num_embeds_ada_norm=9, use_additional_conditions=True),
    ],
)
def test_latte_t2v_has_one_name_each(changes):
    model = LatteT2V(**{**LATTE_T2V, **changes})
    assert_one_name_each(model)
    expected = twin.LatteT2V(
        **{**LATTE_T2V, **changes}
    ).state_dict()  # tests/torch_ref compares it with diffusers
    assert shapes(model) == {name: tuple(value.shape) for name, value in expected.items()}
    assert {name.split(".")[0] for name in shapes(model)} == {
        "pos_embed",
        "transformer_blocks",
        "temporal_transformer_blocks",
        "scale_shift_table",
        "proj_out",
        "adaln_single",
        "caption_projection",
    }  # exactly the published ones: no table of positions, no pair of blocks


@pytest.mark.parametrize("entry", LISTING)
def test_latte_names_are_published(entry):
    name, extras = entry.split(" extras=")
    with ms.nn.utils.no_init_parameters():
        model = Latte_models[name](condition=CONDITION[int(extras)], num_classes=101)
    assert {key: list(shape) for key, shape in shapes(model).items()} == LISTING[entry]
    assert_one_name_each(model)


def test_latte_t2v_names_are_published():
    """Equal to the twin's, which tests/torch_ref compares with diffusers."""
    with ms.nn.utils.no_init_parameters():
        model = LatteT2V_XL_122()
    with torch.device("meta"):
        expected = twin.LatteT2V_XL_122().state_dict()
    assert shapes(model) == {name: tuple(value.shape) for name, value in expected.items()}
    assert len(shapes(model)) == 967
    assert_one_name_each(model)
