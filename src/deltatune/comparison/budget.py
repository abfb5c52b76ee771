"""How much each recipe may spend, its own search for a learning rate included."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deltatune.errors import InputError, unknown_name

__all__ = ["KINDS", "Budget", "StepCosts"]

KINDS = ("tokens", "minutes", "flops")


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """What one optimizer step takes on average.

    Args:
        tokens: without padding; image patches count as tokens.
        seconds: of the clock.
        flops: counted.
    """

    tokens: float
    seconds: float
    flops: float

    def of(self, kind: str) -> float:
        """Return the cost in the unit of a kind of budget."""
        return {"tokens": self.tokens, "minutes": self.seconds / 60, "flops": self.flops}[kind]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """An amount of training for each recipe, all its runs together.

    Args:
        kind: one of `KINDS`.
        amount: above 0, in that unit. Only training counts, not loading and scoring.
    """

    kind: str
    amount: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("budget", self.kind, KINDS)
        if not (math.isfinite(self.amount) and self.amount > 0):
            raise InputError(
                f"budget {self.kind}={self.amount:g} is not allowed: give a finite number above 0"
            )

    @classmethod
    def read(cls, text: str) -> Budget:
        """Read `tokens=2e6`, `minutes=30` or `flops=1e15`.

        Raises:
            InputError: another form, an unknown kind, or no number above 0.
        """
        kind, separator, amount = str(text).partition("=")
        try:
            number = float(amount)
        except ValueError:
            separator = ""
        if not separator:
            raise InputError(
                f"budget {text!r} cannot be read: write KIND=AMOUNT, for example tokens=2e6, "
                f"minutes=30 or flops=1e15"
            )
        return cls(kind=kind.strip(), amount=number)

    def steps(self, costs: StepCosts, *, runs: int, recipe: str) -> int:
        """Return the optimizer steps of each of a recipe's runs, which share the budget evenly.

        Args:
            costs: of one step of this recipe.
            runs: trials and final runs together.
            recipe: for the error.

        Raises:
            InputError: it is not enough for one step in each run.
        """
        of_run = self.amount / runs
        of_step = costs.of(self.kind)
        steps = int(of_run / of_step * (1 + 1e-9))  # 3 steps' worth is 3 steps, whatever rounding
        if steps < 1:
            raise InputError(
                f"budget {self.kind}={self.amount:g} is below one step in each of the {runs} runs "
                f"of {recipe!r}: a step takes {of_step:.3g} {self.kind}, so give at least "
                f"{self.kind}={_rounded_up(of_step * runs):g}, fewer seeds or fewer trials"
            )
        return steps

    def to_dict(self) -> dict[str, object]:
        """Return plain values for a JSON file."""
        return {
            "kind": self.kind,
            "amount": self.amount,
            "per": "recipe, its learning-rate trials included",
        }


def _rounded_up(number: float) -> float:
    """Return the next number with three digits.

    >>> _rounded_up(12_345.0)
    12400.0
    """
    unit = 10.0 ** (math.floor(math.log10(number)) - 2)
    return math.ceil(number / unit) * unit
