# SPDX-License-Identifier: Apache-2.0
"""`python -m parity benchmark`: MindSpore against torch eager on the same cores, in alternating runs.

Two processes, each with its framework, take turns: torch, MindSpore, torch, MindSpore ... A row prints both
medians and the median of the ratios of neighbouring runs, so that a machine whose speed drifts does not
decide. Never a test.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from parity import benchmark_generate, benchmark_training
from parity.harness.backends import Worker, WorkerError
from parity.harness.case import Case
from parity.harness.full import full_case
from parity.harness.inputs import Layout, normal, realize
from parity.harness.runner import write_weights
from parity.harness.weights import random_state

PARTS = ("operators", "blocks", "net", "trace", "generate", "training")
SIDES, TAPS = ("torch", "mindspore"), ("stages", "all")
TRACING = "tracing {taps} over a plain forward, {side}"


@dataclass
class Row:
    """Medians in seconds, ratio MindSpore / reference with its range. against: the reference; goal: of the ratio."""

    name: str
    reference: float
    mindspore: float
    ratio: float
    low: float
    high: float
    against: str = "torch"
    goal: float = 0.0


def main(arguments: list[str] | None = None) -> int:
    """Print the table; with the word "converters" first, that of the converters. Exit status 2 for a wrong use, and
    for a device or framework that is absent or fails."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["converters"]:
        from parity import converter_benchmark

        return converter_benchmark.main(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m parity benchmark",
        description="Time MindSpore against torch eager (fused attention) in alternating processes and print ratios of "
        "medians. Keep the machine otherwise idle.",
        epilog="Example: python -m parity benchmark --model Latte-XL/2 --parts blocks,net --repeat 5. "
        "The converters against cp: python -m parity benchmark converters --help",
    )
    parser.add_argument(
        "--device",
        default="CPU",
        choices=("CPU", "Ascend"),
        help="device of MindSpore (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype", default="fp32", choices=["fp32"], help="fp32 (half precision is emulated on the CPU)"
    )
    parser.add_argument(
        "--model", default="Latte-XL/2", help="Latte-XL/2 ... Latte-S/8 or LatteT2V (default: %(default)s)"
    )
    parser.add_argument(
        "--parts",
        default=",".join(PARTS),
        help="comma list; generate: sampling steps, VAE decoders, text encoder; training: a step and its memory; "
        "both at sizes of their own, whatever --model is (default: all)",
    )
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="WORD", help="rows whose name has one of these words"
    )
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="generate and training at sizes that only show that it runs; the figures mean nothing",
    )
    parser.add_argument(
        "--repeat",
        type=int,
        default=5,
        help="alternating runs of each row, net and generate 3 at most (default: 5)",
    )
    options = parser.parse_args(arguments)
    wrong = [part for part in options.parts.split(",") if part not in PARTS]
    if wrong:
        parser.error(f"--parts {', '.join(wrong)}: expected some of {', '.join(PARTS)}")
    try:
        net = full_case(options.model)
    except ValueError as error:
        parser.error(str(error))
    if options.repeat < 1:
        parser.error(f"--repeat {options.repeat}: expected 1 or more")
    rows = names(net, options.tiny)
    chosen = [name for part in options.parts.split(",") for name in rows[part]]
    if not any(_wanted(name, options) for name in chosen):
        expected = ", ".join(map(repr, chosen))
        parser.error(f"--only {' '.join(options.only)}: expected a part of one of {expected}")
    try:
        run(options, net)
    except WorkerError as error:
        print(f"error: {(str(error).strip().splitlines() or ['?'])[0]}", file=sys.stderr)
        return 2
    return 0


def names(net: Case, tiny: bool) -> dict[str, list[str]]:
    """Names of the rows of each part."""
    generated, trained = benchmark_generate.jobs(tiny), benchmark_training.jobs(tiny)
    return {
        "operators": [case.name for case in operators(net)],
        "blocks": [case.name for case in blocks(net)],
        "net": [net.name],
        "trace": [TRACING.format(taps=taps, side=side) for taps in TAPS for side in SIDES],
        "generate": [job.case.name for job in generated],
        "training": [job.case.name for job in trained],
    }


