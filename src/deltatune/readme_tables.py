"""The tables of the README, each between two markers, made from what the code declares."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from deltatune import catalogue, offline_catalogue
from deltatune.errors import InputError
from deltatune.files import write_text_atomically

__all__ = ["TABLES", "filled"]

TABLES: Mapping[str, Callable[[], str]] = {
    "recipes": catalogue.markdown,
    "tasks": offline_catalogue.tasks_markdown,
    "bases": offline_catalogue.bases_markdown,
}


def filled(text: str) -> str:
    """Return a README's text with every table between its markers made anew.

    Raises:
        InputError: a marker has no other behind it, or the text has none.
    """
    found = [name for name in TABLES if _begin(name) in text]
    if not found:
        raise InputError(f"the text has no line {_begin('recipes')!r}: add it and its end")
    for name in found:
        before, begin, rest = text.partition(_begin(name))
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not end:
            raise InputError(f"the text has no line '<!-- /{name} -->' behind {begin!r}: add it")
        text = f"{before}{begin}\n{TABLES[name]()}\n{end}{after}"
    return text


def _begin(name: str) -> str:
    return f"<!-- {name}: made by make table, checked by the tests -->"


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    write_text_atomically(readme, filled(readme.read_text(encoding="utf-8")))
