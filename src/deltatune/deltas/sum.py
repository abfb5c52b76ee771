"""Sum: several deltas at one place, added up and trained together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltatune import parts
from deltatune.deltas.delta import Delta
from deltatune.deltas.low_rank import LowRank
from deltatune.errors import InputError
from deltatune.part import Part
from deltatune.parts import declare
from deltatune.seeds import generator_for

__all__ = ["Sum", "SumDelta"]


@dataclass(frozen=True, kw_only=True)
class Sum:
    """Options of the sum.

    Args:
        terms: options of each delta, in order; two low-rank terms if not given.
    """

    terms: tuple[Any, ...] = (LowRank(rank=4), LowRank(rank=4))

    def __post_init__(self) -> None:
        if not self.terms:
            raise InputError("terms=[] is not allowed: give the options of at least one delta")
        for term in self.terms:
            parts.declaration_of(term, "deltas")


@declare("deltas", "sum", options=Sum)
class SumDelta(Delta):
    """Add the changes of several deltas; one adapter trains, since two live ones break a resume."""

    Options: ClassVar[type[Any]] = Sum

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
        """Build each term; a term's start values do not depend on the terms beside it."""
        super().__init__(options, weight, site, part=part, statistics=statistics, generator=generator)
        seed = generator.initial_seed() if generator is not None else 0
        built = []
        for i, term in enumerate(options.terms):
            own = generator_for(seed, f"term {i}")
            implementation = parts.declaration_of(term, "deltas").implementation
            built.append(
                implementation(term, weight, site, part=part, statistics=statistics, generator=own)
            )
        self.terms = nn.ModuleList(built)
        self.is_mergeable = all(term.is_mergeable for term in built)  # type: ignore[misc]

    def _terms(self) -> Sequence[Delta]:
        return list(self.terms)  # type: ignore[arg-type]

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return the sum of the terms' changes, `(out, in)` float32."""
        changes = [term.delta_weight(weight) for term in self._terms()]
        return torch.stack(changes).sum(0) if len(changes) > 1 else changes[0]

    def delta_output(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Return the sum of the terms' changes of the output."""
        first, *others = (term.delta_output(inputs, weight) for term in self._terms())
        for other in others:
            first = first + other
        return first

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        """Return the sum of those changes of the bias that there are."""
        changes = [change for term in self._terms() if (change := term.delta_bias(bias)) is not None]
        return torch.stack(changes).sum(0) if changes else None

    def low_rank_factors(self) -> tuple[Tensor, Tensor] | None:
        """Return the factors side by side, if every term has some."""
        ups, downs = [], []
        for term in self._terms():
            factors = term.low_rank_factors()
            if factors is None:
                return None
            ups.append(factors[0])
            downs.append(factors[1])
        return torch.cat(ups, dim=1), torch.cat(downs, dim=0)

    @staticmethod
    def number_of_parameters(options: Sum, out_features: int, in_features: int) -> int:
        """Return the sum over the terms."""
        return sum(
            int(
                parts.declaration_of(term, "deltas").implementation.number_of_parameters(
                    term, out_features, in_features
                )
            )
            for term in options.terms
        )
