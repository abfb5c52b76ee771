"""Tell a number about a whole sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from deltatune.errors import InputError
from deltatune.parts import declare

__all__ = ["Regression"]


@declare("objectives", "regression")
@dataclass(frozen=True, kw_only=True)
class Regression:
    """Sum of squared differences between predicted and given numbers.

    Any finite number is a label here, -100 too, so a missing one is NaN.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    ignored_label: ClassVar[float] = float("nan")

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Return how many numbers are given, `()` int64, of `labels` `(batch,)` or `(batch, n)`."""
        count: Tensor = (~batch["labels"].isnan()).sum()
        return count

    def total(self, outputs: Any, batch: Mapping[str, Any], *, progress: float = 0.0) -> Tensor:
        """Return the summed loss, `()` float32, of `logits` `(batch, n)`.

        Raises:
            InputError: the model predicts another number of values than the labels give.
        """
        labels = batch["labels"].float()
        predicted = outputs.logits.float()
        if labels.numel() != predicted.numel():
            raise InputError(
                f"the model predicts {predicted.shape[-1]} numbers per sequence, the labels have "
                f"shape {tuple(labels.shape)}: load the model with as many labels as the data gives"
            )
        is_given = ~labels.isnan()
        difference = predicted.reshape(labels.shape)[is_given] - labels[is_given]
        total: Tensor = difference.square().sum()
        return total
