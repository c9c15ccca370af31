# SPDX-License-Identifier: Apache-2.0
"""Compiled (graph mode) equals interpreted (PyNative): the same models and inputs, in one process of their own.

A process cannot leave graph mode cleanly, hence the subprocess; it writes one array per case and mode.
"""

import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from ms_latte import device
from ms_latte.models.precision import Precision
from tests.helpers import normal, relative_l2
from tests.ms_latte.tiny import latte_inputs, run, t2v_inputs, tensor, tiny_latte, tiny_t2v

ROOT = Path(__file__).parents[2]
MASK = np.array([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]])
# float32; the compiler may fuse or reorder (0 measured on the CPU, 2e-7 for gradients).
TOLERANCE = 1e-6


def class_images():
    model = tiny_latte(condition="class")
    named = dict(y_image=np.array([[1, 6], [3, 0]]), use_image_num=2, drop_ids=np.array([True, False]))
    return lambda: run(model, *latte_inputs(frames=5), np.array([5, 2]), **named)


def guidance():
    model = tiny_latte(condition="class", depth=2)
    x, t = latte_inputs(batch=4)
    return lambda: model.forward_with_cfg(tensor(x), tensor(t), tensor(np.array([5, 2, 7, 7]))).asnumpy()


def another_size():
    model = tiny_latte(depth=2)
    model.check_stored_tables()
    return lambda: run(model, *latte_inputs(frames=5, width=12))


def masked():
    model = tiny_t2v(num_layers=1)
    return lambda: run(model, *t2v_inputs(width=12), encoder_attention_mask=MASK)


def images():
    model = tiny_t2v()
    return lambda: run(model, *t2v_inputs(frames=5, rows=3), use_image_num=2)


def prepared_text():
    """The text goes in once; another one is another argument of the same graph."""
    model = tiny_t2v()
    x, t, text = t2v_inputs()

    def call():
        prepare = (
            ms.jit(model.prepare_text) if ms.get_context("mode") == ms.GRAPH_MODE else model.prepare_text
        )
        outs = []
        for words in (text, text[::-1].copy()):
            outs.append(run(model, x, t, ms.mutable(prepare(tensor(words), tensor(MASK)))))
        return np.stack(outs)

    return call


def ada_norm_zero():
    model = tiny_t2v(num_layers=1, norm_type="ada_norm_zero", num_embeds_ada_norm=9, activation_fn="geglu")
    return lambda: run(model, *t2v_inputs(), class_labels=np.array([9, 4]))


def ada_norm():
    model = tiny_t2v(num_layers=1, norm_type="ada_norm", num_embeds_ada_norm=9)
    x, _, text = t2v_inputs()
    return lambda: run(model, x, np.array([8, 3]), text)


def sizes():
    model = tiny_t2v(num_layers=1, norm_type="layer_norm", use_additional_conditions=True)
    told = {
        "resolution": tensor(np.array([[64, 96]])),
        "aspect_ratio": tensor(np.array([[0.67]], np.float32)),
    }
    return lambda: run(model, *t2v_inputs(), added_cond_kwargs=told)


def ascend_formulations():
    model = tiny_t2v(num_layers=1)

    def call():
        with device.formulations("Ascend"):
            return run(model, *t2v_inputs())

    return call


def emulated():
    model = tiny_t2v(num_layers=1, precision=Precision("bf16", rounding="emulated"))
    return lambda: run(model, *t2v_inputs())


def recomputed_gradients():
    model = tiny_t2v(num_layers=1, use_recompute=True)
    x, t, text = t2v_inputs()
    weight = tensor(normal(2, 8, 3, 8, 8, seed=6))

    def loss(latent):
        return (model(latent, tensor(t), tensor(text)) * weight).sum()

    def call():
        _, (to_x, to_weights) = ms.value_and_grad(loss, 0, model.trainable_params())(tensor(x))
        return np.concatenate([value.asnumpy().reshape(-1) for value in (to_x, *to_weights)])

    return call


CASES = (
    class_images,
    guidance,
    another_size,
    masked,
    images,
    prepared_text,
    ada_norm_zero,
    ada_norm,
    sizes,
    ascend_formulations,
    emulated,
    recomputed_gradients,
)


def main(path):
    """Write every case in both modes, and the two refusals that only a compiled model can get wrong."""
    device.select("CPU")
    calls = {case.__name__: case() for case in CASES}
    found = {f"{name}.pynative": call() for name, call in calls.items()}
    jitted = tiny_latte(depth=2)
    found["jit.pynative"] = run(jitted, *latte_inputs())

    @ms.jit
    def call_jitted(x, t):
        return jitted(x, t)

    found["jit.graph"] = call_jitted(*map(tensor, latte_inputs())).asnumpy()
    ms.set_context(mode=ms.GRAPH_MODE)
    found |= {f"{name}.graph": call() for name, call in calls.items()}
    for name, inputs in (("odd", latte_inputs(height=9)), ("unchecked", latte_inputs(width=12))):
        try:
            run(tiny_latte(), *inputs)
        except ValueError as error:
            found[f"{name}.error"] = np.array(str(error))
    np.savez(path, **found)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph_mode")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = "import sys; from tests.ms_latte.test_graph_mode import main; main(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, "found.npz"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return dict(np.load(folder / "found.npz"))


@pytest.mark.parametrize("name", [case.__name__ for case in CASES] + ["jit"])
def test_graph_equals_pynative(found, name):
    assert relative_l2(found[f"{name}.graph"], found[f"{name}.pynative"]) <= TOLERANCE


def test_refusals_keep_their_reason(found):
    assert "latent size 9x8 is not divisible by patch_size 2" in str(found["odd.error"])
    assert "call check_stored_tables() once" in str(found["unchecked.error"])
