"""The conditions of a comparison that hold for every recipe."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltatune.comparison.budget import Budget
from deltatune.errors import InputError

__all__ = ["OF_BUDGET", "Terms"]

OF_BUDGET = ("epochs", "seed", "steps")  # fields of `training` that budget and seeds set


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The conditions that hold for all.

    Args:
        budget: of each recipe.
        seeds: of the final runs; the first is that of the trials too.
        trials: learning rates that are tried for each recipe.
        sweep: field -> values; a grid of runs in place of trials and final runs.
    """

    budget: Budget
    seeds: tuple[int, ...]
    trials: int
    sweep: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise InputError(
                f"seeds {list(self.seeds)} are not allowed: give at least one, different numbers "
                f"from 0 up"
            )
        if self.trials < 1:
            raise InputError(f"trials={self.trials} is not allowed: give a number from 1 up")
        for field_name, values in self.sweep.items():
            if not values:
                raise InputError(f"sweep of {field_name!r} has no values: give at least one")
            if field_name in {f"training.{name}" for name in OF_BUDGET}:
                raise InputError(
                    f"{field_name!r} cannot be swept: the budget and the seeds set it; sweep "
                    f"another field"
                )
        if len(self.sweep) > 2:
            raise InputError(
                f"{len(self.sweep)} fields are swept, {', '.join(self.sweep)}: a picture has two "
                f"axes, so give one or two"
            )

    @property
    def runs(self) -> int:
        """How many runs share a recipe's budget."""
        if self.sweep:
            return math.prod(map(len, self.sweep.values())) * len(self.seeds)
        return self.trials * (self.trials > 1) + len(self.seeds)

    def grid(self) -> list[dict[str, Any]]:
        """Return the settings of every cell of the sweep, the last field moving fastest."""
        if not self.sweep:
            return []
        cells = itertools.product(*self.sweep.values())
        return [dict(zip(self.sweep, values, strict=True)) for values in cells]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return {
            "budget": self.budget.to_dict(),
            "seeds": list(self.seeds),
            "trials": self.trials,
            "sweep": {name: list(values) for name, values in self.sweep.items()},
        }
