# SPDX-License-Identifier: Apache-2.0
"""Seeded weights and inputs: non-degenerate, independent of order, the same on every machine."""

import numpy as np
import pytest

from parity.harness import weights
from parity.harness.inputs import Input, Layout, array, integers, lengths, linspace, normal, realize

SHAPES = {
    "blocks.0.attn.qkv.weight": (72, 24),
    "blocks.1.attn.qkv.weight": (72, 24),
    "blocks.0.attn.qkv.bias": (72,),
    "blocks.0.adaLN_modulation.1.weight": (144, 24),
    "blocks.0.adaLN_modulation.1.bias": (144,),
    "norm.weight": (24,),
    "x_embedder.proj.weight": (24, 4, 2, 2),
    "y_embedder.embedding_table.weight": (8, 24),
    "pos_embed": (1, 6, 24),
    "scale_shift_table": (6, 24),
}


def test_weights_are_not_degenerate():
    state = weights.random_state(SHAPES, 0)
    assert weights.degenerate(state) == []
    for name, value in state.items():
        assert value.dtype == np.float32 and value.shape == SHAPES[name]
        assert np.isfinite(value).all() and np.count_nonzero(value) == value.size, name
    # Gains: activations stay of order one through a linear layer, norm weights around one, gates not near zero.
    gain = state["blocks.0.attn.qkv.weight"].std() * np.sqrt(24)
    assert 0.9 < gain < 1.1  # 1728 samples: one standard deviation is 1.7 %
    assert abs(state["norm.weight"].mean() - 1) < 0.2
    assert state["blocks.0.adaLN_modulation.1.bias"].std() > 0.1


def test_order_and_neighbours_do_not_matter():
    whole = weights.random_state(SHAPES, 3)
    backwards = weights.random_state(dict(reversed(SHAPES.items())), 3)
    for name in SHAPES:
        alone = weights.random_state({name: SHAPES[name]}, 3)[name]
        assert alone.tobytes() == whole[name].tobytes() == backwards[name].tobytes(), name


def test_seed_and_name_make_the_numbers():
    name = "blocks.0.attn.qkv.weight"
    first = weights.random_parameter(name, (72, 24), 0)
    assert not np.array_equal(first, weights.random_parameter(name, (72, 24), 1))
    assert not np.array_equal(first, weights.random_parameter("blocks.1.attn.qkv.weight", (72, 24), 0))
    # Pinned: traces recorded on one machine are compared on another.
    pinned = weights.random_parameter("w.weight", (2, 2), 0)
    assert weights.digest(pinned) == weights.digest(weights.random_parameter("w.weight", (2, 2), 0))


def test_degenerate_weights_are_found():
    state = weights.random_state(SHAPES, 0)
    state["norm.weight"][:] = 1
    state["blocks.0.adaLN_modulation.1.bias"][:] = 0
    state["blocks.1.attn.qkv.weight"] = state["blocks.0.attn.qkv.weight"].copy()
    reasons = weights.degenerate(state)
    assert reasons == [
        "blocks.1.attn.qkv.weight equals blocks.0.attn.qkv.weight",
        "blocks.0.adaLN_modulation.1.bias is constant",
        "norm.weight is constant",
    ]
    assert weights.degenerate({"a": np.ones(1), "b": np.ones(1)}) == []  # one number is neither
    state = dict(tenth=np.full(23, 0.1, np.float32), huge=np.array([3e38, -3e38], np.float32))
    assert weights.degenerate(state) == ["tenth is constant"]  # their standard deviations: 1e-8, infinite


def test_digest_is_of_the_bits():
    x = np.arange(6.0).reshape(2, 3)
    assert weights.digest(x) == weights.digest(x.copy(order="F"))
    assert weights.digest(np.array([0.0])) != weights.digest(np.array([-0.0]))
    assert weights.digest(x) != weights.digest(np.nextafter(x, 9))


# ------------------------------------------------------------------------------------------------- inputs


def test_inputs_are_seeded_and_independent():
    few = realize(dict(x=normal(3, 4), t=integers(5, high=9)), 7)
    more = realize(dict(y=normal(2, 2), t=integers(5, high=9), x=normal(3, 4)), 7)
    assert np.array_equal(few["x"], more["x"]) and np.array_equal(few["t"], more["t"])
    assert not np.array_equal(few["x"], realize(dict(x=normal(3, 4)), 8)["x"])
    assert not np.array_equal(few["x"], realize(dict(z=normal(3, 4)), 7)["z"])


def test_kinds_of_inputs():
    drawn = realize(
        dict(
            x=normal(500, 4, mean=20.0, scale=0.5),
            ids=integers(200, high=9),
            literal=array([[1, 2], [3, 4]]),
            reshaped=array([7], ()),
            flags=array([True, False]),
            mask=lengths(4, [1, 3]),
            masks=lengths(3, [[0, 1], [2, 3]]),
            line=linspace(-1.0, 1.0, 2, 3),
            plain=5,
            layout=Layout(2, 3, 4),
        ),
        0,
    )
    assert abs(drawn["x"].mean() - 20) < 0.1 and 0.4 < drawn["x"].std() < 0.6  # 2000 samples
    assert set(drawn["ids"].tolist()) == set(range(9))
    assert drawn["literal"].dtype.kind == "i" and drawn["literal"].tolist() == [[1, 2], [3, 4]]
    assert drawn["reshaped"].shape == () and drawn["flags"].dtype == bool
    assert drawn["mask"].tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]
    assert drawn["masks"].shape == (2, 2, 3) and drawn["masks"][1, 0].tolist() == [1, 1, 0]
    assert np.array_equal(drawn["line"], np.linspace(-1, 1, 6).reshape(2, 3))
    assert drawn["plain"] == 5 and drawn["layout"] == Layout(2, 3, 4)


def test_unknown_kind():
    with pytest.raises(ValueError, match="unknown input kind 'cauchy'"):
        Input("cauchy").draw(np.random.default_rng(0))
