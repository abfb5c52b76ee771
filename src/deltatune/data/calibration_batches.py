"""Training examples as batches to measure a model on, before it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from deltatune.seeds import generator_for, shuffled
from deltatune.settings import Training

__all__ = ["CalibrationBatches"]


class CalibrationBatches:
    """Batches of training examples in one random order, made when they are asked for.

    The order depends on the seed alone: it is the same on every rank and whenever it is gone
    through, and it mixes data that came sorted.

    Args:
        examples: of the training split, by number; held-out ones decide nothing about a model.
        collate: rows -> batch.
        training: the size of a batch, and the seed.
    """

    def __init__(
        self,
        examples: Any,
        collate: Callable[[list[Mapping[str, Any]]], Mapping[str, Tensor]],
        training: Training,
    ) -> None:
        """Keep what batches are made of."""
        self.examples = examples
        self.collate = collate
        self.batch_size = training.batch_size
        self.seed = training.seed

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        """Go through all examples once."""
        order = shuffled(range(len(self.examples)), generator_for(self.seed, "calibration"))
        for start in range(0, len(order), self.batch_size):
            yield self.collate([self.examples[i] for i in order[start : start + self.batch_size]])
