# SPDX-License-Identifier: Apache-2.0
"""The training step: windows, overflows, ranks, resumption, graph mode. Equality with torch is parity's to show."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops

from ms_latte.diffusion.gaussian import GaussianDiffusion
from ms_latte.models.precision import Precision
from ms_latte.training.ema import EMA
from ms_latte.training.losses import condition_kind
from ms_latte.training.optim import AdamW, decayed_names, trainable_parameters
from ms_latte.training.scaler import LossScaler
from ms_latte.training.step import TrainingStep
from tests.helpers import relative_l2
from tests.ms_latte.tiny import tiny_latte, tiny_t2v

SMALL = dict(depth=2, hidden_size=24)
# Two summation orders of one gradient in float32; where the second moment is tiny, the root magnifies them.
SAME = 1e-4


def latte(**rest):
    return tiny_latte(**SMALL, **rest)


def step_of(model, precision=Precision(), scaler=None, **rest):
    parameters = trainable_parameters(model)
    optimizer = AdamW(parameters, weight_decay=0.1, decayed=decayed_names(parameters), precision=precision)
    diffusion = GaussianDiffusion(precision=precision)
    return TrainingStep(model, diffusion, optimizer, EMA(optimizer.masters), scaler, **rest)


def batch(k=0, samples=4, start=0, **rest):
    rng = np.random.default_rng([9, k])
    full = {name: rng.normal(size=(4, 3, 4, 8, 8)).astype(np.float32) for name in ("latents", "noise")}
    full |= dict(t=np.array([3, 800, 41, 0], np.int32), label=np.array([1, 6, 3, 0], np.int32))
    full |= dict(drop=np.array([False, True, False, True]))
    part = {name: value[start : start + samples] for name, value in full.items()}
    scalars = dict(lr=np.float32(1e-3), ema_decay=np.float32(0.9), clip=np.bool_(True))
    return {name: ms.Tensor(value) for name, value in (part | scalars | rest).items()}


def arrays(step):
    weights = {f"model.{name}": value for name, value in step.model.parameters_and_names()}
    return {name: np.array(value.asnumpy()) for name, value in (step.state() | weights).items()}


def changed(before, after):
    return sorted(name for name in before if not np.array_equal(before[name], after[name], equal_nan=True))


def poisoned(k, samples=4, start=0):
    inputs = batch(k, samples, start)
    values = inputs["noise"].asnumpy().copy()
    values[0, 0, 0, 0, 0] = np.nan
    return inputs | dict(noise=ms.Tensor(values))


def test_one_step_changes_all_that_trains_and_nothing_else():
    step = step_of(latte(condition="class"), scaler=LossScaler(), max_grad_norm=0.1)
    before = arrays(step)
    metrics = step(batch())
    assert bool(metrics["updated"]) and bool(metrics["finite"])
    assert float(metrics["loss"]) == pytest.approx(float(metrics["mse"]) + float(metrics["vb"]))
    still = sorted(set(before) - set(changed(before, arrays(step))))
    assert still == ["model.pos_embed", "model.temp_embed", "scaler.scale"]


def test_an_overflow_changes_the_scale_alone():
    step = step_of(latte(condition="class"), scaler=LossScaler(init=8.0, window=5))
    step(batch())
    before = arrays(step)
    metrics = step(poisoned(1))
    assert not metrics["updated"] and not metrics["finite"]
    after = arrays(step)
    assert changed(before, after) == ["scaler.good", "scaler.scale"]
    assert (after["scaler.scale"], after["scaler.good"]) == (4.0, 0)


def test_an_overflow_is_kept_where_that_is_asked():
    step = step_of(latte(condition="class"), drop_overflow=False)
    assert bool(step(poisoned(1))["updated"])
    assert np.isnan(arrays(step)["model.final_layer.linear.bias"]).any()


def test_one_overflow_drops_the_window_and_the_next_one_is_clean():
    steps = [step_of(latte(condition="class"), accumulation_steps=2) for _ in range(2)]
    fresh = arrays(steps[0])
    assert [bool(steps[0](inputs)["updated"]) for inputs in (poisoned(0, 2), batch(0, 2, 2))] == [
        False,
        False,
    ]
    assert changed(fresh, arrays(steps[0])) == []
    for step in steps:
        assert [bool(step(batch(1, 2, start))["updated"]) for start in (0, 2)] == [False, True]
    assert changed(*map(arrays, steps)) == []


def test_a_window_is_one_step_of_the_whole_batch():
    whole, parts = step_of(latte(condition="class")), step_of(latte(condition="class"), accumulation_steps=2)
    whole(batch())
    for start in (0, 2):
        parts(batch(0, 2, start))
    expected, found = arrays(whole), arrays(parts)
    assert max(relative_l2(found[name], value) for name, value in expected.items()) <= SAME


def test_two_ranks_are_one_process_with_both_batches():
    """Rank 1's share is computed first and kept; rank 0 averages its own with it."""
    share = []

    def keep(tensors):
        share[:] = [ops.add(x, 0) for x in tensors]
        return tensors

    def mean(tensors):
        return [(x + y) / 2 for x, y in zip(tensors, share, strict=True)]

    whole = step_of(latte(condition="class"), max_grad_norm=0.1)
    expected = whole(batch())
    step_of(latte(condition="class"), reduce=keep)(batch(0, 2, 2))
    first = step_of(latte(condition="class"), max_grad_norm=0.1, reduce=mean)
    found = first(batch(0, 2))
    for name in ("loss", "mse", "vb", "grad_norm"):
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=1e-5)
    ours, theirs = arrays(first), arrays(whole)
    assert max(relative_l2(ours[name], value) for name, value in theirs.items()) <= SAME


