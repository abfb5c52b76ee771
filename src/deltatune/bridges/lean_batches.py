"""How a run spends nothing on padding and on logits that nobody reads, where that is exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from deltatune.bridges.packing import Packing, choose
from deltatune.bridges.start_checks import supervised_head
from deltatune.bridges.supervised_head import SupervisedHead
from deltatune.data.collating import Collator
from deltatune.data.image_encoding import ImageCollator
from deltatune.data.packing import PackingCollator
from deltatune.errors import NotComposable
from deltatune.objectives.objective import Objective, RowObjective
from deltatune.settings import Training

__all__ = ["LeanBatches", "lean_batches"]


@dataclass(frozen=True, kw_only=True)
class LeanBatches:
    """What a training session uses.

    Args:
        collate: rows -> batch.
        packing: how flattened batches reach the model; None where all are padded.
        head: the way through the output head; None for the plain one.
        notes: a line for each decision that went against the thrifty way, or for it by a rule.
    """

    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]
    packing: Packing | None = None
    head: SupervisedHead | None = None
    notes: tuple[str, ...] = ()


def lean_batches(
    model: nn.Module,
    objective: Objective,
    collate: Collator | ImageCollator,
    training: Training,
    lengths: Sequence[int],
) -> LeanBatches:
    """Decide, by trying on the model itself, what may be left out of its batches.

    Args:
        model: as it will train.
        objective: the loss.
        collate: makes padded batches.
        training: settings.
        lengths: of the training examples, in tokens.

    Raises:
        NotComposable: `training.packing` is `on`, and that would not be exact.
    """
    if not isinstance(objective, RowObjective):
        if training.packing == "on":
            raise NotComposable(
                f"training.packing=on and the objective {type(objective).__name__} cannot act "
                f"together, since it reads whole sequences: leave packing at auto"
            )
        return LeanBatches(collate=collate)
    if not isinstance(collate, Collator):
        return LeanBatches(collate=collate)
    head, why_not = supervised_head(model, objective)
    notes = [] if head else [f"output head: logits of all tokens are formed, since {why_not}"]
    packing, note = _packing(model, training, lengths)
    notes += [note] if note else []
    if packing is None:
        return LeanBatches(collate=collate, head=head, notes=tuple(notes))
    cost = packing.attention_cost if training.packing == "auto" else 0.0
    packed = PackingCollator(collate, attention_cost=cost)
    return LeanBatches(collate=packed, packing=packing, head=head, notes=tuple(notes))


def _packing(
    model: nn.Module, training: Training, lengths: Sequence[int]
) -> tuple[Packing | None, str]:
    if training.packing == "off" or len(set(lengths)) <= 1:
        return None, ""
    packing, why_not = choose(model, max_length=max(lengths))
    if packing is not None:
        return packing, ""
    if training.packing == "on":
        raise NotComposable(
            f"training.packing=on and {type(model).__name__} cannot act together: in one row with "
            f"others a document would not be what it is alone ({why_not}); set training.packing "
            f"to auto"
        )
    return None, f"batches are padded, since packing would not be exact: {why_not}"
