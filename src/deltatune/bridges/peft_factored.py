"""A frozen linear layer and the thin factors of its deltas, as one step of autograd."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from deltatune.bridges.peft_cut import Cut
from deltatune.deltas.delta import ActingFactors
from deltatune.deltas.dropping import keep_mask, kept_share, new_seed

__all__ = ["Term", "factored_linear", "is_plain"]


class Term(NamedTuple):
    """The change of one place, on the columns of its cut, added to its rows.

    Args:
        cut: of the layer's weight.
        factors: `up (rows, rank)` and `down (rank, columns)`, their scale and dropout.
    """

    cut: Cut
    factors: ActingFactors


class _Way(NamedTuple):
    """What of a term is no tensor: where it reads and writes, its scale, which inputs it drops."""

    cut: Cut
    scale: float
    dropout: float
    seed: int

    @classmethod
    def of(cls, term: Term) -> _Way:
        """Draw a seed where inputs are dropped; what is kept is scaled up for it."""
        dropout, scale = term.factors.dropout, term.factors.scale
        if not dropout:
            return cls(term.cut, scale, 0.0, 0)
        return cls(term.cut, scale / kept_share(dropout), dropout, new_seed())

    def mask(self, taken: Tensor) -> Tensor | None:
        """Return the mask of `(tokens, columns)`, the same each time, or None."""
        return keep_mask(taken, self.seed, self.dropout) if self.dropout else None


def is_plain(layer: nn.Module) -> bool:
    """Tell whether a layer is nothing but a frozen product, which may be taken over.

    Hooks, replaced forwards (offloading) and quantised or sharded weights must run as they are.
    """
    if type(layer) not in (nn.Linear, Conv1D) or "forward" in vars(layer):
        return False
    hooks = (
        layer._forward_hooks,
        layer._forward_pre_hooks,
        layer._backward_hooks,
        layer._backward_pre_hooks,
    )
    return not any(hooks) and all(
        type(tensor) is nn.Parameter and not tensor.requires_grad for tensor in layer.parameters()
    )


def factored_linear(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, terms: Sequence[Term]
) -> Tensor:
    """Return `linear(inputs, weight, bias)` with all terms added, `(..., in) -> (..., out)`.

    The thin products are accumulated into the output, and their input gradients into the base's,
    by the matrix product itself: no change is formed beside them, and no pass adds it. Kept for
    the backward are `inputs` and one `(tokens, rank)` for each term; masks come from their seeds.

    Args:
        inputs: `(..., in)`, of the dtype of `weight`; also a single `(in,)`.
        weight: `(out, in)`, frozen.
        bias: `(out,)`, frozen, or None.
        terms: at least one; gradients reach their factors.
    """
    if inputs.ndim == 1:
        return factored_linear(inputs[None], weight, bias, terms)[0]
    ways = [_Way.of(term) for term in terms]
    factors = [
        factor.to(inputs.dtype) for term in terms for factor in (term.factors.up, term.factors.down)
    ]
    output: Tensor = _FactoredLinear.apply(inputs, weight, bias, ways, *factors)  # type: ignore[no-untyped-call]
    return output


def _pairs(flat: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


class _FactoredLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ways: Sequence[_Way],
        *factors: Tensor,
    ) -> Tensor:
        tokens = inputs.flatten(0, -2)  # (tokens, in)
        output = F.linear(tokens, weight, bias)  # (tokens, out)
        hiddens = []
        for way, (up, down) in zip(ways, _pairs(factors), strict=True):
            hidden = _hidden(way, way.cut.columns.take(tokens, -1), down)
            way.cut.rows.add_product_(output, hidden, up.T)
            hiddens.append(hidden)
        ctx.ways = ways
        ctx.save_for_backward(inputs, weight, *factors, *hiddens)
        return output.view(*inputs.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        inputs, weight, *rest = ctx.saved_tensors
        ways: Sequence[_Way] = ctx.ways
        factors, hiddens = rest[: 2 * len(ways)], rest[2 * len(ways) :]
        tokens, gradient = inputs.flatten(0, -2), gradient.flatten(0, -2)  # (tokens, in or out)
        of_inputs = gradient @ weight if ctx.needs_input_grad[0] else None
        of_factors: list[Tensor] = []
        for way, (up, down), hidden in zip(ways, _pairs(factors), hiddens, strict=True):
            of_factors += _backward_of_term(way, up, down, hidden, tokens, gradient, of_inputs)
        shaped = None if of_inputs is None else of_inputs.view(inputs.shape)
        return (shaped, None, None, None, *of_factors)


def _backward_of_term(
    way: _Way,
    up: Tensor,
    down: Tensor,
    hidden: Tensor,
    tokens: Tensor,
    gradient: Tensor,
    of_inputs: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `up` and `down`, and add the inputs' to `of_inputs` in place."""
    own = way.cut.rows.take(gradient, -1)  # (tokens, rows)
    of_hidden = way.scale * (own @ up)  # (tokens, rank)
    taken = way.cut.columns.take(tokens, -1)  # (tokens, columns)
    if torch.is_grad_enabled():
        # Second derivatives: what the forward kept is a constant to autograd.
        hidden = _hidden(way, taken, down)
    mask = way.mask(taken)
    if of_inputs is not None:
        way.cut.columns.add_product_(of_inputs, of_hidden, down, mask)
    dropped = taken if mask is None else taken * mask
    return own.T @ hidden, of_hidden.T @ dropped


def _hidden(way: _Way, taken: Tensor, down: Tensor) -> Tensor:
    """Return what `up` acts on, `(tokens, rank)`, of inputs `(tokens, columns)`."""
    mask = way.mask(taken)
    dropped = taken if mask is None else taken * mask
    return way.scale * (dropped @ down.T)
