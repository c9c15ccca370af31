# SPDX-License-Identifier: Apache-2.0
"""Which runs of the default suite would repeat others, and why: they are left out, counted and said, never dropped.

A run is (case, dtype, formulation set). Whatever a registered bug needs to die by is never left out (a test holds it),
and `pytest parity/ --every` runs all.
"""

from collections.abc import Collection
from functools import cache

from parity.harness.case import Case

# Cases made of parts that have cases of their own, in every formulation and dtype; whole nets are known by `net`.
COMPOSED = ("encoders.vae", "encoders.vae_coders", "encoders.vae_blocks")


def composed(case: Case) -> bool:
    """Whether a case consists of parts that are judged by themselves."""
    return bool(case.net) or case.file in COMPOSED


@cache
def named() -> frozenset[str]:
    """Ids of the cases by which registered bugs die."""
    from parity.mutants import MUTANTS

    return frozenset(name for mutant in MUTANTS.values() for name in mutant.cases)


def repeats(case: Case, dtype: str, form: str, device: str, dtypes: Collection[str] = ()) -> str:
    """Why a run tells nothing new: a key of `words`, or "". dtypes: what this session judges besides float64.

    other_form: the parts are judged in every formulation and dtype, their wiring is the same code, and it is judged in
      float64, where the smallest slip shows. A thin net of another formulation is the tiny one once more, deeper.
    other_half: on the CPU both half types are emulated by the same kernels and differ in the grid alone; float16's is
      finer and has less range, so it is the stricter one. On a device both types have kernels of their own.
    """
    if not composed(case):
        return ""
    if form != device and (dtype != "fp64" or case.size != "tiny"):
        return "not_run.other_form"
    if dtype == "bf16" and device == "CPU" and "fp16" in dtypes and case.id not in named():
        return "not_run.other_half"
    return ""
