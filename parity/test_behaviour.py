# SPDX-License-Identifier: Apache-2.0
"""Gate G5: gradients of the inputs and of every parameter of the nets, float64 first, then by the ratio rule.

Drift over many steps, and of samplers, against a noise twin; graph mode against PyNative. `harness/suite.py` lists the
runs.
"""


def test_gradients(judge, run):
    judge()


def test_drift(judge, run):
    judge()


def test_samplers(judge, run):
    judge()


def test_graph_mode(judge, run):
    judge()
