"""Whether a model that is to learn to continue text sees only what comes before."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from deltatune.errors import InputError
from deltatune.seeds import generator_for

__all__ = ["check_causal"]

LENGTH = 8  # the shortest max_length that is allowed
# Rows of one batch differ by rounding only where they do not see the difference.
TOLERANCE = 1e-3


def check_causal(model: nn.Module, name: str) -> None:
    """Refuse an encoder: it sees the tokens that it is to predict, and would only learn to copy.

    Some libraries' classes turn an encoder into a "causal" model that attends to both sides unless
    its configuration says `is_decoder`, and other models have that field without such a meaning. So
    the model is asked: it reads two texts that differ in their last token only.

    Args:
        model: a language model in evaluation mode.
        name: what the user calls it.

    Raises:
        InputError: an earlier token's logits depend on a later token.
    """
    config: Any = model.config
    generator = generator_for(0, "causality probe")
    first = torch.randint(config.vocab_size // 2, config.vocab_size, (LENGTH,), generator=generator)
    second = first.clone()
    second[-1] = first[-1] - config.vocab_size // 4
    pair = torch.stack([first, second]).to(next(model.parameters()).device)
    with torch.no_grad():
        logits = model(input_ids=pair, attention_mask=torch.ones_like(pair)).logits[:, :-1].float()
    if (logits[0] - logits[1]).abs().max() > TOLERANCE * logits.std():
        raise InputError(
            f"model {name!r} is an encoder ({type(model).__name__} that sees later tokens), which "
            f"cannot learn to continue text: take a decoder such as Llama or GPT-2, or give data "
            f"with a label column"
        )
