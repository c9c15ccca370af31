# SPDX-License-Identifier: Apache-2.0
"""The fused attention kernel of Ascend, against a numpy model of its documented contract.

The CPU has no such kernel. A stand-in checks every documented rule of `mindspore.ops.flash_attention_score` (2.10) that
the port could break and computes in float64; what is tested is what the port hands over and does with the result.
"""

import mindspore as ms
import numpy as np
import pytest

from ms_latte import device
from ms_latte.models import attention, layers
from ms_latte.models.precision import Precision
from parity.harness.emulate import UNIT_ROUNDOFF, to_grid
from tests.helpers import normal, relative_l2
from tests.ms_latte.tiny import fill, run, t2v_inputs, tiny_t2v

KINDS = {"fp16": ms.float16, "bf16": ms.bfloat16}
# The kernel rounds once to its type; the float32 it is compared with is good to 1e-5 (CPU exp: 94 ULP).
ONE_ROUNDING = {name: UNIT_ROUNDOFF[name] + 1e-5 for name in KINDS}


class Kernel:
    """The stand-in; `calls` holds (layout, shape of query, shape of mask)."""

    def __init__(self):
        self.calls = []

    def __call__(
        self,
        query,
        key,
        value,
        head_num,
        real_shift=None,
        drop_mask=None,
        padding_mask=None,
        attn_mask=None,
        prefix=None,
        actual_seq_qlen=None,
        actual_seq_kvlen=None,
        keep_prob=1.0,
        scalar_value=1.0,
        pre_tokens=2147483647,
        next_tokens=2147483647,
        inner_precise=0,
        input_layout="BSH",
        sparse_mode=0,
    ):
        if query.dtype not in KINDS.values():
            raise TypeError(f"Dtype of query is {query.dtype}, not float16 or bfloat16")
        if not query.dtype == key.dtype == value.dtype:
            raise TypeError("query, key and value don't have the same dtype")
        if not isinstance(scalar_value, float) or not isinstance(keep_prob, float):
            raise TypeError("scalar_value or keep_prob is not a double number")
        if input_layout != "BNSD":
            raise ValueError(f"the model of the contract knows BNSD only, got {input_layout!r}")
        if query.ndim != 4 or key.shape != value.shape:
            raise ValueError(f"shapes {query.shape}, {key.shape}, {value.shape}")
        B, N, S, D = query.shape
        if key.shape[:2] != (B, N) or key.shape[3] != D:
            raise RuntimeError(
                f"query {query.shape}, key {key.shape}: another batch, number of heads or width"
            )
        if not 1 <= B <= 2048 or not 1 <= N <= 256 or D % 16 or D > 512 or head_num != N:
            raise RuntimeError(f"beyond the limits: B {B}, N {N}, D {D}, head_num {head_num}")
        if (real_shift, drop_mask, padding_mask, prefix, actual_seq_qlen, actual_seq_kvlen) != (None,) * 6:
            raise ValueError("the model of the contract knows attn_mask only")
        if sparse_mode not in (0, 1) or keep_prob != 1.0:
            raise ValueError("a full mask needs sparse_mode 0 or 1; without drop_mask keep_prob is 1")
        if attn_mask is not None:
            if attn_mask.dtype not in (ms.bool_, ms.uint8):
                raise TypeError(f"Dtype of attn_mask is {attn_mask.dtype}, not bool or uint8")
            M = key.shape[2]
            if tuple(attn_mask.shape) not in ((B, N, S, M), (B, 1, S, M), (S, M)):
                raise RuntimeError(f"attn_mask shape {attn_mask.shape} is not valid")
        self.calls.append((tuple(query.shape), None if attn_mask is None else tuple(attn_mask.shape)))
        q, k, v = (x.astype(ms.float32).asnumpy().astype(np.float64) for x in (query, key, value))
        logits = scalar_value * q @ k.transpose(0, 1, 3, 2)
        if attn_mask is not None:
            logits = np.where(attn_mask.astype(ms.int32).asnumpy() == 1, -np.inf, logits)  # 1 discards
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out = (weights / weights.sum(-1, keepdims=True)) @ v
        return ms.Tensor(out.astype(np.float32)).astype(query.dtype)


@pytest.fixture
def kernel(monkeypatch):
    stand_in = Kernel()
    monkeypatch.setattr(ms.ops, "flash_attention_score", stand_in)
    with device.formulations(attention="kernel"):
        yield stand_in


