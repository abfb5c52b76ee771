"""Sum: the change is the sum of the changes of several deltas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltatune import parts
from deltatune.deltas.delta import ActingFactors, Delta
from deltatune.errors import InputError, NotComposable
from deltatune.part import Entries, Part, Whole

__all__ = ["Sum", "SumDelta"]


@dataclass(frozen=True, kw_only=True)
class Sum:
    """Options of the sum.

    Args:
        terms: options of two or more deltas; a term may be a sum itself. In a recipe file, a list
            of mappings that each have a `kind`.
    """

    terms: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(self.terms) < 2:
            raise InputError(
                f"terms has {len(self.terms)} delta: give at least two, or use it alone"
            )
        for term in self.terms:
            parts.declaration_of(term, "deltas")

    @classmethod
    def example(cls) -> Sum:
        """Return two low-rank terms of unlike rank, the first of a sum that fits most weights."""
        low_rank = parts.known("deltas")["low_rank"].options
        return cls(terms=(low_rank(rank=2), low_rank(rank=1, alpha=1.0)))

    def implementations(self) -> Iterator[tuple[type[Delta], Any]]:
        """Yield each term's class and options."""
        for term in self.terms:
            yield parts.declaration_of(term, "deltas").implementation, term


@parts.declare("deltas", "sum", options=Sum)
class SumDelta(Delta):
    """Add the changes of several deltas at one place, as one adapter with one optimizer.

    Where the selection gives single entries, they go to the terms that change entries, and the
    other terms change the whole place: `sum(low_rank, entries)` is a low-rank plus sparse change.
    """

    Options: ClassVar[type[Any]] = Sum
    acts_on: ClassVar[tuple[type[Any], ...]] = (Whole, Entries)
    options: Sum

    def __init__(
        self,
        options: Sum,
        weight: Tensor,
        site: Any,
        *,
        part: Part | None = None,
        statistics: Any = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Set up every term, in order, from the one generator; see `Delta`.

        Raises:
            InputError: a term that cannot change this place.
        """
        super().__init__(
            options, weight, site, part=part, statistics=statistics, generator=generator
        )
        terms = [
            implementation(
                term,
                weight,
                site,
                part=_part_for(implementation, self.part),
                statistics=statistics,
                generator=generator,
            )
            for implementation, term in options.implementations()
        ]
        self.terms = nn.ModuleList(terms)
        self.is_mergeable = all(term.is_mergeable for term in terms)
        self.reads_weight = any(term.reads_weight for term in terms)
        self.has_start = any(term.has_start for term in terms)

    @classmethod
    def check(
        cls, options: Sum, out_features: int, in_features: int, part: Part, site_name: str
    ) -> None:
        """Refuse what one of the terms refuses, and entries that no term changes."""
        super().check(options, out_features, in_features, part, site_name)
        implementations = list(options.implementations())
        for made, term in implementations:
            if made.needed(term):
                raise NotComposable(
                    f"the term {type(term).__name__} of the sum at {site_name} is measured on "
                    f"examples, which a sum does not hand on: use it alone"
                )
        if isinstance(part, Entries) and not any(
            Entries in made.acts_on for made, _ in implementations
        ):
            names = ", ".join(type(term).__name__ for term in options.terms)
            raise NotComposable(
                f"the selection gives single entries of {site_name}, but no term of the sum "
                f"({names}) changes entries: add the term entries, or select the whole weight"
            )
        for made, term in implementations:
            made.check(term, out_features, in_features, _part_for(made, part), site_name)

    def start(self, weight: Tensor, statistics: Any = None) -> None:
        """Start every term."""
        for term in self._terms():
            term.start(weight, statistics)

    def _terms(self) -> list[Delta]:
        return list(self.terms)  # type: ignore[arg-type]

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return the sum of the terms' changes, `(out, in)` float32."""
        first, *others = (term.delta_weight(weight) for term in self._terms())
        return sum(others, start=first)

    def delta_output(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Return the sum of the terms' outputs, each computed in its own cheapest way."""
        first, *others = (term.delta_output(inputs, weight) for term in self._terms())
        return sum(others, start=first)

    def figures(self) -> Mapping[str, Any]:
        """Return what the terms have to say, by their number."""
        found = {str(i): term.figures() for i, term in enumerate(self._terms())}
        return {number: figures for number, figures in found.items() if figures}

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        """Return the sum of the terms' changes of the bias, or None when none has one."""
        changes = [term.delta_bias(bias) for term in self._terms()]
        present = [change for change in changes if change is not None]
        return sum(present[1:], start=present[0]) if present else None

    def low_rank_factors(self) -> tuple[Tensor, Tensor] | None:
        """Return the terms' factors side by side, or None unless every term has them."""
        factors = [term.low_rank_factors() for term in self._terms()]
        present = [pair for pair in factors if pair is not None]
        if len(present) < len(factors):
            return None
        ups, downs = zip(*present, strict=True)
        return torch.cat(ups, dim=1), torch.cat(downs, dim=0)

    def acting_factors(self) -> ActingFactors | None:
        """Return the terms' factors side by side, or None where a term has none or drops inputs."""
        factors = [term.acting_factors() for term in self._terms()]
        present = [given for given in factors if given is not None and not given.dropout]
        if len(present) < len(factors):
            return None
        ups = [given.scale * given.up for given in present]
        downs = [given.down for given in present]
        return ActingFactors(torch.cat(ups, dim=1), torch.cat(downs, dim=0))

    @staticmethod
    def number_of_parameters(
        options: Sum, out_features: int, in_features: int, part: Part | None = None
    ) -> int:
        """Return the sum of the terms' numbers."""
        chosen = part if part is not None else Whole()
        return sum(
            made.number_of_parameters(term, out_features, in_features, _part_for(made, chosen))
            for made, term in options.implementations()
        )


def _part_for(implementation: type[Delta], part: Part) -> Part:
    if isinstance(part, Entries) and Entries not in implementation.acts_on:
        return Whole()
    return part
