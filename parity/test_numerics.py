# SPDX-License-Identifier: Apache-2.0
"""Gates G0 and G2: every layer in the tested dtype by the ratio rule, locally and propagated."""

from parity.conftest import judged_case as job  # noqa: F401 - what `judge` runs


def test_numerics(judge, parity_case, dtype, form):
    judge()
