"""The baselines that every comparison needs: plain LoRA and full tuning."""

from __future__ import annotations

from deltatune.deltas.low_rank import LowRank
from deltatune.parts import Source, declare
from deltatune.recipe import InPlace, Optimizer, Recipe
from deltatune.selections.by_role import ByRole

__all__ = ["full", "lora"]

PROJECTIONS = ("query", "key", "value", "output", "gate", "up", "down")


@declare(
    "recipes",
    "lora",
    source=Source(
        authors="Hu et al.",
        year=2021,
        title="LoRA: Low-Rank Adaptation of Large Language Models",
        arxiv="2106.09685",
        where="section 4.2",
    ),
)
def lora(learning_rate: float = 1e-3, rank: int = 8, alpha: float = 16.0) -> Recipe:
    """Train a low-rank change of every query and value projection, all at one rate.

    Args:
        learning_rate: of everything that trains.
        rank: of each change.
        alpha: the change is scaled by alpha / rank.
    """
    return Recipe(
        name="lora",
        delta=LowRank(rank=rank, alpha=alpha),
        selection=ByRole(roles=("query", "value")),
        optimizer=Optimizer(learning_rate=learning_rate),
    )


@declare("recipes", "full")
def full(learning_rate: float = 5e-5) -> Recipe:
    """Train every projection of every layer in place; embeddings and norms stay.

    Args:
        learning_rate: of everything that trains.
    """
    return Recipe(
        name="full",
        delta=InPlace(),
        selection=ByRole(roles=PROJECTIONS, allow_absent=True),
        optimizer=Optimizer(learning_rate=learning_rate),
    )
