# SPDX-License-Identifier: Apache-2.0
"""Gate G4: names the bug. A matched filter of the residual on the signatures of the registered port bugs.

d = c - r is what the port does differently from the control on the same bits; s is what a registered bug changes
in the float64 port on these bits. alpha = <d, s> / <s, s> is 1 if the port carries this bug, whatever the size
of the bug is. d is paired: rounding that candidate and control share cancels, which c - t would not do.
Nothing passes or fails by a diagnosis.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

SECONDS = 20.0  # that one diagnosis may take; signatures are kept, so a second one of the same tap is free
TOTAL = 120.0  # and all of a session: a port that fails everywhere is named by its first failures
RESOLVED = 0.2  # a standard deviation above it resolves nothing: 1 and 0 are then five of them apart at best
DEVIATIONS = 3
# Two signatures that agree this well cannot be told apart at this tap, and no alpha is known better: the smallest
# deviation that is printed, SAME / DEVIATIONS, is this choice and no measurement.
SAME = 1e-3
# Signatures that explain this much less than the best one are not it, whatever their alpha is by chance.
BEHIND = 0.02
# Besides scatter, alpha has a systematic error: arithmetic in the tested dtype is biased by a share of u |t| / |s|.
# Measured on Latte-class: up to 0.52 (fp32: a GELU, a LayerNorm, a block, the net; fp16, bf16, fp64: some of these), so
# three deviations were set to 0.9. One block (gate_omitted, fp32) lay outside: it is named by SAME, not by this.
SYSTEMATIC = 0.3


@dataclass
class Fit:
    """How well one bug explains a residual. share: of the residual's energy that its direction explains."""

    name: str
    alpha: float
    sigma: float
    share: float

    @property
    def named(self) -> bool:
        """Whether the residual looks like this bug: alpha is 1, and known well enough to say so."""
        return self.sigma < RESOLVED and abs(self.alpha - 1) < DEVIATIONS * self.sigma

    def __str__(self) -> str:
        digits = min(max(1 - math.floor(math.log10(self.sigma)), 2), 6) if self.sigma > 0 else 6
        return f"alpha = {self.alpha:.{digits}f} ± {self.sigma:.{digits}f}"


@dataclass
class Signatures:
    """What every registered bug changes at one tap, in float64. Absent: bugs for which there was no time.

    values: bug -> flat array; None for a bug that does not reach the tap, crashes, or changes its shape.
    outputs: bug -> flat result, of bugs that change the shape only. complete: whether all bugs were tried.
    """

    values: dict[str, np.ndarray | None]
    outputs: dict[str, list[np.ndarray]]
    complete: bool = True

    @property
    def reaching(self) -> dict[str, np.ndarray]:
        """The bugs that change this tap."""
        return {name: value for name, value in self.values.items() if value is not None}


def flat(outputs: list[np.ndarray]) -> np.ndarray:
    """All results of a tap as one float64 vector."""
    return np.concatenate([np.asarray(item, np.float64).reshape(-1) for item in outputs])


def collect_signatures(
    run: Callable[[str], list[np.ndarray] | None], names: Iterable[str], seconds: float = SECONDS
) -> Signatures:
    """Signatures of the bugs `names` (cheapest or likeliest first) until the time is up; the first is always tried.

    run: bug ("" for none) -> results of the tap in the float64 port on fixed bits; None for a crash.
    """
    began = time.perf_counter()
    found = Signatures({}, {})
    clean = run("")
    if clean is None:
        return Signatures({}, {}, complete=False)
    base = flat(clean)
    shapes = [np.shape(item) for item in clean]
    for name in names:
        if found.values and time.perf_counter() - began > seconds:
            found.complete = False
            break
        outputs = run(name)
        found.values[name] = None
        if outputs is None:
            continue
        if [np.shape(item) for item in outputs] != shapes:
            found.outputs[name] = outputs
            continue
        with np.errstate(invalid="ignore"):
            change = flat(outputs) - base
        if np.isfinite(change).all() and change.any():
            found.values[name] = change
    return found


