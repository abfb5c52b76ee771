"""LoCA: few coefficients in the cosine spectrum of query and value, whose places are learnt."""

from __future__ import annotations

import math
from typing import Literal

from deltatune.deltas.cosine import CosineSpectrum
from deltatune.errors import InputError
from deltatune.parts import Source, declare
from deltatune.recipe import Optimizer, Recipe
from deltatune.selections.by_role import ByRole
from deltatune.updates.alternate import Alternate, Phase
from deltatune.updates.ratios import Ratios

__all__ = ["loca"]

# The paper's 1e-4 of an axis of 768 cells, in cells.
LOCATION_LEARNING_RATE = 0.077


@declare(
    "recipes",
    "loca",
    source=Source(
        authors="Du et al.",
        year=2025,
        title="LoCA: Location-Aware Cosine Adaptation for Parameter-Efficient Fine-Tuning",
        arxiv="2502.06820",
        where="algorithm 1, table 6",
    ),
)
def loca(
    learning_rate: float = 5e-3,
    coefficients: float = 1000,
    scale: float = 1.0,
    locations: Literal["uniform", "distinct", "low_frequency", "gradient"] = "uniform",
    location_learning_rate: float = LOCATION_LEARNING_RATE,
    coefficient_steps: int = 10,
    location_steps: int = 20,
    until: float | int = 0.1,
) -> Recipe:
    """Train coefficients of the cosine spectrum, and early on their places by turns with them.

    Locations count in cells here, so that one rate fits axes of any length, and do not decay; a
    head trains at every step. FourierFT is the same recipe over `CosineSpectrum(basis="fourier")`
    with `until=0`.

    Args:
        learning_rate: of coefficients and head; 5e-4 to 1e-2 in the paper's table.
        coefficients: B of each weight: a whole number from 1, or a share of its entries below 1.
        scale: alpha, before the sum.
        locations: where coefficients begin, see `CosineSpectrum`.
        location_learning_rate: cells that a location moves in a step of Adam, about; 0 leaves them.
            It is kept as a ratio to `learning_rate`, and follows `optimizer.learning_rate` where
            that is set by itself, as trials of a comparison do.
        coefficient_steps: optimizer steps of each turn of the coefficients.
        location_steps: optimizer steps of each turn of the locations.
        until: where the turns end: a share of the run's steps below 1, or a number of steps.

    Raises:
        InputError: a rate below 0, or a rhythm that is none.
    """
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(
            f"learning_rate={learning_rate:g} is not allowed: give a finite number above 0"
        )
    if not (math.isfinite(location_learning_rate) and location_learning_rate >= 0):
        raise InputError(
            f"location_learning_rate={location_learning_rate:g} is not allowed: give a finite "
            f"number from 0 up, in cells"
        )
    learns = location_learning_rate > 0 and until > 0
    turns = Alternate(
        phases=(
            Phase(parts=("coefficient",), steps=coefficient_steps),
            Phase(
                parts=("location",),
                steps=location_steps,
                learning_rate=location_learning_rate / learning_rate if learns else 1.0,
                weight_decay=0.0,
                clipped_apart=True,
            ),
        ),
        until=until,
        then=("coefficient",),
    )
    return Recipe(
        name="loca",
        delta=CosineSpectrum(
            coefficients=coefficients, scale=scale, locations=locations, learns_locations=learns
        ),
        selection=ByRole(roles=("query", "value")),
        update=turns if learns else Ratios(),
        optimizer=Optimizer(learning_rate=learning_rate),
    )
