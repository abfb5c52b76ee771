"""Which recipes are worth choosing from, where two columns pull apart."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["front", "hypervolume"]

Point = tuple[float, float]


def front(points: Sequence[Point]) -> list[int]:
    """Return the indices of the points that no other beats, by falling first coordinate.

    A point is beaten by one that is at least as good in both coordinates and better in one. Equal
    points do not beat each other: both stay.

    Args:
        points: the more the better in both coordinates; negate a cost.

    Source: the usual definition of Pareto optimality; one sweep, as Kung, Luccio and Preparata
    1975, On Finding the Maxima of a Set of Vectors.

    >>> front([(-1.0, 0.80), (-5.0, 0.85), (-6.0, 0.85)])
    [0, 1]
    """
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i))
    kept: list[int] = []
    for i in order:
        # Everything seen so far is at least as good in the first coordinate.
        if not kept or points[i][1] > points[kept[-1]][1] or points[i] == points[kept[-1]]:
            kept.append(i)
    return kept


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Return the area that the points dominate, down to a reference.

    Args:
        points: the more the better in both coordinates; negate a cost.
        reference: a point that is worse than all that count; points not above it in both
            coordinates add nothing.

    Returns:
        The area, in the product of the two units.

    Source: Zitzler and Thiele 1998, Multiobjective Optimization Using Evolutionary Algorithms.

    >>> round(hypervolume([(-1.0, 0.80), (-5.0, 0.85)], (-26.0, 0.7)), 6)
    3.55
    """
    counted = [p for p in points if p[0] > reference[0] and p[1] > reference[1]]
    area, floor = 0.0, reference[1]
    for i in front(counted):
        first, second = counted[i]
        area += (first - reference[0]) * (second - floor)
        floor = second
    return area
