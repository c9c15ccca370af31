# SPDX-License-Identifier: Apache-2.0
"""The control multiplies as the device under test does, which is read from the numbers of its probes alone."""

from dataclasses import replace

import numpy as np
import pytest

from parity.harness import report
from parity.harness.backends import Pool
from parity.harness.case import collect
from parity.harness.fingerprint import choose_control, read
from parity.harness.fingerprint_devices import DEVICES, round_to
from parity.harness.inputs import normal, realize
from parity.harness.runner import PLAIN, Session, run_case
from parity.harness.weights import random_state
from parity.harness.words import Words

torch = pytest.importorskip("torch")
products = pytest.importorskip("parity.harness.products_torch_side")
CASES = {case.id: case for case in collect()}
HF32 = {"matmul": "HF32", "conv": "HF32"}
LINEAR = replace(
    CASES["layers.Linear"], inputs=dict(x=normal(6, 48)), init=dict(in_features=48, out_features=36)
)


# --- which control

# device -> kind and products of the control of fp32, fp16, bf16
CHOSEN = {
    "fp32": [("plain", {})] * 3,
    "flush-to-zero": [("plain", {})] * 3,
    "hf32": [("rounded", HF32)] * 3,
    "hf32-conv": [("rounded", {"conv": "HF32"})] * 3,
    "tf32": [("rounded", {"matmul": "TF32", "conv": "TF32"})] * 3,
    "fp16-cube": [("rounded", {"matmul": "fp16", "conv": "fp16"})] * 3,
    "bf16": [("rounded", {"matmul": "bf16", "conv": "bf16"})] * 3,
    "fp16-accumulator": [("plain", {}), ("strict", {}), ("strict", {})],
    "bf16-truncating": [("plain", {}), ("plain", {}), ("strict", {})],
    "hf32-truncating": [("strict", {})] * 3,
}


@pytest.mark.parametrize("name", DEVICES)
def test_the_control_follows_from_the_numbers(name):
    found = read(DEVICES[name])
    controls = [choose_control(found, dtype) for dtype in ("fp32", "fp16", "bf16")]
    assert [(control.kind, control.products) for control in controls] == CHOSEN[name]
    for control in controls:  # the header says which control, and why, in both languages
        line = report.control_line("fp32", control)
        assert control.reason in line and all(word in line for word in control.products.values())
        assert "标杆" in (told := Words("zh").translate(line)) and control.reason not in told


def test_a_device_is_asked_once_for_each_type():
    class Port:
        def __call__(self, verb, dtypes):
            asked.append((verb, dtypes))
            return read(DEVICES["hf32"], dtypes)

    class Ports:
        def get(self, *key):
            assert key[:2] == ("mindspore", "Ascend")
            return Port()

    asked = []
    session = Session(device="Ascend", pool=Ports())
    assert session.control("fp64") == PLAIN
    for _ in range(2):
        assert session.control("fp32").products == session.control("bf16").products == HF32
    assert asked == [("fingerprint", ("fp32",)), ("fingerprint", ("fp32", "bf16"))]
    assert Session().control("fp32") == PLAIN


# --- what the control computes


@pytest.mark.parametrize("grid", ["HF32", "TF32", "fp16", "bf16"])
def test_numbers_are_rounded_bit_for_bit(grid):
    rng = np.random.default_rng(5)
    x = (rng.standard_normal(20000) * 10.0 ** rng.uniform(-45, 38, 20000)).astype(np.float32)
    ties = np.float32(
        [1 + 2.0**-12, 1 + 3 * 2.0**-12, -(1 + 2.0**-8), 3.4e38, -3.4e38, 0.0, -0.0, np.inf, -np.inf]
    )
    x = np.concatenate([x, ties])
    found = products.rounded(torch.from_numpy(x), grid).numpy()
    assert np.array_equal(found, round_to(x, grid).astype(np.float32))
    assert np.array_equal(np.signbit(found), np.signbit(x))
    odd = np.uint32([0x7FFFFFFF, 0xFFFFFFFF]).view(np.float32)  # NaNs whose payload would carry
    assert np.isnan(products.rounded(torch.from_numpy(odd), grid).numpy()).all()


def side(case, dtype="fp32", formats=None):
    """A torch worker's side in this process, with the case built and loaded."""
    from parity.harness.torch_side import TorchSide

    made = TorchSide("CPU", dtype)
    shapes = made.build(case, rounding="emulated", products=formats)
    state = random_state(shapes, case.seed)
    made.load(tensors=state)
    return made, state, realize(case.inputs, case.seed)


def close(found, expected):
    """Equal but for float32 accumulation: a twentieth of the rounding of HF32 is far above it, and far below that."""
    return np.linalg.norm(found - expected) <= 2.0**-12 / 20 * np.linalg.norm(expected)


@pytest.mark.parametrize("grid", ["HF32", "TF32", "fp16", "bf16"])
def test_a_product_and_its_gradients_are_those_of_rounded_factors(grid):
    formats = {"matmul": grid}
    made, state, inputs = side(LINEAR, formats=formats)
    x, w = round_to(inputs["x"], grid), round_to(state["weight"], grid)
    found = made.run(inputs, "")[0]
    assert close(found, x @ w.T + state["bias"])
    plain, _, _ = side(LINEAR)
    assert not close(plain.run(inputs, "")[0], x @ w.T + state["bias"])
    gradients = made.gradients(inputs, "", seed=7)
    raw = np.random.default_rng([7, 0]).standard_normal(found.shape).astype(np.float32)
    g = round_to(raw, grid)
    assert close(gradients["input x"], g @ w) and close(gradients["weight"], g.T @ x)
    assert close(gradients["bias"], raw.astype(np.float64).sum(0))  # a sum is no product
    others = plain.gradients(inputs, "", seed=7)
    assert not close(others["input x"], g @ w) and not close(others["weight"], g.T @ x)


