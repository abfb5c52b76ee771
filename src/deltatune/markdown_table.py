"""Rows of text in, a table as Markdown writes it out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["markdown_table"]


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""Return a table with one line for the headings, one rule and one line for each row.

    Args:
        headings: one for each column.
        rows: cells of one line each, as many as there are headings; a bar in a cell is escaped.

    >>> print(markdown_table(("name", "kind"), [("boxes", "a|b")]))
    | name | kind |
    |---|---|
    | boxes | a\|b |
    """
    lines = [_line(headings), "|" + "---|" * len(headings)]
    lines += [_line([cell.replace("|", "\\|") for cell in row]) for row in rows]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
