# SPDX-License-Identifier: Apache-2.0
"""PyTorch reference of Latte and LatteT2V: the readable twin that `ms_latte` is judged against.

Every file under `torch_ref/` has a twin of the same name under `ms_latte/` and its evidence under `parity/`.
This package imports torch and numpy only: an oracle that shared code with the port would share its mistakes.
"""
