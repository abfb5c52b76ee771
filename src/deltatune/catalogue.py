"""The table of recipes, made from their declarations."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from deltatune import parts
from deltatune.errors import unknown_name
from deltatune.markdown_table import markdown_table
from deltatune.recipe import Recipe, named

__all__ = ["everything", "markdown", "one", "page", "table"]

HEADINGS = ("name", "parts", "what trains", "source")


def one(name: str) -> dict[str, Any]:
    """Return one recipe: summary, source, parameters, parts, what trains, and its whole form.

    Raises:
        InputError: an unknown name, nearest first.
    """
    declared = parts.known("recipes")
    if name not in declared:
        raise unknown_name("recipe", name, declared)
    declaration = declared[name]
    recipe = named(name)
    return {
        "name": name,
        "summary": declaration.summary,
        "source": str(declaration.source) if declaration.source else None,
        "parameters": {
            key: parameter.default
            for key, parameter in inspect.signature(declaration.implementation).parameters.items()
        },
        "parts": _parts(recipe.to_plain()),
        "trains": what_trains(recipe),
        "recipe": recipe.to_plain(),
    }


def everything() -> list[dict[str, Any]]:
    """Return every recipe of the catalogue, by name."""
    return [one(name) for name in parts.known("recipes")]


def what_trains(recipe: Recipe) -> str:
    """Say in a few words what a recipe trains."""
    selection = recipe.to_plain()["selection"]
    while "within" in selection:
        selection = selection["within"]
    places = (
        selection.get("roles") or selection.get("patterns") or list(selection.get("weights", ()))
    )
    return ", ".join(str(place) for place in places)


def _parts(plain: Mapping[str, Any]) -> dict[str, str]:
    rooms = ("delta", "selection", "update", "objective")
    kinds = {room: plain[room]["kind"] for room in rooms if plain.get(room)}
    return {**kinds, "optimizer": plain["optimizer"]["name"]}


def table() -> Table:
    """Return the catalogue as a table for the terminal."""
    shown = Table(title="recipes (deltatune recipes NAME shows one whole)")
    for column in HEADINGS:
        shown.add_column(column, overflow="fold")
    for row in everything():
        shown.add_row(*_cells(row))
    return shown


def markdown() -> str:
    """Return the catalogue as the Markdown table of the README."""
    return markdown_table(HEADINGS, [_cells(row) for row in everything()])


def _cells(row: Mapping[str, Any]) -> list[str]:
    shown = ", ".join(f"{kind}" for room, kind in row["parts"].items() if room != "optimizer")
    return [row["name"], shown, row["trains"], row["source"] or ""]


def page(name: str) -> Group:
    """Return one recipe as a page for the terminal."""
    row = one(name)
    parameters = Table(title="parameters (--set NAME=VALUE)")
    for column in ("name", "default"):
        parameters.add_column(column)
    for key, default in row["parameters"].items():
        parameters.add_row(key, str(default))
    return Group(
        Text(f"{name}: {row['summary']}", style="bold"),
        Text(f"source: {row['source'] or 'none'}"),
        Text(f"trains: {row['trains']}"),
        parameters,
        Text("the whole recipe (any field with --set PATH=VALUE):"),
        Text(named(name).to_yaml()),
    )
