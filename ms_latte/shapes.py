# SPDX-License-Identifier: Apache-2.0
"""A video set without a download: coloured shapes that move in straight lines and bounce off the walls.

Frames are uint8 (F, H, W, 3). A clip is a function of (seed, index) alone.
"""

import numpy as np

KINDS = ("disc", "square", "triangle")  # the classes
COLOURS = ((235, 80, 70), (245, 200, 60), (70, 160, 240))  # one for each
SKY, GROUND = (18, 24, 56), (70, 60, 80)  # colours of the first and the last row of the background
FINENESS = 4  # points per pixel and side: edges are smooth


def clip(index, frames, size, seed=0):
    """One clip (F, size, size, 3); its kind is KINDS[index % 3], its size, place, direction and speed are drawn."""
    rng = np.random.default_rng([seed, index])
    kind = index % len(KINDS)
    radius = size * rng.uniform(0.2, 0.25)
    place = rng.uniform(radius, size - radius, 2)  # of the centre: row, column
    angle, speed = rng.uniform(0, 2 * np.pi), size * rng.uniform(0.03, 0.09)
    step = speed * np.array([np.sin(angle), np.cos(angle)])
    fade = np.linspace(0, 1, size)[:, None, None]
    ground = np.broadcast_to((1 - fade) * np.array(SKY) + fade * np.array(GROUND), (size, size, 3))
    pictures = []
    for f in range(frames):
        centre = bounced(place + f * step, radius, size - radius)
        cover = coverage(KINDS[kind], centre, radius, size)[..., None]
        pictures.append(ground + cover * (np.array(COLOURS[kind]) - ground))
    return np.stack(pictures).round().astype(np.uint8)


def coverage(kind, centre, radius, size):
    """How much of each pixel a shape covers, (size, size) from 0 to 1. Raises ValueError for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    points = (np.arange(size * FINENESS) + 0.5) / FINENESS
    y, x = points[:, None] - centre[0], points[None] - centre[1]
    if kind == "disc":
        inside = x * x + y * y <= radius**2
    elif kind == "square":
        inside = np.maximum(np.abs(x), np.abs(y)) <= 0.88 * radius
    else:
        inside = (y <= 0.8 * radius) & (y >= 2 * np.abs(x) - radius)
    return inside.reshape(size, FINENESS, size, FINENESS).mean((1, 3))


def bounced(place, low, high):
    """Coordinates of a straight line, folded back at two walls."""
    way = np.mod(place - low, 2 * (high - low))
    return low + np.minimum(way, 2 * (high - low) - way)
