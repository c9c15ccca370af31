# SPDX-License-Identifier: Apache-2.0
"""The nets that `pytest parity/ --size full` judges are the published ones."""

import pytest

from ms_latte.models.latte import Latte, Latte_models
from ms_latte.models.latte_t2v import LatteT2V, LatteT2V_XL_122
from parity.harness.full import full_case


@pytest.mark.parametrize("name", ["Latte-XL/2", "Latte-L/4", "Latte-B/8", "Latte-S/2"])
def test_full_latte_is_the_preset(name):
    assert Latte(**full_case(name).init).config == Latte_models[name]().config


def test_full_latte_xl_2_has_the_published_size():
    parameters = Latte(**full_case("Latte-XL/2").init).trainable_params()
    assert sum(parameter.size for parameter in parameters) == 673_681_568


def test_full_latte_t2v_is_the_preset():
    preset = LatteT2V_XL_122(sample_size=64, video_length=16, temporal_interpolation_scale=1.0)
    assert LatteT2V(**full_case("LatteT2V").init).config == preset.config
