"""Orthonormal bases of vectors: single rows, and all inner products at once by a fast transform.

A basis of size n is a unitary matrix M `(n, n)` whose rows are its vectors. What is needed of it
are a few rows, the inner products `x M^T` (analysis) and the sums `h M` (synthesis); the matrix
itself is formed only where nothing faster is known.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from deltatune.errors import InputError
from deltatune.hadamard import hadamard_core, hadamard_order
from deltatune.seeds import generator_for

__all__ = ["BASES", "Basis", "Cosine", "Fourier", "Hadamard", "ImaginaryFourier", "Rotation"]

LARGEST_ROTATION = 16_384
EIGHTH = complex(math.sqrt(0.5), math.sqrt(0.5))


class Basis(ABC):
    """What every basis can do.

    Attributes:
        is_complex: whether rows are complex; sums of them are then read as real parts.
        has_fast_transform: whether a transform costs about as much as reading the numbers; else it
            is a product with a whole square matrix.
    """

    is_complex: ClassVar[bool] = False
    has_fast_transform: ClassVar[bool] = True

    def check(self, size: int, what: str) -> None:  # noqa: B027 - most refuse none
        """Refuse a size for which there is no such basis.

        Raises:
            InputError: with `what` in the message.
        """

    @abstractmethod
    def rows(self, size: int, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return chosen rows, `(k, size)`, of indices `(k,)` int64."""

    @abstractmethod
    def analysis(self, vectors: Tensor) -> Tensor:
        """Return the inner products with all rows, `(..., n) -> (..., n)`."""

    @abstractmethod
    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Return the sums of rows, `(..., n) -> (..., n)`."""

    def analysis_at(self, vectors: Tensor, indices: Tensor) -> Tensor:
        """Return the inner products with chosen rows, `(tokens, n) -> (tokens, k)`."""
        return self.analysis(vectors).index_select(-1, indices)

    def synthesis_at(self, values: Tensor, indices: Tensor, size: int) -> Tensor:
        """Return the sums of chosen rows, `(tokens, k) -> (tokens, n)`; a row may come twice."""
        spectrum = values.new_zeros(values.shape[0], size)
        return self.synthesis(spectrum.index_add_(-1, indices, values))

    def spectrum(self, matrix: Tensor) -> Tensor:
        """Return the coefficients of a matrix along both axes, `(p, q) -> (p, q)`."""
        return self.analysis(self.analysis(matrix).mT).mT

    def matrix(self, spectrum: Tensor) -> Tensor:
        """Return the matrix of a spectrum, `(p, q) -> (p, q)`."""
        return self.synthesis(self.synthesis(spectrum).mT).mT


class Cosine(Basis):
    """The orthonormal discrete cosine transform of type II.

    M[k, j] = sqrt(2 / n) c_k cos(pi (2 j + 1) k / (2 n)), c_0 = 1 / sqrt(2) and else 1. The whole
    transform goes through a real Fourier transform of the same length (Makhoul 1980), for odd sizes
    too.
    """

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
        found = self.analysis_at(
            vectors.reshape(-1, size), torch.arange(size, device=vectors.device)
        )
        return found.view(vectors.shape)

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Return the inverse transform along the last axis; see `Basis`."""
        size = coefficients.shape[-1]
        indices = torch.arange(size, device=coefficients.device)
        found = self.synthesis_at(coefficients.reshape(-1, size), indices, size)
        return found.view(coefficients.shape)

    def analysis_at(self, vectors: Tensor, indices: Tensor) -> Tensor:
        """Return the inner products with chosen rows; see `Basis`."""
        table = _cosine_table(vectors.shape[-1], vectors.dtype, vectors.device)
        spectrum = torch.fft.ihfft(vectors.index_select(-1, table.order), norm="forward")
        slots = torch.view_as_real(spectrum * table.turns).flatten(-2)
        return slots.index_select(-1, table.slots.index_select(0, indices))

    def synthesis_at(self, values: Tensor, indices: Tensor, size: int) -> Tensor:
        """Return the sums of chosen rows; see `Basis`."""
        table = _cosine_table(size, values.dtype, values.device)
        slots = values.new_zeros(values.shape[0], 2 * (size // 2 + 1))
        slots.index_add_(-1, table.slots.index_select(0, indices), values)
        spectrum = torch.view_as_complex(slots.unflatten(-1, (-1, 2))) * table.back_turns
        found: Tensor = torch.fft.hfft(spectrum, n=size, norm="forward")
        return found.index_select(-1, table.back)


class _CosineTable(NamedTuple):
    """What turns a Fourier transform of size n into the cosine transform.

    Even inputs come first, odd ones after them backwards. Of the half spectrum, conjugated and
    turned, the real part at k is coefficient k and the imaginary part coefficient n - k: each has
    one slot in the row of both. Where n is even, k = n - k = n / 2 has the real slot, counted twice
    on the way back, since there only the real part of the spectrum is read.
    """

    order: Tensor
    back: Tensor
    turns: Tensor
    back_turns: Tensor
    slots: Tensor


@functools.lru_cache(maxsize=64)
def _cosine_table(size: int, dtype: torch.dtype, device: torch.device) -> _CosineTable:
    order = torch.cat([torch.arange(0, size, 2), torch.arange(1, size, 2).flip(0)])
    half = size // 2 + 1
    angles = torch.arange(half, dtype=torch.float64) * (math.pi / (2 * size))
    lengths = torch.full_like(angles, math.sqrt(2 / size))
    lengths[0] = math.sqrt(1 / size)
    turns = torch.polar(lengths, angles)
    back_turns = 1 / turns
    if size % 2 == 0:
        back_turns[-1] *= 2
    indices = torch.arange(size)
    slots = torch.where(indices < half, 2 * indices, 2 * (size - indices) + 1)
    wide = torch.complex128 if dtype == torch.float64 else torch.complex64
    return _CosineTable(
        order=order.to(device),
        back=order.argsort().to(device),
        turns=turns.to(device, wide),
        back_turns=back_turns.to(device, wide),
        slots=slots.to(device),
    )


class Fourier(Basis):
    """The unitary discrete Fourier transform: M[k, j] = exp(2 pi i j k / n) / sqrt(n)."""

    is_complex: ClassVar[bool] = True

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


class ImaginaryFourier(Fourier):
    """The same with rows turned by an eighth of a circle.

    The real part of a product of two rows is then what the imaginary part of a coefficient gives
    in `Fourier`: minus the imaginary part of the product of its two rows.
    """

    def rows(self, size: int, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return chosen rows, complex; see `Basis`."""
        return super().rows(size, indices, dtype) * EIGHTH

    def analysis(self, vectors: Tensor) -> Tensor:
        """Return the inner products, without conjugation; see `Basis`."""
        return super().analysis(vectors) * EIGHTH


class Hadamard(Basis):
    """The Walsh-Hadamard basis in natural order: entries are +-1 / sqrt(n).

    A size is a power of 2 times 1, 12, 20 or 28 (Paley's constructions for 11, 19 and 13).
    """

    def check(self, size: int, what: str) -> None:
        """Refuse a size that is no power of 2 times a known order.

        Raises:
            InputError: with the nearest sizes below and above.
        """
        if hadamard_order(size):
            return
        near = [
            next(n for n in sizes if hadamard_order(n))
            for sizes in (range(size, 0, -1), range(size, 2 * size + 1))
        ]
        raise InputError(
            f"{what} has {size} features, and a Hadamard basis needs a power of 2 times 1, 12, 20 "
            f"or 28, such as {near[0]} or {near[1]}: choose basis cosine"
        )

    def rows(self, size: int, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return chosen rows; see `Basis`."""
        core = hadamard_core(hadamard_order(size)).to(indices.device, dtype)
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
        core = hadamard_core(hadamard_order(size)).to(vectors)
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


class Rotation(Basis):
    """A random rotation, the same on every machine: uniform among orthogonal matrices.

    The whole matrix is formed, once for each size.
    """

    has_fast_transform: ClassVar[bool] = False

    def check(self, size: int, what: str) -> None:
        """Refuse a size whose matrix would take more than 2 GiB while it is drawn.

        Raises:
            InputError: with the largest size.
        """
        if size > LARGEST_ROTATION:
            raise InputError(
                f"{what} has {size:,} features, and the matrix of a rotation is formed for at most "
                f"{LARGEST_ROTATION:,}: choose basis cosine"
            )

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
    "fourier_imaginary": ImaginaryFourier(),
    "hadamard": Hadamard(),
    "rotation": Rotation(),
}
