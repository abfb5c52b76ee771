"""The tables of the README, each between two markers, made from code and measured figures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deltatune import catalogue, offline_catalogue
from deltatune.errors import InputError
from deltatune.files import write_text_atomically
from deltatune.markdown_table import markdown_table

__all__ = ["MEASURED", "TABLES", "filled"]

TABLES: Mapping[str, Callable[[], str]] = {
    "recipes": catalogue.markdown,
    "tasks": offline_catalogue.tasks_markdown,
    "bases": offline_catalogue.bases_markdown,
}


def _offline_tasks(result: Mapping[str, Any]) -> str:
    """Return what `benchmarks/offline_tasks` measured; means, with the spread over the seeds."""
    figures = result["figures"]
    names = [key.removesuffix("_untuned") for key in figures if key.endswith("_untuned")]

    def cells(name: str) -> list[str]:
        mean = {key: figures[f"{name}_{key}"] for key in ("chance", "untuned", "ceiling")}
        tuned = [
            f"{figures[f'{name}_{recipe}']:.3f} ± {figures[f'{name}_{recipe}_spread']:.3f}"
            for recipe in ("efficientft", "full")
        ]
        bounds = [f"{mean[key]:.3g}" for key in ("chance", "untuned")]
        return [name.replace("_", "-"), *bounds, *tuned, f"{mean['ceiling']:.3g}"]

    headings = ("task", "chance", "untuned", "efficientft", "full tuning", "ceiling")
    return markdown_table(headings, [cells(name) for name in names])


def _loca_quality(result: Mapping[str, Any]) -> str:
    """Return what `benchmarks/loca_quality` measured: scores by data, and how far places moved."""
    rows = result["rows"]
    data = tuple(dict.fromkeys(row["data"] for row in rows))

    def told(row: Mapping[str, Any]) -> tuple[str, str]:
        score, moved = row["score"], row["locations_moved"]
        if score is None:
            return row["status"], "-"
        spread = f"{score['mean']:.3f} ± {score['spread']:.3f}"
        rank = "none" if row["rank"] is None else row["rank"]
        return f"{spread} ({rank})", "-" if moved is None else f"{moved:.1f}"

    def cells(name: str) -> list[str]:
        own = {row["data"]: told(row) for row in rows if row["name"] == name}
        return [name, *(own[one][0] for one in data), ", ".join(own[one][1] for one in data)]

    names = dict.fromkeys(row["name"] for row in rows)
    headings = ("way", *(f"{one} (rank)" for one in data), "cells moved")
    return markdown_table(headings, [cells(name) for name in names])


# name -> where the figures lie, from the README on, and what makes a table of them
MEASURED: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "offline-tasks": ("benchmarks/offline_tasks/result.json", _offline_tasks),
    "loca-quality": ("benchmarks/loca_quality/result.json", _loca_quality),
}


def filled(text: str, root: Path) -> str:
    """Return a README's text with every table between its markers made anew.

    Args:
        text: of the README.
        root: the folder that it lies in.

    Raises:
        InputError: a marker has no other behind it, or the text has none.
    """
    found = [name for name in (*TABLES, *MEASURED) if _begin(name) in text]
    if not found:
        raise InputError(f"the text has no line {_begin('recipes')!r}: add it and its end")
    for name in found:
        before, begin, rest = text.partition(_begin(name))
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not end:
            raise InputError(f"the text has no line '<!-- /{name} -->' behind {begin!r}: add it")
        text = f"{before}{begin}\n{_table(name, root)}\n{end}{after}"
    return text


def _table(name: str, root: Path) -> str:
    if name in TABLES:
        return TABLES[name]()
    place, made = MEASURED[name]
    return made(json.loads((root / place).read_text(encoding="utf-8")))


def _begin(name: str) -> str:
    return f"<!-- {name}: made by make table, checked by the tests -->"


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    write_text_atomically(readme, filled(readme.read_text(encoding="utf-8"), readme.parent))
