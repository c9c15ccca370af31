# SPDX-License-Identifier: Apache-2.0
"""Pairing is proven or refused: by names, a map, elimination, probing; every rule fails once on a broken input."""

import numpy as np
import pytest

from parity.harness.pairing import (
    Layer,
    Link,
    PairingError,
    Parameter,
    canonical,
    content,
    describe_layer,
    exchanged,
    fits,
    overruled,
    pair_layers,
    pair_parameters,
    take_signatures,
)


def parameters(*rows):
    return [Parameter(name, shape, kind) for name, shape, kind in rows]


def linear(name, out, into, bias=True):
    rows = [(f"{name}.weight", (out, into), "linear")]
    return rows + ([(f"{name}.bias", (out,), "linear")] if bias else [])


def pairs(links):
    return {link.theirs: link.ours for link in links}


# ---------------------------------------------------------------------------------------------- names, maps, shapes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("norm.gamma", "norm.weight"),
        ("e.embedding_table", "e.weight"),
        ("bn.moving_mean", "bn.running_mean"),
        ("w", "w"),
    ],
)
def test_the_usual_renamings(name, expected):
    assert canonical(name) == expected


def test_equal_names_pair_after_the_usual_renamings():
    theirs = parameters(("n.weight", (5,), "LayerNorm"), ("n.bias", (5,), "LayerNorm"))
    ours = parameters(("n.beta", (5,), "LayerNorm"), ("n.gamma", (5,), "LayerNorm"))
    links = pair_parameters(theirs, ours, "names")
    assert pairs(links) == {"n.weight": "n.gamma", "n.bias": "n.beta"} and {link.by for link in links} == {
        "names"
    }


def test_half_of_the_names_agreeing_is_no_proof():
    """Sequential indices: "2" of the reference is the second layer, "2" of the port the third."""
    theirs = parameters(*linear("0", 4, 3), *linear("2", 6, 4), *linear("4", 4, 6))
    ours = parameters(*linear("0", 4, 3), *linear("1", 6, 4), *linear("2", 4, 6))
    assert pairs(pair_parameters(theirs, ours))["2.weight"] == "1.weight"
    assert overruled(pair_parameters(theirs, ours), theirs, ours) == []  # no namesake has the shape
    with pytest.raises(PairingError, match=r"2\.weight \(6, 4\): shape \(4, 6\)|4\.weight"):
        pair_parameters(theirs, ours, "names")


def test_a_map_of_prefixes_leaves_the_rest_to_the_names():
    theirs = parameters(*linear("blocks.0", 4, 4), *linear("blocks.1", 4, 4), *linear("head", 4, 4))
    ours = parameters(*linear("layers.1", 4, 4), *linear("layers.0", 4, 4), *linear("head", 4, 4))
    found = pairs(pair_parameters(theirs, ours, {"blocks": "layers"}))
    assert found["blocks.1.weight"] == "layers.1.weight" and found["head.bias"] == "head.bias"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"block": "layers"}, "the map names block, which the reference does not have; closest: blocks"),
        (
            {"blocks": "layer"},
            "the map sends blocks.0.weight to layer.0.weight, which the port does not have",
        ),
        ({"blocks.0": "layers.0", "blocks.1": "layers.0"}, "several parameters to layers.0.bias"),
        ({"blocks.0.weight": "layers.0.bias"}, "the shapes do not fit"),
    ],
)
def test_a_wrong_map_is_named(given, words):
    theirs = parameters(*linear("blocks.0", 4, 3), *linear("blocks.1", 4, 3))
    ours = parameters(*linear("layers.0", 4, 3), *linear("layers.1", 4, 3))
    with pytest.raises(PairingError, match=words):
        pair_parameters(theirs, ours, given)


def test_shapes_pair_by_elimination_with_their_transforms():
    theirs = parameters(("conv.weight", (8, 5, 1, 1), "conv"), ("fc.weight", (7, 3), "linear"))
    ours = parameters(("mix.weight", (8, 5), "linear"), ("head.w", (3, 7), ""))
    links = {link.theirs: link for link in pair_parameters(theirs, ours)}
    assert links["conv.weight"].transform == "reshaped" and links["fc.weight"].transform == "transposed"
    array = np.arange(21.0).reshape(7, 3)
    assert np.array_equal(links["fc.weight"].forward(array), array.T)
    assert np.array_equal(links["fc.weight"].backward(array.T), array)


