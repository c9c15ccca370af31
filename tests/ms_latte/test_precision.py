# SPDX-License-Identifier: Apache-2.0
"""Half precision, emulated and native, and the formulations that a device selects."""

import mindspore as ms
import numpy as np
import pytest

from ms_latte import device
from ms_latte.encoders import vae_layers
from ms_latte.models import blocks, embeddings
from ms_latte.models.layers import FORMULATIONS
from ms_latte.models.precision import Precision
from tests.helpers import normal, relative_l2
from tests.ms_latte.tiny import fill, latte_inputs, parameters, run, t2v_inputs, tiny_latte, tiny_t2v

HALF = {"fp16": 2.0**-11, "bf16": 2.0**-8}  # half a unit in the last place, relative


def on_grid(value, compute):
    """Whether float32 numbers are all numbers of the half type."""
    if compute == "fp16":
        with np.errstate(over="ignore"):
            return np.array_equal(value.astype(np.float16).astype(np.float32), value)
    return not (value.view(np.uint32) & 0xFFFF).any()


def to_grid(model, compute):
    for parameter in parameters(model).values():
        half = parameter.astype(ms.float16 if compute == "fp16" else ms.bfloat16).astype(ms.float32)
        parameter.set_data(ms.Tensor(half.asnumpy()))
    return model


@pytest.mark.parametrize("islands", ["fp32", "compute"])
@pytest.mark.parametrize("compute", ["fp16", "bf16"])
@pytest.mark.parametrize("family", ["Latte", "LatteT2V"])
def test_emulated_results_are_half_numbers(family, compute, islands):
    """Every cell of the model hands on numbers of the half type, held in float32; the result is near float32's."""
    precision = Precision(compute, islands, "emulated")
    if family == "Latte":
        make, inputs = tiny_latte, latte_inputs()
    else:
        make, inputs = tiny_t2v, t2v_inputs(width=12)
    model = to_grid(make(precision=precision), compute)
    off, seen = [], []

    def look(cell, _, outputs):
        seen.append(type(cell).__name__)
        for out in outputs if isinstance(outputs, tuple) else (outputs,):
            if out.dtype != ms.float32 or not on_grid(out.asnumpy(), compute):
                off.append(type(cell).__name__)

    for _, cell in model.cells_and_names():
        cell.register_forward_hook(look)
    out = run(model, *inputs)
    assert not off and len(seen) > 50
    assert on_grid(out, compute)
    expected = run(to_grid(make(), compute), *inputs)
    assert not on_grid(expected, compute)
    # About 30 rounded operations in a row; errors add like a random walk, with an order of magnitude to spare.
    assert relative_l2(out, expected) <= 60 * HALF[compute]
    assert relative_l2(out, expected) >= 0.1 * HALF[compute]


def test_native_float16_block_runs():
    """The CPU has float16 kernels for everything in a block; the result is that of the emulation, but for the
    accumulator of its products."""
    block = dict(
        cross_attention_dim=20,
        activation_fn="gelu-approximate",
        attention_bias=True,
        norm_elementwise_affine=True,
    )
    x, text = normal(2, 5, 48), normal(2, 7, 20, seed=1)
    t, bias = normal(2, 6 * 48, seed=2), (normal(2, 1, 7, seed=3) > 0.5).astype(np.float32) * -10000.0
    outs = {}
    for rounding in ("native", "emulated"):
        precision = Precision("fp16", rounding=rounding)
        layer = fill(blocks.BasicTransformerBlock(48, 3, 16, **block, precision=precision))
        if rounding == "emulated":
            to_grid(layer, "fp16")
        assert {parameter.dtype for parameter in parameters(layer).values()} == {precision.dtype}
        args = [ms.Tensor(value, precision.dtype) for value in (x, text, t)]
        if rounding == "emulated":
            args = [argument.astype(ms.float16).astype(ms.float32) for argument in args]
        out = layer(
            args[0], encoder_hidden_states=args[1], timestep=args[2], encoder_attention_mask=ms.Tensor(bias)
        )
        assert out.dtype == precision.dtype
        outs[rounding] = out.asnumpy().astype(np.float32)
    assert (
        relative_l2(outs["native"], outs["emulated"]) <= 10 * HALF["fp16"]
    )  # other accumulators, ~20 operations


def test_positions_do_not_change_the_type():
    """Table and sum are float32, the tokens go on in the compute type; also in the temporal table."""
    layer = fill(embeddings.PatchEmbed(8, 8, 2, 4, 48, precision=Precision("fp16")))
    latent = ms.Tensor(normal(2, 4, 8, 12), ms.float16)
    assert layer.positions(4, 6).dtype == ms.float32
    out = layer(latent)
    assert out.dtype == ms.float16
    tokens = layer.proj(latent).asnumpy().astype(np.float32)
    assert np.array_equal(out.asnumpy(), (tokens + layer.positions(4, 6).asnumpy()).astype(np.float16))


def test_whole_model_in_native_float16():
    """Inputs of any type go in, float16 comes out, close to float32."""
    outs = {}
    for compute in ("fp16", "fp32"):
        model = tiny_t2v(precision=Precision(compute))
        out = model(*[ms.Tensor(value) for value in t2v_inputs()])
        assert out.dtype == model.precision.dtype
        outs[compute] = out.asnumpy()
    assert relative_l2(outs["fp16"], outs["fp32"]) <= 60 * HALF["fp16"]  # see the emulation above


