"""Low rank: the change is a product of two thin factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltatune.deltas.delta import Delta
from deltatune.errors import InputError
from deltatune.part import Part, Whole
from deltatune.parts import Source, declare

__all__ = ["LowRank", "LowRankDelta"]


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """Options of the low-rank delta.

    Args:
        rank: inner dimension r, from 1 to min(out, in).
        alpha: the change is scaled by alpha / rank.
        dropout: probability that an input of the first factor is dropped while training, in [0, 1).
        rank_stabilized: scale by alpha / sqrt(rank) instead.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rank_stabilized: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"rank={self.rank} is not allowed: give an integer from 1 to min(out, in)")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise InputError(f"alpha={self.alpha} is not allowed: give a finite number above 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout} is not allowed: give a probability in [0, 1)")

    @property
    def scale(self) -> float:
        """The factor of the product."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


@declare(
    "deltas",
    "low_rank",
    options=LowRank,
    source=Source(
        authors="Hu et al.",
        year=2021,
        title="LoRA: Low-Rank Adaptation of Large Language Models",
        arxiv="2106.09685",
        where="equation 3",
    ),
)
class LowRankDelta(Delta):
    """Add scale * up @ down to the weight, `up (out, rank)` zero at the start."""

    Options: ClassVar[type[Any]] = LowRank
    roles: ClassVar[dict[str, str]] = {"down": "down", "up": "up"}
    options: LowRank

    def __init__(
        self,
        options: LowRank,
        weight: Tensor,
        site: Any,
        *,
        part: Part | None = None,
        statistics: Any = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw `down` uniformly as Kaiming's rule with slope sqrt(5) does; `up` is zero."""
        super().__init__(options, weight, site, part=part, statistics=statistics, generator=generator)
        if self.part != Whole():
            raise InputError(
                f"low_rank changes the whole of {self.site_name}, but the selection takes a part of it: "
                f"use the delta entries, or select the whole place"
            )
        largest = min(self.out_features, self.in_features)
        if options.rank > largest:
            raise InputError(
                f"rank={options.rank} is not allowed: give an integer from 1 to {largest} = "
                f"min(out, in) of {self.site_name}"
            )
        bound = 1 / math.sqrt(self.in_features)
        down = torch.empty(options.rank, self.in_features).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(self.out_features, options.rank, device=weight.device))

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return scale * up @ down, `(out, in)` float32."""
        return self.options.scale * (self.up.float() @ self.down.float())

    def delta_output(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Apply the thin factors to the activations; the dense change is never formed."""
        dropped = F.dropout(inputs, self.options.dropout, self.training)
        # The factors are cast down, not the inputs up: nothing wide is kept for the backward.
        hidden = F.linear(dropped, self.down.to(inputs.dtype)) * self.options.scale  # (..., rank)
        return F.linear(hidden, self.up.to(inputs.dtype))

    def low_rank_factors(self) -> tuple[Tensor, Tensor]:
        """Return `(scale * up, down)`."""
        return self.options.scale * self.up.float(), self.down.float()

    @staticmethod
    def number_of_parameters(options: LowRank, out_features: int, in_features: int) -> int:
        """Return rank * (out + in)."""
        return options.rank * (out_features + in_features)
