"""Select whole projections by the path of their module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from deltatune.errors import InputError, nearest_first
from deltatune.part import Selection
from deltatune.parts import declare
from deltatune.paths import matches_tail, shape_of_path
from deltatune.selections.layers import check_layers, in_layers
from deltatune.sites import Site, Sites, join

__all__ = ["ByPattern", "pattern_matches"]


def pattern_matches(pattern: str, site: Site) -> bool:
    """Tell whether a pattern, maybe with `:role` behind it, matches a site."""
    path, _, role = pattern.partition(":")
    return role in ("", site.role) and matches_tail(path, site.name.partition(":")[0])


@declare("selections", "by_pattern")
@dataclass(frozen=True, kw_only=True)
class ByPattern:
    """Every projection whose module's path ends in one of the given patterns.

    A pattern is compared component by component with the end of the path: `self_attn.q_proj`
    matches `model.layers.0.self_attn.q_proj`, and `q` never matches `seq`. `*` stands for one
    component, `**` for any number. `:role` behind it takes the rows of that role of a fused
    projection: `attn.c_attn:value`.

    Args:
        patterns: at least one.
        layers: numbers of layers from the input, from 0; empty for all places.
        allow_partial: whether it may cover only some places of a role.
        allow_tied: whether it may change a weight that acts in two places.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    changes_who_trains: ClassVar[bool] = False

    patterns: tuple[str, ...]
    layers: tuple[int, ...] = ()
    allow_partial: bool = False
    allow_tied: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.patterns, str):
            given = self.patterns
            raise InputError(f"patterns={given!r} is not allowed: give a list, [{given!r}]")
        if not self.patterns or not all(self.patterns):
            raise InputError(
                f"patterns={list(self.patterns)} is not allowed: give at least one, none empty, "
                f"such as 'self_attn.q_proj'"
            )
        check_layers(self.layers)

    @classmethod
    def example(cls, sites: Sites) -> ByPattern:
        """Return a choice that fits the model: its queries, by path."""
        queries = sites.with_roles("query")
        return cls(patterns=tuple(dict.fromkeys(shape_of_path(site.name) for site in queries)))

    def __call__(
        self,
        model: nn.Module,
        sites: Sites,
        *,
        statistics: Any = None,
        generator: torch.Generator | None = None,
        previous: Selection | None = None,
    ) -> Selection:
        """Return weight name -> `Whole`, or the `Rows` of the role asked for.

        Raises:
            InputError: a pattern matches nothing; the nearest paths are named.
        """
        places = in_layers(sites, sites.values(), self.layers)
        for pattern in self.patterns:
            if not any(pattern_matches(pattern, site) for site in places):
                raise _matches_nothing(pattern, places)
        return join(
            sites,
            [site for site in places if any(pattern_matches(p, site) for p in self.patterns)],
        )


def _matches_nothing(pattern: str, places: tuple[Site, ...]) -> InputError:
    tails = {_tail(shape_of_path(site.name), pattern) for site in places}
    nearest = ", ".join(repr(tail) for tail in nearest_first(pattern, tails)[:4])
    return InputError(
        f"pattern {pattern!r} matches no module: patterns are whole components of a path "
        f"(`*` one, `**` any number); the nearest are {nearest}"
    )


def _tail(path: str, pattern: str) -> str:
    """Return as many last components as the pattern has, so that alike is compared with alike."""
    return ".".join(path.split(".")[-(pattern.count(".") + 1) :])