def test_a_convolution_and_its_gradients_are_those_of_rounded_factors():
    case = CASES["layers.PatchConv"]
    made, state, inputs = side(case, formats={"conv": "HF32"})
    (name,) = inputs
    weight = next(key for key in state if key.endswith("weight"))
    rounded = {
        key: value if key != weight else round_to(value, "HF32").astype(np.float32)
        for key, value in state.items()
    }
    plain, _, _ = side(case)
    unrounded = plain.run(inputs, "")[0]
    gradient = made.gradients(inputs, "", seed=7)
    plain_gradient = plain.gradients(inputs, "", seed=7)
    plain.load(tensors=rounded)
    given = {name: round_to(inputs[name], "HF32").astype(np.float32)}
    found = made.run(inputs, "")[0]
    assert close(found, plain.run(given, "")[0]) and not close(found, unrounded)
    for key in (f"input {name}", weight):
        assert not close(gradient[key], plain_gradient[key])
    bias = weight.replace("weight", "bias")
    assert close(gradient[bias], plain_gradient[bias])


def test_of_a_half_type_the_islands_alone_are_rounded():
    x = normal(6, 48)
    half = realize(dict(x=x), 0)["x"].astype(np.float16).astype(np.float32)
    mode = products.Products({"matmul": "bf16"}, "fp16")
    on_grid, off_grid = torch.from_numpy(half), torch.from_numpy(half) + 2.0**-13
    weight = torch.eye(48)
    with mode:
        assert torch.equal(on_grid @ weight, on_grid)
        assert not torch.equal(off_grid @ weight, off_grid)


def test_attention_is_taken_apart_and_the_unknown_is_refused():
    q = torch.randn(1, 2, 5, 8)
    with products.arithmetic(HF32, "fp32"):
        found = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    plain = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert 1e-5 < (found - plain).norm() / plain.norm() < 1e-2
    with products.arithmetic(HF32, "fp32"), pytest.raises(NotImplementedError, match="multiplies inside"):
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)
    with products.arithmetic({}, "fp32"):
        assert torch.equal(torch.nn.functional.scaled_dot_product_attention(q, q, q), plain)


# --- a device with such products, from its fingerprint to the verdict


class Near:
    """A worker of this process."""

    holds, name, pid = None, "mindspore here", 0

    def __init__(self, made):
        self.made = made

    def __call__(self, verb, **arguments):
        return getattr(self.made, verb)(**arguments)


class Mixed(Pool):
    """torch in processes, the port here."""

    def __init__(self, port):
        super().__init__()
        self.port = port

    def begin(self, *keys):
        super().begin(*(key for key in keys if key[0] != "mindspore"))

    def get(self, framework, device, dtype):
        return self.port if framework == "mindspore" else super().get(framework, device, dtype)

    def drop(self, worker):
        if worker is not self.port:
            super().drop(worker)


@pytest.fixture
def hf32_port(monkeypatch):
    """The port in fp32 on a CPU whose products and convolutions take HF32 inputs."""
    ms = pytest.importorskip("mindspore")
    from ms_latte.models import attention, layers
    from parity.harness.mindspore_side import MindSporeSide

    made = MindSporeSide("CPU", "fp32")

    def short(x):
        return ms.Tensor.from_numpy(round_to(x.asnumpy(), "HF32").astype(np.float32))

    def patch(name):  # for the probes of the fingerprint
        right = getattr(ms.ops, name)
        monkeypatch.setattr(ms.ops, name, lambda **options: lambda a, b: right(**options)(short(a), short(b)))

    for module, name in ((layers, "matmul_t"), (attention, "batch_matmul_t"), (attention, "batch_matmul")):
        right = getattr(module, name)
        monkeypatch.setattr(module, name, lambda a, b, right=right: right(short(a), short(b)))
    patch("MatMul")
    patch("BatchMatMul")
    conv = ms.ops.conv2d
    monkeypatch.setattr(
        ms.ops, "conv2d", lambda x, w, *rest, **options: conv(short(x), short(w), *rest, **options)
    )
    return Near(made)


@pytest.mark.parametrize("name", ["layers.Linear", "latte.Latte-class"])
def test_a_port_with_hf32_products_meets_its_own_control_and_no_other(hf32_port, name):
    session = Session(pool=Mixed(hf32_port))
    try:
        session.fingerprints["fp32"] = hf32_port("fingerprint")
        assert session.control("fp32").products == HF32
        result = run_case(session, CASES[name], "fp32")
        assert result.passed, report.failure(result)
        off = max(tap.prop.e_r for tap in result.taps)
        assert off > 1e-5  # the control is as coarse as the port
        session.fingerprints.clear()
        wrong = run_case(session, CASES[name], "fp32", diagnose=False)
        assert not wrong.passed and wrong.failures
    finally:
        session.pool.stop()


def test_a_bug_is_seen_through_rounded_products(hf32_port):
    session = Session(pool=Mixed(hf32_port))
    try:
        session.fingerprints["fp32"] = hf32_port("fingerprint")
        result = run_case(session, CASES["latte.Latte-class"], "fp32", mutant="gelu_erf")
        assert not result.passed and "act" in result.failures[0].tap
    finally:
        session.pool.stop()
