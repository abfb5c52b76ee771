"""The front of recipes that no other beats, and the area under it."""

from __future__ import annotations

import itertools

import pytest

from deltatune.comparison.pareto import front, hypervolume

POINTS = [(-1.0, 0.80), (-5.0, 0.85), (-6.0, 0.84), (-0.5, 0.75)]


def test_hypervolume_is_the_area_of_a_worked_example() -> None:
    # 25 wide and 0.10 high, and 21 wide and 0.05 high on top of it: 2.50 + 1.05.
    assert hypervolume(POINTS[:2], (-26, 0.7)) == pytest.approx(3.55, rel=1e-12)


def test_hypervolume_does_not_depend_on_the_order() -> None:
    areas = [hypervolume(order, (-26, 0.7)) for order in itertools.permutations(POINTS)]
    # 25.5 * 0.05 + 25 * 0.05 + 21 * 0.05 = 3.575; the dominated point adds nothing.
    assert areas == pytest.approx([3.575] * 24, rel=1e-12)


def test_hypervolume_of_points_below_the_reference_is_zero() -> None:
    assert hypervolume([(-30, 0.9), (-1, 0.7)], (-26, 0.7)) == 0
    assert hypervolume([], (0, 0)) == 0


def test_front_leaves_out_what_another_point_beats() -> None:
    assert front(POINTS) == [3, 0, 1]


def test_front_is_the_same_set_for_any_order() -> None:
    for order in itertools.permutations(POINTS):
        assert {order[i] for i in front(order)} == {POINTS[0], POINTS[1], POINTS[3]}


def test_front_keeps_equal_points_and_drops_one_equal_in_a_single_coordinate() -> None:
    assert front([(1, 2), (1, 2), (1, 1), (0, 2)]) == [0, 1]


def test_front_of_nothing_is_empty() -> None:
    assert front([]) == []
