"""Calibration error: worked by hand, and beside an independent binning."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from sklearn.calibration import calibration_curve

from deltatune.comparison.calibration_error import expected_calibration_error
from deltatune.errors import InputError


def items(*pairs: tuple[float, bool]) -> list[dict[str, Any]]:
    return [{"confidence": confidence, "correct": correct} for confidence, correct in pairs]


def test_error_is_the_weighted_gap_of_each_bin() -> None:
    rated = items((0.9, True), (0.8, False), (0.7, True), (0.3, False), (0.2, True))
    # two bins: of 3 examples 2 are right at 0.8 on average; of 2 examples 1 at 0.25
    by_hand = 3 / 5 * abs(2 / 3 - 0.8) + 2 / 5 * abs(1 / 2 - 0.25)
    assert expected_calibration_error(rated, bins=2) == pytest.approx(by_hand)
    # one bin: accuracy 3/5, confidence 2.9/5; the gaps of opposite sign cancel
    assert expected_calibration_error(rated, bins=1) == pytest.approx(0.6 - 0.58)


def test_error_ends_are_always_right_and_always_wrong() -> None:
    assert expected_calibration_error(items((1.0, True), (1.0, True))) == 0.0
    assert expected_calibration_error(items((0.0, False), (1.0, True))) == 0.0
    assert expected_calibration_error(items((1.0, False), (0.0, True))) == 1.0


def test_edge_between_two_bins_belongs_to_the_lower() -> None:
    # at 0.5 and 0.25 in one bin the mean gap is |1/2 - 0.375|; apart it would be (0.5 + 0.25) / 2
    rated = items((0.5, True), (0.25, False))
    assert expected_calibration_error(rated, bins=2) == pytest.approx(0.125)


def test_error_equals_that_of_scikit_learn_s_bins() -> None:
    generator = torch.Generator().manual_seed(0)
    confidences = torch.rand(400, generator=generator).double().numpy()
    correct = (torch.rand(400, generator=generator) < 0.7).numpy()
    rated = items(*zip(confidences.tolist(), correct.tolist(), strict=True))
    accuracies, means = calibration_curve(correct, confidences, n_bins=15)
    sizes = numpy.histogram(confidences, bins=15, range=(0.0, 1.0))[0]
    expected = (sizes / 400 * numpy.abs(accuracies - means)).sum()
    assert expected_calibration_error(rated) == pytest.approx(expected)


def test_answers_are_correct_at_full_score_only() -> None:
    rated = [{"confidence": 1.0, "score": score} for score in (1.0, 0.5)]
    assert expected_calibration_error(rated) == pytest.approx(0.5)


def test_items_without_confidence_take_no_part() -> None:
    losses: list[dict[str, Any]] = [{"loss": 1.0, "tokens": 3}, {"confidence": None, "score": 0.0}]
    assert expected_calibration_error(losses) is None
    assert expected_calibration_error([]) is None
    assert expected_calibration_error(losses + items((1.0, True))) == 0.0


def test_number_of_bins_is_checked() -> None:
    with pytest.raises(InputError, match="bins=0 is not allowed: give an integer from 1"):
        expected_calibration_error(items((1.0, True)), bins=0)
