"""The comparison as CSV for spreadsheets and as a LaTeX table for papers."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from deltatune.comparison.reporting.contents import Comparison, RecipeRow
from deltatune.comparison.reporting.summary import (
    budget_in_words,
    failure_message,
    listed,
)
from deltatune.comparison.reporting.units import MISSING, Unit, unit_of

__all__ = ["escaped_for_latex", "latex_table", "recipes_csv", "runs_csv"]

COSTS = ("trainable_parameters", "peak_memory_above_base_bytes", "median_step_seconds")

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",  # noqa: RUF001 - the dash of a missing number
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def recipes_csv(comparison: Comparison) -> str:
    """Return a line per recipe; each column as mean, spread and interval, in base units."""
    names = [column.name for column in comparison.columns]
    header = ["recipe", "status", "rank", "learning_rate"]
    for name in names:
        header += [name, f"{name}_spread", f"{name}_low", f"{name}_high"]
    lines = []
    for row in comparison.best_first():
        line: list[Any] = [row.name, row.status, row.rank, row.learning_rate]
        for name in names:
            found = row.statistics(name)
            line += [found.mean, found.spread, found.low, found.high]
        lines.append([*line, "; ".join(row.notes)])
    return _csv([*header, "notes"], lines)


def runs_csv(comparison: Comparison) -> str:
    """Return a line per run, those that did not finish with their message."""
    names = [column.name for column in comparison.columns if column.name != "score"]
    header = ["run", "recipe", "kind", "status", "learning_rate", "seed", "settings", "score"]
    lines = (
        [
            run.name,
            run.recipe,
            run.kind,
            run.status,
            run.learning_rate,
            run.seed,
            json.dumps(run.settings, ensure_ascii=False) if run.settings else "",
            run.score,
            *(run.columns.get(name) for name in names),
            run.message,
        ]
        for run in comparison.runs
    )
    return _csv([*header, *names, "message"], lines)


def _csv(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()


def escaped_for_latex(text: str) -> str:
    r"""Return text that LaTeX sets as it is.

    >>> escaped_for_latex("a_b & 5 %")
    'a\\_b \\& 5 \\%'
    """
    return "".join(SPECIAL.get(character, character) for character in " ".join(text.split()))


def latex_table(comparison: Comparison) -> str:
    """Return a table in the style of booktabs; a rank that several recipes share ends in '='."""
    columns = [comparison.column(name) for name in COSTS]
    units = [unit_of(c, comparison.means(c.name)) for c in columns]
    headings = [unit.titled(c.title or c.name) for c, unit in zip(columns, units, strict=True)]
    shared = Counter(row.rank for row in comparison.recipes)
    body = [
        _latex_line(comparison, row, units, is_tied=shared[row.rank] > 1)
        for row in comparison.best_first()
    ]
    heading = " & ".join(map(escaped_for_latex, ["Recipe", comparison.metric, "Rank", *headings]))
    return "\n".join(
        [
            r"% needs \usepackage{booktabs} and \usepackage[T1]{fontenc}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_caption(comparison)}}}",
            r"\begin{tabular}{llrrrr}",
            r"\toprule",
            rf"{heading} \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex_line(
    comparison: Comparison, row: RecipeRow, units: Sequence[Unit], *, is_tied: bool
) -> str:
    name = escaped_for_latex(row.name)
    if row.status == "failed":
        message = escaped_for_latex(failure_message(comparison, row))
        return rf"{name} & \multicolumn{{5}}{{l}}{{{message}}} \\"
    rank = MISSING if row.rank is None else f"{row.rank}{'=' if is_tied else ''}"
    costs = [unit.bare(row.mean(name)) for name, unit in zip(COSTS, units, strict=True)]
    quality = _quality(row, unit_of(comparison.column("score"), comparison.means("score")))
    shown = rf"\textbf{{{quality}}}" if row.rank == 1 else quality
    return " & ".join([name, shown, *map(escaped_for_latex, [rank, *costs])]) + r" \\"


def _quality(row: RecipeRow, unit: Unit) -> str:
    found = row.statistics("score")
    mean = unit.bare(found.mean)
    if found.low is not None and found.high is not None:
        return f"{mean} [{unit.bare(found.low)}, {unit.bare(found.high)}]"
    if found.spread is not None:
        return rf"{mean} $\pm$ {unit.bare(found.spread)}"
    return escaped_for_latex(mean)


def _caption(comparison: Comparison) -> str:
    seeds = listed([str(seed) for seed in comparison.seeds]) if comparison.seeds else "not known"
    better = "more" if comparison.higher_is_better else "less"
    return escaped_for_latex(
        f"{comparison.title}. {comparison.metric}: {better} is better; 95 % intervals in brackets. "
        f"Budget: {budget_in_words(comparison.budget)}. Seeds: {seeds}. "
        f"Recipes that share a rank (=) cannot be told apart at the 5 % level."
    )
