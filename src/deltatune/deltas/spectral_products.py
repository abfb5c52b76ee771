"""Sums of few vectors of an orthonormal basis, applied to activations or built as a weight.

The change of a weight is dW = scale * Re(C^T S D): S `(p, q)` is zero but for B coefficients. All
ways give the same numbers and differ in what they compute and hold:

- `factored`: activations meet the rows of C and D that have a coefficient;
- `transform`: activations go through fast transforms, whatever B is;
- `sparse`: the weight is built from these rows, `dense`: from all, `fast`: by fast transforms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deltatune.deltas.dropping import keep_mask, kept_share
from deltatune.deltas.spectral_locations import LocationRule
from deltatune.orthonormal import Basis

__all__ = ["SpectralProduct", "exact", "gradients_of", "linear", "wide_dtype"]

CPU_CHUNK = 2**17  # numbers of activations at once: they stay in the cache
ACCELERATOR_CHUNK = 2**25


@dataclass(frozen=True)
class SpectralProduct:
    """What of a product is no trained tensor.

    Args:
        basis: of both axes.
        rule: of locations, with p and q.
        way: `factored`, `transform`, `sparse`, `dense` or `fast`.
        scale: alpha.
        dropout: probability with which an input is dropped in this pass, in [0, 1).
        seed: of the dropped inputs.
    """

    basis: Basis
    rule: LocationRule
    way: str
    scale: float
    dropout: float = 0.0
    seed: int = 0


class _View(Protocol):
    """Some rows of a basis, met from either side."""

    def analysis(self, tokens: Tensor) -> Tensor:
        """`(tokens, n) -> (tokens, k)`."""
        ...

    def synthesis(self, values: Tensor) -> Tensor:
        """`(tokens, k) -> (tokens, n)`, real."""
        ...


class _ByRows:
    def __init__(self, basis: Basis, size: int, indices: Tensor, like: Tensor) -> None:
        self.rows = basis.rows(size, indices, like.dtype)  # (k, n)

    def analysis(self, tokens: Tensor) -> Tensor:
        return tokens.to(self.rows.dtype) @ self.rows.mT

    def synthesis(self, values: Tensor) -> Tensor:
        return (values @ self.rows).real


class _ByTransform:
    def __init__(self, basis: Basis, size: int, indices: Tensor, like: Tensor) -> None:
        self.basis, self.size, self.indices = basis, size, indices

    def analysis(self, tokens: Tensor) -> Tensor:
        return self.basis.analysis_at(tokens, self.indices)

    def synthesis(self, values: Tensor) -> Tensor:
        return self.basis.synthesis_at(values, self.indices, self.size).real


def _view(product: SpectralProduct, size: int, indices: Tensor, like: Tensor) -> _View:
    kind = _ByRows if product.way == "factored" else _ByTransform
    return kind(product.basis, size, indices, like)


def linear(
    inputs: Tensor, coefficients: Tensor, locations: Tensor, product: SpectralProduct
) -> Tensor:
    """Return `inputs @ dW^T`, `(..., q) -> (..., p)`, `factored` or by `transform`, without dW.

    Kept for the backward are `inputs` and what trains; the rest is computed again.
    """
    output: Tensor = _Linear.apply(inputs, coefficients, locations, product)  # type: ignore[no-untyped-call]
    return output


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """Return the precision in which sums are formed, at least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _chunks(tokens: Tensor, features: int) -> Iterator[slice]:
    room = CPU_CHUNK if tokens.device.type == "cpu" else ACCELERATOR_CHUNK
    step = max(1, room // features)
    return (slice(start, start + step) for start in range(0, tokens.shape[0], step))


def _mask(inputs: Tensor, product: SpectralProduct) -> Tensor | None:
    """Return what inputs are multiplied with, `(tokens, q)`, or None."""
    if not product.dropout:
        return None
    mask = keep_mask(inputs, product.seed, product.dropout) / kept_share(product.dropout)
    return mask.flatten(0, -2)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        coefficients: Tensor,
        locations: Tensor,
        product: SpectralProduct,
    ) -> Tensor:
        ctx.save_for_backward(inputs, coefficients, locations)
        ctx.product = product
        with exact(inputs):
            return _forward(inputs, coefficients, locations, product)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, coefficients, locations = ctx.saved_tensors
        with exact(inputs):
            return _backward(
                gradient, inputs, coefficients, locations, ctx.product, ctx.needs_input_grad
            )


def exact(inputs: Tensor) -> AbstractContextManager[Any]:
    """Return a block without autocast, which would round the steps of a product one by one."""
    return torch.autocast(inputs.device.type, enabled=False)


