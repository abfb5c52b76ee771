"""Locations of coefficients in a spectrum `(p, q)`: where they start, which cells they mean.

And what the derivative of the loss in them is, though cells are integers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deltatune.orthonormal import Basis

__all__ = ["LocationRule", "largest_cells", "low_frequency_cells", "uniform_cells"]

# How far beyond the ends of an axis trained locations may lie: the larger of the two.
BEYOND_RATIO, BEYOND_CELLS = 0.25, 8.0
AUTHORS_LIMIT = 0.999  # of a share; above it the last index of 502 and more is out of reach


@dataclass(frozen=True)
class LocationRule:
    """How trained numbers become cells, and how derivatives in cells come back to them.

    Args:
        rows: p.
        columns: q.
        unit: `cell`, or `share` of the axis, from 0 to 1.
        is_authors: as the authors' code does it: shares end at 0.999, a missing neighbour is the
            cell itself, and derivatives are clamped to +-1 in every backward pass.
    """

    rows: int
    columns: int
    unit: str
    is_authors: bool

    def _spans(self, like: Tensor) -> Tensor:
        """Return the number of cells for a whole share, `(2, 1)`."""
        return like.new_tensor([[self.rows - 1], [self.columns - 1]])

    def _limits(self, like: Tensor) -> Tensor:
        """Return the largest number that is not clamped, `(2, 1)`, one that float32 holds."""
        limit = AUTHORS_LIMIT if self.is_authors else 1.0
        spans = self._spans(like).float()
        limits = spans * limit if self.unit == "cell" else torch.full_like(spans, limit)
        return limits.to(like)

    def cells(self, locations: Tensor) -> Tensor:
        """Return row and column of each location, `(2, B)` int64, rounded to even at halves."""
        clamped = torch.minimum(locations.clamp(min=0), self._limits(locations))
        scaled = clamped if self.unit == "cell" else clamped * self._spans(locations)
        return scaled.round().to(torch.int64)

    def may_hold(self, locations: Tensor, *, trained: bool) -> bool:
        """Tell whether a delta may have these numbers.

        Those that stay lie on their axis. Those that train get no derivative beyond its ends, but
        momentum carries them on for some ten steps' worth.

        Args:
            locations: `(2, B)`, or any piece of it.
            trained: whether they train.
        """
        spans = self._spans(locations).float()
        beyond = torch.maximum(BEYOND_RATIO * spans, spans.new_tensor(BEYOND_CELLS)) * trained
        ends = spans
        if self.unit == "share":
            beyond, ends = beyond / spans.clamp(min=1), torch.ones_like(spans)
        if locations.shape[:1] != (2,):
            beyond, ends = beyond.max(), ends.max()
        return bool(((locations >= -beyond) & (locations <= ends + beyond)).all())

    def of_cells(self, cells: Tensor) -> Tensor:
        """Return numbers that mean given cells, `(2, B)` float32, within what is not clamped."""
        found = cells.to(torch.float64)
        if self.unit == "share":
            found = found / self._spans(found).clamp(min=1)
        return torch.minimum(found, self._limits(found)).to(torch.float32)

    def of_shares(self, shares: Tensor) -> Tensor:
        """Return the numbers of shares of each axis, `(2, B)` float32."""
        return shares * self._spans(shares) if self.unit == "cell" else shares

    def neighbours(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cells before and after, on each axis, `(2, B)` each, inside the spectrum."""
        last = self._spans(cells)
        return (cells - 1).clamp(min=0), torch.minimum(cells + 1, last)

    def gradient(self, slope: Tensor, coefficients: Tensor, locations: Tensor) -> Tensor:
        """Return the derivative of the loss in the trained numbers, `(2, B)`.

        By central differences: moving a coefficient a by one cell changes the loss by a times the
        difference of two scores, and the second order of both moves is the same and cancels. At the
        border there is only one neighbour and it does not cancel, so that the estimate may have the
        wrong sign: it is 0 there, but for the authors' rule.

        Args:
            slope: Z after less Z before each cell, on both axes, `(2, B)`, where Z = C G D^T is the
                spectrum of the weight's gradient G.
            coefficients: `(B,)`.
            locations: `(2, B)`.
        """
        derivative = coefficients / 2 * slope
        cells, spans = self.cells(locations), self._spans(derivative)
        if self.is_authors:
            derivative = derivative.clamp(-1, 1)
        else:
            derivative = derivative * ((cells > 0) & (cells < spans))
        if self.unit == "share":
            derivative = derivative * spans
        return derivative * ((locations >= 0) & (locations <= self._limits(locations)))


def uniform_cells(
    number: int, rows: int, columns: int, generator: torch.Generator | None
) -> Tensor:
    """Return distinct cells, each set of them equally likely, `(2, number)` int64.

    Args:
        number: at most rows * columns.
        rows: p.
        columns: q.
        generator: source of the draws.
    """
    total = rows * columns
    if 2 * number > total:
        flat = torch.randperm(total, generator=generator)[:number]
        return torch.stack([flat // columns, flat % columns])
    found = torch.empty(0, dtype=torch.int64)
    while found.numel() < number:
        drawn = torch.randint(total, (2 * number,), generator=generator)
        found = _first_of_each(torch.cat([found, drawn]))
    flat = found[:number]
    return torch.stack([flat // columns, flat % columns])


def _first_of_each(values: Tensor) -> Tensor:
    """Return the distinct values in the order in which they came first."""
    distinct, inverse = values.unique(return_inverse=True)
    places = torch.full_like(distinct, values.numel())
    places.scatter_reduce_(0, inverse, torch.arange(values.numel()), reduce="amin")
    return values[places.sort().values]


def low_frequency_cells(number: int, rows: int, columns: int) -> Tensor:
    """Return the cells nearest to the first, by their distance in shares of the axes.

    Args:
        number: at most rows * columns.
        rows: p.
        columns: q.
    """
    # A quarter of an ellipse holds them; the corner of its square, and one more, hold it.
    radius = math.sqrt(4 * number / (math.pi * rows * columns))
    while True:
        high = min(rows, math.ceil(radius * rows) + 2)
        wide = min(columns, math.ceil(radius * columns) + 2)
        along = torch.arange(high, dtype=torch.float64)[:, None] / rows
        across = torch.arange(wide, dtype=torch.float64) / columns
        distances = (along.square() + across.square()).flatten()
        inside = int((distances <= radius * radius).sum())
        if inside >= number or high * wide == rows * columns:
            flat = distances.sort(stable=True).indices[:number]
            return torch.stack([flat // wide, flat % wide])
        radius *= 1.1


def largest_cells(number: int, gradient: Tensor, basis: Basis) -> Tensor:
    """Return the cells with the largest coefficients of a weight's gradient, `(2, number)`.

    A step along them lowers the loss most, to first order, of all choices of so many cells.

    Args:
        number: at most p * q.
        gradient: `(p, q)` float32.
        basis: of both axes.
    """
    sizes = basis.spectrum(gradient).real.abs().flatten()
    flat = sizes.topk(number, sorted=False).indices.sort().values
    return torch.stack([flat // gradient.shape[1], flat % gradient.shape[1]])
