"""The tables of the page: what each cell shows, and by what it sorts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deltatune.comparison.reporting.contents import Column, Comparison, Pair, RecipeRow
from deltatune.comparison.reporting.summary import failure_message
from deltatune.comparison.reporting.units import (
    MISSING,
    Unit,
    number,
    p_value,
    rate,
    unit_of,
)

__all__ = [
    "Cell",
    "Heading",
    "Table",
    "differences_table",
    "predictions_table",
    "rates_table",
    "recipes_table",
    "runs_table",
]

PREDICTIONS = (
    ("memory", "predicted_memory_bytes", "peak_memory_above_base_bytes"),
    ("training time", "predicted_seconds", "wall_seconds"),
    ("FLOPs", "predicted_flops", "flops"),
)


@dataclass(frozen=True)
class Heading:
    """The head of a column.

    Args:
        text: what it says.
        kind: how its cells sort and align.
        what: a sentence on what is counted.
        begins: the direction of the first click.
        is_shown: whether the column is to be seen at first.
    """

    text: str
    kind: Literal["number", "text"] = "number"
    what: str = ""
    begins: Literal["ascending", "descending"] = "ascending"
    is_shown: bool = True


@dataclass(frozen=True)
class Cell:
    """One cell.

    Args:
        text: what it says.
        value: by which it sorts; None comes last in either direction.
        below: a smaller line under the text.
        tag: `good`, `bad` or empty.
    """

    text: str
    value: float | str | None = None
    below: str = ""
    tag: str = ""

    @classmethod
    def of(cls, text: str, *, below: str = "", tag: str = "") -> Cell:
        """Return a cell that sorts by its own text."""
        return cls(text, text, below, tag)


@dataclass(frozen=True)
class Table:
    """Headings and rows of as many cells; `name` is its id in the page."""

    name: str
    headings: Sequence[Heading]
    rows: Sequence[Sequence[Cell]]


def recipes_table(comparison: Comparison) -> Table:
    """Return a row per recipe, best first, with every column."""
    rows = comparison.best_first()
    units = {c.name: unit_of(c, comparison.means(c.name)) for c in comparison.columns}
    seen = {column.name for column in _seen_at_first(comparison)}
    headings = [
        Heading("recipe", "text"),
        Heading("rank", what="1 + the number of recipes that are significantly better."),
        *(_heading(c, units[c.name], c.name in seen) for c in comparison.columns),
        Heading("learning rate", what="The best of those that were tried, on validation data."),
    ]
    cells = [
        [
            _name(comparison, row),
            Cell(MISSING if row.rank is None else str(row.rank), row.rank),
            *(_figure(row, c, units[c.name]) for c in comparison.columns),
            Cell(rate(row.learning_rate), row.learning_rate),
        ]
        for row in rows
    ]
    return Table("recipes", headings, cells)


def _seen_at_first(comparison: Comparison) -> list[Column]:
    """Return what was measured, but predictions, which have a table of their own, and repeats."""
    seen: list[Column] = []
    for column in comparison.measured_columns():
        alike = (comparison.means(column.name) == comparison.means(one.name) for one in seen)
        if not column.name.startswith("predicted_") and not any(alike):
            seen.append(column)
    return seen


def _heading(column: Column, unit: Unit, is_shown: bool) -> Heading:
    return Heading(
        unit.titled(column.title or column.name),
        what=column.what,
        begins="descending" if column.better == "higher" else "ascending",
        is_shown=is_shown,
    )


def _name(comparison: Comparison, row: RecipeRow) -> Cell:
    if row.status == "failed":
        return Cell.of(row.name, below=failure_message(comparison, row), tag="bad")
    return Cell.of(row.name, tag="good" if row.rank == 1 else "")


def _figure(row: RecipeRow, column: Column, unit: Unit) -> Cell:
    found = row.statistics(column.name)
    below = ""
    if found.low is not None and found.high is not None:
        ends = [unit.bare(end, like=found.mean) for end in (found.low, found.high)]
        below = " to ".join(ends)
    elif found.spread:
        below = f"± {unit.bare(found.spread, like=found.mean)}"
    return Cell(unit.bare(found.mean), found.mean, below)


def differences_table(comparison: Comparison) -> Table:
    """Return a row per pair of recipes, the clearest differences first."""
    headings = [
        Heading("first", "text"),
        Heading("second", "text"),
        Heading("difference", what="Score of the first less that of the second."),
        Heading("95 % interval", what="Paired bootstrap over items and seeds."),
        Heading("p, adjusted", what="Of no difference; Holm's correction over all pairs."),
        Heading("told apart", "text", what="Whether the adjusted p-value is below 0.05."),
        Heading(
            "items needed",
            what="Test items that would show this difference with 80 % power and as many seeds.",
        ),
    ]
    unknown = 2.0  # comes after every p-value
    pairs = sorted(
        comparison.differences,
        key=lambda p: unknown if p.adjusted_p_value is None else p.adjusted_p_value,
    )
    return Table("differences", headings, [_pair(pair) for pair in pairs])


def _pair(pair: Pair) -> list[Cell]:
    has_interval = pair.low is not None and pair.high is not None
    interval = f"{pair.low or 0.0:+.3f} to {pair.high or 0.0:+.3f}"
    needed = "more seeds" if pair.items_needed is None else f"{pair.items_needed:,.0f}"
    verdict = "not known" if pair.p_value is None else ("yes" if pair.is_significant else "no")
    return [
        Cell.of(pair.first),
        Cell.of(pair.second),
        Cell(MISSING if pair.mean is None else f"{pair.mean:+.3f}", pair.mean),
        Cell(interval if has_interval else MISSING, pair.low),
        Cell(p_value(pair.adjusted_p_value), pair.adjusted_p_value),
        Cell.of(verdict, tag="good" if pair.is_significant else ""),
        Cell(needed, pair.items_needed),
    ]


def predictions_table(comparison: Comparison) -> Table | None:
    """Return predicted beside measured; None where nothing was both."""
    rows = comparison.best_first()
    kept = [
        (title, predicted, measured)
        for title, predicted, measured in PREDICTIONS
        if any(r.mean(predicted) is not None and r.mean(measured) is not None for r in rows)
    ]
    if not kept:
        return None
    headings, lines = [Heading("recipe", "text")], [[Cell.of(row.name)] for row in rows]
    for title, predicted, measured in kept:
        column = comparison.column(measured)
        unit = unit_of(column, [row.mean(name) for name in (predicted, measured) for row in rows])
        headings += [
            Heading(unit.titled(f"{title}, predicted")),
            Heading("measured", what=column.what),
            Heading("off by", what="Predicted over measured, less one."),
        ]
        for row, line in zip(rows, lines, strict=True):
            line += _prediction(row.mean(predicted), row.mean(measured), unit)
    return Table("predictions", headings, lines)


def _prediction(predicted: float | None, measured: float | None, unit: Unit) -> list[Cell]:
    ratio = None if predicted is None or not measured else predicted / measured - 1
    return [
        Cell(unit.bare(predicted), predicted),
        Cell(unit.bare(measured), measured),
        Cell(MISSING if ratio is None else f"{100 * ratio:+.0f} %", ratio),
    ]


def rates_table(comparison: Comparison) -> Table:
    """Return what was planned for each recipe: rates tried and chosen, predicted time, memory."""
    expected = comparison.plan.predicted
    columns = [Column(name="predicted_seconds"), Column(name="predicted_memory_bytes")]
    keys = ("seconds", "memory_bytes")
    units = [
        unit_of(column, [one.get(key) for one in expected.values()])
        for column, key in zip(columns, keys, strict=True)
    ]
    headings = [
        Heading("recipe", "text"),
        Heading("rates tried, with their score", "text"),
        Heading("rate chosen"),
        Heading(units[0].titled("time, predicted"), what="Of all runs of the recipe."),
        Heading(units[1].titled("memory, predicted")),
    ]
    lines = []
    for row in comparison.recipes:
        values = [expected.get(row.name, {}).get(key) for key in keys]
        lines.append(
            [
                Cell.of(row.name),
                Cell.of(_rates_tried(comparison, row.name)),
                Cell(rate(row.learning_rate), row.learning_rate),
                *(Cell(u.bare(value), value) for u, value in zip(units, values, strict=True)),
            ]
        )
    return Table("rates", headings, lines)


def _rates_tried(comparison: Comparison, recipe: str) -> str:
    trials = [run for run in comparison.runs if run.recipe == recipe and run.kind == "trial"]
    shown = [
        f"{rate(run.learning_rate)}:\u00a0{run.status if run.score is None else number(run.score)}"
        for run in sorted(trials, key=lambda run: run.learning_rate or 0.0)
    ]
    return ", ".join(shown) or MISSING


def runs_table(comparison: Comparison) -> Table:
    """Return a row per run, those that did not finish with their message."""
    step = comparison.column("median_step_seconds")
    unit = unit_of(step, [run.columns.get(step.name) for run in comparison.runs])
    headings = [
        Heading("run", "text"),
        Heading("recipe", "text"),
        Heading("kind", "text"),
        Heading("learning rate"),
        Heading("seed"),
        Heading("status", "text"),
        Heading("score", begins="descending" if comparison.higher_is_better else "ascending"),
        Heading(unit.titled("step time")),
    ]
    score = unit_of(comparison.column("score"), [run.score for run in comparison.runs])
    lines = [
        [
            Cell.of(run.name, below=_settings(run.settings)),
            Cell.of(run.recipe),
            Cell.of(run.kind),
            Cell(rate(run.learning_rate), run.learning_rate),
            Cell(MISSING if run.seed is None else str(run.seed), run.seed),
            Cell.of(run.status, below=run.message, tag=_tag(run.status)),
            Cell(score.bare(run.score), run.score),
            Cell(unit.bare(run.columns.get(step.name)), run.columns.get(step.name)),
        ]
        for run in comparison.runs
    ]
    return Table("runs", headings, lines)


def _tag(status: str) -> str:
    return "" if status in ("finished", "waiting") else "bad"


def _settings(settings: dict[str, object]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in settings.items())
