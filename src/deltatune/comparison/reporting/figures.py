"""The plots of a comparison as PNG and SVG, for papers.

Figures are made without pyplot: nothing global is touched, and no window system is asked for.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from deltatune.comparison.reporting.contents import Comparison, RecipeRow, SweepGrid, field_value
from deltatune.comparison.reporting.curves import RecipeCurves, loss_curves
from deltatune.comparison.reporting.fronts import front_of
from deltatune.comparison.reporting.label_places import place_labels
from deltatune.comparison.reporting.units import number, unit_of

__all__ = ["COLOURS", "DASHES", "drawn", "figures"]

# Okabe and Ito's palette for all kinds of colour vision, grey in place of yellow and black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES = ("-", "--", ":", "-.", (0, (8, 2)), (0, (8, 2, 2, 2)))
COSTS = ("peak_memory_above_base_bytes", "wall_seconds", "median_step_seconds")
STYLE: dict[Any, Any] = {  # matplotlib has a type of its own for the keys, since 3.11 only
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "figure.facecolor": "white",
    "svg.hashsalt": "deltatune",  # the same comparison gives the same file
    "svg.fonttype": "none",
}


def figures(comparison: Comparison) -> dict[str, Figure]:
    """Return the figures that there is something to draw for, by name of file."""
    makers: dict[str, Callable[[Comparison], Figure | None]] = {
        "pareto": _pareto,
        "losses": _losses,
        "intervals": _intervals,
        "heatmap": _heatmap,
    }
    with mpl.rc_context(STYLE):
        made = {name: make(comparison) for name, make in makers.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


def drawn(figure: Figure, kind: str) -> bytes:
    """Return a figure as a file's content.

    Args:
        figure: one of `figures`.
        kind: `png` or `svg`.
    """
    file = io.BytesIO()
    with mpl.rc_context(STYLE):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(file, format=kind, dpi=200, metadata=metadata)
    return file.getvalue()


def _pareto(comparison: Comparison) -> Figure | None:
    measured = {column.name for column in comparison.measured_columns()}
    costs = [name for name in COSTS if name in measured]
    if "score" not in measured or not costs:
        return None
    figure = Figure(figsize=(4.6 * len(costs), 3.8), layout="constrained")
    drawn_axes = [
        _scatter(figure.add_subplot(1, len(costs), place + 1), comparison, cost)
        for place, cost in enumerate(costs)
    ]
    figure.draw_without_rendering()  # settles the size of the axes, which labels depend on
    for axes, points, names, best in drawn_axes:
        place_labels(axes, points, names, first=best)
    return figure


def _scatter(
    axes: Axes, comparison: Comparison, cost: str
) -> tuple[Axes, list[tuple[float, float]], list[str], list[int]]:
    """Draw points and front; return what their labels need."""
    x_column, y_column = comparison.column(cost), comparison.column("score")
    rows = [
        row
        for row in comparison.best_first()
        if row.mean(cost) is not None and row.mean("score") is not None
    ]
    unit = unit_of(x_column, [row.mean(cost) for row in rows])
    points = [((row.mean(cost) or 0.0) / unit.divisor, row.mean("score") or 0.0) for row in rows]
    best = front_of(x_column, y_column, rows) or []
    if points and min(x for x, _ in points) > 0:
        spread = max(x for x, _ in points) / min(x for x, _ in points)
        axes.set_xscale("log" if spread > 30 else "linear")
    axes.plot(
        *zip(*(points[i] for i in best), strict=True), color="#999999", zorder=1
    ) if best else 0
    for i, (x, y) in enumerate(points):
        axes.plot(x, y, "o", color=COLOURS[0] if i in best else COLOURS[6], zorder=2)
    axes.margins(0.15)
    axes.set_xlabel(unit.titled(x_column.title or cost), parse_math=False)
    axes.set_ylabel(comparison.metric, parse_math=False)
    return axes, points, [row.name for row in rows], best


def _losses(comparison: Comparison) -> Figure | None:
    curves = loss_curves(comparison)
    if not curves:
        return None
    figure = Figure(figsize=(6.4, max(3.8, 0.17 * len(curves))), layout="constrained")
    axes = figure.add_subplot()
    handles = [_curves(axes, one) for one in curves]
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss (mean over seeds, smoothed)")
    # A name that begins with an underscore would be left out of the legend.
    names = [one.recipe.replace("_", "\u200b_", one.recipe.startswith("_")) for one in curves]
    columns = 1 + len(curves) // 25
    legend = figure.legend(handles, names, loc="outside right center", frameon=False, ncols=columns)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _curves(axes: Axes, one: RecipeCurves) -> Line2D:
    colour = COLOURS[one.place % len(COLOURS)]
    dash = DASHES[one.place // len(COLOURS) % len(DASHES)]
    for curve in one.runs:
        if curve.stopped:
            axes.plot(curve.steps, curve.losses, color=colour, linewidth=0.6, alpha=0.6)
            axes.plot(curve.steps[-1:], curve.losses[-1:], "x", color=colour)
    steps, losses = (one.mean.steps, one.mean.losses) if one.mean else ((), ())
    (line,) = axes.plot(steps, losses, color=colour, linestyle=dash, linewidth=1.4)
    return line


def _intervals(comparison: Comparison) -> Figure | None:
    rows = [row for row in comparison.best_first() if row.mean("score") is not None]
    if not rows:
        return None
    figure = Figure(figsize=(5.6, 1.2 + 0.26 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        _interval(axes, place, row)
    for limit, meaning in ((comparison.chance, "chance"), (comparison.ceiling, "ceiling")):
        if limit is not None:
            axes.axvline(limit, color="#999999", linestyle=":", linewidth=1)
            axes.annotate(
                meaning,
                (limit, 1.0),
                (0, 3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                size=7.5,
                color="#666666",
            )
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"{comparison.metric}, 95 % intervals", parse_math=False)
    return figure


def _interval(axes: Axes, place: int, row: RecipeRow) -> None:
    found = row.statistics("score")
    seeds = [value for value in found.values if value is not None]
    axes.plot(seeds, [place] * len(seeds), "|", color="#999999", markersize=7)
    if found.low is not None and found.high is not None:
        axes.plot([found.low, found.high], [place, place], color=COLOURS[0], linewidth=1.8)
    axes.plot([found.mean or 0.0], [place], "o", color=COLOURS[0], markersize=4.5)


def _heatmap(comparison: Comparison) -> Figure | None:
    sweep = comparison.sweep
    if sweep is None or not sweep.cells:
        return None
    width, height = len(sweep.values[0]), len(sweep.cells)
    figure = Figure(figsize=(1.8 + 0.75 * width, 1.3 + 0.5 * height), layout="constrained")
    axes = figure.add_subplot()
    scores = [[math.nan if cell is None else cell for cell in line] for line in sweep.cells]
    image = axes.imshow(scores, cmap="cividis", aspect="auto", origin="lower")
    axes.set_facecolor("#dddddd")
    _label_axes(axes, sweep)
    known = [cell for line in sweep.cells for cell in line if cell is not None]
    middle = (min(known) + max(known)) / 2 if known else 0.0
    for (y, line), x in itertools.product(enumerate(sweep.cells), range(width)):
        score = line[x]
        shown = sweep.message(y, x).split(":")[0] if score is None else number(score)
        dark = score is not None and score < middle
        axes.text(
            x,
            y,
            shown,
            ha="center",
            va="center",
            size=7,
            color="white" if dark else "black",
            parse_math=False,
        )
    if known:
        figure.colorbar(image, ax=axes).set_label(comparison.metric, parse_math=False)
    return figure


def _label_axes(axes: Axes, sweep: SweepGrid) -> None:
    axes.set_xticks(range(len(sweep.values[0])), [field_value(v) for v in sweep.values[0]])
    axes.set_xlabel(sweep.fields[0], parse_math=False)
    rows = [field_value(v) for v in sweep.values[1]] if len(sweep.fields) > 1 else []
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylabel(sweep.fields[1] if rows else "", parse_math=False)
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        label.set_parse_math(False)
