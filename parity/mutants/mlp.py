# SPDX-License-Identifier: Apache-2.0
"""Bugs of `models/mlp.py`."""

from parity.mutants import NUMBERS, STATED, gates, mutant

MUTANTS = [
    mutant(
        "mlp_erf",
        "the feed-forward of official Latte built with erf GELU (timm's and mindone's default act_layer)",
        "mlp.Mlp",
        gates("G0 G1 G2", "G0"),
        ("mlp.Mlp.__init__", 'GELU("tanh"', 'GELU("none"'),
    ),
    mutant(
        "gelu_approximate_as_erf",
        '"gelu-approximate" looked up as the erf form',
        "mlp.FeedForward",
        gates("G0 G1 G2", "G0"),
        (
            "mlp.FeedForward.__init__",
            '"tanh" if activation_fn == "gelu-approximate"',
            '"none" if activation_fn == "gelu-approximate"',
        ),
    ),
    mutant(
        "activation_missing",
        "a feed-forward without its activation",
        "mlp.GELUProjection",
        STATED,
        ("mlp.GELUProjection.construct", "self.act(self.proj(x))", "self.proj(x)"),
    ),
    mutant(
        "activation_first",
        "activation before the projection",
        "mlp.GELUProjection",
        gates("G0 G1 G2", "G0 G2"),
        ("mlp.GELUProjection.construct", "self.act(self.proj(x))", "self.proj(self.act(x))"),
    ),
    mutant(
        "second_activation",
        "an activation after the feed-forward too",
        "mlp.Mlp",
        STATED,
        ("mlp.Mlp.construct", "self.fc2(self.act(self.fc1(x)))", "self.act(self.fc2(self.act(self.fc1(x))))"),
    ),
    mutant(
        "skip_inside",
        "the feed-forward adds its input, which the block adds already",
        "mlp.FeedForward",
        NUMBERS,
        (
            "mlp.FeedForward.construct",
            "self.net[2](self.net[0](hidden_states))",
            "self.net[2].precision.round(hidden_states + self.net[2](self.net[0](hidden_states)))",
        ),
    ),
    mutant(
        "geglu_halves_exchanged",
        "the first half of a gated unit gates the second",
        "mlp.GEGLU",
        NUMBERS,
        ("mlp.GEGLU.construct", "value, gate = ", "gate, value = "),
    ),
    mutant(
        "geglu_interleaved",
        "values and gates of a gated unit in turn instead of in halves",
        "mlp.GEGLU",
        NUMBERS,
        (
            "mlp.GEGLU.construct",
            "value, gate = self.proj(x).chunk(2, axis=-1)",
            "value, gate = (lambda both: (both[..., ::2], both[..., 1::2]))(self.proj(x))",
        ),
    ),
    mutant(
        "geglu_tanh",
        "the gate in the tanh form of GELU (as torch_npu's fused operator is called by diffusers)",
        "mlp.FeedForward-geglu",
        gates("G0 G1 G2", "G0"),
        ("mlp.GEGLU.__init__", 'GELU("none"', 'GELU("tanh"'),
    ),
]