def _forward(
    inputs: Tensor, coefficients: Tensor, locations: Tensor, product: SpectralProduct
) -> Tensor:
    rule, wide = product.rule, wide_dtype(inputs)
    rows, columns = rule.cells(locations)
    like = coefficients.to(wide)
    read = _view(product, rule.columns, columns, like)
    written = _view(product, rule.rows, rows, like)
    tokens, mask = inputs.flatten(0, -2), _mask(inputs, product)
    output = tokens.new_empty(tokens.shape[0], rule.rows)
    scaled = product.scale * like
    for chunk in _chunks(tokens, max(rule.rows, rule.columns, rows.numel())):
        given = tokens[chunk] if mask is None else tokens[chunk] * mask[chunk]
        output[chunk] = written.synthesis(read.analysis(given.to(wide)) * scaled)
    return output.view(*inputs.shape[:-1], rule.rows)


def _backward(
    gradient: Tensor,
    inputs: Tensor,
    coefficients: Tensor,
    locations: Tensor,
    product: SpectralProduct,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    backward = _BackwardPass(product, coefficients.to(wide_dtype(inputs)), locations, needed)
    tokens, mask = inputs.flatten(0, -2), _mask(inputs, product)
    gradients = gradient.flatten(0, -2)
    of_inputs = torch.empty_like(tokens) if needed[0] else None
    for chunk in _chunks(tokens, backward.features):
        given = tokens[chunk] if mask is None else tokens[chunk] * mask[chunk]
        of_given = backward.chunk(given, gradients[chunk])
        if of_inputs is not None and of_given is not None:
            of_inputs[chunk] = of_given if mask is None else of_given * mask[chunk]
    shaped = None if of_inputs is None else of_inputs.view(inputs.shape)
    return (shaped, *gradients_of(product, *backward.scores(), coefficients, locations), None)


class _BackwardPass:
    """Sums over tokens, chunk by chunk, of the scores of cells."""

    def __init__(
        self,
        product: SpectralProduct,
        coefficients: Tensor,
        locations: Tensor,
        needed: tuple[bool, ...],
    ) -> None:
        rule = product.rule
        cells = rule.cells(locations)
        around = rule.neighbours(cells) if needed[2] else ()
        # Own cells first, then those before, then those after.
        self.rows, self.columns = torch.cat([cells, *around], dim=1)
        self.number = cells.shape[1]
        self.features = max(rule.rows, rule.columns, self.rows.numel())
        self.scaled = product.scale * coefficients
        self.needs_inputs, self.needs_scores = needed[0], needed[1] or needed[2]
        self.written = _view(product, rule.rows, self.rows, coefficients)
        self.read = _view(product, rule.columns, self.columns, coefficients)
        self.read_own = (
            _view(product, rule.columns, cells[1], coefficients) if around else self.read
        )
        self.product = product
        self.sums = coefficients.new_zeros(2, self.rows.numel())

    def chunk(self, tokens: Tensor, gradients: Tensor) -> Tensor | None:
        """Add a chunk's scores; return its inputs' gradients, `(tokens, q)`, where needed."""
        own = slice(self.number)
        of_rows = self.written.analysis(gradients.to(self.scaled.dtype))  # (tokens, k)
        if self.needs_scores:
            of_columns = self.read.analysis(tokens.to(self.scaled.dtype))
            self.sums[0] += _summed(of_rows, of_columns[:, own])
            if self.rows.numel() > self.number:
                self.sums[1] += _summed(of_columns, of_rows[:, own])
        if not self.needs_inputs:
            return None
        return self.read_own.synthesis(of_rows[:, own] * self.scaled)

    def scores(self) -> tuple[Tensor, Tensor | None]:
        """Return Z at the cells, `(B,)`, and its slope, `(2, B)`, where locations train."""
        sums = self.product.scale * self.sums
        if sums.shape[1] == self.number:
            return sums[0], None
        own, before, after = sums.split(self.number, dim=1)
        return own[0], after - before


def _summed(groups: Tensor, own: Tensor) -> Tensor:
    """Return the sums over tokens of each group of columns times the own ones."""
    grouped = groups.unflatten(-1, (-1, own.shape[-1]))
    products: Tensor = grouped * own[:, None]
    return products.real.sum(0).flatten()


def gradients_of(
    product: SpectralProduct,
    own: Tensor,
    slope: Tensor | None,
    coefficients: Tensor,
    locations: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of coefficients and locations.

    Args:
        product: what they make.
        own: Z at the cells, `(B,)`.
        slope: of Z, see `LocationRule.gradient`; None where locations do not train.
        coefficients: `(B,)`.
        locations: `(2, B)`.
    """
    of_locations = None
    if slope is not None:
        found = product.rule.gradient(slope, coefficients.to(slope.dtype), locations)
        of_locations = found.to(locations.dtype)
    return own.to(coefficients.dtype), of_locations
