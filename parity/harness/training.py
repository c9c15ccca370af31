# SPDX-License-Identifier: Apache-2.0
"""Training judged over many steps: the same batches into both, then losses, gradients, weights and averages compared.

`rehearse` runs in a worker, in either framework; `run_training` judges what comes back, by the limits of gradients and
the drift mechanism of `behaviour`.
"""

import importlib
import time
from functools import partial
from typing import Any

import numpy as np

from parity.harness import gates
from parity.harness.backends import WorkerError
from parity.harness.behaviour import VANISHED, allowed, crashed, depth, drift_limit
from parity.harness.case import Case
from parity.harness.gates import CaseResult, Check, TapResult
from parity.harness.inputs import realize
from parity.harness.runner import Session, prepare, workers_of

FACTS = ("scale", "finite", "updated")  # of every step, exact on all sides
NUMBERS = ("mse", "vb", "grad_norm")
MARKS = (1, 10, 100)  # optimiser steps after which weights and averages are compared


# ------------------------------------------------------------------------------------------------- in a worker


def rehearse(
    side: Any,
    inputs: dict[str, Any],
    seed: int,
    count: int,
    optimizer: dict[str, Any],
    rates: dict[str, Any],
    decay: float,
    scaler: dict[str, Any] | None = None,
    accumulation_steps: int = 1,
    max_grad_norm: float | None = None,
    clip_from: int = 0,
    use_image_num: int = 0,
    scaling_factor: float = 0.18215,
    poisoned: int | None = None,
    nudged: bool = False,
) -> dict[str, np.ndarray]:
    """Train the net that a side holds for `count` micro steps. name -> array of what the judge compares.

    inputs: a batch as data; micro step k draws it with seed + k, in float32. optimizer, scaler: arguments of AdamW and
    LossScaler; rates: of `learning_rate`; decay: of the average; clip_from: optimiser step in which clipping begins;
    poisoned: a micro step whose latents hold an infinity. nudged: start one unit of float32 away.
    """
    package, precision = side.package, side.policy
    optim, ema, scaling, steps, schedules, gaussian = (
        importlib.import_module(f"{package}.{name}")
        for name in (
            "training.optim",
            "training.ema",
            "training.scaler",
            "training.step",
            "training.schedules",
            "diffusion.gaussian",
        )
    )
    side.native_half = False  # every number of a batch enters in float32
    model, own = side.root, side.parameters()
    for name in side.trainable:
        own[name].requires_grad = True
    parameters = optim.trainable_parameters(model)
    chosen = optim.decayed_names(parameters, "norm_and_bias")
    optimizer = optim.AdamW(parameters, decayed=chosen, precision=precision, **optimizer)
    average = ema.EMA(optimizer.masters)
    step = steps.TrainingStep(
        model,
        gaussian.GaussianDiffusion(precision=precision),
        optimizer,
        average,
        scaling.LossScaler(**scaler) if scaler else None,
        accumulation_steps,
        max_grad_norm,
        use_image_num=use_image_num,
        scaling_factor=scaling_factor,
    )
    if nudged:
        for name, value in optimizer.masters.items():
            array = side.array(value)
            side.set_value(value, np.nextafter(array, np.copysign(np.inf, array)).astype(array.dtype))
            if precision.half:
                side.set_value(parameters[name], side.array(precision.round(value)))
            side.set_value(average.shadow[name], side.array(value))
    start = {name: side.array(value).astype(np.float64) for name, value in optimizer.masters.items()}
    found: dict[str, np.ndarray] = {}
    numbers, facts = [], []
    for k in range(count):
        batch = _batch(inputs, seed + k, k == poisoned)
        done = k // accumulation_steps
        batch["lr"] = np.float32(schedules.learning_rate(done, **rates))
        batch["ema_decay"] = np.float32(schedules.ema_decay(done, decay))
        batch["clip"] = np.bool_(done >= clip_from)
        out = step({name: side.tensor(np.asarray(value)) for name, value in batch.items()})
        out = {name: float(side.array(value)) for name, value in out.items()}
        numbers.append([out[name] if np.isfinite(out[name]) else 0.0 for name in NUMBERS])
        facts.append([out[name] for name in FACTS])
        made, complete = divmod(k + 1, accumulation_steps)
        if complete == 0 and (made in MARKS or k + 1 == count):
            found |= _state(side, optimizer, average, start, made)
    table = np.array(numbers)
    found |= {f"{name} curve": table[:, i] for i, name in enumerate(NUMBERS)}
    found["facts"] = np.array(facts)
    return found


def _batch(inputs, seed, poisoned):
    drawn = realize(inputs, seed)
    batch = {n: v.astype(np.float32) if v.dtype.kind == "f" else v for n, v in drawn.items()}
    batch = {n: v.astype(np.int32) if v.dtype.kind == "i" else v for n, v in batch.items()}
    if poisoned:
        batch["noise"] = np.where(batch["noise"] == batch["noise"].max(), np.inf, batch["noise"])
        batch["noise"] = batch["noise"].astype(np.float32)
    return batch


