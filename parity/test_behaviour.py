# SPDX-License-Identifier: Apache-2.0
"""Gate G5: gradients of the inputs and of every parameter of the nets, float64 first, then by the ratio rule."""

from parity.harness.behaviour import run_gradients


def test_gradients(judge, parity_case, dtype, form):
    judge(run_gradients)
