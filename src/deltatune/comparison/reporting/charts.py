"""What the page's plots draw, as plain values: numbers in their units, texts ready to show."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from deltatune.comparison.reporting.contents import (
    Column,
    Comparison,
    RecipeRow,
    SweepGrid,
    field_value,
)
from deltatune.comparison.reporting.curves import Curve, loss_curves
from deltatune.comparison.reporting.fronts import all_fronts
from deltatune.comparison.reporting.units import number, unit_of

__all__ = ["axis_names", "chart_data", "default_axes", "plain"]


def plain(text: str) -> str:
    """Return text that Plotly shows as it is: it reads tags such as `<b>` and `<a>` in labels."""
    return html.escape(text, quote=False)


def chart_data(comparison: Comparison) -> dict[str, Any]:
    """Return all that the page's script needs."""
    rows = comparison.best_first()
    columns = comparison.measured_columns()
    return {
        "columns": {column.name: _axis(column, rows) for column in columns},
        "names": [row.name for row in rows],  # as they are
        "recipes": [plain(row.name) for row in rows],  # as Plotly wants them
        "fronts": all_fronts(columns, rows),
        "scores": _scores(comparison, rows),
        "losses": _losses(comparison),
        "sweep": comparison.sweep and _sweep(comparison.sweep),
        "failed_cells": failed_cells(comparison.sweep) if comparison.sweep else [],
    }


def default_axes(comparison: Comparison) -> tuple[str, str] | None:
    """Return the columns of the first plot, cost and score; None where two are not measured."""
    names = [column.name for column in comparison.measured_columns()]
    if len(names) < 2:
        return None
    y = "score" if "score" in names else names[0]
    wanted = ("peak_memory_above_base_bytes", "wall_seconds", "median_step_seconds")
    x = next((name for name in wanted if name in names), "")
    return x or next(name for name in names if name != y), y


def axis_names(comparison: Comparison) -> list[tuple[str, str]]:
    """Return name and title of each column that can be an axis."""
    return [(column.name, column.title or column.name) for column in comparison.measured_columns()]


def _axis(column: Column, rows: Sequence[RecipeRow]) -> dict[str, Any]:
    values = [row.mean(column.name) for row in rows]
    unit = unit_of(column, values)
    return {
        "title": plain(unit.titled(column.title or column.name)),
        "better": column.better,
        "values": [unit.scaled(value) for value in values],
        "shown": [f"{plain(column.title or column.name)}: {plain(unit.full(v))}" for v in values],
    }


def _scores(comparison: Comparison, rows: Sequence[RecipeRow]) -> dict[str, Any]:
    unit = unit_of(comparison.column("score"), comparison.means("score"))
    shown = [row for row in rows if row.mean("score") is not None]
    found = [row.statistics("score") for row in shown]
    return {
        "metric": plain(comparison.metric),
        "names": [plain(row.name) for row in shown],
        "means": [one.mean for one in found],
        "low": [one.low for one in found],
        "high": [one.high for one in found],
        "seeds": [[value for value in one.values if value is not None] for one in found],
        "shown": [
            f"<b>{plain(row.name)}</b><br>{unit.bare(one.mean)}"
            + (
                f"<br>95 %: {unit.bare(one.low)} to {unit.bare(one.high)}"
                if one.low is not None
                else "<br>no interval"
            )
            for row, one in zip(shown, found, strict=True)
        ],
        "chance": comparison.chance,
        "ceiling": comparison.ceiling,
    }


def _losses(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "name": plain(one.recipe),
            "style": one.place,
            "mean": one.mean and _points(one.mean),
            "runs": [_points(curve) for curve in one.runs],
        }
        for one in loss_curves(comparison)
    ]


def _points(curve: Curve) -> dict[str, Any]:
    return {
        "name": plain(curve.name),
        "steps": list(curve.steps),
        "losses": [float(f"{loss:.5g}") for loss in curve.losses],
        "stopped": plain(curve.stopped),
    }


def _sweep(sweep: SweepGrid) -> dict[str, Any]:
    y_values = sweep.values[1] if len(sweep.fields) > 1 else [""]
    return {
        "x": plain(sweep.fields[0]),
        "y": plain(sweep.fields[1]) if len(sweep.fields) > 1 else "",
        "xValues": [plain(field_value(value)) for value in sweep.values[0]],
        "yValues": [plain(field_value(value)) for value in y_values],
        "cells": [list(line) for line in sweep.cells],
        "labels": [["" if c is None else number(c) for c in line] for line in sweep.cells],
        "texts": [
            [plain(_cell(sweep, y, x)) for x in range(len(line))]
            for y, line in enumerate(sweep.cells)
        ],
    }


def failed_cells(sweep: SweepGrid) -> list[str]:
    """Return where and why runs of a sweep did not finish, a line for each."""
    return [
        _cell(sweep, y, x)
        for y, line in enumerate(sweep.cells)
        for x, score in enumerate(line)
        if score is None
    ]


def _cell(sweep: SweepGrid, y: int, x: int) -> str:
    score = sweep.cells[y][x]
    said = sweep.message(y, x) if score is None else number(score)
    return f"{sweep.place(y, x)}: {said}"
