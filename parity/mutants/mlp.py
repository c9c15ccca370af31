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
        ("mlp.FeedForward.__init__", "ACTIVATIONS[activation_fn]", '"none"'),
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
]
