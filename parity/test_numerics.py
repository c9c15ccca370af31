# SPDX-License-Identifier: Apache-2.0
"""Gates G0 and G2: every layer in the tested dtype by the ratio rule, locally and propagated."""


def test_numerics(judge, run):
    judge()
