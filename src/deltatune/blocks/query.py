"""Which tokens ask, and which answer: the query of every document in a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["documents_of", "query_of"]


def query_of(
    given: Mapping[str, Any],
    shape: tuple[int, int],
    *,
    labels: Tensor | None = None,
    prompt: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return which tokens are query, `(batch, seq)` bool, and the number of each one's document.

    With labels the query is what comes before a document's first supervised token, with the length
    of a prompt the columns before its end, else everything.

    Args:
        given: inputs of the model: `attention_mask` `(batch, seq)` and `position_ids`, if any.
        shape: `(batch, seq)`.
        labels: of the batch, -100 where there is no loss.
        prompt: columns of the prompt.
    """
    batch, seq = shape
    positions = given.get("position_ids")
    mask = given.get("attention_mask")
    device = next((one.device for one in (labels, positions, mask) if one is not None), None)
    if device is None:
        device = given["input_ids"].device if given.get("input_ids") is not None else None
    columns = torch.arange(seq, device=device).expand(batch, seq)
    begins = columns == 0
    if positions is not None and positions.dim() == 2:
        # A document in a flattened batch begins where positions start again.
        follows = positions[:, 1:] > positions[:, :-1]
        begins = torch.cat([begins[:, :1], (~follows).expand(batch, seq - 1)], dim=1)
    document = begins.flatten().cumsum(0).view(batch, seq) - 1
    is_query = torch.ones(shape, dtype=torch.bool, device=device)
    if labels is not None:
        if labels.shape != shape:
            raise ValueError(f"labels {tuple(labels.shape)} for hidden states {tuple(shape)}")
        is_query = ~_has_begun(labels != -100, begins)
    elif prompt is not None:
        is_query = columns < prompt
    if mask is not None and mask.shape == shape:
        is_query = is_query & mask.bool()
    return is_query, document


def _has_begun(supervised: Tensor, begins: Tensor) -> Tensor:
    """Tell of every token whether its document has had a supervised one, itself included."""
    seen = supervised.long().cumsum(1)
    before = torch.where(begins, seen - supervised.long(), -1).cummax(1).values
    return seen > before


def documents_of(states: Tensor, is_query: Tensor, document: Tensor) -> Tensor:
    """Return the mean over the query of every document, `(documents, ...)`; 0 of an empty query.

    Args:
        states: `(batch, seq, ...)`.
        is_query: `(batch, seq)` bool.
        document: `(batch, seq)` int64, numbers from 0.
    """
    number = int(document.max()) + 1
    weights = is_query.to(states.dtype)
    flat = (states * weights.view(*weights.shape, *[1] * (states.dim() - 2))).flatten(0, 1)
    sums = states.new_zeros(number, *states.shape[2:]).index_add(0, document.flatten(), flat)
    counts = states.new_zeros(number).index_add(0, document.flatten(), weights.flatten())
    return sums / counts.clamp(min=1).view(-1, *[1] * (states.dim() - 2))
