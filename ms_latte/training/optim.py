# SPDX-License-Identifier: Apache-2.0
"""AdamW with bias correction and decoupled weight decay, and the global norm of gradients.

Sources: Kingma and Ba 2015 (Adam, algorithm 1); Loshchilov and Hutter 2019 (AdamW, algorithm 2); Pascanu et al.
2013 (clipping by the norm). An update that must not happen is one whose factors are neutral: nothing here asks
the host.
"""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from ms_latte.models.constants import constant
from ms_latte.models.precision import Precision
from ms_latte.models.primitives import real_div, reduce_sum

STRATEGIES = ("all", "norm_and_bias")
CLIP_EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_


def trainable_parameters(model):
    """name -> parameter of everything that a model trains; stored position tables are not among them."""
    return {name: value for name, value in model.parameters_and_names() if value.requires_grad}


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
    one, zero = ops.ones_like(lr), ops.zeros_like(lr)
    shrink = ops.where(updated, one - lr * constant(weight_decay, lr), one)
    keep1 = ops.where(updated, one * constant(betas[0], lr), one)
    mix1 = ops.where(updated, one * constant(1.0 - betas[0], lr), zero)
    keep2 = ops.where(updated, one * constant(betas[1], lr), one)
    mix2 = ops.where(updated, one * constant(1.0 - betas[1], lr), zero)
    # The sum of the weights that the moments gave so far. 1 - beta^n itself keeps four digits of float32 at first.
    correction1 = corrections[0] * keep1 + mix1
    correction2 = corrections[1] * keep2 + mix2
    root2 = ops.where(updated, ops.sqrt(correction2), one)
    rate = ops.where(updated, lr / correction1, zero)
    return shrink, keep1, mix1, keep2, mix2, root2, rate, correction1, correction2


def adamw(parameter, m, v, gradient, factors, eps=1e-8, decays=True):
    """One update of a parameter and its moments, four of one shape: (parameter, m, v).

    factors: of `adamw_factors`; decays: whether the weight decay applies.
    """
    shrink, keep1, mix1, keep2, mix2, root2, rate = factors[:7]
    parameter = parameter * shrink if decays else parameter
    m = m * keep1 + gradient * mix1
    v = v * keep2 + ops.square(gradient) * mix2
    denominator = divide(ops.sqrt(v), root2) + constant(eps, v)
    return parameter - divide(m, denominator) * rate, m, v


def divide(x, y):
    """x / y, elementwise or by a scalar tensor of one type."""
    return real_div(x, y)


def global_norm(gradients):
    """Euclidean norm of all gradients together, ()."""
    squares = [reduce_sum(ops.square(gradient)) for gradient in gradients]
    return ops.sqrt(reduce_sum(ops.stack(squares)))


def clip_coefficient(norm, max_norm):
    """What brings gradients of a norm () down to max_norm: min(1, max_norm / (norm + 1e-6)), ()."""
    return ops.minimum(constant(max_norm, norm) / (norm + constant(CLIP_EPS, norm)), ops.ones_like(norm))


class AdamW(nn.Cell):
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
        super().__init__(auto_prefix=False)
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
        self.parameters = ms.ParameterTuple(parameters.values())
        dtype = precision.table_dtype
        self.m = ms.ParameterTuple(_zeros(f"optimizer.m.{n}", p.shape, dtype) for n, p in parameters.items())
        self.v = ms.ParameterTuple(_zeros(f"optimizer.v.{n}", p.shape, dtype) for n, p in parameters.items())
        self.owned = self.parameters
        if precision.half:
            self.owned = ms.ParameterTuple(
                ms.Parameter(ops.cast(p, dtype).copy(), name=f"optimizer.master.{n}", requires_grad=False)
                for n, p in parameters.items()
            )
        self.step = ms.Parameter(ms.Tensor(0, ms.int32), name="optimizer.step", requires_grad=False)
        self.corrections = ms.ParameterTuple(_zeros(f"optimizer.correction{i}", (), dtype) for i in (1, 2))

    def update(self, gradients, lr, updated):
        """One step. gradients: in the order of the parameters; lr () float; updated () bool: False changes nothing."""
        step = self.step + ops.cast(updated, ms.int32)
        ops.assign(self.step, step)
        factors = adamw_factors(self.corrections, lr, updated, self.betas, self.weight_decay)
        ops.assign(self.corrections[0], factors[7])
        ops.assign(self.corrections[1], factors[8])
        for i in range(len(self.names)):
            # NaN times 0 is NaN
            gradient = ops.where(updated, gradients[i], ops.zeros_like(gradients[i]))
            master, m, v = adamw(
                self.owned[i], self.m[i], self.v[i], gradient, factors, self.eps, self.decays[i]
            )
            ops.assign(self.owned[i], master)
            ops.assign(self.m[i], m)
            ops.assign(self.v[i], v)
            if self.precision.half:
                ops.assign(self.parameters[i], self.precision.round(master))

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


def _zeros(name, shape, dtype):
    zeros = np.zeros(shape, np.float64 if dtype == ms.float64 else np.float32)
    return ms.Parameter(ms.Tensor(zeros), name=name, requires_grad=False)
