"""How often a comparison finds a difference somewhere where there is none at all.

Synthetic scores of recipes that are equally good: effects of items, common and of each recipe, of
seeds, and of each cell. Reported is the share of comparisons with at least one pair that is called
significant after Holm's correction, as `compare_pairs` does it, and with each pair's variance
between seeds taken from that pair alone. `log_spread` is the standard deviation of the logarithm of
the recipes' own spreads over seeds.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from racing import write

from deltatune.comparison.significance import adjusted, compare_pair, compare_pairs

ITEMS = 200
# recipes, seeds, standard deviation over seeds, log_spread
CASES = (
    (3, 3, 0.10, 0.0),
    (4, 3, 0.05, 0.0),
    (4, 3, 0.15, 0.0),
    (12, 3, 0.00, 0.0),
    (12, 3, 0.02, 0.0),
    (12, 3, 0.05, 0.0),
    (12, 3, 0.15, 0.0),
    (12, 3, 0.05, 1.0),
    (12, 5, 0.10, 0.0),
    (30, 3, 0.10, 0.0),
)


def scores(rng, recipes: int, seeds: int, spread: float, log_spread: float) -> dict:
    items = 0.3 * rng.standard_normal((1, ITEMS))
    return {
        str(i): items
        + spread * np.exp(log_spread * rng.standard_normal()) * rng.standard_normal((seeds, 1))
        + 0.2 * rng.standard_normal((1, ITEMS))
        + 0.3 * rng.standard_normal((seeds, ITEMS))
        for i in range(recipes)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comparisons", type=int, default=100, help="of each case")
    given = parser.parse_args()
    rng, rows = np.random.default_rng(0), []
    for recipes, seeds, spread, log_spread in CASES:
        together = alone = 0
        for seed in range(given.comparisons):
            drawn = scores(rng, recipes, seeds, spread, log_spread)
            together += any(p.is_significant for p in compare_pairs(drawn, seed=seed, draws=10))
            pairs = itertools.combinations(drawn, 2)
            own = [compare_pair(a, b, drawn, draws=10).p_value for a, b in pairs]
            alone += min(adjusted(own)) < 0.05
        rows.append(
            {
                "recipes": recipes,
                "seeds": seeds,
                "spread_over_seeds": spread,
                "log_spread": log_spread,
                "false_discovery_ratio": together / given.comparisons,
                "each_pair_alone_ratio": alone / given.comparisons,
            }
        )
        print(rows[-1], flush=True)
    even = [row["false_discovery_ratio"] for row in rows if not row["log_spread"]]
    uneven = [row["false_discovery_ratio"] for row in rows if row["log_spread"]]
    figures = {
        "even_spreads_lowest_ratio": min(even),
        "even_spreads_highest_ratio": max(even),
        "uneven_spreads_ratio": max(uneven),
    }
    write(__file__, figures, rows)


if __name__ == "__main__":
    main()
