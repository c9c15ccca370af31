# SPDX-License-Identifier: Apache-2.0
"""The loss of a training run as a picture, drawn with Pillow alone."""

import json

import numpy as np

from ms_latte.config import ConfigError

WIDTH, HEIGHT, LEFT, BOTTOM, EDGE = 720, 360, 64, 40, 16
INK, GRID, PALE, LINE = (60, 60, 60), (225, 225, 225), (190, 205, 235), (30, 80, 180)
TICKS = (1, 2, 5)  # of every power of ten
SMOOTH = 50  # part of the steps that one point of the line averages: a fiftieth


def read_losses(path, name="mse"):
    """(steps, values) of log.jsonl of a training run. Raises ConfigError for a file without such lines."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file if line.strip()]
        steps, values = zip(*((line["step"], line[name]) for line in lines), strict=True)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path}: no losses of a training run ({error or 'empty'})") from error
    return np.array(steps), np.array(values, np.float64)


def draw(steps, values, title):
    """A picture (H, W, 3) uint8: the loss of every step pale, its running mean as a line, both axes labelled; the loss
    is drawn on a logarithmic scale."""
    from PIL import Image, ImageDraw

    width = max(len(values) // SMOOTH, 1)
    mean = np.convolve(values, np.ones(width) / width, "valid")
    middle = steps[width - 1 :]
    shown = values[values > 0] if (values > 0).any() else np.ones(1)
    low, high = np.percentile(shown, 1) / 1.1, shown.max() * 1.1
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(image)

    def point(step, value):
        x = LEFT + (WIDTH - LEFT - EDGE) * step / max(steps[-1], 1)
        y = EDGE + (HEIGHT - BOTTOM - EDGE) * np.log(high / max(value, low)) / np.log(high / low)
        return x, y

    for value in ticks(low, high):
        y = point(0, value)[1]
        pen.line([(LEFT, y), (WIDTH - EDGE, y)], GRID)
        pen.text((LEFT - 8, y), f"{value:g}", INK, anchor="rm")
    for step in np.linspace(0, steps[-1], 5):
        x = point(step, high)[0]
        pen.line([(x, EDGE), (x, HEIGHT - BOTTOM)], GRID)
        pen.text((x, HEIGHT - BOTTOM + 8), f"{step:.0f}", INK, anchor="mt")
    pen.line([point(*pair) for pair in zip(steps, values, strict=True)], PALE)
    pen.line([point(*pair) for pair in zip(middle, mean, strict=True)], LINE, 2)
    pen.rectangle([LEFT, EDGE, WIDTH - EDGE, HEIGHT - BOTTOM], outline=INK)
    pen.text((WIDTH - EDGE - 10, EDGE + 10), title, INK, anchor="rt")
    pen.text((WIDTH - EDGE, HEIGHT - 6), "step", INK, anchor="rb")
    return np.asarray(image)


def ticks(low, high):
    """1, 2 and 5 times powers of ten between two numbers."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    return [t * 10.0**k for k in powers for t in TICKS if low <= t * 10.0**k <= high]
