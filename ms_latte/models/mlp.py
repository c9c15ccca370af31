# SPDX-License-Identifier: Apache-2.0
"""Feed-forward parts. Sources: timm `Mlp` as used by Vchitect/Latte; diffusers `models/attention.py`
FeedForward."""

from mindspore import nn

from ms_latte.models.layers import GELU, Linear
from ms_latte.models.precision import Precision

ACTIVATIONS = ("geglu", "gelu", "gelu-approximate")


class Mlp(nn.Cell):
    """Linear, tanh GELU, Linear: x (..., in_features) -> (..., in_features). Official Latte."""

    def __init__(self, in_features, hidden_features, precision=Precision()):
        super().__init__()
        self.fc1 = Linear(in_features, hidden_features, precision=precision)
        self.act = GELU("tanh", precision=precision)
        self.fc2 = Linear(hidden_features, in_features, precision=precision)

    def construct(self, x):
        return self.fc2(self.act(self.fc1(x)))


class GELUProjection(nn.Cell):
    """Linear followed by GELU: x (..., dim_in) -> (..., dim_out). approximate: "tanh" or "none" (erf)."""

    def __init__(self, dim_in, dim_out, approximate, precision=Precision()):
        super().__init__()
        self.proj = Linear(dim_in, dim_out, precision=precision)
        self.act = GELU(approximate, precision=precision)

    def construct(self, x):
        return self.act(self.proj(x))


class GEGLU(nn.Cell):
    """Linear whose second half, through erf GELU, gates the first: x (..., dim_in) -> (..., dim_out). Shazeer 2020."""

    def __init__(self, dim_in, dim_out, precision=Precision()):
        super().__init__()
        self.precision = precision
        self.proj = Linear(dim_in, 2 * dim_out, precision=precision)
        self.act = GELU("none", precision=precision)

    def construct(self, x):
        value, gate = self.proj(x).chunk(2, axis=-1)  # (..., dim_out) each
        return self.precision.round(value * self.act(gate))


class FeedForward(nn.Cell):
    """GELUProjection or GEGLU, then Linear, with diffusers names (net.0.proj, net.2): x (..., dim) -> (..., dim).
    LatteT2V.

    activation_fn: "gelu-approximate" (tanh; all released weights), "gelu" (erf) or "geglu". Raises ValueError for
    another word, and for dropout above 0, whose mask would have to be an argument.
    """

    def __init__(self, dim, mult=4, dropout=0.0, activation_fn="gelu-approximate", precision=Precision()):
        super().__init__()
        if activation_fn not in ACTIVATIONS:
            raise ValueError(f"activation_fn is {activation_fn!r}; expected one of {', '.join(ACTIVATIONS)}")
        if dropout:
            raise ValueError(f"dropout {dropout} is not built yet: released weights use 0.0")
        if activation_fn == "geglu":
            first = GEGLU(dim, dim * mult, precision=precision)
        else:
            approximate = "tanh" if activation_fn == "gelu-approximate" else "none"
            first = GELUProjection(dim, dim * mult, approximate, precision=precision)
        self.net = nn.CellList(
            [
                first,
                nn.Identity(),  # the originals' dropout: it keeps the index of the next layer
                Linear(dim * mult, dim, precision=precision),
            ]
        )

    def construct(self, hidden_states):
        return self.net[2](self.net[0](hidden_states))
