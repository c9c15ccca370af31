# SPDX-License-Identifier: Apache-2.0
"""The drawn clips: the same for everybody, one shape that moves straight and stays inside."""

import numpy as np
import pytest

from ms_latte import shapes


def centres(frames, index):
    """Centre of mass (F, 2) and area (F,) of the shape: how far each pixel is from the background to the colour."""
    colour = np.array(shapes.COLOURS[index % len(shapes.KINDS)], np.float64)
    size = frames.shape[1]
    fade = np.linspace(0, 1, size)[:, None, None]
    ground = (1 - fade) * np.array(shapes.SKY) + fade * np.array(shapes.GROUND) + np.zeros((size, size, 3))
    way = colour - ground
    cover = ((frames - ground) * way).sum(-1) / (way * way).sum(-1)  # (F, H, W), 0 to 1
    area = cover.sum((1, 2))
    places = np.arange(size) + 0.5
    rows, columns = (cover.sum(2) * places).sum(1) / area, (cover.sum(1) * places).sum(1) / area
    return np.stack([rows, columns], 1), area


def test_a_clip_depends_on_seed_and_index_alone():
    first = shapes.clip(4, 5, 32, seed=7)
    assert first.shape == (5, 32, 32, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, shapes.clip(4, 9, 32, seed=7)[:5])
    assert (first != shapes.clip(4, 5, 32, seed=8)).any() and (first != shapes.clip(7, 5, 32, seed=7)).any()


@pytest.mark.parametrize("index", range(6))
def test_one_shape_moves_straight_and_keeps_its_area(index):
    places, area = centres(shapes.clip(index, 12, 32).astype(np.float64), index)
    # Edges of 4 points a pixel and bytes: an area of about 150 pixels is exact to a few.
    assert np.ptp(area) < 0.05 * area.mean() and area.mean() > 50
    steps = np.diff(places, axis=0)
    straight = (
        np.abs(np.abs(steps) - np.median(np.abs(steps), axis=0)) < 0.3
    )  # a quarter of a pixel is resolved
    # At a wall one step of a coordinate is folded back; 11 steps meet walls at most twice.
    assert (~straight).sum(0).max() <= 2 and np.linalg.norm(steps, axis=1).max() < 0.1 * 32
    assert places.min() > 0.15 * 32 and places.max() < 0.85 * 32


def test_kinds_differ_in_shape():
    covers = [shapes.coverage(kind, np.array([16.0, 16.0]), 7.0, 32) for kind in shapes.KINDS]
    disc, square, triangle = (cover.sum() for cover in covers)
    assert abs(disc - np.pi * 49) < 1  # 4 x 4 points a pixel
    # A side is right to a quarter of a pixel: 1.5 % of 12.3 pixels, twice that of the area.
    assert square == pytest.approx((2 * 0.88 * 7) ** 2, rel=0.03) and triangle < 0.6 * disc
    with pytest.raises(ValueError, match="kind is 'star'; expected one of disc, square, triangle"):
        shapes.coverage("star", np.zeros(2), 7.0, 32)


def test_walls_fold_the_way_back():
    np.testing.assert_allclose(shapes.bounced(np.array([3.0, 9.0, 11.0, -2.0, 19.0]), 1, 10), [3, 9, 9, 4, 1])
