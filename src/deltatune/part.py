"""Which part of a weight may change: all of it, some rows, some columns, or single entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deltatune.errors import InputError

__all__ = ["Columns", "Entries", "Part", "Rows", "Selection", "Whole"]


def _checked(indices: Tensor, what: str) -> Tensor:
    if indices.dtype != torch.int64 or indices.ndim != 1:
        raise InputError(
            f"{what} indices have dtype {indices.dtype} and shape {tuple(indices.shape)}: "
            f"give one axis of torch.int64"
        )
    if indices.numel() and (int(indices.min()) < 0 or indices.unique().numel() != indices.numel()):
        raise InputError(
            f"{what} indices hold a negative or repeated index: give each once, from 0"
        )
    return indices


@dataclass(frozen=True)
class Whole:
    """The whole weight, `(out, in)`."""

    def shape(self, out_features: int, in_features: int) -> tuple[int, ...]:
        """Return the shape of what may change, `(out, in)`."""
        return (out_features, in_features)


@dataclass(frozen=True, eq=False)
class Rows:
    """Some output rows of a weight: a role of a fused projection, a coupled channel, a head.

    Args:
        indices: row numbers, `(rows,)` int64, in the order in which the delta produces them.
    """

    indices: Tensor

    def __post_init__(self) -> None:
        _checked(self.indices, "row")

    @classmethod
    def of_ranges(cls, ranges: Iterable[tuple[int, int]]) -> Rows:
        """Build from half-open ranges `(start, stop)`.

        >>> Rows.of_ranges([(0, 2), (4, 6)]).indices.tolist()
        [0, 1, 4, 5]
        """
        pieces = [torch.arange(start, stop, dtype=torch.int64) for start, stop in ranges]
        return cls(torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64))

    def shape(self, out_features: int, in_features: int) -> tuple[int, ...]:
        """Return the shape of what may change, `(rows, in)`."""
        return (self.indices.numel(), in_features)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and torch.equal(self.indices, other.indices)

    def __hash__(self) -> int:
        return hash(tuple(self.indices.tolist()))


@dataclass(frozen=True, eq=False)
class Columns:
    """Some input columns of a weight.

    Args:
        indices: column numbers, `(columns,)` int64.
    """

    indices: Tensor

    def __post_init__(self) -> None:
        _checked(self.indices, "column")

    def shape(self, out_features: int, in_features: int) -> tuple[int, ...]:
        """Return the shape of what may change, `(out, columns)`."""
        return (out_features, self.indices.numel())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Columns) and torch.equal(self.indices, other.indices)

    def __hash__(self) -> int:
        return hash(tuple(self.indices.tolist()))


@dataclass(frozen=True, eq=False)
class Entries:
    """Single entries of a weight, as flat row-major indices into its `(out, in)` form.

    Args:
        indices: flat indices `row * in + column`, `(k,)` int64 (int32 ends at 2^31 entries).
    """

    indices: Tensor

    def __post_init__(self) -> None:
        _checked(self.indices, "entry")

    def shape(self, out_features: int, in_features: int) -> tuple[int, ...]:
        """Return the shape of what may change, `(k,)`."""
        return (self.indices.numel(),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entries) and torch.equal(self.indices, other.indices)

    def __hash__(self) -> int:
        return hash(tuple(self.indices.tolist()))


Part = Whole | Rows | Columns | Entries
Selection = Mapping[str, Part]
