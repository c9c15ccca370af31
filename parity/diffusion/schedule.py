# SPDX-License-Identifier: Apache-2.0
"""Cases of `diffusion/schedule.py`: tables are float64 in both twins, so they are judged by G1 alone."""

from parity.harness.case import Case

G1 = dict(dtypes=("fp64",))

CASES = [
    Case("linear_betas", **G1),
    Case("linear_betas", inputs=dict(steps=7, start=1e-3, end=0.3), name="short", **G1),
    Case("Schedule", dict(betas=[1e-4, 0.003, 0.02, 0.11, 0.3, 0.75]), method="tables", **G1),
]
