"""Which experts a token goes to, and how even the load is: softmax routers and their losses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Routes", "load_balance", "top_k_routes", "top_p_routes"]


class Routes(NamedTuple):
    """Pairs of tokens and experts, sorted by expert.

    Args:
        tokens: `(pairs,)` int64.
        weights: `(pairs,)`, of the expert's output.
        counts: pairs of each expert, in order.
        choices: `(tokens, choices)` int64, a token's experts by falling probability; -1 for none.
    """

    tokens: Tensor
    weights: Tensor
    counts: list[int]
    choices: Tensor


def top_k_routes(probabilities: Tensor, number: int) -> Routes:
    """Send every token to its most probable experts, with weights that add up to 1.

    With one of several experts a weight of 1 would cut the router off from the loss, so there it
    is the probability itself.

    Args:
        probabilities: `(tokens, experts)`.
        number: of experts of a token.
    """
    kept, choices = probabilities.topk(number, dim=-1)
    is_single = number == 1 and probabilities.shape[1] > 1
    weights = kept if is_single else kept / kept.sum(-1, keepdim=True)
    return _routes(weights, choices, probabilities.shape[1])


def top_p_routes(probabilities: Tensor, threshold: float, *, renormalise: bool) -> Routes:
    """Send every token to as few experts as together reach a probability.

    Args:
        probabilities: `(tokens, experts)`.
        threshold: in (0, 1]; the expert that crosses it is among them.
        renormalise: whether weights add up to 1.
    """
    falling, choices = probabilities.sort(dim=-1, descending=True)
    is_kept = falling.cumsum(-1) - falling < threshold
    kept = falling * is_kept
    weights = kept / kept.sum(-1, keepdim=True) if renormalise else kept
    return _routes(weights, choices.masked_fill(~is_kept, -1), probabilities.shape[1])


def _routes(weights: Tensor, choices: Tensor, experts: int) -> Routes:
    flat = choices.flatten()
    order = flat.argsort(stable=True)
    order = order[flat[order] >= 0]
    counts = torch.bincount(flat[order], minlength=experts)
    return Routes(
        tokens=order // choices.shape[1],
        weights=weights.flatten()[order],
        counts=counts.tolist(),
        choices=choices,
    )


def load_balance(probabilities: Tensor, choices: Tensor, kept: Tensor, *, form: str) -> Tensor:
    """Return `experts * sum of shares times probabilities`, `()`; only the latter have gradients.

    Args:
        probabilities: `(tokens, experts)`.
        choices: `(tokens, choices)`; -1 for none.
        kept: `(tokens,)` bool, without padding.
        form: `top_k` counts all choices of a token (the number of choices when balanced), `switch`
            the first alone (1 when balanced).
    """
    experts = probabilities.shape[1]
    probabilities, choices = probabilities[kept], choices[kept]
    counted = choices[:, :1] if form == "switch" else choices
    shares = torch.bincount(counted[counted >= 0].flatten(), minlength=experts).to(probabilities)
    return experts * (shares / max(len(choices), 1) * probabilities.mean(0)).sum()
