"""MixLoRA: a LoRA on every attention projection, and routed low-rank experts in every layer."""

from __future__ import annotations

from deltatune.blocks.routed_experts import RoutedExperts
from deltatune.deltas.low_rank import LowRank
from deltatune.parts import Source, declare
from deltatune.recipe import Optimizer, Recipe
from deltatune.selections.by_role import ByRole

__all__ = ["mixlora"]


@declare(
    "recipes",
    "mixlora",
    source=Source(
        authors="Li et al.",
        year=2024,
        title=(
            "MixLoRA: Enhancing Large Language Models Fine-Tuning with LoRA based Mixture of "
            "Experts"
        ),
        arxiv="2404.15159",
        where="table 3",
    ),
)
def mixlora(
    learning_rate: float = 2e-4,
    rank: int = 16,
    alpha: float = 32.0,
    experts: int = 8,
    top_k: int = 2,
    auxiliary_weight: float = 1e-3,
    dropout: float = 0.05,
) -> Recipe:
    """Train a LoRA on query, key, value and output, and a mixture of low-rank experts beside it.

    Args:
        learning_rate: of everything that trains.
        rank: of attention and experts.
        alpha: changes are scaled by alpha / rank.
        experts: of each layer.
        top_k: experts of a token.
        auxiliary_weight: of the loss of uneven load; the paper's text says 1e-2, its best results
            and the code 1e-3.
        dropout: of the inputs of changes.
    """
    return Recipe(
        name="mixlora",
        delta=LowRank(rank=rank, alpha=alpha, dropout=dropout),
        selection=ByRole(roles=("query", "key", "value", "output")),
        block=RoutedExperts(
            rank=rank,
            alpha=alpha,
            experts=experts,
            top_k=top_k,
            auxiliary_weight=auxiliary_weight,
            dropout=dropout,
        ),
        optimizer=Optimizer(learning_rate=learning_rate),
    )
