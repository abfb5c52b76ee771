"""Several update rules at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.parts import declaration_of, declare
from deltatune.sites import Sites
from deltatune.updates.layerwise_decay import LayerwiseDecay
from deltatune.updates.ratios import Ratios
from deltatune.updates.update import Factor, TrainedParameter

__all__ = ["Chain"]


@declare("updates", "chain")
@dataclass(frozen=True, kw_only=True)
class Chain:
    """Apply several rules: factors multiply, labels join, and who trains must train under all.

    Multiplication does not depend on the order, so neither does the chain, but for its labels.

    Args:
        updates: rules of this room.
    """

    updates: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        for update in self.updates:
            declaration_of(update, "updates")

    @classmethod
    def example(cls) -> Chain:
        """Return two rules that multiply."""
        return cls(updates=(Ratios.example(), LayerwiseDecay(decay=0.5)))

    @property
    def changes_who_trains(self) -> bool:
        """Whether any of the rules does."""
        return any(update.changes_who_trains for update in self.updates)

    def factors(self, parameters: Sequence[TrainedParameter], sites: Sites) -> Mapping[str, Factor]:
        """Return the products of the rules' factors."""
        product: dict[str, Factor] = {}
        for update in self.updates:
            for name, factor in update.factors(parameters, sites).items():
                product[name] = _multiplied(product.get(name, Factor()), factor)
        return product

    def live(
        self, step: int, parameters: Sequence[TrainedParameter], *, steps: int
    ) -> frozenset[str] | None:
        """Return the names that are live under every rule, or None if no rule leaves any out."""
        live: frozenset[str] | None = None
        for update in self.updates:
            names = update.live(step, parameters, steps=steps)
            if names is not None:
                live = names if live is None else live & names
        return live


def _multiplied(first: Factor, second: Factor) -> Factor:
    # Two rules that name the same thing ("layer 3") shall not name it twice in the table.
    return Factor(
        learning_rate=first.learning_rate * second.learning_rate,
        weight_decay=first.weight_decay * second.weight_decay,
        label=_joined(first.label, second.label),
        clipped_with=_joined(first.clipped_with, second.clipped_with),
    )


def _joined(*labels: str) -> str:
    return " ".join(dict.fromkeys(label for label in labels if label))
