"""The two spectra of a change: its singular values, and its coefficients in the cosine basis."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft  # type: ignore[import-untyped]  # it has no annotations
from torch import Tensor

from deltatune.errors import InputError

__all__ = ["check_change", "cosine_spectrum", "log_density", "squared_singular_values"]

FLOOR = 1e-8  # of the mean: below it a coefficient is rounding of float32


def check_change(change: Tensor) -> None:
    """Refuse what has no spectrum.

    Raises:
        InputError: no matrix, an entry that is not finite, or 0 everywhere.
    """
    if change.ndim != 2 or not change.numel():
        raise InputError(f"a change of shape {list(change.shape)} has no spectrum: give a matrix")
    if not bool(torch.isfinite(change).all()):
        raise InputError("the change holds entries that are not finite: training has diverged")
    if not bool(change.any()):
        raise InputError("the change is 0 everywhere and has no spectrum: give one that moved")


@torch.no_grad()
def squared_singular_values(change: Tensor) -> Tensor:
    """Return the squared singular values, largest first, float64, `(min(out, in),)`.

    They come from the smaller of the two products of the change with itself, in float64: energies
    need no singular vectors, and what squaring loses lies 15 digits below the largest.

    Args:
        change: `(out, in)`.
    """
    # Apple's GPUs have no float64.
    matrix = change.cpu() if change.device.type == "mps" else change
    matrix = matrix.to(torch.float64)
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    values: Tensor = torch.linalg.eigvalsh(matrix.T @ matrix)
    return values.clamp_min(0.0).flip(0).cpu()


def cosine_spectrum(change: Tensor) -> Tensor:
    """Return the coefficients of the orthonormal two-dimensional DCT-II, float32, `(out, in)`.

    The sum of their squares is that of the change.

    Args:
        change: `(out, in)`.
    """
    matrix = change.detach().to(device="cpu", dtype=torch.float32).numpy()
    spectrum: NDArray[np.float32] = fft.dctn(matrix, type=2, norm="ortho")
    return torch.from_numpy(spectrum)


def log_density(spectrum: Tensor, *, bins: int = 64) -> Tensor:
    """Return log10 of the mean energy of each bin of a spectrum over that of all, for a heatmap.

    0 is what a flat spectrum has everywhere, as that of iid entries; -8 stands for anything below.

    Args:
        spectrum: `(out, in)`.
        bins: of an axis at most; a shorter axis has one bin for each frequency.

    Returns:
        float32, `(min(out, bins), min(in, bins))`.
    """
    energy = spectrum.to(torch.float64).square()
    for axis in (0, 1):
        length = energy.shape[axis]
        bin_of = torch.arange(length) * min(bins, length) // length
        sizes = bin_of.bincount()
        shape = list(energy.shape)
        shape[axis] = sizes.numel()
        summed = energy.new_zeros(shape).index_add_(axis, bin_of, energy)
        energy = summed / (sizes[:, None] if axis == 0 else sizes)
    mean = spectrum.to(torch.float64).square().mean()
    return (energy / mean).clamp_min(FLOOR).log10().to(torch.float32)
