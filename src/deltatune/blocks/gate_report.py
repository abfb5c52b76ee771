"""Which tokens trust which memory: the gates of a siamese model on given inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.blocks.block import reading
from deltatune.blocks.siamese import SiameseBlock
from deltatune.errors import InputError
from deltatune.training_mode import evaluating

__all__ = ["gate_report"]


def gate_report(
    model: nn.Module, batch: Mapping[str, Tensor], *, tokenizer: Any = None
) -> dict[str, Any]:
    """Return how far each token, and each dimension, leans on the frozen memory.

    Args:
        model: with a siamese block.
        batch: inputs of the model, `input_ids` `(batch, seq)` among them; with `labels` the query
            ends where they begin, as in training.
        tokenizer: turns ids into the texts of the report; without one they stay numbers.

    Returns:
        `mean`; `frozen_ratio`, the share of gates above 1/2; `by_dimension`, the mean of each of
        the d_model; and `tokens`, for each sequence a list of `token`, `mean` and `frozen_ratio`,
        padding left out.

    Raises:
        InputError: a model without the block.
    """
    named = int if tokenizer is None else tokenizer.decode
    block = next((one for one in model.modules() if isinstance(one, SiameseBlock)), None)
    if block is None:
        raise InputError("the model has no siamese block: give one that the recipe imsm has made")
    ids = batch["input_ids"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with evaluating(model), reading(model, batch), block.watching() as gates:
        model(**inputs)
    (gate,) = gates
    kept = batch.get("attention_mask", torch.ones_like(ids)).bool()
    chosen = gate[kept]  # (tokens, d_model)
    means, leans = gate.mean(-1), (gate > 0.5).float().mean(-1)
    return {
        "mean": float(chosen.mean()),
        "frozen_ratio": float((chosen > 0.5).float().mean()),
        "by_dimension": chosen.mean(0).tolist(),
        "tokens": [
            [
                {
                    "token": named(ids[row, i]),
                    "mean": float(means[row, i]),
                    "frozen_ratio": float(leans[row, i]),
                }
                for i in kept[row].nonzero().flatten().tolist()
            ]
            for row in range(len(ids))
        ],
    }
