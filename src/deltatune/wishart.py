"""Eigenvalues of Gaussian matrices, drawn without ever making such a matrix."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from deltatune.seeds import seed_for

__all__ = ["eigenvalue_counts"]


def eigenvalue_counts(
    longer: int, shorter: int, edges: NDArray[np.float64], *, draws: int, seed: int = 0
) -> NDArray[np.int64]:
    """Count the eigenvalues of X^T X / longer between edges, for Gaussian X of iid entries.

    Each X is taken in units of its own variance, ||X||_F^2 / (longer * shorter), as a matrix of
    unknown variance has to be.

    X^T X has the eigenvalues of a tridiagonal matrix of `shorter` rows whose entries are chi
    variables, and how many of those lie below an edge is read off its elimination. So a draw takes
    time of order shorter * edges, where making X would take longer * shorter^2: 1,000 draws take
    about a second for 4,096 x 4,096, and memory does not grow with the sides.

    Args:
        longer: side of X.
        shorter: side of X.
        edges: rising, `(edges,)`.
        draws: number of matrices.
        seed: of the draws.

    Returns:
        `(draws, edges + 1)`; the first and the last count are of what lies outside.

    Source: Dumitriu and Edelman 2002, Matrix models for beta ensembles, arXiv math-ph/0206043
    (the tridiagonal form); counting by Sturm sequences is older than computers.
    """
    total = np.zeros(draws)
    for diagonal, _ in _rows(longer, shorter, draws, seed):
        total += diagonal
    bounds = np.outer(total / shorter, edges)  # (draws, edges)
    below = np.zeros(bounds.shape, dtype=np.int64)
    pivot = np.ones(bounds.shape)
    for diagonal, squared in _rows(longer, shorter, draws, seed):
        pivot = diagonal[:, None] - bounds - squared[:, None] / pivot
        pivot[pivot == 0.0] = -np.finfo(np.float64).tiny
        below += pivot < 0
    ends = np.zeros((draws, 1), dtype=np.int64)
    return np.diff(below, axis=1, prepend=ends, append=ends + shorter)


def _rows(
    longer: int, shorter: int, draws: int, seed: int
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield, row by row, the diagonal and the squared entry left of it, `(draws,)` each.

    The tridiagonal matrix is B B^T of a lower bidiagonal B with chi variables of longer - i degrees
    of freedom on its diagonal and of shorter - i below it. Calling twice gives the same rows.
    """
    generator = np.random.Generator(np.random.PCG64(seed_for(seed, f"wishart {longer} {shorter}")))
    own = generator.chisquare(longer, draws)
    yield own, np.zeros(draws)
    for i in range(1, shorter):
        below = generator.chisquare(shorter - i, draws)
        before, own = own, generator.chisquare(longer - i, draws)
        yield own + below, before * below
