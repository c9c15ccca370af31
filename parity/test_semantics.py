# SPDX-License-Identifier: Apache-2.0
"""Gates G0 and G1: the contract, and port against reference with both in float64 on the CPU, every layer."""


def test_semantics(judge, run):
    judge()
