"""How much of a change a rank keeps, and how much as many cells of its cosine spectrum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.special import ndtri  # type: ignore[import-untyped]  # it has no annotations
from torch import Tensor

from deltatune.errors import InputError
from deltatune.marchenko_pastur import top_energy
from deltatune.matrix_spectra import check_change, cosine_spectrum, squared_singular_values
from deltatune.parts import Source
from deltatune.reports.report import Row, report

__all__ = ["captured_energy", "curve_ranks", "energy_rows", "gaussian_captured_energy"]

SOURCE = Source(
    authors="Du et al.",
    year=2025,
    title="LoCA: Location-Aware Cosine Adaptation for Parameter-Efficient Fine-Tuning",
    arxiv="2502.06820",
    where="the theorem on expected reconstruction errors, in our own form",
)
NUMBERS_OF_A_LOCATED_CELL = 3  # its value and two indices


@report(source=SOURCE)
def captured_energy(change: Tensor, *, rank: int = 8) -> Row:
    """Compare what rank r keeps of a change's squared norm with what as many cells keep.

    Rank r stores N = r (out + in) numbers. N cells are drawn at random (in expectation), or chosen
    as the largest, or chosen as the largest with their locations counted as numbers too, which
    leaves N / 3 of them.

    Args:
        change: `(out, in)`.
        rank: from 1 to min(out, in).

    Returns:
        `rank`, `cells` (N, at most all), `rank_energy_ratio`, `random_cells_energy_ratio`,
        `best_cells_energy_ratio`, `best_located_cells_energy_ratio`, each in [0, 1].

    Raises:
        InputError: no matrix, an entry that is not finite, 0 everywhere, or another rank.
    """
    check_change(change)
    _check_rank(rank, tuple(change.shape))
    return energy_rows(squared_singular_values(change), cosine_spectrum(change), [rank])[0]


def energy_rows(values: Tensor, spectrum: Tensor, ranks: Sequence[int]) -> list[Row]:
    """Return what `captured_energy` does for several ranks, out of the two spectra of a change.

    Args:
        values: squared singular values, largest first, `(min(out, in),)`.
        spectrum: coefficients in the cosine basis, `(out, in)`.
        ranks: each from 1 to min(out, in).
    """
    out_features, in_features = spectrum.shape
    kept = _shares(values)
    largest = spectrum.flatten().to(torch.float64).square().sort(descending=True).values
    best = _shares(largest)
    rows: list[Row] = []
    for rank in ranks:
        cells = _cells(rank, out_features, in_features)
        located = rank * (out_features + in_features) // NUMBERS_OF_A_LOCATED_CELL
        rows.append(
            {
                "rank": rank,
                "cells": cells,
                "rank_energy_ratio": _share_of(kept, rank),
                "random_cells_energy_ratio": cells / spectrum.numel(),
                "best_cells_energy_ratio": _share_of(best, cells),
                "best_located_cells_energy_ratio": _share_of(best, located),
            }
        )
    return rows


def gaussian_captured_energy(shape: tuple[int, int], *, rank: int) -> Row:
    """Return what `captured_energy` tends to for a large matrix of iid Gaussian entries.

    An orthonormal basis leaves iid Gaussian entries as they are, so the best share p of the cells
    keeps p + 2 t phi(t) with t = Phi^-1(1 - p / 2); the rank keeps what the largest eigenvalues of
    the Marchenko-Pastur law hold.

    Args:
        shape: `(out, in)`.
        rank: from 1 to min(out, in).

    Raises:
        InputError: another rank.

    >>> row = gaussian_captured_energy((256, 256), rank=4)
    >>> [round(value, 3) for name, value in row.items() if name.endswith("ratio")]
    [0.058, 0.031, 0.2, 0.087]
    """
    _check_rank(rank, shape)
    total = shape[0] * shape[1]
    cells = _cells(rank, *shape)
    located = min(rank * sum(shape) / NUMBERS_OF_A_LOCATED_CELL, total)
    return {
        "rank": rank,
        "cells": cells,
        "rank_energy_ratio": top_energy(rank / min(shape), min(shape) / max(shape)),
        "random_cells_energy_ratio": cells / total,
        "best_cells_energy_ratio": _best_of_gaussian(cells / total),
        "best_located_cells_energy_ratio": _best_of_gaussian(located / total),
    }


def curve_ranks(shape: tuple[int, int], *, points: int = 24) -> list[int]:
    """Return ranks for a curve, even on a logarithmic axis, from 1 to all.

    >>> curve_ranks((100, 64), points=7)
    [1, 2, 4, 8, 16, 32, 64]
    """
    last = math.log(min(shape))
    return sorted({round(math.exp(last * i / max(points - 1, 1))) for i in range(points)})


def _check_rank(rank: int, shape: tuple[int, ...]) -> None:
    if not 1 <= rank <= min(shape):
        raise InputError(
            f"rank={rank} is not allowed: give an integer from 1 to {min(shape)} = min(out, in)"
        )


def _cells(rank: int, out_features: int, in_features: int) -> int:
    return min(rank * (out_features + in_features), out_features * in_features)


def _shares(energies: Tensor) -> Tensor:
    """Return the share of the total that the first k energies hold, for every k."""
    summed = energies.cumsum(0)
    return summed / summed[-1]


def _share_of(shares: Tensor, number: int) -> float:
    return float(shares[min(number, shares.numel()) - 1]) if number else 0.0


def _best_of_gaussian(share: float) -> float:
    if share >= 1:
        return 1.0
    bound = float(ndtri(1 - share / 2))
    return share + 2 * bound * math.exp(-bound * bound / 2) / math.sqrt(2 * math.pi)
