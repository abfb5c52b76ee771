"""The order of the training examples: drawn from seed and epoch, alike in length within a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from deltatune.seeds import generator_for, shuffled

__all__ = ["DataOrder"]

WINDOW_BATCHES = 50  # batches whose examples are sorted together; more would be less random


class DataOrder(Sampler[int]):
    """A random order that depends on nothing but seed and epoch, so that a resumed run has it too.

    Args:
        lengths: of the examples, in tokens.
        batch_size: examples per micro-batch.
        seed: of the run.
        groups_by_length: sort windows of `WINDOW_BATCHES` random batches by length, so that little
            is padded, and shuffle the batches of a window.
    """

    def __init__(
        self, lengths: Sequence[int], *, batch_size: int, seed: int, groups_by_length: bool
    ) -> None:
        """Start at epoch 0."""
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        # Sorting examples of one length, such as images, would only undo the shuffling.
        self.groups_by_length = groups_by_length and len(set(lengths)) > 1
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of another epoch, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = generator_for(self.seed, "data order", self.epoch)
        order = shuffled(range(len(self.lengths)), generator)
        if not self.groups_by_length:
            yield from order
            return
        window = WINDOW_BATCHES * self.batch_size
        for start in range(0, len(order), window):
            yield from self._grouped(order[start : start + window], generator)

    def _grouped(self, indices: list[int], generator: torch.Generator) -> Iterator[int]:
        ordered = sorted(indices, key=lambda i: (self.lengths[i], i))
        size = self.batch_size
        # A short batch stays last: in the middle it would shift all that follow it.
        whole = len(ordered) // size
        for batch in shuffled(range(whole), generator):
            yield from ordered[batch * size : (batch + 1) * size]
        yield from ordered[whole * size :]
