# SPDX-License-Identifier: Apache-2.0
"""Behaviour of the T5 encoder that is ours; its values are judged by the parity cases and by transformers' encoder."""

import inspect

import mindspore as ms
import numpy as np
import pytest

from converters.layouts import OURS
from ms_latte.checkpoint import load_arrays
from ms_latte.encoders.t5 import T5EncoderModel, attention_bias
from ms_latte.models.precision import Precision
from parity.encoders.t5 import CONFIG, RELU
from parity.harness.weights import random_state
from tests.helpers import normal, relative_l2
from tests.ms_latte.test_names import assert_one_name_each
from tests.ms_latte.tiny import SAME, fill, run, shapes

IDS = np.random.default_rng(5).integers(0, 50, (2, 9))
MASK = np.array([[1] * 4 + [0] * 5, [1] * 9])


@pytest.mark.parametrize("config", [CONFIG, RELU], ids=["gated", "relu"])
def test_names_are_those_of_the_converters(config):
    """One name each; names and shapes are the rows of the converters' own layout."""
    model = T5EncoderModel(**config)
    assert_one_name_each(model)
    layout = OURS["T5EncoderModel"]
    arguments = [name for name in inspect.signature(T5EncoderModel).parameters if name != "precision"]
    assert set(arguments) == set(layout.model.keys) == set(model.config)
    assert model.config == config
    assert sum("relative_attention_bias" in name for name in shapes(model)) == 1


def test_a_caption_alone_and_in_a_batch():
    """The same features, whatever the other captions, the padding behind it, and what stands in the padding."""
    model = fill(T5EncoderModel(**CONFIG))
    together = run(model, IDS, MASK)
    alone = run(model, IDS[:1], MASK[:1])
    other = np.where(MASK == 1, IDS, 7)
    assert relative_l2(together[:1], alone) <= SAME
    assert relative_l2(run(model, other, MASK)[0, :4], together[0, :4]) <= SAME
    assert relative_l2(run(model, IDS[:1, :4]), together[:1, :4]) <= SAME
    assert relative_l2(run(model, IDS)[0, :4], together[0, :4]) > 0.01  # without the mask padding is read


@pytest.mark.parametrize("kind", [np.bool_, np.int32, np.float32])
def test_masks_of_any_type(kind):
    model = fill(T5EncoderModel(**CONFIG))
    assert np.array_equal(run(model, IDS, MASK.astype(kind)), run(model, IDS, MASK))


@pytest.mark.parametrize("compute", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("islands", ["fp32", "compute"])
def test_a_row_without_tokens_is_finite(compute, islands):
    precision = Precision(compute, islands, "native" if compute == "fp32" else "emulated")
    bias = attention_bias(ms.Tensor(normal(4, 7, 7)), ms.Tensor(np.zeros((2, 7), np.int32)), 2, precision)
    assert np.isfinite(bias.asnumpy()).all()
    model = fill(T5EncoderModel(**CONFIG, precision=precision))
    assert np.isfinite(run(model, IDS, MASK * 0)).all()


def test_half_precision_keeps_the_range():
    """Streams of 1e5 and more overflow float16; what leads to them is float32 there, as in transformers."""
    state = random_state(shapes(T5EncoderModel(**CONFIG)), seed=3)
    state = {name: value * 1e5 if ".wo." in name else value for name, value in state.items()}
    state = {name: value.clip(-65000, 65000) for name, value in state.items()}
    outputs = {}
    for compute in ("fp32", "fp16"):
        precision = Precision(compute, rounding="native" if compute == "fp32" else "emulated")
        model = load_arrays(T5EncoderModel(**CONFIG, precision=precision), {**state})
        outputs[compute] = run(model, IDS, MASK)
    assert (
        relative_l2(outputs["fp16"], outputs["fp32"]) <= 5e-3
    )  # float16 rounding: 5e-4, ten operations deep


def test_wo_is_float32_under_float16():
    model = T5EncoderModel(**CONFIG, precision=Precision("fp16"))
    kinds = {name: parameter.dtype for name, parameter in model.parameters_and_names()}
    assert {name for name, kind in kinds.items() if kind == ms.float32} == {n for n in kinds if ".wo." in n}
    for precision in (Precision("bf16"), Precision("fp16", islands="compute")):
        model = T5EncoderModel(**CONFIG, precision=precision)
        assert {parameter.dtype for parameter in model.get_parameters()} == {precision.dtype}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(feed_forward_proj="gelu"), "'gelu'; expected one of relu, gated-gelu"),
        (dict(relative_attention_num_buckets=3), "num_buckets 3 and"),
        (dict(relative_attention_max_distance=2), "max_distance 2 do not fit"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        T5EncoderModel(**{**CONFIG, **changes})


def test_shapes_are_checked():
    model = T5EncoderModel(**CONFIG)
    with pytest.raises(ValueError, match=r"input_ids \(2, 9\) and attention_mask \(2, 8\)"):
        run(model, IDS, MASK[:, :8])
    with pytest.raises(ValueError, match=r"input_ids \(9,\)"):
        run(model, IDS[0])