def test_float64_is_finer_than_float32():
    """The fp64 policy computes all of it in float64: sinusoid, tables, islands and constants."""
    x, t, text = t2v_inputs(width=12)
    model = tiny_t2v(precision=Precision("fp64"))
    out = model(*[ms.Tensor(value) for value in (x.astype(np.float64), t, text.astype(np.float64))])
    assert out.dtype == ms.float64
    with device.formulations("Ascend", linear="matmul_bias_add", layer_norm="composed", gelu_tanh="sigmoid"):
        again = model(*[ms.Tensor(value) for value in (x.astype(np.float64), t, text.astype(np.float64))])
    # float64 through two ways of regrouping; a stray float32 anywhere would leave 1e-8
    assert relative_l2(again.asnumpy(), out.asnumpy()) <= 1e-13


FORMULATION_TOLERANCE = 1e-5  # float32; the native LayerNorm and tanh kernels of the CPU are the least exact


@pytest.mark.parametrize("family", ["Latte", "LatteT2V"])
def test_formulations_agree(family):
    """The columns of the table are one mathematics: the accelerator's agrees on the CPU."""
    model, inputs = (
        (tiny_latte(), latte_inputs()) if family == "Latte" else (tiny_t2v(), t2v_inputs(width=12))
    )
    expected = run(model, *inputs)
    with device.formulations("Ascend"):
        assert relative_l2(run(model, *inputs), expected) <= FORMULATION_TOLERANCE
    assert np.array_equal(run(model, *inputs), expected)  # the selection ended with the block


@pytest.mark.parametrize(
    ("operation", "name"), [(operation, name) for operation, names in FORMULATIONS.items() for name in names]
)
def test_each_formulation_agrees(operation, name):
    model, inputs = tiny_t2v(norm_elementwise_affine=True), t2v_inputs(frames=5, width=12, rows=3)
    expected = run(model, *inputs, use_image_num=2)
    with device.formulations(**{operation: name}):
        assert device.formulation(operation) == name
        assert relative_l2(run(model, *inputs, use_image_num=2), expected) <= FORMULATION_TOLERANCE


def half_range(compute):
    """Every number of a half type, its neighbours in float32 and what lies between; NaN, infinities, overflow."""
    bits = np.arange(1 << 16, dtype=np.uint32)
    if compute == "fp16":
        exact = bits.astype(np.uint16).view(np.float16).astype(np.float32)
    else:
        exact = (bits << 16).view(np.float32)
    near = exact.view(np.uint32)
    with np.errstate(invalid="ignore", over="ignore"):
        around = [exact, (near + 1).view(np.float32), (near - 1).view(np.float32)]
        steps = np.float32(1 << 13 if compute == "fp16" else 1 << 16)  # of float32 in one of the half type
        gap = np.abs(np.nextafter(exact, np.float32(np.inf)) - exact) * steps
        around += [exact + gap * np.float32(0.5), exact + gap * np.float32(0.75)]
    assert {part.dtype for part in around} == {np.dtype(np.float32)}
    return np.concatenate(around)


@pytest.mark.parametrize("compute", ["fp16", "bf16"])
def test_rounding_by_copies_has_the_bits_of_a_cast(compute):
    x, precision = half_range(compute), Precision(compute, rounding="emulated")
    expected = precision.round(ms.Tensor(x)).asnumpy()
    with device.formulations(half_grid="copy"):
        found = precision.round(ms.Tensor(x)).asnumpy()
    nan = np.isnan(expected)
    assert np.array_equal(nan, np.isnan(found))
    assert np.array_equal(expected.view(np.uint32)[~nan], found.view(np.uint32)[~nan])
    assert (found != x)[~nan].mean() > 0.5 and np.isinf(found).any() and nan.any()
    if compute == "fp16":
        with np.errstate(over="ignore"):
            assert np.array_equal(found[~nan], x.astype(np.float16).astype(np.float32)[~nan])


def test_rounding_by_copies_is_for_a_forward_alone():
    """A cast rounds the gradient that comes back through it, as half precision does; a copy lets it pass."""
    precision = Precision("bf16", rounding="emulated")
    x, fine = ms.Tensor(np.ones(4, np.float32)), ms.Tensor(np.full(4, 1 + 2.0**-12, np.float32))

    def loss(x):
        return (precision.round(x) * fine).sum()

    assert np.array_equal(ms.grad(loss)(x).asnumpy(), np.ones(4))
    with device.formulations(half_grid="copy"):
        assert np.array_equal(ms.grad(loss)(x).asnumpy(), fine.asnumpy())


def test_devices_choose_existing_formulations():
    assert set(device.BY_DEVICE) == set(device.DEVICES)
    tables = FORMULATIONS | vae_layers.FORMULATIONS
    assert len(tables) == len(FORMULATIONS) + len(vae_layers.FORMULATIONS)
    for choice in device.BY_DEVICE.values():
        assert choice.keys() == tables.keys()
        assert all(choice[operation] in tables[operation] for operation in choice)
    with pytest.raises(ValueError, match="no operation matmul"), device.formulations(matmul="dense"):
        pass