def test_transforms_are_inverse_bit_for_bit():
    rng = np.random.default_rng(0)
    for link in (
        Link("a", "b", (4, 3, 1, 1), (4, 3)),
        Link("a", "b", (4, 3), (3, 4), True),
        Link("a", "b", (4, 3, 1), (3, 4), True),
        Link("a", "b", (4, 3, 5), (4, 3, 1, 5)),
    ):
        array = rng.standard_normal(link.shape).astype(np.float32)
        assert link.forward(array).shape == link.own_shape
        assert np.array_equal(link.backward(link.forward(array)), array)


def test_roles_and_families_are_not_mixed():
    assert fits(Parameter("a.weight", (4,), "LayerNorm"), Parameter("b.beta", (4,), "LayerNorm")) == []
    assert fits(Parameter("a.weight", (4, 3), "linear"), Parameter("b.weight", (4, 3), "embedding")) == []
    assert fits(Parameter("a.weight", (4, 4), "linear"), Parameter("b.weight", (4, 4), "conv")) == [
        False,
        True,
    ]


def test_what_has_no_partner_is_listed_on_both_sides():
    theirs, ours = parameters(*linear("a", 4, 3)), parameters(*linear("a", 4, 3), ("scale", (9,), ""))
    with pytest.raises(PairingError, match=r"0 of the reference \(-\), 1 of the port \(scale \(9,\)\)"):
        pair_parameters(theirs, ours)
    with pytest.raises(PairingError, match=r"1 of the reference \(scale \(9,\)\), 0 of the port"):
        pair_parameters(ours, theirs)


# ---------------------------------------------------------------------------------------------- probing, on numpy nets

X = np.random.default_rng(1).standard_normal((6, 5))
ROWS = [*linear("a", 5, 5), *linear("b", 5, 5), *linear("c", 5, 5)]
OTHER = [
    (f"{new}.{leaf}", (5, 5) if leaf == "w" else (5,), "") for new in ("p", "q", "r") for leaf in ("w", "b")
]


def reference(t):
    h = np.tanh(X @ t["a.weight"].T + t["a.bias"])
    h = np.tanh(h @ t["b.weight"].T + t["b.bias"])
    return (h @ t["c.weight"].T + t["c.bias"]).reshape(-1)


def port(t, gelu=False):
    """Registered in another order, matrices stored transposed, but for the last one."""
    act = (lambda x: np.tanh(1.02 * x)) if gelu else np.tanh
    h = act(X @ t["q.w"] + t["q.b"])
    h = act(h @ t["r.w"] + t["r.b"])
    return (h @ t["p.w"].T + t["p.b"]).reshape(-1)


def probing(run_theirs, run_ours, theirs, ours):
    return lambda left, right: take_signatures(run_theirs, run_ours, theirs, ours, left, right)


@pytest.mark.parametrize("wrong_constant", [False, True])
def test_probing_finds_order_and_orientation(wrong_constant):
    """Also of a port with a bug: pairing must not need the correctness that it is there to judge."""
    theirs, ours = parameters(*ROWS), parameters(*OTHER)
    probe = probing(reference, lambda t: port(t, wrong_constant), theirs, ours)
    links = {link.theirs: link for link in pair_parameters(theirs, ours, probe=probe)}
    assert {name: link.ours for name, link in links.items()} == {
        **{"a.weight": "q.w", "a.bias": "q.b", "b.weight": "r.w", "b.bias": "r.b"},
        **{"c.weight": "p.w", "c.bias": "p.b"},
    }
    assert [links[f"{x}.weight"].transposed for x in "abc"] == [True, True, False]
    assert links["a.weight"].by == "probe"


