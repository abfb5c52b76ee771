"""Intervals that cover, p-values that do not cry wolf, ranks with ties, and hand counts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deltatune.comparison.significance import adjusted, compare_pair, compare_pairs, ranks
from deltatune.errors import InputError


def table(rng, *, mean=0.0, seeds=3, items=200, of_seeds=0.02, of_items=0.3, of_rest=0.3):
    """Scores with an effect of each seed, of each item, and of each cell."""
    return (
        mean
        + of_seeds * rng.standard_normal((seeds, 1))
        + of_items * rng.standard_normal((1, items))
        + of_rest * rng.standard_normal((seeds, items))
    )


@pytest.mark.parametrize("of_seeds", [0.0, 0.02])
def test_interval_covers_a_known_difference_95_percent_of_the_time(of_seeds):
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(600):
        scores = {"a": table(rng, mean=0.05, of_seeds=of_seeds), "b": np.zeros((3, 200))}
        found = compare_pair("a", "b", scores, seed=seed, draws=200)
        hits += found.low <= 0.05 <= found.high
    assert 0.93 <= hits / 600 <= 0.97


def test_compare_pairs_finds_no_difference_where_there_is_none():
    rng = np.random.default_rng(1)
    false = 0
    for seed in range(300):
        items = 0.3 * rng.standard_normal((1, 100))
        scores = {
            name: items + table(rng, items=100, of_items=0.1, of_seeds=0.03) for name in "abcd"
        }
        false += any(pair.is_significant for pair in compare_pairs(scores, seed=seed, draws=50))
    assert false / 300 < 0.05


def test_compare_pairs_tell_a_bad_recipe_from_two_that_tie():
    rng = np.random.default_rng(2)
    items = 0.3 * rng.standard_normal((1, 300))
    scores = {
        "good": items + table(rng, mean=0.5, items=300, of_items=0.05),
        "twin": items + table(rng, mean=0.5, items=300, of_items=0.05),
        "bad": items + table(rng, mean=0.0, items=300, of_items=0.05),
    }
    pairs = compare_pairs(scores)
    assert ranks(list(scores), pairs) == {"good": 1, "twin": 1, "bad": 3}
    tied = next(pair for pair in pairs if {pair.first, pair.second} == {"good", "twin"})
    assert tied.low < 0 < tied.high
    assert tied.items_needed > 300


def test_compare_pairs_gives_each_pair_what_it_gives_alone():
    rng = np.random.default_rng(4)
    scores = {"a": table(rng), "b": table(rng, mean=0.1)}
    (pair,) = compare_pairs(scores, seed=7, draws=100)
    alone = compare_pair("a", "b", scores, seed=7, draws=100)
    # Only the order of additions differs.
    assert (pair.low, pair.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
    assert pair.p_value == alone.p_value


def test_compare_pairs_of_many_recipes_are_not_misled_by_seeds_that_agree_by_luck():
    # By each pair's own seeds alone about half of these find a difference.
    rng = np.random.default_rng(6)
    false = 0
    for seed in range(40):
        items = 0.3 * rng.standard_normal((1, 100))
        scores = {
            str(i): items + table(rng, items=100, of_items=0.2, of_seeds=0.15) for i in range(12)
        }
        false += any(pair.is_significant for pair in compare_pairs(scores, seed=seed, draws=20))
    assert false / 40 <= 0.15


def test_interval_does_not_depend_on_names():
    rng = np.random.default_rng(5)
    one, other = table(rng, mean=0.1), table(rng)
    found = compare_pair("a", "b", {"a": one, "b": other})
    same = compare_pair("lora", "full", {"lora": one, "full": other})
    assert (same.low, same.high) == (found.low, found.high)


def test_one_recipe_has_no_pairs():
    assert compare_pairs({"a": np.ones((3, 10))}) == []
    assert ranks(["a"], []) == {"a": 1}


def test_compare_pair_of_equal_answers_ties_exactly():
    scores = {"a": np.ones((3, 10)), "b": np.ones((3, 10))}
    found = compare_pair("a", "b", scores)
    assert (found.mean, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert not found.is_significant


def test_compare_pair_has_no_interval_with_one_seed():
    found = compare_pair("a", "b", {"a": np.ones((1, 10)), "b": np.zeros((1, 10))})
    assert found.mean == 1
    assert math.isnan(found.low)
    assert math.isnan(found.p_value)
    assert not found.is_significant


def test_compare_pair_is_the_same_at_every_call():
    scores = {"a": table(np.random.default_rng(3)), "b": np.zeros((3, 200))}
    assert compare_pair("a", "b", scores, seed=5) == compare_pair("a", "b", scores, seed=5)


def test_compare_pair_refuses_tables_of_other_items():
    with pytest.raises(InputError, match=r"'a' has scores of shape \(3, 10\), 'b' of \(3, 9\)"):
        compare_pair("a", "b", {"a": np.ones((3, 10)), "b": np.ones((3, 9))})


def test_adjusted_is_holms_step_down():
    # Ordered 0.01, 0.02, 0.04 times 3, 2, 1 is 0.03, 0.04, 0.04.
    assert adjusted([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    # The second would fall below the first: 0.02 * 3 = 0.06 stays.
    assert adjusted([0.02, 0.025, 0.9]) == pytest.approx([0.06, 0.06, 0.9])
    assert adjusted([0.5, math.nan]) == pytest.approx([0.5, math.nan], nan_ok=True)
