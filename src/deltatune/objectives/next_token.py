"""Predict the next token: the loss of language models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from deltatune.parts import declare

__all__ = ["NextToken"]


@declare("objectives", "next_token")
@dataclass(frozen=True, kw_only=True)
class NextToken:
    """Sum of -log p(token | tokens before it) over the supervised tokens.

    Labels stand at the token's own place, as in transformers: the logits at place `i` are compared
    with the label at `i + 1`, and the label of the first token is never used. Rows without a label
    never reach the log-softmax, so a long prompt costs no memory there.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    tasks: ClassVar[tuple[str, ...]] = ("completion", "chat", "text")
    ignored_label: ClassVar[float] = -100

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the number of supervised tokens, `()` int64, of `labels` `(batch, seq)`."""
        count: Tensor = (batch["labels"][..., 1:] != self.ignored_label).sum()
        return count

    def total(self, outputs: Any, batch: Mapping[str, Any], *, progress: float = 0.0) -> Tensor:
        """Return the summed loss, `()` float32, of `logits` `(batch, seq, vocab)`."""
        labels = batch["labels"][..., 1:]  # (batch, seq - 1)
        is_supervised = labels != self.ignored_label
        logits = outputs.logits[..., :-1, :][is_supervised]  # (supervised, vocab)
        return F.cross_entropy(logits.float(), labels[is_supervised], reduction="sum")
