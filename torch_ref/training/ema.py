# SPDX-License-Identifier: Apache-2.0
"""The exponential moving average of the weights. Source: Vchitect/Latte `train.py` (`update_ema`)."""

import torch


def ema(shadow, parameter, decay, updated):
    """shadow decay + parameter (1 - decay), of one shape; as it is if not updated. decay (), updated () bool."""
    share = torch.where(updated, 1 - decay, torch.zeros_like(decay))
    return shadow + (parameter - shadow) * share


class EMA:
    """The average of named parameters, `AdamW.masters`; it starts as a copy of them.

    Raises ValueError for parameters in half precision: an average of those loses every small change.
    """

    def __init__(self, parameters):
        half = [name for name, value in parameters.items() if value.dtype in (torch.float16, torch.bfloat16)]
        if half:
            raise ValueError(
                f"EMA of parameters in half precision ({', '.join(half[:3])}); give it the masters of the optimiser"
            )
        self.names = tuple(parameters)
        self.parameters = tuple(parameters.values())
        self.average = tuple(value.detach().clone() for value in parameters.values())

    @torch.no_grad()
    def update(self, decay, updated):
        """Take in the parameters as they are now: decay () float, updated () bool: False changes nothing."""
        for i in range(len(self.names)):
            self.average[i].copy_(ema(self.average[i], self.parameters[i], decay, updated))

    @property
    def shadow(self):
        """name -> averaged parameter."""
        return dict(zip(self.names, self.average, strict=True))

    def state(self):
        """name -> parameter of all that the average remembers."""
        return {f"ema.{name}": value for name, value in self.shadow.items()}
