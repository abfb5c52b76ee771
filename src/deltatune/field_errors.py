"""What is wrong with a user's value, in the user's own field names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic

from deltatune.errors import InputError

__all__ = ["explained"]

# How pydantic begins what it says about a value.
_BEGINNINGS = ("Input should be ", "Value error, ")
_SURPLUS = ("extra_forbidden", "unexpected_keyword_argument")
_MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")


def explained(error: pydantic.ValidationError, given: Mapping[str, Any], where: str) -> InputError:
    """Turn what pydantic found into one line: the user's field, the value, all that is allowed.

    Where a value may be of several types, pydantic names each of them as if it were a field
    (`rate.float`) and complains once for each. Here the path holds only what stands in the input,
    and the complaints about the same place become one list.

    Args:
        error: with one complaint or more.
        given: field -> value, what was validated.
        where: path of `given`, for the message; an empty string at the top.
    """
    complaints = error.errors()
    for complaint in complaints:
        cause = complaint.get("ctx", {}).get("error")
        if isinstance(cause, InputError):
            return InputError(f"{where}: {cause}") if where else cause
    places = [_place(complaint["loc"], given) for complaint in complaints]
    # The first field that is wrong, and in it the value that lies deepest.
    first = [place for place in places if place[0][:1] == places[0][0][:1]]
    path, value = max(first, key=lambda place: len(place[0]))
    here = [c for c, place in zip(complaints, places, strict=True) if place[0] == path]
    name = _written(where, path)
    missing = [str(c["loc"][-1]) for c in here if c["type"] in _MISSING]
    if missing and not path:
        return InputError(f"{_written(where, (missing[0],))} is missing: give it a value")
    return InputError(f"{name}={value!r} is not allowed: give {_allowed(here)}")


def _place(location: tuple[int | str, ...], given: Any) -> tuple[tuple[int | str, ...], Any]:
    """Follow a location through the input, past the steps that are names of types."""
    path: list[int | str] = []
    value = given
    for step in location:
        if isinstance(value, Mapping):
            found = step in value
        else:
            found = isinstance(value, (list, tuple)) and isinstance(step, int) and step < len(value)
        if found:
            path.append(step)
            value = value[step]
    return tuple(path), value


def _written(where: str, path: tuple[int | str, ...]) -> str:
    text = where
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f"{'.' if text else ''}{step}"
    return text


def _allowed(complaints: list[Any]) -> str:
    """Join what is allowed at one place, each once."""
    said = []
    for complaint in complaints:
        text = str(complaint["msg"])
        for beginning in _BEGINNINGS:
            text = text.removeprefix(beginning)
        if complaint["type"] in _MISSING:
            text = f"a mapping with {complaint['loc'][-1]!r}"
        if complaint["type"] in _SURPLUS:
            continue  # of a form that was not meant, or the only complaint: see below
        said.append(text)
    return " or ".join(dict.fromkeys(said)) or "none of this name: leave it out"
