"""How far locations have travelled, worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deltatune.errors import InputError
from deltatune.reports.location_distance import expected_distinct_cells, location_distance


def test_distance_is_counted_per_axis_and_by_cell() -> None:
    start = torch.tensor([[0, 2, 5, 5], [1, 1, 3, 0]])
    end = torch.tensor([[0, 5, 5, 4], [1, 3, 3, 7]])
    row = location_distance(start, end, shape=(6, 8))
    assert row == {
        "coefficients": 4,
        "moved_ratio": 0.5,
        "row_mean_cells": 1.0,
        "row_median_cells": 0.5,
        "row_largest_cells": 3,
        "column_mean_cells": 2.25,
        "column_median_cells": 1.0,
        "column_largest_cells": 7,
        "distinct_cells": 3,  # (5, 3) twice
        "coinciding_ratio": 0.25,
        "expected_distinct_cells": pytest.approx(48 * (1 - (47 / 48) ** 4)),
    }


def test_expected_distinct_cells_are_those_of_uniform_draws() -> None:
    assert expected_distinct_cells(1000, (768, 768)) == pytest.approx(999.15, abs=0.005)
    assert expected_distinct_cells(5, (1, 1)) == 1
    cells = torch.randint(0, 50, (2000, 40), generator=torch.Generator().manual_seed(0))
    distinct = sum(row.unique().numel() for row in cells) / 2000
    # Standard deviation of the number is below 3, of its mean below 0.07.
    assert expected_distinct_cells(40, (5, 10)) == pytest.approx(distinct, abs=0.2)


def test_distance_tells_cells_of_a_vocabulary_apart() -> None:
    # Flat indices pass 2^31 here.
    corner = torch.tensor([[255_999, 255_998], [16_383, 16_383]], dtype=torch.int32)
    row = location_distance(corner, corner, shape=(256_000, 16_384))
    assert (row["distinct_cells"], row["moved_ratio"]) == (2, 0.0)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3), "start is torch.float32: give cells as integers"),
        (torch.zeros(3, 2).long(), torch.zeros(2, 2).long(), r"start has the shape \[3, 2\]"),
        (torch.zeros(2, 2).long(), torch.zeros(2, 3).long(), "2 locations and end 3"),
        (torch.zeros(2, 0).long(), torch.zeros(2, 0).long(), r"start has the shape \[2, 0\]"),
        (torch.zeros(2, 1).long(), torch.tensor([[0], [4]]), "end holds cell 4 on axis 1"),
        (torch.tensor([[-1], [0]]), torch.zeros(2, 1).long(), "start holds cell -1 on axis 0"),
    ],
)
def test_distance_refuses_what_are_no_locations(start: Tensor, end: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        location_distance(start, end, shape=(3, 4))
