"""EfficientFT: train query and value, freeze key, and let the value move faster."""

from __future__ import annotations

import math
from typing import Any

from deltatune.bridges.delta_forms import delta_from_plain
from deltatune.errors import InputError
from deltatune.parts import Source, declare
from deltatune.recipe import Optimizer, Recipe
from deltatune.selections.by_role import ByRole
from deltatune.updates.ratios import Ratios

__all__ = ["efficientft", "efficientft_full", "split_rate"]

SOURCE = Source(
    authors="Yao et al.",
    year=2025,
    title="Theoretical Insights into Fine-Tuning Attention Mechanism: "
    "Generalization and Optimization",
    arxiv="2410.02247",
    where="theorems 1 and 2, table 2",
)


def split_rate(ratio: float) -> Ratios:
    """Return the update that keeps the value's rate and divides every other rate by `ratio`.

    Raises:
        InputError: a ratio that is not a finite number above 0.
    """
    if not (math.isfinite(ratio) and ratio > 0):
        raise InputError(f"ratio={ratio} is not allowed: give a finite number above 0, such as 4")
    return Ratios(roles={"value": 1.0}, default=1.0 / ratio)


@declare("recipes", "efficientft", source=SOURCE)
def efficientft(
    delta: Any = "low_rank",
    value_learning_rate: float = 2e-3,
    ratio: float = 4.0,
) -> Recipe:
    """Train query and value, freeze key, the value at `ratio` times the query's rate, by any delta.

    The value's rate decides how a run goes, and the query's hardly matters over two decades (the
    authors' heatmaps), so the value's rate is stated and the query's is derived from it. The ratio
    is a property of learning rates: under Adam a scaled gradient would change nothing.

    Args:
        delta: options of any delta, or its name.
        value_learning_rate: eta_V in the paper, of the value projection.
        ratio: lambda = eta_V / eta_QK in the paper; the paper tries 2, 4 and 8 and gives no rule.

    Source: see `SOURCE`. The authors' code finds roles by substrings of parameter names, so it
    loses the ratio on T5, GPT-2, DistilBERT and fused projections, and gives the ratio to biases of
    the head; here roles are resolved from the module graph and the head keeps the query's rate.
    """
    return Recipe(
        name="efficientft",
        delta=delta_from_plain(delta),
        selection=ByRole(roles=("query", "value")),
        update=split_rate(ratio),
        optimizer=Optimizer(learning_rate=value_learning_rate),
    )


@declare("recipes", "efficientft_full", source=SOURCE)
def efficientft_full(value_learning_rate: float = 2e-4, ratio: float = 2.0) -> Recipe:
    """Train the query and value weights themselves, freeze key; full tuning wants a smaller ratio.

    Args:
        value_learning_rate: of the value projection.
        ratio: 1 to 2 for full tuning (above that the authors' own table shows collapses).

    Source: see `SOURCE`, rows "full QV" of table 2.
    """
    return Recipe(
        name="efficientft_full",
        delta=delta_from_plain("in_place"),
        selection=ByRole(roles=("query", "value")),
        update=split_rate(ratio),
        optimizer=Optimizer(learning_rate=value_learning_rate),
    )