def test_probing_leaves_fixed_tables_as_they_were_constructed():
    """Both sides construct them, so filling those of one side alone would make two nets of equal ones."""
    table = 3 * np.arange(5.0)
    theirs = [*parameters(*ROWS), Parameter("pos", (5,), "", learned=False, fixed=True)]
    ours = [*parameters(*OTHER), Parameter("grid", (5,), "", learned=False)]
    fixed = dict(pos=table, grid=table)

    def shifted(run, bias, name):
        return lambda t: run({**t, bias: t[bias] + (fixed | t)[name]})

    probe = probing(shifted(reference, "b.bias", "pos"), shifted(port, "r.b", "grid"), theirs, ours)
    links = {link.theirs: link for link in pair_parameters(theirs, ours, probe=probe)}
    assert links["c.weight"].ours == "p.w" and links["pos"].fixed and not links["a.bias"].fixed


def test_without_a_probe_the_candidates_are_listed():
    with pytest.raises(PairingError, match=r"cannot be paired for sure .*a\.weight \(5, 5\): p\.w"):
        pair_parameters(parameters(*ROWS), parameters(*OTHER))


def test_interchangeable_parameters_are_refused():
    """Two parallel branches that are added: nothing can tell them apart, so nothing is guessed."""
    theirs = parameters(*linear("a", 5, 5, bias=False), *linear("b", 5, 5, bias=False))
    ours = parameters(*linear("x", 5, 5, bias=False), *linear("y", 5, 5, bias=False))

    def branches(first, second):
        return lambda t: (np.tanh(X @ t[first].T) + np.tanh(X @ t[second].T)).reshape(-1)

    probe = probing(branches("a.weight", "b.weight"), branches("x.weight", "y.weight"), theirs, ours)
    with pytest.raises(PairingError, match=r"probing could not tell them apart.*x\.weight.*y\.weight"):
        pair_parameters(theirs, ours, probe=probe)


def test_another_function_is_refused():
    theirs, ours = parameters(*ROWS), parameters(*OTHER)
    probe = probing(reference, lambda t: np.sin(7 * port(t)), theirs, ours)
    words = "none does what the reference's does: does the port compute something else.*Give a map"
    with pytest.raises(PairingError, match=words):
        pair_parameters(theirs, ours, probe=probe)
    probe = probing(reference, lambda t: port(t)[:-1], theirs, ours)
    with pytest.raises(PairingError, match="the outputs have 30 and 29 elements"):
        pair_parameters(theirs, ours, probe=probe)


def reacting(distances):
    """Signatures in which the parameters of both sides are so far from each other: (theirs, ours) -> distance."""

    class Reacting:
        problem = ""

        def distance(self, theirs, ours, transposed):
            return distances[theirs.name, ours.name]

    return lambda left, right: Reacting()


@pytest.mark.parametrize(
    ("best", "other", "paired"), [(1e-6, 0.3, True), (1e-3, 0.3, False), (1e-3, 0.5, True)]
)
def test_a_candidate_is_apart_if_it_is_far_or_a_thousand_times_as_far(best, other, paired):
    theirs = parameters(*linear("a", 5, 5, bias=False), *linear("b", 5, 5, bias=False))
    ours = parameters(*linear("x", 5, 5, bias=False), *linear("y", 5, 5, bias=False))
    names = [("a.weight", "x.weight"), ("b.weight", "y.weight")]
    distances = {(p.name, q.name): best if (p.name, q.name) in names else other for p in theirs for q in ours}
    # a square matrix fits in both orientations, and these signatures do not tell which: take one away
    theirs, ours = ([Parameter(p.name, (5, 4), p.kind) for p in side] for side in (theirs, ours))
    if paired:
        assert pairs(pair_parameters(theirs, ours, probe=reacting(distances))) == dict(names)
        return
    with pytest.raises(PairingError, match="probing could not tell them apart"):
        pair_parameters(theirs, ours, probe=reacting(distances))


