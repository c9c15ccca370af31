# SPDX-License-Identifier: Apache-2.0
"""Names, numbers and ratios of results as every report shows them: the terminal, the files and the page."""

import math
import re

from parity.harness.gates import LIMITS, NATIVE_FORMS, SEMANTIC, CaseResult, Metrics, TapResult
from parity.harness.words import EN, Words

NAN = math.nan
UNMEASURED = Metrics(
    NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, 0
)  # for a tap that has only one kind of error


def local(tap: TapResult) -> Metrics:
    """Teacher-forced metrics of a tap, or those of the free run where it has no other."""
    return tap.local or tap.prop or UNMEASURED


def prop(tap: TapResult) -> Metrics:
    """Metrics of a tap in the free run."""
    return tap.prop or UNMEASURED


def predicted(tap: TapResult) -> float:
    """The propagated error that the local errors lead to expect; NaN where nobody computed it."""
    return tap.predicted or NAN


def ratio(metrics: Metrics, result: CaseResult) -> float:
    """Printed ratio: error over that of the control (with the floor of the dtype); in float64, error over the limit."""
    if result.dtype == "fp64":
        return metrics.e_c / semantic_limit(result.form)
    return metrics.ratio(LIMITS[result.dtype].floor)


def semantic_limit(form: str) -> float:
    """Limit of G1 for a set of formulations: some have the native LayerNorm, which is not float64 throughout."""
    return SEMANTIC["native" if form in NATIVE_FORMS else "composed"]


def worst_tap(result: CaseResult) -> TapResult:
    """The first culprit, or else the tap with the largest local ratio."""
    return result.failures[0] if result.failures else max(result.taps, key=lambda tap: rank(tap, result))


def rank(tap: TapResult, result: CaseResult) -> float:
    """Local ratio for sorting: what is not a number is worst of all."""
    value = ratio(local(tap), result)
    return math.inf if math.isnan(value) else value


def worst_first(results: list[CaseResult]) -> list[CaseResult]:
    """Failed cases, then the others by their worst ratio."""
    return sorted(results, key=lambda r: (r.passed, -rank(worst_tap(r), r) if r.taps else 0.0))


def name(tap: TapResult) -> str:
    """Path of the module: "blocks.0.attn"; "" for the net itself."""
    return tap.tap.rpartition("#")[0]


def label(tap: TapResult, w: Words = EN) -> str:
    """Path of the module, with the number of the call where it runs more than once."""
    shown = name(tap) or w("row.output")
    index = tap.tap.rpartition("#")[2]
    return shown if index == "0" else w("row.call", name=shown, number=int(index) + 1)


def alike(tap: TapResult) -> tuple[str, str]:
    """What equal layers of different blocks have in common: the path without its numbers, and the verdict."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name(tap)), tap.verdict


def stage(tap: TapResult) -> bool:
    """Whether the tap is a member of a list of blocks at the top of a net: "blocks.3"."""
    parts = name(tap).split(".")
    return len(parts) == 2 and parts[1].isdigit()


def shape(dims: tuple, w: Words = EN) -> str:
    """2x3x4."""
    return "x".join(map(str, dims)) or w("row.scalar")


def sci(value: float) -> str:
    """An error, in two digits."""
    return "0" if value == 0 else "-" if math.isnan(value) else "inf" if math.isinf(value) else f"{value:.1e}"


def num(value: float) -> str:
    """A ratio."""
    if math.isinf(value) or math.isnan(value):
        return "inf"
    if 0 < value < 0.005:
        return f"{value:.0e}"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}" if value < 1e5 else f"{value:.0e}"