def run(options: argparse.Namespace, net: Case) -> list[Row]:
    """Measure all chosen parts."""
    sides = _start(options)
    for name, worker in sides.items():
        print(f"{name}: {', '.join(f'{key} {value}' for key, value in worker.environment.items())}")
    print(
        f"cores {len(os.sched_getaffinity(0))} · {options.model} · {options.dtype} · ms, ratio MindSpore / torch"
    )
    print(f"{'':<60} {'torch':>9} {'mindspore':>9} {'ratio':>6}  range")
    rows = []
    try:
        chosen = options.parts.split(",")
        for part, cases in (("operators", operators(net)), ("blocks", blocks(net)), ("net", [net])):
            cases = [case for case in cases if _wanted(case.name, options)]
            if part in chosen and cases:
                if part == "net":  # fresh processes, so that peak memory is that of the net alone
                    _stop(sides)
                    sides = _start(options)
                for case in cases:
                    # A turn is a warmed median of three, so that neither side pays for the caches the other left.
                    turns, loops = (min(options.repeat, 3), 1) if part == "net" else (options.repeat, 3)
                    rows += measure(sides, case, turns, loops)
        if "net" in chosen and _wanted(net.name, options):
            memory = {name: worker("peak_memory") for name, worker in sides.items()}
            share = memory["mindspore"] / memory["torch"]
            print(
                f"{'peak resident host memory of a process, GiB':<60} {memory['torch'] / 2**30:>9.2f} "
                f"{memory['mindspore'] / 2**30:>9.2f} {share:>6.2f}"
            )
        if "trace" in chosen:
            tracing(sides, net, options)
        if "generate" in chosen:
            rows += jobs_in_turns(sides, benchmark_generate.jobs(options.tiny), options)
        if "training" in chosen:
            jobs = benchmark_training.jobs(options.tiny)
            rows += jobs_in_turns(sides, jobs, options)
            _stop(sides)
            for job in jobs:
                if _wanted(job.case.name, options):
                    memory_of_training(job, options)
    finally:
        _stop(sides)
    return rows


def _wanted(name: str, options: argparse.Namespace) -> bool:
    return any(word.lower() in name.lower() for word in options.only)


def memory_of_training(job: benchmark_training.TrainingJob, options: argparse.Namespace) -> None:
    """Peak memory of a training step in fresh processes, one after the other."""
    batch = realize(job.batch, job.case.seed)
    for name, device, recompute in (
        ("torch", "CPU", False),
        ("mindspore", options.device, False),
        ("mindspore", options.device, True),
    ):
        worker = Worker(name, device, options.dtype)
        try:
            idle = worker("peak_memory")
            _prepare({name: worker}, job.case)
            worker("clock_training", batch=batch, loops=1, recompute=recompute)
            peak = worker("peak_memory")
        finally:
            worker.stop()
        who = f"{name}, blocks recomputed" if recompute else name
        row = f"  peak resident host memory, GiB: {who}"
        print(f"{row:<60} {peak / 2**30:>9.2f}  of that before the net {idle / 2**30:.2f}", flush=True)


def jobs_in_turns(sides: dict[str, Worker], jobs: list, options: argparse.Namespace) -> list[Row]:
    """Rows of generation and training: originals of other libraries take turns with both twins."""
    rows, others = [], {}
    try:
        for job in jobs:
            if not _wanted(job.case.name, options):
                continue
            inputs = _prepare(sides, job.case)
            asks = {name: partial(job.seconds, worker, inputs) for name, worker in sides.items()}
            if job.original:
                try:
                    others["torch"] = others.get("torch") or Worker("other-torch", "CPU", options.dtype)
                    shapes = others["torch"]("build", case=job.original)
                    others["torch"]("load", tensors=random_state(shapes, job.case.seed))
                    given = realize(job.original.inputs, job.case.seed)
                    asks[job.library] = partial(job.original_seconds, others["torch"], given)
                except WorkerError as error:
                    print(f"{job.library} cannot run: {error.line}")
            goal = 0.0 if options.tiny else job.goal
            rows += in_turns(asks, job.case.name, min(options.repeat, 3), 1, goal)
            for worker in [*sides.values(), *others.values()]:
                worker("close")
    finally:
        _stop(others)
    return rows