def qkv(compute, d, rows=6, n=5, m=7):
    return [to_grid(normal(rows, size, d, seed=i), compute) for i, size in enumerate((n, m, m))]


def mask(*lengths, m=7):
    return np.arange(m) < np.array(lengths)[:, None]


def core(compute, d, form, arrays, keep=None):
    """DotProductAttention on arrays; compute "fp32" is the composed reference."""
    cell = attention.DotProductAttention(d, form, precision=Precision(compute))
    kind = KINDS.get(compute, ms.float32)
    bias = None if keep is None else ms.Tensor(keep)
    return cell(*[ms.Tensor(x).astype(kind) for x in arrays], bias).astype(ms.float32).asnumpy()


@pytest.mark.parametrize("compute", KINDS)
@pytest.mark.parametrize("lengths", [None, (7, 7, 7), (1, 7, 4), (2, 5)], ids=str)
@pytest.mark.parametrize("d", [72, 64, 16])
def test_kernel_equals_the_composed_form(kernel, d, lengths, compute):
    """72 is padded to 80 and cut again, with the scale of 72; a mask row serves all heads of its group."""
    arrays, keep = qkv(compute, d), None if lengths is None else mask(*lengths)
    out = core(compute, d, "flash", arrays, keep)
    assert relative_l2(out, core("fp32", d, "math", arrays, keep)) <= ONE_ROUNDING[compute]
    (query, shape), padded = kernel.calls[0], {72: 80}.get(d, d)
    if lengths is None:
        assert query == (1, 6, 5, padded) and shape is None
    else:
        groups = len(lengths)
        assert query == (groups, 6 // groups, 5, padded) and shape == (groups, 1, 5, 7)


def test_a_mask_means_the_same_in_the_composed_form():
    arrays, keep = qkv("fp32", 16), mask(1, 7, 4)
    out = core("fp32", 16, "math", arrays, keep)
    bias = np.where(keep, 0, -10000).astype(np.float32)
    assert np.array_equal(out, core("fp32", 16, "math", arrays, bias))
    cut = core("fp32", 16, "math", [arrays[0][:2], arrays[1][:2, :1], arrays[2][:2, :1]])
    assert relative_l2(out[:2], cut) <= 1e-6  # the first group sees one key: as if there were no others


@pytest.mark.parametrize(
    "break_", ["mask not inverted", "scale of the padded width", "mask of another group"]
)
def test_a_wrong_hand_over_is_found(kernel, monkeypatch, break_):
    if break_ == "mask not inverted":
        monkeypatch.setattr(ms.ops, "logical_not", lambda x: x)
    elif break_ == "mask of another group":
        inverted = ms.ops.logical_not
        monkeypatch.setattr(ms.ops, "logical_not", lambda x: inverted(x)[::-1])
    else:
        takes, attend = layers.FORMULATIONS["attention"]["kernel"]
        wrong = (takes, lambda q, k, v, keep, scale: attend(q, k, v, keep, 80**-0.5))
        monkeypatch.setitem(layers.FORMULATIONS["attention"], "kernel", wrong)
    arrays, keep = qkv("fp16", 72), mask(1, 6, 4)
    out = core("fp16", 72, "flash", arrays, keep)
    assert len(kernel.calls) == 1
    assert relative_l2(out, core("fp32", 72, "math", arrays, keep)) > 5 * ONE_ROUNDING["fp16"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (dict(query=ms.float32), TypeError),
        (dict(key=ms.bfloat16), TypeError),
        (dict(width=72), RuntimeError),
        (dict(head_num=3), RuntimeError),
        (dict(attn_mask=ms.Tensor(np.zeros((2, 3, 1, 7), np.uint8))), RuntimeError),
        (dict(attn_mask=ms.Tensor(np.zeros((2, 1, 5, 7), np.float32))), TypeError),
        (dict(scalar_value=1), TypeError),
        (dict(input_layout="BSH"), ValueError),
        (dict(keep_prob=0.9), ValueError),
        (dict(sparse_mode=2), ValueError),
        (dict(rows=2049), RuntimeError),
    ],
    ids=lambda value: str(value)[:40].replace("\n", " ") if isinstance(value, dict) else "",
)
def test_the_stand_in_refuses_what_the_documentation_refuses(changes, error):
    width, rows = changes.pop("width", 16), changes.pop("rows", 2)
    given = dict(query=ms.float16, key=ms.float16, head_num=2, input_layout="BNSD", **{}) | changes
    q = ms.Tensor(np.zeros((rows, 2, 5, width), np.float32)).astype(given.pop("query"))
    k = ms.Tensor(np.zeros((rows, 2, 7, width), np.float32)).astype(given.pop("key"))
    with pytest.raises(error):
        Kernel()(q, k, k, **given)


