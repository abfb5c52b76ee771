"""How much recipes' scores differ from seed to seed, learnt from all recipes together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special  # type: ignore[import-untyped]  # it has no annotations

__all__ = ["SeedSpread"]

SMALLEST = 1e-5  # of the median, for a spread of 0


@dataclass(frozen=True)
class SeedSpread:
    """What all recipes together tell of the spread of one recipe's means over the seeds.

    Three seeds tell little of it: among the pairs of many recipes some would have hardly any by
    luck, and differ significantly for no other reason. So the variance of each is drawn towards
    that of all, the more the less the recipes' own spreads differ from each other.

    Source: Smyth 2004, Linear Models and Empirical Bayes Methods for Assessing Differential
    Expression in Microarray Experiments, section 6.2. The seeds' common effect, which cancels in
    every difference, is taken out first.

    Args:
        variance: of one recipe's means.
        freedom: how many degrees of freedom it counts for; 0 where there is nothing to learn from.
    """

    variance: float
    freedom: float

    @classmethod
    def unknown(cls) -> SeedSpread:
        """Return that there is nothing to learn from."""
        return cls(variance=0.0, freedom=0.0)

    @classmethod
    def of(cls, tables: Sequence[NDArray[np.float64]]) -> SeedSpread:
        """Learn from the tables of all recipes, `(seeds, items)` each."""
        means = np.stack([table.mean(axis=1) for table in tables])  # (recipes, seeds)
        recipes, seeds = means.shape
        if recipes < 3 or seeds < 2:
            return cls.unknown()
        own = means - means.mean(axis=1, keepdims=True)
        own = own - own.mean(axis=0)
        freedom = seeds - 1
        variances = (own**2).sum(axis=1) / freedom * recipes / (recipes - 1)
        if not variances.any():
            return cls.unknown()
        # One recipe that is the same in all seeds has no logarithm of a spread.
        variances = np.maximum(variances, SMALLEST * np.median(variances[variances > 0]))
        logs = np.log(variances) - special.digamma(freedom / 2) + math.log(freedom / 2)
        excess = float(logs.var(ddof=1)) - float(special.polygamma(1, freedom / 2))
        whole = float((recipes - 1) * freedom)  # no more is known than all recipes tell
        if excess <= 0:
            return cls(variance=float(variances.mean()), freedom=whole)
        half = _inverse_trigamma(excess)
        center = float(logs.mean()) + float(special.digamma(half)) - math.log(half)
        return cls(variance=math.exp(center), freedom=min(2 * half, whole))


def _inverse_trigamma(value: float) -> float:
    """Return where the trigamma function has a value; by bisection, since it only falls.

    >>> round(_inverse_trigamma(math.pi**2 / 6), 6)
    1.0
    """
    return float(
        optimize.brentq(lambda x: float(special.polygamma(1, x)) - value, 1e-6, 1e8, rtol=1e-9)
    )
