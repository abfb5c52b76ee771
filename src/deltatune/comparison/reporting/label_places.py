"""Where the names of points stand, so that they hide neither each other nor a point."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from matplotlib.axes import Axes

__all__ = ["free_places", "place_labels"]

Box = tuple[float, float, float, float]  # left, bottom, right, top
Point = tuple[float, float]

# Beside a point: to the right and left, above and below, then the corners, then further away.
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
DISTANCES = (6.0, 12.0)
CHARACTER = (4.6, 9.0)  # width and height of a letter at 8 points, generous


def free_places(
    points: Sequence[Point],
    names: Sequence[str],
    inside: Box,
    *,
    first: Sequence[int] = (),
) -> list[Point | None]:
    """Return the centre of each name's label; None where no place is free.

    Args:
        points: in the units of `CHARACTER`.
        names: of the points.
        inside: the box that labels stay in.
        first: indices of the points that choose first; a line through them is kept clear.
    """
    taken = [_around(point, (8, 8)) for point in points]
    taken += _along([points[i] for i in first])
    places: list[Point | None] = [None] * len(points)
    order = [*first, *(i for i in range(len(points)) if i not in first)]
    for i in order:
        size = (CHARACTER[0] * max(1, len(names[i])), CHARACTER[1])
        for centre in _candidates(points[i], size):
            box = _around(centre, size)
            if _is_within(box, inside) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                places[i] = centre
                break
    return places


def _along(line: Sequence[Point]) -> list[Box]:
    """Return small boxes along a line."""
    boxes = []
    for start, end in itertools.pairwise(line):
        count = math.ceil(math.dist(start, end) / 5)
        for k in range(count):
            x, y = (a + (b - a) * k / count for a, b in zip(start, end, strict=True))
            boxes.append(_around((x, y), (3, 3)))
    return boxes


def _candidates(point: Point, size: Point) -> list[Point]:
    return [
        (
            point[0] + side[0] * (distance + size[0] / 2),
            point[1] + side[1] * (distance + size[1] / 2),
        )
        for distance in DISTANCES
        for side in SIDES
    ]


def _around(centre: Point, size: Point) -> Box:
    x, y = centre
    return x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2


def _is_within(box: Box, other: Box) -> bool:
    return box[0] >= other[0] and box[1] >= other[1] and box[2] <= other[2] and box[3] <= other[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def place_labels(
    axes: Axes, points: Sequence[Point], names: Sequence[str], *, first: Sequence[int]
) -> None:
    """Write the names beside their points; a name without a free place is left out.

    Args:
        axes: with scale, limits and size as they will stay.
        points: in data coordinates.
        names: of the points.
        first: indices of the points whose names matter most.
    """
    figure = axes.get_figure()
    if figure is None or not points:
        return
    to_points = 72 / figure.dpi
    places = [tuple(to_points * axes.transData.transform(point)) for point in points]
    box = axes.get_window_extent()
    inside = tuple(to_points * edge for edge in (box.x0, box.y0, box.x1, box.y1))
    for point, place, name, centre in zip(
        points, places, names, free_places(places, names, inside, first=first), strict=True
    ):
        if centre is not None:
            offset = (centre[0] - place[0], centre[1] - place[1])
            axes.annotate(
                name,
                point,
                offset,
                textcoords="offset points",
                size=7.5,
                ha="center",
                va="center",
                parse_math=False,
            )
