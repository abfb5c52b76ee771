"""The spread over seeds is learnt from all recipes, and from none where there are too few."""

from __future__ import annotations

import numpy as np
import pytest

from deltatune.comparison.seed_spread import SeedSpread


def tables(spreads, seeds=3, seed=0):
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((seeds, 1))  # a seed that is hard for all says nothing of one
    return [common + spread * rng.standard_normal((seeds, 1)) * np.ones(5) for spread in spreads]


def test_equal_spreads_are_pooled_to_one_with_the_freedom_of_all():
    found = SeedSpread.of(tables([0.1] * 200))
    assert found.variance == pytest.approx(0.01, rel=0.2)  # of 400 degrees of freedom
    assert found.freedom > 30


def test_unequal_spreads_count_for_less():
    spreads = np.exp(2 * np.random.default_rng(1).standard_normal(200))
    assert SeedSpread.of(tables(spreads)).freedom < 2


def test_freedom_is_never_more_than_all_recipes_have():
    assert SeedSpread.of(tables([0.1] * 4)).freedom <= 6


@pytest.mark.parametrize(
    "few", [[np.ones((3, 5))] * 2, [np.ones((1, 5))] * 9, [np.ones((3, 5))] * 9]
)
def test_nothing_is_learnt_from_too_few_recipes_one_seed_or_no_spread(few):
    assert SeedSpread.of(few) == SeedSpread.unknown()


def test_one_recipe_without_a_spread_does_not_spoil_the_others():
    found = SeedSpread.of([*tables([0.1] * 50), tables([0.0], seed=0)[0]])
    assert np.isfinite(found.variance)
    assert found.freedom > 0
