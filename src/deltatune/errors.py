"""Errors that name what was given, what is allowed and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "DeltatuneError",
    "Diverged",
    "InputError",
    "Interrupted",
    "NotComposable",
    "NotMergeable",
    "OutOfMemory",
    "WorkError",
    "nearest_first",
    "unknown_name",
]


class DeltatuneError(Exception):
    """Base of every error that deltatune raises on purpose; `exit_code` is the command line's."""

    exit_code = 1


class InputError(DeltatuneError, ValueError):
    """The user's input cannot be worked with; raised before training starts."""

    exit_code = 2


class NotComposable(InputError):
    """Two parts cannot act together; the message names both."""


class NotMergeable(InputError):
    """A delta cannot be folded into its base; the message names the method and the reason."""


class WorkError(DeltatuneError, RuntimeError):
    """The input was accepted but the work failed."""

    exit_code = 1


class Diverged(WorkError):
    """Training left the finite numbers or fell to the constant predictor."""


class OutOfMemory(WorkError):
    """The device could not hold what a step needs."""


class Interrupted(WorkError):
    """The run was asked to stop; what was done is saved and can be resumed."""


def nearest_first(given: str, known: Iterable[str]) -> list[str]:
    """Return the known names: what `given` begins or ends, then the most alike, then by alphabet.

    >>> nearest_first("rnak", ["alpha", "dropout", "rank"])
    ['rank', 'alpha', 'dropout']
    >>> nearest_first("adamw", ["grokadamw", "adamw_torch"])
    ['adamw_torch', 'grokadamw']
    >>> nearest_first("ratio", ["rank", "ration_card", "learning_rate_ratio"])
    ['ration_card', 'learning_rate_ratio', 'rank']
    """
    return sorted(
        known,
        key=lambda name: (
            not name.lower().startswith(given.lower()),
            not name.lower().endswith(f"_{given.lower()}"),
            -difflib.SequenceMatcher(None, given.lower(), name.lower()).ratio(),
            name,
        ),
    )


def unknown_name(
    what: str, given: object, known: Iterable[str], *, limit: int = 20, all_in: str = ""
) -> InputError:
    """Build the error for a name that nobody knows, the nearest known names first.

    Args:
        what: the kind of name, for example `"recipe"`.
        given: what the user wrote.
        known: every allowed name.
        limit: how many names to list at most.
        all_in: the command that shows all of them.

    >>> str(unknown_name("recipe", "lorra", ["full", "lora"]))
    "recipe 'lorra' is not known: choose one of 'lora', 'full'"
    """
    names = nearest_first(str(given), known)
    listed = ", ".join(repr(name) for name in names[:limit])
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    more += f", all in '{all_in}'" if more and all_in else ""
    if not names:
        return InputError(f"{what} {given!r} is not known: none exists here")
    return InputError(f"{what} {given!r} is not known: choose one of {listed}{more}")
