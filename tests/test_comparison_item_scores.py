"""The mean over items is the headline wherever there is such a mean."""

from __future__ import annotations

import pytest

from deltatune.comparison.item_scores import item_scores


@pytest.mark.parametrize(
    ("headline", "items", "mean"),
    [
        ("accuracy", [{"correct": True, "loss": 0.1}, {"correct": False, "loss": 0.9}], 0.5),
        ("exact_match", [{"score": 1.0, "loss": 3.0, "tokens": 2}, {"loss": 5.0, "tokens": 1}], 1),
        ("loss", [{"loss": 3.0, "tokens": 1}, {"loss": 5.0, "tokens": 3}], 2.0),
        ("mean_squared_error", [{"loss": 1.0}, {"loss": 4.0}], 2.5),
    ],
)
def test_item_scores_average_to_the_headline(headline, items, mean):
    scores, what = item_scores({"headline": headline, "items": items})
    assert what == headline
    assert scores.mean() == pytest.approx(mean)


def test_a_correlation_is_compared_by_squared_errors():
    items = [{"loss": 1.0}, {"loss": 4.0}]
    scores, what = item_scores({"headline": "pearson", "items": items})
    assert what == "squared error"
    assert scores.tolist() == [-1.0, -4.0]
