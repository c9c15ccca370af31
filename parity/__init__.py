# SPDX-License-Identifier: Apache-2.0
"""Parity: feeds identical weights and inputs to `torch_ref` and `ms_latte`, compares every layer, prints diff tables.

`pytest parity/ --device CPU` judges; every other verb is `python -m parity VERB`. Importing the package needs neither
framework: only the worker processes import them.
"""
