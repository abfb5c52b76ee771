"""Hadamard matrices of small orders; larger ones are Kronecker products with powers of 2."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

__all__ = ["hadamard_core", "hadamard_order"]


def hadamard_order(size: int) -> int:
    """Return the order of the small matrix in a Hadamard matrix of a size, or 0 where none fits."""
    for order in (1, 12, 20, 28):
        power, rest = divmod(size, order)
        if not rest and power > 0 and power & (power - 1) == 0:
            return order
    return 0


@functools.lru_cache(maxsize=4)
def hadamard_core(order: int) -> Tensor:
    """Return a Hadamard matrix of small order, `(order, order)` of +-1, float64."""
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    prime = {12: 11, 20: 19, 28: 13}[order]
    squares = {(i * i) % prime for i in range(1, prime)}
    character = [0.0] + [1.0 if i in squares else -1.0 for i in range(1, prime)]
    residues = torch.tensor(
        [[character[(i - j) % prime] for j in range(prime)] for i in range(prime)],
        dtype=torch.float64,
    )
    bordered = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    bordered[1:, 1:] = residues
    bordered[0, 1:] = 1
    identity = torch.eye(prime + 1, dtype=torch.float64)
    if prime % 4 == 3:  # Paley's first construction
        bordered[1:, 0] = -1
        return identity + bordered
    bordered[1:, 0] = 1  # his second
    first = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    second = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(bordered, first) + torch.kron(identity, second)
