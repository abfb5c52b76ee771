"""Module paths and the patterns that match them, by whole components and never by substring."""

from __future__ import annotations

import functools
from collections.abc import Sequence

__all__ = ["components", "first_index", "matches", "matches_tail", "shape_of_path"]


def components(path: str) -> tuple[str, ...]:
    """Split a dotted path; the root's empty path has none.

    >>> components("layers.0.mlp")
    ('layers', '0', 'mlp')
    """
    return tuple(path.split(".")) if path else ()


def matches(pattern: str, path: str) -> bool:
    """Tell whether a pattern matches a whole path.

    A component of the pattern is a name, `*` for exactly one component, or `**` for any number of
    them (also none). There are no wildcards inside a component.

    >>> matches("layers.*.q", "layers.3.q"), matches("layers.*.q", "encoder.layers.3.q")
    (True, False)
    >>> matches("**.q", "layers.3.attn.q"), matches("**.q", "layers.3.attn.eq")
    (True, False)
    """
    return _matches(components(pattern), components(path))


def matches_tail(pattern: str, path: str) -> bool:
    """Tell whether a pattern matches the last components of a path.

    >>> matches_tail("attn.q", "layers.3.attn.q"), matches_tail("q", "layers.3.attn.eq")
    (True, False)
    """
    return _matches(("**", *components(pattern)), components(path))


@functools.cache
def _matches(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    if not pattern:
        return not path
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        return _matches(rest, path) or bool(path and _matches(pattern, path[1:]))
    return bool(path) and first in ("*", path[0]) and _matches(rest, path[1:])


def first_index(path: Sequence[str]) -> int | None:
    """Return the position of the first component that is a number.

    >>> first_index(("encoder", "layer", "3", "output"))
    2
    """
    return next((i for i, component in enumerate(path) if component.isdecimal()), None)


def shape_of_path(path: str) -> str:
    """Return the path with every index replaced by `*`: places that differ by layer share it.

    >>> shape_of_path("h.3.attn.c_attn")
    'h.*.attn.c_attn'
    """
    return ".".join("*" if part.isdecimal() else part for part in components(path))
