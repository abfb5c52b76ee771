"""The weight that a few vectors of an orthonormal basis sum up to, built in three ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deltatune.deltas.spectral_products import SpectralProduct, exact, gradients_of, wide_dtype

__all__ = ["weight"]

COEFFICIENTS_AT_ONCE = 512  # rows of a weight's size


def weight(coefficients: Tensor, locations: Tensor, product: SpectralProduct) -> Tensor:
    """Return dW, `(p, q)`, differentiable in both; `sparse`, `dense` or `fast`."""
    built: Tensor = _Weight.apply(coefficients, locations, product)  # type: ignore[no-untyped-call]
    return built


class _Weight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, coefficients: Tensor, locations: Tensor, product: SpectralProduct
    ) -> Tensor:
        ctx.save_for_backward(coefficients, locations)
        ctx.product = product
        with exact(coefficients):
            values = product.scale * coefficients.to(wide_dtype(coefficients))
            cells = product.rule.cells(locations)
            if product.way == "sparse":
                return _built_from_rows(product, values, cells)
            return _synthesised(product, values, cells)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        coefficients, locations = ctx.saved_tensors
        with exact(gradient):
            own, slope = _scores(gradient, locations, ctx.product, around=ctx.needs_input_grad[1])
            found = gradients_of(ctx.product, own, slope, coefficients, locations)
        return (*found, None)


def _scores(
    gradient: Tensor, locations: Tensor, product: SpectralProduct, *, around: bool
) -> tuple[Tensor, Tensor | None]:
    cells = product.rule.cells(locations)
    asked = [cells]
    if around:
        for near in product.rule.neighbours(cells):
            asked += [torch.stack([near[0], cells[1]]), torch.stack([cells[0], near[1]])]
    score = _scores_from_rows if product.way == "sparse" else _analysed
    found = product.scale * score(product, gradient, torch.cat(asked, dim=1))
    own, *others = found.split(cells.shape[1])
    if not around:
        return own, None
    return own, torch.stack(others[2:]) - torch.stack(others[:2])


def _built_from_rows(product: SpectralProduct, values: Tensor, cells: Tensor) -> Tensor:
    rule, basis = product.rule, product.basis
    built = values.new_zeros(rule.rows, rule.columns)
    for piece in range(0, values.numel(), COEFFICIENTS_AT_ONCE):
        chosen = slice(piece, piece + COEFFICIENTS_AT_ONCE)
        up = basis.rows(rule.rows, cells[0, chosen], values.dtype)  # (k, p)
        down = basis.rows(rule.columns, cells[1, chosen], values.dtype)  # (k, q)
        built += ((up * values[chosen, None]).mT @ down).real
    return built


def _scores_from_rows(product: SpectralProduct, gradient: Tensor, cells: Tensor) -> Tensor:
    rule, basis = product.rule, product.basis
    scores = []
    for piece in cells.split(COEFFICIENTS_AT_ONCE, dim=1):
        up = basis.rows(rule.rows, piece[0], gradient.dtype)
        down = basis.rows(rule.columns, piece[1], gradient.dtype)
        scores.append(((up @ gradient.to(up.dtype)) * down).real.sum(1))
    return torch.cat(scores)


def _synthesised(product: SpectralProduct, values: Tensor, cells: Tensor) -> Tensor:
    rule = product.rule
    flat = cells[0] * rule.columns + cells[1]
    spectrum = values.new_zeros(rule.rows * rule.columns).index_add_(0, flat, values)
    spectrum = spectrum.view(rule.rows, rule.columns)
    if product.way == "dense":
        up, down = _matrices(product, values)
        return (up.mT @ (spectrum.to(down.dtype) @ down)).real
    return product.basis.matrix(spectrum).real.contiguous()


def _analysed(product: SpectralProduct, gradient: Tensor, cells: Tensor) -> Tensor:
    if product.way == "dense":
        up, down = _matrices(product, gradient)
        spectrum = up @ gradient.to(up.dtype) @ down.mT
    else:
        spectrum = product.basis.spectrum(gradient)
    return spectrum.real[cells[0], cells[1]]


def _matrices(product: SpectralProduct, like: Tensor) -> tuple[Tensor, Tensor]:
    rule, basis = product.rule, product.basis
    up, down = (
        basis.rows(size, torch.arange(size, device=like.device), like.dtype)
        for size in (rule.rows, rule.columns)
    )
    return up, down
