# SPDX-License-Identifier: Apache-2.0
"""Comparisons of ports that this project did not write, one file per example: `python -m parity other NAME`.

A definition (`latte_mindone.py`) is data that the judge reads; the factories that it names live in a `*_side.py`
file, which only the worker processes import. `example.py` is the file to copy.
"""
