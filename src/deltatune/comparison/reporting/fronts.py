"""The front of every two columns of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from deltatune.comparison.pareto import front
from deltatune.comparison.reporting.contents import Column, RecipeRow

__all__ = ["all_fronts", "front_of"]


def front_of(first: Column, second: Column, rows: Sequence[RecipeRow]) -> list[int] | None:
    """Return the places in `rows` of the recipes that no other beats in two columns.

    Returns:
        By the first column, best first; None where a column has no better direction.
    """
    if not first.better or not second.better:
        return None
    measured: list[tuple[int, tuple[float, float]]] = []
    for i, row in enumerate(rows):
        x, y = row.mean(first.name), row.mean(second.name)
        if x is not None and y is not None:
            measured.append((i, (_gain(first, x), _gain(second, y))))
    return [measured[i][0] for i in front([point for _, point in measured])]


def _gain(column: Column, value: float) -> float:
    return value if column.better == "higher" else -value


def all_fronts(
    columns: Sequence[Column], rows: Sequence[RecipeRow]
) -> dict[str, dict[str, list[int]]]:
    """Return the front of each pair of different columns that both have a direction.

    Each pair stands once, under the column that comes first.
    """
    fronts: dict[str, dict[str, list[int]]] = {}
    for i, first in enumerate(columns):
        for second in columns[i + 1 :]:
            found = front_of(first, second, rows)
            if found is not None:
                fronts.setdefault(first.name, {})[second.name] = found
    return fronts
