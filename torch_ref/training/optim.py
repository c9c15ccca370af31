# SPDX-License-Identifier: Apache-2.0
"""AdamW with bias correction and decoupled weight decay, and the global norm of gradients.

Sources: Kingma and Ba 2015 (Adam, algorithm 1); Loshchilov and Hutter 2019 (AdamW, algorithm 2); Pascanu et al.
2013 (clipping by the norm). An update that must not happen is one whose factors are neutral: nothing here asks
the host.
"""

import torch

from torch_ref.models.precision import Precision

STRATEGIES = ("all", "norm_and_bias")
CLIP_EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_


def trainable_parameters(model):
    """name -> parameter of everything that a model trains; stored position tables are not among them."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def decayed_names(names, strategy="norm_and_bias"):
    """Names of the parameters that decay: "all", or "norm_and_bias", all but biases and weights of norms.

    Raises ValueError for another strategy.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy is {strategy!r}; expected one of {', '.join(STRATEGIES)}")
    if strategy == "all":
        return list(names)
    return [name for name in names if not name.endswith("bias") and "norm" not in name.split(".")[-2:][0]]


def adamw_factors(corrections, lr, updated, betas=(0.9, 0.999), weight_decay=0.0):
    """What an update multiplies by, and the bias corrections after it, scalars: (shrink, keep1, mix1, keep2, mix2,
    root2, rate, correction1, correction2).

    corrections: 1 - beta^n of both betas after the n updates before this one, () each; lr () float; updated () bool.
    If not updated, the first seven, (1, 1, 0, 1, 0, 1, 0), leave parameter and moments as they are.
    """
    one, zero = torch.ones_like(lr), torch.zeros_like(lr)
    shrink = torch.where(updated, one - lr * weight_decay, one)
    keep1 = torch.where(updated, one * betas[0], one)
    mix1 = torch.where(updated, one * (1.0 - betas[0]), zero)
    keep2 = torch.where(updated, one * betas[1], one)
    mix2 = torch.where(updated, one * (1.0 - betas[1]), zero)
    # The sum of the weights that the moments gave so far. 1 - beta^n itself keeps four digits of float32 at first.
    correction1 = corrections[0] * keep1 + mix1
    correction2 = corrections[1] * keep2 + mix2
    root2 = torch.where(updated, torch.sqrt(correction2), one)
    rate = torch.where(updated, lr / correction1, zero)
    return shrink, keep1, mix1, keep2, mix2, root2, rate, correction1, correction2


def adamw(parameter, m, v, gradient, factors, eps=1e-8, decays=True):
    """One update of a parameter and its moments, four of one shape: (parameter, m, v).

    factors: of `adamw_factors`; decays: whether the weight decay applies.
    """
    shrink, keep1, mix1, keep2, mix2, root2, rate = factors[:7]
    parameter = parameter * shrink if decays else parameter
    m = m * keep1 + gradient * mix1
    v = v * keep2 + torch.square(gradient) * mix2
    denominator = divide(torch.sqrt(v), root2) + eps
    return parameter - divide(m, denominator) * rate, m, v


def divide(x, y):
    """x / y, elementwise or by a scalar tensor of one type."""
    return x / y


def global_norm(gradients):
    """Euclidean norm of all gradients together, ()."""
    squares = [torch.sum(torch.square(gradient)) for gradient in gradients]
    return torch.sqrt(torch.sum(torch.stack(squares)))


def clip_coefficient(norm, max_norm):
    """What brings gradients of a norm () down to max_norm: min(1, max_norm / (norm + 1e-6)), ()."""
    return torch.minimum(max_norm / (norm + CLIP_EPS), torch.ones_like(norm))


class AdamW:
    """AdamW on named parameters.

    parameters: name -> parameter, with their values loaded; decayed: names of those that decay, None for all;
    precision: the model's. Of a model in half precision the optimiser holds float32 masters, which it updates, and
    rounds them into the model. Raises ValueError for no parameters, unknown names in `decayed`, or numbers out of
    range.
    """

    def __init__(
        self,
        parameters,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        decayed=None,
        precision=Precision(),
    ):
        unknown = sorted(set(decayed or ()) - set(parameters))
        if not parameters or unknown:
            raise ValueError(
                f"decayed names unknown parameters: {', '.join(unknown[:4])}; take them from decayed_names"
                if unknown
                else "AdamW got no parameters; take them from trainable_parameters(model)"
            )
        if not (all(0.0 < beta < 1.0 for beta in betas) and eps > 0.0 and weight_decay >= 0.0):
            raise ValueError(
                f"betas {betas}, eps {eps}, weight_decay {weight_decay}; expected betas between 0 and 1, eps above 0 "
                "and weight_decay of at least 0"
            )
        self.names, self.precision = tuple(parameters), precision
        self.betas, self.eps, self.weight_decay = tuple(betas), eps, weight_decay
        self.decays = tuple(decayed is None or name in decayed for name in self.names)
        self.parameters = tuple(parameters.values())
        dtype = precision.table_dtype
        self.m = tuple(torch.zeros(p.shape, dtype=dtype) for p in parameters.values())
        self.v = tuple(torch.zeros(p.shape, dtype=dtype) for p in parameters.values())
        self.owned = self.parameters
        if precision.half:
            self.owned = tuple(p.detach().to(dtype, copy=True) for p in parameters.values())
        self.step = torch.tensor(0, dtype=torch.int32)
        self.corrections = tuple(torch.zeros((), dtype=dtype) for _ in (1, 2))

    @torch.no_grad()
    def update(self, gradients, lr, updated):
        """One step. gradients: in the order of the parameters; lr () float; updated () bool: False changes nothing."""
        step = self.step + updated.to(torch.int32)
        self.step.copy_(step)
        factors = adamw_factors(self.corrections, lr, updated, self.betas, self.weight_decay)
        self.corrections[0].copy_(factors[7])
        self.corrections[1].copy_(factors[8])
        for i in range(len(self.names)):
            # NaN times 0 is NaN
            gradient = torch.where(updated, gradients[i], torch.zeros_like(gradients[i]))
            master, m, v = adamw(
                self.owned[i], self.m[i], self.v[i], gradient, factors, self.eps, self.decays[i]
            )
            self.owned[i].copy_(master)
            self.m[i].copy_(m)
            self.v[i].copy_(v)
            if self.precision.half:
                self.parameters[i].copy_(self.precision.round(master))

    @property
    def masters(self):
        """name -> the float32 parameter that is updated: of a model in fp32 or fp64 its own."""
        return dict(zip(self.names, self.owned, strict=True))

    def state(self):
        """name -> parameter of all that the optimiser remembers."""
        state = {"optimizer.step": self.step}
        state |= {f"optimizer.correction{i + 1}": self.corrections[i] for i in (0, 1)}
        for i, name in enumerate(self.names):
            state[f"optimizer.m.{name}"], state[f"optimizer.v.{name}"] = self.m[i], self.v[i]
            if self.precision.half:
                state[f"optimizer.master.{name}"] = self.owned[i]
        return state