def _state(side, optimizer, average, start, made):
    """What the optimiser did so far: the way of weights and averages from the start; after one step, the gradients."""
    owned = {name: side.array(value).astype(np.float64) for name, value in optimizer.masters.items()}
    shadow = {name: side.array(value).astype(np.float64) for name, value in average.shadow.items()}
    found = {}
    if made == 1:
        moments = dict(zip(optimizer.names, optimizer.m, strict=True))
        found |= {f"gradient {name}": np.array(side.array(moments[name])) for name in sorted(moments)}
    for word, values in (("weights", owned), ("ema", shadow)):
        ways = [(values[name] - start[name]).reshape(-1) for name in sorted(values)]
        found[f"{word} after {made}"] = np.concatenate(ways)
    return found


# ------------------------------------------------------------------------------------------------- the judge


def run_training(session: Session, case: Case, dtype: str, form: str = "", mutant: str = "") -> CaseResult:
    """Judge the training of a net, gate G5. Under fp64 by the limit of G1; else the control, and the control started
    one unit of float32 away, say how far roundings drift.

    Taps: the gradient of every parameter in the first step (as the first moment, so behind clipping), the way that
    weights and averages went after each of MARKS, the terms of the loss and the norm of the gradients over all steps.
    Scale, finite and updated of every step must be equal.
    """
    began = time.perf_counter()
    form = form or ("CPU" if dtype == "fp64" else session.device)
    result = CaseResult(case.id, "G5", dtype, form, net=case.net, kind="training")
    truth, control, port = workers = workers_of(session, dtype)
    request = dict(case.steps)
    fewer = request.pop("fewer", request["count"])
    request["count"] = request["count"] if dtype == "fp32" else fewer
    request.update(inputs=case.inputs, seed=case.seed)
    try:
        for worker in dict.fromkeys(workers):
            worker("set_spill", folder=None)
        prepare(session, case, dtype, form, mutant, workers, result)
        asked = [partial(session.ask, w, "train", **request) for w in dict.fromkeys((control, truth))]
        ours, *rest = session.together(case, partial(port, "train", **request), *asked)
        theirs, exact = rest[0], rest[-1]
        twin = theirs if dtype == "fp64" else session.ask(control, "train_nudged", **request)
        facts = [side["facts"] for side in {id(s): s for s in (ours, theirs, exact, twin)}.values()]
        wrong = [k for k in range(len(facts[0])) if any(f[k].tolist() != facts[0][k].tolist() for f in facts)]
        detail = (
            f"micro step {wrong[0]}: {[f[wrong[0]].tolist() for f in facts]} ({', '.join(FACTS)})"
            if wrong
            else ""
        )
        result.contract.append(Check("decisions", not wrong, detail))
        result.curves = {"port": _losses(ours), "ref": _losses(theirs), "truth": _losses(exact)}
        result.taps = judge_training(ours, theirs, exact, twin, dtype, form)
    except WorkerError as error:
        crashed(session, workers, result, error)
    result.seconds = time.perf_counter() - began
    return result


def _losses(found: dict) -> list[float]:
    """Loss of every micro step, NaN where its gradients were not finite."""
    losses = found["mse curve"] + found["vb curve"]
    return np.where(found["facts"][:, FACTS.index("finite")] > 0, losses, np.nan).tolist()


def judge_training(
    ours: dict, theirs: dict, exact: dict, twin: dict, dtype: str, form: str
) -> list[TapResult]:
    """A verdict on every array of `rehearse`; the last one, the weights at the end, is tap "#0".

    Few numbers, as the norms of a few steps, tell the size of an error only roughly (`gates.scatter`; norms of five
    gradients in fp16, 20 seeds: the port up to 2.3 times the control, half of what is allowed).
    """
    names = sorted(name for name in exact if name.startswith("gradient "))
    gradients = [np.asarray(exact[name]) for name in names]
    typical = float(np.median([np.linalg.norm(g) / g.size**0.5 for g in gradients]))
    blocks = depth({name.removeprefix("gradient "): np.shape(exact[name]) for name in names})
    last = [name for name in exact if name.startswith("weights after")][-1]
    taps = []
    for name in sorted(set(exact) - {"facts"}, key=lambda name: (name == last, name)):
        c, r, t, w = (np.asarray(side[name], np.float64) for side in (ours, theirs, exact, twin))
        least = typical * t.size**0.5 if name.startswith("gradient ") else 0.0
        vanished = float(np.linalg.norm(t)) < VANISHED * least
        metrics = gates.compare(c, r, t, dtype, least if vanished else 0.0, rounded=False)
        noise = gates.compare(w, r, t, dtype, least if vanished else 0.0, rounded=False).e_c
        level = "net" if name == last else "gradient" if name.startswith("gradient ") else "step"
        tap = TapResult("#0" if name == last else f"{name}#0", tuple(t.shape), level, metrics, metrics)
        tap.required = metrics.e_c
        if dtype == "fp64" or level == "gradient":
            tap.allowed = allowed(metrics, dtype, form, blocks, vanished)
        else:
            tap.allowed = drift_limit(metrics, noise, dtype) * gates.scatter(metrics.count)
        if metrics.problem or not metrics.e_c <= tap.allowed:
            tap.verdict = "FAIL end"
            tap.reason = metrics.problem or (
                f"{name}: {metrics.e_c:.1e} off, torch {dtype} {metrics.e_r:.1e}, started one unit away {noise:.1e}; "
                f"allowed {tap.allowed:.1e} (G5 {dtype} training)"
            )
        taps.append(tap)
    return taps