@pytest.mark.parametrize("reason", ["additive bias", "float32", "emulated", "wide heads", "math", "CPU"])
def test_what_the_rules_do_not_allow_is_composed(kernel, reason):
    d, compute, form, rounding = 16, "fp16", "flash", "native"
    bias = mask(1, 7, 4)
    if reason == "additive bias":
        bias = normal(3, 7)
    elif reason == "float32":
        compute = "fp32"
    elif reason == "emulated":
        rounding = "emulated"
    elif reason == "wide heads":
        d = 520
    elif reason == "math":
        form = "math"
    precision = Precision(compute, rounding=rounding)
    inputs = [ms.Tensor(x).astype(precision.dtype) for x in qkv("fp16", d)] + [ms.Tensor(bias)]
    # Emulated, the fused form is that of float32, rounded once; otherwise it has the bits of the composed one.
    inside = Precision() if reason == "emulated" else precision
    expected = precision.round(attention.DotProductAttention(d, "math", precision=inside)(*inputs))
    with device.formulations(attention="composed" if reason == "CPU" else "kernel"):
        out = attention.DotProductAttention(d, form, precision=precision)(*inputs)
    assert kernel.calls == []
    assert np.array_equal(out.asnumpy(), expected.asnumpy())


@pytest.mark.parametrize(
    ("rows", "groups", "width", "expected"),
    [
        (6, 0, 80, (1, 6)),
        (32768, 0, 80, (128, 256)),  # temporal attention of two samples at 1024 tokens, 16 heads
        (524288, 0, 80, (2048, 256)),
        (524290, 0, 80, None),
        (4099, 0, 80, None),  # a prime: no way to deal it out
        (32, 2, 80, (2, 16)),
        (32768, 2049, 80, None),
        (514, 2, 80, None),  # 257 heads
        (6, 0, 528, None),
    ],
)
def test_limits_of_the_kernel(rows, groups, width, expected):
    assert layers._kernel_layout(rows, groups, width) == expected


@pytest.mark.parametrize("rows", ["per sample", "per image"])
def test_cross_attention_with_lengths(kernel, rows):
    """Text of different lengths, one row a sample or one for the video and each image: heads 3, frames 5."""
    texts = 2 if rows == "per sample" else 6
    keep = mask(*([1, 6] if texts == 2 else [1, 7, 4, 6, 2, 5]))
    layout = layers.TokenLayout(2, 5, 4)
    arrays = [to_grid(normal(40, 48), "fp16"), to_grid(normal(texts, 7, 20), "fp16")]
    outs = {}
    for compute, flash in (("fp16", True), ("fp32", False)):
        cell = attention.MultiHeadAttention(
            48, 20, heads=3, dim_head=24, enable_flash_attention=flash, precision=Precision(compute)
        )
        fill(cell)
        for parameter in cell.get_parameters():  # the same bits on both sides
            grid = to_grid(parameter.astype(ms.float32).asnumpy(), "fp16")
            parameter.set_data(ms.Tensor(grid, parameter.dtype))
        x, text = (ms.Tensor(a).astype(cell.precision.dtype) for a in arrays)
        outs[compute] = cell(x, text, ms.Tensor(keep), layout).astype(ms.float32).asnumpy()
    assert len(kernel.calls) == 1 and kernel.calls[0][0][3] == 32
    # projections, core and result are rounded in turn: four roundings
    assert relative_l2(outs["fp16"], outs["fp32"]) <= 4 * ONE_ROUNDING["fp16"]


def test_whole_net(kernel):
    """Self-attentions take the kernel; masked text is an additive bias in LatteT2V and stays composed."""
    inputs, keep = t2v_inputs(width=12), np.array([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]])
    named = dict(precision=Precision("fp16"))
    expected = run(tiny_t2v(**named), *inputs, encoder_attention_mask=keep)
    model = tiny_t2v(enable_flash_attention=True, **named)
    out = run(model, *inputs, encoder_attention_mask=keep)
    assert len(kernel.calls) == 4  # two layers, spatial and temporal
    assert (
        relative_l2(out, expected) <= 60 * UNIT_ROUNDOFF["fp16"]
    )  # two half-precision runs, as in test_precision
    with device.formulations("CPU"):
        assert np.array_equal(run(model, *inputs, encoder_attention_mask=keep), expected)