@pytest.mark.parametrize(
    "precision", [Precision(), Precision("bf16", rounding="emulated")], ids=["fp32", "bf16"]
)
def test_a_copy_of_the_state_goes_on_bit_by_bit(precision):
    """In the middle of a window, into a model of other weights."""
    rest = dict(precision=precision, accumulation_steps=2)
    first = step_of(latte(condition="class", precision=precision), scaler=LossScaler(), **rest)
    for k in range(3):
        first(batch(k, 2))
    kept = arrays(first)
    model = latte(condition="class", precision=precision)
    second = step_of(model, scaler=LossScaler(), **rest)
    for name, value in second.state().items():
        value.set_data(ms.Tensor(kept[name]))
    for name, value in model.parameters_and_names():
        value.set_data(ms.Tensor(kept[f"model.{name}"]))
    assert changed(kept, arrays(second)) == []
    for k in range(3, 6):
        first(batch(k, 2))
        second(batch(k, 2))
    assert changed(arrays(first), arrays(second)) == []
    assert len(changed(kept, arrays(first))) > 20


def test_half_precision_weights_are_the_rounded_masters():
    precision = Precision("fp16", rounding="emulated")
    step = step_of(latte(condition="class", precision=precision), precision, LossScaler(init=8.0))
    step(batch())
    state = arrays(step)
    for name in step.optimizer.names:
        master = state[f"optimizer.master.{name}"]
        assert np.array_equal(state[f"model.{name}"], master.astype(np.float16).astype(np.float32))


def test_recomputed_blocks_train_to_the_same_bits():
    rng = np.random.default_rng(4)
    text = ms.Tensor(rng.normal(size=(4, 7, 20)).astype(np.float32))
    steps = [step_of(tiny_t2v(num_layers=1, use_recompute=flag)) for flag in (False, True)]
    for step in steps:
        metrics = step(batch() | dict(text=text, null_text=text[0]))
        assert bool(metrics["updated"])
    assert changed(*map(arrays, steps)) == []


def test_a_compiled_step_is_the_step():
    steps = [
        step_of(
            latte(condition="class"), scaler=LossScaler(window=2), max_grad_norm=0.1, accumulation_steps=2
        )
        for _ in range(2)
    ]
    compiled = ms.jit(steps[1].construct)
    for k in range(5):  # a window dropped, a whole one, half of a third
        inputs = poisoned(k, 2) if k == 1 else batch(k, 2)
        # The entries of a plain dict would be constants of the graph.
        expected, found = steps[0](inputs), compiled(ms.mutable(inputs))
        for name in ("finite", "updated", "scale"):
            assert float(expected[name].astype(ms.float32)) == float(found[name].astype(ms.float32))
    ours, theirs = arrays(steps[1]), arrays(steps[0])
    # The compiler reorders sums; the gradients differ by 1e-7.
    assert max(relative_l2(ours[name], value) for name, value in theirs.items()) <= SAME


def test_what_trains_and_what_decays():
    names = trainable_parameters(latte(condition="class"))
    assert "pos_embed" not in names and "temp_embed" not in names and "blocks.0.attn.qkv.weight" in names
    chosen = decayed_names(trainable_parameters(tiny_t2v(norm_elementwise_affine=True)))
    assert not [name for name in chosen if "norm" in name.split(".")[-2:][0] or name.endswith("bias")]
    assert "transformer_blocks.0.attn1.to_q.weight" in chosen
    assert "y_embedder.embedding_table.weight" in decayed_names(names)
    with pytest.raises(ValueError, match="strategy is 'none'; expected one of all, norm_and_bias"):
        decayed_names(names, "none")


def test_mistakes_are_named():
    model = latte()
    parameters = trainable_parameters(model)
    with pytest.raises(ValueError, match="no parameters"):
        AdamW({})
    with pytest.raises(ValueError, match="unknown parameters: x"):
        AdamW(parameters, decayed=["x"])
    with pytest.raises(ValueError, match="betas between 0 and 1"):
        AdamW(parameters, betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="channel_axis 2"):
        TrainingStep(model, GaussianDiffusion(channel_axis=1), AdamW(parameters))
    with pytest.raises(ValueError, match="accumulation_steps 0"):
        step_of(model, accumulation_steps=0)
    with pytest.raises(ValueError, match="max_grad_norm 0"):
        step_of(model, max_grad_norm=0.0)
    with pytest.raises(ValueError, match="window 0"):
        LossScaler(window=0)
    with pytest.raises(ValueError, match="half precision"):
        EMA({"w": ms.Parameter(ms.Tensor([1.0], ms.float16), name="w")})
    with pytest.raises(ValueError, match="expected Latte or LatteT2V"):
        condition_kind(ms.nn.Dense(2, 3))