def _start(options: argparse.Namespace) -> dict[str, Worker]:
    """Both processes, or WorkerError, which names the remedy, and nothing left running."""
    sides: dict[str, Worker] = {}
    try:
        for name, device in (("torch", "CPU"), ("mindspore", options.device)):
            sides[name] = Worker(name, device, options.dtype)
    except WorkerError:
        _stop(sides)
        raise
    return sides


def _stop(sides: dict[str, Worker]) -> None:
    for worker in sides.values():
        worker.stop()


def measure(sides: dict[str, Worker], case: Case, repeat: int, loops: int = 1) -> list[Row]:
    """Build on both sides, time in turns."""
    inputs = _prepare(sides, case)

    def ask(worker, loops):
        return worker("clock", inputs=inputs, method="", loops=loops)

    rows = in_turns({name: partial(ask, worker) for name, worker in sides.items()}, case.name, repeat, loops)
    for worker in sides.values():
        worker("close")
    return rows


def in_turns(
    asks: dict[str, Callable[[int], float]], name: str, repeat: int, loops: int, goal: float = 0.0
) -> list[Row]:
    """Warm up once, ask all sides for their seconds in turns; a row for every side but MindSpore, printed."""
    times: dict[str, list[float]] = {side: [] for side in asks}
    for ask in asks.values():
        ask(1)
    for _ in range(repeat):
        for side, ask in asks.items():
            times[side].append(ask(loops))
    medians = {side: statistics.median(values) for side, values in times.items()}
    rows = []
    for side in asks:
        if side == "mindspore":
            continue
        ratios = [b / a for a, b in zip(times[side], times["mindspore"], strict=True)]
        ratio = statistics.median(ratios)
        rows.append(
            Row(name, medians[side], medians["mindspore"], ratio, min(ratios), max(ratios), side, goal)
        )
        shown = name if side == "torch" else f"  beside {side}"
        told = f"  goal {goal:g}: {'met' if ratio <= goal else 'MISSED'}" if goal else ""
        print(
            f"{shown:<60} {medians[side] * 1e3:>9.2f} {medians['mindspore'] * 1e3:>9.2f} {ratio:>6.2f}  "
            f"{min(ratios):.2f} - {max(ratios):.2f}{told}",
            flush=True,
        )
    return rows


def tracing(sides: dict[str, Worker], net: Case, options: argparse.Namespace) -> None:
    """What tracing costs, on a shallow net of full width: stage by stage into files, as nets of this size are traced,
    and with every module tapped, as tiny and thin nets are."""
    wanted = [name for name in names(net, options.tiny)["trace"] if _wanted(name, options)]
    if not wanted:
        return
    depth = {"depth": 4} if net.net == "Latte" else {"num_layers": 2}
    case = replace(net, init={**net.init, **depth}, name="shallow")
    inputs = _prepare(sides, case)
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        for taps in TAPS:
            for name, worker in sides.items():
                row = TRACING.format(taps=taps, side=name)
                if row not in wanted:
                    continue
                worker("set_spill", folder=folder if taps == "stages" else None)
                ratios = []
                for _ in range(6):
                    plain = worker("clock", inputs=inputs, method="")
                    ratios.append(worker("clock", inputs=inputs, method="", taps=taps) / plain)
                print(f"{row:<80} {statistics.median(ratios[1:]):>6.2f}", flush=True)
    for worker in sides.values():
        worker("close")