def test_below_a_prefix_of_the_map_the_other_rules_go_on():
    """Two blocks of one kind under other names: the map says which block is which, the shapes say the rest."""
    theirs = parameters(*linear("blocks.0.up", 8, 3), *linear("blocks.1.up", 8, 3), *linear("head", 8, 3))
    ours = parameters(*linear("top", 8, 3), *linear("layers.0.a", 8, 3), *linear("layers.1.a", 8, 3))
    given = {"blocks.0": "layers.1", "blocks.1": "layers.0"}
    links = pair_parameters(theirs, ours, given)
    assert {n: o for n, o in pairs(links).items() if n.endswith("weight")} == {
        **{"blocks.0.up.weight": "layers.1.a.weight", "blocks.1.up.weight": "layers.0.a.weight"},
        "head.weight": "top.weight",  # what a prefix claims is nobody else's
    }
    assert {link.by for link in links} == {"shape"}
    with pytest.raises(PairingError, match="cannot be paired for sure"):
        pair_parameters(theirs, ours)
    with pytest.raises(
        PairingError, match=r"blocks\.0\.up\.weight to layer\.0\.up\.weight, which the port does not"
    ):
        pair_parameters(theirs, ours, {"blocks": "layer"})


@pytest.mark.parametrize(
    ("made", "names"),
    [
        ({"b.0.q_proj": "l.0.to_k", "b.0.k_proj": "l.0.to_q"}, ["b.0.q_proj.w", "b.0.k_proj.w"]),
        ({"b.0.fc": "l.1.ff", "b.1.fc": "l.0.ff"}, ["b.0.fc.w", "b.1.fc.w"]),
        ({"b.0.q_proj": "l.0.to_q", "b.0.k_proj": "l.0.to_k"}, []),
        ({"0": "2", "2": "0"}, []),  # indices of Sequentials
        ({"b.0.fc1": "l.0.up", "b.0.fc2": "l.0.down"}, []),  # the names tell nothing
    ],
)
def test_pairs_that_fit_their_names_better_the_other_way_round_are_found(made, names):
    links = [Link(f"{a}.w", f"{b}.w", (5, 5), (5, 5), by="probe") for a, b in made.items()]
    assert [link.theirs for link in exchanged(links)] == names
    assert exchanged([Link(x.theirs, x.ours, x.shape, x.own_shape, by="map") for x in links]) == []


def test_what_has_no_candidate_shows_what_the_port_has_left():
    theirs = parameters(*linear("a", 5, 3, bias=False), *linear("b", 5, 4, bias=False))
    ours = parameters(*linear("x", 5, 3, bias=False), *linear("y", 6, 4, bias=False))
    with pytest.raises(
        PairingError, match=r"b.weight .*no candidate.*Left in the port: y.weight \(6, 4\); remedy"
    ):
        pair_parameters(theirs, ours)


def test_the_filling_does_not_depend_on_the_orientation_but_the_probe_does():
    square = content((5, 5), 0)
    assert np.array_equal(square, square.T) and not np.array_equal(content((5, 5), 1), content((5, 5), 1).T)
    assert np.array_equal(content((7, 3), 0), content((3, 7), 0).T)
    assert np.array_equal(content((7, 3, 1, 1), 0).reshape(7, 3), content((7, 3), 0))


# ---------------------------------------------------------------------------------------------- layers


def conv(kind, kernel, padding, mode=None, stride=1, dilation=1):
    """A convolution as a framework holds it: torch without a pad_mode, MindSpore with one."""
    axes = len(kernel)
    module = "torch.nn" if mode is None else "mindspore.nn"
    held = dict(kernel_size=kernel, stride=(stride,) * axes, dilation=(dilation,) * axes, groups=1, group=1)
    held |= dict(padding=padding) if mode is None else dict(padding=padding, pad_mode=mode)
    return type(kind, (), {"__module__": module, **held})()


