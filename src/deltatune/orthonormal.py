"""Orthonormal bases of vectors: single rows, and all inner products at once by a fast transform.

A basis of size n is a unitary matrix M `(n, n)` whose rows are its vectors. What is needed of it
are a few rows, the inner products `x M^T` (analysis) and the sums `h M` (synthesis); the matrix
itself is formed only where nothing faster is known.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from deltatune.errors import InputError
from deltatune.seeds import generator_for

__all__ = ["BASES", "Basis", "Cosine", "Fourier", "Hadamard", "Rotation"]


class Basis(Protocol):
    """What every basis can do.

    Attributes:
        is_complex: whether rows are complex; sums of them are then read as real parts.
    """

    is_complex: ClassVar[bool]

    def check(self, size: int, what: str) -> None:
        """Refuse a size for which there is no such basis.

        Raises:
            InputError: with `what` in the message.
        """
        ...

    def rows(self, size: int, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return chosen rows, `(k, size)`, of indices `(k,)` int64."""
        ...

    def analysis(self, vectors: Tensor) -> Tensor:
        """Return the inner products with all rows, `(..., n) -> (..., n)`."""
        ...

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Return the sums of rows, `(..., n) -> (..., n)`."""
        ...


class Cosine:
    """The orthonormal discrete cosine transform of type II.

    M[k, j] = sqrt(2 / n) c_k cos(pi (2 j + 1) k / (2 n)), c_0 = 1 / sqrt(2) and else 1. The whole
    transform goes through a real Fourier transform of the same length (Makhoul 1980), for odd sizes
    too.
    """

    is_complex: ClassVar[bool] = False

    def check(self, size: int, what: str) -> None:
        """Accept every size."""

    def rows(self, size: int, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return chosen rows; see `Basis`."""
        odd = 2 * torch.arange(size, device=indices.device) + 1
        # Whole turns are taken off in integers: an argument of pi n has no digits left in float32.
        steps = (indices[:, None] * odd) % (4 * size)
        rows = torch.cos(steps.to(dtype) * (math.pi / (2 * size))) * math.sqrt(2 / size)
        return torch.where(indices[:, None] == 0, math.sqrt(1 / size), rows)

    def analysis(self, vectors: Tensor) -> Tensor:
        """Return the transform along the last axis; see `Basis`."""
        size = vectors.shape[-1]
        order, turns, _ = _cosine_tables(size, vectors.dtype, vectors.device)
        turned = torch.fft.rfft(vectors.index_select(-1, order)) * turns
        upper = turned.imag[..., 1 : size - size // 2].flip(-1)
        return torch.cat([turned.real, -upper], dim=-1)

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Return the inverse transform along the last axis; see `Basis`."""
        size = coefficients.shape[-1]
        _, turns, back = _cosine_tables(size, coefficients.dtype, coefficients.device)
        half = size // 2 + 1
        # The partner of k is n - k; that of 0 is none.
        imaginary = torch.zeros_like(coefficients[..., :half])
        imaginary[..., 1:] = -coefficients[..., size - half + 1 :].flip(-1)
        spectrum = torch.complex(coefficients[..., :half].contiguous(), imaginary) / turns
        found: Tensor = torch.fft.irfft(spectrum, n=size)
        return found.index_select(-1, back)


@functools.lru_cache(maxsize=64)
def _cosine_tables(
    size: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the order of the inputs, the turns of the spectrum, and the order back."""
    order = torch.cat([torch.arange(0, size, 2), torch.arange(1, size, 2).flip(0)])
    angles = torch.arange(size // 2 + 1, dtype=torch.float64) * (math.pi / (2 * size))
    lengths = torch.full_like(angles, math.sqrt(2 / size))
    lengths[0] = math.sqrt(1 / size)
    turns = torch.polar(lengths, -angles)
    wide = torch.complex128 if dtype == torch.float64 else torch.complex64
    return order.to(device), turns.to(device, wide), order.argsort().to(device)


class Fourier:
    """The unitary discrete Fourier transform: M[k, j] = exp(2 pi i j k / n) / sqrt(n)."""

    is_complex: ClassVar[bool] = True

    def check(self, size: int, what: str) -> None:
        """Accept every size."""

    def rows(self, size: int, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return chosen rows, complex; see `Basis`."""
        steps = (indices[:, None] * torch.arange(size, device=indices.device)) % size
        angles = steps.to(dtype) * (2 * math.pi / size)
        return torch.polar(torch.full_like(angles, math.sqrt(1 / size)), angles)

    def analysis(self, vectors: Tensor) -> Tensor:
        """Return the inner products, without conjugation; see `Basis`."""
        found: Tensor = torch.fft.ifft(vectors, norm="ortho")
        return found

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Return the sums of rows; M is symmetric, so this is `analysis`."""
        return self.analysis(coefficients)


class Hadamard:
    """The Walsh-Hadamard basis in natural order: entries are +-1 / sqrt(n).

    A size is a power of 2 times 1, 12, 20 or 28, the orders that Paley's constructions give for the
    primes 11, 19 and 13.
    """

    is_complex: ClassVar[bool] = False

    def check(self, size: int, what: str) -> None:
        """Refuse a size that is no power of 2 times a known order.

        Raises:
            InputError: with the nearest sizes below and above.
        """
        if _hadamard_order(size):
            return
        near = [
            next(n for n in sizes if _hadamard_order(n))
            for sizes in (range(size, 0, -1), range(size, 2 * size + 1))
        ]
        raise InputError(
            f"{what} has {size} features, and a Hadamard basis needs a power of 2 times 1, 12, 20 "
            f"or 28, such as {near[0]} or {near[1]}: choose basis cosine"
        )

    def rows(self, size: int, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return chosen rows; see `Basis`."""
        core = _hadamard_core(_hadamard_order(size)).to(indices.device, dtype)
        power = size // core.shape[0]
        columns = torch.arange(power, device=indices.device)
        common = (indices % power)[:, None] & columns
        for shift in (32, 16, 8, 4, 2, 1):  # the parity of the common bits
            common = common ^ (common >> shift)
        signs = 1 - 2 * (common & 1).to(dtype)  # (k, power)
        chosen = core[indices // power]  # (k, order)
        return (chosen[:, :, None] * signs[:, None, :]).flatten(1) / math.sqrt(size)

    def analysis(self, vectors: Tensor) -> Tensor:
        """Return the transform along the last axis; see `Basis`."""
        return self._transformed(vectors, transpose=False)

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Return the inverse transform along the last axis; see `Basis`."""
        return self._transformed(coefficients, transpose=True)

    def _transformed(self, vectors: Tensor, *, transpose: bool) -> Tensor:
        size = vectors.shape[-1]
        core = _hadamard_core(_hadamard_order(size)).to(vectors)
        order = core.shape[0]
        turned = vectors.unflatten(-1, (order, size // order))
        turned = torch.einsum("kj,...jn->...kn", core.T if transpose else core, turned)
        turned = turned.flatten(-2)
        width = 1
        while width < size // order:
            pairs = turned.unflatten(-1, (-1, 2, width))
            first, second = pairs[..., 0, :], pairs[..., 1, :]
            turned = torch.stack([first + second, first - second], dim=-2).flatten(-3)
            width *= 2
        return turned / math.sqrt(size)


def _hadamard_order(size: int) -> int:
    """Return the order of the core, or 0 where none fits."""
    for order in (1, 12, 20, 28):
        power, rest = divmod(size, order)
        if not rest and power > 0 and power & (power - 1) == 0:
            return order
    return 0


@functools.lru_cache(maxsize=4)
def _hadamard_core(order: int) -> Tensor:
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


class Rotation:
    """A random rotation, the same on every machine: uniform among orthogonal matrices.

    The whole matrix is formed, once for each size.
    """

    is_complex: ClassVar[bool] = False

    def check(self, size: int, what: str) -> None:
        """Accept every size."""

    def rows(self, size: int, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return chosen rows; see `Basis`."""
        return _rotation(size, dtype, indices.device)[indices]

    def analysis(self, vectors: Tensor) -> Tensor:
        """Return the rotated vectors; see `Basis`."""
        return vectors @ _rotation(vectors.shape[-1], vectors.dtype, vectors.device).T

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Return the vectors rotated back; see `Basis`."""
        size = coefficients.shape[-1]
        return coefficients @ _rotation(size, coefficients.dtype, coefficients.device)


@functools.lru_cache(maxsize=16)
def _rotation(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = generator_for(0, f"rotation of {size}")
    drawn = torch.randn(size, size, generator=generator, dtype=torch.float64)
    rotation, triangle = torch.linalg.qr(drawn)
    unique: Tensor = rotation * triangle.diagonal().sign()
    return unique.to(device, dtype)


BASES: Mapping[str, Basis] = {
    "cosine": Cosine(),
    "fourier": Fourier(),
    "hadamard": Hadamard(),
    "rotation": Rotation(),
}
