"""Select exactly the parts of weights that are written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltatune.errors import InputError, unknown_name
from deltatune.part import Columns, Entries, Part, Rows, Selection, Whole
from deltatune.parts import declare
from deltatune.sites import Sites, split

__all__ = ["Explicit"]

_KINDS: Mapping[str, Callable[[Tensor], Part]] = {
    "rows": Rows,
    "columns": Columns,
    "entries": Entries,
}


@declare("selections", "explicit")
@dataclass(frozen=True, kw_only=True)
class Explicit:
    """The weights that are named, each whole or some rows, columns or entries of it.

    Args:
        weights: weight name -> `"whole"`, or one of `{"rows": [...]}`, `{"columns": [...]}` and
            `{"entries": [...]}`. Indices count in the `(out, in)` form, entries flat and row-major:
            `row * in + column`.
        allow_partial: whether it may cover only some places of a role; it may, since every place is
            written down.
        allow_tied: whether it may change a weight that acts in two places.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    changes_who_trains: ClassVar[bool] = False

    weights: Mapping[str, Any]
    allow_partial: bool = True
    allow_tied: bool = False

    def __post_init__(self) -> None:
        if not self.weights:
            raise InputError("weights={} is not allowed: name at least one weight")
        plain = {name: _checked(name, part) for name, part in self.weights.items()}
        object.__setattr__(self, "weights", plain)
        for part in plain.values():
            _part(part)

    @classmethod
    def example(cls, sites: Sites) -> Explicit:
        """Return a choice that fits the model: two entries of its first query's weight."""
        return cls(weights={sites.with_roles("query")[0].weight: {"entries": (0, 3)}})

    def __call__(
        self,
        model: nn.Module,
        sites: Sites,
        *,
        statistics: Any = None,
        generator: torch.Generator | None = None,
        previous: Selection | None = None,
    ) -> Selection:
        """Return weight name -> part, as written.

        Raises:
            InputError: no weight has the name (the nearest are listed), or an index is outside it.
        """
        selection = {name: _part(part) for name, part in self.weights.items()}
        for name, part in selection.items():
            split(sites, name, part)
        return selection


def _checked(name: str, part: Any) -> str | Mapping[str, tuple[int, ...]]:
    if part == "whole":
        return "whole"
    if not isinstance(part, Mapping) or len(part) != 1:
        raise InputError(
            f"weights[{name!r}]={part!r} is not allowed: give 'whole', or one of "
            f"{{'rows': [...]}}, {{'columns': [...]}} and {{'entries': [...]}}"
        )
    ((kind, indices),) = part.items()
    if kind not in _KINDS:
        raise unknown_name(f"weights[{name!r}]: key", kind, _KINDS)
    is_list = isinstance(indices, (list, tuple)) and all(type(index) is int for index in indices)
    if not is_list or not indices:
        raise InputError(
            f"weights[{name!r}]: {kind}={indices!r} is not allowed: give a list of at least one "
            f"whole number, or leave the weight out"
        )
    return {kind: tuple(indices)}


def _part(plain: str | Mapping[str, tuple[int, ...]]) -> Part:
    if isinstance(plain, str):
        return Whole()
    ((kind, indices),) = plain.items()
    return _KINDS[kind](torch.tensor(indices, dtype=torch.int64))
