"""One number per item whose mean is the score that tables show, so that recipes can be paired."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deltatune.comparison.significance import Table

__all__ = ["item_scores"]


def item_scores(evaluation: Mapping[str, Any]) -> tuple[Table, str]:
    """Return the scores of the items of one evaluation, and of what they are.

    Args:
        evaluation: a part of `evaluation.json`, as `Evaluation.to_dict` gives it.

    Returns:
        `(items,)` float64, whose mean is the headline wherever that is a mean over items; and the
        name of what is averaged: the headline, or `squared error` where the headline is a
        correlation, which belongs to no single item.
    """
    items, headline = evaluation["items"], evaluation["headline"]
    if "score" in items[0]:  # answers are generated to the first items only
        scored = [float(item["score"]) for item in items if "score" in item]
        return np.asarray(scored), headline
    if headline == "accuracy":
        return np.asarray([float(item["correct"]) for item in items]), headline
    losses = np.asarray([float(item["loss"]) for item in items])
    if headline == "pearson":
        return -losses, "squared error"
    if "tokens" in items[0]:  # a mean over tokens: longer items weigh more
        tokens = sum(item["tokens"] for item in items)
        return losses * (len(items) / max(tokens, 1)), headline
    return losses, headline