def fit(name: str, residual: np.ndarray, signature: np.ndarray, systematic: float = 0.0) -> Fit:
    """Project a residual on a signature. sigma: sandwich standard deviation (elements of unequal variance), with
    `systematic` (an error norm that no averaging removes) and SAME beside it. What is not finite is left out.
    """
    finite = np.isfinite(residual)
    d, s = residual[finite], signature[finite]
    energy = float(s @ s)
    if energy == 0 or not d.any():
        return Fit(name, 0.0, math.inf, 0.0)
    # In units of |s|, or squares of small signatures underflow.
    size = math.sqrt(energy)
    d, s = d / size, s / size
    alpha = float(d @ s)
    left = d - alpha * s
    scatter = math.sqrt(float((s * s) @ (left * left)))
    sigma = math.hypot(scatter, systematic / size, SAME / DEVIATIONS)
    return Fit(name, alpha, sigma, alpha**2 / float(d @ d))


def fits(residual: np.ndarray, signatures: dict[str, np.ndarray], systematic: float = 0.0) -> list[Fit]:
    """All fits, the one that explains most first."""
    found = [fit(name, residual, signature, systematic) for name, signature in signatures.items()]
    return sorted(found, key=lambda item: -item.share)


def name_bugs(
    residual: np.ndarray, signatures: dict[str, np.ndarray], systematic: float = 0.0, most: int = 3
) -> list[tuple[Fit, list[str]]]:
    """The bugs that a residual looks like, each with others that cannot be told from it at this tap.

    One after another: the one that explains most is taken out of the residual before the next is looked for, so
    that a bug related to it is not named for the part they share.
    """
    named = []
    rest = dict(signatures)
    while rest and len(named) < most:
        ranked = fits(residual, rest, systematic)
        best = next((item for item in ranked if item.named), None)
        if best is None or best.share < ranked[0].share - BEHIND:
            break
        signature = rest.pop(best.name)
        size = np.linalg.norm(signature)
        alike = [name for name, other in rest.items() if np.linalg.norm(other - signature) < SAME * size]
        rest = {name: other for name, other in rest.items() if name not in alike}
        named.append((best, alike))
        residual = residual - signature
    return named


def explain(
    port: list[np.ndarray],
    control: list[np.ndarray],
    found: Signatures,
    describe: Callable[[str], str],
    roundoff: float,
) -> list[str]:
    """One to three lines: which registered bugs the failing tap looks like, or the nearest, or that none fits."""
    tried = f"{len(found.values)} registered bugs tried"
    tried += "" if found.complete else ", the others not for want of time"
    if [np.shape(item) for item in port] != [np.shape(item) for item in control]:
        alike = [
            name
            for name, outputs in found.outputs.items()
            if [np.shape(item) for item in outputs] == [np.shape(item) for item in port]
        ]
        if alike:
            return [f"looks like {describe(name)} ({name}): it gives results of this shape" for name in alike]
        return [f"no registered bug gives results of this shape ({tried})"]
    signatures = found.reaching
    with np.errstate(invalid="ignore"):
        residual = flat(port) - flat(control)
    if not np.isfinite(residual).any():
        return ["nothing finite to project: no registered bug can be named"]
    systematic = SYSTEMATIC * roundoff * float(np.linalg.norm(np.nan_to_num(flat(control))))
    ranked = fits(residual, signatures, systematic)
    named = name_bugs(residual, signatures, systematic)
    lines = []
    for best, alike in named:
        others = [item for item in ranked if item.name not in (best.name, *alike)]
        runner = others[0] if others else None
        behind = "none above 0.1"
        if runner and runner.share > 0.1:
            behind = f"{runner.name} {runner.share:.2g}, alpha = {runner.alpha:.3g}"
        line = (
            f"looks like {describe(best.name)} ({best.name}), {best}, explains {best.share:.3g} of the error"
        )
        line += f" (next: {behind})"
        line += f"; here the same as {', '.join(alike)}" if alike else ""
        lines.append(line)
    if lines:
        return lines
    lines = [f"no registered bug fits ({tried}, {len(signatures)} reach this result)"]
    near = [item for item in ranked[:2] if item.share > 0.1]
    lines += [f"nearest: {item.name}, {item}, explains {item.share:.2g} of the error" for item in near]
    return lines
