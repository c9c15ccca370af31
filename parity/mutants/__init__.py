# SPDX-License-Identifier: Apache-2.0
"""Realistic port bugs, injected into the MindSpore side to show that the gates catch them.

Each is a small named change of the port: `patched` replaces code while a model is built and run, `edit`
changes a loaded model. The frameworks are imported inside, in the worker. `cases` names cases that reach the
code; `expected` says which gate must kill it in fp32, fp16 and bf16 ("-": not detectable there, with the
reason in `note`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mutant:
    """One injected bug."""

    name: str
    description: str
    cases: tuple[str, ...]
    expected: dict[str, str]
    replace: Callable[[], list[tuple[Any, str, Any]]] | None = None
    change: Callable[[Any], None] | None = None
    note: str = ""
    form: str = "CPU"

    @contextmanager
    def patched(self) -> Iterator[None]:
        """The port with this bug in its code."""
        changes = self.replace() if self.replace else []
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
        try:
            for owner, name, value in changes:
                setattr(owner, name, value)
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)

    def edit(self, model: Any) -> None:
        """The loaded model with this bug in its state."""
        if self.change:
            self.change(model)


def _cells(model, kind):
    return [cell for _, cell in model.cells_and_names() if type(cell).__name__ == kind]


def _set(kind, attribute, value):
    def change(model):
        for cell in _cells(model, kind):
            setattr(cell, attribute, value)

    return change


def _cos_sin_order():
    from mindspore import ops

    from ms_latte.models import embeddings

    right = embeddings.timestep_embedding

    def swapped(timesteps, dim, precision):
        cos, sin = right(timesteps, dim, precision).chunk(2, axis=1)
        return ops.cat([sin, cos], axis=1)

    return [(embeddings, "timestep_embedding", swapped)]


def _softmax_half():
    import mindspore as ms
    from mindspore import ops

    from ms_latte.models import attention

    right = attention.DotProductAttention.construct

    class HalfSoftmax:
        def __init__(self, axis):
            self.axis = axis

        def __call__(self, x):
            # exp and running sum in float16, as a kernel without a float32 accumulator would
            x = ops.cast(x, ms.float16)
            x = ops.cast(ops.exp(ops.cast(x - x.max(axis=-1, keepdims=True), ms.float32)), ms.float16)
            total = _running_sum_half(x)
            return ops.cast(x / total, ms.float32)

    def construct(self, q, k, v, bias=None):
        before = attention.ops.Softmax
        attention.ops.Softmax = HalfSoftmax
        try:
            return right(self, q, k, v, bias)
        finally:
            attention.ops.Softmax = before

    return [(attention.DotProductAttention, "construct", construct)]


def _running_sum_half(x):
    import mindspore as ms
    import numpy as np

    values = x.asnumpy()
    total = np.zeros(values.shape[:-1], np.float16)
    for i in range(values.shape[-1]):
        total = (total + values[..., i]).astype(np.float16)
    return ms.Tensor(total[..., None])


def _mask_sign():
    from ms_latte.models import latte_t2v

    right = latte_t2v.text_bias

    def flipped(mask, bias, layout, use_image_num, precision):
        return right(None if mask is None else 1 - mask, bias, layout, use_image_num, precision)

    return [(latte_t2v, "text_bias", flipped)]


def _no_temporal_embedding():
    from mindspore import ops

    from ms_latte.models import latte, latte_t2v

    changes = []
    for owner in (latte.Latte, latte_t2v.LatteT2V):
        right = owner.temporal_positions
        changes.append(
            (owner, "temporal_positions", lambda self, F, right=right: ops.zeros_like(right(self, F)))
        )
    return changes


def _chunk_order():
    from ms_latte.models import blocks

    right = blocks.modulate
    return [(blocks, "modulate", lambda x, shift, scale, precision: right(x, scale, shift, precision))]


def _stopped_gradient():
    from mindspore import ops

    from ms_latte.models import blocks

    right = blocks.modulate

    def stopped(x, shift, scale, precision):
        return right(x, ops.stop_gradient(shift), scale, precision)

    return [(blocks, "modulate", stopped)]


def _transpose_square(model):
    for name, parameter in model.parameters_and_names():
        if parameter.ndim == 2 and parameter.shape[0] == parameter.shape[1] and name.endswith("weight"):
            parameter.set_data(parameter.value().swapaxes(0, 1).copy())
            return


def _round_weights(model):
    import mindspore as ms
    from mindspore import ops

    for parameter in model.get_parameters():
        parameter.set_data(ops.cast(ops.cast(parameter.value(), ms.bfloat16), parameter.dtype))


NETS = ("latte.Latte-class", "latte_t2v.LatteT2V-mask2d")
G2 = {"fp32": "G1 G2", "fp16": "G2", "bf16": "G2"}

_ALL = (
    Mutant(
        "gelu_erf",
        "GELU in the erf form instead of tanh",
        ("layers.GELU-probe_tail", *NETS),
        {"fp32": "G0 G1 G2", "fp16": "G0 G2", "bf16": "G0 G2"},
        change=_set("GELU", "approximate", "none"),
    ),
    Mutant(
        "layer_norm_eps",
        "LayerNorm eps 1e-5 instead of 1e-6",
        ("layers.LayerNorm-probe_small", *NETS),
        {"fp32": "G0 G1 G2", "fp16": "G0 G2", "bf16": "G0 G2"},
        change=_set("LayerNorm", "eps", 1e-5),
    ),
    Mutant("cos_sin_order", "timestep sinusoid as [sin | cos]", NETS, G2, replace=_cos_sin_order),
    Mutant(
        "no_attention_scale",
        "logits not divided by the square root of the head width",
        NETS,
        {"fp32": "G0 G1 G2", "fp16": "G0 G2", "bf16": "G0 G2"},
        change=_set("DotProductAttention", "scale", 1.0),
    ),
    Mutant(
        "pad_same",
        'patch convolution with pad_mode "same" instead of "valid"',
        ("layers.PatchConv-probe_odd",),
        {"fp32": "G0 G2", "fp16": "G0 G2", "bf16": "G0 G2"},
        change=_set("PatchConv", "pad_mode", "same"),
        form="Ascend",  # the im2col formulation of the CPU refuses any padding
        note="bitwise equal to valid wherever the patch divides the size",
    ),
    Mutant(
        "softmax_half",
        "softmax with exp and running sum in float16",
        ("attention.DotProductAttention-probe_long", *NETS),
        G2,
        replace=_softmax_half,
    ),
    Mutant("mask_sign", "text mask read as 1 = drop", ("latte_t2v.LatteT2V-mask2d",), G2, replace=_mask_sign),
    Mutant("no_temporal_embedding", "temporal positions left out", NETS, G2, replace=_no_temporal_embedding),
    Mutant("chunk_order", "shift and scale swapped", NETS, G2, replace=_chunk_order),
    Mutant(
        "stopped_gradient",
        "the gradient of every shift is stopped",
        ("latte.Latte-class", "latte_t2v.LatteT2V-mask2d"),
        {"fp32": "G5", "fp16": "G5", "bf16": "G5"},
        replace=_stopped_gradient,
        note="no forward differs",
    ),
    Mutant(
        "transposed_weight",
        "one square weight transposed on loading",
        NETS,
        {"fp32": "G0 G1 G2", "fp16": "G0 G2", "bf16": "G0 G2"},
        change=_transpose_square,
    ),
    Mutant(
        "bf16_weights",
        "weights rounded to bf16 on loading",
        NETS,
        {"fp32": "G0 G1 G2", "fp16": "G0", "bf16": "-"},
        change=_round_weights,
        note="bf16 weights are the weights of a bf16 model: no bug there",
    ),
)

MUTANTS = {mutant.name: mutant for mutant in _ALL}
