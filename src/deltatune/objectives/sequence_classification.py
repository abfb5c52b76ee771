"""Tell the class of a whole sequence or image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from deltatune.parts import declare

__all__ = ["SequenceClassification"]


@declare("objectives", "sequence_classification")
@dataclass(frozen=True, kw_only=True)
class SequenceClassification:
    """Sum of -log p(class | input) over the labelled sequences or images."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    tasks: ClassVar[tuple[str, ...]] = ("classification", "image_classification")
    ignored_label: ClassVar[float] = -100

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the number of labelled sequences, `()` int64, of `labels` `(batch,)`."""
        count: Tensor = (batch["labels"] != self.ignored_label).sum()
        return count

    def total(self, outputs: Any, batch: Mapping[str, Any], *, progress: float = 0.0) -> Tensor:
        """Return the summed loss, `()` float32, of `logits` `(batch, classes)`."""
        labels = batch["labels"]
        is_labelled = labels != self.ignored_label
        logits = outputs.logits[is_labelled]  # (labelled, classes)
        return F.cross_entropy(logits.float(), labels[is_labelled], reduction="sum")
