"""Two ways through a model, compared at the start of a run on a few random tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deltatune.bridges.supervised_head import SupervisedHead, bodies, causal_model
from deltatune.objectives.objective import RowObjective
from deltatune.seeds import generator_for
from deltatune.training_mode import evaluating

__all__ = ["REFUSALS", "difference", "random_documents", "supervised_head"]

# What a model raises that cannot take a way: an argument, a shape or an output that it lacks.
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)
# In units of the spread of the logits; a wrong way is off by about 1, rounding by far less.
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-3}
COARSE = 5e-2  # bfloat16 keeps three digits, and products of other shapes round otherwise
LENGTHS = (9, 13, 6)


def random_documents(model: nn.Module, lengths: Sequence[int] = LENGTHS) -> list[Tensor]:
    """Return random token ids, each `(1, length)`, on the model's device."""
    vocabulary = int(causal_model(model).config.get_text_config().vocab_size)
    generator = generator_for(0, "start checks")
    on = next(model.parameters()).device
    # Low ids are where special tokens live, which some models treat apart.
    return [
        torch.randint(vocabulary // 2, vocabulary, (1, length), generator=generator).to(on)
        for length in lengths
    ]


def difference(logits: Tensor, plain: Tensor) -> str:
    """Return how far two results are apart if that is more than rounding explains, else ""."""
    apart = float((logits.float() - plain.float()).abs().max())
    spread = float(plain.float().std())
    coarse = float(plain.float().abs().max()) * 4 * torch.finfo(plain.dtype).eps
    if apart <= TOLERANCES.get(plain.dtype, COARSE) * spread + coarse:
        return ""
    return f"its logits differ by {apart:.2g} at a spread of {spread:.2g}"


def supervised_head(model: nn.Module, objective: RowObjective) -> tuple[SupervisedHead | None, str]:
    """Return the thrifty way through the output head if it gives the plain way's logits.

    Args:
        model: as it will train.
        objective: reads rows.

    Returns:
        The way and "", or None and why not.
    """
    reason = "it is no causal language model of transformers"
    try:
        candidates = bodies(causal_model(model))
    except TypeError:
        return None, reason
    for body in candidates:
        head = SupervisedHead(model, body)
        try:
            reason = _head_difference(model, head)
        except REFUSALS as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        if not reason:
            return head, ""
    return None, reason


def _head_difference(model: nn.Module, head: SupervisedHead) -> str:
    document = random_documents(model)[1]
    places = torch.zeros_like(document, dtype=torch.bool)
    places[:, 3::2] = True
    inputs = {"input_ids": document, "attention_mask": torch.ones_like(document)}
    with evaluating(model):
        plain = model(**inputs).logits[places]  # (rows, vocab)
        return difference(head.logits(model, inputs, places), plain)
