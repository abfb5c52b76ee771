"""The law of Marchenko and Pastur: eigenvalues of X^T X / n for a large matrix of iid entries."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq  # type: ignore[import-untyped]  # it has no annotations

__all__ = ["cumulative", "support", "top_energy"]


def support(ratio: float) -> tuple[float, float]:
    """Return the ends of the law, (1 -+ sqrt(ratio))^2.

    Args:
        ratio: shorter by longer side of the matrix, in (0, 1].
    """
    return (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2


def cumulative(values: NDArray[np.float64], ratio: float) -> NDArray[np.float64]:
    """Return the share of eigenvalues below each value, for entries of variance 1.

    Args:
        values: of any shape; outside the support the share is 0 or 1.
        ratio: shorter by longer side of the matrix, in (0, 1].

    Source: Marchenko and Pastur 1967; the integral is our own, in closed form.

    >>> cumulative(np.array([0.0, 1.0, 4.0]), 1.0).round(4).tolist()
    [0.0, 0.609, 1.0]
    """
    cosine = (1 + ratio - values) / (2 * math.sqrt(ratio))
    return _below(np.arccos(np.clip(cosine, -1.0, 1.0)), ratio)


def top_energy(share: float, ratio: float) -> float:
    """Return which part of the sum of all eigenvalues the largest ones hold.

    This is the energy that the best approximation of rank `share * shorter side` keeps of a large
    matrix of iid entries.

    Args:
        share: of the eigenvalues, in [0, 1].
        ratio: shorter by longer side of the matrix, in (0, 1].

    >>> round(top_energy(0.5, 1.0), 3)
    0.894
    """
    if share in (0.0, 1.0):
        return share
    angle: float = brentq(lambda a: float(_below(np.array(a), ratio)) - (1 - share), 0.0, math.pi)
    return 1 - (angle - math.sin(angle) * math.cos(angle)) / math.pi


def _below(angle: NDArray[np.float64], ratio: float) -> NDArray[np.float64]:
    """Return the share below the eigenvalue 1 + ratio - 2 sqrt(ratio) cos(angle).

    In the angle the density is 2 sin^2 / (pi * eigenvalue), smooth also where the law is not.
    """
    root = math.sqrt(ratio)
    half = np.arctan2((1 + root) * np.sin(angle / 2), (1 - root) * np.cos(angle / 2))
    total = np.sin(angle) / (2 * root) + ((1 + ratio) * angle - 2 * (1 - ratio) * half) / (
        4 * ratio
    )
    return np.asarray(np.clip(2 / math.pi * total, 0.0, 1.0))
