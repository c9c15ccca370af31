# SPDX-License-Identifier: Apache-2.0
"""Sine-cosine position tables that some layouts save and others compute: what belongs in a missing one."""

import numpy as np


def sincos_1d(width: int, positions: np.ndarray) -> np.ndarray:
    """[sin | cos] of positions times 10000^(-k / (width / 2)): (M,) -> (M, width) float64."""
    frequencies = 10000.0 ** (-np.arange(width // 2, dtype=np.float64) / (width / 2))
    angles = np.asarray(positions, np.float64)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_2d(width: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The table of a grid, row-major: (h,), (w,) -> (h * w, width); the column fills the first half."""
    by_column = sincos_1d(width // 2, np.tile(columns, len(rows)))
    by_row = sincos_1d(width // 2, np.repeat(rows, len(columns)))
    return np.concatenate([by_column, by_row], axis=1)
