"""Named tensors that are made when they are asked for, one at a time, and never kept."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from deltatune.errors import InputError, NotComposable

__all__ = ["Combination", "Held", "Joined", "LazyTensors"]


class LazyTensors(Mapping[str, Tensor]):
    """Name -> tensor, where the shape of a tensor is known without making it."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""


class Held(LazyTensors):
    """Tensors that somebody holds anyway, or of any mapping (shapes are then read off tensors)."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Wrap a mapping; nothing is copied."""
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return tuple(self._tensors[name].shape)


class Joined(LazyTensors):
    """The tensors of two mappings that have no name in common."""

    def __init__(self, first: LazyTensors, second: LazyTensors) -> None:
        """Join the two."""
        self._holders = {**dict.fromkeys(first, first), **dict.fromkeys(second, second)}

    def __getitem__(self, name: str) -> Tensor:
        return self._holders[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._holders)

    def __len__(self) -> int:
        return len(self._holders)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self._holders[name].shape(name)


class Combination(LazyTensors):
    """The sum of several mappings, each times a factor, in float32; a missing tensor counts as 0.

    Sums of sums stay one flat list of terms, so that any number of them can be added.
    """

    def __init__(self, terms: Sequence[tuple[LazyTensors, float]]) -> None:
        """Combine the terms.

        Args:
            terms: mappings and their factors.

        Raises:
            NotComposable: two terms hold tensors of one name but different shapes.
        """
        self.terms = tuple(terms)
        self._names = dict.fromkeys(name for term, _ in self.terms for name in term)
        if len(self.terms) > 1:
            self._check_shapes()

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Combination:
        """Return any mapping as a combination, itself if it is one."""
        if isinstance(tensors, Combination):
            return tensors
        lazy = tensors if isinstance(tensors, LazyTensors) else Held(tensors)
        return cls([(lazy, 1.0)])

    def _check_shapes(self) -> None:
        for name in self._names:
            shapes = {term.shape(name) for term, _ in self.terms if name in term}
            if len(shapes) > 1:
                listed = " and ".join(str(list(shape)) for shape in sorted(shapes))
                raise NotComposable(
                    f"the changes of {name} have the shapes {listed}: "
                    f"only deltas of the same base can be added"
                )

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        total: Tensor | None = None
        for term, factor in self.terms:
            if name in term:
                total = _added(total, term[name].to(torch.float32), factor)
        assert total is not None
        return total

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return next(term.shape(name) for term, _ in self.terms if name in term)

    def scaled(self, factor: float) -> Combination:
        """Return the combination times a factor.

        Raises:
            InputError: the factor is not finite.
        """
        if factor != factor or factor in (float("inf"), float("-inf")):
            raise InputError(f"factor {factor} is not allowed: give a finite number")
        return Combination([(term, factor * own) for term, own in self.terms])


def _added(total: Tensor | None, term: Tensor, factor: float) -> Tensor:
    if total is None:
        return term if factor == 1.0 else term * factor
    return torch.add(total, term.to(total.device), alpha=factor)
