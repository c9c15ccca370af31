# SPDX-License-Identifier: Apache-2.0
"""The picture of a training's losses."""

import json

import numpy as np
import pytest

from ms_latte import loss_curve
from ms_latte.config import ConfigError


def write(path, values):
    lines = [json.dumps({"step": i + 1, "mse": value}) for i, value in enumerate(values)]
    path.write_text("\n".join(lines) + "\n")
    return path


def rows_of(picture, colour):
    """Mean row of a colour in every column that has it, from left to right."""
    found = (picture == np.array(colour, np.uint8)).all(-1)
    rows = np.arange(picture.shape[0])[:, None]
    return [float((rows * found)[:, c].sum() / found[:, c].sum()) for c in np.flatnonzero(found.any(0))]


def test_the_line_falls_with_the_loss(tmp_path):
    steps, values = loss_curve.read_losses(write(tmp_path / "log.jsonl", np.geomspace(1, 0.05, 200).tolist()))
    picture = loss_curve.draw(steps, values, "mse")
    assert picture.shape == (loss_curve.HEIGHT, loss_curve.WIDTH, 3)
    line = rows_of(picture, loss_curve.LINE)
    # A straight line on the logarithmic scale, from near the top to near the bottom.
    assert line[0] < 40 and line[-1] > 290
    middle = line[len(line) // 2]
    assert abs(middle - (line[0] + line[-1]) / 2) < 4


def test_one_step_and_a_loss_of_zero_are_drawn():
    loss_curve.draw(np.array([1]), np.array([0.3]), "mse")
    loss_curve.draw(np.array([1, 2, 3]), np.array([0.3, 0.0, 0.1]), "mse")
    loss_curve.draw(np.array([1, 2]), np.zeros(2), "mse")


def test_a_file_without_losses_is_refused(tmp_path):
    for text in ("", "{}\n", "nonsense\n"):
        (tmp_path / "log.jsonl").write_text(text)
        with pytest.raises(ConfigError, match="no losses of a training run"):
            loss_curve.read_losses(tmp_path / "log.jsonl")
    with pytest.raises(ConfigError, match="no losses"):
        loss_curve.read_losses(tmp_path / "absent.jsonl")
