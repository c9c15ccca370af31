# SPDX-License-Identifier: Apache-2.0
"""The runs of the suite, as data: what `pytest parity/` judges, and what draws of many seeds repeat.

A run is a case in a dtype and a formulation set, or what a net does over time. Those that would repeat others are
marked with the reason: they are left out, counted and said, never dropped. Whatever a registered bug needs to die by is
never left out (a test holds it), and `pytest parity/ --every` runs all.
"""

import shutil
import tempfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from parity.harness.behaviour import run_drift, run_gradients, run_graph
from parity.harness.case import Case
from parity.harness.gates import LIMITS, CaseResult
from parity.harness.runner import Session, run_case

DTYPES = tuple(LIMITS)
TESTS = ("semantics", "numerics", "gradients", "drift", "samplers", "graph_mode")

# A net's own arguments for the state and the time of an iteration. Eight times from late to early, none of them
# those of the case itself.
TIMES = [977, 811, 640, 475, 310, 160, 50, 3]
LATTE, T2V = "latte.Latte-class", "latte_t2v.LatteT2V-mask2d"
NAMES = {LATTE: dict(state="x", time="t"), T2V: dict(state="hidden_states", time="timestep")}
NOISE = 7  # seed of the fresh noise of ancestral steps, above that of the case
# Samplers with a net as the denoiser: (case, arguments of make_sampler).
SAMPLERS = {
    "ddpm": (LATTE, dict(name="ddpm", steps="8", channel_axis=2)),
    "ddim": (LATTE, dict(name="ddim", steps="ddim8", channel_axis=2)),
    "ddim_eta": (T2V, dict(name="ddim", steps=8, channel_axis=1, eta=0.5, spacing="leading", steps_offset=1)),
    "euler": (T2V, dict(name="euler", steps=8, channel_axis=1)),
    "dpm++2m": (T2V, dict(name="dpm++2m", steps=8, channel_axis=1)),
}
# Compiling takes seconds: all of these in fp32, the first in half precision too.
GRAPH = (LATTE, "latte.Latte-guidance", T2V)
# Nets of each kind, whose gradients are judged in every dtype and formulation; all others in float64.
DIFFERENTIATED = ("class", "flash", "joint_class", "mask2d", "joint", "file")

# Cases made of parts that have cases of their own, in every formulation and dtype; whole nets are known by `net`.
COMPOSED = ("encoders.vae", "encoders.vae_coders", "encoders.vae_blocks")


@dataclass(frozen=True)
class Run:
    """One run: test, a word of TESTS; form, a formulation set, "" for that of the device; sampler, a key of SAMPLERS.

    repeated: why it tells nothing new, a key of `words`, or "".
    """

    test: str
    case: Case
    dtype: str
    form: str = ""
    sampler: str = ""
    repeated: str = ""

    @property
    def id(self) -> str:
        """Unique among the runs of a test."""
        return "-".join(filter(None, (self.dtype, self.form, self.sampler or self.case.id)))

    def __call__(self, session: Session) -> CaseResult:
        """Judge it. Nets of full size keep their layers' results in a folder of their own meanwhile."""
        session.spill = tempfile.mkdtemp(prefix="parity-") if self.case.taps == "stages" else None
        try:
            if self.test == "drift":
                return run_drift(session, self.case, self.dtype, times=TIMES, **NAMES[self.case.id])
            if self.test == "samplers":
                options = dict(sampler=SAMPLERS[self.sampler][1], noise=NOISE + self.case.seed)
                options |= dict(verb="sample", label=self.sampler, **NAMES[self.case.id])
                return run_drift(session, self.case, self.dtype, **options)
            if self.test == "graph_mode":
                return run_graph(session, self.case, self.dtype)
            judged = run_gradients if self.test == "gradients" else run_case
            return judged(session, self.case, self.dtype, self.form)
        finally:
            if session.spill:
                shutil.rmtree(session.spill, ignore_errors=True)

    def drawn(self, seed: int) -> "Run":
        """The same run on other weights and inputs; 0 gives those of the suite."""
        return replace(self, case=replace(self.case, seed=self.case.seed + seed))


