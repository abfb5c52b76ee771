"""Encoded examples in, one padded batch of tensors out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from deltatune.data.tokens import IGNORED

__all__ = ["Collator"]


class Collator:
    """Pads on the right to the longest example of a batch.

    The attention mask and the labels come from the lengths, never from the pad id: a tokenizer
    without a pad token pads with its end token, and the real end tokens still carry loss.

    Args:
        tokenizer: names the pad token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Keep the two pad ids, not the tokenizer: workers receive a copy of this object."""
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        # any id will do where the mask is 0; the first is what the model knows
        self.pad_token_id = int(next(token for token in candidates if token is not None))
        self.pad_token_type_id = int(getattr(tokenizer, "pad_token_type_id", 0) or 0)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Pad one batch.

        Args:
            features: rows of `Encoded.splits`; fields other than theirs are ignored.

        Returns:
            `input_ids`, `attention_mask` and, where the rows have them, `token_type_ids`, all
            (batch, seq) int64; `labels` (batch, seq) int64 with -100 where no loss is, or (batch,)
            int64 for classes, or (batch,) float32 for regression.
        """
        rows = [list(feature["input_ids"]) for feature in features]
        batch = {
            "input_ids": _padded(rows, self.pad_token_id),
            "attention_mask": _padded([[1] * len(row) for row in rows], 0),
        }
        if "token_type_ids" in features[0]:
            kinds = [list(feature["token_type_ids"]) for feature in features]
            batch["token_type_ids"] = _padded(kinds, self.pad_token_type_id)
        if "labels" in features[0]:
            batch["labels"] = _labels([feature["labels"] for feature in features])
        return batch

    def lengths(self, examples: Any) -> list[int]:
        """Return the tokens of every example of a split."""
        return [len(ids) for ids in examples["input_ids"]]

    def tokens_in(self, batch: Mapping[str, Tensor]) -> tuple[int, int]:
        """Return the tokens of a batch without and with padding."""
        return int(batch["attention_mask"].sum()), batch["input_ids"].numel()


def _padded(rows: Sequence[list[int]], filling: int) -> Tensor:
    length = max(map(len, rows))
    padded = [row + [filling] * (length - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.int64)  # (batch, seq)


def _labels(labels: Sequence[Any]) -> Tensor:
    if isinstance(labels[0], float):
        return torch.tensor(labels, dtype=torch.float32)  # (batch,)
    if isinstance(labels[0], int):
        return torch.tensor(labels, dtype=torch.int64)  # (batch,)
    return _padded([list(row) for row in labels], IGNORED)
