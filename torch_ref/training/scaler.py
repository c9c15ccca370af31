# SPDX-License-Identifier: Apache-2.0
"""The loss scale of training in fp16. Source: Micikevicius et al. 2018 (mixed precision training), section 3.2."""

import torch

LARGEST = 2.0**127  # the scale stays a finite float32


def next_scale(scale, good, finite, factor=2.0, window=1000):
    """Scale and count of good steps after a step: scale () float, good () int32, finite () bool -> the same two.

    An overflow divides the scale by `factor`, down to 1; `window` good steps in a row multiply it.
    """
    good = torch.where(finite, good + 1, torch.zeros_like(good))
    grows = good >= window
    larger = torch.minimum(scale * factor, torch.ones_like(scale) * LARGEST)
    smaller = torch.maximum(scale / factor, torch.ones_like(scale))
    scale = torch.where(finite, torch.where(grows, larger, scale), smaller)
    return scale, torch.where(grows, torch.zeros_like(good), good)


class LossScaler:
    """A loss scale, dynamic (`next_scale`) or static.

    Raises ValueError for a scale below 1, a factor of at most 1, or a window of no steps.
    """

    def __init__(self, init=65536.0, factor=2.0, window=1000, dynamic=True):
        if init < 1.0 or factor <= 1.0 or window < 1:
            raise ValueError(
                f"init {init}, factor {factor}, window {window}; expected init of at least 1, factor above 1 and a "
                "window of at least 1 step"
            )
        self.factor, self.window, self.dynamic = float(factor), int(window), dynamic
        self.scale = torch.tensor(float(init), dtype=torch.float32)
        self.good = torch.tensor(0, dtype=torch.int32)

    def update(self, finite, attempted):
        """After a micro step: finite () bool; attempted () bool: whether it completed a step of the optimiser."""
        if not self.dynamic:
            return
        scale, good = next_scale(self.scale, self.good, finite, self.factor, self.window)
        scale, good = torch.where(attempted, scale, self.scale), torch.where(attempted, good, self.good)
        self.scale.copy_(scale)
        self.good.copy_(good)

    def state(self):
        """name -> parameter of all that the scaler remembers."""
        return {"scaler.scale": self.scale, "scaler.good": self.good}
