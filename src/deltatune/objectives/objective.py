"""The contract of an objective: outputs and batch in, a loss out, one owner of the denominator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor

__all__ = ["Objective"]


class Objective(Protocol):
    """A loss as a sum over terms and the number of those terms; an instance is its own options.

    A mean cannot be split over micro-batches without knowing how many terms each holds, so an
    objective never divides: the caller sums `count` over everything that makes one optimizer step
    (micro-batches and processes) and divides each `total` by it, once.

    Attributes:
        needs: what it reads, of "logits", "log_probs", "hidden_states", "reference_log_probs",
            "auxiliary".
        tasks: the names of the data tasks whose default it is.
        ignored_label: the label of a term that carries no loss.
    """

    needs: ClassVar[frozenset[str]]
    tasks: ClassVar[tuple[str, ...]]
    ignored_label: ClassVar[float]

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the number of supervised terms in the batch, `()` int64."""
        ...

    def total(self, outputs: Any, batch: Mapping[str, Any], *, progress: float = 0.0) -> Tensor:
        """Return the sum of the terms, `()` float32, differentiable.

        Args:
            outputs: the model's outputs, with `logits`.
            batch: the batch, with `labels`.
            progress: fraction of training done, in [0, 1].
        """
        ...
