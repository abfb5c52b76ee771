"""One HTML file with everything in it: it asks for nothing from any network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from deltatune.comparison.reporting import page_tables, summary
from deltatune.comparison.reporting.charts import axis_names, chart_data, default_axes
from deltatune.comparison.reporting.contents import Comparison
from deltatune.comparison.reporting.page_files import rendered

__all__ = ["page"]

LONGEST_TITLE = 90  # letters; a comparison of forty recipes has a title of a whole paragraph


def page(comparison: Comparison) -> str:
    """Return the page; every text of the comparison is escaped."""
    return rendered(
        __package__,
        "page.html",
        ("tables.js", "labels.js", "looks.js", "plots.js"),
        comparison=comparison,
        title=_title(comparison),
        compared=summary.what_was_compared(comparison),
        outcome=summary.outcome(comparison),
        tables={
            "recipes": page_tables.recipes_table(comparison),
            "differences": page_tables.differences_table(comparison),
            "predictions": page_tables.predictions_table(comparison),
            "rates": page_tables.rates_table(comparison),
            "runs": page_tables.runs_table(comparison),
        },
        charts=chart_data(comparison),
        axes=default_axes(comparison),
        axis_names=axis_names(comparison),
        recipes={row.name: _as_yaml(row.recipe) for row in comparison.recipes if row.recipe},
        environment=_flat(comparison.environment),
    )


def _title(comparison: Comparison) -> str:
    if len(comparison.title) <= LONGEST_TITLE:
        return comparison.title
    return f"{len(comparison.recipes)} recipes on {comparison.data} with {comparison.model}"


def _as_yaml(recipe: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
    return text


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{before}{name} "))
        else:
            flat[f"{before}{name}"] = "not there" if value is None else str(value)
    return flat
