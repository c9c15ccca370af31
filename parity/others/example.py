# SPDX-License-Identifier: Apache-2.0
"""The file to copy: a small torch net against its MindSpore port, whose names and layouts all differ.

    python -m parity other parity/others/example.py

Import frameworks inside the factories: the judge reads this file too and needs neither.
"""

from parity import api
from parity.harness.inputs import normal


def reference():
    """Convolution, normalisation, a pointwise mix, a head: (B, 3, H, W) -> (B, 10)."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 1),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 12),
        nn.Tanh(),
        nn.Linear(12, 10),
    )


def port():
    """The same, as one would write it in MindSpore: other names, a Dense for the pointwise convolution."""
    from mindspore import nn, ops

    class Net(nn.Cell):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 12, 3, pad_mode="pad", padding=1, has_bias=True)
            self.norm = nn.BatchNorm2d(12)
            self.mix = nn.Dense(12, 12)
            self.hidden = nn.Dense(12, 12)
            self.act = nn.GELU(approximate=False)
            self.head = nn.Dense(12, 10)

        def construct(self, x):
            x = ops.relu(self.norm(self.stem(x)))  # (B, 12, H, W)
            x = self.act(self.mix(x.transpose(0, 2, 3, 1)))  # (B, H, W, 12)
            return self.head(ops.tanh(self.hidden(x.mean((1, 2)))))  # (B, 10)

    return Net()


COMPARISON = api.Comparison(
    name="example",
    reference=reference,
    port=port,
    inputs=[normal(2, 3, 16, 12)],  # by position; dict(x=...) passes keyword arguments
    weights="auto",  # or "names", or {"0": "stem", "1": "norm", ...}
    gradients=True,
)
