"""The short table at the end of a comparison; the page shows the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table

__all__ = ["result_table"]

SHOWN: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("median_step_seconds", "ms/step", lambda number: f"{1000 * number:,.0f}"),
    ("peak_memory_above_base_bytes", "MiB", lambda number: f"{number / 2**20:,.0f}"),
)


def result_table(record: Mapping[str, Any]) -> Table:
    """Return the recipes in the order of their ranks and scores, what failed last; or the sweep.

    Args:
        record: the content of `comparison.json`.
    """
    title = record["metric"] or "nothing finished"
    shown = Table(title=title, title_justify="left")
    if record["sweep"]:
        return _grid(record["sweep"], shown)
    shown.add_column("rank", justify="right")
    shown.add_column("recipe", overflow="fold")
    for heading in ("score", "95 % interval", "rate", *(title for _, title, _ in SHOWN)):
        shown.add_column(heading, justify="right", no_wrap=True)
    sign = -1 if record["higher_is_better"] else 1

    def place(one: Mapping[str, Any]) -> tuple[bool, float, float]:
        if one["status"] != "finished":
            return (True, 0.0, 0.0)
        rank = one["rank"]
        return (False, rank or float("inf"), sign * one["columns"]["score"]["mean"])

    for one in sorted(record["recipes"], key=place):
        shown.add_row(*_row(one))
    return shown


def _row(one: Mapping[str, Any]) -> list[str]:
    if one["status"] != "finished":
        return ["", one["name"], one["status"]]
    found = one["columns"]
    score = found["score"]
    interval = "" if score["low"] is None else f"{score['low']:.3f} to {score['high']:.3f}"
    others = [written(found[name]["mean"]) if found.get(name) else "" for name, _, written in SHOWN]
    rank = "" if one["rank"] is None else str(one["rank"])
    return [
        rank,
        one["name"],
        f"{score['mean']:.4f}",
        interval,
        f"{one['learning_rate']:g}",
        *others,
    ]


def _grid(sweep: Mapping[str, Any], shown: Table) -> Table:
    """Return the scores of a sweep, the first field to the right and the second downwards."""
    across, *downwards = sweep["fields"]
    values, *rows = sweep["values"]
    shown.add_column(" \\ ".join([*downwards, across]), justify="right")
    for value in values:
        shown.add_column(f"{value}", justify="right")
    names = [f"{value}" for value in rows[0]] if rows else [""]
    for name, cells, messages in zip(names, sweep["cells"], sweep["messages"], strict=True):
        scores = [
            message.partition(":")[0] if cell is None else f"{cell:.4f}"
            for cell, message in zip(cells, messages, strict=True)
        ]
        shown.add_row(name, *scores)
    return shown
