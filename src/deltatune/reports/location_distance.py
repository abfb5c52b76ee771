"""How far learned locations have travelled over the cells of a spectrum."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from deltatune.errors import InputError
from deltatune.parts import Source
from deltatune.reports.report import Row, report

__all__ = ["expected_distinct_cells", "location_distance"]

SOURCE = Source(
    authors="Du et al.",
    year=2025,
    title="LoCA: Location-Aware Cosine Adaptation for Parameter-Efficient Fine-Tuning",
    arxiv="2502.06820",
    where="algorithm 1, whose outcome this describes",
)


@report(source=SOURCE)
def location_distance(start: Tensor, end: Tensor, *, shape: tuple[int, int]) -> Row:
    """Describe how far the locations of one weight have moved, in cells of each axis.

    Args:
        start: integer cells before training, `(2, coefficients)`: rows, then columns.
        end: the same after training, in the same order.
        shape: `(out, in)` of the weight, whose cells they count.

    Returns:
        `coefficients`, `moved_ratio` (share of locations that are in another cell); for `row` and
        `column` each `..._mean_cells`, `..._median_cells`, `..._largest_cells`; `distinct_cells`
        at the end, `coinciding_ratio` (1 - distinct / coefficients), and
        `expected_distinct_cells` of as many uniform draws.

    Raises:
        InputError: tensors of another form, that are no integers, or a cell outside `shape`.
    """
    for name, cells in (("start", start), ("end", end)):
        _check_cells(name, cells, shape)
    if start.shape != end.shape:
        raise InputError(
            f"start has {start.shape[1]} locations and end {end.shape[1]}: give those of one weight"
        )
    number = start.shape[1]
    far = (end.cpu().long() - start.cpu().long()).abs()
    distinct = int((end[0].cpu().long() * shape[1] + end[1].cpu().long()).unique().numel())
    row: dict[str, int | float] = {
        "coefficients": number,
        "moved_ratio": float(far.any(dim=0).double().mean()),
    }
    for axis, name in enumerate(("row", "column")):
        row[f"{name}_mean_cells"] = float(far[axis].double().mean())
        row[f"{name}_median_cells"] = float(np.median(far[axis].numpy()))
        row[f"{name}_largest_cells"] = int(far[axis].max())
    return {
        **row,
        "distinct_cells": distinct,
        "coinciding_ratio": 1 - distinct / number,
        "expected_distinct_cells": expected_distinct_cells(number, shape),
    }


def expected_distinct_cells(coefficients: int, shape: tuple[int, int]) -> float:
    """Return how many different cells uniform draws hit in expectation, M (1 - (1 - 1/M)^B).

    Args:
        coefficients: B, draws.
        shape: of the grid of M cells.

    >>> round(expected_distinct_cells(1000, (768, 768)), 2)
    999.15
    """
    cells = shape[0] * shape[1]
    if cells == 1:
        return float(min(coefficients, 1))
    return -cells * math.expm1(coefficients * math.log1p(-1 / cells))


def _check_cells(name: str, cells: Tensor, shape: tuple[int, int]) -> None:
    if cells.ndim != 2 or cells.shape[0] != 2 or not cells.shape[1]:
        raise InputError(
            f"{name} has the shape {list(cells.shape)}: give rows and columns, (2, coefficients)"
        )
    if cells.is_floating_point() or cells.is_complex():
        raise InputError(f"{name} is {cells.dtype}: give cells as integers")
    for axis, length in enumerate(shape):
        low, high = int(cells[axis].min()), int(cells[axis].max())
        if low < 0 or high >= length:
            outside = low if low < 0 else high
            raise InputError(
                f"{name} holds cell {outside} on axis {axis}, whose cells are 0 to {length - 1}: "
                f"give the locations and the shape of one weight"
            )
