# SPDX-License-Identifier: Apache-2.0
"""The loss scale of training in fp16. Source: Micikevicius et al. 2018 (mixed precision training), section 3.2."""

import mindspore as ms
from mindspore import nn, ops

LARGEST = 2.0**127  # the scale stays a finite float32


def next_scale(scale, good, finite, factor=2.0, window=1000):
    """Scale and count of good steps after a step: scale () float, good () int32, finite () bool -> the same two.

    An overflow divides the scale by `factor`, down to 1; `window` good steps in a row multiply it.
    """
    good = ops.where(finite, good + 1, ops.zeros_like(good))
    grows = good >= window
    larger = ops.minimum(scale * factor, ops.ones_like(scale) * LARGEST)
    smaller = ops.maximum(scale / factor, ops.ones_like(scale))
    scale = ops.where(finite, ops.where(grows, larger, scale), smaller)
    return scale, ops.where(grows, ops.zeros_like(good), good)


class LossScaler(nn.Cell):
    """A loss scale, dynamic (`next_scale`) or static.

    Raises ValueError for a scale below 1, a factor of at most 1, or a window of no steps.
    """

    def __init__(self, init=65536.0, factor=2.0, window=1000, dynamic=True):
        super().__init__(auto_prefix=False)
        if init < 1.0 or factor <= 1.0 or window < 1:
            raise ValueError(
                f"init {init}, factor {factor}, window {window}; expected init of at least 1, factor above 1 and a "
                "window of at least 1 step"
            )
        self.factor, self.window, self.dynamic = float(factor), int(window), dynamic
        self.scale = ms.Parameter(
            ms.Tensor(float(init), ms.float32), name="scaler.scale", requires_grad=False
        )
        self.good = ms.Parameter(ms.Tensor(0, ms.int32), name="scaler.good", requires_grad=False)

    def update(self, finite, attempted):
        """After a micro step: finite () bool; attempted () bool: whether it completed a step of the optimiser."""
        if not self.dynamic:
            return
        scale, good = next_scale(self.scale, self.good, finite, self.factor, self.window)
        scale, good = ops.where(attempted, scale, self.scale), ops.where(attempted, good, self.good)
        ops.assign(self.scale, scale)
        ops.assign(self.good, good)

    def state(self):
        """name -> parameter of all that the scaler remembers."""
        return {"scaler.scale": self.scale, "scaler.good": self.good}
