"""Does a change look like a matrix of iid Gaussian entries? Its singular values tell."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deltatune.errors import InputError
from deltatune.marchenko_pastur import cumulative, support
from deltatune.matrix_spectra import check_change, squared_singular_values
from deltatune.parts import Source
from deltatune.reports.report import Row, report
from deltatune.wishart import eigenvalue_counts

__all__ = ["gaussianity", "gaussianity_of"]

SOURCE = Source(
    authors="Du et al.",
    year=2025,
    title="LoCA: Location-Aware Cosine Adaptation for Parameter-Efficient Fine-Tuning",
    arxiv="2502.06820",
    where="figure 1, whose exact statistic is not known to us; this one is our own",
)
BINS = 50


@report(source=SOURCE)
def gaussianity(change: Tensor, *, draws: int = 1000, seed: int = 0) -> Row:
    """Test whether the singular values are those of iid Gaussian entries.

    The statistic is the total variation distance between the eigenvalues of dW^T dW / n, in units
    of the mean square of the entries, and the law of Marchenko and Pastur, on 50 bins of equal
    width over the law's support, of which the outermost take what lies outside. Its p-value comes
    from Gaussian matrices of the same shape, so it is exact at any size, not only for large ones.

    What it can tell: entries that depend on each other over the whole matrix, as in an update of
    low rank. What it cannot: iid entries of another distribution have the same law (look at
    `excess_kurtosis`), and a few directions that stick out move few eigenvalues (look at
    `largest_to_edge_ratio`, near 1 for iid entries). A high p-value proves nothing.

    Args:
        change: `(out, in)`.
        draws: Gaussian matrices, at least 19; the smallest p-value is 1 / (draws + 1).
        seed: of the draws.

    Returns:
        `total_variation` in [0, 1], `p_value` in (0, 1], `draws`, `largest_to_edge_ratio` (largest
        eigenvalue over the upper end of the law), `excess_kurtosis` of the entries (0 if Gaussian).

    Raises:
        InputError: no matrix, an entry that is not finite, 0 everywhere, or too few draws.
    """
    check_change(change)
    return gaussianity_of(change, squared_singular_values(change), draws=draws, seed=seed)


def gaussianity_of(change: Tensor, values: Tensor, *, draws: int, seed: int) -> Row:
    """Return what `gaussianity` does, given the squared singular values of the change.

    Args:
        change: `(out, in)`.
        values: squared singular values, `(min(out, in),)`.
        draws: Gaussian matrices.
        seed: of the draws.

    Raises:
        InputError: too few draws.
    """
    if draws < 19:
        raise InputError(f"draws={draws} is not allowed: give at least 19, for p-values of 0.05")
    longer, shorter = max(change.shape), min(change.shape)
    scaled = values.numpy() / float(values.mean())  # the mean eigenvalue of the law is 1
    counts = np.histogram(scaled, np.concatenate([[-np.inf], _edges(longer, shorter), [np.inf]]))[0]
    found = _distance(counts[None], longer, shorter)[0]
    drawn = _drawn_distances(longer, shorter, draws, seed)
    return {
        "total_variation": float(found),
        # Equal distances are common in small matrices; rounding must not tell them apart.
        "p_value": float((1 + np.count_nonzero(drawn >= found - 1e-12)) / (draws + 1)),
        "draws": draws,
        "largest_to_edge_ratio": float(scaled.max()) / support(shorter / longer)[1],
        "excess_kurtosis": _excess_kurtosis(change),
    }


def _edges(longer: int, shorter: int) -> NDArray[np.float64]:
    """Return the edges between the bins; the outermost bins are open."""
    return np.linspace(*support(shorter / longer), BINS + 1)[1:-1]


def _distance(counts: NDArray[np.int64], longer: int, shorter: int) -> NDArray[np.float64]:
    """Return the total variation distance of counts `(matrices, bins)` to the law."""
    law = np.diff(cumulative(_edges(longer, shorter), shorter / longer), prepend=0.0, append=1.0)
    return np.asarray(np.abs(counts / shorter - law).sum(axis=1) / 2)


@functools.lru_cache(maxsize=64)  # a model has few shapes, and many weights of each
def _drawn_distances(longer: int, shorter: int, draws: int, seed: int) -> NDArray[np.float64]:
    counts = eigenvalue_counts(longer, shorter, _edges(longer, shorter), draws=draws, seed=seed)
    return _distance(counts, longer, shorter)


def _excess_kurtosis(change: Tensor) -> float:
    centred = change.double() if change.device.type != "mps" else change.cpu().double()
    centred = centred - centred.mean()
    variance = centred.square().mean()
    # All entries alike have no kurtosis; 0 claims nothing.
    return float(centred.pow(4).mean() / variance.square() - 3) if float(variance) else 0.0
