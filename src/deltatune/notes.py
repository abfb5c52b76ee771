"""What a user should know and need not act on, one line each."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

__all__ = ["tell"]


def tell(console: Console, notes: Iterable[str]) -> None:
    """Print notes as they are: square brackets in a name are no markup.

    Args:
        console: where to.
        notes: of one line each.
    """
    for note in notes:
        console.print(f"note: {note}", highlight=False, markup=False)
