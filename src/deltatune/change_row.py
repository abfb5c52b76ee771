"""What the change of one weight amounts to, for tables."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ChangeRow", "change_row"]


@dataclass(frozen=True, kw_only=True)
class ChangeRow:
    """What one weight's change amounts to.

    Args:
        name: of the base weight.
        shape: as stored.
        norm: Frobenius norm.
        largest: largest absolute entry, 0 if there is none.
        nonzero: number of entries that are not 0.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    largest: float
    nonzero: int


def change_row(name: str, change: Tensor) -> ChangeRow:
    """Describe one change."""
    return ChangeRow(
        name=name,
        shape=tuple(change.shape),
        norm=float(torch.linalg.vector_norm(change)),
        largest=float(change.abs().max()) if change.numel() else 0.0,
        nonzero=int(change.count_nonzero()),
    )
