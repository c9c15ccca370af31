# SPDX-License-Identifier: Apache-2.0
"""Selects the device once, before the first operator of any test of this folder."""

from ms_latte import device

device.select("CPU")
