"""One training micro-batch of a plan, passed through the model as the run will pass it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from deltatune.blocks.block import reading
from deltatune.bridges.attention_implementations import AttentionImplementations
from deltatune.bridges.data_order import DataOrder
from deltatune.bridges.lean_batches import LeanBatches, lean_batches
from deltatune.bridges.short_attention import short_attention
from deltatune.comparison.costs import trying
from deltatune.objectives.objective import RowObjective
from deltatune.plan import Plan

__all__ = ["first_rows", "heaviest_rows", "tried"]


def first_rows(plan: Plan) -> list[int]:
    """Return the numbers of the first training examples, as many as one micro-batch has."""
    batch_size = plan.recipe.training.batch_size
    return list(range(min(batch_size, len(plan.encoded.splits["train"]))))


def heaviest_rows(plan: Plan) -> list[int]:
    """Return the numbers of the examples of the largest micro-batch of the first epoch, padded."""
    training = plan.recipe.training
    lengths = plan.collate.lengths(plan.encoded.splits["train"])
    order = list(
        DataOrder(
            lengths,
            batch_size=training.batch_size,
            seed=training.seed,
            groups_by_length=training.groups_by_length,
        )
    )
    batches = [
        order[start : start + training.batch_size]
        for start in range(0, len(order), training.batch_size)
    ]
    return max(batches, key=lambda rows: len(rows) * max(lengths[row] for row in rows))


@contextmanager
def tried(plan: Plan, rows: Sequence[int]) -> Iterator[Callable[[], Tensor]]:
    """Give what computes the loss of one micro-batch, `()`, in training mode.

    Batches are packed, and the output head sees supervised rows alone, where the run does so. Terms
    that a delta adds to the loss of a step, as AdaLoRA does, are left out. Weights, buffers,
    gradients, modes, random states and the way of attention are afterwards as they were.

    Args:
        plan: of the run.
        rows: numbers of training examples.
    """
    training, train = plan.recipe.training, plan.encoded.splits["train"]
    attention = AttentionImplementations(plan.model)
    device = next(plan.model.parameters()).device
    try:
        lean = lean_batches(
            plan.model, plan.objective, plan.collate, training, plan.collate.lengths(train)
        )
        batch = {
            key: value.to(device) if isinstance(value, Tensor) else value
            for key, value in lean.collate([train[row] for row in rows]).items()
        }
        in_bfloat16 = training.precision == "bfloat16"

        def loss() -> Tensor:
            autocast = torch.autocast(
                device.type, torch.bfloat16, enabled=in_bfloat16 and plan.trains_base
            )
            with autocast, reading(plan.model, batch):
                total = _total(plan, lean, batch)
            mean: Tensor = total / plan.objective.count(batch).clamp(min=1)
            return mean

        with trying(plan.model), short_attention(plan.model, in_bfloat16=in_bfloat16):
            yield loss
    finally:
        attention.restore()


def _total(plan: Plan, lean: LeanBatches, batch: dict[str, Any]) -> Tensor:
    """Return the sum of a micro-batch's terms, by the way that the trainer takes."""
    given = {key: value for key, value in batch.items() if key != "labels"}
    if lean.packing is not None:
        given = lean.packing.arguments(given)
    if lean.head is not None:
        objective = cast("RowObjective", plan.objective)  # or there would be no such head
        return lean.head.total(plan.model, given, batch, objective)
    total: Tensor = plan.objective.total(plan.model(**given), batch)
    return total
