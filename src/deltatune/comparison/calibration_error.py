"""Whether a model that is 80 % sure is right 80 times in 100."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.errors import InputError

__all__ = ["expected_calibration_error"]


def expected_calibration_error(items: Sequence[Mapping[str, Any]], bins: int = 15) -> float | None:
    """Return how far a model's confidence is from its accuracy, on average.

    Examples are put into bins of equal width by their confidence, and

        sum over bins of (examples in bin / examples) |accuracy in bin - mean confidence in bin|

    A bin holds its upper edge; the lowest holds 0 too. An example without confidence takes no part.

    Args:
        items: of an `Evaluation`: `confidence` in [0, 1], and `correct`, or the `score` of a
            generated answer, which is correct where it is 1.
        bins: of equal width, from 1; 15 as in the source.

    Returns:
        The error in [0, 1], 0 the best; None where no item has a confidence.

    Raises:
        InputError: `bins` is below 1.

    Source: Guo, Pleiss, Sun, Weinberger 2017, "On Calibration of Modern Neural Networks", arXiv
        1706.04599, equations 2 and 3, after Naeini, Cooper, Hauskrecht 2015, "Obtaining Well
        Calibrated Probabilities Using Bayesian Binning".

    >>> sure = [{"confidence": 0.75, "correct": right} for right in (True, True, True, False)]
    >>> expected_calibration_error(sure)
    0.0
    """
    if bins < 1:
        raise InputError(f"bins={bins} is not allowed: give an integer from 1, for example 15")
    rated = [item for item in items if item.get("confidence") is not None]
    if not rated:
        return None
    gaps = [0.0] * bins  # of each bin: its right answers less the sum of its confidences
    for item in rated:
        gaps[_bin(item["confidence"], bins)] += _is_correct(item) - item["confidence"]
    return sum(abs(gap) for gap in gaps) / len(rated)


def _bin(confidence: float, bins: int) -> int:
    """Return the number of the bin (number / bins, (number + 1) / bins] that holds a confidence."""
    edges = (number / bins for number in range(1, bins))
    return sum(confidence > edge for edge in edges)


def _is_correct(item: Mapping[str, Any]) -> bool:
    return bool(item["correct"]) if "correct" in item else item["score"] == 1.0