def runs(test: str, cases: Iterable[Case], dtypes: Collection[str], device: str) -> list[Run]:
    """All runs of a test, those that repeat others too. dtypes: what is judged besides float64."""
    cases = list(cases)
    known = {case.id: case for case in cases}
    if test == "samplers":
        chosen = [(known[case], name) for name, (case, _) in SAMPLERS.items() if case in known]
        found = [
            dict(case=case, dtype=dtype, sampler=name) for dtype in ("fp64", *dtypes) for case, name in chosen
        ]
    elif test in ("drift", "graph_mode"):
        chosen = [known[name] for name in (NAMES if test == "drift" else GRAPH) if name in known]
        found = [
            dict(case=case, dtype=dtype)
            for dtype in dtypes
            for case in chosen
            if test == "drift" or dtype == "fp32" or case.id == GRAPH[0]
        ]
    else:
        # G1 runs on the CPU whatever the device is: there, every formulation that has CPU kernels is judged.
        # The formulations of a case follow each other: truth and control then answer once for both.
        asked = {"semantics": ("fp64",), "numerics": dtypes, "gradients": ("fp64", *dtypes)}[test]
        found = [
            dict(case=case, dtype=dtype, form=form)
            for dtype in asked
            for case in cases
            for form in Session("CPU" if dtype == "fp64" else device).forms()
            if _exists(test, case, dtype, form, device)
        ]
    return [Run(test, **run, repeated=_repeats(test, run, device, dtypes)) for run in found]


def _exists(test: str, case: Case, dtype: str, form: str, device: str) -> bool:
    if case.dtypes and dtype not in case.dtypes:
        return False
    if (
        test == "gradients"
    ):  # every small net in float64, and one of each kind in the other dtypes and formulations
        if not case.net or case.size != "tiny":
            return False
        return (dtype == "fp64" and form == "CPU") or case.name in DIFFERENTIATED
    if case.steps:  # the steps of a training are judged in the formulations of the device
        return form == ("CPU" if dtype == "fp64" else device)
    return not (case.size == "full" and dtype == "fp64")  # no G1: their float64 truth is part of G2


def _repeats(test: str, run: dict[str, Any], device: str, dtypes: Collection[str]) -> str:
    """No registered bug is declared to die by what nets do over time."""
    over_time = test in ("drift", "samplers", "graph_mode")
    return repeats(run["case"], run["dtype"], run.get("form") or device, device, dtypes, not over_time)


def composed(case: Case) -> bool:
    """Whether a case consists of parts that are judged by themselves."""
    return bool(case.net) or case.file in COMPOSED


@cache
def named() -> frozenset[str]:
    """Ids of the cases by which registered bugs die."""
    from parity.mutants import MUTANTS

    return frozenset(name for mutant in MUTANTS.values() for name in mutant.cases)


def repeats(
    case: Case, dtype: str, form: str, device: str, dtypes: Collection[str] = (), bugs: bool = True
) -> str:
    """Why a run tells nothing new: a key of `words`, or "". dtypes: what this session judges besides float64; bugs:
    whether registered bugs may die by it.

    other_form: the parts are judged in every formulation and dtype, their wiring is the same code, and it is judged in
      float64, where the smallest slip shows. A thin net of another formulation is the tiny one once more, deeper.
    other_half: on the CPU both half types are emulated by the same kernels and differ in the grid alone; float16's is
      finer and has less range, so it is the stricter one. On a device both types have kernels of their own.
    """
    if not composed(case):
        return ""
    if form != device and (dtype != "fp64" or case.size != "tiny"):
        return "not_run.other_form"
    if dtype == "bf16" and device == "CPU" and "fp16" in dtypes and not (bugs and case.id in named()):
        return "not_run.other_half"
    return ""