@pytest.mark.parametrize(
    ("theirs", "ours", "equal"),
    [
        (dict(padding=(1, 2)), dict(padding=(1, 1, 2, 2), mode="pad"), True),
        (dict(padding=(1, 2)), dict(padding=(2, 2, 1, 1), mode="pad"), False),
        (dict(padding=(1, 1)), dict(padding=(1, 1, 1, 2), mode="pad"), False),
        (dict(padding=(1, 2)), dict(padding=0, mode="same"), True),  # kernel (3, 5)
        (dict(padding=(1, 1)), dict(padding=0, mode="same"), False),
        (dict(padding=(1, 2), stride=2), dict(padding=0, mode="same", stride=2), False),
        (dict(padding=(2, 4), dilation=2), dict(padding=0, mode="same", dilation=2), True),
        (dict(padding=(1, 2), dilation=2), dict(padding=0, mode="same", dilation=2), False),
        (dict(padding="same"), dict(padding=0, mode="same"), True),
        (dict(padding="same", kernel=(4, 4)), dict(padding=0, mode="same", kernel=(4, 4)), True),
        (dict(padding="same", kernel=(4, 4)), dict(padding=(1, 2, 1, 2), mode="pad", kernel=(4, 4)), True),
        (dict(padding="same", kernel=(4, 4)), dict(padding=(2, 1, 2, 1), mode="pad", kernel=(4, 4)), False),
        (dict(padding=(1, 1), kernel=(4, 4)), dict(padding=0, mode="same", kernel=(4, 4)), False),
        (dict(padding="valid"), dict(padding=0, mode="valid"), True),
        (dict(padding=(0, 0)), dict(padding=0, mode="valid"), True),
        (dict(padding=(1, 0)), dict(padding=0, mode="valid"), False),
        (dict(padding=(1, 1)), dict(padding=1, mode="pad"), True),
    ],
)
def test_equal_paddings_are_stated_equally(theirs, ours, equal):
    first, second = (
        describe_layer(conv(kind="Conv2d", **{"kernel": (3, 5), **side})) for side in (theirs, ours)
    )
    assert (first == second) is equal, (first, second)


def test_a_padding_of_three_axes():
    theirs = conv("Conv3d", (3, 3, 5), (0, 1, 2))
    assert describe_layer(theirs) == describe_layer(conv("Conv3d", (3, 3, 5), (0, 0, 1, 1, 2, 2), "pad"))
    assert describe_layer(theirs) != describe_layer(conv("Conv3d", (3, 3, 5), (0, 1, 1, 1, 2, 2), "pad"))


def layers(*rows):
    return [Layer(name, kind, "") for name, kind in rows]


def test_layers_follow_their_parameters():
    theirs = layers(("", ""), ("body", ""), ("body.0", "linear"), ("body.1", "GELU"), ("body.2", "linear"))
    ours = layers(
        ("", ""), ("core", ""), ("core.up", "linear"), ("core.down", "linear"), ("core.act", "GELU")
    )
    links = [Link("body.0.weight", "core.up.weight", (4, 3), (4, 3), by="shape")]
    links += [Link("body.2.weight", "core.down.weight", (3, 4), (3, 4), by="shape")]
    found, rest = pair_layers(theirs, ours, links)
    assert found == {"": "", "body": "core", "body.0": "core.up", "body.1": "core.act", "body.2": "core.down"}
    assert rest == []


def test_two_of_a_kind_are_not_guessed():
    theirs = layers(("", ""), ("0", "linear"), ("1", "ReLU"), ("2", "ReLU"))
    ours = layers(("", ""), ("fc", "linear"), ("r", "ReLU"), ("s", "ReLU"))
    link = Link("0.weight", "fc.weight", (4, 3), (4, 3), by="shape")
    assert pair_layers(theirs, ours, [link]) == ({"": "", "0": "fc"}, ["1", "2"])
    assert pair_layers(theirs, ours, [link], {"1": "s"})[0]["1"] == "s"
    with pytest.raises(PairingError, match="no layer 9; closest"):
        pair_layers(theirs, ours, [link], {"9": "s"})


def test_a_wrapper_on_one_side_does_not_shift_the_pairs():
    theirs = layers(("", ""), ("0", ""), ("0.fc", "linear"), ("1", "linear"))
    ours = layers(("", ""), ("a", "linear"), ("b", "linear"))
    links = [Link("0.fc.weight", "a.weight", (4, 3), (4, 3)), Link("1.weight", "b.weight", (4, 4), (4, 4))]
    assert pair_layers(theirs, ours, links) == ({"": "", "0.fc": "a", "1": "b"}, ["0"])