def operators(net: Case) -> list[Case]:
    """Operators at the shapes they have in the net."""
    D, A, F, T = _dims(net)
    d = D // A
    rows = F * T
    part = dict(net=net.net, taps="all")
    layers = "models.layers"
    return [
        _case(
            "Linear",
            dict(in_features=D, out_features=D),
            dict(x=normal(rows, D)),
            f"linear {rows}x{D}x{D}",
            layers,
            part,
        ),
        _case(
            "Linear",
            dict(in_features=D, out_features=4 * D),
            dict(x=normal(rows, D)),
            f"linear {rows}x{D}x{4 * D}",
            layers,
            part,
        ),
        _case(
            "Linear",
            dict(in_features=4 * D, out_features=D),
            dict(x=normal(rows, 4 * D)),
            f"linear {rows}x{4 * D}x{D}",
            layers,
            part,
        ),
        _case(
            "LayerNorm",
            dict(dim=D, eps=1e-6),
            dict(x=normal(rows, D)),
            f"layer norm {rows}x{D}",
            layers,
            part,
        ),
        _case(
            "GELU",
            dict(approximate="tanh"),
            dict(x=normal(rows, 4 * D)),
            f"gelu {rows}x{4 * D}",
            layers,
            part,
        ),
        _attention(
            D, A, Layout(1, F, T, "space"), f"attention over space, {F} x {A} heads x {T} x {d}", part
        ),
        _attention(D, A, Layout(1, F, T, "time"), f"attention over time, {T} x {A} heads x {F} x {d}", part),
    ]


def blocks(net: Case) -> list[Case]:
    """Both kinds of block."""
    D, A, F, T = _dims(net)
    part = dict(net=net.net, taps="all")
    space, time = Layout(1, F, T, "space"), Layout(1, F, T, "time")
    if net.net == "Latte":
        init = dict(hidden_size=D, num_heads=A, attention="math")
        inputs = dict(x=normal(F * T, D), c=normal(1, D))
        return [
            _case(
                "TransformerBlock", init, {**inputs, "layout": space}, "spatial block", "models.blocks", part
            ),
            _case(
                "TransformerBlock", init, {**inputs, "layout": time}, "temporal block", "models.blocks", part
            ),
        ]
    init = dict(
        inner_dim=D,
        num_attention_heads=A,
        attention_head_dim=D // A,
        activation_fn="gelu-approximate",
        attention_bias=True,
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    inputs = dict(hidden_states=normal(F * T, D), timestep=normal(1, 6 * D))
    text = dict(encoder_hidden_states=normal(1, 120, D))
    cross = {**init, "cross_attention_dim": D}
    return [
        _case(
            "BasicTransformerBlock",
            cross,
            {**inputs, **text, "layout": space},
            "spatial block",
            "models.blocks",
            part,
        ),
        _case(
            "TemporalTransformerBlock",
            init,
            {**inputs, "layout": time},
            "temporal block",
            "models.blocks",
            part,
        ),
    ]


def _attention(D, A, layout, name, part):
    inputs = dict(x=normal(layout.frames * layout.tokens, D), layout=layout)
    return _case("Attention", dict(dim=D, num_heads=A), inputs, name, "models.attention", part)


def _case(target, init, inputs, name, file, part):
    return Case(target, init, inputs, name, file=file, **part)


def _dims(net: Case) -> tuple[int, int, int, int]:
    """Width, heads, frames, tokens a frame."""
    init = net.init
    if net.net == "Latte":
        T = (init["input_size"] // init["patch_size"]) ** 2
        return init["hidden_size"], init["num_heads"], init["num_frames"], T
    T = (init["sample_size"] // init["patch_size"]) ** 2
    return init["cross_attention_dim"], init["num_attention_heads"], init["video_length"], T


def _prepare(sides: dict[str, Worker], case: Case) -> dict:
    """Equal weights and inputs on both sides. torch takes its fused attention, the fastest it has."""
    shapes = {}
    for name, worker in sides.items():
        fused = {}
        if name == "torch":
            fused = (
                {"attention": "flash"} if case.target in ("Latte", "TransformerBlock", "Attention") else {}
            )
            if case.target in ("LatteT2V", "BasicTransformerBlock", "TemporalTransformerBlock"):
                fused = {"enable_flash_attention": True}
        shapes = worker("build", case=replace(case, init={**case.init, **fused}), rounding="native")
    if case.size == "full":  # both map one file, as they would a checkpoint
        with tempfile.TemporaryDirectory(prefix="parity-") as folder:
            path = write_weights(shapes, case, *sides["mindspore"]("config"), folder)
            for worker in sides.values():
                worker("load", tensors=None, checkpoint=path)
    else:
        for worker in sides.values():
            worker("load", tensors=random_state(shapes, case.seed))
    return realize(case.inputs, case.seed)
